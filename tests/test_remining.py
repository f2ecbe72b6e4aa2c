"""Hard negatives mined with the encoders under training (rag/training/remining.py)."""

import copy
import json
import logging
import multiprocessing
import os
import re
import signal
import socket

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import PASSAGES, bert_tokenizer, tiny_passage_encoder, tiny_question_encoder
from fitting import QUIET, StepMetrics, fit
from safetensors.torch import load_file, save_file
from test_whole_batch import Started

from rag.encoders.dpr import PassageEncoder, QuestionEncoder
from rag.errors import UserError
from rag.index.passage import Passage
from rag.index.passages import PassageStore
from rag.tasks.dpr_json import AskedQuestion, open_dpr_json
from rag.training.callbacks import checkpoints
from rag.training.dpr import BiEncoder, DprModule
from rag.training.dpr_data import DprData
from rag.training.optimization import Optimization
from rag.training.remining import Remining, RetrievedNegatives, nearest, without_false
from rag.training.schedule import Schedule

pytestmark = QUIET

ASKED = [
    {"question": "what is the capital of France?", "answers": ["Paris"], "positive_ids": [0]},
    {"question": "which river runs through Rome", "answers": ["the Tiber"], "positive_ids": [2]},
    {"question": "who wrote The Sun Also Rises", "answers": ["Hemingway"], "positive_ids": [4]},
    {
        "question": "the capital of Germany",
        "answers": ["Berlin"],
        "positive_ids": [1],
        "hard_negative_ids": [3],
    },
]


@pytest.fixture
def encoders() -> BiEncoder:
    tokenizer = bert_tokenizer()
    torch.manual_seed(3)
    question, passage = tiny_question_encoder(len(tokenizer)), tiny_passage_encoder(len(tokenizer))
    return BiEncoder((QuestionEncoder(question, tokenizer), PassageEncoder(passage, tokenizer))).train()


@pytest.fixture
def files(tmp_path):
    """A corpus of the seven passages four times over, each time with another word, and four questions."""
    passages, questions = tmp_path / "passages.jsonl", tmp_path / "questions.jsonl"
    with passages.open("w") as out:
        for row in range(28):
            title, text = PASSAGES[row % 7]
            text = f"{text} {'the river in above'.split()[row // 7]}"  # words that the encoders know
            out.write(json.dumps({"id": str(row), "title": title, "text": text}) + "\n")
    questions.write_text("\n".join(map(json.dumps, ASKED)))
    return passages, questions


def data_of(files, model, tmp_path, **settings) -> DprData:
    given = {"batch_size": 2, "remining": Remining(depth=9, keep=3), "remine": 2, "cache": tmp_path / "cache"}
    return DprData(files[0], model, questions=files[1], **given | settings)


def set_up(*given, **settings) -> DprData:
    data = data_of(*given, **settings)
    data.setup()
    return data


def module_of(model) -> DprModule:
    return DprModule(model, Optimization(lr=1e-2, warmup_steps=0, schedule="constant"))


def by_hand(model, data) -> list[list[int]]:
    """What each question is to get, by encoding every passage alone and sorting."""
    was, texts = model.training, [data.store[row] for row in range(len(data.store))]
    model.eval()
    with torch.no_grad():
        passages = torch.cat([model.passage_encoder(**model.passage_encoder.tokenize([p])) for p in texts])
        mined = []
        for one in data.questions:
            vector = model.question_encoder(**model.question_encoder.tokenize([one.question]))
            order = (passages @ vector[0]).argsort(descending=True)[:9].tolist()
            wrong = [
                row
                for row in order
                if row not in one.positives
                and not any(
                    answer.lower() in f"{texts[row].title} {texts[row].text}".lower()
                    for answer in one.answers
                )
            ]
            mined.append(wrong[:3])
    model.train(was)
    return mined


