"""A reader from a pretrained encoder: BERT reads the context, its upper layers write the answer, a copy head helps.

    encoder    all of a pretrained BERT's layers; [CLS] question [SEP] title [SEP] passage [SEP], token type 1 from
               the first [SEP] on
    decoder    its last `decoder_layers` layers once more, with attention to the left; the cross-attention of each
               starts as a copy of its self-attention
    scores     the mixture of rag/generators/copying.py, over the encoder's word embeddings

Warm starts are Rothe et al.'s (2020); theirs has no copy head, without which copying does not begin within minutes.
The model is one of transformers', which `Generator.from_pretrained` opens.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    BertConfig,
    BertModel,
    EncoderDecoderCache,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import DynamicLayer
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPastAndCrossAttentions,
    Seq2SeqLMOutput,
)

from rag.errors import UserError
from rag.generators.copying import (
    CopyAttention,
    CopyOutputLayer,
    MixtureHead,
    digits_of,
    from_digits,
    last_two,
    start_copying,
    to_digits,
)
from rag.generators.output_layer import PlainOutputLayer

SHARED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
          "max_position_embeddings", "type_vocab_size", "layer_norm_eps", "pad_token_id")  # fmt: skip

PLAIN_UP_TO = 256  # tokens a row; their scores, length² a head, are in memory at once


class WarmStartConfig(PreTrainedConfig):
    """BERT's sizes, and: decoder_layers; dropout, of everything; train_words: whether the word embeddings are trained;
    decoder_rate, head_rate: learning rates of the decoder and of what is new, as multiples of the encoder's.
    """

    model_type = "rag_warm_start"

    def __init__(
        self,
        vocab_size: int = 30_522,
        hidden_size: int = 384,
        num_hidden_layers: int = 6,
        num_attention_heads: int = 12,
        intermediate_size: int = 1_536,
        hidden_act: str = "gelu",
        max_position_embeddings: int = 512,
        type_vocab_size: int = 2,
        layer_norm_eps: float = 1e-12,
        decoder_layers: int = 2,
        dropout: float = 0.0,
        train_words: bool = False,
        decoder_rate: float = 2.0,
        head_rate: float = 6.67,
        pad_token_id: int | None = 0,
        bos_token_id: int | None = 101,
        eos_token_id: int | None = 102,
        decoder_start_token_id: int | None = 101,
        **others: Any,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.hidden_act = hidden_act
        self.max_position_embeddings = max_position_embeddings
        self.type_vocab_size = type_vocab_size
        self.layer_norm_eps = layer_norm_eps
        self.decoder_layers = decoder_layers
        self.dropout = dropout
        self.train_words = train_words
        self.decoder_rate = decoder_rate
        self.head_rate = head_rate
        self.pad_token_id = pad_token_id
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id
        self.decoder_start_token_id = decoder_start_token_id
        self.use_cache = True
        others.setdefault("is_encoder_decoder", True)
        others.setdefault("tie_word_embeddings", True)
        super().__init__(**others)

    def bert(self, **settings: Any) -> BertConfig:
        """BERT's config of the same sizes."""
        same: dict[str, Any] = {name: getattr(self, name) for name in SHARED} | {
            "hidden_dropout_prob": self.dropout,
            "attention_probs_dropout_prob": self.dropout,
        }
        return BertConfig(**(same | settings))


@contextmanager
def _attending(bert: BertModel, how: str | None) -> Iterator[None]:
    """For as long as this lasts, BERT computes its attention in this one of transformers' ways; None: as it is set."""
    before = bert.config._attn_implementation
    bert.config._attn_implementation = how or before
    try:
        yield
    finally:
        bert.config._attn_implementation = before


class Encoder(nn.Module):
    """BERT over each context; its states, and the digits of the tokens that they are of."""

    main_input_name = "input_ids"  # which `generate` asks an encoder for

    def __init__(self, config: WarmStartConfig):
        super().__init__()
        self.bert = BertModel(config.bert(), add_pooling_layer=False)
        self.end_token = config.eos_token_id
        self.types = config.type_vocab_size
        self.digits = digits_of(config.vocab_size)

    def forward(
        self, input_ids: Int[Tensor, "rows length"], attention_mask: Tensor | None = None, **ignored: Any
    ) -> BaseModelOutput:
        ended = (input_ids == self.end_token).long()
        # 0 up to the first [SEP], the question, and 1 for all that follows
        types = (ended.cumsum(dim=1) - ended).clamp(max=min(1, self.types - 1))
        # The fused attention's backward pass on a CPU takes half as long again as three plain products on short rows.
        on_cpu = input_ids.device.type == "cpu" and input_ids.shape[1] <= PLAIN_UP_TO
        # Layers that are recomputed in the backward pass would not be within this.
        recomputed = any(getattr(each, "gradient_checkpointing", False) for each in self.bert.modules())
        plain = self.training and on_cpu and not recomputed
        with _attending(self.bert, "eager" if plain else None):
            states = self.bert(
                input_ids=input_ids, attention_mask=attention_mask, token_type_ids=types
            ).last_hidden_state
        written = to_digits(input_ids, self.digits).to(states.dtype)
        return BaseModelOutput(last_hidden_state=torch.cat([states, written], dim=2))  # type: ignore[arg-type]


