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
from contextvars import ContextVar
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


_around: ContextVar[Progress | None] = ContextVar("_around", default=None)  # the bar that is on the terminal


class Speed(ProgressColumn):
    """Units a second, or seconds a unit where it is slower than that."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed or 0.0
        return Text(rate(speed, task.fields["unit"]), style="progress.data.speed")


@contextmanager
def progress_bar(
    description: str, total: int | None, unit: str, done: int = 0, show: bool = True, told: str = ""
) -> Iterator[Callable[[int], None]]:
    """Show a bar on standard error and yield `advance(n)`, to be called when `n` more `unit` are done.

    `total` may be None where nobody knows it; `done` of them were finished by an earlier run and do not count
    towards the speed. Where standard error is a file, there are lines in place of the bar, more and more rarely;
    what takes a few seconds leaves none. told: what is said before it begins, as well as when it has ended, however
    long that took: for what interrupts something else. Its bar stands below that of the other.
    """
    watched = show and sys.stderr.isatty()  # rich would also say so of a notebook, which asks for colours
    report = os.environ.get(REPORT_FILE)
    reported = 0.0
    log = _Log(description, total, unit, done) if show and (told or not watched) else None
    if log is not None and told:
        log.print(told)
    around = _around.get()
    with _bar(watched) as progress:
        task = progress.add_task(description, total=total, completed=done, unit=unit)

        def advance(n: int) -> None:
            nonlocal done, reported
            done += n
            progress.advance(task, n)
            if log is not None:
                log.advance(n, quietly=watched)
            if report and (time.monotonic() - reported > REPORT_SECONDS or done == total):
                reported = time.monotonic()
                with suppress(OSError):  # a lost report is no reason to stop the work
                    Path(report).write_text(json.dumps({"what": description, "done": done, "total": total}))

        try:
            yield advance
        finally:
            if progress is around:
                progress.remove_task(task)
        if log is not None:
            log.end(always=bool(told))


@contextmanager
def _bar(watched: bool) -> Iterator[Progress]:
    """The bar that is shown already, for one more task, or a new one."""
    shown = _around.get()
    if shown is not None and watched:
        yield shown
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        Speed(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Terminal(stderr=True, force_jupyter=False)
    with Progress(*columns, console=console, disable=not watched) as progress:
        before = _around.set(progress if watched else shown)
        try:
            yield progress
        finally:
            _around.reset(before)


class _Log:
    """Lines of progress for a file: after ten seconds, then each after twice as long, at most ten minutes."""

    def __init__(self, description: str, total: int | None, unit: str, done: int):
        self.description, self.total, self.unit = description, total, unit
        self.before = self.done = done
        self.began = time.monotonic()
        self.wait = LOG_SECONDS
        self.next = self.began + self.wait

    def advance(self, n: int, quietly: bool = False) -> None:
        self.done += n
        now = time.monotonic()
        if not quietly and now >= self.next and self.done != self.total:
            self.wait = min(2 * self.wait, LONGEST_LOG_SECONDS)
            self.next = now + self.wait
            speed = (self.done - self.before) / (now - self.began)
            of, left = "", ""
            if self.total is not None:
                of = f" of {self.total:,}"
                left = f", {span((self.total - self.done) / speed)} to go" if speed else ""
            self.print(f"{self.done:,}{of} {self.unit}, {rate(speed, self.unit)}{left}")

    def end(self, always: bool = False) -> None:
        seconds = time.monotonic() - self.began
        if always or seconds >= LOG_SECONDS:
            speed = (self.done - self.before) / seconds if seconds else 0.0
            self.print(f"{self.done:,} {self.unit} in {span(seconds)}, {rate(speed, self.unit)}")

    def print(self, text: str) -> None:
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
