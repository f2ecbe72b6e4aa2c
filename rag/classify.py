"""Section 2.1, appendix E: classification, as FEVER's, in both forms. The class is a target of one token, so that
RAG-Sequence and RAG-Token are the same:

    p(c|x) = Σ_z p_η(z|x) p_θ(c|x,z)

    HeadClassifier    the decoder regenerates the claim; p_θ(c|x,z) is a softmax over the classes from its final
                      hidden state, as BART classifies (the paper's form)
    TokenClassifier   p_θ(c|x,z) is the probability of the class's word as the decoder's first token, its scores
                      softmaxed over the whole vocabulary, as any target's

Both wrap a model, which says what is retrieved and read (RagSequence or RagToken; ClosedBook for the baseline),
and are trained, decoded and evaluated like it: their targets are class names.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rag import marginalize
from rag.errors import UserError
from rag.generators.context import Ragged, special_tokens, token_rows
from rag.model import Batch, Contexts, Likelihood, RagModel
from rag.parts import TrainedPart, describe, load_weights_of


@dataclass(frozen=True, kw_only=True)
class Claims(Contexts):
    """Contexts, and the decoder's input for each question: its own tokens, after the start token."""

    claims: Int[Tensor, "batch tokens"]
    claim_mask: Bool[Tensor, "batch tokens"]

    def first(self, n_docs: int) -> "Claims":
        fewer = super().first(n_docs)
        return dataclasses.replace(
            self, **{f.name: getattr(fewer, f.name) for f in dataclasses.fields(Contexts)}
        )


class Classifier(RagModel):
    """What both forms share: `class_logprobs` says log p_θ(c|x,z); the rest is the model's that they wrap.

    classes: their names, which are the targets and the answers.
    """

    marginal = staticmethod(marginalize.sequence_logprob)

    def __init__(self, model: RagModel, classes: Sequence[str]):
        nn.Module.__init__(self)
        if len(set(classes)) != len(classes) or len(classes) < 2:
            raise UserError(f"classes are {', '.join(classes) or 'none'}: give at least two, each once")
        self.model = model
        self.classes = list(classes)

    @property
    def retriever(self) -> Any:
        return self.model.retriever

    @property
    def generator(self) -> Any:
        return self.model.generator

    @property
    def n_docs(self) -> int:
        return self.model.n_docs

    def trained_parts(self) -> list[TrainedPart]:
        return self.model.trained_parts()

    def description(self) -> dict[str, Any]:
        return describe(type(self), model=self.model.description(), classes=self.classes)

    def class_logprobs(self, contexts: Contexts) -> Float[Tensor, "batch docs classes"]:
        """log p_θ(c|x,z) of each class under each passage, in nats."""
        raise NotImplementedError

    def prepare(self, questions: Sequence[str], targets: Sequence[str] | None = None) -> Batch:
        """Tokenise claims; the labels are the numbers of the classes. Raises UserError for an unknown class."""
        batch = self.model.prepare(questions)
        if targets is None:
            return batch
        if len(targets) != len(questions):
            raise UserError(f"{len(questions)} claims but {len(targets)} classes: give one class a claim")
        if unknown := sorted(set(targets) - set(self.classes)):
            raise UserError(f"{unknown[0]!r} is none of the classes {', '.join(self.classes)}")
        labels = torch.tensor([[self.classes.index(target)] for target in targets])
        return dataclasses.replace(batch, labels=labels, label_mask=torch.ones_like(labels, dtype=torch.bool))

    def read(self, batch: Batch, n_docs: int | None = None) -> Contexts:
        return self._with_claims(batch, self.model.read(batch, n_docs))

    def read_retrieved(self, batch: Batch, retrieved: Any) -> Contexts:
        return self._with_claims(batch, self.model.read_retrieved(batch, retrieved))

    def _with_claims(self, batch: Batch, contexts: Contexts) -> Contexts:
        return contexts

    def check_attention(self) -> None:
        raise UserError(
            "retriever_loss=adist distils the attention with which an answer is written, and a class is not written: "
            "take retriever_loss=pdist, emdr2, loop or replug"
        )

    def forward(
        self,
        batch: Batch,
        n_docs: int | None = None,
        want_smoothing: bool = False,
        want_attention: bool = False,
    ) -> Likelihood:
        """log p(c|x) of the batch's classes; smoothing is over the classes, and for the generator alone."""
        if batch.labels is None or batch.label_mask is None:
            raise UserError("this batch has no classes, so there is no log p(c|x): give them to `prepare`")
        if want_attention:
            self.check_attention()
        contexts = self.read(batch, n_docs)
        logprobs = self.class_logprobs(contexts)
        chosen = batch.labels.unsqueeze(1).expand(-1, contexts.n_docs, -1)
        of_class = logprobs.gather(2, chosen)
        smoothing = None
        if want_smoothing:
            means = logprobs.mean(dim=2, keepdim=True)
            smoothing = marginalize.smoothing_loss(contexts.doc_logprobs, means, batch.label_mask)
        logprob = self.marginal(contexts.doc_logprobs, of_class, batch.label_mask)
        return Likelihood(logprob, smoothing, of_class, contexts.doc_logprobs, contexts.retrieved)


