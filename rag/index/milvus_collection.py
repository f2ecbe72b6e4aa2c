"""A collection of a Milvus engine: made, filled, searched and read by the rows of an index.

    row (key) | vector, float32 | id, title, text where it has them

It stands where a FAISS index would: `search(queries, k)` gives scores and rows. A collection belongs to one index and
does not change once it is full, which is looked at when it is opened, every minute of its use, whenever its engine
comes back, and with every search: a score is the product of the query with that passage's own vector.
"""

import hashlib
import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from rag.errors import UserError
from rag.index.milvus_connection import Connection, NotLoaded
from rag.index.milvus_type import EFFORT, KEEPS_VECTORS, LONGEST, MilvusType
from rag.index.passage import Passage

LARGEST_K = 16_384  # of one search, by the engine
LOOKED_AT_EVERY = 60.0  # seconds
MESSAGE = (
    3 << 20
)  # bytes that are sent or asked for at a time; engines take 64 MB, gRPC's usual servers 4 MiB
_ROW, _VECTOR = "row", "vector"
_TEXTS = ("id", "title", "text")
REBUILD = "run build_index.py as before with overwrite=true, which fills a new one from the vectors"


@dataclass(frozen=True)
class Described:
    """What an engine says of a collection: its vectors' dimension, the metric and type of its index, its texts."""

    dim: int
    metric: str
    kind: str
    texts: bool


