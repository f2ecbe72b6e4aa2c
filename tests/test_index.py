import hashlib
import json
import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rag import index as index_module
from rag.errors import UserError
from rag.index import (
    EncoderInfo,
    Index,
    IndexType,
    Vectors,
    build,
    embed,
    exact_search,
    prepare,
)
from rag.passages import Passage, PassageStore

ENCODER = EncoderInfo("tiny-dpr", "w-hash", "t-hash")
D = 16


def vector_of(passage: Passage) -> np.ndarray:
    """A vector that depends on the passage alone: around one of 20 centres, chosen by its title."""
    seed = hashlib.sha256(f"{passage.id} {passage.text}".encode()).digest()
    centre = hashlib.sha256(passage.title.encode()).digest()
    normal = [np.random.default_rng(list(s)).standard_normal(D, np.float32) for s in (seed, centre)]
    return 0.5 * normal[0] + normal[1]


def encode(passages: list[Passage]) -> np.ndarray:
    return np.stack([vector_of(p) for p in passages])


def corpus(count: int) -> list[Passage]:
    return [
        Passage(str(i + 1), f"title {i % 20}", f"number {i}" + " and more" * (i * 7 % 11))
        for i in range(count)
    ]


def make(
    folder: Path, count: int = 50, kind: IndexType | str = "Flat", shard_size: int = 20, **options
) -> Index:
    store = PassageStore.write(corpus(count), folder / "passages")
    embed(store, encode, folder, ENCODER, shard_size, batch_size=7, show_progress=False)
    return build(folder, kind, show_progress=False, **options)


def random_queries(count: int) -> np.ndarray:
    return np.random.default_rng(5).standard_normal((count, D), np.float32)


def bytes_of(folder: Path) -> dict[str, bytes]:
    files = (f for f in folder.rglob("*") if f.is_file() and not f.name.startswith(".lock"))
    return {str(f.relative_to(folder)): f.read_bytes() for f in files}


# ---------------------------------------------------------------------------------- search


def test_flat_index_equals_argsort(tmp_path):
    index = make(tmp_path)
    truth = encode(corpus(50))
    queries = random_queries(9)
    products = queries @ truth.T
    expected = np.argsort(-products, axis=1)[:, :6]
    scores, rows = index.search(queries, 6)
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(scores, np.take_along_axis(products, expected, 1), rtol=1e-5)
    assert (len(index), index.dim, scores.dtype, rows.dtype) == (50, D, np.float32, np.int64)
    assert index.manifest.recall == {"1": 1.0, "5": 1.0, "20": 1.0, "50": 1.0}
    assert index.passages[3] == corpus(4)[3]


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


@pytest.fixture(scope="module")
def two_thousand(tmp_path_factory):
    """Passages and vectors, with no index built yet; each test puts its own type over them."""
    folder = tmp_path_factory.mktemp("index") / "big"
    make(folder, 2000, shard_size=700)
    return folder


@pytest.mark.parametrize(
    "factory", ["HNSW32", "SQ8", "SQfp16", "IVF{nlist},SQ8", "HNSW32,SQ8", "IVF{nlist},RaBitQ"]
)
def test_every_type_finds_what_exact_search_finds(two_thousand, factory):
    queries = random_queries(40)
    index = build(two_thousand, factory, queries=queries, show_progress=False)
    products = queries @ encode(corpus(2000)).T
    best = np.argsort(-products, axis=1)[:, :50]
    scores, rows = index.search(queries, 50)
    recall = np.mean([len(set(a) & set(b)) / 50 for a, b in zip(rows, best, strict=True)])
    assert recall == pytest.approx(index.manifest.recall["50"], abs=2e-3)
    assert (
        recall >= 0.989 or factory == "IVF{nlist},RaBitQ"
    )  # one bit a dimension is little when there are 16
    assert recall >= 0.9
    if index.manifest.search["refine"] > 1:
        np.testing.assert_allclose(scores, np.take_along_axis(products, rows, 1), rtol=1e-4, atol=1e-5)
    assert (np.diff(scores, axis=1) <= 0).all()
    assert index.manifest.recall_queries == "40 held-out questions"
    assert "{" not in index.manifest.factory


