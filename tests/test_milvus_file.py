"""A file of milvus-lite, which all processes of a machine share through one server on loopback, killed as it may be."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from clustered import ENCODER, bytes_of, corpus, encode, make, random_queries, write_tsv

pytest.importorskip("pymilvus", reason='needs the extra "milvus" (pymilvus)')
pytest.importorskip("milvus_lite", reason='needs the extra "milvus" (milvus-lite)')

from engines import Engine, make_in

from rag.errors import UserError
from rag.files import hidden_beside
from rag.index.editions import tidy
from rag.index.embed import embed
from rag.index.estimate import estimate
from rag.index.folder import Index
from rag.index.from_corpus import build_from_corpus
from rag.index.milvus_connection import Connection
from rag.index.milvus_estimate import engine_bytes
from rag.index.milvus_type import MilvusType
from rag.index.passage import Passage
from rag.index.passages import PassageStore
from rag.index.sync import synchronise
from rag.index.update import update
from rag.index.vectors import EncoderInfo

HERE = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
NEW = [Passage(f"new {n}", f"title {n % 20}", f"news of {n}") for n in range(9)]


class Encoder:
    def encode(self, passages) -> np.ndarray:
        return encode(list(passages))

    def describe(self) -> EncoderInfo:
        return ENCODER


def served(file: Path) -> dict:
    """What a server of ours says of itself."""
    return json.loads(hidden_beside(file, "server").read_text())


def python(script: str, **settings) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {HERE!r}\n{script}"], **settings
    )


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Index:
    """50 passages in the file beside their folder."""
    return make_in(tmp_path_factory.mktemp("file") / "index", None, corpus(50), encode, ENCODER)


def test_it_lies_beside_the_folder_and_moves_with_it(index, tmp_path):
    assert index.folder.with_name("index.milvus").is_dir()
    assert index.manifest.engine["uri"] is None
    flat = make(tmp_path / "flat", 50)
    queries = random_queries(5)
    np.testing.assert_array_equal(index.search(queries, 7)[1], flat.search(queries, 7)[1])


def test_our_server_listens_on_loopback_alone(index):
    port = served(index.folder.with_name("index.milvus"))["port"]
    listening = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            address, state = line.split()[1], line.split()[3]
            if state == "0A" and int(address.split(":")[1], 16) == port:
                listening.append(address.split(":")[0])
    assert listening in (
        ["0100007F"],
        ["0000000000000000FFFF00000100007F"],
    )  # 127.0.0.1, also written as IPv6


SEARCH = """
from clustered import random_queries
from rag.index.folder import Index
index = Index.open({folder!r})
print("open", flush=True)
sys.stdin.readline()
print(index.search(random_queries(5), 7)[1].tolist(), flush=True)
"""


@pytest.mark.slow
def test_two_processes_share_one_server_and_the_last_ends_it(tmp_path):
    index = make_in(tmp_path / "i", None, corpus(50), encode, ENCODER)
    expected = index.search(random_queries(5), 7)[1].tolist()
    file = tmp_path / "i.milvus"
    first = served(file)["process"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    both = [python(SEARCH.format(folder=str(index.folder)), **pipes) for _ in range(2)]
    for each in both:
        assert each.stdout.readline() == "open\n"
    index.collection.connection.close()
    for each in both:
        answer, _ = each.communicate("\n")
        assert each.returncode == 0 and json.loads(answer) == expected
    assert served(file)["process"] == first
    began = time.monotonic()
    while Path(f"/proc/{first}").exists():
        assert time.monotonic() - began < 30, "nobody uses it any more"
        time.sleep(0.1)
    assert index.search(random_queries(5), 7)[1].tolist() == expected  # another one is started
    assert served(file)["process"] != first


def test_a_killed_server_is_started_again(tmp_path):
    index = make_in(tmp_path / "i", None, corpus(50), encode, ENCODER)
    before = index.search(random_queries(5), 7)
    for _ in range(2):
        os.kill(served(tmp_path / "i.milvus")["process"], signal.SIGKILL)
        after = index.search(random_queries(5), 7)
        for one, other in zip(before, after, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("server_too", [False, True])
def test_a_fill_is_killed_again_and_again(tmp_path, server_too):
    """kill -9 of the process, and of the server with it, in every third batch: acknowledged or not, no row is lost or
    there twice."""
    store = PassageStore.write(corpus(300), tmp_path / "i/passages")
    embed(store, encode, tmp_path / "i", ENCODER, 120, show_progress=False)
    script = f"""
