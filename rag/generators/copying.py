"""A decoder that also copies: the pointer–generator of See et al. (2017) over the context.

    p_θ(y | x, z, y_<t) = g · softmax(E · LN(W d_t))_y + (1 − g) · Σ_i a_i [x_i = y]        g = σ(w_g · d_t + b_g)
    a = softmax over the context of  W_q d_t · W_k h_i / √width + m₁ [x_{i−1} = y_{t−1}]
                                                               + m₂ [x_{i−2} x_{i−1} = y_{t−2} y_{t−1}]

d_t is the decoder's state, h_i the encoder's, x_i the context's tokens; m₁ and m₂ say how much of copying is going on
where the last one or two tokens were copied from. It is a distribution over the vocabulary, so that the marginals over
passages are those of any generator.

Its scores ask for more than d_t: for the context's tokens and what is copied of each. Both travel in the states
themselves, so that all that handles states (batches, beams, recomputation, transformers' `generate`) handles them:

    encoder   (rows, length, width + digits)                    h_i, then the token x_i in digits of base 256
    decoder   (rows, tokens, width + length · (1 + digits))     d_t, then log a, then the digits of all x_i

Digits below 256 are exact in every floating-point type, token ids are not.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rag import marginalize
from rag.generators.output_layer import OutputLayer

BASE = 256  # the largest run of whole numbers from zero that bfloat16 tells apart


def digits_of(vocabulary: int) -> int:
    """How many digits a token id of this vocabulary has."""
    return max(1, math.ceil(math.log(max(vocabulary, 2), BASE)))


def to_digits(tokens: Int[Tensor, "*rows"], digits: int) -> Int[Tensor, "*rows digits"]:
    """The lowest digit first."""
    powers = BASE ** torch.arange(digits, device=tokens.device)
    return tokens.unsqueeze(-1) // powers % BASE


def from_digits(written: Float[Tensor, "*rows digits"]) -> Int[Tensor, "*rows"]:
    powers = BASE ** torch.arange(written.shape[-1], device=written.device)
    return (written.detach().float().round().long() * powers).sum(dim=-1)


class CopyAttention(nn.Module):
    """log a: how much of each token of the context is copied at each step.

    follow_one, follow_two: what m₁ and m₂ start at.
    """

    def __init__(self, width: int, follow_one: float = 4.0, follow_two: float = 2.0):
        super().__init__()
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.follow = nn.Parameter(torch.tensor([follow_one, follow_two]))

    def forward(
        self,
        decoded: Float[Tensor, "rows tokens width"],
        keys: Float[Tensor, "rows length width"],
        mask: Bool[Tensor, "rows length"],
        context: Int[Tensor, "rows length"],
        last_two: Int[Tensor, "rows tokens 2"],
    ) -> Float[Tensor, "rows tokens length"]:
        """keys: `self.key` of the encoder's states. last_two: y_{t−1} and y_{t−2} of each step; −1 for none, and for
        the start token, which nothing was copied as. Padding gets the lowest finite number."""
        scores = self.query(decoded) @ keys.transpose(1, 2) / math.sqrt(decoded.shape[2])
        before = nn.functional.pad(context, (2, 0), value=-2)
        one = before[:, None, 1:-1] == last_two[:, :, :1]
        two = one & (before[:, None, :-2] == last_two[:, :, 1:])
        follow = marginalize.at_least_float32(self.follow)
        scores = marginalize.at_least_float32(scores) + one * follow[0] + two * follow[1]
        lowest = torch.finfo(scores.dtype).min
        return scores.masked_fill(~mask.unsqueeze(1), lowest).log_softmax(dim=2)


def last_two(
    tokens: Int[Tensor, "rows tokens"], start_token: int, before: Int[Tensor, " rows"] | None = None
) -> Int[Tensor, "rows tokens 2"]:
    """What `CopyAttention` compares with, of the decoder's input; `before`: its token ahead of `tokens`, −1 for none.

    The start token can be one that contexts hold, as [CLS]: at the first place of all it is nothing that was copied.
    """
    first = torch.full_like(tokens[:, :1], -1) if before is None else before.unsqueeze(1)
    one = torch.cat([first, tokens], dim=1)
    if before is None:
        one[:, 1] = torch.where(one[:, 1] == start_token, -1, one[:, 1])
    return torch.stack([one[:, 1:], one[:, :-1]], dim=2)


class MixtureHead(nn.Module):
    """W, the layer norm and the gate. `gate_bias`: what b_g starts at; at −2, an eighth comes from the vocabulary."""

    def __init__(self, width: int, eps: float = 1e-12, gate_bias: float = -2.0):
        super().__init__()
        self.project = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.gate = nn.Linear(width, 1)
        self.gate_bias = gate_bias


@torch.no_grad()
def start_copying(attention: CopyAttention, head: MixtureHead) -> None:
    """The starting weights: W, W_q and W_k are the identity, so that a token is compared with itself."""
    for linear in (attention.query, attention.key, head.project):
        nn.init.eye_(linear.weight)
    nn.init.zeros_(head.project.bias)
    nn.init.zeros_(head.gate.weight)
    nn.init.constant_(head.gate.bias, head.gate_bias)


class CopyOutputLayer(OutputLayer):
    """log p_θ of the mixture from the decoder's states, as wide as the head of this file says.

    vocabulary: E, which makes logits of LN(W d). Scores are normalised already: their normaliser's logarithm is zero.
    """

    def __init__(self, head: MixtureHead, vocabulary: OutputLayer, width: int):
        super().__init__(self._all, vocabulary.vocabulary)
        self._head, self._vocabulary, self._width = head, vocabulary, width
        self._digits = digits_of(vocabulary.vocabulary)

    def _parts(
        self, hidden: Float[Tensor, "*rows wide"]
    ) -> tuple[
        Float[Tensor, "*rows width"],
        Float[Tensor, "*rows 1"],
        Float[Tensor, "*rows length"],
        Int[Tensor, "*rows length"],
    ]:
        """LN(W d), log g, log (1 − g) a, and the context's tokens."""
        length = (hidden.shape[-1] - self._width) // (1 + self._digits)
        decoded, attention, written = hidden.split([self._width, length, length * self._digits], dim=-1)
        decoded = decoded.to(self._head.project.weight.dtype)
        gate = marginalize.at_least_float32(self._head.gate(decoded))
        query = self._head.norm(self._head.project(decoded))
        copied = nn.functional.logsigmoid(-gate) + marginalize.at_least_float32(attention)
        tokens = from_digits(written.unflatten(-1, (length, self._digits)))
        return query, nn.functional.logsigmoid(gate), copied, tokens

    def _all(self, hidden: Tensor) -> Tensor:
        query, generate, copied, tokens = self._parts(hidden)
        logits = marginalize.at_least_float32(self._vocabulary.logits(query))
        generated = logits.log_softmax(dim=-1) + generate
        mass = torch.zeros_like(generated).scatter_add(-1, tokens, copied.exp())
        nothing = mass == 0
        return torch.logaddexp(
            generated, mass.masked_fill(nothing, 1.0).log().masked_fill(nothing, -torch.inf)
        )

    def target_logprobs(
        self, hidden: Float[Tensor, "rows width"], labels: Int[Tensor, " rows"], want_mean: bool = False
    ) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"] | None]:
        if want_mean:  # of the mixture's logarithm: all of it is needed
            return super().target_logprobs(hidden, labels, want_mean)
        query, generate, copied, tokens = self._parts(hidden)
        generated, _ = self._vocabulary.target_logprobs(query, labels)
        same = tokens == labels.unsqueeze(-1)
        held = same.any(dim=-1)
        # A row whose context lacks the word has no term to sum; zeros keep NaN out of its gradient.
        of_word = copied.masked_fill(~same, -torch.inf).masked_fill(~held.unsqueeze(-1), 0.0)
        of_word = of_word.logsumexp(dim=-1).masked_fill(~held, -torch.inf)
        return torch.logaddexp(generated + generate.squeeze(-1), of_word), None

    @torch.no_grad()
    def normalised(
        self, hidden: Float[Tensor, "rows width"], into: Float[Tensor, "more vocab"] | None = None
    ) -> tuple[Float[Tensor, "rows vocab"], Float[Tensor, " rows"]]:
        query, generate, copied, tokens = self._parts(hidden)
        scores, normalisers = self._vocabulary.normalised(query, into)
        scores.add_(generate - normalisers.unsqueeze(-1))
        mass = torch.zeros_like(scores).scatter_add_(-1, tokens, copied.exp()).gather(-1, tokens)
        # Words that stand twice in a context are written twice, the same each time.
        scores.scatter_(-1, tokens, torch.logaddexp(scores.gather(-1, tokens), mass.log_()))
        return scores, torch.zeros_like(normalisers)

    @torch.no_grad()
    def log_normalisers(self, hidden: Float[Tensor, "rows width"]) -> Float[Tensor, " rows"]:
        return hidden.new_zeros(len(hidden), dtype=torch.promote_types(hidden.dtype, torch.float32))

    @torch.no_grad()
    def token_logits(
        self, hidden: Float[Tensor, "*rows width"], tokens: Int[Tensor, "*rows"]
    ) -> Float[Tensor, "*rows"]:
        flat = hidden.flatten(0, -2)
        return self.target_logprobs(flat, tokens.flatten())[0].view(tokens.shape)
