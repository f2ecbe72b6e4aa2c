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

from collections.abc import Sequence

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
    doc_logprobs: Float[Tensor, "batch docs"], logits: Float[Tensor, "batch copies docs vocab"]
) -> tuple[Float[Tensor, "batch copies vocab"], Float[Tensor, "batch copies docs"]]:
    """`next_token_logprobs` over a whole vocabulary, from the generator's logits, without gradient.

    copies: beams or samples of a question. Returned beside it: log Σ_v exp(logit of v), what normalises p_θ. One
    exponential a logit, of a few rows at a time: that is most of what a step of decoding does beside its products.
    """
    batch, copies, docs, vocabulary = logits.shape
    logits = at_least_float32(logits)
    if docs == 1:  # nothing is mixed
        normalisers = log_normalisers(logits)
        marginal = logits - (normalisers - at_least_float32(doc_logprobs).unsqueeze(1)).unsqueeze(-1)
        return marginal.squeeze(2), normalisers
    rows = logits.flatten(0, 1)
    prior = at_least_float32(doc_logprobs).repeat_interleave(copies, dim=0)
    at_once = max(1, (_ON_CPU if rows.device.type == "cpu" else _ELSEWHERE) // (docs * vocabulary))
    slices = zip(prior.split(at_once), rows.split(at_once), strict=True)
    marginals, normalisers = zip(*(_mixed(*some) for some in slices), strict=True)
    return _joined(marginals).view(batch, copies, -1), _joined(normalisers).view(batch, copies, -1)


def _mixed(
    prior: Float[Tensor, "rows docs"], logits: Float[Tensor, "rows docs vocab"]
) -> tuple[Float[Tensor, "rows vocab"], Float[Tensor, "rows docs"]]:
    """As probabilities; what these are too small for is summed again as log-probabilities."""
    top = logits.amax(dim=-1, keepdim=True)
    likelihood = (logits - top).exp_()
    total = likelihood.sum(dim=-1, keepdim=True)
    mixture = likelihood.mul_(prior.exp().unsqueeze(-1) / total).sum(dim=1)
    normalisers = top + total.log_()
    rare = mixture < 100 * torch.finfo(mixture.dtype).tiny  # beyond, float32 loses its last digits
    mixture.log_()
    if rare.any():
        row, token = rare.nonzero(as_tuple=True)
        mixture[row, token] = _logsumexp(
            logits[row, :, token] - normalisers[row].squeeze(-1) + prior[row], dim=1
        )
    return mixture, normalisers.squeeze(-1)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def log_normalisers(logits: Float[Tensor, "*rows vocab"]) -> Float[Tensor, "*rows"]:
    """log Σ_v exp(logit of v), without gradient; several times as fast on a CPU as torch.logsumexp."""
    rows = logits.flatten(0, -2)
    if rows.device.type != "cpu":
        return rows.logsumexp(dim=-1).view(logits.shape[:-1])
    top = rows.amax(dim=-1, keepdim=True)
    total = torch.empty_like(top)
    some = max(1, _ON_CPU // rows.shape[1])
    for own, highest, into in zip(rows.split(some), top.split(some), total.split(some), strict=True):
        torch.sum((own - highest).exp_(), dim=-1, keepdim=True, out=into)
    return total.log_().add_(top).view(logits.shape[:-1])


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


def at_least_float32(values: Tensor) -> Tensor:
    """The same values, in float32 where they are of a narrower type."""
    return values if values.dtype == torch.float64 else values.float()
