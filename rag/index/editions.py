"""The editions of an index that stand beside each other while one takes another's place, and what kills leave of that.

    NAME             the index
    .NAME.new        its next edition, while it is built: the same command goes on with it
    .NAME.PID.old    the edition before, once the next one has its place (`replace_folder` in rag/files.py)

The exchange is two renames. A kill between them leaves the index without a name of its own, one after them the edition
before, or what was not removed of it yet.
"""

import shutil
from contextlib import suppress
from glob import escape
from pathlib import Path

from filelock import Timeout

from rag.errors import UserError
from rag.files import is_leftover, lock_file, read_json, remove_leftovers, write_json
from rag.index.embed import lock_folder
from rag.index.milvus_connection import Connection
from rag.index.milvus_type import JOURNAL
from rag.index.opening import open_files
from rag.safe_text import say


def next_edition(folder: Path) -> Path:
    """Where the next edition of the index in `folder` is built."""
    return folder.with_name(f".{folder.name}.new")


def put_back(folder: Path | str) -> None:
    """Give an index its name again that a kill left without one, the newest complete edition of it; where the index is
    whole, remove the editions before.

    To be called by whoever begins to build or change the index. A process that is exchanging editions is waited for.
    """
    folder = Path(folder)
    before = sorted(each for each in folder.parent.glob(f".{escape(folder.name)}.*.old") if is_leftover(each))
    for each in before:
        _wait_for(each)
    if not folder.exists():
        complete = [each for each in (*before, next_edition(folder)) if _is_complete(each)]
        if complete:
            newest = max(complete, key=lambda each: (each / "manifest.json").stat().st_mtime_ns)
            with suppress(OSError):  # another process of this command was quicker
                newest.rename(folder)
    if any(each.exists() for each in before) and _is_complete(folder):
        for each in before:
            shutil.rmtree(each, ignore_errors=True)


def _is_complete(folder: Path) -> bool:
    try:
        open_files(folder)
    except (UserError, OSError):
        return False
    return True


def _wait_for(edition: Path) -> None:
    """Until no process holds the lock of an edition, which `lock_folder` made."""
    for path in edition.glob(".lock-*-of-*"):
        with suppress(OSError), lock_file(path):  # it is gone with its edition
            pass


def tidy(folder: Path) -> None:
    """Remove what processes that were killed left half written in an index, unless one is at work there now."""
    drop_replaced(folder)
    if not any(map(is_leftover, [*folder.glob(".*"), *folder.glob("vectors/.*")])):
        return
    with suppress(UserError, OSError), lock_folder(folder):
        remove_half_written(folder)


def remove_half_written(folder: Path) -> None:
    """The same for whoever holds the folder's lock. Tokens have a lock of their own, since they are written later."""
    tokens = list(folder.glob(".tokens-*.partial"))
    if tokens:
        with suppress(Timeout, OSError), lock_file(folder / ".lock-tokens", wait=False):
            remove_leftovers(folder, "tokens-*")
    for each in folder.glob(".*.partial"):
        if each not in tokens:
            remove_leftovers(folder, escape(each.name[1:]))
    remove_leftovers(folder / "vectors")
    for each in folder.glob("vectors/.claim-*"):  # nobody embeds while one process holds the folder
        each.unlink(missing_ok=True)


def drop_replaced(folder: Path) -> None:
    """Drop the collection of the edition before, once this one stands in its place; what a killed process left too."""
    path = folder / JOURNAL
    if not path.is_file() or "replaces" not in (journal := read_json(path)):
        return
    old = journal.pop("replaces")
    try:
        Connection(old["uri"]).call("drop_collection", old["collection"])
    except UserError as error:
        say(f"collection {old['collection']} of the edition before stays in {old['uri']} ({error})")
        return
    write_json(path, journal)
