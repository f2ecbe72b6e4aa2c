"""refresh=: when the index is embedded again, what the new edition is, and how training goes on over it."""

import copy
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run
from conftest import (
    PASSAGES,
    QUESTIONS,
    bert_tokenizer,
    build_tiny_index,
    tiny_bart,
    tiny_question_encoder,
    word_tokenizer,
)
from fitting import QUIET, Listed, fit
from pytorch_lightning.callbacks import Callback
from safetensors.torch import load_file

from rag.decoding.settings import Decoding
from rag.encoders.dpr import QuestionEncoder
from rag.encoders.reduced import InBfloat16
from rag.errors import UserError
from rag.files import write_json
from rag.generators.seq2seq import Generator
from rag.index.faiss_types import IndexType
from rag.index.folder import Index
from rag.index.passage import Passage
from rag.index.reembed import check_passages, reembed
from rag.index.vectors import EncoderInfo
from rag.miniwiki.world import write_world
from rag.model import ClosedBook, RagToken
from rag.reopen import reopen
from rag.retrievers import DenseRetriever, FreshPassages, LexicalRetriever
from rag.retrievers.lexical import BM25
from rag.runs import PROJECT
from rag.training.callbacks import LastCheckpoint
from rag.training.module import RagModule
from rag.training.optimization import Optimization
from rag.training.reembedding import answer_all
from rag.training.refresh import IndexRefresh, needed_by, trained_retriever
from rag.training.schedule import Part, Schedule

pytestmark = [
    pytest.mark.xdist_group("refresh"),
    pytest.mark.filterwarnings("ignore:.*the retriever has collapsed"),
]
BATCHES = [[(QUESTIONS[i % 3], "Paris"), (QUESTIONS[(i + 1) % 3], "the Tiber")] for i in range(3)]


# -- an edition ----------------------------------------------------------------------------------


@pytest.fixture
def encoder(passage_encoder):
    return copy.deepcopy(passage_encoder)


def moved(encoder):
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in encoder.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return encoder.eval()


@pytest.mark.parametrize("kind", ["Flat", "SQ8", "HNSW8"])
def test_an_edition_holds_the_vectors_of_the_encoder_in_an_index_of_the_same_type(tmp_path, encoder, kind):
    old = build_tiny_index(tmp_path / "old", encoder, kind=IndexType(kind, refine=2), shard_size=3)
    tokens = old.tokens(word_tokenizer()).folder.name
    moved(encoder)
    reembed(old, encoder, tmp_path / "editions" / "new", "mine")
    new = Index.open(tmp_path / "editions" / "new")
    assert (new.manifest.factory, new.manifest.type) == (old.manifest.factory, old.manifest.type)
    assert (new.manifest.encoder.name, new.manifest.encoder.weights) == ("mine", encoder.fingerprint())
    np.testing.assert_allclose(new.vectors(np.arange(7)), encoder.encode(list(new.passages)), atol=1e-5)
    assert [each.name for each in (tmp_path / "editions").iterdir()] == ["new"]
    for name in ("passages/passages.arrow", f"{tokens}/tokens.bin"):
        assert (new.folder / name).samefile(old.folder / name)  # they take no room
    new.verify()


def test_an_edition_that_was_begun_goes_on(tmp_path, encoder):
    """Killed amid its second shard; the first is not made again."""
    old = build_tiny_index(tmp_path / "old", encoder, shard_size=3)
    moved(encoder)

    class Dies:
        batches = 0

        def describe(self):
            return encoder.describe()

        def encode(self, passages):
            self.batches += 1
            if self.batches == 2:
                raise KeyboardInterrupt
            return encoder.encode(passages)

    with pytest.raises(KeyboardInterrupt):
        reembed(old, Dies(), tmp_path / "new", "mine")
    assert not (tmp_path / "new").exists()
    first = os.stat(tmp_path / ".new.new" / "vectors" / "00000.npy").st_mtime_ns
    reembed(old, encoder, tmp_path / "new", "mine")
    assert os.stat(tmp_path / "new" / "vectors" / "00000.npy").st_mtime_ns == first
    np.testing.assert_allclose(
        Index.open(tmp_path / "new").vectors(np.arange(7)), encoder.encode(list(old.passages)), atol=1e-5
    )


