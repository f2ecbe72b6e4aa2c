"""The keys and values of prompts, computed once, and rows of tokens that go on from them.

A causal language model reads a prompt as an encoder reads a context: what it makes of it, keys and values in each
layer, depends on nothing that comes after. Beams, samples and hypotheses of a prompt are tokens of one row here, each
of which sees the prompt and its own beginning: a tree of tokens, with a mask that says who descends from whom. The
prompt's keys are there once for all of them, and going on from other beams changes the mask alone.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, Cache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_of_shared_prompts"
FULL, SLIDING = "full_attention", "sliding_attention"  # the names of transformers' layer_types
STEPS_AHEAD = 16  # room in a layer's memory is made for so many steps at once


def grouped_attention(
    module: Any,
    query: Float[Tensor, "rows heads tokens width"],
    key: Float[Tensor, "rows shared length width"],
    value: Float[Tensor, "rows shared length width"],
    attention_mask: Float[Tensor, "rows 1 tokens length"],
    scaling: float | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """transformers' attention without copies of keys that several heads share: their queries stand side by side."""
    rows, heads, tokens, width = query.shape
    groups = heads // key.shape[1]
    if groups == 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **settings)
    read = torch.nn.functional.scaled_dot_product_attention(
        query.reshape(rows, key.shape[1], groups * tokens, width),
        key,
        value,
        attn_mask=attention_mask.repeat(1, 1, groups, 1),
        scale=scaling,
    )
    return read.reshape(rows, heads, tokens, -1).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, grouped_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


class _Layer(DynamicLayer):
    """One layer's keys and values: some that were there before, and room for more."""

    def __init__(self, keys: Tensor, values: Tensor):
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values  # views of the prompt's, until more come
        self._room: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        assert self.keys is not None and self.values is not None
        start = self.keys.shape[2]
        end = start + key_states.shape[2]
        if self._room is None or self._room[0].shape[2] < end:
            size = end + (STEPS_AHEAD - 1) * key_states.shape[2]
            self._room = _with_room(self.keys, size), _with_room(self.values, size)
        for room, new in zip(self._room, (key_states, value_states), strict=True):
            room[:, :, start:end] = new
        self.keys, self.values = self._room[0][:, :, :end], self._room[1][:, :, :end]
        return self.keys, self.values


def _with_room(held: Tensor, size: int) -> Tensor:
    room = held.new_empty((*held.shape[:2], size, held.shape[3]))
    room[:, :, : held.shape[2]] = held
    return room


