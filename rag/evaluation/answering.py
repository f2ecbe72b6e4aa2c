"""Section 4: a whole set of questions answered, each batch kept as it comes."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64

from rag.decoding.answers import Answer
from rag.decoding.generation import generate_for_each
from rag.decoding.settings import Decoding
from rag.files import write_aside
from rag.model import Batch, RagModel
from rag.progress import progress_bar
from rag.retrievers.protocol import Retrieved
from rag.safe_text import json_text
from rag.tasks.example import Example
from rag.tasks.records import read_records

CONTEXTS_AT_ONCE = 160  # passages read together where nobody says how many questions to answer at once


@dataclass(frozen=True)
class Answers:
    """What a model answered to N questions, for each K that was asked for, and what was retrieved."""

    by_k: dict[int, list[Answer]]  # K → the best answer to each question
    rows: (
        Int64[np.ndarray, "questions docs"] | None
    )  # the most passages retrieved for any purpose; None: closed book

    def texts(self, n_docs: int) -> list[str]:
        return [answer.text for answer in self.by_k[n_docs]]


@dataclass(frozen=True, slots=True)
class Answered:
    """What is kept of one question."""

    number: int  # its place among the questions, from 0
    texts: dict[int, str]  # K → the best answer
    logprob: float  # log p(y|x) of the answer for the K that is reported, in nats
    rows: list[int]  # everything that was retrieved, best first, −1 for none; [] in closed book
    prior: list[float]  # p(z|x) and
    posterior: list[float]  # p(z|x,y) of the K passages that were read for that answer, the first of `rows`
    scores: list[float | None] = field(default_factory=list)  # of `rows`; None where nothing was found


def questions_at_once(n_docs: int) -> int:
    """How many questions are answered together with K = `n_docs`, unless somebody says."""
    return max(1, CONTEXTS_AT_ONCE // n_docs)


def answer_questions(
    model: RagModel,
    examples: Sequence[Example],
    decoding: Decoding,
    n_docs: Sequence[int],
    batch_size: int,
    retrieve: int = 0,
    description: str = "answering",
) -> Answers:
    """Answer every question with each K of `n_docs`, in memory.

    retrieve: this many passages are retrieved if that is more, for recall beyond the largest K.
    """
    batches = [
        list(range(start, min(start + batch_size, len(examples))))
        for start in range(0, len(examples), batch_size)
    ]
    by_k: dict[int, list[Answer]] = {k: [] for k in n_docs}
    retrieved: list[np.ndarray] = []
    with progress_bar(description, len(examples), "questions") as advance:
        for numbers, best_by_k, found in _answered(model, examples, batches, decoding, n_docs, retrieve):
            for k, best in best_by_k.items():
                by_k[k] += best
            if found is not None:
                retrieved.append(found.rows)
            advance(len(numbers))
    return Answers(by_k, np.concatenate(retrieved) if retrieved else None)


@torch.inference_mode()
def _answered(
    model: RagModel,
    examples: Sequence[Example],
    batches: Iterable[list[int]],
    decoding: Decoding,
    n_docs: Sequence[int],
    retrieve: int,
) -> Iterator[tuple[list[int], dict[int, list[Answer]], Retrieved | None]]:
    """For each batch of numbers of examples: the numbers, the best answer to each for every K, what was retrieved."""
    model.eval()
    for numbers in batches:
        questions = [examples[number].question for number in numbers]
        yield numbers, *_answer(model, questions, decoding, n_docs, max(*n_docs, retrieve))


def _answer(
    model: RagModel, questions: list[str], decoding: Decoding, n_docs: Sequence[int], wide: int
) -> tuple[dict[int, list[Answer]], Retrieved | None]:
    """The best answers of one batch for each K, and the `wide` best passages."""
    batch: Batch = model.prepare(questions).to(model.generator.model.device)
    if model.retriever is None:
        by_k = generate_for_each(model, model.read(batch), decoding, [1])
        return {1: [each[0] for each in by_k[1]]}, None
    model.retriever.check_depth(wide)
    retrieved = model.retriever(batch.questions, wide)
    null = [wide] if retrieved.rows.shape[1] > wide else []  # a null document stands after all others
    by_k = {}
    # without one, what was read for the largest K serves the smaller ones too
    for ks in [[k] for k in n_docs] if null else [list(n_docs)]:
        columns = [*range(max(ks)), *null]
        contexts = model.read_retrieved(
            batch, Retrieved(retrieved.rows[:, columns], retrieved.scores[:, columns])
        )
        made = generate_for_each(model, contexts, decoding, [k + len(null) for k in ks])
        by_k |= {k: [each[0] for each in made[k + len(null)]] for k in ks}
    return by_k, Retrieved(retrieved.rows[:, :wide], retrieved.scores[:, :wide])


def answer_in_parts(
    model: RagModel,
    examples: Sequence[Example],
    decoding: Decoding,
    ks: Sequence[int],
    n_docs: int,
    batch_size: int,
    retrieve: int,
    folder: Path,
    process: int = 0,
    processes: int = 1,
) -> None:
    """Answer the questions that `folder` has no answers to yet, and keep each batch there.

    ks: every K to be answered with; n_docs: the one of them that is reported with its passages. Of the batches that
    are left, this process takes its share.
    """
    names = [each.name for each in fields(Answered)]
    there = {each.number for each in read_parts(folder)}
    left = [number for number in range(len(examples)) if number not in there]
    batches = [left[i : i + batch_size] for i in range(0, len(left), batch_size)][process::processes]
    share = "" if processes == 1 else f", process 1 of {processes}"
    total, done = (len(examples), len(there)) if processes == 1 else (sum(map(len, batches)), 0)
    with progress_bar(f"answering{share}", total, "questions", done, show=process == 0) as advance:
        for numbers, by_k, found in _answered(model, examples, batches, decoding, ks, retrieve):
            scores = None if found is None else found.scores.float().cpu().tolist()
            part = [
                Answered(
                    number,
                    {k: best[i].text for k, best in by_k.items()},
                    by_k[n_docs][i].logprob,
                    [] if found is None else found.rows[i].tolist(),
                    by_k[n_docs][i].doc_logprobs.exp().tolist(),
                    by_k[n_docs][i].posterior.tolist(),
                    [] if scores is None else [each if math.isfinite(each) else None for each in scores[i]],
                )
                for i, number in enumerate(numbers)
            ]
            with (
                write_aside(folder / f"{numbers[0]:09d}.jsonl") as aside,
                aside.open("w", encoding="utf-8") as file,
            ):
                for each in part:
                    file.write(json_text({name: getattr(each, name) for name in names}) + "\n")
            advance(len(numbers))


def read_parts(folder: Path) -> list[Answered]:
    """What `answer_in_parts` has kept so far, in the questions' order."""
    parts = []
    for file in sorted(folder.glob("[0-9]*.jsonl")):
        for _, record in read_records(file):
            record["texts"] = {int(k): text for k, text in record["texts"].items()}
            parts.append(Answered(**record))
    return sorted(parts, key=lambda each: each.number)