def test_refining_gives_true_scores_and_better_recall(two_thousand):
    kind = IndexType("IVF{nlist},RaBitQ", nlist=8, nprobe=8, refine=1)
    index = build(two_thousand, kind, show_progress=False)
    assert index.manifest.search == {"nprobe": 8, "refine": 1}
    queries = random_queries(20)
    products = queries @ encode(corpus(2000)).T
    best = [set(row) for row in np.argsort(-products, axis=1)[:, :10]]

    def recall(refine: int) -> float:
        return float(
            np.mean(
                [len(set(r) & b) for r, b in zip(index.search(queries, 10, refine)[1], best, strict=True)]
            )
        )

    assert recall(200) == 10  # all candidates re-ranked is exact search
    assert recall(1) < recall(8) <= 10


def test_rows_that_were_not_found_are_minus_one(two_thousand):
    kind = IndexType("IVF{nlist},Flat", nlist=32, nprobe=1, refine=1)
    index = build(two_thousand, kind, show_progress=False)
    for refine in (1, 2):
        scores, rows = index.search(random_queries(3), 900, refine)
        missed = rows == -1
        assert missed.any() and not missed[:, 0].any()
        assert (scores[missed] == -np.inf).all() and np.isfinite(scores[~missed]).all()
        assert rows.min() == -1 and not index.vectors(rows)[missed].any()


def test_sampled_queries_are_named_in_the_manifest(two_thousand):
    index = build(two_thousand, "Flat", recall_queries=12, show_progress=False)
    assert index.manifest.recall_queries.startswith("vectors of 12 sampled passages")
    assert index.manifest.recall["100"] == 1.0
    assert index.manifest.encoder == ENCODER
    assert index.manifest.corpus.passages == 2000
    assert index.manifest.versions["faiss"] == faiss.__version__
    index.verify()


@pytest.mark.parametrize(
    "kind, sentence",
    [
        (
            IndexType("IVF4096,SQ8"),
            "needs 159,744 passages .* there are 50: take a type without cells|at most",
        ),
        (IndexType("IVF{nlist},SQ8", nlist=2), "an index of 2 cells needs 78 passages"),
        (IndexType("PQ4"), "needs 9,984 passages to learn its 256 centroids and there are 50: take SQ8"),
        (IndexType("PQ5x4"), "FAISS cannot make an index 'PQ5x4' of 16 dimensions"),
        (IndexType("Nonsense"), "FAISS cannot make an index 'Nonsense'"),
    ],
)
def test_a_type_that_cannot_work_is_refused_and_the_old_index_stays(tmp_path, kind, sentence):
    make(tmp_path)
    before = bytes_of(tmp_path)
    with pytest.raises(UserError, match=sentence):
        build(tmp_path, kind, show_progress=False)
    assert bytes_of(tmp_path) == before


@pytest.mark.slow
def test_product_quantiser(tmp_path):
    index = make(tmp_path, 12_000, IndexType("IVF{nlist},PQ{m}", train_sample=10_000), 5000)
    assert index.manifest.factory == "IVF256,PQ2"
    assert index.search(random_queries(2), 5)[1].shape == (2, 5)


def test_wrong_questions_to_an_index(tmp_path):
    index = make(tmp_path)
    with pytest.raises(UserError, match="K=51 passages cannot be found in an index of 50"):
        index.search(random_queries(1), 51)
    with pytest.raises(UserError, match=rf"queries of shape \(1, 3\) for an index of {D} dimensions"):
        index.search(np.zeros((1, 3), np.float32), 1)
    with pytest.raises(UserError, match="queries of shape .* cannot measure an index"):
        build(tmp_path, queries=np.zeros((2, 3), np.float32), show_progress=False)
    index.check_encoder("w-hash")
    with pytest.raises(
        UserError, match=r"embedded by tiny-dpr \(weights w-hash\), but .* weights other: give"
    ):
        index.check_encoder("other")


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


