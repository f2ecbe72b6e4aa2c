"""Section 2.4: an optimiser step takes the mean over its whole batch, and what is not finite ends training."""

import copy
import math
import multiprocessing
import socket
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from conftest import (
    PASSAGES,
    QUESTIONS,
    bert_tokenizer,
    tiny_bart,
    tiny_passage_encoder,
    tiny_question_encoder,
    word_tokenizer,
)
from lightning_fabric.plugins.environments import LightningEnvironment
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.plugins.precision import MixedPrecision
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from rag.callbacks import StopsBetweenSteps, checkpoints
from rag.ckpt import check_checkpoint
from rag.datamodule import StepDataModule, evaluation_batches
from rag.decoding import Decoding
from rag.dpr import BiEncoder, BiEncoderBatch, DprModule, contrastive_loss, passages_allowed
from rag.encoders import PassageEncoder, QuestionEncoder
from rag.errors import UserError
from rag.finite import not_finite
from rag.generator import Generator
from rag.lexical import BM25
from rag.model import ClosedBook, RagSequence, RagToken
from rag.module import RagModule
from rag.optimization import Optimization
from rag.passages import Passage
from rag.retriever import LexicalRetriever
from rag.tasks.example import Example
from rag.tasks.qa import QuestionAnswering

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec:FutureWarning",
    "ignore:.*does not have many workers",
    "ignore:.*callbacks used to create the checkpoint",
    "ignore:Detected call of",
    "ignore:.*no `val_dataloader`",
    "ignore:.*in eval mode at the start of training",
    "ignore:.*multi-threaded.*:DeprecationWarning",
    "ignore:.*Checkpoint directory",
    "ignore:.*overridden `transfer_batch_to_device`",
)
PAIRS = [
    (question, target)
    for question in QUESTIONS
    for target in ("Paris", "the capital of Italy", "the Seine is a river", "Rome", "a b c d e f g")
]
UNKNOWN = "zzz qqq xxx"  # shares no word with any passage


class Listed(StepDataModule):
    """Training batches as listed, one after the other; dev in one batch."""

    def __init__(self, model, batches, dev=()):
        super().__init__()
        self.model, self.batches, self.dev = model, batches, dev
        self.task = QuestionAnswering()

    def make_batch(self, step):
        return self.made(self.batches[step % len(self.batches)])

    def made(self, pairs):
        questions, targets = map(list, zip(*pairs, strict=True))
        examples = [Example(question, (target,)) for question, target in pairs]
        return examples, self.model.prepare(questions, targets)

    def val_dataloader(self):
        examples = [Example(question, (target,)) for question, target in self.dev]
        return self._loader(evaluation_batches(examples, self.model.prepare, 8)) if examples else []


class StepMetrics(Callback):
    """What was logged of each step."""

    def __init__(self):
        self.steps = []

    def on_train_batch_end(self, trainer, *_):
        self.steps.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def fit(module, data, steps=1, accumulate=1, folder=None, callbacks=(), ckpt_path=None, **settings):
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        accumulate_grad_batches=accumulate,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=any(isinstance(each, pl.callbacks.ModelCheckpoint) for each in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        check_val_every_n_epoch=None,
        default_root_dir=folder,
        **{"devices": 1, "val_check_interval": 10**6, "limit_val_batches": 0} | settings,
    )
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return trainer


def rag_module(model, **settings):
    """Without dropout, so that a loss can be computed again."""
    optimization = Optimization(lr=settings.pop("lr", 1e-3), warmup_steps=0, schedule="constant")
    return RagModule(model, optimization, Decoding(max_new_tokens=4), **settings).eval()


def gradients(module):
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def by_hand(module, data, batches, per_token):
    """The gradient of the mean over all of the batches' questions or tokens, and that mean."""
    module.zero_grad()
    _, inputs = data.made([pair for batch in batches for pair in batch])
    nll = -module.model(inputs).logprob
    mean = nll.sum() / (inputs.label_mask.sum() if per_token else len(nll))
    mean.backward()
    return gradients(module), float(mean.detach())


