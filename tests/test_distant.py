"""Questions that name no passages: those that contain their answers are found by BM25, inverse cloze goes beside."""

import json
from pathlib import Path

import pytest
from commands import run
from conftest import PASSAGES, bert_tokenizer, tiny_passage_encoder, tiny_question_encoder
from sentence_folders import tiny_transformer, write_modules

from rag.encoders.dpr import PassageEncoder, QuestionEncoder
from rag.errors import UserError
from rag.files import read_json
from rag.scratch.inverse_cloze import InverseCloze
from rag.training.dpr import BiEncoder
from rag.training.dpr_data import DprData
from rag.training.hard_negatives import DistantPositives, MinedNegatives

ASKED = [
    {
        "question": "what is the capital of France?",
        "answers": ["Seine"],
    },  # in passages 0 and 5: "Seine" the river
    {"question": "which river runs through Rome", "answers": ["Tiber"]},  # 2 and 6
    {"question": "who wrote The Sun Also Rises?", "answers": ["nobody in particular"]},  # in none
    {"question": "and Hemingway?", "answers": ["Ernest"]},  # 4
]


def write(file: Path, records: list[dict]) -> str:
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(file)


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    records = [{"id": str(n), "title": title, "text": text} for n, (title, text) in enumerate(PASSAGES)]
    return write(tmp_path / "passages.jsonl", records)


@pytest.fixture
def encoders() -> BiEncoder:
    tokenizer = bert_tokenizer()
    question, passage = tiny_question_encoder(len(tokenizer)), tiny_passage_encoder(len(tokenizer))
    return BiEncoder((QuestionEncoder(question, tokenizer), PassageEncoder(passage, tokenizer)))


def data(tmp_path: Path, corpus: str, encoders: BiEncoder, records: list[dict], **more) -> DprData:
    questions = write(tmp_path / "train.jsonl", records)
    made = DprData(
        corpus, encoders, 4, questions, cache=tmp_path / "cache", distant=DistantPositives(), **more
    )
    made.setup()
    return made


def test_the_best_passage_with_an_answer_stands_for_the_gold_one(tmp_path, corpus, encoders, caplog):
    made = data(tmp_path, corpus, encoders, ASKED, mined=MinedNegatives(depth=7, keep=2))
    assert [each.question for each in made.questions] == [ASKED[n]["question"] for n in (0, 1, 3)]
    assert [each.positives.tolist() for each in made.questions] == [[0], [2], [4]]
    for each, record in zip(made.questions, (ASKED[0], ASKED[1], ASKED[3]), strict=True):
        assert made.store is not None
        assert all(record["answers"][0] not in " ".join(PASSAGES[row]) for row in each.hard)
    (said,) = [each for each in caplog.messages if "distant" in each]
    assert "train.jsonl: its questions name no passages (positive_ids); for 3 of 4 the best by BM25" in said
    assert said.endswith("(distant supervision)") and made.inverse_cloze is None


def test_half_of_a_batch_is_inverse_cloze_where_that_is_asked_for(tmp_path, corpus, encoders, caplog):
    made = data(tmp_path, corpus, encoders, ASKED, distant_cloze=InverseCloze())
    assert caplog.messages[-1].endswith("(distant supervision), and inverse cloze beside them")
    questions = made.make_batch(0).questions["input_ids"].tolist()
    asked = [
        encoders.question_encoder.tokenize([each.question])["input_ids"][0].tolist()
        for each in made.questions
    ]
    assert sum(any(row[: len(one)] == one for one in asked) for row in questions) == 2 and len(questions) == 4


def test_questions_that_name_passages_are_trained_on_as_they_are(tmp_path, corpus, encoders, caplog):
    named = [ASKED[0] | {"positive_ids": ["5"]}, ASKED[1]]
    made = data(tmp_path, corpus, encoders, named, distant_cloze=InverseCloze())
    assert [each.positives.tolist() for each in made.questions] == [[5]] and made.inverse_cloze is None
    assert "1 of 2 questions name no positive passage and are left out" in caplog.text


def test_no_answer_in_any_passage_is_told(tmp_path, corpus, encoders):
    with pytest.raises(UserError, match="no answer stands in the 30 best passages of its question by BM25"):
        data(tmp_path, corpus, encoders, [ASKED[2]])


def test_nothing_is_written_before_all_questions_were_read(tmp_path, corpus, encoders):
    """A wrong row of dev is told before the corpus is converted and BM25's passages are sought for the others."""
    dev = write(tmp_path / "dev.jsonl", [ASKED[0], {"question": "who?"}])
    for questions, problem in (
        (dev, "dev.jsonl, line 2: no key 'answers'"),
        (str(tmp_path / "no.jsonl"), "no.jsonl"),
    ):
        with pytest.raises(UserError, match=problem):
            data(tmp_path, corpus, encoders, ASKED, dev=questions, mined=MinedNegatives())
        assert not (tmp_path / "cache").exists()


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["local/dpr", "dpr/sentence"])
def test_the_experiment_takes_such_questions_as_they_are(experiment, tmp_path, corpus, capsys):
    """One command, and one line that says what it trains from."""
    encoder = write_modules(tiny_transformer(tmp_path / "encoder"), max_length=40)
    asked = write(tmp_path / "asked.jsonl", ASKED)
    files = [
        f"task.passages={corpus}",
        f"task.train={asked}",
        f"task.dev={asked}",
        f"passage_encoder={encoder}",
    ]
    settings = [f"paths.outputs={tmp_path}", "trainer.max_steps=2", "trainer.val_check_interval=2"]
    settings += [
        "datamodule.batch_size=4",
        f"paths.data={tmp_path}",
        f"encoders.path={encoder}",
        "trainer.devices=1",
    ]
    assert run("train", f"experiment={experiment}", *files, *settings, "trainer.accelerator=cpu") == 0
    assert "dev/average_rank" in read_json(tmp_path / experiment / "result.json")["metrics"]
    assert not (tmp_path / "outputs").exists() and "error" not in capsys.readouterr().err


@pytest.mark.slow
def test_the_advice_of_an_experiment_without_it_works(tmp_path, corpus, capsys):
    encoder = write_modules(tiny_transformer(tmp_path / "encoder"), max_length=40)
    asked = write(tmp_path / "asked.jsonl", ASKED)
    files = [
        f"task.passages={corpus}",
        f"task.train={asked}",
        f"task.dev={asked}",
        f"encoders.path={encoder}",
    ]
    settings = [
        f"paths.outputs={tmp_path}",
        "trainer.max_steps=1",
        "datamodule.batch_size=4",
        f"paths.data={tmp_path}",
    ]
    command = ["experiment=local/dpr", *files, *settings, "trainer.accelerator=cpu", "monitor=null"]
    assert run("train", *command, "datamodule.distant=null") == 2
    error = capsys.readouterr().err
    assert (
        "or take those that contain the answers (+datamodule.distant._target_=rag.training.DistantPositives)"
        in error
    )
    advice = ["datamodule.distant=null", "+datamodule.distant._target_=rag.training.DistantPositives"]
    assert run("train", *command, *advice) == 0