class SharedPrompts:
    """Prompts whose keys and values are known, and as many rows of tokens for each that go on from them.

    body: a causal model without its output layer. keys: of each prompt keys and values in turn, layer by layer.
    lengths: tokens of each prompt; its keys begin at the first place.
    """

    def __init__(
        self,
        body: Any,
        keys: Float[Tensor, "prompts layers heads length width"],
        lengths: Int[Tensor, " prompts"],
    ):
        self.body, self.keys, self.lengths = body, keys, lengths
        self.cache = Cache(
            layers=[_Layer(keys[:, 2 * layer], keys[:, 2 * layer + 1]) for layer in range(keys.shape[1] // 2)]
        )
        self.steps = 0
        # Which tokens behind the prompts each row descends from, and at what step these came.
        self.ancestors = torch.zeros(len(lengths), 1, 0, dtype=torch.bool, device=lengths.device)
        self.step_of = lengths.new_zeros(0)

    def decode(self, tokens: Int[Tensor, "rows 1"]) -> Float[Tensor, "rows wide"]:
        return self.decode_all(tokens).squeeze(1)

    @torch.no_grad()
    def decode_all(self, tokens: Int[Tensor, "rows more"]) -> Float[Tensor, "rows more wide"]:
        """The states after each of some more tokens of each row."""
        prompts, more = len(self.lengths), tokens.shape[1]
        rows = len(tokens) // prompts
        own = torch.eye(rows, dtype=torch.bool, device=tokens.device).repeat_interleave(more, 0)
        own = own.repeat_interleave(more, 1) & torch.ones(
            more, more, dtype=torch.bool, device=tokens.device
        ).tril().repeat(rows, rows)
        ancestors = self.ancestors.repeat_interleave(more, dim=1)
        seen = torch.cat([ancestors, own.expand(prompts, -1, -1)], dim=2)
        steps = torch.arange(self.steps, self.steps + more, device=tokens.device).repeat(rows)
        self.step_of = torch.cat([self.step_of, steps])
        self.steps += more
        hidden = go_on(
            self.body, tokens.view(prompts, rows * more), self.cache, self.lengths, seen, steps, self.step_of
        )
        self.ancestors = seen[:, more - 1 :: more]
        return hidden.reshape(len(tokens), more, -1)

    def take_rows(self, rows: Int[Tensor, " more"]) -> None:
        self.ancestors = self.ancestors.flatten(0, 1)[rows].unflatten(0, (len(self.lengths), -1))

    def afresh(self, some: slice) -> "SharedPrompts":
        return SharedPrompts(self.body, self.keys[some], self.lengths[some])

    def numbers_for(self, tokens: int) -> int:
        _, layers, heads, length, width = self.keys.shape
        return (length + tokens) * layers * heads * width


def go_on(
    body: Any,
    tokens: Int[Tensor, "prompts more"],
    cache: Cache,
    lengths: Int[Tensor, " prompts"],
    seen: Bool[Tensor, "prompts more new"],
    steps: Int[Tensor, " more"],
    step_of: Int[Tensor, " new"],
) -> Float[Tensor, "prompts more wide"]:
    """The states of tokens behind prompts, whose keys `cache` holds and is given theirs.

    seen: which of the tokens behind the prompt, those of before included, each one sees. steps: how far behind the
    prompt each stands; step_of: the same of everything that may be seen.
    """
    first: Any = cache.layers[0]
    prompt = first.get_seq_length() - seen.shape[2] + tokens.shape[1]
    places = torch.arange(prompt, device=tokens.device)
    of_prompt = (places < lengths.unsqueeze(1)).unsqueeze(1).expand(-1, tokens.shape[1], -1)
    seen = torch.cat([of_prompt, seen], dim=2)
    positions = lengths.unsqueeze(1) + steps
    held_at = torch.cat([places.expand(len(tokens), -1), lengths.unsqueeze(1) + step_of], dim=1)
    distance = positions.unsqueeze(2) - held_at.unsqueeze(1)
    with _grouped(body):
        return body(
            input_ids=tokens,
            attention_mask=_masks(body.config, seen, distance, body.dtype),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state


def _masks(
    config: Any,
    seen: Bool[Tensor, "rows more all"],
    distance: Int[Tensor, "rows more all"],
    dtype: torch.dtype,
) -> Tensor | dict[str, Tensor]:
    """What is added to the scores of attention, of each kind of layer where there are several."""

    def added(kind: str | None) -> Tensor:
        visible = seen if kind == FULL else seen & (distance < config.sliding_window)
        zeros = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        return zeros.masked_fill_(~visible, torch.finfo(dtype).min).unsqueeze(1)

    kinds = layer_kinds(config)
    if len(kinds) == 1:
        return added(kinds[0])
    return {kind: added(kind) for kind in kinds}


def layer_kinds(config: Any) -> Sequence[str]:
    """The kinds of attention in a model's layers, each once."""
    if named := getattr(config, "layer_types", None):
        return sorted(set(named))
    return [FULL] if getattr(config, "sliding_window", None) is None else [SLIDING]


@contextmanager
def _grouped(body: Any) -> Iterator[None]:
    before = body.config._attn_implementation
    if before == "sdpa":
        body.config._attn_implementation = NAME
    try:
        yield
    finally:
        body.config._attn_implementation = before
