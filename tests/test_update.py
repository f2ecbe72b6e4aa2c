"""Another edition of an index: passages added and removed, nothing embedded twice, the old one never harmed."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from clustered import ENCODER, bytes_of, corpus, encode, make, random_queries, write_tsv

from rag.errors import UserError
from rag.index.faiss_types import IndexType
from rag.index.folder import Index
from rag.index.passage import Passage
from rag.index.update import read_ids
from rag.index.update import update as update_folder
from rag.index.vectors import EncoderInfo

NEW = [Passage(f"new {n}", f"title {n % 20}", f"news of {n}") for n in range(9)]


def holds(index: Index, passages: list[Passage], k: int = 5) -> None:
    """The index is one over exactly these passages, as if it had been made of them at once."""
    assert list(index.passages) == passages
    truth = encode(passages)
    np.testing.assert_array_equal(index.vectors(np.arange(len(passages))), truth)
    queries = random_queries(20)
    best = np.argsort(-(queries @ truth.T), axis=1)[:, :k]
    _, rows = index.search(queries, k)
    recall = np.mean([len(set(a) & set(b)) / k for a, b in zip(rows, best, strict=True)])
    assert recall >= 0.97
    assert index.manifest.recall["5"] >= 0.97
    index.verify()


def update(folder: Path, *arguments, **settings) -> Index:
    """The new edition, opened."""
    update_folder(folder, *arguments, **settings)
    return Index.open(folder)


TYPES = ["Flat", "HNSW32", "IVF{nlist},SQ8"]


@pytest.mark.parametrize("factory", TYPES)
def test_adding_and_removing(tmp_path, factory):
    """Also of a type that FAISS cannot remove from (HNSW), and one that leaves gaps in its numbers (IVF)."""
    passages = corpus(400)
    make(tmp_path / "index", 400, IndexType(factory), shard_size=150)
    made = []
    gone = ["3", "200", "201", "400"]
    index = update(
        tmp_path / "index",
        write_tsv(tmp_path / "more.tsv", NEW),
        gone,
        lambda batch: (made.extend(batch), encode(batch))[1],
        ENCODER,
        show_progress=False,
    )
    assert sorted(made, key=lambda p: p.id) == NEW  # nothing else was encoded
    holds(index, [p for p in passages if p.id not in gone] + NEW)
    assert index.manifest.corpus.passages == 405 and index.manifest.encoder == ENCODER
    changes = (index.passages.source or {})["changes"]
    assert changes == [{"removed": 4, "added": str(tmp_path / "more.tsv")}]
    assert [f.name for f in tmp_path.iterdir() if f.name.startswith(".")] == []


@pytest.mark.parametrize("factory", ["IVF{nlist},SQ8", "SQ8"])
def test_a_small_change_keeps_what_was_trained(tmp_path, factory, monkeypatch):
    make(tmp_path / "index", 400, IndexType(factory))
    monkeypatch.setattr("rag.index.faiss_types.new_index", lambda *_: pytest.fail("trained anew"))
    holds(
        update(tmp_path / "index", removed=["1", "77"], show_progress=False),
        [*corpus(76)[1:], *corpus(400)[77:]],
    )


def test_shards_before_the_first_change_are_not_copied(tmp_path):
    index = make(tmp_path / "index", 50, shard_size=20)
    inode = (index.folder / "vectors/00000.npy").stat().st_ino
    index = update(index.folder, removed=["45"], show_progress=False)
    shards = [index.folder / f"vectors/0000{n}.npy" for n in range(3)]
    assert shards[0].stat().st_ino == inode
    assert [len(np.load(shard)) for shard in shards] == [20, 20, 9]


def test_a_passage_is_replaced(tmp_path):
    make(tmp_path / "index", 50)
    newer = Passage("7", "title 6", "number six, revised")
    index = update(
        tmp_path / "index",
        write_tsv(tmp_path / "m.tsv", [newer]),
        ["7"],
        encode,
        ENCODER,
        show_progress=False,
    )
    holds(index, [p for p in corpus(50) if p.id != "7"] + [newer])


def test_an_index_opened_before_goes_on_with_the_old_edition(tmp_path):
    old = make(tmp_path / "index", 50)
    queries = random_queries(3)
    before = old.search(queries, 4)
    update(old.folder, removed=["1"], show_progress=False)
    for a, b in zip(before, old.search(queries, 4), strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(Index.open(old.folder)) == 49


def test_all_but_a_few_can_be_removed_and_many_added(tmp_path):
    make(tmp_path / "index", 60)
    index = update(tmp_path / "index", removed=[str(n) for n in range(1, 56)], show_progress=False)
    holds(index, corpus(60)[55:], k=4)
    more = write_tsv(tmp_path / "more.tsv", corpus(55))
    holds(
        update(tmp_path / "index", more, (), encode, ENCODER, show_progress=False),
        corpus(60)[55:] + corpus(55),
    )


def test_what_cannot_be_done_leaves_the_index_as_it_was(tmp_path):
    folder = make(tmp_path / "index", 50).folder
    before = bytes_of(folder)
    more = write_tsv(tmp_path / "more.tsv", NEW)
    twice = write_tsv(tmp_path / "twice.tsv", [*NEW, corpus(3)[2]])
    broken = tmp_path / "broken.tsv"
    broken.write_text("id\ttext\ttitle\nx\ty\n")
    other = EncoderInfo("other", "w2", "t2")

    def stopped(_):
        raise MemoryError("no room")

    for error, sentence, arguments in [
        (UserError, "holds no passage 'x' or 'y' .2 of the 3 ids to remove", (None, ["x", "1", "y"])),
        (UserError, "no passage of .* would be left", (None, [p.id for p in corpus(50)])),
        (UserError, "cannot be added without the passage encoder", (more,)),
        (UserError, r"embedded by tiny-dpr \(weights w-hash\), not by other", (more, (), encode, other)),
        (UserError, "twice.tsv holds the passage '3', which is in", (twice, (), encode, ENCODER)),
        (UserError, "broken.tsv, line 2: 2 columns", (broken, (), encode, ENCODER)),
        (UserError, "gave an array of shape", (more, (), lambda b: encode(b)[:1], ENCODER)),
        (
            UserError,
            "makes vectors of 8 dimensions and the others have 16",
            (more, (), lambda b: encode(b)[:, :8], ENCODER),
        ),
        (MemoryError, "no room", (more, (), stopped, ENCODER)),
    ]:
        with pytest.raises(error, match=sentence):
            update(folder, *arguments, show_progress=False)
        assert bytes_of(folder) == before
    update(folder, more, (), encode, ENCODER, show_progress=False)  # what was left behind is no hindrance
    holds(Index.open(folder), corpus(50) + NEW)


def test_tokens_are_dropped(tmp_path):
    folder = make(tmp_path / "index", 50).folder
    (folder / "tokens-0123").mkdir()
    update(folder, removed=["1"], show_progress=False)
    assert not list(folder.glob("tokens-*"))


def test_ids_in_a_file(tmp_path):
    (tmp_path / "ids.txt").write_bytes(b"\xef\xbb\xbf7\n\n  wiki:8 \r\n")
    assert read_ids(tmp_path / "ids.txt") == ["7", "wiki:8"]
    (tmp_path / "none.txt").write_text("\n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\n")
    for name, sentence in {"none": "holds no ids", "bytes": "is not UTF-8", "gone": "cannot be read"}.items():
        with pytest.raises(UserError, match=f"{name}.txt {sentence}"):
            read_ids(tmp_path / f"{name}.txt")


def test_a_killed_update_goes_on(tmp_path):
    """Killed by the system while the new passages are embedded; again, it encodes only what is missing."""
    folder = make(tmp_path / "index", 50, shard_size=5).folder
    before = bytes_of(folder)
    write_tsv(tmp_path / "more.tsv", NEW)
    script = f"""
