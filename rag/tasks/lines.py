"""The lines of text files, packed or not, and what is mended in what they hold."""

import gzip
import io
import logging
import lzma
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rag.errors import UserError

log = logging.getLogger(__name__)

_ESCAPED = re.compile(r"\\[uU](0000)?[dD][89a-fA-F]")
_HALF = re.compile(r"[\ud800-\udfff]")
REPLACEMENT = "\ufffd"


def plain_suffix(path: Path) -> str:
    """The suffix of a file's name, in lower case and without that of its packing: "q.JSON.gz" has .json."""
    packed = path.suffix.lower() in (".gz", ".xz")
    return (Path(path.stem) if packed else path).suffix.lower()


def read_lines(path: Path | str) -> Iterator[str]:
    """Yield the lines of a UTF-8 text file, packed or not; UserError if it cannot be read.

    They end as they do in the file: with \\n, \\r\\n or, as old Macs wrote them, \\r.
    """
    path = Path(path)
    number = 0
    try:
        with _open(path) as file:
            for data in file:
                for line in data.splitlines(keepends=True):
                    number += 1
                    yield line.decode("utf-8-sig" if number == 1 else "utf-8")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, a file is expected") from None
    except PermissionError:
        raise UserError(f"{path} may not be read: its permissions forbid it") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}, line {number}: not UTF-8 ({error.reason} at byte {error.start}): save the file as UTF-8"
        ) from None
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise UserError(
            f"{path} is not a whole {path.suffix} file ({error}): fetch or recompress it"
        ) from None


def _open(path: Path) -> io.BufferedIOBase:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rb")
    if path.suffix.lower() == ".xz":
        return lzma.open(path, "rb")
    return path.open("rb")


class Mender:
    """Puts U+FFFD for each half of a surrogate pair, which no tokenizer takes and UTF-8 cannot hold, and counts.

    Such halves come from JSON's escapes (\\ud83d) alone, as where a text was cut in the middle of an emoji.
    """

    def __init__(self, path: Path | str):
        self.path = path
        self.count = 0
        self.first = ""

    def __call__(self, value: Any, written: str, where: str) -> Any:
        """The value that was read from `written`, mended. Whole pairs are one character already: json joins them."""
        if _ESCAPED.search(written) is None:
            return value
        mended = _mend(value)
        if mended != value:
            self.count += 1
            self.first = self.first or where
        return mended

    def report(self) -> None:
        """Say once how many records were mended."""
        if self.count:
            log.warning(
                "%s: %d record%s half of a surrogate pair, as of an emoji cut in two, read as U+FFFD; the first is %s",
                self.path,
                self.count,
                " holds" if self.count == 1 else "s hold",
                self.first,
            )


def _mend(value: Any) -> Any:
    if isinstance(value, str):
        return _HALF.sub(REPLACEMENT, value)
    if isinstance(value, list):
        return [_mend(one) for one in value]
    if isinstance(value, dict):
        return {_mend(key): _mend(one) for key, one in value.items()}
    return value
