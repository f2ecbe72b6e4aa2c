"""Section 4.5: retrievers that are not trained. BM25, TF-IDF with cosine similarity, Jaccard similarity of
token sets.

What a word is, in any language, says rag/words.py. Stop words and stems are those of a language: with "auto", English's
stop words where the passages are English, and none elsewhere.

The paper replaces its retriever by BM25 and takes BM25's scores as the logits of p(z|x). Each class here has
the same four methods: `build` from a passage store, `search`, `save`, `open`. A passage is scored as "title
text". All scores are those of the libraries that compute them (bm25s, scikit-learn); a passage that shares no
term with the question is not found.

B is the number of questions, N of passages, V of terms.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Self

import bm25s
import numpy as np
import scipy.sparse as sp
import Stemmer
from bm25s.stopwords import STOPWORDS_EN
from bm25s.tokenization import _infer_stopwords
from jaxtyping import Float32, Int64

from rag.errors import UserError
from rag.files import read_json, write_aside, write_json
from rag.index.passages import PassageStore
from rag.progress import progress_bar
from rag.words import search_terms

AUTO = "auto"
_FORMAT = 2  # 1: words without marks, and none in scripts without spaces
_LOOKED_AT = 1000  # passages that say which language a corpus is in
_ENGLISH = (
    0.12  # a share of English stop words that only English has: about .35 there, .05 in Dutch or German
)

_TOO_FEW = 200  # words


@dataclass(frozen=True)
class Words:
    """What becomes of a text's words: a language's stop words are dropped, the rest brought to their stems.

    stop_words: a language that bm25s has a list for, or None. stemmer: a language of the Snowball stemmers, or None.
    """

    stop_words: str | None = None
    stemmer: str | None = None

    @classmethod
    def choose(
        cls, store: PassageStore, language: str | None, stop_words: str | None, stemmer: str | None
    ) -> Self:
        """`stop_words` and `stemmer` as given; where they are "auto", those of `language`, as far as there are any.

        language "auto" is English where the passages are, and else none. Raises UserError for a language without a
        list or a stemmer that was asked for by name.
        """
        if language == AUTO and AUTO in (stop_words, stemmer):
            language = "english" if is_english(store) else None
        known = set(Stemmer.algorithms())
        if stop_words == AUTO:
            stop_words = language if language is not None and _has_stop_words(language) else None
        if stemmer == AUTO:
            stemmer = language if language in known else None
        if stop_words is not None and not _has_stop_words(stop_words):
            raise UserError(
                f"there are no stop words for stop_words={stop_words}: give english, german, french, …, auto, or null"
            )
        if stemmer is not None and stemmer not in known:
            raise UserError(
                f"there is no stemmer={stemmer}: give one of {', '.join(sorted(known))}, auto, or null"
            )
        return cls(stop_words, stemmer)

    def analyzer(self, english: frozenset[str] = frozenset(STOPWORDS_EN)) -> "Analyzer":
        """english: the list for English, of which there are several."""
        if self.stop_words is None:
            left_out: frozenset[str] = frozenset()
        elif self.stop_words == "english":
            left_out = english
        else:
            left_out = frozenset(_infer_stopwords(self.stop_words))
        return Analyzer(left_out, self.stemmer)


class Analyzer:
    """A text's terms, as retrieval counts them. A stem is looked for once for each word."""

    def __init__(self, left_out: frozenset[str], stemmer: str | None):
        self._left_out = left_out
        self._stemmer = None if stemmer is None else Stemmer.Stemmer(stemmer)

    def __call__(self, text: str) -> list[str]:
        words = [word for word in search_terms(text) if word not in self._left_out]
        return words if self._stemmer is None else self._stemmer.stemWords(words)


def _has_stop_words(language: str) -> bool:
    try:
        return bool(_infer_stopwords(language))
    except ValueError:
        return False


def is_english(store: PassageStore) -> bool:
    """Whether the first passages are in English, by the share of its stop words among their words.

    So few words that nothing can be said are taken for English if they are written in its letters.
    """
    words = [word for passage in islice(store, _LOOKED_AT) for word in search_terms(passage.text)]
    if len(words) < _TOO_FEW:
        return all(map(str.isascii, words))
    common = frozenset(STOPWORDS_EN)
    return sum(word in common for word in words) >= _ENGLISH * len(words)


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
        raise UserError(f"{folder} holds no {kind} (params.json is missing): rebuild and save it")
    params = read_json(folder / "params.json")
    if (params.get("format"), params.get("kind")) != (_FORMAT, kind):
        raise UserError(
            f"{folder} holds {params.get('kind')} of format {params.get('format')}, not {kind} of format "
            f"{_FORMAT}"
        )
    return params