import sys, time; sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]!r}
from clustered import ENCODER, encode
from rag.index.update import update
def slow(batch):
    print("batch", flush=True)
    if any(p.id == "new 6" for p in batch):
        time.sleep(60)
    return encode(batch)
update({str(folder)!r}, {str(tmp_path / "more.tsv")!r}, (), slow, ENCODER, batch_size=1, show_progress=False)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    shard = tmp_path / ".index.new/vectors/00010.npy"
    while not shard.exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert bytes_of(folder) == before
    made = []
    index = update(
        folder,
        tmp_path / "more.tsv",
        (),
        lambda batch: (made.extend(p.id for p in batch), encode(batch))[1],
        ENCODER,
        show_progress=False,
    )
    assert made == ["new 8", "new 7", "new 6", "new 5"] or sorted(made) == [
        "new 5",
        "new 6",
        "new 7",
        "new 8",
    ]
    holds(index, corpus(50) + NEW)


def test_an_update_that_had_finished_does_nothing_when_it_is_asked_for_again(tmp_path):
    """Also of passages without ids, which would be numbered anew; and once the index was changed again, it is done."""
    folder = make(tmp_path / "index", 50).folder
    more = tmp_path / "more.tsv"
    more.write_text("text\ttitle\nwithout an id\ttitle 3\n")
    asked = (more, ["1", "7"], encode, ENCODER)
    assert update_folder(folder, *asked, show_progress=False)
    before = bytes_of(folder)
    (folder / ".index.faiss.12.partial").touch()
    assert not update_folder(folder, *asked, show_progress=False)
    assert not update_folder(folder, more, ["7", "1"], show_progress=False)  # needs no encoder
    assert bytes_of(folder) == before
    assert update_folder(folder, removed=["51"], show_progress=False)
    assert update_folder(folder, more, (), encode, ENCODER, show_progress=False)
    assert len(Index.open(folder)) == 49
    more.write_text("text\ttitle\nof another edition\ttitle 3\n")
    assert update_folder(folder, more, (), encode, ENCODER, show_progress=False)
    assert len(Index.open(folder)) == 50
