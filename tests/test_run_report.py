"""report.md beside what a script finished: its metrics are those of the files, its picture is one."""

import json
import shutil
import subprocess
import sys

from rag.metrics.record import BM25, Record, swapped
from rag.reports.finished import complete_index, complete_run
from rag.reports.run_report import _curves, answers, curves, write_run_report

RUN = {
    "command": "python train.py seed=1",
    "commit": "0123abc",
    "machine": "two cores",
    "versions": {"torch": "2"},
}
PNG = b"\x89PNG"


def record(metric, k, value, low=0.0, high=1.0, n=25, condition=None):
    return Record(metric, k, "test", value, low, high, n, condition).plain()


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
    result = {"steps": 1000, "training_seconds": 50.0, "metrics": {"dev/em": 0.1234, "train/loss": 1.0}}
    write(run, result, "name: mine\nseed: 7\nmonitor: dev/em\n")
    (run / "metrics.csv").write_text("dev/em,step,train/loss\n,19,3.0\n0.5,19,\n")
    page = write_run_report(run).read_text()
    assert page.startswith("# mine\n\n1,000 steps in 50 s, 20.00 steps per second; seed 7.\n")
    assert "| dev/em | 0.123 |" in page and "python train.py seed=1" in page and "Commit 0123abc" in page
    assert (run / "report.png").read_bytes()[:4] == PNG
    assert "![loss, nats, share, against training steps](report.png)" in page


def test_a_metric_is_drawn_with_those_of_its_unit(tmp_path):
    """A rank of 12 beside a share of .5 would lie off the axis, with its name in the legend all the same."""
    write(tmp_path / "run", {"steps": 2, "training_seconds": 1.0, "metrics": {}}, "name: mine\nseed: 7\n")
    (tmp_path / "run" / "metrics.csv").write_text(
        "dev/average_rank,dev/first,train/loss,train/left_out,step\n12,.5,3,0,1\n6,.75,2,0,2\n"
    )
    figure, labels = _curves(tmp_path / "run")
    assert labels == ["loss, nats", "share", "rank"]  # nothing was left out: no panel
    for axis in figure.axes[:3]:
        bottom, top = axis.get_ylim()
        assert [text.get_text() for text in axis.get_legend().texts] == [
            line.get_label() for line in axis.lines
        ]
        for line in axis.lines:
            assert all(bottom < value < top for value in line.get_ydata()), line.get_label()


def test_one_value_a_metric_is_a_bar_and_not_a_dot(tmp_path):
    write(tmp_path / "run", {"steps": 2, "training_seconds": 1.0, "metrics": {}}, "name: mine\nseed: 7\n")
    (tmp_path / "run" / "metrics.csv").write_text("dev/em,dev/f1,step\n.25,.5,9\n")
    figure, _ = _curves(tmp_path / "run")
    (axis,) = figure.axes
    assert not axis.lines and [bar.get_width() for bar in axis.patches] == [0.25, 0.5]


def test_training_without_curves_has_no_picture(tmp_path):
    write(tmp_path / "run", {"steps": 1, "training_seconds": 0.0, "metrics": {}}, "name: mine\nseed: 7\n")
    page = write_run_report(tmp_path / "run").read_text()
    assert "](report.png)" not in page and not (tmp_path / "run" / "report.png").exists()


