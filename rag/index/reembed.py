"""The same passages, embedded again by a newer state of their encoder: the edition that training goes on with.

    passages/, tokens-…/   the old edition's, linked
    vectors/, index.faiss  made anew, of the same type; or a collection of its own in the same engine
    manifest.json          written last

An edition is built beside its place and renamed, so that nobody ever opens half of one; a build that was killed goes on
at its first missing shard.
"""

import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from rag.errors import UserError
from rag.index.build import build
from rag.index.editions import next_edition
from rag.index.embed import PassageEncoder, embed
from rag.index.faiss_types import IndexType
from rag.index.folder import Index
from rag.index.milvus_fill import fill
from rag.index.milvus_type import MilvusType, beside
from rag.index.opening import open_files
from rag.index.passages import PassageStore

BATCH = 64  # passages embedded at once; of like length
SECONDS = 120.0  # that a common disk may take to show a new file


def reembed(
    old: Index,
    encoder: PassageEncoder,
    folder: Path,
    name: str,
    process_index: int = 0,
    process_count: int = 1,
    wait: Callable[[], None] = lambda: None,
) -> None:
    """Make the edition of `old` by `encoder` in `folder`, where there is none.

    name: what its manifest calls the encoder. The processes that share the embedding all call this, and `wait` holds
    each until all have come. Raises UserError where the place cannot be written.
    """
    first, work = process_index == 0, next_edition(folder)
    if first:
        for source in (old.folder / "passages", *sorted(old.folder.glob("tokens-*"))):
            _link(source, work / source.name)
    wait()
    wait_for(work / "passages" / "store.json")
    store = PassageStore.open(work / "passages")
    info = replace(encoder.describe(), name=name)
    size = old.manifest.shard_size or len(store)
    embed(store, encoder.encode, work, info, size, BATCH, process_index, process_count, False)
    wait()
    if first:
        if old.manifest.engine:
            fill(work, MilvusType(**old.manifest.type), show_progress=False)
        else:
            kind = IndexType(**old.manifest.type) if old.manifest.type else IndexType(old.manifest.factory)
            build(work, kind, show_progress=False)
        work.rename(folder)
    wait()
    wait_for(folder / "manifest.json")


def wait_for(file: Path) -> None:
    """Until a file is there that another process has written: a common disk may show it to others a little later."""
    ends = time.monotonic() + SECONDS
    while not file.exists() and time.monotonic() < ends:
        time.sleep(0.1)


def check_passages(index: Index) -> None:
    """UserError unless the passages are on this machine, as an edition's have to be."""
    if not (index.folder / "passages" / "store.json").is_file():
        raise UserError(
            f"{index.folder} holds no passages on this machine, only in its engine, and cannot be embedded again: give "
            "the folder that build_index.py made, or refresh=null"
        )


def drop(folder: Path) -> None:
    """Remove an edition, complete or not, and what belongs to it beside the folder or in an engine."""
    collection = None
    with suppress(UserError):
        collection = open_files(folder).collection
        if collection is not None:
            collection.connection.call("drop_collection", collection.name)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(beside(folder), ignore_errors=True)


def _link(source: Path, target: Path) -> None:
    """A folder of links to the files of another, which take no room; copies where there are none."""
    target.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.is_file() and not file.name.startswith(".") and not (target / file.name).exists():
            try:
                os.link(file, target / file.name)
            except OSError:  # another file system, or one without links
                aside = target / f".{file.name}.{os.getpid()}.partial"
                shutil.copyfile(file, aside)
                aside.replace(target / file.name)
