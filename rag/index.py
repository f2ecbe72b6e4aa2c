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

import fcntl
import hashlib
import json
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int64

from rag.errors import UserError
from rag.files import hash_file, read_json, write_aside, write_json
from rag.passages import PassageStore, TokenStore, tokenizer_fingerprint
from rag.progress import progress_bar
from rag.vectors import EncoderInfo, Vectors, best, exact_search, lock_folder, open_vectors, shard_file

FORMAT = 1
RECALL_AT = (1, 5, 20, 50, 100)
TUNED_AT = (5, 20, 50)  # the search parameters are chosen by the worst recall at these K
POINTS_PER_CENTROID = (
    39  # fewer training vectors than this for each centroid, and k-means is not to be trusted
)


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

    search: the parameters in force (nprobe, ef_search, refine). recall: "1" … "100" → the share of the K best
    passages by exact search that this index finds, over the queries that `recall_queries` describes.
    ms_per_query: one query at a time, K = 50, with `threads` threads. seconds: of each step of `build`.
    files: name → bytes and SHA-256.
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


@dataclass(frozen=True)
class IndexType:
    """A type of FAISS index, by FAISS's own factory string; what is None is chosen from the corpus.

    factory: as in `faiss.index_factory`; "{nlist}" stands for the number of cells, "{m}" for the bytes that a
        product quantiser keeps of a vector: "Flat", "HNSW32", "SQ8", "SQfp16", "IVF{nlist},SQ8",
        "IVF{nlist},PQ{m}", "HNSW128,SQ8", "IVF{nlist},RaBitQ".
    nlist: cells of an IVF index; None: the largest power of two up to 4·√N that leaves 39 vectors for each.
    train_sample: vectors to train on; None: 39 for each cell, at least 65,536 where there are so many.
    nprobe, ef_search: how many cells or candidates a search looks at; None: the fewest that reach
        `target_recall`.
    refine: search refine·K candidates and re-rank them by their true vectors; None: 1 if the index keeps
        whole vectors, otherwise the least of 1, 2, 4, 8, 16 that reaches `target_recall`.
    target_recall: the least recall against exact search at K = 5, 20 and 50 that will do.
    """

    factory: str = "Flat"
    nlist: int | None = None
    train_sample: int | None = None
    nprobe: int | None = None
    ef_construction: int = 200
    ef_search: int | None = None
    refine: int | None = None
    target_recall: float = 0.99


# ---------------------------------------------------------------------------------- building


def build(
    folder: Path | str,
    kind: IndexType | str = "Flat",
    queries: Float32[np.ndarray, "Q D"] | None = None,
    recall_queries: int = 200,
    seed: int = 0,
    show_progress: bool = True,
) -> "Index":
    """Make index.faiss from the vectors that `embed` wrote, measure its recall, write the manifest and open it.

    kind: an IndexType, or a factory string for one whose parameters are all chosen from the corpus.
    queries: vectors of held-out questions to measure recall and to choose search parameters with; the first
        `recall_queries` are used. None: vectors of that many sampled passages, each moved by Gaussian noise of
        half its own length (the manifest says which).

    An index that is already in the folder stays until the new one is complete. Raises UserError if vectors
    are missing, if the type cannot work for so many passages of so many dimensions, if another build is at
    work in the folder, or if it cannot be written.
    """
    folder = Path(folder)
    kind = IndexType(kind) if isinstance(kind, str) else kind
    with lock_folder(folder):
        _remove_leftovers(folder)
        store = PassageStore.open(folder / "passages")
        plan, vectors = open_vectors(folder, store)
        seconds: dict[str, float] = {}
        factory, index = _prepare(kind, len(vectors), vectors.dim)

        with _timed(seconds, "train"):
            if not index.is_trained:
                index.train(_training_sample(kind, index, vectors, seed))
        with (
            _timed(seconds, "add"),
            progress_bar("building the index", len(vectors), "vectors", show=show_progress) as bar,
        ):
            _reserve(index, len(vectors))
            for _, block in vectors.blocks():
                index.add(block)
                bar(len(block))

        _finish(folder, store, plan, vectors, kind, factory, index, queries, recall_queries, seed, seconds)
    return Index.open(folder)