@pytest.fixture
def closed_book():
    """In float64: what differs is not rounding."""
    tokenizer = word_tokenizer([" ".join(["a b c d e f g", *(t for p in PASSAGES for t in p), *QUESTIONS])])
    return ClosedBook(Generator(tiny_bart(len(tokenizer), dropout=0.0), tokenizer)).double()


@pytest.mark.parametrize("per_token", [False, True])
def test_micro_batches_of_five_and_three_are_a_batch_of_eight(closed_book, per_token):
    batches = [PAIRS[:5], PAIRS[5:8]]
    module, seen = rag_module(closed_book, per_token=per_token), StepMetrics()
    data = Listed(closed_book, batches)
    expected, mean = by_hand(module, data, batches, per_token)
    fit(module, data, accumulate=2, callbacks=[seen])
    found = gradients(module)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert_close(found[name], gradient, rtol=1e-9, atol=1e-12, msg=name)
    figure = "train/nll_per_token" if per_token else "train/nll_per_example"
    assert seen.steps[-1][figure] == pytest.approx(mean, rel=1e-6)  # of the step, not of its last batch


@pytest.mark.parametrize("kind", [RagSequence, RagToken])
def test_label_smoothing_and_the_retriever_over_cut_batches(kind, retriever, bart):
    """float32, as what is retrieved is scored: three micro-batches of unequal size."""
    model = kind(retriever, bart, n_docs=3)
    module = rag_module(model, label_smoothing=0.1)
    batches = [PAIRS[:4], PAIRS[4:5], PAIRS[5:7]]
    data = Listed(model, batches)
    _, inputs = data.made(PAIRS[:7])
    found = model(inputs, want_smoothing=True)
    (0.9 * -found.logprob + 0.1 * found.smoothing).mean().backward()
    expected = gradients(module)
    module.zero_grad()
    fit(module, data, accumulate=3)
    for name, gradient in expected.items():
        assert_close(gradients(module)[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_gradients_are_clipped_after_they_are_divided(closed_book):
    module, data = rag_module(closed_book), Listed(closed_book, [PAIRS[:5], PAIRS[5:8]])
    expected, _ = by_hand(module, data, data.batches, per_token=False)
    norm = torch.nn.utils.get_total_norm(expected.values())
    seen = StepMetrics()
    fit(module, data, accumulate=2, gradient_clip_val=float(norm) / 2, callbacks=[seen])
    assert seen.steps[-1]["train/gradient_norm"] == pytest.approx(float(norm), rel=1e-6)
    for name, gradient in expected.items():
        assert_close(gradients(module)[name], gradient / 2, rtol=1e-6, atol=1e-9, msg=name)


def one_rank(rank: int, closed_book, per_token: bool, folder: Path) -> None:
    """Five examples and a micro-batch of one on one rank, three and two on the other, through Lightning's DDP."""
    module = rag_module(closed_book, per_token=per_token)
    shares = [PAIRS[:5], PAIRS[5:8], PAIRS[8:9], PAIRS[9:11]]  # step · ranks + rank
    seen = StepMetrics()
    fit(
        module,
        Listed(closed_book, shares),
        accumulate=2,
        devices=2,
        strategy="ddp",
        plugins=[Started(rank, folder / "port")],
        callbacks=[seen],
    )
    found = gradients(module)
    figure = "train/nll_per_token" if per_token else "train/nll_per_example"
    save_file(found | {"loss": torch.tensor(seen.steps[-1][figure])}, folder / f"rank{rank}.safetensors")


class Started(LightningEnvironment):
    """The two processes that the test started itself."""

    def __init__(self, rank: int, port: Path):
        super().__init__()
        self._main_port = int(port.read_text())
        self.set_global_rank(rank)
        self.rank = rank

    @property
    def creates_processes_externally(self) -> bool:
        return True

    def local_rank(self) -> int:
        return self.rank


@pytest.mark.parametrize("per_token", [False, True])
def test_two_ranks_of_unequal_shares_are_one_process(closed_book, per_token, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        (tmp_path / "port").write_text(str(free.getsockname()[1]))
    module = rag_module(closed_book, per_token=per_token)
    expected, mean = by_hand(module, Listed(closed_book, []), [PAIRS[:11]], per_token)
    module.zero_grad()
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=one_rank, args=(n, closed_book, per_token, tmp_path)) for n in (0, 1)]
    for each in ranks:
        each.start()
    for each in ranks:
        each.join(120)
        assert each.exitcode == 0
    for rank in (0, 1):
        found = load_file(tmp_path / f"rank{rank}.safetensors")
        assert float(found.pop("loss")) == pytest.approx(mean, rel=1e-6)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            assert_close(found[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


def test_a_run_that_goes_on_has_the_weights_of_one_that_never_stopped(closed_book, tmp_path):
    batches = [PAIRS[n : n + 1 + n % 3] for n in range(8)]
    start = copy.deepcopy(closed_book)
    whole = rag_module(closed_book)
    fit(whole, Listed(closed_book, batches), steps=4, accumulate=2)
    trainer = fit(rag_module(first := copy.deepcopy(start)), Listed(first, batches), steps=2, accumulate=2)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    resumed = rag_module(start)
    check_checkpoint(tmp_path / "last.ckpt", resumed, 4)
    fit(resumed, Listed(start, batches), steps=4, accumulate=2, ckpt_path=tmp_path / "last.ckpt")
    for name, weight in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], weight), name


class AskedToStop(Callback):
    """A signal that comes while a batch is worked on."""

    def __init__(self, stops, batch):
        self.stops, self.batch = stops, batch

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.stops.asked |= batch_idx == self.batch


@pytest.mark.parametrize("batch", [2, 3])
@pytest.mark.parametrize("how", ["signal", "time"])
def test_a_run_is_never_left_amid_accumulated_batches(closed_book, batch, how, tmp_path):
    """Asked to stop in the first or second batch of the second step, or saving after each batch and then cut off."""
    # Lightning saves last of all that it does after a batch.
    batches = [PAIRS[n : n + 1 + n % 3] for n in range(8)]
    start, whole = copy.deepcopy(closed_book), rag_module(closed_book)
    fit(whole, Listed(closed_book, batches), steps=4, accumulate=2)
    stops = StopsBetweenSteps(tmp_path / "last.ckpt")
    callbacks = [stops, AskedToStop(stops, batch)]
    if how == "time":
        last = checkpoints(tmp_path, None, minutes=0)[0]
        callbacks = [last, Interrupts(batch)]
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(
            rag_module(first := copy.deepcopy(start)),
            Listed(first, batches),
            steps=4,
            accumulate=2,
            callbacks=callbacks,
            folder=tmp_path,
        )
    resumed = rag_module(start)
    done = torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"]
    assert done == (2 if how == "signal" else 1)
    fit(resumed, Listed(start, batches), steps=4, accumulate=2, ckpt_path=tmp_path / "last.ckpt")
    for name, weight in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], weight), name


