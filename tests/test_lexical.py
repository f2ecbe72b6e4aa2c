import json
from math import log

import bm25s
import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.metrics import jaccard_score
from sklearn.metrics.pairwise import cosine_similarity

from rag.errors import UserError
from rag.index.passage import Passage
from rag.index.passages import PassageStore
from rag.retrievers.lexical import BM25, Jaccard, TfIdf

WORDS = (
    "river city mountain flows through capital of the ancient empire was founded emperors running run".split()
)


def texts(store: PassageStore) -> list[str]:
    return [f"{p.title} {p.text}" for p in store]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> PassageStore:
    random = np.random.default_rng(3)
    passages = [
        Passage(str(i), f"Title{i % 9}", " ".join(random.choice(WORDS, random.integers(3, 30))))
        for i in range(80)
    ]
    return PassageStore.write(passages, tmp_path_factory.mktemp("lexical") / "passages")


QUESTIONS = [
    "Which river flows through the ancient capital?",
    "title3 title3 emperors",
    "runs",
    "of the",
    "zebra",
]


def dense(searched: tuple[np.ndarray, np.ndarray], passages: int) -> np.ndarray:
    """Scores by passage, 0 where it was not found; checks that the best come first and the rest is marked."""
    scores, rows = searched
    assert (scores.dtype, rows.dtype) == (np.float32, np.int64)
    assert ((rows == -1) == (scores == -np.inf)).all()
    assert (np.diff(np.where(rows < 0, -1, scores), axis=1) <= 0).all()
    result = np.zeros((len(rows), passages + 1), np.float32)
    np.put_along_axis(result, rows, scores, axis=1)
    for line in rows:
        assert len(set(line[line >= 0])) == (line >= 0).sum()
    return result[:, :-1]


def test_bm25_by_hand(tmp_path):
    store = PassageStore.write(
        [Passage("1", "Nile", "river river"), Passage("2", "Rome", "city")], tmp_path / "s"
    )
    scores, rows = BM25.build(store).search(["river of a nile", "of"], 2)
    # 2 passages of 3 and 2 terms; each word of the question is in one of them
    idf = log(1 + (2 - 1 + 0.5) / (1 + 0.5))
    norm = 0.9 * (1 - 0.4 + 0.4 * 3 / 2.5)
    assert rows.tolist() == [[0, -1], [-1, -1]]
    assert scores[0, 0] == pytest.approx(idf * (2 / (2 + norm) + 1 / (1 + norm)), rel=1e-6)
    assert np.isneginf(scores[[0, 1, 1], [1, 0, 1]]).all()


@pytest.mark.parametrize("stemmer", [None, "english"])
@pytest.mark.parametrize("stop_words", [None, "english"])
def test_bm25_equals_bm25s(store, stemmer, stop_words):
    import Stemmer

    options = {
        "stopwords": stop_words,
        "stemmer": Stemmer.Stemmer(stemmer) if stemmer else None,
        "show_progress": False,
        "return_ids": False,
    }
    theirs = bm25s.BM25(k1=1.2, b=0.7, method="lucene")
    theirs.index(bm25s.tokenize(texts(store), **options), show_progress=False)
    expected = np.array(
        [
            theirs.get_scores(words) if words else np.zeros(len(store))
            for words in bm25s.tokenize(QUESTIONS, **options)
        ]
    )
    ours = BM25.build(store, k1=1.2, b=0.7, stop_words=stop_words, stemmer=stemmer)
    searched = ours.search(QUESTIONS, len(store))
    np.testing.assert_allclose(dense(searched, len(store)), expected, rtol=1e-5, atol=1e-7)
    assert (searched[1][2, 0] >= 0) == (stemmer == "english")  # "runs" is only found as "run"


def test_tfidf_equals_scikit_learn(store):
    vectorizer = TfidfVectorizer(stop_words="english")
    documents = vectorizer.fit_transform(texts(store))
    expected = cosine_similarity(vectorizer.transform(QUESTIONS), documents)
    searched = TfIdf.build(store).search(QUESTIONS, len(store))
    np.testing.assert_allclose(dense(searched, len(store)), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("stop_words", [None, "english"])
def test_jaccard_equals_scikit_learn(store, stop_words):
    vectorizer = CountVectorizer(binary=True, stop_words=stop_words)
    matrix = vectorizer.fit_transform(texts(store) + QUESTIONS).toarray()
    documents, questions = matrix[: len(store)], matrix[len(store) :]
    expected = [[jaccard_score(q, d, zero_division=0) for d in documents] for q in questions]
    searched = Jaccard.build(store, stop_words=stop_words).search(QUESTIONS, len(store))
    np.testing.assert_allclose(dense(searched, len(store)), expected, rtol=1e-5)


def test_jaccard_by_hand(tmp_path):
    store = PassageStore.write(
        [Passage("1", "Nile", "long river"), Passage("2", "Po", "river")], tmp_path / "s"
    )
    scores, rows = Jaccard.build(store).search(["river river in zambia nile"], 2)
    # {river, zambia, nile} against {nile, long, river} and {po, river}
    assert rows.tolist() == [[0, 1]]
    assert scores[0].tolist() == pytest.approx([2 / 4, 1 / 4])


@pytest.mark.parametrize("kind", [BM25, TfIdf, Jaccard])
def test_top_k_is_a_cut_of_the_whole_and_batches_do_not_matter(store, kind, monkeypatch):
    lexical = kind.build(store)
    whole, _ = lexical.search(QUESTIONS, len(store))
    top, rows = lexical.search(QUESTIONS, 7)
    np.testing.assert_array_equal(top, whole[:, :7])
    monkeypatch.setattr(kind, "questions_at_once", 2)
    np.testing.assert_array_equal(lexical.search(QUESTIONS, 7)[1], rows)
    assert lexical.search([], 7)[1].shape == (0, 7)


@pytest.mark.parametrize("kind", [BM25, TfIdf, Jaccard])
def test_saved_and_opened_gives_the_same(store, kind, tmp_path):
    lexical = kind.build(store)
    lexical.save(tmp_path / "saved")
    assert {f.suffix for f in (tmp_path / "saved").iterdir()} == {".npy", ".json"}
    derived = type("Derived", (kind,), {})  # a class that has another name
    for opened in (kind.open(tmp_path / "saved"), derived.open(tmp_path / "saved")):
        assert opened.passages == len(store)
        for ours, theirs in zip(opened.search(QUESTIONS, 20), lexical.search(QUESTIONS, 20), strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("kind", [BM25, TfIdf, Jaccard])
def test_mistakes_are_told_in_one_sentence(store, kind, tmp_path):
    lexical = kind.build(store)
    with pytest.raises(UserError, match="K=81 passages cannot be found among 80"):
        lexical.search(["river"], 81)
    with pytest.raises(UserError, match=f"holds no {kind.__name__}"):
        kind.open(tmp_path / "none")
    lexical.save(tmp_path / "saved")
    array = next((tmp_path / "saved").glob("indptr*"))
    array.write_bytes(array.read_bytes()[:40])
    with pytest.raises(UserError, match="is damaged"):
        kind.open(tmp_path / "saved")
    params = json.loads((tmp_path / "saved/params.json").read_text())
    (tmp_path / "saved/params.json").write_text(json.dumps(params | {"kind": "Other"}))
    with pytest.raises(UserError, match=f"holds Other of format 2, not {kind.__name__}"):
        kind.open(tmp_path / "saved")
