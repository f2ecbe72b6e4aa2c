"""Section 4.5: BM25, TF-IDF or Jaccard similarity in the retriever's place."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from rag.errors import UserError
from rag.index.folder import Index
from rag.index.passages import PassageStore
from rag.index.unembedded import open_passages
from rag.parts import TrainedPart, describe, describe_partial
from rag.retrievers.protocol import Lexicon, Questions, Retrieved, Retriever
from rag.runs import INDEX


class LexicalRetriever(nn.Module, Retriever):
    """BM25, TF-IDF or Jaccard similarity (section 4.5), whose scores are the logits of p(z|x).

    scorer: over the passages of `index`. build: makes one over the passages of another index, for `swap`.
    """

    trainable = False

    def __init__(self, scorer: Any, index: Index, build: Callable[[PassageStore], Any] | None = None):
        super().__init__()
        self.scorer = scorer
        self.index = index
        self.build = build

    @classmethod
    def over(cls, build: Callable[[PassageStore], Any], index: str | Path) -> Self:
        """Build the scorer over the passages of an index folder, which needs no vectors. `build`: BM25.build, …"""
        opened = open_passages(index)
        return cls(build(opened.passages), opened, build)

    def check_fit(self, index: Index) -> None:
        """Any index fits, whoever made its vectors; UserError where the scorer cannot be made again."""
        if self.build is None:
            raise UserError("this retriever holds a ready-made scorer: give `build` to exchange its passages")

    def swap(self, index: Index) -> None:
        """Exchange the passages (hot-swap, section 4.5)."""
        self.check_fit(index)
        if index.passages.sha256 != self.index.passages.sha256:
            assert self.build is not None
            self.scorer = self.build(index.passages)
        self.index = index

    def trained_parts(self) -> list[TrainedPart]:
        return []

    def description(self) -> dict[str, Any]:
        if self.build is None:
            raise UserError(
                "this retriever holds a ready-made scorer: give `build` so that a run can be reopened"
            )
        return describe(type(self).over, build=describe_partial(self.build), index=INDEX)

    @property
    def kind(self) -> str:  # type: ignore[override]
        return type(self.scorer).__name__

    def identity(self) -> Any:
        return [self.scorer.settings, self.index.passages.sha256]

    def lexicon(self) -> Lexicon | None:
        return self.scorer if isinstance(self.scorer, Lexicon) else None

    def forward(self, questions: Questions, n_docs: int) -> Retrieved:
        scores, rows = self.scorer.search(questions.text, n_docs)
        return Retrieved(rows, torch.from_numpy(scores))
