"""build_index.py as it is typed: vectors taken over, another edition, every mistake in one sentence and exit code 2."""

import gzip
import json
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import ANY

import faiss
import numpy as np
import pytest
from clustered import bytes_of, corpus, write_parquet, write_tsv
from conftest import bert_tokenizer, tiny_passage_encoder, tiny_question_encoder
from sentence_folders import tiny_transformer, write_modules

from rag.encoders.dpr import PassageEncoder, QuestionEncoder
from rag.encoders.opening import open_passage_encoder
from rag.index.embed import lock_folder
from rag.index.folder import Index
from rag.index.manifest import DECODED
from rag.index.passage import Passage
from rag.index.vectors import UNKNOWN
from rag.runs import PROJECT

PASSAGES = corpus(30)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> PassageEncoder:
    """A passage encoder on disk (its `tokenizer.name_or_path` is its folder), and a question encoder beside it."""
    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = bert_tokenizer([f"{p.title} {p.text}" for p in PASSAGES])
    QuestionEncoder(tiny_question_encoder(len(tokenizer)), tokenizer).save_pretrained(folder / "question")
    PassageEncoder(tiny_passage_encoder(len(tokenizer)), tokenizer).save_pretrained(folder / "passage")
    return PassageEncoder.from_pretrained(folder / "passage").eval()


@pytest.fixture
def run(monkeypatch, encoder, tmp_path):
    """Type a command; returns the exit code."""

    def command(*arguments: str) -> int:
        common = [
            "experiment=null",
            f"index.path={tmp_path / 'index'}",
            f"passage_encoder={encoder.model.name_or_path}",
        ]
        monkeypatch.setattr(sys, "argv", ["build_index.py", *common, *arguments])
        try:
            runpy.run_path(str(PROJECT / "build_index.py"), run_name="__main__")
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return command


def refusal(capsys) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ") and sum(line.startswith("error: ") for line in lines) == 1
    assert not any("Traceback" in line for line in lines)
    return lines[-1]


# -- vectors and FAISS files made elsewhere ------------------------------------------------------


def test_wiki_dpr_with_and_without_its_encoder_at_hand(run, encoder, tmp_path, capsys):
    files = write_parquet(tmp_path / "nq", PASSAGES, vectors=encoder.encode(PASSAGES))
    settings = ["corpus=wiki_dpr", f"corpus.path={files}"]
    assert run(*settings, f"passage_encoder={tmp_path / 'none'}") == 0
    assert "none is not available, so the vectors could not be checked" in capsys.readouterr().out
    index = Index.open(tmp_path / "index")
    assert index.manifest.encoder.weights == UNKNOWN and index.manifest.vectors == f"taken from {files}"
    np.testing.assert_array_equal(index.vectors(np.arange(30)), encoder.encode(PASSAGES))
    assert run(*settings, f"passage_encoder={tmp_path / 'none'}") == 0
    assert "recall@20" in capsys.readouterr().out  # the finished index is shown

    assert run(*settings, f"index.path={tmp_path / 'checked'}") == 0
    manifest = Index.open(tmp_path / "checked").manifest
    assert manifest.encoder.weights == encoder.fingerprint()
    assert manifest.vectors.endswith("median cosine 1.0000")


def test_embedding_in_bfloat16_is_close_and_said(run, encoder, tmp_path, capsys):
    tsv = write_tsv(tmp_path / "psgs.tsv", PASSAGES)
    assert run(f"corpus.path={tsv}", "bfloat16=true") == 0
    index = Index.open(tmp_path / "index")
    assert index.manifest.encoder == replace(encoder.describe(), name=ANY, precision="bfloat16")
    half, whole = index.vectors(np.arange(30)), encoder.encode(PASSAGES)
    cosines = (half * whole).sum(1) / np.linalg.norm(half, axis=1) / np.linalg.norm(whole, axis=1)
    assert 0.999 < cosines.min() and not np.array_equal(half, whole)
    assert run(f"corpus.path={tsv}") == 0  # the same encoder, and so the same index
    (tmp_path / "index" / "manifest.json").unlink()  # as a kill before the end leaves it
    capsys.readouterr()
    assert run(f"corpus.path={tsv}") == 2
    said = capsys.readouterr().err
    assert "was started in bfloat16, not in the usual precision: give bfloat16=true, or delete" in said
    assert run(f"corpus.path={tsv}", "bfloat16=true") == 0
    assert Index.open(tmp_path / "index").manifest.encoder.precision == "bfloat16"


