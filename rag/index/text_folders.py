"""Corpora of text and Markdown files, one file or a folder of them, split into passages of 100 words."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import regex

from rag.index.reading import CorpusReading
from rag.index.splitting import pieces
from rag.text_files import plain_name, text_parts, unreadable

LIGATURES = str.maketrans(
    {
        "ﬀ": "ff",
        "ﬁ": "fi",
        "ﬂ": "fl",
        "ﬃ": "ffi",
        "ﬄ": "ffl",
        "ﬅ": "st",
        "ﬆ": "st",
    }  # what PDF leaves of letters
)
_FENCE = regex.compile(r" {0,3}(`{3,}|~{3,})")
_BROKEN_WORD = regex.compile(r"\p{L}-\r?\n$")
_FRONT_MATTER_TITLE = regex.compile(r"title:\s*(.+?)\s*$")
_LONGEST_FRONT_MATTER = 200  # lines
_LONGEST_WORD = (
    1 << 16
)  # characters without a space, as of an encoded picture or of Chinese, that are held at once


def is_text(path: Path) -> bool:
    return path.suffix.lower() in (".txt", ".md")


def files_below(folder: Path, skipped: list[Path] | None = None) -> Iterator[Path]:
    """All files of a folder and those in it, by name, without a list of them all.

    skipped: is given what is passed over: hidden files and folders, links to folders (which may lead in a circle) and
    to nothing, and what is no ordinary file. Raises UserError for a folder that may not be read.
    """
    waiting = [_inside(folder)]  # one for each folder that is open: however deep, no call inside a call
    while waiting:
        for path, is_folder, is_file in waiting[-1]:
            if is_folder:
                waiting.append(_inside(path))
                break
            if is_file:
                yield path
            elif skipped is not None:
                skipped.append(path)
        else:
            waiting.pop()


def _inside(folder: Path) -> Iterator[tuple[Path, bool, bool]]:
    """(path, is it a folder to enter, is it a file to read) of what is in a folder, by name."""
    try:
        with os.scandir(folder) as entries:
            inside = sorted((entry.name, *_looked_at(entry)) for entry in entries)
    except OSError as error:
        raise unreadable(folder, error) from error
    return ((folder / name, is_folder, is_file) for name, is_folder, is_file in inside)


def _looked_at(entry: os.DirEntry[str]) -> tuple[bool, bool]:
    if entry.name.startswith("."):
        return False, False
    try:
        return entry.is_dir(follow_symlinks=False), entry.is_file()
    except OSError:  # a link that leads to itself
        return False, False


def kinds_of(files: list[Path]) -> str:
    """How many files of which kind, and the first of each: "2 .pdf (a.pdf, …), 1 .html (b.html)"."""
    kinds = [_kind(file) for file in files]
    counts = Counter(kinds)
    first = {kind: file.name for kind, file in reversed([*zip(kinds, files, strict=True)])}
    return ", ".join(
        f"{count} {kind} ({first[kind]}{', …' if count > 1 else ''})" for kind, count in counts.most_common(8)
    )


def _kind(file: Path) -> str:
    if file.name.startswith("."):
        return "hidden"
    if os.path.islink(file) and not os.path.isfile(file):
        return "link to a folder" if os.path.isdir(file) else "link to nothing"
    if not os.path.isfile(file):
        return "no ordinary file"
    return file.suffix.lower() or "without an ending"


def read_text(file: Path, reading: CorpusReading) -> Iterator[tuple[str, str]]:
    """(title, text) of the passages of a text or Markdown file, by words, in constant memory.

    The title is that of the front matter, or the first Markdown heading, or the file's name. Neither front matter nor
    that heading is part of the text. Ligatures become letters, and a word that was broken at the end of a line of a
    .txt file is joined, as text out of PDF needs it.
    """
    title, left_out = _title(file, reading.encoding)
    for piece in pieces(_words(file, reading.encoding, left_out), reading.length, reading.overlap):
        yield title, piece


def _words(file: Path, encoding: str | None, left_out: set[int]) -> Iterator[str]:
    """The words of a file, without those of the lines `left_out`."""
    for word in _whole_words(file, encoding, left_out):
        for start in range(0, len(word), _LONGEST_WORD):
            yield word[start : start + _LONGEST_WORD]


def _whole_words(file: Path, encoding: str | None, left_out: set[int]) -> Iterator[str]:
    cut = ""  # what may be the first half of a word
    for line, text in text_parts(file, encoding):
        if line in left_out:
            continue
        if not text.isascii():
            text = text.translate(LIGATURES)
        text = cut + text
        if plain_name(file).endswith(".txt") and _BROKEN_WORD.search(text):
            *words, cut = text.rstrip().split()
            if len(cut) < _LONGEST_WORD:
                cut += "\n"  # its second half is on the next line
                yield from words
                continue
            words.append(cut)
            cut = ""
        else:
            text = _joined(text)
            words = text.split()
            cut = "" if text[-1:].isspace() or not words or len(words[-1]) > _LONGEST_WORD else words.pop()
        yield from words
    yield from _joined(cut).split()


def _joined(text: str) -> str:
    """A text that begins with the first half of a word and a line end, with the halves joined where the second begins
    with a small letter ("guaran-", "tee"), and as they are elsewhere ("X-", "Ray")."""
    before, end, after = text.partition("-\n")
    if end and " " not in before and after[:1].islower():
        return before + after
    return text


def _title(file: Path, encoding: str | None) -> tuple[str, set[int]]:
    """The title of a file and the lines that are no text: the front matter's or the first Markdown heading."""
    matter, title = front_matter(file, encoding)
    if title:
        return title, set(range(1, matter + 1))
    begun, fence = 0, ""  # the line whose beginning was seen; of a code block, which has no headings
    for number, line in text_parts(file, encoding):
        if number <= matter:
            continue
        if number > begun and (match := _FENCE.match(line)) is not None:
            fence = "" if fence and match[1].startswith(fence) else fence or match[1]
        marks = len(line) - len(line.lstrip("#"))
        if number > begun and not fence and 1 <= marks <= 6 and line[marks : marks + 1] in (" ", "\t"):
            if title := line.strip("# \t\r\n"):
                return title, {number, *range(1, matter + 1)}
        begun = number
    return Path(file.name.removesuffix(".gz").removesuffix(".xz")).stem, set(range(1, matter + 1))


def front_matter(file: Path, encoding: str | None = None) -> tuple[int, str]:
    """The last line of a file's front matter and the title it gives; 0 without front matter, "" without a title."""
    title = ""
    for number, line in text_parts(file, encoding):
        if number == 1:
            if line.rstrip() != "---":
                break
        elif number > _LONGEST_FRONT_MATTER:
            break
        elif line.rstrip() in ("---", "..."):
            return number, title
        elif match := _FRONT_MATTER_TITLE.match(line):
            title = match[1].strip("\"'")
    return 0, ""
