"""What all tasks share: splits that are read from sources, and training pairs."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from rag.errors import UserError
from rag.metrics.bootstrap import Metric
from rag.tasks.example import Example
from rag.tasks.records import not_empty


class Task(ABC):
    """Examples from files or hub datasets, with the measures that judge predictions for them.

    Args:
        train, dev, test: sources as in records.py; a split may be left out.
        limit: read only the first so many examples of every split.
    """

    def __init__(
        self,
        train: str | None = None,
        dev: str | None = None,
        test: str | None = None,
        limit: int | None = None,
    ):
        self.sources = {"train": train, "dev": dev, "test": test}
        self.limit = limit

    @abstractmethod
    def read(self, source: str) -> Iterator[Example]:
        """The examples of one source, in its order; UserError for what is wrong in it."""

    @abstractmethod
    def score(self, predictions: Sequence[str], examples: Sequence[Example]) -> dict[str, Metric]:
        """The task's measures of predictions (N,) for its examples, by name."""

    def examples(self, split: str) -> list[Example]:
        """The examples of "train", "dev" or "test", read anew; UserError if the split has no source."""
        source = self.source(split)
        return not_empty(source, self.read(source), self.limit)

    def source(self, split: str) -> str:
        """Where a split is read from; UserError if the task has no source for it."""
        source = self.sources.get(split)
        if source is None:
            known = ", ".join(name for name, one in self.sources.items() if one is not None)
            raise UserError(f"the task has no {split} file: give task.{split}=… (it has: {known or 'none'})")
        return source

    def training_pairs(self) -> list[tuple[Example, str]]:
        """One (example, target) for each answer of each training example, as in section 3.1."""
        return [(example, answer) for example in self.examples("train") for answer in example.answers]
