"""The curves of a run that was interrupted, as one file: what an uninterrupted run would have written."""

import csv
from pathlib import Path

from rag.files import write_aside


def join_curves(folder: Path) -> None:
    """Join metrics-1.csv, metrics-2.csv, …, which each interruption left, and metrics.csv into metrics.csv.

    A part ends where the next begins: rows of steps that were done again count once, as they came out last.
    """
    parts = sorted(folder.glob("metrics-*.csv"), key=lambda file: int(file.stem.rpartition("-")[2]))
    file = folder / "metrics.csv"
    if not parts:
        return
    rows: list[dict[str, str]] = []
    names: dict[str, None] = {}
    for part in [*parts, file]:
        if not part.exists():
            continue
        with part.open(encoding="utf-8", newline="") as lines:
            read = csv.DictReader(lines)
            its_rows = [row for row in read if (row.get("step") or "").isdecimal()]
            names |= dict.fromkeys(read.fieldnames or ())
        if its_rows:
            first = min(int(row["step"]) for row in its_rows)
            rows = [row for row in rows if int(row["step"]) < first] + its_rows
    with write_aside(file) as aside, aside.open("w", encoding="utf-8", newline="") as out:
        table = csv.DictWriter(out, sorted(names), restval="")  # line ends as Lightning writes them
        table.writeheader()
        table.writerows(rows)
    for part in parts:
        part.unlink()
