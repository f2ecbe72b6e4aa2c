"""Section 4.5: retrievers that are not trained. BM25, TF-IDF with cosine similarity, Jaccard similarity of
token sets.

The paper replaces its retriever by BM25 and takes BM25's scores as the logits of p(z|x). Each class here has
the same four methods: `build` from a passage store, `search`, `save`, `open`. A passage is scored as "title
text". All scores are those of the libraries that compute them (bm25s, scikit-learn); a passage that shares no
term with the question is not found.

B is the number of questions, N of passages, V of terms.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import bm25s
import numpy as np
import scipy.sparse as sp
import Stemmer
from jaxtyping import Float32, Int64
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

from rag.errors import UserError
from rag.files import read_json, write_aside, write_json
from rag.passages import PassageStore
from rag.progress import progress_bar

TOKEN = r"(?u)\b\w\w+\b"  # words of two letters or more, in lower case
_FORMAT = 1


def _texts(store: PassageStore) -> Iterator[str]:
    with progress_bar("counting the words of passages", len(store), "passages") as advance:
        for number, passage in enumerate(store, start=1):
            yield f"{passage.title} {passage.text}"
            if number % 1000 == 0:  # a bar moved millions of times would take minutes
                advance(1000)
        advance(len(store) % 1000)


def _write_params(folder: Path, params: dict[str, Any]) -> None:
    write_json(folder / "params.json", {"format": _FORMAT} | params)


def _read_params(folder: Path, kind: str) -> dict[str, Any]:
    if not (folder / "params.json").is_file():
        raise UserError(f"{folder} holds no {kind} (params.json is missing): build and save it again")
    params = read_json(folder / "params.json")
    if (params.get("format"), params.get("kind")) != (_FORMAT, kind):
        raise UserError(
            f"{folder} holds {params.get('kind')} of format {params.get('format')}, not {kind} of format "
            f"{_FORMAT}"
        )
    return params


class _TermMatrix:
    """Similarities as the product of a question matrix (B, V) and a term matrix (V, N), both sparse."""

    questions_at_once = 32

    def __init__(self, terms: Any):
        self.terms = (
            terms  # scipy.sparse.csr_array: of each term, the passages that have it and its weight there
        )

    @property
    def passages(self) -> int:
        """N, the number of passages."""
        return int(self.terms.shape[1])

    @property
    def settings(self) -> dict[str, Any]:
        """What decides its scores beside the passages, as plain containers."""
        raise NotImplementedError

    def _similar(self, questions: list[str]) -> Any:
        """(B, N), sparse: a score wherever a question and a passage share a term."""
        raise NotImplementedError

    def search(
        self, questions: list[str], k: int
    ) -> tuple[Float32[np.ndarray, "B k"], Int64[np.ndarray, "B k"]]:
        """Scores and rows of the `k` best passages of each question; -inf and -1 where fewer share a term
        with it. Raises UserError if there are fewer than k passages."""
        if not 1 <= k <= self.passages:
            raise UserError(f"K={k} passages cannot be found among {self.passages}: lower K")
        scores = np.full((len(questions), k), -np.inf, np.float32)
        rows = np.full((len(questions), k), -1, np.int64)
        for start in range(0, len(questions), self.questions_at_once):
            similar = self._similar(questions[start : start + self.questions_at_once])
            for i, (begin, end) in enumerate(
                zip(similar.indptr[:-1], similar.indptr[1:], strict=True), start
            ):
                values, places = similar.data[begin:end], similar.indices[begin:end]
                if len(values) > k:
                    best = np.argpartition(-values, k - 1)[:k]
                    values, places = values[best], places[best]
                order = np.argsort(-values, kind="stable")
                scores[i, : len(order)] = values[order]
                rows[i, : len(order)] = places[order]
        return scores, rows


class BM25(_TermMatrix):
    """BM25 by bm25s, in Lucene's form: Σ_t idf(t) · tf / (tf + k1·(1 − b + b·|z| / mean |z|)).

    Building holds the passages' token numbers in memory, about half a kilobyte a passage.
    """

    def __init__(self, scorer: bm25s.BM25, stop_words: str | None, stemmer: str | None):
        # bm25s has every term's score in every passage ready; a product of sparse matrices adds
        # them up for many questions at once, tens of times faster than one question after the other
        parts = scorer.scores
        shape = (len(parts["indptr"]) - 1, parts["num_docs"])
        super().__init__(sp.csr_array((parts["data"], parts["indices"], parts["indptr"]), shape=shape))
        self.scorer = scorer
        self.stop_words = stop_words
        self.stemmer = stemmer

    @classmethod
    def build(
        cls,
        store: PassageStore,
        k1: float = 0.9,
        b: float = 0.4,
        stop_words: str | None = "english",
        stemmer: str | None = None,
    ) -> Self:
        """k1, b: as in Anserini. stop_words: a language that bm25s has a list for, or None. stemmer: a
        language of the Snowball stemmers, such as "english", or None."""
        scorer = bm25s.BM25(k1=k1, b=b, method="lucene", backend="numpy")
        scorer.index(_tokenize(_texts(store), stop_words, stemmer, return_ids=True), show_progress=False)
        return cls(scorer, stop_words, stemmer)

    @property
    def settings(self) -> dict[str, Any]:
        words = {"stop_words": self.stop_words, "stemmer": self.stemmer}
        return {"kind": "BM25", "k1": self.scorer.k1, "b": self.scorer.b, **words}

    def _similar(self, questions: list[str]) -> Any:
        tokens = _tokenize(questions, self.stop_words, self.stemmer, return_ids=False)
        # the last number may be bm25s's empty token, which no passage has
        ids = [[i for i in self.scorer.get_tokens_ids(words) if i < self.terms.shape[0]] for words in tokens]
        ends = np.cumsum([0] + [len(row) for row in ids])
        terms = np.fromiter((i for row in ids for i in row), np.int64, ends[-1])
        counts = sp.csr_array(
            (np.ones(len(terms), np.float32), terms, ends), shape=(len(ids), self.terms.shape[0])
        )
        return counts @ self.terms

    def save(self, folder: Path | str) -> None:
        """Write into `folder`, which appears when it is complete; arrays as .npy, the rest as JSON."""
        with write_aside(folder) as aside:
            self.scorer.save(aside, show_progress=False, allow_pickle=False)
            _write_params(aside, {"kind": "BM25", "stop_words": self.stop_words, "stemmer": self.stemmer})

    @classmethod
    def open(cls, folder: Path | str) -> Self:
        """Map what `save` wrote. Raises UserError if it is missing or damaged."""
        folder = Path(folder)
        params = _read_params(folder, "BM25")
        try:
            scorer = bm25s.BM25.load(folder, mmap=True, allow_pickle=False)
            return cls(scorer, params["stop_words"], params["stemmer"])
        except (OSError, ValueError, EOFError, KeyError) as error:
            raise UserError(f"{folder} is damaged ({error}): build and save it again") from error


def _tokenize(texts: Iterable[str], stop_words: str | None, stemmer: str | None, return_ids: bool) -> Any:
    return bm25s.tokenize(
        texts,  # type: ignore[arg-type]  # it only iterates
        token_pattern=TOKEN,
        stopwords=stop_words,  # type: ignore[arg-type]
        stemmer=Stemmer.Stemmer(stemmer) if stemmer else None,  # type: ignore[arg-type]
        return_ids=return_ids,
        show_progress=False,
    )


class _Counted(_TermMatrix):
    """A term matrix over scikit-learn's vocabulary and counts."""

    def __init__(self, vectorizer: Any, terms: Any):
        super().__init__(terms)
        self.vectorizer = vectorizer

    @property
    def settings(self) -> dict[str, Any]:
        return {"kind": type(self).__name__, "stop_words": self.vectorizer.stop_words}

    @classmethod
    def _vectorizer(cls, stop_words: str | None, vocabulary: list[str] | None = None) -> Any:
        raise NotImplementedError

    @classmethod
    def build(cls, store: PassageStore, stop_words: str | None = "english") -> Self:
        """stop_words: "english" for scikit-learn's list, or None."""
        vectorizer = cls._vectorizer(stop_words)
        return cls(vectorizer, sp.csr_array(vectorizer.fit_transform(_texts(store)).T))

    def save(self, folder: Path | str) -> None:
        """Write into `folder`, which appears when it is complete; arrays as .npy, the rest as JSON."""
        with write_aside(folder) as aside:
            aside.mkdir()
            arrays = {name: getattr(self.terms, name) for name in ("data", "indices", "indptr")}
            if hasattr(self.vectorizer, "idf_"):
                arrays["idf"] = self.vectorizer.idf_
            for name, array in arrays.items():
                np.save(aside / f"{name}.npy", array, allow_pickle=False)
            params = {
                "kind": type(self).__name__,
                "shape": list(self.terms.shape),
                "stop_words": self.vectorizer.stop_words,
                "vocabulary": self.vectorizer.get_feature_names_out().tolist(),
            }
            _write_params(aside, params)

    @classmethod
    def open(cls, folder: Path | str) -> Self:
        """Map what `save` wrote. Raises UserError if it is missing or damaged."""
        folder = Path(folder)
        params = _read_params(folder, cls.__name__)
        try:
            vectorizer = cls._vectorizer(params["stop_words"], params["vocabulary"])
            if (folder / "idf.npy").exists():
                vectorizer.idf_ = np.load(folder / "idf.npy", allow_pickle=False)
            arrays = [
                np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
                for name in ("data", "indices", "indptr")
            ]
            return cls(vectorizer, sp.csr_array(tuple(arrays), shape=tuple(params["shape"])))
        except (OSError, ValueError, EOFError, KeyError) as error:
            raise UserError(f"{folder} is damaged ({error}): build and save it again") from error


