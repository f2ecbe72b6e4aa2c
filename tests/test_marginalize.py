"""Section 2.1's sums, against brute force, by hand and by finite differences (no model anywhere)."""

import itertools
import math
from dataclasses import dataclass

import pytest
import shapes
import torch
from beartype.roar import BeartypeCallHintViolation
from hypothesis import assume, given
from hypothesis import strategies as st
from jaxtyping import Float
from torch import Tensor
from torch.autograd import gradcheck
from torch.testing import assert_close

from rag import marginalize
from rag.marginalize import (
    mixed_vocabulary,
    next_token_logprobs,
    sequence_logprob,
    sequence_posterior,
    smoothing_loss,
    token_logprob,
    token_posterior,
)

INF = float("inf")


@st.composite
def inputs(draw, docs: int | None = None, tokens: int | None = None, misses: bool = True):
    """(doc_logprobs, token_logprobs, token_mask) in float64, normalised, padded on the right.

    Some passages are misses (−inf), some rows are all misses, some targets are empty.
    """
    batch = draw(st.integers(1, 3))
    docs = docs or draw(st.integers(1, 3))
    tokens = tokens or draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scores = torch.randn(batch, docs, generator=generator, dtype=torch.float64) * 3
    if misses:
        missed = [[draw(st.booleans()) for _ in range(docs)] for _ in range(batch)]
        scores = scores.masked_fill(torch.tensor(missed), -INF)
    logits = torch.randn(batch, docs, tokens, 5, generator=generator, dtype=torch.float64)
    lengths = torch.tensor([draw(st.integers(0, tokens)) for _ in range(batch)])
    return (
        marginalize.doc_logprobs(scores),
        logits.log_softmax(-1)[..., 0],
        torch.arange(tokens) < lengths[:, None],
    )


def brute_force_sequence(priors: Tensor, tokens: Tensor, mask: Tensor) -> list[float]:
    """log Σ_z p(z) Π_i p(y_i|z), with Python's floats and no logarithm before the end."""
    totals = []
    for prior, of_docs, real in zip(priors.exp().tolist(), tokens.exp().tolist(), mask.tolist(), strict=True):
        total = sum(
            p * math.prod(q for q, keep in zip(of_doc, real, strict=True) if keep)
            for p, of_doc in zip(prior, of_docs, strict=True)
        )
        totals.append(math.log(total) if total else -INF)
    return totals


def brute_force_token(priors: Tensor, tokens: Tensor, mask: Tensor) -> list[float]:
    """The sum over all K^T ways to assign a passage to each token of Π_i p(z_i) p(y_i|z_i)."""
    totals = []
    for prior, of_docs, real in zip(priors.exp().tolist(), tokens.exp().tolist(), mask.tolist(), strict=True):
        positions = [i for i, keep in enumerate(real) if keep]
        total = sum(
            math.prod(prior[z] * of_docs[z][i] for z, i in zip(assignment, positions, strict=True))
            for assignment in itertools.product(range(len(prior)), repeat=len(positions))
        )
        totals.append(math.log(total) if total else -INF)
    return totals


