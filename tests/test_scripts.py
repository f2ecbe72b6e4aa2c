"""The scripts from one end to the other, on a small mini-wiki with tiny models and a handful of steps.

Everything runs in this process, as typed: the scripts' own functions with a command line. `Ctrl-C` is a real SIGINT,
sent by a logger that the command line asks for.
"""

import csv
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from commands import run
from pytorch_lightning.loggers.logger import Logger
from safetensors.torch import load_file, save_file

from rag.ask.__main__ import main as ask
from rag.encoders.dpr import QuestionEncoder
from rag.files import write_json
from rag.index.folder import Index
from rag.metrics.record import BM25, by_k, records_of, swap_cells
from rag.miniwiki.world import write_world
from rag.runs import PROJECT
from rag.tasks.qa import read_examples
from rag.training.datamodule import sample
from rag.training.summary import expected_duration

pytestmark = [
    pytest.mark.xdist_group("scripts"),  # on one worker, so that the models are trained once
    pytest.mark.filterwarnings("ignore:.*the retriever has collapsed"),  # it has hardly been trained
]

GENERATOR = ["generator.width=16", "generator.heads=2", "generator.layers=1", "generator.feedforward=16"]
ENCODERS = ["encoders.width=16", "+encoders.heads=2", "+encoders.feedforward=16"]
SHORT = ["trainer.max_steps=2", "datamodule.batch_size=4", "trainer.log_every_n_steps=1"]
# Six steps with a look at dev after every second: the best checkpoint has to survive an interruption too.
RAG = [
    *(
        "trainer.max_steps=6",
        "datamodule.batch_size=4",
        "trainer.val_check_interval=2",
        "datamodule.dev_limit=4",
    ),
    *("datamodule.eval_batch_size=4", "trainer.log_every_n_steps=1", "n_docs=2", "decoding.max_new_tokens=3"),
]


class StopAfter(Logger):
    """Sends this process a signal once `steps` steps are logged: Ctrl-C at a known place."""

    name = "stop"
    version = ""

    def __init__(self, steps: int, number: int = signal.SIGINT):
        super().__init__()
        self.steps = steps
        self.number = number
        self.sent = False

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if step is not None and step + 1 == self.steps and not self.sent:
            self.sent = True  # a second one would end training at once
            os.kill(os.getpid(), self.number)

    def log_hyperparams(self, *arguments: Any, **settings: Any) -> None:
        pass


class Scripts:
    """Commands in a folder of their own; the result of one is its exit code, what it printed, and its error."""

    def __init__(self, root: Path):
        self.root = root
        self.places = [
            f"paths.outputs={root / 'out'}",
            f"paths.data={root / 'data'}",
            f"paths.indexes={root / 'ix'}",
        ]

    def __call__(self, script: str, *arguments: str, places: bool = True) -> int:
        return run(script, *arguments, *(self.places if places else []))

    def run(self, name: str) -> Path:
        return self.root / "out" / "demo" / name


