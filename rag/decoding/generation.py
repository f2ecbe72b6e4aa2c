"""Section 2.5: from contexts to answers, argmax_y p(y|x), for both models.

    RAG-Token      ordinary generation from p(y_i|x,y_<i) = Σ_z p_η(z|x) p_θ(y_i|x,z,y_<i)
    RAG-Sequence   hypotheses from each passage by itself, then argmax_y Σ_z p_η(z|x) p_θ(y|x,z) among them
                     Thorough   p_θ(y|x,z) is computed for every hypothesis y under every passage z
                     Fast       p_θ(y|x,z) ≈ 0 where the search from z did not find y: no further forward pass

Both ride on `GenerationMixin.generate` with one small model, `MarginalForGeneration`: RAG-Token with K
passages per question; RAG-Sequence with each passage as a question of its own that has K = 1. Greedy search,
beams, sampling, logits processors and stopping criteria are therefore those of transformers, for both.

What is generated and what is scored:

- The decoder begins with `generator.start_token`. Answers, like labels, hold no start token.
- `forced_bos_token_id` and `forced_eos_token_id` of the generator's own generation_config are honoured, as in
  transformers. A forced first token is given, like the start token: it is neither part of the answer nor of
  its probability, and takes none of `max_new_tokens`. A forced last token is an end-of-sequence as any other
  and counts with the probability the model gives it.
- Nothing else is taken from that generation_config: facebook/bart-large would bring four beams and
  no_repeat_ngram_size=3, which no experiment asked for. Ask for them in `Decoding` or as keyword arguments.
- log p(y|x) is the model's own: logits processors, temperature and length penalty decide which answers are
  found, never what they are said to be worth.
- An answer that reached `max_new_tokens` without end-of-sequence is scored as it stands: the probability of
  all answers that begin so.
- A passage that was not found (log p_η(z|x) = −inf) proposes nothing and adds nothing. A question without any
  passage gets one empty answer with log-probability −inf.
"""

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch

from rag import marginalize
from rag.classify import Classifier
from rag.decoding.answers import Answer, Scored, answers_of, no_answer
from rag.decoding.quoting import quoted
from rag.decoding.rescoring import Hypotheses, PrefixScoring, Race, score_whole
from rag.decoding.search import search
from rag.decoding.settings import NO_TOKEN, Decoding
from rag.errors import UserError
from rag.generators.seq2seq import Generator
from rag.model import Contexts, RagModel, RagSequence

NOT_A_NUMBER = (
    "the weights hold NaN, or half precision overflows; give another checkpoint, or the same one in float32"
)


def generate(
    model: RagModel, contexts: Contexts, decoding: Decoding, **generate_kwargs: Any
) -> list[list[Answer]]:
    """The answers to each of B questions, best first.

    contexts: `model.read(batch, n_docs)`; the K used there holds on the whole path.
    generate_kwargs: whatever else transformers' `generate` takes, such as logits_processor,
    stopping_criteria, prefix_allowed_tokens_fn, no_repeat_ngram_size, use_cache; for RAG-Token and closed
    book also streamer. To RAG-Sequence's logits processors each passage that was found is a row of the batch.

    Order: RAG-Sequence and samples by log p(y|x); beams of RAG-Token by beam score, length penalty included.
    The model should be in evaluation mode. Raises UserError for settings that contradict each other.
    """
    docs = contexts.n_docs
    return generate_for_each(model, contexts, decoding, [docs], **generate_kwargs)[docs]