import json, os, signal
from pathlib import Path
from rag.files import hidden_beside
from rag.index import milvus_fill
from rag.index.milvus_collection import Collection
from rag.index.milvus_type import MilvusType
milvus_fill.MESSAGE, milvus_fill._TEXT_BYTES = 25 * 4 * 16, 0
put, count = Collection.put, [0]
def dying(self, *arguments):
    put(self, *arguments)
    count[0] += 1
    if count[0] == 3:
        if {server_too}:
            server = json.loads(hidden_beside(Path({str(tmp_path / "i.milvus")!r}), "server").read_text())
            os.kill(server["process"], signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
Collection.put = dying
milvus_fill.fill({str(tmp_path / "i")!r}, MilvusType(), show_progress=False)
"""
    killed = 0
    while (process := python(script)).wait(120) != 0:
        assert process.returncode == -signal.SIGKILL
        killed += 1
        assert killed < 20
    assert killed >= 3
    index = Index.open(tmp_path / "i")
    assert index.collection.count() == 300 and list(index.passages) == corpus(300)
    index.verify()
    shutil.rmtree(tmp_path / "i/vectors")
    shutil.rmtree(tmp_path / "i/passages")
    assert list(Index.open(tmp_path / "i").passages) == corpus(300)


# -- other editions ------------------------------------------------------------------------------


def names(connection: Connection) -> list[str]:
    return sorted(connection.call("list_collections"))


def test_adding_removing_and_synchronising(tmp_path):
    file = write_tsv(tmp_path / "c.tsv", corpus(50))
    folder = tmp_path / "i"
    build_from_corpus(folder, file, Encoder(), MilvusType(), shard_size=20, show_progress=False)
    first = Index.open(folder)
    more = write_tsv(tmp_path / "more.tsv", NEW)
    assert update(folder, more, ["3", "50"], encode, ENCODER, show_progress=False)
    index = Index.open(folder)
    left = [p for p in corpus(50) if p.id not in ("3", "50")] + NEW
    assert list(index.passages) == left
    queries = random_queries(5)
    best = np.argsort(-(queries @ encode(left).T), axis=1)[:, :5]
    np.testing.assert_array_equal(index.search(queries, 5)[1], best)
    index.verify()
    assert names(index.collection.connection) == [index.collection.name] != [first.collection.name]
    assert not update(folder, more, ["3", "50"], encode, ENCODER, show_progress=False)
    with pytest.raises(UserError, match=f"there is no collection {first.collection.name}"):
        first.collection.check()
    write_tsv(file, corpus(45))
    done = synchronise(folder, file, encode, ENCODER, show_progress=False)
    index = Index.open(folder)
    assert done.changed == 1 and list(index.passages) == corpus(45)
    assert names(index.collection.connection) == [index.collection.name]
    assert [each.name for each in tmp_path.iterdir() if each.name.endswith((".new", ".old"))] == []


def test_a_change_that_fails_harms_nothing(tmp_path):
    engine = Engine(tmp_path / "data")
    index = make_in(tmp_path / "i", engine.uri, corpus(50), encode, ENCODER)
    before = bytes_of(tmp_path / "i")
    long = write_tsv(tmp_path / "m.tsv", [Passage("long", "t", "x" * 70_000)])
    with pytest.raises(UserError, match="the text of passage 'long' takes 70,000 bytes"):
        update(tmp_path / "i", long, ["1"], encode, ENCODER, show_progress=False)
    assert bytes_of(tmp_path / "i") == before
    assert list(Index.open(tmp_path / "i").passages) == corpus(50)
    thin = tmp_path / "thin"
    thin.mkdir()
    shutil.copy(tmp_path / "i/manifest.json", thin)
    with pytest.raises(
        UserError, match="has its passages or vectors in the engine alone: change the index in the folder"
    ):
        update(thin, removed=["1"], show_progress=False)
    index.search(random_queries(1), 1)
    engine.stop()


def test_the_collection_of_an_edition_before_goes_later_where_it_could_not_go(tmp_path):
    """A kill between the exchange of the folders and the engine's part of it."""
    folder = tmp_path / "i"
    first = make_in(folder, None, corpus(50), encode, ENCODER)
    journal = json.loads((folder / "collection.json").read_text())
    connection = Connection(first.collection.connection.uri)
    connection.call("create_collection", "left_over", dimension=8)
    left = {"uri": connection.uri, "collection": "left_over"}
    (folder / "collection.json").write_text(json.dumps(journal | {"replaces": left}))
    tidy(folder)
    assert names(connection) == [first.collection.name]
    assert json.loads((folder / "collection.json").read_text()) == journal


def test_what_is_there_already(tmp_path, capsys):
    """The same again, another type or engine, one that lost rows, and every way to replace it."""
    file = write_tsv(tmp_path / "c.tsv", corpus(50))
    folder, engine = tmp_path / "i", Engine(tmp_path / "data")

    def build(type: MilvusType | str, **settings) -> Index:
        build_from_corpus(folder, file, Encoder(), type, shard_size=20, show_progress=False, **settings)
        return Index.open(folder)

    first = build(MilvusType(engine.uri))
    assert build(MilvusType(engine.uri)).collection.name == first.collection.name
    for type, sentence in (
        ("Flat", "an index of type Milvus FLAT instead of Flat"),
        (MilvusType(engine.uri, kind="IVF_FLAT"), "an index with kind FLAT instead of IVF_FLAT"),
        (MilvusType(), "an index with engine http://localhost:.* instead of .*i.milvus"),
        (MilvusType(engine.uri, texts=False), "an index with texts True instead of False"),
    ):
        with pytest.raises(
            UserError, match=sentence + ": choose another index.path, or replace it with overwrite"
        ):
            build(type)
    first.collection.connection.call("delete", first.collection.name, ids=[7])
    with pytest.raises(UserError, match="holds 49 passages, and the index has 50"):
        Index.open(folder)
    assert build(MilvusType(engine.uri)).collection.count() == 50
    first.collection.drop()
    with pytest.raises(UserError, match="there is no collection"):
        Index.open(folder)
    again = build(MilvusType(engine.uri))
    again.verify()
    new = build(MilvusType(engine.uri), overwrite=True)
    assert names(Connection(engine.uri)) == [new.collection.name] != [again.collection.name]
    flat = build("Flat", overwrite="changed")
    assert flat.manifest.factory == "Flat" and (folder / "index.faiss").is_file()
    assert build(MilvusType(engine.uri), overwrite="changed").manifest.factory == "Milvus FLAT"
    assert not (folder / "index.faiss").exists()
    engine.stop()


# -- what it will cost ---------------------------------------------------------------------------


def test_the_estimate_of_an_engine(tmp_path):
    """Sizes by the arithmetic of docs/scale.md; the rate is measured, and nothing of that stays in the engine."""
    file = write_tsv(tmp_path / "c.tsv", corpus(100))
    engine = Engine(tmp_path / "data")
    mean = np.mean([len(f"{p.id}{p.title}{p.text}".encode()) for p in corpus(100)])
    for kind, memory, disk in (
        ("FLAT", 64, 64),
        ("HNSW", 64 + 4 * 33, 64 + 4 * 33),
        ("DISKANN", 8, 64 + 224),
    ):
        type = MilvusType(engine.uri, kind=kind if kind != "DISKANN" else "IVF_SQ8")
        if kind == "DISKANN":  # which milvus-lite has not
            found = engine_bytes(MilvusType(kind=kind), 100, 16, float(mean))
        else:
            costs = estimate(file, type, 16, encode, passages_per_second=100)
            found = costs.disk_index, costs.memory_all, costs.memory_least
            assert costs.seconds_index > 0 and costs.elsewhere and costs.factory == f"Milvus {kind}"
        assert found == pytest.approx((100 * (disk + 8 + mean + 64), 100 * (memory + 8 + mean), 100 * memory))
    assert names(Connection(engine.uri)) == []
    engine.stop()


# -- files that are none ------------------------------------------------------------------------


def test_a_file_that_another_program_holds(tmp_path):
    from milvus_lite.db import MilvusLite

    held = MilvusLite(str(tmp_path / "held"))
    with pytest.raises(
        UserError, match="held is open in another program: close it there, or give another uri"
    ):
        Connection(str(tmp_path / "held")).call("list_collections")
    held.close()


def test_a_file_that_is_none(tmp_path):
    (tmp_path / "old.db").write_bytes(b"SQLite format 3\x00")
    with pytest.raises(UserError, match="is no database of this milvus-lite, which keeps a folder there"):
        Connection(str(tmp_path / "old.db")).call("list_collections")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be opened .*: choose another uri"):
        Connection(str(tmp_path / "file/below.db")).call("list_collections")


def test_a_file_in_use_on_another_machine(tmp_path):
    import fcntl

    path = hidden_beside(tmp_path / "f", "server")
    with open(path, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        held.write(json.dumps({"port": 1, "machine": "node-7", "process": 1}))
        held.flush()
        with pytest.raises(
            UserError, match="is in use on node-7, and a file serves the processes of one machine"
        ):
            Connection(str(tmp_path / "f")).call("list_collections")


# -- TLS ----------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates of this test")
def test_tls(tmp_path, monkeypatch):
    import grpc

    from rag.index import milvus_connection

    monkeypatch.setattr(milvus_connection, "AT_FIRST", 1.0)
    request = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]
    request += ["-addext", "subjectAltName=DNS:localhost", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(request, cwd=tmp_path, check=True, capture_output=True)
    key, certificate = (tmp_path / "key.pem").read_bytes(), (tmp_path / "cert.pem").read_bytes()
    engine = Engine(
        tmp_path / "data", token="ann:word", credentials=grpc.ssl_server_credentials([(key, certificate)])
    )
    monkeypatch.setenv("MILVUS_TOKEN", "ann:word")
    monkeypatch.setenv("MILVUS_CA_PEM", str(tmp_path / "cert.pem"))
    index = make_in(tmp_path / "i", engine.uri, corpus(30), encode, ENCODER)
    assert engine.uri.startswith("https://") and len(index.search(random_queries(1), 3)[1][0]) == 3
    monkeypatch.delenv("MILVUS_CA_PEM")
    with pytest.raises(
        UserError, match="https://localhost:.* did not answer within"
    ):  # nobody vouches for it
        Index.open(tmp_path / "i")
    monkeypatch.setenv("MILVUS_CA_PEM", str(tmp_path / "none.pem"))
    with pytest.raises(UserError, match="MILVUS_CA_PEM names .*none.pem, which does not exist"):
        Index.open(tmp_path / "i")
    monkeypatch.setenv("MILVUS_CA_PEM", str(tmp_path / "cert.pem"))
    with pytest.raises(UserError, match="is without TLS, and MILVUS_CA_PEM is set: give https://"):
        Index.open(tmp_path / "i", engine.uri.replace("https", "http"))
    engine.stop()
