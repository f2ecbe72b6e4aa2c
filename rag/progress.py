"""One progress bar for everything long: what is done, how many a second, how long it will still take.

Whoever runs a command in the background and wants to show its progress names a file in the environment variable
RAG_PROGRESS; the newest state is kept there as JSON.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console
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

REPORT_FILE = "RAG_PROGRESS"
REPORT_SECONDS = 0.5


class Speed(ProgressColumn):
    """Units a second, or seconds a unit where it is slower than that."""

    def __init__(self, unit: str):
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if not speed:
            text = f"– {self.unit}/s"
        elif speed < 1:
            text = f"{1 / speed:,.1f} s/{self.unit.removesuffix('s')}"
        else:
            text = f"{speed:,.0f} {self.unit}/s" if speed >= 10 else f"{speed:.1f} {self.unit}/s"
        return Text(text, style="progress.data.speed")


@contextmanager
def progress_bar(
    description: str, total: int | None, unit: str, done: int = 0, show: bool = True
) -> Iterator[Callable[[int], None]]:
    """Show a bar on standard error and yield `advance(n)`, to be called when `n` more `unit` are done.

    `total` may be None where nobody knows it; `done` of them were finished by an earlier run and do not count
    towards the speed.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Speed(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    report = os.environ.get(REPORT_FILE)
    reported = 0.0
    with Progress(*columns, console=Console(stderr=True), disable=not show) as progress:
        task = progress.add_task(description, total=total, completed=done)

        def advance(n: int) -> None:
            nonlocal done, reported
            done += n
            progress.advance(task, n)
            if report and (time.monotonic() - reported > REPORT_SECONDS or done == total):
                reported = time.monotonic()
                with suppress(OSError):  # a lost report is no reason to stop the work
                    Path(report).write_text(json.dumps({"what": description, "done": done, "total": total}))

        yield advance
