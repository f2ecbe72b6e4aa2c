"""index=milvus, retriever=milvus: the same passages and scores as FAISS, from an engine that comes and goes."""

import json
import threading
import time

import numpy as np
import pytest
import torch
from clustered import ENCODER, D, corpus, encode, make, random_queries

pytest.importorskip("pymilvus", reason='needs the extra "milvus" (pymilvus)')
pytest.importorskip("milvus_lite", reason='needs the extra "milvus" (milvus-lite)')

from conftest import QUESTIONS, bert_tokenizer, tiny_question_encoder
from engines import Engine, Slow, make_in

from rag.encoders.dpr import QuestionEncoder
from rag.errors import UserError
from rag.fingerprints import fingerprint
from rag.index.embed import embed
from rag.index.folder import Index
from rag.index.milvus_collection import Collection
from rag.index.milvus_connection import Connection
from rag.index.milvus_fill import fill
from rag.index.milvus_type import MilvusType
from rag.index.passage import Passage
from rag.index.passages import PassageStore
from rag.index.vectors import EncoderInfo
from rag.retrievers.dense import DenseRetriever
from rag.retrievers.milvus import MilvusRetriever

HOSTILE = [
    Passage('a "quoted" \\ id', "", "text\twith tab\nand line"),
    Passage("Zürich", "名前", "emoji \N{PILE OF POO}, \x00 and \u2028"),
    Passage("row == 1 or true", "'); drop", "row in [1, 2]"),
]


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    engine = Engine(tmp_path_factory.mktemp("engine") / "data")
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def index(tmp_path_factory, engine) -> Index:
    """403 passages in shards of 150, in an engine."""
    folder = tmp_path_factory.mktemp("milvus") / "index"
    return make_in(folder, engine.uri, corpus(400) + HOSTILE, encode, ENCODER, 150)


@pytest.fixture(scope="module")
def thin(tmp_path_factory, index) -> Index:
    """The same, on a machine that has nothing but its manifest."""
    folder = tmp_path_factory.mktemp("thin") / "index"
    folder.mkdir()
    (folder / "manifest.json").write_bytes((index.folder / "manifest.json").read_bytes())
    return Index.open(folder)


# -- the same as FAISS ---------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 7, 403])
def test_finds_what_argsort_finds(index, thin, k):
    queries = random_queries(9)
    scores = queries @ encode(corpus(400) + HOSTILE).T
    expected = np.argsort(-scores, axis=1)[:, :k]
    for each in (index, thin):
        found, rows = each.search(queries, k)
        np.testing.assert_array_equal(rows, expected)
        np.testing.assert_allclose(found, np.take_along_axis(scores, expected, axis=1), rtol=1e-5, atol=1e-5)


def test_what_is_read_from_the_engine_is_what_was_written(index, thin):
    rows = np.array([[402, -1, 0], [7, 7, 400]])
    truth = encode(corpus(400) + HOSTILE)
    expected = np.where(rows[..., None] >= 0, truth[rows], 0)
    for each in (index, thin):
        np.testing.assert_array_equal(each.vectors(rows), expected)
        assert list(each.passages) == corpus(400) + HOSTILE
        assert each.passages.ids([402, -1, 3]) == ["row == 1 or true", "", "4"]
        assert [each.passages.row_of(passage.id) for passage in HOSTILE] == [400, 401, 402]
        assert each.passages.slice(399, 500) == [corpus(400)[-1], *HOSTILE]
        with pytest.raises(KeyError):
            each.passages.row_of("no such id")
        with pytest.raises(IndexError):
            each.passages[403]
        each.verify()
    blocks = list(thin.vector_blocks(100))
    assert [start for start, _ in blocks] == [0, 100, 200, 300, 400]
    np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), truth)
    assert fingerprint(thin.folder) == fingerprint(index.folder)


