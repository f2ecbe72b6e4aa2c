"""python -m rag.search: passages by words or vectors in the terminal, and what is wrong with a command."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PASSAGES, QUESTIONS

from rag import search
from rag.cli import mistakes_in_one_sentence
from rag.errors import UserError
from rag.retrievers import BM25, DenseRetriever, HybridRetriever
from rag.runs import PROJECT
from rag.search import Found, open_search, shown


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    file = tmp_path / "passages.tsv"
    rows = [f"{number}\t{text}\t{title}" for number, (title, text) in enumerate(PASSAGES, start=1)]
    file.write_text("\n".join(["id\ttext\ttitle", *rows]) + "\n", encoding="utf-8")
    return file


def call(*arguments: str) -> int:
    """What the command exits with."""
    try:
        with mistakes_in_one_sentence():
            search.main(arguments)
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


def test_a_corpus_is_searched_by_its_words_and_kept_until_it_changes(corpus, index):
    found = open_search(corpus)(QUESTIONS[0], 3)
    scores, rows = BM25.build(index.passages).search([QUESTIONS[0]], 3)
    assert [each.id for each in found] == index.passages.ids(rows[0]) and found[0].title == "Paris"
    assert [each.score for each in found] == pytest.approx(scores[0].tolist())
    (kept,) = (corpus.parent / ".passages.tsv.search").glob("passages.tsv-*")
    before = (kept / "passages" / "store.json").stat().st_mtime_ns
    assert open_search(corpus)(QUESTIONS[0], 3) == found
    assert (kept / "passages" / "store.json").stat().st_mtime_ns == before
    with corpus.open("a", encoding="utf-8") as file:
        file.write("8\tThe Danube is a river.\tDanube\n")
    (danube,) = open_search(corpus)("Danube", 5)
    assert (danube.rank, danube.id, danube.title, danube.text) == (1, "8", "Danube", "The Danube is a river.")
    (now,) = (corpus.parent / ".passages.tsv.search").glob("passages.tsv-*")
    assert now != kept  # what was kept of the corpus as it was is gone


def test_a_folder_of_texts_and_more_passages_than_there_are(tmp_path, capsys):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.md").write_text("# Lighthouse\n\nAnna built the lighthouse in 1850.\n")
    (tmp_path / "notes" / "b.txt").write_text("Nothing of interest.")
    assert call(str(tmp_path / "notes"), "n_docs=9", "who built the lighthouse?") == 0
    out, err = capsys.readouterr()
    assert "1. Lighthouse" in out and "Anna built the lighthouse in 1850." in out and "interest" not in out
    assert err.startswith("2 passages of ")
    assert call(str(tmp_path / "notes"), "xyzzy") == 0
    assert "no passage shares a word with this question" in capsys.readouterr().out


def test_an_index_is_searched_by_vectors_too(index, question_encoder, tmp_path):
    question_encoder.save_pretrained(tmp_path / "encoder")
    dense = open_search(index.folder, "dense", str(tmp_path / "encoder"))
    expected = DenseRetriever(question_encoder, index).eval()
    retrieved = expected(expected.prepare(QUESTIONS), 3)
    for found, rows, scores in zip(
        dense.all(QUESTIONS, 3), retrieved.rows, retrieved.scores.tolist(), strict=True
    ):
        assert [each.id for each in found] == index.passages.ids(rows)
        assert [each.score for each in found] == pytest.approx(scores, abs=1e-4)
    hybrid = open_search(index.folder, "hybrid", str(tmp_path / "encoder"))(QUESTIONS[0], 3)
    both = HybridRetriever(question_encoder, index, BM25.build).eval()
    assert [each.id for each in hybrid] == index.passages.ids(both(both.prepare([QUESTIONS[0]]), 3).rows[0])
    words = open_search(index.folder, cache=tmp_path / "cache")(QUESTIONS[2], 1)
    assert words[0].title == "Hemingway" and list((tmp_path / "cache").glob("bm25-*"))


def test_json_from_a_pipe(corpus, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("capital of France\n\nrivers of Italy\n"))
    assert call(str(corpus), "json=true", "n_docs=1") == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["question"] for record in records] == ["capital of France", "rivers of Italy"]
    assert records[0]["passages"][0].keys() == {"rank", "id", "title", "text", "score"}
    assert records[0]["passages"][0]["title"] == "Paris" and records[0]["retriever"] == "bm25"


def test_words_of_the_question_are_marked_and_nothing_commands_the_terminal():
    found = Found(1, "7\x1b[2J", "Anna's tower", "It was built by \x1b[31m Anna in 1850.", 3.25)
    text = shown(found, "what did Anna build?")
    assert "\x1b" not in text.plain and "3.25" in text.plain
    marked = [text.plain[span.start : span.end] for span in text.spans if "yellow" in str(span.style)]
    assert marked == ["Anna", "Anna"]


@pytest.mark.parametrize(
    "arguments, problem",
    [
        ([], "say what is searched"),
        (["nowhere", "who?"], "nowhere does not exist: give the path of a corpus, or of an index"),
        (["CORPUS", "who?", "and", "who?"], "'and' is one argument too many: put the question in quotes"),
        (["CORPUS", "ndocs=3", "who?"], "the setting ndocs does not exist: did you mean n_docs?"),
        (["CORPUS", "n_docs=0", "who?"], "n_docs=0: a whole number from 1 is expected"),
        (["CORPUS", f"n_docs={'9' * 5000}", "who?"], "a whole number from 1 is expected"),
        (["CORPUS", "json=yes", "who?"], "json=yes: true or false is expected"),
        (
            ["CORPUS", "retriever=tfidf", "who?"],
            "retriever=tfidf does not exist: there is bm25, dense, hybrid",
        ),
        (
            ["CORPUS", "retriever=dense", "who?"],
            "is no index: make one with build_index.py, or leave retriever= out",
        ),
        (["CORPUS", "size=zero", "who?"], "size=zero: a whole number from 1 is expected"),
        (["CORPUS", "size=50", "who?"], "needs to know what is cut where: give corpus.split="),
        (["CORPUS", "  "], "question 1 is empty"),
        (["INDEX", "encoding=latin-1", "who?"], "encoding=, split= and size= say how a corpus is read"),
        (["INDEX", "retriever=dense", "question_encoder=nowhere", "who?"], "nowhere"),
        (
            ["INDEX", "retriever=dense", "who?"],
            "was made with tiny, which does not serve as question encoder",
        ),
        (["EMPTY", "who?"], "has nothing to read: it is empty"),
    ],
)
def test_bad_input_is_one_sentence(arguments, problem, corpus, index, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    places = {"CORPUS": corpus, "INDEX": index.folder, "EMPTY": tmp_path / "empty"}
    assert call(*(str(places.get(each, each)) for each in arguments)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert problem in error and error.startswith("error: ")


def test_an_empty_pipe_and_no_terminal(corpus, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    assert call(str(corpus)) == 2
    assert "the pipe holds no question" in capsys.readouterr().err
    with pytest.raises(UserError, match="n_docs=0 finds nothing"):
        open_search(corpus)("who?", 0)


@pytest.mark.slow
def test_ten_thousand_passages_are_searched_within_a_second_of_processor_time(tmp_path):
    """From the second time on, when they were read; neither torch nor transformers is imported."""
    rows = (
        f"{n}\tThe town number {n} lies near river {n % 997} and has {n % 89} towers.\tTown {n}"
        for n in range(10_000)
    )
    (tmp_path / "towns.tsv").write_text("\n".join(["id\ttext\ttitle", *rows]) + "\n")
    command = [sys.executable, "-m", "rag.search", str(tmp_path / "towns.tsv"), "which town has river 42?"]
    subprocess.run(command, cwd=PROJECT, check=True, capture_output=True)
    program = (
        "import sys, time; sys.argv = sys.argv[1:]\n"
        "from rag import search\n"
        "start = time.process_time(); search.main(sys.argv); spent = time.process_time() - start\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
        "print(spent)"
    )
    again = subprocess.run(
        [sys.executable, "-c", program, *command[3:]], cwd=PROJECT, check=True, capture_output=True, text=True
    )
    assert float(again.stdout.splitlines()[-1]) < 1.0, again.stdout
