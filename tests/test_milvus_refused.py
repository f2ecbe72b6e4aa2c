"""What a user can get wrong with an engine: one sentence each, and a finished collection is as it was."""

import logging

import numpy as np
import pytest
from clustered import ENCODER, D, corpus, encode, make, random_queries

pytest.importorskip("pymilvus", reason='needs the extra "milvus" (pymilvus)')
pytest.importorskip("milvus_lite", reason='needs the extra "milvus" (milvus-lite)')

from engines import Engine, WithoutInnerProduct, make_in
from test_milvus import encoder

from rag.errors import UserError
from rag.index import milvus_connection
from rag.index.folder import Index
from rag.index.milvus_fill import fill
from rag.index.milvus_type import MilvusType
from rag.retrievers.milvus import MilvusRetriever


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    engine = Engine(tmp_path_factory.mktemp("engine") / "data")
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def index(tmp_path_factory, engine) -> Index:
    return make_in(tmp_path_factory.mktemp("refused") / "index", engine.uri, corpus(150), encode, ENCODER)


def test_a_dead_uri(tmp_path, index, monkeypatch):
    monkeypatch.setattr(milvus_connection, "AT_FIRST", 0.5)
    with pytest.raises(
        UserError, match=r"http://127.0.0.1:9 did not answer within \d s: start the engine, or give"
    ):
        Index.open(index.folder, "http://127.0.0.1:9")


@pytest.mark.parametrize(
    "uri", ["ftp://host", "http://", "http://host:0", "http://host:x", "https://h:1/?a=b", "tcp://h:1"]
)
def test_a_uri_that_is_none(uri):
    with pytest.raises(
        UserError, match="is no address of a Milvus engine: give a file, http://HOST:PORT or https://"
    ):
        MilvusType(uri)


def test_a_wrong_password(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(milvus_connection, "AT_FIRST", 1.0)
    engine = Engine(tmp_path / "data", token="ann:s3cret-word")
    monkeypatch.delenv("MILVUS_TOKEN", raising=False)
    with pytest.raises(
        UserError, match="refused a client without MILVUS_TOKEN: set MILVUS_TOKEN=user:password"
    ):
        make_in(tmp_path / "i", engine.uri, corpus(30), encode, ENCODER)
    monkeypatch.setenv("MILVUS_TOKEN", "ann:wr0ng-word")
    with pytest.raises(UserError, match="refused the MILVUS_TOKEN of the environment") as refused:
        fill(tmp_path / "i", MilvusType(engine.uri), show_progress=False)
    monkeypatch.setenv("MILVUS_TOKEN", "ann:s3cret-word")
    fill(tmp_path / "i", MilvusType(engine.uri), show_progress=False)
    index = Index.open(tmp_path / "i")
    assert index.search(random_queries(1), 1)[1].shape == (1, 1)
    monkeypatch.setenv("MILVUS_URI", "http://another:19530")  # the token is that engine's
    with pytest.raises(
        UserError, match="without MILVUS_TOKEN .it is for http://another:19530 alone, by MILVUS_URI.:"
    ):
        Index.open(tmp_path / "i")
    monkeypatch.setenv("MILVUS_URI", engine.uri)
    Index.open(tmp_path / "i")
    written = b"".join(each.read_bytes() for each in (tmp_path / "i").rglob("*") if each.is_file())
    told = str(refused.value) + caplog.text + repr(MilvusRetriever(encoder(), index).description())
    for secret in ("s3cret-word", "wr0ng-word"):
        assert secret.encode() not in written and secret not in told
    engine.stop()


def test_credentials_in_a_uri_are_refused_and_not_repeated():
    with pytest.raises(UserError, match="holds credentials.*set MILVUS_TOKEN=user:password") as refused:
        MilvusType("https://ann:s3cret-word@host:19530")
    assert "s3cret-word" not in str(refused.value)


def test_an_engine_without_inner_product(tmp_path):
    engine = Engine(tmp_path / "data", servicer=WithoutInnerProduct)
    with pytest.raises(
        UserError, match="could not create index: metric type IP is not supported.*needs inner product"
    ):
        make_in(tmp_path / "i", engine.uri, corpus(30), encode, ENCODER)
    engine.stop()


def test_a_collection_of_another_dimension_or_metric(engine, tmp_path):
    """In the place of the index's own: refused, and left alone."""
    from pymilvus import DataType, MilvusClient

    index = make_in(tmp_path / "i", engine.uri, corpus(30), encode, ENCODER)
    call, name = index.collection.connection.call, index.collection.name
    for dim, metric, sentence in (
        (4, "IP", "vectors of 4 dimensions, and the index has 16"),
        (D, "L2", "by L2, not by inner"),
    ):
        call("drop_collection", name)
        schema = MilvusClient.create_schema(auto_id=False)
        schema.add_field("row", DataType.INT64, is_primary=True)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
        params = MilvusClient.prepare_index_params()
        params.add_index("vector", index_type="FLAT", metric_type=metric)
        call("create_collection", name, schema=schema, index_params=params)
        call("insert", name, [{"row": 77, "vector": np.ones(dim, np.float32)}])
        with pytest.raises(UserError, match=sentence):
            Index.open(tmp_path / "i")
        with pytest.raises(UserError, match="somebody else made it"):
            fill(tmp_path / "i", MilvusType(engine.uri), show_progress=False)
        assert index.collection.count() == 1
    call("drop_collection", name)
    schema = MilvusClient.create_schema(auto_id=False)
    schema.add_field("key", DataType.INT64, is_primary=True)
    schema.add_field("v", DataType.FLOAT_VECTOR, dim=D)
    call("create_collection", name, schema=schema)
    with pytest.raises(UserError, match="is no index of ours"):
        Index.open(tmp_path / "i")


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"kind": "LSH"}, "index.type.kind=LSH does not exist; available: FLAT"),
        ({"name": "a b"}, "index.type.name=a b: give letters"),
        ({"name": "ä"}, "give letters"),
    ],
)
def test_a_type_that_is_none(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        MilvusType(**settings)


def test_an_index_of_faiss_is_no_index_of_an_engine(tmp_path, engine):
    flat = make(tmp_path / "flat", 30)
    with pytest.raises(UserError, match="is searched with FAISS \\(Flat\\): take retriever=dense"):
        MilvusRetriever(encoder(), flat)
    with pytest.raises(UserError, match="is searched with FAISS \\(Flat\\), not in an engine"):
        Index.open(flat.folder, engine.uri)


def test_without_pymilvus(index, monkeypatch):
    monkeypatch.setattr(milvus_connection, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pymilvus is not installed: pip install "\.\[milvus\]"'):
        Index.open(index.folder)


def test_k_beyond_the_engines(index, monkeypatch):
    monkeypatch.setattr("rag.index.milvus_collection.LARGEST_K", 100)
    with pytest.raises(UserError, match="finds at most 100 passages at once, not 101: lower K"):
        index.search(random_queries(1), 101)


def test_pymilvus_says_nothing_by_itself(index):
    assert not logging.getLogger("pymilvus").isEnabledFor(logging.CRITICAL)
