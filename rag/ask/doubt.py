"""Whether an answer is believed, and what is said where it is not: one rule, the calibration's score and threshold.

A run has the calibration that `python -m rag.analysis answerability run=RUN` left in its folder; the project's reader
over MiniLM and BM25 has one that comes with the project. Any other reader of documents goes by the margin to the empty
answer, which needs no calibration and gives no score.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

from rag.ask.command import asked_for, check_calibrated
from rag.errors import UserError
from rag.evaluation.calibration import Calibration
from rag.evaluation.evidence import Evidence, speaks
from rag.model import RagModel
from rag.runs import ANSWERABILITY_FILE

log = logging.getLogger(__name__)

NOT_HERE = "not in these documents"


@dataclass(frozen=True)
class Doubt:
    """calibration: None where nobody asks whether an answer is believed. abstain: one that is not is withheld."""

    calibration: Calibration | None = None
    abstain: bool = False

    @property
    def threshold(self) -> float | None:
        """The score from which on an answer is believed; None where none was fitted."""
        return (
            None
            if self.calibration is None or self.calibration.fitted_for is None
            else self.calibration.threshold
        )

    def score(self, evidence: Evidence) -> float | None:
        """The answerability score; None where none was fitted."""
        return (
            None if self.calibration is None or self.threshold is None else self.calibration.score(evidence)
        )

    def believes(self, evidence: Evidence) -> bool | None:
        return None if self.calibration is None else self.calibration.believes(evidence)


def doubt_of_run(
    model: RagModel,
    run: str,
    n_docs: int,
    file: str | None = None,
    abstain: bool = False,
    precision: float | None = None,
) -> Doubt:
    """The doubt of a run: the calibration of `file`, or of its folder.

    Raises UserError where abstain=true or precision=… asks for a calibration and there is none, or it was fitted for
    another model; without them, the latter is said.
    """
    wanted = abstain or precision is not None
    if not speaks(model):
        if wanted:
            raise UserError(
                f"{asked_for(abstain)} a model that answers from passages, which a {type(model).__name__} does not: "
                "leave it out"
            )
        return Doubt()
    place = Path(file) if file is not None else Path(run) / ANSWERABILITY_FILE
    if file is None and not place.is_file():
        check_calibrated(run, None, abstain, precision)
        return Doubt()
    again = f"python -m rag.analysis answerability run={run}"
    return _fitting(model, Calibration.open(place), place, n_docs, abstain, precision, again) or Doubt()


def doubt_of_documents(
    model: RagModel,
    n_docs: int,
    project: Path,
    file: str | None = None,
    abstain: bool = False,
    precision: float | None = None,
) -> Doubt:
    """The doubt of what reads documents. project: the calibration that comes with the project, for its own reader.

    Raises UserError as `doubt_of_run` does.
    """
    place = project if file is None else Path(file)
    calibration = Calibration.open(place)
    if file is None and calibration.differences(model):
        if abstain or precision is not None:
            raise UserError(
                f"{asked_for(abstain)} a calibration, and the project's is for its own reader over MiniLM and BM25: "
                "leave out checkpoint= and settings of the retriever, or ask a run about its own passages (python -m "
                "rag.ask checkpoint=RUN) after python -m rag.analysis answerability run=RUN"
            )
        return Doubt(Calibration.margin())
    again = "leave out answerability=, or give one that was fitted for it"
    return _fitting(model, calibration, place, n_docs, abstain, precision, again) or Doubt(
        Calibration.margin()
    )


def _fitting(
    model: RagModel,
    calibration: Calibration,
    place: Path,
    n_docs: int,
    abstain: bool,
    precision: float | None,
    again: str,
) -> Doubt | None:
    """The doubt with a calibration that fits the model; None, and said, where it does not."""
    if other := calibration.differences(model):
        told = f"{place} was fitted for another model ({', '.join(other[:3])} differ): {again}"
        if abstain or precision is not None:
            raise UserError(told)
        log.warning("%s; there is no score until then", told)
        return None
    if calibration.n_docs != n_docs < len(model.retriever.index):  # of a small folder, all passages are read
        log.warning(
            "%s was fitted with K = %s, not %d: its threshold may not hold", place, calibration.n_docs, n_docs
        )
    corpus = model.retriever.index.passages.sha256
    if calibration.corpus not in (None, corpus):
        log.warning("%s was fitted over other passages: its threshold may not hold", place)
    return Doubt(calibration if precision is None else calibration.at(precision), abstain)
