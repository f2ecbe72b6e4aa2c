import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from clustered import ENCODER, D, bytes_of, corpus, encode, make, random_queries, vector_of

from rag.errors import UserError
from rag.index.build import build
from rag.index.embed import embed, lock_folder, prepare
from rag.index.passage import Passage
from rag.index.passages import PassageStore
from rag.index.vectors import EncoderInfo, Vectors, exact_search

# ---------------------------------------------------------------------------------- vectors on disk


def test_vectors_are_the_encoders_own_and_zero_for_nothing_found(tmp_path):
    index = make(tmp_path)
    rows = np.array([[49, -1, 0], [20, 19, 20]])
    truth = encode(corpus(50))
    expected = np.array([[truth[r] if r >= 0 else np.zeros(D) for r in line] for line in rows])
    np.testing.assert_array_equal(index.vectors(rows), expected.astype(np.float32))
    assert index.vectors(np.array([], np.int64)).shape == (0, D)
    assert index.vectors(np.array(7)).shape == (D,)
    with pytest.raises(IndexError):
        index.vectors(np.array([50]))


def test_exact_search_merges_blocks(tmp_path):
    index = make(tmp_path)
    products = random_queries(4) @ encode(corpus(50)).T
    scores, rows = exact_search(Vectors(tmp_path / "vectors", 50, D, 20), random_queries(4), 30)
    np.testing.assert_array_equal(rows, np.argsort(-products, axis=1)[:, :30])
    np.testing.assert_allclose(scores, -np.sort(-products, axis=1)[:, :30], rtol=1e-5)
    assert len(index) == 50


# ---------------------------------------------------------------------------------- embedding


def test_little_is_padding_and_each_passage_is_encoded_once(tmp_path):
    store = PassageStore.write(corpus(50), tmp_path / "passages")
    batches: list[list[Passage]] = []
    count = embed(
        store, lambda b: (batches.append(b), encode(b))[1], tmp_path, ENCODER, 30, 4, show_progress=False
    )
    assert count == 50
    assert sorted(int(p.id) for b in batches for p in b) == list(range(1, 51))
    spread = [max(lengths) - min(lengths) for b in batches if (lengths := [len(p.text) for p in b])]
    assert np.mean(spread) < 20  # of texts that are 8 to 98 characters long


def test_an_interrupted_run_goes_on_and_gives_the_same_bytes(tmp_path):
    for name in ("whole", "stopped"):
        PassageStore.write(corpus(50), tmp_path / name / "passages")
    whole, stopped = (PassageStore.open(tmp_path / name / "passages") for name in ("whole", "stopped"))
    embed(whole, encode, tmp_path / "whole", ENCODER, 15, 4, show_progress=False)

    calls = 0

    def killed(passages: list[Passage]) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls > 6:
            raise KeyboardInterrupt
        return encode(passages)

    with pytest.raises(KeyboardInterrupt):
        embed(stopped, killed, tmp_path / "stopped", ENCODER, 15, 4, show_progress=False)
    with pytest.raises(UserError, match="15 vectors for 50 passages: .* to embed the missing 35"):
        build(tmp_path / "stopped", show_progress=False)
    (tmp_path / "stopped/vectors/00001.npy").write_bytes(b"\x93NUMPY cut short")  # not by us, but it happens
    assert embed(stopped, encode, tmp_path / "stopped", ENCODER, 15, 4, show_progress=False) == 35
    assert bytes_of(tmp_path / "stopped/vectors") == bytes_of(tmp_path / "whole/vectors")
    assert embed(stopped, killed, tmp_path / "stopped", ENCODER, 15, 4, show_progress=False) == 0


def test_a_run_killed_by_the_system_goes_on_to_the_same_bytes(tmp_path):
    """SIGKILL while a shard is encoded: nothing can be tidied up, and nothing half-written passes for a shard."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    make(whole, 50, shard_size=10)
    PassageStore.write(corpus(50), killed / "passages")
    script = f"""
import sys, time; sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]!r}
from clustered import ENCODER, PassageStore, embed, encode
from pathlib import Path
folder = Path({str(killed)!r})
def slow(batch):
    if any(p.id == "25" for p in batch):
        print("encoding", flush=True)
        time.sleep(60)
    return encode(batch)
embed(PassageStore.open(folder / "passages"), slow, folder, ENCODER, 10, 7, show_progress=False)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "encoding\n"
        process.kill()
    (killed / "vectors/.00002.npy.99.partial").write_bytes(
        b"half"
    )  # what a kill in the middle of writing leaves
    assert sorted(f.name for f in (killed / "vectors").glob("0*")) == ["00000.npy", "00001.npy"]
    store = PassageStore.open(killed / "passages")
    assert embed(store, encode, killed, ENCODER, 10, 7, show_progress=False) == 30
    build(killed, show_progress=False)
    assert bytes_of(killed / "vectors") == bytes_of(whole / "vectors")


