"""scripts/gpu_check.sh without a GPU: its parts' own arithmetic, its checks, the table, and a dry run of everything."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import world
from benchmarks.gpu import agreement, embedding, searching, training
from benchmarks.gpu.__main__ import missing
from benchmarks.gpu.agreement import CHECKS, Both, Outcome
from benchmarks.gpu.setting import Setting, card_peak
from benchmarks.gpu.table import markdown, render
from rag.errors import UserError
from rag.index import lazy_faiss
from rag.index.folder import Index
from rag.retrievers.exact import ExactRetriever
from rag.runs import PROJECT

SCRIPT = PROJECT / "scripts" / "gpu_check.sh"


# -- the checks of part a ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> Both:
    """A CPU against itself, with tiny models."""
    return Both("cpu", "tiny", tmp_path_factory.mktemp("both"))


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_checks_hold_on_a_cpu(both, check):
    outcomes = check(both)
    assert outcomes and not [outcome for outcome in outcomes if not outcome.agrees]


@pytest.mark.gpu
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_checks_hold_on_a_gpu(tmp_path, check):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    with agreement.float32_products():
        outcomes = check(Both("cuda", "small", tmp_path))
    assert outcomes and not [outcome for outcome in outcomes if not outcome.agrees]


@pytest.mark.slow
def test_a_difference_is_seen(both):
    weight = both.on_device.generator.model.get_decoder().layers[0].fc1.weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight += 0.01 * torch.randn_like(weight)
    errors = [outcome for outcome in agreement.losses_and_gradients(both) if not outcome.agrees]
    with torch.no_grad():
        weight.copy_(before)
    assert {outcome.what for outcome in errors} >= {"RAG-Token, loss", "RAG-Sequence, gradient"}


def test_nan_is_no_agreement():
    assert not Outcome("", float("nan"), 1.0).agrees
    assert Outcome("", 0.0, 0.0).agrees


# -- cards and memory ----------------------------------------------------------------------------


def test_peaks_are_those_of_the_card_that_is_named():
    peaks = {
        "NVIDIA H100 80GB HBM3": 989e12,
        "NVIDIA H100 PCIe": 756e12,
        "NVIDIA H200": 989e12,
        "NVIDIA A100-SXM4-80GB": 312e12,
        "NVIDIA L4": 121e12,
        "NVIDIA L40S": 362e12,
        "NVIDIA GeForce RTX 4090": 165.2e12,
        "Tesla V100-SXM2-16GB": 125e12,
        "an unknown card": None,
    }
    assert {name: card_peak(name) for name in peaks} == peaks


def test_vectors_leave_room_for_scores():
    assert searching.how_many(int(80e9), 768) * 2 * 768 == pytest.approx(72e9, rel=1e-6)
    assert searching.how_many(int(10e9), 768) * 2 * 768 == pytest.approx(8e9, rel=1e-6)


def batch_sizes(memory: int, seconds_at: dict[int, float] | None = None) -> list[int]:
    """The batches that `tried` takes on a card that holds so many questions."""
    cleared = []
    steps = SimpleNamespace(side=SimpleNamespace(device="cpu"), clear=lambda: cleared.append(None))

    def make(questions: int):
        def step() -> None:
            if questions > memory:
                raise torch.OutOfMemoryError("full")

        return step

    sizes_tried = training.tried(steps, make, lambda: len(cleared) >= 5, most=256)  # type: ignore[arg-type]
    assert len(cleared) >= len(sizes_tried)
    return list(sizes_tried)


def test_batches_grow_until_the_card_or_the_time_is_full(monkeypatch):
    monkeypatch.setattr(training, "SLOWER", 0.0)
    assert batch_sizes(memory=40) == [2, 8, 32]
    assert batch_sizes(memory=1) == []
    assert batch_sizes(memory=1_000) == [2, 8, 32, 48, 64]  # the time is over after five


def test_batches_stop_growing_where_they_are_slower(monkeypatch):
    monkeypatch.setattr(training, "timed", lambda step, device: next(seconds))
    seconds = iter(each for s in (1.0, 1.0, 32.0) for each in (s, s))  # 2, 8 and 1 questions a second
    assert batch_sizes(memory=1_000) == [2, 8, 32]
    seconds = iter([1.0] * 4)
    steps = SimpleNamespace(side=SimpleNamespace(device="cpu"), clear=lambda: None)
    assert list(training.tried(steps, lambda _: lambda: None, lambda: False, most=64, least=33)) == [48, 64]  # type: ignore[arg-type]


# -- exact search and embedding ------------------------------------------------------------------


def test_the_vectors_on_the_device_are_those_of_their_rows():
    index = searching.Vectors(25, 4, block=10)
    there = index.on(torch.device("cpu"), torch.float32).numpy()
    np.testing.assert_array_equal(there, index.vectors(np.arange(25)))
    assert len(np.unique(there, axis=0)) == 25


def test_packed_passages_have_the_states_of_padded_ones():
    torch.manual_seed(0)
    encoder = world.passage_encoder(world.SIZES["tiny"])
    rows = [[5, 6, 7], [8], [9, 10, 11, 12, 13]]
    with torch.no_grad():
        packed = embedding.packed_states(encoder.ctx_encoder.bert_model, embedding.Packed(rows, "cpu"))
        padded = encoder(**embedding.padded(rows, "cpu")).pooler_output
    torch.testing.assert_close(packed, padded, rtol=1e-4, atol=1e-5)


def test_batches_hold_every_passage_once():
    rows = embedding.token_rows(200, 1_000)
    groups = list(embedding.batches(rows, 2_000))
    assert [row for group in groups for row in group] == rows
    assert all(len(group) * len(group[0]) <= 2_000 for group in groups)
    assert 120 < np.mean([len(row) for row in rows]) < 140


# -- results -------------------------------------------------------------------------------------


def test_results_are_written_as_they_come_and_become_a_table(tmp_path, capsys):
    def setting(part: str, dry: bool = False) -> Setting:
        return Setting(part, "cpu", dry, tmp_path, tmp_path / "prepared", seconds=60)

    setting("machine").tell("machine", {"card": "A card", "commit": "abc", "date": "2026-11-26"})
    setting("a").tell("one", {"error": 1e-6}, aim="≤ 0.0001", reached=True)
    setting("a").tell("two", {"error": float("nan")}, aim="≤ 0.0001", reached=False)
    setting("b").tell("training", {"mfu": 0.41234, "peak_gb": None}, {"K": 5}, "MFU ≥ 0.4", True)
    setting("b", dry=True).tell("tiny", {"mfu": 0.01}, {"K": 2}, "MFU ≥ 0.4", False)
    setting("f").skip("p(z|x)", "no reader yet")
    assert "NaN" not in (tmp_path / "results.jsonl").read_text()
    capsys.readouterr()
    assert render(tmp_path, "the command") == 0
    assert capsys.readouterr().out.strip() == (tmp_path / "table.md").read_text().strip()
    head, _, *rows = (tmp_path / "table.md").read_text().splitlines()
    assert head == "`the command`, 2026-11-26, A card, commit abc"
    assert rows[2:] == [
        "| a agreement | GPU against CPU; the largest error: one |  | checks that agree 1, of 2, largest error 1.0e-06 "
        "| ≤ 0.0001 | **no** |",
        "| a agreement | two |  | error nan | ≤ 0.0001 | **no** |",
        "| b training | training | K 5 | mfu 0.412 | MFU ≥ 0.4 | yes |",
        "| b training | tiny | K 2 | mfu 0.01 |  |  |",
        "| f mini-wiki | p(z\\|x) |  | skipped: no reader yet |  |  |",
    ]


def test_a_table_of_a_part_that_was_stopped():
    rows = [{"part": "b", "what": "the part", "skipped": "stopped at its limit of 200 s"}]
    assert "| b training | the part |  | skipped: stopped at its limit of 200 s |  |  |" in markdown(
        rows, "x"
    )


# -- a bare machine ------------------------------------------------------------------------------


def test_nothing_of_what_is_needed_is_missing_here():
    assert missing() == []


def test_an_index_without_faiss_serves_exact_search_and_refuses_another(index, question_encoder, monkeypatch):
    monkeypatch.setattr(lazy_faiss, "installed", lambda: False)
    opened = Index.open(index.folder)
    queries = np.random.default_rng(0).standard_normal((2, index.dim), np.float32)
    with pytest.raises(
        UserError, match="cannot be searched without FAISS: install faiss-cpu, or use retriever=exact"
    ):
        opened.search(queries, 3)
    rows = ExactRetriever(question_encoder, opened).search(torch.from_numpy(queries), 3)
    np.testing.assert_array_equal(rows, index.search(queries, 3)[1])


def test_faiss_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(
        UserError, match="FAISS is not installed: install faiss-cpu, or search the vectors without it"
    ):
        lazy_faiss.read_index  # noqa: B018


def test_a_dry_run_hides_what_a_bare_machine_lacks():
    code = (
        "from benchmarks.gpu.bare import HIDDEN, hide; hide()\n"
        "from importlib.util import find_spec; from importlib.metadata import PackageNotFoundError, version\n"
        "assert not [name for name in HIDDEN if find_spec(name)], 'found'\n"
        "assert find_spec('torch') and find_spec('jaxtyping')\n"
        "for name in ('faiss-cpu', 'scikit-learn', 'scikit_learn'):\n"
        "    try: version(name)\n"
        "    except PackageNotFoundError: continue\n"
        "    raise AssertionError(name)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)


# -- the script ----------------------------------------------------------------------------------


def script(*arguments: str, out: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OUT": str(out), "PYTHON": sys.executable}
    return subprocess.run([str(SCRIPT), *arguments], capture_output=True, text=True, env=environment)


def test_a_slip_in_the_command_is_told(tmp_path):
    done = script("dyr", out=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: dyr is not a part: there are a b c d e f, after dry or prepare or nothing\n"


@pytest.mark.slow
def test_no_gpu_is_told(tmp_path):
    done = script("e", out=tmp_path)
    assert done.returncode == 1
    assert "this machine has no CUDA device; `scripts/gpu_check.sh dry` runs every part" in done.stderr


@pytest.mark.slow
def test_a_dry_run_of_every_part(tmp_path):
    done = script("dry", out=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    table = (tmp_path / "dry" / "table.md").read_text()
    for part in ("a agreement", "b training", "c decoding", "d embedding", "e search", "f mini-wiki"):
        assert f"| {part} |" in table
    assert "**no**" not in table and "the part" not in table
