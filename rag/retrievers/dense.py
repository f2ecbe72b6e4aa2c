"""Section 2.2: p_η(z|x), the top-K passages of a question and their scores.

A retriever answers a batch of questions with row numbers of passages and scores that are logits of p_η(z|x).
Dense retrieval searches the index with q(x) and then computes q(x)ᵀd(z) from the passages' true vectors, so
that the loss sees exact scores, whatever the index's compression, and the question encoder is trained through
them.

    p_η(z|x) = softmax over the K passages of s · q(x)ᵀd(z)

s is 1 for inner products, as in the paper, and a temperature for cosines (rag/retrievers/scale.py). The paper freezes
d(z); with a passage encoder here, it is trained as well (rag/retrievers/fresh.py).
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from rag import marginalize
from rag.encoders.opening import open_question_encoder
from rag.encoders.protocol import AnyQuestionEncoder, default_scale
from rag.encoders.settings import EncoderSettings
from rag.errors import UserError
from rag.fingerprints import fingerprint
from rag.index.folder import Index
from rag.index.tokens import unread_words
from rag.index.vectors import UNKNOWN
from rag.parts import TrainedPart, describe
from rag.retrievers.fresh import FreshPassages, Side, trained_sides
from rag.retrievers.null_document import NullDocument
from rag.retrievers.overfetch import check_overfetch
from rag.retrievers.protocol import Questions, Retrieved, Retriever, check_depth
from rag.retrievers.scale import Scale, checked, described, number_of, parts_of, value_of
from rag.runs import FOLDER, INDEX

log = logging.getLogger(__name__)


def open_pair(
    question_encoder: str | Path, index: str | Path, settings: EncoderSettings | None = None
) -> tuple[Any, Index]:
    """A question encoder and an index that fits it, from their folders; UserError where it does not."""
    opened, memory = open_question_encoder(question_encoder, settings), Index.open(Path(index))
    _check_fit(opened, memory, beside(question_encoder))
    return opened, memory


def beside(question_encoder: str | Path) -> Path | None:
    """Where the passage encoder is that was saved with a question encoder; None where there is none."""
    folder = Path(question_encoder).parent / "passage_encoder"
    return folder if folder.is_dir() else None


def _check_fit(
    question_encoder: AnyQuestionEncoder, index: Index, passage_encoder: Path | None = None
) -> None:
    """UserError unless an index's vectors are those of the question encoder's passage encoder, as far as is known.

    passage_encoder: where that one is, for the message.
    """
    if question_encoder.dim != index.dim:
        raise UserError(
            f"the index holds vectors of {index.dim} dimensions but the question encoder makes "
            f"{question_encoder.dim}: give the index that was built with this encoder's passage encoder"
        )
    index.check_reading(question_encoder.reading)
    if question_encoder.partner is not None:
        index.check_encoder(question_encoder.partner, passage_encoder)
        return
    made_by, as_passage_encoder = index.manifest.encoder, question_encoder.passage_fingerprint()
    if as_passage_encoder is not None and made_by.weights not in (as_passage_encoder, UNKNOWN):
        log.warning(
            "%s was embedded by %s, whose weights differ from the question encoder's: whether the two were trained "
            "together could not be checked",
            index.folder,
            made_by.name,
        )


class DenseRetriever(nn.Module, Retriever):
    """Maximum inner product search with a question encoder over an index of passage vectors.

    trainable: "query" or True trains the question encoder, "passage" the passage encoder, "both" both; False trains
    neither ("frozen" in Table 6). What is frozen costs no gradient.
    null_document: an empty passage that stands after the K of each question, row −1 with a score (appendix F). scale: s
    above, a number or learned; None: that which the question encoder was trained with here, else 1, or 20 where the
    vectors have unit length. passage_encoder: the one that made the index; where it is trained, p_η(z|x) is of vectors
    that it makes anew in each step. overfetch: L ≥ K passages are taken from the index, of which p_η(z|x)'s own vectors
    choose the K best; None: the index's K.
    """

    saved_beside: Path | None = None  # its passage encoder, where it was saved with the question encoder

    def __init__(
        self,
        question_encoder: AnyQuestionEncoder | Any,
        index: Index,
        trainable: bool | Side = True,
        null_document: NullDocument | None = None,
        scale: Scale | None = None,
        passage_encoder: FreshPassages | None = None,
        overfetch: int | None = None,
    ):
        super().__init__()
        _check_fit(question_encoder, index)
        self.question_encoder: Any = question_encoder
        self.index = index
        self.trainable, passages_trained = trained_sides(trainable)
        if passages_trained and passage_encoder is None:
            raise UserError(
                f"retriever.trainable={trainable} trains the passage encoder, and this retriever has none: take "
                "retriever=dense_trained, or retriever.trainable=true"
            )
        if passage_encoder is not None:
            passage_encoder.attach(question_encoder, index, (self.trainable, passages_trained))
        self.passage_encoder = passage_encoder
        self.fresh = (
            passage_encoder if passages_trained else None
        )  # what d(z) is made by, where not by the index
        check_overfetch(overfetch)
        self.overfetch = overfetch
        self.null_document = null_document
        if scale is None:
            known = question_encoder.scale
            scale = default_scale(question_encoder.reading) if known is None else known
        self.scale = checked(scale, "scale")
        self.question_encoder.requires_grad_(self.trainable)

    @classmethod
    def from_pretrained(
        cls,
        question_encoder: str | Path,
        index: str | Path,
        trainable: bool | Side = True,
        null_document: NullDocument | None = None,
        scale: Scale | None = None,
        encoder: EncoderSettings | None = None,
        passage_encoder: FreshPassages | None = None,
        overfetch: int | None = None,
    ) -> Self:
        """Load the question encoder from a folder or the hub and open the index folder. encoder: how it is read."""
        opened = open_pair(question_encoder, index, encoder)
        made = cls(*opened, trainable, null_document, scale, passage_encoder, overfetch)
        made.saved_beside = beside(question_encoder)
        return made

    def check_depth(self, n_docs: int, setting: str = "n_docs") -> None:
        super().check_depth(n_docs, setting)
        if self.overfetch is not None:
            check_overfetch(self.overfetch, n_docs, setting)
            check_depth(self.index, self.overfetch, "retriever.overfetch")

    def check_fit(self, index: Index) -> None:
        """UserError if the vectors are of another dimension or another passage encoder."""
        _check_fit(self.question_encoder, index, self.saved_beside)
        index.check_same_encoder(self.index)

    def take_edition(self, index: Index) -> None:
        """Search other vectors of the same passages, of a newer state of the passage encoder under training."""
        self.index = index

    def find(self, questions: Questions, n_docs: int) -> Int64[np.ndarray, "batch docs"]:
        with torch.no_grad():
            queries = self.encode(questions)
            if self.fresh is None and self.overfetch is None:
                return self.search(queries, n_docs)
            return self.retrieve(queries, n_docs).rows[:, :n_docs]

    def reads_whole(self, question: str) -> bool:
        tokens = self.question_encoder.tokenizer(question, verbose=False).input_ids
        return len(tokens) <= self.question_encoder.max_length

    def unread(self, words: Sequence[str]) -> list[str]:
        return unread_words(self.question_encoder.tokenizer, words)

    def identity(self) -> Any:
        return [self.question_encoder.fingerprint(), fingerprint(self.index.folder)]

    def trained_parts(self) -> list[TrainedPart]:
        parts = [
            TrainedPart("question_encoder", self.question_encoder, "retriever", self._save_question_encoder)
        ]
        if (null := self.null_document) is not None:
            file = "null_document.safetensors"
            parts.append(TrainedPart(file, null, "retriever", null.save_pretrained))
        if (passages := self.passage_encoder) is not None:
            encoder = passages.encoder
            parts.append(TrainedPart("passage_encoder", encoder, "passages", encoder.save_pretrained))
        return [*parts, *parts_of(self.scale, "scale")]

    def description(self) -> dict[str, Any]:
        """A trained passage encoder is not part of it: it has made an index of its own, and stands beside."""
        null = {} if self.null_document is None else {"null_document": self.null_document.description()}
        return describe(
            type(self).from_pretrained,
            question_encoder=f"{FOLDER}/question_encoder",
            index=INDEX,
            trainable=False,
            scale=described(self.scale),
            **null,
        )

    def _save_question_encoder(self, folder: Path) -> None:
        """With the name of the encoder whose vectors it was trained over in its config, so that it refuses others, and
        with its scale."""
        made_by = self.index.manifest.encoder.weights
        self.question_encoder.scale = number_of(self.scale)
        if self.fresh is not None:
            self.question_encoder.partner = self.fresh.encoder.fingerprint()
        elif self.question_encoder.partner is None and made_by != UNKNOWN:
            self.question_encoder.partner = made_by
        self.question_encoder.save_pretrained(folder)

    def prepare(self, questions: list[str]) -> Questions:
        return Questions(questions, self.question_encoder.tokenize(questions))

    def train(self, mode: bool = True) -> Self:
        super().train(mode and (self.trainable or self.fresh is not None))
        if not self.trainable:  # a frozen encoder has no dropout either
            self.question_encoder.eval()
        if self.passage_encoder is not None and self.fresh is None:
            self.passage_encoder.eval()
        return self

    def search(self, queries: Float[Tensor, "batch dim"], n_docs: int) -> Int64[np.ndarray, "batch docs"]:
        """The rows of the `n_docs` passages with the largest q(x)ᵀd(z); −1 where fewer were found."""
        return self.index.search(queries.detach().float().cpu().numpy(), n_docs)[1]

    def encode(self, questions: Questions) -> Float[Tensor, "batch dim"]:
        """q(x) in float32, with a gradient where the question encoder is trained."""
        with torch.set_grad_enabled(self.trainable and torch.is_grad_enabled()):
            return marginalize.at_least_float32(self.question_encoder(**questions.tokens))

    def forward(self, questions: Questions, n_docs: int) -> Retrieved:
        return self.retrieve(self.encode(questions), n_docs)

    def retrieve(self, queries: Float[Tensor, "batch dim"], n_docs: int) -> Retrieved:
        """The top `n_docs` passages for q(x), with scores that are differentiable in q(x), and in d(z) where that is
        trained."""
        rows = self.search(queries, max(n_docs, self.overfetch or 0))
        if rows.shape[1] > n_docs:
            rows = _best(rows, self.logits(queries.detach(), rows, gradient=False), n_docs)[0]
        scores = self.logits(queries, rows)
        if self.fresh is not None:  # the index's order is of older vectors
            rows, scores = _best(rows, scores, n_docs)
        return self.with_null_document(queries, rows, scores)

    def logits(
        self,
        queries: Float[Tensor, "batch dim"],
        rows: Int64[np.ndarray, "batch docs"],
        gradient: bool = True,
    ) -> Float[Tensor, "batch docs"]:
        """s · q(x)ᵀd(z) of given passages, −inf where a row is −1. gradient: of d(z), where that is trained."""
        if self.fresh is None:
            vectors = torch.from_numpy(self.index.vectors(rows)).to(queries)
        else:
            vectors = self.fresh(self.index.passages, rows, gradient)
        with marginalize.without_autocast(queries):
            scores = value_of(self.scale) * torch.einsum("bd,bkd->bk", queries, vectors)
        missed = torch.from_numpy(rows < 0).to(scores.device)
        # A q(x) of NaN finds nothing, and is no question that nothing was found for.
        return scores.masked_fill(missed & ~scores.isnan(), -torch.inf)

    def with_null_document(
        self,
        queries: Float[Tensor, "batch dim"],
        rows: Int64[np.ndarray, "batch docs"],
        scores: Float[Tensor, "batch docs"],
    ) -> Retrieved:
        """The passages found and, after them, the null document where there is one; its score is a logit already."""
        if self.null_document is not None:
            scores = torch.cat([scores, self.null_document(queries).unsqueeze(1)], dim=1)
            rows = np.pad(rows, ((0, 0), (0, 1)), constant_values=-1)
        return Retrieved(rows, scores)


def _best(
    rows: Int64[np.ndarray, "batch candidates"], scores: Float[Tensor, "batch candidates"], n_docs: int
) -> tuple[Int64[np.ndarray, "batch docs"], Float[Tensor, "batch docs"]]:
    """The `n_docs` candidates with the highest scores, best first."""
    order = scores.detach().argsort(dim=1, descending=True, stable=True)[:, :n_docs]
    return np.take_along_axis(rows, order.cpu().numpy(), axis=1), scores.gather(1, order)
