"""Text that somebody else wrote, as it may stand in each medium without commanding anything there.

    terminal, pipe   printable, say    nothing that moves the cursor, colours, hides, or turns text around
    Markdown         markdown          the same, and neither HTML nor links nor formatting of its own
    HTML             html              the same, escaped
    JSON             json_text         the same data; what could command a terminal is written as \\uXXXX

rag/terminal.py does this to whatever rich prints.
"""

import html as of_python
import json
import re
import unicodedata
from typing import Any, TextIO

JOINERS = "\u200c\u200d"  # which some scripts, and emoji, are not written without
_BEYOND_ASCII = re.compile(r"[^\x00-\x7e]")  # json.dumps has seen to the others
_IN_MARKDOWN = re.compile(r"[\\`*_\[\]|]")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "~": "&#126;", "$": "&#36;"}
_ADDRESS = re.compile(r"://|\bwww\.", re.IGNORECASE)  # which GitHub makes links of


def printable(text: str) -> str:
    """One line, in which line ends and control characters are spaces, and what is not seen is left out."""
    if text.isprintable():
        return text
    return "".join(map(_shown, text))


def _shown(character: str) -> str:
    if character.isprintable() or character in JOINERS:
        return character
    return "" if unicodedata.category(character) == "Cf" else " "


def say(text: str, file: TextIO | None = None, flush: bool = False) -> None:
    """`print`, with every line printable."""
    print("\n".join(map(printable, text.split("\n"))), file=file, flush=flush)


def markdown(text: str) -> str:
    """As it reads, for a paragraph, heading or table cell of Markdown: on GitHub, in MkDocs, in a notebook."""
    text = " ".join(printable(text).split())
    text = _IN_MARKDOWN.sub(r"\\\g<0>", text)
    text = "".join(_ENTITIES.get(character, character) for character in text)
    return _ADDRESS.sub(
        lambda found: f"{found[0][:-2]}&#47;/" if found[0] == "://" else f"{found[0][:-1]}&#46;", text
    )


def fenced(text: str) -> list[str]:
    """The lines of a block of code, which nothing in the text ends."""
    text = "\n".join(map(printable, text.split("\n")))
    longest = max((len(found) for found in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [fence, text, fence]


def html(text: str) -> str:
    """For HTML, in an element or a quoted attribute."""
    return of_python.escape(printable(text))


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON that reads back as the same value."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return _BEYOND_ASCII.sub(_in_json, text)


def _in_json(found: re.Match[str]) -> str:
    """By its number: a control character, what turns text around or is not seen, a line end, or half of a surrogate
    pair, which no file can hold."""
    unseen = unicodedata.category(found[0]) in ("Cc", "Cf", "Cs", "Zl", "Zp") and found[0] not in JOINERS
    return json.dumps(found[0])[1:-1] if unseen else found[0]