@torch.no_grad()
def generate_for_each(
    model: RagModel, contexts: Contexts, decoding: Decoding, n_docs: Sequence[int], **generate_kwargs: Any
) -> dict[int, list[list[Answer]]]:
    """`generate` for several K at once, {K: answers}: as if only the best K of the passages had been read.

    What RAG-Sequence finds from a passage and what it is worth under each are the same for every K, so both
    are computed once, for the largest; a smaller K keeps what its own passages found and sums over them
    alone. Samples are therefore drawn once. RAG-Token is decoded for each K by itself.

    n_docs: each from 1 to the K of `contexts`. Raises UserError also where a probability is not a number.
    """
    clash = sorted(generate_kwargs.keys() & {field.name for field in fields(Decoding)})
    if clash:
        raise UserError(f"{', '.join(clash)} given beside the decoding settings: change those instead")
    if len(contexts.doc_logprobs) == 0:
        return {docs: [] for docs in n_docs}
    if contexts.doc_logprobs.isnan().any():
        raise UserError(f"p(z|x) of a question is not a number: {NOT_A_NUMBER}")
    contexts = replace(contexts, states=model.generator.for_decoding(contexts.states, contexts.mask))
    if isinstance(model, Classifier):
        answers = {docs: _classify(model, contexts.first(docs)) for docs in n_docs}
    elif isinstance(model, RagSequence):
        answers = _generate_sequence(model.generator, contexts, decoding, n_docs, generate_kwargs)
    else:
        answers = {
            docs: _generate_token(model.generator, contexts.first(docs), decoding, generate_kwargs)
            for docs in n_docs
        }
    if model.generator.quote and not isinstance(model, Classifier):
        answers = {docs: quoted(model, contexts, per_question) for docs, per_question in answers.items()}
    if any(
        math.isnan(answer.logprob)
        for per_question in answers.values()
        for ranked in per_question
        for answer in ranked
    ):
        raise UserError(f"log p(y|x) of an answer is not a number: {NOT_A_NUMBER}")
    return answers


def _classify(model: Classifier, contexts: Contexts) -> list[list[Answer]]:
    """The classes as answers, the likeliest first: nothing is searched for, whatever the decoding settings."""
    by_passage = model.class_logprobs(contexts).cpu()
    prior = contexts.doc_logprobs.float().cpu()
    logprobs = marginalize.next_token_logprobs(prior, by_passage)
    posteriors = marginalize.token_posterior(prior, by_passage)
    rows = np.full(prior.shape, -1) if contexts.retrieved is None else contexts.retrieved.rows
    return [
        [
            Answer(
                text=model.classes[each],
                tokens=(),
                logprob=float(logprobs[of, each]),
                doc_logprobs=prior[of],
                doc_scores=by_passage[of, :, each],
                posterior=posteriors[of, :, each],
                token_posterior=None,
                rows=rows[of],
            )
            for each in order
        ]
        for of, order in enumerate(logprobs.argsort(dim=1, descending=True, stable=True).tolist())
    ]


def _generate_token(
    generator: Generator, contexts: Contexts, decoding: Decoding, generate_kwargs: dict[str, Any]
) -> list[list[Answer]]:
    """RAG-Token, and closed book as its case K = 1."""
    count = decoding.num_return_sequences
    if count > decoding.num_beams and (decoding.num_beams > 1 or not decoding.do_sample):
        raise UserError(
            f"{count} answers from {decoding.num_beams} beams: give num_beams of at least "
            "num_return_sequences, or num_beams=1 with do_sample=true"
        )
    # A question without passages has no next token: an even prior keeps NaN away, its answers are dropped.
    nothing = (contexts.doc_logprobs == -torch.inf).all(dim=1, keepdim=True)
    result = search(
        generator,
        contexts.states,
        contexts.mask,
        contexts.doc_logprobs.masked_fill(nothing, 0.0),
        decoding,
        count,
        contexts.retrieved is None,  # closed book
        generate_kwargs,
    )
    prior = contexts.doc_logprobs[result.batch_row]
    token_mask = (result.tokens != NO_TOKEN)[:, result.forced :]
    missed = (prior == -torch.inf).unsqueeze(2)
    token_logprobs = result.token_logprobs[:, :, result.forced :].masked_fill(missed, -torch.inf)
    logprob = marginalize.token_logprob(prior, token_logprobs, token_mask)
    scored = Scored(
        result.batch_row,
        result.tokens[:, result.forced :],
        logprob,
        token_logprobs.masked_fill(~token_mask.unsqueeze(1), 0.0).sum(dim=2),
        marginalize.token_posterior(prior, token_logprobs),
    )
    scored = scored[token_mask.any(dim=1) & (logprob != -torch.inf)]
    # Beams are in the order of their scores already.
    return answers_of(generator, contexts, scored.sorted() if decoding.do_sample else scored, count)


