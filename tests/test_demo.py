"""The driver of the demo: stages in order, a failure told, no stage left running when the driver is ended."""

import os
import signal
import subprocess
import sys
import time

import pytest

from rag.demo import Stage, run_all
from rag.errors import UserError
from rag.runs import PROJECT


def python(name: str, code: str, *needs: str) -> Stage:
    return Stage(name, ["-c", code], list(needs))


def test_a_stage_runs_when_what_it_needs_is_done(tmp_path):
    file = tmp_path / "order"
    write = f"open({str(file)!r}, 'a').write"
    run_all(
        [python("last", f"{write}('b')", "first"), python("first", f"{write}('a')")],
        tmp_path,
        workers=2,
        threads=1,
    )
    assert file.read_text() == "ab"


def test_a_failure_is_told_with_its_last_line_and_its_log(tmp_path):
    with pytest.raises(UserError, match=r"the stage bad failed \(no such thing\); see .*bad\.log"):
        run_all([python("bad", "raise SystemExit('no such thing')")], tmp_path, workers=1, threads=1)


@pytest.mark.slow
def test_no_stage_outlives_a_driver_that_is_terminated(tmp_path):
    file = tmp_path / "pid"
    stage = f"import os, time; open({str(file)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    driver = (
        "from pathlib import Path; from rag.demo import Stage, run_all; from rag.cli import mistakes_in_one_sentence\n"
        f"with mistakes_in_one_sentence(): run_all([Stage('long', ['-c', {stage!r}])], Path({str(tmp_path)!r}), 1, 1)"
    )
    process = subprocess.Popen([sys.executable, "-c", driver], cwd=PROJECT, stderr=subprocess.PIPE, text=True)
    while not (file.exists() and file.read_text()):
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "rerun the same command to resume" in errors
    with pytest.raises(ProcessLookupError):
        os.kill(int(file.read_text()), 0)
