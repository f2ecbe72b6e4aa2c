"""Questions that come through a pipe, as they come."""

import os
import select
from collections.abc import Iterator

from rag.errors import UserError


def lines_at_hand(descriptor: int, most: int) -> Iterator[list[str]]:
    """The lines of a pipe, up to `most` at once where so many stand in it already.

    Whoever writes one question and waits for its answer gets it; whoever writes thousands has them answered in
    batches. Raises UserError for bytes that are not UTF-8.
    """
    held, ended, number = b"", False, 0
    while held or not ended:
        lines: list[str] = []
        while len(lines) < most:
            line, end, rest = held.partition(b"\n")
            if end or (ended and held):
                held, number = rest, number + 1
                try:
                    lines.append(line.decode())
                except UnicodeDecodeError as error:
                    raise UserError(f"standard input, line {number}: not UTF-8 ({error.reason})") from error
            elif ended or (lines and not select.select([descriptor], [], [], 0)[0]):
                break
            else:
                piece = os.read(descriptor, 1 << 16)
                held, ended = held + piece, not piece
        if lines:
            yield lines
