"""Two systems asked the same questions: the difference of a metric with its interval, and whether it could be chance.

The paired bootstrap (Efron 1979; for language tasks Koehn 2004) draws questions with replacement, each time the same
ones for both systems, so that what makes a question hard for both cancels out. McNemar's exact test (McNemar 1947)
looks at the questions that one system has right and the other wrong: if neither is better, each of those n falls to
either side like a coin, so that with b of them on one side

    p = min(1, 2 Σ_{i ≤ min(b, n − b)} C(n, i) / 2ⁿ)
"""

from dataclasses import dataclass
from math import comb

import numpy as np

from rag.metrics.bootstrap import Metric, bootstrap


@dataclass(frozen=True, slots=True)
class Difference:
    """The second system's metric minus the first's, with the 95 % interval of the paired bootstrap.

    count: questions that were judged for both. p: McNemar's, where every question is right or wrong; else None.
    gained, lost: questions that the second has right and the first wrong, and the other way round; None as p.
    """

    value: float
    low: float
    high: float
    count: int
    p: float | None = None
    gained: int | None = None
    lost: int | None = None


def mcnemar(gained: int, lost: int) -> float:
    """The two-sided exact p of McNemar's test; 1.0 where no question changed sides."""
    number, fewer = gained + lost, min(gained, lost)
    return min(1.0, 2 * sum(comb(number, i) for i in range(fewer + 1)) / 2**number)


def is_right_or_wrong(metric: Metric) -> bool:
    """Whether every judged question scores 0 or 1, and the metric is their mean."""
    judged = metric.per_example[~np.isnan(metric.per_example)]
    return metric.statistics is None and len(judged) > 0 and bool(np.isin(judged, (0.0, 1.0)).all())


def difference(first: Metric, second: Metric) -> Difference | None:
    """`second` − `first` over the same questions in the same order; None where they have no judged question in common.

    A corpus metric (`statistics`) is computed anew of each drawn set of questions. None as well where a metric has
    neither scores of its examples nor statistics, such as the share of distinct trigrams.
    """
    if first.statistics is not None and second.statistics is not None:
        assert first.aggregate is not None and second.aggregate is not None
        of_first, of_second = first.aggregate, second.aggregate
        width = first.statistics.shape[1]
        value, low, high = bootstrap(
            np.concatenate([first.statistics, second.statistics], axis=1),
            lambda means: of_second(means[:, width:]) - of_first(means[:, :width]),
        )
        return Difference(value, low, high, len(first.statistics))
    both = ~np.isnan(first.per_example) & ~np.isnan(second.per_example)
    if not both.any():
        return None
    gap = (second.per_example - first.per_example)[both]
    value, low, high = bootstrap(gap)
    if not (is_right_or_wrong(first) and is_right_or_wrong(second)):
        return Difference(value, low, high, int(both.sum()))
    gained, lost = int((gap > 0).sum()), int((gap < 0).sum())
    return Difference(value, low, high, int(both.sum()), mcnemar(gained, lost), gained, lost)
