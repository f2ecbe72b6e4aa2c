"""The retriever's losses beside the marginal: values by brute force, what has a gradient, what is impossible."""

import math
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from rag import marginalize
from rag.errors import UserError
from rag.objectives import adist, emdr2, loop, pdist, replug

B, K, T = 3, 4, 5


@pytest.fixture
def world():
    """Scores of K passages, log-probabilities of T tokens, of which the last are padding (NaN: nobody looks there)."""
    scores = torch.randn(B, K, dtype=torch.float64).requires_grad_()
    tokens = -torch.rand(B, K, T, dtype=torch.float64)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2, [True] + [False] * 4])
    return scores, tokens.masked_fill(~mask.unsqueeze(1), math.nan).requires_grad_(), mask


def softmax(values):
    total = sum(math.exp(value) for value in values)
    return [math.exp(value) / total for value in values]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def by_hand(name, scores, answers):
    """One question: scores and l(z), lists of K numbers."""
    p = softmax(scores)
    if name == "emdr2":
        return -math.log(sum(a * math.exp(b) for a, b in zip(p, answers, strict=True)))
    if name == "pdist":
        return kl(softmax([each / 0.5 for each in answers]), p)
    if name == "replug":
        return kl(
            softmax([each / 0.3 for each in scores]), softmax([math.exp(each) / 0.2 for each in answers])
        )
    left = []
    for out in range(len(p)):
        rest = [z for z in range(len(p)) if z != out]
        left.append(math.log(sum(p[z] * math.exp(answers[z]) for z in rest) / sum(p[z] for z in rest)))
    return kl(softmax([-each / 0.1 for each in left]), p)


LOSSES = {
    "emdr2": emdr2,
    "pdist": partial(pdist, temperature=0.5),
    "loop": partial(loop, temperature=0.1),
    "replug": partial(replug, gamma=0.3, beta=0.2),
}


@pytest.mark.parametrize("name", LOSSES)
def test_values_by_brute_force(name, world):
    scores, tokens, mask = world
    losses = LOSSES[name](marginalize.doc_logprobs(scores), tokens, mask)
    for b in range(B):
        answers = [sum(tokens[b, z, i].item() for i in range(T) if mask[b, i]) for z in range(K)]
        assert losses[b].item() == pytest.approx(by_hand(name, scores[b].tolist(), answers), abs=1e-12), b


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_reaches_the_retriever_alone_and_equals_finite_differences(name, world):
    scores, tokens, mask = world
    loss = LOSSES[name](marginalize.doc_logprobs(scores), tokens, mask).sum()
    loss.backward()
    assert tokens.grad is None and scores.grad.abs().max() > 1e-3

    def value(moved):  # `loop`'s target holds the prior as a constant, which moves in a finite difference
        if name == "loop":
            kept = marginalize.doc_logprobs(scores.detach())
            joint = kept + tokens.detach().masked_fill(~mask.unsqueeze(1), 0).sum(dim=2)
            others = ~torch.eye(K, dtype=torch.bool)
            left = [x.unsqueeze(1).masked_fill(~others, -torch.inf).logsumexp(dim=2) for x in (joint, kept)]
            q = (-(left[0] - left[1]) / 0.1).softmax(dim=1)
            return (q * (q.log() - moved.log_softmax(dim=1))).sum()
        return LOSSES[name](marginalize.doc_logprobs(moved), tokens.detach(), mask).sum()

    assert_close(value(scores.detach()), loss.detach())
    for b in range(B):
        for z in range(K):
            step = torch.zeros(B, K, dtype=torch.float64)
            step[b, z] = 1e-6
            slope = (value(scores.detach() + step) - value(scores.detach() - step)) / 2e-6
            assert scores.grad[b, z].item() == pytest.approx(slope.item(), abs=1e-7)


def test_emdr2_teaches_the_retriever_what_the_marginal_does(world):
    """The same gradient as RAG-Sequence's marginal, which teaches the generator too."""
    scores, tokens, mask = world
    (ours,) = torch.autograd.grad(emdr2(marginalize.doc_logprobs(scores), tokens, mask).sum(), scores)
    marginal = -marginalize.sequence_logprob(marginalize.doc_logprobs(scores), tokens, mask).sum()
    theirs, of_generator = torch.autograd.grad(marginal, [scores, tokens])
    assert_close(ours, theirs)
    assert of_generator.nan_to_num().abs().max() > 0


def test_attention_is_distilled_as_a_constant():
    scores = torch.tensor([[1.0, 0.0, -1.0]], requires_grad=True)
    attention = torch.tensor([[0.2, 0.5, 0.1]], requires_grad=True)
    loss = adist(marginalize.doc_logprobs(scores), attention, temperature=0.1)
    q, p = softmax([2.0, 5.0, 1.0]), softmax([1.0, 0.0, -1.0])
    assert loss.item() == pytest.approx(kl(q, p), abs=1e-6)
    loss.sum().backward()
    assert attention.grad is None
    assert_close(scores.grad, torch.tensor([p]) - torch.tensor([q]))  # of a cross-entropy


def test_a_distribution_that_is_reached_costs_nothing():
    answers = torch.tensor([[[-1.0], [-2.0], [-0.5]]])
    mask = torch.ones(1, 1, dtype=torch.bool)
    prior = marginalize.doc_logprobs(answers[:, :, 0])
    assert pdist(prior, answers, mask).item() == pytest.approx(0, abs=1e-6)
    same = marginalize.doc_logprobs(answers[:, :, 0].exp())
    assert replug(same, answers, mask, beta=1.0).item() == pytest.approx(
        0, abs=1e-6
    )  # γ is the retriever's scale


@pytest.mark.parametrize("name", LOSSES)
def test_passages_that_were_not_found_take_no_part(name, world):
    """Two of them: as if K were smaller. All: a loss and a gradient of zero."""
    scores, tokens, mask = world
    missed = torch.tensor([[False, True, False, True], [False] * 4, [True] * 4])
    prior = marginalize.doc_logprobs(scores.masked_fill(missed, -torch.inf))
    losses = LOSSES[name](prior, tokens, mask)
    few = LOSSES[name](marginalize.doc_logprobs(scores[:1, ::2]), tokens[:1, ::2], mask[:1])
    assert_close(losses[0], few[0])
    assert losses[1].item() == pytest.approx(
        LOSSES[name](marginalize.doc_logprobs(scores), tokens, mask)[1].item()
    )
    assert losses[2] == 0
    losses.sum().backward()
    assert scores.grad.isfinite().all() and (scores.grad[missed] == 0).all()


@pytest.mark.parametrize("name", ["pdist", "loop", "replug"])
def test_an_answer_without_a_chance_gives_no_nan(name, world):
    scores, tokens, mask = world
    impossible = tokens.detach().clone()
    impossible[0, 1:, 0] = -torch.inf  # one passage alone explains it
    impossible[1, :, 0] = -torch.inf  # none does
    losses = LOSSES[name](marginalize.doc_logprobs(scores), impossible, mask)
    losses.sum().backward()
    assert losses.isfinite().all() and scores.grad.isfinite().all()


def test_one_passage_has_nothing_to_be_compared_with():
    one = torch.zeros(1, 1, requires_grad=True)
    loss = loop(marginalize.doc_logprobs(one), torch.tensor([[[-3.0]]]), torch.ones(1, 1, dtype=torch.bool))
    assert loss.item() == 0


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_temperatures_are_above_zero(world, value):
    scores, tokens, mask = world
    with pytest.raises(UserError, match="retriever_loss.beta=.*: give a number above 0"):
        replug(marginalize.doc_logprobs(scores), tokens, mask, beta=value)
