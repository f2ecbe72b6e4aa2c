"""Ours and transformers.models.rag over the same weights, passages, questions and answers: what the benchmarks call.

The reference is run as it should be: RAG-Sequence with the attention mask that it forgets (docs/differences.md),
contexts padded to `max_combined_length` as its own retriever pads them, retrieval once a question.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks import world
from rag.decoding.generation import generate
from rag.decoding.settings import Decoding
from rag.encoders.dpr import QuestionEncoder
from rag.generators.context import Ragged
from rag.index.passage import Passage
from rag.model import RagSequence, RagToken
from rag.products import QuickLinear
from rag.retrievers.dense import DenseRetriever
from rag.retrievers.exact import ExactRetriever

RTOL = 1e-4
GENERATED = 16  # tokens an answer


def as_published(model: Any) -> Any:
    """The same model, with the same parameters, multiplying as transformers and torch have it (rag/products.py)."""
    same = {id(parameter): parameter for parameter in model.parameters()}
    published = copy.deepcopy(model, same)
    for module in published.modules():
        if type(module) is QuickLinear:
            module.__class__ = torch.nn.Linear  # type: ignore[assignment]
    return published


class Side:
    """Both implementations over the same weights, passages, questions and answers, on one device.

    with_faiss: passages are searched for by FAISS on both sides. Otherwise exactly, with torch, on ours, and the
    reference is handed what ours found, contexts and scores, as it may be: FAISS and datasets are not needed then.
    """

    def __init__(
        self,
        size: world.Size,
        docs: int,
        questions: int,
        passages: int,
        folder: Path,
        device: str = "cpu",
        with_faiss: bool = True,
    ):
        self.size, self.docs, self.device, self.with_faiss = size, docs, device, with_faiss
        text = world.Text()
        self.passages = text.passages(passages)
        self.questions = text.questions(questions)
        self.answers = text.answers(questions)
        corpus = [f"{title} / {body} //" for title, body in self.passages] + self.questions + self.answers
        self.generator = world.generator(size, world.generator_tokenizer(corpus)).to(device)
        encoder = QuestionEncoder(world.question_encoder(size), world.question_tokenizer(corpus)).to(device)
        rows = [Passage(str(row), *passage) for row, passage in enumerate(self.passages)]
        self.index = world.index(rows, encoder.dim, folder, with_faiss)
        self.index.tokens(self.generator.tokenizer, show_progress=False)
        kind = DenseRetriever if with_faiss else ExactRetriever
        self.retriever = kind(encoder, self.index)

    def with_docs(self, docs: int) -> "Side":
        """The same with another number of passages a question."""
        other = copy.copy(self)
        other.docs = docs
        for name in ("their_config", "their_retriever"):
            other.__dict__.pop(name, None)
        return other

    # -- ours -------------------------------------------------------------------------------------

    def model(self, kind: type) -> Any:
        return kind(self.retriever, self.generator, n_docs=self.docs).eval()

    # -- theirs -----------------------------------------------------------------------------------

    @cached_property
    def their_config(self) -> Any:
        return transformers.RagConfig.from_question_encoder_generator_configs(
            self.retriever.question_encoder.model.config,
            self.generator.model.config,
            n_docs=self.docs,
            retrieval_vector_size=self.retriever.question_encoder.dim,
            max_combined_length=self.generator.max_context_length,
        )

    @cached_property
    def their_encoder(self) -> Any:
        return as_published(self.retriever.question_encoder.model)

    @cached_property
    def their_generator(self) -> Any:
        return as_published(self.generator.model)

    @cached_property
    def their_retriever(self) -> Any:
        import datasets
        import faiss
        from transformers.models.rag.retrieval_rag import CustomHFIndex

        datasets.disable_progress_bars()
        columns = {
            "title": [title for title, _ in self.passages],
            "text": [body for _, body in self.passages],
            "embeddings": list(self.index.vectors(np.arange(len(self.passages)))),
        }
        dataset = datasets.Dataset.from_dict(columns)
        dataset.add_faiss_index("embeddings", metric_type=faiss.METRIC_INNER_PRODUCT)
        index = CustomHFIndex(self.index.dim, dataset)
        tokenizers = self.retriever.question_encoder.tokenizer, self.generator.tokenizer
        return transformers.RagRetriever(self.their_config, *tokenizers, index=index)

    def their_model(self, kind: type) -> Any:
        return kind(
            config=self.their_config,
            question_encoder=self.their_encoder,
            generator=self.their_generator,
            retriever=self.their_retriever if self.with_faiss else None,
        ).eval()

    def their_labels(self, answers: list[str]) -> torch.Tensor:
        labels, mask = self.generator.tokenize_targets(answers)
        labels = labels.masked_fill(~mask, self.generator.pad_token)
        return torch.nn.functional.pad(labels, (1, 0), value=self.generator.start_token).to(self.device)

    def their_contexts(self, questions: list[str]) -> "TheirContexts":
        """What the reference's own retriever gives it for these questions, scores left out."""
        encoder = self.retriever.question_encoder
        tokens = {name: each.to(self.device) for name, each in encoder.tokenize(questions).items()}
        with torch.no_grad():
            queries = encoder(**tokens).float()
            if self.with_faiss:
                retrieved = self.their_retriever(
                    tokens["input_ids"], queries.numpy(), n_docs=self.docs, return_tensors="pt"
                )
                ids, mask = retrieved["context_input_ids"], retrieved["context_attention_mask"]
                return TheirContexts(tokens, ids, mask, retrieved["retrieved_doc_embeds"].float())
            rows = self.retriever.search(queries, self.docs)
        generator = self.generator
        passages = Ragged(*self.index.tokens(generator.tokenizer).gather(rows.reshape(-1)))
        ids, mask = generator.assemble(generator.tokenize_questions(questions).repeat(self.docs), passages)
        short = generator.max_context_length - ids.shape[1]
        ids = torch.nn.functional.pad(ids, (0, short), value=generator.pad_token).to(self.device)
        mask = torch.nn.functional.pad(mask.long(), (0, short)).to(self.device)
        return TheirContexts(tokens, ids, mask, torch.from_numpy(self.index.vectors(rows)).to(self.device))

    @property
    def weights(self) -> list[torch.nn.Parameter]:
        return [*self.generator.parameters(), *self.retriever.parameters()]


