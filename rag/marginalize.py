"""Section 2.1: the two marginals over retrieved passages, as pure functions of tensors.

    RAG-Sequence   p(y|x) ≈ Σ_z p_η(z|x) Π_i p_θ(y_i | x, z, y_<i)
    RAG-Token      p(y|x) ≈ Π_i Σ_z p_η(z|x) p_θ(y_i | x, z, y_<i)

Names and shapes, here and everywhere in the project:

    B  questions in a batch          doc_logprobs    (B, K)     log p_η(z|x), −inf where retrieval missed
    K  passages retrieved for each   token_logprobs  (B, K, T)  log p_θ(y_i | x, z, y_<i)
    T  target tokens, end included   token_mask      (B, T)     True where y_i is a real token, not padding
    V  vocabulary, D dimension       log p(y|x)      (B,)

Both terms of each sum stand in one line below. Reductions are done in float32 (or float64, if given that). A
question none of whose K passages exists has log p(y|x) = −inf and passes back a gradient of zero, never NaN.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# Exponentials that are computed at once over a vocabulary: on a CPU what its caches hold, 4 MB in float32.
_ON_CPU, _ELSEWHERE = 1 << 19, 1 << 28


def doc_logprobs(scores: Float[Tensor, "batch docs"]) -> Float[Tensor, "batch docs"]:
    """log p_η(z|x): the softmax over the K retrieved passages of their scores d(z)ᵀq(x) (section 2.2).

    A score of −inf marks a passage that was not found: its log-probability is −inf, its gradient zero.
    """
    scores = at_least_float32(scores)
    missed = scores == -torch.inf
    total = _logsumexp(scores, dim=1).unsqueeze(1)
    return (scores - total.masked_fill(missed, 0.0)).masked_fill(missed, -torch.inf)


def sequence_logprob(
    doc_logprobs: Float[Tensor, "batch docs"],
    token_logprobs: Float[Tensor, "batch docs tokens"],
    token_mask: Bool[Tensor, "batch tokens"],
) -> Float[Tensor, " batch"]:
    """RAG-Sequence: log Σ_z p_η(z|x) Π_i p_θ(y_i|x,z,y_<i), in nats."""
    return _logsumexp(_joint(doc_logprobs, token_logprobs, token_mask), dim=1)


def token_logprob(
    doc_logprobs: Float[Tensor, "batch docs"],
    token_logprobs: Float[Tensor, "batch docs tokens"],
    token_mask: Bool[Tensor, "batch tokens"],
) -> Float[Tensor, " batch"]:
    """RAG-Token: log Π_i Σ_z p_η(z|x) p_θ(y_i|x,z,y_<i), in nats."""
    tokens = token_logprobs.masked_fill(
        ~token_mask.unsqueeze(1), 0.0
    )  # whatever padding holds, it is not looked at
    return next_token_logprobs(doc_logprobs, tokens).masked_fill(~token_mask, 0.0).sum(dim=1)


def next_token_logprobs(
    doc_logprobs: Float[Tensor, "batch docs"],
    token_logprobs: Float[Tensor, "batch docs *rest"],
) -> Float[Tensor, "batch *rest"]:  # noqa: F821
    """log Σ_z p_η(z|x) p_θ(·|x,z,y_<i): RAG-Token's marginal for each token, or over a whole vocabulary."""
    prior = at_least_float32(doc_logprobs).reshape(*doc_logprobs.shape, *[1] * (token_logprobs.dim() - 2))
    return _logsumexp(prior + at_least_float32(token_logprobs), dim=1)


