"""An answerability score: the probability that the passages hold an answer, by a logistic regression on the evidence.

    score = σ(b + Σ_j w_j · (f_j − mean_j) / scale_j)

fitted on questions whose passages hold an answer and on questions whose passages hold none, both kinds counting the
same. The threshold is the lowest at which, of the questions that are answered, at least a stated share can be answered
(the precision, where half of those asked can). It is written down with what it was fitted for: another model's
evidence means something else.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import Bool, Float

from rag.encoders.protocol import hash_weights
from rag.errors import UserError
from rag.evaluation.evidence import FEATURES, Evidence
from rag.files import read_json, write_json
from rag.model import RagModel

_FORMAT = 1
_POINTS = 50  # of the curve that is kept, by which another precision can be asked for
_INVERSE_REGULARISATION = 1.0


@dataclass(frozen=True)
class Point:
    """What a threshold does to the questions it was fitted on."""

    threshold: float
    answered: float  # of those that can be answered
    refused: float  # of those that cannot
    precision: float  # of those answered, how many can be answered


@dataclass(frozen=True)
class Calibration:
    """The weights, the threshold, and what they were fitted for.

    precision: what the threshold was chosen for; None: for none. fitted_for: `identity_of` the model; None of a rule
    that was not fitted. n_docs: the K of the evidence. questions, passages: how many of each it was fitted with.
    corpus: the hash of those passages; None where the features mean the same over others.
    """

    features: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]
    bias: float
    threshold: float
    precision: float | None = None
    curve: tuple[Point, ...] = ()
    fitted_for: dict[str, Any] | None = None
    n_docs: int | None = None
    questions: int = 0
    passages: int = 0
    corpus: str | None = None

    def score(self, evidence: Evidence) -> float:
        """From 0 to 1; 0 for an empty answer."""
        if not evidence.answered:
            return 0.0
        features = (evidence.features(self.features) - np.array(self.mean)) / np.array(self.scale)
        return _sigmoid(self.bias + float(features @ np.array(self.weights)))

    def believes(self, evidence: Evidence) -> bool:
        return evidence.answered and self.score(evidence) >= self.threshold

    def at(self, precision: float) -> Self:
        """With the lowest threshold that reached the precision where it was fitted; UserError where none did."""
        if not 0 < precision <= 1:
            raise UserError(
                f"precision={precision:g} is no share: give a number above 0 and at most 1, as in precision=0.9"
            )
        reached = [point for point in self.curve if point.precision >= precision]
        if not reached:
            most = max((point.precision for point in self.curve), default=0.0)
            raise UserError(
                f"precision={precision:g} was reached at no threshold: give at most {math.floor(most * 100) / 100:g}"
            )
        best = min(reached, key=lambda point: point.threshold)
        return replace(self, threshold=best.threshold, precision=precision)

    # -- made ------------------------------------------------------------------------------------------

    @classmethod
    def margin(cls, least: float = 0.0) -> Self:
        """The rule that needs no questions: believed where the answer is likelier than the empty one in its passage, by
        `least` nats. Its score is the share of the two."""
        return cls(("margin",), (0.0,), (1.0,), (1.0,), 0.0, _sigmoid(least))

    @classmethod
    def fit(
        cls,
        evidence: Sequence[Evidence],
        answerable: Sequence[bool],
        precision: float,
        features: Sequence[str] = FEATURES,
        fitted_for: dict[str, Any] | None = None,
        n_docs: int | None = None,
        passages: int = 0,
        corpus: str | None = None,
    ) -> Self:
        """answerable: of each, whether its passages hold an answer. Raises UserError for fewer than ten of either kind,
        and for a precision that no threshold reaches."""
        truth = np.array(answerable, dtype=bool)
        fewest = min(int(truth.sum()), int((~truth).sum()))
        if fewest < 10:
            raise UserError(
                f"{len(truth)} questions, {int(truth.sum())} of them answered by the passages, calibrate nothing: at "
                "least 10 of either kind are needed"
            )
        table = np.array([each.features(features) for each in evidence])
        mean, scale = table.mean(axis=0), table.std(axis=0)
        scale[scale < 1e-9] = 1.0  # the same for all questions: no weight comes of it
        from sklearn.linear_model import (
            LogisticRegression,
        )  # most of a second, which asking need not wait for

        model = LogisticRegression(C=_INVERSE_REGULARISATION, class_weight="balanced", max_iter=10_000)
        model.fit((table - mean) / scale, truth)
        fitted = cls(
            tuple(features),
            *(tuple(map(float, each)) for each in (mean, scale, np.ravel(model.coef_))),
            bias=float(np.ravel(model.intercept_)[0]),
            threshold=0.5,
            fitted_for=fitted_for,
            n_docs=n_docs,
            questions=len(truth),
            passages=passages,
            corpus=corpus,
        )
        scores = np.array([fitted.score(each) for each in evidence])
        return replace(fitted, curve=tuple(_curve(scores, truth))).at(precision)

    # -- kept ------------------------------------------------------------------------------------------

    def save(self, file: Path) -> None:
        write_json(file, {"format": _FORMAT} | asdict(self))

    @classmethod
    def open(cls, file: Path) -> Self:
        """Raises UserError where the file is missing, damaged or of another kind."""
        saved = read_json(file)
        if not isinstance(saved, dict) or saved.get("format") != _FORMAT:
            raise UserError(f"{file} is not a calibration of format {_FORMAT}: {HOW_TO_MAKE}")
        try:
            given = {field.name: saved[field.name] for field in fields(cls)}
            given["curve"] = tuple(Point(**point) for point in given["curve"])
            numbers = ("mean", "scale", "weights")
            given |= {name: tuple(float(each) for each in given[name]) for name in numbers}
            given["features"] = tuple(given["features"])
            opened = cls(**given)
            sizes = {len(getattr(opened, name)) for name in ("features", *numbers)}
            values = [*opened.mean, *opened.scale, *opened.weights, opened.bias, opened.threshold]
            sound = sizes == {len(opened.features)} and set(opened.features) <= set(FEATURES)
            if not sound or not all(map(math.isfinite, values)) or not all(opened.scale):
                raise ValueError("its numbers do not fit together")
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{file} is damaged ({error}): {HOW_TO_MAKE}") from error
        return opened

    def differences(self, model: RagModel) -> list[str]:
        """What of a model is not what the calibration was fitted for, in words; [] where it fits."""
        if self.fitted_for is None:
            return []
        now = identity_of(model)
        known = _leaves(self.fitted_for)
        # what a later version describes besides does not make it another model
        return sorted(name for name, value in known.items() if _leaves(now).get(name) != value)


HOW_TO_MAKE = "python -m rag.analysis answerability run=RUN makes one from dev questions"


def identity_of(model: RagModel) -> dict[str, Any]:
    """What decides the evidence beside the passages: how the model is made, and its weights."""
    return {
        "model": model.description(),
        "weights": {part.file: hash_weights(part.module.state_dict()) for part in model.trained_parts()},
    }


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {path: value}
    return {
        name: leaf
        for key, each in value.items()
        for name, leaf in _leaves(each, f"{path}.{key}" if path else str(key)).items()
    }


def _curve(scores: Float[np.ndarray, " rows"], answerable: Bool[np.ndarray, " rows"]) -> list[Point]:
    """Thresholds between the scores from low to high, and what each does. Both kinds count the same."""
    thresholds = np.unique(np.quantile(scores, np.linspace(0, 1, _POINTS)))
    points = []
    for threshold in thresholds:
        reach = scores >= threshold
        answered, wrongly = reach[answerable].mean(), reach[~answerable].mean()
        precision = answered / (answered + wrongly)
        points.append(Point(*(float(each) for each in (threshold, answered, 1 - wrongly, precision))))
    return points


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))
