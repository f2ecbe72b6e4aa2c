"""What every test shares: no network, one thread, fixed seeds, checked shapes, tiny models made on the spot.

Nothing is downloaded and nothing replaces a component: the models are Hugging Face's own classes with random
weights, the tokenizers are trained on a few sentences, and the index is built by rag/index/folder.py.
"""

import atexit
import gc
import os
import re
import shutil
import sys
import tempfile

# Before anything imports transformers or torch.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAG_CACHE"] = tempfile.mkdtemp(prefix="rag-tests-")  # hashes that are remembered
atexit.register(shutil.rmtree, os.environ["RAG_CACHE"], ignore_errors=True)
marks = [value for option, value in zip(sys.argv, sys.argv[1:], strict=False) if option == "-m"]
if not (
    marks and re.search(r"(?<!not )\bgpu\b", marks[-1])
):  # GPUs are for `-m gpu`: all else is the same everywhere
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("OMP_NUM_THREADS", "1")

os.fsync = lambda descriptor: (
    None
)  # no test pulls the plug, and waiting for the disk takes a twentieth of their time

# The thousands of objects of modules and of collected tests are none of the cyclic garbage collector's business:
# looking at all of them again and again takes a fifth of the time.
gc.disable()

# Compiled modules are kept, whatever the environment says: making them takes ten seconds a process, and less of each of
# the commands that tests start.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

import composing
import shapes

# Every annotated tensor's shape and type is checked while the tests run. Before anything imports rag.
shapes.install()
composing.install()

import random
from collections.abc import Sequence
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    DPRConfig,
    DPRContextEncoder,
    DPRQuestionEncoder,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from rag.encoders.dpr import PassageEncoder, QuestionEncoder
from rag.encoders.protocol import AnyPassageEncoder
from rag.generators.seq2seq import Generator
from rag.index.build import build
from rag.index.embed import embed
from rag.index.faiss_types import IndexType
from rag.index.folder import Index
from rag.index.passage import Passage
from rag.index.passages import PassageStore
from rag.index.tokens import tokenizer_fingerprint
from rag.index.vectors import EncoderInfo
from rag.retrievers.dense import DenseRetriever

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
hypothesis.settings.register_profile("rag", deadline=None, derandomize=True, max_examples=40)
hypothesis.settings.load_profile("rag")

# (title, text) of the tiny world's passages; its questions and answers below.
PASSAGES = [
    ("Paris", "Paris is the capital of France and lies on the river Seine."),
    ("Berlin", "Berlin is the capital of Germany, on the river Spree."),
    ("Rome", "Rome is the capital of Italy. The Tiber runs through it!"),
    ("Madrid", "Madrid, the capital of Spain, lies high above the sea."),
    ("Hemingway", "Ernest Hemingway wrote The Sun Also Rises in 1926."),
    ("Seine", "The Seine is a river of 777 km in northern France."),
    ("Tiber", "The Tiber is a river in Italy: 406 km long."),
]
QUESTIONS = [
    "what is the capital of France?",
    "which river runs through Rome",
    "who wrote The Sun Also Rises in 1926?",
]
ANSWERS = ["Paris", "the Tiber", "Ernest Hemingway"]
SENTENCES = [" / ".join(passage) for passage in PASSAGES] + QUESTIONS + ANSWERS


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


# -- tokenizers ----------------------------------------------------------------------------------


def word_tokenizer(sentences: Sequence[str] = SENTENCES) -> PreTrainedTokenizerFast:
    """BART's special tokens and templates around whole words and marks of punctuation."""
    tokenizer = tokenizers.Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator([*sentences, "/ //"], trainers.WordLevelTrainer(special_tokens=special))
    return _bart_like(tokenizer)


def byte_tokenizer(sentences: Sequence[str] = SENTENCES, size: int = 400) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as BART's own: a space belongs to the word after it."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences, trainer)
    return _bart_like(tokenizer)


