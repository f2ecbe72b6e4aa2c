"""Losses that teach the retriever beside the marginal of section 2.1, as pure functions of tensors.

With p(z) = p_η(z|x), the retriever's, and l(z) = Σ_i log p_θ(y_i|x,z,y_<i), the generator's, over the K passages of a
question; sg(·) is a constant, through which no gradient goes:

    emdr2    −log Σ_z p(z) sg(exp l(z))                                   Singh et al. 2021, equation 5
    pdist    KL(sg(q) ‖ p),  q = softmax of l(z) / τ                      Izacard et al. 2022 (Atlas), section 2.2
    loop     KL(sg(q) ‖ p),  q = softmax of −l(without z) / τ             the same; see `loop`
    adist    KL(sg(q) ‖ p),  q = softmax of a(z) / τ                      Izacard and Grave 2021, section 3.2
    replug   KL(p_γ ‖ sg(q)),  q = softmax of exp l(z) / β                Shi et al. 2023 (REPLUG), section 4

`marginal`, RAG's own, is marginalize.py's: its gradient reaches both. Here the generator's side is a constant
throughout, and the gradient reaches the retriever alone. a(z) is how much the generator attends to a passage
(rag/generators/attention.py).

A loss names what it takes, among GIVEN, by its parameters: `takes` reads them, so that one of your own needs no more
than such a function.

Shapes and names are marginalize.py's. A passage that was not found (−inf) has no part in either distribution; a
question none of whose passages was found has a loss of zero. All are in float32 (or float64, if given that), in nats.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rag import marginalize
from rag.errors import UserError
from rag.marginalize import at_least_float32

# What a training step has for a loss: shapes as below.
GIVEN = ("doc_logprobs", "token_logprobs", "token_mask", "attention")


def takes(loss: Callable[..., Any]) -> tuple[str, ...]:
    """Which of GIVEN a loss takes. Raises UserError for one that asks for anything else, or for none of them."""
    needed, taken = [], []
    for name, parameter in inspect.signature(loss).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if name in GIVEN and parameter.kind != parameter.POSITIONAL_ONLY:
            taken.append(name)
        elif parameter.default is parameter.empty:
            needed.append(name)
    if needed or not taken:
        raise UserError(
            f"a retriever_loss that takes {', '.join(needed) or 'nothing'} is none: its parameters are among "
            f"{', '.join(GIVEN)}, and others have defaults"
        )
    return tuple(taken)


def answer_logprobs(
    token_logprobs: Float[Tensor, "batch docs tokens"], token_mask: Bool[Tensor, "batch tokens"]
) -> Float[Tensor, "batch docs"]:
    """l(z) = Σ_i log p_θ(y_i|x,z,y_<i), as a constant."""
    tokens = at_least_float32(token_logprobs.detach())
    return tokens.masked_fill(~token_mask.unsqueeze(1), 0.0).sum(dim=2)


def emdr2(
    doc_logprobs: Float[Tensor, "batch docs"],
    token_logprobs: Float[Tensor, "batch docs tokens"],
    token_mask: Bool[Tensor, "batch tokens"],
) -> Float[Tensor, " batch"]:
    """−log Σ_z p(z) sg(p_θ(y|x,z)): RAG-Sequence's marginal, whose gradient reaches the retriever alone."""
    logprob = marginalize.sequence_logprob(doc_logprobs, token_logprobs.detach(), token_mask)
    return torch.where(_found(doc_logprobs).any(dim=1), -logprob, 0.0)


def pdist(
    doc_logprobs: Float[Tensor, "batch docs"],
    token_logprobs: Float[Tensor, "batch docs tokens"],
    token_mask: Bool[Tensor, "batch tokens"],
    temperature: float = 1.0,
) -> Float[Tensor, " batch"]:
    """Perplexity distillation: the posterior of the passages under a uniform prior, which p is to equal."""
    return _distil(doc_logprobs, answer_logprobs(token_logprobs, token_mask), temperature)


