"""Vectors that come with a corpus, as the hub's facebook/wiki_dpr: taken over, and held against the passages."""

import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from clustered import ENCODER, D, bytes_of, corpus, encode, write_parquet

from rag.download.fetch import partial_of
from rag.errors import UserError
from rag.index.build import build
from rag.index.embed import embed
from rag.index.folder import Index
from rag.index.passage import Passage
from rag.index.passages import PassageStore
from rag.index.readers import read_passages
from rag.index.ready_vectors import ReadyVectors
from rag.index.vectors import UNKNOWN, EncoderInfo, Vectors


def never(passages):
    raise AssertionError(f"{len(passages)} passages were encoded that have a vector")


@pytest.fixture
def store(tmp_path):
    return PassageStore.write(corpus(50), tmp_path / "index" / "passages")


def vectors_of(tmp_path, count=50, size=20):
    return Vectors(tmp_path / "index" / "vectors", count, D, size).gather(np.arange(count))


@pytest.mark.parametrize("fixed", [False, True])
def test_wiki_dpr_is_taken_over_without_encoding(tmp_path, fixed):
    """The corpus, its vectors and the index come from the same Parquet files."""
    files = write_parquet(tmp_path / "nq", corpus(50), fixed=fixed)
    store = PassageStore.prepare(files, tmp_path / "index" / "passages")
    known = ReadyVectors.open(files).of(store)
    assert (len(known.source), known.dim, known.missing, known.strangers) == (50, D, 0, 0)
    info = EncoderInfo("facebook/dpr-ctx_encoder-single-nq-base", UNKNOWN, UNKNOWN)
    assert embed(store, None, tmp_path / "index", info, 20, show_progress=False, known=known) == 50
    np.testing.assert_array_equal(vectors_of(tmp_path), encode(corpus(50)))
    build(tmp_path / "index", show_progress=False)
    index = Index.open(tmp_path / "index")
    assert index.manifest.encoder == info
    assert index.manifest.recall["1"] == 1.0


@pytest.mark.parametrize(
    ("stored", "meant"),
    [
        ('"""Heroes"" (David Bowie album)"', '"Heroes" (David Bowie album)'),  # as facebook/wiki_dpr keeps it
        ('"The ""A"" and the ""B"""', 'The "A" and the "B"'),
        ('"Heroes"', '"Heroes"'),  # quotes of its own: no field would be quoted without a need
        ('"Heroes" and "Villains"', '"Heroes" and "Villains"'),
        ('12" vinyl', '12" vinyl'),
        ('"', '"'),
        ('""', '""'),
        ("", ""),
        ("two  spaces", "two  spaces"),
    ],
)
def test_titles_that_are_quoted_fields_are_read_as_the_tsv_means_them(tmp_path, stored, meant):
    write_parquet(tmp_path / "nq", [Passage("1", stored, 'a ""text"" stays')], files=1)
    assert list(read_passages(tmp_path / "nq")) == [Passage("1", meant, 'a ""text"" stays')]
    if stored != meant:
        (tmp_path / "psgs.tsv").write_text(f'id\ttext\ttitle\n1\t"a"\t{stored}\n')
        assert next(read_passages(tmp_path / "psgs.tsv")).title == meant


def test_a_folder_that_lacks_some_of_its_files_is_told(tmp_path, caplog):
    """A part may be meant, and is said; where a download was broken off, it is not."""
    files = write_parquet(tmp_path / "nq", corpus(50), files=5)
    for number in (1, 3):
        (files / f"train-{number:05d}-of-00005.parquet").unlink()
    lacks = f"{files} lacks train-00001-of-00005.parquet and 1 more of 5 files"
    partial = partial_of(files / "train-00001-of-00005.parquet")
    for read in (lambda: list(read_passages(files)), lambda: ReadyVectors.open(files)):
        caplog.clear()
        assert len(read()) == 30
        assert caplog.messages == [f"{lacks}: the rest is taken for all there is"]
        partial.write_bytes(b"PAR1")
        with pytest.raises(
            UserError, match=f"{re.escape(lacks)}, and a download was broken off there: run it"
        ):
            read()
        partial.unlink()


