"""Training targets that retrieval decides (section 3.1, appendix D), made before training and kept.

    TriviaQA      the answers that occur in one of the question's 1000 best passages; a question without is left out
    CuratedTREC   the string that the question's regular expressions match most often in its 1000 best passages

The passages are those of the experiment's own retriever as it is before training, or of one named for this. Searching
for a whole training set takes a while, so that the result is kept as

    <Task>-<hash>.jsonl    the examples with their targets as answers
    <Task>-<hash>.json     what made them, and how many targets were found

whose hash is of everything that decides the result: the examples, the task, the passages, the index, the retriever.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from glob import escape
from pathlib import Path
from typing import Any

import torch

from rag.errors import UserError
from rag.files import lock_file, read_json, remove_leftovers, write_aside, write_json
from rag.fingerprints import digest
from rag.progress import progress_bar
from rag.safe_text import json_text, say
from rag.tasks.example import Example
from rag.tasks.records import read_records
from rag.tasks.task import Task

AT_ONCE = 64  # questions searched for together
FORMAT = 1  # to be raised when targets come out otherwise


def training_pairs(task: Task, retriever: Any, folder: Path | str) -> list[tuple[Example, str]]:
    """One (example, target) for each target of each training example, prepared by retrieval where the task says so.

    retriever: of rag/retrievers/dense.py; None for a model without. folder: where prepared sets are kept.
    Raises UserError where the task needs a retriever and there is none, and where nothing would be left.
    """
    if task.depth == 0:
        return task.training_pairs()
    if retriever is None:
        raise UserError(
            f"{type(task).__name__} takes its training targets from retrieved passages and this model retrieves none: "
            "name a retriever with datamodule.target_retriever"
        )
    return [(example, target) for example in prepared(task, retriever, folder) for target in example.answers]


def prepared(task: Task, retriever: Any, folder: Path | str) -> list[Example]:
    """The training examples with their targets as answers: read where they were made before, made otherwise."""
    examples = task.examples("train")
    made_from = {
        "format": FORMAT,
        "task": type(task).__name__,
        "depth": task.depth,
        "examples": digest([example.plain() for example in examples]),
        "retriever": retriever.identity(),
    }
    file = Path(folder) / f"{type(task).__name__}-{digest(made_from)}.jsonl"
    with _alone(file):
        if not file.exists():
            _make(task, examples, retriever, made_from, file)
    said = read_json(file.with_suffix(".json"))
    say(
        f"training targets from the {said['depth']:,} best passages: found for {said['found']:,} of "
        f"{said['questions']:,} questions, {said['kept']:,} are trained on ({file})"
    )
    return list(_read(file))


@torch.inference_mode()
def _make(task: Task, examples: list[Example], retriever: Any, made_from: dict[str, Any], file: Path) -> None:
    store = retriever.index.passages
    depth = min(task.depth, len(store))
    training = retriever.training
    retriever.eval()
    kept, with_targets = [], 0
    with progress_bar(f"searching {depth:,} passages for targets", len(examples), "questions") as advance:
        for start in range(0, len(examples), AT_ONCE):
            chunk = examples[start : start + AT_ONCE]
            for example, retrieved in zip(
                chunk,
                retriever.find(retriever.prepare([one.question for one in chunk]), depth).tolist(),
                strict=True,
            ):
                targets = task.targets(example, (store[row].text for row in retrieved if row >= 0))
                with_targets += bool(targets)
                targets = targets or task.targets_without(example)
                if targets:
                    kept.append(replace(example, answers=targets))
            advance(len(chunk))
    retriever.train(training)
    if not kept:
        raise UserError(
            f"none of the {len(examples):,} training questions has an answer in its {depth:,} best passages: look "
            "whether task.train and the index belong together"
        )
    answers = {
        "before": sum(len(one.answers) for one in examples),
        "after": sum(len(one.answers) for one in kept),
    }
    write_json(
        file.with_suffix(".json"),
        made_from
        | {"questions": len(examples), "found": with_targets, "kept": len(kept), "answers": answers},
    )
    with write_aside(file) as aside, aside.open("w", encoding="utf-8") as out:
        for example in kept:
            out.write(json_text(example.plain()) + "\n")


def _read(file: Path) -> Iterator[Example]:
    for _, record in read_records(file):
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
        yield Example(**fields)


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Several processes of one training ask for the same set: the first makes it while the others wait."""
    lock = lock_file(file.with_name(f".{file.name}.lock"))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise UserError(
            f"{file.parent} cannot be written ({error.strerror}): choose another with datamodule.prepared=…"
        ) from error
    try:
        remove_leftovers(file.parent, f"{escape(file.stem)}.*.partial")
        yield
    finally:
        lock.release()