def test_more_passages_than_vectors(run, encoder, tmp_path, capsys):
    """psgs_w100.tsv's 21,015,324 rows against wiki_dpr's 21,015,300 vectors, in small."""
    files = write_parquet(tmp_path / "nq", PASSAGES[:27], vectors=encoder.encode(PASSAGES[:27]))
    tsv = write_tsv(tmp_path / "psgs.tsv", PASSAGES)
    settings = [f"corpus.path={tsv}", f"corpus.vectors={files}"]
    assert run(*settings) == 2
    sentence = refusal(capsys)
    assert (
        f"{files} holds 27 vectors for the 30 passages of {tsv}: 3 have none: rows 28 to 30 (ids '28' to '30')"
        in sentence
    )
    assert "embed_missing=true" in sentence and f"corpus.path={files}" in sentence
    assert not (tmp_path / "index/manifest.json").exists()
    assert run(*settings, "embed_missing=true") == 0
    index = Index.open(tmp_path / "index")
    np.testing.assert_allclose(index.vectors(np.arange(30)), encoder.encode(PASSAGES), rtol=1e-4, atol=1e-5)


def test_the_vectors_of_wiki_dpr_stay_where_the_passages_are_others(run, encoder, tmp_path, capsys):
    """corpus=wiki_dpr corpus.path=psgs_w100.tsv.gz embed_missing=true, as its config says; and without the vectors."""
    files = write_parquet(
        tmp_path / "wiki_dpr/data/psgs_w100/nq", PASSAGES[:27], vectors=encoder.encode(PASSAGES[:27])
    )
    tsv = write_tsv(tmp_path / "psgs_w100.tsv", PASSAGES)
    settings = ["corpus=wiki_dpr", f"paths.data={tmp_path}"]
    assert run(*settings, f"corpus.path={tsv}") == 2
    assert f"{files} holds 27 vectors for the 30 passages of {tsv}: 3 have none" in refusal(capsys)
    assert run(*settings, f"corpus.path={tsv}", "embed_missing=true") == 0
    assert f"by vectors of {files}" in capsys.readouterr().out
    index = Index.open(tmp_path / "index")
    assert index.manifest.vectors.startswith(f"taken from {files}")
    np.testing.assert_allclose(index.vectors(np.arange(30)), encoder.encode(PASSAGES), rtol=1e-4, atol=1e-5)
    assert run(*settings, f"index.path={tmp_path / 'own'}") == 0
    assert len(Index.open(tmp_path / "own")) == 27

    plain = write_parquet(tmp_path / "plain", PASSAGES, left_out=["embeddings"])
    nowhere = ["corpus=wiki_dpr", f"paths.data={tmp_path / 'none'}", f"index.path={tmp_path / 'encoded'}"]
    assert run(*nowhere, f"corpus.path={plain}") == 2
    sentence = refusal(capsys)
    assert (
        f"no vectors are in {plain} nor in {tmp_path / 'none/wiki_dpr/data/psgs_w100/nq'}: give" in sentence
    )
    assert run(*nowhere, f"corpus.path={plain}", "corpus.vectors=null") == 0  # as it says


def test_vectors_of_another_encoder(run, encoder, tmp_path, capsys):
    files = write_parquet(tmp_path / "nq", PASSAGES, vectors=encoder.encode(PASSAGES)[:, ::-1].copy())
    assert run("corpus=wiki_dpr", f"corpus.path={files}") == 2
    assert f"{files} holds other vectors than {encoder.model.name_or_path} makes" in refusal(capsys)


