"""Table 5: how diverse generated texts are, as distinct trigrams in percent of all trigrams, and what that costs.

Several evaluations of one run with other settings (temperature, top-p, K) give one picture: distinct trigrams against
the trigrams that the passages support.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from rag.analysis.more_passages import names_of
from rag.analysis.opened import Evaluation
from rag.errors import UserError
from rag.metrics.generation import distinct_trigrams
from rag.metrics.record import find
from rag.reports import plots
from rag.reports.page import Analysis
from rag.safe_text import markdown

SUPPORTED, NAMES = "trigrams in the passages, %", "names in the passages, %"


def diversity(runs: Sequence[Path]) -> Analysis:
    """Distinct trigrams of what one or more runs generated, beside those of the reference texts (Table 5)."""
    evaluations = [Evaluation.open(run) for run in runs]
    first = evaluations[0]
    for other in evaluations[1:]:
        if [p["question"] for p in other.predictions] != [p["question"] for p in first.predictions]:
            raise UserError(
                f"{other.folder} and {first.folder} answered different questions, and the ratio depends on how many "
                "texts there are: evaluate both on the same"
            )
    texts = {"gold": [record["answers"][0] for record in first.predictions]}
    names = labels_of(evaluations)
    for name, each in zip(names, evaluations, strict=True):
        texts[name] = [record["prediction"] for record in each.predictions]
    support_of = {"gold": _supported(first, "_gold")}
    for name, each in zip(names, evaluations, strict=True):
        support_of[name] = _supported(each)
    rows = [
        {
            "model": "reference texts" if name == "gold" else plots.label_of(name),
            "texts": len(generated),
            "with a trigram": sum(len(text.split()) >= 3 for text in generated),
            "words per text": sum(len(text.split()) for text in generated) / len(generated),
            "distinct trigrams, %": 100 * distinct_trigrams(generated),
            **support_of[name],
        }
        for name, generated in texts.items()
    ]
    frame = pd.DataFrame(rows)
    shares = frame["distinct trigrams, %"].to_numpy(dtype=float)
    if np.isnan(shares).all():
        raise UserError(f"no text of {first.folder} has three words: there are no trigrams to count")

    short = [str(row["model"]) for row in rows if row["words per text"] < 3]
    warning = (
        f" The texts of {' and of '.join(short)} have fewer than three words on average: most have no trigram, and the "
        "ratio says nothing about them."
        if short
        else ""
    )
    weighed = bool(frame[SUPPORTED].notna().any())
    if not weighed:
        frame = frame.drop(columns=[SUPPORTED, NAMES])
    height = 1.2 + 0.45 * len(frame)
    figure, axes = plots.new_figure(13, max(4.0, height), 1, 2) if weighed else plots.new_figure(6.5, height)
    only = axes[0, 0]
    colours = [plots.GREY, *(plots.style_of(n, i)["color"] for i, n in enumerate(list(texts)[1:]))]
    only.barh(frame["model"], np.nan_to_num(shares), color=colours, height=0.65)
    for position, share in enumerate(shares):
        said = f"{share:.1f}" if np.isfinite(share) else "no text of three words"
        only.text(np.nan_to_num(share) + 1, position, said, va="center")
    only.set(xlim=(0, 118), xlabel="distinct trigrams in % of all trigrams")
    only.invert_yaxis()
    if weighed:
        points = zip(frame["model"], shares / 100, frame[SUPPORTED].to_numpy(dtype=float) / 100, strict=True)
        plots.diversity_against_support(
            axes[0, 1], {name: (x, y) for name, x, y in points if np.isfinite([x, y]).all()}, colours
        )
    text = (
        f"{len(texts['gold']):,} texts ({markdown(first.config.split)}), words apart by white space, case counting; "
        "texts of fewer than three words have no trigram. The ratio falls as texts are added: compare equal sets. "
        "The paper (MS-MARCO / Jeopardy): gold 89.6 / 90.0, BART 70.7 / 32.4, RAG-Token 77.8 / 46.8, RAG-Sequence "
        "83.5 / 53.8."
        f"{warning}"
    )
    if weighed:
        text += (
            " Supported are trigrams that stand in one of the K passages that were read, and names (words with "
            "capitals, numbers) whose words follow one another there: the more freely a text is drawn, the fewer."
        )
    return Analysis("Diversity of what is generated", text, frame, figure)


def _supported(evaluation: Evaluation, of: str = "") -> dict[str, float | None]:
    """Of an evaluation's texts, or with of="_gold" of the reference texts; None where it was not measured."""
    n_docs = evaluation.config.get("n_docs")
    found = {
        column: find(evaluation.records, f"{what}_supported{of}", n_docs)
        for column, what in ((SUPPORTED, "trigrams"), (NAMES, "names"))
    }
    return {
        column: None if record is None or record.value is None else 100 * record.value
        for column, record in found.items()
    }


def labels_of(evaluations: Sequence[Evaluation]) -> list[str]:
    """The runs' names; where one run was evaluated with several settings, its name and those that differ."""
    names = [each.name for each in evaluations]
    told = [_settings(each) for each in evaluations]
    differ = [key for key in told[0] if len({each[key] for each in told}) > 1]
    labels = [
        name if names.count(name) == 1 else ", ".join([name, *(f"{key} {settings[key]}" for key in differ)])
        for name, settings in zip(names, told, strict=True)
    ]
    return labels if len({*labels}) == len(labels) else names_of(evaluations)


def _settings(evaluation: Evaluation) -> dict[str, str]:
    decoding = evaluation.config.get("decoding") or {}
    drawn = decoding.get("do_sample", False)
    settings = {
        "search": "sampled" if drawn else f"beams of {decoding.get('num_beams', 1)}",
        "K": str(evaluation.config.get("n_docs")),
    }
    for key in ("temperature", "top_p", "top_k"):
        settings[key] = f"{decoding[key]:g}" if drawn and key in decoding else "–"
    return settings
