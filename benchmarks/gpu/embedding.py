"""Part d: passages a second through a BERT-base passage encoder, from tokens to vectors, in bfloat16.

Passages have 130 tokens on average. Compared are

    sorted     passages of like length together, padded to the longest, as rag/index/vectors.py has them encoded: under
               autocast, with weights in bfloat16, and with weights in float16, as rag/encoders/reduced.py has them
    packed     no padding: passages end to end, attention within each by torch's kernel for variable lengths

with the encoder's own forward pass over as many tokens in rows that are all of one length (its limit), and with what
the card's matrix products alone would allow.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import world
from benchmarks.flop import encoder_flop
from benchmarks.gpu.setting import Setting, release
from benchmarks.machine import timed

TOKENS, SPREAD, SHORTEST, LONGEST = 130, 20, 16, 256
RATE_AIM, LIMIT_AIM = 10_000, 0.9
AGREES = 5e-2  # packed beside sorted, |difference| / |vector|, both in bfloat16


def token_rows(passages: int, vocabulary: int) -> list[list[int]]:
    """Passages of random words, about as long as Wikipedia's of 100 words."""
    draw = np.random.default_rng(world.SEED)
    lengths = draw.normal(TOKENS, SPREAD, passages).round().clip(SHORTEST, LONGEST).astype(int)
    return [draw.integers(4, vocabulary, length).tolist() for length in np.sort(lengths)]