class HeadClassifier(Classifier):
    """The claim is regenerated, the class read from the decoder's final hidden state (appendix E).

    The decoder reads the start token and the claim as the tokenizer begins it, "</s> <s> claim" with BART's; the final
    state is that from which </s> would be generated, as in BartForSequenceClassification.

    dropout: of the head's input and hidden layer.
    """

    def __init__(self, model: RagModel, classes: Sequence[str], dropout: float = 0.0):
        super().__init__(model, classes)
        width = self.generator.model.config.hidden_size
        self.head = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(width, width),
            nn.Tanh(),
            nn.Dropout(dropout),
            nn.Linear(width, len(classes)),
        )

    @classmethod
    def from_pretrained(cls, file: str | Path, model: RagModel, classes: Sequence[str]) -> Self:
        """A head that a run saved as safetensors, on a model of the same width; UserError if it is of another."""
        classifier = cls(model, classes)
        load_weights_of(classifier.head, Path(file))
        return classifier

    def trained_parts(self) -> list[TrainedPart]:
        return [*super().trained_parts(), TrainedPart("head.safetensors", self.head)]

    def _with_claims(self, batch: Batch, contexts: Contexts) -> Claims:
        generator = self.generator
        first = [] if generator.first_token is None else [generator.first_token]
        # The tokenizer's own form of a text, shifted right, as BartForSequenceClassification reads it.
        given = [generator.start_token, *(special_tokens(generator.tokenizer)[0] or first)]
        longest = generator.max_context_length - len(given)
        rows = [[*given, *row[:longest]] for row in token_rows(generator.tokenizer, batch.questions.text)]
        claims, mask = generator.pad(Ragged.of(rows))
        device = contexts.states.device
        return Claims(
            **{field.name: getattr(contexts, field.name) for field in dataclasses.fields(Contexts)},
            claims=claims.to(device),
            claim_mask=mask.to(device),
        )

    def class_logprobs(self, contexts: Contexts) -> Float[Tensor, "batch docs classes"]:
        assert isinstance(contexts, Claims)
        docs = contexts.n_docs
        hidden = self.generator.decode(
            contexts.claims.repeat_interleave(docs, dim=0), contexts.states, contexts.mask
        )
        last = contexts.claim_mask.sum(dim=1).sub(1).repeat_interleave(docs)
        width = self.generator.model.config.hidden_size  # what follows is the output layer's
        final = hidden[torch.arange(len(last), device=last.device), last, :width]
        with marginalize.without_autocast(final):
            logits = marginalize.at_least_float32(self.head(final.to(self.head[1].weight.dtype)))
        return logits.log_softmax(dim=-1).unflatten(0, (-1, docs))


class TokenClassifier(Classifier):
    """The class is a target of one token, which the decoder gives after its start token.

    Raises UserError for a class that the generator's tokenizer splits, or two that are the same token.
    """

    def __init__(self, model: RagModel, classes: Sequence[str]):
        super().__init__(model, classes)
        rows = self.generator.answer_tokens(self.classes)
        for name, row in zip(self.classes, rows, strict=True):
            if len(row) != 1:
                raise UserError(
                    f"the class {name!r} is {len(row)} tokens of this generator: choose a word that is one"
                )
        if len({row[0] for row in rows}) < len(rows):
            raise UserError(f"two of the classes {', '.join(classes)} are the same token: choose other words")
        self.register_buffer("tokens", torch.tensor(rows).flatten(), persistent=False)

    def class_logprobs(self, contexts: Contexts) -> Float[Tensor, "batch docs classes"]:
        generator = self.generator
        given = [generator.start_token, *([] if generator.first_token is None else [generator.first_token])]
        hidden = generator.decode(
            torch.tensor([given], device=contexts.states.device).expand(len(contexts.states), -1),
            contexts.states,
            contexts.mask,
        )
        logits = marginalize.at_least_float32(generator.output_layer.logits(hidden[:, -1]))
        logprobs = logits.log_softmax(dim=-1)[:, self.tokens]  # type: ignore[index]
        return logprobs.unflatten(0, (-1, contexts.n_docs))
