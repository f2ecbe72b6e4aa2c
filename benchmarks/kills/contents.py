"""What a command left, without what differs from one time to the next: times, versions, the machine."""

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

# Of processes at work, and the seconds of the embedding; they stay and say nothing of the result.
IGNORED = (".lock", "seconds-")
# Where training goes on, which holds times; whether it is there is compared, and its weights are in model/.
PRESENCE = {".ckpt", ".md", ".png", ".log", ".progress"}
VARYING = {
    "seconds",
    "refresh/seconds",
    "refresh/share",
    "training_seconds",
    "ms_per_query",
    "checksum",
    "command",
    "commit",
    "versions",
    "machine",
    "changed_ns",
    "state",
    "bytes",
}


def contents(folder: Path) -> dict[str, Any]:
    """Every file under a folder with what it holds. A half-written one or a leftover is one too many."""
    found: dict[str, Any] = {}
    for file in sorted(folder.rglob("*")):
        name = str(file.relative_to(folder))
        if file.name.startswith(IGNORED):
            continue
        if file.is_dir():
            if not any(file.iterdir()):
                found[f"{name}/"] = "empty"
        elif file.suffix in PRESENCE:
            found[name] = file.stat().st_size > 0
        elif file.suffix == ".csv":
            with file.open(newline="", encoding="utf-8") as lines:
                found[name] = [
                    {k: v for k, v in row.items() if v and k not in VARYING} for row in csv.DictReader(lines)
                ]
        elif file.suffix == ".json":
            found[name] = _without_varying(json.loads(file.read_text("utf-8")))
        else:
            found[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def _without_varying(value: Any) -> Any:
    if isinstance(value, dict):
        # the hash of a file of JSON is of its times too
        return {
            key: _without_varying(each)
            for key, each in value.items()
            if key not in VARYING and not key.endswith(".json")
        }
    return [_without_varying(each) for each in value] if isinstance(value, list) else value


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """In which files two folders differ, and how."""
    told = [f"{name} is missing" for name in one.keys() - other.keys()]
    told += [f"{name} is one too many" for name in other.keys() - one.keys()]
    told += [f"{name} differs" for name in one.keys() & other.keys() if one[name] != other[name]]
    return sorted(told)
