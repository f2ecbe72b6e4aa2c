"""Models with random weights, passages and questions, all from one seed: what every benchmark here runs on.

Words are made of syllables and drawn by Zipf's law; passages have 100 of them, as the paper's, and contexts
"title / text // question" about 145 tokens. Answers are made to be as long as asked for, so that no time depends on
what random weights happen to end with.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    DPRConfig,
    DPRContextEncoder,
    DPRQuestionEncoder,
    PreTrainedTokenizerFast,
)

from rag.generators.seq2seq import Generator
from rag.index.build import build
from rag.index.embed import embed
from rag.index.folder import Index
from rag.index.manifest import CorpusInfo, Manifest
from rag.index.passage import Passage
from rag.index.passages import PassageStore
from rag.index.vectors import EncoderInfo, open_vectors

SEED = 2020
VOCABULARY = 50_264  # that of facebook/rag-*
MAX_CONTEXT = 300  # tokens; transformers pads every context to it
MAX_TARGET = 16
WORDS, SYLLABLES = 6_000, 400
PASSAGE_WORDS, QUESTION_WORDS, TITLE_WORDS = 100, 9, 2


@dataclass(frozen=True)
class Size:
    """Widths and depths: the generator has `layers` in its encoder and as many in its decoder."""

    name: str
    hidden: int
    layers: int
    heads: int
    question_hidden: int
    question_layers: int
    question_heads: int


SIZES = {
    size.name: size
    for size in (
        Size("tiny", 32, 1, 2, 32, 1, 2),  # for tests
        Size("small", 256, 4, 8, 256, 4, 8),
        Size("base", 768, 6, 12, 768, 12, 12),
        Size("large", 1024, 12, 16, 768, 12, 12),
    )
}


class Text:
    """Titles, passages, questions and answers of made-up words, always in the same order."""

    def __init__(self, seed: int = SEED):
        self._draw = np.random.default_rng(seed)
        letters = [a + b for a in "bcdfghklmnprstvz" for b in "aeiou"]
        syllables = letters + [a + c for a in letters for c in "lnrst"][: SYLLABLES - len(letters)]
        lengths = self._draw.integers(1, 4, WORDS)
        self._words = ["".join(self._draw.choice(syllables, length)) for length in lengths]
        self._ranks = np.arange(1, WORDS + 1)

    def words(self, count: int) -> str:
        """By Zipf's law with an exponent of its own each time: some passages have rarer, longer words than others."""
        weights = self._ranks ** -self._draw.uniform(0.6, 1.4)
        return " ".join(self._words[w] for w in self._draw.choice(WORDS, count, p=weights / weights.sum()))

    def passages(self, count: int) -> list[tuple[str, str]]:
        return [(self.words(TITLE_WORDS), self.words(PASSAGE_WORDS)) for _ in range(count)]

    def questions(self, count: int) -> list[str]:
        return [self.words(QUESTION_WORDS) for _ in range(count)]

    def answers(self, count: int, tokens: int = MAX_TARGET) -> list[str]:
        """Answers of two words to about `tokens` tokens; the longer are cut where they are tokenised."""
        return [self.words(int(n)) for n in self._draw.integers(2, tokens, count)]


def generator_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE with BART's special tokens, which makes about 1.3 tokens of a word."""
    plain = tokenizers.Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=2_000,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    plain.train_from_iterator(texts, trainer)
    plain.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=plain,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def question_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Lower-cased whole words with BERT's special tokens."""
    plain = tokenizers.Tokenizer(models.WordLevel(unk_token="[UNK]"))
    plain.normalizer = normalizers.Lowercase()
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    plain.train_from_iterator(
        texts, trainers.WordLevelTrainer(special_tokens=special, vocab_size=30_000, show_progress=False)
    )
    plain.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=plain,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def bart(size: Size) -> BartForConditionalGeneration:
    """BART with random weights whose answers depend on what it reads and do not end by themselves."""
    config = BartConfig(
        vocab_size=VOCABULARY,
        d_model=size.hidden,
        encoder_layers=size.layers,
        decoder_layers=size.layers,
        encoder_attention_heads=size.heads,
        decoder_attention_heads=size.heads,
        encoder_ffn_dim=4 * size.hidden,
        decoder_ffn_dim=4 * size.hidden,
        max_position_embeddings=1024,
        dropout=0.0,
        # Far from uniform: every part of the network shows in what is generated.
        init_std=1.28 / math.sqrt(size.hidden),
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        forced_eos_token_id=None,
    )
    model = BartForConditionalGeneration(config).eval()
    model.final_logits_bias[0, :4] = -90.0  # no special token is generated
    return model


def dpr_config(size: Size) -> DPRConfig:
    bert = BertConfig(
        vocab_size=30_522,
        hidden_size=size.question_hidden,
        num_hidden_layers=size.question_layers,
        num_attention_heads=size.question_heads,
        intermediate_size=4 * size.question_hidden,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return DPRConfig(**bert.to_dict())


def question_encoder(size: Size) -> DPRQuestionEncoder:
    return DPRQuestionEncoder(dpr_config(size)).eval()


def passage_encoder(size: Size) -> DPRContextEncoder:
    return DPRContextEncoder(dpr_config(size)).eval()


def generator(size: Size, tokenizer: PreTrainedTokenizerFast) -> Generator:
    torch.manual_seed(SEED)
    return Generator(bart(size), tokenizer, max_context_length=MAX_CONTEXT, max_target_length=MAX_TARGET)


def index(passages: Sequence[Passage], dim: int, folder: Path, with_faiss: bool = True) -> Index:
    """An index with random vectors; without FAISS one that serves exact search alone."""
    store = PassageStore.write(passages, folder / "passages")
    draw = np.random.default_rng(SEED)

    def vectors(batch: Sequence[Passage]) -> np.ndarray:
        return 0.1 * draw.standard_normal((len(batch), dim), np.float32)

    info = EncoderInfo("random", "random", "random")
    embed(store, vectors, folder, info, show_progress=False)
    if with_faiss:
        build(folder, "Flat", show_progress=False)
        return Index.open(folder)
    _, made = open_vectors(folder, store)
    manifest = Manifest(
        encoder=info,
        corpus=CorpusInfo("", store.sha256, len(store)),
        dim=dim,
        shard_size=made.shard_size,
        factory="",
        metric="inner product",
        search={"refine": 1},
        recall={},
        recall_queries="",
        ms_per_query=0.0,
        threads=1,
        seconds={},
        versions={},
        files={},
    )
    manifest.write(folder / "manifest.json")
    return Index(folder, manifest, store, made, None)
