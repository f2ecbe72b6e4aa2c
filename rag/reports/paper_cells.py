"""The cells of the paper that an experiment reproduces, and which record of an evaluation each stands beside."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rag.metrics.record import NOT_RETRIEVED, Record, best_k, find, swapped


@dataclass(frozen=True)
class Cell:
    """One number of the paper that an experiment reproduces, from the experiment's `paper` node.

    metric: "em"; "title_hit@1", at that K; "em_not_retrieved", where no passage holds the answer; "hot_swap@20162018",
    exact match asked about 2016 with 2018 indexed (two names of one length); "em_best_k", the best K. split: the
    paper's; instead: the split that stands for it where its answers are not public. value: in percent, or a K.
    """

    table: str
    row: str
    column: str
    metric: str
    split: str
    value: float
    instead: str = "dev"
    experiment: str = ""

    @property
    def is_k(self) -> bool:
        """Whether it holds the K with the highest value, instead of a value in percent."""
        return self.metric.endswith("_best_k")

    def record(self, records: Sequence[Record]) -> Record | None:
        """The record of an evaluation that it stands beside; None where that was not measured."""
        metric, k, condition = parsed(self.metric)
        return find(records, metric, k, condition)

    def ours(self, records: Sequence[Record]) -> float | None:
        """Our value in the cell's unit, percent or K; None where it was not measured."""
        if self.is_k:
            return best_k(records, self.metric.removesuffix("_best_k"))
        record = self.record(records)
        return None if record is None or record.value is None else 100 * record.value


def parsed(name: str) -> tuple[str, int | None, str | None]:
    """(metric, K, condition) of a record, by the name that a `paper` node has for it; no K is the evaluation's own."""
    metric, _, at = name.partition("@")
    if metric == "hot_swap":
        asked, indexed = at[: len(at) // 2], at[len(at) // 2 :]
        return "em", None, swapped(asked, indexed)
    metric = metric.removesuffix("_best_k")
    restricted = re.fullmatch(r"(.+)_not_retrieved", metric)
    if restricted:
        return restricted[1], None, NOT_RETRIEVED
    return metric, int(at) if at else None, None


def cells_of(nodes: Iterable[dict[str, Any]], experiment: str) -> list[Cell]:
    """The cells of an experiment's `paper` node."""
    return [Cell(**node, experiment=experiment) for node in nodes]
