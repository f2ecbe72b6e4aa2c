"""AUROC, the risk–coverage curve and thresholds, against counting by hand."""

import itertools

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from rag.metrics.refusal import (
    Scored,
    area_under_risk,
    auroc,
    auroc_value,
    precision_of,
    refused_at,
    refused_below,
    refused_with,
    risk_coverage,
    threshold_for,
)


def scored(scores, answerable, right=None, question=None) -> Scored:
    truth = np.array(answerable, dtype=bool)
    return Scored(
        np.array(scores, dtype=float),
        truth,
        truth if right is None else np.array(right, dtype=bool),
        question,
    )


FIVE = scored([0.9, 0.8, 0.8, 0.3, 0.1], [1, 1, 0, 1, 0], right=[1, 0, 0, 1, 0])


def test_auroc_is_the_share_of_pairs_in_order():
    # pairs: .9 > .8, .9 > .1, .8 = .8, .8 > .1, .3 < .8, .3 > .1
    assert auroc_value(FIVE) == pytest.approx((1 + 1 + 0.5 + 1 + 0 + 1) / 6)
    generator = np.random.default_rng(1)
    for _ in range(20):
        scores, truth = generator.integers(0, 6, 30) / 6, generator.random(30) < 0.4
        pairs = itertools.product(scores[truth], scores[~truth])
        counted = np.mean([0.5 if a == b else float(a > b) for a, b in pairs])
        assert auroc_value(scored(scores, truth)) == pytest.approx(counted)
        assert auroc_value(scored(scores, truth)) == pytest.approx(roc_auc_score(truth, scores))


def test_risk_against_coverage_by_hand():
    """Rows of one score are answered together."""
    coverage, risk = risk_coverage(FIVE)
    np.testing.assert_allclose(coverage, [0.2, 0.6, 0.8, 1.0])
    np.testing.assert_allclose(risk, [0, 2 / 3, 0.5, 0.6])
    assert area_under_risk(FIVE) == pytest.approx(0.2 * 0 + 0.4 * 2 / 3 + 0.2 * 0.5 + 0.2 * 0.6)


def test_thresholds_by_hand():
    assert threshold_for(FIVE, 1.0) == 0.3 and threshold_for(FIVE, 2 / 3) == 0.8
    assert threshold_for(FIVE, 0.34) == 0.8 and threshold_for(FIVE, 1 / 3) == 0.9
    assert refused_below(FIVE, 0.8) == 0.5 and refused_below(FIVE, 0.81) == 1.0
    assert precision_of(FIVE, 0.8) == pytest.approx(2 / 3) and precision_of(FIVE, 1.0) == 1.0
    answered, refused, precision = refused_with(FIVE, 0.8)
    assert (answered.value, refused.value, precision.value) == pytest.approx((2 / 3, 0.5, 2 / 3))


def test_intervals_draw_questions_and_not_rows():
    """Each question three times says no more than once."""
    generator = np.random.default_rng(0)
    truth = np.arange(60) % 2 == 0
    scores = truth * 0.8 + generator.normal(size=60)
    once = auroc(scored(scores, truth))
    thrice = [np.repeat(each, 3) for each in (scores, truth)]
    same = auroc(scored(*thrice, question=np.repeat(np.arange(60), 3).tolist()))
    assert (same.value, same.low, same.high) == pytest.approx((once.value, once.low, once.high))
    assert same.count == 60 and once.low < once.value < once.high
    rows = auroc(scored(*thrice))
    assert rows.high - rows.low < 0.8 * (same.high - same.low)
    refused = refused_at(scored(scores, truth), 0.9)
    assert refused.low <= refused.value <= refused.high


def test_what_cannot_be_judged_is_refused():
    with pytest.raises(ValueError, match="can be answered"):
        scored([0.1, 0.2], [1, 1])
    with pytest.raises(ValueError, match="never right"):
        scored([0.1, 0.2], [1, 0], right=[1, 1])
