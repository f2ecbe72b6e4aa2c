"""Section 2.2: the non-parametric memory, from passages to a searchable index.

    corpus ──prepare──▶ passages/ ──embed──▶ vectors/ ──build──▶ index.faiss, manifest.json ──▶ Index.open

p_η(z|x) ∝ exp(d(z)ᵀq(x)): retrieval is maximum inner product search over the vectors d(z) of all N passages,
of D dimensions each. An index is a folder that explains itself:

    passages/             ids, titles and texts (PassageStore)
    tokens-<tokenizer>/   the generator's tokens of "title / text" (TokenStore), one folder a tokenizer
    vectors/              the true vectors d(z), float32, in shards; plan.json says whose they are
    index.faiss           FAISS's index over them, of any type, inner product
    manifest.json         encoder, corpus, counts, parameters, measured recall, sizes; written last

A row is a passage's number in all of them. Everything is opened by mapping files, so that the processes of a
machine share one copy; nothing is pickled. `prepare`, `embed` and `build` are separate steps: an index of
another type is built from the same vectors.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from rag.errors import UserError
from rag.files import hash_file, lock_file, read_json, write_json
from rag.index import lazy_faiss as faiss
from rag.index.passages import PassageStore
from rag.index.tokens import TokenStore, tokenizer_fingerprint
from rag.index.tuning import find, set_search
from rag.index.vectors import (
    UNKNOWN,
    DecodedVectors,
    EncoderInfo,
    Vectors,
    have_unit_length,
)

log = logging.getLogger(__name__)

FORMAT = 1
DECODED = "decoded from index.faiss"
DPR_READING = {"pooling": "cls", "normalize": False, "prompt": ""}  # of indexes that do not say


# ---------------------------------------------------------------------------------- what an index is


@dataclass(frozen=True)
class CorpusInfo:
    """Which passages: the file they were read from, their hash (`PassageStore.sha256`), how many."""

    path: str
    sha256: str
    passages: int


@dataclass(frozen=True)
class Manifest:
    """What is in an index folder, and how good it is.

    metric: what p(z|x) is a softmax of, times the retriever's scale: the "inner product" q(x)ᵀd(z), or the "cosine",
    which is the same of vectors of unit length. search: the parameters in force (nprobe, ef_search, refine). recall:
    "1" … "100" → the share of the K best passages by exact search that this index finds, over the queries that
    `recall_queries` describes.
    ms_per_query: one query at a time, K = 50, with `threads` threads. seconds: of embedding, all processes
    together, and of each step of `build`.
    files: name → bytes and SHA-256. vectors: how the true vectors came here: "encoded", or where they were taken
    from and how that was checked, or DECODED where there are none. type: the IndexType as it was asked for.

    Where there are no true vectors, recall is empty: nobody knows it.
    """

    encoder: EncoderInfo
    corpus: CorpusInfo
    dim: int
    shard_size: int
    factory: str
    metric: str
    search: dict[str, int]
    recall: dict[str, float]
    recall_queries: str
    ms_per_query: float
    threads: int
    seconds: dict[str, float]
    versions: dict[str, str]
    files: dict[str, dict[str, Any]]
    vectors: str = "encoded"
    type: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    def write(self, path: Path) -> None:
        record = asdict(self)
        write_json(path, record | {"checksum": _checksum(record)})

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        """Raises UserError if the file is missing, of another format, or was edited."""
        folder = path.parent
        if not path.is_file():
            raise UserError(
                f"{folder} is not a finished index (manifest.json is missing): run build_index.py with this "
                "index.path, which goes on where an earlier run stopped"
            )
        record = read_json(path)
        again = f"restore it, or run build_index.py with index.path={folder} again"
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            found = record.get("format") if isinstance(record, dict) else type(record).__name__
            raise UserError(f"{path} is of format {found}, not {FORMAT}: {again}")
        if record.pop("checksum", None) != _checksum(record):
            raise UserError(f"{path} was edited since it was written (its checksum does not fit): {again}")
        record["encoder"] = EncoderInfo(**record["encoder"])
        record["corpus"] = CorpusInfo(**record["corpus"])
        return cls(**record)


def _checksum(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]


# ---------------------------------------------------------------------------------- building


# ---------------------------------------------------------------------------------- the finished index


class Index:
    """N passages that can be searched by vector. Make one with `embed` and `build`; open it with
    `Index.open`.

    manifest: what it is and how well it finds. passages: the PassageStore. true_vectors: DecodedVectors where it was
    taken over without any. `len(index)` is N, `dim` is D.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        passages: PassageStore,
        vectors: Vectors | DecodedVectors,
        index: Any,
    ):
        self.folder = folder
        self.manifest = manifest
        self.passages = passages
        self.true_vectors = vectors
        self._index = index
        self._tokens: dict[tuple[int, int, str, str], tuple[Any, TokenStore]] = {}

    @classmethod
    def open(cls, folder: Path | str) -> "Index":
        """Map the files of an index folder; nothing is copied into memory.

        Raises UserError, saying what was found, what was expected and what to do, if the folder is
        unfinished, was cut short or altered, or does not fit together. Sizes and counts are checked; `verify`
        checks every byte. Where FAISS is not installed, index.faiss stays closed and `search` refuses; the passages,
        tokens and vectors serve exact search.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise UserError(
                f"there is no index at {folder}: build one there with build_index.py, or give index.path"
            )
        manifest = Manifest.read(folder / "manifest.json")
        again = f"run build_index.py with index.path={folder} again"
        for name, expected in manifest.files.items():
            file = folder / name
            found = file.stat().st_size if file.is_file() else None
            if found != expected["bytes"]:
                size = (
                    "is missing" if found is None else f"has {found:,} bytes instead of {expected['bytes']:,}"
                )
                raise UserError(f"{file} {size}: it was cut short or replaced; {again}")
        passages = PassageStore.open(folder / "passages")
        if (len(passages), passages.sha256) != (manifest.corpus.passages, manifest.corpus.sha256):
            raise UserError(
                f"{folder} holds {len(passages):,} passages (hash {passages.sha256[:12]}) where its "
                "manifest names "
                f"{manifest.corpus.passages:,} ({manifest.corpus.sha256[:12]}): {again}"
            )
        decoded = manifest.vectors == DECODED
        index = None
        if decoded or faiss.installed():
            index = _open_faiss(folder, manifest, len(passages), again)
        if decoded:
            vectors = DecodedVectors(index)
        else:
            vectors = Vectors(folder / "vectors", len(passages), manifest.dim, manifest.shard_size)
        return cls(folder, manifest, passages, vectors, index)

    def __len__(self) -> int:
        return len(self.passages)

    def __reduce__(self):  # another process maps the same files
        return Index.open, (self.folder,)

    @property
    def dim(self) -> int:
        """D, the length of a vector."""
        return self.manifest.dim

    def search(
        self, queries: Float32[np.ndarray, "B D"], k: int, refine: int | None = None
    ) -> tuple[Float32[np.ndarray, "B k"], Int64[np.ndarray, "B k"]]:
        """Scores and rows of the `k` passages with the largest q(x)ᵀd(z), best first.

        Where the index finds fewer than k, the row is -1 and the score -inf. With refine > 1 (None: the
        manifest's), refine·k candidates are re-ranked by their true vectors and the scores are exact;
        otherwise they are the index's own, exact only if it keeps whole vectors. Raises UserError if k is
        larger than the index, or the queries are of another dimension.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise UserError(
                f"queries of shape {queries.shape} for an index of {self.dim} dimensions ({self.folder}): "
                "take the question encoder that belongs to it"
            )
        if not 1 <= k <= len(self):
            raise UserError(
                f"K={k} passages cannot be found in an index of {len(self)} ({self.folder}): lower K"
            )
        if self._index is None:
            raise UserError(
                f"{self.folder} cannot be searched without FAISS: install faiss-cpu, or take retriever=exact, which "
                "searches the vectors with torch"
            )
        return find(self._index, self.true_vectors, queries, k, refine or self.manifest.search["refine"])

    def vectors(self, rows: Int64[np.ndarray, " *shape"]) -> Float32[np.ndarray, "*shape D"]:
        """The true vectors d(z) of `rows`, whatever the index's compression; zeros where a row is -1."""
        return self.true_vectors.gather(rows)

    def vector_blocks(self, rows: int) -> Iterator[tuple[int, Float32[np.ndarray, "rows D"]]]:
        """All true vectors in order, as (first row, at most `rows` of them), mapped where that is possible."""
        return self.true_vectors.blocks(rows)

    def tokens(
        self, tokenizer: Any, title_separator: str = " / ", prefix: str = "", show_progress: bool = True
    ) -> TokenStore:
        """The generator's tokens of all passages, `prefix` + title + `title_separator` + text.

        Opened if they were asked for here before, otherwise written. Processes that ask at the same time wait
        for the one that writes.
        """
        key = (id(tokenizer), len(tokenizer), title_separator, prefix)
        if key not in self._tokens:
            name = f"tokens-{tokenizer_fingerprint(tokenizer)}"
            if (title_separator, prefix) != (" / ", ""):
                name += "-" + hashlib.sha256(repr((title_separator, prefix)).encode()).hexdigest()[:6]
            folder = self.folder / name
            tokens = self._open_or_write_tokens(folder, tokenizer, title_separator, prefix, show_progress)
            self._tokens[key] = (tokenizer, tokens)  # held, so that its id stays its own
        return self._tokens[key][1]

    def _open_or_write_tokens(
        self, folder: Path, tokenizer: Any, title_separator: str, prefix: str, show_progress: bool
    ) -> TokenStore:
        if not folder.is_dir():
            lock = lock_file(self.folder / ".lock-tokens")
            try:
                lock.acquire()
            except OSError as error:
                raise UserError(
                    f"{self.folder} holds no tokens of this generator's tokenizer and cannot be written "
                    f"({error.strerror}): copy the index to a place that can be written"
                ) from error
            try:
                if not folder.is_dir():
                    TokenStore.write(self.passages, tokenizer, folder, title_separator, show_progress, prefix)
            finally:
                lock.release()
        tokens = TokenStore.open(folder, tokenizer)
        if tokens.corpus_sha256 != self.passages.sha256:
            raise UserError(
                f"{folder} holds the tokens of another corpus: delete it, and it will be written again"
            )
        return tokens

    def check_encoder(self, passage_encoder: str) -> None:
        """Raise UserError unless the vectors were made by the passage encoder whose weights have this hash.

        Of vectors that were taken over from elsewhere the encoder's weights may be unknown: a warning then.
        """
        mine = self.manifest.encoder
        if mine.weights == UNKNOWN:
            log.warning(
                "%s holds vectors of %s whose weights nobody could check: that the question encoder belongs to them "
                "is taken for granted",
                self.folder,
                mine.name,
            )
        elif mine.weights != passage_encoder:
            raise UserError(
                f"{self.folder} was embedded by {mine.name} (weights {mine.weights}), but the question "
                "encoder belongs "
                f"to a passage encoder of weights {passage_encoder}: give index.path of an index of that "
                "encoder, or "
                "build one with build_index.py"
            )

    def check_reading(self, reading: dict[str, Any]) -> None:
        """Raise UserError unless the passages were pooled, normalised and prompted as a question encoder's are.

        Vectors of an encoder that nobody knows say no more than whether they have unit length.
        """
        mine = self.manifest.encoder
        if mine.reading is None and mine.weights == UNKNOWN:
            unit = have_unit_length(self.true_vectors)
            if unit is not None and unit != reading["normalize"]:
                raise UserError(
                    f"{self.folder} holds vectors {'of unit length' if unit else 'that differ in length'}, but the "
                    f"question encoder's {'differ' if unit else 'have unit length'}: one searches by cosine and the "
                    f"other by inner product; give the question encoder that belongs to them, or encoder.normalize="
                    f"{str(unit).lower()} if it was left out"
                )
            return
        found = mine.reading or DPR_READING
        if found != reading:
            key = next(each for each in reading if found.get(each) != reading[each])
            raise UserError(
                f"{self.folder} was embedded by {mine.name} with {key}={found.get(key)!r}, but the question encoder "
                f"reads with {key}={reading[key]!r}: give index.path of an index that was built with the same, or "
                "build one with build_index.py"
            )

    def check_same_encoder(self, other: "Index") -> None:
        """Raise UserError unless the vectors of both indexes are of one passage encoder, as far as is known."""
        mine, theirs = self.manifest.encoder, other.manifest.encoder
        if not mine.may_be(theirs):
            raise UserError(
                f"{self.folder} was embedded by {mine.name} (weights {mine.weights}) and {other.folder} by "
                f"{theirs.name} (weights {theirs.weights}): a question encoder fits one of them; give an index of the "
                "same passage encoder, or build one with build_index.py"
            )

    def verify(self) -> None:
        """Read every file and compare its SHA-256 with the manifest's. Raises UserError at the first that
        differs."""
        for name, expected in self.manifest.files.items():
            if hash_file(self.folder / name) != expected["sha256"]:
                raise UserError(
                    f"{self.folder / name} was altered since the index was built: run build_index.py with "
                    f"index.path={self.folder} again"
                )


def _open_faiss(folder: Path, manifest: Manifest, passages: int, again: str) -> Any:
    """The FAISS index of a folder, mapped, with its search parameters in force."""
    try:
        index = faiss.read_index(str(folder / "index.faiss"), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise UserError(f"{folder / 'index.faiss'} is damaged: {again}") from error
    if (index.ntotal, index.d) != (passages, manifest.dim):
        raise UserError(
            f"{folder / 'index.faiss'} holds {index.ntotal:,} vectors of {index.d} dimensions for "
            f"{passages:,} passages of {manifest.dim}: {again}"
        )
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise UserError(f"{folder / 'index.faiss'} does not search by inner product: {again}")
    set_search(index, manifest.search)
    return index
