"""An index folder's files, checked against its manifest and mapped: what `Index`, `build` and `update` start from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rag.errors import UserError
from rag.fingerprints import check_files, present
from rag.index import lazy_faiss as faiss
from rag.index.manifest import DECODED, Manifest
from rag.index.milvus_collection import Collection
from rag.index.milvus_connection import Connection, is_file
from rag.index.milvus_stores import EnginePassages, EngineVectors
from rag.index.milvus_type import beside
from rag.index.passages import PassageStore
from rag.index.tuning import set_search
from rag.index.vectors import DecodedVectors, Vectors


@dataclass(frozen=True)
class IndexFiles:
    """The parts of a finished index. faiss_index: None where FAISS is not installed, or an engine has the vectors.
    collection: that engine's, of which nothing was asked yet."""

    folder: Path
    manifest: Manifest
    passages: PassageStore
    vectors: Vectors | DecodedVectors
    faiss_index: Any
    collection: Collection | None = None


def open_files(folder: Path | str, uri: str | None = None) -> IndexFiles:
    """Map the files of an index folder; nothing is copied into memory.

    uri: of the engine that has the vectors, if it is another than the manifest says.

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
    files = present(folder, manifest.files, manifest.engine)
    check_files(folder, {name: each["bytes"] for name, each in files.items()}, lambda _: rebuild)
    if manifest.engine:
        return _open_engine(folder, manifest, uri, files, rebuild)
    if uri is not None:
        raise UserError(
            f"{folder} is searched with FAISS ({manifest.factory}), not in an engine: take retriever=dense, or build "
            "one with build_index.py index=milvus"
        )
    passages, decoded = _open_passages(folder, manifest, rebuild), manifest.vectors == DECODED
    faiss_index = None
    if decoded or faiss.installed():
        faiss_index = _open_faiss(folder, manifest, len(passages), rebuild)
    if decoded:
        vectors = DecodedVectors(faiss_index)
    else:
        vectors = _open_vectors(folder, manifest)
    return IndexFiles(folder, manifest, passages, vectors, faiss_index)


def _open_engine(
    folder: Path, manifest: Manifest, uri: str | None, files: Mapping[str, Any], rebuild: str
) -> IndexFiles:
    """The parts of an index whose vectors an engine searches; what is not on this machine is read from there too."""
    engine = manifest.engine
    if uri is not None and is_file(uri) and not Path(uri).expanduser().exists():
        raise UserError(
            f"{uri} does not exist: give the file of an engine, or its address as http://HOST:PORT or https://HOST:PORT"
        )
    connection = Connection(uri or engine["uri"] or str(beside(folder)))
    name, rows, dim = engine["collection"], engine["rows"], manifest.dim
    collection = Collection(connection, name, rows, dim, engine["kind"], manifest.search, engine["texts"])
    vectors: Vectors = EngineVectors(folder, collection, manifest.shard_size)
    if any(name.startswith("vectors/") for name in files):
        vectors = collection.vectors = _open_vectors(folder, manifest)
    passages: PassageStore = EnginePassages(folder, collection, manifest.corpus.sha256)
    if any(name.startswith("passages/") for name in files):
        passages = _open_passages(folder, manifest, rebuild)
    elif not engine["texts"]:
        raise UserError(
            f"{folder} holds no passages, and neither does {collection.where}: copy passages/ from where it was built"
        )
    return IndexFiles(folder, manifest, passages, vectors, None, collection)


def _open_passages(folder: Path, manifest: Manifest, rebuild: str) -> PassageStore:
    passages = PassageStore.open(folder / "passages")
    if (len(passages), passages.sha256) != (manifest.corpus.passages, manifest.corpus.sha256):
        raise UserError(
            f"{folder} holds {len(passages):,} passages (hash {passages.sha256[:12]}) where its manifest names "
            f"{manifest.corpus.passages:,} ({manifest.corpus.sha256[:12]}): {rebuild}"
        )
    for row in np.random.default_rng().integers(0, len(passages), 3):
        passages[int(row)]
    return passages


def _open_vectors(folder: Path, manifest: Manifest) -> Vectors:
    vectors = Vectors(folder / "vectors", manifest.corpus.passages, manifest.dim, manifest.shard_size)
    vectors.look()
    return vectors


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
