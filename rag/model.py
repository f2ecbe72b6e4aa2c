"""Section 2: retriever + generator + marginal = RAG-Sequence and RAG-Token, and the closed-book baseline.

    question ──retriever──▶ K passages, log p_η(z|x) ──┐
       └──────── generator("title / text // question") ──▶ log p_θ(y_i|x,z,y_<i) ──▶ marginal ──▶ log p(y|x)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rag import marginalize
from rag.generator import Generator, Ragged
from rag.retriever import Questions, Retrieved, Retriever


@dataclass(frozen=True)
class Batch:
    """B questions and, in training, their targets: everything that can be made before the model runs."""

    questions: Questions
    generator_questions: Ragged  # the generator's tokens of " // question"
    labels: Int[Tensor, "batch tokens"] | None = None
    label_mask: Bool[Tensor, "batch tokens"] | None = None

    def __len__(self) -> int:
        return len(self.questions)

    def to(self, device: torch.device | str) -> "Batch":
        labels, mask = self.labels, self.label_mask
        return Batch(
            self.questions.to(device),
            self.generator_questions,
            None if labels is None else labels.to(device, non_blocking=True),
            None if mask is None else mask.to(device, non_blocking=True),
        )


@dataclass(frozen=True)
class Contexts:
    """What the generator reads for B questions × K passages, row b·K + k, encoded once."""

    states: Float[Tensor, "rows length width"]
    mask: Bool[Tensor, "rows length"]
    doc_logprobs: Float[Tensor, "batch docs"]
    retrieved: Retrieved | None  # None: closed book

    @property
    def n_docs(self) -> int:
        return self.doc_logprobs.shape[1]


@dataclass(frozen=True)
class Likelihood:
    """log p(y|x) of a batch and its parts, in nats."""

    logprob: Float[Tensor, " batch"]
    smoothing: Float[Tensor, " batch"] | None  # the uniform half of label smoothing, where asked for
    token_logprobs: Float[Tensor, "batch docs tokens"]
    doc_logprobs: Float[Tensor, "batch docs"]
    retrieved: Retrieved | None


class RagModel(nn.Module):
    """What RAG-Sequence and RAG-Token share; they differ in `marginal` alone."""

    retriever: Any

    def __init__(self, retriever: Retriever, generator: Generator, n_docs: int = 5):
        super().__init__()
        self.retriever = retriever
        self.generator = generator
        self.n_docs = n_docs

    @staticmethod
    def marginal(
        doc_logprobs: Float[Tensor, "batch docs"],
        token_logprobs: Float[Tensor, "batch docs tokens"],
        token_mask: Bool[Tensor, "batch tokens"],
    ) -> Float[Tensor, " batch"]:
        """log p(y|x) from log p_η(z|x) and log p_θ(y_i|x,z,y_<i)."""
        raise NotImplementedError

    def prepare(self, questions: Sequence[str], targets: Sequence[str] | None = None) -> Batch:
        """Tokenise a batch; runs in the data loader."""
        text = list(questions)
        labels, mask = (None, None) if targets is None else self.generator.tokenize_targets(targets)
        return Batch(self.retriever.prepare(text), self.generator.tokenize_questions(text), labels, mask)

    def read(self, batch: Batch, n_docs: int | None = None) -> Contexts:
        """Retrieve `n_docs` passages for each question and encode all contexts."""
        retrieved = self.retriever(batch.questions, n_docs or self.n_docs)
        return self.read_retrieved(batch, retrieved)

    def read_retrieved(self, batch: Batch, retrieved: Retrieved) -> Contexts:
        """Encode the contexts of passages that were already retrieved."""
        tokens = self.retriever.index.tokens(self.generator.tokenizer)
        passages = Ragged(*tokens.gather(retrieved.rows.reshape(-1)))
        questions = batch.generator_questions.repeat(retrieved.rows.shape[1])
        ids, mask = self.generator.assemble(questions, passages)
        device = self.generator.model.device
        mask = mask.to(device, non_blocking=True)
        states = self.generator.encode(ids.to(device, non_blocking=True), mask)
        return Contexts(states, mask, retrieved.doc_logprobs.to(device), retrieved)

    def forward(self, batch: Batch, n_docs: int | None = None, want_smoothing: bool = False) -> Likelihood:
        """log p(y|x) of the batch's targets, marginalised over `n_docs` retrieved passages."""
        assert batch.labels is not None and batch.label_mask is not None
        contexts = self.read(batch, n_docs)
        docs = contexts.n_docs
        tokens, means = self.generator.token_logprobs(
            contexts.states, contexts.mask, batch.labels.repeat_interleave(docs, dim=0), want_smoothing
        )
        tokens = tokens.unflatten(0, (-1, docs))
        smoothing = None
        if means is not None:
            smoothing = marginalize.smoothing_loss(
                contexts.doc_logprobs, means.unflatten(0, (-1, docs)), batch.label_mask
            )
        logprob = self.marginal(contexts.doc_logprobs, tokens, batch.label_mask)
        return Likelihood(logprob, smoothing, tokens, contexts.doc_logprobs, contexts.retrieved)


class RagSequence(RagModel):
    """One passage explains the whole answer: p(y|x) ≈ Σ_z p_η(z|x) Π_i p_θ(y_i|x,z,y_<i)."""

    marginal = staticmethod(marginalize.sequence_logprob)


class RagToken(RagModel):
    """Each token may come from another passage: p(y|x) ≈ Π_i Σ_z p_η(z|x) p_θ(y_i|x,z,y_<i)."""

    marginal = staticmethod(marginalize.token_logprob)


class ClosedBook(RagModel):
    """The generator without retrieval (BART in Tables 1 and 2): the question is all it reads."""

    marginal = staticmethod(marginalize.token_logprob)

    def __init__(self, generator: Generator):
        nn.Module.__init__(self)
        self.retriever = None
        self.generator = generator
        self.n_docs = 1

    def prepare(self, questions: Sequence[str], targets: Sequence[str] | None = None) -> Batch:
        text = list(questions)
        labels, mask = (None, None) if targets is None else self.generator.tokenize_targets(targets)
        own = self.generator.tokenize_questions(text, separator=False)
        return Batch(Questions(text, {}), own, labels, mask)

    def read(self, batch: Batch, n_docs: int | None = None) -> Contexts:
        ids, mask = self.generator.assemble(batch.generator_questions)
        device = self.generator.model.device
        mask = mask.to(device)
        states = self.generator.encode(ids.to(device), mask)
        return Contexts(states, mask, states.new_zeros(len(batch), 1), None)
