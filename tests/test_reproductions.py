"""The log of what was run: a finished run's row, and the line at the head of its experiment that states it."""

import json
import os
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from rag import reproductions
from rag.cli import mistakes_in_one_sentence
from rag.errors import UserError
from rag.files import write_json
from rag.reproductions import INTRODUCTION, LOG, Row, add, added, command, newest, row_of, rows_of, with_ours
from rag.runs import CONFIGS

EXPERIMENTS = sorted(
    file for file in (CONFIGS / "experiment").rglob("*.yaml") if not file.name.startswith("_")
)
OURS = "# Ours: em 41.2 (39.0–43.4), 500 of test; 2026-11-01, 0123456789ab, CPU (docs/reproductions.md)."


def finished(folder: Path, seed: int = 1, value: float = 0.5, when: float = 1.8e9) -> Path:
    """A run that was trained and evaluated, as train.py and evaluate.py leave one."""
    evaluation = folder / "evaluation" / f"test-{seed}"
    evaluation.mkdir(parents=True)
    write_json(
        folder / "run.json",
        {
            "command": "python train.py experiment=table1/nq_rag_token paths.run=/x/y n_docs=50",
            "commit": "0123456789ab",
        },
    )
    write_json(folder / "result.json", {"steps": 3, "metrics": {"dev/em": 0.1}})
    record = {"k": 50, "split": "test", "n": 3610, "condition": None}
    metrics = [
        {"metric": "em", "value": value, "low": value - 0.02, "high": value + 0.02, **record},
        {"metric": "f1", "value": 0.6, "low": 0.58, "high": 0.62, **record},
        {"metric": "em", "value": 0.1, "low": 0.05, "high": 0.15, **record, "k": 10},
        {
            "metric": "em",
            "value": 0.1,
            "low": 0.05,
            "high": 0.15,
            **record,
            "condition": "answer not retrieved",
        },
        {"metric": "answer_recall", "value": 0.8, "low": 0.78, "high": 0.82, **record, "k": 20},
    ]
    result = {
        "name": "table1/nq_rag_token",
        "checkpoint": str(folder),
        "split": "test",
        "questions": 3610,
        "n_docs": 50,
    }
    result |= {"seed": seed, "commit": "ba9876543210+", "device": "NVIDIA A100", "metrics": metrics}
    write_json(evaluation / "result.json", result)
    write_json(
        evaluation / "run.json",
        {"command": f"python evaluate.py checkpoint={folder} results=/z|", "machine": "x86_64, 8 cores"},
    )
    os.utime(evaluation / "result.json", (when, when))
    return folder


@pytest.fixture
def place(tmp_path: Path) -> tuple[Path, Path]:
    """A log and a copy of the experiments."""
    for file in EXPERIMENTS:
        copy = tmp_path / "configs" / file.relative_to(CONFIGS)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(file.read_text("utf-8"), encoding="utf-8")
    return tmp_path / "log.md", tmp_path / "configs"


def test_a_row_says_all_that_is_needed(tmp_path):
    row = row_of(finished(tmp_path / "run"))
    assert row == Row(
        date="2027-01-15",
        experiment="table1/nq_rag_token",
        questions="3,610 of test, K = 50, seed 1",
        metrics="em 50.0 (48.0–52.0), f1 60.0 (58.0–62.0), answer_recall@20 80.0 (78.0–82.0)",
        commit="0123456789ab, evaluated ba9876543210+",
        machine="x86_64, 8 cores, NVIDIA A100",
        commands="`python train.py experiment=table1/nq_rag_token n_docs=50`; "
        "`python evaluate.py checkpoint=outputs/…/run`",
    )
    assert (
        Row.read(row.line()) == row
        and row_of(tmp_path / "run" / "evaluation" / "test-1").metrics == row.metrics
    )
    bar = Row(*["2026-01-01", *("a|b" for _ in range(6))])
    assert Row.read(bar.line()) == bar