@dataclass(frozen=True)
class TheirContexts:
    """Contexts of B questions × K passages, padded to `max_combined_length`, and the passages' vectors."""

    questions: dict[str, torch.Tensor]
    ids: torch.Tensor
    mask: torch.Tensor
    vectors: torch.Tensor

    def scores(self, encoder: Any) -> torch.Tensor:
        """q(x)ᵀd(z), differentiable, as the reference computes it."""
        queries = encoder(**self.questions).pooler_output
        with torch.autocast(queries.device.type, enabled=False):
            return torch.einsum("bd,bkd->bk", queries.float(), self.vectors)


class Train:
    """Forward and backward of one training step."""

    def __init__(self, side: Side, ours: type, theirs: type):
        self.side, self.our_kind, self.their_kind = side, ours, theirs

    def ours(self) -> Callable[[], Any]:
        model = self.side.model(self.our_kind)
        batch = model.prepare(self.side.questions, self.side.answers).to(self.side.device)

        def step() -> torch.Tensor:
            model.zero_grad()
            losses = -model(batch).logprob
            losses.sum().backward()
            return losses.detach()

        return step

    def theirs(self) -> Callable[[], Any]:
        side = self.side
        model = side.their_model(self.their_kind)
        labels = side.their_labels(side.answers)
        if side.with_faiss:
            given = side.retriever.question_encoder.tokenize(side.questions)

            def loss() -> torch.Tensor:
                return model(**given, labels=labels).loss
        else:
            contexts = side.their_contexts(side.questions)

            def loss() -> torch.Tensor:
                return their_loss(model, contexts, labels)

        def step() -> torch.Tensor:
            model.zero_grad()
            losses = loss()
            losses.sum().backward()
            return losses.detach()

        return step

    def result(self, losses: torch.Tensor) -> Any:
        gradients = [None if w.grad is None else w.grad.clone() for w in self.side.weights]
        return losses, gradients

    def equal(self, ours: Any, theirs: Any) -> bool:
        """Losses, and the gradient as a whole: |ours − theirs| / |theirs|."""
        if not torch.allclose(ours[0], theirs[0], rtol=RTOL, atol=0):
            return False
        difference = of_theirs = 0.0
        for mine, other in zip(ours[1], theirs[1], strict=True):
            if (mine is None) != (other is None):
                return False
            if mine is not None:
                difference += float((mine - other).square().sum())
                of_theirs += float(other.square().sum())
        return difference**0.5 <= RTOL * of_theirs**0.5


