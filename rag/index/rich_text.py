"""HTML, PDF and Word documents (.docx) as a reader sees them: paragraphs under their headings.

Beautiful Soup reads HTML, mammoth makes HTML of a Word document by its styles, and pypdf reads PDF, which has lines and
no headings. All three come with the extra `documents`.
"""

import importlib.util
import io
import logging
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rag.errors import UserError, one_line, shortened
from rag.index.sections import Document, Section, plain_paragraphs
from rag.index.text_folders import LIGATURES
from rag.text_files import first_bytes, plain_name, unreadable

INSTALL = 'python -m pip install -e ".[documents]" -c constraints.txt'
LARGEST = 100 << 20  # bytes of one document, unpacked
_READ_BY = {
    ".html": ("bs4",),
    ".htm": ("bs4",),
    ".xhtml": ("bs4",),
    ".pdf": ("pypdf",),
    ".docx": ("mammoth", "bs4"),
}
_UNSEEN = set("head title script style template noscript svg math iframe object nav select".split())
_INLINE = set(  # what does not end a paragraph
    "a abbr acronym b bdi bdo big button cite code data del dfn em font i img input ins kbd label mark output q rp rt "
    "ruby s samp small span strike strong sub sup td th time tt u var wbr".split()
)
_STYLES = "p[style-name='Title'] => h1:fresh\n" + "\n".join(
    f"p[style-name='Heading {n}'] => h{n + 1}:fresh\np[style-name='heading {n}'] => h{n + 1}:fresh"
    for n in range(1, 6)
)


def is_rich(path: Path) -> bool:
    return Path(plain_name(path)).suffix in _READ_BY


def lacks(path: Path) -> bool:
    """Whether what reads a file of this kind is not installed."""
    return not all(map(importlib.util.find_spec, _READ_BY[Path(plain_name(path)).suffix]))


def rich_document(file: Path, encoding: str | None = None) -> Document:
    """A document of one of these kinds. encoding: of HTML; None is what it says itself, or else UTF-8.

    Raises UserError for what is damaged, encrypted or too large, and where the extra is not installed.
    """
    suffix = Path(plain_name(file)).suffix
    if lacks(file):
        raise UserError(
            f"{file}: {suffix} files are read with the extra documents, which is not installed: in the project's "
            f"folder, {INSTALL}"
        )
    read: Callable[[bytes], Document]
    if suffix == ".pdf":
        read = _pdf
    elif suffix == ".docx":
        read = _word
    else:
        read = lambda data: html_document(data, encoding)  # noqa: E731
    data = _whole(file) if suffix == ".docx" else first_bytes(file, LARGEST + 1)
    if len(data) > LARGEST:
        raise UserError(f"{file} is larger than {LARGEST >> 20} MB: split it, or save its text as .txt")
    try:
        return read(data)
    except _Unreadable as error:
        raise UserError(f"{file} {error}") from None
    except Exception as error:  # a damaged file may break any part of a library that reads it
        reason = shortened(one_line(str(error)) or type(error).__name__, 200)
        raise UserError(
            f"{file} cannot be read as {suffix} ({reason}): save it again, or its text as .txt"
        ) from error


class _Unreadable(Exception):
    """Why a document is not read, and what to do."""


def _whole(file: Path) -> bytes:
    """The bytes of a ZIP archive as it is."""
    try:
        with open(file, "rb") as opened:
            return opened.read(LARGEST + 1)
    except OSError as error:
        raise unreadable(file, error) from error


def _pdf(data: bytes) -> Document:
    import pypdf

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it tells of every object that is out of place
    with pypdf.PdfReader(io.BytesIO(data), strict=False) as reader:
        if reader.is_encrypted and not reader.decrypt(""):
            raise _Unreadable("is encrypted with a password: save it without one")
        pages, length = [], 0
        for page in reader.pages:
            pages.append(page.extract_text() + "\n")
            if (length := length + len(pages[-1])) > LARGEST:
                raise _Unreadable(f"holds more than {LARGEST >> 20} million characters: split it")
    return Document("", [Section([], list(plain_paragraphs(pages)))])


def _word(data: bytes) -> Document:
    import mammoth

    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if sum(part.file_size for part in archive.infolist() if not _is_picture(part.filename)) > LARGEST:
            raise _Unreadable(f"unpacks to more than {LARGEST >> 20} MB: save its text as .txt")
        if "word/document.xml" not in archive.namelist():
            raise _Unreadable("is no Word document: it has no word/document.xml")
    nothing = mammoth.images.img_element(lambda image: {})
    made = mammoth.convert_to_html(io.BytesIO(data), style_map=_STYLES, convert_image=nothing)
    return html_document(made.value.encode())


def _is_picture(name: str) -> bool:
    return name.startswith("word/media/")  # which are not unpacked


def html_document(data: bytes, encoding: str | None = None) -> Document:
    """A page: its visible text, without what only serves to move between pages."""
    import bs4

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # of XML, which reads as HTML, and of characters that are not of the encoding
        soup = bs4.BeautifulSoup(data, "html.parser", from_encoding=encoding)
    title = " ".join(soup.title.get_text().split()) if soup.title is not None else ""
    sections = list(_html_sections(soup))
    uppermost = {section.headings[0] for section in sections if section.headings}
    return Document("" if len(uppermost) == 1 else title, sections)


def _html_sections(soup: Any) -> Iterator[Section]:
    levels: list[tuple[int, str]] = []
    texts: list[str] = []
    section = Section([], texts)
    inline: list[str] = []

    def ended() -> str:
        text = " ".join("".join(inline).translate(LIGATURES).split())
        inline.clear()
        return text

    for what, begins in _walk(soup):
        if isinstance(what, str):
            inline.append(what)
        elif what.name == "br":
            inline.append(" ")
        elif what.name in ("td", "th"):
            inline.append(" | " if begins and "".join(inline).strip() else " ")
        elif what.name not in _INLINE:
            text = ended()
            if not begins and len(what.name) == 2 and what.name[0] == "h" and what.name[1] in "123456":
                yield section
                while levels and levels[-1][0] >= int(what.name[1]):
                    levels.pop()
                if text:
                    levels.append((int(what.name[1]), text))
                texts = []
                section = Section([each for _, each in levels], texts)
            elif text:
                texts.append(text)
    if text := ended():
        texts.append(text)
    yield section


def _walk(soup: Any) -> Iterator[tuple[Any, bool]]:
    """(text or element, does it begin here) in the page's order; an element that holds others comes twice."""
    import bs4

    waiting = [(soup, iter(soup.children))]  # no call inside a call, however deep the page
    while waiting:
        element, children = waiting[-1]
        for child in children:
            if isinstance(child, bs4.Tag):
                if child.name not in _UNSEEN:
                    yield child, True
                    waiting.append((child, iter(child.children)))
                    break
            elif type(child) is bs4.NavigableString or type(child) is bs4.CData:  # no comments
                yield str(child), True
        else:
            waiting.pop()
            if waiting:
                yield element, False