def contents(folder: Path) -> dict[str, str]:
    """Every file under a folder with the hash of its bytes."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def weights(run: Path) -> dict[str, str]:
    return {name: value for name, value in contents(run / "model").items() if name.endswith(".safetensors")}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Scripts:
    """What every RAG run starts from: a mini-wiki, a generator, encoders, both indexes, a warmed-up reader."""
    scripts = Scripts(tmp_path_factory.mktemp("demo"))
    write_world(scripts.root / "data" / "miniwiki", seed=1, people=150, institutions=40)
    assert scripts("train", "experiment=miniwiki/denoising", *GENERATOR, *SHORT) == 0
    assert scripts("train", "experiment=miniwiki/dpr", *ENCODERS, *SHORT) == 0
    assert scripts("build_index", "experiment=miniwiki/index_a") == 0
    assert scripts("build_index", "experiment=miniwiki/index_b") == 0
    quick = ["trainer.val_check_interval=2", "datamodule.dev_limit=2", "decoding.max_new_tokens=3"]
    assert scripts("train", "experiment=miniwiki/warmup", *SHORT, *quick) == 0
    assert scripts("train", "experiment=miniwiki/rag_sequence", *RAG) == 0
    return scripts


# -- the whole way -------------------------------------------------------------------------------


def test_every_stage_leaves_its_files(demo):
    for stage, parts in {
        "denoising": ["generator"],
        "dpr": ["question_encoder", "passage_encoder"],
        "warmup": ["generator", "question_encoder"],
        "rag_sequence": ["generator", "question_encoder"],
    }.items():
        folder = demo.run(stage)
        for file in ("config.yaml", "run.json", "result.json", "metrics.csv"):
            assert (folder / file).is_file(), (stage, file)
        assert sorted(p.name for p in (folder / "model").iterdir()) == sorted([*parts, "model.json"])
        for part in parts:
            assert (folder / "model" / part / "model.safetensors").is_file()
    assert json.loads((demo.run("rag_sequence") / "result.json").read_text())["steps"] == 6
    a, b = Index.open(demo.run("index_a")), Index.open(demo.run("index_b"))
    assert len(a) == len(b) and a.passages.sha256 != b.passages.sha256
    assert not list(demo.root.rglob("*.partial"))


def test_the_question_encoder_learns_and_the_frozen_one_does_not(demo):
    assert demo("train", "experiment=miniwiki/frozen", *RAG) == 0
    start, trained, frozen = (weights(demo.run(name)) for name in ("dpr", "rag_sequence", "frozen"))
    encoder, generator = "question_encoder/model.safetensors", "generator/model.safetensors"
    assert trained[encoder] != start[encoder] == frozen[encoder]
    assert len({trained[generator], frozen[generator], weights(demo.run("warmup"))[generator]}) == 3


@pytest.mark.parametrize("experiment", ["rag_token", "bm25", "closed_book"])
def test_the_other_models_train_and_are_evaluated(demo, experiment, capsys):
    steps = SHORT if experiment == "closed_book" else RAG
    assert demo("train", f"experiment=miniwiki/{experiment}", *steps) == 0
    arguments = [
        f"checkpoint={demo.run(experiment)}",
        "limit=3",
        "recall_at=[1,2]",
        "hot_swap=null",
        "k_sweep=[]",
    ]
    assert demo("evaluate", *arguments) == 0
    result = read_result(demo.run(experiment) / "evaluation")
    metrics = {each.metric for each in records_of(result)}
    assert result["questions"] == 3 and {"em", "f1"} <= metrics
    assert ("recall" in metrics) is (experiment != "closed_book")


def read_result(folder: Path) -> dict[str, Any]:
    (file,) = folder.glob("*/result.json")
    return json.loads(file.read_text())


def test_evaluation_says_what_was_retrieved_and_swaps_the_index(demo, capsys):
    run = demo.run("rag_sequence")
    command = [f"checkpoint={run}", "limit=4", "k_sweep=[1,3]", "n_docs=3", f"results={demo.root / 'found'}"]
    assert demo("evaluate", *command) == 0
    result = json.loads((demo.root / "found" / "result.json").read_text())
    records = records_of(result)
    assert set(by_k(records, "em")) == {1, 3}
    cells = swap_cells(records)
    assert {a: set(row) for a, row in cells.items()} == {"A": {"A", "B"}, "B": {"A", "B"}}
    assert {each.n for row in cells.values() for each in row.values()} == {
        4
    }  # the limit is of these questions too
    lines = (demo.root / "found" / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == 4
    passages = json.loads(lines[0])["passages"]
    assert len(passages) == 3
    assert sum(p["prior"] for p in passages) == pytest.approx(1, abs=2e-3)
    assert sum(p["posterior"] for p in passages) == pytest.approx(1, abs=2e-3)

    before = contents(demo.root / "found")
    capsys.readouterr()
    assert demo("evaluate", *command) == 0
    assert "already exists" in capsys.readouterr().out
    assert contents(demo.root / "found") == before

    assert demo("evaluate", *command[:-1], f"index.path={demo.run('index_b')}", "hot_swap=null") == 0
    other = read_result(run / "evaluation")
    assert other["index"]["passages"] == result["index"]["passages"]


# -- before and beside training ------------------------------------------------------------------


def test_info_shows_the_experiment_and_leaves_nothing(demo, tmp_path, capsys):
    run = tmp_path / "run"
    command = [
        "experiment=miniwiki/rag_sequence",
        *RAG,
        "trainer.accumulate_grad_batches=3",
        f"paths.run={run}",
    ]
    assert demo("train", *command, "info=true") == 0
    shown = " ".join(capsys.readouterr().out.split())
    index = Index.open(demo.run("index_a"))
    assert "RagSequence" in shown and "QuestionAnswering" in shown and "DenseRetriever" in shown
    assert f"{len(index):,} passages of 16 dimensions, Flat" in shown
    assert "2 passages per question" in shown and "12 examples per step (4 × 3 accumulated)" in shown
    assert "by dev/em (max)" in shown and not run.exists()
    assert re.search(r"generator [\W]*[\d,]+ parameters, float32, trained", shown)


def test_info_does_without_data_and_index(tmp_path, capsys):
    """By the configuration alone, and nothing is made first."""
    command = ["info=true", f"paths.outputs={tmp_path}/out", f"paths.data={tmp_path}/data"]
    assert run("train", *command) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "RagSequence" in shown and "DenseRetriever" in shown and "not there yet" in shown
    assert not any(tmp_path.iterdir())
    assert run("train", "experiment=table1/nq_rag_sequence", *command) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "facebook/bart-large, float32" in shown and "5 passages per question, 50 in evaluation" in shown
    assert "8.2 GB per device" in shown and "the paper: em" in shown and not any(tmp_path.iterdir())
    assert "refresh" not in shown and "overfetch" not in shown
    both = ["retriever=dense_trained", "retriever.overfetch=20", "refresh=0-1000:500,1000-:1000"]
    assert run("train", *both, "refresh_in=background", *command) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "overfetch 20 passages from the index, of which K are chosen" in shown
    assert "embedded again after the steps 0-1000:500,1000-:1000, in the background" in shown
    mining = ["experiment=miniwiki/dpr", "datamodule.remine=500"]
    mining += ["datamodule.remining={_target_: rag.training.Remining, depth: 20}"]
    assert run("train", *mining, *command) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "remine hard negatives are mined every 500 steps (depth 20)" in shown


def test_training_stops_when_dev_does_not_get_better(demo, tmp_path):
    """Looks at dev after steps 2, 4 and 6; exact match stays 0, so that the second look is the last."""
    run = tmp_path / "run"
    command = ["experiment=miniwiki/rag_sequence", *RAG, "patience=1"]
    assert demo("train", *command, f"paths.run={run}") == 0
    result = json.loads((run / "result.json").read_text())
    assert result["metrics"]["dev/em"] == 0 and result["steps"] == 4
    assert {"dev/nll_per_token", "dev/retrieval_entropy", "dev/distinct_passages", "dev/recall@2"} <= set(
        result["metrics"]
    )


def test_a_dev_set_that_judges_nothing_is_no_best_step_of_zero(demo, tmp_path, capsys):
    """No question drawn is of a set that counts: the last step's weights are kept."""
    run = tmp_path / "run"
    command = ["experiment=miniwiki/rag_sequence", *RAG, "+task.report_sets=[birds]"]
    assert demo("train", *command, f"paths.run={run}") == 0
    result = json.loads((run / "result.json").read_text())
    assert result["metrics"]["dev/em"] is None and result["steps"] == 6
    assert not (run / "best.ckpt").exists()
    assert "dev/em was NaN in every evaluation on dev" in capsys.readouterr().out
    assert "NaN" not in (run / "result.json").read_text() and "nan" not in (run / "report.md").read_text()


def test_training_that_diverges_is_stopped_in_one_sentence(demo, tmp_path, capsys):
    """A learning rate of 1e30 makes the second loss NaN; lowering it, as the sentence says, trains."""
    command = [
        "experiment=miniwiki/closed_book",
        *SHORT,
        "trainer.max_steps=4",
        f"paths.run={tmp_path / 'run'}",
    ]
    command += ["optimization.warmup_steps=0", "datamodule.dev_limit=2", "decoding.max_new_tokens=3"]
    assert demo("train", *command, "optimization.lr=1e30") == 2
    told = refusal(capsys)
    assert "training stopped at step 2 because the loss is nan (the last finite loss was " in told
    assert "at step 1): lower optimization.lr" in told and "train again with overwrite=true" in told
    assert not (tmp_path / "run" / "model").exists() and not list((tmp_path / "run").glob("*.ckpt"))
    assert demo("train", *command, "optimization.lr=1e-4", "overwrite=true") == 0


@pytest.fixture
def broken(demo, tmp_path) -> Path:
    """The finished run with one NaN among the weights of its generator."""
    without = shutil.ignore_patterns("evaluation")  # which other tests may have left
    shutil.copytree(demo.run("rag_sequence"), tmp_path / "broken", ignore=without)
    file = tmp_path / "broken" / "model" / "generator" / "model.safetensors"
    held = load_file(file)
    next(iter(held.values())).view(-1)[3] = torch.nan
    save_file(held, file, {"format": "pt"})
    return file


def test_weights_that_are_not_finite_are_refused_when_opened(demo, broken, tmp_path, capsys):
    assert demo("evaluate", f"checkpoint={broken.parents[2]}", "split=dev", "limit=2") == 2
    assert f"{broken} holds weights that are not finite" in refusal(capsys)
    assert not (broken.parents[2] / "evaluation").exists()
    start = f"generator.path={broken.parent}"
    assert demo("train", "experiment=miniwiki/rag_token", *RAG, start, f"paths.run={tmp_path / 'run'}") == 2
    assert f"{broken} holds weights that are not finite" in refusal(capsys)
    with pytest.raises(SystemExit) as stopped:
        ask([f"checkpoint={broken.parents[2]}", "who wrote it?"])
    assert stopped.value.code == 2 and f"{broken} holds weights that are not finite" in refusal(capsys)


