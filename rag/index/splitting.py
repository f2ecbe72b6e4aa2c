"""Cutting text into passages (section 3), in any language: by words, sentences or tokens (see rag/words.py).

Words are counted as Unicode segments them; two characters of a script that is written without spaces are one.
"""

from collections.abc import Iterable, Iterator
from functools import cache
from itertools import islice
from typing import Any

import regex

from rag.errors import UserError, one_line
from rag.index.reading import SIZE, CorpusReading
from rag.words import split_units

# A sentence ends before a space and what does not go on in small letters; an initial or a title does not end one.
_SENTENCE = regex.compile(
    r"(?<=[.!?…][\"'”’)\]]*)(?<!\b(?:\p{Lu}|Mr|Mrs|Ms|Dr|St|Lt|Gen|Col|Jr|Sr|No|vs|e\.g|i\.e|ca|approx)\.)"
    r"\s+(?=[\p{Lu}\p{N}\"“'‘(\[*])"
    r"|(?<=[\u0964\u0965\u061F\u06D4\u1362\u17D4\u104B][\"'”’)\]]*)\s+"  # Devanagari's, Arabic's, Ethiopic's, … ends
    r"|(?<=[。！？｡][」』”’）]*)(?![」』”’）。！？｡])\s*"
)
_NO_SPACE_AFTER = regex.compile(r"[。！？｡][」』”’）]*$")
_COUNTED_AT_ONCE = 1_000  # words


def split_words(text: str, words: int = SIZE) -> list[str]:
    """Cut `text` into disjoint pieces of `words` words, the last one shorter (section 3)."""
    return list(pieces(text.split(), words))


def pieces(words: Iterable[str], length: int, overlap: int = 0) -> Iterator[str]:
    """Pieces of `length` words out of a stream of what stands between spaces; `overlap` words of one begin the next."""
    units = split_units(words)
    held: list[str] = []
    while new := list(islice(units, length - len(held))):
        held += new
        yield "".join(held).removeprefix(" ")
        held = held[-overlap:] if overlap else []


def cut(paragraphs: Iterable[str], reading: CorpusReading) -> Iterator[str]:
    """The pieces of a text by words, sentences or tokens, as a stream."""
    if reading.split == "sentences":
        yield from packed(paragraphs, reading.length, reading.overlap, whole=False)
        return
    words = (word for paragraph in paragraphs for word in paragraph.split())
    if reading.split == "tokens":
        assert reading.tokenizer is not None
        yield from _token_pieces(words, _opened(reading.tokenizer), reading.length, reading.overlap)
    else:
        yield from pieces(words, reading.length, reading.overlap)


def sentences(text: str) -> list[str]:
    """The sentences of a text; a line's end ends one."""
    return [sentence for line in text.split("\n") for sentence in _SENTENCE.split(line) if sentence]


def packed(paragraphs: Iterable[str], words: int, overlap: int = 0, whole: bool = True) -> Iterator[str]:
    """Paragraphs, a line each, in pieces of at most `words` words; those that are longer are cut between sentences.

    overlap: the last sentences of a piece, of so many words at most, begin the next one. whole: a paragraph goes whole
    to the next piece rather than in two parts, where it fits there.
    """
    held: list[tuple[str, str]] = []  # what stands before it, a paragraph or sentence
    count, new = 0, False  # words that are held; whether they are more than what is repeated

    def text() -> str:
        return "".join(between + each for between, each in held).lstrip()

    def begin(room: int) -> None:
        nonlocal held, count, new
        held = _last_sentences(held, min(overlap, room)) if overlap else []
        count, new = sum(_count(each) for _, each in held), False

    for paragraph in paragraphs:
        size = _count(paragraph)
        between = "\n"
        if whole and held and count + size > words:
            if new:
                yield text()
            begin(words - size)
        for part in [paragraph] if whole and size <= words else sentences(paragraph):
            if not (size := _count(part)):
                continue
            if count + size > words and held:
                if new:
                    yield text()
                begin(words - size)
            if size > words:
                *complete, part = pieces(part.split(), words, overlap)
                yield from complete
                size = _count(part)
            held.append((between, part))
            count, new, between = count + size, True, _after(part)
    if new:
        yield text()


def _last_sentences(held: list[tuple[str, str]], words: int) -> list[tuple[str, str]]:
    """The last sentences of what is held, as many as have `words` words between them."""
    last: list[tuple[str, str]] = []
    for between, part in reversed(held):
        parts = sentences(part)
        for number, sentence in reversed([*enumerate(parts)]):
            if (words := words - _count(sentence)) < 0:
                return last
            last.insert(0, (_after(parts[number - 1]) if number else between, sentence))
    return last


def _after(sentence: str) -> str:
    """What stands between a sentence and the next one."""
    return "" if _NO_SPACE_AFTER.search(sentence) else " "


def _count(text: str) -> int:
    return sum(1 for _ in split_units(text.split()))


def _token_pieces(words: Iterable[str], tokenizer: Any, size: int, overlap: int) -> Iterator[str]:
    """Pieces of whole words of at most `size` tokens; a word of more is cut.

    Words are counted one by one, each with the space before it, which is how tokenizers see them.
    """
    held: list[tuple[str, int]] = []
    count, new = 0, False
    for unit, tokens in _counted(split_units(words), tokenizer, size):
        if count + tokens > size and held:
            if new:
                yield "".join(each for each, _ in held).removeprefix(" ")
            while held and (count > overlap or count + tokens > size):
                count -= held.pop(0)[1]
            new = False
        held.append((unit, tokens))
        count, new = count + tokens, True
    if new:
        yield "".join(each for each, _ in held).removeprefix(" ")


def _counted(units: Iterable[str], tokenizer: Any, size: int) -> Iterator[tuple[str, int]]:
    """Words with their number of tokens; parts of one that has more than `size`."""
    units = iter(units)
    while some := list(islice(units, _COUNTED_AT_ONCE)):
        found = tokenizer(some, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        for unit, offsets in zip(some, found["offset_mapping"], strict=True):
            if len(offsets) <= size:
                yield unit, max(1, len(offsets))
                continue
            begin = 0
            for last in range(size - 1, len(offsets) + size - 1, size):
                end = offsets[last][1] if last < len(offsets) - 1 else len(unit)
                if end > begin:  # several tokens may be of one character
                    yield unit[begin:end], min(size, len(offsets) - last + size - 1)
                begin = max(begin, end)


@cache
def _opened(name: str) -> Any:
    from transformers import AutoTokenizer  # takes seconds to import

    from rag import hub
    from rag.minilm import at_hand

    try:
        tokenizer = AutoTokenizer.from_pretrained(at_hand(name))
    except (*hub.FAILURES, ValueError, TypeError, KeyError, ImportError) as error:
        reason = one_line(str(error)).partition(". ")[0]
        raise UserError(
            f"corpus.tokenizer={name} cannot be opened ({reason}): give a folder or hub name of a tokenizer"
        ) from error
    if not tokenizer.is_fast:
        raise UserError(f"corpus.tokenizer={name} does not say where its tokens stand: give one that is fast")
    return tokenizer