def their_loss(model: Any, contexts: TheirContexts, labels: torch.Tensor) -> torch.Tensor:
    """The reference's losses of B questions over contexts that are given: its retriever is left out."""
    return model(
        context_input_ids=contexts.ids,
        context_attention_mask=contexts.mask,
        doc_scores=contexts.scores(model.rag.question_encoder),
        labels=labels,
    ).loss


class Generate:
    """Answers from contexts whose passages were retrieved already."""

    def __init__(self, side: Side, ours: type, theirs: type, beams: int):
        self.side, self.our_kind, self.their_kind, self.beams = side, ours, theirs, beams

    def ours(self) -> Callable[[], Any]:
        side = self.side
        model = side.model(self.our_kind)
        batch = model.prepare(side.questions).to(side.device)
        with torch.no_grad():
            retrieved = side.retriever(batch.questions, side.docs)
        decoding = Decoding(max_new_tokens=GENERATED, num_beams=self.beams)

        @torch.no_grad()
        def answer() -> Any:
            return generate(model, model.read_retrieved(batch, retrieved), decoding)

        return answer

    def theirs(self) -> Callable[[], Any]:
        model = self.side.their_model(self.their_kind)
        contexts = self.side.their_contexts(self.side.questions)
        with torch.no_grad():
            scores = contexts.scores(self.side.their_encoder)
        length = (
            {"max_length": GENERATED + 1}  # RAG-Token knows no other, and counts the start token
            if self.their_kind is transformers.RagTokenForGeneration
            else {"max_new_tokens": GENERATED}
        )
        generator = self.side.their_generator
        generate, pad = generator.generate, self.side.generator.pad_token

        def with_mask(ids: torch.Tensor, **kwargs: Any) -> Any:
            return generate(ids, **(kwargs | {"attention_mask": (ids != pad).long()}))

        def answer() -> Any:
            if self.their_kind is transformers.RagSequenceForGeneration:
                generator.generate = with_mask
            try:
                return model.generate(
                    context_input_ids=contexts.ids,
                    context_attention_mask=contexts.mask,
                    doc_scores=scores,
                    num_beams=self.beams,
                    **length,
                )
            finally:
                generator.__dict__.pop("generate", None)

        return answer

    def result(self, answers: Any) -> list[list[int]]:
        if isinstance(answers, torch.Tensor):
            rows = answers[:, 1:].tolist()
            return [[t for t in row if t != self.side.generator.pad_token] for row in rows]
        return [list(of_question[0].tokens) for of_question in answers]

    def equal(self, ours: Any, theirs: Any) -> bool:
        return ours == theirs


class Glue:
    """Vectors of questions in, what the generator reads out."""

    def __init__(self, side: Side):
        self.side = side
        with torch.no_grad():
            self.tokens = side.retriever.prepare(side.questions).tokens
            self.queries = side.retriever.question_encoder(**self.tokens).numpy()

    def ours(self) -> Callable[[], Any]:
        side, generator = self.side, self.side.generator
        questions = generator.tokenize_questions(side.questions)

        def glue() -> Any:
            _, rows = side.index.search(self.queries, side.docs)
            vectors = side.index.vectors(rows)
            passages = Ragged(*side.index.tokens(generator.tokenizer).gather(rows.reshape(-1)))
            ids, mask = generator.assemble(questions.repeat(side.docs), passages)
            return ids, mask, vectors

        return glue

    def theirs(self) -> Callable[[], Any]:
        retriever, docs = self.side.their_retriever, self.side.docs

        def glue() -> Any:
            retrieved = retriever(self.tokens["input_ids"], self.queries, n_docs=docs, return_tensors="pt")
            return (
                retrieved["context_input_ids"],
                retrieved["context_attention_mask"].bool(),
                retrieved["retrieved_doc_embeds"],
            )

        return glue

    def result(self, contexts: Any) -> Any:
        ids, mask, vectors = contexts
        rows = [row[is_token].tolist() for row, is_token in zip(ids, mask, strict=True)]
        return rows, torch.as_tensor(vectors).float()

    def equal(self, ours: Any, theirs: Any) -> bool:
        return ours[0] == theirs[0] and torch.allclose(ours[1], theirs[1], rtol=RTOL)


def task(what: str, side: Side) -> Any:
    if what == "glue":
        return Glue(side)
    if what.startswith("token"):
        kinds = RagToken, transformers.RagTokenForGeneration
    else:
        kinds = RagSequence, transformers.RagSequenceForGeneration
    if what.endswith("_train"):
        return Train(side, *kinds)
    return Generate(side, *kinds, beams=4 if what.endswith("beam4") else 1)
