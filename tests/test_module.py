"""Section 2.4: the loss that is minimised, who learns at which rate, and the alarm of a collapsed retriever."""

import numpy as np
import pytest
import torch
from conftest import QUESTIONS
from torch.testing import assert_close

from rag import objectives
from rag.decoding.settings import Decoding
from rag.errors import UserError
from rag.model import ClosedBook, RagSequence, RagToken
from rag.retrievers.dense import DenseRetriever
from rag.retrievers.protocol import Retrieved, Retriever
from rag.tasks.example import Example
from rag.training.datamodule import Shuffled, evaluation_batches, sample
from rag.training.module import COLLAPSED_STEPS, RagModule
from rag.training.optimization import Optimization

TARGETS = ["the town", "a river"]
RETRIEVER_LOSSES = [objectives.emdr2, objectives.pdist, objectives.loop, objectives.replug]


class Recorded(RagModule):
    """The module outside a trainer: what it logs is kept, of a step with one batch."""

    def log(self, name, value, **_):
        self.__dict__.setdefault("logged", {})[name] = float(torch.as_tensor(value).detach())

    def log_dict(self, values, **_):
        for name, value in values.items():
            self.log(name, value)

    def mean_loss(self, batch):
        """The step's loss, which is logged."""
        loss = self.training_step(batch, 0)
        sums = {name: float(value) for name, value in self._sums.items()}
        self._sums = {}
        self.log_step(sums)
        return loss / sums["weight"]


def module(model, **settings) -> Recorded:
    return Recorded(model, Optimization(), Decoding(max_new_tokens=4), **settings).eval()


def batch(model, questions=None):
    asked = list(questions or QUESTIONS[:2])
    examples = [Example(question, (target,)) for question, target in zip(asked, TARGETS, strict=True)]
    return examples, model.prepare(asked, TARGETS)


@pytest.mark.parametrize("kind", [RagSequence, RagToken])
def test_the_loss_is_the_mean_negative_log_likelihood(kind, retriever, bart):
    model = kind(retriever, bart, n_docs=3)
    examples, inputs = batch(model)
    rag_module = module(model)
    loss = rag_module.mean_loss((examples, inputs))
    assert_close(loss, -model(inputs).logprob.mean())
    assert rag_module.logged["train/nll_per_example"] == pytest.approx(float(loss.detach()), rel=1e-6)
    tokens = int(inputs.label_mask.sum())
    assert rag_module.logged["train/nll_per_token"] == pytest.approx(
        float(loss.detach()) * 2 / tokens, rel=1e-5
    )


def test_label_smoothing_mixes_in_the_generators_uniform_term(retriever, bart):
    model = RagToken(retriever, bart, n_docs=3)
    examples, inputs = batch(model)
    likelihood = model(inputs, want_smoothing=True)
    expected = (0.9 * -likelihood.logprob + 0.1 * likelihood.smoothing).mean()
    assert_close(module(model, label_smoothing=0.1).mean_loss((examples, inputs)), expected)


def test_per_token_divides_by_the_tokens_of_the_batch(bart):
    model = ClosedBook(bart)
    examples, inputs = batch(model)
    loss = module(model, per_token=True).mean_loss((examples, inputs))
    assert_close(loss, -model(inputs).logprob.sum() / inputs.label_mask.sum())


def test_entropy_and_distinct_passages_are_logged(retriever, bart):
    model = RagToken(retriever, bart, n_docs=3)
    examples, inputs = batch(model)
    rag_module = module(model)
    rag_module.training_step((examples, inputs), 0)
    likelihood = model(inputs)
    prior = likelihood.doc_logprobs.detach().exp().double().numpy()
    assert rag_module.logged["train/retrieval_entropy"] == pytest.approx(
        -(prior * np.log(prior)).sum(1).mean(), rel=1e-5
    )
    distinct = len(set(likelihood.retrieved.rows.flatten().tolist()))
    assert rag_module.logged["train/distinct_passages"] == pytest.approx(distinct / 6)


class SamePassages(torch.nn.Module, Retriever):
    """A retriever that has collapsed: rows 0, 1, 2 for every question."""

    trainable = False

    def __init__(self, index):
        super().__init__()
        self.index = index

    def forward(self, questions, n_docs):
        rows = np.tile(np.arange(n_docs), (len(questions), 1))
        return Retrieved(rows, torch.zeros(len(questions), n_docs))


def test_a_collapsed_retriever_raises_the_alarm(index, bart):
    model = RagToken(SamePassages(index), bart, n_docs=3)
    rag_module = module(model)
    examples, inputs = batch(model)
    for _ in range(COLLAPSED_STEPS - 1):
        rag_module.training_step((examples, inputs), 0)  # a warning here would be an error
    with pytest.warns(
        UserWarning, match="for 10 steps all questions of a batch retrieved the same 3 passages"
    ):
        rag_module.training_step((examples, inputs), 0)


def test_a_learning_rate_for_each_part(retriever, bart):
    model = RagSequence(retriever, bart)
    settings = Optimization(
        lr=1e-3, question_encoder_lr=1e-5, weight_decay=0.1, warmup_steps=2, schedule="linear"
    )
    made = settings.configure(model.trained_parts(), max_steps=10)
    groups = made["optimizer"].param_groups
    assert [group["initial_lr"] for group in groups] == [1e-3, 1e-3, 1e-5, 1e-5]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0, 0.1, 0.0]
    assert all(p.dim() > 1 for p in groups[0]["params"]) and all(p.dim() <= 1 for p in groups[1]["params"])
    rates = []
    for _ in range(10):
        rates.append(groups[0]["lr"])
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()
    # Two steps up, eight down: (0, 1/2, 1, 7/8, …) of the rate.
    assert rates == pytest.approx(
        [1e-3 * r for r in (0, 0.5, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125)]
    )


