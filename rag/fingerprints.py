"""What identifies an input of a run: its bytes, wherever they lie and whatever stands around them.

    a file                 its SHA-256
    a folder               the names and SHA-256 of its files, hidden ones left out
    an index               what its manifest says of the files that decide a search, held against the files
    a run of train.py      its config.yaml and model/, which is all that is read of it
    something on the hub   its commit

The hash of a large file is remembered in the user's cache folder (~/.cache/rag, or RAG_CACHE) together with the file's
inode, size and times, as git does it: a corpus of gigabytes is read once, and again when it has changed.
"""

import hashlib
import json
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from rag.errors import UserError
from rag.files import hash_file, read_json

REMEMBERED = 16 << 20  # bytes, from which on a hash is worth remembering
TOLD = 1 << 30  # bytes, from which on it is said that a file is being read
SETTLED = 2.0  # seconds: a file that changed just now may change again within its clock's tick


def digest(value: Any) -> str:
    """A short hash of plain containers."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


def fingerprint(path: str | Path) -> str:
    """What identifies the content of `path`, a file, a folder or an address.

    Raises UserError if it does not exist or cannot be read, or is an index with a file that was altered.
    """
    if str(path).startswith("hub://"):
        from rag.hub import identity  # which no run without the hub waits for

        return identity(str(path))
    if "://" in str(path):
        return str(path)
    path = Path(path)
    try:
        if path.is_file():
            return hash_of(path)
        if path.is_dir():
            manifest = _manifest(path)
            return _of_folder(path) if manifest is None else _of_index(path, manifest)
    except OSError as error:
        raise UserError(f"{error.filename or path} cannot be read ({error.strerror or error})") from error
    raise UserError(
        f"{path} does not exist, and this run needs it: make it first, or give its own path (where the data of a task "
        "comes from is written at the head of configs/task/)"
    )


def _of_folder(folder: Path) -> str:
    is_run = (folder / "run.json").is_file()
    read = [folder / "config.yaml", folder / "model"] if is_run else [folder]
    files = sorted(file for each in read for file in _files(each))
    return digest({file.relative_to(folder).as_posix(): hash_of(file) for file in files})


def _files(path: Path) -> Iterator[Path]:
    """A file itself, or all in a folder; hidden ones are editors' and locks."""
    if path.is_file():
        yield path
    for place, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (
            Path(place, name) for name in names if not name.startswith(".") and Path(place, name).is_file()
        )


def _manifest(folder: Path) -> dict[str, Any] | None:
    """An index's manifest; None where there is none, or a file of that name that is something else."""
    if not (folder / "manifest.json").is_file():
        return None
    manifest = read_json(folder / "manifest.json")
    ours = isinstance(manifest, dict) and {"files", "search", "encoder"} <= manifest.keys()
    return manifest if ours else None


def _of_index(folder: Path, manifest: dict[str, Any]) -> str:
    """Of an index the files that are searched and read count, not how fast it was on the day it was built."""
    files = present(folder, manifest["files"], manifest.get("engine"))
    check_hashes(folder, files, lambda _: f"see build_index.py index.path={folder} verify=true")
    content = {name: file["sha256"] for name, file in manifest["files"].items() if not name.endswith(".json")}
    return digest([content, manifest["search"], manifest["encoder"]["weights"]])


def present(folder: Path, files: Mapping[str, Any], engine: Any) -> Mapping[str, Any]:
    """Of a manifest's files those that an index has to have here: all, and of one in an engine, which has them too, its
    passages and its vectors only where that folder is there."""
    if not engine:
        return files
    return {name: each for name, each in files.items() if (folder / name).parent.is_dir()}


def check_files(folder: Path, sizes: Mapping[str, int], advice: Callable[[str], str]) -> None:
    """UserError at the first file, by name → bytes, that `folder` lacks or has in another size.

    advice: what to do about a file, by its name.
    """
    for name, expected in sizes.items():
        file = folder / name
        if not file.is_file():
            raise UserError(f"{file} is missing: {advice(name)}")
        if (size := file.stat().st_size) != expected:
            raise UserError(
                f"{file} has {size:,} bytes instead of {expected:,}, so it was cut short or replaced: {advice(name)}"
            )


def check_hashes(
    folder: Path, files: Mapping[str, Mapping[str, Any]], advice: Callable[[str], str], anew: bool = False
) -> None:
    """UserError at the first of `files`, name → bytes and SHA-256, that is not what it was; advice: as above.

    anew: read every byte, also of files that were read before.
    """
    check_files(folder, {name: each["bytes"] for name, each in files.items()}, advice)
    for name, each in files.items():
        if (hash_file if anew else hash_of)(folder / name) != each["sha256"]:
            raise UserError(f"{folder / name} was altered since it was written: {advice(name)}")


def described(folder: Path) -> dict[str, dict[str, Any]]:
    """Name → bytes and SHA-256 of all files below `folder`, for a manifest."""
    return {
        file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": hash_file(file)}
        for file in sorted(_files(folder))
    }


def hash_of(file: Path) -> str:
    """SHA-256 of a file, which is read unless it was read before and has the same inode, size and times since."""
    if (status := file.stat()).st_size < REMEMBERED:
        return hash_file(file)
    name, state = str(file.resolve()), _state(status)
    with _remembered() as memory:
        row = memory and memory.execute("select state, sha256 from hashes where file = ?", (name,)).fetchone()
    if row and row[0] == state:
        return row[1]
    if status.st_size >= TOLD:
        print(f"reading {file} ({status.st_size / 1e9:,.1f} GB) once, to know it again", file=sys.stderr)
    found = hash_file(file)
    if _state(file.stat()) == state and time.time() - status.st_mtime > SETTLED:
        with _remembered() as memory, suppress(sqlite3.Error):
            if memory:
                memory.execute("insert or replace into hashes values (?, ?, ?)", (name, state, found))
                memory.commit()
    return found


def _state(status: os.stat_result) -> str:
    return f"{status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


@contextmanager
def _remembered() -> Iterator[sqlite3.Connection | None]:
    """The hashes that are remembered; None where that file cannot be opened, which costs time alone."""
    users = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rag"
    cache = Path(os.environ.get("RAG_CACHE") or users)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        memory = sqlite3.connect(cache / "hashes.sqlite", timeout=5)
        memory.execute("create table if not exists hashes (file text primary key, state text, sha256 text)")
    except (OSError, sqlite3.Error):
        yield None
        return
    with closing(memory):
        yield memory
