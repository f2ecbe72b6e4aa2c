"""Questions before they are batches: a sample of them, and whether a model can read them.

Evaluation and asking need no more than this of training, and do not wait for Lightning.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from rag.errors import UserError
from rag.model import RagModel
from rag.tasks.example import Example

CHECKED_AT_ONCE = 1024  # questions
Item = TypeVar("Item")


def sample(items: Sequence[Item], limit: int | None, seed: int = 0) -> list[Item]:
    """`limit` of the items, drawn without repetition by `seed`, in their order; all of them where there are no more.

    Files of questions are ordered, by article for instance, so that their first few hundred ask about one thing.
    """
    if limit is None or limit >= len(items):
        return list(items)
    chosen = np.random.default_rng([seed, 2_000_003]).permutation(len(items))[:limit]
    return [items[number] for number in np.sort(chosen)]


def check_questions(model: RagModel, examples: Sequence[Example], source: str) -> None:
    """UserError that names the first question of `source` that the model cannot read, as one too long for it.

    Before anything is computed: training may come to such a question hours later.
    """
    known = {example.question: example.id for example in reversed(examples)}
    questions = list(known)
    for start in range(0, len(questions), CHECKED_AT_ONCE):
        chunk = questions[start : start + CHECKED_AT_ONCE]
        try:
            _read(model, chunk)
        except UserError:
            for question in chunk:
                try:
                    _read(model, [question])
                except UserError as error:
                    begin = question if len(question) <= 40 else f"{question[:40].rstrip()}…"
                    raise UserError(f"{source}, question {known[question]} ({begin}): {error}") from error
            raise


def _read(model: RagModel, questions: list[str]) -> None:
    model.generator.assemble(model.prepare(questions).generator_questions)
