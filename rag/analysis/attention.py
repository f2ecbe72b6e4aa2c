"""What the generator looks at while it writes: attention over one context, at each token of the answer.

For the LSTM baseline (rag/generators/lstm.py, α) this is the only road from the passage to the word. For a
Transformer it is the last layer's cross-attention, the mean over its heads: one of many roads.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from matplotlib.figure import Figure
from torch import Tensor

from rag.analysis.opened import open_examples, open_model, settings
from rag.decoding.generation import generate
from rag.errors import UserError
from rag.generators.causal import CausalGenerator
from rag.generators.context import Ragged
from rag.generators.seq2seq import Generator
from rag.model import RagModel
from rag.reports import plots
from rag.reports.page import Analysis
from rag.safe_text import markdown

WIDEST = 24  # tokens of the context in a line of the picture
MOST = 5  # tokens of the context in the table


def attention(run: Path, question: str = "", answer: str = "", passage: int = 1) -> Analysis:
    """What the generator attends to in a passage at each token of its answer (the LSTM baseline).

    question: without one, the first of the test set. answer: without one, the model's own. passage: which of those
    retrieved, from 1.
    """
    config = settings(run)
    model, decoding = open_model(config)
    question = question or open_examples(config)[0].question
    if not answer:
        contexts = model.read(model.prepare([question]))
        answer = generate(model, contexts, decoding)[0][0].text
    ids, mask = context_of(model, question, passage)
    weights, tokens = attended(model.generator, ids, mask, answer)
    words = [_word(model.generator, token) for token in ids[0].tolist()]
    text = (
        f"Question: *{markdown(question)}* Answer: *{markdown(answer)}*. "
        "Each row is a token of the answer; its weights over the "
        f"{len(words)} tokens of the context, passage and question, sum to one. The table has the {MOST} tokens that "
        "each attends to most."
    )
    picture = draw(weights, words, tokens, question, answer)
    return Analysis("Attention over the context", text, strongest(weights, words, tokens), picture)


def strongest(
    weights: Float[np.ndarray, "tokens length"], words: list[str], tokens: list[str]
) -> pd.DataFrame:
    """A row for each token of the answer: the tokens of the context that it attends to most, with their weights."""
    rows = []
    for token, row in zip(tokens, weights, strict=True):
        best = np.argsort(-row, kind="stable")[:MOST]
        rows.append(
            {"token": token}
            | {f"{n}.": f"{words[each]} {row[each]:.3f}" for n, each in enumerate(best, start=1)}
        )
    return pd.DataFrame(rows)


@torch.inference_mode()
def attended(
    generator: Generator, ids: Int[Tensor, "1 length"], mask: Bool[Tensor, "1 length"], answer: str
) -> tuple[Float[np.ndarray, "tokens length"], list[str]]:
    """Attention over the context at each token of the answer, end-of-sequence included, and those tokens."""
    if isinstance(generator, CausalGenerator):
        raise UserError(
            "this analysis draws what a decoder attends to in a context that an encoder read; a causal language model "
            "has no encoder: give a run of another generator"
        )
    labels, _ = generator.tokenize_targets([answer])
    model = generator.model
    if hasattr(model.config, "_attn_implementation"):
        model.set_attn_implementation("eager")  # the other implementations never hold the weights
    start = [generator.start_token] + ([] if generator.first_token is None else [generator.first_token])
    given = torch.tensor([[*start, *labels[0, :-1].tolist()]])
    output = model(input_ids=ids, attention_mask=mask.long(), decoder_input_ids=given, output_attentions=True)
    weights = output.cross_attentions[-1][0].mean(dim=0)[len(start) - 1 :]
    return weights.float().numpy(), [_word(generator, token) for token in labels[0].tolist()]


def context_of(
    model: RagModel, question: str, passage: int
) -> tuple[Int[Tensor, "1 length"], Bool[Tensor, "1 length"]]:
    """The tokens that the generator reads of the question and the passage of that rank, from 1."""
    batch, generator = model.prepare([question]), model.generator
    if model.retriever is None:
        return generator.assemble(batch.generator_questions)
    if not 1 <= passage <= len(model.retriever.index):
        raise UserError(
            f"passage={passage} does not exist; available: {len(model.retriever.index):,}, from 1"
        )
    with torch.inference_mode():
        row = model.retriever(batch.questions, passage).rows[0, -1:]
    tokens = model.retriever.index.tokens(generator.tokenizer, generator.title_separator, generator.prefix)
    return generator.assemble(batch.generator_questions, Ragged(*tokens.gather(row)))


def draw(weights: np.ndarray, words: list[str], tokens: list[str], question: str, answer: str) -> Figure:
    """The heat map, the context cut into lines."""
    lines = -(-len(words) // WIDEST)
    figure, axes = plots.new_figure(12, 1 + lines * (0.8 + 0.26 * len(tokens)), rows=lines)
    image: Any = None
    for number, axis in enumerate(axes[:, 0]):
        part = words[number * WIDEST : (number + 1) * WIDEST]
        shown = np.full((len(tokens), WIDEST), np.nan)
        shown[:, : len(part)] = weights[:, number * WIDEST : (number + 1) * WIDEST]
        image = plots.grid(axis, shown, tokens, part, form="", largest=float(weights.max()))
        axis.tick_params(axis="x", rotation=55)
    figure.colorbar(image, ax=axes, label="attention (each row of tokens sums to 1)", pad=0.01)
    figure.suptitle(f"{question} → {answer}")
    return figure


def _word(generator: Generator, token: int) -> str:
    return "(end)" if token == generator.end_token else str(generator.tokenizer.decode([token])).strip()
