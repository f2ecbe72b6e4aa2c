"""Section 2.2 with the bi-encoders of today: any encoder, pooled to one vector, of unit length where it says so.

    v(text) = [normalize] [dense] pool(transformer(prompt + text))        q(x) = v(x), d(z) = v("title text")

The same as sentence-transformers' `encode_query` and `encode_document`. Read are its folders (sentence_format.py) and
bare transformers with a stated pooling; what is saved is always such a folder, which that package loads.
"""

import inspect
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, MODEL_MAPPING, PreTrainedConfig
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from rag import hub
from rag.encoders.pooling import pool, unit_length
from rag.encoders.protocol import describe_encoder, encode, hash_weights
from rag.encoders.sentence_format import SentenceFormat, write_format
from rag.errors import UserError
from rag.index.passage import Passage
from rag.index.vectors import EncoderInfo
from rag.pretrained import FLOAT32, check_vocabulary, checkpoint_layers, load_pretrained, plain_outputs
from rag.products import quicken

log = logging.getLogger(__name__)

# The types of models that are read, each tested against sentence-transformers' own vectors.
BOTH_WAYS = ("bert", "camembert", "distilbert", "electra", "modernbert", "mpnet", "roberta", "xlm-roberta")
CAUSAL = ("gpt2", "llama", "mistral", "qwen2", "qwen3")
_BETWEEN = " "  # title and text, as in BEIR
_LONGEST = 1 << 20  # what tokenizers call their limit where they have none is far larger


class Embedder(nn.Module):
    """A transformer, its tokenizer, and how its states become one vector. Two sides may share one.

    Raises UserError where the tokenizer does not fit, the pooling does not fit the attention, or a text may be longer
    than the model has positions for.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, form: SentenceFormat):
        super().__init__()
        kind = model.config.model_type
        check_kind(kind, f"a {type(model).__name__}")
        self.causal = kind in CAUSAL
        if self.causal and form.pooling == "cls":
            raise UserError(
                f"a model of type {kind} reads from left to right: its first state knows nothing of the text; give "
                "encoder.pooling=last or mean"
            )
        self.model: Any = quicken(plain_outputs(model))
        self.tokenizer = tokenizer
        tokenizer.padding_side = tokenizer.truncation_side = "right"
        if tokenizer.pad_token_id is None:
            if tokenizer.eos_token_id is None:
                raise UserError(
                    f"the tokenizer of the {type(model).__name__} has neither pad nor eos: give it one"
                )
            tokenizer.pad_token = tokenizer.eos_token  # masked wherever it pads
        check_vocabulary(tokenizer, model, type(model).__name__)
        positions = positions_of(model)
        if form.max_length is not None and form.max_length > positions:
            raise UserError(
                f"max_seq_length is {form.max_length} but this {type(model).__name__} has positions for {positions} "
                f"tokens: give encoder.max_length={positions} or less"
            )
        self.max_length = form.max_length or min(positions, tokenizer.model_max_length, _LONGEST)
        self.dense = nn.ModuleList(form.dense)
        self.form = replace(form, dense=list(self.dense), max_length=self.max_length)
        width = model.config.hidden_size
        for layer in form.dense:
            if layer.linear.in_features != width:
                raise UserError(
                    f"a Dense takes vectors of {layer.linear.in_features} dimensions and is given {width}: restore it"
                )
            width = layer.linear.out_features
        self.dim = width

    @classmethod
    def from_pretrained(cls, transformer: str | Path, form: SentenceFormat, dtype: str = FLOAT32) -> Self:
        """Load a transformer's folder or hub id. Raises UserError for a type that is not read."""
        kind, reason = None, "its config.json is missing or names no model_type"
        try:
            kind = PreTrainedConfig.get_config_dict(str(transformer))[0].get("model_type")
        except (OSError, ValueError) as error:
            if (refusal := hub.refusal(error, transformer)) is not None:
                raise refusal from error
            reason = hub.reason(error)
        if kind is None:
            raise UserError(f"{transformer} holds no transformer ({reason}): restore its config.json")
        kind = check_kind(kind, transformer)
        model_class: Any = MODEL_MAPPING[CONFIG_MAPPING[kind]]
        # no pooling here goes through it, and a weight without a gradient stops training on several ranks
        own = "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
        settings = {"add_pooling_layer": False} if own else {}
        model, tokenizer = load_pretrained(model_class, transformer, model_class.__name__, dtype, **settings)
        return cls(model, tokenizer, form)

    def tokenize(self, texts: Sequence[str]) -> tuple[dict[str, Tensor], int]:
        """Token ids and attention mask, padded to the longest, and how many texts were cut."""
        tokens = self.tokenizer(
            [text.lower() for text in texts] if self.form.lower_case else list(texts),
            padding=True,
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        )
        cut = sum(bool(row.overflowing) for row in tokens.encodings or ())
        return {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}, cut

    def forward(
        self,
        input_ids: Int[Tensor, "batch length"],
        attention_mask: Int[Tensor, "batch length"] | Bool[Tensor, "batch length"],
    ) -> Float[Tensor, "batch dim"]:
        uncached = {"use_cache": False} if self.causal else {}
        states = self.model(input_ids, attention_mask=attention_mask, **uncached).last_hidden_state
        vectors = pool(states, attention_mask, self.form.pooling)
        for layer in self.dense:
            vectors = layer(vectors)
        return unit_length(vectors) if self.form.normalize else vectors

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder in sentence-transformers' format."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        write_format(self.form, Path(folder), self.model.config.hidden_size, self.max_length)


