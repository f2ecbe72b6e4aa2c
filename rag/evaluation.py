"""Answering a whole set of questions and judging the answers: EM, F1, recall, and EM against K (figure 3).

The questions are encoded and searched for once, with the largest K; smaller K are prefixes of it, and so are the
encoded contexts. For RAG-Sequence the hypotheses and their scores are made once too.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64

from rag.datamodule import evaluation_batches
from rag.decoding import Answer, Decoding, generate_for_each
from rag.errors import UserError
from rag.files import write_aside
from rag.lexical import BM25
from rag.metrics.retrieval import answer_recall_at, recall_at
from rag.model import Batch, Contexts, RagModel
from rag.passages import PassageStore
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
    """Answer every question with each K of `n_docs`.

    retrieve: this many passages are retrieved if that is more, for recall beyond the largest K.
    """
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
            for k, found_by in generate_for_each(model, contexts, decoding, n_docs).items():
                answers[k] += [each[0] for each in found_by]
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
    store: PassageStore,
    rows: Int64[np.ndarray, "questions docs"],
    examples: Sequence[Example],
    ks: Sequence[int],
) -> dict[str, dict[str, float]]:
    """{"recall": {K: …}} where gold ids are known, and {"answer_recall": {K: …}}: two different things."""
    ks = [k for k in ks if k <= rows.shape[1]]
    ids = np.array(store.ids(rows.reshape(-1)), dtype=object).reshape(rows.shape)
    texts = ([passage_text(store, row) for row in own] for own in rows[:, : max(ks)].tolist())
    figures = {"answer_recall": answer_recall_at(texts, [e.answers for e in examples], ks)}
    if any(example.positive_ids for example in examples):
        figures["recall"] = recall_at(ids, [e.positive_ids for e in examples], ks)
    return {name: {str(k): float(np.nanmean(v)) for k, v in by_k.items()} for name, by_k in figures.items()}


def passage_text(store: PassageStore, row: int) -> str:
    """ "title text" of a passage; nothing for a row of −1 (not found)."""
    if row < 0:
        return ""
    passage = store[row]
    return f"{passage.title} {passage.text}"


def bm25_figures(
    store: PassageStore, examples: Sequence[Example], ks: Sequence[int]
) -> dict[str, dict[str, float]]:
    """What `retrieval_figures` says of BM25 over the same passages, for the same questions."""
    ks = [k for k in ks if k <= len(store)]
    _, rows = BM25.build(store).search([example.question for example in examples], max(ks))
    return retrieval_figures(store, rows, examples, ks)


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
