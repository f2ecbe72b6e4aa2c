"""The driver of the demo: stages in order, a failure told, no stage left running when the driver is ended."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rag.errors import UserError
from rag.runs import PROJECT
from rag.stages import Stage, run_all


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
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_stage_outlives_its_driver(tmp_path, number):
    if number == signal.SIGKILL and sys.platform != "linux":
        pytest.skip("only Linux ends a process with its parent")
    file = tmp_path / "pid"
    stage = f"import os, time; open({str(file)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    driver = (
        "from pathlib import Path; from rag.stages import Stage, run_all\n"
        "from rag.cli import mistakes_in_one_sentence\n"
        f"with mistakes_in_one_sentence(): run_all([Stage('long', ['-c', {stage!r}])], Path({str(tmp_path)!r}), 1, 1)"
    )
    process = subprocess.Popen([sys.executable, "-c", driver], cwd=PROJECT, stderr=subprocess.PIPE, text=True)
    while not (file.exists() and file.read_text()):
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    if number == signal.SIGTERM:
        assert process.returncode == 130
        assert "rerun the same command to resume" in errors
    for _ in range(100):  # an orphan is reaped a moment later
        if not alive(int(file.read_text())):
            break
        time.sleep(0.1)
    else:
        raise AssertionError("the stage goes on without its driver")


def alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and that nobody waited for does not."""
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return Path("/proc/self").exists() is False and _signalled(pid)


def _signalled(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
