"""Training the reader with its passage given: what it reads, what it is asked to write, and that it learns it."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from commands import run
from conftest import PASSAGES as TITLED
from conftest import bert_tokenizer
from test_warm_start import bert

from rag.decoding.generation import generate
from rag.decoding.quoting import as_written
from rag.decoding.settings import Decoding
from rag.errors import UserError
from rag.files import packed
from rag.generators.reader import new_reader
from rag.generators.seq2seq import Generator
from rag.index.passage import Passage
from rag.model import ClosedBook
from rag.tasks.example import Example
from rag.training.module import RagModule
from rag.training.optimization import Optimization
from rag.training.reading import Reading, ReadingData, find_answer, window

TRAIN = [
    {"question": "what is the capital of France?", "answers": ["paris"], "positive_ids": ["1"], "origin": "gold"},
    {"question": "which river runs through Rome", "answers": ["the Tiber"], "positive_ids": [2, 3], "origin": "gold"},
    {"question": "who wrote The Sun Also Rises in 1926?", "answers": ["Ernest Hemingway"], "positive_ids": [5],
     "origin": "distant", "coverage": 0.9},
    {"question": "how long is the Seine?", "answers": ["777 km"], "positive_ids": [6], "origin": "distant",
     "coverage": 0.5},
    {"question": "what is Madrid?", "answers": ["no such words"], "positive_ids": [4], "origin": "gold"},
    {"question": "nothing known", "answers": ["Paris"], "origin": "gold"},
]  # fmt: skip
DEV = [{"question": "what is the river of Italy", "answers": ["The Tiber"], "positive_ids": [7]}]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    lines = [f"{number}\t{text}\t{title}" for number, (title, text) in enumerate(TITLED, start=1)]
    (tmp_path / "passages.tsv").write_text("\n".join(["id\ttext\ttitle", *lines]) + "\n")
    with gzip.open(tmp_path / "train.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(record) + "\n" for record in TRAIN)
    (tmp_path / "dev.jsonl").write_text("".join(json.dumps(record) + "\n" for record in DEV))
    return tmp_path


@pytest.fixture
def generator(tmp_path: Path) -> Generator:
    tokenizer = bert_tokenizer()
    bert(len(tokenizer)).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    return new_reader(tmp_path / "bert", max_context_length=40, max_target_length=6)


def data(files: Path, generator: Generator, **settings) -> ReadingData:
    given = {
        "sources": [{"questions": f"{files}/train.jsonl"}],
        "passages": f"{files}/passages.tsv",
        "cache": files / "cache",
        "batch_size": 2,
    }
    return ReadingData(model=ClosedBook(generator), **(given | settings))


def test_targets_are_the_passages_own_tokens(files, generator):
    """The passage says "The Tiber", whatever the case of the answer; the first passage that holds it is read."""
    made = data(files, generator)
    made.setup()
    assert made.sizes() == {"training questions": 4, "left out": 1, "dev questions": 0}
    of = {reading.example.question: reading for reading in made.train[0]}
    tiber = of["which river runs through Rome"]
    assert tiber.passage.title == "Rome"  # the second positive: Berlin's, the first, does not say it
    assert generator.tokenizer.decode(tiber.text[tiber.start : tiber.end]) == "the tiber"
    examples, batch = made.make_batch(0)
    assert batch.labels is not None and batch.label_mask is not None
    for row, example in enumerate(examples):
        target = batch.labels[row][batch.label_mask[row]].tolist()
        assert target[-1] == generator.end_token
        text = generator.tokenizer.decode(target[:-1])
        assert text.lower() == example.answers[0].lower()
        ids, mask = generator.assemble(batch.generator_questions)
        read = generator.tokenizer.decode(ids[row][mask[row]])
        reading = of[example.question]
        assert read == generator.tokenizer.decode(
            generator.tokenizer(
                f"{example.question} [SEP] {reading.passage.title} [SEP] {reading.passage.text}"
            )["input_ids"]
        )


def test_the_first_positive_without_the_answer_is_passed_over(files, generator):
    made = data(files, generator)
    berlin, rome = Passage("2", "Berlin", "It is."), Passage("3", "Rome", "The Tiber.")
    example = Example("which?", ("the tiber",), ("2", "3"))
    found = made._found(example, {"2": berlin, "3": rome}, set())
    assert found is not None and found.passage is rome
    assert made._found(example, {"2": berlin, "3": rome}, {"Berlin"}) is None


def test_sources_are_chosen_and_mixed(files, generator):
    sources = [
        {"questions": f"{files}/train.jsonl", "where": {"origin": ["gold", None]}},
        {
            "questions": f"{files}/train.jsonl",
            "where": {"origin": ["distant"]},
            "at_least": {"coverage": 0.8},
        },
        {"questions": f"{files}/train.jsonl", "where": {"origin": ["elsewhere"]}, "optional": True},
    ]
    made = data(files, generator, sources=sources)
    made.setup()
    assert [[r.example.answers[0] for r in part] for part in made.train] == [
        ["paris", "the Tiber"],
        ["Ernest Hemingway"],
    ]
    assert made.counts.tolist() == [8, 8]  # of a pool of 8 batches of two, half and half
    asked = [e.question for step in range(8) for e in made.make_batch(step)[0]]
    assert asked.count(TRAIN[2]["question"]) == 8
    sources[2]["optional"] = False
    with pytest.raises(UserError, match=r"train.jsonl.gz: no question with origin among \['elsewhere'\]"):
        data(files, generator, sources=sources).setup()


def test_a_batch_is_a_function_of_the_step(files, generator):
    one, other = (
        data(files, generator, window=8, window_steps=4),
        data(files, generator, window=8, window_steps=4),
    )
    one.setup()
    other.setup()
    for step in (5, 0, 3):
        mine, theirs = one.make_batch(step), other.make_batch(step)
        assert [e.question for e in mine[0]] == [e.question for e in theirs[0]]
        assert np.array_equal(mine[1].generator_questions.tokens, theirs[1].generator_questions.tokens)
    for step in range(8):  # a window at first, the whole passage later
        _, batch = one.make_batch(step)
        tokens = batch.generator_questions
        assert batch.texts is not None
        for row, text in zip(np.split(tokens.tokens, tokens.starts[1:]), batch.texts, strict=True):
            separators = np.flatnonzero(row == generator.end_token)
            read = len(row) - separators[1] - 1
            whole = len(generator.tokenizer(text.split("[SEP] ")[1], add_special_tokens=False)["input_ids"])
            assert read == (min(8, whole) if step < 4 else whole)


def test_a_window_holds_the_answer_at_every_offset():
    reading = Reading(
        Example("q", ("a",)), Passage("1", "t", "x"), np.arange(1), np.arange(1), np.arange(20), 9, 11
    )
    random = np.random.default_rng(0)
    found = {window(reading, 6, random) for _ in range(200)}
    assert found == {(start, start + 6) for start in range(5, 10)}
    for start, end, size in ((0, 1, 6), (19, 20, 6), (3, 4, 50), (2, 12, 5)):
        at = Reading(
            reading.example, reading.passage, reading.question, reading.head, reading.text, start, end
        )
        first, last = window(at, size, random)
        assert first <= start and end <= last and last - first == min(20, max(size, end - start))


def test_a_share_is_read_with_a_wrong_passage_and_answered_by_nothing(files, generator):
    """Half of the questions here: the wrong passage holds no answer, is none of the positives, and the target is
    end-of-sequence alone. The others are read as they are without."""
    made = data(files, generator, unanswerable=0.5, window=8, window_steps=20)
    made.setup()
    wrong = answered = 0
    for step in range(40):
        examples, batch = made.make_batch(step)
        assert batch.labels is not None and batch.label_mask is not None and batch.texts is not None
        for row, example in enumerate(examples):
            target = batch.labels[row][batch.label_mask[row]].tolist()
            if target == [generator.end_token]:
                wrong += 1
                assert find_answer(example.answers[0], batch.texts[row]) is None
            else:
                answered += 1
                assert find_answer(example.answers[0], batch.texts[row]) is not None
    assert 20 < wrong < 60 and wrong + answered == 80
    assert [e.question for e in data_again(files, generator).make_batch(3)[0]] == [
        e.question for e in made.make_batch(3)[0]
    ]


def data_again(files, generator) -> ReadingData:
    made = data(files, generator, unanswerable=0.5, window=8, window_steps=20)
    made.setup()
    return made


def test_dev_s_articles_are_left_out_of_training(files, generator):
    made = data(files, generator, dev=[f"{files}/nowhere.jsonl", f"{files}/dev.jsonl"])
    made.setup()
    assert made.sizes()["dev questions"] == 1 and "Tiber" not in {r.passage.title for r in made.train[0]}
    for record in (dict(DEV[0], positive_ids=[1]),):
        (files / "dev.jsonl").write_text(json.dumps(record) + "\n")
    made = data(files, generator, dev=f"{files}/dev.jsonl")
    made.setup()
    assert "Paris" not in {r.passage.title for r in made.train[0]} and made.left_out == 2


def test_answers_are_found_as_whole_words():
    assert find_answer("cat", "A concatenated Cat.") == (15, 18)
    assert find_answer("10–4", "won 10–4, 110–4") == (4, 8)
    assert find_answer("$5", "cost $5.") == (5, 7)
    assert find_answer("dog", "A cat.") is None and find_answer(" ", "A cat.") is None


def test_characters_of_the_passage(generator):
    """Capitals, punctuation and spacing are the passage's."""
    tokens = generator.tokenizer("seine . the", add_special_tokens=False)["input_ids"]
    text = "Paris lies on the river Seine.The end"
    assert as_written(generator, [*tokens, generator.end_token], text) == "Seine.The"
    assert as_written(generator, tokens, "no such run") is None
    assert as_written(generator, [generator.end_token], text) is None


