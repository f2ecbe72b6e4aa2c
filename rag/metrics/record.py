"""What an evaluation measured, one record a metric: {metric, k, split, value, low, high, n, condition}.

result.json holds a list of them under "metrics"; `records_of` reads it, and the result.json of earlier versions too.
Every table and picture is made from records.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from rag.metrics.bootstrap import Metric

# What a metric can be restricted to, or be compared with (`Record.condition`), beside `swapped`.
NOT_RETRIEVED = "answer not retrieved"  # the questions none of whose K passages holds an answer (section 4.1)
BM25 = "BM25"  # what BM25 retrieves from the same passages for the same questions


@dataclass(frozen=True, slots=True)
class Record:
    """One metric of an evaluation.

    metric: "em", "f1", "recall", … k: passages read or retrieved, None for a closed book. split: whose questions; of a
    hot-swap, the name of its file of questions. value: a share from 0 to 1; None where nothing could be judged. low,
    high: its 95 % interval; None where there is none. n: the examples that the value is over; None in files of
    earlier versions, which did not write it down. condition: what the metric is restricted to or compared with.
    """

    metric: str
    k: int | None
    split: str
    value: float | None
    low: float | None
    high: float | None
    n: int | None
    condition: str | None = None

    @classmethod
    def of(
        cls, metric: str, measured: Metric, k: int | None, split: str, condition: str | None = None
    ) -> Self:
        """The record of a measured metric; NaN, which JSON lacks, becomes None."""
        value, low, high = (
            None if math.isnan(each) else float(each)
            for each in (measured.value, measured.low, measured.high)
        )
        return cls(metric, k, split, value, low, high, measured.count, condition)

    def plain(self) -> dict[str, Any]:
        """As it stands in result.json."""
        return asdict(self)


def swapped(asked: str, indexed: str) -> str:
    """The condition of a cell of the hot-swap: the edition asked about, and the one indexed (section 4.5)."""
    return f"asked {asked}, indexed {indexed}"


def swap_pair(record: Record) -> tuple[str, str] | None:
    """(asked, indexed) of a cell of the hot-swap; None of any other record."""
    match = re.fullmatch(r"asked (.+), indexed (.+)", record.condition or "")
    return None if match is None else (match[1], match[2])


def swap_cells(records: Iterable[Record]) -> dict[str, dict[str, Record]]:
    """The hot-swap as {edition asked about: {edition indexed: record}}; empty where there was none."""
    cells: dict[str, dict[str, Record]] = {}
    for record in records:
        if pair := swap_pair(record):
            cells.setdefault(pair[0], {})[pair[1]] = record
    return cells


def by_k(records: Iterable[Record], metric: str, condition: str | None = None) -> dict[int, Record]:
    """{K: record} of a metric, smallest K first."""
    chosen = [each for each in records if each.metric == metric and each.condition == condition]
    return {each.k: each for each in sorted(chosen, key=lambda each: each.k or 0) if each.k is not None}


def find(
    records: Sequence[Record], metric: str, k: int | None = None, condition: str | None = None
) -> Record | None:
    """The record of a metric with K = `k`; without a K, the one that comes first, which is of the evaluation's own."""
    chosen = (each for each in records if each.metric == metric and each.condition == condition)
    return next((each for each in chosen if k is None or each.k == k), None)


def best_k(records: Iterable[Record], metric: str) -> int | None:
    """The K with the highest value, the smallest of equals; None where fewer than two K were judged (figure 3)."""
    judged = {k: each.value for k, each in by_k(records, metric).items() if each.value is not None}
    return max(judged, key=judged.__getitem__) if len(judged) > 1 else None


# -- result.json -----------------------------------------------------------------------------------


def records_of(result: Mapping[str, Any]) -> list[Record]:
    """The records of an evaluation's result.json, of this version or an earlier one."""
    if "metrics" in result:
        return [Record(**each) for each in result["metrics"]]
    return _converted(result)


def training_metrics(result: Mapping[str, Any]) -> dict[str, float | None]:
    """The last values of a training's result.json, of this version or an earlier one: {"dev/em": …}."""
    return result["metrics"] if "metrics" in result else result.get("figures", {})


def _converted(result: Mapping[str, Any]) -> list[Record]:
    """Earlier versions wrote {"em": …, "recall": {"1": …}, "em_by_k": …, "bm25": {"recall": …}, "hot_swap": {"AB": …}}.

    The intervals stood apart, under "em" in "intervals" and "recall@1" in "intervals_at"; of how many examples a metric
    was, was not written down.
    """
    split, n_docs = str(result.get("split", "")), result.get("n_docs") if "index" in result else None
    records: dict[tuple[str, int | None, str | None], Record] = {}

    def add(
        metric: str, k: int | None, value: Any, interval: Sequence[Any], condition: str | None = None
    ) -> None:
        low, high = interval
        records.setdefault(
            (metric, k, condition), Record(metric, k, split, value, low, high, None, condition)
        )

    for name, interval in result.get("intervals", {}).items():
        restricted = name.endswith("_not_retrieved")
        metric = name.removesuffix("_not_retrieved")
        add(metric, n_docs, result[name], interval, NOT_RETRIEVED if restricted else None)
    editions = [pair[: len(pair) // 2] for pair in result.get("hot_swap", {}) if _is_double(pair)]
    pairs = {asked + indexed: swapped(asked, indexed) for asked in editions for indexed in editions}
    for key, interval in result.get("intervals_at", {}).items():
        name, _, at = key.partition("@")
        if name == "hot_swap":
            add("em", n_docs, result[name][at], interval, pairs[at])
        elif name.startswith("bm25."):
            metric = name.removeprefix("bm25.")
            add(metric, int(at), result["bm25"][metric][at], interval, BM25)
        else:
            add(name.removesuffix("_by_k"), int(at), result[name][at], interval)
    return list(records.values())


def _is_double(pair: str) -> bool:
    half = len(pair) // 2
    return pair[:half] == pair[half:]
