"""Section 2.1 turned to the question whether to answer at all: a reader may find that a passage holds no answer.

A reader that was trained on passages without an answer too gives them the empty one. Of the passage z* that the answer
y comes from most, argmax p(z|x,y), it knows

    margin = log p_θ(y | x, z*) − log p_θ("" | x, z*)

which is below zero where "nothing here" is likelier than the answer. Decoding never gives the empty answer; the margin
and p(y|x) say whether to believe what it gave.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rag.decoding.answers import Answer
from rag.model import Contexts, RagModel


@dataclass(frozen=True)
class Doubt:
    """When an answer is not believed: its margin, in nats, is below `margin`, or p(y|x) below `probability`."""

    margin: float = 0.0
    probability: float = 0.0

    def believes(self, answer: Answer, empty: Float[Tensor, " docs"]) -> bool:
        """empty: log p_θ("" | x, z) of each passage that was read."""
        if not answer.tokens:
            return False
        best = int(answer.posterior.argmax())
        margin = float(answer.doc_scores[best] - empty[best])
        return margin >= self.margin and answer.logprob >= _log(self.probability)


def _log(probability: float) -> float:
    return float(torch.tensor(probability).log())


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


def believed(
    doubt: Doubt, model: RagModel, contexts: Contexts, answers: Sequence[Sequence[Answer]]
) -> list[bool]:
    """Of each question, whether its best answer is believed."""
    empty = empty_logprobs(model, contexts)
    return [doubt.believes(found[0], own) for found, own in zip(answers, empty, strict=True)]