def mixed_vocabulary(
    doc_logprobs: Float[Tensor, "batch docs"],
    logits: Float[Tensor, "batch copies docs vocab"],
    normalisers: Float[Tensor, "batch copies docs"],
) -> Float[Tensor, "batch copies vocab"]:
    """`next_token_logprobs` over a whole vocabulary, from the generator's logits, without gradient.

    copies: beams or samples of a question. normalisers: log Σ_v exp(logit of v). Summed as probabilities, a few rows at
    a time; what these are too small for, as log-probabilities.
    """
    batch, copies, docs, vocabulary = logits.shape
    offsets = (at_least_float32(doc_logprobs).unsqueeze(1) - normalisers).flatten(0, 1)
    at_once = max(1, (_ON_CPU if logits.device.type == "cpu" else _ELSEWHERE) // (docs * vocabulary))
    parts = []
    for scores, offset in zip(logits.flatten(0, 1).split(at_once), offsets.split(at_once), strict=True):
        mixture = (scores + offset.unsqueeze(-1)).exp_().sum(dim=1)
        rare = mixture < 100 * torch.finfo(mixture.dtype).tiny  # float32 begins to lose digits there
        mixture.log_()
        if rare.any():
            row, token = rare.nonzero(as_tuple=True)
            mixture[row, token] = _logsumexp(scores[row, :, token] + offset[row], dim=1)
        parts.append(mixture)
    return torch.cat(parts).view(batch, copies, vocabulary)


def sequence_posterior(
    doc_logprobs: Float[Tensor, "batch docs"],
    token_logprobs: Float[Tensor, "batch docs tokens"],
    token_mask: Bool[Tensor, "batch tokens"],
) -> Float[Tensor, "batch docs"]:
    """p(z|x,y): how much of the answer each passage accounts for under RAG-Sequence.

    Sums to one over the passages; all zeros where no passage can explain the answer.
    """
    return _softmax_over_docs(_joint(doc_logprobs, token_logprobs, token_mask))


def token_posterior(
    doc_logprobs: Float[Tensor, "batch docs"],
    token_logprobs: Float[Tensor, "batch docs tokens"],
) -> Float[Tensor, "batch docs tokens"]:
    """p(z_i|x,y_i,y_<i): which passage each token came from under RAG-Token (figure 2).

    Sums to one over the passages; all zeros where no passage can explain the token.
    """
    return _softmax_over_docs(at_least_float32(doc_logprobs).unsqueeze(2) + at_least_float32(token_logprobs))


def _softmax_over_docs(logits: Float[Tensor, "batch docs *rest"]) -> Float[Tensor, "batch docs *rest"]:
    """Softmax over the passages; zeros, not NaN, where every passage is impossible."""
    impossible = (logits == -torch.inf).all(dim=1, keepdim=True)
    return torch.softmax(logits.masked_fill(impossible, 0.0), dim=1).masked_fill(impossible, 0.0)


def smoothing_loss(
    doc_logprobs: Float[Tensor, "batch docs"],
    mean_logprobs: Float[Tensor, "batch docs tokens"],
    token_mask: Bool[Tensor, "batch tokens"],
) -> Float[Tensor, " batch"]:
    """The uniform half of label smoothing, for the generator alone, in nats.

    `mean_logprobs` is the mean over the vocabulary of log p_θ(·|x,z,y_<i). It is averaged over passages with
    p_η(z|x) as a constant: smoothing knows nothing of the answer, so nothing of it may move the retriever.
    """
    prior = at_least_float32(doc_logprobs).detach().exp()
    means = at_least_float32(mean_logprobs).masked_fill(~token_mask.unsqueeze(1), 0.0).sum(dim=2)
    return -(prior * means.masked_fill(prior == 0, 0.0)).sum(dim=1)  # 0·(−inf) is 0 here


def _joint(
    doc_logprobs: Float[Tensor, "batch docs"],
    token_logprobs: Float[Tensor, "batch docs tokens"],
    token_mask: Bool[Tensor, "batch tokens"],
) -> Float[Tensor, "batch docs"]:
    """log p_η(z|x) + Σ_i log p_θ(y_i|x,z,y_<i): the log joint probability of passage and answer."""
    of_answer = at_least_float32(token_logprobs).masked_fill(~token_mask.unsqueeze(1), 0.0).sum(dim=2)
    return at_least_float32(doc_logprobs) + of_answer


def _logsumexp(values: Tensor, dim: int) -> Tensor:
    """logsumexp whose gradient is zero, not NaN, where every term is −inf."""
    if not (values.requires_grad and torch.is_grad_enabled()):  # as few passes as can be
        top = values.amax(dim=dim, keepdim=True).clamp_(min=torch.finfo(values.dtype).min)
        return (values - top).exp_().sum(dim=dim).log_().add_(top.squeeze(dim))
    impossible = (values == -torch.inf).all(dim=dim, keepdim=True)
    total = torch.logsumexp(values.masked_fill(impossible, 0.0), dim=dim)
    return total.masked_fill(impossible.squeeze(dim), -torch.inf)


def without_autocast(values: Tensor) -> torch.autocast:
    """A context in which scores and losses are computed in their own type, whatever precision the trainer has.

    Autocast would round the operands of every product to half, `.float()` or not: with DPR's inner products of around
    70, log p_η(z|x) would be off by tenths of nats.
    """
    return torch.autocast(values.device.type, enabled=False)


def wide_linear(layer: torch.nn.Linear, values: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows out"]:
    """A layer's output in the type of `values`, whatever type its weights have."""
    bias = None if layer.bias is None else layer.bias.to(values.dtype)
    return torch.nn.functional.linear(values, layer.weight.to(values.dtype), bias)


def at_least_float32(values: Tensor) -> Tensor:
    """The same values, in float32 where they are of a narrower type."""
    return values if values.dtype == torch.float64 else values.float()
