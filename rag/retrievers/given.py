"""Passages that come with their questions, by their text: none is searched for.

retriever=given   the passages that a file gives each question, whoever found them:
                  p(z|x) = softmax of s · score(x, z) over the K best of them, uniform where there are no scores
retriever=gold    the gold passages, to measure a reader apart from its retriever:
                  p(z|x) = uniform over the gold passages of x, of which the first K are read
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Int64
from torch import nn

from rag.errors import UserError
from rag.fingerprints import digest
from rag.index.folder import Index
from rag.index.unembedded import open_passages
from rag.parts import TrainedPart, describe
from rag.retrievers.given_contexts import GivenContexts
from rag.retrievers.protocol import Questions, Retrieved, Retriever
from rag.retrievers.scale import Scale, checked, described, number_of, parts_of, value_of
from rag.runs import ASKED, DATA, INDEX, TASK
from rag.tasks.qa import read_examples
from rag.tasks.task import Task

log = logging.getLogger(__name__)


def sources_of(task: Task, splits: Sequence[str]) -> list[str]:
    """The files that some splits of a task are read from; UserError for one that has none."""
    return list(dict.fromkeys(task.source(split) for split in splits))


class GivenPassages(nn.Module, Retriever):
    """The passages that come with each question in its own file, with the scores that it gives them.

    Whatever made them (a search engine, a re-ranker, FiD's or Atlas's files) is marginalised over. A question with
    fewer than K is read with those alone. Of a question that comes several times, the first counts.
    """

    kind = "given passages"
    trainable = False

    def __init__(self, contexts: GivenContexts, scale: Scale = 1.0, cache: str = ""):
        """scale: s, a number or learned. cache: where `over` keeps them, for `description`."""
        super().__init__()
        self.contexts = contexts
        self.index = contexts.index
        self.scale = checked(scale, "scale")
        self.cache = cache
        self.numbers: dict[str, int] = {}
        for number, question in enumerate(contexts.questions):
            self.numbers.setdefault(question, number)

    @classmethod
    def over(cls, task: Task, splits: Sequence[str], cache: str | Path, scale: Scale = 1.0) -> Self:
        """Over the passages that come with the questions of some splits of a task, kept in a folder of `cache`."""
        made = cls(
            GivenContexts.prepare(task.read, sources_of(task, splits), cache, digest(task.reading())),
            scale,
            str(cache),
        )
        made.tell(" and ".join(sources_of(task, splits)))
        return made

    def tell(self, source: str) -> None:
        """Say once what the scores and the questions leave open."""
        contexts = self.contexts
        firsts = np.concatenate([[0], contexts.ends[:-1]])
        unscored = int(np.isnan(contexts.scores[firsts]).sum())
        if unscored:
            which = "the" if unscored == len(firsts) else f"{unscored:,} of {len(firsts):,}"
            log.warning(
                "%s: the passages of %s questions have no scores, and count as equally likely", source, which
            )
        again = [
            question
            for number, question in enumerate(contexts.questions)
            if not np.array_equal(contexts.of(number)[0], contexts.of(self.numbers[question])[0])
        ]
        if again:
            log.warning(
                "%s: %d questions come again with other passages, such as %r: the first of each counts",
                source,
                len(again),
                again[0][:80],
            )

    def trained_parts(self) -> list[TrainedPart]:
        return parts_of(self.scale, "scale")

    def description(self) -> dict[str, Any]:
        if not self.cache:
            raise UserError(
                "these passages were given as they are: make the retriever with `over` to save it"
            )
        return describe(
            type(self).over, task=TASK, splits=ASKED, cache=f"{DATA}/given", scale=described(self.scale)
        )

    def identity(self) -> Any:
        contexts = self.contexts
        held = b"".join(part.tobytes() for part in (contexts.ends, contexts.rows, contexts.scores))
        of_questions = digest([contexts.questions, hashlib.sha256(held).hexdigest()])
        return [self.kind, self.index.passages.sha256, of_questions, number_of(self.scale)]

    def check_depth(self, n_docs: int, setting: str = "n_docs") -> None:
        """Any K from 1: a question with fewer passages is read with those."""
        if n_docs < 1:
            raise UserError(f"{setting} is {n_docs}: give 1 or more")

    def check_fit(self, index: Index) -> None:
        raise UserError(
            "retriever=given reads the passages that come with each question: there is no index to exchange"
        )

    def forward(self, questions: Questions, n_docs: int) -> Retrieved:
        rows = np.full((len(questions), n_docs), -1, np.int64)
        scores = np.zeros(rows.shape)
        for number, question in enumerate(questions.text):
            if (known := self.numbers.get(question)) is None:
                raise UserError(
                    f"retriever=given knows no passages of the question {question[:80]!r}: it reads those of the "
                    f"{len(self.numbers):,} questions of the task's own files"
                )
            held, of_held = (each[:n_docs] for each in self.contexts.of(known))
            rows[number, : len(held)] = held
            scores[number, : len(held)] = np.nan_to_num(of_held)
        scale = value_of(self.scale)
        logits = (
            torch.from_numpy(scores).float()
            if isinstance(scale, float)
            else torch.from_numpy(scores).to(scale)
        )
        return Retrieved(
            rows, (logits * scale).masked_fill(torch.from_numpy(rows < 0).to(logits.device), -torch.inf)
        )


class GoldRetriever(nn.Module, Retriever):
    """The gold passages (positive_ids) of the questions in some files, instead of what a search would find.

    A question that these files do not hold, or whose gold passages the index does not hold, is refused when it is
    asked. Of a question that stands in several lines, the first counts.
    """

    kind = "gold passages"
    trainable = False

    def __init__(
        self,
        index: Index,
        positive_ids: Mapping[str, Sequence[str]],
        files: Sequence[str] = (),
        of_task: bool = False,
    ):
        """positive_ids: of each question, by its text. files, of_task: what they were read from, for `description`."""
        super().__init__()
        self.of_task = of_task
        self.index = index
        self.positive_ids = positive_ids
        self.files = list(files)

    @classmethod
    def over(
        cls,
        index: str | Path,
        questions: str | Sequence[str] = (),
        task: Task | None = None,
        splits: Sequence[str] = (),
    ) -> Self:
        """Over an index folder. questions: one question file with positive_ids, or several; or `splits` of a task."""
        files = [questions] if isinstance(questions, str) else list(questions)
        examples = [example for file in files for example in read_examples(file)]
        if task is not None:
            files += sources_of(task, splits)
            examples += [example for split in splits for example in task.examples(split)]
        positive_ids: dict[str, Sequence[str]] = {}
        for example in examples:
            if example.positive_ids:
                positive_ids.setdefault(example.question, example.positive_ids)
        if not positive_ids:
            raise UserError(
                f"{' and '.join(files)}: no question has positive_ids, the gold passages that retriever=gold reads"
            )
        return cls(open_passages(index), positive_ids, files, of_task=task is not None)

    def description(self) -> dict[str, Any]:
        if not self.files:
            raise UserError(
                "these gold passages were given as they are: make the retriever with `over` to save it"
            )
        if self.of_task:
            return describe(type(self).over, index=INDEX, task=TASK, splits=ASKED)
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

    @cached_property
    def _rows_of(self) -> dict[str, list[int]]:
        """Of all gold passages, and of the pieces that they were split into."""
        return self.index.passages.rows_of(id for ids in self.positive_ids.values() for id in ids)

    def _rows(self, question: str) -> Int64[np.ndarray, " gold"]:
        ids = self.positive_ids.get(question)
        if ids is None:
            raise UserError(
                f"retriever=gold knows no gold passage of the question {question[:80]!r}: name the file that holds it "
                "in retriever.questions, with positive_ids"
            )
        held = [row for each in ids for row in self._rows_of.get(each, ())]
        if not held:
            raise UserError(
                f"{self.index.folder} holds none of the gold passages {', '.join(ids)} of {question[:80]!r}: give the "
                "index of the corpus that they are of"
            )
        return np.array(held, np.int64)