class Collection:
    """`rows` passages of `dim` dimensions in the engine behind `connection`; nothing is asked of it before it is used.

    vectors: of the index on this machine, whose products a search's scores are held against; None: there are none.
    """

    def __init__(
        self,
        connection: Connection,
        name: str,
        rows: int,
        dim: int,
        kind: str,
        search: dict[str, int],
        texts: bool,
        vectors: Any = None,
        every: float = LOOKED_AT_EVERY,
    ):
        self.connection = connection
        self.name = name
        self.ntotal = rows
        self.d = dim
        self.kind = kind
        self.texts = texts
        self.parameters = {name: value for name, value in search.items() if name != "refine"}
        self.vectors = vectors
        self.every = every
        self._looked = -np.inf
        self._generation = -1

    @property
    def where(self) -> str:
        """For messages."""
        return f"collection {self.name} of {self.connection.uri}"

    # ------------------------------------------------------------------------------ whether it is what it should be

    def exists(self) -> bool:
        return self.connection.call("has_collection", self.name)

    def describe(self) -> Described:
        """Raises UserError where there is no such collection, or it is none of ours."""
        if not self.exists():
            raise UserError(f"there is no {self.where}: give the uri of the engine that has it, or {REBUILD}")
        told = self.connection.call("describe_collection", self.name)
        fields = {each["name"]: each for each in told["fields"]}
        if _ROW not in fields or _VECTOR not in fields:
            raise UserError(f"{self.where} is no index of ours (it has {', '.join(fields)}): {REBUILD}")
        index = self.connection.call("describe_index", self.name, _VECTOR) or {}
        dim = int(fields[_VECTOR]["params"]["dim"])
        metric, kind = str(index.get("metric_type", "none")), str(index.get("index_type", "none"))
        return Described(dim, metric, kind, set(_TEXTS) <= set(fields))

    def count(self) -> int:
        """How many entities there are now, writes of a moment ago included."""
        told = self._read(
            "query", self.name, filter="", output_fields=["count(*)"], consistency_level="Strong"
        )
        return int(told[0]["count(*)"])

    def count_between(self, start: int, stop: int) -> int:
        """How many of the rows from `start` to `stop` - 1 are there."""
        between = f"{_ROW} >= {start} and {_ROW} < {stop}"
        told = self._read(
            "query", self.name, filter=between, output_fields=["count(*)"], consistency_level="Strong"
        )
        return int(told[0]["count(*)"])

    def check(self) -> None:
        """Raises UserError unless it has the rows, dimension, metric and vectors of its index."""
        found = self.describe()
        if found.dim != self.d:
            raise UserError(
                f"{self.where} holds vectors of {found.dim} dimensions, and the index has {self.d}: {REBUILD}"
            )
        if found.metric != "IP":
            raise UserError(
                f"{self.where} is searched by {found.metric}, not by inner product (IP): {REBUILD}"
            )
        self.load()
        self._check_count()
        if self.vectors is not None:
            rows = np.unique(np.random.default_rng().integers(0, self.ntotal, 8))
            if not np.array_equal(self.fetch(rows), self.vectors.gather(rows)):
                raise self._changed("holds other vectors than this index")

    def _check_count(self) -> None:
        if (count := self.count()) != self.ntotal:
            raise self._changed(f"holds {count:,} passages, and the index has {self.ntotal:,}")
        self._looked, self._generation = time.monotonic(), self.connection.generation

    def _changed(self, how: str) -> UserError:
        return UserError(f"{self.where} {how}, so it was changed or is incomplete: {REBUILD}")

    # ------------------------------------------------------------------------------ search and reading

    def search(
        self, queries: Float32[np.ndarray, "B D"], k: int
    ) -> tuple[Float32[np.ndarray, "B k"], Int64[np.ndarray, "B k"]]:
        """Scores and rows of the k largest inner products, best first; −inf and −1 where fewer were found."""
        if k > LARGEST_K:
            raise UserError(
                f"{self.where}: an engine finds at most {LARGEST_K:,} passages at once, not {k:,}: lower K"
            )
        scores = np.full((len(queries), k), -np.inf, np.float32)
        rows = np.full((len(queries), k), -1, np.int64)
        finite = np.flatnonzero(
            np.isfinite(queries).all(axis=1)
        )  # as with FAISS, a query of NaN finds nothing
        step = max(1, min(1_000, MESSAGE // (4 * self.d), LARGEST_K * 16 // k))
        effort = EFFORT[self.kind]
        parameters = {
            key: max(value, k) if effort != "nprobe" else value for key, value in self.parameters.items()
        }
        for start in range(0, len(finite), step):
            part = finite[start : start + step]
            found = self._read(
                "search",
                self.name,
                data=list(queries[part]),
                anns_field=_VECTOR,
                limit=k,
                search_params={"metric_type": "IP", "params": parameters},
                output_fields=[_ROW],
            )
            for number, hits in zip(part, found, strict=True):
                rows[number, : len(hits)] = [hit[_ROW] for hit in hits]
                scores[number, : len(hits)] = [hit["distance"] for hit in hits]
        if rows.max(initial=0) >= self.ntotal:
            raise self._changed(f"found row {rows.max():,} where the index has {self.ntotal:,}")
        self._check_scores(queries, scores, rows)
        generation = self.connection.generation
        if generation != self._generation or time.monotonic() - self._looked > self.every:
            self._check_count()
        return scores, rows

    def _check_scores(self, queries: np.ndarray, scores: np.ndarray, rows: np.ndarray) -> None:
        """Hold the best passage of each query against its own vector, where the engine keeps them whole."""
        if self.vectors is None or self.kind not in KEEPS_VECTORS:
            return
        best = np.flatnonzero(rows[:, 0] >= 0)
        true = np.einsum("bd,bd->b", queries[best], self.vectors.gather(rows[best, 0]))
        size = np.linalg.norm(queries[best], axis=1) * np.linalg.norm(
            self.vectors.gather(rows[best, 0]), axis=1
        )
        if (np.abs(true - scores[best, 0]) > 1e-4 * np.maximum(size, 1e-6)).any():
            raise self._changed("gives scores that are not those of this index's vectors")

    def fetch(self, rows: Int64[np.ndarray, " N"]) -> Float32[np.ndarray, "N D"]:
        """The vectors of `rows`, each of them a row of the index, asked for in slices."""
        vectors = np.empty((len(rows), self.d), np.float32)
        each = {row: number for number, row in enumerate(rows.tolist())}
        for part in self._slices(list(each), 4 * self.d):
            for entity in self._entities(part, [_ROW, _VECTOR]):
                vectors[each[entity[_ROW]]] = entity[_VECTOR]
        if len(each) < len(rows):  # some come more than once
            vectors = vectors[[each[row] for row in rows.tolist()]]
        return vectors

    def fetch_passages(self, rows: Sequence[int]) -> dict[int, Passage]:
        """The passages of `rows`, from the engine's own fields."""
        passages = {}
        for part in self._slices(list(dict.fromkeys(rows)), 2_000):
            for entity in self._entities(part, [_ROW, *_TEXTS]):
                passages[entity[_ROW]] = Passage(*(entity[name] for name in _TEXTS))
        return passages

    def row_of(self, id: str) -> int | None:
        """The row of the passage `id`; None where there is none."""
        quoted = id.replace("\\", "\\\\").replace('"', '\\"')
        found = self._read("query", self.name, filter=f'id == "{quoted}"', output_fields=[_ROW], limit=2)
        return next((int(each[_ROW]) for each in found), None)

    def _slices(self, rows: list[int], size: int) -> list[list[int]]:
        step = max(1, min(LARGEST_K, MESSAGE // size))
        return [rows[start : start + step] for start in range(0, len(rows), step)]

    def _entities(self, rows: list[int], fields: list[str]) -> list[dict[str, Any]]:
        found = self._read("query", self.name, ids=rows, output_fields=fields)
        if len(found) != len(rows):
            missing = sorted(set(rows) - {each[_ROW] for each in found})
            raise self._changed(f"lacks row {missing[0] if missing else rows[0]:,}")
        return found

    def _read(self, name: str, *args: Any, **settings: Any) -> Any:
        """A call that needs the collection in the engine's memory, where a restart leaves none."""
        try:
            return self.connection.call(name, *args, **settings)
        except NotLoaded:  # it was started again, or somebody released the collection
            self.load()
            self._looked = -np.inf
            return self.connection.call(name, *args, **settings)

    def load(self) -> None:
        """Have the engine read the collection into memory; it returns when that is done."""
        self.connection.call("load_collection", self.name)

    def verify(self, files: Mapping[str, Mapping[str, Any]], shard_size: int) -> None:
        """Read every vector. Raises UserError unless they are those of the shards, by the hashes in a manifest."""
        for number, start in enumerate(range(0, self.ntotal, shard_size)):
            file = io.BytesIO()
            np.save(
                file, self.fetch(np.arange(start, min(start + shard_size, self.ntotal))), allow_pickle=False
            )
            if hashlib.sha256(file.getvalue()).hexdigest() != files[f"vectors/{number:05d}.npy"]["sha256"]:
                raise self._changed(f"holds other vectors than this index, from row {start:,} on")

    # ------------------------------------------------------------------------------ making it

    def create(self, type: MilvusType) -> None:
        """An empty collection with its index. Raises UserError where the engine cannot search by inner product."""
        from pymilvus import DataType, MilvusClient

        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field(_ROW, DataType.INT64, is_primary=True)
        schema.add_field(_VECTOR, DataType.FLOAT_VECTOR, dim=self.d)
        for name in _TEXTS if type.texts else ():
            schema.add_field(name, DataType.VARCHAR, max_length=LONGEST)
        index = MilvusClient.prepare_index_params()
        nested = (
            {"params": type.params} if type.params else {}
        )  # which milvus-lite reads, and servers do as well
        index.add_index(_VECTOR, index_type=type.kind, metric_type="IP", params=nested)
        try:
            self.connection.call(
                "create_collection",
                self.name,
                schema=schema,
                num_shards=type.shards,
                properties=type.properties,
            )
            self.connection.call("create_index", self.name, index)
        except UserError as error:
            raise UserError(
                f"{error}: an index needs inner product (IP) over {type.kind}; give index.type.kind=… that this engine "
                "has, or another engine"
            ) from error

    def put(
        self,
        start: int,
        vectors: Float32[np.ndarray, "rows D"],
        passages: Sequence[Passage] | None,
        again: bool,
    ) -> None:
        """Write the rows from `start` on, in messages of their size. again: some of them may be there already, and are
        replaced."""
        size = vectors.nbytes + sum(len(f"{p.id}{p.title}{p.text}".encode()) for p in passages or ())
        if size > MESSAGE and (half := len(vectors) // 2):
            self.put(start, vectors[:half], passages and passages[:half], again)
            self.put(start + half, vectors[half:], passages and passages[half:], again)
            return
        entities = [{_ROW: start + number, _VECTOR: vector} for number, vector in enumerate(vectors)]
        for entity, passage in zip(entities, passages or (), strict=passages is not None):
            for name in _TEXTS:
                text = getattr(passage, name)
                if len(text) * 4 > LONGEST and len(text.encode()) > LONGEST:
                    raise UserError(
                        f"the {name} of passage {passage.id[:80]!r} takes {len(text.encode()):,} bytes, and an engine "
                        f"takes {LONGEST:,}: split passages (corpus.split=words), or keep texts out of it "
                        "(index.type.texts=false)"
                    )
                entity[name] = text
        self.connection.call("upsert" if again else "insert", self.name, entities)

    def drop(self) -> None:
        self.connection.call("drop_collection", self.name)