class _TermMatrix:
    """Similarities as the product of a question matrix (B, V) and a term matrix (V, N), both sparse."""

    kind: ClassVar[str]  # as saved files name it
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

    def analyze(self, text: str) -> list[str]:
        """The terms of a text, in order: those that questions and passages are compared by."""
        raise NotImplementedError

    def passages_with(self, term: str) -> int:
        """How many passages hold a term of `analyze`."""
        number = self._number(term)
        return 0 if number is None else int(self.terms.indptr[number + 1] - self.terms.indptr[number])

    def _number(self, term: str) -> int | None:
        """The term's row of `terms`; None where no passage holds it."""
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
                values, passages = similar.data[begin:end], similar.indices[begin:end]
                if len(values) > k:
                    best = np.argpartition(-values, k - 1)[:k]
                    values, passages = values[best], passages[best]
                order = np.argsort(-values, kind="stable")
                scores[i, : len(order)] = values[order]
                rows[i, : len(order)] = passages[order]
        return scores, rows

    def scores_of(self, questions: list[str], rows: Int64[np.ndarray, "B k"]) -> Float32[np.ndarray, "B k"]:
        """The scores of given passages, 0 where one shares no term with the question or the row is -1."""
        scores = np.zeros(rows.shape, np.float32)
        of_all = np.zeros(self.passages, np.float32)
        for start in range(0, len(questions), self.questions_at_once):
            similar = self._similar(questions[start : start + self.questions_at_once])
            for i, (begin, end) in enumerate(
                zip(similar.indptr[:-1], similar.indptr[1:], strict=True), start
            ):
                passages = similar.indices[begin:end]
                of_all[passages] = similar.data[begin:end]
                scores[i] = np.where(rows[i] < 0, 0, of_all[rows[i]])
                of_all[passages] = 0
        return scores


class BM25(_TermMatrix):
    """BM25 by bm25s, in Lucene's form: Σ_t idf(t) · tf / (tf + k1·(1 − b + b·|z| / mean |z|)).

    Building holds the passages' token numbers in memory, about half a kilobyte a passage.
    """

    kind = "BM25"

    def __init__(self, scorer: bm25s.BM25, words: Words):
        # bm25s has every term's score in every passage ready; a product of sparse matrices adds
        # them up for many questions at once, tens of times faster than one question after the other
        parts = scorer.scores
        shape = (len(parts["indptr"]) - 1, parts["num_docs"])
        super().__init__(sp.csr_array((parts["data"], parts["indices"], parts["indptr"]), shape=shape))
        self.scorer = scorer
        self.words = words
        self._analyze = words.analyzer()

    @classmethod
    def build(
        cls,
        store: PassageStore,
        k1: float = 0.9,
        b: float = 0.4,
        stop_words: str | None = AUTO,
        stemmer: str | None = None,
        language: str | None = AUTO,
    ) -> Self:
        """k1, b: as in Anserini. stop_words, stemmer: a language's, "auto" for `language`'s, or None. language: that
        of the passages, or "auto"."""
        words = Words.choose(store, language, stop_words, stemmer)
        analyze = words.analyzer()
        vocabulary: dict[str, int] = {}
        ids = [
            [vocabulary.setdefault(term, len(vocabulary)) for term in analyze(text)] for text in _texts(store)
        ]
        if not vocabulary:
            vocabulary[""] = 0  # not one term in any passage
        scorer = bm25s.BM25(k1=k1, b=b, method="lucene", backend="numpy")
        scorer.index((ids, vocabulary), show_progress=False)
        return cls(scorer, words)

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "k1": self.scorer.k1,
            "b": self.scorer.b,
            "terms": _FORMAT,
            **asdict(self.words),
        }

    def analyze(self, text: str) -> list[str]:
        return self._analyze(text)

    def _number(self, term: str) -> int | None:
        number = self.scorer.vocab_dict.get(term)
        # the last number may be bm25s's empty token, which no passage has
        return None if number is None or number >= self.terms.shape[0] else int(number)

    def _similar(self, questions: list[str]) -> Any:
        numbers = [[self._number(term) for term in self._analyze(question)] for question in questions]
        ids = [[number for number in row if number is not None] for row in numbers]
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
            _write_params(aside, {"kind": self.kind} | asdict(self.words))

    @classmethod
    def open(cls, folder: Path | str) -> Self:
        """Map what `save` wrote. Raises UserError if it is missing or damaged."""
        folder = Path(folder)
        params = _read_params(folder, cls.kind)
        try:
            scorer = bm25s.BM25.load(folder, mmap=True, allow_pickle=False)
            return cls(scorer, Words(params["stop_words"], params["stemmer"]))
        except (OSError, ValueError, EOFError, KeyError) as error:
            raise UserError(f"{folder} is damaged ({error}): rebuild and save it") from error