def test_tokens_are_made_of_the_engines_texts(index, thin):
    from conftest import word_tokenizer

    tokenizer = word_tokenizer([passage.text for passage in corpus(20)])
    rows = np.array([3, -1, 402, 3])
    whole, few = index.tokens(tokenizer, show_progress=False), thin.tokens(tokenizer, show_progress=False)
    for one, other in zip(whole.gather(rows), few.gather(rows), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(whole.lengths(), few.lengths())
    assert len(few) == 403 and few.corpus_sha256 == whole.corpus_sha256


def encoder() -> QuestionEncoder:
    torch.manual_seed(3)
    tokenizer = bert_tokenizer()
    return QuestionEncoder(tiny_question_encoder(len(tokenizer)), tokenizer)


def test_scores_and_gradients_are_those_of_dense_retrieval(index, thin, tmp_path):
    """Also of a null query: what is found, the logits, and what the question encoder learns from them."""
    flat = make(tmp_path / "flat", 400)
    engine_of_400 = make_in(tmp_path / "m", index.collection.connection.uri, corpus(400), encode, ENCODER)
    grads = []
    for retriever in (DenseRetriever(encoder(), flat), MilvusRetriever(encoder(), engine_of_400)):
        retriever.eval()
        found = retriever(retriever.prepare(QUESTIONS), 5)
        found.doc_logprobs[:, 0].sum().backward()
        weights = [p.grad for p in retriever.parameters() if p.grad is not None]
        grads.append((found.rows, found.scores.detach(), weights))
    np.testing.assert_array_equal(grads[0][0], grads[1][0])
    torch.testing.assert_close(grads[0][1], grads[1][1], rtol=0, atol=0)
    for one, other in zip(grads[0][2], grads[1][2], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_passages_are_exchanged(engine, tmp_path):
    """Hot-swap: another collection, also at the address that the retriever was given; FAISS's is searched by FAISS."""
    first = make_in(tmp_path / "a", engine.uri, corpus(50), encode, ENCODER)
    second = make_in(tmp_path / "b", engine.uri, corpus(90)[40:], encode, ENCODER)
    address = engine.uri.replace("localhost", "127.0.0.1")
    retriever = MilvusRetriever(encoder(), first, uri=address, patience=7).eval()
    assert retriever.index.collection.connection.uri == address
    found = [retriever(retriever.prepare(QUESTIONS), 4).rows]
    retriever.swap(second)
    assert retriever.index.collection.connection.uri == address and retriever.index.folder == second.folder
    assert retriever.index.collection.connection.patience == 7
    flat = make(tmp_path / "flat", 30)
    retriever.swap(flat)
    assert retriever.index is flat
    with pytest.raises(
        UserError, match="nonsense does not exist: give the file of an engine, or its address as"
    ):
        Index.open(first.folder, str(tmp_path / "nonsense"))
    assert not list(tmp_path.glob("*nonsense*"))
    with pytest.raises(UserError, match="was embedded by other .weights w2. and"):
        retriever.swap(
            make_in(tmp_path / "c", engine.uri, corpus(9), encode, EncoderInfo("other", "w2", "t2"))
        )
    retriever.swap(first)
    found.append(retriever(retriever.prepare(QUESTIONS), 4).rows)
    np.testing.assert_array_equal(*found)
    described = retriever.description()
    assert (described["uri"], described["patience"]) == (address, 7)
    with pytest.raises(UserError, match="retriever.timeout=0 and retriever.patience=1800.0: give seconds"):
        MilvusRetriever(encoder(), first, timeout=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind, effort", [("HNSW", "ef"), ("IVF_FLAT", "nprobe"), ("IVF_SQ8", "nprobe")])
def test_recall_is_measured_and_the_effort_chosen(engine, tmp_path, kind, effort):
    params = {"nlist": 16} if effort == "nprobe" else {"M": 8}
    index = make_in(tmp_path / "i", engine.uri, corpus(400), encode, ENCODER, kind=kind, params=params)
    queries = random_queries(20)
    manifest = fill(
        tmp_path / "i", MilvusType(engine.uri, kind=kind, params=params), queries, show_progress=False
    )
    index = Index.open(tmp_path / "i")
    assert manifest.search.keys() == {effort, "refine"}
    assert manifest.search["refine"] == (4 if kind == "IVF_SQ8" else 1)
    best = np.argsort(-(queries @ encode(corpus(400)).T), axis=1)[:, :5]
    _, rows = index.search(queries, 5)
    recall = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(rows, best, strict=True)])
    assert manifest.recall["5"] == pytest.approx(recall, abs=1e-4) and recall >= 0.98
    least = MilvusType(engine.uri, kind=kind, params=params, search=1)
    fixed = fill(tmp_path / "i", least, queries, show_progress=False)
    assert fixed.search[effort] == 1 and (effort == "ef" or fixed.recall["5"] < recall)


def test_a_query_that_is_no_number_finds_nothing(index):
    queries = random_queries(2)
    queries[0, 3] = np.nan
    scores, rows = index.search(queries, 4)
    assert (rows[0] == -1).all() and np.isneginf(scores[0]).all() and (rows[1] >= 0).all()


# -- filling ------------------------------------------------------------------------------------


def test_a_fill_goes_on_where_it_stopped(engine, tmp_path, monkeypatch):
    """The batch under way may be there or not, in part: after it, every row is there once."""
    monkeypatch.setattr("rag.index.milvus_fill.MESSAGE", 16 * 4 * D)
    monkeypatch.setattr("rag.index.milvus_fill._TEXT_BYTES", 0)
    store = PassageStore.write(corpus(100), tmp_path / "i/passages")
    embed(store, encode, tmp_path / "i", ENCODER, 40, show_progress=False)
    put, batches = Collection.put, []

    def killed(self, start, vectors, passages, again):
        if start >= 40:
            put(self, start, vectors[:5], passages[:5], again)
            raise KeyboardInterrupt
        put(self, start, vectors, passages, again)

    monkeypatch.setattr(Collection, "put", killed)
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "i", MilvusType(engine.uri), show_progress=False)
    journal = json.loads((tmp_path / "i/collection.json").read_text())
    assert journal["rows"] == 40
    with pytest.raises(UserError, match="is not a finished index"):
        Index.open(tmp_path / "i")

    monkeypatch.setattr(
        Collection, "put", lambda self, start, *rest: (batches.append(start), put(self, start, *rest))[1]
    )
    fill(tmp_path / "i", MilvusType(engine.uri), show_progress=False)
    index = Index.open(tmp_path / "i")
    assert batches == [40, 56, 72, 80, 96] and index.collection.name == journal["collection"]
    assert index.collection.count() == 100
    index.verify()


