"""What every task is made of: a question with the answers that count as right."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Example:
    """One input of a task with its targets and, where known, the passages that hold the answer."""

    question: str
    answers: tuple[str, ...]  # any of them is right
    positive_ids: tuple[str, ...] = ()  # ids of gold passages, where known
    hard_negative_ids: tuple[str, ...] = ()  # ids of passages that look right and are not
    set: str = ""  # which part of a mixed file it belongs to ("people", "nq", …)
    id: str = ""  # by default its running number in the file, from 1