# -- training ------------------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path, passage_encoder):
    """A new module over an index each time it is called, always of the same weights."""
    build_tiny_index(tmp_path / "base", passage_encoder)

    def made(trainable="both", **settings):
        torch.manual_seed(4)
        question_encoder = QuestionEncoder(tiny_question_encoder(len(bert_tokenizer())), bert_tokenizer())
        retriever = DenseRetriever(
            question_encoder,
            Index.open(tmp_path / "base"),
            trainable,
            passage_encoder=FreshPassages(copy.deepcopy(passage_encoder)),
            **settings,
        )
        model = RagToken(retriever, Generator(tiny_bart(len(word_tokenizer())), word_tokenizer()), 2)
        optimization = Optimization(lr=1e-2, warmup_steps=0, schedule="constant")
        module = RagModule(model, optimization, Decoding(max_new_tokens=4), seed=1).train()
        return module, WithQuestions(model, BATCHES)

    return made


class WithQuestions(Listed):
    def watched_questions(self, count):
        return QUESTIONS[:count]


class Seen(Callback):
    """After each step: whose vectors are searched, whose they would be, and the step's own vectors."""

    def __init__(self, stop=None):
        self.searched, self.fresh, self.metrics, self.stop = [], [], [], stop

    def on_train_batch_end(self, trainer, pl_module, *_):
        retriever = pl_module.model.retriever
        self.searched.append(retriever.index.manifest.encoder.weights)
        self.fresh.append(retriever.fresh.encoder.fingerprint())
        self.metrics.append({k: float(v) for k, v in trainer.callback_metrics.items() if "refresh" in k})
        if trainer.global_step == self.stop:
            raise RuntimeError("stopped here")


def every_step(folder: Path) -> LastCheckpoint:
    return LastCheckpoint(
        folder, "last", every_n_train_steps=1, enable_version_counter=False, save_top_k=1, save_last=False
    )


@QUIET
def test_the_index_is_exchanged_between_two_steps_and_staleness_is_logged(tmp_path, world, capsys):
    module, data = world()
    seen, refresh = Seen(), IndexRefresh(Schedule.parse("3-:2"), tmp_path / "run")
    base = module.model.retriever.index
    fit(module, data, steps=6, callbacks=[refresh, seen])
    weights = base.manifest.encoder.weights
    assert len(set(seen.fresh)) == 6 and weights not in seen.fresh
    assert seen.searched == [weights, weights, *[seen.fresh[2]] * 2, *[seen.fresh[4]] * 2]
    assert seen.metrics[1] == {} and set(seen.metrics[2]) == {
        *("refresh/cosine", "refresh/recall@K", "refresh/seconds", "refresh/share")
    }
    assert 0 < seen.metrics[2]["refresh/cosine"] < 0.9999 and 0 <= seen.metrics[2]["refresh/recall@K"] <= 1
    assert seen.metrics[4]["refresh/seconds"] > seen.metrics[2]["refresh/seconds"] > 0
    assert 0 < seen.metrics[4]["refresh/share"] < 1
    assert [each.name for each in (tmp_path / "run" / "indexes").iterdir()] == [seen.fresh[4]]  # no older one
    retriever, encoder = module.model.retriever, module.model.retriever.fresh.encoder
    refresh.finish(module.trainer, module)
    np.testing.assert_allclose(
        retriever.index.vectors(np.arange(7)), encoder.eval().encode(list(base.passages)), atol=1e-5
    )
    assert [each.name for each in (tmp_path / "run" / "indexes").iterdir()] == [seen.fresh[5]]
    said = [re.sub(r" in .*", "", line) for line in capsys.readouterr().err.splitlines() if "index " in line]
    assert said == [
        f"index {when}: {what}"
        for when in ("after step 3", "after step 5", "for the weights that are saved")
        for what in ("embedding its 7 passages again", "7 passages")
    ]