def loop(
    doc_logprobs: Float[Tensor, "batch docs"],
    token_logprobs: Float[Tensor, "batch docs tokens"],
    token_mask: Bool[Tensor, "batch tokens"],
    temperature: float = 1.0,
) -> Float[Tensor, " batch"]:
    """Leave-one-out perplexity distillation: a passage is worth what the answer loses without it.

    Atlas's reader sees all passages at once, and reads the others again for each that is left out. Here each is read
    alone, and what is left is RAG-Sequence's marginal over the others, l(without z) = log Σ_{z'≠z} p(z') exp l(z') −
    log Σ_{z'≠z} p(z'), a constant. One passage alone has nothing to be compared with: its loss is zero.
    """
    prior = at_least_float32(doc_logprobs.detach())
    joint = prior + answer_logprobs(token_logprobs, token_mask)
    others = ~torch.eye(prior.shape[1], dtype=torch.bool, device=prior.device)

    def without(values: Float[Tensor, "batch docs"]) -> Float[Tensor, "batch docs"]:
        return values.unsqueeze(1).masked_fill(~others, -torch.inf).logsumexp(dim=2)

    several = (_found(doc_logprobs).sum(dim=1) > 1).unsqueeze(1)
    left = torch.where(several, without(joint) - without(prior), 0.0)
    return _distil(doc_logprobs, -left, temperature)


def adist(
    doc_logprobs: Float[Tensor, "batch docs"],
    attention: Float[Tensor, "batch docs"],
    temperature: float = 1.0,
) -> Float[Tensor, " batch"]:
    """Attention distillation. attention: a(z), scores of cross-attention averaged over layers, heads and tokens; a
    constant."""
    return _distil(doc_logprobs, at_least_float32(attention.detach()), temperature)


def replug(
    doc_logprobs: Float[Tensor, "batch docs"],
    token_logprobs: Float[Tensor, "batch docs tokens"],
    token_mask: Bool[Tensor, "batch tokens"],
    gamma: float = 1.0,
    beta: float = 0.1,
) -> Float[Tensor, " batch"]:
    """KL from the retriever, p_γ = softmax of log p(z) / γ, to the generator, in the direction opposite to pdist's.

    The generator's side is a softmax of the answer's probability, as in the paper, not of its logarithm. The paper's γ
    of .1 divides bare cosines, as the retriever's scale does for p(z) here: 1 leaves that as it is.
    """
    _check(gamma=gamma, beta=beta)
    was_found = _found(doc_logprobs)
    retriever = _log_softmax(at_least_float32(doc_logprobs) / gamma, was_found)
    generator = _log_softmax(answer_logprobs(token_logprobs, token_mask).exp() / beta, was_found)
    return _divergence(retriever, generator, was_found)


def _distil(
    doc_logprobs: Float[Tensor, "batch docs"], scores: Float[Tensor, "batch docs"], temperature: float
) -> Float[Tensor, " batch"]:
    """KL(sg(softmax of scores / τ) ‖ p)."""
    _check(temperature=temperature)
    was_found = _found(doc_logprobs)
    return _divergence(
        _log_softmax(scores / temperature, was_found),
        _log_softmax(at_least_float32(doc_logprobs), was_found),
        was_found,
    )


def _divergence(
    one: Float[Tensor, "batch docs"],
    other: Float[Tensor, "batch docs"],
    was_found: Bool[Tensor, "batch docs"],
) -> Float[Tensor, " batch"]:
    """KL(one ‖ other) from log-probabilities; 0·log 0 is 0."""
    counts = was_found & (one > -torch.inf)
    one, other = one.masked_fill(~counts, 0.0), other.masked_fill(~counts, 0.0)
    return (one.exp() * (one - other)).masked_fill(~counts, 0.0).sum(dim=1)


def _found(doc_logprobs: Float[Tensor, "batch docs"]) -> Bool[Tensor, "batch docs"]:
    return doc_logprobs.detach() != -torch.inf


def _log_softmax(
    scores: Float[Tensor, "batch docs"], was_found: Bool[Tensor, "batch docs"]
) -> Float[Tensor, "batch docs"]:
    """Over the passages that were found. A score of ±∞, where the generator gives an answer no chance at all, counts
    as the largest number there is."""
    limits = torch.finfo(scores.dtype)
    scores = scores.clamp(limits.min, limits.max).masked_fill(~was_found, -torch.inf)
    return scores.masked_fill(~was_found.any(dim=1, keepdim=True), 0.0).log_softmax(dim=1)


def _check(**temperatures: float) -> None:
    for name, value in temperatures.items():
        if not 0 < value < float("inf"):
            raise UserError(f"retriever_loss.{name}={value}: give a number above 0")
