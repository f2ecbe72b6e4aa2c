"""Several answers read the same context: what a context's cross-attention is made of is there once for all of them.

Its keys and values depend on the encoder's states alone. Beams, samples and hypotheses of a question are rows of the
decoder's batch, one after the other for each context, and transformers wants a copy of the keys for each row. Here
the rows of a context become queries of one row instead: nothing is copied, and the keys are read once a step.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

from jaxtyping import Bool, Float
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_of_shared_contexts"


def shared_attention(
    module: Any,
    query: Float[Tensor, "rows heads tokens width"],
    key: Float[Tensor, "contexts heads length width"],
    value: Float[Tensor, "contexts heads length width"],
    attention_mask: Tensor | None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """transformers' attention, where rows/contexts successive rows of one token read the same context."""
    copies = len(query) // len(key)
    if copies == 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    queries = query.squeeze(2).unflatten(0, (len(key), copies)).transpose(1, 2)
    read, _ = sdpa_attention_forward(module, queries, key, value, attention_mask, **settings)
    return read.flatten(0, 1).unsqueeze(1), None


AttentionInterface.register(NAME, shared_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def can_share(decoder: Any, cache: Any) -> bool:
    """Whether this decoder's cross-attention can be exchanged, and its cache grows by concatenation."""
    attention = getattr(getattr(decoder, "config", None), "_attn_implementation", None)
    return (
        attention == "sdpa"
        and isinstance(cache, EncoderDecoderCache)
        and type(cache.cross_attention_cache) is DynamicCache
    )


def decode(
    decoder: Any,
    tokens: Tensor,
    states: Float[Tensor, "contexts length width"],
    mask: Bool[Tensor, "contexts length"],
    cache: EncoderDecoderCache,
) -> Float[Tensor, "rows wide"]:
    """The decoder's states after one more token of each row; rows are in the order of their contexts.

    tokens: (rows, 1), as many for each context; at first, while the cache is empty, (contexts, tokens).
    """
    with _shared(decoder):
        return decoder(
            input_ids=tokens,
            encoder_hidden_states=states,
            encoder_attention_mask=mask[:, None, None, :],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]


@contextmanager
def _shared(decoder: Any) -> Iterator[None]:
    before = decoder.config._attn_implementation
    decoder.config._attn_implementation = NAME
    try:
        yield
    finally:
        decoder.config._attn_implementation = before


@dataclass(frozen=True)
class CrossKeys:
    """Cross-attention's keys and values of some contexts, (contexts, heads, length, width/heads) in each layer."""

    layers: list[tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, cache: EncoderDecoderCache) -> Self:
        """Those a search left in its cache."""
        layers: list[Any] = cache.cross_attention_cache.layers
        return cls([(layer.keys, layer.values) for layer in layers])

    def __getitem__(self, contexts: slice) -> "CrossKeys":
        """Those of some contexts: a view."""
        return CrossKeys([(keys[contexts], values[contexts]) for keys, values in self.layers])

    @property
    def numbers_per_token(self) -> int:
        """How many numbers stand for one token."""
        return sum(keys[0, :, 0].numel() + values[0, :, 0].numel() for keys, values in self.layers)

    def cache(self) -> EncoderDecoderCache:
        """A cache in which nothing has been decoded yet."""
        known = []
        for keys, values in self.layers:
            layer = DynamicLayer()
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values  # `update` would copy them
            known.append(layer)
        cross = DynamicCache()
        cross.layers = known
        return EncoderDecoderCache(DynamicCache(), cross)


def take_rows(cache: EncoderDecoderCache, rows: Tensor) -> None:
    """Go on from these rows of what was decoded so far; contexts stay where they are."""
    cache.self_attention_cache.reorder_cache(rows)  # type: ignore[arg-type]