def test_the_hubs_faiss_file(run, encoder, tmp_path, capsys):
    """With the vectors its recall is measured; alone it is unknown; of another count it is refused."""
    vectors = encoder.encode(PASSAGES)
    files = write_parquet(tmp_path / "nq", PASSAGES, vectors=vectors)
    for count in (30, 27):
        index = faiss.index_factory(16, "HNSW8,SQ8", faiss.METRIC_INNER_PRODUCT)
        index.train(vectors[:count])
        index.add(vectors[:count])
        faiss.write_index(index, str(tmp_path / f"{count}.faiss"))
    settings = ["corpus=wiki_dpr", f"corpus.path={files}", "index=wiki_dpr_hnsw_sq8"]
    assert run(*settings, f"index.type.file={tmp_path / '30.faiss'}") == 0
    manifest = Index.open(tmp_path / "index").manifest
    assert manifest.recall["20"] >= 0.95 and manifest.vectors.startswith("taken from")
    capsys.readouterr()
    alone = [*settings, "corpus.vectors=null", f"index.path={tmp_path / 'alone'}"]
    assert run(*alone, f"index.type.file={tmp_path / '27.faiss'}") == 2
    assert "27.faiss holds 27 vectors for 30 passages" in refusal(capsys)
    assert run(*alone, f"index.type.file={tmp_path / '30.faiss'}") == 0
    assert "unknown: there are no true vectors" in capsys.readouterr().out
    assert Index.open(tmp_path / "alone").manifest.vectors == DECODED


# -- another edition -----------------------------------------------------------------------------


def test_add_and_remove(run, encoder, tmp_path, capsys):
    assert run(f"corpus.path={write_tsv(tmp_path / 'psgs.tsv', PASSAGES[:25])}") == 0
    (tmp_path / "ids.txt").write_text("3\n25\n")
    more = write_tsv(tmp_path / "more.tsv", PASSAGES[25:])
    capsys.readouterr()
    # the index knows its encoder, so that passage_encoder need not be given
    assert run(f"add={more}", f"remove={tmp_path / 'ids.txt'}", f"passage_encoder={tmp_path / 'none'}") == 0
    assert "removing 2 ids" in capsys.readouterr().out
    expected = [p for p in PASSAGES if p.id not in ("3", "25")]
    index = Index.open(tmp_path / "index")
    assert list(index.passages) == expected
    np.testing.assert_allclose(index.vectors(np.arange(28)), encoder.encode(expected), rtol=1e-4, atol=1e-5)
    assert index.manifest.recall["20"] == 1.0


def test_a_folder_is_synchronised_listed_and_a_document_removed(run, encoder, tmp_path, capsys, monkeypatch):
    docs = tmp_path / "docs"
    docs.mkdir()
    for number in range(6):
        (docs / f"{number}.md").write_text(PASSAGES[number].text)
    command = [f"corpus.path={docs}", "sync=true"]
    assert run(*command) == 0  # the first time it is built
    assert len(Index.open(tmp_path / "index")) == 6
    (docs / "0.md").write_text(PASSAGES[10].text)
    (docs / "new.txt").write_text(PASSAGES[11].text)
    (docs / "1.md").unlink()
    capsys.readouterr()
    assert run(f"corpus.path={docs}") == 2  # what is said works
    assert "sync=true embeds what changed" in refusal(capsys)
    assert run(*command) == 0
    assert "1 new, 1 changed, 1 gone, 4 unchanged; 2 passages embedded" in " ".join(
        capsys.readouterr().out.split()
    )
    index = Index.open(tmp_path / "index")
    np.testing.assert_allclose(
        index.vectors(np.arange(6)), encoder.encode(list(index.passages)), rtol=1e-4, atol=1e-5
    )
    assert run(*command) == 0
    assert "6 unchanged; 0 passages embedded" in " ".join(capsys.readouterr().out.split())
    assert run("list=true") == 0
    listed = capsys.readouterr().out
    assert "new.txt" in listed and "1.md" not in listed and "6 documents, 6 passages" in listed
    monkeypatch.chdir(docs)  # where a file of that name is no list of ids
    assert run("remove=new.txt") == 0
    assert "removing new.txt" in capsys.readouterr().out and len(Index.open(tmp_path / "index")) == 5
    assert run("remove=new.txt") == 0
    assert "already is what this update makes of it" in " ".join(capsys.readouterr().out.split())
    assert run("remove=[2.md,3.md]") == 0
    assert set(Index.open(tmp_path / "index").passages.ids(range(3))) == {"0.md#1", "4.md#1", "5.md#1"}
    assert run(*command, "remove=4.md") == 2
    assert "sync=true makes an index what corpus.path holds" in refusal(capsys)


