"""Several commands as one: stages that need each other's results, independent ones side by side, one core each.

Each stage is an ordinary command, shown in its log. Rerun to resume: a stage that is finished says so and ends.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from filelock import Timeout
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from rag.errors import UserError
from rag.files import lock_file, remove_leftovers
from rag.progress import REPORT_FILE
from rag.runs import INSTALLED, PROJECT
from rag.terminal import Terminal


@dataclass
class Stage:
    """One command and the stages whose results it uses."""

    name: str
    command: list[str]
    needs: list[str] = field(default_factory=list)
    seconds: float = 0.0


def run_all(plan: list[Stage], folder: Path, workers: int, threads: int) -> None:
    """Run the stages, `workers` at a time, each when what it needs is done; UserError if one fails."""
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        _run_all(plan, logs, workers, threads)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """UserError where another driver runs its stages in the folder; what one that was killed left half written goes."""
    lock = lock_file(folder / "logs" / ".lock", wait=False)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"another process is at work in {folder}: wait until it has ended, or choose another outputs=…"
        ) from None
    try:
        remove_leftovers(folder)
        yield
    finally:
        lock.release()


def _run_all(plan: list[Stage], logs: Path, workers: int, threads: int) -> None:
    waiting, running, done = list(plan), {}, set()
    with _bars(plan) as show, _children(running):
        while waiting or running:
            for stage in [s for s in waiting if done.issuperset(s.needs)][: workers - len(running)]:
                waiting.remove(stage)
                running[stage.name] = (stage, _start(stage, logs, threads), time.perf_counter())
            for name, (stage, process, began) in list(running.items()):
                stage.seconds = time.perf_counter() - began
                state = process.poll()
                show(stage, _reported(logs, stage), state)
                if state is None:
                    continue
                del running[name]
                if state != 0:
                    log = (logs / f"{_file(stage)}.log").read_text(encoding="utf-8", errors="replace").strip()
                    raise UserError(
                        f"the stage {name} failed ({log.splitlines()[-1] if log else f'exit code {state}'}); "
                        f"see {logs / _file(stage)}.log, and rerun the same command to resume"
                    )
                done.add(name)
            time.sleep(0.1)


def _file(stage: Stage) -> str:
    return stage.name.replace(" ", "_")


def _start(stage: Stage, logs: Path, threads: int) -> subprocess.Popen:
    report = logs / f"{_file(stage)}.progress"
    report.unlink(missing_ok=True)
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        REPORT_FILE: str(report),
        "PYTHONUNBUFFERED": "1",
        "COLUMNS": "120",
    }
    first, *rest = stage.command
    if INSTALLED and first.endswith(".py"):  # a wheel holds what the scripts call, not the scripts
        first, rest = "-m", ["rag.console", first.removesuffix(".py"), *rest]
    command = [sys.executable, first, *rest]
    with open(logs / f"{_file(stage)}.log", "w", encoding="utf-8") as log:
        log.write(f"$ python {' '.join(command[1:])}\n")
        log.flush()
        return subprocess.Popen(
            command,
            cwd=PROJECT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=end_with_parent if sys.platform == "linux" else None,
        )


_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
_SET_PARENT_DEATH_SIGNAL = 1  # prctl's PR_SET_PDEATHSIG


def end_with_parent() -> None:
    """In a child process before its program starts: SIGTERM when the driver ends, however that ends, so that nothing
    of a driver that was killed writes beside its successor's stages. Linux alone can do that."""
    assert _libc is not None
    _libc.prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)


def _reported(logs: Path, stage: Stage) -> dict:
    try:
        return json.loads((logs / f"{_file(stage)}.progress").read_text())
    except (OSError, ValueError):
        return {}


@contextmanager
def _children(running: dict) -> Iterator[None]:
    """End the stages that are still running when something ends the run: a failure, Ctrl-C, a scheduler's SIGTERM."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        for _, process, _ in running.values():
            process.terminate()
        for _, process, _ in running.values():
            process.wait()


@contextmanager
def _bars(plan: list[Stage]) -> Iterator:
    """One bar a stage; in a log file, one line when a stage is done."""
    console = Terminal(stderr=True)
    columns = (
        TextColumn("{task.description:32}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[note]:36}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bars: dict[str, TaskID] = {
            stage.name: progress.add_task(stage.name, total=None, note="waiting", start=False)
            for stage in plan
        }

        def show(stage: Stage, report: dict, state: int | None) -> None:
            bar = bars[stage.name]
            progress.start_task(bar) if not progress.tasks[bar].started else None
            total = report.get("total")
            note = f"{report['what']} {report['done']:,}/{total or '?'}" if report else "starting"
            if state is not None:
                note, total = f"done in {stage.seconds:,.0f} s" if state == 0 else "failed", total or 1
                progress.update(bar, total=total, completed=total, note=note)
                progress.stop_task(bar)
                if not console.is_terminal:
                    console.print(f"{stage.name}: {note}")
            else:
                progress.update(bar, total=total, completed=report.get("done", 0), note=note)

        yield show


def share_cores() -> tuple[int, int]:
    """How many stages run side by side, and on how many threads each."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = max(1, min(cores, 4))
    return workers, max(1, cores // workers)