def _generate_sequence(
    generator: Generator,
    contexts: Contexts,
    decoding: Decoding,
    n_docs: Sequence[int],
    generate_kwargs: dict[str, Any],
) -> dict[int, list[list[Answer]]]:
    """RAG-Sequence, Thorough or Fast, with the best K passages for each K of `n_docs`."""
    if "streamer" in generate_kwargs:
        raise UserError("RAG-Sequence knows its answer only at the end: leave the streamer out")
    contexts = contexts.first(max(n_docs))
    lean = replace(
        contexts, states=contexts.mask
    )  # states are read for the largest K alone, and may be large
    all_contexts = {docs: lean.first(docs) for docs in n_docs}
    docs = contexts.n_docs
    passages = (contexts.doc_logprobs > -torch.inf).flatten().nonzero().squeeze(1)  # those that were found
    nothing = {
        k: [[no_answer(of_k, q)] for q in range(len(of_k.doc_logprobs))] for k, of_k in all_contexts.items()
    }
    if len(passages) == 0:
        return nothing
    every = len(passages) == len(contexts.states)  # what is large already is not copied
    result = search(
        generator,
        contexts.states if every else contexts.states[passages],
        contexts.mask if every else contexts.mask[passages],
        contexts.doc_logprobs.new_zeros(len(passages), 1),
        decoding,
        decoding.num_return_sequences
        if decoding.do_sample and decoding.num_beams == 1
        else decoding.num_beams,
        True,
        generate_kwargs,
    )
    passage = passages[result.batch_row]
    real = (result.tokens != NO_TOKEN).any(dim=1)
    if not real.any():
        return nothing
    keyed = torch.cat([(passage // docs).unsqueeze(1), result.tokens], dim=1)[real]
    distinct, which = torch.unique(keyed, dim=0, return_inverse=True)
    question, tokens = distinct[:, 0], distinct[:, 1:]
    proposed = torch.zeros(len(distinct), docs, dtype=torch.bool, device=tokens.device)
    proposed[which, passage[real] % docs] = True
    token_mask = (tokens != NO_TOKEN)[:, result.forced :]
    if not decoding.thorough:
        shape = (len(distinct), docs, result.tokens.shape[1])
        token_logprobs = result.token_logprobs.new_full(shape, -torch.inf)
        token_logprobs[which, passage[real] % docs] = result.token_logprobs[real, 0]
    elif result.shared is None:
        token_logprobs = score_whole(generator, contexts, question, tokens)
    else:
        of_found = torch.zeros_like(result.batch_row)
        of_found[real] = which
        hypotheses = Hypotheses(question, tokens, of_found, real)
        own_scores = result.token_logprobs[real, 0, result.forced :].masked_fill(~token_mask[which], 0.0)
        race = Race(contexts.doc_logprobs, n_docs, question, proposed, decoding.num_return_sequences)
        race.begin(which, passage[real] % docs, own_scores.sum(dim=1))
        token_logprobs = PrefixScoring(generator, contexts, result, passages, hypotheses, race).run()
        proposed &= race.open.unsqueeze(1)
    token_logprobs = token_logprobs[:, :, result.forced :].masked_fill(~token_mask.unsqueeze(1), 0.0)
    doc_scores = token_logprobs.sum(dim=2)
    answers = {}
    for k, of_k in all_contexts.items():
        selected = proposed[:, :k].any(dim=1)
        scores = doc_scores[selected, :k]
        whole = torch.ones_like(scores[:, :1], dtype=torch.bool)
        logprob = marginalize.sequence_logprob(
            of_k.doc_logprobs[question[selected]], scores.unsqueeze(2), whole
        )
        scored = Scored(question[selected], tokens[selected, result.forced :], logprob, scores, None)
        answers[k] = answers_of(generator, of_k, scored.sorted(), decoding.num_return_sequences)
    return answers