def exact(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# -- values --------------------------------------------------------------------------------------


def test_by_hand():
    """Two passages of 3/4 and 1/4; token probabilities (1/2, 1/2) and (1/4, 1)."""
    prior = torch.tensor([[0.75, 0.25]]).log()
    tokens = torch.tensor([[[0.5, 0.5], [0.25, 1.0]]]).log()
    mask = torch.ones(1, 2, dtype=torch.bool)
    # Sequence: 3/4·1/2·1/2 + 1/4·1/4·1 = 3/16 + 1/16. Token: (3/8 + 1/16)·(3/8 + 1/4) = 7/16·5/8.
    assert_close(sequence_logprob(prior, tokens, mask), torch.tensor([math.log(1 / 4)]))
    assert_close(token_logprob(prior, tokens, mask), torch.tensor([math.log(35 / 128)]))
    # Of the sequence the first passage explains 3/16 of 4/16; of the tokens 6/7 and 3/5.
    assert_close(sequence_posterior(prior, tokens, mask), torch.tensor([[0.75, 0.25]]))
    assert_close(token_posterior(prior, tokens), torch.tensor([[[6 / 7, 3 / 5], [1 / 7, 2 / 5]]]))


@given(inputs())
def test_sequence_equals_brute_force(case):
    assert_close(sequence_logprob(*case), exact(brute_force_sequence(*case)))


@given(inputs())
def test_token_equals_the_sum_over_all_assignments(case):
    assert_close(token_logprob(*case), exact(brute_force_token(*case)))


@given(inputs(docs=1, misses=False))
def test_one_passage_is_plain_sequence_to_sequence(case):
    _, tokens, mask = case
    plain = exact(
        [
            sum(t for t, keep in zip(row[0], real, strict=True) if keep)
            for row, real in zip(tokens.tolist(), mask.tolist(), strict=True)
        ]
    )
    assert_close(sequence_logprob(*case), plain)
    assert_close(token_logprob(*case), plain)


@given(inputs(tokens=1))
def test_one_token_makes_both_models_equal(case):
    priors, tokens, mask = case
    mask = torch.ones_like(mask)
    assert_close(sequence_logprob(priors, tokens, mask), token_logprob(priors, tokens, mask))


@given(inputs(), st.randoms(use_true_random=False))
def test_order_of_passages_changes_nothing(case, rng):
    priors, tokens, mask = case
    order = list(range(priors.shape[1]))
    rng.shuffle(order)
    for marginal in (sequence_logprob, token_logprob):
        assert_close(marginal(priors[:, order], tokens[:, order], mask), marginal(*case))
    assert_close(
        sequence_posterior(priors[:, order], tokens[:, order], mask), sequence_posterior(*case)[:, order]
    )
    assert_close(
        token_posterior(priors[:, order], tokens[:, order]), token_posterior(priors, tokens)[:, order]
    )


@given(inputs(), st.integers(1, 3), st.sampled_from([-7.0, 0.0, -INF, float("nan")]))
def test_padding_changes_nothing_whatever_it_holds(case, more, garbage):
    priors, tokens, mask = case
    longer = torch.cat([tokens, tokens.new_full((*tokens.shape[:2], more), garbage)], dim=2)
    longer_mask = torch.cat([mask, mask.new_zeros(len(mask), more)], dim=1)
    for function in (sequence_logprob, token_logprob, sequence_posterior, smoothing_loss):
        assert_close(function(priors, longer, longer_mask), function(*case), rtol=0, atol=0)


@given(inputs())
def test_an_empty_target_is_certain_where_any_passage_exists(case):
    priors, tokens, mask = case
    nothing = torch.zeros_like(mask)
    has_passage = priors.isfinite().any(dim=1)
    assert_close(sequence_logprob(priors, tokens, nothing), torch.where(has_passage, 0.0, -INF).double())
    assert_close(token_logprob(priors, tokens, nothing), torch.zeros(len(mask)).double())


# -- posteriors ----------------------------------------------------------------------------------


@given(inputs())
def test_sequence_posterior_is_bayes_rule(case):
    priors, tokens, mask = case
    joint = priors.exp() * tokens.masked_fill(~mask[:, None], 0.0).exp().prod(dim=2)
    bayes = (joint / joint.sum(dim=1, keepdim=True)).nan_to_num(0.0)
    assert_close(sequence_posterior(*case), bayes)


@given(inputs())
def test_token_posterior_is_bayes_rule(case):
    priors, tokens, _ = case
    joint = priors.exp().unsqueeze(2) * tokens.exp()
    bayes = (joint / joint.sum(dim=1, keepdim=True)).nan_to_num(0.0)
    assert_close(token_posterior(priors, tokens), bayes)


@given(inputs(misses=False))
def test_the_retrievers_gradient_is_posterior_minus_prior(case):
    """d log p(y|x) / d score_z = p(z|x,y) − p(z|x): what training teaches the retriever (section 2.4)."""
    priors, tokens, mask = case
    scores = priors.clone().requires_grad_()
    sequence_logprob(marginalize.doc_logprobs(scores), tokens, mask).sum().backward()
    assert_close(scores.grad, sequence_posterior(*case) - priors.exp())
    scores.grad = None
    token_logprob(marginalize.doc_logprobs(scores), tokens, mask).sum().backward()
    moved = (token_posterior(priors, tokens) - priors.exp().unsqueeze(2)) * mask.unsqueeze(1)
    assert_close(scores.grad, moved.sum(dim=2))


# -- gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("marginal", [sequence_logprob, token_logprob])
@pytest.mark.parametrize(("docs", "length"), [(1, 1), (1, 3), (3, 1), (3, 4)])
def test_gradients_equal_finite_differences(marginal, docs, length):
    scores = torch.randn(3, docs, dtype=torch.float64, requires_grad=True)
    tokens = torch.randn(3, docs, length, dtype=torch.float64, requires_grad=True)
    mask = torch.arange(length) < torch.tensor([length, 1, 0])[:, None]
    assert gradcheck(lambda s, t: marginal(marginalize.doc_logprobs(s), t, mask), (scores, tokens))


@pytest.mark.parametrize("marginal", [sequence_logprob, token_logprob])
def test_gradients_equal_finite_differences_beside_misses(marginal):
    """Two of four passages missed: the found ones' gradients are those of a batch that holds them alone."""
    scores = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    tokens = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    missed = torch.tensor([[False, True, False, True]] * 2)
    mask = torch.tensor([[True, True, False], [True, True, True]])

    def loss(s: Tensor, t: Tensor) -> Tensor:
        return marginal(marginalize.doc_logprobs(s.masked_fill(missed, -INF)), t, mask)

    assert gradcheck(loss, (scores, tokens))
    loss(scores, tokens).sum().backward()
    assert (scores.grad[missed] == 0).all() and (tokens.grad[missed] == 0).all()

    alone = [
        scores.detach()[~missed].view(2, 2).requires_grad_(),
        tokens.detach()[~missed].view(2, 2, 3).requires_grad_(),
    ]
    marginal(marginalize.doc_logprobs(alone[0]), alone[1], mask).sum().backward()
    assert_close(scores.grad[~missed].view(2, 2), alone[0].grad)
    assert_close(tokens.grad[~missed].view(2, 2, 3), alone[1].grad)


def test_smoothing_gradient_equals_finite_differences():
    prior = marginalize.doc_logprobs(torch.randn(2, 3, dtype=torch.float64))
    means = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True, True, False], [False, False, False, False]])
    assert gradcheck(lambda m: smoothing_loss(prior, m, mask), (means,))


