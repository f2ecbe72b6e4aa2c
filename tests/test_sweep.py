"""train.py -m: combinations, folders that stay the same, resuming, stopping, and the table of dev's metrics."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from rag.errors import UserError
from rag.miniwiki.world import write_world
from rag.runs import PROJECT
from rag.sweep import dev_metrics, expand, folder_name, plan_jobs, run_to_its_end, sweep, table

TINY = [
    "experiment=miniwiki/denoising",
    "generator.width=16",
    "generator.feedforward=16",
    "trainer.max_steps=2",
]

# -- combinations and folders ----------------------------------------------------------------------


def test_every_combination_in_hydras_order():
    fixed, combinations = expand(["n_docs=3", "optimization.lr=1e-4,3e-4", "~debug", "seed=range(1,3)"])
    assert fixed == ["n_docs=3", "~debug"]
    assert combinations == [
        ["optimization.lr=0.0001", "seed=1"],
        ["optimization.lr=0.0001", "seed=2"],
        ["optimization.lr=0.0003", "seed=1"],
        ["optimization.lr=0.0003", "seed=2"],
    ]


def test_choices_by_pattern_and_lists_that_are_no_sweep():
    fixed, combinations = expand(["model=glob(rag_*,exclude=*classifier)", "recall_at=[1,5]", "name='a,b'"])
    assert combinations == [["model=rag_sequence"], ["model=rag_token"]]
    assert fixed == ["recall_at=[1,5]", "name='a,b'"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["seed=1"], "no setting has several"),
        (["seed=1,2", "paths.run=a,b"], "paths.run is the same for all runs"),
        (["seed=1,2", "n_docs=(1"], "cannot be read"),
        (["seed=1,2", "optimization.lrr=1"], "optimization.lrr does not exist"),
        (["seed=1,two"], "seed=two: a whole number is expected"),
        (["experiment=miniwiki/rag_token,miniwiki/rag_tokn"], "did you mean miniwiki/rag_token"),
        (["experiment=miniwiki/index_a,miniwiki/rag_token"], "is not for train.py"),
    ],
)
def test_what_is_wrong_with_any_run_is_told_before_the_first_begins(arguments, said):
    with pytest.raises(UserError, match=said):
        plan_jobs(arguments)


def test_each_run_has_a_folder_by_what_was_chosen_for_it(tmp_path):
    """A sweep over more values finds the runs of a smaller one where they were."""
    outputs = f"paths.outputs={tmp_path}"
    folder, jobs = plan_jobs(["optimization.lr=1e-4,3e-4", "seed=1,2", outputs])
    assert folder == tmp_path / "sweeps" / "demo" / "rag_sequence"
    names = ["lr-0.0001_seed-1", "lr-0.0001_seed-2", "lr-0.0003_seed-1", "lr-0.0003_seed-2"]
    assert [job.folder.name for job in jobs] == names
    assert [(job.cfg.optimization.lr, job.cfg.seed) for job in jobs][1:3] == [(1e-4, 2), (3e-4, 1)]
    _, more = plan_jobs(["optimization.lr=1e-4,2e-4,3e-4", "seed=1,2,3", outputs])
    assert {job.folder for job in jobs} < {job.folder for job in more}
    assert jobs[0].arguments == [outputs, "optimization.lr=0.0001", "seed=1", f"paths.run={jobs[0].folder}"]
    elsewhere, (first, _) = plan_jobs(["seed=1,2", f"paths.run='{tmp_path / 'a b'}'"])
    assert elsewhere == tmp_path / "a b" and first.cfg.paths.run == str(tmp_path / "a b" / "seed-1")


def test_folder_names_are_told_apart_and_short():
    assert folder_name({"lr": "0.1"}) == "lr-0.1"
    values = [{"path": "a/b"}, {"path": "a-b"}, {"path": "a b"}]
    names = {folder_name(each) for each in values}
    assert len(names) == 3 and all(
        set(name) <= set("abcdefghijklmnopqrstuvwxyz-0123456789") for name in names
    )
    long = folder_name({"path": "x" * 300})
    assert len(long) < 100 and long != folder_name({"path": "x" * 301})


def test_a_sweep_inside_a_run_is_refused(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UserError, match="is a run's own folder"):
        plan_jobs(["seed=1,2", f"paths.run={tmp_path}"])


def test_torchrun_starts_no_sweep(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="trainer.devices"):
        sweep("train.py", ["seed=1,2"])


# -- the table -------------------------------------------------------------------------------------

CURVES = """dev/em,dev/nll,epoch,step,train/loss
,,0,9,3.0
0.25,2.5,0,19,
0.75,2.0,0,39,
0.75,1.5,1,59,
nan,1.0,1,79,
"""


def test_dev_metrics_are_those_of_the_step_that_is_kept(tmp_path):
    """The first of the best; a metric that is no number is never the best."""
    (tmp_path / "metrics.csv").write_text(CURVES)
    assert dev_metrics(tmp_path, "dev/em", "max") == (39, {"dev/em": 0.75, "dev/nll": 2.0})
    assert dev_metrics(tmp_path, "dev/nll", "min")[0] == 79
    assert dev_metrics(tmp_path, None, "max")[0] == 79
    assert dev_metrics(tmp_path / "nothing", "dev/em", "max") == (None, {})


def test_the_curves_of_a_run_that_was_interrupted_count_from_the_start(tmp_path):
    (tmp_path / "metrics-1.csv").write_text("dev/em,step\n0.9,19\n")
    (tmp_path / "metrics-2.csv").write_text("dev/em,step\n0.1,29\n")
    (tmp_path / "metrics.csv").write_text("dev/em,step\n0.5,39\n")
    assert dev_metrics(tmp_path, "dev/em", "max") == (19, {"dev/em": 0.9})
    assert dev_metrics(tmp_path, None, "max") == (39, {"dev/em": 0.5})


def test_the_table_has_a_row_for_each_run(tmp_path):
    _, jobs = plan_jobs(["seed=1,2,3", f"paths.run={tmp_path}"])
    jobs[0].folder.mkdir()
    (jobs[0].folder / "metrics.csv").write_text(CURVES)
    jobs[1].folder.mkdir()
    header, rows = table(jobs, ["done", "done", "failed (1)"])
    assert header == ["seed", "step", "dev/em", "dev/nll"]
    assert rows == [["1", "39", "0.7500", "2.0000"], ["2", "–", "–", "–"], ["3", "failed (1)", "–", "–"]]


# -- processes -------------------------------------------------------------------------------------


def test_the_exit_code_of_a_run():
    assert run_to_its_end([sys.executable, "-c", "raise SystemExit(3)"]) == 3
    assert run_to_its_end([sys.executable, "-c", "pass"]) == 0


def test_an_interruption_reaches_the_run_once_and_is_waited_for(tmp_path):
    """The run writes how often it was asked to stop, and stops by itself."""
    code = textwrap.dedent(f"""
        import signal, time, pathlib
        asked = []
        signal.signal(signal.SIGINT, lambda *_: asked.append(1))
        pathlib.Path({str(tmp_path / "ready")!r}).touch()
        while not asked: time.sleep(0.01)
        time.sleep(0.3)
        pathlib.Path({str(tmp_path / "asked")!r}).write_text(str(len(asked)))
    """)

    def interrupt() -> None:
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=interrupt)
    thread.start()
    assert run_to_its_end([sys.executable, "-c", code]) == 130
    thread.join()
    assert (tmp_path / "asked").read_text() == "1"
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.slow
def test_a_sweep_from_the_command_line(tmp_path):
    """Two runs and one that fails; again: those that are there are skipped, and a new value is trained beside them."""
    write_world(tmp_path / "data" / "miniwiki", seed=1, people=120, institutions=40)
    settings = [f"paths.outputs={tmp_path / 'out'}", f"paths.data={tmp_path / 'data'}"]
    folder = tmp_path / "out" / "sweeps" / "demo" / "denoising"

    def train(*swept: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(PROJECT / "train.py"), "-m", *TINY, *swept, *settings]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)

    done = train("seed=1,2")
    assert done.returncode == 0, done.stderr
    assert "2 runs, 0 of them there already" in done.stdout and "run 2 of 2: seed=2" in done.stdout
    results = [folder / f"seed-{seed}" / "result.json" for seed in (1, 2)]
    before = [file.stat().st_mtime_ns for file in results]
    weights = [folder / f"seed-{seed}" / "model" / "generator" / "model.safetensors" for seed in (1, 2)]
    assert weights[0].read_bytes() != weights[1].read_bytes()
    done = train("seed=1,2,3")
    assert done.returncode == 0, done.stderr
    assert "3 runs, 2 of them there already" in done.stdout and "run 3 of 3: seed=3" in done.stdout
    assert [file.stat().st_mtime_ns for file in results] == before
    assert (folder / "sweep.md").read_text().count("\n") == 5
    # in a sweep of its own the same seed gives the same weights
    alone = [
        sys.executable,
        str(PROJECT / "train.py"),
        *TINY,
        "seed=2",
        f"paths.run={tmp_path / 'alone'}",
        *settings,
    ]
    assert subprocess.run(alone, capture_output=True).returncode == 0
    assert (tmp_path / "alone/model/generator/model.safetensors").read_bytes() == weights[1].read_bytes()
    done = train("seed=1,4", "trainer.precision=32-true,nonsense")
    assert done.returncode == 1 and "2 of 4 runs failed" in done.stderr
