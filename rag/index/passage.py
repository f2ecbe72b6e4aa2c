"""A passage, the unit of the corpus (section 3), and what every reader does with its text."""

from array import array
from dataclasses import dataclass

import numpy as np
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


class SeenIds:
    """Which ids were met: a byte for each small whole number, a 64-bit hash for any other.

    21 million ids take 21 MB, or 170 MB when they are not numbers, where a set of strings would take
    gigabytes.
    """

    _LARGEST = 100_000_000

    def __init__(self) -> None:
        self._numbers = bytearray(1 << 16)
        self._hashes = array("q")

    def add(self, id: str) -> bool:
        """False if `id` is a small whole number that was met before; other ids are judged by `repeated`."""
        if id.isdigit() and id.isascii() and len(id) < 10 and (id[0] != "0" or id == "0"):
            number = int(id)
            if number < self._LARGEST:
                if number >= len(self._numbers):
                    self._numbers.extend(bytes(max(number + 1 - len(self._numbers), len(self._numbers) // 2)))
                if self._numbers[number]:
                    return False
                self._numbers[number] = 1
                return True
        self._hashes.append(hash(id))
        return True

    def repeated(self) -> set[int]:
        """The hashes that came more than once (two ids may share one by chance: compare the ids
        themselves)."""
        hashes = np.frombuffer(self._hashes, dtype=np.int64) if self._hashes else np.empty(0, np.int64)
        hashes.sort()
        return set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
