"""FAISS files that were made elsewhere, of the two forms that the hub's facebook/wiki_dpr has."""

import faiss
import numpy as np
import pytest
from clustered import ENCODER, D, bytes_of, corpus, encode, make, random_queries

from rag.errors import UserError
from rag.index.embed import embed
from rag.index.folder import Index
from rag.index.manifest import DECODED
from rag.index.passages import PassageStore
from rag.index.ready_index import ReadyIndex, adopt
from rag.index.vectors import UNKNOWN, EncoderInfo

INFO = EncoderInfo("facebook/dpr-ctx_encoder-single-nq-base", UNKNOWN, UNKNOWN)
N = 600


def hnsw_sq8():
    """As psgs_w100.nq.HNSW128_SQ8-IP-train.faiss, with fewer links."""
    return faiss.index_factory(D, "HNSW16,SQ8", faiss.METRIC_INNER_PRODUCT)


def ivf_hnsw_pq():
    """As psgs_w100.nq.IVF4096_HNSW128_PQ128-IP-train.faiss: cells found by a graph, a product quantiser in them."""
    return faiss.index_factory(D, "IVF8_HNSW16,PQ8x6", faiss.METRIC_INNER_PRODUCT)


@pytest.fixture(scope="module", params=[hnsw_sq8, ivf_hnsw_pq], ids=["HNSW_SQ8", "IVF_HNSW_PQ"])
def file(request, tmp_path_factory):
    return write(request.param(), tmp_path_factory.mktemp("hub") / "psgs_w100.nq.faiss", encode(corpus(N)))


def write(index, path, vectors):
    index.train(vectors)
    index.add(vectors)
    faiss.write_index(index, str(path))
    return path


@pytest.fixture
def folder(tmp_path):
    store = PassageStore.write(corpus(N), tmp_path / "index" / "passages")
    embed(store, encode, tmp_path / "index", ENCODER, 250, show_progress=False)
    return tmp_path / "index"


def test_taken_over_with_true_vectors_its_recall_is_measured(folder, file):
    adopt(folder, ReadyIndex(str(file)), ENCODER, show_progress=False)
    index = Index.open(folder)
    queries = random_queries(30)
    products = queries @ encode(corpus(N)).T
    best = np.argsort(-products, axis=1)[:, :5]
    _, rows = index.search(queries, 5)
    recall = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(rows, best, strict=True)])
    assert index.manifest.recall["5"] >= 0.95 and recall >= 0.93
    assert index.manifest.metric == "inner product" and index.manifest.encoder == ENCODER
    np.testing.assert_array_equal(index.vectors(rows), encode(corpus(N))[rows])
    index.verify()


def test_without_vectors_the_recall_is_unknown_and_said_to_be(tmp_path, file):
    """Search is the file's own, and the vectors what its quantiser left of them."""
    PassageStore.write(corpus(N), tmp_path / "index" / "passages")
    ready = ReadyIndex(str(file), nprobe=8, ef_search=64)
    adopt(tmp_path / "index", ready, INFO, show_progress=False)
    index = Index.open(tmp_path / "index")
    manifest = Index.open(tmp_path / "index").manifest
    assert (manifest.recall, manifest.vectors, manifest.encoder) == ({}, DECODED, INFO)
    assert manifest.recall_queries == "unknown: there are no true vectors to search exactly"
    assert manifest.search in ({"nprobe": 8, "refine": 1}, {"ef_search": 64, "refine": 1})
    queries = random_queries(5)
    scores, rows = index.search(queries, 3)
    theirs: faiss.Index = faiss.read_index(str(file))
    ivf = faiss.try_extract_index_ivf(theirs)
    if ivf is not None:
        ivf.nprobe = 8
    else:
        faiss.downcast_index(theirs).hnsw.efSearch = 64
    np.testing.assert_array_equal(rows, theirs.search(queries, 3)[1])
    vectors = index.vectors(np.append(rows[0], -1))
    np.testing.assert_allclose(vectors[:3] @ queries[0], scores[0], rtol=1e-3, atol=1e-3)
    assert not vectors[3].any()
    index.verify()


def l2():
    return faiss.index_factory(D, "Flat", faiss.METRIC_L2)


@pytest.mark.parametrize(
    "make_file, sentence",
    [
        (
            lambda path: write(hnsw_sq8(), path, encode(corpus(N))[:-24]),
            "holds 576 vectors for 600 passages: give",
        ),
        (
            lambda path: write(faiss.IndexFlatIP(8), path, encode(corpus(N))[:, :8].copy()),
            "holds vectors of 8 dimensions and the passages' have 16",
        ),
        (lambda path: write(l2(), path, encode(corpus(N))), "does not search by inner product"),
        (
            lambda path: write(hnsw_sq8(), path, encode(corpus(N)[::-1])),
            "holds other vectors than the passages'",
        ),
        (lambda path: path.write_bytes(b"IHNs not so"), "is not a FAISS index, or was cut short"),
        (lambda path: None, "does not exist: give index.type.file"),
    ],
    ids=["count", "dimension", "metric", "order", "damaged", "missing"],
)
def test_a_file_that_does_not_fit_is_refused_and_the_index_there_unharmed(tmp_path, make_file, sentence):
    index = make(tmp_path / "index", N, shard_size=250)
    before = bytes_of(index.folder)
    make_file(tmp_path / "other.faiss")
    with pytest.raises(UserError, match=sentence) as error:
        adopt(index.folder, ReadyIndex(str(tmp_path / "other.faiss")), ENCODER, show_progress=False)
    assert str(tmp_path / "other.faiss") in str(error.value) and "\n" not in str(error.value)
    assert bytes_of(index.folder) == before


def test_a_file_cut_short(tmp_path, folder, file):
    cut = tmp_path / "cut.faiss"
    cut.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="is not a FAISS index, or was cut short"):
        adopt(folder, ReadyIndex(str(cut)), ENCODER, show_progress=False)