def test_what_the_engine_lost_is_written_again(engine, tmp_path):
    index = make_in(tmp_path / "i", engine.uri, corpus(300), encode, ENCODER)
    connection = index.collection.connection
    connection.call("delete", index.collection.name, ids=[3, 4, 250])
    with pytest.raises(UserError, match="holds 297 passages, and the index has 300, so it was changed"):
        Index.open(tmp_path / "i")
    fill(tmp_path / "i", MilvusType(engine.uri), show_progress=False)
    index = Index.open(tmp_path / "i")
    assert list(index.passages) == corpus(300)
    index.verify()


def test_another_rows_in_the_collection_are_told(engine, tmp_path):
    index = make_in(tmp_path / "i", engine.uri, corpus(30), encode, ENCODER)
    index.collection.put(30, encode(corpus(1)), corpus(1), True)
    with pytest.raises(
        UserError, match="holds 31 passages after 30 were written: another program writes to it"
    ):
        fill(tmp_path / "i", MilvusType(engine.uri), show_progress=False)


def test_texts_that_are_long_go_in_messages_of_their_own(engine, tmp_path):
    """gRPC's usual servers, as this one, take 4 MiB at a time."""
    long = [Passage(str(n), "t", "x" * 60_000) for n in range(100)]
    index = make_in(tmp_path / "i", engine.uri, long, encode, ENCODER)
    assert list(index.passages) == long and index.collection.count() == 100
    with pytest.raises(UserError, match="could not insert: .*larger than max"):
        index.collection.connection.call(
            "insert",
            index.collection.name,
            [{"row": 1, "vector": np.ones(D), "id": "i", "title": "t", "text": "x" * 5_000_000}],
        )


def test_a_text_that_no_engine_takes_is_refused(engine, tmp_path):
    long = [*corpus(3), Passage("4", "t", "ü" * 40_000)]
    with pytest.raises(UserError, match="the text of passage '4' takes 80,000 bytes.*index.type.texts=false"):
        make_in(tmp_path / "i", engine.uri, long, encode, ENCODER)
    index = make_in(tmp_path / "j", engine.uri, long, encode, ENCODER, texts=False)
    assert index.passages[3] == long[3]
    (tmp_path / "k").mkdir()
    (tmp_path / "k/manifest.json").write_bytes((tmp_path / "j/manifest.json").read_bytes())
    with pytest.raises(UserError, match="holds no passages, and neither does collection rag_"):
        Index.open(tmp_path / "k")


# -- an engine that goes away, or is another than it was ---------------------------------------------


def test_an_engine_that_comes_back_is_waited_for(tmp_path, capsys):
    engine = Engine(tmp_path / "data")
    index = make_in(tmp_path / "i", engine.uri, corpus(50), encode, ENCODER)
    queries = random_queries(4)
    before = index.search(queries, 5)
    engine.stop()
    back = threading.Timer(1.7, engine.start)
    back.start()
    after = index.search(queries, 5)
    back.join()
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)
    said = capsys.readouterr().out
    assert f"{engine.uri} does not answer; waiting up to 30 minutes for it" in said
    assert f"{engine.uri} answers again after" in said
    engine.stop()
    index.collection.connection.patience = 0.5
    began = time.monotonic()
    with pytest.raises(UserError, match=r"did not answer within \d s: start the engine"):
        index.search(queries, 5)
    assert time.monotonic() - began < 5


