"""Text as it comes in files: compressed or not, in any encoding, with any kind of line ends, told line by line."""

import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from rag.errors import UserError

BROKEN_STREAM = (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile)
LONGEST_LINE = 1 << 20  # bytes of a text file that are held at once
LONGEST_RECORD = (
    16 << 20
)  # bytes of one line, row or JSON object; a packed file of 1 MB can unpack to one of 1 GB
UNPACKED_AT_ONCE = 1 << 18  # bytes
# From so many bytes on, a packed file may unpack to so many times its size; text packs into a third to a twentieth.
MOST_UNPACKED, MOST_PACKED = 1 << 30, 200
ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.xz", ".7z", ".rar", ".bz2", ".zst")
_MARKS = (  # UTF-32's begins with UTF-16's
    ("utf-32", (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)),
    ("utf-16", (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)),
)


def plain_name(path: Path) -> str:
    """A file's name in lower case, without .gz or .xz."""
    return path.name.lower().removesuffix(".gz").removesuffix(".xz")


def unreadable(path: Path, error: OSError | ValueError) -> UserError:
    """Why the system does not open or read a file, in a sentence."""
    if isinstance(error, FileNotFoundError):
        return UserError(f"{path} does not exist")
    if isinstance(error, IsADirectoryError):
        return UserError(f"{path} is a folder, a file is expected")
    if isinstance(error, PermissionError):
        return UserError(f"{path} may not be read: its permissions forbid it")
    shown = str(path) if len(str(path)) < 300 else f"{str(path)[:100]}…"
    reason = getattr(error, "strerror", None) or str(error)  # a ValueError is a null character in the name
    return UserError(f"{shown!r} cannot be read ({reason}): give a file that can be")


def open_bytes(path: Path) -> Any:
    """The bytes of a file, unpacked where its name ends in .gz or .xz. UserError for an archive and what cannot be
    read."""
    try:
        with open(path, "rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    if zipped or path.name.lower().endswith(ARCHIVES):
        if path.suffix.lower() in (".xlsx", ".ods"):
            raise UserError(f"{path} is a spreadsheet, which is not read: save it as .csv, and give that")
        raise UserError(f"{path} is an archive: unpack it, and give the file or folder that was in it")
    suffix = path.suffix.lower()
    if suffix in (".gz", ".xz"):
        return io.BufferedReader(_Unpacked(path, suffix == ".gz"), UNPACKED_AT_ONCE)
    return open(path, "rb", buffering=1 << 20)


class _Unpacked(io.RawIOBase):
    """The bytes that a packed file unpacks to; UserError where they are far more than text packs into so few."""

    def __init__(self, path: Path, gz: bool):
        self._path, self._count = path, 0
        self._packed = open(path, "rb")
        self._file: Any = gzip.GzipFile(fileobj=self._packed) if gz else lzma.LZMAFile(self._packed)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = self._file.read(len(buffer))
        buffer[: len(part)] = part
        self._count += len(part)
        if self._count > MOST_UNPACKED and self._count > MOST_PACKED * self._packed.tell():
            raise UserError(
                f"{self._path} unpacks to more than {MOST_PACKED} times its size, which no text does: "
                f"its {self._path.stat().st_size:,} bytes would fill memory or disk; unpack it yourself if "
                "it is what it should be"
            )
        return len(part)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
            self._packed.close()
        super().close()


def first_bytes(path: Path, count: int) -> bytes:
    """The first bytes of a file, unpacked; UserError where they cannot be read."""
    try:
        with open_bytes(path) as file:
            return file.read(count)
    except BROKEN_STREAM as error:
        raise damaged(path, 0, error) from error
    except OSError as error:
        raise unreadable(path, error) from error


def damaged(path: Path, line: int, error: Exception) -> UserError:
    return UserError(f"{path} is damaged or was cut short after line {line} ({error}): download it again")


def text_lines(path: Path, encoding: str | None = None) -> Iterator[tuple[int, str]]:
    """The lines of a file with their numbers from 1, their ends included.

    encoding: None is UTF-8, or UTF-16 or UTF-32 where a byte order mark says so. A byte order mark is left out. Lines
    end in \\n or \\r\\n, or in \\r where the file begins so (old Mac files). Raises UserError, with the line, for bytes
    that are not of the encoding, for a line that is longer than LONGEST_RECORD, and for a file that is damaged.
    """
    number = 0
    try:
        with open_bytes(path) as file:
            head = file.peek(1 << 16)[: 1 << 16]
            codec = encoding or _marked(head) or "utf-8"
            lines: Iterator[Any]
            if _is_wide(codec, path):
                text = io.TextIOWrapper(file, codec, newline="\n")
                lines = iter(partial(text.readline, LONGEST_RECORD), "")
            elif b"\r" in head and b"\n" not in head:
                lines = (part.decode(codec) for part in _mac_lines(file))
            else:
                whole = iter(partial(file.readline, LONGEST_RECORD), b"")
                lines = (part.decode(codec) for part in whole)
            for number, line in enumerate(lines, start=1):
                if len(line) >= LONGEST_RECORD // 4 and not line.endswith(
                    "\n"
                ):  # four bytes a character at most
                    check_length(len(line.encode(codec, "replace")), f"{path}, line {number}")
                if encoding is not None and not line.isascii():
                    line.encode(
                        "utf-8"
                    )  # some encodings have halves of surrogate pairs, which no file can hold
                yield number, line.removeprefix("\ufeff") if number == 1 else line
    except UnicodeError as error:
        raise EncodingError(path, number + 1, encoding, error) from error
    except BROKEN_STREAM as error:
        raise damaged(path, number, error) from error
    except OSError as error:
        raise unreadable(path, error) from error