CHECKPOINTS = {
    "best.ckpt": "holds weights alone, without the optimizer's state",
    "other.ckpt": "is of another model than this run trains",
    "frozen.ckpt": "is of a run that trained",
    "model.safetensors": "is not a checkpoint of train.py",
    "tensors.pt": "holds tensors but is not a checkpoint of train.py",
    "short.ckpt": "is not a checkpoint of train.py, or is cut short",
    "finished.ckpt": "was saved after step 6, and this run ends at step 6",
    "nan.ckpt": "holds weights that are not finite",
    "nothing.ckpt": "does not exist",
}


@pytest.fixture(scope="module")
def checkpoint_files(demo, tmp_path_factory) -> Path:
    """Files of each kind that somebody might go on from, and good.ckpt."""
    folder = tmp_path_factory.mktemp("ckpt")
    rag = ["experiment=miniwiki/rag_sequence", *RAG, "checkpoint_minutes=0"]
    assert demo("train", *rag, f"paths.run={folder / 'run'}") == 0
    assert demo("train", *rag, "retriever.trainable=false", f"paths.run={folder / 'frozen'}") == 0
    closed = ["experiment=miniwiki/closed_book", *SHORT, "datamodule.dev_limit=2", "checkpoint_minutes=0"]
    assert demo("train", *closed, "decoding.max_new_tokens=3", f"paths.run={folder / 'other'}") == 0
    shutil.copy(folder / "run" / "best.ckpt", folder / "best.ckpt")
    shutil.copy(folder / "run" / "last.ckpt", folder / "finished.ckpt")
    shutil.copy(folder / "other" / "last.ckpt", folder / "other.ckpt")
    shutil.copy(folder / "frozen" / "last.ckpt", folder / "frozen.ckpt")
    shutil.copy(folder / "run" / "model" / "generator" / "model.safetensors", folder)
    torch.save({"weight": torch.zeros(2)}, folder / "tensors.pt")
    whole = (folder / "finished.ckpt").read_bytes()
    (folder / "short.ckpt").write_bytes(whole[: len(whole) // 2])
    held = torch.load(folder / "finished.ckpt", weights_only=True)
    next(iter(held["state_dict"].values())).view(-1)[0] = torch.inf
    torch.save(held, folder / "nan.ckpt")
    return folder


@pytest.mark.parametrize("file", CHECKPOINTS)
def test_what_cannot_be_gone_on_from(demo, checkpoint_files, file, tmp_path, capsys):
    command = ["experiment=miniwiki/rag_sequence", *RAG, f"ckpt_path={checkpoint_files / file}"]
    assert demo("train", *command, f"paths.run={tmp_path / 'run'}") == 2
    told = refusal(capsys)
    assert f"{checkpoint_files / file} " in told and CHECKPOINTS[file] in told
    assert not (tmp_path / "run").exists()


def test_training_goes_on_from_a_checkpoint_that_is_given(demo, checkpoint_files, tmp_path):
    command = ["experiment=miniwiki/rag_sequence", *RAG, f"ckpt_path={checkpoint_files / 'finished.ckpt'}"]
    assert demo("train", *command, "trainer.max_steps=8", f"paths.run={tmp_path / 'run'}") == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 8


def test_smoke_runs_a_few_steps_in_a_folder_of_its_own(demo, capsys):
    before = contents(demo.run("dpr"))
    assert demo("train", "experiment=miniwiki/dpr", *ENCODERS, "debug=smoke") == 0
    run = demo.root / "out" / "debug" / "demo" / "dpr"
    assert json.loads((run / "result.json").read_text())["steps"] == 4
    assert "4 steps of 2 examples on cpu" in capsys.readouterr().out
    assert contents(demo.run("dpr")) == before
    assert demo("train", "experiment=miniwiki/dpr", *ENCODERS, "debug=smoke") == 0
    assert "as last time" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("before", "shown"),
    [
        ({"steps": 4, "training_seconds": 0.0}, "1 s"),
        ({"steps": 4, "training_seconds": 8.0}, "20 s"),
        ({"steps": 1, "training_seconds": 30.0}, "5 min"),
        ({"steps": 0, "training_seconds": 3.0}, None),
    ],
)
def test_how_long_it_will_take_as_last_time(tmp_path, before, shown):
    assert expected_duration(tmp_path, 10) is None
    write_json(tmp_path / "result.json", before)
    assert expected_duration(tmp_path, 10) == shown


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["denoising", "rag_token", "frozen", "bm25", "closed_book"])
def test_smoke_fits_every_kind_of_experiment(demo, experiment):
    sizes = GENERATOR if experiment == "denoising" else ["decoding.max_new_tokens=3"]
    assert demo("train", f"experiment=miniwiki/{experiment}", *sizes, "debug=smoke") == 0


@pytest.mark.slow
def test_overfit_learns_one_batch_by_heart(demo, capsys):
    command = ["experiment=miniwiki/rag_token", "n_docs=2", "optimization.lr=0.01", "debug=overfit"]
    assert demo("train", *command) == 0
    result = json.loads((demo.root / "out" / "debug" / "demo" / "rag_token" / "result.json").read_text())
    assert result["metrics"]["train/nll_per_example"] < 0.05 and result["steps"] < 1000


@pytest.mark.slow
def test_weights_and_biases_offline(demo, tmp_path):
    """Curves, a table of predictions with their passages and the report, in the folder that wandb sync sends."""
    run = tmp_path / "run"
    settings = ["experiment=miniwiki/rag_sequence", *RAG, "logger=wandb", f"paths.run={run}", *demo.places]
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_API_KEY"}
    environment["HOME"] = str(tmp_path)  # without the login of the machine's owner
    command = [sys.executable, "train.py", *settings]
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "anonymous" not in done.stderr
    (folder,) = (run / "wandb").glob("offline-run-*")
    assert f"wandb sync {folder}" in done.stdout
    assert (run / "metrics.csv").is_file()
    (*_, table) = sorted((folder / "files" / "media" / "table" / "dev").glob("predictions_*.json"))
    content = json.loads(table.read_text())
    assert content["columns"] == ["question", "answers", "prediction", "log p(y|x)", "passages"]
    assert len(content["data"]) == 4
    logged = next(folder.glob("*.wandb")).read_bytes()
    assert b"nll_per_example" in logged and b"report.md" in logged


class Counting(pl.Callback):
    """A callback of a user's: writes how many steps it saw."""

    def __init__(self, file: str, each: int = 1):
        self.file, self.each, self.seen = Path(file), each, 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *batch: Any) -> None:
        self.seen += self.each
        self.file.write_text(str(self.seen))


