"""The world's only source of chance: equal rolls on every machine and every Python version."""

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Dice:
    """A seeded stream of random picks, built on `random()` and `randrange()` alone.

    The other methods of `random.Random` (`sample`, `shuffle`, `choices`) have changed between Python
    versions; these two have not. Each part of the world rolls its own `stream`, so that a change in one part
    (another institution, say) leaves the others as they were.
    """

    def __init__(self, seed: int, stream: int):
        self._random = random.Random(seed * 64 + stream)

    def between(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included."""
        return self._random.randrange(low, high + 1)

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self._random.random() < probability

    def pick(self, items: Sequence[T]) -> T:
        """One of the items."""
        return items[self._random.randrange(len(items))]

    def some(self, items: Sequence[T], count: int) -> list[T]:
        """`count` different items (all, if there are fewer) in random order."""
        rest, taken = list(items), []
        while rest and len(taken) < count:
            taken.append(rest.pop(self._random.randrange(len(rest))))
        return taken

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """All items in random order (Fisher and Yates)."""
        mixed = list(items)
        for last in range(len(mixed) - 1, 0, -1):
            other = self._random.randrange(last + 1)
            mixed[last], mixed[other] = mixed[other], mixed[last]
        return mixed
