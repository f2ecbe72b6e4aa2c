"""How much the generator attends to each context, which attention distillation teaches the retriever.

    a(x, z) = mean over layers, heads, the answer's tokens t and the context's tokens i of  s · q_t · k_i

the scores of cross-attention before their softmax, as with Izacard and Grave's (2021) reader; the loss is
rag/objectives.py's adist. Each context is read alone here, so that its attention after the softmax sums to one whatever
stands in it; scores compare across contexts. The mean of products is the product of means: nothing of the size
tokens × length is held.

The attention of transformers' models is exchanged for a while, as in rag/decoding/shared_contexts.py, for one that
notes its queries and keys. Cross-attention's keys are those that the decoder's cache keeps of the encoder's states.
"""

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, EncoderDecoderCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rag import marginalize
from rag.errors import UserError

NAME = "sdpa_that_notes"
# How many numbers of keys and values are held at once, over all layers: 256 MiB in float32.
KEYS_AT_ONCE = 1 << 26


@runtime_checkable
class ScoresContexts(Protocol):
    """A generator that says how much it attends to each context."""

    def context_scores(
        self,
        states: Float[Tensor, "rows length width"],
        mask: Bool[Tensor, "rows length"],
        labels: Int[Tensor, "rows tokens"],
        label_mask: Bool[Tensor, "rows tokens"],
    ) -> Float[Tensor, " rows"]:
        """a(x, z) of each context while the labels are written, averaged over the labels of the mask; a constant."""
        ...

    def check_context_scores(self) -> None:
        """UserError where its model does not let its attention be seen."""
        ...


@dataclass(frozen=True)
class _Noted:
    query: Float[Tensor, "rows heads tokens width"]
    key: Float[Tensor, "rows key_heads length width"]
    scaling: float


_notes: ContextVar[list[_Noted] | None] = ContextVar("notes", default=None)


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """transformers' attention, which notes what it is made of."""
    if (notes := _notes.get()) is not None:
        notes.append(_Noted(query, key, query.shape[-1] ** -0.5 if scaling is None else scaling))
    read, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **settings)
    return read, None


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, sdpa_mask)


@torch.no_grad()
def cross_attention_scores(
    model: Any,
    inputs: Int[Tensor, "rows tokens"],
    asked: Bool[Tensor, "rows tokens"],
    states: Float[Tensor, "rows length width"],
    mask: Bool[Tensor, "rows length"],
) -> Float[Tensor, " rows"]:
    """a(x, z) of a model of transformers' over each row's states, over the inputs asked for.

    Raises UserError where its cross-attention is not computed through transformers' interface.
    """
    decoder = model.get_decoder()
    config: Any = getattr(decoder, "config", None)
    if getattr(config, "_attn_implementation", None) is None:
        raise _hidden(model)
    layers = int(getattr(config, "num_hidden_layers", 1))
    rows = max(1, KEYS_AT_ONCE // max(1, 2 * layers * states[0].numel()))
    pieces = zip(inputs.split(rows), asked.split(rows), states.split(rows), mask.split(rows), strict=True)
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        scores = [_of_some(decoder, *piece) for piece in pieces]
    finally:
        config._attn_implementation = before
    if any(each is None for each in scores):
        raise _hidden(model)
    return torch.cat(scores)  # type: ignore[arg-type]


def _of_some(
    decoder: Any,
    inputs: Int[Tensor, "rows tokens"],
    asked: Bool[Tensor, "rows tokens"],
    states: Float[Tensor, "rows length width"],
    mask: Bool[Tensor, "rows length"],
) -> Float[Tensor, " rows"] | None:
    """None where no layer's keys are the cache's."""
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    notes: list[_Noted] = []
    token = _notes.set(notes)
    try:
        decoder(
            input_ids=inputs,
            encoder_hidden_states=states,
            encoder_attention_mask=mask.long(),
            past_key_values=cache,
            use_cache=True,
        )
    finally:
        _notes.reset(token)
    of_states = [getattr(layer, "keys", None) for layer in cache.cross_attention_cache.layers]
    scores = [_mean(one, asked, mask) for one in notes if any(one.key is keys for keys in of_states)]
    return torch.stack(scores).mean(dim=0) if scores else None


def _mean(
    noted: _Noted, asked: Bool[Tensor, "rows tokens"], mask: Bool[Tensor, "rows length"]
) -> Float[Tensor, " rows"]:
    """Over heads, the tokens asked for and the context's; whatever stands at padding is left out, not multiplied."""

    def mean(values: Tensor, real: Tensor) -> Tensor:
        real = real[:, None, :, None]
        values = marginalize.at_least_float32(values).masked_fill(~real, 0.0)
        return values.sum(dim=2) / real.sum(dim=2).clamp(min=1)

    query, key = mean(noted.query, asked), mean(noted.key, mask)
    with marginalize.without_autocast(query):
        query = query.unflatten(1, (key.shape[1], -1)).mean(dim=2)  # heads that share their keys
        return noted.scaling * (query * key).sum(dim=2).mean(dim=1)


def _hidden(model: Any) -> UserError:
    return UserError(
        f"retriever_loss=adist distils the generator's attention, which a model of type {model.config.model_type} does "
        "not show: take retriever_loss=pdist, emdr2, loop or replug, or a generator such as BART"
    )
