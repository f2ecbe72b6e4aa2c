"""evaluate.py on tiny models: samples, parts and processes, checkpoints of both kinds, reports, and what it refuses."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import run
from conftest import QUESTIONS
from omegaconf import OmegaConf
from tiny_runs import write_run

from rag.commands.evaluating import paper_cells
from rag.compose import compose_config
from rag.decoding.settings import Decoding
from rag.evaluation.answering import answer_in_parts, read_parts
from rag.evaluation.judging import passage_metrics
from rag.files import read_json, write_json
from rag.metrics.record import BM25, NOT_RETRIEVED, Record, records_of
from rag.model import RagSequence
from rag.reports import paper_tables
from rag.reports.paper_cells import Cell
from rag.reports.paper_tables import LAYOUTS, all_cells, lines_of, write_table
from rag.runs import PROJECT
from rag.tasks.example import Example
from rag.tasks.fever import Claim, Fever
from rag.tasks.qa import QuestionAnswering


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    rows = [{"question": f"{QUESTIONS[n % 3]} {n}", "answers": ["Paris", "Tiber"]} for n in range(9)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def command(tmp_path, index, questions) -> list[str]:
    folder = write_run(tmp_path / "run", "rag_sequence", index)
    write_json(folder / "result.json", {"identity": "tiny"})
    files = [
        "task=qa",
        "task.passages=null",
        *(f"task.{split}={questions}" for split in ("train", "dev", "test")),
    ]
    return [f"checkpoint={folder}", *files, "recall_at=[1,5]", "batch_size=2"]


def test_a_sample_is_drawn_at_random_and_the_same_for_every_model(command, tmp_path, capsys):
    for name, more in (("first", []), ("second", ["n_docs=2"])):
        assert run("evaluate", *command, "limit=4", f"results={tmp_path / name}", *more) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert "on 4 of 9 questions of test, drawn at random, K = 3; results in" in first
    asked = [
        [json.loads(line)["id"] for line in (tmp_path / name / "predictions.jsonl").read_text().splitlines()]
        for name in ("first", "second")
    ]
    assert asked[0] == asked[1] == sorted(asked[0]) != ["1", "2", "3", "4"]


def test_every_metric_has_its_interval_and_n(command, tmp_path, capsys):
    more = ["k_sweep=[1,3]", "bm25=true", f"results={tmp_path / 'r'}"]
    assert run("evaluate", *command, *more) == 0
    result = read_json(tmp_path / "r" / "result.json")
    records = records_of(result)
    measured = {(each.metric, each.k, each.condition) for each in records} - {("em", 3, NOT_RETRIEVED)}
    expected = {(name, k, None) for name in ("em", "f1") for k in (1, 3)}
    expected |= {("answer_recall", k, condition) for k in (1, 5) for condition in (None, BM25)}
    assert measured == expected and len(records) == len(set(records))
    for each in records:
        assert each.n and each.low <= each.value <= each.high and each.split == "test"
    assert {each.n for each in records if each.condition is None} == {9}
    assert result["questions"] == 9 and result["n_docs"] == 3
    shown = capsys.readouterr().out
    assert re.search(r"exact match +│ 0\.\d+ +│ 0\.\d+ – 0\.\d+ +│ 9 +│", shown)
    assert not (tmp_path / "r" / "parts").exists()


def test_parts_of_several_processes_and_batch_sizes_are_one_evaluation(retriever, bart, tmp_path):
    """What an interrupted run of two processes left is finished by one, with another batch size."""
    model = RagSequence(retriever, bart, 3)
    examples = [Example(f"{QUESTIONS[n % 3]} {n}", ("Paris",)) for n in range(7)]
    settings = (Decoding(max_new_tokens=4), [2, 3], 3)
    answer_in_parts(model, examples, *settings, 2, 5, tmp_path / "whole")
    answer_in_parts(model, examples, *settings, 2, 5, tmp_path / "parts", process=1, processes=2)
    half = read_parts(tmp_path / "parts")
    assert [each.number for each in half] == [2, 3, 6]
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "parts").iterdir()}
    answer_in_parts(model, examples, *settings, 3, 5, tmp_path / "parts")
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    whole, parts = read_parts(tmp_path / "whole"), read_parts(tmp_path / "parts")
    assert [each.number for each in parts] == list(range(7))
    for one, other in zip(whole, parts, strict=True):
        assert (one.texts, one.rows) == (other.texts, other.rows) and len(one.rows) == 5
        np.testing.assert_allclose(one.posterior, other.posterior, atol=1e-4)
        np.testing.assert_allclose(one.logprob, other.logprob, atol=1e-4)


@pytest.mark.slow
def test_two_processes_give_what_one_gives(command, tmp_path):
    for name, processes in (("one", 1), ("two", 2)):
        launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--master-port=29541"]
        arguments = ["evaluate.py", *command, f"results={tmp_path / name}"]
        subprocess.run([sys.executable, *launcher, *arguments], cwd=PROJECT, check=True)
    one, two = (read_json(tmp_path / name / "result.json") for name in ("one", "two"))
    for result in (one, two):
        result.pop("seconds")
    assert one == two and one["questions"] == 9
    assert (tmp_path / "one" / "predictions.jsonl").read_text() == (
        tmp_path / "two" / "predictions.jsonl"
    ).read_text()


@pytest.mark.slow
def test_one_process_tells_what_is_wrong_and_the_other_that_it_stopped(command, questions):
    """The second question, which falls to the second process, is too long for the generator."""
    long = {"question": "river " * 400, "answers": ["Paris"]}
    lines = [json.dumps({"question": QUESTIONS[0], "answers": ["Paris"]}), json.dumps(long)]
    questions.write_text("\n".join(lines), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    running = [
        subprocess.Popen(
            [sys.executable, "evaluate.py", *command, "batch_size=1"],
            cwd=PROJECT,
            env=shared | {"RANK": str(rank)},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for rank in range(2)
    ]
    told = [process.communicate(timeout=300)[1] for process in running]
    assert any("does not fit the generator's context" in each for each in told)
    for each in told:
        assert "Traceback" not in each and len(each.strip().splitlines()) <= 2, each  # one may be a warning
    assert all(process.returncode in (1, 2) for process in running)


def test_a_checkpoint_in_the_format_of_facebooks(retriever, bart, index, questions, tmp_path, capsys):
    folder = tmp_path / "rag-sequence-tiny"
    RagSequence(retriever, bart, 3).save_pretrained(folder)
    files = ["task=qa", "task.passages=null", f"task.test={questions}", f"index.path={index.folder}"]
    command = [
        f"checkpoint={folder}",
        f"paths.outputs={tmp_path}",
        "decoding.max_new_tokens=4",
        "recall_at=[1]",
    ]
    assert run("evaluate", *command, *files) == 0
    (file,) = (tmp_path / "evaluation" / str(folder).strip("/").replace("/", "--")).glob("*/result.json")
    result = read_json(file)
    assert (result["questions"], result["n_docs"]) == (9, 3)

    capsys.readouterr()
    for wrong, sentence in {
        (): "does not say which questions are asked of which passages: give experiment=…, or task=… and index.path=…",
        (
            *files,
            "model=rag_token",
        ): f"model=rag_token is about RagToken but checkpoint={folder} is RagSequence",
        (*files, "retriever=hybrid"): "retriever=hybrid contradicts the checkpoint",
        ("experiment=table1/nq_rag_token",): "experiment=table1/nq_rag_token is about RagToken but",
    }.items():
        assert run("evaluate", *command, *wrong) == 2
        assert sentence in capsys.readouterr().err
    assert run("evaluate", "checkpoint=nobody/rag-sequence-none", *command[1:], *files) == 2
    told = "nobody/rag-sequence-none is neither a folder here nor was it downloaded before"
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("script", "experiment", "fits"),
    [
        ("train", "figure3/nq_rag_token", "evaluate.py"),
        ("build_index", "hotswap/nq_rag_sequence", "evaluate.py"),
        ("train", "local/index", "build_index.py"),
        ("evaluate", "miniwiki/dpr", "train.py"),
    ],
)
def test_an_experiment_of_another_script_is_refused(script, experiment, fits, capsys):
    assert run(script, f"experiment={experiment}") == 2
    assert f"experiment={experiment} is not for {script}.py, but for {fits}" in capsys.readouterr().err


def test_wrong_files_are_told_before_anything_is_written(command, tmp_path, capsys):
    files = {
        "empty.jsonl": ("", "holds no questions"),
        "list.jsonl": (
            '{"question": "q", "answers": {"a": 5}}\n',
            "line 1: answers is an object, a list of strings is expected",
        ),
        "form.qa.csv": (
            "no tab\n",
            "line 1: 1 tab-separated columns, expected a question and a list of answers",
        ),
    }
    for name, (content, sentence) in files.items():
        (tmp_path / name).write_text(content)
        assert run("evaluate", *command, f"task.test={tmp_path / name}", f"results={tmp_path / 'none'}") == 2
        assert f"{name}" in (error := capsys.readouterr().err) and sentence in error
    (tmp_path / "regex.jsonl").write_text('{"question": "q", "answers": ["b(c"]}\n')
    (tmp_path / "label.jsonl").write_text('{"claim": "c", "label": "MAYBE"}\n')
    for task, name, sentence in (
        ("curated_trec", "regex", "line 1: the answer 'b(c' is not a regular expression"),
        (
            "fever2",
            "label",
            "line 1: unknown label 'MAYBE', expected one of SUPPORTS, REFUTES, NOT ENOUGH INFO",
        ),
    ):
        source = f"task.test={tmp_path / name}.jsonl"
        assert run("evaluate", command[0], f"task={task}", source, f"results={tmp_path / 'none'}") == 2
        assert sentence in capsys.readouterr().err
    for wrong, sentence in {
        "batch_size=0": "batch_size=0: a whole number from 1 is expected",
        "batch_size=five": "batch_size=five: a whole number from 1 is expected",
        "split=tset": "split=tset does not exist; available: train, dev, test",
        "k_sweep=[0]": "k_sweep=[0]: a list of whole numbers from 1 is expected",
        "report=table9": "report=table9 does not exist; available: table1, table2",
    }.items():
        assert run("evaluate", *command, wrong, f"results={tmp_path / 'none'}") == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_passages_are_judged_by_what_the_task_calls_right(index):
    """Row 0 Paris, 1 Berlin, 4 Hemingway, 5 Seine, 6 Tiber; −1 was not found."""
    rows = np.array([[1, 0, 5], [6, -1, -1]])
    examples = [Example("q", ("river Seine",), ("6",)), Example("q", ("Po",), ())]
    metrics = passage_metrics(QuestionAnswering(), index.passages, rows, examples, [1, 2, 3])
    assert {k: m.value for k, m in metrics["recall"].items()} == {1: 0.0, 2: 0.0, 3: 1.0}
    assert {k: (m.value, m.count) for k, m in metrics["answer_recall"].items()} == {
        1: (0, 2),
        2: (0.5, 2),
        3: (0.5, 2),
    }
    claims = [Claim("c", ("true",), titles=("Seine",)), Claim("c", ("unknown",))]
    metrics = passage_metrics(Fever(), index.passages, rows, claims, [1, 3, 10])
    assert {k: (m.value, m.count) for k, m in metrics["title_hit"].items()} == {1: (0.0, 1), 3: (1.0, 1)}


# -- reports -------------------------------------------------------------------------------------


def result(name: str, split: str = "test", limit: int | None = None, **metrics: float) -> dict:
    described = {
        "name": name,
        "split": split,
        "limit": limit,
        "questions": limit or 3610,
        "n_docs": 15,
        "seed": 1,
    }
    described |= {"commit": "abc", "changed": [], "device": "CPU", "training_seconds": 7200}
    return (
        described
        | {"index": {"type": "Flat", "passages": 7}}
        | {
            "metrics": [
                Record(name, 15, split, v, v - 0.01, v + 0.01, limit or 3610).plain()
                for name, v in metrics.items()
            ]
        }
    )


@pytest.mark.parametrize("experiment", ["dpr/nq", "table1/nq_rag_sequence"])
def test_questions_of_ones_own_have_no_figure_of_the_paper(experiment):
    """Natural Questions' file may lie anywhere; another file, or another kind of task, is not what the paper asked."""

    def evaluated(*changed):
        saved = compose_config("train", [f"experiment={experiment}", *changed])
        return OmegaConf.merge(OmegaConf.create(OmegaConf.to_container(saved)), {"split": "test"})

    evaluation = evaluated()
    assert paper_cells(evaluation)
    assert paper_cells(evaluated(f"task.test=/elsewhere/{Path(evaluation.task.test).name}")) == paper_cells(
        evaluation
    )
    assert paper_cells(evaluated("task.test=my.jsonl")) == []
    assert paper_cells(evaluated("task=qa", "task.test=my.jsonl")) == []


