"""Section 2.2: what a model needs of a retriever: row numbers of passages and scores, the logits of p_η(z|x)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from rag import marginalize
from rag.errors import UserError
from rag.index.folder import Index
from rag.parts import TrainedPart


@dataclass(frozen=True)
class Questions:
    """A batch of B questions: the text and, for dense retrieval, the question encoder's tokens."""

    text: list[str]
    tokens: dict[str, Tensor]

    def to(self, device: torch.device | str) -> "Questions":
        return Questions(self.text, {k: v.to(device, non_blocking=True) for k, v in self.tokens.items()})

    def __len__(self) -> int:
        return len(self.text)


@dataclass(frozen=True)
class Retrieved:
    """The K passages of each of B questions: rows of the passage store and scores, the logits of p_η(z|x).

    Row −1 is no passage: with a score of −inf one that was not found, with another the null document.
    """

    rows: Int64[np.ndarray, "batch docs"]
    scores: Float[Tensor, "batch docs"]

    @property
    def doc_logprobs(self) -> Float[Tensor, "batch docs"]:
        """log p_η(z|x), differentiable where the retriever is trained."""
        return marginalize.doc_logprobs(self.scores)


@runtime_checkable
class Lexicon(Protocol):
    """What is known of the words of the passages."""

    @property
    def passages(self) -> int:
        """N, the number of passages."""
        ...

    def analyze(self, text: str) -> list[str]:
        """The terms of a text, in order; none for words that say nothing, such as stop words."""
        ...

    def passages_with(self, term: str) -> int:
        """How many passages hold a term of `analyze`."""
        ...


@runtime_checkable
class Retriever(Protocol):
    """What a model needs of a retriever. One that is written elsewhere derives from it, as from nn.Module, and gives
    `__call__` and `description`; the rest has defaults here, for a retriever without a question encoder.

    index: the passages. kind: what finds them, where it is not the index's FAISS file.
    """

    index: Index
    kind: str | None = None

    def prepare(self, questions: list[str]) -> Questions:
        """Tokenise; runs in the data loader."""
        return Questions(questions, {})

    def __call__(self, questions: Questions, n_docs: int) -> Retrieved:
        """The top `n_docs` passages of each question, best first."""
        ...

    def find(self, questions: Questions, n_docs: int) -> Int64[np.ndarray, "batch docs"]:
        """The rows alone of the passages that a call gives, without gradient; −1 where fewer were found."""
        with torch.no_grad():
            return self(questions, n_docs).rows[:, :n_docs]

    def check_depth(self, n_docs: int, setting: str = "n_docs") -> None:
        """UserError, which names the setting to change, for a K that it cannot be asked for."""
        check_depth(self.index, n_docs, setting)

    def reads_whole(self, question: str) -> bool:
        """Whether nothing of a question so long is cut before passages are sought for it."""
        return True

    def lexicon(self) -> Lexicon | None:
        """The words of the passages, where it searches by them."""
        return None

    def unread(self, words: Sequence[str]) -> list[str]:
        """Those of the words that its question encoder has no token for."""
        return []

    def identity(self) -> Any:
        """What decides which passages are found, as plain containers; prepared training targets are known by it."""
        return [self.description(), self.index.passages.sha256]

    def check_fit(self, index: Index) -> None:
        """UserError where `swap` could not exchange the passages for those of this index."""

    def swap(self, index: Index) -> None:
        """Exchange the passages (hot-swap). Raises UserError, and keeps the old ones, if the index does not fit."""
        self.check_fit(index)
        self.index = index

    def trained_parts(self) -> Sequence[TrainedPart]:
        """Its modules with weights (rag/parts.py); none for one that learns nothing."""
        return []

    def description(self) -> dict[str, Any]:
        """How it is made again over `runs.INDEX`, from what its parts left in `runs.FOLDER`."""
        ...


def check_depth(index: Index, n_docs: int, setting: str = "n_docs") -> None:
    """UserError, which names the setting to change, unless K = `n_docs` passages can be retrieved from the index."""
    if not 1 <= n_docs <= len(index):
        raise UserError(
            f"K = {n_docs} passages cannot be retrieved from the {len(index):,} of {index.folder}: "
            f"give {setting} from 1 to {len(index):,}"
        )
