"""Section 3: vectors d(z) that were made elsewhere, such as those that the hub's facebook/wiki_dpr brings along.

    .parquet with `embeddings`, or .npy ──▶ ReadyVectors ──of(store)──▶ MatchedVectors ──embed(known=…)──▶ vectors/

A vector belongs to the passage of the same id; where the files have no ids, to the passage at the same place.
psgs_w100.tsv holds 21,015,324 passages and wiki_dpr 21,015,300 vectors, so that the two are always held against
each other first, ids and some of the texts, and what does not fit is said before anything is written. The files
are read as streams, a thousand rows at a time.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float, Float32, Int64

from rag.errors import UserError
from rag.index.corpus_files import check_shards
from rag.index.embed import Encode
from rag.index.passages import PassageStore

COLUMN = "embeddings"
FORMS = f".parquet with a column {COLUMN!r}, .npy with an array (vectors, dimensions), or a folder of either"
SAMPLED = 64  # passages whose text is compared, and that are encoded again where the encoder is at hand
LEAST_COSINE = 0.99  # DPR's own vectors, made again, are at .998: other lengths of padding, other precision
_ROWS = 1024


@dataclass(frozen=True)
class _Group:
    """Rows that are read from one place: a Parquet row group, or a whole .npy file."""

    file: Path
    number: int
    rows: int


class ReadyVectors:
    """The vectors of some files in their order: M of them, of `dim` dimensions."""

    def __init__(self, path: Path, groups: list[_Group], dim: int, columns: set[str]):
        self.path = path
        self.dim = dim
        self.columns = columns  # what is known of each vector's passage: id, title, text
        self._groups = groups
        self._starts = np.cumsum([0] + [group.rows for group in groups]).tolist()
        self._file: tuple[Path, Any] | None = None
        self._stream: Iterator[np.ndarray] = iter(())
        self._block = np.empty((0, dim), np.float32)  # rows that were read, from row _first on
        self._first = 0

    @classmethod
    def find(cls, locations: Path | str | Sequence[Path | str]) -> "ReadyVectors":
        """Open the first of several places that holds vectors, or the only one; UserError as from `open`."""
        given = [locations] if isinstance(locations, Path | str) else list(locations)
        for location in given[:-1]:
            if _holds_vectors(Path(location)):
                return cls.open(location)
        if len(given) > 1 and not Path(given[-1]).exists():
            raise UserError(
                f"no vectors are in {' nor in '.join(map(str, dict.fromkeys(given)))}: give corpus.vectors=FILES "
                f"({FORMS}), or have the passages embedded with corpus.vectors=null"
            )
        return cls.open(given[-1])

    @classmethod
    def open(cls, path: Path | str) -> "ReadyVectors":
        """Look at what the files hold; raises UserError if they are none of FORMS, are damaged or disagree."""
        path = Path(path)
        if not path.exists():
            raise UserError(f"{path} does not exist: give the path of vectors ({FORMS})")
        files = [path] if path.is_file() else sorted(path.glob("*.parquet")) or sorted(path.glob("*.npy"))
        if not files or files[0].suffix not in (".parquet", ".npy"):
            raise UserError(f"{path} holds no vectors that can be read: they are {FORMS}")
        check_shards(path, files)
        groups: list[_Group] = []
        dims: dict[int, Path] = {}
        columns = {"id", "title", "text"}
        for file in files:
            if file.suffix == ".npy":
                array = _map_npy(file)
                groups.append(_Group(file, 0, len(array)))
                dim, names = array.shape[1], set()
            else:
                parquet = _open_parquet(file)
                counts = [
                    parquet.metadata.row_group(n).num_rows for n in range(parquet.metadata.num_row_groups)
                ]
                groups += [_Group(file, n, count) for n, count in enumerate(counts) if count]
                names = set(parquet.schema_arrow.names)
                dim = next(_parquet_vectors(parquet, file, 0, 1)).shape[1] if sum(counts) else None
            columns &= names
            if dim is not None:
                dims.setdefault(dim, file)
        if len(dims) != 1:
            dims_of_files = (
                ", ".join(f"{dim} in {file.name}" for dim, file in dims.items()) or "no rows at all"
            )
            raise UserError(
                f"{path} holds vectors of different dimensions ({dims_of_files}): keep those of one encoder"
            )
        return cls(path, groups, next(iter(dims)), columns)

    def __len__(self) -> int:
        return self._starts[-1]

    # -- reading ------------------------------------------------------------------------------

    def read(self, start: int, vectors: Float32[np.ndarray, "rows D"]) -> None:
        """Put the vectors from row `start` on into `vectors`. Quick where the calls go forward."""
        done = 0
        while done < len(vectors):
            at = start + done - self._first
            if not 0 <= at < len(self._block):
                self._advance(start + done)
                continue
            part = self._block[at : at + len(vectors) - done]
            vectors[done : done + len(part)] = part
            done += len(part)

    def _advance(self, row: int) -> None:
        """Read the block that holds `row`: the next ones of its group, or from that group's beginning."""
        group = bisect_right(self._starts, row) - 1
        open_one = bisect_right(self._starts, self._first) - 1
        if group != open_one or row < self._first or not len(self._block):
            self._first = self._starts[group]
            self._block = self._block[:0]
            self._stream = self._blocks(self._groups[group])
        while row >= self._first + len(self._block):
            self._first += len(self._block)
            self._block = next(self._stream)

    def _blocks(self, group: _Group) -> Iterator[np.ndarray]:
        if group.file.suffix == ".npy":
            array = _map_npy(group.file)
            return (array[first : first + _ROWS] for first in range(0, len(array), _ROWS))
        return _parquet_vectors(self._opened(group.file), group.file, group.number, _ROWS)

    def _opened(self, file: Path) -> Any:
        if self._file is None or self._file[0] != file:
            self._file = file, _open_parquet(file)
        return self._file[1]

    def ids(self) -> Iterator[list[str]]:
        """The passages' ids, some thousand at a time."""
        for group in self._groups:
            batches = self._opened(group.file).iter_batches(16_384, row_groups=[group.number], columns=["id"])
            for batch in batches:
                yield [str(id) for id in batch.column(0).to_pylist()]

    def sample(self) -> list[int]:
        """Rows that are cheap to read, from all over the files: the first ones of evenly spread groups."""
        if len(self._groups) == 1 and self._groups[0].file.suffix == ".npy":
            return np.unique(np.linspace(0, len(self) - 1, SAMPLED).astype(int)).tolist()
        chosen = np.unique(np.linspace(0, len(self._groups) - 1, SAMPLED // 4).astype(int))
        each = -(-SAMPLED // len(chosen))
        return [
            self._starts[group] + row
            for group in chosen
            for row in range(min(each, self._groups[group].rows))
        ]

    def texts(self, rows: list[int]) -> list[str]:
        """The texts beside the vectors of `rows`, which `sample` gave."""
        text_of: dict[int, list[str]] = {}
        for row in rows:
            number = bisect_right(self._starts, row) - 1
            if number not in text_of:
                group = self._groups[number]
                parquet = self._opened(group.file)
                batches = parquet.iter_batches(SAMPLED, row_groups=[group.number], columns=["text"])
                text_of[number] = next(batches).column(0).to_pylist()
        return [
            text_of[number][row - self._starts[number]]
            for row in rows
            for number in [bisect_right(self._starts, row) - 1]
        ]

    # -- whose they are -----------------------------------------------------------------------

    def of(self, store: PassageStore) -> "MatchedVectors":
        """Find the passage of every vector.

        Raises UserError if there are no ids and another number of vectors than of passages and more of the
        former, if the vectors are in another order than the passages, or if they were made of other texts.
        """
        matched = self._by_id(store) if "id" in self.columns else self._by_place(store)
        if "text" in self.columns:
            rows = [
                (row, passage_row) for row in self.sample() if (passage_row := matched.passage_of(row)) >= 0
            ]
            texts = self.texts([row for row, _ in rows])
            other = [
                passage_row
                for (_, passage_row), text in zip(rows, texts, strict=True)
                if text.split() != store[passage_row].text.split()
            ]
            if len(other) * 20 > len(rows):
                raise UserError(
                    f"{self.path} holds vectors of other passages than the corpus: {len(other)} of {len(rows)} "
                    f"texts that were compared differ, that of id {store[other[0]].id!r} first; give the passages "
                    f"they were made of, as in corpus.path={self.path}"
                )
        return matched

    def _by_place(self, store: PassageStore) -> "MatchedVectors":
        if len(self) > len(store):
            raise UserError(
                f"{self.path} holds {len(self):,} vectors for {len(store):,} passages and no ids to tell which are "
                "too many: give the passages that they were made of"
            )
        return MatchedVectors(self, store, np.array([[0, 0, len(self)]]), 0)

    def _by_id(self, store: PassageStore) -> "MatchedVectors":
        runs: list[list[int]] = []
        strangers = 0
        row = position = 0  # the passage and the vector that are due
        for ids in self.ids():
            done, window = 0, 64
            while done < len(ids):
                wanted = ids[done : done + window]
                same = _equal_at_first(wanted, store.ids_from(row, len(wanted)))
                if same:
                    if runs and runs[-1][0] + runs[-1][2] == row and runs[-1][1] + runs[-1][2] == position:
                        runs[-1][2] += same
                    else:
                        runs.append([row, position, same])
                    row, position, done = row + same, position + same, done + same
                window = window * 4 if same == len(wanted) else 64
                while same < len(wanted) and done < len(ids):
                    try:
                        passage_row = store.row_of(ids[done])
                    except KeyError:
                        strangers, position, done = strangers + 1, position + 1, done + 1
                        continue
                    if passage_row < row:
                        raise UserError(
                            f"{self.path} holds the vector of passage {ids[done]!r} twice, or in another order than "
                            f"the corpus: give the passages in the order of the vectors, as in corpus.path={self.path}"
                        )
                    row = passage_row
                    break
        return MatchedVectors(self, store, np.array(runs or [[0, 0, 0]]), strangers)


def _equal_at_first(left: list[str], right: list[str]) -> int:
    if left == right:
        return len(left)
    pairs = enumerate(zip(left, right, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(left), len(right)))


class MatchedVectors:
    """Vectors and the rows of the passages that they belong to, in runs of neighbours.

    strangers: vectors of no passage of the corpus, which are left out. `missing` passages have no vector.
    """

    def __init__(
        self, source: ReadyVectors, store: PassageStore, runs: Int64[np.ndarray, "runs 3"], strangers: int
    ):
        self.source = source
        self.store = store
        self.dim = source.dim
        self.origin = f"taken from {source.path}"
        self.strangers = strangers
        self._rows, self._positions, self._lengths = runs.T
        self.missing = len(store) - int(self._lengths.sum())

    def passage_of(self, position: int) -> int:
        """The row of the passage that a vector belongs to; −1 if there is none."""
        run = int(np.searchsorted(self._positions, position, side="right")) - 1
        offset = position - int(self._positions[run])
        return int(self._rows[run]) + offset if run >= 0 and offset < self._lengths[run] else -1

    def fill(self, start: int, vectors: Float32[np.ndarray, "rows D"]) -> Bool[np.ndarray, " rows"]:
        have = np.zeros(len(vectors), bool)
        run = max(0, int(np.searchsorted(self._rows, start, side="right")) - 1)
        while run < len(self._rows) and self._rows[run] < start + len(vectors):
            first = max(start, int(self._rows[run]))
            last = min(start + len(vectors), int(self._rows[run] + self._lengths[run]))
            if first < last:
                position = int(self._positions[run]) + first - int(self._rows[run])
                self.source.read(position, vectors[first - start : last - start])
                have[first - start : last - start] = True
            run += 1
        return have

    def describe_missing(self) -> str:
        """Which passages have no vector: "24 have none: rows 21,015,301 to 21,015,324 (ids '…' to '…')"."""
        ends = np.append(0, self._rows + self._lengths)
        gaps = [
            (int(end), int(begin) - 1)
            for end, begin in zip(ends, np.append(self._rows, len(self.store)), strict=True)
            if begin > end
        ]
        shown = []
        for first, last in gaps[:3]:
            ids = [self.store[row].id for row in (first, last)]
            shown.append(
                f"row {first + 1:,} (id {ids[0]!r})"
                if first == last
                else f"rows {first + 1:,} to {last + 1:,} (ids {ids[0]!r} to {ids[1]!r})"
            )
        return f"{self.missing:,} have none: {', '.join(shown)}{', …' if len(gaps) > 3 else ''}"

    def check_encoder(self, encode: Encode, name: str) -> None:
        """Encode some of the passages again; UserError unless the vectors are this encoder's."""
        sampled = self.source.sample()
        rows = [(row, passage_row) for row in sampled if (passage_row := self.passage_of(row)) >= 0]
        if not rows:
            return
        ours = np.asarray(encode([self.store[passage_row] for _, passage_row in rows]), np.float32)
        theirs = np.empty((len(rows), self.dim), np.float32)
        for number, (row, _) in enumerate(rows):
            self.source.read(row, theirs[number : number + 1])
        again = "give passage_encoder=… the encoder that made them"
        if ours.shape != theirs.shape:
            raise UserError(
                f"{self.source.path} holds vectors of {self.dim} dimensions and {name} makes {ours.shape[1]}: {again}"
            )
        cosine = float(np.median(_cosines(ours, theirs)))
        if not cosine >= LEAST_COSINE:
            raise UserError(
                f"{self.source.path} holds other vectors than {name} makes: of {len(rows)} passages encoded again, "
                f"old and new have a median cosine of {cosine:.3f}, not of {LEAST_COSINE} or more: {again}"
            )
        self.origin += f"; {len(rows)} passages encoded again by {name}: median cosine {cosine:.4f}"


def _cosines(a: Float32[np.ndarray, "N D"], b: Float32[np.ndarray, "N D"]) -> Float[np.ndarray, " N"]:
    return (a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-12)


# ---------------------------------------------------------------------------------- files


def _holds_vectors(path: Path) -> bool:
    """Whether a place has .npy files, or Parquet files with a column of vectors (a corpus may have none)."""
    files = [path] if path.is_file() else sorted(path.glob("*.parquet")) or sorted(path.glob("*.npy"))
    if not files or files[0].suffix not in (".parquet", ".npy"):
        return False
    try:
        return files[0].suffix == ".npy" or COLUMN in pq.read_schema(files[0]).names
    except (pa.ArrowInvalid, OSError):
        return True  # for `open` to say what is wrong with it


def _map_npy(file: Path) -> np.ndarray:
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(
            f"{file} is not a .npy file of numbers, or was cut short ({error}): download it again"
        ) from error
    if array.ndim != 2 or array.dtype.kind != "f":
        raise UserError(
            f"{file} holds {array.dtype} of shape {array.shape}: expected floats (vectors, dimensions)"
        )
    return array


def _open_parquet(file: Path) -> Any:
    try:  # read through a small buffer: a row group of a million vectors is three gigabytes
        parquet = pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(
            f"{file} is not a Parquet file, or was cut short ({error}): download it again"
        ) from error
    if COLUMN not in parquet.schema_arrow.names:
        raise UserError(
            f"{file} has no column {COLUMN}, only {', '.join(parquet.schema_arrow.names)}: give files with vectors, or "
            "leave corpus.vectors out and the passages will be embedded"
        )
    return parquet


def _parquet_vectors(parquet: Any, file: Path, group: int, rows: int) -> Iterator[np.ndarray]:
    try:
        for batch in parquet.iter_batches(rows, row_groups=[group], columns=[COLUMN]):
            column = batch.column(0)
            lengths = column.value_lengths().unique().to_pylist()
            if len(lengths) != 1 or not lengths[0]:
                raise UserError(
                    f"{file} holds vectors of different lengths ({', '.join(map(str, lengths))}): download it again"
                )
            flat = column.flatten()
            if not pa.types.is_floating(flat.type) or flat.null_count:
                raise UserError(
                    f"{file}: the column {COLUMN} holds {flat.type} with {flat.null_count} nulls, not floats"
                )
            yield flat.to_numpy(zero_copy_only=False).reshape(-1, lengths[0]).astype(np.float32, copy=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{file} is damaged ({error}): download it again") from error