def batches(rows: list[list[int]], tokens: int) -> Iterator[list[list[int]]]:
    """Rows of like length, as many as have about `tokens` tokens together."""
    start = 0
    while start < len(rows):
        count = max(1, tokens // len(rows[start]))
        yield rows[start : start + count]
        start += count


def padded(rows: list[list[int]], device: str) -> dict[str, Tensor]:
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
        mask[number, : len(row)] = 1
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def distance(vectors: Tensor, exact: Tensor) -> float:
    """The largest 1 − cosine of a vector with what it should be."""
    return float((1 - F.cosine_similarity(vectors.double(), exact.double())).max())


class Packed:
    """The tokens of some passages end to end, and where each begins."""

    def __init__(self, rows: list[list[int]], device: str):
        self.lengths = [len(row) for row in rows]
        self.longest = max(self.lengths)
        self.ids = torch.tensor([token for row in rows for token in row], device=device)
        self.positions = torch.cat([torch.arange(length) for length in self.lengths]).to(device)
        ends = torch.tensor([0, *self.lengths]).cumsum(0)
        self.starts = ends.to(device, torch.int32)
        self.first = ends[:-1].to(device)


def attend(query: Tensor, key: Tensor, value: Tensor, packed: Packed) -> Tensor:
    """Attention of each passage within itself; (tokens, heads, width) in and out.

    On a GPU torch's kernel for variable lengths; elsewhere, where there is none, one passage after the other.
    """
    if query.is_cuda:
        from torch.nn.attention.varlen import varlen_attn

        starts, longest = packed.starts, packed.longest
        attended: Any = varlen_attn(query, key, value, starts, starts, longest, longest)
        return attended
    parts = (each.transpose(0, 1).split(packed.lengths, dim=1) for each in (query, key, value))
    one_by_one = [F.scaled_dot_product_attention(q, k, v) for q, k, v in zip(*parts, strict=True)]
    return torch.cat(one_by_one, dim=1).transpose(0, 1)


def packed_states(bert: Any, packed: Packed) -> Tensor:
    """BERT's states of [CLS] of each passage, as its own forward gives them, without padding."""
    ids, positions = packed.ids.unsqueeze(0), packed.positions.unsqueeze(0)
    types = torch.zeros_like(ids)  # as forward has them where none are given
    states = bert.embeddings(input_ids=ids, position_ids=positions, token_type_ids=types).squeeze(0)
    for layer in bert.encoder.layer:
        attention = layer.attention.self
        heads = attention.num_attention_heads, attention.attention_head_size
        query, key, value = (
            part(states).unflatten(1, heads) for part in (attention.query, attention.key, attention.value)
        )
        attended = attend(query, key, value, packed).flatten(1)
        states = layer.attention.output(attended, states)
        states = layer.output(layer.intermediate(states), states)
    return states[packed.first]


def run(setting: Setting) -> int:
    device = setting.device
    passages, tokens = (24, 1_024) if setting.dry else (16_384, 1 << 16)
    _, measured = setting.peaks()
    size = world.SIZES["tiny" if setting.dry else "base"]
    torch.manual_seed(world.SEED)
    encoder: Any = world.passage_encoder(size)
    encoder.to(device)
    rows = token_rows(passages, encoder.config.vocab_size)
    groups = list(batches(rows, tokens))
    sorted_batches = [padded(group, device) for group in groups]
    packed_batches = [Packed(group, device) for group in groups]
    count = passages * TOKENS // max(TOKENS, tokens) or 1
    full = torch.randint(4, encoder.config.vocab_size, (max(1, tokens // TOKENS), TOKENS), device=device)
    flop = encoder_flop(size, torch.tensor([len(row) for row in rows])) / passages

    def measure(run: Callable[[], Any], of: int) -> float:
        """Passages a second."""
        run()
        return of / min(timed(run, device) for _ in range(3))

    @torch.inference_mode()
    def with_padding() -> list[Tensor]:
        return [encoder(**batch).pooler_output for batch in sorted_batches]

    @torch.inference_mode()
    def under_autocast() -> None:
        for batch in sorted_batches:
            with torch.autocast(device, torch.bfloat16):
                encoder(**batch)

    @torch.inference_mode()
    def without_padding() -> list[Tensor]:
        return [packed_states(encoder.ctx_encoder.bert_model, batch) for batch in packed_batches]

    @torch.inference_mode()
    def limit() -> None:
        for _ in range(count):
            encoder(input_ids=full)

    rates = {"sorted, autocast": measure(under_autocast, passages)}
    with torch.inference_mode():
        exact = encoder(**sorted_batches[0]).pooler_output
        with torch.autocast(device, torch.bfloat16):
            far = {"autocast": distance(encoder(**sorted_batches[0]).pooler_output, exact)}
    weights = {name: weight.clone() for name, weight in encoder.state_dict().items()}
    for name, dtype in (("float16 weights", torch.float16), ("bfloat16 weights", torch.bfloat16)):
        encoder.float().load_state_dict(weights)
        encoder.to(dtype)
        rates[f"sorted, {name}"] = measure(with_padding, passages)
        with torch.inference_mode():
            far[name] = distance(encoder(**sorted_batches[0]).pooler_output, exact)
    del weights
    setting.tell("1 − cosine to float32's vectors, the largest", far)
    most = measure(limit, count * len(full))
    setting.tell(
        "the encoder's limit: rows of 130 tokens",
        {"passages_per_second": most, "of_measured_products": most * flop / measured},
    )
    difference = 0.0
    try:
        rates["packed, bfloat16 weights"] = measure(without_padding, passages)
        ours, theirs = torch.cat(without_padding()).float(), torch.cat(with_padding()).float()
        difference = float(((ours - theirs).norm(dim=1) / theirs.norm(dim=1)).max())
        setting.tell(
            "packed beside sorted, largest difference of a vector",
            {"error": difference},
            aim=f"≤ {AGREES:g}",
            reached=difference <= AGREES,
            must=True,
        )
    except (ImportError, RuntimeError, NotImplementedError) as error:
        setting.skip("packed", f"torch {torch.__version__} on this card: {str(error).splitlines()[0]}")
    for name, rate in rates.items():
        setting.tell(
            name,
            {
                "passages_per_second": rate,
                "of_limit": rate / most,
                "of_measured_products": rate * flop / measured,
            },
            {"passages": passages, "tokens": TOKENS},
            f"≥ {RATE_AIM:,} a second, ≥ {LIMIT_AIM} of the limit",
            rate >= RATE_AIM and rate >= LIMIT_AIM * most,
        )
    release()
    return int(difference > AGREES)