def scores_of(answered: Sequence[Answered]) -> Float[np.ndarray, "questions docs"]:
    """The scores of everything that was retrieved; −inf where nothing was, and the ranks where an interrupted
    evaluation of an earlier version did not keep them."""
    scores = [
        each.scores
        if len(each.scores) == len(each.rows)
        else [-float(rank) for rank in range(len(each.rows))]
        for each in answered
    ]
    return np.array([[-np.inf if one is None else one for one in each] for each in scores], np.float64)


def find_passages(
    retriever: Any,
    questions: Sequence[str],
    depth: int,
    batch_size: int | None = None,
    description: str = "searching",
    device: torch.device | str = "cpu",
) -> Int64[np.ndarray, "questions docs"]:
    """The rows of the `depth` best passages of each question. device: that of the question encoder."""
    return find_scored(retriever, questions, depth, batch_size, description, device)[0]


@torch.inference_mode()
def find_scored(
    retriever: Any,
    questions: Sequence[str],
    depth: int,
    batch_size: int | None = None,
    description: str = "searching",
    device: torch.device | str = "cpu",
) -> tuple[Int64[np.ndarray, "questions docs"], Float[np.ndarray, "questions docs"]]:
    """The rows of the `depth` best passages of each question, and their scores. device: the question encoder's."""
    retriever.check_depth(depth)
    retriever.eval()
    rows, scores, at_once = [], [], batch_size or 32
    with progress_bar(description, len(questions), "questions") as advance:
        for start in range(0, len(questions), at_once):
            part = list(questions[start : start + at_once])
            retrieved = retriever(retriever.prepare(part).to(device), depth)
            rows.append(retrieved.rows[:, :depth])
            scores.append(retrieved.scores[:, :depth].float().cpu().numpy())
            advance(len(part))
    return np.concatenate(rows), np.concatenate(scores)