@QUIET
def test_what_is_embedded_elsewhere_is_told_when_it_begins_and_when_it_is_searched(tmp_path, world, capsys):
    class Answers(Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 2:
                answer_all(tmp_path / "run" / "indexes")

    module, data = world()
    fit(
        module,
        data,
        steps=3,
        callbacks=[Answers(), IndexRefresh(Schedule.parse(1), tmp_path / "run", "elsewhere")],
    )
    folder = tmp_path / "run" / "indexes"
    begun, answering, answered, searched, again = [
        line for line in capsys.readouterr().err.splitlines() if "passages" in line
    ]
    elsewhere = (
        f"elsewhere, by python -m rag.training.reembedding {folder}; training goes on over the old edition"
    )
    assert begun == f"index after step 1: its 7 passages are embedded again {elsewhere}"
    assert again == f"index after step 2: its 7 passages are embedded again {elsewhere}"
    assert re.fullmatch(rf"{folder}/\w+: embedding the passages of .* again", answering)
    assert re.fullmatch(rf"{folder}/\w+: 7 passages in \d+ s, \S+ passages/s", answered)
    found = re.fullmatch(
        r"index after step 1: 7 passages in \d+ s, \S+ \S+, searched from step 3 on", searched
    )
    assert found, searched


@QUIET
def test_staleness_by_hand(tmp_path, world):
    """The cosine of all passages, and which of each question's two were found before as well."""
    module, data = world()
    retriever = module.model.retriever
    base = retriever.index
    refresh = IndexRefresh(Schedule.parse(3), tmp_path / "run")

    class Looks(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            if trainer.global_step == 3:
                now = retriever.fresh.encoder.eval().encode(list(base.passages))
                then = base.vectors(np.arange(7))
                norms = np.linalg.norm(now, axis=1) * np.linalg.norm(then, axis=1)
                asked = retriever.question_encoder.eval()
                queries = asked(**asked.tokenize(QUESTIONS)).detach().numpy()
                both = [np.argsort(-queries @ each.T, axis=1)[:, :2] for each in (then, now)]
                shared = [len(set(a) & set(b)) / 2 for a, b in zip(*both, strict=True)]
                self.expected = [((now * then).sum(axis=1) / norms).mean(), np.mean(shared)]
                pl_module.train()

    looks = Looks()
    fit(module, data, steps=4, callbacks=[looks, refresh])
    logged = module.trainer.callback_metrics
    assert float(logged["refresh/cosine"]) == pytest.approx(looks.expected[0], abs=1e-5)
    assert float(logged["refresh/recall@K"]) == pytest.approx(looks.expected[1])


@QUIET
def test_a_resumed_run_searches_the_edition_it_stopped_with_and_comes_to_the_same_weights(tmp_path, world):
    whole, data = world(overfetch=4)
    seen = Seen()
    fit(whole, data, steps=6, callbacks=[IndexRefresh(Schedule.parse(2), tmp_path / "whole"), seen])
    stopped, data = world(overfetch=4)
    run = tmp_path / "stopped"
    stops = [IndexRefresh(Schedule.parse(2), run), every_step(run), Seen(stop=4)]
    with pytest.raises(RuntimeError, match="stopped here"):
        fit(stopped, data, steps=6, callbacks=stops)
    # as after a kill: the last checkpoint is of step 3, and the edition after step 4 is there already
    assert needed_by(run, ("last.ckpt",)) == {seen.searched[2]}
    assert {each.name for each in (run / "indexes").iterdir()} == {seen.searched[2], seen.searched[3]}
    resumed, data = world(overfetch=4)
    again = Seen()
    refresh = IndexRefresh(Schedule.parse(2), run)
    fit(resumed, data, steps=6, callbacks=[refresh, again], ckpt_path=run / "last.ckpt")
    assert again.searched == seen.searched[3:] and again.fresh == seen.fresh[3:]
    for (name, one), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    # the edition that the old last.ckpt needs is still there, and nothing else that is not searched
    assert {each.name for each in (run / "indexes").iterdir()} == {seen.searched[2], again.searched[-1]}


@QUIET
def test_an_edition_that_is_gone_is_told(tmp_path, world):
    module, data = world()
    run = tmp_path / "run"
    fit(module, data, steps=3, callbacks=[IndexRefresh(Schedule.parse(2), run), every_step(run)])
    for each in (run / "indexes").iterdir():
        each.rename(tmp_path / "gone")
    module, data = world()
    with pytest.raises(
        UserError, match=r"the checkpoint searches the index .*, which is not there: restore it"
    ):
        fit(
            module,
            data,
            steps=4,
            callbacks=[IndexRefresh(Schedule.parse(2), run)],
            ckpt_path=run / "last.ckpt",
        )


class Waits(Callback):
    """Holds training after a step until the edition that is being made in the background is there."""

    def __init__(self, step, folder):
        self.step, self.folder = step, folder

    def on_train_batch_end(self, trainer, *_):
        ends = time.monotonic() + 120
        while trainer.global_step == self.step and not list(self.folder.glob("[!.]*/manifest.json")):
            assert time.monotonic() < ends
            time.sleep(0.1)


@pytest.mark.slow
@QUIET
def test_another_process_embeds_while_training_goes_on(tmp_path, world, capfd):
    module, data = world()
    run = tmp_path / "run"
    seen, refresh = Seen(), IndexRefresh(Schedule.parse(2), run, "background")
    base = module.model.retriever.index.manifest.encoder.weights
    fit(module, data, steps=9, callbacks=[Waits(5, run / "indexes"), refresh, seen])
    # due after step 2, there after step 5, and due again after step 6: that one was not waited for
    assert seen.searched == [*[base] * 4, *[seen.fresh[1]] * 5]
    assert refresh.pending == seen.fresh[5]
    state = refresh.state_dict()
    said = capfd.readouterr().err
    assert "index after step 2: its 7 passages are embedded again in the background; training goes on" in said
    assert re.search(r"index after step 2: 7 passages in \d+ s, .*, searched from step 6 on", said)
    # a resumed run goes on with it
    resumed = IndexRefresh(Schedule.parse(100), run, "background")
    resumed.load_state_dict(state)
    seen.__init__()
    fit(module, data, steps=3, callbacks=[Waits(1, run / "indexes" / "x"), resumed, seen])
    resumed.finish(module.trainer, module)
    assert [each.name for each in (run / "indexes").iterdir() if each.is_dir()] == [seen.fresh[-1]]


@pytest.mark.slow
@QUIET
def test_somebody_elsewhere_embeds(tmp_path, world):
    """A process that was started by hand answers the requests that it finds in the run's folder."""
    module, data = world()
    run = tmp_path / "run"
    refresh = IndexRefresh(Schedule.parse(1), run, "elsewhere")
    (run / "indexes").mkdir(parents=True)
    command = [sys.executable, "-m", "rag.training.reembedding", str(run / "indexes")]
    with subprocess.Popen(command, cwd=PROJECT) as helper:
        try:
            seen = Seen()
            fit(module, data, steps=3, callbacks=[Waits(2, run / "indexes"), refresh, seen])
        finally:
            helper.terminate()
    assert seen.searched[1] == seen.fresh[0] and refresh.worker.process is None


@pytest.mark.slow
@QUIET
def test_editions_in_an_engine(tmp_path, passage_encoder):
    """A collection of its own for each, in a file beside the edition, which goes with it."""
    pytest.importorskip("pymilvus", reason='needs the extra "milvus" (pymilvus)')
    pytest.importorskip("milvus_lite", reason='needs the extra "milvus" (milvus-lite)')
    from engines import make_in

    from rag.retrievers.milvus import MilvusRetriever

    passages = [Passage(str(number), *passage) for number, passage in enumerate(PASSAGES, start=1)]
    info = EncoderInfo("tiny", passage_encoder.fingerprint(), "t")
    base = make_in(tmp_path / "base", None, passages, passage_encoder.encode, info)
    torch.manual_seed(4)
    question_encoder = QuestionEncoder(tiny_question_encoder(len(bert_tokenizer())), bert_tokenizer())
    fresh = FreshPassages(copy.deepcopy(passage_encoder))
    retriever = MilvusRetriever(question_encoder, base, "both", passage_encoder=fresh, overfetch=4)
    model = RagToken(retriever, Generator(tiny_bart(len(word_tokenizer())), word_tokenizer()), 2)
    module = RagModule(model, Optimization(lr=1e-2, warmup_steps=0, schedule="constant"), Decoding()).train()
    seen, refresh = Seen(), IndexRefresh(Schedule.parse(1), tmp_path / "run")
    fit(module, WithQuestions(model, BATCHES), steps=4, callbacks=[refresh, seen])
    assert seen.searched == [*seen.fresh[:3], seen.fresh[2]]
    refresh.finish(module.trainer, module)
    left = {each.name for each in (tmp_path / "run" / "indexes").iterdir()}
    assert left == {seen.fresh[3], f"{seen.fresh[3]}.milvus"}
    queries = np.random.default_rng(0).standard_normal((2, 16)).astype(np.float32)
    expected = queries @ fresh.encoder.eval().encode(passages).T
    np.testing.assert_allclose(retriever.index.search(queries, 7)[0], -np.sort(-expected), rtol=1e-4)
    assert base.search(queries, 7)[0].shape == (2, 7)  # what training began with is still there


def test_passages_that_are_not_on_this_machine(tmp_path, passage_encoder):
    index = build_tiny_index(tmp_path / "thin", passage_encoder)
    check_passages(index)
    (tmp_path / "thin" / "passages").rename(tmp_path / "engine's")
    with pytest.raises(UserError, match="thin holds no passages on this machine, only in its engine"):
        check_passages(index)


def test_what_cannot_be_refreshed(tmp_path, world, index, bart, question_encoder):
    lexical = LexicalRetriever.over(BM25.build, index.folder)
    for model in (ClosedBook(bart), RagToken(lexical, bart, 2)):
        with pytest.raises(UserError, match="nothing here trains the passage encoder: give refresh=null"):
            trained_retriever(RagModule(model, Optimization()))
    module, _ = world(trainable="query")
    with pytest.raises(UserError, match="retriever.trainable=passage or both"):
        trained_retriever(module)
    with pytest.raises(UserError, match="refresh_in=cloud does not exist; available: foreground, background"):
        IndexRefresh(Schedule.parse(1), tmp_path, "cloud")


def test_the_precision_of_the_index_is_kept(tmp_path, encoder):
    old = build_tiny_index(tmp_path / "old", InBfloat16(encoder), info=InBfloat16(encoder).describe())
    from rag.training.reembedding import as_the_index

    assert isinstance(as_the_index(encoder, old), InBfloat16)
    reembed(old, as_the_index(encoder, old), tmp_path / "new", "mine")
    assert Index.open(tmp_path / "new").manifest.encoder.precision == "bfloat16"


# -- by the commands -----------------------------------------------------------------------------

GENERATOR = ["generator.width=16", "generator.heads=2", "generator.layers=1", "generator.feedforward=16"]
ENCODERS = ["encoders.width=16", "+encoders.heads=2", "+encoders.feedforward=16"]
SHORT = ["trainer.max_steps=2", "datamodule.batch_size=4", "trainer.log_every_n_steps=1"]
RAG = [
    *("experiment=miniwiki/end2end", "trainer.max_steps=6", "datamodule.batch_size=4", "refresh=2"),
    *("trainer.val_check_interval=3", "datamodule.dev_limit=4", "datamodule.eval_batch_size=4"),
    *("trainer.log_every_n_steps=1", "n_docs=2", "decoding.max_new_tokens=3"),
]


class Demo:
    def __init__(self, root: Path):
        self.root = root
        self.places = [f"paths.{key}={root / key}" for key in ("outputs", "data", "indexes")]

    def __call__(self, script: str, *arguments: str) -> int:
        return run(script, *arguments, *self.places)


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Demo:
    demo = Demo(tmp_path_factory.mktemp("demo"))
    write_world(demo.root / "data" / "miniwiki", seed=1, people=120, institutions=40)
    assert demo("train", "experiment=miniwiki/denoising", *GENERATOR, *SHORT) == 0
    assert demo("train", "experiment=miniwiki/dpr", *ENCODERS, *SHORT) == 0
    assert demo("build_index", "experiment=miniwiki/index_a") == 0
    quick = ["trainer.val_check_interval=2", "datamodule.dev_limit=2", "decoding.max_new_tokens=3"]
    assert demo("train", "experiment=miniwiki/warmup", *SHORT, *quick) == 0
    return demo


def told(capsys) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_a_run_travels_with_its_index_and_refuses_others(demo, tmp_path, capsys):
    trained = tmp_path / "trained"
    assert demo("train", *RAG, f"paths.run={trained}") == 0
    (edition,) = {each.name for each in (trained / "indexes").iterdir()} - needed_by(trained, ("last.ckpt",))
    saved = json.loads((trained / "model" / "model.json").read_text())
    assert Path(saved["index"]).name == edition and (trained / "model" / "passage_encoder").is_dir()
    assert (
        demo("evaluate", f"checkpoint={trained}", "split=dev", "limit=6", "k_sweep=[]", "recall_at=[1]") == 0
    )
    trained = trained.rename(tmp_path / "elsewhere")  # both travel together
    model = reopen(trained)
    assert model.retriever.index.folder.name == edition and type(model.retriever) is DenseRetriever
    capsys.readouterr()
    again = ["split=dev", "limit=4", "k_sweep=[]", "recall_at=[1]", f"results={tmp_path / 'results'}"]
    base = demo.root / "outputs" / "demo" / "index_a"
    assert demo("evaluate", f"checkpoint={trained}", f"index.path={base}", *again) == 2
    said = told(capsys)
    build = f"passage_encoder={trained / 'model' / 'passage_encoder'}"
    assert f"build one with build_index.py {build} index.path=FOLDER" in said
    own = f"index.path={tmp_path / 'own'}"
    assert demo("build_index", "experiment=miniwiki/index_a", build, own) == 0
    assert demo("evaluate", f"checkpoint={trained}", own, *again) == 0
    assert demo("evaluate", f"checkpoint={trained}", own, "retriever=exact_trained", *again[:-1]) == 0


def test_without_refresh_the_end_says_how_to_build_the_index(demo, tmp_path, capsys):
    trained = tmp_path / "trained"
    assert demo("train", *RAG, "refresh=null", f"paths.run={trained}") == 0
    said = capsys.readouterr().out
    assert not (trained / "indexes").exists()
    build = f"build_index.py passage_encoder={trained / 'model' / 'passage_encoder'}"
    assert (
        f"no index holds the vectors of the passage encoder that was trained: build one with {build}" in said
    )
    assert demo("evaluate", f"checkpoint={trained}", "split=dev", f"results={tmp_path / 'results'}") == 2
    assert build in told(capsys)


WRONG = {
    "refresh=0": "refresh=0: every 0 steps is never",
    "refresh=-3": "refresh=-3: every -3 steps is never",
    "refresh=soon": "refresh=soon: soon is no schedule of steps",
    "refresh=0-100:10,50-:20": "50-:20 begins before 0-100:10 ends",
    "retriever=dense": "nothing here trains the passage encoder: give refresh=null, or retriever=dense_trained",
    "retriever=bm25": "nothing here trains the passage encoder",
    "retriever.trainable=query": "nothing here trains the passage encoder",
    "retriever.trainable=all": "retriever.trainable=all does not exist; available: query, passage, both",
    "retriever.overfetch=1": "retriever.overfetch=1 takes fewer passages from the index than n_docs=2 reads",
    "retriever.overfetch=soon": "retriever.overfetch=soon: a whole number from n_docs on is expected",
    "retriever.overfetch=99999": "give retriever.overfetch from 1 to",
    "refresh_in=cloud": "refresh_in=cloud does not exist",
    "retriever.passage_encoder.path=null": "this one has no passage side",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_settings_are_told_before_anything_is_written(demo, tmp_path, wrong, capsys):
    assert demo("train", *RAG, wrong, f"paths.run={tmp_path / 'run'}") == 2
    assert WRONG[wrong] in told(capsys)
    assert not (tmp_path / "run").exists()


def test_a_schedule_with_commas_needs_no_quotes(demo, tmp_path, capsys):
    from rag.compose import compose_config

    for given in ("0-1000:500,1000-:1000", "[0-1000:500,1000-:1000]"):
        cfg = compose_config("train", ["experiment=miniwiki/end2end", f"refresh={given}"])
        assert Schedule.parse(list(cfg.refresh) if given[0] == "[" else cfg.refresh) == Schedule(
            (Part(0, 1000, 500), Part(1000, None, 1000))
        )


@pytest.mark.slow
def test_two_processes_share_an_edition_and_train_as_one(demo, tmp_path):
    """DDP over gloo: both search the same folder, of which each embeds its share of the shards."""
    base = tmp_path / "sharded"
    encoder = f"passage_encoder={demo.root / 'outputs' / 'demo' / 'dpr' / 'model' / 'passage_encoder'}"
    assert (
        demo("build_index", "experiment=miniwiki/index_a", encoder, f"index.path={base}", "shard_size=50")
        == 0
    )
    common = [
        *(*RAG, f"index.path={base}", *demo.places, "trainer.max_steps=3", "optimization.eps=1.0"),
        *("optimization.warmup_steps=0", "optimization.lr=0.1", "optimization.passage_encoder_lr=0.1"),
        "optimization.question_encoder_lr=0.1",
    ]
    runs = {"one": ["datamodule.batch_size=4"], "two": ["datamodule.batch_size=2", "trainer.devices=2"]}
    runs["two"].append("trainer.strategy=ddp")
    for name, more in runs.items():
        command = [sys.executable, "train.py", *common, *more, f"paths.run={tmp_path / name}"]
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
    for part in ("question_encoder", "passage_encoder", "generator"):
        one, two = (load_file(tmp_path / name / "model" / part / "model.safetensors") for name in runs)
        for weight in one:
            torch.testing.assert_close(two[weight], one[weight], rtol=1e-3, atol=2e-5, msg=weight)
    embedded = list((tmp_path / "two" / "indexes").glob("*/vectors/seconds-*-of-2.json"))
    assert {file.name for file in embedded} == {"seconds-0-of-2.json", "seconds-1-of-2.json"}
    assert len(reopen(tmp_path / "two").retriever.index) == len(Index.open(base))
    write_json(tmp_path / "done.json", {"passages": len(PASSAGES)})