class Interrupts(Callback):
    """Ends training at once after a batch."""

    def __init__(self, batch):
        self.batch = batch

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch_idx == self.batch:
            raise KeyboardInterrupt


# -- DPR ------------------------------------------------------------------------------------------


class Made(StepDataModule):
    """Batches that were made already."""

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def make_batch(self, step):
        return self.batches[step % len(self.batches)]


@pytest.fixture
def encoders():
    tokenizer = bert_tokenizer()
    torch.manual_seed(2)
    settings = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    question = tiny_question_encoder(len(tokenizer), **settings)
    passage = tiny_passage_encoder(len(tokenizer), **settings)
    return BiEncoder((QuestionEncoder(question, tokenizer), PassageEncoder(passage, tokenizer))).double()


def asked(encoders, golds, hard=()):
    """A question about each passage of `golds`; `hard` is a negative of the first."""
    rows = [*golds, *hard]
    return BiEncoderBatch(
        encoders.question_encoder.tokenize([PASSAGES[row][0] for row in golds]),
        encoders.passage_encoder.tokenize([Passage(str(row), *PASSAGES[row]) for row in rows]),
        torch.tensor(rows),
        torch.tensor(golds)[:, None],
        torch.arange(len(golds)),
    )


def dpr_loss(encoders, batch):
    allowed = passages_allowed(batch.rows, batch.right, batch.positive)
    vectors = encoders.question_encoder(**batch.questions), encoders.passage_encoder(**batch.passages)
    return contrastive_loss(*vectors, batch.positive, allowed)[0]


