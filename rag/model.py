"""Section 2: retriever + generator + marginal = RAG-Sequence and RAG-Token, and the closed-book baseline.

question ──retriever──▶ K passages, log p_η(z|x) ──┐
   └──────── generator("title / text // question") ──▶ log p_θ(y_i|x,z,y_<i) ──▶ marginal ──▶ log p(y|x)
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from rag import checkpoint, marginalize
from rag.encoders.dpr import QuestionEncoder
from rag.encoders.opening import open_question_encoder
from rag.errors import UserError
from rag.generators.attention import ScoresContexts
from rag.generators.causal import CausalGenerator
from rag.generators.context import Ragged
from rag.generators.seq2seq import Generator
from rag.index.folder import Index
from rag.parts import TrainedPart, describe
from rag.retrievers.dense import DenseRetriever
from rag.retrievers.protocol import Questions, Retrieved, Retriever
from rag.runs import N_DOCS

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """B questions and, in training, their targets: everything that can be made before the model runs."""

    questions: Questions
    generator_questions: Ragged  # the generator's tokens of " // question"
    labels: Int[Tensor, "batch tokens"] | None = None
    label_mask: Bool[Tensor, "batch tokens"] | None = None
    texts: tuple[str, ...] | None = None  # passages that were given with the questions, where some were

    def __len__(self) -> int:
        return len(self.questions)

    def to(self, device: torch.device | str) -> "Batch":
        labels, mask = self.labels, self.label_mask
        return Batch(
            self.questions.to(device),
            self.generator_questions,
            None if labels is None else labels.to(device, non_blocking=True),
            None if mask is None else mask.to(device, non_blocking=True),
            self.texts,
        )


@dataclass(frozen=True)
class Contexts:
    """What the generator reads for B questions × K passages, row b·K + k, encoded once."""

    states: Shaped[Tensor, "rows ..."]  # what the generator's `encode` made of each
    mask: Bool[Tensor, "rows length"]
    doc_logprobs: Float[Tensor, "batch docs"]
    retrieved: Retrieved | None  # None: closed book
    texts: tuple[str, ...] | None = None  # passages that were given, not retrieved: one for each question

    @property
    def n_docs(self) -> int:
        return self.doc_logprobs.shape[1]

    def first(self, n_docs: int) -> "Contexts":
        """The best `n_docs` passages alone, their log p_η(z|x) as if no others had been retrieved.

        Raises UserError where there are fewer.
        """
        if not 1 <= n_docs <= self.n_docs:
            raise UserError(f"{n_docs} passages asked for, {self.n_docs} were read: read as many as the most")
        if n_docs == self.n_docs:
            return self
        retrieved = self.retrieved
        return Contexts(
            self.states.unflatten(0, (-1, self.n_docs))[:, :n_docs].flatten(0, 1),
            self.mask.unflatten(0, (-1, self.n_docs))[:, :n_docs].flatten(0, 1),
            marginalize.doc_logprobs(self.doc_logprobs[:, :n_docs]),
            None
            if retrieved is None
            else Retrieved(retrieved.rows[:, :n_docs], retrieved.scores[:, :n_docs]),
        )


@dataclass(frozen=True)
class Likelihood:
    """log p(y|x) of a batch and its parts, in nats."""

    logprob: Float[Tensor, " batch"]
    smoothing: Float[Tensor, " batch"] | None  # the uniform half of label smoothing, where asked for
    token_logprobs: Float[Tensor, "batch docs tokens"]
    doc_logprobs: Float[Tensor, "batch docs"]
    retrieved: Retrieved | None
    attention: Float[Tensor, "batch docs"] | None = None  # to each passage, where asked for; a constant


class RagModel(nn.Module):
    """What RAG-Sequence and RAG-Token share; they differ in `marginal` alone."""

    retriever: Any
    architecture: ClassVar[str]  # transformers' class for the same model
    title: ClassVar[str] = "RAG"  # the model's name where answers are shown

    def __init__(self, retriever: Retriever, generator: Generator, n_docs: int = 5):
        super().__init__()
        self.retriever = retriever
        self.generator = generator
        self.n_docs = n_docs
        self._warned = False

    # -- parts ---------------------------------------------------------------------------------

    def trained_parts(self) -> list[TrainedPart]:
        return [*self.generator.trained_parts(), *self.retriever.trained_parts()]

    def description(self) -> dict[str, Any]:
        return describe(
            type(self),
            retriever=self.retriever.description(),
            generator=self.generator.description(),
            n_docs=N_DOCS,
        )

    # -- checkpoints --------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        index: Index | str | Path | None = None,
        n_docs: int | None = None,
        trainable: bool = True,
        retriever: Retriever | None = None,
        **generator: Any,
    ) -> Self:
        """Load a folder or hub id in the format of facebook/rag-token-nq and rag-sequence-nq, over an index.

        n_docs: K; None: the checkpoint's. trainable: False freezes the question encoder. retriever: finds passages in
        place of the checkpoint's question encoder and `index`. generator: settings of the Generator that go before the
        checkpoint's, such as max_target_length.

        Raises UserError where there is no such checkpoint, its weights are not all there, or the index does not
        fit. A checkpoint of the other model is loaded with a warning.
        """
        saved = checkpoint.load(path, **generator)
        if saved.architecture not in ("", cls.architecture):
            log.warning("%s was trained as %s and is used as %s", path, saved.architecture, cls.architecture)
        if retriever is None:
            if index is None:
                raise UserError(f"{path} searches an index: give index, or another retriever")
            retriever = DenseRetriever(saved.question_encoder, _opened(index), trainable)
        return cls(retriever, saved.generator, saved.n_docs if n_docs is None else n_docs)

    @classmethod
    def from_parts(
        cls,
        question_encoder: str | Path,
        generator: str | Path,
        index: Index | str | Path,
        n_docs: int = 5,
        trainable: bool = True,
        **settings: Any,
    ) -> Self:
        """Assemble a model that was not fine-tuned yet, as facebook/dpr-question_encoder-single-nq-base and
        facebook/bart-large. `settings` are the Generator's."""
        encoder = open_question_encoder(question_encoder)
        retriever = DenseRetriever(encoder, _opened(index), trainable)
        return cls(retriever, Generator.from_pretrained(generator, **settings), n_docs)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the question encoder and the generator in the format `from_pretrained` and transformers read."""
        checkpoint.save(self._checkpoint(), folder)

    def push_to_hub(self, name: str, private: bool = False) -> str:
        """Upload what `save_pretrained` writes as `name` ("user/model") and return its address."""
        return checkpoint.push(self._checkpoint(), name, private)

    def _checkpoint(self) -> checkpoint.Checkpoint:
        parts = {part.file: part.module for part in self.trained_parts() if part.module is not self.generator}
        encoder = parts.pop("question_encoder", None)
        if isinstance(self.generator, CausalGenerator):
            raise UserError(
                "this format holds an encoder–decoder as generator: save a causal one alone (generator.save_pretrained)"
            )
        if encoder is None:
            raise UserError(
                "a model without a question encoder does not fit this format: generator.save_pretrained saves the rest"
            )
        if not isinstance(encoder, QuestionEncoder) or self.retriever.description().get("scale", 1.0) != 1.0:
            raise UserError(
                "this format holds DPR's question encoder alone, and inner products without a scale: save the question "
                "encoder and the generator apart, each with its own save_pretrained"
            )
        if parts:
            raise UserError(
                f"{', '.join(parts)} of the retriever does not fit this format: save the parts alone, each with its "
                "own save_pretrained"
            )
        return checkpoint.Checkpoint(encoder, self.generator, self.n_docs, self.architecture)

    # -- the likelihood -----------------------------------------------------------------------

    @staticmethod
    def marginal(
        doc_logprobs: Float[Tensor, "batch docs"],
        token_logprobs: Float[Tensor, "batch docs tokens"],
        token_mask: Bool[Tensor, "batch tokens"],
    ) -> Float[Tensor, " batch"]:
        """log p(y|x) from log p_η(z|x) and log p_θ(y_i|x,z,y_<i)."""
        raise NotImplementedError

    def prepare(self, questions: Sequence[str], targets: Sequence[str] | None = None) -> Batch:
        """Tokenise a batch; runs in the data loader. Raises UserError for no questions or an empty one."""
        text = _checked(questions, targets)
        labels, mask = (None, None) if targets is None else self.generator.tokenize_targets(targets)
        return Batch(self.retriever.prepare(text), self.generator.tokenize_questions(text), labels, mask)

    def read(self, batch: Batch, n_docs: int | None = None) -> Contexts:
        """Retrieve `n_docs` passages for each question and encode all contexts.

        Where fewer are found, the rest are misses: −inf in `doc_logprobs`, and one warning.
        """
        n_docs = self.n_docs if n_docs is None else n_docs
        if n_docs < 1:
            raise UserError(f"n_docs is {n_docs}: at least one passage must be retrieved")
        retrieved = self.retriever(batch.questions, n_docs)
        if not self._warned and (retrieved.rows < 0).any() and retrieved.scores.isneginf().any():
            self._warned = True
            fewest = int(retrieved.scores.isfinite().sum(dim=1).min())
            log.warning(
                "only %d of n_docs = %d passages were found for a question: the rest count as impossible",
                fewest,
                n_docs,
            )
        return self.read_retrieved(batch, retrieved)

    def read_retrieved(self, batch: Batch, retrieved: Retrieved) -> Contexts:
        """Encode the contexts of passages that were already retrieved."""
        generator = self.generator
        tokens = self.retriever.index.tokens(generator.tokenizer, generator.title_separator, generator.prefix)
        passages = Ragged(*tokens.gather(retrieved.rows.reshape(-1)))
        questions = batch.generator_questions.repeat(retrieved.rows.shape[1])
        ids, mask = generator.assemble(questions, passages)
        device = generator.model.device
        mask = mask.to(device, non_blocking=True)
        states = generator.encode(ids.to(device, non_blocking=True), mask)
        return Contexts(states, mask, retrieved.doc_logprobs.to(device), retrieved)

    def check_attention(self) -> None:
        """UserError where `want_attention` of `forward` asks for what the generator does not offer."""
        if not isinstance(self.generator, ScoresContexts):
            raise UserError(
                f"retriever_loss=adist distils the generator's attention, which a {type(self.generator).__name__} does "
                "not show: take retriever_loss=pdist, emdr2, loop or replug"
            )
        self.generator.check_context_scores()

    def forward(
        self,
        batch: Batch,
        n_docs: int | None = None,
        want_smoothing: bool = False,
        want_attention: bool = False,
    ) -> Likelihood:
        """log p(y|x) of the batch's targets, marginalised over `n_docs` retrieved passages.

        Labels below zero, such as the usual −100, count as padding. Raises UserError without targets.
        """
        if batch.labels is None or batch.label_mask is None:
            raise UserError("this batch has no targets, so there is no log p(y|x): give them to `prepare`")
        mask = batch.label_mask & (batch.labels >= 0)
        labels = batch.labels.masked_fill(~mask, self.generator.pad_token)
        contexts = self.read(batch, n_docs)
        docs = contexts.n_docs
        given = 0 if self.generator.first_token is None else 1  # tokens that are read but not scored
        if given:
            labels = torch.nn.functional.pad(labels, (1, 0), value=self.generator.first_token)
        tokens, means = self.generator.token_logprobs(
            contexts.states, contexts.mask, labels.repeat_interleave(docs, dim=0), want_smoothing
        )
        tokens = tokens[:, given:].unflatten(0, (-1, docs))
        smoothing = None
        if means is not None:
            means = means[:, given:].unflatten(0, (-1, docs))
            smoothing = marginalize.smoothing_loss(contexts.doc_logprobs, means, mask)
        attention = None
        if want_attention:
            asked = torch.nn.functional.pad(mask, (given, 0), value=False)
            rows = (each.repeat_interleave(docs, dim=0) for each in (labels, asked))
            scores = self.generator.context_scores(contexts.states, contexts.mask, *rows)
            attention = scores.unflatten(0, (-1, docs))
        logprob = self.marginal(contexts.doc_logprobs, tokens, mask)
        return Likelihood(logprob, smoothing, tokens, contexts.doc_logprobs, contexts.retrieved, attention)


class RagSequence(RagModel):
    """One passage explains the whole answer: p(y|x) ≈ Σ_z p_η(z|x) Π_i p_θ(y_i|x,z,y_<i)."""

    architecture = "RagSequenceForGeneration"
    title = "RAG-Sequence"
    marginal = staticmethod(marginalize.sequence_logprob)


class RagToken(RagModel):
    """Each token may come from another passage: p(y|x) ≈ Π_i Σ_z p_η(z|x) p_θ(y_i|x,z,y_<i)."""

    architecture = "RagTokenForGeneration"
    title = "RAG-Token"
    marginal = staticmethod(marginalize.token_logprob)


class ClosedBook(RagModel):
    """The generator without retrieval (BART in Tables 1 and 2): the question is all it reads."""

    title = "closed book"
    marginal = staticmethod(marginalize.token_logprob)

    def __init__(self, generator: Generator):
        nn.Module.__init__(self)
        self.retriever = None
        self.generator = generator
        self.n_docs = 1

    def trained_parts(self) -> list[TrainedPart]:
        return self.generator.trained_parts()

    def description(self) -> dict[str, Any]:
        return describe(type(self), generator=self.generator.description())

    def prepare(self, questions: Sequence[str], targets: Sequence[str] | None = None) -> Batch:
        text = _checked(questions, targets)
        labels, mask = (None, None) if targets is None else self.generator.tokenize_targets(targets)
        generator_questions = self.generator.tokenize_questions(text, separator=False)
        return Batch(Questions(text, {}), generator_questions, labels, mask)

    def read(self, batch: Batch, n_docs: int | None = None) -> Contexts:
        ids, mask = self.generator.assemble(batch.generator_questions)
        device = self.generator.model.device
        mask = mask.to(device)
        states = self.generator.encode(ids.to(device), mask)
        certain = torch.zeros(len(batch), 1, dtype=self.generator.model.dtype, device=device)
        return Contexts(states, mask, certain, None, batch.texts)


def _opened(index: Index | str | Path) -> Index:
    return index if isinstance(index, Index) else Index.open(Path(index))


def _checked(questions: Sequence[str], targets: Sequence[str] | None) -> list[str]:
    if not questions:
        raise UserError("an empty batch: give at least one question")
    if targets is not None and len(targets) != len(questions):
        raise UserError(f"{len(questions)} questions but {len(targets)} targets: give one target a question")
    for number, question in enumerate(questions):
        if not question.strip():
            raise UserError(f"question {number + 1} of {len(questions)} in the batch is empty: drop it")
    return list(questions)
