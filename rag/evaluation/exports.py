"""What an evaluation found and answered, in the forms that other tools read: export=[trec,fid,kilt,ragas,flashrag].

    trec/run.txt             TREC's run, with its qrels (rag/evaluation/trec.py)
    fid.jsonl                FiD's and Atlas's question files, what was retrieved as ctxs, for retriever=given
    kilt.jsonl               KILT's predictions: the answer, with the pages that were read as its provenance
    ragas.jsonl              question, answer, contexts and reference, as RAGAS and others judge them
    flashrag.jsonl           FlashRAG's, with retrieval_result and pred under output

trec and fid hold everything that was retrieved, the others the K passages that were read.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from rag.errors import UserError
from rag.evaluation.as_read import AsRead
from rag.evaluation.trec import write_trec
from rag.files import write_aside
from rag.index.passage import Passage, whole_id
from rag.index.passages import PassageStore
from rag.safe_text import json_text
from rag.tasks.example import Example
from rag.tasks.task import Task


@dataclass(frozen=True)
class Outcome:
    """What is known of N questions when all are answered. rows, scores: what was retrieved, best first, −1 for none; a
    closed book has no columns. n_docs: so many of them were read. texts: the answers; None of a retriever alone.
    as_read: the part of a passage that was read, which is what is judged."""

    task: Task
    examples: Sequence[Example]
    rows: Int64[np.ndarray, "questions docs"]
    scores: Float[np.ndarray, "questions docs"]
    store: PassageStore | None
    n_docs: int
    texts: Sequence[str] | None = None
    as_read: AsRead | None = None

    def found(self, number: int, depth: int | None = None) -> Iterator[tuple[Passage, float]]:
        """The passages of a question with their scores, best first, at most `depth`."""
        assert self.store is not None or not self.rows.shape[1]
        for row, score in zip(
            self.rows[number, :depth].tolist(), self.scores[number, :depth].tolist(), strict=True
        ):
            if row >= 0 and self.store is not None:
                yield self.store[row], score

    def read(self, number: int) -> list[Passage]:
        """The passages that were read for a question."""
        return [passage for passage, _ in self.found(number, self.n_docs)]


def check_exports(names: Sequence[str], answers: bool, reads: bool) -> list[str]:
    """The names of exports, each once; UserError for one that does not exist, or that this evaluation cannot fill."""
    for name in names:
        if name not in FORMS:
            raise UserError(
                f"export={name} does not exist: there is {', '.join(FORMS)}, several as export=[trec,kilt]"
            )
        if FORMS[name].of_answers and not answers:
            raise UserError(
                f"export={name} holds answers, and this evaluation gives none: there is trec and fid"
            )
        if FORMS[name].of_passages and not reads:
            raise UserError(f"export={name} holds what was retrieved, and a closed book retrieves nothing")
    return list(dict.fromkeys(names))


def write_exports(names: Sequence[str], outcome: Outcome, folder: Path, tag: str) -> list[Path]:
    """Write what `check_exports` has passed into an evaluation's folder; the files, or the folder of several."""
    return [FORMS[name].write(outcome, folder, tag) for name in names]


@dataclass(frozen=True)
class _Form:
    of_answers: bool  # it cannot be written without answers
    of_passages: bool  # or without passages
    file: str  # or folder
    write: Callable[[Outcome, Path, str], Path]


def _lines(
    name: str, record: Callable[[Outcome, int], Mapping[str, Any]]
) -> Callable[[Outcome, Path, str], Path]:
    def write(outcome: Outcome, folder: Path, tag: str) -> Path:
        file = folder / f"{name}.jsonl"
        with write_aside(file) as aside, aside.open("w", encoding="utf-8") as out:
            for number in range(len(outcome.examples)):
                out.write(json_text(record(outcome, number)) + "\n")
        return file

    return write


def _answer(outcome: Outcome, number: int) -> str:
    assert outcome.texts is not None
    return outcome.texts[number]


def _fid(outcome: Outcome, number: int) -> dict[str, Any]:
    example = outcome.examples[number]
    record: dict[str, Any] = {"id": example.id, "question": example.question}
    if example.answers:
        record["answers"] = list(example.answers)
    if example.positive_ids:
        record["positive_ids"] = list(example.positive_ids)
    found = outcome.found(number)
    return record | {
        "ctxs": [
            {"id": passage.id, "title": passage.title, "text": passage.text, "score": score}
            for passage, score in found
        ]
    }


def _kilt(outcome: Outcome, number: int) -> dict[str, Any]:
    example = outcome.examples[number]
    pages = {whole_id(passage.id): passage.title for passage in outcome.read(number)}  # a page once, in order
    provenance = [{"wikipedia_id": id, "title": title} for id, title in pages.items()]
    output = [{"answer": _answer(outcome, number), "provenance": provenance}]
    return {"id": example.id, "input": example.question, "output": output}


def _ragas(outcome: Outcome, number: int) -> dict[str, Any]:
    example = outcome.examples[number]
    return {
        "question": example.question,
        "answer": _answer(outcome, number),
        "contexts": [passage.text for passage in outcome.read(number)],
        "reference": example.answers[0] if example.answers else "",
    }


def _flashrag(outcome: Outcome, number: int) -> dict[str, Any]:
    example = outcome.examples[number]
    found = [
        {"id": passage.id, "contents": f'"{passage.title}"\n{passage.text}', "score": score}
        for passage, score in outcome.found(number, outcome.n_docs)
    ]
    return {
        "id": example.id,
        "question": example.question,
        "golden_answers": list(example.answers),
        "output": {"retrieval_result": found, "pred": _answer(outcome, number)},
    }


def _trec(outcome: Outcome, folder: Path, tag: str) -> Path:
    assert outcome.store is not None
    right = outcome.task.right_passages
    write_trec(
        folder / "trec",
        outcome.examples,
        outcome.rows,
        outcome.scores,
        outcome.store,
        right,
        tag,
        outcome.as_read,
    )
    return folder / "trec"


FORMS = {
    "trec": _Form(False, True, "trec", _trec),
    "fid": _Form(False, True, "fid.jsonl", _lines("fid", _fid)),
    "kilt": _Form(True, False, "kilt.jsonl", _lines("kilt", _kilt)),
    "ragas": _Form(True, False, "ragas.jsonl", _lines("ragas", _ragas)),
    "flashrag": _Form(True, False, "flashrag.jsonl", _lines("flashrag", _flashrag)),
}