def test_evaluation(tmp_path):
    run = tmp_path / "run"
    result = {
        **{"split": "test", "questions": 25, "n_docs": 2, "index": {"type": "Flat", "passages": 1234}},
        "metrics": [
            record("em", 2, 0.5, 0.25, 0.75, 20),
            record("em", 1, 0.25, 0.0, 0.5, 20),
            *(record("recall", k, value, n=24) for k, value in ((1, 0.5), (2, 1.0))),
            *(record("answer_recall", k, value) for k, value in ((1, 0.75), (2, 1.0))),
            *(record("answer_recall", k, value, condition=BM25) for k, value in ((1, 0.125), (2, 0.5))),
            *(
                record("em", 2, value, condition=swapped(*pair))
                for pair, value in {"AA": 0.9, "AB": 0.1, "BA": 0.2, "BB": 0.8}.items()
            ),
        ],
    }
    write(run, result, "name: mine\nsplit: test\ncheckpoint: ${project:}/outputs/x\n")
    answer = {"answers": ["Yes"], "prediction": "yes!", "logprob": -0.5}
    passage = {"prior": 0.25, "posterior": 0.75, "gold": True, "title": "T", "text": "a|b"}
    rows = [answer | {"question": f"q{number}", "passages": [passage] * 5} for number in range(25)]
    (run / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = write_run_report(run).read_text()
    assert page.startswith("# mine on test\n\n25 questions, K = 2, checkpoint outputs/x.\n")
    assert "| exact match | 0.500 | 0.250 – 0.750 | 20 |" in page
    assert "| exact match at K = 1 | 0.250 | 0.000 – 0.500 | 20 |" in page
    assert "| recall@1 | 0.500 | 0.000 – 1.000 | 24 |  |" in page
    assert "| answer recall@2 | 1.000 | 0.000 – 1.000 | 25 | 0.500 |" in page
    assert "| exact match, asked A, indexed B | 0.100 | 0.000 – 1.000 | 25 |" in page
    panels = "Answers, K = 2, Retrieved among K, More passages at test time, Hot-swap: exact match"
    assert f"![{panels}](report.png)" in page
    assert (run / "report.png").read_bytes()[:4] == PNG
    shown = answers(run / "predictions.jsonl", 25, "mine")
    assert [line for line in shown if line.startswith("**q")] == [f"**q{n}** ✓" for n in range(0, 20, 2)]
    assert shown.count("| 0.25 | 0.75 | gold | **T** a\\|b |") == 10 * 3


def test_the_evaluation_of_an_earlier_version_beside_the_paper(tmp_path):
    """Percent become shares; this split goes before another, which is named; what was not measured is left out."""
    run = tmp_path / "run"
    result = {"questions": 1, "n_docs": 1, "em": 0.5, "f1": 0.25, "intervals": {"em": [0, 1], "f1": [0, 1]}}
    result |= {"split": "test", "index": {"type": "Flat", "passages": 7}, "title_hit": {"1": 0.75, "10": 1.0}}
    result["intervals_at"] = {"title_hit@1": [0.5, 1], "title_hit@10": [1, 1]}
    rows = [("em", "test", 44.5), ("em", "dev", 40.0), ("title_hit@1", "dev", 71.0), ("bleu_1", "dev", 1.0)]
    cell = "table: t, row: r, column: c"
    nodes = "".join(f"  - {{{cell}, metric: {m}, split: {s}, value: {v}}}\n" for m, s, v in rows)
    write(run, result, f"name: mine\nsplit: test\ncheckpoint: outputs/x\npaper:\n{nodes}")
    answered = {"question": "q", "answers": ["a"], "prediction": "c", "logprob": -0.5}
    (run / "predictions.jsonl").write_text(json.dumps(answered) + "\n")
    lines = write_run_report(run).read_text().splitlines()
    assert "| exact match | 0.500 | 0.000 – 1.000 | – | 0.445 | +0.055 |" in lines
    assert "| F1 | 0.250 | 0.000 – 1.000 | – |  |  |" in lines
    assert "| title hit@1 | 0.750 | 0.500 – 1.000 | – | 0.710 (dev) | +0.040 |" in lines
    assert not any("BLEU" in line for line in lines)


def test_closed_book_evaluation(tmp_path):
    run = tmp_path / "run"
    result = {"split": "dev", "questions": 1, "n_docs": None, "metrics": [record("em", None, 0.0)]}
    write(run, result, "name: mine\nsplit: dev\ncheckpoint: outputs/x\n")
    answered = {"question": "q", "answers": ["a", "b"], "prediction": "c", "logprob": -0.5}
    (run / "predictions.jsonl").write_text(json.dumps(answered) + "\n")
    page = write_run_report(run).read_text()
    assert "1 questions, closed book, checkpoint outputs/x" in page and "K =" not in page
    assert "**q** ✗" in page and "expected *a or b*" in page and "Retrieval" not in page


def test_index(tmp_path, index):
    folder = tmp_path / "index"
    shutil.copytree(index.folder, folder)
    page = write_run_report(folder).read_text()
    assert "7 passages of" in page and "16 dimensions" in page
    assert f"| milliseconds per query | {index.manifest.ms_per_query:.2f} (" in page
    for k, value in index.manifest.recall.items():
        assert f"| recall@{k} against exact search | {value:.3f} |" in page
    assert (folder / "report.png").read_bytes()[:4] == PNG
    assert f"| seconds to embed | {index.manifest.seconds['embed']:,.1f} |" in page
    type(index).open(folder).verify()  # the page is no damage


def test_nothing_is_drawn_when_a_script_starts():
    """Importing the report for its one call at the end must not cost the start matplotlib or pandas."""
    heavy = "{'matplotlib', 'pandas', 'torch'} & set(sys.modules)"
    code = f"import sys, rag.reports.run_report, rag.reports.paper_tables; print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_what_a_process_that_died_after_its_result_did_not_report_is_reported_later(tmp_path, index):
    run = tmp_path / "run"
    write(run, {"steps": 2, "training_seconds": 1.0, "metrics": {}}, "name: mine\nseed: 7\n")
    (run / "metrics.csv").write_text("dev/em,step,train/loss\n,1,2.0\n.5,3,\n,3,1.0\n")
    (run / "parts").mkdir()
    complete_run(run)
    assert (run / "report.png").read_bytes()[:4] == PNG and not (run / "parts").exists()
    page = run / "report.md"
    assert page.read_text().startswith("# mine\n")
    before = page.stat().st_mtime_ns
    complete_run(run)
    assert page.stat().st_mtime_ns == before
    folder = tmp_path / "index"
    shutil.copytree(index.folder, folder)
    complete_index(folder)
    assert "7 passages of" in (folder / "report.md").read_text()
