"""Sections 2.2 and 4.5 together: dense retrieval and BM25 as one p_η(z|x).

    p_η(z|x) = softmax over the K passages of s · q(x)ᵀd(z) + w · BM25(x, z)

The candidates are the L best passages by the index and the L best by BM25, each scored exactly by both, so that K of
them are put in order by the sum. It is differentiable in q(x), s and w.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from rag.encoders.protocol import AnyQuestionEncoder
from rag.encoders.settings import EncoderSettings
from rag.errors import UserError
from rag.index.folder import Index
from rag.index.passages import PassageStore
from rag.marginalize import without_autocast
from rag.parts import TrainedPart, describe_partial
from rag.retrievers.dense import DenseRetriever, beside, open_pair
from rag.retrievers.null_document import NullDocument
from rag.retrievers.protocol import Lexicon, Questions, Retrieved, Retriever
from rag.retrievers.scale import Scale, checked, described, number_of, parts_of, value_of


class HybridRetriever(DenseRetriever):
    """DenseRetriever whose scores have a lexical part: retriever=hybrid.

    build: makes the lexical scorer over the passages of an index, such as BM25.build. scale, weight: s and w, numbers
    or learned. candidates: L.
    """

    kind = "dense search and BM25"

    def __init__(
        self,
        question_encoder: AnyQuestionEncoder | Any,
        index: Index,
        build: Callable[[PassageStore], Any],
        trainable: bool = True,
        null_document: NullDocument | None = None,
        scale: Scale | None = None,
        weight: Scale = 1.0,
        candidates: int = 100,
    ):
        super().__init__(question_encoder, index, trainable, null_document, scale)
        if candidates < 1:
            raise UserError(f"retriever.candidates={candidates}: give 1 or more, of each of the two searches")
        self.weight = checked(weight, "weight")
        self.candidates = candidates
        self.build = build
        self.scorer = build(index.passages)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        question_encoder: str | Path,
        index: str | Path,
        build: Callable[[PassageStore], Any],
        trainable: bool = True,
        null_document: NullDocument | None = None,
        scale: Scale | None = None,
        weight: Scale = 1.0,
        candidates: int = 100,
        encoder: EncoderSettings | None = None,
    ) -> Self:
        opened = open_pair(question_encoder, index, encoder)
        made = cls(*opened, build, trainable, null_document, scale, weight, candidates)
        made.saved_beside = beside(question_encoder)
        return made

    def swap(self, index: Index) -> None:
        self.check_fit(index)
        if index.passages.sha256 != self.index.passages.sha256:
            self.scorer = self.build(index.passages)
        self.index = index

    def trained_parts(self) -> list[TrainedPart]:
        return [*super().trained_parts(), *parts_of(self.weight, "weight")]

    def description(self) -> dict[str, Any]:
        return super().description() | {
            "build": describe_partial(self.build),
            "weight": described(self.weight),
            "candidates": self.candidates,
        }

    def identity(self) -> Any:
        numbers = [number_of(self.scale), number_of(self.weight), self.candidates]
        return [*super().identity(), self.scorer.settings, *numbers]

    def lexicon(self) -> Lexicon | None:
        return self.scorer if isinstance(self.scorer, Lexicon) else None

    def find(self, questions: Questions, n_docs: int) -> Int64[np.ndarray, "batch docs"]:
        return Retriever.find(self, questions, n_docs)  # the index alone does not know the sum

    def forward(self, questions: Questions, n_docs: int) -> Retrieved:
        queries = self.encode(questions)
        rows = self._candidates(queries, questions.text, n_docs)
        lexical = torch.from_numpy(self.scorer.scores_of(questions.text, rows)).to(queries.device)
        scores = self.logits(queries, rows)
        with without_autocast(queries):
            scores = scores + value_of(self.weight) * lexical
        best = scores.argsort(dim=1, descending=True, stable=True)[:, :n_docs]
        rows = np.take_along_axis(rows, best.cpu().numpy(), axis=1)
        return self.with_null_document(queries, rows, scores.gather(1, best))

    def _candidates(
        self, queries: Float[Tensor, "batch dim"], text: list[str], n_docs: int
    ) -> Int64[np.ndarray, "batch candidates"]:
        """The rows that either search found, each once and in order, −1 in the place of the others."""
        depth = min(
            max(self.candidates, n_docs), max(len(self.index), n_docs)
        )  # too large a K is refused below
        by_either = [self.search(queries, depth), self.scorer.search(text, depth)[1]]
        rows = np.sort(np.concatenate(by_either, axis=1), axis=1)
        rows[:, 1:][rows[:, 1:] == rows[:, :-1]] = -1
        return rows
