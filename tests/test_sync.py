"""An index that is brought up to date with its folder: what is embedded, what stays, what goes, and what is refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from clustered import D, bytes_of, random_queries

from rag.errors import UserError
from rag.files import read_json
from rag.index.faiss_types import IndexType
from rag.index.folder import Index
from rag.index.from_corpus import build_from_corpus
from rag.index.passage import Passage
from rag.index.passages import PassageStore
from rag.index.reading import AS_USUAL, CorpusReading
from rag.index.sync import Synchronised, listed_documents, synchronise
from rag.index.update import update
from rag.index.vectors import EncoderInfo

COUNTRIES = ["Chad", "Peru", "Oman", "Fiji", "Mali", "Cuba"]
SHORT = CorpusReading(split="words", size=5)


class Encoder:
    """Vectors that depend on title and text alone; it keeps which passages it was given."""

    def __init__(self, dies_after: int = 10**9, name: str = "by words"):
        self.seen: list[str] = []
        self.dies_after = dies_after
        self.info = EncoderInfo(name, name, name)

    def encode(self, passages: list[Passage]) -> np.ndarray:
        if len(self.seen) >= self.dies_after:
            raise KeyboardInterrupt
        self.seen += [passage.id for passage in passages]
        return np.stack([self.vector(passage) for passage in passages])

    def vector(self, passage: Passage) -> np.ndarray:
        seed = list(f"{passage.title} {passage.text}".encode())
        return np.random.default_rng(seed).standard_normal(D, np.float32)

    def describe(self) -> EncoderInfo:
        return self.info


def article(name: str, words: int = 12) -> str:
    return f"# {name}\n\n" + " ".join(f"{name.lower()}{n}" for n in range(words))


@pytest.fixture
def docs(tmp_path) -> Path:
    (tmp_path / "docs" / "more").mkdir(parents=True)
    for number, name in enumerate(COUNTRIES):
        (tmp_path / "docs" / ("more" if number > 3 else "") / f"{name}.md").write_text(article(name))
    return tmp_path / "docs"


def built(docs: Path, kind: str = "Flat", reading: CorpusReading = SHORT, shard_size: int = 4) -> Path:
    folder = docs.with_name("index")
    build_from_corpus(
        folder,
        docs,
        Encoder(),
        IndexType(kind),
        reading=reading,
        shard_size=shard_size,
        show_progress=False,
    )
    return folder


def sync(folder: Path, docs: Path, encoder: Encoder | None = None, **settings) -> Synchronised:
    encoder = encoder or Encoder()
    settings = {"reading": SHORT, "show_progress": False} | settings
    return synchronise(folder, docs, encoder.encode, encoder.info, **settings)


def check_like_new(folder: Path, docs: Path, reading: CorpusReading = SHORT) -> None:
    """It holds what an index would that was built now, in another order, and finds the same."""
    index, encoder = Index.open(folder), Encoder()
    index.verify()
    store = PassageStore.read(docs, folder.with_name("fresh"), reading=reading)
    assert sorted(index.passages, key=lambda p: p.id) == sorted(store, key=lambda p: p.id)
    passages = list(index.passages)
    truth = encoder.encode(passages)
    np.testing.assert_array_equal(index.vectors(np.arange(len(index))), truth)
    queries = random_queries(10)
    k = min(3, len(index))
    _, rows = index.search(queries, k)
    assert (rows == np.argsort(-(queries @ truth.T), axis=1)[:, :k]).all()
    assert sorted(index.passages.documents() or [], key=lambda d: d.name) == sorted(
        store.documents() or [], key=lambda d: d.name
    )
    shutil.rmtree(folder.with_name("fresh"))


def test_only_what_is_new_or_changed_is_embedded(docs):
    folder = built(docs)
    assert [(d.name, d.passages) for d in listed_documents(folder)][:2] == [("Chad.md", 3), ("Fiji.md", 3)]
    before = bytes_of(folder)
    assert sync(folder, docs) == Synchronised(0, 0, 0, 6, 0)
    assert bytes_of(folder) == before
    (docs / "Peru.md").write_text(article("Peru").replace("peru11", "PERU"))
    (docs / "Togo.md").write_text(article("Togo"))
    (docs / "more" / "Cuba.md").unlink()
    encoder = Encoder()
    assert sync(folder, docs, encoder) == Synchronised(new=1, changed=1, gone=1, unchanged=4, embedded=4)
    assert sorted(encoder.seen) == ["Peru.md#3", "Togo.md#1", "Togo.md#2", "Togo.md#3"]
    check_like_new(folder, docs)
    assert sync(folder, docs) == Synchronised(0, 0, 0, 6, 0)
    # and the command without sync=true takes it for the index of this folder
    build_from_corpus(folder, docs, Encoder(dies_after=0), reading=SHORT, show_progress=False)


def test_the_same_bytes_at_another_time_or_place_or_name_embed_nothing(docs):
    folder = built(docs)
    (docs / "Chad.md").touch()
    assert sync(folder, docs).nothing
    docs = docs.rename(docs.with_name("moved"))
    assert sync(folder, docs).nothing
    (docs / "Chad.md").rename(docs / "Tchad.md")
    encoder = Encoder()
    assert sync(folder, docs, encoder) == Synchronised(1, 0, 1, 5, 0) and not encoder.seen
    check_like_new(folder, docs)
    shutil.copy(docs / "Peru.md", docs / "copy.md")
    assert sync(folder, docs, encoder) == Synchronised(1, 0, 0, 6, 0) and not encoder.seen


@pytest.mark.parametrize("kind", ["HNSW32", "IVF2,SQ8", "SQ8"])
def test_an_index_of_any_type(docs, kind):
    """Edited where FAISS can, else built anew of the vectors."""
    for number in range(60):
        (docs / f"{number}.txt").write_text(" ".join(f"w{number}x{n}" for n in range(20)))
    folder = built(docs, kind)
    (docs / "7.txt").write_text("another text")
    (docs / "8.txt").unlink()
    encoder = Encoder()
    assert sync(folder, docs, encoder) == Synchronised(0, 1, 1, 64, 1) and encoder.seen == ["7.txt#1"]
    index = Index.open(folder)
    assert index.manifest.recall["1"] >= 0.9 and index.manifest.type["factory"] == kind
    np.testing.assert_array_equal(
        index.vectors(np.arange(len(index))), Encoder().encode(list(index.passages))
    )


def test_a_document_is_removed_by_its_name(docs):
    folder = built(docs)
    update(folder, removed=["more/Cuba.md", "Peru.md#2"], show_progress=False)
    index = Index.open(folder)
    assert not [id for id in index.passages.ids(range(len(index))) if "Cuba" in id or id == "Peru.md#2"]
    left = {d.name: d.passages for d in listed_documents(folder)}
    assert left == {"Chad.md": 3, "Fiji.md": 3, "Oman.md": 3, "Peru.md": 2, "more/Mali.md": 3}
    with pytest.raises(
        UserError, match="no passage 'Cuba.md' .* no document of that name: give ids that it holds"
    ):
        update(folder, removed=["Cuba.md"], show_progress=False)
    assert sync(folder, docs).embedded == 3  # it comes back with its folder; Peru.md is as it was read
    assert {d.name for d in listed_documents(folder)} == {*left, "more/Cuba.md"}


def test_what_was_added_from_elsewhere_is_listed_and_goes(docs, tmp_path):
    folder = built(docs)
    (tmp_path / "more.tsv").write_text("title\ttext\nA\tone more\n")
    encoder = Encoder()
    update(folder, tmp_path / "more.tsv", (), encoder.encode, encoder.info, show_progress=False)
    assert encoder.seen == ["1"] and listed_documents(folder)[-1].name == "more.tsv"
    assert sync(folder, docs, encoder) == Synchronised(0, 0, 1, 6, 0)
    check_like_new(folder, docs)


def test_another_way_of_reading_embeds_what_it_makes_new(docs):
    folder = built(docs)
    encoder = Encoder()
    done = sync(folder, docs, encoder, reading=CorpusReading(split="words", size=6))
    assert done.changed == 6 and len(encoder.seen) == 12 and done.embedded == 12
    check_like_new(folder, docs, CorpusReading(split="words", size=6))
    assert sync(folder, docs, reading=CorpusReading(split="words", size=6)).nothing


def test_a_table_is_synchronised_by_its_rows(tmp_path):
    file = tmp_path / "p.tsv"
    file.write_text("id\ttext\n" + "".join(f"{n}\ttext {n}\n" for n in range(20)))
    folder = tmp_path / "index"
    build_from_corpus(folder, file, Encoder(), show_progress=False)
    file.write_text("id\ttext\n" + "".join(f"{n}\ttext {n}\n" for n in range(1, 19)) + "20\tnew\n")
    encoder = Encoder()
    assert sync(folder, file, encoder, reading=AS_USUAL) == Synchronised(0, 1, 0, 0, 1)
    assert encoder.seen == ["20"]
    check_like_new(folder, file, AS_USUAL)


def test_documents_and_tables_in_one_folder(docs):
    (docs / "staff.csv").write_text("title,text\nPia Roth,sells milk\nJo Orr,sells bread\n")
    (docs / "notes.jsonl").write_text('{"id": "n1", "text": "a note"}\n')
    folder = built(docs, reading=AS_USUAL)
    ids = Index.open(folder).passages.ids(range(9))
    assert {"staff.csv#1", "staff.csv#2", "n1", "more/Cuba.md#1"} <= set(ids)
    (docs / "staff.csv").write_text("title,text\nPia Roth,sells milk\nJo Orr,sells cake\n")
    encoder = Encoder()
    assert sync(folder, docs, encoder, reading=AS_USUAL).changed == 1 and encoder.seen == ["staff.csv#2"]
    check_like_new(folder, docs, AS_USUAL)


def test_an_index_that_does_not_know_its_documents_learns_them(docs):
    """As one that an earlier version built: nothing that it holds is embedded again."""
    folder = built(docs)
    (folder / "passages" / "documents.json").unlink()
    manifest = read_json(folder / "manifest.json")
    del manifest["files"]["passages/documents.json"], manifest["checksum"]
    from rag.files import write_json
    from rag.index.manifest import _checksum

    write_json(folder / "manifest.json", manifest | {"checksum": _checksum(manifest)})
    with pytest.raises(UserError, match="does not say which documents .*: corpus.path=… sync=true"):
        listed_documents(folder)
    encoder = Encoder()
    assert sync(folder, docs, encoder).embedded == 0 and not encoder.seen
    assert len(listed_documents(folder)) == 6
    check_like_new(folder, docs)


def test_a_killed_call_is_resumed_and_harms_nothing(docs):
    folder = built(docs)
    before = bytes_of(folder)
    for number in range(4):
        (docs / f"{number}.txt").write_text(" ".join(f"w{number}x{n}" for n in range(15)))
    with pytest.raises(KeyboardInterrupt):
        sync(folder, docs, Encoder(dies_after=5), batch_size=2)
    assert bytes_of(folder) == before
    encoder = Encoder()
    assert sync(folder, docs, encoder, batch_size=2).new == 4
    assert 0 < len(encoder.seen) < 12  # the shards that were complete are not made again
    check_like_new(folder, docs)


def test_refusals_leave_the_index_as_it_was(docs, tmp_path):
    folder = built(docs)
    before = bytes_of(folder)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.md").write_text("x y")
    with pytest.raises(
        UserError, match="holds the passages of .*docs, of which .*other has no file: give corpus.path"
    ):
        sync(folder, tmp_path / "other")
    (docs / "new.md").write_text("new text")
    with pytest.raises(UserError, match="embedded by by words .* not by another"):
        sync(folder, docs, Encoder(name="another"))
    with pytest.raises(UserError, match="without the passage encoder"):
        synchronise(folder, docs, reading=SHORT, show_progress=False)
    (docs / "new.md").unlink()
    for name in COUNTRIES:
        for file in docs.rglob(f"{name}.md"):
            file.write_text("")
    with pytest.raises(UserError, match="holds no text"):
        sync(folder, docs)
    with pytest.raises(UserError, match="does not exist: give the path of a corpus"):
        sync(folder, docs / "none")
    assert bytes_of(folder) == before
    assert sync(folder, tmp_path / "other", replace_all=True) == Synchronised(1, 0, 6, 0, 1)
    check_like_new(folder, tmp_path / "other")


def test_a_thousand_files_of_which_ten_changed(tmp_path):
    docs = tmp_path / "docs"
    docs.mkdir()
    for number in range(1_000):
        (docs / f"{number}.md").write_text(f"# Title {number}\n\nText of number {number}.")
    folder = built(docs, shard_size=500)
    for number in range(0, 1_000, 100):
        (docs / f"{number}.md").write_text(f"# Title {number}\n\nAnother text of number {number}.")
    encoder = Encoder()
    assert sync(folder, docs, encoder) == Synchronised(0, 10, 0, 990, 10)
    assert sorted(encoder.seen) == sorted(f"{number}.md#1" for number in range(0, 1_000, 100))