def test_runs_stand_beside_the_papers_figures(tmp_path, capsys):
    for folder, content in {
        "a": result("table1/nq_rag_token", em=0.45),
        "b": result("table1/nq_rag_token", limit=50, em=0.9),  # a sample does not count beside the whole
        "c": result("table1/wq_rag_token", "dev", em=0.40),  # dev stands for test, and says so
        "d": result("table1/tqa_rag_token", "wikipedia_dev", em=0.651),
        "e": result("demo/rag_token", em=0.99),
    }.items():
        write_json(tmp_path / folder / "result.json", content)
    layout, rows, runs = lines_of("table1", tmp_path)
    row = dict(zip(["", *layout.columns], next(row for row in rows if row[0] == "RAG-Token"), strict=True))
    assert row["NQ"] == "44.1 | 45.0 [44.0–46.0], n = 3,610 | +0.9"
    assert row["WQ"] == "45.5 | 40.0 [39.0–41.0], n = 3,610 (dev) | −5.5"
    assert row["TQA Wikipedia"] == "66.1 | 65.1 [64.1–66.1], n = 3,610 (wikipedia_dev) | −1.0"
    assert row["TQA open"] == "55.2 | not run"
    assert len(runs) == 3 and "trained in 2.0 h" in runs[0]
    assert dict(zip(["", *layout.columns], rows[3], strict=True))["CT"] == "50.6"  # DPR's own
    write_table("table1", tmp_path, tmp_path / "reports")
    text = (tmp_path / "reports" / "table1.md").read_text()
    assert (
        "44.1 / 45.0 [44.0–46.0], n = 3,610 / +0.9" in text and (tmp_path / "reports" / "table1.png").exists()
    )
    assert "3 finished runs" in capsys.readouterr().out