def test_callbacks_and_tensorboard(demo, tmp_path, capsys):
    """A callback by its class is called at each step and is part of the run's identity; curves go where asked."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, seen = tmp_path / "run", tmp_path / "seen"
    plain = ["experiment=miniwiki/rag_sequence", *RAG, f"paths.run={run}", "logger=tensorboard"]
    mine = ["callbacks=learning_rate", "+callbacks.mine._target_=test_scripts.Counting"]
    mine += [f"+callbacks.mine.file={seen}", "+callbacks.mine.each=10"]
    assert demo("train", *plain, *mine) == 0
    assert seen.read_text() == "60"
    header = (run / "metrics.csv").read_text().splitlines()[0].split(",")
    assert any(name.startswith("lr-") for name in header)
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert {"dev/em", "train/nll_per_example"} <= set(events.Tags()["scalars"])
    assert [each.step for each in events.Scalars("dev/em")] == [1, 3, 5]
    assert demo("train", *plain, *mine[:1]) == 2
    assert "callbacks.mine" in capsys.readouterr().err


def test_tensorboard_that_is_not_installed(demo, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # how Python says that there is none
    run = tmp_path / "run"
    assert demo("train", "experiment=miniwiki/rag_sequence", f"paths.run={run}", "logger=tensorboard") == 2
    assert 'pip install -e ".[tensorboard]"' in refusal(capsys) and not run.exists()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("+trainer.callbacks=[]", "callbacks.NAME._target_"),
        ("+trainer.logger=false", "logger.NAME._target_"),
        ("+callbacks.mine.every=3", "callbacks.mine names no class"),
        ("callbacks=lerning_rate", "did you mean learning_rate"),
    ],
)
def test_callbacks_that_would_be_dropped_are_refused(demo, tmp_path, wrong, said, capsys):
    run = tmp_path / "run"
    assert demo("train", "experiment=miniwiki/rag_sequence", f"paths.run={run}", wrong) == 2
    assert said in refusal(capsys) and not run.exists()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["rag_sequence", "dpr"])
def test_two_processes_train_as_one_with_the_double_batch(demo, tmp_path, model):
    """DDP over gloo: the ranks' batches are those of one process with both, the losses are means of equal shares."""
    # Which of several golds and hard negatives is taken depends on the number of the batch: leave one of each.
    asked = tmp_path / "asked.jsonl"
    lines = (demo.root / "data" / "miniwiki" / "dpr.jsonl").read_text().splitlines()
    records = [
        {**r, "positive_ids": r["positive_ids"][:1], "hard_negative_ids": []} for r in map(json.loads, lines)
    ]
    asked.write_text("\n".join(json.dumps(record) for record in records))
    settings = {
        "rag_sequence": ["n_docs=2", "decoding.max_new_tokens=3", "datamodule.dev_limit=3"],
        "dpr": [*ENCODERS, "datamodule.inverse_cloze=null", f"datamodule.questions={asked}"],
    }[model]
    # Adam divides by the gradient's size, so that rounding would become a step where a gradient is nothing in truth, as
    # that of what all passages' vectors share; with a large ε it is plain gradient descent.
    common = [
        "optimization.eps=1.0",
        *("experiment=miniwiki/" + model, *settings, *demo.places, "trainer.max_steps=3"),
        *("trainer.log_every_n_steps=1", "optimization.warmup_steps=0", "optimization.lr=0.1"),
        *(["trainer.val_check_interval=3"] if model == "rag_sequence" else []),
    ]
    for name, more in {
        "one": ["datamodule.batch_size=4"],
        "two": ["datamodule.batch_size=2", "trainer.devices=2", "trainer.strategy=ddp"],
    }.items():
        command = [sys.executable, "train.py", *common, *more, f"paths.run={tmp_path / name}"]
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("3 steps of 4 examples") == 1  # told once
    one, two = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two"))
    for metric in {name for name in one["metrics"] if name.startswith("dev/") and "distinct" not in name}:
        assert two["metrics"][metric] == pytest.approx(one["metrics"][metric], abs=2e-3), metric
    for file in sorted((tmp_path / "one" / "model").rglob("model.safetensors")):
        a, b = (
            load_file(file),
            load_file(tmp_path / "two" / "model" / file.relative_to(tmp_path / "one" / "model")),
        )
        for name in a:
            torch.testing.assert_close(b[name], a[name], rtol=1e-3, atol=2e-5, msg=f"{file}, {name}")


