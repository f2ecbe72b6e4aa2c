"""Rich's console, for text that others wrote: names and passages command nothing and are no markup."""

import re
from collections.abc import Iterable
from typing import Any
from unicodedata import category

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from rag.safe_text import JOINERS, printable

_SUSPECT = re.compile(r"[^\x20-\x7e\n]")


class Terminal(Console):
    """A console that shows square brackets and colons as they are, and lets nothing through but its own commands."""

    def __init__(self, **settings: Any):
        plain: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False}
        super().__init__(**(plain | settings))

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Rich's segments, in which no text has a control character but line ends."""
        for segment in super().render(renderable, options):
            if segment.control or not _SUSPECT.search(segment.text):
                yield segment
            else:
                yield Segment(_without_commands(segment.text), segment.style, segment.control)


def _without_commands(text: str) -> str:
    """The characters that take room: rich has counted none for the others."""
    return "".join(each for each in text if each == "\n" or _may_stand(each))


def _may_stand(character: str) -> bool:
    return character in JOINERS or printable(character) == character or category(character) == "Zs"