def test_without_the_embeddings_the_same_files_are_passages(tmp_path):
    files = write_parquet(tmp_path / "no_embeddings", corpus(50), left_out=["embeddings"])
    assert list(PassageStore.prepare(files, tmp_path / "p")) == corpus(50)
    with pytest.raises(
        UserError, match="has no column embeddings, only id, text, title: .* leave corpus.vectors out"
    ):
        ReadyVectors.open(files)


@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_numpy_files_belong_by_their_place(tmp_path, store, kind):
    truth = encode(corpus(50)).astype(kind)
    (tmp_path / "npy").mkdir()
    np.save(tmp_path / "npy" / "0.npy", truth[:30])
    np.save(tmp_path / "npy" / "1.npy", truth[30:])
    known = ReadyVectors.open(tmp_path / "npy").of(store)
    embed(store, None, tmp_path / "index", ENCODER, 20, show_progress=False, known=known)
    np.testing.assert_array_equal(vectors_of(tmp_path), truth.astype(np.float32))


def test_passages_without_a_vector_are_named_and_can_be_encoded(tmp_path, store):
    """As with psgs_w100.tsv, which has 24 passages more than wiki_dpr has vectors."""
    passages = corpus(50)
    kept = [p for p in passages if int(p.id) not in (1, 17, 18, 40) and int(p.id) < 48]
    known = ReadyVectors.open(write_parquet(tmp_path / "nq", kept)).of(store)
    assert known.missing == 7
    assert known.describe_missing() == (
        "7 have none: row 1 (id '1'), rows 17 to 18 (ids '17' to '18'), row 40 (id '40'), …"
    )
    with pytest.raises(UserError, match="passage '1' has no vector, and there is no encoder"):
        embed(store, None, tmp_path / "index", ENCODER, 20, show_progress=False, known=known)
    made = []
    embed(
        store,
        lambda batch: (made.extend(p.id for p in batch), encode(batch))[1],
        tmp_path / "index",
        ENCODER,
        20,
        show_progress=False,
        known=known,
    )
    assert sorted(made, key=int) == ["1", "17", "18", "40", "48", "49", "50"]
    np.testing.assert_array_equal(vectors_of(tmp_path), encode(passages))


def test_the_last_ones_missing_are_told_in_one_range(tmp_path, store):
    known = ReadyVectors.open(write_parquet(tmp_path / "nq", corpus(50)[:45])).of(store)
    assert known.describe_missing() == "5 have none: rows 46 to 50 (ids '46' to '50')"


@pytest.mark.parametrize("named", [False, True])
def test_vectors_of_passages_that_the_corpus_lacks_are_left_out(tmp_path, named):
    """A small corpus, cut from a large one whose vectors exist; ids that are numbers, and ids that are not."""
    passages = corpus(300)
    if named:
        passages = [Passage(f"wiki:{p.id}", p.title, p.text) for p in passages]
    chosen = [p for n, p in enumerate(passages) if n % 7 in (2, 3) or n > 280]
    store = PassageStore.write(chosen, tmp_path / "index" / "passages")
    known = ReadyVectors.open(write_parquet(tmp_path / "nq", passages, group=50)).of(store)
    assert (known.missing, known.strangers) == (0, 300 - len(chosen))
    embed(store, None, tmp_path / "index", ENCODER, 20, show_progress=False, known=known)
    np.testing.assert_array_equal(vectors_of(tmp_path, len(chosen)), encode(chosen))


def test_reading_goes_anywhere_and_equals_the_whole(tmp_path):
    source = ReadyVectors.open(write_parquet(tmp_path / "nq", corpus(100), files=4, group=6))
    truth = encode(corpus(100))
    random = np.random.default_rng(0)
    for start in [0, 3, 3, 60, 61, 99, 24, 0, *random.integers(0, 100, 20)]:
        out = np.empty((min(100 - start, random.integers(1, 40)), D), np.float32)
        source.read(int(start), out)
        np.testing.assert_array_equal(out, truth[start : start + len(out)])


def test_a_second_run_goes_on_at_the_first_missing_shard(tmp_path, store):
    known = ReadyVectors.open(write_parquet(tmp_path / "nq", corpus(50))).of(store)
    embed(store, None, tmp_path / "index", ENCODER, 20, show_progress=False, known=known)
    before = bytes_of(tmp_path / "index" / "vectors")
    (tmp_path / "index/vectors/00001.npy").unlink()
    assert embed(store, None, tmp_path / "index", ENCODER, 20, show_progress=False, known=known) == 20
    assert bytes_of(tmp_path / "index" / "vectors") == before