def test_the_nearest_that_hold_no_answer_are_mined(files, encoders, tmp_path):
    data = set_up(files, encoders, tmp_path)
    retrieved = data.retrieved
    assert [retrieved.of(n) for n in range(4)] == [[], [], [], []]
    assert retrieved.hard(3) == [3]
    expected = by_hand(encoders, data)
    retrieved.mine(encoders, 2)
    assert [retrieved.of(n) for n in range(4)] == expected
    assert all(module.training for module in encoders.modules())
    # each answer stands in the three other copies of a question's passage at least, and nowhere among the negatives
    assert expected[3] and retrieved.hard(3) == list(dict.fromkeys([*expected[3], 3]))
    metrics = retrieved.take_metrics()
    named = {3} & set(expected[3])
    assert metrics["train/negatives_changed"] == pytest.approx(1 - len(named) / sum(map(len, expected)))
    assert metrics["train/false_negatives"] > 0
    assert 0 < metrics["train/mining_seconds"] and 0 < metrics["train/mining_share"] <= 1
    assert retrieved.take_metrics() == {}
    retrieved.mine(encoders, 4)  # the same encoders find the same
    assert retrieved.take_metrics()["train/negatives_changed"] == 0


def test_false_negatives_by_hand(tmp_path):
    """Row 0 is right; 1 names the answer in its title, 2 in its text with other letters' case; 3 and 4 do not."""
    texts = [("a", "Paris"), ("Paris", "x"), ("b", "in PARIS!"), ("c", "Parisian"), ("d", "y"), ("e", "z")]
    store = PassageStore.write([Passage(str(n), *each) for n, each in enumerate(texts)], tmp_path / "store")
    asked = [AskedQuestion("where", np.array([0], np.int32), answers=("Paris",))]
    near = torch.tensor([[1, 0, 3, 2, 4, 5]])
    rows, left_out = without_false(near, store, asked, 2, torch.device("cpu"))
    assert rows.tolist() == [[3, 4]] and left_out == 2
    rows, left_out = without_false(
        torch.tensor([[0, 2, 5, -1, -1, -1]]), store, asked, 2, torch.device("cpu")
    )
    assert rows.tolist() == [[5, -1]] and left_out == 1


def test_questions_without_answers_are_warned_of(files, encoders, tmp_path, caplog):
    store = PassageStore.write([Passage("0", "a", "b")], tmp_path / "store")
    with caplog.at_level(logging.WARNING):
        RetrievedNegatives(
            Remining(), Schedule.parse(1), store, [AskedQuestion("q", np.array([0], np.int32))], seed=0
        )
    assert "the questions name no answers" in caplog.text


def test_a_pool_holds_what_questions_name_and_so_many_others(files, encoders, tmp_path):
    def pool(number, seed=0):
        return set_up(
            files, encoders, tmp_path, remining=Remining(9, 3, pool=number), seed=seed
        ).retrieved.pool.tolist()

    named = {0, 1, 2, 3, 4}
    assert pool(0) == sorted(named)
    assert named < set(pool(5)) and len(pool(5)) == 10 and pool(5) == sorted(pool(5))
    assert pool(5) == pool(5) != pool(5, seed=1)
    assert pool(None) == pool(23) == pool(99) == list(range(28))


def test_a_pool_of_fewer_passages_than_are_looked_at(files, encoders, tmp_path):
    data = set_up(files, encoders, tmp_path, remining=Remining(depth=40, keep=20, pool=0))
    found = nearest(encoders, data.store, data.questions, data.retrieved.pool, 40)
    assert [sorted(row) for row in found[:, :5].tolist()] == [[0, 1, 2, 3, 4]] * 4
    assert (found[:, 5:] == -1).all()
    data.retrieved.mine(encoders, 2)
    assert all(1 <= len(data.retrieved.of(n)) <= 4 for n in range(4))


def test_alone_or_beside_what_files_name(files, encoders, tmp_path):
    """Beside: both are drawn; alone: only what was mined, once something was."""

    def drawn(alone):
        data = set_up(files, encoders, tmp_path, batch_size=4, remining=Remining(9, 2, alone=alone))
        before = {row for step in range(30) for row in data.make_batch(step).rows.tolist()}
        data.retrieved.mine(encoders, 2)
        mined = set(data.retrieved.of(3))
        batches = [data.make_batch(step) for step in range(30)]
        of_3 = {
            int(batch.rows[position + 1])
            for batch in batches
            for position, right in zip(batch.positive.tolist(), batch.right[:, 0].tolist(), strict=True)
            if right == 1
        }
        return before, mined, of_3

    before, mined, of_3 = drawn(alone=True)
    assert before == {0, 1, 2, 3, 4} and 3 not in mined and of_3 == mined
    before, mined, of_3 = drawn(alone=False)
    assert of_3 == mined | {3}