def test_smoothing_by_hand_and_without_a_gradient_for_the_retriever():
    """Passages of 3/4 and 1/4, mean log-probabilities −4 and −8: 3/4·4 + 1/4·8 = 5 for each of two tokens."""
    scores = torch.tensor([[0.75, 0.25]]).log().requires_grad_()
    means = torch.tensor([[[-4.0] * 3, [-8.0] * 3]], requires_grad=True)
    mask = torch.tensor([[True, True, False]])
    loss = smoothing_loss(marginalize.doc_logprobs(scores), means, mask)
    assert_close(loss, torch.tensor([10.0]))
    loss.sum().backward()
    assert scores.grad is None
    assert_close(means.grad, torch.tensor([[[-0.75, -0.75, 0.0], [-0.25, -0.25, 0.0]]]))


# -- misses, and everything that could turn into NaN ---------------------------------------------


def test_a_miss_takes_no_part_in_the_softmax():
    scores = torch.tensor([[1.0, -INF, 2.0], [-INF, -INF, -INF]])
    expected = torch.tensor([[1.0, 2.0]]).log_softmax(1)[0]
    assert_close(marginalize.doc_logprobs(scores)[0], torch.tensor([expected[0], -INF, expected[1]]))
    assert_close(marginalize.doc_logprobs(scores)[1], torch.tensor([-INF] * 3))


def test_a_miss_gets_no_gradient_whatever_is_made_of_its_log_probability():
    scores = torch.tensor([[1.0, -INF, 2.0], [-INF, -INF, -INF]], requires_grad=True)
    marginalize.doc_logprobs(scores).nan_to_num(neginf=0.0).square().sum().backward()
    assert scores.grad is not None and scores.grad.isfinite().all()
    assert (scores.grad[scores == -INF] == 0).all() and (scores.grad[0, [0, 2]] != 0).all()


@given(
    inputs(),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    st.sampled_from(["nothing", "docs", "tokens", "padding"]),
)
def test_never_nan(case, dtype, impossible):
    """Neither value nor gradient, for any dtype, with rows of misses, impossible tokens or padding alone."""
    priors, tokens, mask = case
    if impossible == "docs":
        priors = torch.full_like(priors, -INF)
    elif impossible == "tokens":
        tokens = torch.full_like(tokens, -INF)
    elif impossible == "padding":
        mask = torch.zeros_like(mask)
        tokens = torch.full_like(tokens, float("nan"))
    scores, tokens = priors.to(dtype).requires_grad_(), tokens.to(dtype).requires_grad_()
    results = {
        "sequence": lambda p: sequence_logprob(p, tokens, mask),
        "token": lambda p: token_logprob(p, tokens, mask),
        "next": lambda p: next_token_logprobs(p, tokens.nan_to_num(neginf=-INF)),
        "sequence posterior": lambda p: sequence_posterior(p, tokens, mask),
        "token posterior": lambda p: token_posterior(p, tokens.nan_to_num(neginf=-INF)),
        "smoothing": lambda p: smoothing_loss(p, tokens, mask),
    }
    for name, function in results.items():
        scores.grad = tokens.grad = None
        value = function(marginalize.doc_logprobs(scores))
        assert not value.isnan().any(), name
        value.masked_fill(value == -INF, 0.0).sum().backward()
        for given_to in (scores, tokens):
            assert given_to.grad is None or given_to.grad.isfinite().all(), name


