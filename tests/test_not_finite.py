"""What is not finite ends training, is never the best and never written."""

import copy
import math

import pytest
import pytorch_lightning as pl
import torch
from fitting import (
    PAIRS,
    QUIET,
    Listed,
    StepMetrics,
    fit,
    float64_closed_book,
    gradients,
    rag_module,
)
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.plugins.precision import MixedPrecision
from torch.testing import assert_close

from rag.errors import UserError
from rag.finite import not_finite
from rag.model import RagToken
from rag.training.callbacks import checkpoints

pytestmark = QUIET


@pytest.fixture
def closed_book():
    return float64_closed_book()


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
    gradient_of = {}
    for scale in (1.0, 2.0**12):
        module = rag_module(copy.deepcopy(model))
        fit(module, Listed(module.model, batches), accumulate=2, plugins=[LossScaled(scale)])
        gradient_of[scale] = gradients(module)
    for name, gradient in gradient_of[1.0].items():
        assert_close(gradient_of[2.0**12][name], gradient, rtol=1e-3, atol=1e-5, msg=name)


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
    best = checkpoints("nowhere", "dev/em", mode, patience=3)[0]
    trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
    assert not best.check_monitor_top_k(trainer, torch.tensor(math.nan))
    assert not best.check_monitor_top_k(trainer, torch.tensor(math.inf))
    assert best.check_monitor_top_k(trainer, torch.tensor(0.1))


def test_a_metric_that_dev_cannot_judge_is_no_better_one_and_no_end(closed_book):
    """Patience counts it as a look without a better metric; without patience, training goes on."""
    stop = checkpoints("nowhere", "dev/em", "max", patience=2)[2]
    assert stop._evaluate_stopping_criteria(torch.tensor(0.5))[0] is False
    assert stop._evaluate_stopping_criteria(torch.tensor(math.nan))[0] is False
    assert stop._evaluate_stopping_criteria(torch.tensor(math.nan))[0] is True
    assert stop.best_score == 0.5