# -- in training --------------------------------------------------------------------------------------


class Mined(StepMetrics):
    """After each step, what the negatives are and when they were mined."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, trainer, *given):
        super().on_train_batch_end(trainer, *given)
        retrieved = trainer.datamodule.retrieved
        self.seen.append((retrieved.after, [retrieved.of(n) for n in range(4)]))


def weights(model):
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def trained(
    files, start, tmp_path, steps=6, callbacks=(), ckpt_path=None, accumulate=1, ranks=None, **settings
):
    model = copy.deepcopy(start)
    data = data_of(files, model, tmp_path, **settings)
    fit(
        module_of(model),
        data,
        steps,
        accumulate=accumulate,
        folder=tmp_path,
        callbacks=callbacks,
        ckpt_path=ckpt_path,
        **(ranks or {}),
    )
    return model


def same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def differ(one, other):
    return any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_negatives_are_mined_after_the_steps_of_the_schedule(files, encoders, tmp_path, accumulate, capsys):
    seen = Mined()
    model = trained(files, encoders, tmp_path, callbacks=[seen], accumulate=accumulate)
    assert [after for after, _ in seen.seen[::accumulate]] == [-1, -1, 2, 2, 4, 4]
    logged = ["train/mining_seconds" in step for step in seen.steps[accumulate - 1 :: accumulate]]
    assert logged == [False, False, True, True, True, True]
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("negatives")]
    for step, (begun, ended) in zip((2, 4), zip(said[::2], said[1::2], strict=True), strict=True):
        found = re.fullmatch(
            rf"negatives after step {step}: mined among (\d+) passages for \d+ questions", begun
        )
        rate = rf"negatives after step {step}: {found and found[1]} passages in \d+ s, \S+ passages/s"
        assert re.fullmatch(rate, ended), (begun, ended)
    assert differ(
        weights(model), weights(trained(files, encoders, tmp_path, accumulate=accumulate, remine=None))
    )


def test_the_encoders_that_mine_are_those_of_that_step(files, encoders, tmp_path):
    """Trained for two steps without mining, the encoders find what the run that goes on mined after its second."""
    seen = Mined()
    trained(files, encoders, tmp_path, steps=3, callbacks=[seen])
    model = trained(files, encoders, tmp_path, steps=2, remine=None)
    assert seen.seen[-1][1] == by_hand(model, set_up(files, model, tmp_path))


def test_at_the_start(files, encoders, tmp_path):
    seen = Mined()
    expected = by_hand(encoders, set_up(files, encoders, tmp_path))
    settings = {"remine": None, "remining": Remining(9, 3, at_start=True)}
    trained(files, encoders, tmp_path, steps=3, callbacks=[seen], **settings)
    assert seen.seen == [(0, expected)] * 3


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a single core
def test_what_loaders_made_ahead_is_made_again(files, encoders, tmp_path):
    """Two workers are batches ahead of the step; each batch is what it is when it is made after the mining."""
    kept = [weights(trained(files, encoders, tmp_path, num_workers=ahead, remine=1)) for ahead in (0, 2)]
    same(*kept)


class KilledDuringMining:
    """A passage encoder's `encode` that kills its process at its so many-th call, as the system would."""

    def __init__(self, encode, calls):
        self.encode, self.calls = encode, calls

    def __call__(self, passages):
        self.calls -= 1
        if self.calls < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.encode(passages)


def train_until_killed(files, model, folder, calls):
    model.passage_encoder.encode = KilledDuringMining(model.passage_encoder.encode, calls)
    last = checkpoints(folder, None, minutes=0)
    fit(module_of(model), data_of(files, model, folder), 6, folder=folder, callbacks=last)


