"""index=milvus: a collection of a Milvus engine in the place of FAISS's file, and what it is known by.

    folder/manifest.json   "engine": {uri, collection, rows, texts, version}, beside all that any manifest says
    collection             row (its key), vector; id, title and text where `texts` says so

A row of the index is the key of its entity, so that what the engine finds are rows, with nothing in between.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rag.errors import UserError
from rag.fingerprints import digest
from rag.index.milvus_connection import checked_uri

# What a search of each type looks at, from the least to the most; none for one that looks at all vectors.
EFFORT = {
    "FLAT": None,
    "AUTOINDEX": None,
    "HNSW": "ef",
    "HNSW_SQ": "ef",
    "IVF_FLAT": "nprobe",
    "IVF_SQ8": "nprobe",
    "IVF_RABITQ": "nprobe",
    "DISKANN": "search_list",
}
GRAPHS = ("HNSW", "HNSW_SQ", "DISKANN", "AUTOINDEX")
KEEPS_VECTORS = ("FLAT", "HNSW", "IVF_FLAT", "DISKANN")  # whose scores are q(x)ᵀd(z) itself
JOURNAL = "collection.json"  # of an index folder: its collection, and the rows that are in it
_BUILT_BY = ("kind", "params", "texts", "properties")
LONGEST = 65_535  # bytes of a text that an engine takes


@dataclass(frozen=True)
class MilvusType:
    """A collection of a Milvus engine.

    uri: the engine, a file (of milvus-lite), http://HOST:PORT or https://HOST:PORT; None: a file beside the index
        folder, of its name. Without credentials, which are the environment's (rag/index/milvus_connection.py).
    name: what the collection's name begins with.
    kind: the engine's type of index: FLAT, HNSW, IVF_FLAT, IVF_SQ8, DISKANN, AUTOINDEX, … params: how that is built, as
        {M: 32, efConstruction: 200}.
    search: a number for what a search looks at (ef, nprobe or search_list); None: the least that reaches
        `target_recall`. refine: as in IndexType; None: 1 where the engine keeps whole vectors, 4 elsewhere.
    texts: ids, titles and texts go into the engine too, so that a machine needs no passages on its disk.
    properties: of the collection, such as {mmap.enabled: true}. shards: of the collection, over which a cluster writes.
    """

    uri: str | None = None
    name: str = "rag"
    kind: str = "FLAT"
    params: dict[str, Any] = field(default_factory=dict)
    search: int | None = None
    refine: int | None = None
    target_recall: float = 0.99
    texts: bool = True
    shards: int = 1
    properties: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.uri is not None:
            checked_uri(self.uri)
        if self.kind not in EFFORT:
            raise UserError(f"index.type.kind={self.kind} does not exist; available: {', '.join(EFFORT)}")
        if not self.name.isidentifier() or not self.name.isascii():
            raise UserError(
                f"index.type.name={self.name}: give letters, digits and underscores, not beginning with a digit"
            )
        for name in ("params", "properties"):  # what a configuration gives becomes plain
            object.__setattr__(self, name, dict(getattr(self, name) or {}))

    @property
    def factory(self) -> str:
        """What a manifest and a report call it."""
        return f"Milvus {self.kind}"

    @property
    def search_parameters(self) -> dict[str, int | None]:
        """What a search goes by, as a manifest names it; None: chosen."""
        effort = EFFORT[self.kind]
        return ({effort: self.search} if effort else {}) | {"refine": self.refine}

    def place(self, folder: Path) -> str:
        """The URI of the engine for an index in `folder`: a file beside it, of its name, unless another is given."""
        if self.uri is None:
            return str(beside(folder))
        return checked_uri(self.uri)

    def unlike(self, other: "MilvusType") -> list[tuple[str, Any, Any]]:
        """What decides how a collection is built: (name, this one's, the other's)."""
        return [(name, getattr(self, name), getattr(other, name)) for name in _BUILT_BY]

    def identity(self, corpus_sha256: str, encoder: dict[str, Any]) -> str:
        """What tells this collection's content from every other's: its passages, their encoder and its type."""
        return digest([corpus_sha256, encoder, {name: getattr(self, name) for name in _BUILT_BY}])


def beside(folder: Path) -> Path:
    """The file of milvus-lite of an index: "wiki.milvus" beside "wiki", and of its next edition ".wiki.new" as well."""
    name = folder.name
    if name.startswith(".") and name.endswith(".new"):
        name = name.removeprefix(".").removesuffix(".new")
    return folder.absolute().with_name(f"{name}.milvus")