def test_columns_are_named_on_the_command_line(run, tmp_path, capsys):
    (tmp_path / "p.csv").write_text("key,body\na,one\nb,two\n")
    assert run(f"corpus.path={tmp_path / 'p.csv'}", "corpus.columns.text=bodi") == 2
    assert "bodi (corpus.columns.text): there are key, body" in refusal(capsys)
    named = ["corpus.columns.text=body", "corpus.columns.id=key"]
    assert run(f"corpus.path={tmp_path / 'p.csv'}", *named) == 0
    assert list(Index.open(tmp_path / "index").passages) == [Passage("a", "", "one"), Passage("b", "", "two")]
    assert run(f"corpus.path={tmp_path / 'p.csv'}", "corpus.split_words=2") == 2
    assert "corpus.split_words is not a setting any more: give corpus.split=words corpus.size=2" in refusal(
        capsys
    )
    assert run(f"corpus.path={tmp_path / 'p.csv'}", "corpus.split=lines") == 2
    assert "corpus.split=lines does not exist: give words, sentences, tokens, headings" in refusal(capsys)


def test_what_cannot_be_added_or_removed(run, encoder, tmp_path, capsys):
    assert run(f"corpus.path={write_tsv(tmp_path / 'psgs.tsv', PASSAGES[:25])}") == 0
    before = bytes_of(tmp_path / "index")
    (tmp_path / "ids.txt").write_text("99\n")
    there = write_tsv(tmp_path / "there.tsv", PASSAGES[20:])
    for arguments, sentence in [
        ([f"remove={tmp_path / 'ids.txt'}"], "holds no passage '99'"),
        ([f"remove={tmp_path / 'no.txt'}"], "no document of that name: give ids"),
        ([f"add={there}"], "holds the passage '21', which is in"),
        ([f"add={tmp_path / 'no.tsv'}"], "no.tsv does not exist"),
        ([f"add={there}", f"index.path={tmp_path / 'no'}"], "there is no index at"),
    ]:
        assert run(*arguments) == 2
        assert sentence in refusal(capsys)
        assert bytes_of(tmp_path / "index") == before


# -- mistakes ------------------------------------------------------------------------------------

HEAD = b"id\ttext\ttitle\n"
CORPORA = {
    "columns.tsv": (HEAD + b"1\tx\ty\n2\tx\n", "line 3: 2 columns where the header has 3"),
    "quotes.tsv": (HEAD + b'1\t"x\ty\n2\t"z"\tt\n', "line 2: broken quotes"),
    "twice.tsv": (HEAD + b"1\tx\ty\n1\tz\ty\n", "line 3: the id '1' occurs twice"),
    "blank.tsv": (HEAD + b"1\t \ty\n", "line 2: the text of passage '1' is empty"),
    "latin.tsv": (HEAD + b"1\tx\ty\n2\t\xe9\ty\n", "line 3: not UTF-8"),
    "empty.tsv": (b"", "is empty"),
    "head.tsv": (HEAD, "holds no passages"),
    "short.tsv.gz": (gzip.compress(HEAD + b"1\tx\ty\n")[:-12], "damaged or was cut short"),
    "broken.jsonl": (b'{"id": 1, "text": "x"}\n{"id": 2\n', "line 2: malformed JSON"),
    "none.tsv": (None, "does not exist"),
}


@pytest.fixture(scope="module")
def good(encoder, tmp_path_factory) -> Path:
    """An index, to be copied and tried."""
    folder = tmp_path_factory.mktemp("good")
    arguments = ["experiment=null", f"corpus.path={write_tsv(folder / 'psgs.tsv', PASSAGES)}"]
    with pytest.MonkeyPatch.context() as patch:
        settings = [f"index.path={folder / 'index'}", f"passage_encoder={encoder.model.name_or_path}"]
        patch.setattr(sys, "argv", ["build_index.py", *arguments, *settings])
        runpy.run_path(str(PROJECT / "build_index.py"), run_name="__main__")
    return folder