@pytest.mark.parametrize("calls", [0, 10, 28, 40])  # a mining encodes 28 blocks of one passage
def test_killed_between_or_during_mining_a_run_ends_with_the_same_weights(files, encoders, tmp_path, calls):
    whole = Mined()
    expected = weights(trained(files, encoders, tmp_path, callbacks=[whole]))
    killed = multiprocessing.get_context("fork").Process(
        target=train_until_killed, args=(files, encoders, tmp_path, calls)
    )
    killed.start()
    killed.join(120)
    assert killed.exitcode == -signal.SIGKILL
    done = torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"]
    assert done == (2 if calls < 28 else 4)
    resumed = Mined()
    model = trained(files, encoders, tmp_path, callbacks=[resumed], ckpt_path=tmp_path / "last.ckpt")
    same(expected, weights(model))
    assert resumed.seen == whole.seen[done:]


@pytest.mark.parametrize("step", [1, 2, 3, 5])
def test_resumed_after_any_step_a_run_ends_with_the_same_weights(files, encoders, tmp_path, step):
    expected = weights(trained(files, encoders, tmp_path))
    model = copy.deepcopy(encoders)
    stopped = fit(module_of(model), data_of(files, model, tmp_path), step, folder=tmp_path)
    stopped.save_checkpoint(tmp_path / "last.ckpt")
    same(expected, weights(trained(files, encoders, tmp_path, ckpt_path=tmp_path / "last.ckpt")))


def test_a_checkpoint_over_other_questions_is_refused(files, encoders, tmp_path):
    model = copy.deepcopy(encoders)
    fit(module_of(model), data_of(files, model, tmp_path), 3, folder=tmp_path).save_checkpoint(
        tmp_path / "last.ckpt"
    )
    files[1].write_text("\n".join(map(json.dumps, ASKED[:3])))
    with pytest.raises(
        UserError,
        match="mined for other questions or passages, or with another remining.keep: give the last",
    ):
        trained(files, encoders, tmp_path, ckpt_path=tmp_path / "last.ckpt")


# -- two ranks ----------------------------------------------------------------------------------------


def one_rank(rank, files, start, folder):
    seen = Mined()
    ranks = {"devices": 2, "strategy": "ddp", "plugins": [Started(rank, folder / "port")]}
    model = trained(files, start, folder, steps=3, callbacks=[seen], ranks=ranks)
    (folder / f"rank{rank}.json").write_text(json.dumps(seen.seen))
    save_file(weights(model), folder / f"rank{rank}.safetensors")


def mining_rank(rank, files, model, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    data = set_up(files, model, folder)
    encode, counted = model.passage_encoder.encode, []

    def counting(passages):
        counted.extend(passages)
        return encode(passages)

    model.passage_encoder.encode = counting
    data.retrieved.mine(model, 2)
    found = {
        "rows": [data.retrieved.of(n) for n in range(4)],
        "embedded": len(counted),
        "left_out": data.retrieved.metrics["train/false_negatives"],
    }
    (folder / f"mined{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def in_two(target, *given):
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=target, args=(rank, *given)) for rank in (0, 1)]
    for each in ranks:
        each.start()
    for each in ranks:
        each.join(120)
        assert each.exitcode == 0