@given(inputs())
def test_an_impossible_batch_gives_minus_infinity_and_a_gradient_of_zero(case):
    _, tokens, mask = case
    scores = torch.full(tokens.shape[:2], -INF, dtype=torch.float64, requires_grad=True)
    tokens = tokens.requires_grad_()
    value = sequence_logprob(marginalize.doc_logprobs(scores), tokens, mask)
    assert (value == -INF).all()
    value.sum().backward()
    assert (scores.grad == 0).all() and (tokens.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("marginal", [sequence_logprob, token_logprob])
def test_half_precision_inputs_are_summed_in_float32(marginal, dtype):
    """4,096 tokens of about −1 nat: more than either half type can count in steps of one (2,048 and 256)."""
    prior = torch.tensor([[0.5, 0.5]]).log().to(dtype)
    tokens = torch.full((1, 2, 4096), -1.0009765625).to(dtype)  # 1 + 2⁻¹⁰: exact in float16, 1 in bfloat16
    mask = torch.ones(1, 4096, dtype=torch.bool)
    value = marginal(marginalize.doc_logprobs(prior), tokens, mask)
    assert value.dtype == torch.float32
    assert_close(value, tokens[0, 0, :1].float() * 4096, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_scores_are_normalised_in_float32(dtype):
    scores = torch.randn(4, 50).to(dtype)
    value = marginalize.doc_logprobs(scores)
    assert value.dtype == torch.float32
    assert_close(value, scores.double().log_softmax(1).float())
    assert (
        smoothing_loss(value.to(dtype), torch.zeros(4, 50, 2, dtype=dtype), torch.ones(4, 2).bool()).dtype
        == torch.float32
    )


@given(inputs(misses=False))
def test_a_vocabulary_of_next_tokens_is_a_distribution(case):
    """RAG-Token's marginal over a whole vocabulary (B, K, V) sums to one."""
    priors, tokens, _ = case
    over_vocabulary = tokens.log_softmax(dim=2)
    assert_close(
        next_token_logprobs(priors, over_vocabulary).exp().sum(dim=1), torch.ones(len(priors)).double()
    )


@given(
    inputs(),
    st.integers(1, 3),
    st.sampled_from([1.0, 30.0, 200.0]),
    st.sampled_from([torch.float16, torch.float32, torch.float64]),
    st.booleans(),
)
def test_a_vocabulary_mixed_from_logits_is_the_mixture_of_probabilities(
    case, copies, spread, dtype, forbidden
):
    """Logits near each other and so far apart that exponentials vanish; some tokens impossible."""
    priors, tokens, _ = case
    assume(not (priors == -INF).all(dim=1).any())
    draw = torch.Generator().manual_seed(tokens.numel())
    shape = (len(priors), copies, priors.shape[1], 7)
    logits = (spread * torch.randn(shape, generator=draw, dtype=torch.float64)).to(dtype)
    if forbidden:
        logits[..., 3] = -INF
    logits = logits.to(torch.promote_types(dtype, torch.float32))
    normalisers = logits.logsumexp(dim=-1)
    expected = next_token_logprobs(priors, logits.double().log_softmax(dim=-1).transpose(1, 2))
    mixed = mixed_vocabulary(priors.to(logits.dtype), logits, normalisers)
    assert mixed.dtype == logits.dtype
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype != torch.float64 else {"rtol": 1e-12, "atol": 1e-12}
    assert_close(mixed.double(), expected, **tolerance)


def test_shapes_are_checked_while_the_tests_run():
    """Of functions, methods of every kind, properties and dataclasses; the axes of each call are its own."""
    Rows = Float[Tensor, "rows 2"]

    class Some:
        def method(self, x: Rows, y: Rows) -> None: ...

        @classmethod
        def of_class(cls, x: Rows | None) -> None: ...

        @staticmethod
        def static(x: Rows) -> Rows:
            return x[:, :1]

        @property
        def value(self) -> Rows:
            return torch.zeros(2)

    @dataclass(frozen=True)
    class Held:
        x: Rows
        y: Rows

    for name in ("method", "of_class", "static", "value"):
        setattr(Some, name, shapes.checked(vars(Some)[name]))
    shapes.checked(Held)
    two, three, flat = torch.zeros(2, 2), torch.zeros(3, 2), torch.zeros(2)
    Some().method(two, two), Some().method(three, three), Some.of_class(None), Held(two, two)
    for wrong in (
        lambda: Some().method(two, three),
        lambda: Some().method(two, y=three),
        lambda: Some.of_class(flat),
        lambda: Some.static(two),
        lambda: Some().value,
        lambda: Held(two, three),
    ):
        with pytest.raises(BeartypeCallHintViolation):
            wrong()
    with pytest.raises(BeartypeCallHintViolation):
        sequence_logprob(torch.zeros(2, 3), torch.zeros(2, 4, 5), torch.ones(2, 5, dtype=torch.bool))
