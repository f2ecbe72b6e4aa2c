"""The generator from before the Transformer: an LSTM encoder–decoder with attention, behind the same interface.

    states   h_1 … h_L = BiLSTM(context)                  projected to the width of the embeddings
    start    tanh(W_0 · mean of h)                        the decoder's first hidden state and cell
    s_t      LSTM(y_<t)
    α_t      softmax over the context of s_tᵀ W_a h_j     the attention, kept for plotting
    o_t      tanh(W_c [s_t; Σ_j α_tj h_j])                log p_θ(y_t | x, z, y_<t) = log softmax(E o_t)

The attention is Luong et al.'s (2015, "general"); E are the embeddings. It is a model of transformers as any
other: `Generator` holds it, `RagModule` trains it, `generate` decodes it. It keeps no cache, so that decoding
reads an answer's beginning again at each step.
"""

import math
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPastAndCrossAttentions,
    Seq2SeqLMOutput,
)


class LstmConfig(PreTrainedConfig):
    """hidden_size: width of embeddings, states and both LSTMs; num_hidden_layers: of each of the two."""

    model_type = "rag_lstm"

    def __init__(
        self,
        vocab_size: int = 50_265,
        hidden_size: int = 512,
        num_hidden_layers: int = 2,
        dropout: float = 0.1,
        bos_token_id: int | None = 0,
        pad_token_id: int | None = 1,
        eos_token_id: int | None = 2,
        decoder_start_token_id: int | None = 2,
        **others: Any,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.dropout = dropout
        self.bos_token_id = bos_token_id
        self.pad_token_id = pad_token_id
        self.eos_token_id = eos_token_id
        self.decoder_start_token_id = decoder_start_token_id
        self.use_cache = False
        others.setdefault("is_encoder_decoder", True)
        others.setdefault("tie_word_embeddings", True)
        super().__init__(**others)


class ScaledEmbedding(nn.Embedding):
    """Embeddings that are read √width times as large as they are compared with: the same matrix is input and output."""

    def forward(self, input: Int[Tensor, "rows tokens"]) -> Float[Tensor, "rows tokens width"]:
        return super().forward(input) * math.sqrt(self.embedding_dim)


class Encoder(nn.Module):
    """A bidirectional LSTM over the real tokens of each row."""

    def __init__(self, config: LstmConfig, embeddings: nn.Embedding):
        super().__init__()
        width, layers = config.hidden_size, config.num_hidden_layers
        self.embeddings = embeddings
        self.dropout = nn.Dropout(config.dropout)
        self.lstm = nn.LSTM(
            width, width, layers, batch_first=True, bidirectional=True, dropout=config.dropout * (layers > 1)
        )
        self.project = nn.Linear(2 * width, width)

    def forward(
        self,
        input_ids: Int[Tensor, "rows length"],
        attention_mask: Int[Tensor, "rows length"],
        **ignored: Any,
    ) -> BaseModelOutput:
        lengths = attention_mask.sum(dim=1).clamp(min=1).cpu()
        embedded = self.dropout(self.embeddings(input_ids))
        packed = pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(
            self.lstm(packed)[0], batch_first=True, total_length=input_ids.shape[1]
        )
        return BaseModelOutput(last_hidden_state=self.dropout(self.project(states)))  # type: ignore[arg-type]


class Decoder(nn.Module):
    """An LSTM over the answer so far, with attention to the context's states."""

    def __init__(self, config: LstmConfig, embeddings: nn.Embedding):
        super().__init__()
        width, layers = config.hidden_size, config.num_hidden_layers
        self.embeddings = embeddings
        self.dropout = nn.Dropout(config.dropout)
        self.start = nn.Linear(width, 2 * layers * width)
        self.lstm = nn.LSTM(width, width, layers, batch_first=True, dropout=config.dropout * (layers > 1))
        self.attend = nn.Linear(width, width, bias=False)
        self.combine = nn.Linear(2 * width, width, bias=False)

    def forward(
        self,
        input_ids: Int[Tensor, "rows tokens"],
        encoder_hidden_states: Float[Tensor, "rows length width"],
        encoder_attention_mask: Int[Tensor, "rows length"],
        output_attentions: bool = False,
        **ignored: Any,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """With `output_attentions`, `cross_attentions` is one tensor α (rows, 1, tokens, length)."""
        states, real = encoder_hidden_states, encoder_attention_mask.bool()
        weight = real.to(states.dtype) / real.sum(dim=1, keepdim=True).clamp(min=1)
        # Padding is taken out, not multiplied by zero: nobody says what stands there.
        states = states.masked_fill(~real.unsqueeze(2), 0.0)
        mean = torch.einsum("rl,rlw->rw", weight, states)
        first = torch.tanh(self.start(mean)).unflatten(1, (2, self.lstm.num_layers, -1)).permute(1, 2, 0, 3)
        hidden, _ = self.lstm(
            self.dropout(self.embeddings(input_ids)), (first[0].contiguous(), first[1].contiguous())
        )
        attention = self.attention(hidden, states, real)
        read = torch.einsum("rtl,rlw->rtw", attention, states)
        combined = torch.tanh(self.combine(torch.cat([hidden, read], dim=2)))
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=self.dropout(combined),
            cross_attentions=(attention.unsqueeze(1),) if output_attentions else None,  # type: ignore[arg-type]
        )

    def attention(
        self,
        hidden: Float[Tensor, "rows tokens width"],
        states: Float[Tensor, "rows length width"],
        real: Bool[Tensor, "rows length"],
    ) -> Float[Tensor, "rows tokens length"]:
        """α: how much each token of the answer reads of each token of the context. Sums to one."""
        scores = torch.einsum("rtw,rlw->rtl", self.attend(hidden), states)
        return scores.masked_fill(~real.unsqueeze(1), torch.finfo(scores.dtype).min).softmax(dim=2)


class LstmForConditionalGeneration(PreTrainedModel):
    """Encoder, decoder and the output layer, which is the embeddings."""

    config_class = LstmConfig
    main_input_name = "input_ids"
    _tied_weights_keys = {
        "encoder.embeddings.weight": "embeddings.weight",
        "decoder.embeddings.weight": "embeddings.weight",
        "lm_head.weight": "embeddings.weight",
    }

    def __init__(self, config: LstmConfig):
        super().__init__(config)
        self.embeddings = ScaledEmbedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.encoder = Encoder(config, self.embeddings)
        self.decoder = Decoder(config, self.embeddings)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        for name, weight in module.named_parameters(recurse=False):
            if "bias" in name:
                nn.init.zeros_(weight)
            elif isinstance(module, nn.Embedding):
                # Entries of size one where they are read; the same matrix gives logits of size one.
                nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
            else:
                nn.init.xavier_uniform_(weight)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embeddings = self.encoder.embeddings = self.decoder.embeddings = value

    def forward(
        self,
        input_ids: Int[Tensor, "rows length"],
        attention_mask: Int[Tensor, "rows length"],
        decoder_input_ids: Int[Tensor, "rows tokens"],
        output_attentions: bool = False,
        **ignored: Any,
    ) -> Seq2SeqLMOutput:
        states = self.encoder(input_ids, attention_mask).last_hidden_state
        decoded = self.decoder(decoder_input_ids, states, attention_mask, output_attentions)
        return Seq2SeqLMOutput(
            logits=self.lm_head(decoded.last_hidden_state),
            cross_attentions=decoded.cross_attentions,
            encoder_last_hidden_state=states,
        )


# So that `Generator.from_pretrained` opens a folder that holds one.
AutoConfig.register(LstmConfig.model_type, LstmConfig)
AutoModelForSeq2SeqLM.register(LstmConfig, LstmForConditionalGeneration)


def new_model(
    tokenizer: PreTrainedTokenizerBase,
    width: int = 512,
    layers: int = 2,
    dropout: float = 0.1,
) -> LstmForConditionalGeneration:
    """A model with random weights for a tokenizer; like BART's, its decoder starts with end-of-sequence."""
    known: Any = tokenizer
    return LstmForConditionalGeneration(
        LstmConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            num_hidden_layers=layers,
            dropout=dropout,
            bos_token_id=known.bos_token_id,
            pad_token_id=known.pad_token_id,
            eos_token_id=known.eos_token_id,
            decoder_start_token_id=known.eos_token_id,
        )
    )
