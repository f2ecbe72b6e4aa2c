"""Section 2.2: DPR's two encoders, q(x) = BERT_q(x) and d(z) = BERT_d(z), each the state of [CLS].

    p_η(z|x) ∝ exp(d(z)ᵀ q(x))

A question is encoded alone, a passage as the pair (title, text), as DPR does.
"""

import hashlib
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from pickle import UnpicklingError  # what torch.load refuses with; nothing is unpickled here
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoTokenizer,
    DPRContextEncoder,
    DPRQuestionEncoder,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from rag import hub
from rag.errors import UserError
from rag.finite import check_finite
from rag.passages import Passage

log = logging.getLogger(__name__)

FLOAT32 = "float32"  # what weights are, whatever they were saved as: see `load_weights`


class Encoder(nn.Module):
    """A text encoder and its tokenizer: texts in, vectors of D dimensions out.

    max_length: tokens of a text, special ones included; at most what the model has positions for. Texts are padded and
    cut at their end, whatever the tokenizer's own settings say: the vector is the state of the first position.
    Raises UserError where the model is no DPR encoder or the tokenizer does not fit it.
    """

    model_class: type[PreTrainedModel]

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int = 256):
        super().__init__()
        check_kind(type(model.config).model_type, self.model_class, f"a {type(model).__name__}")
        self.model: Any = plain_outputs(model)
        self.tokenizer = tokenizer
        tokenizer.padding_side = tokenizer.truncation_side = "right"
        positions = getattr(model.config, "max_position_embeddings", max_length)
        self.max_length = min(max_length, positions)
        self._warned = False
        check_vocabulary(tokenizer, model, type(model).__name__)

    @classmethod
    def from_pretrained(cls, path: str | Path, max_length: int = 256, dtype: str = FLOAT32) -> Self:
        """Load a folder or hub id, such as facebook/dpr-question_encoder-single-nq-base."""
        model, tokenizer = load_pretrained(cls.model_class, path, cls.model_class.__name__, dtype)
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
        if self.model.config.num_hidden_layers == 1 and not self.model.config.projection_dim:
            return one_layer_state(self.bert, input_ids, attention_mask, token_type_ids)
        return self.model(
            input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).pooler_output

    def recompute_layers(self) -> None:
        """Keep only each layer's input for the backward pass; UserError where the model cannot."""
        checkpoint_layers(self.bert)

    def fingerprint(self) -> str:
        """A hash of the weights: two encoders with the same one give the same vectors."""
        digest = hashlib.sha256()
        for name, weight in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy())
        return digest.hexdigest()[:16]


class QuestionEncoder(Encoder):
    """q(x). Trained end to end (section 2.4)."""

    model_class = DPRQuestionEncoder

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
                "a question is longer than the question encoder's %d tokens: passages are sought by its "
                "beginning; later ones are cut without a word",
                self.max_length,
            )
        return {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}


class PassageEncoder(Encoder):
    """d(z). Frozen once DPR has trained it, because the index holds its vectors (section 2.4)."""

    model_class = DPRContextEncoder
    cut = 0  # passages that were longer than `max_length`, and lost their end

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

    @torch.inference_mode()
    def encode(self, passages: Sequence[Passage]) -> Float32[np.ndarray, "passages dim"]:
        """The vectors d(z) of some passages, float32 on the CPU, made in one batch on the model's device."""
        device = self.model.device
        tokens = {
            name: value.to(device, non_blocking=True) for name, value in self.tokenize(passages).items()
        }
        half = torch.bfloat16 if device.type != "cuda" or torch.cuda.is_bf16_supported() else torch.float16
        with torch.autocast(device.type, dtype=half, enabled=device.type == "cuda"):
            vectors = self(**tokens)
        return vectors.float().cpu().numpy()


def one_layer_state(
    bert: Any,
    input_ids: Int[Tensor, "batch length"],
    attention_mask: Int[Tensor, "batch length"] | Bool[Tensor, "batch length"],
    token_type_ids: Int[Tensor, "batch length"] | None,
) -> Float[Tensor, "batch dim"]:
    """[CLS] of a BERT of one layer, for a small part of the layer's cost: nobody reads the other tokens' states.

    The query of [CLS] meets the keys as q·(W_k x) = (W_kᵀ q)·x, and W_v is applied to the attended mean: H inner
    products a token instead of several D × D matrices.
    """
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


def checkpoint_layers(model: Any) -> None:
    """Let a transformers model keep only each layer's input, and recompute the rest in the backward pass.

    Raises UserError for a model that cannot.
    """
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise UserError(
            f"gradient_checkpointing=true, but a {type(model).__name__} cannot do it: leave that setting out"
        )
    # the former is its name in newer versions, the latter goes with version 6
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, model: Any, what: str) -> None:
    """UserError where a tokenizer knows tokens that a model has no embeddings for, or no words at all."""
    if len(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids)) <= 1:
        raise UserError(  # transformers makes an empty one where a tokenizer's files are missing
            f"the {what}'s tokenizer knows no words ({tokenizer.name_or_path or 'not from a folder'}): restore "
            "its files, which belong beside the model's"
        )
    embeddings = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > embeddings:
        raise UserError(
            f"the tokenizer has {len(tokenizer):,} tokens but the {what} only {embeddings:,} embeddings: "
            "take both from the same model"
        )