def test_the_newest_row_comes_first_and_is_stated_once(tmp_path, place):
    log, configs = place
    first, second = finished(tmp_path / "one", 1, 0.5), finished(tmp_path / "two", 2, 0.25)
    assert add(first, *place)[1] and add(second, *place)[1]
    text = log.read_text()
    assert text.startswith(INTRODUCTION) and [row.questions[-1] for row in rows_of(text)] == ["2", "1"]
    head = (configs / "experiment/table1/nq_rag_token.yaml").read_text()
    assert head.count("Ours:") == 1 and "# Ours: em 25.0 (23.0–27.0), 3,610 of test" in head
    assert not add(first, *place)[1] and log.read_text() == text  # it is there already
    assert (configs / "experiment/table1/nq_rag_token.yaml").read_text() == head
    assert "answer_recall" not in head and "Budget" in head


@pytest.mark.parametrize(
    "file", EXPERIMENTS, ids=lambda file: file.relative_to(CONFIGS / "experiment").as_posix()
)
def test_every_experiment_can_state_its_row(file):
    """One line, in place of "Ours: not run.", with not one word else gone, and the same configuration."""
    text = file.read_text("utf-8")
    stated = with_ours(text, OURS)
    assert stated.splitlines().count(OURS) == 1 and with_ours(stated, OURS) == stated
    assert not re.search(r"Ours:(\s|#)+not(\s|#)+run\.", stated)

    def words(of: str) -> list[str]:
        plain = re.sub(r"\(docs/reproductions\.md\)\.", "", " ".join(re.sub(r"(?m)^# ?", "", of).split()))
        return re.sub(r"Ours: (not run\.|em 41\.2.*?CPU )", "", plain).split()

    without = text if reproductions._LINE.search(text) is None else reproductions._LINE.sub("", text)
    assert words(re.sub(re.escape(OURS), "", stated)) == words(without)
    assert OmegaConf.create(stated) == OmegaConf.create(text)


def test_the_heads_agree_with_the_log():
    """Each experiment that has a row states its newest, and none states another."""
    rows = newest(rows_of(LOG.read_text("utf-8")))
    names = {
        file.relative_to(CONFIGS / "experiment").with_suffix("").as_posix(): file for file in EXPERIMENTS
    }
    assert rows.keys() <= names.keys()
    for name, file in names.items():
        stated = reproductions._LINE.findall(file.read_text("utf-8"))
        assert stated == ([rows[name].ours()] if name in rows else []), f"python -m rag.reproductions: {name}"


def test_the_table_keeps_what_stands_before_it():
    row = Row("2026-01-01", "a/b", "1 of test", "em 1.0", "c", "m", "`x`")
    text = added("# Mine\n\nWords.\n\n", row)
    assert text.startswith("# Mine\n\nWords.\n\n| date | experiment |") and rows_of(text) == [row]
    assert added(text, row) == text and rows_of(
        added(text, Row("2026-01-02", *row.line().split(" | ")[1:6], "`y`"))
    )


def test_paths_are_no_part_of_a_command():
    typed = "python evaluate.py checkpoint=/home/me/outputs/mine results=/tmp/x split=dev batch_size=9 overwrite=true"
    assert command(typed) == "python evaluate.py checkpoint=outputs/…/mine split=dev"


@pytest.mark.parametrize(
    "what, problem", [("nowhere", "does not exist"), ("trained", "holds no finished evaluation")]
)
def test_what_is_wrong_is_told(what, problem, tmp_path):
    (tmp_path / "trained").mkdir()
    write_json(tmp_path / "trained" / "result.json", {"steps": 1})
    with pytest.raises(UserError, match=problem):
        row_of(tmp_path / what)


def test_a_run_of_no_experiment_is_refused(tmp_path):
    run = finished(tmp_path / "run")
    file = run / "evaluation" / "test-1" / "result.json"
    write_json(file, json.loads(file.read_text()) | {"name": "mine/own"})
    with pytest.raises(UserError, match="is of mine/own, which no experiment of the project is named"):
        row_of(run)


def test_help(capsys):
    with mistakes_in_one_sentence():
        reproductions.main([])
    assert "python -m rag.reproductions RUN" in capsys.readouterr().out