def test_two_processes_share_the_shards(tmp_path):
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    make(whole, 70, shard_size=10)
    PassageStore.write(corpus(70), shared / "passages")
    script = f"""
import sys; sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]!r}
from test_index import ENCODER, PassageStore, embed, encode
from pathlib import Path
folder = Path({str(shared)!r})
store = PassageStore.open(folder / "passages")
print(embed(store, encode, folder, ENCODER, 10, 7, int(sys.argv[1]), 2, False))
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(i)], stdout=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    assert [p.communicate(timeout=120)[0].strip() for p in processes] == ["40", "30"]
    build(shared, show_progress=False)
    assert bytes_of(shared / "vectors") == bytes_of(whole / "vectors")


def test_another_corpus_encoder_or_shard_size_is_refused(tmp_path):
    index = make(tmp_path)
    before = bytes_of(tmp_path)
    other = PassageStore.write(corpus(49), tmp_path.with_name("other") / "passages")
    with pytest.raises(UserError, match=r"begun with another corpus \(50 passages, hash .*; now 49"):
        embed(other, encode, tmp_path, ENCODER, 20, show_progress=False)
    with pytest.raises(UserError, match=r"encoder tiny-dpr \(weights w-hash\), not with new \(weights w2\)"):
        embed(index.passages, encode, tmp_path, EncoderInfo("new", "w2", "t-hash"), 20, show_progress=False)
    with pytest.raises(UserError, match="begun with shard_size=20, not 30"):
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
    with index_module._lock(tmp_path):
        with pytest.raises(UserError, match=r"another build \(process \d+\) is at work"):
            build(tmp_path, show_progress=False)
        with pytest.raises(UserError, match="another build"):
            embed(index.passages, encode, tmp_path, ENCODER, 20, process_index=1, process_count=2)
    with index_module._lock(tmp_path, 0, 2), index_module._lock(tmp_path, 1, 2):  # two processes of one build
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
    with index_module._lock(folder), pytest.raises(UserError, match="another build"):
        prepare(path, folder)


def test_what_a_killed_build_left_half_written_is_removed(tmp_path):
    make(tmp_path)
    before = set(bytes_of(tmp_path))
    for name in ("vectors/.00001.npy.12.partial", ".index.faiss.12.partial", ".manifest.json.12.partial"):
        (tmp_path / name).write_bytes(b"half")
    build(tmp_path, show_progress=False)
    assert set(bytes_of(tmp_path)) == before


# ---------------------------------------------------------------------------------- disks


def test_a_full_disk_leaves_the_old_index_as_it_was(tmp_path, monkeypatch):
    make(tmp_path)
    before = bytes_of(tmp_path)

    def full(*_, **__):
        raise RuntimeError("Error in faiss::FileIOWriter: write error: No space left on device")

    monkeypatch.setattr(faiss, "write_index", full)
    with pytest.raises(UserError, match="index.faiss cannot be written .*No space left on device"):
        build(tmp_path, "SQ8", show_progress=False)
    assert bytes_of(tmp_path) == before
    assert Index.open(tmp_path).manifest.factory == "Flat"


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


# ---------------------------------------------------------------------------------- opening


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def put_faiss(folder: Path, count: int, dim: int) -> None:
    """Another FAISS file, which the manifest is made to agree with in size."""
    index = faiss.IndexFlatIP(dim)
    index.add(np.ones((count, dim), np.float32))
    faiss.write_index(index, str(folder / "index.faiss"))
    record = json.loads((folder / "manifest.json").read_text())
    del record["checksum"]
    record["files"]["index.faiss"]["bytes"] = (folder / "index.faiss").stat().st_size
    (folder / "manifest.json").write_text(json.dumps(record | {"checksum": index_module._checksum(record)}))


def other_passages(folder: Path) -> None:
    PassageStore.write([Passage(p.id, p.title[::-1], p.text) for p in corpus(50)], folder / "passages")
    (folder / "passages/store.json").write_bytes((folder / "passages/store.json").read_bytes())


def no_metric(folder: Path) -> None:
    index = faiss.IndexFlatL2(D)
    index.add(np.ones((50, D), np.float32))
    faiss.write_index(index, str(folder / "index.faiss"))


@pytest.mark.parametrize(
    "damage, sentence",
    [
        (lambda f: (f / "manifest.json").unlink(), r"not a finished index \(manifest.json is missing\)"),
        (lambda f: edit_json(f / "manifest.json", dim=8), "manifest.json was edited"),
        (lambda f: edit_json(f / "manifest.json", recall={"1": 1.0}), "manifest.json was edited"),
        (lambda f: edit_json(f / "manifest.json", format=99), "is of format 99, not 1"),
        (lambda f: (f / "manifest.json").write_text("{"), "is not valid JSON"),
        (lambda f: (f / "vectors/00001.npy").write_bytes(b"short"), "00001.npy has 5 bytes instead of 1,408"),
        (lambda f: (f / "vectors/00002.npy").unlink(), "00002.npy is missing"),
        (lambda f: (f / "index.faiss").write_bytes(b"x"), "index.faiss has 1 bytes instead of"),
        (lambda f: put_faiss(f, 49, D), "holds 49 vectors of 16 dimensions for 50 passages of 16"),
        (lambda f: put_faiss(f, 50, 8), "holds 50 vectors of 8 dimensions for 50 passages of 16"),
        (no_metric, "does not search by inner product"),
        (other_passages, r"holds 50 passages \(hash .*\) where its manifest names 50"),
    ],
)
def test_a_folder_that_does_not_fit_together_is_refused(tmp_path, damage, sentence):
    make(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=sentence) as error:
        Index.open(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_no_folder_and_a_faiss_file_of_nonsense(tmp_path):
    with pytest.raises(UserError, match="there is no index at"):
        Index.open(tmp_path / "none")
    with pytest.raises(UserError, match="holds no passages"):
        build(tmp_path, show_progress=False)
    make(tmp_path)
    size = (tmp_path / "index.faiss").stat().st_size
    (tmp_path / "index.faiss").write_bytes(b"\0" * size)
    with pytest.raises(UserError, match="index.faiss is damaged"):
        Index.open(tmp_path)


def test_verify_reads_every_byte(tmp_path):
    index = make(tmp_path)
    index.verify()
    shard = tmp_path / "vectors/00001.npy"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(bytes(data))
    with pytest.raises(UserError, match="00001.npy was altered"):
        Index.open(tmp_path).verify()


def test_opening_copies_nothing(two_thousand):
    """FAISS reads through the mapped file: what opening adds to anonymous memory is far below the file's "
    "size."""
    build(two_thousand, "Flat", show_progress=False)
    index = Index.open(two_thousand)
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs /proc")
    assert str(two_thousand / "index.faiss") in maps.read_text()
    assert index.search(random_queries(1), 1)[1].shape == (1, 1)
    assert str(two_thousand / "vectors") not in maps.read_text()  # mapped when they are asked for
    index.vectors(np.array([0, 1999]))
    assert str(two_thousand / "vectors/00002.npy") in maps.read_text()