def dpr_module(encoders):
    return DprModule(encoders, Optimization(lr=1e-3, warmup_steps=0, schedule="constant"))


def test_dprs_micro_batches_weigh_by_their_questions(encoders):
    """Three questions, two, and one that has no negative: the mean is over five."""
    batches = [asked(encoders, [0, 1, 2]), asked(encoders, [3, 4], hard=[5]), asked(encoders, [6])]
    (sum(dpr_loss(encoders, batch).sum() for batch in batches) / 5).backward()
    module, seen = dpr_module(encoders), StepMetrics()
    expected = gradients(module)
    module.zero_grad()
    fit(module, Made(batches), accumulate=3, callbacks=[seen])
    for name, gradient in expected.items():
        assert_close(gradients(module)[name], gradient, rtol=1e-9, atol=1e-12, msg=name)
    assert seen.steps[-1]["train/without_negatives"] == 1
    assert 0 < seen.steps[-1]["train/loss"] < math.inf


def test_dpr_without_any_negative_is_refused(encoders):
    """One question a batch: on one rank nothing to compare with, on two the other rank's passage."""
    data = Made([asked(encoders, [0]), asked(encoders, [1])])
    with pytest.raises(
        UserError, match="raise datamodule.batch_size to 2 or more, or give the questions hard"
    ):
        dpr_module(encoders).check_data(data, ranks=1)
    dpr_module(encoders).check_data(data, ranks=2)
    dpr_module(encoders).check_data(Made([asked(encoders, [0], hard=[3])]), ranks=1)
    with pytest.raises(UserError, match="nothing to learn"):  # the same passage twice is no negative
        dpr_module(encoders).check_data(Made([asked(encoders, [2, 2])]), ranks=1)


# -- questions without passages --------------------------------------------------------------------


@pytest.fixture
def lexical(index, bart):
    """BM25 over the tiny world, in float64 where it matters."""
    bart.double()
    return RagSequence(LexicalRetriever.over(BM25.build, index.folder), bart, n_docs=2)


@pytest.mark.parametrize("kind", [RagSequence, RagToken])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("per_token", [False, True])
def test_a_question_that_shares_no_word_is_left_out_and_counted(lexical, kind, smoothing, per_token):
    model = kind(lexical.retriever, lexical.generator, n_docs=2)
    module = rag_module(model, label_smoothing=smoothing, per_token=per_token)
    data, seen = Listed(model, [[PAIRS[0], (UNKNOWN, "Rome"), PAIRS[7]]]), StepMetrics()
    kept = [PAIRS[0], PAIRS[7]]
    _, inputs = data.made(kept)
    found = model(inputs, want_smoothing=True)
    losses = (1 - smoothing) * -found.logprob + smoothing * found.smoothing
    (losses.sum() / (inputs.label_mask.sum() if per_token else 2)).backward()
    expected = gradients(module)
    module.zero_grad()
    fit(module, data, callbacks=[seen])
    for name, gradient in expected.items():
        assert_close(gradients(module)[name], gradient, rtol=1e-5, atol=1e-7, msg=name)
    assert seen.steps[-1]["train/left_out"] == 1
    nll = -float(found.logprob.sum().detach())
    assert seen.steps[-1]["train/nll_per_example"] == pytest.approx(nll / 2, rel=1e-5)
    assert seen.steps[-1]["train/nll_per_token"] == pytest.approx(
        nll / int(inputs.label_mask.sum()), rel=1e-5
    )