QUICK = ("columns.tsv", "latin.tsv", "head.tsv")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in CORPORA]
)
def test_a_wrong_corpus_is_refused_and_the_index_there_unharmed(run, good, tmp_path, capsys, name):
    content, sentence = CORPORA[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    shutil.copytree(good / "index", tmp_path / "index")
    before = bytes_of(tmp_path / "index")
    for overwrite in ("false", "true"):
        assert run(f"corpus.path={tmp_path / name}", f"overwrite={overwrite}") == 2
        said = refusal(capsys)
        assert sentence in said or (overwrite == "false" and "holds another corpus" in said)
        assert bytes_of(tmp_path / "index") == before
    assert run(f"corpus.path={tmp_path / name}", f"index.path={tmp_path / 'fresh'}") == 2
    said = refusal(capsys)
    assert sentence in said and name in said
    assert not (tmp_path / "fresh/passages").exists()


def test_a_corpus_changed_under_a_half_built_index(run, tmp_path, capsys):
    tsv = write_tsv(tmp_path / "psgs.tsv", PASSAGES)
    assert run(f"corpus.path={tsv}") == 0
    for name in ("manifest.json", "index.faiss"):
        (tmp_path / "index" / name).unlink()
    before = bytes_of(tmp_path / "index")
    write_tsv(tsv, PASSAGES[:-1])
    assert run(f"corpus.path={tsv}") == 2
    assert "holds the 30 passages of" in refusal(capsys)
    assert bytes_of(tmp_path / "index") == before
    write_tsv(tsv, PASSAGES)  # put right again, the build goes on
    assert run(f"corpus.path={tsv}") == 0


def test_a_kill_while_the_new_edition_takes_the_place_of_the_old_one(run, good, tmp_path, capsys):
    """Between two renames the index has no name; the next command gives it back."""
    shutil.copytree(good / "index", tmp_path / ".index.4711.old")
    before = bytes_of(tmp_path / ".index.4711.old")
    assert run(f"corpus.path={good / 'psgs.tsv'}") == 0
    assert bytes_of(tmp_path / "index") == before and not (tmp_path / ".index.4711.old").exists()


def truncated(folder: Path) -> None:
    shard = folder / "vectors/00000.npy"
    shard.write_bytes(shard.read_bytes()[:-40])


def edited(folder: Path) -> None:
    record = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(record | {"dim": 8}))


def other_faiss(folder: Path) -> None:
    index = faiss.IndexFlatIP(16)
    index.add(np.ones((29, 16), np.float32))
    faiss.write_index(index, str(folder / "index.faiss"))


@pytest.mark.parametrize(
    "damage, sentence",
    [(truncated, "00000.npy has"), (edited, "manifest.json was edited"), (other_faiss, "index.faiss has")],
)
def test_a_damaged_index_is_told_and_made_whole_by_the_same_command(
    run, good, tmp_path, capsys, damage, sentence
):
    shutil.copytree(good / "index", tmp_path / "index")
    whole = {
        n: b for n, b in bytes_of(tmp_path / "index").items() if n.endswith((".npy", ".faiss", ".arrow"))
    }
    damage(tmp_path / "index")
    corpus_path = f"corpus.path={good / 'psgs.tsv'}"
    assert run("verify=true") == 2 and sentence in refusal(capsys)
    assert run(corpus_path) == 0 and sentence in capsys.readouterr().out
    assert run("verify=true") == 0 and "as they were written" in capsys.readouterr().out
    repaired = bytes_of(tmp_path / "index")
    assert {name: repaired[name] for name in whole} == whole


