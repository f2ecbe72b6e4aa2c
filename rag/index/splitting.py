"""Cutting text into disjoint passages of 100 words (section 3), in any language (see rag/words.py)."""

from collections.abc import Iterable, Iterator
from itertools import islice

from rag.words import split_units

WORDS_PER_PASSAGE = 100


def split_words(text: str, words: int = WORDS_PER_PASSAGE) -> list[str]:
    """Cut `text` into disjoint pieces of `words` words, the last one shorter (section 3).

    Two characters of a script that is written without spaces count as a word.
    """
    return list(pieces(text.split(), words))


def pieces(words: Iterable[str], length: int) -> Iterator[str]:
    """Pieces of `length` words out of a stream of what stands between spaces."""
    units = split_units(words)
    while piece := list(islice(units, length)):
        yield "".join(piece).removeprefix(" ")
