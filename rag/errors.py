"""Mistakes a user can make, told in one sentence.

Everything a user can get wrong (a missing file, a malformed line, an index of another encoder) is raised as
`UserError` with a message that says what was found, what was expected and what to do. The scripts print the
message and exit with code 2; any other exception is a bug and keeps its traceback.
"""

import errno
import re
from collections.abc import Iterable, Iterator

LONGEST_SENTENCE = 1_500  # characters
_NO_MEMORY = re.compile(r"allocate memory|out of memory|bad_alloc|failed to map segment", re.IGNORECASE)


class UserError(Exception):
    """A mistake of the user's: `str(error)` is the one sentence to show.

    It stays one line whatever it quotes; of a page, the middle is left out, since what to do comes last.
    """

    def __init__(self, sentence: str):
        sentence = " ".join(sentence.splitlines())
        if len(sentence) > LONGEST_SENTENCE:
            sentence = f"{sentence[: LONGEST_SENTENCE // 2]} … {sentence[-LONGEST_SENTENCE // 2 :]}"
        super().__init__(sentence)


def out_of_memory(error: BaseException) -> bool:
    """Whether this error, or one that it came from, says that memory ran out: the machine's, what a limit leaves of it,
    or a GPU's. torch, FAISS and the loader of shared libraries have no type in common for it."""
    for each in causes(error):
        if isinstance(each, MemoryError) or (isinstance(each, OSError) and each.errno == errno.ENOMEM):
            return True
        if isinstance(each, RuntimeError | ImportError) and _NO_MEMORY.search(str(each)):
            return True
    return False


def causes(error: BaseException, context: bool = False) -> Iterator[BaseException]:
    """The error, what it was raised from (or, with `context`, while what was handled), and so on; each once, should one
    be raised from itself."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and not any(cause is each for each in seen):
        seen.append(cause)
        yield cause
        cause = cause.__cause__ or (cause.__context__ if context else None)


def one_line(text: str) -> str:
    """Text with every run of white space as one space, for a message."""
    return re.sub(r"\s+", " ", text).strip()


def shortened(text: str, length: int = 80) -> str:
    """Of what was typed or written by mistake, so much that it is recognised."""
    return text if len(text) <= length else f"{text[:length]}…"


def listed(names: Iterable[str], most: int = 20) -> str:
    """The first of some names, separated by commas; "none" where there are none."""
    names = list(names)
    shown = ", ".join(shortened(name, 40) for name in names[:most])
    return f"{shown}, …" if len(names) > most else shown or "none"
