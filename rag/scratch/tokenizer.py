"""A tokenizer learned from the corpus: whole words for a small closed world, byte-level BPE for real text."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from rag.index.readers import read_passages
from rag.index.reading import AS_USUAL, CorpusReading
from rag.progress import progress_bar
from rag.tasks.qa import read_examples

SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]  # BART's, in BART's order
SEPARATORS = ["/", "//"]  # of "title / text // question"


def train_word_tokenizer(
    passages: list[str],
    questions: list[str] | None = None,
    max_words: int = 50_000,
    reading: CorpusReading = AS_USUAL,
) -> PreTrainedTokenizerFast:
    """Every lower-cased word and every punctuation mark of the files is a token; others become <unk>."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer: Any = trainers.WordLevelTrainer(
        vocab_size=max_words, special_tokens=SPECIAL_TOKENS, show_progress=False
    )
    tokenizer.train_from_iterator([*SEPARATORS, *_texts(passages, questions, None, reading)], trainer)
    return _wrap(tokenizer)


def train_bpe_tokenizer(
    passages: list[str],
    questions: list[str] | None = None,
    vocab_size: int = 16_384,
    max_passages: int = 50_000,
    reading: CorpusReading = AS_USUAL,
) -> PreTrainedTokenizerFast:
    """Byte-level BPE over lower-cased text, learned from the first `max_passages` passages of each file."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer: Any = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(passages, questions, max_passages, reading), trainer)
    return _wrap(tokenizer)


def _texts(
    passages: Iterable[str | Path],
    questions: Iterable[str | Path] | None,
    max_passages: int | None,
    reading: CorpusReading,
) -> Iterator[str]:
    with progress_bar("learning the tokenizer", None, "texts") as advance:
        for path in passages:
            for passage in islice(read_passages(path, reading), max_passages):
                yield f"{passage.title} {passage.text}"
                advance(1)
        for path in questions or ():
            for example in read_examples(path):
                yield example.question
                advance(1)


def _wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Give it BART's special tokens; the same tokenizer serves the generator and, with <s> as [CLS], the encoders."""
    start, end = tokenizer.token_to_id("<s>"), tokenizer.token_to_id("</s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> $B:1 </s>:1",
        special_tokens=[("<s>", start), ("</s>", end)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
        cls_token="<s>",
        sep_token="</s>",
        clean_up_tokenization_spaces=False,
    )