def test_what_is_wrong_with_the_files_is_told(files, generator):
    with pytest.raises(UserError, match="nowhere.jsonl do not exist"):
        data(files, generator, dev=f"{files}/nowhere.jsonl").setup()
    (files / "dev.jsonl").write_text(json.dumps(dict(DEV[0], positive_ids=[99])) + "\n")
    with pytest.raises(UserError, match="holds none of the gold passages"):
        data(files, generator, dev=f"{files}/dev.jsonl").setup()
    (files / "few.jsonl").write_text(json.dumps(TRAIN[4]) + "\n")
    with pytest.raises(UserError, match="no question is left to read with"):
        data(files, generator, sources=[{"questions": f"{files}/few.jsonl"}]).setup()
    with pytest.raises(UserError, match="datamodule.unanswerable is 1.0"):
        data(files, generator, unanswerable=1.0)
    with pytest.raises(
        UserError, match="datamodule.sources: .*; a source has questions, share, where, at_least"
    ):
        data(files, generator, sources=[{"question": "x"}])
    assert packed(files / "train.jsonl") == files / "train.jsonl.gz"


@pytest.mark.filterwarnings(
    "ignore:.*LeafSpec:FutureWarning", "ignore:.*overridden `transfer_batch_to_device`"
)
def test_it_learns_and_is_judged_with_the_passage_given(files, generator):
    torch.manual_seed(1)
    made = data(files, generator, batch_size=4, dev=f"{files}/dev.jsonl")
    settings = Optimization(lr=2e-3, warmup_steps=0, schedule="constant", weight_decay=0.0)
    module = RagModule(ClosedBook(generator).train(), settings, Decoding(max_new_tokens=5), per_token=True)
    trainer = pl.Trainer(
        max_steps=60, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, val_check_interval=30, check_val_every_n_epoch=None, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, made)
    assert "dev/em" in trainer.callback_metrics
    model = module.model.eval()
    examples, batch = made.make_batch(0)
    answers = [found[0].text for found in generate(model, model.read(batch), Decoding(max_new_tokens=5))]
    held = {"paris": "Paris", "the Tiber": "The Tiber"}  # as the passages write them
    assert answers == [held.get(e.answers[0], e.answers[0]) for e in examples]


