"""Section 2.5: an answer, and what is known of it: p(y|x), the passages, which of them it came from."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from rag import marginalize
from rag.decoding.settings import NO_TOKEN
from rag.generators.seq2seq import Generator
from rag.model import Contexts


@dataclass(frozen=True, eq=False)
class Answer:
    """One answer to one question; log-probabilities in nats, all tensors float32 on the CPU.

    text            the answer, special tokens left out
    tokens          the T scored tokens, end-of-sequence included where it was reached
    logprob         log p(y|x), marginal over the K passages; under Fast a lower bound
    doc_logprobs    (K,)    log p_η(z|x); −inf where retrieval missed
    doc_scores      (K,)    log p_θ(y|x,z); −inf where retrieval missed, under Fast also where z's generation
                            did not find y
    posterior       (K,)    p(z|x,y) if one passage gave the whole answer, for RAG-Token too: how much of it
                            each passage accounts for by itself
    token_posterior (K, T)  RAG-Token: p(z_i|x,y_i,y_<i), which passage each token came from (figure 2);
                            RAG-Sequence: None
    rows            (K,)    rows of the passage store, −1 where there is none
    """

    text: str
    tokens: tuple[int, ...]
    logprob: float
    doc_logprobs: Float[Tensor, " docs"]
    doc_scores: Float[Tensor, " docs"]
    posterior: Float[Tensor, " docs"]
    token_posterior: Float[Tensor, "docs tokens"] | None
    rows: Int64[np.ndarray, " docs"]


@dataclass(frozen=True)
class Scored:
    """N sequences: the question each is of, and what `Answer` says of it."""

    question: Int[Tensor, " found"]
    tokens: Int[Tensor, "found tokens"]  # NO_TOKEN after the last
    logprob: Float[Tensor, " found"]
    doc_scores: Float[Tensor, "found docs"]
    token_posterior: Float[Tensor, "found docs tokens"] | None

    def __getitem__(self, which: Int[Tensor, " chosen"] | Bool[Tensor, " found"]) -> "Scored":
        by_token = None if self.token_posterior is None else self.token_posterior[which]
        return Scored(
            self.question[which], self.tokens[which], self.logprob[which], self.doc_scores[which], by_token
        )

    def sorted(self) -> "Scored":
        """Best first."""
        return self[torch.argsort(self.logprob, descending=True, stable=True)]


def answers_of(generator: Generator, contexts: Contexts, scored: Scored, count: int) -> list[list[Answer]]:
    """The first `count` of each question's sequences as answers; an empty one where there is none."""
    prior = contexts.doc_logprobs[scored.question]
    whole = torch.ones_like(scored.doc_scores[:, :1], dtype=torch.bool)
    posterior = marginalize.sequence_posterior(prior, scored.doc_scores.unsqueeze(2), whole).cpu()
    # Everything to the CPU at once.
    prior, doc_scores = prior.float().cpu(), scored.doc_scores.cpu()
    by_token = None if scored.token_posterior is None else scored.token_posterior.cpu()
    answers: list[list[Answer]] = [[] for _ in contexts.doc_logprobs]
    rows = zip(scored.question.tolist(), scored.tokens.tolist(), scored.logprob.tolist(), strict=True)
    for index, (question, padded, logprob) in enumerate(rows):
        if len(answers[question]) == count:
            continue
        tokens = [token for token in padded if token != NO_TOKEN]
        answers[question].append(
            Answer(
                text=str(generator.tokenizer.decode(tokens, skip_special_tokens=True)).strip(),
                tokens=tuple(tokens),
                logprob=logprob,
                doc_logprobs=prior[index],
                doc_scores=doc_scores[index],
                posterior=posterior[index],
                token_posterior=None if by_token is None else by_token[index, :, : len(tokens)],
                rows=rows_of(contexts, question),
            )
        )
    return [own or [no_answer(contexts, question)] for question, own in enumerate(answers)]


def no_answer(contexts: Contexts, question: int) -> Answer:
    """Where retrieval found nothing at all, nothing is known."""
    doc_logprobs = contexts.doc_logprobs[question].float().cpu()
    never = torch.full_like(doc_logprobs, -torch.inf)
    return Answer("", (), -torch.inf, doc_logprobs, never, never.exp(), None, rows_of(contexts, question))


def rows_of(contexts: Contexts, question: int) -> Int64[np.ndarray, " docs"]:
    return np.full(contexts.n_docs, -1) if contexts.retrieved is None else contexts.retrieved.rows[question]
