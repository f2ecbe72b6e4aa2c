"""One progress bar for everything long: what is done, how many a second, how long it will still take.

Whoever runs a command in the background and wants to show its progress names a file in the environment variable
RAG_PROGRESS; the newest state is kept there as JSON.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from rag.safe_text import say
from rag.terminal import Terminal

REPORT_FILE = "RAG_PROGRESS"
REPORT_SECONDS = 0.5
LOG_SECONDS = 10.0
LONGEST_LOG_SECONDS = 600.0


class Speed(ProgressColumn):
    """Units a second, or seconds a unit where it is slower than that."""

    def __init__(self, unit: str):
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        return Text(rate(task.finished_speed or task.speed or 0.0, self.unit), style="progress.data.speed")


@contextmanager
def progress_bar(
    description: str, total: int | None, unit: str, done: int = 0, show: bool = True
) -> Iterator[Callable[[int], None]]:
    """Show a bar on standard error and yield `advance(n)`, to be called when `n` more `unit` are done.

    `total` may be None where nobody knows it; `done` of them were finished by an earlier run and do not count
    towards the speed. Where standard error is a file, there are lines in place of the bar, more and more rarely;
    what takes a few seconds leaves none.
    """
    console = Terminal(stderr=True, force_jupyter=False)
    watched = show and sys.stderr.isatty()  # rich would also say so of a notebook, which asks for colours
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        Speed(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    report = os.environ.get(REPORT_FILE)
    reported = 0.0
    log = _Log(description, total, unit, done) if show and not watched else None
    with Progress(*columns, console=console, disable=not watched) as progress:
        task = progress.add_task(description, total=total, completed=done)

        def advance(n: int) -> None:
            nonlocal done, reported
            done += n
            progress.advance(task, n)
            if log is not None:
                log.advance(n)
            if report and (time.monotonic() - reported > REPORT_SECONDS or done == total):
                reported = time.monotonic()
                with suppress(OSError):  # a lost report is no reason to stop the work
                    Path(report).write_text(json.dumps({"what": description, "done": done, "total": total}))

        yield advance
        if log is not None:
            log.end()


class _Log:
    """Lines of progress for a file: after ten seconds, then each after twice as long, at most ten minutes."""

    def __init__(self, description: str, total: int | None, unit: str, done: int):
        self.description, self.total, self.unit = description, total, unit
        self.before = self.done = done
        self.began = time.monotonic()
        self.wait = LOG_SECONDS
        self.next = self.began + self.wait

    def advance(self, n: int) -> None:
        self.done += n
        now = time.monotonic()
        if now >= self.next and self.done != self.total:
            self.wait = min(2 * self.wait, LONGEST_LOG_SECONDS)
            self.next = now + self.wait
            speed = (self.done - self.before) / (now - self.began)
            of, left = "", ""
            if self.total is not None:
                of = f" of {self.total:,}"
                left = f", {span((self.total - self.done) / speed)} to go" if speed else ""
            self._print(f"{self.done:,}{of} {self.unit}, {rate(speed, self.unit)}{left}")

    def end(self) -> None:
        seconds = time.monotonic() - self.began
        if seconds >= LOG_SECONDS:
            speed = (self.done - self.before) / seconds
            self._print(f"{self.done:,} {self.unit} in {span(seconds)}, {rate(speed, self.unit)}")

    def _print(self, text: str) -> None:
        say(f"{self.description}: {text}", file=sys.stderr, flush=True)


def rate(speed: float, unit: str) -> str:
    """Units a second, or seconds a unit where it is slower than that."""
    if not speed:
        return f"– {unit}/s"
    if speed < 1:
        return f"{1 / speed:,.1f} s/{unit.removesuffix('s')}"
    return f"{speed:,.0f} {unit}/s" if speed >= 10 else f"{speed:.1f} {unit}/s"


def span(seconds: float) -> str:
    """A length of time in its two largest units: "45 s", "3 min 20 s", "2 h 5 min"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
