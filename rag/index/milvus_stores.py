"""Vectors, passages and tokens of an index in an engine, for a machine that has no room for them.

Each stands in the place of its mapped file (vectors.py, passages.py, tokens.py) and asks the engine for the rows that a
batch needs. What was asked for lately is remembered.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from rag.index.catalog import DocumentInfo
from rag.index.milvus_collection import Collection
from rag.index.passage import Passage
from rag.index.passages import PassageStore
from rag.index.tokens import passage_tokens, tokenizer_fingerprint
from rag.index.vectors import Vectors

REMEMBERED = 20_000  # passages
_AT_ONCE = 2_048


class EngineVectors(Vectors):
    """The true vectors, from a collection."""

    def __init__(self, folder: Path, collection: Collection, shard_size: int):
        super().__init__(folder, collection.ntotal, collection.d, shard_size)
        self.collection = collection

    def gather(self, rows: Int64[np.ndarray, " *shape"]) -> Float32[np.ndarray, "*shape D"]:
        """The vectors of `rows`; zeros where a row is -1 (nothing found)."""
        flat = np.asarray(rows, np.int64).reshape(-1)
        if flat.size and not (-1 <= flat.min() and flat.max() < len(self)):
            raise IndexError(f"rows from {flat.min()} to {flat.max()} of {len(self)} vectors")
        vectors = np.zeros((flat.size, self.dim), np.float32)
        if (found := flat >= 0).any():
            vectors[found] = self.collection.fetch(flat[found])
        return vectors.reshape(*np.shape(rows), self.dim)

    def blocks(self, rows: int = 4_096) -> Iterator[tuple[int, Float32[np.ndarray, "rows D"]]]:
        """All vectors in order, as (first row, at most `rows` of them)."""
        for start in range(0, len(self), rows):
            yield start, self.collection.fetch(np.arange(start, min(start + rows, len(self))))

    def look(self) -> None:
        """The collection is looked at when it is opened (`Collection.check`)."""

    def verify(self) -> None:
        """`Collection.verify` reads them."""


class EnginePassages(PassageStore):
    """N passages, from the fields of a collection."""

    def __init__(self, folder: Path, collection: Collection, sha256: str):
        meta = {"sha256": sha256, "source": None, "passages": collection.ntotal, "rows_per_batch": _AT_ONCE}
        super().__init__(folder, None, meta)
        self.collection = collection
        self._known: OrderedDict[int, Passage] = OrderedDict()

    def documents(self) -> list[DocumentInfo] | None:
        """The engine does not say which files its passages are of."""
        return None

    def __reduce__(self):  # another process connects for itself
        return EnginePassages, (self.folder, self.collection, self.sha256)

    def of(self, rows: Iterable[int]) -> list[Passage]:
        """The passages of `rows`, with one question to the engine for those that are not remembered."""
        wanted = [int(row) for row in rows]
        for row in wanted:
            if not 0 <= row < len(self):  # never let -1, "nothing found", mean the last passage
                raise IndexError(f"row {row} of {len(self)} passages")
        found = {row: self._known[row] for row in wanted if row in self._known}
        if missing := [row for row in wanted if row not in found]:
            found |= self.collection.fetch_passages(missing)
        for row in wanted:
            self._known[row] = found[row]
            self._known.move_to_end(row)
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return [found[row] for row in wanted]

    def __getitem__(self, row: int) -> Passage:
        return self.of([row])[0]

    def __iter__(self) -> Iterator[Passage]:
        for start in range(0, len(self), _AT_ONCE):
            yield from self.slice(start, start + _AT_ONCE)

    def slice(self, start: int, stop: int) -> list[Passage]:
        """The passages of rows `start` to `stop` - 1."""
        rows = range(start, min(stop, len(self)))
        found = self.collection.fetch_passages(rows)
        return [found[row] for row in rows]

    def ids(self, rows: Iterable[int] | Int64[np.ndarray, " N"]) -> list[str]:
        """The ids of `rows`; "" for a row of -1 (nothing found)."""
        wanted = np.asarray(rows, np.int64).reshape(-1).tolist()
        known = dict(zip(there := [r for r in wanted if r != -1], self.of(there), strict=True))
        return [known[row].id if row != -1 else "" for row in wanted]

    def ids_from(self, row: int, count: int) -> list[str]:
        """The ids of at most `count` passages from `row` on."""
        return [passage.id for passage in self.slice(row, row + count)]

    def row_of(self, id: str) -> int:
        """The row of the passage `id`. Raises KeyError if there is none."""
        if (row := self.collection.row_of(id)) is None:
            raise KeyError(id)
        return row

    def verify(self) -> None:
        """Read every passage."""
        for _ in self:
            pass


class EngineTokens:
    """As `TokenStore`: the generator's tokens of "title / text", made of the passages that a batch asks for."""

    def __init__(self, passages: EnginePassages, tokenizer: Any, title_separator: str, prefix: str):
        self.passages = passages
        self.tokenizer = tokenizer
        self.title_separator = title_separator
        self.prefix = prefix
        self.fingerprint = tokenizer_fingerprint(tokenizer)
        self.corpus_sha256 = passages.sha256

    def __len__(self) -> int:
        return len(self.passages)

    def lengths(self, rows: Int64[np.ndarray, " N"] | None = None) -> Int64[np.ndarray, " N"]:
        """How many tokens the passages of `rows` have, or all of them."""
        if rows is not None:
            return self.gather(rows)[1]
        starts = range(0, len(self), _AT_ONCE)
        return np.concatenate([self.gather(np.arange(s, min(s + _AT_ONCE, len(self))))[1] for s in starts])

    def gather(
        self, rows: Int64[np.ndarray, " N"]
    ) -> tuple[Int64[np.ndarray, " flat"], Int64[np.ndarray, " N"]]:
        """The tokens of `rows`, one passage after the other, and how many each has; a row of -1 has none."""
        rows = np.asarray(rows, np.int64)
        if rows.size and not (-1 <= rows.min() and rows.max() < len(self)):
            raise IndexError(f"rows from {rows.min()} to {rows.max()} of {len(self)} passages")
        there = rows[rows >= 0].tolist()
        passages = self.passages.of(there)
        tokens: list[list[int]] = []
        if passages:
            tokens = passage_tokens(self.tokenizer, passages, self.title_separator, self.prefix)
        lengths = np.zeros(len(rows), np.int64)
        lengths[rows >= 0] = [len(each) for each in tokens]
        flat = (
            np.concatenate([np.asarray(each, np.int64) for each in tokens])
            if tokens
            else np.zeros(0, np.int64)
        )
        return flat, lengths
