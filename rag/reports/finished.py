"""What a process did not come to that died after its run or index was finished: the same command does it."""

import os
from pathlib import Path

from rag.runs import is_reported, tidy


def complete_run(folder: Path) -> None:
    """Remove what a finished run needed while it was at work, and write its report unless it is there; nothing where
    another process is at work or nobody may write."""
    if tidy(folder) and not is_reported(folder):
        _report(folder)


def complete_index(folder: Path) -> None:
    """The same of an index, whose leftovers `put_back` and `tidy` of rag/index/editions.py remove."""
    if os.access(folder, os.W_OK) and not is_reported(folder, "manifest.json"):
        _report(folder)


def _report(folder: Path) -> None:
    from rag.reports.run_report import write_run_report  # a second, and only for this

    write_run_report(folder)
