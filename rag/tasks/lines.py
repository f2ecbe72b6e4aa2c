"""The lines of question files, and what is mended and passed over in them."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rag.errors import UserError
from rag.text_files import text_lines

log = logging.getLogger(__name__)

_ESCAPED = re.compile(r"\\[uU](0000)?[dD][89a-fA-F]")
_HALF = re.compile(r"[\ud800-\udfff]")
REPLACEMENT = "\ufffd"


def plain_suffix(path: Path) -> str:
    """The suffix of a file's name, in lower case and without that of its packing: "q.JSON.gz" has .json."""
    packed = path.suffix.lower() in (".gz", ".xz")
    return (Path(path.stem) if packed else path).suffix.lower()


def read_lines(path: Path | str, encoding: str | None = None) -> Iterator[str]:
    """Yield the lines of a text file, packed or not, as `text_lines` does; UserError if it cannot be read."""
    return (line for _, line in text_lines(Path(path), encoding))


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


class BadRows:
    """What becomes of rows that are wrong: the first one is the error, or all are left out and counted.

    Either way the file is read to its end, so that it can be told how many rows are right.
    """

    def __init__(self, source: Path | str, skip: bool, setting: str):
        self.source = source
        self.skip = skip
        self.setting = setting  # what leaves them out, as it is typed
        self.count = self.right = 0
        self.first: UserError | None = None

    def __call__(self, error: UserError) -> None:
        """Take note of a wrong row."""
        self.count += 1
        self.first = self.first or error

    def report(self) -> None:
        """Say how many rows were left out; the first error again where that was not asked for."""
        if self.first is None:
            return
        rows = "1 row" if self.count == 1 else f"{self.count:,} rows"
        if self.skip and self.right:
            log.warning("%s left out of %s; the first: %s", rows, f"{self.count + self.right:,}", self.first)
            return
        if not self.right:
            raise self.first
        others = "1 other row is" if self.right == 1 else f"{self.right:,} other rows are"
        raise UserError(
            f"{self.first} ({rows} like this, {others} right: mend the file, or leave such rows out with "
            f"{self.setting})"
        ) from self.first
