"""The same passages, embedded again by a newer state of their encoder: the edition that training goes on with.

    passages/, tokens-…/   the old edition's, linked
    vectors/, index.faiss  made anew, of the same type
    manifest.json          written last

An edition is built beside its place and renamed, so that nobody ever opens half of one; a build that was killed goes on
at its first missing shard.
"""

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rag.index.build import build
from rag.index.editions import next_edition
from rag.index.embed import PassageEncoder, embed
from rag.index.faiss_types import IndexType
from rag.index.folder import Index
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
