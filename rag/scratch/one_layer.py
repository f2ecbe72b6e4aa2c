"""DPR encoders of one layer, for a small part of the layer's cost: nobody reads the other tokens' states than [CLS]'s.

The query of [CLS] meets the keys as q·(W_k x) = (W_kᵀ q)·x, and W_v is applied to the attended mean: H inner products a
token instead of several D × D matrices. The weights are those of a DPR encoder and open as one, too, with the same
vectors; encoder.json beside them names these classes.
"""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rag.encoders.dpr import Encoder, PassageEncoder, QuestionEncoder
from rag.encoders.named_class import write_class


class OneLayer(Encoder):
    """What both sides share."""

    def forward(
        self,
        input_ids: Int[Tensor, "batch length"],
        attention_mask: Int[Tensor, "batch length"] | Bool[Tensor, "batch length"],
        token_type_ids: Int[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch dim"]:
        return one_layer_state(self.bert, input_ids, attention_mask, token_type_ids)


class OneLayerQuestionEncoder(OneLayer, QuestionEncoder):
    """q(x)."""

    def save_pretrained(self, folder: str | Path) -> None:
        super().save_pretrained(folder)
        write_class(folder, question=type(self).from_pretrained)


class OneLayerPassageEncoder(OneLayer, PassageEncoder):
    """d(z)."""

    def save_pretrained(self, folder: str | Path) -> None:
        super().save_pretrained(folder)
        write_class(folder, passage=type(self).from_pretrained)


def one_layer_state(
    bert: Any,
    input_ids: Int[Tensor, "batch length"],
    attention_mask: Int[Tensor, "batch length"] | Bool[Tensor, "batch length"],
    token_type_ids: Int[Tensor, "batch length"] | None,
) -> Float[Tensor, "batch dim"]:
    """The state of [CLS] in a BERT of one layer, without a projection behind it."""
    layer = bert.encoder.layer[0]
    attention = layer.attention.self
    heads = (attention.num_attention_heads, attention.attention_head_size)
    states = bert.embeddings(input_ids=input_ids, token_type_ids=token_type_ids)
    query = attention.query(states[:, 0]).unflatten(1, heads)
    sought = torch.einsum("bhs,hsd->bdh", query, attention.key.weight.unflatten(0, heads))
    offset = torch.einsum("bhs,hs->bh", query, attention.key.bias.unflatten(0, heads))
    scores = (states @ sought + offset.unsqueeze(1)) * attention.scaling
    hidden = ~attention_mask.bool().unsqueeze(2)
    weights = attention.dropout(scores.masked_fill(hidden, -torch.inf).softmax(dim=1))
    means = weights.transpose(1, 2) @ states
    values = torch.einsum("bhd,hsd->bhs", means, attention.value.weight.unflatten(0, heads))
    values = values + weights.sum(dim=1).unsqueeze(2) * attention.value.bias.unflatten(0, heads)
    first = layer.attention.output(values.flatten(1), states[:, 0])
    return layer.output(layer.intermediate(first), first)
