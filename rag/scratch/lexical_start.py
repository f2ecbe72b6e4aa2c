"""Bi-encoders that start as a comparison of words, for corpora that are too large to learn matching from nothing.

An encoder with random weights has to discover that equal words match, one word at a time. This one knows it at first:
it is a BERT of one layer whose [CLS] takes the mean of the word vectors, weighted by the words' rarity,

    v(x) ∝ Σ_{w ∈ x} idf(w) r(w),    v(x)ᵀv(z) ≈ Σ_{w ∈ x ∩ z} idf(w)²,

because random vectors r(w) of several hundred dimensions are nearly orthogonal: the cosine of two TF-IDF vectors, up to
the noise of a random projection, about 1/√D. Training then moves the words, their weights and everything else. Both
encoders share the word vectors while they are trained together, so that a word that no question has used yet still
means the same on either side.

How it is written into BERT's weights: dimension 0 of a word vector holds log idf, which the query of [CLS] turns into
attention; dimension 1 marks [CLS]; values pass through (W_o W_v = copy · identity); both dimensions end at the gain of
the layer norm behind the attention; the feed-forward part starts at nothing.
"""

import math
from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import nn
from transformers import DPRConfig, DPRContextEncoder, DPRQuestionEncoder

from rag.encoders.dpr import PassageEncoder, QuestionEncoder
from rag.index.passage import Passage
from rag.index.readers import read_passages
from rag.index.reading import AS_USUAL, CorpusReading
from rag.scratch.one_layer import OneLayerPassageEncoder, OneLayerQuestionEncoder

_UNSEEN = -8.0  # log-weight of [CLS], separators and padding: they are not attended to


def lexical_encoders(
    tokenizer: Any,  # a PreTrainedTokenizerFast
    passages: str,
    width: int = 768,
    heads: int = 12,
    feedforward: int = 768,
    positions: int = 256,
    dropout: float = 0.0,
    copy_strength: float = 8.0,
    score_scale: float = 0.05,
    idf_power: float = 1.0,
    max_passages: int = 50_000,
    reading: CorpusReading = AS_USUAL,
) -> tuple[QuestionEncoder, PassageEncoder]:
    """A question and a passage encoder that share their word vectors; idf from the first `max_passages` passages.

    copy_strength: how much the mean of the words outweighs the constant that [CLS] brings.
    score_scale: |v|² is D times this, so that scores are about that large where a question and a passage are equal.
    """
    config = DPRConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=1,
        num_attention_heads=heads,
        intermediate_size=feedforward,
        max_position_embeddings=positions,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=0.02,
        pad_token_id=tokenizer.pad_token_id,
    )
    question_model, passage_model = DPRQuestionEncoder(config), DPRContextEncoder(config)
    question, passage = question_model.question_encoder.bert_model, passage_model.ctx_encoder.bert_model
    idf = inverse_document_frequencies(tokenizer, islice(read_passages(passages, reading), max_passages))
    start_as_words(question, tokenizer, idf_power * np.log(idf), copy_strength, score_scale)
    passage.load_state_dict(question.state_dict())
    passage.embeddings.word_embeddings.weight = question.embeddings.word_embeddings.weight
    return (
        OneLayerQuestionEncoder(question_model, tokenizer, positions),
        OneLayerPassageEncoder(passage_model, tokenizer, positions),
    )


def inverse_document_frequencies(
    tokenizer: Any, passages: Iterable[Passage]
) -> Float32[np.ndarray, " vocabulary"]:
    """BM25's idf of every token, log(1 + (N − n + ½) / (n + ½)), n of N passages holding it."""
    counts = np.zeros(len(tokenizer), np.int64)
    total = 0
    stream = iter(passages)
    while chunk := list(islice(stream, 1000)):
        texts = [f"{passage.title} {passage.text}" for passage in chunk]
        for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]:
            counts[np.unique(ids)] += 1
        total += len(chunk)
    return np.log1p((total - counts + 0.5) / (counts + 0.5)).astype(np.float32)


@torch.no_grad()
def start_as_words(
    bert: Any,
    tokenizer: Any,
    log_weights: Float32[np.ndarray, " vocabulary"],
    copy_strength: float,
    score_scale: float,
) -> None:
    """Overwrite the weights of a BERT of one layer as the head of this file says."""
    embeddings, layer = bert.embeddings, bert.encoder.layer[0]
    attention, out = layer.attention.self, layer.attention.output
    std = 0.09
    words = embeddings.word_embeddings.weight
    nn.init.normal_(words, std=std)
    words[:, :2] = 0
    words[:, 0] = std * torch.from_numpy(log_weights - log_weights.mean())
    words[tokenizer.all_special_ids, 0] = std * _UNSEEN
    # [CLS] is a spike on dimension 1, which the layer norm behind the embeddings makes √D long.
    width = words.shape[1]
    words[tokenizer.cls_token_id] = 0
    words[tokenizer.cls_token_id, :2] = torch.tensor([_UNSEEN, math.sqrt(width)]) * std
    nn.init.normal_(embeddings.position_embeddings.weight, std=std / 50)
    nn.init.normal_(embeddings.token_type_embeddings.weight, std=std / 50)

    for each in (attention.query, attention.key):
        nn.init.normal_(each.weight, std=0.005)
        nn.init.zeros_(each.bias)
    attention.query.bias.unflatten(0, (attention.num_attention_heads, -1))[:, 0] = math.sqrt(
        attention.attention_head_size
    )
    attention.key.weight.unflatten(0, (attention.num_attention_heads, -1))[:, 0, 0] = 1
    rotation = torch.linalg.qr(torch.randn(width, width)).Q * math.sqrt(copy_strength)
    attention.value.weight.copy_(rotation)
    out.dense.weight.copy_(rotation.T)
    out.LayerNorm.weight[:2] = 0
    nn.init.zeros_(layer.output.dense.weight)
    layer.output.LayerNorm.weight.fill_(math.sqrt(score_scale))