def test_an_engine_that_does_not_answer_in_time(tmp_path):
    """Each call has its limit, and all tries together theirs."""
    engine = Engine(tmp_path / "data", servicer=Slow)
    index = make_in(tmp_path / "i", engine.uri, corpus(30), encode, ENCODER)
    connection = index.collection.connection
    connection.timeout, connection.patience = 0.3, 1.0
    engine.calls.clear()
    Slow.seconds = 20.0
    began = time.monotonic()
    try:
        with pytest.raises(UserError, match=r"did not answer within \d s"):
            index.search(random_queries(1), 2)
    finally:
        Slow.seconds = 0.0
    assert 1.0 <= time.monotonic() - began < 10 and engine.calls.count("Search") >= 2
    engine.stop()


def test_a_collection_that_comes_back_changed_is_refused(tmp_path):
    engine = Engine(tmp_path / "data")
    index = make_in(tmp_path / "i", engine.uri, corpus(50), encode, ENCODER)
    index.search(random_queries(2), 5)
    other = Connection(engine.uri)
    other.call("delete", index.collection.name, ids=[49])
    index.search(random_queries(2), 3)  # looked at every minute
    engine.stop()
    threading.Timer(1.0, engine.start).start()
    with pytest.raises(UserError, match="holds 49 passages, and the index has 50, so it was changed"):
        index.search(random_queries(2), 3)
    engine.stop()


def test_a_collection_changed_under_a_run_is_refused(engine, tmp_path):
    index = make_in(tmp_path / "i", engine.uri, corpus(50), encode, ENCODER)
    queries = encode(corpus(3)[2:])
    assert index.search(queries, 1)[1].tolist() == [[2]]
    index.collection.put(2, 2 * queries, corpus(3)[2:], True)  # as many rows as before
    with pytest.raises(
        UserError, match="gives scores that are not those of this index's vectors, so it was changed"
    ):
        index.search(queries, 1)
    index.collection.put(2, queries, corpus(3)[2:], True)
    index.search(queries, 1)
    index.collection.put(50, encode(corpus(1)), corpus(1), True)
    index.collection.every = 0
    with pytest.raises(UserError, match="holds 51 passages, and the index has 50"):
        index.search(queries, 1)
    index.collection.drop()
    with pytest.raises(UserError, match=f"there is no collection {index.collection.name} of {engine.uri}"):
        Index.open(tmp_path / "i")


def test_what_an_engine_does_not_have_in_memory_is_loaded(index):
    index.collection.connection.call("release_collection", index.collection.name)
    assert index.search(random_queries(1), 2)[1].shape == (1, 2)


# -- 20,000 passages ----------------------------------------------------------------------------


@pytest.mark.slow
def test_ids_and_losses_over_20_000_passages(engine, tmp_path):
    """Random vectors of 384 dimensions, and whole models: the same ids, losses to 1e-5."""
    from conftest import ANSWERS, tiny_bart, word_tokenizer

    from rag.generators.seq2seq import Generator
    from rag.index.build import build
    from rag.model import RagSequence, RagToken

    passages = corpus(20_000)
    vectors = np.random.default_rng(0).standard_normal((20_000, 384), np.float32)

    def wide(batch):
        return vectors[[int(p.id) - 1 for p in batch]]

    for place, how in ((tmp_path / "wide", wide), (tmp_path / "narrow", encode)):
        store = PassageStore.write(passages, place / "passages")
        embed(store, how, place, ENCODER, 7_000, 512, show_progress=False)
    flats, indexes = [], []
    for place in (tmp_path / "wide", tmp_path / "narrow"):
        build(place, show_progress=False)
        flats.append(Index.open(place))
        fill(place, MilvusType(engine.uri), show_progress=False)
        indexes.append(Index.open(place))
        assert not (place / "index.faiss").exists()
        assert indexes[-1].manifest.recall == dict.fromkeys(["1", "5", "20", "50", "100"], 1.0)
    queries = np.random.default_rng(1).standard_normal((64, 384), np.float32)
    (exact, expected), (scores, rows) = (each.search(queries, 50) for each in (flats[0], indexes[0]))
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(scores, exact, rtol=1e-5)

    for model in (RagSequence, RagToken):
        losses = []
        for retriever in (DenseRetriever(encoder(), flats[1]), MilvusRetriever(encoder(), indexes[1])):
            torch.manual_seed(4)
            tokenizer = word_tokenizer(
                [*QUESTIONS, *ANSWERS, *(f"{p.title} {p.text}" for p in passages[:50])]
            )
            generator = Generator(tiny_bart(len(tokenizer)), tokenizer)
            rag = model(retriever, generator, n_docs=5).eval()
            losses.append(-rag(rag.prepare(QUESTIONS, ANSWERS)).logprob.detach())
        torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=1e-5)
