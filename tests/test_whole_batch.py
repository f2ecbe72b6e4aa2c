"""Section 2.4: an optimiser step takes the mean over its whole batch, however it is cut up, of what has a loss."""

import copy
import math
import multiprocessing
import socket
from pathlib import Path

import pytest
import torch
from conftest import (
    PASSAGES,
    bert_tokenizer,
    tiny_passage_encoder,
    tiny_question_encoder,
)
from fitting import (
    PAIRS,
    QUIET,
    UNKNOWN,
    Listed,
    StepMetrics,
    by_hand,
    fit,
    float64_closed_book,
    gradients,
    rag_module,
)
from lightning_fabric.plugins.environments import LightningEnvironment
from pytorch_lightning.callbacks import Callback
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from rag.encoders.dpr import PassageEncoder, QuestionEncoder
from rag.errors import UserError
from rag.index.passage import Passage
from rag.model import RagSequence, RagToken
from rag.retrievers.lexical import BM25
from rag.retrievers.lexical_retriever import LexicalRetriever
from rag.training.callbacks import StopsBetweenSteps, checkpoints
from rag.training.datamodule import StepDataModule
from rag.training.dpr import BiEncoder, BiEncoderBatch, DprModule, contrastive_loss, passages_allowed
from rag.training.optimization import Optimization
from rag.training.resume import check_checkpoint

pytestmark = QUIET


@pytest.fixture
def closed_book():
    return float64_closed_book()


@pytest.mark.parametrize("per_token", [False, True])
def test_micro_batches_of_five_and_three_are_a_batch_of_eight(closed_book, per_token):
    batches = [PAIRS[:5], PAIRS[5:8]]
    module, seen = rag_module(closed_book, per_token=per_token), StepMetrics()
    data = Listed(closed_book, batches)
    expected, mean = by_hand(module, data, batches, per_token)
    fit(module, data, accumulate=2, callbacks=[seen])
    gradient_of = gradients(module)
    assert gradient_of.keys() == expected.keys()
    for name, gradient in expected.items():
        assert_close(gradient_of[name], gradient, rtol=1e-9, atol=1e-12, msg=name)
    metric = "train/nll_per_token" if per_token else "train/nll_per_example"
    assert seen.steps[-1][metric] == pytest.approx(mean, rel=1e-6)  # of the step, not of its last batch


@pytest.mark.parametrize("kind", [RagSequence, RagToken])
def test_label_smoothing_and_the_retriever_over_cut_batches(kind, retriever, bart):
    """float32, as what is retrieved is scored: three micro-batches of unequal size."""
    model = kind(retriever, bart, n_docs=3)
    module = rag_module(model, label_smoothing=0.1)
    batches = [PAIRS[:4], PAIRS[4:5], PAIRS[5:7]]
    data = Listed(model, batches)
    _, inputs = data.made(PAIRS[:7])
    likelihood = model(inputs, want_smoothing=True)
    (0.9 * -likelihood.logprob + 0.1 * likelihood.smoothing).mean().backward()
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
    gradient_of = gradients(module)
    metric = "train/nll_per_token" if per_token else "train/nll_per_example"
    save_file(
        gradient_of | {"loss": torch.tensor(seen.steps[-1][metric])}, folder / f"rank{rank}.safetensors"
    )


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
        saved = load_file(tmp_path / f"rank{rank}.safetensors")
        assert float(saved.pop("loss")) == pytest.approx(mean, rel=1e-6)
        assert saved.keys() == expected.keys()
        for name, gradient in expected.items():
            assert_close(saved[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


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
    likelihood = model(inputs, want_smoothing=True)
    losses = (1 - smoothing) * -likelihood.logprob + smoothing * likelihood.smoothing
    (losses.sum() / (inputs.label_mask.sum() if per_token else 2)).backward()
    expected = gradients(module)
    module.zero_grad()
    fit(module, data, callbacks=[seen])
    for name, gradient in expected.items():
        assert_close(gradients(module)[name], gradient, rtol=1e-5, atol=1e-7, msg=name)
    assert seen.steps[-1]["train/left_out"] == 1
    nll = -float(likelihood.logprob.sum().detach())
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