def test_a_batch_of_nothing_else_has_a_gradient_of_zero(lexical):
    module, seen = rag_module(lexical, label_smoothing=0.1), StepMetrics()
    fit(module, Listed(lexical, [[(UNKNOWN, "Rome")] * 2]), callbacks=[seen])
    assert gradients(module) and all(not gradient.any() for gradient in gradients(module).values())
    assert seen.steps[-1]["train/left_out"] == 2 and "train/nll_per_example" not in seen.steps[-1]


def test_dev_leaves_them_out_of_its_means(lexical):
    module = rag_module(lexical)
    data = Listed(lexical, [PAIRS[:2]], dev=[PAIRS[0], (UNKNOWN, "Rome"), PAIRS[7]])
    trainer = fit(module, data, val_check_interval=1, limit_val_batches=1.0)
    assert trainer.callback_metrics["dev/left_out"] == 1
    _, inputs = data.made([PAIRS[0], PAIRS[7]])
    nll = -float(lexical(inputs).logprob.sum().detach())
    metrics = trainer.callback_metrics
    assert float(metrics["dev/nll_per_example"]) == pytest.approx(nll / 2, rel=1e-4)
    assert float(metrics["dev/nll_per_token"]) == pytest.approx(nll / int(inputs.label_mask.sum()), rel=1e-4)


# -- what is not finite ----------------------------------------------------------------------------


class Breaks(Callback):
    """Makes a weight NaN before a step: what a diverged update leaves."""

    def __init__(self, step, value=math.nan):
        self.step, self.value = step, value

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx == self.step:
            next(module.parameters()).data.view(-1)[:] = self.value


def test_training_stops_at_the_first_loss_that_is_not_finite(closed_book, tmp_path):
    module = rag_module(closed_book)
    kept = checkpoints(tmp_path, "dev/nll_per_example", "min")
    data = Listed(closed_book, [PAIRS[:4]], dev=PAIRS[:2])
    with pytest.raises(UserError) as stopped:
        fit(
            module,
            data,
            steps=9,
            callbacks=[*kept, Breaks(3)],
            val_check_interval=2,
            limit_val_batches=1.0,
            folder=tmp_path,
        )
    sentence = str(stopped.value)
    assert sentence.startswith(
        "training stopped at step 4 because the loss is nan (the last finite loss was "
    )
    assert " at step 3)" in sentence and "lower optimization.lr" in sentence
    assert f"{tmp_path / 'best.ckpt'} from before" in sentence
    held = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert held["global_step"] == 2 and not_finite(held["state_dict"]) is None


def test_a_gradient_that_is_not_finite_moves_nothing(closed_book):
    """The loss is finite and its gradient is not, as where a root of zero is differentiated."""
    module = rag_module(closed_book)
    before = copy.deepcopy(module.state_dict())
    weight = next(module.parameters())
    weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(UserError, match="step 1 because the norm of the gradient is nan|inf.*no loss before"):
        fit(module, Listed(closed_book, [PAIRS[:2]]))
    assert all(torch.equal(weight, before[name]) for name, weight in module.state_dict().items())


