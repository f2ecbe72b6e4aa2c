"""report.md beside what a script finished: its figures are those of the files, its picture is one."""

import json
import shutil
import subprocess
import sys

from rag.reports.run_report import answers, curves, write_run_report

RUN = {
    "command": "python train.py seed=1",
    "commit": "0123abc",
    "machine": "two cores",
    "versions": {"torch": "2"},
}
PNG = b"\x89PNG"


def write(folder, result, config):
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(RUN))
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "config.yaml").write_text(config)


def test_curves_of_an_interrupted_run_are_one(tmp_path):
    """Step 40 was done twice: the second time counts, as the weights that were kept are its."""
    (tmp_path / "metrics-1.csv").write_text("dev/em,step,train/loss\n,19,3.0\n,39,2.0\n")
    (tmp_path / "metrics-2.csv").write_text("")  # stopped before anything was logged
    (tmp_path / "metrics.csv").write_text("dev/em,step,train/loss\n,39,1.5\n0.5,39,\n,59,1.0\n")
    assert curves(tmp_path) == {"dev/em": ([40], [0.5]), "train/loss": ([20, 40, 60], [3.0, 1.5, 1.0])}


def test_training(tmp_path):
    run = tmp_path / "run"
    result = {"steps": 1000, "training_seconds": 50.0, "figures": {"dev/em": 0.1234, "train/loss": 1.0}}
    write(run, result, "name: mine\nseed: 7\nmonitor: dev/em\n")
    (run / "metrics.csv").write_text("dev/em,step,train/loss\n,19,3.0\n0.5,19,\n")
    page = write_run_report(run).read_text()
    assert page.startswith("# mine\n\n1,000 steps in 50 s, 20.00 steps a second; seed 7.\n")
    assert "| dev/em | 0.123 |" in page and "python train.py seed=1" in page and "Commit 0123abc" in page
    assert (run / "report.png").read_bytes()[:4] == PNG and "](report.png)" in page


def test_training_without_curves_has_no_picture(tmp_path):
    write(tmp_path / "run", {"steps": 1, "training_seconds": 0.0, "figures": {}}, "name: mine\nseed: 7\n")
    page = write_run_report(tmp_path / "run").read_text()
    assert "](report.png)" not in page and not (tmp_path / "run" / "report.png").exists()


def test_evaluation(tmp_path):
    run = tmp_path / "run"
    result = {
        **{"questions": 25, "n_docs": 2, "em": 0.5, "intervals": {"em": [0.25, 0.75]}},
        **{"index": {"type": "Flat", "passages": 1234}, "recall": {"1": 0.5, "2": 1.0}},
        **{"answer_recall": {"1": 0.75, "2": 1.0}, "bm25": {"answer_recall": {"1": 0.125, "2": 0.5}}},
        **{"em_by_k": {"1": 0.25, "2": 0.5}, "hot_swap": {"AA": 0.9, "AB": 0.1, "BA": 0.2, "BB": 0.8}},
    }
    config = (
        "name: mine\nsplit: test\ncheckpoint: ${project:}/outputs/x\nhot_swap: {editions: {A: {}, B: {}}}\n"
    )
    write(run, result, config)
    record = {"answers": ["Yes"], "prediction": "yes!", "logprob": -0.5}
    passage = {"prior": 0.25, "posterior": 0.75, "gold": True, "title": "T", "text": "a|b"}
    rows = [record | {"question": f"q{number}", "passages": [passage] * 5} for number in range(25)]
    (run / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = write_run_report(run).read_text()
    assert page.startswith("# mine on test\n\n25 questions, K = 2, checkpoint outputs/x.\n")
    assert "| em | 0.500 | 0.250 – 0.750 |" in page
    assert "| figure | K = 1 | K = 2 |" in page and "| em | 0.250 | 0.500 |" in page
    assert "| K | recall | answer_recall | BM25, answer_recall |" in page
    assert "| 1 | 0.500 | 0.750 | 0.125 |" in page and "| 2 | 1.000 | 1.000 | 0.500 |" in page
    assert "| A | 0.900 | 0.100 |" in page and "| B | 0.200 | 0.800 |" in page
    assert (run / "report.png").read_bytes()[:4] == PNG
    shown = answers(run / "predictions.jsonl", 25, "mine")
    assert [line for line in shown if line.startswith("**q")] == [f"**q{n}** ✓" for n in range(0, 20, 2)]
    assert shown.count("| 0.25 | 0.75 | gold | **T** a\\|b |") == 10 * 3


def test_an_evaluation_stands_beside_the_papers_figures(tmp_path):
    """Percent become shares; this split goes before another, which is named; what was not measured is left out."""
    run = tmp_path / "run"
    result = {"questions": 1, "n_docs": 1, "em": 0.5, "f1": 0.25, "intervals": {"em": [0, 1], "f1": [0, 1]}}
    result["title_hit"] = {"1": 0.75, "10": 1.0}
    rows = [("em", "test", 44.5), ("em", "dev", 40.0), ("title_hit@1", "dev", 71.0), ("bleu_1", "dev", 1.0)]
    nodes = "".join(f"  - {{metric: {m}, split: {s}, value: {v}}}\n" for m, s, v in rows)
    write(run, result, f"name: mine\nsplit: test\ncheckpoint: outputs/x\npaper:\n{nodes}")
    record = {"question": "q", "answers": ["a"], "prediction": "c", "logprob": -0.5}
    (run / "predictions.jsonl").write_text(json.dumps(record) + "\n")
    lines = write_run_report(run).read_text().splitlines()
    assert "| em | 0.500 | 0.000 – 1.000 | 0.445 | +0.055 |" in lines
    assert "| f1 | 0.250 | 0.000 – 1.000 |  |  |" in lines
    assert "| title_hit@1 | 0.750 | – | 0.710 (dev) | +0.040 |" in lines
    assert not any("bleu_1" in line for line in lines)


def test_closed_book_evaluation(tmp_path):
    run = tmp_path / "run"
    result = {"questions": 1, "n_docs": 1, "em": 0.0, "intervals": {"em": [0.0, 0.0]}}
    write(run, result, "name: mine\nsplit: dev\ncheckpoint: outputs/x\n")
    record = {"question": "q", "answers": ["a", "b"], "prediction": "c", "logprob": -0.5}
    (run / "predictions.jsonl").write_text(json.dumps(record) + "\n")
    page = write_run_report(run).read_text()
    assert "**q** ✗" in page and "expected *a or b*" in page and "Retrieval" not in page


def test_index(tmp_path, index):
    folder = tmp_path / "index"
    shutil.copytree(index.folder, folder)
    page = write_run_report(folder).read_text()
    assert "7 passages of" in page and "16 dimensions" in page
    assert f"| milliseconds a query | {index.manifest.ms_per_query:.2f} (" in page
    for k, value in index.manifest.recall.items():
        assert f"| recall@{k} against exact search | {value:.3f} |" in page
    assert (folder / "report.png").read_bytes()[:4] == PNG
    type(index).open(folder).verify()  # the page is no damage


def test_nothing_is_drawn_when_a_script_starts():
    """Importing the report for its one call at the end must not cost the start matplotlib or pandas."""
    code = "import sys, rag.reports.run_report; print({'matplotlib', 'pandas', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
