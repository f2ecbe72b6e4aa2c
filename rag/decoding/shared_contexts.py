"""Several answers read the same context: what is known of a context is there once for all of them.

A causal model shares the keys and values of its prompts by itself (rag/generators/shared_prompts.py). Of an encoder and
a decoder it is what cross-attention is made of.

Its keys and values depend on the encoder's states alone. Beams, samples and hypotheses of a question are rows of the
decoder's batch, one after the other for each context, and transformers wants a copy of the keys for each row. Here
the rows of a context become queries of one row instead: nothing is copied, and the keys are read once a step.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, Self

from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rag.generators.causal import CausalGenerator
from rag.generators.seq2seq import Generator

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


class SharedContexts(Protocol):
    """Contexts that were read once, and rows of tokens that go on from them: as many for each, in their order."""

    def decode(self, tokens: Int[Tensor, "rows 1"]) -> Float[Tensor, "rows wide"]:
        """The states after one more token of each row."""
        ...

    def take_rows(self, rows: Int[Tensor, " more"]) -> None:
        """Go on from these rows, each of the same context as before; there may be more or fewer than before."""
        ...

    def afresh(self, some: slice) -> "SharedContexts":
        """Some of the contexts, with nothing decoded yet."""
        ...

    def numbers_for(self, tokens: int) -> int:
        """How many numbers are held for a context while `tokens` tokens go on from it."""
        ...


def share(
    generator: Generator, states: Tensor, mask: Bool[Tensor, "contexts length"], cache: Any
) -> SharedContexts | None:
    """The contexts as rows may share them; None where each row needs a copy. cache: an empty one of transformers'."""
    if isinstance(generator, CausalGenerator):
        return generator.shared_prompts(states, mask)
    decoder = generator.model.get_decoder()
    return SharedCrossAttention(decoder, states, mask, cache) if can_share(decoder, cache) else None


def can_share(decoder: Any, cache: Any) -> bool:
    """Whether this decoder's cross-attention can be exchanged, and its cache grows by concatenation."""
    attention = getattr(getattr(decoder, "config", None), "_attn_implementation", None)
    return (
        attention == "sdpa"
        and isinstance(cache, EncoderDecoderCache)
        and type(cache.cross_attention_cache) is DynamicCache
    )


@dataclass(frozen=True)
class SharedCrossAttention:
    """The states of an encoder, read by the rows of a decoder."""

    decoder: Any
    states: Float[Tensor, "contexts length width"]
    mask: Bool[Tensor, "contexts length"]
    cache: EncoderDecoderCache

    def decode(self, tokens: Int[Tensor, "rows 1"]) -> Float[Tensor, "rows wide"]:
        with _shared(self.decoder):
            return self.decoder(
                input_ids=tokens,
                encoder_hidden_states=self.states,
                encoder_attention_mask=self.mask[:, None, None, :],
                past_key_values=self.cache,
                use_cache=True,
            ).last_hidden_state[:, -1]

    def take_rows(self, rows: Int[Tensor, " more"]) -> None:
        self.cache.self_attention_cache.reorder_cache(rows)  # type: ignore[arg-type]

    def afresh(self, some: slice) -> "SharedCrossAttention":
        keys = CrossKeys.of(self.cache)[some]
        return SharedCrossAttention(self.decoder, self.states[some], self.mask[some], keys.cache())

    def numbers_for(self, tokens: int) -> int:
        return tokens * CrossKeys.of(self.cache).numbers_per_token


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
