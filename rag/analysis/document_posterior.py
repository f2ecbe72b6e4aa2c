"""Figure 2: which passage each token of an answer comes from.

RAG-Token     p(z_i | x, y_i, y_<i) ∝ p_η(z|x) p_θ(y_i | x, z, y_<i), for each token by itself
RAG-Sequence  p(z | x, y_≤i) ∝ p_η(z|x) Π_{j≤i} p_θ(y_j | x, z, y_<j), which narrows down as the answer grows

Both begin with the prior p_η(z|x); RAG-Sequence's last column is the posterior p(z|x,y) of the whole answer.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from rag import marginalize
from rag.analysis.opened import open_examples, open_model, settings
from rag.decoding.generation import generate
from rag.decoding.settings import Decoding
from rag.errors import UserError
from rag.metrics.retrieval import has_answer
from rag.model import RagModel, RagToken
from rag.reports import plots
from rag.reports.page import Analysis, excerpt, shortened
from rag.safe_text import markdown

TITLE, EXCERPT = 24, 44  # characters shown of a passage


@dataclass(frozen=True)
class Posterior:
    """What K passages have to do with an answer of T tokens.

    prior (K,) p_η(z|x); by_token (K, T) as the module's docstring says; whole (K,) p(z|x,y) if one passage gave
    the whole answer. passages: title and text of each.
    """

    question: str
    answer: str
    tokens: list[str]
    prior: np.ndarray
    by_token: np.ndarray
    whole: np.ndarray
    passages: list[tuple[str, str]]

    def names(self) -> list[str]:
        """Each passage by its title and what it says where the answer, or else a word of it, stands."""
        words = [self.answer, *(token for token in self.tokens if len(token) > 3)]
        return [
            f"{shortened(title, TITLE)}: {excerpt(text, words, EXCERPT)}" for title, text in self.passages
        ]

    def frame(self) -> pd.DataFrame:
        """One row a passage: p(z|x), the posterior at each token, p(z|x,y)."""
        columns = {"p(z|x)": self.prior}
        for number, token in enumerate(self.tokens):
            name = token if self.tokens.count(token) == 1 else f"{token} ({number + 1})"
            columns[name] = self.by_token[:, number]
        index = pd.Index(self.names(), name="passage")
        return pd.DataFrame(columns | {"p(z|x,y)": self.whole}, index=index).astype(float)


@torch.inference_mode()
def posterior(
    model: RagModel, question: str, answer: str | None, n_docs: int, decoding: Decoding
) -> Posterior:
    """Score an answer, or the one that the model gives, under each of the K passages retrieved."""
    if model.retriever is None:
        raise UserError("a closed-book model reads no passages: give a run with retrieval")
    if not answer:
        contexts = model.read(model.prepare([question]), n_docs)
        answer = generate(model, contexts, decoding)[0][0].text
    scored = model(model.prepare([question], [answer]), n_docs)
    labels, mask = model.generator.tokenize_targets([answer])
    if isinstance(model, RagToken):
        by_token = marginalize.token_posterior(scored.doc_logprobs, scored.token_logprobs)
    else:  # the posterior of RAG-Sequence given the first i tokens
        by_token = marginalize.token_posterior(scored.doc_logprobs, scored.token_logprobs.cumsum(dim=2))
    whole = marginalize.sequence_posterior(scored.doc_logprobs, scored.token_logprobs, mask)
    assert scored.retrieved is not None
    store = model.retriever.index.passages
    passages_read = [store[row] if row >= 0 else None for row in scored.retrieved.rows[0].tolist()]
    tokenizer: Any = model.generator.tokenizer
    return Posterior(
        question,
        answer,
        [
            "(end)" if t == model.generator.end_token else tokenizer.decode([t]).strip()
            for t in labels[0].tolist()
        ],
        scored.doc_logprobs[0].exp().numpy(),
        by_token[0].numpy(),
        whole[0].numpy(),
        [
            ("–", "not found") if passage is None else (passage.title, passage.text)
            for passage in passages_read
        ],
    )


def draw(result: Posterior, cumulative: bool = False) -> Figure:
    """The heat map: a row a passage, a column a token, between the prior and the posterior of the answer."""
    count, tokens = result.by_token.shape
    width = max(0.8, 0.25 + 0.085 * max(map(len, result.tokens)))  # inches a token
    figure, axes = plots.new_figure(5 + width * (tokens + 2), 1.5 + 0.42 * count)
    only = axes[0, 0]
    values = np.column_stack([result.prior, result.by_token, result.whole])
    holds = [
        "✓ " if has_answer(f"{title} {text}", [result.answer]) else "" for title, text in result.passages
    ]
    names = [mark + name for mark, name in zip(holds, result.names(), strict=True)]
    image = plots.grid(only, values, names, ["prior\np(z|x)", *result.tokens, "answer\np(z|x,y)"])
    for edge in (0.5, tokens + 0.5):  # between them the tokens
        only.axvline(edge, color="black", linewidth=1.5)
    only.xaxis.tick_top()
    figure.colorbar(image, ax=only, label="probability of the passage", pad=0.01)
    given = "up to each token" if cumulative else "at each token"
    figure.suptitle(f"{result.question} → {result.answer}\nposterior of the passages {given}", fontsize=11)
    only.set_xlabel("✓: the passage contains the answer", fontsize=9)
    return figure


def document_posterior(run: Path, question: str = "", answer: str = "", n_docs: int = 0) -> Analysis:
    """Which passage each token of an answer comes from (figure 2).

    question: without one, the first of the test set. answer: without one, the model's own. n_docs: K; 0: the run's.
    """
    config = settings(run)
    model, decoding = open_model(config)
    question = question or open_examples(config)[0].question
    result = posterior(model, question, answer, n_docs or config.n_docs, decoding)
    cumulative = not isinstance(model, RagToken)
    read = (
        "Under RAG-Sequence one passage explains the whole answer: the column of a token is the posterior "
        "p(z|x,y_≤i) of the passages once the answer is known up to it."
        if cumulative
        else "Under RAG-Token each token may come from another passage: the column of a token is "
        "p(z_i|x,y_i,y_<i). Tokens that every passage predicts say little of where they come from."
    )
    asked = f"Question: *{markdown(result.question)}* Answer: *{markdown(result.answer)}*"
    text = f"{asked}, K = {len(result.prior)}. {read}"
    return Analysis("Document posterior", text, result.frame(), draw(result, cumulative))