@pytest.mark.filterwarnings(
    "ignore:.*LeafSpec:FutureWarning", "ignore:.*overridden `transfer_batch_to_device`"
)
def test_the_experiment_leaves_a_generator(files, generator, capsys, tmp_path_factory):
    """train.py with its files packed and plain; the same command again finds its result."""
    runs = tmp_path_factory.mktemp("runs")
    settings = [
        *(
            "experiment=wiki/reader",
            f"data={files}",
            f"paths.outputs={runs}",
            f"generator.path={files}/bert",
        ),
        *("generator.max_context_length=40", "datamodule.batch_size=2", "datamodule.window_steps=2"),
        *("trainer.max_steps=4", "trainer.val_check_interval=2", "optimization.warmup_steps=1"),
    ]
    settings.append("datamodule.sources=[{questions: '${data}/train.jsonl'}]")
    assert run("train", *settings) == 0
    assert "4 steps of 2 examples" in capsys.readouterr().out
    assert run("train", *settings) == 0
    assert "already exists" in capsys.readouterr().out
    held = Generator.from_pretrained(runs / "wiki" / "reader" / "model" / "generator")
    assert held.quote and held.max_context_length == 40
    with open(runs / "wiki" / "reader" / "metrics.csv") as file:
        assert "dev/em" in file.readline()
