"""Documents for people's questions: text and Markdown cut where their authors did, into passages with a title each.

Section 3 cuts Wikipedia every 100 words. A file of notes is shorter and has headings: a passage here never crosses one,
is titled by the file's title and the headings above it ("Algeria – Government"), and ends with a paragraph or else a
sentence where that can be done within 100 words. What is marked up is read as a reader sees it, without the marks.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import regex

from rag.index.splitting import WORDS_PER_PASSAGE, pieces
from rag.index.text_folders import LIGATURES, front_matter
from rag.text_files import plain_name, text_parts
from rag.words import split_units

BETWEEN_HEADINGS = " – "
_HEADING = regex.compile(r" {0,3}(#{1,6})[ \t]+(.*?)[ \t]*#*[ \t]*$")
_UNDERLINE = regex.compile(r" {0,3}(=+|-{2,})[ \t]*$")
_FENCE = regex.compile(r" {0,3}(```|~~~)")
_RULE = regex.compile(
    r"[ \t]*([-*_])([ \t]*\1){2,}[ \t]*$|[ \t]*\|?[ \t:|-]*-{3,}[ \t:|-]*$"
)  # and a table's
_ITEM = regex.compile(r"^[ \t]*([-*+]|\d{1,3}[.)])[ \t]+")
_QUOTE = regex.compile(r"^[ \t]*(>[ \t]?)+")
_COMMENT = regex.compile(r"<!--.*?-->", regex.DOTALL)
_MARKS = (
    (regex.compile(r"!?\[([^\]\[]*)\]\([^)\s]*(?:\s+\"[^\"]*\")?\)"), r"\1"),  # links and pictures
    (regex.compile(r"!?\[([^\]\[]+)\]\[[^\]]*\]"), r"\1"),
    (regex.compile(r"<(https?://[^>\s]+)>"), r"\1"),
    (regex.compile(r"</?[A-Za-z][^<>]*>"), ""),
    (regex.compile(r"(?<!\\)(\*\*|__)(?=\S)(.+?)(?<=\S)\1"), r"\2"),
    (regex.compile(r"(?<![\w*\\])\*(?=\S)([^*]+?)(?<=\S)\*(?![\w*])"), r"\1"),
    (regex.compile(r"(?<![\w_\\])_(?=\S)([^_]+?)(?<=\S)_(?![\w_])"), r"\1"),
    (regex.compile(r"`+([^`]+)`+"), r"\1"),
)
_BROKEN_WORD = regex.compile(r"(?<=\p{L})-\n[ \t]*(?=\p{Ll})")
# A sentence ends before a space and what does not go on in small letters; an initial or a title does not end one.
_SENTENCE = regex.compile(
    r"(?<=[.!?…][\"'”’)\]]*)(?<!\b(?:\p{Lu}|Mr|Mrs|Ms|Dr|St|Lt|Gen|Col|Jr|Sr|No|vs|e\.g|i\.e|ca|approx)\.)"
    r"\s+(?=[\p{Lu}\p{N}\"“'‘(\[*])|(?<=[。！？])"
)


@dataclass
class _Section:
    """Paragraphs under the headings above them."""

    headings: list[str]
    paragraphs: list[str] = field(default_factory=list)


def read_sections(
    file: Path, encoding: str | None = None, words: int | None = None
) -> Iterator[tuple[str, str]]:
    """(title, text) of the passages of a file, each of at most `words` words (None: 100).

    The title is the file's, of its front matter, the heading above all others or its name, and the headings above the
    passage. A sentence that is longer is cut. Raises UserError as rag/text_files.py does.
    """
    matter, title = front_matter(file, encoding)
    text = "".join(part for number, part in text_parts(file, encoding) if number > matter)
    text = text.replace("\r\n", "\n").replace("\r", "\n").translate(LIGATURES)
    markdown = plain_name(file).endswith(".md")
    if markdown:
        sections = list(_sections(_COMMENT.sub("", text).split("\n")))
    else:
        text = _BROKEN_WORD.sub("", text)
        sections = [_Section([], [" ".join(each.split()) for each in regex.split(r"\n\s*\n", text)])]
    if not title:
        uppermost = {section.headings[0] for section in sections if section.headings}
        title = uppermost.pop() if len(uppermost) == 1 else name_of(file)
    for section in sections:
        headings = section.headings[1:] if section.headings[:1] == [title] else section.headings
        for piece in packed(filter(None, section.paragraphs), words or WORDS_PER_PASSAGE):
            yield BETWEEN_HEADINGS.join([title, *headings]), piece


def name_of(file: Path) -> str:
    """A file's name as words: "south_africa.md" is about "south africa"."""
    stem = Path(file.name.removesuffix(".gz").removesuffix(".xz")).stem
    return " ".join(regex.sub(r"[_-]+", " ", stem).split()) or stem


