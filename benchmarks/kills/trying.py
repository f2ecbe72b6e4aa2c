"""One command, killed and given again: a process of its own for each try, forked from one that has imported everything.

A try costs what the command does, not the seconds of importing torch. The process that forks has computed nothing: what
is forked has no threads, and its random numbers are as new.

    by file operation   an audit hook (PEP 578) ends the process with SIGKILL before the N-th time that it opens a file
                        for writing, renames, removes or makes one, or a folder, in the folder that is watched
    by the clock        the system ends it after so many seconds, wherever it is, also amid what is not Python
"""

import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rag.cli import one_sentence

PATIENCE = 300.0  # seconds until a process counts as one that does not end
OPERATIONS = (
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
FINE, TOLD, BROKEN = 0, 2, 1  # exit codes


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code, or minus the signal's number, what it printed, seconds, file operations."""

    code: int
    printed: str
    seconds: float
    operations: int = 0

    @property
    def last(self) -> str:
        """The last line."""
        lines = re.sub(r"\x1b\[[\d;]*m", "", self.printed).strip().splitlines()
        return lines[-1] if lines else ""


class Operations:
    """Counts this process's changes to the files under a folder, and ends the process before the `last` one."""

    def __init__(self, folder: Path, last: int | None = None):
        self.folder = f"{folder.resolve()}{os.sep}"
        self.last = last
        self.count = 0
        sys.addaudithook(self.see)  # for the process's life

    def see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not isinstance(flags, int) or not flags & _WRITES:
                return
        elif event in OPERATIONS:
            path = arguments[1] if event in ("os.rename", "os.link", "os.symlink") else arguments[0]
        else:
            return
        if not isinstance(path, str | bytes | os.PathLike) or not os.fsdecode(path).startswith(self.folder):
            return
        self.count += 1
        if self.count == self.last:
            os.kill(os.getpid(), signal.SIGKILL)


def start(
    command: Callable[[], Any],
    log: Path,
    watched: Path | None = None,
    operation: int | None = None,
    seconds: float | None = None,
    environment: dict[str, str] | None = None,
) -> int:
    """Fork a process that gives a command, and write what it prints into `log`; its number.

    It is killed before the `operation`-th change of a file under `watched`, or after so many seconds.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    number = os.fork()
    if number:
        return number
    code = BROKEN
    try:
        os.setpgid(0, 0)  # with its children, which are ended with it
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.update(environment or {})
        counted = None if watched is None else Operations(watched, operation)
        if seconds is not None:
            signal.setitimer(
                signal.ITIMER_REAL, seconds
            )  # SIGALRM, which nobody handles: the system ends the process
        code = _give(command)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if counted is not None:
            print(f"\noperations: {counted.count}", flush=True)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _give(command: Callable[[], Any]) -> int:
    try:
        command()
        return FINE
    except KeyboardInterrupt:
        print("interrupted")
        return TOLD
    except Exception as error:
        try:
            print(f"\nerror: {one_sentence(error)}", flush=True)
            return TOLD
        except Exception:
            if isinstance(error, RuntimeError) and _lost_another(error):
                print("\nstopped because another process of this command stopped", flush=True)
                return TOLD
            traceback.print_exc()
            return BROKEN


def _lost_another(error: RuntimeError) -> bool:
    from rag.processes import lost_another  # imports torch, which a command may have no need of

    return lost_another(error)


def wait(
    number: int, log: Path, began: float, patience: float = PATIENCE, asks: int = signal.SIGKILL
) -> Ended:
    """Until a process has ended; one that does not is asked to by a signal, then killed, and counts as broken."""
    asked = asks == signal.SIGKILL
    while True:
        ended, status = os.waitpid(number, os.WNOHANG)
        seconds = time.perf_counter() - began
        if ended:
            break
        if seconds > patience and not asked:
            asked, patience = True, patience + PATIENCE
            os.killpg(number, asks)
        elif seconds > patience:
            os.killpg(number, signal.SIGKILL)
            os.waitpid(number, 0)
            return Ended(BROKEN, f"did not end within {patience:g} s", seconds)
        time.sleep(0.005)
    printed = log.read_text("utf-8", "replace") if log.exists() else ""
    counted = re.search(r"\noperations: (\d+)\n\Z", printed)
    code = os.waitstatus_to_exitcode(status)
    text = printed[: counted.start()] if counted else printed
    return Ended(code, text, seconds, int(counted[1]) if counted else 0)


def give(command: Callable[[], Any], log: Path, **settings: Any) -> Ended:
    """`start` and `wait`."""
    began = time.perf_counter()
    return wait(start(command, log, **settings), log, began)
