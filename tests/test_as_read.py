"""What the generator reads of a long passage is what is judged, counted and said."""

import json
from pathlib import Path

import numpy as np
import pytest
from commands import run
from conftest import (
    SENTENCES,
    build_tiny_index,
    byte_tokenizer,
    t5_tokenizer,
    tiny_bart,
    tiny_t5,
    word_tokenizer,
)
from tiny_runs import write_run

from rag.evaluation.as_read import AsRead
from rag.evaluation.judging import passage_metrics
from rag.files import write_json
from rag.generators.context import Ragged, token_rows
from rag.generators.seq2seq import Generator
from rag.index.passages import PassageStore
from rag.index.readers import read_passages
from rag.index.reading import CorpusReading
from rag.metrics.record import find, records_of
from rag.tasks.example import Example
from rag.tasks.qa import QuestionAnswering, read_examples
from rag.words import cut_at

LONGP = Path(__file__).parents[2] / "shared/cases/longp"
FILLER = " ".join(SENTENCES)
LONG = f"{FILLER} " * 6 + "The mayor is Wilma Krantz."
QUESTION = "who is the mayor ?"


@pytest.fixture(scope="module")
def long_index(tmp_path_factory, passage_encoder):
    pairs = [("Report", LONG), ("Other", "Other text."), ("報告", "市長は田中です。" * 40)]
    return build_tiny_index(tmp_path_factory.mktemp("long") / "index", passage_encoder, pairs)


def generator_of(make, length: int) -> Generator:
    tokenizer = make([*SENTENCES, LONG, QUESTION])
    model = tiny_t5 if make is t5_tokenizer else tiny_bart
    return Generator(model(len(tokenizer)), tokenizer, max_context_length=length)


@pytest.mark.parametrize("make", [word_tokenizer, byte_tokenizer, t5_tokenizer])
@pytest.mark.parametrize("length", [20, 33, 50, 90])
def test_the_text_that_is_read_is_the_tokens_that_are_read(long_index, make, length):
    generator = generator_of(make, length)
    as_read = AsRead(generator, long_index)
    question = generator.tokenize_questions([QUESTION])
    store = long_index.passages
    for row in range(len(store)):
        passage = store[row]
        whole = token_rows(generator.tokenizer, [f"{passage.title} / {passage.text}"])[0]
        ids, mask = generator.assemble(question, Ragged.of([whole]))
        kept = min(
            len(whole), int(mask.sum()) - int(question.lengths[0]) - (1 if make is t5_tokenizer else 2)
        )
        read = as_read(QUESTION, row, passage)
        assert as_read.room(QUESTION) == length - int(question.lengths[0]) - (
            1 if make is t5_tokenizer else 2
        )
        assert (read == passage) is (kept == len(whole))
        if row != 2 and read.text:  # with few tokens, the title alone is read
            mine = token_rows(generator.tokenizer, [f"{passage.title} / {read.text}"])[0]
            # the last piece of a word may differ
            assert mine[:-1] == whole[: len(mine) - 1] and len(mine) <= kept
            longer = passage.text[: len(read.text)] + " ".join(passage.text[len(read.text) :].split(" ")[:3])
            if read != passage:
                assert len(token_rows(generator.tokenizer, [f"{passage.title} / {longer}"])[0]) > kept


def test_an_answer_that_is_not_read_is_not_found(long_index):
    example = Example(QUESTION, ("Wilma Krantz",), positive_ids=("1",))
    rows = np.array([[1, 0]])
    for length, expected_recall in ((40, 0.0), (4000, 1.0)):
        as_read = AsRead(generator_of(t5_tokenizer, length), long_index)
        metrics = passage_metrics(QuestionAnswering(), long_index.passages, rows, [example], [2], as_read)
        assert metrics["answer_recall"][2].value == expected_recall
        assert metrics["recall"][2].value == 1.0
    whole = passage_metrics(QuestionAnswering(), long_index.passages, rows, [example], [2])
    assert whole["answer_recall"][2].value == 1.0


def test_passages_that_do_not_fit_are_counted(long_index):
    as_read = AsRead(generator_of(word_tokenizer, 40), long_index)
    assert as_read.count_cut() == 2
    sentence = as_read.describe_cut([QUESTION])
    assert sentence is not None and sentence.startswith("2 of the 3 passages of")
    assert "corpus.split=words" in sentence
    assert AsRead(generator_of(t5_tokenizer, 4000), long_index).describe_cut() is None


@pytest.mark.parametrize(
    ("text", "end", "kept"),
    [
        ("one two", 3, "one"),
        ("one two", 5, "one "),
        ("one", 3, "one"),
        ("市長は田中です", 3, "市長は"),
        ("one", 0, ""),
    ],
)
def test_a_word_that_is_cut_in_two_is_left_out(text, end, kept):
    assert cut_at(text, end) == kept


def test_evaluate_says_what_is_not_read(tmp_path, long_index, capsys):
    folder = write_run(tmp_path / "run", "rag_sequence", long_index, n_docs=2)
    write_json(folder / "result.json", {"identity": "tiny"})
    questions = tmp_path / "q.jsonl"
    questions.write_text(
        json.dumps({"question": QUESTION, "answers": ["Wilma Krantz"], "positive_ids": ["1"]})
    )
    files = [f"task.{split}={questions}" for split in ("train", "dev", "test")]
    command = [f"checkpoint={folder}", "task=qa", "task.passages=null", *files, "recall_at=[3]"]
    assert run("evaluate", *command) == 0
    assert "1 of the 3 passages of" in capsys.readouterr().out
    (result,) = folder.glob("evaluation/*/result.json")
    records = records_of(json.loads(result.read_text()))
    assert [find(records, name, 3).value for name in ("recall", "answer_recall")] == [1.0, 0.0]


@pytest.mark.skipif(not LONGP.exists(), reason="needs ../shared/cases/longp")
def test_the_long_report(tmp_path, passage_encoder):
    example = read_examples(LONGP / "q.jsonl")[0]
    whole = PassageStore.write(read_passages(LONGP / "p.jsonl"), tmp_path / "whole")
    parts = PassageStore.write(
        read_passages(LONGP / "p.jsonl", CorpusReading(split="words")), tmp_path / "parts"
    )
    assert parts.ids(range(5)) == ["1#1", "1#2", "1#3", "1#4", "2"]
    right = QuestionAnswering().right_passages(example)
    assert [right["recall"](p) for p in parts][:5] == [True] * 4 + [False]
    assert [right["answer_recall"](p) for p in parts][:5] == [False, False, False, True, False]
    index = build_tiny_index(tmp_path / "index", passage_encoder, [(p.title, p.text) for p in whole])
    generator = Generator(tiny_bart(len(tokenizer := byte_tokenizer())), tokenizer, max_context_length=128)
    read = AsRead(generator, index)(example.question, 0, whole[0])
    assert right["answer_recall"](whole[0]) and not right["answer_recall"](read)