def _sections(lines: Iterable[str]) -> Iterator[_Section]:
    """Markdown's sections in their order, each with its headings from the top."""
    levels: list[tuple[int, str]] = []
    section = _Section([])
    paragraph: list[str] = []
    fence = ""

    def end_paragraph() -> None:
        if text := " ".join(" ".join(paragraph).split()):
            section.paragraphs.append(text)
        paragraph.clear()

    def heading(level: int, text: str) -> _Section:
        while levels and levels[-1][0] >= level:
            levels.pop()
        if text := without_marks(text).strip():
            levels.append((level, text))
        return _Section([each for _, each in levels])

    for line in lines:
        if fence:
            if line.lstrip().startswith(fence):
                fence = ""
                end_paragraph()
            else:
                paragraph.append(line)
            continue
        if (match := _FENCE.match(line)) is not None:
            fence = match[1]
            end_paragraph()
            continue
        if (match := _HEADING.match(line)) is not None:
            end_paragraph()
            yield section
            section = heading(len(match[1]), match[2])
            continue
        if (match := _UNDERLINE.match(line)) is not None and len(paragraph) == 1:
            text = paragraph.pop()
            yield section
            section = heading(1 if match[1][0] == "=" else 2, text)
            continue
        if not line.strip() or _RULE.match(line):
            end_paragraph()
            continue
        line = _QUOTE.sub("", line)
        if _ITEM.match(line) or line.lstrip().startswith("|"):
            end_paragraph()  # an item or a table's row by itself
            line = _ITEM.sub("", line)
            if line.lstrip().startswith("|"):
                line = " | ".join(cell.strip() for cell in line.strip().strip("|").split("|"))
        paragraph.append(without_marks(line))
    end_paragraph()
    yield section


def without_marks(text: str) -> str:
    """A line of Markdown as it is read: links by their text, no emphasis, no tags."""
    for pattern, instead in _MARKS:
        text = pattern.sub(instead, text)
    return regex.sub(r"\\([\\`*_{}\[\]()#+\-.!|<>~])", r"\1", text)


def packed(paragraphs: Iterable[str], words: int) -> Iterator[str]:
    """Paragraphs, a line each, in pieces of at most `words` words; those that are longer are cut between sentences.

    A paragraph goes whole to the next piece rather than in two parts, where it fits there.
    """
    held, count = "", 0
    for paragraph in paragraphs:
        size = _count(paragraph)
        if count + size > words and held:
            yield held
            held, count = "", 0
        between = "\n"
        for part in [paragraph] if size <= words else sentences(paragraph):
            size = _count(part)
            if count + size > words and held:
                yield held
                held, count = "", 0
            if size > words:
                *whole, part = pieces(part.split(), words)
                yield from whole
                size = _count(part)
            held, count = f"{held}{between}{part}" if held else part, count + size
            between = " "
    if held:
        yield held


def sentences(text: str) -> list[str]:
    """The sentences of a text; a line's end ends one."""
    return [sentence for line in text.split("\n") for sentence in _SENTENCE.split(line) if sentence]


def _count(text: str) -> int:
    return sum(1 for _ in split_units(text.split()))