class SentenceEncoder(nn.Module):
    """One side of a bi-encoder: the embedder and the prompt that stands before its texts."""

    side: str

    def __init__(self, embedder: Embedder):
        super().__init__()
        self.embedder = embedder

    @property
    def model(self) -> Any:
        """The transformer."""
        return self.embedder.model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.embedder.tokenizer

    @property
    def max_length(self) -> int:
        return self.embedder.max_length

    @property
    def dim(self) -> int:
        """D, the length of a vector."""
        return self.embedder.dim

    @property
    def prompt(self) -> str:
        return getattr(self.embedder.form, f"{self.side}_prompt")

    @property
    def reading(self) -> dict[str, Any]:
        form = self.embedder.form
        return {"pooling": form.pooling, "normalize": form.normalize, "prompt": form.passage_prompt}

    @property
    def partner(self) -> str | None:
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

    def forward(
        self,
        input_ids: Int[Tensor, "batch length"],
        attention_mask: Int[Tensor, "batch length"] | Bool[Tensor, "batch length"],
    ) -> Float[Tensor, "batch dim"]:
        return self.embedder(input_ids, attention_mask)

    def recompute_layers(self) -> None:
        """Keep only each layer's input for the backward pass; UserError where the model cannot."""
        checkpoint_layers(self.model)

    def fingerprint(self) -> str:
        """A hash of the weights, the pooling, this side's prompt, the normalisation and the longest text."""
        return self._fingerprint(self.prompt)

    def _fingerprint(self, prompt: str) -> str:
        settings = asdict(replace(self.embedder.form, dense=[]))
        del settings["question_prompt"], settings["passage_prompt"]
        settings |= {"prompt": prompt, "dense": [layer.activation for layer in self.embedder.form.dense]}
        return hash_weights(self.embedder.state_dict(), settings)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder in sentence-transformers' format."""
        self.embedder.save_pretrained(folder)


class SentenceQuestionEncoder(SentenceEncoder):
    """q(x) of the prompt and the question. Trained end to end (section 2.4)."""

    side = "question"

    def __init__(self, embedder: Embedder):
        super().__init__(embedder)
        self._warned = False

    def passage_fingerprint(self) -> str:
        """The fingerprint of the passage encoder that has the same weights."""
        return self._fingerprint(self.embedder.form.passage_prompt)

    def passage_side(self) -> "SentencePassageEncoder":
        return SentencePassageEncoder(self.embedder)

    def tokenize(self, questions: Sequence[str]) -> dict[str, Tensor]:
        """Token ids and attention mask, padded to the longest; a question that is cut is warned of once."""
        tokens, cut = self.embedder.tokenize([self.prompt + question for question in questions])
        if cut and not self._warned:
            self._warned = True
            log.warning(
                "a question is longer than the question encoder's %d tokens: only its "
                "beginning is used for retrieval; later ones are truncated silently",
                self.max_length,
            )
        return tokens


class SentencePassageEncoder(SentenceEncoder):
    """d(z) of the prompt, the title and the text. Frozen in end-to-end training (section 2.4), but for
    retriever=dense_trained."""

    side = "passage"
    cut = 0  # passages that were longer than `max_length`, and lost their end

    def __init__(self, embedder: Embedder, name: str = "an encoder that was not loaded from a folder"):
        super().__init__(embedder)
        self.name = name

    def describe(self) -> EncoderInfo:
        """What an index's manifest says of the encoder that made its vectors."""
        return describe_encoder(self.name, self)

    def tokenize(self, passages: Sequence[Passage]) -> dict[str, Tensor]:
        """Token ids and attention mask of "title text", padded to the longest; those that are cut are counted."""
        texts = [f"{passage.title}{_BETWEEN}{passage.text}".strip() for passage in passages]
        tokens, cut = self.embedder.tokenize([self.prompt + text for text in texts])
        self.cut += cut
        return tokens

    def encode(self, passages: Sequence[Passage]) -> Float32[np.ndarray, "passages dim"]:
        """The vectors d(z) of some passages, float32 on the CPU, made on the model's device."""
        return encode(self, passages)


def check_kind(kind: str | None, where: str | Path) -> str:
    """The type; UserError for a type of model whose vectors nobody has compared with sentence-transformers' own."""
    if kind is None or kind not in (*BOTH_WAYS, *CAUSAL):
        raise UserError(
            f"{where} holds a model of type {kind}, which is not supported as an encoder; available: "
            f"{', '.join(sorted((*BOTH_WAYS, *CAUSAL, 'dpr')))} are"
        )
    return kind


def positions_of(model: Any) -> int:
    """Tokens that a model has positions for: RoBERTa's first ones belong to the padding."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return model.config.max_position_embeddings
