"""Any two pretrained BERT-like models as encoder and decoder: transformers' EncoderDecoderModel as a generator.

    encoder    BERT, RoBERTa, ModernBERT, …: all of a checkpoint's layers over each context
    decoder    BERT, RoBERTa, ELECTRA, …: a checkpoint's layers with attention to the left, and its own word prediction
               where it has one; the cross-attention of each layer starts as a copy of its self-attention

The pairs are Rothe et al.'s (2020), whose cross-attention starts at random. A folder that is saved holds transformers'
model, and any such folder opens as generator.path. Both sides share one vocabulary: the passages' tokens that an index
keeps are the encoder's, answers are the decoder's, and what is quoted or copied has to be both.
"""

import inspect
from pathlib import Path
from typing import Any

import torch
import transformers
from jaxtyping import Float, Int
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForSeq2SeqLM,
    EncoderDecoderCache,
    EncoderDecoderConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from rag import hub
from rag.encoders.sentence_transformer import BOTH_WAYS, positions_of
from rag.errors import UserError
from rag.generators.output_layer import OutputLayer, PlainOutputLayer
from rag.pretrained import FLOAT32, check_vocabulary, load_pretrained
from rag.products import is_plain_linear

CROSS, OWN = ".crossattention.", ".attention."


class Decoder:
    """The decoder as those of transformers' sequence-to-sequence models are called: states in, states out.

    The encoder's states are projected to its width here, where the two differ; once, where there is a cache.
    """

    def __init__(self, model: "EncoderDecoderModel"):
        self._model = model
        network: Any = model.decoder
        self._base = network.base_model

    @property
    def config(self) -> Any:
        """The network's, which says how it attends: what reads it may exchange that for a while."""
        return self._base.config

    def __call__(
        self,
        input_ids: Int[Tensor, "rows tokens"],
        encoder_hidden_states: Float[Tensor, "contexts length width"],
        encoder_attention_mask: Tensor,
        past_key_values: EncoderDecoderCache | None = None,
        use_cache: bool = False,
        **ignored: Any,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        cached = past_key_values is not None and past_key_values.cross_attention_cache.get_seq_length() > 0
        project = getattr(self._model, "enc_to_dec_proj", None)
        states = encoder_hidden_states
        if project is not None and not cached:
            states = project(states)
        return self._base(
            input_ids=input_ids,
            encoder_hidden_states=states,
            encoder_attention_mask=encoder_attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            return_dict=True,
        )


class EncoderDecoderModel(transformers.EncoderDecoderModel):
    """transformers' own, by its own name, so that a folder says what it holds; and what `Generator` asks of a model.

    Raises UserError where the decoder does not attend to an encoder.
    """

    def __init__(
        self,
        config: Any = None,
        encoder: PreTrainedModel | None = None,
        decoder: PreTrainedModel | None = None,
    ):
        if encoder is None and config is not None:
            # without what makes a vector of [CLS]: nobody reads it, and it would never have a gradient
            encoder = AutoModel.from_config(config.encoder, **unpooled(MODEL_MAPPING[type(config.encoder)]))
        super().__init__(config, encoder, decoder)
        parts: Any = self.encoder, self.decoder
        read, written = (part.config for part in parts)
        # what a model of one part says of itself
        self.config.vocab_size, self.config.hidden_size = written.vocab_size, written.hidden_size
        self.config.num_hidden_layers = max(written.num_hidden_layers, read.num_hidden_layers)
        self.config.max_position_embeddings = min(map(positions_of, parts))

    def get_decoder(self) -> Decoder:  # type: ignore[override]
        return Decoder(self)

    def make_output_layer(self) -> OutputLayer:
        """What makes scores of the decoder's states: its modules beside its base, one after the other.

        `check_output_layer` finds a decoder that does anything else.
        """
        decoder: Any = self.decoder
        head = [module for module in decoder.children() if module is not decoder.base_model]
        if len(head) == 1 and is_plain_linear(head[0]):
            return PlainOutputLayer(head[0])

        def score(hidden: Tensor) -> Tensor:
            for module in head:
                hidden = module(hidden)
            return hidden

        return OutputLayer(score, self.config.vocab_size)


class AutoSeq2Seq:
    """transformers' AutoModelForSeq2SeqLM, with the class above for pairs: its own kinds keep their classes there."""

    @classmethod
    def from_pretrained(cls, path: str | Path, **settings: Any) -> Any:
        kind = PreTrainedConfig.get_config_dict(str(path))[0].get("model_type")
        pair = kind == EncoderDecoderConfig.model_type
        return (EncoderDecoderModel if pair else AutoModelForSeq2SeqLM).from_pretrained(path, **settings)


def complete(model: EncoderDecoderModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Beginning, end and padding of an answer, which BERT's tokenizers have as [CLS], [SEP] and [PAD]; what is said
    stays. Raises UserError where there is none, or more tokens than the decoder has embeddings for."""
    check_vocabulary(tokenizer, model.decoder, "decoder")
    tokenizer.bos_token = tokenizer.bos_token or tokenizer.cls_token
    tokenizer.eos_token = tokenizer.eos_token or tokenizer.sep_token
    if None in (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token):
        raise UserError(
            "the tokenizer of an encoder–decoder has no token to begin, to end or to pad an answer with: give one with "
            "[CLS], [SEP] and [PAD], or bos, eos and pad"
        )
    config: Any = model.config
    if config.decoder_start_token_id is None:
        config.decoder_start_token_id = tokenizer.bos_token_id
    config.pad_token_id, config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    for name in ("decoder_start_token_id", "pad_token_id", "eos_token_id"):
        setattr(model.generation_config, name, getattr(config, name))


def encoder_decoder(
    encoder: str | Path, decoder: str | Path, dtype: str = FLOAT32
) -> tuple[EncoderDecoderModel, PreTrainedTokenizerBase]:
    """The model that two pretrained ones make, before it learned to read contexts, and the tokenizer of both.

    encoder, decoder: folders or hub ids. Raises UserError where one is of a kind that cannot be that part, or their
    vocabularies differ.
    """
    of_encoder, of_decoder = (
        _class(encoder, "encoder", MODEL_MAPPING),
        _class(decoder, "decoder", MODEL_FOR_CAUSAL_LM_MAPPING),
    )
    read, tokenizer = load_pretrained(of_encoder, encoder, "encoder", dtype, **unpooled(of_encoder))
    written, other = _decoder(of_decoder, decoder, dtype)
    if tokenizer.get_vocab() != other.get_vocab():
        raise UserError(
            f"{encoder} and {decoder} have different vocabularies ({len(tokenizer):,} and {len(other):,} tokens), but "
            "the index keeps passages as the tokens that answers are written in: give two checkpoints with one "
            "vocabulary"
        )
    model = EncoderDecoderModel(encoder=read, decoder=written)
    complete(model, tokenizer)
    return model, tokenizer


def _decoder(model_class: Any, path: str | Path, dtype: str) -> tuple[Any, PreTrainedTokenizerBase]:
    """A pretrained model with attention to the left and to an encoder."""
    config = AutoConfig.from_pretrained(path)
    config.is_decoder = config.add_cross_attention = True
    config.use_cache = True
    new = set()

    def may_lack(weight: str) -> bool:
        new.add(weight)
        return CROSS in weight or not weight.startswith(f"{model_class.base_model_prefix}.")

    model, tokenizer = load_pretrained(model_class, path, "decoder", dtype, config=config, may_lack=may_lack)
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name in new:
            source = weights.get(name.replace(CROSS, OWN))
            if CROSS in name and source is not None and source.shape == weights[name].shape:
                weights[name].copy_(source)
    return model, tokenizer


def unpooled(model_class: Any) -> dict[str, bool]:
    """What keeps a model from having a pooling layer, where its kind has one."""
    has_pooling = "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
    return {"add_pooling_layer": False} if has_pooling else {}


def _class(path: str | Path, part: str, classes: Any) -> Any:
    """transformers' class for a checkpoint as that part; UserError where it cannot be it."""
    try:
        kind = PreTrainedConfig.get_config_dict(str(path))[0].get("model_type")
    except (OSError, ValueError) as error:
        raise hub.refusal(error, path) or UserError(
            f"generator.{part}={path} holds no model ({hub.reason(error)}): give a folder written by save_pretrained "
            "or the name of a model on the hub"
        ) from error

    def of(kind: str) -> Any:
        model_class = classes.get(CONFIG_MAPPING[kind], None)
        attends = (
            model_class is not None
            and "encoder_hidden_states" in inspect.signature(model_class.forward).parameters
        )
        return model_class if part == "encoder" or attends else None

    if kind in BOTH_WAYS and (model_class := of(kind)) is not None:
        return model_class
    raise UserError(
        f"generator.{part}={path} holds a model of type {kind}, which is no {part} here: "
        f"{', '.join(each for each in BOTH_WAYS if of(each) is not None)} are"
    )
