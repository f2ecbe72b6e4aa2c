"""After which optimiser steps something is done again: the index refreshed, hard negatives mined.

    500                     after steps 500, 1000, 1500, …
    0-1000:500,1000-:1000   after 500 and 1000, then after 2000, 3000, …

A part `first-last:every` is due after `first` and every `every` steps from there, `last` included; without `last` it
has no end. Nothing is due before the first step (step 0).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rag.errors import UserError, shortened

_PART = re.compile(r"(\d+)-(\d*):(\d+)", re.ASCII)
_SHAPE = "give a number of steps, such as 500, or parts first-last:every, such as 0-1000:500,1000-:1000"
_NUMBER = re.compile(r"\s*[+-]?\d{1,15}\s*", re.ASCII)
_LONGEST = 15  # digits; no training has more steps


@dataclass(frozen=True)
class Part:
    """From step `first` to `last` (None: without an end), every `every` steps."""

    first: int
    last: int | None
    every: int

    def due(self, step: int) -> bool:
        inside = self.first <= step and (self.last is None or step <= self.last)
        return inside and (step - self.first) % self.every == 0

    def __str__(self) -> str:
        return f"{self.first}-{'' if self.last is None else self.last}:{self.every}"


@dataclass(frozen=True)
class Schedule:
    """Parts in the order of their steps; no parts: never."""

    parts: tuple[Part, ...] = ()

    @classmethod
    def parse(cls, setting: "str | int | Iterable[str] | Schedule | None") -> "Schedule":
        """A number of steps, text as at the top of this file or a list of its parts; None: never.

        Raises UserError for 0, negative numbers, text of another shape, and parts that overlap or are out of order.
        """
        if setting is None:
            return cls()
        if isinstance(setting, Schedule):
            return setting
        if isinstance(setting, int) and not isinstance(setting, bool):
            return cls((Part(0, None, _positive(setting, setting)),))
        if isinstance(setting, bool | float) or not isinstance(setting, Iterable):
            raise UserError(f"{setting} is no schedule of steps: {_SHAPE}")
        text = setting if isinstance(setting, str) else ",".join(str(part) for part in setting)
        if _NUMBER.fullmatch(text):
            return cls((Part(0, None, _positive(int(text), text.strip())),))
        parts: list[Part] = []
        for piece in text.split(","):
            part = _part(piece.strip(), text)
            if parts and (parts[-1].last is None or part.first < parts[-1].last):
                raise UserError(
                    f"{part} begins before {parts[-1]} ends, in the schedule {shortened(text)}: "
                    "give the parts in the order of their steps, without overlap"
                )
            parts.append(part)
        return cls(tuple(parts))

    @classmethod
    def set_by(cls, name: str, setting: Any) -> "Schedule":
        """`parse`, whose UserError says which setting it is of."""
        try:
            return cls.parse(setting)
        except UserError as error:
            raise UserError(f"{name}={setting}: {error}") from error

    def due(self, step: int) -> bool:
        """Whether it is done after optimiser step `step`, which counts from 1."""
        return step > 0 and any(part.due(step) for part in self.parts)

    def __bool__(self) -> bool:
        return bool(self.parts)

    def __str__(self) -> str:
        whole = len(self.parts) == 1 and (self.parts[0].first, self.parts[0].last) == (0, None)
        return str(self.parts[0].every) if whole else ",".join(map(str, self.parts))


def _part(piece: str, text: str) -> Part:
    found = _PART.fullmatch(piece)
    if found is None or any(len(number) > _LONGEST for number in found.groups()):
        where = "" if piece == text.strip() else f", in {shortened(text)},"
        raise UserError(f"{shortened(piece) or 'an empty part'}{where} is no schedule of steps: {_SHAPE}")
    first, last, every = found.groups()
    part = Part(int(first), int(last) if last else None, _positive(int(every), text))
    if part.last is not None and part.last <= part.first:
        raise UserError(f"{part} ends before it begins: give the first step before the last, and {_SHAPE}")
    return part


def _positive(every: int, text: object) -> int:
    if every < 1:
        raise UserError(
            f"every {every} steps is never, in the schedule {shortened(str(text))}: give 1 or more, or null for never"
        )
    return every
