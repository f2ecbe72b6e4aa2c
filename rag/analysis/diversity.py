"""Table 5: how diverse generated texts are, as distinct trigrams in percent of all trigrams."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from rag.analysis.more_passages import names_of
from rag.analysis.opened import Evaluation
from rag.errors import UserError
from rag.metrics.generation import distinct_trigrams
from rag.reports import plots
from rag.reports.page import Analysis
from rag.safe_text import markdown


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
    for name, each in zip(names_of(evaluations), evaluations, strict=True):
        texts[name] = [record["prediction"] for record in each.predictions]
    rows = [
        {
            "model": plots.label_of(name),
            "texts": len(generated),
            "with a trigram": sum(len(text.split()) >= 3 for text in generated),
            "words per text": sum(len(text.split()) for text in generated) / len(generated),
            "distinct trigrams, %": 100 * distinct_trigrams(generated),
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
    figure, axes = plots.new_figure(6.5, 1.2 + 0.45 * len(frame))
    only = axes[0, 0]
    colours = [plots.GREY, *(plots.style_of(n, i)["color"] for i, n in enumerate(list(texts)[1:]))]
    only.barh(frame["model"], np.nan_to_num(shares), color=colours, height=0.65)
    for position, share in enumerate(shares):
        said = f"{share:.1f}" if np.isfinite(share) else "no text of three words"
        only.text(np.nan_to_num(share) + 1, position, said, va="center")
    only.set(xlim=(0, 108), xlabel="distinct trigrams in % of all trigrams")
    only.invert_yaxis()
    text = (
        f"{len(texts['gold']):,} texts ({markdown(first.config.split)}), words apart by white space, case counting; "
        "texts of fewer than three words have no trigram. The ratio falls as texts are added: compare equal sets. "
        "The paper (MS-MARCO / Jeopardy): gold 89.6 / 90.0, BART 70.7 / 32.4, RAG-Token 77.8 / 46.8, RAG-Sequence "
        "83.5 / 53.8."
        f"{warning}"
    )
    return Analysis("Diversity of what is generated", text, frame, figure)
