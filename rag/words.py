"""What a word is, in any language: for retrieval by words, splitting, highlighting and the match of answers.

Words follow Unicode's text segmentation (UAX #29): runs of letters, numerals and connectors with their combining
marks, so that Hindi's and Arabic's vowel signs are part of the word. Two tailorings, the first of which UAX #29
suggests itself: an apostrophe, a full stop or a comma inside a word separates ("l'objectif", "Müller's", "end.Next"),
which finds more of English and French than keeping them; and scripts that are written without spaces have no word
boundaries that a rule can see. Those are Han, the kana, and Unicode's "complex context" scripts (Thai, Lao, Khmer,
Myanmar and their neighbours): for retrieval their runs become overlapping pairs of characters, which need no
dictionary. A character is a grapheme cluster: a letter with its marks.
"""

import unicodedata
from collections.abc import Iterable, Iterator
from itertools import pairwise

import regex

_SPACELESS = r"[[\p{Han}\p{Hiragana}\p{Katakana}\u30FC\uFF70\p{Line_Break=SA}]&&[\p{L}\p{N}\p{M}]]"
_WORD = r"[[\p{L}\p{N}\p{M}\p{Pc}]--" + _SPACELESS + "]"
_CHARACTER = _SPACELESS + r"\p{M}*"  # with marks that belong to any script, such as a kana's voicing
_HAS_SPACELESS = regex.compile(f"(?V1){_SPACELESS}")
_RUNS = regex.compile(f"(?V1)((?:{_CHARACTER})+)|{_WORD}+")
_ASCII_WORDS = regex.compile(r"(?a)\w+")
_PARTS = regex.compile(f"(?V1)((?:{_CHARACTER})+)|({_WORD}+)|.", regex.DOTALL)
_PLACES = regex.compile(f"(?V1){_CHARACTER}|[[\\p{{L}}\\p{{N}}\\p{{M}}]--{_SPACELESS}]+")
_HALF_WORD = regex.compile(f"(?V1){_WORD}+$")
_WORD_BEGINS = regex.compile(f"(?V1){_WORD}")
_CHARACTERS = regex.compile(r"\X")
# Joiners, direction marks and soft hyphens are part of no word; a zero-width space only within spaceless scripts.
_INVISIBLE = regex.compile(r"(?V1)[\p{Cf}--\u200B]|(?<=\p{Line_Break=SA})\u200B(?=\p{Line_Break=SA})")
_ANSWER_TOKENS = regex.compile(
    f"(?V1){_CHARACTER}|[[\\p{{L}}\\p{{N}}\\p{{M}}]--{_SPACELESS}]+|[^\\p{{Z}}\\p{{C}}]"
)


def search_terms(text: str) -> list[str]:
    """The terms that a text is found by: words of two letters or more, and pairs of characters without spaces.

    Compatibility forms are unified (NFKC) and case is folded.
    """
    if text.isascii():
        return [word for word in _ASCII_WORDS.findall(text.lower()) if len(word) > 1]
    text = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text)).casefold()
    terms: list[str] = []
    for match in _RUNS.finditer(text):
        if match[1] is None:
            if len(match[0]) > 1:
                terms.append(match[0])
            continue
        characters = _CHARACTERS.findall(match[1])
        terms += map("".join, pairwise(characters)) if len(characters) > 1 else characters
    return terms


def split_units(words: Iterable[str]) -> Iterator[str]:
    """Words as they are counted when a text is split, a space before each that had one: " The", " cat".

    words: what stands between spaces. Two characters of a script without spaces count as a word; punctuation goes with
    what it follows.
    """
    for word in words:
        if word.isascii() or not _HAS_SPACELESS.search(word):
            yield f" {word}"
            continue
        parts = [" "]
        for match in _PARTS.finditer(word):
            if match[1] is not None:
                characters = _CHARACTERS.findall(match[1])
                new = ["".join(characters[i : i + 2]) for i in range(0, len(characters), 2)]
            else:
                new = [match[0]]
            if match[1] is None and match[2] is None or not parts[-1].strip():
                parts[-1] += new.pop(0)  # punctuation, or the first of all
            parts += new
        yield from parts


def word_places(text: str) -> Iterator[tuple[tuple[int, int], str]]:
    """Beginning, end and normal form of each word of a text as it stands; each character alone where there are no
    spaces."""
    for match in _PLACES.finditer(text):
        yield match.span(), unicodedata.normalize("NFKC", match[0]).casefold()


def cut_at(text: str, end: int) -> str:
    """The first `end` characters of a text, without a word that this cuts in two."""
    kept = text[:end]
    return _HALF_WORD.sub("", kept) if _WORD_BEGINS.match(text, end) else kept


def answer_words(text: str) -> tuple[set[str], list[list[str]]]:
    """The words of an answer in normal form, and the characters of each run of a script without spaces."""
    words: set[str] = set()
    runs: list[list[str]] = []
    last = -1
    for (start, end), word in word_places(text):
        if not _HAS_SPACELESS.match(word):
            words.add(word)
        elif runs and start == last:
            runs[-1].append(word)
        else:
            runs.append([word])
        last = end if _HAS_SPACELESS.match(word) else -1
    return words, runs


def answer_tokens(text: str) -> list[str]:
    """Tokens to look for an answer by: DPR's, but each character alone in scripts without spaces.

    In English, and wherever words have spaces between them, these are DPR's tokens (metrics/retrieval.py).
    """
    text = text if text.isascii() else unicodedata.normalize("NFD", text)
    return [token.lower() for token in _ANSWER_TOKENS.findall(text)]
