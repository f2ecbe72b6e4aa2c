"""What all tasks share: splits that are read from sources, and training pairs."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from rag.errors import UserError
from rag.index.passage import Passage, whole_id
from rag.json_files import not_too_deep
from rag.metrics.bootstrap import Metric
from rag.tasks.example import Example
from rag.tasks.records import not_empty


class Task(ABC):
    """Examples from files or hub datasets, with the measures that judge predictions for them.

    Args:
        train, dev, test: sources as in records.py; a split may be left out.
        limit: read only the first so many examples of every split.

    `depth`: so many passages are searched for each training question before its targets are known (appendix D,
    preparation.py); 0 where the answers themselves are the targets.
    """

    depth: int = 0
    measures: tuple[str, ...] = ()  # the names that `score` gives
    report_sets: Sequence[str] | None = None  # of a mixed file, the sets that `score` counts; None: all

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

    def reading(self) -> list[Any]:
        """What decides, beside a source's content, which examples `read` gives; plain containers."""
        return [type(self).__name__]

    @abstractmethod
    def score(self, predictions: Sequence[str], examples: Sequence[Example]) -> dict[str, Metric]:
        """The task's measures of predictions (N,) for its examples, by name."""

    def right_passages(self, example: Example) -> dict[str, Callable[[Passage], bool]]:
        """What makes a retrieved passage right for an example, by the name of the measure.

        A measure is left out where nothing is known to judge by. Here "recall": it is a gold passage, by its id, or a
        piece that was split from one.
        """
        gold = frozenset(example.positive_ids)
        if not gold:
            return {}
        return {"recall": lambda passage: passage.id in gold or whole_id(passage.id) in gold}

    def submission(self, predictions: Sequence[str], examples: Sequence[Example]) -> Mapping[str, str]:
        """{file name: content} of what is sent in where the answers are not public; {} where nothing is."""
        return {}

    def examples(self, split: str) -> list[Example]:
        """The examples of a split ("train", "dev", "test" or another of the task's), read anew.

        Raises UserError if the split has no source, or there is nothing in it.
        """
        source = self.source(split)
        with not_too_deep(source):
            read = (example.without_contexts() for example in self.read(source))
            return not_empty(source, read, self.limit)

    def source(self, split: str) -> str:
        """Where a split is read from; UserError if the task has no source for it."""
        source = self.sources.get(split)
        if source is None:
            known = ", ".join(name for name, one in self.sources.items() if one is not None)
            if split not in self.sources:
                raise UserError(
                    f"split={split} does not exist; available: {', '.join(self.sources)} "
                    f"(with a file: {known or 'none'})"
                )
            raise UserError(f"the task has no {split} file: give task.{split}=… (it has: {known or 'none'})")
        return source

    def training_pairs(self) -> list[tuple[Example, str]]:
        """One (example, target) for each answer of each training example, as in section 3.1."""
        return [(example, answer) for example in self.examples("train") for answer in example.answers]

    def targets(self, example: Example, texts: Iterable[str]) -> tuple[str, ...]:
        """The training targets that the texts of an example's `depth` best passages hold; () if they hold none."""
        return example.answers

    def targets_without(self, example: Example) -> tuple[str, ...]:
        """The training targets of an example whose passages hold none; () leaves the example out."""
        return ()
