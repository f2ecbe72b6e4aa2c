"""Whether a run knows what its passages do not hold: an answerability score, fitted on one half of dev and measured on
the other.

Every question is asked twice, with the passages and without those that hold its answer
(rag/evaluation/unanswerable.py); the score (rag/evaluation/calibration.py) is to tell the two apart. What is fitted is
saved in the run folder, where `abstain=true` finds it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from hydra.utils import instantiate

from rag.analysis.opened import open_model, settings
from rag.errors import UserError
from rag.evaluation.answering import questions_at_once
from rag.evaluation.calibration import Calibration, identity_of
from rag.evaluation.evidence import FEATURES, speaks
from rag.evaluation.unanswerable import NOBODY, REMOVED, Asked, about_nobody, ask, holds_answer, right_by
from rag.index.passages import PassageStore
from rag.metrics.bootstrap import Metric
from rag.metrics.refusal import Scored, auroc, refused_at, refused_with
from rag.reports import plots
from rag.reports.page import Analysis
from rag.runs import ANSWERABILITY_FILE
from rag.safe_text import markdown, say
from rag.tasks.example import Example
from rag.training.questions import sample

COVERAGE = 0.9  # of the answerable questions, at which refusals are compared
KINDS = {REMOVED: "without its passages", NOBODY: "about nobody"}


def answerability(
    run: Path, split: str = "dev", limit: int = 600, precision: float = 0.8, unanswerable: str = REMOVED
) -> Analysis:
    """What the passages do not hold: a score to refuse by, fitted and measured, which abstain=true of rag.ask goes by.

    limit: questions of `split`, half to fit on and half to measure. precision: of the questions that are answered, the
    share that can be answered, where half of those asked can. unanswerable: removed (a question's passages are taken
    out), nobody (its subject is exchanged for a name that nobody has), or both.
    """
    kinds = [REMOVED, NOBODY] if unanswerable == "both" else [unanswerable]
    if not {*kinds} <= {*KINDS}:
        raise UserError(f"unanswerable={unanswerable} does not exist: give removed, nobody or both")
    config = settings(run)
    model, decoding = open_model(config)
    if not speaks(model):
        raise UserError(
            f"{run} is a {type(model).__name__}, which reads no passages or picks classes: give a run that answers "
            "from passages"
        )
    task = instantiate(config.task)
    examples = sample([each for each in task.examples(split) if each.answers], limit)
    n_docs, at_once = int(config.n_docs), config.get("batch_size") or questions_at_once(int(config.n_docs))
    store = model.retriever.index.passages
    asked = ask(model, examples, decoding, n_docs, at_once, right=right_by(task))
    if REMOVED in kinds:
        out = [holds_answer(task, example) for example in examples]
        asked += ask(model, examples, decoding, n_docs, at_once, out, description="asking without")
    if NOBODY in kinds:
        made = about_nobody(examples, store)
        if not made:
            raise UserError(
                "no question names its gold passage's title, so none can be asked about nobody: give "
                "unanswerable=removed"
            )
        of_nobody = ask(
            model,
            [each for _, each in made],
            decoding,
            n_docs,
            at_once,
            answerable=False,
            description="asking about nobody",
        )
        numbers = [number for number, _ in made]
        asked += [
            Asked(numbers[each.number], each.question, each.answer, each.evidence, False, False)
            for each in of_nobody
        ]
    fitted_half = halves(examples, store)
    calibration, measured = fit_and_measure(
        asked, fitted_half, precision, identity_of(model), n_docs, len(store), corpus=store.sha256
    )
    home = Path(config.checkpoint)
    if home.is_dir():
        calibration.save(home / ANSWERABILITY_FILE)
        say(f"written: {home / ANSWERABILITY_FILE}")
    which = " and ".join(KINDS[kind] for kind in kinds)
    return shown(calibration, measured, f"{markdown(split)}, each also asked {which}", which)


def halves(examples: Sequence[Example], store: PassageStore) -> list[bool]:
    """Of each example, whether it is to fit on: questions about one article stay together, where articles are known."""

    def article(number: int) -> str:
        for each in examples[number].positive_ids:
            try:
                return store[store.row_of(each)].title
            except KeyError:
                continue
        return f"question {number}"

    articles = [article(number) for number in range(len(examples))]
    names = sorted(set(articles))
    order = np.random.default_rng(0).permutation(len(names))
    counts = {name: articles.count(name) for name in names}
    chosen: set[str] = set()
    questions = 0
    for place in order:  # until half of the questions are taken
        if questions >= len(examples) / 2:
            break
        chosen.add(names[place])
        questions += counts[names[place]]
    return [name in chosen for name in articles]


@dataclass(frozen=True)
class Measured:
    """The questions that were measured on, their scores, and those of single features for comparison."""

    asked: list[Asked]
    score: Scored
    features: dict[str, Scored]


def fit_and_measure(
    asked: Sequence[Asked],
    fitted_half: Sequence[bool],
    precision: float,
    fitted_for: dict,
    n_docs: int,
    passages: int,
    features: Sequence[str] = FEATURES,
    corpus: str | None = None,
) -> tuple[Calibration, Measured]:
    """A calibration of the questions of one half, and what it does to those of the other."""
    fit = [each for each in asked if fitted_half[each.number]]
    rest = [each for each in asked if not fitted_half[each.number]]
    calibration = Calibration.fit(
        [each.evidence for each in fit],
        [each.answerable for each in fit],
        precision,
        features,
        fitted_for,
        n_docs,
        passages,
        corpus,
    )
    if not 0 < sum(each.answerable for each in rest) < len(rest):
        raise UserError(f"of {len(asked)} questions too few are left to measure on: give a larger limit")
    return calibration, measure(calibration, rest)


def measure(calibration: Calibration, asked: Sequence[Asked]) -> Measured:
    truth = np.array([each.answerable for each in asked])
    right = np.array([each.right for each in asked])
    number = [each.number for each in asked]

    def scored(values: Sequence[float]) -> Scored:
        return Scored(np.array(values), truth, right, number)

    table = np.array([each.evidence.features(FEATURES) for each in asked])
    beside = ("log_probability", "margin", "retrieval", "overlap")
    return Measured(
        list(asked),
        scored([calibration.score(each.evidence) for each in asked]),
        {name: scored(table[:, FEATURES.index(name)].tolist()) for name in beside},
    )


def shown(calibration: Calibration, measured: Measured, questions: str, which: str) -> Analysis:
    """The page of a calibration."""
    names = {
        "log_probability": "log p(y|x) alone",
        "margin": "margin to the empty answer alone",
        "retrieval": "retrieval score alone",
        "overlap": "overlap alone",
    }
    by_name = {"answerability score": measured.score}
    by_name |= {names[name]: scored for name, scored in measured.features.items()}
    rows = [
        {
            "score": name,
            "AUROC": _with_interval(auroc(scored)),
            f"refused, {COVERAGE:.0%} answered": _with_interval(refused_at(scored, COVERAGE)),
        }
        for name, scored in by_name.items()
    ]
    answered, refused, precise = refused_with(measured.score, calibration.threshold)
    count = int(measured.score.answerable.sum())
    right = measured.score.right[measured.score.scores >= calibration.threshold]
    text = (
        f"{calibration.questions:,} askings to fit on; to measure on, {count:,} questions of {questions} "
        f"({len(measured.asked) - count:,} askings without an answer), of other articles where articles are known. "
        f"With the threshold {calibration.threshold:.3f}, chosen for a precision of {calibration.precision:g} where it "
        f"was fitted: {_with_interval(answered)} of the answerable questions are answered, {_with_interval(refused)} "
        f"of the others refused, {_with_interval(precise)} of those answered can be answered, {right.mean():.3f} are "
        "answered right (exact match). A question counts as answerable whether or not its passage was found. "
        "95 % intervals by the bootstrap over questions."
    )
    weights = ", ".join(
        f"{name} {weight:+.2f}"
        for name, weight in zip(calibration.features, calibration.weights, strict=True)
    )
    text += f"\n\nWeights of the standardised features: {weights}."
    frame = pd.DataFrame(rows)
    figure, axes = plots.new_figure(10, 4.2, columns=2)
    plots.risk_coverage(axes[0, 0], by_name)
    plots.refusals(axes[0, 1], by_name, COVERAGE)
    picked = [each for each in measured.asked if not each.answerable]
    by_score = sorted(picked, key=lambda each: -calibration.score(each.evidence))
    examples = pd.DataFrame(
        [
            {
                "question without an answer": each.question,
                "answered": each.answer,
                "score": round(calibration.score(each.evidence), 3),
            }
            for each in [*by_score[:4], *by_score[-4:]]
        ]
    )
    return Analysis(f"Answerability: questions also asked {which}", text, frame, figure, examples)


def _with_interval(metric: Metric) -> str:
    return f"{metric.value:.3f} [{metric.low:.3f}, {metric.high:.3f}]"
