"""Writing files so that nobody ever meets half of one: write aside, flush to disk, rename."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any

from filelock import FileLock

from rag.errors import UserError
from rag.safe_text import json_text

# What the system says of a place that cannot be written, as opposed to a failing disk or a bug.
NOT_WRITABLE = {
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.EEXIST,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENOTEMPTY,
    errno.ENAMETOOLONG,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
}


os.umask(_UMASK := os.umask(0))  # the only way to ask for it


@contextmanager
def write_aside(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success rename it to `path`, on any failure remove it.

    Works for a file and for a folder that the block creates. What stood at `path` stays until the new one is
    complete; folders that were made for it go again if it fails. Raises UserError when the place cannot be
    written or the disk is full.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    made = []
    try:
        _remove(aside)  # of an earlier process with this one's number
        made = [folder for folder in path.parents if not folder.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        _flush(aside)
        if path.is_dir() and aside.is_dir():
            replace_folder(aside, path)
        else:
            aside.replace(path)
        made = []
    except OSError as error:
        if error.errno in NOT_WRITABLE:
            raise UserError(
                f"{path} cannot be written ({error.strerror or error}); nothing there was changed: "
                "choose a place that can be written and has room"
            ) from error
        raise
    finally:
        with suppress(OSError):  # the first error is the one to tell
            _remove(aside)
        for folder in made:
            with suppress(OSError):  # it is not there, or something else came into it
                folder.rmdir()


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def is_leftover(path: Path) -> bool:
    """Whether something was being written there aside, or replaced, by a process that may not have ended well."""
    return path.name.startswith(".") and path.name.endswith((".partial", ".old"))


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Remove what killed processes left of what they were writing in `folder`, under that name; for whoever is alone
    there."""
    for each in folder.glob(f".{name}"):
        if is_leftover(each):
            with suppress(OSError):
                _remove(each)


def _flush(path: Path) -> None:
    """Ask the system to put a file's bytes (or those of all files of a folder) on disk; they may be read by whoever may
    read other new files, which safetensors would keep to their owner."""
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            if os.name == "posix":
                file.chmod(file.stat().st_mode | (0o666 & ~_UMASK))
            descriptor = os.open(
                file, os.O_RDWR if os.name == "nt" else os.O_RDONLY
            )  # Windows flushes writers only
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def lock_file(path: Path | str, wait: bool = True) -> FileLock:
    """A lock on the file `path`, which stays; the system drops the lock when the process ends, however it ends.

    wait: until it is free; otherwise `acquire` raises filelock.Timeout where another holds it.
    """
    return FileLock(str(path), timeout=-1 if wait else 0)


@contextmanager
def one_process(path: Path | str) -> Iterator[None]:
    """Let one process of a machine in at a time, so that what is cached at `path` is made by the first of them."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = lock_file(path.with_name(f".{path.name}.lock"))
        lock.acquire()
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}): choose a place that can be written"
        ) from error
    try:
        remove_leftovers(path.parent, f"{escape(path.name)}.*.partial")
        yield
    finally:
        lock.release()


def hidden_beside(path: Path | str, ending: str) -> Path:
    """Where something is kept that belongs to a file or folder: ".notes.rag" beside "notes"."""
    path = Path(path).expanduser().resolve()
    return path.with_name(f".{path.name}.{ending}")


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as indented JSON, aside and renamed."""
    with write_aside(path) as aside:
        aside.write_text(
            json_text(value, indent=2) + "\n", encoding="utf-8", errors="backslashreplace"
        )  # of a file's name that is not UTF-8


def read_json(path: Path | str, kind: type = dict) -> Any:
    """Read a JSON file that holds an object, or another `kind` of value.

    UserError if it is missing, may not be read, is malformed or holds anything else.
    """
    path = Path(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): restore it or make it again") from error
    except (
        ValueError,
        RecursionError,
    ) as error:  # also bytes that are not UTF-8, and a number of 5,000 digits
        raise UserError(f"{path} is not valid JSON ({error}): restore it or make it again") from error
    if not isinstance(value, kind):
        expected = "an object" if kind is dict else "a list" if kind is list else f"of type {kind.__name__}"
        found = "null" if value is None else f"of type {type(value).__name__}"
        raise UserError(f"{path} is {found}, but {expected} was written there: restore it or make it again")
    return value


def hash_file(path: Path | str) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace_folder(new: Path | str, old: Path | str) -> None:
    """Put the folder `new` in the place of `old`, which is removed only once the new one stands there."""
    new, old = Path(new), Path(old)
    aside = old.with_name(f".{old.name}.{os.getpid()}.old")
    if old.exists():
        _remove(aside)  # of an earlier process with this one's number
        old.rename(aside)
    new.rename(old)
    shutil.rmtree(aside, ignore_errors=True)


def packed(*paths: str | Path) -> Path:
    """The first of these files that exists, as it is or packed (train.jsonl.gz, train.jsonl.xz); else the last one."""
    there = (file for path in paths for end in ("", ".gz", ".xz") if (file := Path(f"{path}{end}")).exists())
    return next(there, Path(paths[-1]))
