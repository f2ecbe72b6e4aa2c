"""Text as it comes in files: compressed or not, in any encoding, with any kind of line ends, told line by line."""

import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rag.errors import UserError

BROKEN_STREAM = (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile)
LONGEST_LINE = 1 << 20  # bytes of a text file that are held at once
ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.xz", ".7z", ".rar", ".bz2", ".zst")
_UNICODE_MARKS = {
    "utf-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
    "utf-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}


def plain_name(path: Path) -> str:
    """A file's name in lower case, without .gz or .xz."""
    return path.name.lower().removesuffix(".gz").removesuffix(".xz")


def open_bytes(path: Path) -> Any:
    """The bytes of a file, unpacked where its name ends in .gz or .xz. UserError for an archive."""
    try:
        with open(path, "rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give a file that can be") from error
    if zipped or path.name.lower().endswith(ARCHIVES):
        raise UserError(f"{path} is an archive: unpack it, and give the file or folder that was in it")
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return gzip.open(path, "rb")
    if suffix == ".xz":
        return lzma.open(path, "rb")
    return open(path, "rb", buffering=1 << 20)


def damaged(path: Path, line: int, error: Exception) -> UserError:
    return UserError(f"{path} is damaged or was cut short after line {line} ({error}): download it again")


def text_lines(path: Path, encoding: str | None = None) -> Iterator[tuple[int, str]]:
    """The lines of a file with their numbers from 1, their ends included.

    encoding: None is UTF-8. A byte order mark is left out. Lines end in \\n or \\r\\n, or in \\r where the file
    begins so (old Mac files). A line that is longer than a megabyte is held at once all the same. Raises UserError,
    with the line, for bytes that are not of the encoding, and for a file that is damaged.
    """
    number = 0
    try:
        with open_bytes(path) as file:
            head = file.peek(1 << 16)[: 1 << 16]
            if encoding is None:
                _check_no_utf_16(path, head)
            if _is_wide(encoding, path):
                lines: Any = io.TextIOWrapper(file, encoding, newline="\n")
            else:
                codec = encoding or "utf-8"
                ends = b"\r" if b"\r" in head and b"\n" not in head else b"\n"
                parts = file if ends == b"\n" else _mac_lines(file)
                lines = (part.decode(codec) for part in parts)
            for number, line in enumerate(lines, start=1):
                yield number, line.removeprefix("\ufeff") if number == 1 else line
    except UnicodeError as error:
        raise _not_of_encoding(path, number + 1, encoding, error) from error
    except BROKEN_STREAM as error:
        raise damaged(path, number, error) from error


def text_parts(path: Path, encoding: str | None = None) -> Iterator[tuple[int, str]]:
    """As `text_lines`, for text of any length: a line that is longer than a megabyte comes in several parts."""
    if _is_wide(encoding, path):
        yield from text_lines(path, encoding)
        return
    decoder = codecs.getincrementaldecoder(encoding or "utf-8")()
    number = 1
    try:
        with open_bytes(path) as data:
            if encoding is None:
                _check_no_utf_16(path, data.peek(4)[:4])
            first = True
            while part := data.readline(LONGEST_LINE):
                if text := decoder.decode(part):
                    yield number, text.removeprefix("\ufeff") if first else text
                    first = False
                number += part.endswith(b"\n")
            decoder.decode(b"", final=True)
    except UnicodeError as error:
        raise _not_of_encoding(path, number, encoding, error) from error
    except BROKEN_STREAM as error:
        raise damaged(path, number, error) from error


def _mac_lines(file: Any) -> Iterator[bytes]:
    rest = b""
    while block := file.read(LONGEST_LINE):
        *whole, rest = (rest + block).split(b"\r")
        yield from (line + b"\n" for line in whole)
    if rest:
        yield rest


def _is_wide(encoding: str | None, path: Path) -> bool:
    """Whether a line end is more than a byte in this encoding."""
    if encoding is None:
        return False
    try:
        return len("\n".encode(encoding)) > 1
    except LookupError:
        raise UserError(
            f"{path} cannot be read with corpus.encoding={encoding}, which Python does not know: give utf-8, latin-1, "
            "cp1252, utf-16, …"
        ) from None


def _check_no_utf_16(path: Path, head: bytes) -> None:
    for name, marks in _UNICODE_MARKS.items():
        if head.startswith(marks):
            raise UserError(
                f"{path}, line 1: not UTF-8 but {name.upper()}: give corpus.encoding={name}, or save it as UTF-8"
            )


def _not_of_encoding(path: Path, line: int, encoding: str | None, error: UnicodeError) -> UserError:
    reason = getattr(error, "reason", str(error))
    if encoding is None:
        advice = "give corpus.encoding= the encoding it was written in, such as corpus.encoding=latin-1"
        return UserError(f"{path}, line {line}: not UTF-8 ({reason}): {advice}, or save it as UTF-8")
    return UserError(
        f"{path}, line {line}: not {encoding} ({reason}): give corpus.encoding= the encoding it was written in"
    )
