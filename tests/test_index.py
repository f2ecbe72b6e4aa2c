import json
import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pytest
from clustered import ENCODER, D, bytes_of, corpus, edit_json, encode, make, random_queries
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rag.errors import UserError
from rag.index import manifest as manifest_module
from rag.index.build import build
from rag.index.faiss_types import IndexType
from rag.index.folder import Index
from rag.index.passage import Passage
from rag.index.passages import PassageStore

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
    queries = random_queries(80)
    build(two_thousand, factory, queries=queries, show_progress=False)
    index = Index.open(two_thousand)
    products = queries @ encode(corpus(2000)).T
    best = np.argsort(-products, axis=1)[:, :50]
    scores, rows = index.search(queries, 50)
    recalls = [len(set(a) & set(b)) / 50 for a, b in zip(rows, best, strict=True)]
    recall = np.mean(recalls)
    assert np.mean(recalls[::2]) == pytest.approx(index.manifest.recall["50"], abs=2e-3)
    assert (
        recall >= 0.989 or factory == "IVF{nlist},RaBitQ"
    )  # one bit a dimension is little when there are 16
    assert recall >= 0.9
    if index.manifest.search["refine"] > 1:
        np.testing.assert_allclose(scores, np.take_along_axis(products, rows, 1), rtol=1e-4, atol=1e-5)
    assert (np.diff(scores, axis=1) <= 0).all()
    assert index.manifest.recall_queries == "40 held-out questions; 40 others chose the search parameters"
    assert "{" not in index.manifest.factory


def test_refining_gives_true_scores_and_better_recall(two_thousand):
    kind = IndexType("IVF{nlist},RaBitQ", nlist=8, nprobe=8, refine=1)
    build(two_thousand, kind, show_progress=False)
    index = Index.open(two_thousand)
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
    build(two_thousand, kind, show_progress=False)
    index = Index.open(two_thousand)
    for refine in (1, 2):
        scores, rows = index.search(random_queries(3), 900, refine)
        missed = rows == -1
        assert missed.any() and not missed[:, 0].any()
        assert (scores[missed] == -np.inf).all() and np.isfinite(scores[~missed]).all()
        assert rows.min() == -1 and not index.vectors(rows)[missed].any()


def test_sampled_queries_are_named_in_the_manifest(two_thousand):
    build(two_thousand, "Flat", recall_queries=12, show_progress=False)
    index = Index.open(two_thousand)
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
        (IndexType("PQ4"), "needs 9,984 passages to learn its 256 centroids and there are 50: use SQ8"),
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


# ---------------------------------------------------------------------------------- opening


def put_faiss(folder: Path, count: int, dim: int) -> None:
    """Another FAISS file, which the manifest is made to agree with in size."""
    index = faiss.IndexFlatIP(dim)
    index.add(np.ones((count, dim), np.float32))
    faiss.write_index(index, str(folder / "index.faiss"))
    record = json.loads((folder / "manifest.json").read_text())
    del record["checksum"]
    record["files"]["index.faiss"]["bytes"] = (folder / "index.faiss").stat().st_size
    (folder / "manifest.json").write_text(
        json.dumps(record | {"checksum": manifest_module._checksum(record)})
    )


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
    """FAISS reads through the mapped file, and vectors are mapped when they are asked for."""
    build(two_thousand, "Flat", show_progress=False)
    index = Index.open(two_thousand)
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs /proc")
    assert str(two_thousand / "index.faiss") in maps.read_text()
    assert index.search(random_queries(1), 1)[1].shape == (1, 1)
    assert str(two_thousand / "vectors") not in maps.read_text()
    index.vectors(np.array([0, 1999]))
    assert str(two_thousand / "vectors/00002.npy") in maps.read_text()


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs /proc/self/smaps")
def test_two_processes_hold_one_copy(two_thousand):
    """Every page of the FAISS file and of the vectors that both have touched is one page of memory."""
    build(two_thousand, "Flat", show_progress=False)
    script = f"""
import re, sys
import numpy as np
from rag.index import Index
index = Index.open({str(two_thousand)!r})
index.search(np.ones((1, {D}), np.float32), 5)  # exact search: it reads all vectors of the FAISS file
index.vectors(np.arange(2000))
print("opened", flush=True)
sys.stdin.readline()
found = dict.fromkeys(["Rss", "Pss", "Private_Clean", "Private_Dirty"], 0)
ours = False
for line in open("/proc/self/smaps"):
    if re.match("[0-9a-f]+-[0-9a-f]+ ", line):
        ours = line.rstrip().endswith((".faiss", ".npy"))
    elif ours and (name := line.split(":")[0]) in found:
        found[name] += int(line.split()[1])
print(*found.values(), flush=True)
sys.stdin.readline()
"""
    root = Path(__file__).parents[1]
    command = [sys.executable, "-c", script]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1, "cwd": root}
    processes = [subprocess.Popen(command, **pipes) for _ in range(2)]
    try:
        for process in processes:
            assert process.stdout.readline() == "opened\n"
        for process in processes:
            process.stdin.write("\n")
        for process in processes:
            resident, proportional, clean, dirty = map(int, process.stdout.readline().split())  # kB
            assert resident >= 2 * 2000 * D * 4 / 1024
            assert dirty == 0 and clean <= 0.1 * resident
            assert proportional <= 0.6 * resident
    finally:
        for process in processes:
            process.communicate("\n")


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
    edit_json(folder / "tokens.json", corpus_sha256="other", checksum=None)
    with pytest.raises(UserError, match="holds the tokens of another corpus"):
        Index.open(tmp_path).tokens(tokenizer("number"))