def test_two_processes_share_the_shards(tmp_path):
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    make(whole, 70, shard_size=10)
    PassageStore.write(corpus(70), shared / "passages")
    script = f"""
import sys; sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]!r}
from clustered import ENCODER, PassageStore, embed, encode
from pathlib import Path
folder = Path({str(shared)!r})
store = PassageStore.open(folder / "passages")
print(embed(store, encode, folder, ENCODER, 10, 7, int(sys.argv[1]), 2, False))
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(i)], stdout=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    assert sum(int(p.communicate(timeout=120)[0]) for p in processes) == 70
    build(shared, show_progress=False)
    assert bytes_of(shared / "vectors") == bytes_of(whole / "vectors")


def test_another_corpus_encoder_or_shard_size_is_refused(tmp_path):
    index = make(tmp_path)
    before = bytes_of(tmp_path)
    other = PassageStore.write(corpus(49), tmp_path.with_name("other") / "passages")
    with pytest.raises(UserError, match=r"started with another corpus \(50 passages, hash .*; now 49"):
        embed(other, encode, tmp_path, ENCODER, 20, show_progress=False)
    with pytest.raises(UserError, match=r"encoder tiny-dpr \(weights w-hash\), not with new \(weights w2\)"):
        embed(index.passages, encode, tmp_path, EncoderInfo("new", "w2", "t-hash"), 20, show_progress=False)
    with pytest.raises(UserError, match="started with shard_size=20, not 30"):
        embed(index.passages, encode, tmp_path, ENCODER, 30, show_progress=False)
    assert bytes_of(tmp_path) == before


def test_an_encoder_that_gives_nonsense_is_refused(tmp_path):
    store = PassageStore.write(corpus(5), tmp_path / "passages")
    with pytest.raises(UserError, match=r"array of shape \(1, 16\) for 5 passages"):
        embed(store, lambda b: encode(b[:1]), tmp_path, ENCODER, show_progress=False)

    def broken(passages: list[Passage]) -> np.ndarray:
        return np.stack([vector_of(p) * (np.inf if p.id == "4" else 1) for p in passages])

    with pytest.raises(UserError, match="not finite for passage '4'"):
        embed(store, broken, tmp_path, ENCODER, show_progress=False)
    assert not list((tmp_path / "vectors").glob("*.npy"))


def test_a_second_build_in_one_folder_is_refused(tmp_path):
    index = make(tmp_path)
    with lock_folder(tmp_path):
        with pytest.raises(UserError, match=r"another build \(process \d+\) is at work"):
            build(tmp_path, show_progress=False)
        with pytest.raises(UserError, match="another build"):
            embed(index.passages, encode, tmp_path, ENCODER, 20, process_index=1, process_count=2)
    with lock_folder(tmp_path, 0, 2), lock_folder(tmp_path, 1, 2):  # two processes of one build
        with pytest.raises(UserError, match="another build"):
            build(tmp_path, show_progress=False)
    build(tmp_path, show_progress=False)  # the locks went with their holders


def test_prepare_keeps_to_one_corpus_and_holds_the_lock(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"id": 1, "text": "x"}\n')
    folder = tmp_path / "index"
    with pytest.raises(UserError, match="none.tsv does not exist"):
        prepare(tmp_path / "none.tsv", folder)
    assert not folder.exists()
    assert list(prepare(path, folder, show_progress=False)) == [Passage("1", "", "x")]
    path.write_text('{"id": 1, "text": "x"}\n{"id": 2, "text": "y"}\n')
    with pytest.raises(UserError, match="holds the 1 passages of"):
        prepare(path, folder)
    with lock_folder(folder), pytest.raises(UserError, match="another build"):
        prepare(path, folder)


def test_a_full_disk_while_embedding_is_told_and_leaves_no_half_shard(tmp_path, monkeypatch):
    store = PassageStore.write(corpus(5), tmp_path / "passages")

    def full(file, array, **_):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(UserError, match="00000.npy cannot be written .No space left on device"):
        embed(store, encode, tmp_path, ENCODER, show_progress=False)
    assert [f.name for f in (tmp_path / "vectors").iterdir()] == ["plan.json"]


def test_a_path_that_is_a_file_is_refused(tmp_path):
    store = PassageStore.write(corpus(5), tmp_path / "passages")
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "index"):
        with pytest.raises(UserError, match="is not a folder"):
            embed(store, encode, path, ENCODER, show_progress=False)
    assert (tmp_path / "file").read_text() == "mine"