def check_length(length: int, where: str) -> None:
    """UserError for a line, row or object that is too long to be held in memory."""
    if length >= LONGEST_RECORD:
        raise UserError(
            f"{where}: more than {LONGEST_RECORD >> 20} MB without an end, where one passage or question is expected: "
            "is it a file of another kind? Running text is read from .txt files"
        )


def text_parts(path: Path, encoding: str | None = None) -> Iterator[tuple[int, str]]:
    """As `text_lines`, for text of any length: a line that is longer than a megabyte comes in several parts."""
    number = 1
    try:
        with open_bytes(path) as data:
            codec = encoding or _marked(data.peek(4)[:4]) or "utf-8"
            first = True
            if _is_wide(codec, path):
                text = io.TextIOWrapper(data, codec, newline="\n")
                while part := text.readline(LONGEST_LINE):
                    yield number, part.removeprefix("\ufeff") if first else part
                    first = False
                    number += part.endswith("\n")
                return
            decoder = codecs.getincrementaldecoder(codec)()
            while part := data.readline(LONGEST_LINE):
                if text := decoder.decode(part):
                    if encoding is not None and not text.isascii():
                        text.encode("utf-8")  # as in text_lines
                    yield number, text.removeprefix("\ufeff") if first else text
                    first = False
                number += part.endswith(b"\n")
            decoder.decode(b"", final=True)
    except UnicodeError as error:
        raise EncodingError(path, number, encoding, error) from error
    except BROKEN_STREAM as error:
        raise damaged(path, number - 1, error) from error
    except OSError as error:
        raise unreadable(path, error) from error


def _mac_lines(file: Any) -> Iterator[bytes]:
    rest = b""
    while block := file.read(LONGEST_LINE):
        *whole, rest = (rest + block).split(b"\r")
        yield from (line + b"\n" for line in whole)
        if len(rest) >= LONGEST_RECORD:
            yield rest
            rest = b""
    if rest:
        yield rest


def _marked(head: bytes) -> str | None:
    """The encoding that a byte order mark names, but for UTF-8's."""
    return next((name for name, marks in _MARKS if head.startswith(marks)), None)


def _is_wide(encoding: str, path: Path) -> bool:
    """Whether a line end is more than a byte in this encoding."""
    try:
        codecs.getincrementaldecoder(encoding)  # a line is one byte after the other
        return len("\n".encode(encoding)) > 1
    except (LookupError, ValueError):  # also what encodes no line end, as idna
        raise UserError(
            f"{path} cannot be read with corpus.encoding={encoding}, which Python does not know: give utf-8, latin-1, "
            "cp1252, utf-16, …"
        ) from None


class EncodingError(UserError):
    """Bytes that are not of the encoding a file is read in; `setting` is what names another one."""

    def __init__(self, path: Path, line: int, encoding: str | None, error: UnicodeError):
        self.found = path, line, encoding, error
        super().__init__(self.told("corpus.encoding"))

    def told(self, setting: str | None) -> str:
        """The sentence, where `setting` names the encoding; None where nothing does."""
        path, line, encoding, error = self.found
        reason = getattr(error, "reason", str(error))
        if encoding is not None:
            return f"{path}, line {line}: not {encoding} ({reason}): give {setting}= the encoding it was written in"
        guess = _guess(getattr(error, "object", b""))
        advice = (
            f"give {setting}= the encoding it was written in, such as {setting}={guess}, or "
            if setting
            else ""
        )
        return f"{path}, line {line}: not UTF-8 ({reason}): {advice}save it as UTF-8"


def _guess(data: Any) -> str:
    """latin-1, or cp1252 where the bytes hold what is a control character in latin-1."""
    return "cp1252" if isinstance(data, bytes) and any(0x80 <= byte < 0xA0 for byte in data) else "latin-1"
