"""A metric with its 95 % interval, by the bootstrap: draw the test set anew with replacement, many times.

The interval is the percentile bootstrap of Efron (1979): from the 2.5th to the 97.5th percentile of the
statistic over the resampled test sets. The seed is fixed, so the same scores give the same interval.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 1000
SEED = 0
DRAWS_AT_ONCE = 4_000_000  # indices in memory at a time


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """One measured metric, a fraction from 0 to 1, with its 95 % interval."""

    value: float
    low: float
    high: float
    count: int  # examples that were judged
    per_example: np.ndarray = field(repr=False)  # (N,) in the examples' order; NaN where one was not judged
    # Of a corpus metric, which is no mean of the examples' scores: (N, S) of each example, whose means give the metric.
    statistics: np.ndarray | None = field(default=None, repr=False)
    aggregate: Callable[[np.ndarray], np.ndarray] | None = field(
        default=None, repr=False
    )  # (R, S) means to (R,)

    def summary(self) -> dict[str, float | int]:
        """The metric without the scores of single examples, as it goes into metrics.json."""
        return {"value": self.value, "low": self.low, "high": self.high, "count": self.count}


def bootstrap(
    statistics: ArrayLike,
    aggregate: Callable[[np.ndarray], np.ndarray] = lambda means: means[:, 0],
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> tuple[float, float, float]:
    """(value, low, high) of a metric that depends on the examples through means of per-example statistics.

    Args:
        statistics: (N,) scores, whose mean is the metric, or (N, S) statistics of each example.
        aggregate: takes means over (resampled) examples, (R, S), to metrics (R,); a corpus score such as BLEU
            is computed from such means. By default the mean of the first column.
    Raises:
        ValueError: if there is no example, or a NaN among the statistics.
    """
    table = np.asarray(statistics, dtype=np.float64)
    count = len(table)
    if count == 0 or np.isnan(table).any():
        raise ValueError("the bootstrap needs at least one example, and a number for each")
    table = table.reshape(count, -1)
    generator = np.random.default_rng(seed)
    rows = max(1, DRAWS_AT_ONCE // count)
    metrics = []
    for first in range(0, resamples, rows):
        drawn = generator.integers(0, count, size=(min(rows, resamples - first), count))
        means = np.stack([column[drawn].mean(axis=1) for column in table.T], axis=1)
        metrics.append(aggregate(means))
    low, high = np.percentile(np.concatenate(metrics), [2.5, 97.5])
    value = aggregate(table.mean(axis=0, keepdims=True))[0]
    return float(value), float(low), float(high)


def mean_with_interval(scores: ArrayLike) -> Metric:
    """The mean of per-example scores (N,) with its interval; NaN marks an example that was not judged.

    Where no example was judged, value, low and high are NaN and count is 0.
    """
    scores = np.asarray(scores, dtype=np.float64)
    judged = scores[~np.isnan(scores)]
    if len(judged) == 0:
        return Metric(np.nan, np.nan, np.nan, 0, scores)
    value, low, high = bootstrap(judged)
    return Metric(value, low, high, len(judged), scores)


def jackknife(value: float, without: ArrayLike) -> tuple[float, float]:
    """(low, high), 95 %, of a metric whose resampling would be wrong, by the jackknife (Efron 1982).

    For a metric that counts what is distinct: a bootstrap draws examples twice, and what they hold is then no longer
    distinct. without: (N,) the metric with each example left out, N ≥ 2.
    """
    left_out = np.asarray(without, dtype=np.float64)
    count = len(left_out)
    error = np.sqrt((count - 1) / count * np.square(left_out - left_out.mean()).sum())
    return float(value - 1.96 * error), float(value + 1.96 * error)