@pytest.mark.slow
def test_two_ranks_train_on_the_same_negatives(files, encoders, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        (tmp_path / "port").write_text(str(free.getsockname()[1]))
    in_two(one_rank, files, encoders, tmp_path)
    seen = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert seen[0] == seen[1] and [after for after, _ in seen[0]] == [-1, -1, 2]
    same(*(load_file(tmp_path / f"rank{rank}.safetensors") for rank in (0, 1)))


def test_two_ranks_share_the_mining_and_find_what_one_finds(files, encoders, tmp_path):
    data = set_up(files, encoders, tmp_path)
    data.retrieved.mine(encoders, 2)
    in_two(mining_rank, files, encoders, tmp_path)
    found = [json.loads((tmp_path / f"mined{rank}.json").read_text()) for rank in (0, 1)]
    assert found[0]["rows"] == found[1]["rows"] == [data.retrieved.of(n) for n in range(4)]
    assert found[0]["embedded"] == found[1]["embedded"] == 14
    assert found[0]["left_out"] == found[1]["left_out"] == data.retrieved.metrics["train/false_negatives"]


# -- what is wrong is told in a sentence --------------------------------------------------------------


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"depth": 0}, "remining.depth=0: a whole number of 1 or more is expected"),
        ({"depth": "many"}, "remining.depth=many: a whole number of 1 or more is expected"),
        ({"depth": True}, "remining.depth=True: a whole number of 1 or more"),
        ({"keep": -1}, "remining.keep=-1: a whole number of 1 or more is expected"),
        ({"keep": None}, "remining.keep=None: a whole number of 1 or more is expected"),
        ({"pool": -1}, "remining.pool=-1: a whole number of 0 or more is expected, or null for all passages"),
        ({"pool": 0.5}, "remining.pool=0.5: a whole number of 0 or more"),
        (
            {"depth": 5},
            "remining.keep=10 negatives cannot be found among the remining.depth=5 nearest passages: raise "
            "remining.depth to 10 or more",
        ),
    ],
)
def test_settings_that_are_none(settings, sentence):
    with pytest.raises(UserError) as told:
        Remining(**settings)
    assert sentence in str(told.value)


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"remine": 0}, "datamodule.remine=0: every 0 steps is never"),
        (
            {"remining": {"depth": 5}},
            "datamodule.remining={'depth': 5} names no class: give datamodule.remining={_target_",
        ),
        ({"remine": "now"}, "datamodule.remine=now: now is no schedule of steps"),
        (
            {"hard_negatives": 0},
            "datamodule.remine=2 mines hard negatives, and datamodule.hard_negatives=0 takes none",
        ),
        (
            {"hard_negatives": 0, "remine": None, "remining": Remining(at_start=True)},
            "datamodule.remining.at_start=true mines hard negatives, and datamodule.hard_negatives=0 takes none",
        ),
    ],
)
def test_data_that_cannot_be_mined_for(files, encoders, tmp_path, settings, sentence):
    with pytest.raises(UserError) as told:
        set_up(files, encoders, tmp_path, **settings)
    assert sentence in str(told.value)


def test_without_questions_there_is_nothing_to_mine_for(files, encoders, tmp_path):
    data = DprData(files[0], encoders, 2, inverse_cloze=object(), remine=5, cache=tmp_path)
    with pytest.raises(
        UserError, match="mines negatives of questions, and datamodule.questions=null gives none"
    ):
        data.setup()


def test_a_schedule_that_begins_after_training_is_warned_of(files, encoders, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        trained(files, encoders, tmp_path, steps=2, remine=2)
    assert "no negatives are mined before training ends at step 2" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        trained(files, encoders, tmp_path, steps=3, remine=2)
    assert "no negatives are mined" not in caplog.text


def test_vectors_that_are_not_finite_are_no_negatives(files, encoders, tmp_path):
    data = set_up(files, encoders, tmp_path)
    torch.nn.init.constant_(next(encoders.passage_encoder.parameters()), torch.nan)
    with pytest.raises(
        UserError, match="a vector of the encoders under training is not finite: lower optimization.lr"
    ):
        data.retrieved.mine(encoders, 2)


def test_dprs_own_files_bring_answers(tmp_path):
    context = {"title": "Paris", "text": "the capital", "passage_id": "1"}
    record = {"question": "where", "positive_ctxs": [context], "hard_negative_ctxs": [], "negative_ctxs": []}
    path = tmp_path / "train.json"
    path.write_text(json.dumps([record | {"answers": ["Paris", "Lutetia"]}, record]))
    _, asked = open_dpr_json(path, tmp_path / "cache")
    assert [one.answers for one in asked] == [("Paris", "Lutetia"), ()]
    path.write_text(json.dumps([record | {"answers": "Paris"}]))
    with pytest.raises(UserError, match="answers is a string, a list of strings is expected"):
        open_dpr_json(path, tmp_path / "cache")