class LossScaled(MixedPrecision):
    """What precision=16-mixed is on a GPU, in bfloat16, which a CPU computes in."""

    def __init__(self, scale):
        super().__init__("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))

    def autocast_context_manager(self):
        return torch.autocast("cpu", dtype=torch.bfloat16)


def test_a_scaled_loss_has_the_same_gradient(closed_book):
    model, batches = closed_book.float(), [PAIRS[:5], PAIRS[5:8]]
    found = {}
    for scale in (1.0, 2.0**12):
        module = rag_module(copy.deepcopy(model))
        fit(module, Listed(module.model, batches), accumulate=2, plugins=[LossScaled(scale)])
        found[scale] = gradients(module)
    for name, gradient in found[1.0].items():
        assert_close(found[2.0**12][name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_a_gradient_that_overflows_is_scaled_down_and_no_end(closed_book):
    """float16's way: the step is skipped and the next loss scaled by half. Not so for ever."""
    model = closed_book.float()
    before = copy.deepcopy(model.state_dict())
    module, seen = rag_module(model), StepMetrics()
    fit(module, Listed(model, [PAIRS[:4]]), callbacks=[seen], plugins=[LossScaled(2.0**127)])
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert "train/gradient_norm" not in seen.steps[0] and seen.steps[0]["train/nll_per_example"] > 0
    next(module.parameters()).register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(UserError, match="the norm of the gradient is"):
        fit(module, Listed(model, [PAIRS[:4]]), steps=40, plugins=[LossScaled(2.0**5)])


def test_questions_of_nan_are_not_taken_for_questions_without_passages(retriever, bart):
    """A question encoder that overflows finds nothing; training must not leave all its questions out."""
    model = RagToken(retriever, bart, n_docs=3)
    next(retriever.question_encoder.parameters()).data.fill_(math.nan)
    with pytest.raises(UserError, match="step 1 because the loss is nan"):
        fit(rag_module(model), Listed(model, [PAIRS[:2]]))


def test_a_model_of_nan_is_neither_perfect_nor_best_on_dev(closed_book, tmp_path):
    """The weights break between the step and the look at dev: nothing is written, and the sentence says so."""
    module = rag_module(closed_book)

    class BreaksAfter(Callback):
        def on_validation_start(self, trainer, module):
            next(module.parameters()).data.fill_(math.nan)

    data = Listed(closed_book, [PAIRS[:2]], dev=PAIRS[:2])
    with pytest.raises(UserError, match="step 1 because the loss on dev is nan"):
        fit(
            module,
            data,
            callbacks=[*checkpoints(tmp_path, "dev/nll_per_token", "min"), BreaksAfter()],
            val_check_interval=1,
            limit_val_batches=1.0,
            folder=tmp_path,
        )
    assert not list(tmp_path.glob("*.ckpt"))


def test_no_checkpoint_is_written_of_weights_that_are_not_finite(closed_book, tmp_path):
    module = rag_module(closed_book)
    trainer = fit(module, Listed(closed_book, [PAIRS[:2]]))
    next(module.parameters()).data.fill_(math.inf)
    with pytest.raises(UserError, match="holds weights that are not finite"):
        trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert not (tmp_path / "last.ckpt").exists()


@pytest.mark.parametrize("mode", ["min", "max"])
def test_nan_is_never_the_best_nor_the_first(mode):
    best = checkpoints("nowhere", "dev/em", mode, patience=3)[1]
    trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
    assert not best.check_monitor_top_k(trainer, torch.tensor(math.nan))
    assert not best.check_monitor_top_k(trainer, torch.tensor(math.inf))
    assert best.check_monitor_top_k(trainer, torch.tensor(0.1))


def test_a_metric_that_dev_cannot_judge_is_no_better_one_and_no_end(closed_book):
    """Patience counts it as a look without a better figure; without patience, training goes on."""
    stop = checkpoints("nowhere", "dev/em", "max", patience=2)[2]
    assert stop._evaluate_stopping_criteria(torch.tensor(0.5))[0] is False
    assert stop._evaluate_stopping_criteria(torch.tensor(math.nan))[0] is False
    assert stop._evaluate_stopping_criteria(torch.tensor(math.nan))[0] is True
    assert stop.best_score == 0.5
