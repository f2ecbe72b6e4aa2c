"""Questions asked of passages that hold no answer, beside the same asked of passages that do.

removed    every passage that the task calls right for the question, by its id or because it contains an answer in text
           or title, is taken out of what is retrieved for it
nobody     the question names its gold passage's title ("When was Ada Abbott born?"), and asks about somebody who does
           not exist instead: a name put together from those of two others, which is no passage's title
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from rag.decoding.generation import generate
from rag.decoding.settings import Decoding
from rag.errors import UserError
from rag.evaluation.evidence import Evidence, gather
from rag.evaluation.question_words import WordKnowledge
from rag.index.passage import Passage
from rag.index.passages import PassageStore
from rag.metrics.qa import exact_match
from rag.model import RagModel
from rag.progress import progress_bar
from rag.retrievers.protocol import Questions, Retrieved
from rag.tasks.example import Example
from rag.tasks.task import Task

REMOVED, NOBODY = "removed", "nobody"
_DEEPER = 64  # passages searched beyond K before it is searched deeper, fourfold each time

IsRight = Callable[[Passage], bool]
Right = Callable[[Sequence[str], Sequence[Example]], np.ndarray]


@dataclass(frozen=True)
class Asked:
    """A question as it was asked, what was answered, and what speaks for it.

    number: of the example that it was made from. right: by exact match; to what cannot be answered, nothing is.
    """

    number: int
    question: str
    answer: str
    evidence: Evidence
    answerable: bool
    right: bool


@torch.inference_mode()
def ask(
    model: RagModel,
    examples: Sequence[Example],
    decoding: Decoding,
    n_docs: int,
    batch_size: int,
    without: Sequence[IsRight] | None = None,
    answerable: bool = True,
    description: str = "answering",
    right: Right | None = None,
) -> list[Asked]:
    """Ask every question and keep the evidence. without: of each question, the passages that it is not to read.

    What reads nothing that answers it cannot be answered, so `without` makes answerable False. right: which of some
    predictions are right; None: by exact match.
    """
    right = right or (lambda predictions, own: exact_match(predictions, [example.answers for example in own]))
    knowledge = WordKnowledge(model.eval())
    device = model.generator.model.device
    asked: list[Asked] = []
    with progress_bar(description, len(examples), "questions") as advance:
        for start in range(0, len(examples), batch_size):
            part = examples[start : start + batch_size]
            questions = [example.question for example in part]
            batch = model.prepare(questions).to(device)
            if without is None:
                contexts = model.read(batch, n_docs)
            else:
                out = without[start : start + batch_size]
                contexts = model.read_retrieved(batch, retrieve_without(model, batch.questions, n_docs, out))
            best = [answers[0] for answers in generate(model, contexts, decoding)]
            evidence = gather(model, knowledge, questions, contexts, best)
            matches = right([each.text for each in best], part)
            can = answerable and without is None
            asked += [
                Asked(start + place, question, answer.text, speaks, can, can and bool(match == 1))
                for place, (question, answer, speaks, match) in enumerate(
                    zip(questions, best, evidence, matches, strict=True)
                )
            ]
            advance(len(part))
    return asked


def retrieve_without(
    model: RagModel, questions: Questions, n_docs: int, without: Sequence[IsRight]
) -> Retrieved:
    """The `n_docs` best passages of each question, as if those that `without` names were not there."""
    retriever = model.retriever
    store, size = retriever.index.passages, len(retriever.index)
    depth = min(size, n_docs + _DEEPER)
    while True:
        found = retriever(questions, depth)
        null = found.rows.shape[1] - depth  # a null document stands after all others
        kept = [
            [place for place, row in enumerate(rows[:depth].tolist()) if row < 0 or not out(store[row])]
            for rows, out in zip(found.rows, without, strict=True)
        ]
        if depth == size or all(len(places) >= n_docs for places in kept):
            break
        depth = min(size, 4 * depth)
    rows = np.full((len(kept), n_docs + null), -1, np.int64)
    scores = torch.full((len(kept), n_docs + null), -torch.inf, device=found.scores.device)
    for number, places in enumerate(kept):
        chosen = places[:n_docs]
        rows[number, : len(chosen)] = found.rows[number, chosen]
        scores[number, : len(chosen)] = found.scores[number, chosen].float()
        if null:
            scores[number, n_docs:] = found.scores[number, depth:].float()
    return Retrieved(rows, scores)


def holds_answer(task: Task, example: Example) -> IsRight:
    """Whether a passage answers an example, by its id, its text or its title. Raises UserError where the task cannot
    tell."""
    tests = list(task.right_passages(example).values())
    if not tests:
        raise UserError(
            f"nothing says which passages answer {example.question[:80]!r}: questions with answers or positive_ids are "
            "needed"
        )

    def test(passage: Passage) -> bool:
        titled = replace(passage, text=f"{passage.title} {passage.text}")
        return any(is_right(passage) or is_right(titled) for is_right in tests)

    return test


def right_by(task: Task) -> Right:
    """Which predictions are right by the task's own exact match; UserError where it has none."""

    def right(predictions: Sequence[str], examples: Sequence[Example]) -> np.ndarray:
        scores = task.score(predictions, examples)
        if "em" not in scores:
            raise UserError(
                f"a {type(task).__name__} has no exact match, so no answer of it is right or wrong: give a run of "
                "short answers"
            )
        return scores["em"].per_example

    return right


def about_nobody(examples: Sequence[Example], store: PassageStore) -> list[tuple[int, Example]]:
    """(number, example) for each question that names its gold passage's title of two words or more, with a name that is
    no title instead, and no answer. Fewer than three such titles make none."""
    named: list[tuple[int, str]] = []
    for number, example in enumerate(examples):
        titles = {store[row].title for row in _rows(store, example.positive_ids)}
        named += [
            (number, title) for title in titles if len(title.split()) > 1 and title in example.question
        ][:1]
    titles = list(dict.fromkeys(title for _, title in named))
    if len(titles) < 3:
        return []
    taken = {passage.title for passage in store}
    made = []
    for number, title in named:
        name = next((each for each in _names(titles, titles.index(title)) if each not in taken), None)
        if name is not None:
            question = examples[number].question.replace(title, name)
            made.append((number, Example(question, (), set=examples[number].set)))
    return made


def _names(titles: Sequence[str], of: int) -> Iterator[str]:
    """Names put together from one title's beginning and another's last word, beginning with those after `of`."""
    for shift in range(1, len(titles)):
        for step in range(1, len(titles)):
            first, last = titles[(of + step) % len(titles)], titles[(of + step + shift) % len(titles)]
            yield " ".join([*first.split()[:-1], last.split()[-1]])


def _rows(store: PassageStore, ids: Sequence[str]) -> list[int]:
    rows = []
    for each in ids:
        try:
            rows.append(store.row_of(each))
        except KeyError:
            continue
    return rows