def test_two_builds_at_once_and_another_encoder(run, good, tmp_path, capsys):
    shutil.copytree(good / "index", tmp_path / "index")
    corpus_path = f"corpus.path={good / 'psgs.tsv'}"
    torn = tmp_path / "index/manifest.json"
    manifest = torn.read_bytes()
    torn.unlink()
    with lock_folder(tmp_path / "index"):
        assert run(corpus_path) == 2
        assert "another build (process" in refusal(capsys)
    torn.write_bytes(manifest)
    before = bytes_of(tmp_path / "index")
    tokenizer = bert_tokenizer([f"{p.title} {p.text}" for p in PASSAGES])
    PassageEncoder(tiny_passage_encoder(len(tokenizer)), tokenizer).save_pretrained(tmp_path / "other")
    assert run(corpus_path, f"passage_encoder={tmp_path / 'other'}") == 2
    assert "holds vectors of another encoder" in refusal(capsys)
    assert bytes_of(tmp_path / "index") == before


@pytest.mark.slow
@pytest.mark.parametrize("room", [600, 3000])
def test_a_disk_without_room(good, encoder, tmp_path, room):
    """The system itself refuses to write more than `room` bytes into a file: at the passages, then at the vectors."""
    shutil.copytree(good / "index", tmp_path / "index")
    before = bytes_of(tmp_path / "index")
    tsv = write_tsv(tmp_path / "more.tsv", [*PASSAGES, *(Passage(f"x{n}", "t", "u") for n in range(3))])
    common = [f"passage_encoder={encoder.model.name_or_path}", f"corpus.path={tsv}", "experiment=null"]
    script = f"""
import resource, signal, sys
sys.path.insert(0, {str(PROJECT)!r})
import build_index
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
build_index.main()
"""
    for name, more in (("index", ["overwrite=true"]), ("fresh", [])):
        command = [*common, f"index.path={tmp_path / name}", *more]
        done = subprocess.run(
            [sys.executable, "-c", script, *command], capture_output=True, text=True, cwd=PROJECT
        )
        assert done.returncode == 2, done.stderr
        assert "cannot be written (" in done.stderr and "Traceback" not in done.stderr
        assert bytes_of(tmp_path / "index") == before
    assert not list(tmp_path.rglob("*.partial"))


# -- how a corpus is read ------------------------------------------------------------------------


def test_the_advised_encoding_and_splitting_work(run, tmp_path, capsys):
    latin = tmp_path / "latin.tsv"
    latin.write_bytes("id\ttext\n1\tDer Laden öffnet um neun.\n2\tx y.\n".encode("latin-1"))
    assert run(f"corpus.path={latin}") == 2
    assert "latin.tsv, line 2: not UTF-8" in (sentence := refusal(capsys))
    assert "corpus.encoding=latin-1" in sentence
    assert run(f"corpus.path={latin}", "corpus.encoding=latin-1") == 0
    assert Index.open(tmp_path / "index").passages[0].text == "Der Laden öffnet um neun."
    capsys.readouterr()
    assert run(f"corpus.path={latin}", "corpus.encoding=latin-1") == 0
    assert "building" not in capsys.readouterr().out  # it already exists
    assert run(f"corpus.path={latin}", "corpus.encoding=latin-1", "corpus.split=words", "corpus.size=2") == 2
    assert "holds another corpus" in refusal(capsys)
    split = ["corpus.encoding=latin-1", "corpus.split=words", "corpus.size=2"]
    assert run(f"corpus.path={latin}", *split, "overwrite=true") == 0
    assert Index.open(tmp_path / "index").passages.ids(range(4)) == ["1#1", "1#2", "1#3", "2"]


def test_passages_that_the_encoder_cuts_are_counted(run, encoder, tmp_path, capsys):
    words = " ".join(p.text for p in PASSAGES)
    path = write_tsv(tmp_path / "long.tsv", [Passage("1", "t", words), Passage("2", "t", words), PASSAGES[4]])
    assert run(f"corpus.path={path}") == 0
    said = f"2 passages of those embedded here ran over the passage encoder's {encoder.max_length} tokens"
    assert said in (out := capsys.readouterr().out) and "corpus.split=words splits" in out
    assert (
        run(f"corpus.path={path}", "corpus.split=words", "corpus.size=20", f"index.path={tmp_path / 'split'}")
        == 0
    )
    assert "ran over" not in capsys.readouterr().out