class _Counted(_TermMatrix):
    """A term matrix over scikit-learn's vocabulary and counts."""

    def __init__(self, vectorizer: Any, terms: Any, words: Words):
        super().__init__(terms)
        self.vectorizer = vectorizer
        self.words = words

    @property
    def settings(self) -> dict[str, Any]:
        return {"kind": self.kind, "terms": _FORMAT, **asdict(self.words)}

    def analyze(self, text: str) -> list[str]:
        return list(self.vectorizer.build_analyzer()(text))

    def _number(self, term: str) -> int | None:
        number = self.vectorizer.vocabulary_.get(term)
        return None if number is None else int(number)

    @classmethod
    def _vectorizer(cls, words: Words, vocabulary: list[str] | None = None) -> Any:
        raise NotImplementedError

    @classmethod
    def build(
        cls,
        store: PassageStore,
        stop_words: str | None = AUTO,
        stemmer: str | None = None,
        language: str | None = AUTO,
    ) -> Self:
        """As `BM25.build`; English's stop words are scikit-learn's. Raises UserError for passages without a word."""
        words = Words.choose(store, language, stop_words, stemmer)
        vectorizer = cls._vectorizer(words)
        try:
            counts = vectorizer.fit_transform(_texts(store))
        except ValueError as error:  # scikit-learn's "empty vocabulary"
            raise UserError(f"{store.folder} holds no passage with a word to find it by ({error})") from error
        return cls(vectorizer, sp.csr_array(counts.T), words)

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
                "kind": self.kind,
                "shape": list(self.terms.shape),
                "vocabulary": self.vectorizer.get_feature_names_out().tolist(),
            } | asdict(self.words)
            _write_params(aside, params)

    @classmethod
    def open(cls, folder: Path | str) -> Self:
        """Map what `save` wrote. Raises UserError if it is missing or damaged."""
        folder = Path(folder)
        params = _read_params(folder, cls.kind)
        try:
            words = Words(params["stop_words"], params["stemmer"])
            vectorizer = cls._vectorizer(words, params["vocabulary"])
            if (folder / "idf.npy").exists():
                vectorizer.idf_ = np.load(folder / "idf.npy", allow_pickle=False)
            arrays = [
                np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
                for name in ("data", "indices", "indptr")
            ]
            return cls(vectorizer, sp.csr_array(tuple(arrays), shape=tuple(params["shape"])), words)
        except (OSError, ValueError, EOFError, KeyError) as error:
            raise UserError(f"{folder} is damaged ({error}): rebuild and save it") from error


class TfIdf(_Counted):
    """Cosine similarity of TF-IDF vectors by scikit-learn (smoothed idf, rows of unit length)."""

    kind = "TfIdf"

    @classmethod
    def _vectorizer(cls, words: Words, vocabulary: list[str] | None = None) -> Any:
        from sklearn.feature_extraction.text import (
            ENGLISH_STOP_WORDS,
            TfidfVectorizer,
        )  # BM25 needs no half second

        kinds: dict[str, Any] = {"dtype": np.float32, "analyzer": words.analyzer(ENGLISH_STOP_WORDS)}
        return TfidfVectorizer(vocabulary=vocabulary, **kinds)

    def _similar(self, questions: list[str]) -> Any:
        return sp.csr_array(self.vectorizer.transform(questions)) @ self.terms


class Jaccard(_Counted):
    """Jaccard similarity of token sets: |x ∩ z| / |x ∪ z|; a question's unknown words count in the union."""

    kind = "Jaccard"

    def __init__(self, vectorizer: Any, terms: Any, words: Words):
        super().__init__(vectorizer, terms, words)
        self._sizes = np.bincount(terms.indices, minlength=self.passages)  # tokens in each passage's set
        self._analyze = vectorizer.build_analyzer()

    @classmethod
    def _vectorizer(cls, words: Words, vocabulary: list[str] | None = None) -> Any:
        from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, CountVectorizer

        kinds: dict[str, Any] = {"dtype": np.float32, "analyzer": words.analyzer(ENGLISH_STOP_WORDS)}
        return CountVectorizer(vocabulary=vocabulary, binary=True, **kinds)

    def _similar(self, questions: list[str]) -> Any:
        shared: Any = sp.csr_array(self.vectorizer.transform(questions)) @ self.terms
        sizes = np.array([len(set(self._analyze(question))) for question in questions])
        unions = np.repeat(sizes, np.diff(shared.indptr)) + self._sizes[shared.indices] - shared.data
        shared.data = (shared.data / unions).astype(np.float32)
        return shared
