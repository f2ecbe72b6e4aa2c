"""Section 2.5: all answers that the K passages propose by themselves, each with its exact p(y|x), and which rival.

The best answer may have a rival that stands elsewhere: two people of one name, each in a passage of their own. What
each passage proposes is scored under every passage (Thorough), for RAG-Token by its own marginal, so that no p(y|x)
here is a bound. Answers that are equal after SQuAD's normalisation are one, whose p(y|x) is the sum of theirs: as
sequences of tokens they exclude one another.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from rag import marginalize
from rag.classify import Classifier
from rag.decoding.answers import Answer, Scored, answers_of
from rag.decoding.generation import generate
from rag.decoding.quoting import quoted
from rag.decoding.rescoring import score_whole
from rag.decoding.settings import NO_TOKEN, Decoding
from rag.metrics.qa import normalize
from rag.model import Contexts, RagModel, RagSequence


@dataclass(frozen=True, eq=False)
class Alternative:
    """One of the answers that were proposed: the likeliest wording, log p(y|x), and its share of the sum of p(y|x) over
    all of them."""

    answer: Answer
    logprob: float
    share: float

    @property
    def row(self) -> int:
        """The passage that it comes from most, by p(z|x,y); −1: none."""
        return int(self.answer.rows[int(self.answer.posterior.argmax())])


def proposes(model: RagModel, decoding: Decoding) -> bool:
    """Whether alternatives are known: the model reads passages and writes answers that are searched for, not drawn."""
    return model.retriever is not None and not decoding.do_sample and not isinstance(model, Classifier)


def answers_and_candidates(
    model: RagModel, contexts: Contexts, decoding: Decoding
) -> tuple[list[list[Answer]], list[list[Answer]]]:
    """What `generate` gives for each question, and all candidates; none of those where no alternatives are known."""
    if not proposes(model, decoding):
        answers = generate(model, contexts, decoding)
        return answers, [[] for _ in answers]
    proposed = candidates(model, contexts, decoding)
    if isinstance(model, RagSequence) and decoding.thorough:
        return [own[: decoding.num_return_sequences] for own in proposed], proposed
    return generate(model, contexts, decoding), proposed


@torch.no_grad()
def candidates(model: RagModel, contexts: Contexts, decoding: Decoding) -> list[list[Answer]]:
    """What the passages of each question propose, scored exactly under all of them, best first."""
    every = replace(
        decoding, thorough=True, num_return_sequences=contexts.n_docs * decoding.num_beams, do_sample=False
    )
    if isinstance(model, RagSequence):
        return generate(model, contexts, every)
    by_passage = RagSequence(model.retriever, model.generator, contexts.n_docs).eval()
    return rescored(model, contexts, generate(by_passage, contexts, every))


def rescored(model: RagModel, contexts: Contexts, answers: Sequence[Sequence[Answer]]) -> list[list[Answer]]:
    """The same answers with the p(y|x) and posterior of RAG-Token, best first."""
    generator = model.generator
    given = [] if generator.first_token is None else [generator.first_token]
    found = [(number, each) for number, own in enumerate(answers) for each in own if each.tokens]
    if not found:
        return [list(own) for own in answers]
    device = contexts.states.device
    rows = [torch.tensor([*given, *each.tokens]) for _, each in found]
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=NO_TOKEN).to(device)
    question = torch.tensor([number for number, _ in found], device=device)
    states = generator.for_decoding(contexts.states, contexts.mask)
    scores = score_whole(generator, replace(contexts, states=states), question, tokens)[:, :, len(given) :]
    tokens = tokens[:, len(given) :]
    mask = tokens != NO_TOKEN
    prior = contexts.doc_logprobs[question]
    scores = scores.masked_fill(~mask.unsqueeze(1), 0.0)
    scores = scores.masked_fill((prior == -torch.inf).unsqueeze(2), -torch.inf)
    scored = Scored(
        question,
        tokens,
        marginalize.token_logprob(prior, scores, mask),
        scores.masked_fill(~mask.unsqueeze(1), 0.0).sum(dim=2),
        marginalize.token_posterior(prior, scores),
    )
    result = answers_of(generator, contexts, scored.sorted(), len(found))
    return quoted(model, contexts, result) if generator.quote else result


def merged(answers: Sequence[Answer]) -> list[Alternative]:
    """The candidates of one question with equal ones merged, the likeliest first."""
    groups: dict[str, list[Answer]] = {}
    for answer in answers:
        if answer.tokens:
            groups.setdefault(_normal(answer.text), []).append(answer)
    if not groups:
        return []
    logprobs = {
        text: float(torch.tensor([each.logprob for each in own], dtype=torch.float64).logsumexp(0))
        for text, own in groups.items()
    }
    total = torch.tensor([*logprobs.values()], dtype=torch.float64).logsumexp(0)
    alternatives = [
        Alternative(
            max(own, key=lambda each: each.logprob), logprobs[text], float((logprobs[text] - total).exp())
        )
        for text, own in groups.items()
    ]
    return sorted(alternatives, key=lambda each: -each.logprob)


def rivals(alternatives: Sequence[Alternative], least: float) -> list[Alternative]:
    """The best answer and those that rival it, or [] where none does.

    A rival has a share of at least `least`, comes from a passage that no likelier one comes from, and does not say a
    likelier one in more or fewer words ("Aldous" beside "Thomas Aldous").
    """
    kept: list[Alternative] = []
    for each in alternatives:
        new = all(each.row != other.row and not _same_in_other_words(each, other) for other in kept)
        if each.share >= least and each.row >= 0 and new:
            kept.append(each)
    return kept if len(kept) > 1 and kept[0] is alternatives[0] else []


def _same_in_other_words(one: Alternative, other: Alternative) -> bool:
    first, second = ({*_normal(each.answer.text).split()} for each in (one, other))
    return first <= second or second <= first


def _normal(text: str) -> str:
    return normalize(text) or " ".join(text.casefold().split())