@pytest.mark.slow
def test_what_is_wrong_on_one_rank_ends_both_without_a_traceback(demo, tmp_path):
    """A batch of one on each rank: one of the two gets the question that is too long."""
    asked = tmp_path / "asked.jsonl"
    rows = [
        {"question": question, "answers": ["Paris"], "set": "people"} for question in ("who", "river " * 900)
    ]
    asked.write_text("\n".join(map(json.dumps, rows)))
    command = [sys.executable, "train.py", "experiment=miniwiki/closed_book", *SHORT, *demo.places]
    command += ["datamodule.batch_size=1", f"task.train={asked}", "trainer.devices=2", "trainer.strategy=ddp"]
    command += ["datamodule.dev_limit=2", "decoding.max_new_tokens=3", f"paths.run={tmp_path / 'run'}"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert "does not fit the generator's context" in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 4, done.stderr


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a single core
def test_resuming_amid_accumulated_batches_with_loader_workers(demo, tmp_path):
    """Stopped after the third of six steps of two accumulated batches each, made by two loader workers."""
    command = ["experiment=miniwiki/rag_sequence", *RAG, "trainer.accumulate_grad_batches=2"]
    command += ["trainer.val_check_interval=4", "datamodule.num_workers=2"]
    stop = ["+logger.stop._target_=test_scripts.StopAfter", "+logger.stop.steps=2"]
    assert demo("train", *command, f"paths.run={tmp_path / 'whole'}") == 0
    assert demo("train", *command, *stop, f"paths.run={tmp_path / 'stopped'}") == 130
    assert demo("train", *command, f"paths.run={tmp_path / 'stopped'}") == 0
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")


@pytest.mark.slow
def test_half_precision_and_checkpointed_layers(demo, tmp_path):
    """bf16 runs; recomputing the layers changes nothing."""
    command = ["experiment=miniwiki/rag_token", *RAG]
    assert demo("train", *command, "trainer.precision=bf16-mixed", f"paths.run={tmp_path / 'bf16'}") == 0
    for name, value in (("kept", "false"), ("recomputed", "true")):
        assert demo("train", *command, f"gradient_checkpointing={value}", f"paths.run={tmp_path / name}") == 0
    kept, recomputed = (
        load_file(tmp_path / n / "model/generator/model.safetensors") for n in ("kept", "recomputed")
    )
    for name in kept:
        torch.testing.assert_close(recomputed[name], kept[name], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:.torch.jit.script:DeprecationWarning", "ignore:The .grad attribute:UserWarning"
)  # torch's
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles with g++ on a CPU")
def test_compiled_layers_learn_the_same(demo, tmp_path):
    """Without dropout, which draws other numbers where it is compiled."""
    command = ["experiment=miniwiki/rag_token", *RAG]
    for name, value in (("ever", "false"), ("compiled", "true")):
        assert demo("train", *command, f"compile={value}", f"paths.run={tmp_path / name}") == 0
    ever, compiled = (
        load_file(tmp_path / n / "model/generator/model.safetensors") for n in ("ever", "compiled")
    )
    for name in ever:
        torch.testing.assert_close(compiled[name], ever[name], rtol=1e-3, atol=1e-4)


def test_compile_needs_a_compiler_and_says_so_at_once(demo, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CXX", "nowhere/g++ -O2")
    assert (
        demo("train", "experiment=miniwiki/rag_token", *RAG, "compile=true", f"paths.run={tmp_path / 'run'}")
        == 2
    )
    told = capsys.readouterr().err
    assert "compile=true needs a C++ compiler on a CPU, and there is no nowhere/g++ -O2" in told
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles with g++ on a CPU")
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
def test_what_goes_past_the_layers_is_told(demo, tmp_path, capsys):
    assert (
        demo(
            "train",
            "experiment=miniwiki/dpr",
            *ENCODERS,
            *SHORT,
            "compile=true",
            f"paths.run={tmp_path / 'run'}",
        )
        == 0
    )
    assert "compile=true changed nothing" in capsys.readouterr().out


# -- again, interrupted, changed -----------------------------------------------------------------


@pytest.mark.parametrize("stage", ["denoising", "dpr", "rag_sequence"])
def test_a_second_call_finds_the_run_and_changes_nothing(demo, stage, capsys):
    settings = {"denoising": GENERATOR + SHORT, "dpr": ENCODERS + SHORT, "rag_sequence": RAG}[stage]
    before = contents(demo.run(stage))
    assert demo("train", f"experiment=miniwiki/{stage}", *settings) == 0
    assert "already exists" in capsys.readouterr().out
    assert contents(demo.run(stage)) == before


def test_a_second_build_finds_the_index_and_changes_nothing(demo, capsys):
    before = contents(demo.run("index_a"))
    assert demo("build_index", "experiment=miniwiki/index_a") == 0
    assert "already exists" in capsys.readouterr().out
    assert contents(demo.run("index_a")) == before


# Stopped after step 3, between two looks at dev, and after step 4, when one is just due.
@pytest.mark.parametrize(("steps", "number"), [(2, signal.SIGINT), (3, signal.SIGTERM)])
def test_an_interrupted_run_goes_on_to_the_same_weights(demo, steps, number, capsys):
    """The signal arrives after `steps` steps and is obeyed one step later."""
    command = ["experiment=miniwiki/rag_sequence", *RAG, f"paths.run={demo.root / f'stopped{steps}'}"]
    stop = ["+logger.stop._target_=test_scripts.StopAfter", f"+logger.stop.steps={steps}"]
    handler = signal.getsignal(signal.SIGINT)
    assert demo("train", *command, *stop, f"+logger.stop.number={int(number)}") == 130
    assert "rerun the same command to resume" in capsys.readouterr().err
    run = demo.root / f"stopped{steps}"
    assert (
        (run / "last.ckpt").is_file() and not (run / "model").exists() and not (run / "result.json").exists()
    )
    assert signal.getsignal(signal.SIGINT) == handler  # put back as it was

    assert demo("evaluate", f"checkpoint={run}") == 2
    assert "is an unfinished run" in capsys.readouterr().err
    assert demo("train", *command) == 0
    assert "resuming" in capsys.readouterr().out
    assert weights(run) == weights(demo.run("rag_sequence"))
    assert curves_of(run) == curves_of(demo.run("rag_sequence"))  # every look at dev, once, in one file
    assert not list(run.glob("metrics-*.csv")) and not (run / "last-before.ckpt").exists()
    results = [
        json.loads((each / "result.json").read_text())["metrics"] for each in (run, demo.run("rag_sequence"))
    ]
    assert results[0] == results[1]


def test_no_row_of_a_step_is_lost_or_doubled_by_an_interruption(demo):
    """Each step is logged here, and the checkpoint is taken before Lightning logs the step it ends with."""
    command = ["experiment=miniwiki/rag_sequence", *RAG, "trainer.log_every_n_steps=1"]
    every_step = [*command, "checkpoint_minutes=0", f"paths.run={demo.root / 'logged'}"]
    assert demo("train", *every_step) == 0
    stopped = [*command, f"paths.run={demo.root / 'logged_stopped'}"]
    for steps in (1, 3):
        stop = ["+logger.stop._target_=test_scripts.StopAfter", f"+logger.stop.steps={steps}"]
        assert demo("train", *stopped, *stop) == 130
    assert demo("train", *stopped) == 0
    rows = curves_of(demo.root / "logged")
    one, other = (demo.root / name / "metrics.csv" for name in ("logged", "logged_stopped"))
    assert other.read_bytes() == one.read_bytes()
    trained = [row["step"] for row in rows if "train/nll_per_token" in row]
    assert trained == [str(step) for step in range(6)]


def curves_of(run: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv, without what is empty in them."""
    with (run / "metrics.csv").open(newline="") as lines:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(lines)]


def test_a_damaged_checkpoint_falls_back_to_the_one_before(demo, capsys):
    """As after a copy that a full disk cut short. Where there is none before it, one sentence says so."""
    run = demo.root / "damaged"
    command = ["experiment=miniwiki/rag_sequence", *RAG, f"paths.run={run}"]
    for steps in (1, 3):  # two interruptions leave two checkpoints
        stop = ["+logger.stop._target_=test_scripts.StopAfter", f"+logger.stop.steps={steps}"]
        assert demo("train", *command, *stop) == 130
    last, before = run / "last.ckpt", run / "last-before.ckpt"
    assert before.is_file() and not last.samefile(before)
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    capsys.readouterr()
    assert demo("train", *command) == 0
    assert "last.ckpt is not a checkpoint of train.py, or is cut short" in (out := capsys.readouterr().out)
    assert f"resuming from the one before it, {before}" in out
    assert weights(run) == weights(demo.run("rag_sequence"))
    assert curves_of(run) == curves_of(demo.run("rag_sequence"))


def test_an_interrupted_index_is_finished_by_the_same_command(demo):
    """Shards that are there are kept, whatever is missing is made."""
    folder = demo.root / "half_index"
    shutil.copytree(demo.run("index_a"), folder)
    for name in ("manifest.json", "index.faiss"):
        (folder / name).unlink()
    shard = folder / "vectors" / "00000.npy"
    made = shard.stat().st_mtime_ns
    assert demo("build_index", "experiment=miniwiki/index_a", f"index.path={folder}") == 0
    assert shard.stat().st_mtime_ns == made
    again, whole = contents(folder), contents(demo.run("index_a"))
    assert again["index.faiss"] == whole["index.faiss"]


def test_another_seed_gives_other_weights(demo):
    run = demo.root / "seed2"
    assert (
        demo("train", "experiment=miniwiki/denoising", *GENERATOR, *SHORT, "seed=2", f"paths.run={run}") == 0
    )
    assert weights(run).keys() == weights(demo.run("denoising")).keys()
    assert weights(run) != weights(demo.run("denoising"))


def test_other_settings_are_refused_by_name_and_replaced_when_asked_to(demo, capsys):
    run = demo.root / "changing"
    command = ["experiment=miniwiki/denoising", *GENERATOR, *SHORT, f"paths.run={run}"]
    assert demo("train", *command) == 0
    first = contents(run)

    assert demo("train", *command, "optimization.lr=1e-4") == 2
    assert "module.optimization.lr: 0.002 → 0.0001" in refusal(capsys)
    assert contents(run) == first

    assert demo("train", *command, "overwrite=changed") == 0  # the same settings: nothing to replace
    assert contents(run) == first
    assert demo("train", *command, "optimization.lr=1e-4", "overwrite=changed") == 0
    assert weights(run) != weights(demo.run("denoising"))
    assert demo("train", *command, "overwrite=true") == 0
    assert weights(run) == {n: first[f"model/{n}"] for n in weights(run)}


def test_a_changed_input_is_noticed(demo, capsys):
    """The second run may not pass for the first although its command is the same."""
    corpus, run = demo.root / "corpus.tsv", demo.root / "of_corpus"
    shutil.copy(demo.root / "data" / "miniwiki" / "edition_a.tsv", corpus)
    command = [
        "experiment=miniwiki/denoising",
        *GENERATOR,
        *SHORT,
        f"paths.run={run}",
        f"corpus.path={corpus}",
    ]
    assert demo("train", *command) == 0
    with corpus.open("a") as file:
        file.write('zz1\t"One more."\tNews\n')
    before = contents(run)
    assert demo("train", *command) == 2
    assert f"{corpus} has changed" in refusal(capsys)
    assert contents(run) == before


# -- mistakes ------------------------------------------------------------------------------------


def refusal(capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence of the last command."""
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines and lines[-1].startswith("error: ")
    assert not any("Traceback" in line for line in lines)
    assert sum(line.startswith("error: ") for line in lines) == 1
    return lines[-1]


def write(text: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(text, encoding="utf-8")


GOOD = '{"question": "who?", "answers": ["me"]}\n'
QUESTIONS = {
    "missing": (lambda path: None, "does not exist"),
    "empty": (write(""), "holds no questions"),
    "no JSON": (write(GOOD + GOOD + "{question\n"), "line 3: malformed JSON"),
    "no answer": (write(GOOD + '{"question": "who?", "answers": []}\n'), "line 2: answers is an empty list"),
    "no key": (write(GOOD + '{"question": "who?"}\n'), "line 2: no key 'answers', found question"),
    "empty question": (write('{"question": " ", "answers": ["me"]}\n'), "line 1: the question is empty"),
    "not text": (lambda path: path.write_bytes(b"\xff\xfe\x00"), "line 1: not UTF-8"),
    "a folder": (lambda path: path.mkdir(), "is a folder"),
}


@pytest.mark.parametrize("kind", QUESTIONS)
def test_wrong_questions(demo, kind, tmp_path, capsys):
    make, expected = QUESTIONS[kind]
    make(tmp_path / "q.jsonl")
    before = contents(demo.root)
    for split in ("train", "dev"):
        command = ["experiment=miniwiki/closed_book", *SHORT, f"paths.run={tmp_path / 'run'}"]
        assert demo("train", *command, f"task.{split}={tmp_path / 'q.jsonl'}") == 2
        sentence = refusal(capsys)
        assert expected in sentence and str(tmp_path / "q.jsonl") in sentence
    assert (
        demo("evaluate", f"checkpoint={demo.run('rag_sequence')}", f"task.test={tmp_path / 'q.jsonl'}") == 2
    )
    assert expected in refusal(capsys)
    assert not (tmp_path / "run").exists() and contents(demo.root) == before


PASSAGES = {
    "missing": (lambda path: None, "does not exist"),
    "empty": (write(""), "is empty"),
    "only a header": (write("id\ttext\ttitle\n"), "holds no passages"),
    "no header": (write("1\tSome text.\tTitle\n"), "line 1: the header has no column"),
    "too few columns": (write("id\ttext\ttitle\n1\tSome text.\tTitle\n2\tMore.\n"), "line 3: 2 columns"),
    "empty text": (write("id\ttext\ttitle\n1\t\tTitle\n"), "line 2: the text of passage '1' is empty"),
    "an id twice": (write("id\ttext\ttitle\n1\tA.\tT\n1\tB.\tT\n"), "line 3: the id '1' occurs twice"),
    "not text": (lambda path: path.write_bytes(b"id\ttext\ttitle\n1\t\xff\tT\n"), "line 2: not UTF-8"),
}


@pytest.mark.parametrize("kind", PASSAGES)
def test_wrong_passages(demo, kind, tmp_path, capsys):
    make, expected = PASSAGES[kind]
    make(tmp_path / "p.tsv")
    given = [f"corpus.path={tmp_path / 'p.tsv'}"]
    assert demo("build_index", "experiment=miniwiki/index_a", *given, f"index.path={tmp_path / 'index'}") == 2
    sentence = refusal(capsys)
    assert expected in sentence and str(tmp_path / "p.tsv") in sentence
    command = ["experiment=miniwiki/denoising", *GENERATOR, *SHORT, f"paths.run={tmp_path / 'run'}"]
    assert demo("train", *command, *given) == 2
    assert expected in refusal(capsys)
    left = [path for path in tmp_path.rglob("*") if path.is_file() and not path.name.startswith(".lock")]
    assert left == [tmp_path / "p.tsv"][: len(left)]


def test_an_index_that_was_added_to_is_trained_on(demo, tmp_path, capsys):
    """It holds other passages than its corpus, on purpose; building it from the corpus again is refused as such."""
    index, more = tmp_path / "index", tmp_path / "more.tsv"
    shutil.copytree(demo.run("index_a"), index)
    more.write_text("id\ttext\ttitle\nnew1\tNobody was born in 1900 .\tNobody\n", encoding="utf-8")
    assert demo("build_index", f"index.path={index}", f"add={more}") == 0
    rag = ["experiment=miniwiki/rag_sequence", *RAG, f"paths.run={tmp_path / 'run'}", f"index.path={index}"]
    assert demo("train", *rag) == 0
    capsys.readouterr()
    assert demo("build_index", "experiment=miniwiki/index_a", f"index.path={index}") == 2
    assert "as add= and remove= have changed them: sync=true makes them those of the corpus" in refusal(
        capsys
    )


def test_an_index_of_another_encoder_or_corpus(demo, tmp_path, capsys):
    other = demo.root / "other_dpr"
    assert demo("train", "experiment=miniwiki/dpr", *ENCODERS, *SHORT, "seed=2", f"paths.run={other}") == 0
    edition_b = f"corpus.path={demo.root / 'data' / 'miniwiki' / 'edition_b.tsv'}"
    rag = ["experiment=miniwiki/rag_sequence", *RAG, f"paths.run={tmp_path / 'run'}"]
    before = contents(demo.root)
    capsys.readouterr()

    assert demo("train", *rag, f"question_encoder={other / 'model' / 'question_encoder'}") == 2
    assert "was embedded by" in refusal(capsys)
    assert demo("train", *rag, edition_b) == 2
    assert "holds the" in (sentence := refusal(capsys)) and "edition_b.tsv" in sentence
    assert demo("train", *rag, f"index.path={tmp_path / 'none'}") == 2
    assert "none does not exist" in refusal(capsys)
    encoder = f"passage_encoder={other / 'model' / 'passage_encoder'}"
    assert demo("build_index", "experiment=miniwiki/index_a", encoder) == 2
    assert "holds vectors of another encoder" in refusal(capsys)
    assert demo("build_index", "experiment=miniwiki/index_a", edition_b) == 2
    assert "holds another corpus" in refusal(capsys)
    assert demo("build_index", "experiment=miniwiki/index_a", f"passage_encoder={tmp_path / 'no'}") == 2
    assert "holds no passage encoder" in refusal(capsys)
    assert contents(demo.root) == before and not (tmp_path / "run").exists()

    shutil.copytree(demo.run("index_a"), tmp_path / "index")
    command = ["experiment=miniwiki/index_a", edition_b, f"index.path={tmp_path / 'index'}"]
    assert demo("build_index", *command, "overwrite=changed") == 0
    assert Index.open(tmp_path / "index").passages.sha256 == Index.open(demo.run("index_b")).passages.sha256


def test_a_damaged_index_is_told_and_made_whole(demo, tmp_path, capsys):
    folder = tmp_path / "index"
    shutil.copytree(demo.run("index_a"), folder)
    os.truncate(folder / "index.faiss", 100)
    rag = ["experiment=miniwiki/rag_sequence", *RAG, f"paths.run={tmp_path / 'run'}", f"index.path={folder}"]
    assert demo("train", *rag) == 2
    assert "has 100 bytes instead of" in refusal(capsys)
    build = ["experiment=miniwiki/index_a", f"index.path={folder}"]
    vectors = (folder / "vectors" / "00000.npy").stat().st_mtime_ns
    assert demo("build_index", *build) == 0
    assert "has 100 bytes instead of" in (said := capsys.readouterr().out) and "what is whole is kept" in said
    assert (folder / "vectors" / "00000.npy").stat().st_mtime_ns == vectors
    assert contents(folder)["index.faiss"] == contents(demo.run("index_a"))["index.faiss"]


def test_more_passages_than_there_are(demo, capsys):
    """With overwrite=true, and still the run that is there stays."""
    before = contents(demo.root)
    assert demo("train", "experiment=miniwiki/rag_sequence", *RAG, "n_docs=99999", "overwrite=true") == 2
    assert "K = 99999 passages cannot be retrieved" in refusal(capsys)
    for wrong, sentence in {
        "n_docs=99999": "K = 99999 passages",
        "k_sweep=[1,99999]": "K = 99999 passages",
        "n_docs=0": "n_docs=0: a whole number from 1 is expected",
    }.items():
        assert demo("evaluate", f"checkpoint={demo.run('rag_sequence')}", wrong, "overwrite=true") == 2
        assert sentence in refusal(capsys)
    assert contents(demo.root) == before


def test_places_that_cannot_be_written(demo, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    closed = ["experiment=miniwiki/closed_book", *SHORT]
    for place, why in {
        "file": "is a file",
        "file/deep/run": "is a file",
        "full": "holds files that do not belong to a run",
    }.items():
        assert demo("train", *closed, f"paths.run={tmp_path / place}", "overwrite=true") == 2
        assert why in refusal(capsys)
        assert demo("evaluate", f"checkpoint={demo.run('rag_sequence')}", f"results={tmp_path / place}") == 2
        assert why in refusal(capsys)
    assert (
        demo("build_index", "experiment=miniwiki/index_a", f"index.path={tmp_path / 'file' / 'index'}") == 2
    )
    assert "is a file" in refusal(capsys)
    assert contents(tmp_path).keys() == {"file", "full/letter.txt"}


COMMANDS = {
    "monitor=dev/emm": "monitor=dev/emm is not a dev metric of this training; available: dev/em, dev/f1",
    "monitor_mode=best": "monitor_mode=best does not exist; available: max and min",
    "debug=smok": "debug=smok does not exist: did you mean smoke?",
    "foo": "foo is not an override: write key=value",
    "--verbose": "--verbose is not an override",
    "-" * 3000: f"{'-' * 80}… is not an override: write key=value",
    "decoding=5": "decoding=5: decoding is chosen by name, one of beam4, fast, greedy",
    "retriever=1.5": "retriever=1.5: retriever is chosen by name, one of bm25",
    "generator=[1,2]": "generator=[1,2]: generator is chosen by name",
    "task=[x]": "task=[x]: task is chosen by name",
    "optimization={a:1}": "optimization={a:1}: optimization is chosen by name",
    "experiment=miniwiki/rag_sequense": "did you mean miniwiki/rag_sequence",
    "retriever=bm52": "retriever=bm52 does not exist: did you mean bm25?",
    "index=nothing": "index=nothing does not exist: there is ",
    "trainer.stepz=3": "the setting trainer.stepz does not exist: there is trainer.max_steps, ",  # the nearest first
    "refresh.every=3": "because refresh is null: give refresh=…, as configs/base.yaml says beside it",
    "n_dosc=3": "the setting n_dosc does not exist: did you mean n_docs?",
    "trainer.max_step=3": "did you mean trainer.max_steps?",
    "max_steps=3": "did you mean trainer.max_steps?",
    "index.pth=x": "the setting index.pth does not exist: did you mean index.path?",
    "generator.path.x=3": "there is nothing under generator.path",
    "paths.run=a=b": "needs quotes, as in 'paths.run=\"a=b\"'",
    "n_docs=[1,": "n_docs=[1, cannot be read",
    "inputs=5": "inputs=5: a list is expected, as in inputs=[]",
    "datamodule=3": "datamodule=3: set datamodule.NAME=… instead",
    "datamodule=null": "datamodule=null leaves nothing to train: set datamodule.NAME=… instead",
    "module=null": "module=null leaves nothing to train",
    "n_docs=five": "n_docs=five: a whole number is expected, as in n_docs=5",
    "retriever.trainable=maybe": "true or false is expected, as in retriever.trainable=true",
    "overwrite=maybe": "overwrite=maybe does not exist",
    "n_docs=${nothing}": "Interpolation key 'nothing' not found",
    "+generator.pathh=x": "unexpected keyword argument",
    "trainer.accelerator=abacus": "the setting trainer is wrong",
    "trainer.precision=3": "the setting trainer is wrong",
    "decoding.num_beams=0": "num_beams",
    "optimization.schedule=zigzag": "zigzag",
}


@pytest.mark.parametrize("wrong", COMMANDS)
def test_wrong_commands(demo, wrong, tmp_path, capsys):
    command = ["experiment=miniwiki/rag_sequence", *RAG, f"paths.run={tmp_path / 'run'}"]
    if wrong.startswith("experiment="):
        command.pop(0)
    assert demo("train", *command, wrong) == 2
    assert COMMANDS[wrong] in refusal(capsys)
    assert not (tmp_path / "run").exists()


def test_a_config_that_is_not_yaml(tmp_path, capsys):
    """One's own experiment, with a slip in it."""
    file = PROJECT / "configs" / "experiment" / f"_slip_{os.getpid()}.yaml"
    file.write_text("# @package _global_\nname: [unclosed\n")
    try:
        assert Scripts(tmp_path)("train", f"experiment={file.stem}") == 2
        assert f"{file}, line 3 is not valid YAML" in refusal(capsys)
    finally:
        file.unlink()


def test_a_bi_encoder_is_evaluated_by_what_it_finds(demo, tmp_path, capsys):
    """Its recall is that of the RAG model that starts from it and was not trained, over the same index."""
    command = [f"checkpoint={demo.run('dpr')}", "split=dev", "limit=12", "recall_at=[1,4]", "bm25=true"]
    assert demo("evaluate", *command, f"results={tmp_path / 'found'}") == 0
    shown = capsys.readouterr().out
    assert "recall@1" in shown and "BM25" in shown and "K = 4" in shown
    result = json.loads((tmp_path / "found" / "result.json").read_text())
    records = records_of(result)
    recall = {k: each.value for k, each in by_k(records, "recall").items()}
    assert set(recall) == set(by_k(records, "answer_recall")) == {1, 4}
    assert {each.metric for each in records} == {"recall", "answer_recall"}
    assert recall[1] <= recall[4] and 0 <= by_k(records, "recall", BM25)[4].value <= 1
    assert "| recall@4 |" in (tmp_path / "found" / "report.md").read_text()
    index = Index.open(demo.run("index_a"))
    asker = QuestionEncoder.from_pretrained(demo.run("dpr") / "model" / "question_encoder").eval()
    examples = sample(read_examples(demo.root / "data" / "miniwiki" / "dev.jsonl"), 12)
    with torch.no_grad():
        queries = asker(**asker.tokenize([example.question for example in examples]))
    _, rows = index.search(queries.numpy(), 4)
    gold = [
        [index.passages[row].id in example.positive_ids for row in own]
        for example, own in zip(examples, rows.tolist(), strict=True)
    ]
    assert recall[4] == pytest.approx(sum(map(any, gold)) / 12)
    assert recall[1] == pytest.approx(sum(own[0] for own in gold) / 12)
    assert demo("evaluate", *command, f"results={tmp_path / 'found'}") == 0
    assert "already exists" in capsys.readouterr().out
    for wrong, sentence in {
        "n_docs=3": "n_docs=3 contradicts the checkpoint",
        "decoding=beam4": "evaluate.py of a bi-encoder takes corpus, task, index, recall_at, bm25",
        "recall_at=[]": "asks for no passage",
        f"index.path={tmp_path}": "manifest.json is missing",
    }.items():
        assert demo("evaluate", command[0], wrong, f"results={tmp_path / 'wrong'}") == 2
        assert sentence in refusal(capsys)
    assert not (tmp_path / "wrong").exists()


def test_evaluate_refuses_what_contradicts_the_checkpoint(demo, tmp_path, capsys):
    checkpoint = f"checkpoint={demo.run('rag_sequence')}"
    before = contents(demo.root)
    for wrong, sentence in {
        "generator=bart_base": "generator=bart_base contradicts the checkpoint",
        "seed=3": "seed=3 contradicts the checkpoint",
        "model.n_docs=3": "evaluate.py takes corpus, task, index",
        "experiment=miniwiki/rag_token": "was trained as demo/rag_sequence",
        "~index": "contradicts the checkpoint",
        "split=tset": "split=tset does not exist; available: train, dev, test (with a file: train, dev, test)",
        "limit=0": "limit=0: a whole number from 1 is expected",
        "limit=abc": "limit=abc: a whole number from 1 is expected",
        "k_sweep=5": "k_sweep=5: a list is expected, as in k_sweep=[]",
        "k_sweep=null": "k_sweep=null: a list is expected",
        "k_sweep=[0]": "k_sweep=[0]: a list of whole numbers from 1 is expected, as in k_sweep=[1,5,20]",
        "recall_at=[a]": "recall_at=['a']: a list of whole numbers",
        "export=trec": "export=trec: a list is expected",
        "hot_swap=3": "hot_swap=3: two editions are expected",
        f"index.path={tmp_path}": "manifest.json is missing",
    }.items():
        assert demo("evaluate", checkpoint, wrong) == 2
        assert sentence in refusal(capsys)
    for wrong, sentence in {
        f"checkpoint={tmp_path}": "is not a run folder of train.py",
        "split=dev": "say which model: checkpoint=RUN",
    }.items():
        assert demo("evaluate", wrong) == 2
        assert sentence in refusal(capsys)
    assert contents(demo.root) == before
    agreed = [checkpoint, "experiment=miniwiki/rag_sequence", "limit=1", "hot_swap=null", "k_sweep=[]"]
    assert demo("evaluate", *agreed, f"results={tmp_path / 'agreed'}") == 0
    assert demo("evaluate", *agreed, "retriever=exact", f"results={tmp_path / 'exact'}") == 0
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("agreed", "exact")]
    assert results[0]["index"]["type"] == "Flat" and results[1]["index"]["type"] == "exact search"
    predictions = [(tmp_path / name / "predictions.jsonl").read_text() for name in ("agreed", "exact")]
    assert predictions[0] == predictions[1]


@pytest.mark.parametrize("script", ["train", "build_index", "evaluate"])
def test_help_is_short_and_has_examples(script, capsys):
    run = Scripts(PROJECT)
    for flag in ("-h", "--help"):
        assert run(script, flag, places=False) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith(f"python {script}.py") and len(lines) < 26
        named = {"train": ("refresh=", "remine="), "evaluate": ("int8=",)}
        named["build_index"] = ("index=milvus", "bfloat16=", "int8=", "openvino=")
        assert all(each in " ".join(lines) for each in named[script])


@pytest.mark.slow
@pytest.mark.parametrize("script", ["train", "build_index", "evaluate"])
def test_as_a_program(script, tmp_path):
    """From another folder, in a process of its own: one line on standard error, exit code 2."""
    command = [sys.executable, str(PROJECT / f"{script}.py"), "n_dosc=3"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: the setting n_dosc does not exist: did you mean n_docs?\n"
    assert not list(tmp_path.iterdir())
