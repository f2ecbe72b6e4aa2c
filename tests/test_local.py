"""One's own passages and questions, by the experiments of configs/experiment/scratch, from nothing, and local, from
pretrained parts; every stage runs as its command."""

import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from reader_folders import tiny_reader
from sentence_folders import tiny_transformer, write_modules

from rag.files import read_json
from rag.index.folder import Index
from rag.metrics.record import BM25, by_k, records_of
from rag.runs import PROJECT

PASSAGES = [
    (
        "Lighthouse of Varne",
        "The lighthouse was built in 1834 by the engineer Thomas Aldous. It burned whale oil.",
    ),
    (
        "Harbour railway",
        "The harbour railway carried herring to the market. It was closed in 1962 after a storm.",
    ),
    ("Otter", "An otter eats fish and crabs. Its fur keeps the cold out even under ice."),
    ("Glass", "Glass is made of sand, soda and lime. Roman workshops learned to blow it through a pipe."),
    ("Maria Kestrel", "Maria Kestrel was a botanist. She described forty mosses from the island of Hoy."),
    ("Barley", "Barley grows on poor soil. Brewers in Fife prefer a variety called Golden Promise."),
    (
        "Observatory Hill",
        "The observatory owns a refracting telescope from Leipzig. Visitors may use it in winter.",
    ),
    (
        "River Tarn",
        "The river rises near Blackfell and is crossed by eleven bridges before it meets the sea.",
    ),
    (
        "Chess clock",
        "A chess clock has two dials. Thomas Wilson's firm sold the first of them in Manchester.",
    ),
    ("Peat", "Peat forms where water stands. Cut and dried, it heated most cottages of the parish."),
    ("Opera house", "The opera house opened with a work by Rossini. A fire destroyed its curtain in 1901."),
    ("Quince", "The quince is too hard to eat raw. With sugar it becomes a red jelly."),
]
QUESTIONS = [
    ("who was the engineer of the lighthouse", "Thomas Aldous", 1),
    ("what did the harbour railway carry to the market", "herring", 2),
    ("which animal eats fish and crabs", "otter", 3),
    ("what is glass made of besides soda and lime", "sand", 4),
    ("who described forty mosses", "Maria Kestrel", 5),
    ("which variety of barley do brewers prefer", "Golden Promise", 6),
    ("where is the refracting telescope from", "Leipzig", 7),
    ("near which place does the river rise", "Blackfell", 8),
]
TINY = {
    "denoising": "tokenizer.vocab_size=400 generator.width=16 generator.layers=1 generator.heads=2 "
    "generator.feedforward=32 datamodule.batch_size=4 datamodule.whole_sentence_steps=1 trainer.max_steps=3",
    "dpr": "tokenizer.vocab_size=400 encoders.width=16 encoders.heads=2 encoders.feedforward=32 "
    "datamodule.batch_size=6 datamodule.inverse_cloze_steps=1 trainer.max_steps=3",
    "closed_book": "datamodule.batch_size=4 datamodule.dev_limit=4 trainer.max_steps=2 trainer.val_check_interval=2",
    "rag_sequence": "datamodule.batch_size=2 datamodule.dev_limit=4 trainer.max_steps=2 trainer.val_check_interval=2",
    "rag_token": "datamodule.batch_size=2 datamodule.dev_limit=4 trainer.max_steps=2 trainer.val_check_interval=2",
}
Command = Callable[..., int]


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """A corpus in DPR's form and two question files, as settings."""
    rows = [f'{n}\t"{text}"\t{title}' for n, (title, text) in enumerate(PASSAGES, start=1)]
    (tmp_path / "passages.tsv").write_text("\n".join(["id\ttext\ttitle", *rows]) + "\n")
    for name, chosen in (("train", QUESTIONS[2:]), ("dev", QUESTIONS)):
        lines = [
            json.dumps(
                {"question": q, "answers": [a], "positive_ids": [n], "hard_negative_ids": [n % 12 + 1]}
            )
            for q, a, n in chosen
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    names = {"passages": "passages.tsv", "train": "train.jsonl", "dev": "dev.jsonl"}
    return [*(f"task.{key}={tmp_path / name}" for key, name in names.items()), f"paths.outputs={tmp_path}"]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run a script of the project in this process and give its exit code."""

    def command(script: str, *arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        try:
            runpy.run_path(str(PROJECT / script), run_name="__main__")
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return command


def train(run: Command, files: list[str], *stages: str) -> None:
    for stage in stages:
        assert run("train.py", f"experiment=scratch/{stage}", *files, *TINY[stage].split()) == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*the retriever has collapsed")  # three steps teach it nothing
def test_every_stage_runs_on_files_of_ones_own(run: Command, files: list[str], tmp_path: Path, capsys):
    """Each stage finds what the one before it left, and BM25's recall stands beside the model's."""
    train(run, files, "dpr", "denoising")
    assert run("build_index.py", "experiment=scratch/index", *files) == 0
    train(run, files, "rag_sequence", "rag_token", "closed_book")
    capsys.readouterr()
    for name in ("rag_sequence", "rag_token", "closed_book"):
        command = [f"checkpoint={tmp_path / 'scratch' / name}", "split=dev", f"results={tmp_path / name}"]
        assert run("evaluate.py", *command, "recall_at=[1,5]") == 0
    shown = capsys.readouterr().out
    for name in ("rag_sequence", "rag_token"):
        result = read_json(tmp_path / name / "result.json")
        assert result["questions"] == 8
        assert result["index"] == {"type": "Flat", "passages": 12, "recall": {"1": 1.0, "5": 1.0}}
        # every question shares two words or more with its own passage alone
        for metric in ("recall", "answer_recall"):
            by_depth = by_k(records_of(result), metric, BM25)
            assert {k: (each.value, each.n) for k, each in by_depth.items()} == {1: (1.0, 8), 5: (1.0, 8)}
    assert "BM25" in shown and "Flat, 12 passages" in shown
    closed = read_json(tmp_path / "closed_book" / "result.json")
    assert closed["n_docs"] is None and {each.condition for each in records_of(closed)} == {None}
    assert {each.k for each in records_of(closed)} == {None} and "8 questions of dev, closed book" in shown


def test_another_type_of_index_keeps_the_vectors(run: Command, files: list[str], tmp_path: Path, capsys):
    train(run, files, "dpr")
    build = ["build_index.py", "experiment=scratch/index", *files]
    folder = tmp_path / "scratch" / "index"
    vectors = folder / "vectors" / "00000.npy"
    capsys.readouterr()
    assert run(*build, "estimate=true", "index=sq8", "passages_per_second=3") == 0
    shown = capsys.readouterr().out
    assert "SQ8" in shown and "hours: embedding" in shown and not folder.exists()
    assert run(*build) == 0
    embedded = vectors.stat().st_mtime_ns
    assert run(*build, "index.type.factory=SQ8") == 2
    assert "an index of type Flat instead of SQ8" in capsys.readouterr().err
    assert Index.open(folder).manifest.factory == "Flat"
    assert run(*build, "index.type.factory=SQ8", "overwrite=true") == 0
    manifest = Index.open(folder).manifest
    measured = "4 held-out questions; 4 others chose the search parameters"
    assert (manifest.factory, manifest.recall_queries) == ("SQ8", measured)
    assert vectors.stat().st_mtime_ns == embedded


def test_a_file_that_was_not_given_is_named(run: Command, files: list[str], capsys):
    assert run("train.py", "experiment=scratch/dpr", *files[1:]) == 2
    assert "task.passages has no value and this run needs it: give task.passages=" in capsys.readouterr().err


def test_a_stage_names_the_stage_that_is_missing(run: Command, files: list[str], tmp_path: Path, capsys):
    assert run("train.py", "experiment=scratch/rag_token", *files) == 2
    assert f"{tmp_path / 'scratch' / 'index'}" in capsys.readouterr().err
    assert not (tmp_path / "scratch" / "rag_token").exists()


@pytest.mark.slow
def test_two_processes_build_the_index_that_one_builds(run: Command, files: list[str], tmp_path: Path):
    train(run, files, "dpr")
    for name, processes in (("one", 1), ("two", 2)):
        launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--master-port=29533"]
        settings = ["experiment=scratch/index", *files, "shard_size=4", f"index.path={tmp_path / name}"]
        subprocess.run([sys.executable, *launcher, "build_index.py", *settings], cwd=PROJECT, check=True)
    one, two = Index.open(tmp_path / "one"), Index.open(tmp_path / "two")
    assert len(list((tmp_path / "two" / "vectors").glob("*.npy"))) == 3
    np.testing.assert_allclose(one.vectors(np.arange(12)), two.vectors(np.arange(12)), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*the retriever has collapsed")
def test_pretrained_parts_are_trained_further(run: Command, files: list[str], tmp_path: Path):
    """What stands for MiniLM and the reader is tiny; every command is the documented one."""
    encoder = write_modules(tiny_transformer(tmp_path / "encoder"), max_length=40)
    reader = tiny_reader(tmp_path / "reader")
    parts = [*files, f"passage_encoder={encoder}"]
    short = ["trainer.max_steps=2", "trainer.val_check_interval=2", "datamodule.dev_limit=4"]
    assert run("train.py", "experiment=local/dpr", *parts, *short, "datamodule.batch_size=4") == 0
    trained = tmp_path / "local" / "dpr" / "model"
    parts += [
        f"passage_encoder={trained / 'passage_encoder'}",
        f"question_encoder={trained / 'question_encoder'}",
    ]
    assert run("build_index.py", "experiment=local/index", *parts) == 0
    for name in ("rag_sequence", "rag_token", "closed_book"):
        own = [f"experiment=local/{name}", f"generator.path={reader}", "datamodule.batch_size=2"]
        assert run("train.py", *own, *parts, *short) == 0
        command = [f"checkpoint={tmp_path / 'local' / name}", "split=dev", f"results={tmp_path / name}"]
        assert run("evaluate.py", *command, "recall_at=[1,5]") == 0
        assert read_json(tmp_path / name / "result.json")["questions"] == 8
        decoding = OmegaConf.load(tmp_path / name / "config.yaml").decoding
        assert decoding.min_new_tokens == 1  # as the reader's: never an empty answer


SQUAD = PROJECT.parent / "shared" / "data" / "squad_open"


@pytest.mark.slow
@pytest.mark.skipif(not SQUAD.is_dir(), reason=f"no real passages at {SQUAD}")
@pytest.mark.filterwarnings("ignore:.*the retriever has collapsed")
def test_real_passages_and_questions(run: Command, tmp_path: Path):
    """6,940 Wikipedia passages: a minute of DPR finds far more than chance does, and BM25 what it should."""
    names = {"passages": "passages.tsv.xz", "train": "train.jsonl.gz", "dev": "dev.jsonl.gz"}
    files = [*(f"task.{key}={SQUAD / name}" for key, name in names.items()), f"paths.outputs={tmp_path}"]
    encoders = ["tokenizer.max_passages=2000", "datamodule.inverse_cloze_steps=20", "trainer.max_steps=100"]
    assert run("train.py", "experiment=scratch/dpr", *files, *encoders) == 0
    assert run("build_index.py", "experiment=scratch/index", *files) == 0
    train(run, files, "denoising", "rag_token")
    command = [f"checkpoint={tmp_path / 'scratch' / 'rag_token'}", "split=dev", "limit=300"]
    assert run("evaluate.py", *command, f"results={tmp_path / 'results'}") == 0
    result = read_json(tmp_path / "results" / "result.json")
    assert result["index"]["passages"] == 6940
    records = records_of(result)
    assert by_k(records, "recall")[100].value > 5 * 100 / 6940
    assert by_k(records, "recall", BM25)[20].value > 0.8
