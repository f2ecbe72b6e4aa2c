"""Small BART, LSTM and DPR models; BART's and DPR's starting weights learn to copy from a passage within minutes.

A reader from scratch has to discover that equal words match and that what follows a match can be copied. Three changes
to the starting weights put that within reach of a few hundred steps; none changes what the model can express:

- queries and keys start equal (W_q = W_k), so that a token attends to its own kind;
- values pass through (W_o W_v ≈ strength · identity), so that what is attended to arrives unchanged;
- learned positions start as sinusoids, so that neighbours are alike, and weaker than words where order matters little.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    DPRConfig,
    DPRContextEncoder,
    DPRQuestionEncoder,
    PreTrainedModel,
)

from rag.encoders.dpr import PassageEncoder, QuestionEncoder
from rag.generators.lstm import new_model as new_lstm_model
from rag.generators.seq2seq import Generator
from rag.scratch.one_layer import OneLayerPassageEncoder, OneLayerQuestionEncoder


def new_generator(
    tokenizer: Any,  # a PreTrainedTokenizerFast
    width: int = 128,
    layers: int = 2,
    heads: int = 4,
    feedforward: int = 256,
    positions: int = 128,
    dropout: float = 0.0,
    std: float = 0.09,
    copy_strength: float = 0.8,
    position_strength: float = 1.0,
    max_context_length: int = 128,
    max_target_length: int = 48,
) -> Generator:
    """A BART with `layers` encoder and as many decoder layers."""
    config = BartConfig(
        vocab_size=len(tokenizer),
        d_model=width,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=feedforward,
        decoder_ffn_dim=feedforward,
        max_position_embeddings=positions,
        dropout=dropout,
        attention_dropout=dropout,
        activation_dropout=0.0,
        init_std=std,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.eos_token_id,
        forced_eos_token_id=None,
    )
    model = BartForConditionalGeneration(config)
    start_weights(model, std, copy_strength, position_strength)
    return Generator(model, tokenizer, max_context_length, max_target_length)


def new_lstm(
    tokenizer: Any,  # a PreTrainedTokenizerFast
    width: int = 512,
    layers: int = 2,
    dropout: float = 0.1,
    max_context_length: int = 300,
    max_target_length: int = 25,
) -> Generator:
    """The generator from before the Transformer (rag/generators/lstm.py); it needs no starting weights."""
    return Generator(
        new_lstm_model(tokenizer, width, layers, dropout), tokenizer, max_context_length, max_target_length
    )


def new_encoders(
    tokenizer: Any,  # a PreTrainedTokenizerFast
    width: int = 128,
    layers: int = 1,
    heads: int = 4,
    feedforward: int = 256,
    positions: int = 128,
    dropout: float = 0.0,
    std: float = 0.09,
    copy_strength: float = 0.8,
    position_strength: float = 0.2,
    score_scale: float = 0.1,
) -> tuple[QuestionEncoder, PassageEncoder]:
    """A question and a passage encoder that start from the same weights.

    score_scale: the vectors leave a layer norm with D ≈ |v|², so that scores d(z)ᵀq(x) would start in the hundreds and
    p_η(z|x) as a one-hot; the last layer norm's gain is √score_scale instead of 1.
    """
    config = DPRConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=feedforward,
        max_position_embeddings=positions,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=std,
        pad_token_id=tokenizer.pad_token_id,
    )
    question_model, passage_model = DPRQuestionEncoder(config), DPRContextEncoder(config)
    bert = question_model.question_encoder.bert_model
    start_weights(bert, std, copy_strength, position_strength)
    with torch.no_grad():
        last: Any = bert.encoder.layer[-1]
        last.output.LayerNorm.weight.fill_(math.sqrt(score_scale))
    passage_model.ctx_encoder.bert_model.load_state_dict(bert.state_dict())
    classes = (
        (OneLayerQuestionEncoder, OneLayerPassageEncoder)
        if layers == 1
        else (QuestionEncoder, PassageEncoder)
    )
    return classes[0](question_model, tokenizer, positions), classes[1](passage_model, tokenizer, positions)


@torch.no_grad()
def start_weights(model: PreTrainedModel, std: float, copy_strength: float, position_strength: float) -> None:
    """Overwrite a freshly made BART's or BERT's weights as the head of this file says.

    position_strength: size of the position vectors relative to the word vectors.
    """
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            nn.init.normal_(weight, std=std)
            if "position" in name:
                weight.copy_(sinusoids(*weight.shape) * std * math.sqrt(2) * position_strength)
    for name, module in model.named_modules():
        names = (
            ("q_proj", "k_proj", "v_proj", "out_proj")
            if hasattr(module, "q_proj")
            else ("query", "key", "value")
        )
        if not hasattr(module, names[0]):
            continue
        attention: Any = module
        query, key, value = (getattr(attention, each) for each in names[:3])
        key.weight.copy_(query.weight)
        out: Any = getattr(attention, "out_proj", None)
        if out is None:  # BERT keeps it outside
            out = model.get_submodule(name.removesuffix("self") + "output.dense")
        rotation = torch.linalg.qr(torch.randn_like(value.weight)).Q * math.sqrt(copy_strength)
        value.weight.copy_(rotation)
        out.weight.copy_(rotation.T)


def sinusoids(positions: int, width: int) -> Tensor:
    """The fixed position vectors of the first Transformer, (positions, width)."""
    angles = torch.arange(positions).unsqueeze(1) / 10_000 ** (torch.arange(0, width, 2) / width)
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)
