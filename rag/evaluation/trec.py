"""What was retrieved as the tools of information retrieval read it: a TREC run and its judgments (qrels).

    run.txt                   question Q0 passage rank score tag
    qrels.recall.txt          question 0 passage 1 for each gold passage, by its id; 0 for others that were retrieved
    qrels.answer_recall.txt   1 for each retrieved passage that contains an answer, 0 for the others
    measures.json             nDCG@10, MRR@10 and MAP by ir_measures, where it is installed

Each qrels file is named after the metric that it judges by (`right_passages` of the task), and the metric at K is
ir_measures' Success@K over it. Passages that nobody retrieved are not judged by their text, so that over such a file
recall as a share, nDCG and MAP would say little; only the reciprocal rank is taken from it.

A space or another character that ends a field in these files is written as % and its bytes, as in an address ("Canada
%20x.md#3" as "Canada%20x.md#3"), and so is % itself. An id of a question that comes again gets its number ("7~2").
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from jaxtyping import Float, Int64

from rag.evaluation.as_read import AsRead
from rag.files import write_aside, write_json
from rag.index.passage import Passage, whole_id
from rag.index.passages import PassageStore
from rag.metrics.bootstrap import mean_with_interval
from rag.tasks.example import Example

RECALL = "recall"  # the metric that goes by gold ids
CUT = 10
_ENDS_A_FIELD = re.compile(r"[\s%\x00-\x1f\x7f-\x9f]")
Right = Callable[[Example], Mapping[str, Callable[[Passage], bool]]]


def escaped(id: str) -> str:
    """An id as it stands in a run: without spaces, and never empty."""
    return _ENDS_A_FIELD.sub(lambda match: quote(match[0], safe=""), id) or "%"


def question_ids(examples: Sequence[Example]) -> list[str]:
    """The ids of questions as they stand in a run, each once."""
    seen: dict[str, int] = {}
    ids = []
    for example in examples:
        id = escaped(example.id)
        seen[id] = seen.get(id, 0) + 1
        ids.append(id if seen[id] == 1 else f"{id}~{seen[id]}")
    return ids


def descending(scores: Sequence[float]) -> Iterator[float]:
    """The scores as float32, each below the one before: trec_eval orders by score, and equal ones by id."""
    before = np.float32(np.inf)
    for score in scores:
        before = min(np.float32(score), np.nextafter(before, np.float32(-np.inf)))
        yield float(before)


def write_trec(
    folder: Path,
    examples: Sequence[Example],
    rows: Int64[np.ndarray, "questions docs"],
    scores: Float[np.ndarray, "questions docs"],
    store: PassageStore,
    right: Right,
    tag: str,
    as_read: AsRead | None = None,
) -> None:
    """Write the run, the qrels and, where ir_measures is installed, its measures into `folder`.

    rows: of −1 are left out. right: `right_passages` of the task. tag: the last field of the run. as_read: judges the
    part of a passage that a generator reads.
    """
    judgments: dict[str, dict[str, dict[str, int]]] = {}
    with write_aside(folder) as aside:
        aside.mkdir()
        with open(aside / "run.txt", "w", encoding="utf-8") as run:
            for number, (id, example) in enumerate(zip(question_ids(examples), examples, strict=True)):
                found = [
                    (row, score)
                    for row, score in zip(rows[number].tolist(), scores[number].tolist(), strict=True)
                    if row >= 0
                ]
                passages = [store[row] for row, _ in found]
                falling = descending([score for _, score in found])
                for rank, (passage, score) in enumerate(zip(passages, falling, strict=True), start=1):
                    run.write(f"{id} Q0 {escaped(passage.id)} {rank} {score!r} {escaped(tag)}\n")
                if as_read is not None:
                    passages = [
                        as_read(example.question, row, each)
                        for (row, _), each in zip(found, passages, strict=True)
                    ]
                for name, is_right in right(example).items():
                    judged = {passage.id: int(is_right(passage)) for passage in passages}
                    if name == RECALL:
                        judged |= _unfound(example, judged)
                    judgments.setdefault(name, {})[id] = judged
        for name, of_questions in judgments.items():
            with open(aside / f"qrels.{name}.txt", "w", encoding="utf-8") as qrels:
                for id, judged in of_questions.items():
                    # a question for which nothing was found counts, too
                    for passage, grade in (judged or {"": 0}).items():
                        qrels.write(f"{id} 0 {escaped(passage)} {grade}\n")
        if find_spec("ir_measures") is not None:
            write_json(aside / "measures.json", {name: measures(aside, name) for name in judgments})


def _unfound(example: Example, judged: Mapping[str, int]) -> dict[str, int]:
    """The gold passages that were not retrieved, neither whole nor in pieces."""
    found = {whole for id, grade in judged.items() if grade for whole in (id, whole_id(id))}
    return {gold: 1 for gold in example.positive_ids if gold not in found}


def measures(folder: Path, name: str) -> dict[str, Any]:
    """{measure: value, interval and n} by ir_measures, over the run and a qrels file of `folder`."""
    import ir_measures
    from ir_measures import AP, RR, nDCG

    chosen = [nDCG @ CUT, RR @ CUT, AP] if name == RECALL else [RR @ CUT]
    qrels = list(ir_measures.read_trec_qrels(str(folder / f"qrels.{name}.txt")))
    run = list(ir_measures.read_trec_run(str(folder / "run.txt")))
    values: dict[str, list[float]] = {str(measure): [] for measure in chosen}
    for each in ir_measures.iter_calc(chosen, qrels, run):
        values[str(each.measure)].append(each.value)
    said = {}
    for measure, of_questions in values.items():
        metric = mean_with_interval(np.array(of_questions))
        said[measure] = {"value": metric.value, "low": metric.low, "high": metric.high, "n": metric.count}
    return said