class TfIdf(_Counted):
    """Cosine similarity of TF-IDF vectors by scikit-learn (smoothed idf, rows of unit length)."""

    @classmethod
    def _vectorizer(cls, stop_words: str | None, vocabulary: list[str] | None = None) -> Any:
        kinds: dict[str, Any] = {"dtype": np.float32}
        return TfidfVectorizer(token_pattern=TOKEN, stop_words=stop_words, vocabulary=vocabulary, **kinds)

    def _similar(self, questions: list[str]) -> Any:
        return sp.csr_array(self.vectorizer.transform(questions)) @ self.terms


class Jaccard(_Counted):
    """Jaccard similarity of token sets: |x ∩ z| / |x ∪ z|; a question's unknown words count in the union."""

    def __init__(self, vectorizer: Any, terms: Any):
        super().__init__(vectorizer, terms)
        self._sizes = np.bincount(terms.indices, minlength=self.passages)  # tokens in each passage's set
        self._analyze = vectorizer.build_analyzer()

    @classmethod
    def _vectorizer(cls, stop_words: str | None, vocabulary: list[str] | None = None) -> Any:
        kinds: dict[str, Any] = {"dtype": np.float32}
        return CountVectorizer(
            token_pattern=TOKEN, stop_words=stop_words, vocabulary=vocabulary, binary=True, **kinds
        )

    def _similar(self, questions: list[str]) -> Any:
        shared: Any = sp.csr_array(self.vectorizer.transform(questions)) @ self.terms
        sizes = np.array([len(set(self._analyze(question))) for question in questions])
        unions = np.repeat(sizes, np.diff(shared.indptr)) + self._sizes[shared.indices] - shared.data
        shared.data = (shared.data / unions).astype(np.float32)
        return shared
