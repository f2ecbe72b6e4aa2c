"""Passages that come with their questions: gold ones, to measure a reader apart from its retriever.

p(z|x) = uniform over the gold passages of x, of which the first K are read
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Int64
from torch import nn

from rag.errors import UserError
from rag.index.folder import Index
from rag.parts import describe
from rag.retrievers.protocol import Questions, Retrieved, Retriever
from rag.runs import INDEX
from rag.tasks.qa import read_examples


class GoldRetriever(nn.Module, Retriever):
    """The gold passages (positive_ids) of the questions in some files, instead of what a search would find.

    A question that these files do not hold, or whose gold passages the index does not hold, is refused when it is
    asked. Of a question that stands in several lines, the first counts.
    """

    kind = "gold passages"
    trainable = False

    def __init__(self, index: Index, positive_ids: Mapping[str, Sequence[str]], files: Sequence[str] = ()):
        """positive_ids: of each question, by its text. files: what they were read from, for `description`."""
        super().__init__()
        self.index = index
        self.positive_ids = positive_ids
        self.files = list(files)

    @classmethod
    def over(cls, index: str | Path, questions: str | Sequence[str]) -> Self:
        """Over an index folder. questions: one question file with positive_ids, or several."""
        files = [questions] if isinstance(questions, str) else list(questions)
        positive_ids: dict[str, Sequence[str]] = {}
        for file in files:
            for example in read_examples(file):
                if example.positive_ids:
                    positive_ids.setdefault(example.question, example.positive_ids)
        if not positive_ids:
            raise UserError(
                f"{' and '.join(files)}: no question has positive_ids, the gold passages that retriever=gold reads"
            )
        return cls(Index.open(Path(index)), positive_ids, files)

    def description(self) -> dict[str, Any]:
        if not self.files:
            raise UserError(
                "these gold passages were given as they are: make the retriever with `over` to save it"
            )
        return describe(type(self).over, index=INDEX, questions=self.files)

    def identity(self) -> Any:
        return [self.kind, self.index.passages.sha256, sorted(self.positive_ids.items())]

    def forward(self, questions: Questions, n_docs: int) -> Retrieved:
        rows = np.full((len(questions), n_docs), -1, np.int64)
        for number, question in enumerate(questions.text):
            held = self._rows(question)[:n_docs]
            rows[number, : len(held)] = held
        scores = torch.zeros(rows.shape).masked_fill(torch.from_numpy(rows < 0), -torch.inf)
        return Retrieved(rows, scores)

    def _rows(self, question: str) -> Int64[np.ndarray, " gold"]:
        ids = self.positive_ids.get(question)
        if ids is None:
            raise UserError(
                f"retriever=gold knows no gold passage of the question {question[:80]!r}: name the file that holds it "
                "in retriever.questions, with positive_ids"
            )
        held = []
        for each in ids:
            try:
                held.append(self.index.passages.row_of(each))
            except KeyError:
                continue
        if not held:
            raise UserError(
                f"{self.index.folder} holds none of the gold passages {', '.join(ids)} of {question[:80]!r}: give the "
                "index of the corpus that they are of"
            )
        return np.array(held, np.int64)