class Decoder(nn.Module):
    """BERT's upper layers over the answer so far, with attention to the context's states and the copy attention."""

    def __init__(self, config: WarmStartConfig):
        super().__init__()
        bert = config.bert(
            num_hidden_layers=config.decoder_layers,
            is_decoder=True,
            add_cross_attention=True,
            use_cache=False,
        )
        self.bert = BertModel(bert, add_pooling_layer=False)
        self.copy = CopyAttention(config.hidden_size)
        self.width = config.hidden_size
        self.start_token: Any = config.decoder_start_token_id

    @property
    def config(self) -> BertConfig:
        """The network's, which says how it attends: rag/decoding/shared_contexts.py exchanges that for a while."""
        return self.bert.config

    def forward(
        self,
        input_ids: Int[Tensor, "rows tokens"],
        encoder_hidden_states: Float[Tensor, "contexts length wide"],
        encoder_attention_mask: Tensor,
        past_key_values: EncoderDecoderCache | None = None,
        use_cache: bool = False,
        output_attentions: bool = False,
        **ignored: Any,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """With `output_attentions`, `cross_attentions` is one tensor a (rows, 1, tokens, length), what is copied.

        Rows of one token each may share contexts, as many successive rows for each, where the attention that is set
        can do that; the mask is then (contexts, 1, 1, length).
        """
        states, written = encoder_hidden_states[..., : self.width], encoder_hidden_states[..., self.width :]
        (rows, count), contexts = input_ids.shape, len(states)
        cache = past_key_values if use_cache else None
        decoded = self.bert(
            input_ids=input_ids,
            encoder_hidden_states=states,
            encoder_attention_mask=encoder_attention_mask,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state
        so_far, keys = input_ids, None
        if cache is None:
            keys = self.copy.key(states)
        else:
            so_far, keys = self._remembered(cache, input_ids, states)
        before = last_two(so_far, self.start_token)[:, -count:]
        copied = self.copy(
            decoded.reshape(contexts, -1, self.width),  # what shares a context is side by side
            keys,
            encoder_attention_mask.reshape(contexts, -1).bool(),
            from_digits(written),
            before.reshape(contexts, -1, 2),
        ).reshape(rows, count, -1)
        tokens = written.flatten(1).repeat_interleave(rows // contexts, dim=0).unsqueeze(1)
        parts = decoded, copied, tokens.expand(-1, count, -1)
        wide = torch.cat([part.to(copied.dtype) for part in parts], dim=2)
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=wide,
            past_key_values=cache,
            cross_attentions=(copied.exp().unsqueeze(1),) if output_attentions else None,  # type: ignore[arg-type]
        )

    def _remembered(
        self, cache: EncoderDecoderCache, tokens: Int[Tensor, "rows tokens"], states: Tensor
    ) -> tuple[Int[Tensor, "rows so_far"], Float[Tensor, "contexts length width"]]:
        """All tokens of each row so far, and the copy attention's keys.

        Both stand in the cache, as one more layer of each kind, so that whoever takes rows of it takes these along.
        """
        layer_index = self.bert.config.num_hidden_layers
        self_layers: list[Any] = cache.self_attention_cache.layers  # type: ignore[assignment]
        cross_layers: list[Any] = cache.cross_attention_cache.layers  # type: ignore[assignment]
        for layers in (self_layers, cross_layers):
            while len(layers) <= layer_index:
                layers.append(DynamicLayer())
        if not cross_layers[layer_index].is_initialized:
            keys = self.copy.key(states).unsqueeze(1)
            cross_layers[layer_index].update(keys, keys[..., :0])
        written = tokens[:, None, :, None].float()  # exact below 2^24
        so_far, _ = self_layers[layer_index].update(written, written[..., :0])
        return so_far[:, 0, :, 0].long(), cross_layers[layer_index].keys[:, 0]


class WarmStartForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Encoder, decoder and the mixture; its logits are log-probabilities."""

    config_class = WarmStartConfig
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _tied_weights_keys = {
        "decoder.bert.embeddings.word_embeddings.weight": "encoder.bert.embeddings.word_embeddings.weight",
        "lm_head.weight": "encoder.bert.embeddings.word_embeddings.weight",
    }

    def __init__(self, config: WarmStartConfig):
        super().__init__(config)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.head = MixtureHead(config.hidden_size, config.layer_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """Called whenever weights were made or read; a weight that was read asks for a gradient again."""
        super().tie_weights(*args, **kwargs)
        self.get_input_embeddings().weight.requires_grad_(self.config.train_words)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.encoder.bert.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.encoder.bert.embeddings.word_embeddings = value
        self.decoder.bert.embeddings.word_embeddings = value

    def make_output_layer(self) -> CopyOutputLayer:
        """What makes scores of the decoder's states (rag/generators/output_layer.py)."""
        return CopyOutputLayer(self.head, PlainOutputLayer(self.lm_head), self.config.hidden_size)

    def learning_rates(self) -> Sequence[tuple[nn.Module, float]]:
        """The parts that learn faster than the rest, and how many times as fast."""
        new = self.config.head_rate
        return [(self.head, new), (self.decoder.copy, new), (self.decoder, self.config.decoder_rate)]

    def forward(
        self,
        input_ids: Int[Tensor, "rows length"] | None = None,
        attention_mask: Int[Tensor, "rows length"] | None = None,
        decoder_input_ids: Int[Tensor, "rows tokens"] | None = None,
        encoder_outputs: Any = None,
        output_attentions: bool = False,
        past_key_values: EncoderDecoderCache | None = None,
        use_cache: bool = False,
        **ignored: Any,
    ) -> Seq2SeqLMOutput:
        if encoder_outputs is None:
            encoder_outputs = self.encoder(input_ids, attention_mask)
        states = encoder_outputs[0]
        if attention_mask is None:
            attention_mask = torch.ones_like(states[..., 0], dtype=torch.long)
        assert decoder_input_ids is not None
        decoded = self.decoder(
            decoder_input_ids, states, attention_mask, past_key_values, use_cache, output_attentions
        )
        return Seq2SeqLMOutput(
            logits=self.make_output_layer().logits(decoded.last_hidden_state),  # type: ignore[arg-type]
            past_key_values=decoded.past_key_values,
            cross_attentions=decoded.cross_attentions,
            encoder_last_hidden_state=states,
        )


# So that `Generator.from_pretrained` opens a folder that holds one.
AutoConfig.register(WarmStartConfig.model_type, WarmStartConfig)
AutoModelForSeq2SeqLM.register(WarmStartConfig, WarmStartForConditionalGeneration)


@torch.no_grad()
def warm_started(
    bert: BertModel, end_token: int, start_token: int, decoder_layers: int = 2, **settings: Any
) -> WarmStartForConditionalGeneration:
    """The reader that a pretrained BERT makes, before it learned to write.

    settings: dropout, train_words and the rates of `WarmStartConfig`. Raises UserError where BERT has fewer layers than
    the decoder is to have.
    """
    theirs: Any = bert.config
    if not 1 <= decoder_layers <= theirs.num_hidden_layers:
        raise UserError(
            f"generator.decoder_layers is {decoder_layers}, but the encoder that the decoder is made of has "
            f"{theirs.num_hidden_layers} layers: give 1 to {theirs.num_hidden_layers}"
        )
    sizes: dict[str, Any] = {name: getattr(theirs, name) for name in SHARED}
    model = WarmStartForConditionalGeneration(
        WarmStartConfig(
            **sizes,
            decoder_layers=decoder_layers,
            bos_token_id=start_token,
            eos_token_id=end_token,
            decoder_start_token_id=start_token,
            **settings,
        )
    )
    weights = bert.state_dict()
    model.encoder.bert.load_state_dict({k: v for k, v in weights.items() if not k.startswith("pooler.")})
    model.decoder.bert.embeddings.load_state_dict(bert.embeddings.state_dict())
    new_layer: Any
    layer: Any
    upper = bert.encoder.layer[theirs.num_hidden_layers - decoder_layers :]
    for new_layer, layer in zip(model.decoder.bert.encoder.layer, upper, strict=True):
        new_layer.attention.load_state_dict(layer.attention.state_dict())
        new_layer.crossattention.load_state_dict(layer.attention.state_dict())
        new_layer.intermediate.load_state_dict(layer.intermediate.state_dict())
        new_layer.output.load_state_dict(layer.output.state_dict())
    model.tie_weights()
    start_copying(model.decoder.copy, model.head)
    return model
