"""Section 2.1 turned to the question whether to answer at all: what speaks for an answer, in numbers.

Of the answer y and the passage z* that it comes from most, argmax p(z|x,y):

    log_probability   log p(y|x)
    margin            log p_θ(y|x,z*) − log p_θ("" |x,z*): below zero where a reader that was trained on passages
                      without an answer finds "nothing here" likelier than y
    entropy           of p(z|x,y), over log K: 0 where one passage explains the answer, 1 where all do
    retrieval         the score of z*, a logit of p(z|x)
    overlap           of question and z*, by the weights of the words (question_words.py)
    unknown           words of the question that are not known
    prior_share       Σ_z min(p(z|x), p(z|x,y)): how much of the posterior stands where the prior put it. At 1 the
                      answer fits all passages alike and says nothing of which one it is from.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rag.classify import Classifier
from rag.decoding.answers import Answer
from rag.evaluation.question_words import WordKnowledge
from rag.model import Contexts, RagModel

FEATURES = ("log_probability", "margin", "entropy", "retrieval", "overlap", "unknown", "prior_share")
_LEAST = -100.0  # nats; what is less likely is as good as impossible, and −inf has no weight


@dataclass(frozen=True)
class Evidence:
    """What speaks for an answer, and the words of the question that are not known. answered: it is not empty."""

    log_probability: float
    margin: float
    entropy: float
    retrieval: float
    overlap: float
    prior_share: float
    unknown_words: tuple[str, ...] = ()
    answered: bool = True

    @property
    def unknown(self) -> int:
        return len(self.unknown_words)

    def features(self, names: Sequence[str] = FEATURES) -> Float[np.ndarray, " features"]:
        return np.array([float(getattr(self, name)) for name in names])


def speaks(model: RagModel) -> bool:
    """Whether there is evidence: the model reads passages and writes answers."""
    return model.retriever is not None and not isinstance(model, Classifier)


def gather(
    model: RagModel,
    knowledge: WordKnowledge,
    questions: Sequence[str],
    contexts: Contexts,
    answers: Sequence[Answer],
) -> list[Evidence]:
    """The evidence for the best answer of each question. knowledge: of the same model."""
    empty = empty_logprobs(model, contexts)
    return [
        _of_one(model, knowledge, question, contexts, number, answer, empty[number])
        for number, (question, answer) in enumerate(zip(questions, answers, strict=True))
    ]


def _of_one(
    model: RagModel,
    knowledge: WordKnowledge,
    question: str,
    contexts: Contexts,
    number: int,
    answer: Answer,
    empty: Float[Tensor, " docs"],
) -> Evidence:
    words = knowledge.of_question(question)
    if not answer.tokens or contexts.retrieved is None:
        return Evidence(_LEAST, _LEAST, 0.0, 0.0, 0.0, 1.0, words.unknown, answered=False)
    best = int(answer.posterior.argmax())
    passage, row = "", int(answer.rows[best])
    if row >= 0:
        held = model.retriever.index.passages[row]
        passage = f"{held.title} {held.text}"
    prior = answer.doc_logprobs.exp()
    return Evidence(
        log_probability=max(_LEAST, answer.logprob),
        margin=_bounded(float(answer.doc_scores[best] - empty[best])),
        entropy=_entropy(answer.posterior),
        retrieval=float(contexts.retrieved.scores[number, best]),
        overlap=knowledge.overlap(words, passage),
        prior_share=float(torch.minimum(prior, answer.posterior).sum()),
        unknown_words=words.unknown,
    )


def _bounded(margin: float) -> float:
    """Of two answers that are both impossible, neither is preferred."""
    return _LEAST if math.isnan(margin) else max(_LEAST, min(-_LEAST, margin))


def _entropy(posterior: Float[Tensor, " docs"]) -> float:
    if len(posterior) < 2:
        return 0.0
    return float(torch.special.entr(posterior.double()).sum()) / math.log(len(posterior))


@torch.inference_mode()
def empty_logprobs(model: RagModel, contexts: Contexts) -> Float[Tensor, "batch docs"]:
    """log p_θ("" | x, z), of the end of the answer before its first token, for each question and passage."""
    generator = model.generator
    given = [] if generator.first_token is None else [generator.first_token]
    labels = torch.tensor([*given, generator.end_token], device=contexts.states.device)
    found, _ = generator.token_logprobs(
        contexts.states, contexts.mask, labels.expand(len(contexts.states), -1).contiguous()
    )
    return found[:, -1].unflatten(0, (-1, contexts.n_docs)).float().cpu()