def test_the_encoder_is_checked_where_it_is_at_hand(tmp_path, store):
    known = ReadyVectors.open(write_parquet(tmp_path / "nq", corpus(50))).of(store)
    known.check_encoder(encode, "tiny-dpr")
    assert re.search(r"; \d+ passages encoded again by tiny-dpr: median cosine 1.0000$", known.origin)
    with pytest.raises(
        UserError, match="holds other vectors than another makes: .* median cosine of -?0.*, not"
    ):
        known.check_encoder(lambda batch: encode(batch)[:, ::-1], "another")
    with pytest.raises(UserError, match="vectors of 16 dimensions and another makes 8"):
        known.check_encoder(lambda batch: encode(batch)[:, :8], "another")


# -- what does not fit ---------------------------------------------------------------------------


def test_vectors_of_other_passages_with_the_same_ids_are_refused(tmp_path, store):
    others = [Passage(p.id, p.title, p.text + " indeed") for p in corpus(50)]
    source = ReadyVectors.open(write_parquet(tmp_path / "nq", others))
    with pytest.raises(
        UserError, match=r"vectors of other passages than the corpus: \d+ of \d+ texts .* id '1' first"
    ):
        source.of(store)


def test_another_order_is_refused(tmp_path, store):
    with pytest.raises(UserError, match="passage '49' twice, or in another order"):
        ReadyVectors.open(write_parquet(tmp_path / "nq", corpus(50)[::-1])).of(store)


def test_more_vectors_than_passages_without_ids(tmp_path, store):
    np.save(tmp_path / "v.npy", np.ones((53, D), np.float32))
    with pytest.raises(
        UserError, match="holds 53 vectors for 50 passages and no ids to tell which are too many"
    ):
        ReadyVectors.open(tmp_path / "v.npy").of(store)


def test_a_vector_that_is_not_finite_is_named(tmp_path, store):
    vectors = encode(corpus(50))
    vectors[33, 4] = np.nan
    known = ReadyVectors.open(write_parquet(tmp_path / "nq", corpus(50), vectors=vectors)).of(store)
    with pytest.raises(UserError, match="the vector of passage '34' taken from .* is not finite"):
        embed(store, None, tmp_path / "index", ENCODER, 20, show_progress=False, known=known)


def npy(array):
    return lambda folder: np.save(folder / "a.npy", array)


def cut_short(folder):
    data = (write_parquet(folder, corpus(50), files=1) / "train-00000-of-00001.parquet").read_bytes()
    (folder / "train-00000-of-00001.parquet").write_bytes(data[:-30])


def two_sizes(folder):
    write_parquet(folder, corpus(5), files=1)
    write_parquet(folder, corpus(5), files=2, vectors=np.ones((5, 3), np.float32))


def ragged(folder):
    lists = pa.array([[1.0, 2.0], [1.0]], pa.list_(pa.float32()))
    pq.write_table(pa.table({"id": ["1", "2"], "embeddings": lists}), folder / "a.parquet")


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda folder: None, "holds no vectors that can be read"),
        (npy(np.ones((3, 4), np.int64)), r"holds int64 of shape \(3, 4\): expected floats"),
        (npy(np.ones(3)), r"float64 of shape \(3,\): expected floats"),
        (npy(np.array([None])), "is not a .npy file of numbers"),
        (cut_short, "is not a Parquet file, or was cut short"),
        (two_sizes, "vectors of different dimensions"),
    ],
)
def test_files_that_hold_no_vectors(tmp_path, make, sentence):
    make(tmp_path)
    with pytest.raises(UserError, match=sentence) as error:
        ReadyVectors.open(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_ragged_vectors(tmp_path):
    ragged(tmp_path)
    with pytest.raises(UserError, match="vectors of different lengths"):
        ReadyVectors.open(tmp_path).read(0, np.empty((2, 2), np.float32))
    with pytest.raises(UserError, match="none.npy does not exist"):
        ReadyVectors.open(tmp_path / "none.npy")
