"""Random changes of a file, as damage and people make them."""

import gzip
import lzma
import random
from pathlib import Path

TOKENS = [
    *(
        '"',
        '""',
        "'",
        "[",
        "]",
        "{",
        "}",
        ",",
        ";",
        ":",
        "\t",
        "\n",
        "\r\n",
        "\r",
        "\0",
        "\\",
        "|",
        "#",
        "---\n",
        "```\n",
    ),
    *(
        "\ufeff",
        "\u2028",
        "\x85",
        "\x1a",
        "\x1b[31m",
        "\u202e",
        "\u200b",
        "🚲",
        "é",
        "ﬁ",
        " ",
        "  \n\n",
        "null",
        "true",
    ),
    *(
        "NaN",
        "-Infinity",
        "1e999",
        "7.0",
        "-0",
        "9" * 5000,
        "0x" + "f" * 4000,
        "[" * 1200,
        '{"a":' * 900,
        "\\ud83d",
    ),
    *(
        '"\\udc00"',
        '"id"',
        '"text": ',
        '"question": ',
        "id\ttext\ttitle\n",
        "question,answer\n",
        '"data": [',
        '"qas": [{',
    ),
    *(
        "<b>",
        "<!--",
        "__import__('os')",
        "['a'",
        "PK\x03\x04",
        "PAR1",
        "%PDF-1.4",
        '"is_impossible": true',
        '"Data": [{',
    ),
    *('"paragraphs": [', '"positive_ctxs": [', "[" * 600 + "1" + "]" * 600, "x" * 20_000),
]
ENCODINGS = [None] * 60 + [
    "latin-1",
    "utf-16",
    "utf-32",
    "cp1252",
    "utf-7",
    "idna",
    "rot13",
    "unicode_escape",
    "no\0ne",
]
SUFFIXES = [
    ".jsonl",
    ".json",
    ".tsv",
    ".csv",
    ".txt",
    ".md",
    ".qa.csv",
    ".source",
    ".parquet",
    ".html",
    ".pdf",
    ".docx",
    ".zip",
    "",
]


def mutated(name: str, content: bytes, seeds: list[bytes], dice: random.Random) -> tuple[str, bytes]:
    """A file's name and content after one to four random changes."""
    for _ in range(dice.choice((1, 1, 1, 1, 1, 2, 3))):
        at = dice.randrange(len(content) + 1)
        length = dice.choice((1, 1, 2, 8, 64))
        match dice.randrange(9):
            case 0:
                flipped = bytes([content[at] ^ 1 << dice.randrange(8)]) if at < len(content) else b"\xff"
                content = content[:at] + flipped + content[at + 1 :]
            case 1:
                content = content[:at] + content[at + length :]
            case 2:
                content = (
                    content[:at]
                    + content[at : at + length] * dice.choice((2, 3, 50))
                    + content[at + length :]
                )
            case 3 | 4 | 5:
                token = dice.choice(TOKENS).encode("utf-8", "surrogatepass")
                content = content[:at] + token + content[at + (length if dice.random() < 0.5 else 0) :]
            case 6:
                content = content[:at]
            case 7:
                other = dice.choice(seeds)
                begin = dice.randrange(len(other) + 1)
                content = content[:at] + other[begin:]
            case 8:
                content = content[:at] + dice.randbytes(length) + content[at:]
    if dice.random() < 0.15:
        name = Path(name).stem + dice.choice(SUFFIXES)
    if dice.random() < 0.05:
        content = content.decode("utf-8", "replace").encode(dice.choice(("utf-16", "utf-32", "utf-8-sig")))
    if dice.random() < 0.1:
        packed = (
            gzip.compress(content, 1, mtime=0) if dice.random() < 0.7 else lzma.compress(content, preset=0)
        )
        name += ".gz" if packed.startswith(b"\x1f") else ".xz"
        content = packed
        if dice.random() < 0.5:
            at = dice.randrange(len(content))
            content = content[:at] + dice.randbytes(1) * dice.randrange(2) + content[at + 1 :]
    return name, content
