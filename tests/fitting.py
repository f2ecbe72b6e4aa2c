"""Training a module for a few steps, through Lightning as train.py does, and what it logged and left."""

import pytest
import pytorch_lightning as pl
from conftest import (
    PASSAGES,
    QUESTIONS,
    tiny_bart,
    word_tokenizer,
)
from pytorch_lightning.callbacks import Callback

from rag.decoding.settings import Decoding
from rag.generators.seq2seq import Generator
from rag.model import ClosedBook
from rag.tasks.example import Example
from rag.tasks.qa import QuestionAnswering
from rag.training.datamodule import StepDataModule, evaluation_batches
from rag.training.module import RagModule
from rag.training.optimization import Optimization

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
        enable_checkpointing=any(isinstance(each, pl.callbacks.Checkpoint) for each in callbacks),
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


def float64_closed_book():
    """A closed book without dropout, in float64: what differs is not rounding."""
    tokenizer = word_tokenizer([" ".join(["a b c d e f g", *(t for p in PASSAGES for t in p), *QUESTIONS])])
    return ClosedBook(Generator(tiny_bart(len(tokenizer), dropout=0.0), tokenizer)).double()


QUIET = pytest.mark.filterwarnings(
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