def _bart_like(tokenizer: tokenizers.Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def t5_tokenizer(sentences: Sequence[str] = SENTENCES) -> PreTrainedTokenizerFast:
    """Unigram pieces after "▁", nothing before a text and </s> after it, as T5's."""
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator([*sentences, "/ //"], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def bert_tokenizer(sentences: Sequence[str] = SENTENCES) -> PreTrainedTokenizerFast:
    """BERT's special tokens, templates and lower-casing around whole words."""
    tokenizer = tokenizers.Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(sentences, trainers.WordLevelTrainer(special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


# -- models --------------------------------------------------------------------------------------


def tiny_bart(vocab_size: int, **settings: object) -> BartForConditionalGeneration:
    """BART with random weights, large enough for its predictions to differ; in eval mode."""
    config = BartConfig(
        vocab_size=vocab_size,
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        max_position_embeddings=128,
        init_std=0.3,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        forced_eos_token_id=None,
        **settings,
    )
    model = BartForConditionalGeneration(config).eval()
    torch.nn.init.normal_(
        model.final_logits_bias, std=0.3
    )  # zero in a fresh model: a bug there would not show
    return model


def tiny_t5(vocab_size: int, **settings: object) -> T5ForConditionalGeneration:
    """T5 with random weights; in eval mode."""
    config = T5Config(
        vocab_size=vocab_size,
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=2,
        num_heads=2,
        initializer_factor=3.0,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
        **settings,
    )
    return T5ForConditionalGeneration(config).eval()


def tiny_dpr_config(vocab_size: int, **settings: object) -> DPRConfig:
    bert = BertConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    return DPRConfig(**{**bert.to_dict(), **settings})


def tiny_question_encoder(vocab_size: int, **settings: object) -> DPRQuestionEncoder:
    return DPRQuestionEncoder(tiny_dpr_config(vocab_size, **settings)).eval()


def tiny_passage_encoder(vocab_size: int, **settings: object) -> DPRContextEncoder:
    return DPRContextEncoder(tiny_dpr_config(vocab_size, **settings)).eval()


# -- an index and whole models -------------------------------------------------------------------


def build_tiny_index(
    folder: Path,
    encoder: AnyPassageEncoder,
    passages=PASSAGES,
    kind: IndexType | str = "Flat",
    info: EncoderInfo | None = None,
    shard_size: int = 50_000,
) -> Index:
    """A real index folder over (title, text) pairs, with ids "1", "2", …"""
    rows = [Passage(str(number), *passage) for number, passage in enumerate(passages, start=1)]
    store = PassageStore.write(rows, folder / "passages")
    info = info or EncoderInfo("tiny", encoder.fingerprint(), tokenizer_fingerprint(encoder.tokenizer))
    embed(store, encoder.encode, folder, info, shard_size, show_progress=False)
    build(folder, kind, show_progress=False)
    return Index.open(folder)


@pytest.fixture(scope="session")
def passage_encoder() -> PassageEncoder:
    torch.manual_seed(1)
    tokenizer = bert_tokenizer()
    return PassageEncoder(tiny_passage_encoder(len(tokenizer)), tokenizer)


@pytest.fixture(scope="session")
def index(tmp_path_factory: pytest.TempPathFactory, passage_encoder: PassageEncoder) -> Index:
    """The seven passages, exact search."""
    return build_tiny_index(tmp_path_factory.mktemp("index") / "tiny", passage_encoder)


@pytest.fixture
def question_encoder() -> QuestionEncoder:
    tokenizer = bert_tokenizer()
    return QuestionEncoder(tiny_question_encoder(len(tokenizer)), tokenizer)


@pytest.fixture
def retriever(question_encoder: QuestionEncoder, index: Index) -> DenseRetriever:
    return DenseRetriever(question_encoder, index)


@pytest.fixture
def bart() -> Generator:
    tokenizer = word_tokenizer()
    return Generator(tiny_bart(len(tokenizer)), tokenizer)


@pytest.fixture
def t5() -> Generator:
    tokenizer = t5_tokenizer()
    return Generator(tiny_t5(len(tokenizer)), tokenizer)
