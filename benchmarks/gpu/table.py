"""The results as one table of Markdown, for benchmarks/RESULTS.md."""

import json
from pathlib import Path
from typing import Any

from rag.files import write_aside

RESULTS = "results.jsonl"

NAMES = {
    "machine": "machine",
    "a": "agreement",
    "b": "training",
    "c": "decoding",
    "d": "embedding",
    "e": "search",
    "f": "mini-wiki",
}
TABLE = "table.md"


def number(value: Any) -> str:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return str(value)
    if value != 0 and abs(value) < 0.01:
        return f"{value:.1e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def listed(metrics: dict[str, Any]) -> str:
    known = {name: value for name, value in metrics.items() if value is not None}
    return ", ".join(f"{name.replace('_', ' ')} {number(value)}" for name, value in known.items())


def line(row: dict[str, Any]) -> str:
    part = f"{row['part']} {NAMES.get(row['part'], '')}".strip()
    if "skipped" in row:
        cells = [part, row["what"], "", f"skipped: {row['skipped']}", "", ""]
    else:
        met = {True: "yes", False: "**no**", None: ""}[row["reached"]]
        cells = [part, row["what"], listed(row["settings"]), listed(row["metrics"]), row["aim"], met]
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def checks(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Part a in few lines: what does not agree by itself, the rest together."""
    run = [row for row in rows if "skipped" not in row]
    good = [row for row in run if row["reached"]]
    bad = [row for row in run if not row["reached"]]
    skipped = [row for row in rows if "skipped" in row]
    if not good:
        return [*bad, *skipped]
    worst = max(good, key=lambda row: row["metrics"]["error"])
    metrics = {"checks that agree": len(good), "of": len(run), "largest error": worst["metrics"]["error"]}
    summary = {"part": "a", "what": f"GPU against CPU; the largest error: {worst['what']}", "settings": {}}
    return [summary | {"metrics": metrics, "aim": worst["aim"], "reached": not bad}, *bad, *skipped]


def markdown(rows: list[dict[str, Any]], command: str) -> str:
    machine = next((row["metrics"] for row in rows if row["what"] == "machine"), {})
    known = {name: value for name, value in machine.items() if value is not None}
    head = ", ".join(
        [
            f"`{command}`",
            *(str(known[name]) for name in ("date", "card") if name in known),
            *(
                f"{name} {known[name]}"
                for name in ("commit", "torch", "cuda", "transformers")
                if name in known
            ),
        ]
    )
    part_a = [row for row in rows if row["part"] == "a"]
    others = [row for row in rows if row["part"] not in ("a", "machine")]
    table = [
        "| part | what | settings | metrics | aim | reached |",
        "|---|---|---|---|---|---|",
        *(line(row) for row in [*checks(part_a), *others]),
    ]
    return head + "\n\n" + "\n".join(table) + "\n"


def render(out: Path, command: str) -> int:
    """Print the table and write it into `out`."""
    text = (out / RESULTS).read_text(encoding="utf-8")
    shown = markdown([json.loads(each) for each in text.splitlines() if each], command)
    with write_aside(out / TABLE) as aside:
        aside.write_text(shown, encoding="utf-8")
    print(shown)
    return 0
