"""An index folder's files, checked against its manifest and mapped: what `Index`, `build` and `update` start from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rag.errors import UserError
from rag.fingerprints import check_files
from rag.index import lazy_faiss as faiss
from rag.index.manifest import DECODED, Manifest
from rag.index.passages import PassageStore
from rag.index.tuning import set_search
from rag.index.vectors import DecodedVectors, Vectors


@dataclass(frozen=True)
class IndexFiles:
    """The parts of a finished index. faiss_index: None where FAISS is not installed."""

    folder: Path
    manifest: Manifest
    passages: PassageStore
    vectors: Vectors | DecodedVectors
    faiss_index: Any


def open_files(folder: Path | str) -> IndexFiles:
    """Map the files of an index folder; nothing is copied into memory.

    Raises UserError if the folder is unfinished, was cut short or altered, or does not fit together. Sizes and counts
    are checked, and a few blocks, not every byte, which is `Index.verify`'s.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(
            f"there is no index at {folder}: build one there with build_index.py, or give index.path"
        )
    manifest = Manifest.read(folder / "manifest.json")
    rebuild = f"run build_index.py with index.path={folder} again"
    check_files(folder, {name: each["bytes"] for name, each in manifest.files.items()}, lambda _: rebuild)
    passages = PassageStore.open(folder / "passages")
    if (len(passages), passages.sha256) != (manifest.corpus.passages, manifest.corpus.sha256):
        raise UserError(
            f"{folder} holds {len(passages):,} passages (hash {passages.sha256[:12]}) where its manifest names "
            f"{manifest.corpus.passages:,} ({manifest.corpus.sha256[:12]}): {rebuild}"
        )
    decoded = manifest.vectors == DECODED
    for row in np.random.default_rng().integers(0, len(passages), 3):
        passages[int(row)]
    faiss_index = None
    if decoded or faiss.installed():
        faiss_index = _open_faiss(folder, manifest, len(passages), rebuild)
    if decoded:
        vectors = DecodedVectors(faiss_index)
    else:
        vectors = Vectors(folder / "vectors", len(passages), manifest.dim, manifest.shard_size)
        vectors.look()
    return IndexFiles(folder, manifest, passages, vectors, faiss_index)


def _open_faiss(folder: Path, manifest: Manifest, passages: int, rebuild: str) -> Any:
    """The FAISS index of a folder, mapped, with its search parameters in force."""
    file = folder / "index.faiss"
    try:
        index = faiss.read_index(str(file), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise UserError(f"{file} is damaged: {rebuild}") from error
    if (index.ntotal, index.d) != (passages, manifest.dim):
        raise UserError(
            f"{file} holds {index.ntotal:,} vectors of {index.d} dimensions for {passages:,} passages of "
            f"{manifest.dim}: {rebuild}"
        )
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise UserError(f"{file} does not search by inner product: {rebuild}")
    set_search(index, manifest.search)
    return index
