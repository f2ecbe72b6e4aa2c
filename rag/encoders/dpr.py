"""Section 2.2: DPR's two encoders, q(x) = BERT_q(x) and d(z) = BERT_d(z), each the state of [CLS].

    p_η(z|x) ∝ exp(d(z)ᵀ q(x))

A question is encoded alone, a passage as the pair (title, text), as DPR does.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor, nn
from transformers import (
    DPRContextEncoder,
    DPRQuestionEncoder,
    PreTrainedModel,
)
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from rag.encoders.protocol import describe_encoder, encode, hash_weights
from rag.index.manifest import DPR_READING
from rag.index.passage import Passage
from rag.index.vectors import EncoderInfo
from rag.pretrained import (
    FLOAT32,
    check_model_kind,
    check_vocabulary,
    checkpoint_layers,
    load_pretrained,
    plain_outputs,
)
from rag.products import quicken

log = logging.getLogger(__name__)


class Encoder(nn.Module):
    """A text encoder and its tokenizer: texts in, vectors of D dimensions out.

    max_length: tokens of a text, special ones included; at most what the model has positions for. Texts are padded and
    cut at their end, whatever the tokenizer's own settings say: the vector is the state of the first position.
    Raises UserError where the model is no DPR encoder or the tokenizer does not fit it.
    """

    model_class: type[PreTrainedModel]
    part: str  # which of the two sides it is

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int = 256):
        super().__init__()
        check_model_kind(type(model.config).model_type, self.model_class, f"a {type(model).__name__}")
        self.model: Any = quicken(plain_outputs(model))
        self.tokenizer = tokenizer
        tokenizer.padding_side = tokenizer.truncation_side = "right"
        positions = getattr(model.config, "max_position_embeddings", max_length)
        self.max_length = min(max_length, positions)
        self._warned = False
        check_vocabulary(tokenizer, model, type(model).__name__)

    @classmethod
    def from_pretrained(cls, path: str | Path, max_length: int = 256, dtype: str = FLOAT32) -> Self:
        """Load a folder or hub id, such as facebook/dpr-question_encoder-single-nq-base."""
        model, tokenizer = load_pretrained(cls.model_class, path, cls.part, dtype)
        return cls(model, tokenizer, max_length)

    def save_pretrained(self, folder: str | Path) -> None:
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    @property
    def bert(self) -> Any:
        """The BERT inside DPR's model."""
        return getattr(self.model, self.model.base_model_prefix).bert_model

    @property
    def dim(self) -> int:
        """D, the length of a vector."""
        return getattr(self.model.config, "projection_dim", 0) or self.model.config.hidden_size

    def forward(
        self,
        input_ids: Int[Tensor, "batch length"],
        attention_mask: Int[Tensor, "batch length"] | Bool[Tensor, "batch length"],
        token_type_ids: Int[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch dim"]:
        return self.model(
            input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).pooler_output

    def recompute_layers(self) -> None:
        """Keep only each layer's input for the backward pass; UserError where the model cannot."""
        checkpoint_layers(self.bert)

    def fingerprint(self) -> str:
        """A hash of the weights: two encoders with the same one give the same vectors."""
        return hash_weights(self.model.state_dict())

    @property
    def reading(self) -> dict[str, Any]:
        """[CLS], as it is."""
        return dict(DPR_READING)

    @property
    def partner(self) -> str | None:
        """The fingerprint of the passage encoder that it was trained with; None where nobody knows."""
        return getattr(self.model.config, "passage_encoder", None)

    @partner.setter
    def partner(self, fingerprint: str | None) -> None:
        self.model.config.passage_encoder = fingerprint

    @property
    def scale(self) -> float | None:
        """The scale that it was trained with; None where nobody knows."""
        return getattr(self.model.config, "retriever_scale", None)

    @scale.setter
    def scale(self, scale: float | None) -> None:
        self.model.config.retriever_scale = scale


class QuestionEncoder(Encoder):
    """q(x). Trained end to end (section 2.4)."""

    model_class = DPRQuestionEncoder
    part = "question encoder"

    def passage_fingerprint(self) -> None:
        """DPR's two encoders have weights of their own."""
        return None

    def passage_side(self) -> None:
        return None

    def tokenize(self, questions: Sequence[str]) -> dict[str, Tensor]:
        """Token ids and attention mask of questions, padded to the longest.

        A question longer than `max_length` is cut at its end, with one warning.
        """
        tokens = self.tokenizer(
            list(questions),
            padding=True,
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        )
        if not self._warned and any(row.overflowing for row in tokens.encodings or ()):
            self._warned = True
            log.warning(
                "a question is longer than the question encoder's %d tokens: only its "
                "beginning is used for retrieval; later ones are truncated silently",
                self.max_length,
            )
        return {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}


class PassageEncoder(Encoder):
    """d(z). Frozen once DPR has trained it, because the index holds its vectors (section 2.4); retriever=dense_trained
    trains it all the same."""

    model_class = DPRContextEncoder
    part = "passage encoder"
    cut = 0  # passages that were longer than `max_length`, and lost their end
    name = "an encoder that was not loaded from a folder"

    @classmethod
    def from_pretrained(cls, path: str | Path, max_length: int = 256, dtype: str = FLOAT32) -> Self:
        encoder = super().from_pretrained(path, max_length, dtype)
        encoder.name = str(path)
        return encoder

    def describe(self) -> EncoderInfo:
        """What an index's manifest says of the encoder that made its vectors."""
        return describe_encoder(self.name, self)

    def tokenize(self, passages: Sequence[Passage]) -> dict[str, Tensor]:
        """Token ids, attention mask and token types of the pairs (title, text), padded to the longest.

        A passage longer than `max_length` is cut at its end, and counted in `cut`.
        """
        tokens = self.tokenizer(
            [passage.title for passage in passages],
            [passage.text for passage in passages],
            padding=True,
            truncation="longest_first",
            max_length=self.max_length,
            return_tensors="pt",
            return_token_type_ids=True,
        )
        self.cut += sum(bool(row.overflowing) for row in tokens.encodings or ())
        return dict(tokens)

    def encode(self, passages: Sequence[Passage]) -> Float32[np.ndarray, "passages dim"]:
        """The vectors d(z) of some passages, float32 on the CPU, made on the model's device."""
        return encode(self, passages)
