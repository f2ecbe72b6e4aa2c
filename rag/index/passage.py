"""A passage, the unit of the corpus (section 3), and what every reader does with its text."""

from dataclasses import dataclass

import regex

_HALF_PAIR = regex.compile(r"[\uD800-\uDFFF]")
PIECE = "#"  # stands between a passage's id and the number of a piece that it was split into


@dataclass(frozen=True, slots=True)
class Passage:
    """One passage z: its id in the corpus, the title of the page it is from, and its text."""

    id: str
    title: str
    text: str


def counted(number: int, what: str) -> str:
    """ "1 passage", "2,000 passages"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def has_half_pair(text: str) -> bool:
    """Whether half of a surrogate pair stands in `text` (an emoji that was cut), which no file can hold."""
    return not text.isascii() and _HALF_PAIR.search(text) is not None


def without_half_pairs(text: str) -> str:
    """`text` with U+FFFD, the replacement character, for each half of a surrogate pair."""
    return _HALF_PAIR.sub("\N{REPLACEMENT CHARACTER}", text)


def piece_id(id: str, number: int) -> str:
    """The id of a passage's piece: "7#2" is the second of passage "7"."""
    return f"{id}{PIECE}{number}"


def whole_id(id: str) -> str:
    """The id of the passage that a piece was split from; any other id as it is."""
    whole, mark, number = id.rpartition(PIECE)
    return whole if mark and number.isdecimal() else id
