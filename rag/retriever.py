"""Section 2.2: p_η(z|x), the top-K passages of a question and their scores.

A retriever answers a batch of questions with row numbers of passages and scores that are logits of p_η(z|x).
Dense retrieval searches the index with q(x) and then computes q(x)ᵀd(z) from the passages' true vectors, so
that the loss sees exact scores, whatever the index's compression, and the question encoder is trained through
them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from rag import marginalize
from rag.encoders import QuestionEncoder
from rag.errors import UserError
from rag.index import Index
from rag.null_document import NullDocument
from rag.parts import TrainedPart, describe, describe_partial
from rag.passages import PassageStore
from rag.runs import FOLDER, INDEX, fingerprint
from rag.vectors import UNKNOWN


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

    def reads_whole(self, question: str) -> bool:
        """Whether nothing of a question so long is cut before passages are sought for it."""
        return True

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


def check_depth(index: Index, n_docs: int) -> None:
    """UserError unless K = `n_docs` passages can be retrieved from the index."""
    if not 1 <= n_docs <= len(index):
        raise UserError(
            f"K = {n_docs} passages cannot be retrieved from the {len(index):,} of {index.folder}: "
            f"give n_docs (and k_sweep) from 1 to {len(index):,}"
        )


def _check_fit(question_encoder: QuestionEncoder, index: Index) -> None:
    """UserError unless an index's vectors are those of the question encoder's passage encoder, as far as is known."""
    if question_encoder.dim != index.dim:
        raise UserError(
            f"the index holds vectors of {index.dim} dimensions but the question encoder makes "
            f"{question_encoder.dim}: give the index that was built with this encoder's passage encoder"
        )
    partner = getattr(question_encoder.model.config, "passage_encoder", None)
    if partner is not None:
        index.check_encoder(partner)


class DenseRetriever(nn.Module, Retriever):
    """Maximum inner product search with a question encoder over an index of passage vectors.

    trainable: False freezes the question encoder ("frozen" in Table 6) and spends nothing on its gradient.
    null_document: an empty passage that stands after the K of each question, row −1 with a score (appendix F).
    """

    def __init__(
        self,
        question_encoder: QuestionEncoder,
        index: Index,
        trainable: bool = True,
        null_document: NullDocument | None = None,
    ):
        super().__init__()
        _check_fit(question_encoder, index)
        self.question_encoder = question_encoder
        self.index = index
        self.trainable = trainable
        self.null_document = null_document
        self.question_encoder.requires_grad_(trainable)

    @classmethod
    def from_pretrained(
        cls,
        question_encoder: str | Path,
        index: str | Path,
        trainable: bool = True,
        null_document: NullDocument | None = None,
    ) -> Self:
        """Load the question encoder from a folder or the hub and open the index folder."""
        encoder = QuestionEncoder.from_pretrained(question_encoder)
        return cls(encoder, Index.open(Path(index)), trainable, null_document)

    def check_fit(self, index: Index) -> None:
        """UserError if the vectors are of another dimension or another passage encoder."""
        _check_fit(self.question_encoder, index)
        index.check_same_encoder(self.index)

    def find(self, questions: Questions, n_docs: int) -> Int64[np.ndarray, "batch docs"]:
        with torch.no_grad():
            return self.search(self.question_encoder(**questions.tokens).float(), n_docs)

    def reads_whole(self, question: str) -> bool:
        tokens = self.question_encoder.tokenizer(question, verbose=False).input_ids
        return len(tokens) <= self.question_encoder.max_length

    def identity(self) -> Any:
        return [self.question_encoder.fingerprint(), fingerprint(self.index.folder)]

    def trained_parts(self) -> list[TrainedPart]:
        parts = [
            TrainedPart("question_encoder", self.question_encoder, "retriever", self._save_question_encoder)
        ]
        if self.null_document is not None:
            parts.append(
                TrainedPart(
                    "null_document.safetensors",
                    self.null_document,
                    "retriever",
                    self.null_document.save_pretrained,
                )
            )
        return parts

    def description(self) -> dict[str, Any]:
        null = {} if self.null_document is None else {"null_document": self.null_document.description()}
        return describe(
            type(self).from_pretrained,
            question_encoder=f"{FOLDER}/question_encoder",
            index=INDEX,
            trainable=False,
            **null,
        )

    def _save_question_encoder(self, folder: Path) -> None:
        """With the name of the encoder whose vectors it was trained over in its config, so that it refuses others."""
        config, partner = self.question_encoder.model.config, self.index.manifest.encoder.weights
        if getattr(config, "passage_encoder", None) is None and partner != UNKNOWN:
            config.passage_encoder = partner
        self.question_encoder.save_pretrained(folder)

    def prepare(self, questions: list[str]) -> Questions:
        return Questions(questions, self.question_encoder.tokenize(questions))

    def train(self, mode: bool = True) -> Self:
        return super().train(mode and self.trainable)  # a frozen encoder has no dropout either

    def search(self, queries: Float[Tensor, "batch dim"], n_docs: int) -> Int64[np.ndarray, "batch docs"]:
        """The rows of the `n_docs` passages with the largest q(x)ᵀd(z); −1 where fewer were found."""
        return self.index.search(queries.detach().cpu().numpy(), n_docs)[1]

    def forward(self, questions: Questions, n_docs: int) -> Retrieved:
        with torch.set_grad_enabled(self.trainable and torch.is_grad_enabled()):
            queries = self.question_encoder(**questions.tokens).float()
        return self.retrieve(queries, n_docs)

    def retrieve(self, queries: Float[Tensor, "batch dim"], n_docs: int) -> Retrieved:
        """The top `n_docs` passages for q(x), with scores that are differentiable in q(x)."""
        rows = self.search(queries, n_docs)
        vectors = torch.from_numpy(self.index.vectors(rows)).to(queries.device)
        with marginalize.without_autocast(queries):
            scores = torch.einsum("bd,bkd->bk", queries, vectors)
        missed = torch.from_numpy(rows < 0).to(scores.device)
        # A q(x) of NaN finds nothing, and is no question that nothing was found for.
        scores = scores.masked_fill(missed & ~scores.isnan(), -torch.inf)
        if self.null_document is not None:
            scores = torch.cat([scores, self.null_document(queries).unsqueeze(1)], dim=1)
            rows = np.pad(rows, ((0, 0), (0, 1)), constant_values=-1)
        return Retrieved(rows, scores)


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
        """Build the scorer over the passages of an index folder. `build` is BM25.build or another of rag/lexical.py."""
        opened = Index.open(Path(index))
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

    def forward(self, questions: Questions, n_docs: int) -> Retrieved:
        scores, rows = self.scorer.search(questions.text, n_docs)
        return Retrieved(rows, torch.from_numpy(scores))
