"""JSON files as a stream of objects: one a line, one array of them, or one object that holds such an array.

DPR's and TriviaQA's arrays are gigabytes long, so that no more than one object is in memory at a time. Nothing is
passed over: what stands after the array, or between its objects without a comma, is an error with its line.
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rag.errors import UserError
from rag.text_files import LONGEST_RECORD, check_length, text_lines, text_parts

Record = dict[str, Any]
Bad = Callable[[UserError], None]
Mend = Callable[[Any, str, str], Any]  # (value, as it is written, where) → the value to go on with

_CHUNK = 1 << 20  # characters that are read at a time
_ARRAYS = (
    "data",
    "Data",
)  # keys of an object whose array of objects is what the file holds: SQuAD's, TriviaQA's
_SPACE = re.compile(r"[ \t\r\n]*")
_NOTHING_LIKE = ValueError, RecursionError  # a number of thousands of digits, lists in lists in lists


def json_records(
    path: Path, encoding: str | None = None, mend: Mend | None = None, bad: Bad | None = None
) -> Iterator[tuple[int, Record]]:
    """(line, object) for each object of a .json or .jsonl file, whichever of the two it is; nothing for an empty one.

    An object over several lines whose key `data` or `Data` is an array of objects is read as those. mend: called with
    each object and the text it was read from. bad: called with what is wrong with a line of JSON lines, which is then
    left out. Raises UserError, with the line, for what is malformed, for anything
    else than an object, and for an object of more than 16 MB.
    """
    scanner = _Scanner(path, encoding, mend)
    first = scanner.character()
    if first == "[":
        scanner.at += 1
        yield from scanner.items()
        scanner.end()
    elif first == "{" and scanner.goes_on_below():
        while scanner.character():
            yield from scanner.members()
    elif first:
        yield from _lines(path, encoding, mend, bad)


def parse_json(text: str, where: str, line: int | None = None) -> Any:
    """The value that `text` is. UserError, beginning with `where` and the line, for malformed JSON.

    line: of the file on which the text stands; None where it is the whole file.
    """
    try:
        return json.loads(text)
    except _NOTHING_LIKE as error:
        raise malformed(where, line or getattr(error, "lineno", 1), error) from None


def malformed(where: Path | str, line: int, error: ValueError | RecursionError) -> UserError:
    if isinstance(error, json.JSONDecodeError):
        reason = f"{error.msg} at column {error.colno}"
    elif isinstance(error, RecursionError):
        reason = "brackets inside brackets, too deep to be read"
    else:
        reason = str(error).partition(":")[0]
    return UserError(f"{where}, line {line}: malformed JSON ({reason})")


@contextmanager
def not_too_deep(where: Path | str) -> Iterator[None]:
    """UserError where something calls itself for each bracket inside a bracket of a value, and there are hundreds."""
    try:
        yield
    except RecursionError:
        raise UserError(f"{where}: brackets inside brackets, too deep to be read") from None


def check_object(value: Any, where: str) -> Record:
    """The value, which has to be a JSON object."""
    if not isinstance(value, dict):
        raise UserError(f"{where}: a JSON object is expected, found {kind(value)}")
    return value


def kind(value: Any) -> str:
    """What a JSON value is, in words."""
    kinds = {str: "a string", list: "a list", dict: "an object", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def _lines(
    path: Path, encoding: str | None, mend: Mend | None, bad: Bad | None
) -> Iterator[tuple[int, Record]]:
    for number, line in text_lines(path, encoding):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            value = check_object(parse_json(line.rstrip(), str(path), number), where)
            value = value if mend is None else mend(value, line, where)
            held = next((value[key] for key in _ARRAYS if key in value), None)
            if not isinstance(held, list) or not held or not isinstance(held[0], dict):
                held = [value]
            for each in held:
                check_object(each, where)
        except UserError as error:
            if bad is None:
                raise
            bad(error)
            continue
        yield from ((number, each) for each in held)


class _Scanner:
    """JSON read from left to right, with little more than one value of it in memory."""

    def __init__(self, path: Path, encoding: str | None, mend: Mend | None):
        self.path = path
        self.mend = mend
        self._parts = text_parts(path, encoding)
        self._decoder = json.JSONDecoder()
        self.text = ""  # what was read and is not behind us
        self.at = 0  # where we are in it, on which line of the file
        self.line = 1

    def more(self, least: int = 0) -> bool:
        """Read on; False at the end of the file. What is behind us is forgotten."""
        taken, size = [], 0
        for _, part in self._parts:
            taken.append(part)
            size += len(part)
            if size >= max(least, _CHUNK):
                break
        self.text = self.text[self.at :] + "".join(taken)
        self.at = 0
        return bool(taken)

    def character(self) -> str:
        """The next character that is no space, which we then are at; "" at the end of the file."""
        while True:
            match = _SPACE.match(self.text, self.at)
            assert match is not None
            self.line += self.text.count("\n", self.at, match.end())
            self.at = match.end()
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def value(self) -> Any:
        """The value that begins here, of which we are behind then."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                # One that goes on beyond what was read breaks off at its end, or inside a string.
                if error.pos >= len(self.text) - 16 or error.msg.startswith("Unterminated"):
                    if self._longer():
                        continue
                raise self.error(error.msg, error.pos) from None
            except _NOTHING_LIKE as error:
                raise malformed(self.path, self.line, error) from None
            if end == len(self.text) and type(value) in (int, float) and self._longer():
                continue  # a number may go on
            break
        where = f"{self.path}, line {self.line}"
        written, self.at = self.text[self.at : end], end
        if self.mend is not None and isinstance(value, dict):
            value = self.mend(value, written, where)
        self.line += written.count("\n")
        return value

    def _longer(self) -> bool:
        held = len(self.text) - self.at
        if not self.more(held):
            return False
        check_length(held, f"{self.path}, line {self.line}")
        return True

    def error(self, problem: str, position: int | None = None) -> UserError:
        line = self.line + (0 if position is None else self.text.count("\n", self.at, position))
        return UserError(f"{self.path}, line {line}: malformed JSON ({problem})")

    def items(self) -> Iterator[tuple[int, Record]]:
        """The objects of an array whose [ is behind us, to its ]."""
        if self.character() == "]":
            self.at += 1
            return
        while True:
            if not self.character():
                raise UserError(
                    f"{self.path}, line {self.line}: the JSON array is cut short, its ] is missing"
                )
            line = self.line
            yield line, check_object(self.value(), f"{self.path}, line {line}")
            after = self.character()
            if after == "]":
                self.at += 1
                return
            if not after:
                raise UserError(
                    f"{self.path}, line {self.line}: the JSON array is cut short, its ] is missing"
                )
            if after != ",":
                raise self.error("a comma is missing between two objects of the array")
            self.at += 1
            if self.character() == "]":
                raise self.error("a comma before the ] of the array")

    def end(self) -> None:
        """UserError where more than space follows."""
        if after := self.character():
            raise self.error(
                f"{after!r} after the end of the array: a file holds one array, or an object a line"
            )

    def goes_on_below(self) -> bool:
        """Whether the object that begins here ends on another line than this, or is longer than a record may be."""
        while (end := self.text.find("\n", self.at)) < 0:
            if len(self.text) - self.at >= LONGEST_RECORD:
                return True
            if not self.more():
                end = len(self.text)
                break
        line = self.text[self.at : end].rstrip()
        try:
            self._decoder.raw_decode(line)
        except json.JSONDecodeError as error:
            return error.pos >= len(line)
        except _NOTHING_LIKE:
            pass
        return False

    def members(self) -> Iterator[tuple[int, Record]]:
        """The object that begins here, or the objects of its array under `data`."""
        if self.character() != "{":
            raise self.error("an object is expected")
        began, record, streamed = self.line, {}, False
        self.at += 1
        while self.character() not in ("}", ""):
            if self.character() != '"':
                raise self.error("a key in double quotes is expected")
            key = self.value()
            if self.character() != ":":
                raise self.error(f"a colon is missing after the key {key!r:.80}")
            self.at += 1
            if key in _ARRAYS and self.character() == "[" and self._next_is_object():
                self.at += 1
                yield from self.items()
                streamed = True
            elif self.character():
                record[key] = self.value()
            else:
                break
            if self.character() not in (",", "}"):
                break
            if self.character() == ",":
                self.at += 1
                if self.character() == "}":
                    raise self.error("a comma before the } of an object")
        if not self.character():
            raise UserError(f"{self.path}, line {self.line}: the JSON object is cut short, its }} is missing")
        if self.character() != "}":
            raise self.error("a comma is missing between two keys of an object")
        self.at += 1
        if not streamed:
            written = json.dumps(record) if self.mend is not None else ""
            where = f"{self.path}, line {began}"
            yield began, record if self.mend is None else self.mend(record, written, where)

    def _next_is_object(self) -> bool:
        """Whether the array that begins here holds objects."""
        while True:
            match = _SPACE.match(self.text, self.at + 1)
            assert match is not None
            if match.end() < len(self.text):
                return self.text[match.end()] == "{"
            if not self.more():
                return False
