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
machine share one copy; nothing is pickled. `Index.build` takes all steps (rag/index/from_corpus.py);
`prepare`, `embed` and `build` are the steps, so that an index of another type is built from the same vectors.
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, Int64

from rag.errors import UserError
from rag.files import lock_file
from rag.fingerprints import check_hashes, present
from rag.index.manifest import DPR_READING, Manifest
from rag.index.milvus_stores import EnginePassages, EngineTokens
from rag.index.opening import open_files
from rag.index.passages import PassageStore
from rag.index.reading import AS_USUAL, CorpusReading
from rag.index.tokens import TokenStore, tokenizer_fingerprint
from rag.index.tuning import find
from rag.index.vectors import EMBED_AGAIN, UNKNOWN, DecodedVectors, Vectors, have_unit_length

if TYPE_CHECKING:
    from rag.index.embed import PassageEncoder
    from rag.index.faiss_types import IndexType
    from rag.index.milvus_type import MilvusType
    from rag.index.ready_index import ReadyIndex
    from rag.index.ready_vectors import ReadyVectors

log = logging.getLogger(__name__)

BUILD_AGAIN = "delete it and run build_index.py as before, which makes it again from the vectors"


class Index:
    """N passages that can be searched by vector: made by `Index.build`, opened by `Index.open`.

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
        self._tokens: dict[tuple[int, int, str, str], tuple[Any, TokenStore | EngineTokens]] = {}

    @classmethod
    def open(cls, folder: Path | str, uri: str | None = None) -> "Index":
        """Map the files of an index folder; nothing is copied into memory.

        uri: of the engine that searches its vectors, if it is another than the manifest names.

        Raises UserError, saying what was found, what was expected and what to do, if the folder is
        unfinished, was cut short or altered, or does not fit together. Sizes and counts are checked; `verify`
        checks every byte. Where FAISS is not installed, index.faiss stays closed and `search` refuses; the passages,
        tokens and vectors serve exact search.
        """
        files = open_files(folder, uri)
        if files.collection is not None:
            files.collection.check()
        index = files.faiss_index if files.collection is None else files.collection
        return cls(files.folder, files.manifest, files.passages, files.vectors, index)

    @classmethod
    def build(
        cls,
        folder: Path | str,
        corpus: Path | str,
        passage_encoder: "PassageEncoder | str | None" = None,
        index_type: "IndexType | ReadyIndex | MilvusType | str" = "Flat",
        vectors: "ReadyVectors | Path | str | Sequence[Path | str] | None" = None,
        embed_missing: bool = False,
        queries: Float32[np.ndarray, "Q D"] | None = None,
        reading: CorpusReading = AS_USUAL,
        shard_size: int = 50_000,
        batch_size: int = 64,
        overwrite: bool | str = False,
        show_progress: bool = True,
        process_index: int = 0,
        process_count: int = 1,
    ) -> "Index":
        """Make the index of a corpus in `folder` and open it; what `python build_index.py` does.

        Resumes what an interrupted call left, and opens an index that is finished already.

        corpus: a file or folder that `read_passages` reads. passage_encoder: as
            `rag.encoders.open_passage_encoder` returns it; its name alone is enough where all vectors are taken over.
        index_type: an IndexType, a factory string of FAISS, a ReadyIndex, which is a FAISS file made elsewhere, or a
            MilvusType, a collection of an engine.
        vectors: vectors that exist already, as ReadyVectors or the files of them. embed_missing: embed the passages
            that they lack.
        queries: vectors of held-out questions, which the recall is measured with; None: perturbed passages.
        reading: how the corpus is read. shard_size: passages in a file of vectors.
        batch_size: passages encoded at once. overwrite: "changed" replaces an index of another corpus, encoder
            or type, True the very same as well.
        process_index, process_count: where several processes share the embedding (`rag.processes.processes`).

        Raises UserError for a malformed corpus, for an index of another one, encoder or type in `folder` unless
        `overwrite` says so, and where there is neither an encoder nor a vector.
        """
        from rag.index.from_corpus import build_from_corpus

        build_from_corpus(
            folder,
            corpus,
            passage_encoder,
            index_type,
            vectors,
            embed_missing,
            queries,
            reading,
            shard_size,
            batch_size,
            overwrite,
            show_progress,
            process_index,
            process_count,
        )
        return cls.open(folder)

    def update(
        self,
        add: Path | str | None = None,
        remove: Sequence[str] = (),
        passage_encoder: "PassageEncoder | None" = None,
        queries: Float32[np.ndarray, "Q D"] | None = None,
        reading: CorpusReading = AS_USUAL,
        batch_size: int = 64,
        show_progress: bool = True,
    ) -> "Index":
        """Add the passages of the corpus `add`, remove those with the ids `remove`, and open the new edition, which
        takes the old one's folder; what `python build_index.py add=… remove=…` does.

        An id in both is a passage that is replaced. Only new passages are embedded, by `passage_encoder`, which must be
        the index's. This object goes on with the old edition. The other parameters are those of `build`.

        Raises UserError, and leaves the index as it was, for an id that is not there, one that would come twice, a
        malformed corpus, another encoder than the index's, or where nothing would be left.
        """
        from rag.index.update import update

        update(
            self.folder,
            add,
            remove,
            None if passage_encoder is None else passage_encoder.encode,
            None if passage_encoder is None else passage_encoder.describe(),
            queries,
            batch_size,
            show_progress,
            reading,
        )
        return type(self).open(self.folder)

    def __len__(self) -> int:
        return len(self.passages)

    def __reduce__(self):  # another process maps the same files
        return Index.open, (self.folder,)

    @property
    def dim(self) -> int:
        """D, the length of a vector."""
        return self.manifest.dim

    @property
    def collection(self) -> Any:
        """The engine's collection that is searched (rag/index/milvus_collection.py); None where a FAISS file is."""
        return self._index if self.manifest.engine else None

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
                "use the question encoder that belongs to it"
            )
        if not 1 <= k <= len(self):
            raise UserError(
                f"K={k} passages cannot be found in an index of {len(self)} ({self.folder}): lower K"
            )
        if self._index is None:
            raise UserError(
                f"{self.folder} cannot be searched without FAISS: install faiss-cpu, or use retriever=exact, which "
                "searches the vectors with torch"
            )
        scores, rows = find(
            self._index, self.true_vectors, queries, k, refine or self.manifest.search["refine"]
        )
        if (
            rows.max(initial=0) >= len(self) or np.isnan(scores).any()
        ):  # of a file; an engine looks for itself
            raise UserError(f"{self.folder / 'index.faiss'} was altered: {BUILD_AGAIN}")
        return scores, rows

    def vectors(self, rows: Int64[np.ndarray, " *shape"]) -> Float32[np.ndarray, "*shape D"]:
        """The true vectors d(z) of `rows`, whatever the index's compression; zeros where a row is -1."""
        return self.true_vectors.gather(rows)

    def vector_blocks(self, rows: int) -> Iterator[tuple[int, Float32[np.ndarray, "rows D"]]]:
        """All true vectors in order, as (first row, at most `rows` of them), mapped where that is possible."""
        return self.true_vectors.blocks(rows)

    def tokens(
        self, tokenizer: Any, title_separator: str = " / ", prefix: str = "", show_progress: bool = True
    ) -> TokenStore | EngineTokens:
        """The generator's tokens of all passages, `prefix` + title + `title_separator` + text.

        Opened if they were asked for here before, otherwise written. Processes that ask at the same time wait
        for the one that writes.
        """
        key = (id(tokenizer), len(tokenizer), title_separator, prefix)
        if key not in self._tokens and isinstance(self.passages, EnginePassages):
            tokens = EngineTokens(self.passages, tokenizer, title_separator, prefix)
            self._tokens[key] = (tokenizer, tokens)
        elif key not in self._tokens:
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

    def check_encoder(self, passage_encoder: str, at: Path | None = None) -> None:
        """Raise UserError unless the vectors were made by the passage encoder whose weights have this hash. at: the
        folder that it is in, if that is known.

        Of vectors that were taken over from elsewhere the encoder's weights may be unknown: a warning then.
        """
        mine = self.manifest.encoder
        if mine.weights == UNKNOWN:
            log.warning(
                "%s holds vectors of %s whose weights are not known: whether the question encoder belongs to them "
                "could not be checked",
                self.folder,
                mine.name,
            )
        elif mine.weights != passage_encoder:
            command = (
                "build_index.py" if at is None else f"build_index.py passage_encoder={at} index.path=FOLDER"
            )
            raise UserError(
                f"{self.folder} was embedded by {mine.name} (weights {mine.weights}), but the question encoder belongs "
                f"to a passage encoder of weights {passage_encoder}: give index.path of an index of that encoder, or "
                f"build one with {command}"
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
        embedded = mine.reading or DPR_READING
        if embedded != reading:
            key = next(each for each in reading if embedded.get(each) != reading[each])
            raise UserError(
                f"{self.folder} was embedded by {mine.name} with {key}={embedded.get(key)!r}, but the question encoder "
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
        """Read every byte, those of an engine's vectors too. Raises UserError at the first file that is not what was
        written, with what to do."""

        def advice(name: str) -> str:
            if name.startswith("vectors/") and name.endswith(".npy"):
                return EMBED_AGAIN
            return BUILD_AGAIN if name == "index.faiss" else "build the index again with overwrite=true"

        files = present(self.folder, self.manifest.files, self.manifest.engine)
        check_hashes(self.folder, files, advice, anew=True)
        if self.collection is not None:
            self.collection.verify(self.manifest.files, self.manifest.shard_size)
        self.passages.verify()
        if isinstance(self.true_vectors, Vectors):
            self.true_vectors.verify()
        for folder in sorted(self.folder.glob("tokens-*")):
            TokenStore.open(folder).verify()