# ---------------------------------------------------------------------------------- tokens


def tokenizer(words: str) -> PreTrainedTokenizerFast:
    rules = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(["?", *words.split()])}, unk_token="?")
    )
    rules.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=rules, unk_token="?")


def test_each_generators_tokens_are_written_once(tmp_path):
    index = make(tmp_path)
    vectors = bytes_of(tmp_path / "vectors")
    one, two = tokenizer("number and more / title"), tokenizer("and number")
    first = index.tokens(one, show_progress=False)
    assert index.tokens(one) is first
    assert first.gather(np.array([1]))[0].tolist() == [
        5,
        0,
        4,
        1,
        0,
        *[2, 3] * 7,
    ]  # title ? / number ? and more …
    written = [f.stat().st_mtime_ns for f in first.folder.iterdir()]
    again = Index.open(tmp_path).tokens(tokenizer("number and more / title"))
    assert [f.stat().st_mtime_ns for f in again.folder.iterdir()] == written
    assert index.tokens(two, show_progress=False).gather(np.array([1]))[0].tolist()[:5] == [0, 0, 0, 2, 0]
    assert index.tokens(one, " : ", show_progress=False).gather(np.array([1]))[0].tolist()[:4] == [5, 0, 0, 1]
    assert len(list(tmp_path.glob("tokens-*"))) == 3
    assert bytes_of(tmp_path / "vectors") == vectors
    Index.open(tmp_path).verify()


def test_tokens_of_another_corpus_are_refused(tmp_path):
    index = make(tmp_path)
    folder = index.tokens(tokenizer("number"), show_progress=False).folder
    edit_json(folder / "tokens.json", corpus_sha256="other")
    with pytest.raises(UserError, match="holds the tokens of another corpus"):
        Index.open(tmp_path).tokens(tokenizer("number"))