def load_pretrained(
    model_class: Any, path: str | Path, what: str, dtype: str = FLOAT32
) -> tuple[Any, PreTrainedTokenizerBase]:
    """Load a Hugging Face model and its tokenizer from a folder or the hub. Raises UserError if it fails."""
    try:
        model = load_weights(model_class, path, dtype)
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise hub.refusal(error, path) or UserError(
            f"{path} holds no {what} with its tokenizer ({hub.reason(error)}): give a folder written by "
            "save_pretrained or the name of a model on the hub"
        ) from error
    return model, tokenizer


def load_weights(model_class: Any, path: str | Path, dtype: str = FLOAT32, **settings: Any) -> Any:
    """`model_class.from_pretrained`, from safetensors or tensors alone, that leaves no weight to chance.

    dtype: the weights' type, whatever they were saved as. transformers would take the saved one, and those of
    facebook/bart-large are half: AdamW's steps on half weights are rounded away or overflow.

    Raises UserError for a checkpoint of another kind of model, and names the weights that one lacks, holds in another
    shape or that are not finite; extra ones are named in a warning.
    """
    if (
        not isinstance(getattr(torch, dtype, None), torch.dtype)
        or not getattr(torch, dtype).is_floating_point
    ):
        raise UserError(f"dtype={dtype} does not exist for weights: there are float32, bfloat16 and float16")
    if hub.is_name(str(path)):
        hub.commit(str(path))  # before anything else is asked of a hub that may be out of reach
    found = PreTrainedConfig.get_config_dict(str(path))[0]
    check_kind(found.get("model_type"), model_class, path)
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # its own table of weights: one sentence says it below
    try:
        model, report = model_class.from_pretrained(
            path,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            weights_only=True,
            dtype=getattr(torch, dtype),
            **settings,
        )
    except UnpicklingError as error:
        raise UserError(
            f"the weights of {path} hold more than tensors, and could run code when opened: give safetensors"
        ) from error
    finally:
        transformers_logging.set_verbosity(before)
    if wrong := {key for key, *_ in report["mismatched_keys"]}:
        raise UserError(
            f"{path} holds {_named(wrong)} in another shape than its config.json says: restore it"
        )
    if missing := report["missing_keys"]:
        held = found.get("architectures") or []
        if held and hasattr(model_class, "config_class") and model_class.__name__ not in held:
            raise UserError(
                f"{path} holds a {held[0]}, which lacks {_named(missing)} of a {model_class.__name__}: give a "
                f"checkpoint of a {model_class.__name__}"
            )
        raise UserError(f"{path} lacks {_named(missing)}: restore it, or give another checkpoint")
    # DPR's released encoders bring BERT's pooler, which DPR does not use.
    if extra := {key for key in report["unexpected_keys"] if ".pooler." not in key}:
        log.warning("%s holds %s, which the model has no place for: left out", path, _named(extra))
    check_finite(model.state_dict(), path)
    return model


def check_kind(kind: str | None, model_class: Any, where: str | Path) -> None:
    """UserError unless weights of this kind, a config's `model_type`, are those of `model_class`.

    transformers loads RoBERTa's weights into BERT without a complaint, and its vectors are then others: positions begin
    elsewhere, and the tokens' types have other embeddings.
    """
    if kind is None:  # a config older than that key
        return
    if (of_class := getattr(model_class, "config_class", None)) is not None:
        if kind != of_class.model_type:
            raise UserError(
                f"{where} holds a model of type {kind}: a {model_class.__name__} is read from type "
                f"{of_class.model_type} alone"
            )
        return
    if kind in CONFIG_MAPPING and CONFIG_MAPPING[kind] not in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
        raise UserError(
            f"{where} holds a model of type {kind}, which is no sequence-to-sequence model: types such as bart, mbart, "
            "pegasus and t5 are read"
        )


def plain_outputs(model: Any) -> Any:
    """The same model, which answers with named outputs and no more than is asked for, whatever its config says.

    Both parts of facebook/rag-token-nq were saved with `return_dict: false`, with which transformers returns tuples.
    """
    for module in model.modules():
        config = getattr(module, "config", None)
        if isinstance(config, PreTrainedConfig):
            config.return_dict = True
            config.output_hidden_states = False
            config.output_attentions = False
    if getattr(model.config, "use_cache", None) is False:  # the whole model's; its encoder has one of its own
        try:  # still False for a decoder that keeps no cache, such as rag/lstm.py's
            model.config.use_cache = getattr(type(model.config)(), "use_cache", True)
        except ValueError:  # a config of two parts, which there is none of without them
            model.config.use_cache = True
    return model


def _named(keys: Iterable[str]) -> str:
    names = sorted(keys)
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return f"the weight {shown}" if len(names) == 1 else f"{len(names)} weights ({shown})"
