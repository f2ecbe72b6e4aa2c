"""Section 2.3: contexts from arrays of tokens, rows of different lengths laid end to end."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from jaxtyping import Int64
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

import rag.generators.lstm  # noqa: F401  so that folders that hold such a model are known to transformers
from rag.errors import UserError


@dataclass(frozen=True)
class Ragged:
    """Rows of tokens of different lengths, laid end to end."""

    tokens: Int64[np.ndarray, " total"]
    lengths: Int64[np.ndarray, " rows"]

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> "Ragged":
        lengths = np.fromiter((len(row) for row in rows), np.int64, len(rows))
        tokens = np.fromiter((token for row in rows for token in row), np.int64, int(lengths.sum()))
        return cls(tokens, lengths)

    def repeat(self, times: int) -> "Ragged":
        """Each row `times` times in a row."""
        return Ragged(
            self.tokens[positions(np.repeat(self.starts, times), np.repeat(self.lengths, times))],
            np.repeat(self.lengths, times),
        )

    @property
    def starts(self) -> Int64[np.ndarray, " rows"]:
        return np.cumsum(self.lengths) - self.lengths


def positions(
    starts: Int64[np.ndarray, " rows"], lengths: Int64[np.ndarray, " rows"]
) -> Int64[np.ndarray, " total"]:
    """The integers starts[r], …, starts[r] + lengths[r] − 1 of every row r, laid end to end."""
    first = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum())) + np.repeat(starts - first, lengths)


def token_rows(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], special: bool = False
) -> list[list[int]]:
    """The token ids of each text, whole, with or without the tokenizer's special tokens."""
    if not texts:
        return []
    encoded = tokenizer(
        list(texts), add_special_tokens=special, truncation=False, padding=False, verbose=False
    )
    return cast(list[list[int]], encoded["input_ids"])


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The tokens a tokenizer puts before and after a text: ([<s>], [</s>]) for BART, ([], [</s>]) for T5."""
    plain, whole = token_rows(tokenizer, ["a"])[0], token_rows(tokenizer, ["a"], special=True)[0]
    for start in range(len(whole) - len(plain) + 1 if plain else 0):
        if whole[start : start + len(plain)] == plain:
            return whole[:start], whole[start + len(plain) :]
    raise UserError(
        "the generator's tokenizer makes nothing of the letter a, or something else when it adds special "
        "tokens: use one with an unknown token or a fuller vocabulary"
    )
