"""Answering a whole set of questions and judging the answers: EM, F1, recall, and EM against K (figure 3).

The questions are encoded and searched for once, with the largest K; smaller K are prefixes of it, and so are the
encoded contexts.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64

from rag import marginalize
from rag.datamodule import evaluation_batches
from rag.decoding import Answer, Decoding, generate
from rag.errors import UserError
from rag.files import write_aside
from rag.metrics.retrieval import answer_recall_at, recall_at
from rag.model import Batch, Contexts, RagModel
from rag.progress import progress_bar
from rag.retriever import Retrieved
from rag.tasks.example import Example


@dataclass(frozen=True)
class Evaluation:
    """What a model answered to N questions, for each K that was asked for, and what was retrieved."""

    examples: list[Example]
    answers: dict[int, list[Answer]]  # K → the best answer to each question
    rows: (
        Int64[np.ndarray, "questions docs"] | None
    )  # the most passages retrieved for any purpose; None: closed book

    def texts(self, n_docs: int) -> list[str]:
        return [answer.text for answer in self.answers[n_docs]]


def first_docs(contexts: Contexts, n_docs: int) -> Contexts:
    """The contexts of the best `n_docs` passages alone, renormalised as if no others had been retrieved."""
    retrieved = contexts.retrieved
    if retrieved is None or n_docs == contexts.n_docs:
        return contexts
    kept = Retrieved(retrieved.rows[:, :n_docs], retrieved.scores[:, :n_docs])
    rows = torch.arange(len(contexts.mask), device=contexts.mask.device).view(-1, contexts.n_docs)[:, :n_docs]
    return Contexts(
        contexts.states[rows.flatten()],
        contexts.mask[rows.flatten()],
        marginalize.doc_logprobs(kept.scores),
        kept,
    )


@torch.inference_mode()
def answer_questions(
    model: RagModel,
    examples: Sequence[Example],
    decoding: Decoding,
    n_docs: Sequence[int],
    batch_size: int,
    retrieve: int = 0,
    description: str = "answering",
) -> Evaluation:
    """Answer every question with each K of `n_docs`; `retrieve` more passages if recall is wanted beyond the largest K."""
    model.eval()
    largest = max(n_docs)
    wide = max(largest, retrieve)
    answers: dict[int, list[Answer]] = {k: [] for k in n_docs}
    found: list[np.ndarray] = []
    device = model.generator.model.device
    batches: Any = evaluation_batches(examples, model.prepare, batch_size)
    with progress_bar(description, len(examples), "questions") as advance:
        for number in range(len(batches)):
            chunk, batch = batches[number]
            contexts, rows = _read(model, batch.to(device), largest, wide)
            if rows is not None:
                found.append(rows)
            for k in n_docs:
                answers[k] += [each[0] for each in generate(model, first_docs(contexts, k), decoding)]
            advance(len(chunk))
    return Evaluation(list(examples), answers, np.concatenate(found) if found else None)


def _read(model: RagModel, batch: Batch, n_docs: int, wide: int) -> tuple[Contexts, np.ndarray | None]:
    if model.retriever is None:
        return model.read(batch), None
    if wide > len(model.retriever.index):
        raise UserError(
            f"{wide} passages are to be retrieved but the index holds {len(model.retriever.index)}: lower n_docs"
        )
    retrieved = model.retriever(batch.questions, wide)
    kept = Retrieved(retrieved.rows[:, :n_docs], retrieved.scores[:, :n_docs])
    return model.read_retrieved(batch, kept), retrieved.rows


def retrieval_figures(
    model: RagModel, rows: Int64[np.ndarray, "questions docs"], examples: Sequence[Example], ks: Sequence[int]
) -> dict[str, dict[str, float]]:
    """{"recall": {K: …}} where gold ids are known, and {"answer_recall": {K: …}}: two different things."""
    store = model.retriever.index.passages
    ks = [k for k in ks if k <= rows.shape[1]]
    ids = np.array(store.ids(rows.reshape(-1)), dtype=object).reshape(rows.shape)
    texts = [
        [f"{store[r].title} {store[r].text}" for r in own if r >= 0] for own in rows[:, : max(ks)].tolist()
    ]
    figures = {"answer_recall": answer_recall_at(texts, [e.answers for e in examples], ks)}
    if any(example.positive_ids for example in examples):
        figures["recall"] = recall_at(ids, [e.positive_ids for e in examples], ks)
    return {name: {str(k): float(np.nanmean(v)) for k, v in by_k.items()} for name, by_k in figures.items()}


def write_predictions(
    path: Path, model: RagModel, evaluation: Evaluation, n_docs: int, passages: int = 5
) -> None:
    """predictions.jsonl: question, answers, prediction, log p(y|x) and the passages with prior and posterior."""
    with write_aside(path) as aside, aside.open("w", encoding="utf-8") as file:
        for example, answer in zip(evaluation.examples, evaluation.answers[n_docs], strict=True):
            record: dict[str, Any] = {
                "id": example.id,
                "question": example.question,
                "answers": list(example.answers),
                "prediction": answer.text,
                "logprob": round(answer.logprob, 4),
            }
            if model.retriever is not None:
                store = model.retriever.index.passages
                prior = answer.doc_logprobs.exp().tolist()
                best = [k for k in range(len(prior)) if answer.rows[k] >= 0][:passages]
                record["passages"] = [
                    {
                        "id": store[int(answer.rows[k])].id,
                        "title": store[int(answer.rows[k])].title,
                        "text": store[int(answer.rows[k])].text,
                        "prior": round(prior[k], 4),
                        "posterior": round(float(answer.posterior[k]), 4),
                        "gold": store[int(answer.rows[k])].id in example.positive_ids,
                    }
                    for k in best
                ]
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
