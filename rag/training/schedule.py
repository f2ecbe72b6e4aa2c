"""When an index is embedded again in training: refresh=500, or refresh=0-1000:500,1000-:1000.

A schedule is a list of ranges FIRST-LAST:EVERY of steps: in (FIRST, LAST] the index is due every EVERY steps after
FIRST. A range without LAST has no end; a number alone is 0-:NUMBER.
"""

import re
from dataclasses import dataclass
from typing import Any, Self

from rag.errors import UserError, shortened


@dataclass(frozen=True)
class Schedule:
    """ranges: (FIRST, LAST or None, EVERY), in order, none overlapping another."""

    ranges: tuple[tuple[int, int | None, int], ...]

    @classmethod
    def of(cls, setting: Any) -> Self:
        """Of a number, a text or a list of texts; UserError for what is no schedule."""
        texts = setting if isinstance(setting, list | tuple) else str(setting).split(",")
        if isinstance(setting, bool | float) or not texts:
            raise _refused(setting, f"{setting} is neither a number of steps nor a list of ranges")
        ranges = []
        for text in map(str, texts):
            if not (match := re.fullmatch(r"\s*(?:(\d+)-(\d*):)?(-?\d+)\s*", text)):
                raise _refused(setting, f"{shortened(text)} is no range of steps")
            first, last = int(match[1] or 0), int(match[2]) if match[2] else None
            every = int(match[3])
            if every < 1:
                raise _refused(setting, f"every {every} steps is never")
            if last is not None and last - first < every:
                raise _refused(setting, f"{text} has no step that is due: LAST is at least FIRST + EVERY")
            ranges.append((first, last, every))
        ranges.sort(key=lambda each: each[0])
        for (first, last, _), (second, _, _) in zip(ranges, ranges[1:], strict=False):
            if last is None or second < last:
                raise _refused(setting, f"the ranges from {first:,} and from {second:,} overlap")
        return cls(tuple(ranges))

    def is_due(self, step: int) -> bool:
        """Whether the index is to be embedded again once `step` steps are done."""
        return any(
            first < step and (last is None or step <= last) and (step - first) % every == 0
            for first, last, every in self.ranges
        )


def _refused(setting: Any, why: str) -> UserError:
    return UserError(
        f"refresh={setting}: {why}; give a number of steps, as in refresh=500, ranges FIRST-LAST:EVERY that do not "
        "overlap, as in refresh=0-1000:500,1000-:1000, or null"
    )
