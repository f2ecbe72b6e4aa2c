"""Documents cut where their authors did, into passages with a title each; text and Markdown as such documents.

Section 3 cuts Wikipedia every 100 words. A file of notes is shorter and has headings: by headings, a passage never
crosses one, is titled by the file's title and the headings above it ("Algeria – Government"), and ends with a paragraph
or else a sentence where that can be done within 100 words. What is marked up is read as a reader sees it, without the
marks.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import regex

from rag.index.reading import CorpusReading
from rag.index.splitting import cut, packed
from rag.index.text_folders import LIGATURES, front_matter
from rag.text_files import LONGEST_LINE, plain_name, text_parts

BETWEEN_HEADINGS = " – "
_HEADING = regex.compile(r" {0,3}(#{1,6})[ \t]+(.*?)[ \t]*#*[ \t]*$")
_UNDERLINE = regex.compile(r" {0,3}(=+|-{2,})[ \t]*$")
_FENCE = regex.compile(r" {0,3}(`{3,}|~{3,})")
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
_LINE = regex.compile(r"[^\n]*\n|[^\n]+")


@dataclass
class Section:
    """Paragraphs under the headings above them."""

    headings: list[str]
    paragraphs: Iterable[str]


@dataclass
class Document:
    """A file as its author divided it. title: "" where it gives none."""

    title: str
    sections: list[Section]


def read_sections(file: Path, reading: CorpusReading) -> Iterator[tuple[str, str]]:
    """(title, text) of the passages of a text or Markdown file. Raises UserError as rag/text_files.py does."""
    yield from passages_of(text_document(file, reading.encoding), name_of(file), reading)


def passages_of(document: Document, name: str, reading: CorpusReading) -> Iterator[tuple[str, str]]:
    """(title, text) of the passages of a document.

    The title is the document's, the heading above all others or `name`; by headings also the headings above the
    passage, which are part of the text otherwise. A sentence that is longer than a passage is cut.
    """
    title, sections = document.title, document.sections
    if not title:
        uppermost = {section.headings[0] for section in sections if section.headings}
        title = uppermost.pop() if len(uppermost) == 1 else name
    if reading.split == "headings":
        for section in sections:
            headings = section.headings[1:] if section.headings[:1] == [title] else section.headings
            for piece in packed(filter(None, section.paragraphs), reading.length, reading.overlap):
                yield BETWEEN_HEADINGS.join([title, *headings]), piece
        return
    for piece in cut(_running(sections, title), reading):
        yield title, piece


def _running(sections: Iterable[Section], title: str) -> Iterator[str]:
    """All paragraphs, and before those of each section its own heading, unless it is the title."""
    above: list[str] = []
    for section in sections:
        if section.headings and section.headings != above and section.headings[-1] != title:
            yield section.headings[-1]
        above = section.headings
        yield from filter(None, section.paragraphs)


def text_document(file: Path, encoding: str | None = None) -> Document:
    """A text or Markdown file. Markdown is held at once; plain text comes a paragraph at a time, under no heading."""
    matter, title = front_matter(file, encoding)
    lines = (part for number, part in text_parts(file, encoding) if number > matter)
    if not plain_name(file).endswith(".md"):
        return Document(title, [Section([], plain_paragraphs(lines))])
    return Document(title, markdown_sections("".join(lines)))


def markdown_sections(text: str) -> list[Section]:
    """The sections of a text in Markdown."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").translate(LIGATURES)
    return list(_sections(_COMMENT.sub("", text).split("\n")))


def plain_paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """Plain text's paragraphs, each as one line: what empty lines separate, or a megabyte at most.

    Ligatures become letters, and a word that was broken at a line's end is joined, as text out of PDF needs it.
    """
    held: list[str] = []
    length = 0

    def paragraph() -> str:
        return " ".join(_BROKEN_WORD.sub("", "".join(held).translate(LIGATURES)).split())

    for part in lines:
        for line in _LINE.findall(part.replace("\r\n", "\n").replace("\r", "\n")):
            if line.strip():
                held.append(line)
                length += len(line)
            if held and (not line.strip() or length > LONGEST_LINE):
                yield paragraph()
                held, length = [], 0
    if held:
        yield paragraph()


def name_of(file: Path) -> str:
    """A file's name as words: "south_africa.md" is about "south africa"."""
    stem = Path(file.name.removesuffix(".gz").removesuffix(".xz")).stem
    return " ".join(regex.sub(r"[_-]+", " ", stem).split()) or stem


def _sections(lines: Iterable[str]) -> Iterator[Section]:
    """Markdown's sections in their order, each with its headings from the top."""
    levels: list[tuple[int, str]] = []
    texts: list[str] = []
    section = Section([], texts)
    paragraph: list[str] = []
    fence = ""

    def end_paragraph() -> None:
        if text := " ".join(" ".join(paragraph).split()):
            texts.append(text)
        paragraph.clear()

    def heading(level: int, text: str) -> Section:
        nonlocal texts
        while levels and levels[-1][0] >= level:
            levels.pop()
        if text := without_marks(text).strip():
            levels.append((level, text))
        texts = []
        return Section([each for _, each in levels], texts)

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
