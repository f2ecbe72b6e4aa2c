"""Training targets that retrieval decides: made, kept, and made anew when anything behind them changes."""

import json
import multiprocessing
from pathlib import Path

import pytest
from conftest import build_tiny_index

from rag.errors import UserError
from rag.retrievers.dense import DenseRetriever
from rag.retrievers.lexical import BM25
from rag.retrievers.lexical_retriever import LexicalRetriever
from rag.tasks import preparation
from rag.tasks.curated_trec import CuratedTREC
from rag.tasks.natural_questions import NaturalQuestions
from rag.tasks.preparation import prepared, training_pairs
from rag.tasks.trivia_qa import TriviaQA


def write(path: Path, *records) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


@pytest.fixture
def bm25(index) -> LexicalRetriever:
    return LexicalRetriever(BM25.build(index.passages), index)


@pytest.fixture
def trivia(tmp_path) -> TriviaQA:
    """In the best two passages by BM25: Paris and Seine; Rome; nothing."""
    questions = [
        {
            "question": "what is the capital of France?",
            "answer": ["Paris", "Lutetia", "river Seine", "Berlin"],
        },
        {"question": "which river runs through Rome", "answer": ["tiber", "Tevere"]},
        {"question": "who wrote The Sun Also Rises in 1926?", "answer": ["Nobody"]},
    ]
    return TriviaQA(train=write(tmp_path / "t.jsonl", *questions))


def test_trivia_qa_keeps_the_answers_that_are_found(trivia, bm25, tmp_path, capsys):
    trivia.depth = 2
    pairs = training_pairs(trivia, bm25, tmp_path / "prepared")
    assert [(example.question[:8], target) for example, target in pairs] == [
        ("what is ", "Paris"),
        ("what is ", "river Seine"),
        ("which ri", "tiber"),
    ]
    assert pairs[0][0].answers == ("Paris", "river Seine") and pairs[0][0].id == "1"
    assert "found for 2 of 3 questions, 2 are trained on" in capsys.readouterr().out
    (said,) = (tmp_path / "prepared").glob("*.json")
    assert json.loads(said.read_text())["answers"] == {"before": 7, "after": 3}


def test_curated_trec_trains_on_the_best_match_or_on_what_is_spelt_out(bm25, tmp_path, capsys):
    questions = [
        {"question": "which river runs through Rome", "answer": ["Tib.r|Po", "Rom[a-z]"]},
        {"question": "what is the capital of France?", "answer": ["Ly(on|ons)"]},
    ]
    task = CuratedTREC(train=write(tmp_path / "c.jsonl", *questions))
    pairs = training_pairs(task, bm25, tmp_path)
    # the passages that share a word with the question hold Rome twice (title aside) and Tiber twice; Tiber is first
    assert [target for _, target in pairs] == ["Tiber", "Lyon", "Lyons"]
    assert "found for 1 of 2 questions, 2 are trained on" in capsys.readouterr().out


def test_a_prepared_set_is_kept_until_what_made_it_changes(trivia, bm25, retriever, tmp_path, monkeypatch):
    folder = tmp_path / "prepared"
    first = prepared(trivia, bm25, folder)
    made = {path: path.stat().st_mtime_ns for path in folder.glob("TriviaQA-*.json*")}
    assert len(made) == 2
    with monkeypatch.context() as patch:
        patch.setattr(preparation, "_make", None)  # would fail if it were made again
        assert prepared(trivia, bm25, folder) == first
    assert {path: path.stat().st_mtime_ns for path in made} == made

    prepared(trivia, retriever, folder)  # another retriever
    assert len(list(folder.glob("*.jsonl"))) == 2
    prepared(trivia, LexicalRetriever(BM25.build(bm25.index.passages, k1=1.2), bm25.index), folder)
    assert len(list(folder.glob("*.jsonl"))) == 3
    trivia.limit = 2  # other questions
    prepared(trivia, bm25, folder)
    assert len(list(folder.glob("*.jsonl"))) == 4


def test_dense_retrieval_searches_with_the_question_encoder_as_it_stands(
    trivia, question_encoder, index, tmp_path
):
    """All seven passages are retrieved, so that every answer of theirs is found; a frozen encoder's mode stays."""
    retriever = DenseRetriever(question_encoder, index)
    retriever.train()
    pairs = prepared(trivia, retriever, tmp_path)
    assert [example.answers for example in pairs] == [("Paris", "river Seine", "Berlin"), ("tiber",)]
    assert retriever.training and question_encoder.training


def test_other_passages_are_another_set(trivia, bm25, passage_encoder, tmp_path):
    other = build_tiny_index(
        tmp_path / "other", passage_encoder, [("Lutetia", "Lutetia, capital of France: Paris.")]
    )
    prepared(trivia, bm25, tmp_path / "p")
    (example,) = prepared(trivia, LexicalRetriever(BM25.build(other.passages), other), tmp_path / "p")
    assert example.answers == ("Paris", "Lutetia")
    assert len(list((tmp_path / "p").glob("*.jsonl"))) == 2


def test_tasks_that_need_no_retrieval_are_not_searched_for(tmp_path):
    task = NaturalQuestions(train=write(tmp_path / "n.jsonl", {"question": "q", "answer": ["a", "b"]}))
    assert [target for _, target in training_pairs(task, None, tmp_path / "none")] == ["a", "b"]
    assert not (tmp_path / "none").exists()


def test_mistakes_are_told(trivia, bm25, passage_encoder, tmp_path):
    with pytest.raises(UserError, match="name a retriever with datamodule.target_retriever"):
        training_pairs(trivia, None, tmp_path)
    index = build_tiny_index(
        tmp_path / "other", passage_encoder, [("Nothing", "Nothing of the kind: who wrote it.")]
    )
    with pytest.raises(
        UserError, match="none of the 3 training questions has an answer in its 1 best passages"
    ):
        training_pairs(trivia, LexicalRetriever(BM25.build(index.passages), index), tmp_path / "p")
    assert not list((tmp_path / "p").glob("TriviaQA-*.json*"))
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(UserError, match="choose another with datamodule.prepared="):
        training_pairs(trivia, bm25, file)


def _prepare_elsewhere(task: TriviaQA, folder: Path, index_folder: Path) -> None:
    from rag.index.folder import Index

    index = Index.open(index_folder)
    prepared(task, LexicalRetriever(BM25.build(index.passages), index), folder)


@pytest.mark.slow
def test_two_processes_make_one_set(trivia, index, tmp_path):
    context = multiprocessing.get_context("spawn")
    jobs = [
        context.Process(target=_prepare_elsewhere, args=(trivia, tmp_path / "p", index.folder))
        for _ in range(2)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(120)
        assert job.exitcode == 0
    assert len(list((tmp_path / "p").glob("*.jsonl"))) == 1 and not list((tmp_path / "p").glob("*.partial"))
