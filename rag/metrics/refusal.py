"""How well a score tells questions that can be answered from those that cannot (selective answering).

A model that may refuse is judged by two things. AUROC is the probability that a question that can be answered scores
higher than one that cannot, ties counting half (Mann and Whitney 1947). The risk–coverage curve (El-Yaniv and Wiener
2010) answers the questions in order of their score and shows, for each share of questions answered, how many of those
answers are wrong; an answer to a question that cannot be answered is always wrong.

A question may be asked twice, with its passages and without them: intervals draw questions, and with each all of its
rows, so that the two are never taken for independent.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from rag.metrics.bootstrap import RESAMPLES, SEED, Metric


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """N rows: a question each with its score.

    answerable: whether the passages hold an answer. right: whether the answer given is right, which none is to a
    question that cannot be answered. question: whose row it is; None: each row has a question of its own.
    """

    scores: Float[np.ndarray, " rows"]
    answerable: Bool[np.ndarray, " rows"]
    right: Bool[np.ndarray, " rows"]
    question: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.answerable.sum() < len(self.answerable):
            raise ValueError("questions that can be answered and questions that cannot are needed")
        if (self.right & ~self.answerable).any():
            raise ValueError("an answer to a question that cannot be answered is never right")

    def __getitem__(self, rows: np.ndarray) -> "Scored":
        question = None if self.question is None else [self.question[row] for row in rows]
        return Scored(self.scores[rows], self.answerable[rows], self.right[rows], question)


def auroc(scored: Scored) -> Metric:
    """P(score of an answerable question > score of another), ties ½, with its interval."""
    return _with_interval(scored, auroc_value)


def refused_at(scored: Scored, coverage: float) -> Metric:
    """The share of the questions without an answer that are refused where `coverage` of the others are answered."""
    return _with_interval(scored, lambda drawn: refused_below(drawn, threshold_for(drawn, coverage)))


def refused_with(scored: Scored, threshold: float) -> tuple[Metric, Metric, Metric]:
    """With a fixed threshold: the share of answerable questions answered, of the others refused, and the share of
    answerable ones among all that are answered (the precision)."""
    return (
        _with_interval(scored, lambda drawn: float((drawn.scores >= threshold)[drawn.answerable].mean())),
        _with_interval(scored, lambda drawn: refused_below(drawn, threshold)),
        _with_interval(scored, lambda drawn: precision_of(drawn, threshold)),
    )


def auroc_value(scored: Scored) -> float:
    ranks = rankdata(scored.scores)  # of equals the mean
    positive = int(scored.answerable.sum())
    negative = len(ranks) - positive
    return float((ranks[scored.answerable].sum() - positive * (positive + 1) / 2) / (positive * negative))


def threshold_for(scored: Scored, coverage: float) -> float:
    """The highest threshold that at least `coverage` of the answerable questions reach."""
    scores = np.sort(scored.scores[scored.answerable])[::-1]
    return float(scores[max(0, int(np.ceil(coverage * len(scores) - 1e-9)) - 1)])


def refused_below(scored: Scored, threshold: float) -> float:
    """The share of the questions that cannot be answered whose score is below the threshold."""
    return float((scored.scores < threshold)[~scored.answerable].mean())


def precision_of(scored: Scored, threshold: float) -> float:
    """The share of the answerable questions among those that reach the threshold; 1 where none does."""
    answered = scored.scores >= threshold
    return float(scored.answerable[answered].mean()) if answered.any() else 1.0


def risk_coverage(scored: Scored) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
    """(coverage, risk): the share of all rows that reach a score, and the share of their answers that are wrong.

    A point for each distinct score, the highest first: rows with the same score are answered together.
    """
    order = np.argsort(-scored.scores, kind="stable")
    last = np.flatnonzero(np.diff(scored.scores[order], append=-np.inf))  # of each run of equals
    answered = last + 1
    wrong = np.cumsum(~scored.right[order])[last]
    return answered / len(order), wrong / answered


def area_under_risk(scored: Scored) -> float:
    """The mean risk over all coverages: the area under the risk–coverage curve, a step for each point."""
    coverage, risk = risk_coverage(scored)
    return float((np.diff(coverage, prepend=0.0) * risk).sum())


def _with_interval(scored: Scored, statistic: Callable[[Scored], float]) -> Metric:
    value = statistic(scored)
    rows_of = _rows_of_questions(scored)
    generator = np.random.default_rng(SEED)
    drawn = []
    while len(drawn) < RESAMPLES:
        chosen = generator.integers(0, len(rows_of), size=len(rows_of))
        rows = np.concatenate([rows_of[each] for each in chosen])
        if (
            0 < scored.answerable[rows].sum() < len(rows)
        ):  # both kinds; of a handful of questions one may be missing
            drawn.append(statistic(scored[rows]))
    low, high = np.percentile(drawn, [2.5, 97.5])
    nan = np.full(len(scored.scores), np.nan)
    return Metric(value, float(low), float(high), len(rows_of), nan)


def _rows_of_questions(scored: Scored) -> list[np.ndarray]:
    if scored.question is None:
        return [np.array([row]) for row in range(len(scored.scores))]
    names: ArrayLike = np.asarray(scored.question)
    _, which = np.unique(names, return_inverse=True)
    order = np.argsort(which, kind="stable")
    return np.split(order, np.cumsum(np.bincount(which))[:-1])