def _finish(
    folder: Path,
    store: PassageStore,
    plan: dict[str, Any],
    vectors: Vectors,
    kind: IndexType,
    factory: str,
    index: Any,
    queries: Float32[np.ndarray, "Q D"] | None,
    recall_queries: int,
    seed: int,
    seconds: dict[str, float],
) -> None:
    """Measure an index that holds all vectors, choose its search parameters, write it and its manifest."""
    with _timed(seconds, "measure"):
        if queries is None:
            described = "vectors of {n} sampled passages, each moved by Gaussian noise of half its length"
            queries = _perturbed(vectors, recall_queries, seed)
        else:
            described = "{n} held-out questions"
            queries = np.ascontiguousarray(queries[:recall_queries], np.float32)
        if queries.ndim != 2 or queries.shape[1] != vectors.dim or not len(queries):
            raise UserError(
                f"queries of shape {queries.shape} cannot measure an index of {vectors.dim} dimensions: "
                "embed them with the question encoder that belongs to the passages' encoder"
            )
        trial = _Trial(index, vectors, queries)
        search = _tune(kind, trial)
        recall = {str(k): round(trial.recall(k, search), 4) for k in RECALL_AT if k <= len(vectors)}
        ms_per_query = round(trial.milliseconds(search), 3)

    with _timed(seconds, "write"), write_aside(folder / "index.faiss") as aside:
        _write_faiss(index, aside)
        names = ["passages/passages.arrow", "passages/store.json"]
        names += [f"vectors/{shard_file(Path(), n)}" for n in range(-(-len(store) // vectors.shard_size))]
        files = {name: _describe(folder / name) for name in names} | {"index.faiss": _describe(aside)}
    Manifest(
        encoder=EncoderInfo(**plan["encoder"]),
        corpus=CorpusInfo(str((store.source or {}).get("path", "")), store.sha256, len(store)),
        dim=vectors.dim,
        shard_size=vectors.shard_size,
        factory=factory,
        metric="inner product",
        search=search,
        recall=recall,
        recall_queries=described.format(n=len(queries)),
        ms_per_query=ms_per_query,
        threads=faiss.omp_get_max_threads(),
        seconds={name: round(value, 3) for name, value in seconds.items()},
        versions={
            "python": platform.python_version(),
            "faiss": faiss.__version__,
            "numpy": np.__version__,
            "pyarrow": pa.__version__,
        },
        files=files,
    ).write(folder / "manifest.json")


def _reserve(index: Any, passages: int) -> None:
    """Take the memory for all codes at once: growing by doubling would need twice the index at its peak."""
    index = faiss.downcast_index(index)
    store: Any = faiss.downcast_index(index.storage) if hasattr(index, "storage") else index
    if hasattr(store, "codes"):
        store.codes.resize(passages * store.code_size)
        store.codes.resize(0)


def _remove_leftovers(folder: Path) -> None:
    """Files that builds which were killed left half-written; nobody else is writing while the lock is
    held."""
    for pattern in ("vectors/.*.partial", ".index.faiss.*.partial", ".manifest.json.*.partial"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


def _describe(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": hash_file(path)}


def _write_faiss(index: Any, path: Path) -> None:
    try:
        faiss.write_index(index, str(path))
    except RuntimeError as error:
        raise UserError(
            f"{path.parent / 'index.faiss'} cannot be written (FAISS: {str(error).splitlines()[0]}): "
            "choose a place that can be written and has room"
        ) from error


def filled_factory(kind: IndexType, passages: int, dim: int) -> str:
    """The factory string with its numbers filled in, for so many passages of so many dimensions."""
    largest = passages // POINTS_PER_CENTROID
    nlist = kind.nlist or 1 << max(0, int(np.log2(max(1, min(4 * passages**0.5, largest)))))
    bytes_kept = next((m for m in range(max(1, dim // 8), 0, -1) if dim % m == 0), 1)
    return kind.factory.replace("{nlist}", str(nlist)).replace("{m}", str(bytes_kept))


def _prepare(kind: IndexType, passages: int, dim: int) -> tuple[str, Any]:
    """The factory string with its numbers filled in, and the empty index; refused if it cannot work."""
    largest = passages // POINTS_PER_CENTROID
    factory = filled_factory(kind, passages, dim)
    try:
        index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].removeprefix("Error: ")
        raise UserError(
            f"FAISS cannot make an index {factory!r} of {dim} dimensions ({reason}): see "
            "faiss.index_factory, or "
            'take factory="Flat"'
        ) from error
    ivf = faiss.try_extract_index_ivf(index)
    if ivf is not None and ivf.nlist > largest:
        can = f"at most {largest} cells" if largest > 1 else "a type without cells"
        raise UserError(
            f"an index of {ivf.nlist:,} cells needs {ivf.nlist * POINTS_PER_CENTROID:,} passages "
            f"({POINTS_PER_CENTROID} for each cell) and there are {passages:,}: take {can}, or Flat or HNSW32"
        )
    quantiser = getattr(faiss.downcast_index(ivf if ivf is not None else index), "pq", None)
    if quantiser is not None and quantiser.ksub * POINTS_PER_CENTROID > passages:
        raise UserError(
            f"a product quantiser needs {quantiser.ksub * POINTS_PER_CENTROID:,} passages to learn its "
            f"{quantiser.ksub} centroids and there are {passages:,}: take SQ8, SQfp16 or Flat"
        )
    hnsw = getattr(faiss.downcast_index(index), "hnsw", None)
    if hnsw is not None:
        hnsw.efConstruction = kind.ef_construction
    return factory, index


def _training_sample(kind: IndexType, index: Any, vectors: Vectors, seed: int) -> Float32[np.ndarray, "S D"]:
    ivf = faiss.try_extract_index_ivf(index)
    wanted = kind.train_sample or max(65_536, POINTS_PER_CENTROID * (ivf.nlist if ivf is not None else 0))
    if wanted >= len(vectors):
        return vectors.gather(np.arange(len(vectors)))
    rows = np.random.default_rng(seed).choice(len(vectors), wanted, replace=False, shuffle=False)
    return vectors.gather(np.sort(rows))


def _perturbed(vectors: Vectors, count: int, seed: int) -> Float32[np.ndarray, "Q D"]:
    random = np.random.default_rng(seed)
    rows = random.choice(len(vectors), min(count, len(vectors)), replace=False)
    sample = vectors.gather(np.sort(rows))
    noise = random.standard_normal(sample.shape, np.float32) / vectors.dim**0.5
    return sample + 0.5 * np.linalg.norm(sample, axis=1, keepdims=True) * noise


class _Trial:
    """An index held against exact search on some queries."""

    def __init__(self, index: Any, vectors: Vectors, queries: Float32[np.ndarray, "Q D"]):
        self.index = index
        self.vectors = vectors
        self.queries = queries
        self.exact, _ = exact_search(vectors, queries, min(max(RECALL_AT), len(vectors)))

    def recall(self, k: int, search: dict[str, int]) -> float:
        """The share of found passages that are as good as the k-th best (equal scores are equally good)."""
        _set(self.index, search)
        _, rows = _search(self.index, self.vectors, self.queries, k, search["refine"])
        found = np.einsum("qd,qkd->qk", self.queries, self.vectors.gather(rows))
        bound = self.exact[:, k - 1 : k]
        good = (found >= bound - 1e-5 * np.maximum(1, np.abs(bound))) & (rows >= 0)
        return float(good.mean())

    def milliseconds(self, search: dict[str, int]) -> float:
        _set(self.index, search)
        k = min(max(TUNED_AT), len(self.vectors))
        start = time.perf_counter()
        for query in self.queries[:50]:
            _search(self.index, self.vectors, query[None], k, search["refine"])
        return (time.perf_counter() - start) / min(50, len(self.queries)) * 1000


def _tune(kind: IndexType, trial: _Trial) -> dict[str, int]:
    """The cheapest search parameters whose recall reaches the target at 5, 20 and 50; else the best there are."""
    index = faiss.downcast_index(trial.index)
    ivf = faiss.try_extract_index_ivf(trial.index)
    cuts = [k for k in TUNED_AT if k <= len(trial.vectors)] or [len(trial.vectors)]
    whole = isinstance(index, faiss.IndexFlat | faiss.IndexHNSWFlat | faiss.IndexIVFFlat)
    refines = [kind.refine] if kind.refine else [1] if whole else [1, 2, 4, 8, 16]

    if ivf is not None:
        effort, given, efforts = "nprobe", kind.nprobe, [1 << n for n in range(3, ivf.nlist.bit_length())]
        efforts = [n for n in efforts if n < ivf.nlist] + [ivf.nlist]
    elif hasattr(index, "hnsw"):
        effort, given, efforts = "ef_search", kind.ef_search, [64, 128, 256, 512, 1024]
    else:
        effort, given, efforts = "", None, [0]
    efforts = [given] if given else efforts

    def parameters(value: int, refine: int) -> dict[str, int]:
        return ({effort: value} if effort else {}) | {"refine": refine}

    def cheapest(candidates: list[dict[str, int]]) -> dict[str, int]:
        measured: list[float] = []
        for candidate in candidates:
            measured.append(min(trial.recall(k, candidate) for k in cuts) if len(candidates) > 1 else 1.0)
            if measured[-1] >= kind.target_recall:
                return candidate
        return candidates[next(i for i, recall in enumerate(measured) if recall >= max(measured) - 0.002)]

    chosen = cheapest([parameters(value, refines[-1]) for value in efforts])
    return cheapest([chosen | {"refine": refine} for refine in refines])


def _set(index: Any, search: dict[str, int]) -> None:
    ivf = faiss.try_extract_index_ivf(index)
    if "nprobe" in search and ivf is not None:
        ivf.nprobe = search["nprobe"]
    hnsw = getattr(faiss.downcast_index(index), "hnsw", None)
    if "ef_search" in search and hnsw is not None:
        hnsw.efSearch = search["ef_search"]


def _search(
    index: Any, vectors: Vectors, queries: Float32[np.ndarray, "B D"], k: int, refine: int
) -> tuple[Float32[np.ndarray, "B k"], Int64[np.ndarray, "B k"]]:
    candidates = min(k * refine, len(vectors))
    scores, rows = index.search(queries, candidates)
    if refine > 1:
        step = max(1, (1 << 26) // (candidates * vectors.dim))  # 256 MB of vectors at a time
        for start in range(0, len(queries), step):
            part = slice(start, start + step)
            scores[part] = np.einsum("bd,bkd->bk", queries[part], vectors.gather(rows[part]))
        scores[rows < 0] = -np.inf
        return best(scores, rows, k)
    scores[rows < 0] = -np.inf
    return scores, rows


# ---------------------------------------------------------------------------------- the finished index


class Index:
    """N passages that can be searched by vector. Make one with `embed` and `build`; open it with
    `Index.open`.

    manifest: what it is and how well it finds. passages: the PassageStore. `len(index)` is N, `dim` is D.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, passages: PassageStore, vectors: Vectors, index: Any
    ):
        self.folder = folder
        self.manifest = manifest
        self.passages = passages
        self._vectors = vectors
        self._index = index
        self._tokens: dict[tuple[int, int, str, str], tuple[Any, TokenStore]] = {}

    @classmethod
    def open(cls, folder: Path | str) -> "Index":
        """Map the files of an index folder; nothing is copied into memory.

        Raises UserError, saying what was found, what was expected and what to do, if the folder is
        unfinished, was cut short or altered, or does not fit together. Sizes and counts are checked; `verify`
        checks every byte.
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
        try:
            index = faiss.read_index(str(folder / "index.faiss"), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            raise UserError(f"{folder / 'index.faiss'} is damaged: {again}") from error
        if (index.ntotal, index.d) != (len(passages), manifest.dim):
            raise UserError(
                f"{folder / 'index.faiss'} holds {index.ntotal:,} vectors of {index.d} dimensions for "
                f"{len(passages):,} passages of {manifest.dim}: {again}"
            )
        if index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise UserError(f"{folder / 'index.faiss'} does not search by inner product: {again}")
        _set(index, manifest.search)
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
        return _search(self._index, self._vectors, queries, k, refine or self.manifest.search["refine"])

    def vectors(self, rows: Int64[np.ndarray, " *shape"]) -> Float32[np.ndarray, "*shape D"]:
        """The true vectors d(z) of `rows`, whatever the index's compression; zeros where a row is -1."""
        return self._vectors.gather(rows)

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
            try:
                lock = open(self.folder / ".lock-tokens", "a")
            except OSError as error:
                raise UserError(
                    f"{self.folder} holds no tokens of this generator's tokenizer and cannot be written "
                    f"({error.strerror}): copy the index to a place that can be written"
                ) from error
            with lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not folder.is_dir():
                    TokenStore.write(self.passages, tokenizer, folder, title_separator, show_progress, prefix)
        tokens = TokenStore.open(folder, tokenizer)
        if tokens.corpus_sha256 != self.passages.sha256:
            raise UserError(
                f"{folder} holds the tokens of another corpus: delete it, and it will be written again"
            )
        return tokens

    def check_encoder(self, passage_encoder: str) -> None:
        """Raise UserError unless the vectors were made by the passage encoder whose weights have this
        hash."""
        mine = self.manifest.encoder
        if mine.weights != passage_encoder:
            raise UserError(
                f"{self.folder} was embedded by {mine.name} (weights {mine.weights}), but the question "
                "encoder belongs "
                f"to a passage encoder of weights {passage_encoder}: give index.path of an index of that "
                "encoder, or "
                "build one with build_index.py"
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