@pytest.mark.parametrize("table", sorted(LAYOUTS))
def test_a_table_fits_a_terminal_of_80_columns_with_whole_names(table, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    write_table(table, tmp_path, tmp_path / "reports")
    lines = capsys.readouterr().out.splitlines()[:-1]  # the last names the file
    assert max(map(len, lines)) <= 80
    text, layout = "\n".join(lines), LAYOUTS[table]
    assert "…" not in text and all(name in text for name in (*layout.rows, *layout.others))
    words = {word for title in layout.columns for word in title.split()}
    assert all(word in text for word in words)


def test_every_cell_of_an_experiment_has_a_place_and_every_place_an_experiment():
    for table, layout in LAYOUTS.items():
        cells = all_cells(table)
        positions = {(cell.row, cell.column) for cell in cells}
        assert positions == {(row, column) for row in layout.rows for column in layout.columns}, table


def test_a_cell_of_the_paper_by_hand():
    """Table 6 of the paper, one row."""
    cells = {cell.column: cell.value for cell in all_cells("table6") if cell.row == "RAG-Sequence, BM25"}
    assert cells == {
        "NQ": 31.8,
        "TQA": 44.1,
        "WQ": 36.6,
        "CT": 33.8,
        "Jeopardy B-1": 11.1,
        "Jeopardy QB-1": 19.5,
        "MS-MARCO R-L": 56.5,
        "MS-MARCO B-1": 46.9,
        "FEVER-3": 75.1,
        "FEVER-2": 91.6,
    }
    assert paper_tables.written(Cell("figure3", "r", "c", "em_best_k", "test", 50), None) == "50 | not run"