def test_a_frozen_encoder_has_no_group(question_encoder, index, bart):
    frozen = DenseRetriever(question_encoder, index, trainable=False)
    made = Optimization().configure([*bart.trained_parts(), *frozen.trained_parts()], max_steps=10)
    assert len(made["optimizer"].param_groups) == 2


def test_every_pass_is_a_new_permutation_known_from_the_step_alone():
    order = Shuffled(7, seed=3)
    first, second = order.take(0, 7), order.take(7, 7)
    assert sorted(first) == sorted(second) == list(range(7)) and first != second
    assert Shuffled(7, seed=3).take(5, 4) == [*first[5:], *second[:2]]
    assert Shuffled(7, seed=4).take(0, 7) != first


def test_a_sample_is_drawn_from_the_whole_file_by_its_seed():
    """Ten of a thousand ordered items: in order, none twice, not all from the beginning, another seed others."""
    chosen = sample(range(1000), 10, seed=1)
    assert len(set(chosen)) == 10 and chosen == sorted(chosen)
    assert chosen[-1] > 500
    assert sample(range(1000), 10, seed=1) == chosen != sample(range(1000), 10, seed=2)
    assert sample(range(4), None) == sample(range(4), 9) == [0, 1, 2, 3]


def test_evaluation_batches_keep_every_example_in_order(bart):
    model = ClosedBook(bart)
    examples = [Example(f"question {n}", ("yes", "no")) for n in range(5)]
    batches = evaluation_batches(examples, model.prepare, 2)
    assert [e.question for n in range(len(batches)) for e in batches[n][0]] == [e.question for e in examples]
    assert [len(batches[n][1]) for n in range(len(batches))] == [2, 2, 1]


# -- other losses for the retriever ---------------------------------------------------------------


@pytest.mark.parametrize("kind", [RagSequence, RagToken])
@pytest.mark.parametrize("loss", RETRIEVER_LOSSES, ids=lambda each: each.__name__)
def test_a_retrievers_loss_beside_the_generators(kind, loss, retriever, bart):
    """Each part has the gradient of its own loss alone."""
    model = kind(retriever, bart, n_docs=3)
    examples, inputs = batch(model)
    rag_module = module(model, retriever_loss=loss, retriever_weight=0.5)
    total = rag_module.mean_loss((examples, inputs))
    total.backward()
    likelihood = model(inputs)
    of_generator = -model.marginal(
        likelihood.doc_logprobs.detach(), likelihood.token_logprobs, inputs.label_mask
    ).mean()
    of_retriever = loss(likelihood.doc_logprobs, likelihood.token_logprobs, inputs.label_mask).mean()
    assert_close(total, of_generator + 0.5 * of_retriever)
    assert rag_module.logged["train/retriever_loss"] == pytest.approx(of_retriever.item(), rel=1e-5)
    assert rag_module.logged["train/nll_per_example"] == pytest.approx(
        -likelihood.logprob.mean().item(), rel=1e-5
    )
    for part, own_loss in ((bart, of_generator), (retriever.question_encoder, 0.5 * of_retriever)):
        weights = [weight for weight in part.parameters() if weight.requires_grad and weight.grad is not None]
        gradients = torch.autograd.grad(own_loss, weights, allow_unused=True, retain_graph=True)
        for weight, gradient in zip(weights, gradients, strict=True):
            assert_close(
                weight.grad, torch.zeros_like(weight) if gradient is None else gradient, rtol=1e-3, atol=1e-6
            )
        assert any(gradient is not None and gradient.abs().max() > 1e-6 for gradient in gradients)


def test_a_retrievers_loss_alone_freezes_the_generator(retriever, bart):
    model = RagToken(retriever, bart, n_docs=3)
    examples, inputs = batch(model)
    rag_module = module(model, retriever_loss=objectives.emdr2, generator_loss=False)
    loss = rag_module.mean_loss((examples, inputs))
    likelihood = model(inputs)
    assert_close(
        loss, objectives.emdr2(likelihood.doc_logprobs, likelihood.token_logprobs, inputs.label_mask).mean()
    )
    assert not any(weight.requires_grad for weight in bart.parameters())
    assert not any(each.training for each in rag_module.train().model.generator.modules())
    assert retriever.question_encoder.training


def test_a_retrievers_loss_without_anything_to_teach_is_refused(question_encoder, index, retriever, bart):
    frozen = RagToken(DenseRetriever(question_encoder, index, trainable=False), bart)
    for model in (frozen, ClosedBook(bart)):
        with pytest.raises(UserError, match="nothing of the retriever is trained"):
            module(model, retriever_loss=objectives.pdist)
    with pytest.raises(UserError, match="generator_loss=false leaves no loss"):
        module(RagToken(retriever, bart), generator_loss=False)
    with pytest.raises(UserError, match="retriever_weight=0: give a number above 0"):
        module(RagToken(retriever, bart), retriever_loss=objectives.pdist, retriever_weight=0)