def test_passages_without_ids_are_added(run, tmp_path, capsys):
    (tmp_path / "corpus.tsv").write_text("title\ttext\nA\tone\nB\ttwo\n")
    assert run(f"corpus.path={tmp_path / 'corpus.tsv'}") == 0
    (tmp_path / "more.csv").write_text("title,text\nC,three\n")
    (tmp_path / "ids.txt").write_bytes(b"\xef\xbb\xbf1\r\n")
    assert run(f"add={tmp_path / 'more.csv'}", f"remove={tmp_path / 'ids.txt'}") == 0
    passages = list(Index.open(tmp_path / "index").passages)
    assert passages == [Passage("2", "B", "two"), Passage("3", "C", "three")]


# -- sentence-transformers' encoders --------------------------------------------------------------


def test_one_encoder_in_sentence_transformers_format_for_both_sides(run, tmp_path, capsys):
    """Built, gone on with, taken over with corpus.vectors=, extended; the prompt is part of whose vectors they are."""
    folder = write_modules(tiny_transformer(tmp_path / "encoder"))
    encoder = open_passage_encoder(folder).eval()
    tsv = write_tsv(tmp_path / "p.tsv", PASSAGES[:20])
    both = [f"passage_encoder={folder}", f"question_encoder={folder}"]
    assert run(f"corpus.path={tsv}", *both) == 0
    index = Index.open(tmp_path / "index")
    assert index.manifest.metric == "cosine" and index.manifest.encoder.weights == encoder.fingerprint()
    np.testing.assert_allclose(index.vectors(np.arange(20)), encoder.encode(PASSAGES[:20]), rtol=0, atol=1e-5)
    assert "building an index" in capsys.readouterr().out
    assert run(f"corpus.path={tsv}", *both) == 0
    assert "building an index" not in capsys.readouterr().out  # it already exists
    assert run(f"corpus.path={tsv}", *both, "encoder.passage_prompt='passage: '") == 2
    assert "holds vectors of another encoder" in refusal(capsys)

    more = write_tsv(tmp_path / "more.tsv", PASSAGES[20:])
    assert run(f"add={more}", *both) == 0
    grown = Index.open(tmp_path / "index")
    assert grown.manifest.encoder.reading == encoder.reading and grown.manifest.metric == "cosine"
    np.testing.assert_allclose(grown.vectors(np.arange(30)), encoder.encode(PASSAGES), rtol=0, atol=1e-5)

    files = write_parquet(tmp_path / "ready", PASSAGES, vectors=encoder.encode(PASSAGES))
    taken = [f"corpus.path={files}", f"corpus.vectors={files}", f"index.path={tmp_path / 'taken'}"]
    assert run(*taken, *both) == 0
    manifest = Index.open(tmp_path / "taken").manifest
    assert manifest.encoder.reading == encoder.reading and manifest.vectors.endswith("median cosine 1.0000")


@pytest.mark.parametrize(
    ("kind", "settings", "sentence"),
    [
        ("bert", [], "type bert that does not say how its states become one vector"),
        ("bert", ["encoder.pooling=median"], "encoder.pooling=median does not exist"),
        (
            "bert",
            ["encoder.pooling=mean", "encoder.max_length=65"],
            "max_seq_length is 65 but this BertModel has",
        ),
        (
            "bert",
            ["encoder.pooling=mean", "encoder.passage_prompt_name=x"],
            "passage_prompt_name=x is given, but",
        ),
        ("openai-gpt", [], "type openai-gpt, which is not supported as an encoder; available: bert, "),
    ],
)
def test_an_encoder_that_cannot_be_read_is_refused_before_anything_is_written(
    run, tmp_path, capsys, kind, settings, sentence
):
    folder = tiny_transformer(tmp_path / "encoder", kind)
    tsv = write_tsv(tmp_path / "p.tsv", PASSAGES)
    assert run(f"corpus.path={tsv}", f"passage_encoder={folder}", *settings) == 2
    assert sentence in refusal(capsys)
    assert not (tmp_path / "index").exists()
