"""What every task is made of: a question with the answers that count as right."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Example:
    """One input of a task with its targets and, where known, the passages that hold the answer."""

    question: str
    answers: tuple[str, ...]  # any of them is right
    positive_ids: tuple[str, ...] = ()  # ids of gold passages, where known
    hard_negative_ids: tuple[str, ...] = ()  # ids of passages that look right and are not
    set: str = ""  # which part of a mixed file it belongs to ("people", "nq", …)
    id: str = ""  # by default its running number in the file, from 1
    # Its place in the file, and the passages that came with it, as they are written (contexts.py); only while a file is
    # read, since they may be gigabytes.
    contexts: tuple[str, Any] | None = field(default=None, compare=False, repr=False)

    def without_contexts(self) -> "Example":
        """The question as it is kept."""
        return self if self.contexts is None else replace(self, contexts=None)

    def plain(self) -> dict[str, Any]:
        """As it is written to a file: everything but the passages that came with it."""
        record = asdict(self.without_contexts())
        del record["contexts"]
        return record
