"""Section 2.5: from contexts to answers, argmax_y p(y|x), for both models.

    RAG-Token      ordinary generation from p(y_i|x,y_<i) = Σ_z p_η(z|x) p_θ(y_i|x,z,y_<i)
    RAG-Sequence   hypotheses from each passage by itself, then argmax_y Σ_z p_η(z|x) p_θ(y|x,z) among them
                     Thorough   p_θ(y|x,z) is computed for every hypothesis y under every passage z
                     Fast       p_θ(y|x,z) ≈ 0 where the search from z did not find y: no further forward pass

Both ride on `GenerationMixin.generate` with one small model, `MarginalForGeneration`: RAG-Token with K
passages a question; RAG-Sequence with each passage as a question of its own that has K = 1. Greedy search,
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

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor
from transformers import (
    Cache,
    EncoderDecoderCache,
    GenerationConfig,
    GenerationMixin,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

from rag import cross_attention, marginalize
from rag.classify import Classifier
from rag.cross_attention import CrossKeys
from rag.errors import UserError
from rag.generator import Generator
from rag.model import Contexts, RagModel, RagSequence

# How many numbers of encoder states, or of self-attention's keys and values, are held at once while hypotheses are
# scored: 256 MiB in float32.
STATES_AT_ONCE = 1 << 26
NOT_A_NUMBER = (
    "the weights hold NaN, or half precision overflows; give another checkpoint, or the same one in float32"
)
NO_TOKEN = -1  # stands after an answer's last token; no model generates it, as it may the padding token


@dataclass(frozen=True)
class Decoding:
    """How answers are searched for. The names are those of transformers' GenerationConfig; lengths in tokens.

    max_new_tokens: at most so many, end-of-sequence included and a forced first token not.
    num_beams: 1 is greedy search (or plain sampling).
    do_sample: draw tokens; temperature, top_k (0: all) and top_p matter only then.
    num_return_sequences: answers a question. RAG-Sequence gives fewer where it found fewer distinct ones.
    length_penalty: beams are ranked by log-probability / length^length_penalty.
    thorough: RAG-Sequence only: True Thorough, False Fast (section 2.5).

    RAG-Sequence takes from each passage all its beams; sampling without beams, num_return_sequences samples.
    """

    max_new_tokens: int = 25
    min_new_tokens: int = 0
    num_beams: int = 1
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    num_return_sequences: int = 1
    length_penalty: float = 1.0
    thorough: bool = True

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "num_beams", "num_return_sequences"):
            if getattr(self, name) < 1:
                raise UserError(f"decoding.{name} is {getattr(self, name)}: give 1 or more")
        if self.temperature <= 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise UserError(
                f"decoding.temperature is {self.temperature}, top_k {self.top_k}, top_p {self.top_p}: give a "
                "temperature above 0, a top_k of 0 (all) or more, a top_p above 0 and at most 1"
            )
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise UserError(
                f"decoding.min_new_tokens is {self.min_new_tokens}: give something from 0 to max_new_tokens, "
                f"which is {self.max_new_tokens}"
            )


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
    if isinstance(model, Classifier):
        answers = {docs: _classify(model, contexts.first(docs)) for docs in n_docs}
    elif isinstance(model, RagSequence):
        answers = _generate_sequence(model.generator, contexts, decoding, n_docs, generate_kwargs)
    else:
        answers = {
            docs: _generate_token(model.generator, contexts.first(docs), decoding, generate_kwargs)
            for docs in n_docs
        }
    if any(math.isnan(answer.logprob) for own in answers.values() for found in own for answer in found):
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


class MarginalForGeneration(PreTrainedModel, GenerationMixin):
    """A generator and K encoded passages for each of B questions, seen by `generate` as one model of the next token.

    Its logits are log Σ_z p_η(z|x) p_θ(·|x,z,y_<i), or the generator's own where nothing is mixed (`alone`), which
    logits processors such as a repetition penalty tell apart, as they do in transformers. What `generate` knows of a
    question is its number, as `encoder_outputs` (B, 1, 1), and it repeats those for beams and samples as it does for
    any model; the contexts stay as they are. The decoder's rows are question, passage, beam, in this order.

    What each step computed is kept in `steps`, so that nobody has to compute it again.
    """

    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(
        self,
        generator: Generator,
        states: Float[Tensor, "contexts length width"],
        mask: Bool[Tensor, "contexts length"],
        doc_logprobs: Float[Tensor, "batch docs"],
        alone: bool = False,
    ):
        # A copy, for a model writes to its config; this one says which attention and cache the generator has.
        super().__init__(copy.deepcopy(generator.model.config))
        self.config.is_encoder_decoder = True
        self.generation_config = GenerationConfig()
        self.generator, self.output = generator, generator.output_layer
        self.states, self.mask, self.doc_logprobs, self.alone = states, mask, doc_logprobs, alone
        self.for_each_row: tuple[Tensor, Tensor] | None = None
        self.steps: list[_Step] = []
        self.scores: Tensor | None = None

    @property
    def device(self) -> torch.device:
        return self.generator.model.device

    @property
    def questions(self) -> BaseModelOutput:
        numbers = torch.arange(len(self.doc_logprobs), device=self.device)
        return BaseModelOutput(last_hidden_state=numbers.view(-1, 1, 1))  # type: ignore[arg-type]

    def forward(
        self,
        decoder_input_ids: Int[Tensor, "rows tokens"],
        encoder_outputs: BaseModelOutput,
        past_key_values: Cache | None = None,
        use_cache: bool = True,
        **_: Any,
    ) -> Seq2SeqLMOutput:
        decoder = self.generator.model.get_decoder()
        questions, docs = self.doc_logprobs.shape
        copies = len(decoder_input_ids) // questions
        ids = decoder_input_ids.unflatten(0, (questions, copies)).unsqueeze(1).expand(-1, docs, -1, -1)
        if use_cache and cross_attention.can_share(decoder, past_key_values):
            assert isinstance(past_key_values, EncoderDecoderCache)
            first = past_key_values.get_seq_length() == 0
            if first:  # the beams of a question are the same still
                ids = ids[:, :, :1]
            hidden = cross_attention.decode(
                decoder, ids.flatten(0, 2), self.states, self.mask, past_key_values
            )
            if first and copies > 1:
                contexts = torch.arange(len(self.states), device=hidden.device)
                cross_attention.take_rows(past_key_values, contexts.repeat_interleave(copies))
        else:
            if self.for_each_row is None:
                self.for_each_row = (
                    self.states.repeat_interleave(copies, dim=0),
                    self.mask.repeat_interleave(copies, dim=0).long(),
                )
            decoded = decoder(
                input_ids=ids.flatten(0, 2),
                encoder_hidden_states=self.for_each_row[0],
                encoder_attention_mask=self.for_each_row[1],
                past_key_values=past_key_values,
                use_cache=use_cache,
            )
            hidden, past_key_values = decoded.last_hidden_state[:, -1], decoded.past_key_values
        logprobs, normalisers = self._marginal(hidden.view(questions, docs, -1, hidden.shape[-1]))
        self.steps.append(_Step(hidden.view(*normalisers.shape, -1), normalisers))
        cache: Any = past_key_values
        return Seq2SeqLMOutput(
            logits=logprobs.expand(-1, copies, -1).reshape(questions * copies, 1, -1),  # type: ignore[arg-type]
            past_key_values=cache,
        )

    def _marginal(
        self, hidden: Float[Tensor, "batch docs copies width"]
    ) -> tuple[Float[Tensor, "batch copies vocab"], Float[Tensor, "batch docs copies"]]:
        """log Σ_z p_η(z|x) p_θ(·|x,z,y_<i), and the logarithm of what normalises p_θ; a few questions at a time."""
        side_by_side = hidden.transpose(1, 2)  # what is summed over: (batch, copies, docs, width)
        batch, copies, docs, _ = side_by_side.shape
        at_once = batch if docs == 1 else self.output.rows_at_once // (copies * docs)
        marginals, normalisers = [], []
        for some in _chunks(batch, at_once):
            own = side_by_side[some]
            # `generate` copies what it is given, so that the scores of the step before are free again.
            logits, normaliser = self.output.normalised(own.flatten(0, -2), self.scores)
            if self.scores is None or len(self.scores) < len(logits):
                self.scores = logits
            logits, normaliser = logits.view(*own.shape[:-1], -1), normaliser.view(own.shape[:-1])
            if self.alone:  # `generate` normalises where it has to
                marginals.append(logits.squeeze(2))
            elif docs == 1:  # a prior of 1
                marginals.append(logits.sub_(normaliser.unsqueeze(-1)).squeeze(2))
            else:
                marginals.append(marginalize.mixed_vocabulary(self.doc_logprobs[some], logits, normaliser))
            normalisers.append(normaliser)
        marginal = marginals[0] if len(marginals) == 1 else torch.cat(marginals)
        return marginal, torch.cat(normalisers).transpose(1, 2)

    def _reorder_cache(self, past_key_values: EncoderDecoderCache, beam_idx: Int[Tensor, " batch"]) -> Cache:
        """Beams go on from other beams of their question, under each passage. Called by beam search at every step."""
        questions, docs = self.doc_logprobs.shape
        copies = len(beam_idx) // questions
        contexts = torch.arange(questions * docs, device=beam_idx.device).unsqueeze(1)
        beams = (beam_idx % copies).view(questions, 1, copies).expand(-1, docs, -1).flatten(0, 1)
        cross_attention.take_rows(past_key_values, (contexts * copies + beams).flatten())
        return past_key_values


@dataclass(frozen=True)
class _Step:
    """The decoder's states for the next token, and the logarithm of what normalises p_θ there.

    copies: beams or samples of a question, or 1 where they are all the same.
    """

    hidden: Float[Tensor, "batch docs copies width"]
    normalisers: Float[Tensor, "batch docs copies"]


@dataclass(frozen=True)
class _Found:
    """N generated sequences: tokens, NO_TOKEN after the last, and the row of the batch that each is of."""

    tokens: Int[Tensor, "found tokens"]
    forced: int  # leading tokens that were given, not generated: 1 with a forced first token, else 0
    batch_row: Int[Tensor, " found"]
    token_logprobs: Float[Tensor, "found docs tokens"]  # log p_θ(y_i|x,z,y_<i) of these tokens
    normalisers: Float[Tensor, "found docs tokens"]  # the logarithm of what normalises p_θ there
    keys: CrossKeys | None  # of the contexts, (batch · docs) rows; None where they were not shared


def _search(
    generator: Generator,
    states: Float[Tensor, "contexts length width"],
    mask: Bool[Tensor, "contexts length"],
    doc_logprobs: Float[Tensor, "batch docs"],
    decoding: Decoding,
    count: int,
    alone: bool,
    generate_kwargs: dict[str, Any],
) -> _Found:
    """Generate `count` sequences for each row of a batch from the marginal over its `docs` passages.

    alone: each row is one context that the generator reads by itself, and no marginal over one passage.
    """
    config = _generation_config(generator, decoding, count)
    rest = config.update(**generate_kwargs)  # what is no setting: processors, streamer, …
    forced = int(config.forced_bos_token_id is not None)
    # A first token that is given takes none of the answer's; transformers counts it among the new ones.
    config.max_new_tokens = decoding.max_new_tokens + forced
    if decoding.min_new_tokens:
        config.min_new_tokens = decoding.min_new_tokens + forced
    check_positions(generator, decoding, forced)
    config.return_dict_in_generate = True
    ends = None
    if criteria := rest.get("stopping_criteria"):
        ends = _Ends(criteria)
        rest["stopping_criteria"] = StoppingCriteriaList([ends])
    marginal: Any = MarginalForGeneration(generator, states, mask, doc_logprobs, alone)
    output = marginal.generate(generation_config=config, encoder_outputs=marginal.questions, **rest)
    tokens = output.sequences[:, 1:]  # without the start token
    ended = (tokens == generator.end_token).long().cumsum(dim=1)
    real = (ended - (tokens == generator.end_token).long()) == 0
    beams = getattr(output, "beam_indices", None)
    if beams is not None:  # −1 after a beam's last token, and throughout where fewer beams than wanted exist
        real = real & (beams >= 0)
    elif ends is not None:
        real = real & (torch.arange(tokens.shape[1], device=tokens.device) < ends.after.unsqueeze(1))
    elif config.stop_strings:  # what follows where one ended is padding, which a model may generate too
        padding = (tokens == generator.pad_token) & (tokens != generator.end_token)
        real = real & (padding.flip(1).long().cumprod(dim=1).flip(1) == 0)
    found = torch.arange(len(tokens), device=tokens.device)
    token_logprobs, normalisers = [], []
    for i, step in enumerate(marginal.steps[: tokens.shape[1]]):
        batch, docs, copies = step.normalisers.shape
        row = found if beams is None else beams[:, i].clamp(min=0).long()
        question = row // (len(found) // batch if beams is None else decoding.num_beams)
        own = (question, slice(None), row % copies)
        normalisers.append(step.normalisers[own])
        logits = marginal.output.token_logits(step.hidden[own], tokens[:, i : i + 1].expand(-1, docs))
        token_logprobs.append(logits - normalisers[-1])
    cache = output.past_key_values
    shared = marginal.for_each_row is None
    return _Found(
        tokens.masked_fill(~real, NO_TOKEN),
        forced,
        found // count,
        torch.stack(token_logprobs, dim=2),
        torch.stack(normalisers, dim=2),
        CrossKeys.of(cache) if shared else None,
    )


class _Ends(StoppingCriteria):
    """What the caller's criteria say, and after how many tokens they ended each sequence.

    What stands in a row after that is padding, which cannot be told from padding tokens that the model generated.
    """

    def __init__(self, criteria: Iterable[StoppingCriteria]):
        self.criteria = StoppingCriteriaList(criteria)
        self.after = torch.zeros(0, dtype=torch.long)

    def __call__(self, input_ids: Int[Tensor, "rows tokens"], scores: Any, **kwargs: Any) -> Any:
        done = self.criteria(input_ids, scores, **kwargs)  # type: ignore[arg-type]
        count = input_ids.shape[1] - 1  # without the start token
        if len(self.after) != len(input_ids):
            self.after = torch.full_like(input_ids[:, 0], torch.iinfo(input_ids.dtype).max)
        self.after = torch.where(torch.as_tensor(done), self.after.clamp(max=count), self.after)
        return done


def _generation_config(generator: Generator, decoding: Decoding, count: int) -> GenerationConfig:
    """What `generate` is told: the decoding settings, our special tokens and the generator's forced ones."""
    own = getattr(generator.model, "generation_config", None)
    settings: dict[str, Any] = {}
    if decoding.do_sample:
        settings |= {"temperature": decoding.temperature, "top_k": decoding.top_k, "top_p": decoding.top_p}
    if decoding.num_beams > 1:
        settings |= {"length_penalty": decoding.length_penalty}
    return GenerationConfig(
        num_beams=decoding.num_beams,
        do_sample=decoding.do_sample,
        num_return_sequences=count,
        decoder_start_token_id=generator.start_token,
        eos_token_id=generator.end_token,
        pad_token_id=generator.pad_token,
        use_cache=getattr(generator.model.config, "use_cache", True),  # False: a decoder that keeps none
        forced_bos_token_id=generator.first_token,
        forced_eos_token_id=getattr(own, "forced_eos_token_id", None),
        **settings,
    )


def check_positions(generator: Generator, decoding: Decoding, forced: int) -> None:
    """UserError where the decoder has no place for so many tokens beside the `forced` first one."""
    positions = getattr(generator.model.config, "max_position_embeddings", None)
    if positions is not None and decoding.max_new_tokens + forced > positions:
        raise UserError(
            f"decoding.max_new_tokens is {decoding.max_new_tokens} but the generator has {positions} positions"
            f"{', one of them for its forced first token' if forced else ''}: give at most {positions - forced}"
        )


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
    found = _search(
        generator,
        contexts.states,
        contexts.mask,
        contexts.doc_logprobs.masked_fill(nothing, 0.0),
        decoding,
        count,
        contexts.retrieved is None,  # closed book
        generate_kwargs,
    )
    prior = contexts.doc_logprobs[found.batch_row]
    token_mask = (found.tokens != NO_TOKEN)[:, found.forced :]
    missed = (prior == -torch.inf).unsqueeze(2)
    token_logprobs = found.token_logprobs[:, :, found.forced :].masked_fill(missed, -torch.inf)
    logprob = marginalize.token_logprob(prior, token_logprobs, token_mask)
    scored = _Scored(
        found.batch_row,
        found.tokens[:, found.forced :],
        logprob,
        token_logprobs.masked_fill(~token_mask.unsqueeze(1), 0.0).sum(dim=2),
        marginalize.token_posterior(prior, token_logprobs),
    )
    scored = scored[token_mask.any(dim=1) & (logprob != -torch.inf)]
    # Beams are in the order of their scores already.
    return _answers(generator, contexts, scored.sorted() if decoding.do_sample else scored, count)


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
    all_contexts = {docs: contexts.first(docs) for docs in n_docs}
    contexts = all_contexts[max(n_docs)]
    docs = contexts.n_docs
    passages = (contexts.doc_logprobs > -torch.inf).flatten().nonzero().squeeze(1)  # those that were found
    nothing = {
        k: [[_no_answer(of_k, q)] for q in range(len(of_k.doc_logprobs))] for k, of_k in all_contexts.items()
    }
    if len(passages) == 0:
        return nothing
    found = _search(
        generator,
        contexts.states[passages],
        contexts.mask[passages],
        contexts.doc_logprobs.new_zeros(len(passages), 1),
        decoding,
        decoding.num_return_sequences
        if decoding.do_sample and decoding.num_beams == 1
        else decoding.num_beams,
        True,
        generate_kwargs,
    )
    passage = passages[found.batch_row]
    real = (found.tokens != NO_TOKEN).any(dim=1)
    if not real.any():
        return nothing
    keyed = torch.cat([(passage // docs).unsqueeze(1), found.tokens], dim=1)[real]
    distinct, which = torch.unique(keyed, dim=0, return_inverse=True)
    question, tokens = distinct[:, 0], distinct[:, 1:]
    proposed = torch.zeros(len(distinct), docs, dtype=torch.bool, device=tokens.device)
    proposed[which, passage[real] % docs] = True
    token_mask = (tokens != NO_TOKEN)[:, found.forced :]
    if not decoding.thorough:
        shape = (len(distinct), docs, found.tokens.shape[1])
        token_logprobs = found.token_logprobs.new_full(shape, -torch.inf)
        token_logprobs[which, passage[real] % docs] = found.token_logprobs[real, 0]
    elif found.keys is None:
        token_logprobs = _score_whole(generator, contexts, question, tokens)
    else:
        found_as = torch.full_like(found.batch_row, -1)
        found_as[real] = which
        own_scores = found.token_logprobs[real, 0, found.forced :].masked_fill(~token_mask[which], 0.0)
        race = _Race(contexts.doc_logprobs, n_docs, question, proposed, decoding.num_return_sequences)
        race.begin(which, passage[real] % docs, own_scores.sum(dim=1))
        token_logprobs = _score_by_prefix(
            generator, contexts, found, found.keys, passages, found_as, question, tokens, race
        )
        proposed &= race.open.unsqueeze(1)
    token_logprobs = token_logprobs[:, :, found.forced :].masked_fill(~token_mask.unsqueeze(1), 0.0)
    doc_scores = token_logprobs.sum(dim=2)
    answers = {}
    for k, of_k in all_contexts.items():
        own = proposed[:, :k].any(dim=1)
        scores = doc_scores[own, :k]
        whole = torch.ones_like(scores[:, :1], dtype=torch.bool)
        logprob = marginalize.sequence_logprob(of_k.doc_logprobs[question[own]], scores.unsqueeze(2), whole)
        scored = _Scored(question[own], tokens[own, found.forced :], logprob, scores, None)
        answers[k] = _answers(generator, of_k, scored.sorted(), decoding.num_return_sequences)
    return answers


def _score_whole(
    generator: Generator,
    contexts: Contexts,
    question: Int[Tensor, " sequences"],
    tokens: Int[Tensor, "sequences tokens"],
) -> Float[Tensor, "sequences docs tokens"]:
    """log p_θ(y_i|x,z,y_<i) of sequences under every passage of their question, by a forward pass for each.

    For decoders without a cache. −inf for passages that were not found; whatever stands after a last token.
    """
    lengths = (tokens != NO_TOKEN).sum(dim=1)
    labels = tokens.masked_fill(tokens == NO_TOKEN, generator.pad_token)
    logprobs = _nothing_scored(contexts, tokens)
    order = lengths.argsort(descending=True, stable=True)
    place, doc = (contexts.doc_logprobs[question[order]] > -torch.inf).nonzero(as_tuple=True)
    sequence = order[place]
    context = question[sequence] * contexts.n_docs + doc
    for some in _chunks(len(sequence), STATES_AT_ONCE // contexts.states[0].numel()):
        longest = int(lengths[sequence[some]].max())
        logprobs[sequence[some], doc[some], :longest], _ = generator.token_logprobs(
            contexts.states[context[some]], contexts.mask[context[some]], labels[sequence[some], :longest]
        )
    return logprobs


class _Race:
    """Which hypotheses may still be among the `count` best answers of their question, for one of the K asked for.

    A hypothesis is worth at least what the passages whose own search found it make of it, and at most what its tokens
    so far are worth, were all to come certain. Whoever's most is less than the least of `count` others is out; that is
    exact, and of a trained model's hypotheses leaves few after the first tokens.
    """

    MARGIN = 1e-3  # nats: far beyond what rounding moves a score

    def __init__(
        self,
        prior: Float[Tensor, "batch docs"],
        n_docs: Sequence[int],
        question: Int[Tensor, " sequences"],
        proposed: Bool[Tensor, "sequences docs"],
        count: int,
    ):
        self.question, self.proposed, self.count = question, proposed, count
        self.own = _Grid.of(question, len(prior))
        # Of each K, log p_η(z|x) as it is among so many passages, and which hypotheses these proposed.
        self.priors = {k: marginalize.doc_logprobs(prior[:, :k])[question] for k in n_docs}
        self.runs = {k: proposed[:, :k].any(dim=1) for k in n_docs}
        self.most = torch.zeros_like(prior)[question].masked_fill(prior[question] == -torch.inf, -torch.inf)
        self.least_to_win: dict[int, Tensor] = {}
        self.open = torch.ones_like(question, dtype=torch.bool)

    def begin(
        self, sequence: Int[Tensor, " found"], doc: Int[Tensor, " found"], score: Float[Tensor, " found"]
    ) -> None:
        """What the passages that found the hypotheses make of them."""
        self.most[sequence, doc] = score.to(self.most.dtype)
        for k, prior in self.priors.items():
            known = (prior + self.most[:, :k]).masked_fill(~self.proposed[:, :k], -torch.inf)
            least = known.logsumexp(dim=1)
            by_question = least[self.own.numbers].masked_fill(self.own.numbers < 0, -torch.inf)
            if by_question.shape[1] < self.count:
                self.least_to_win[k] = by_question.new_full(by_question.shape[:1], -torch.inf)
            else:
                self.least_to_win[k] = by_question.topk(self.count, dim=1).values[:, -1]

    def add(
        self, sequence: Int[Tensor, " scored"], doc: Int[Tensor, " scored"], logprob: Float[Tensor, " scored"]
    ) -> None:
        """One more token of each, under a passage."""
        new = ~self.proposed[sequence, doc]
        self.most[sequence[new], doc[new]] += logprob[new].to(self.most.dtype)

    def narrow(self) -> None:
        """Drop those that cannot win any more."""
        still = torch.zeros_like(self.open)
        for k, prior in self.priors.items():
            most = (prior + self.most[:, :k]).logsumexp(dim=1)
            # NaN is not out: `generate` refuses it
            still |= self.runs[k] & ~(most < self.least_to_win[k][self.question] - self.MARGIN)
        self.open &= still


def _score_by_prefix(
    generator: Generator,
    contexts: Contexts,
    found: _Found,
    keys: CrossKeys,
    searched: Int[Tensor, " searched"],
    found_as: Int[Tensor, " found"],
    question: Int[Tensor, " sequences"],
    tokens: Int[Tensor, "sequences tokens"],
    race: _Race,
) -> Float[Tensor, "sequences docs tokens"]:
    """The same, each prefix that sequences share once, and nothing that the search computed already.

    The sequences of a question are a tree of prefixes. The decoder goes down all trees level by level: at a level each
    context has a row for each prefix of its question, which goes on from its parent's row in the cache. What is
    expensive is normalising over the vocabulary: where the search went through a prefix from the same passage, it has
    done so.

    question: ascending. searched: the contexts whose keys these are, those that were found. found_as: which sequence
    each that was found is; −1 for none. race: what cannot win any more is not scored to its end; the log-probabilities
    of those sequences are no use.
    """
    docs, batch = contexts.n_docs, len(contexts.doc_logprobs)
    levels = _levels(question, tokens)
    logprobs = _nothing_scored(contexts, tokens)
    widest = max(int(torch.bincount(level.question).max()) for level in levels)
    at_once = STATES_AT_ONCE // (widest * tokens.shape[1] * keys.numbers_per_token)
    decoder, output = generator.model.get_decoder(), generator.output_layer
    for some in _chunks(len(searched), at_once):
        chunk = searched[some]
        asked, doc = chunk // docs, chunk % docs
        cache = keys[some].cache()
        rows_before, place_before = 1, torch.zeros_like(question)
        for i, level in enumerate(levels):
            race.narrow()
            runs_on = race.open & (level.of_sequence >= 0)
            if not runs_on.any():
                break
            kept = torch.unique(level.of_sequence[runs_on])  # prefixes
            grid = _Grid.of(level.question[kept], batch)
            place_of = torch.full_like(level.question, -1)
            place_of[kept] = grid.place
            prefixes = kept[grid.numbers[asked]]  # (chunk, prefixes of a question); any where there are fewer
            exists = grid.numbers[asked] >= 0
            if i > 0:
                parents = place_before[level.parent[prefixes]] * exists
                first = torch.arange(len(chunk), device=chunk.device).unsqueeze(1) * rows_before
                cross_attention.take_rows(cache, (first + parents).flatten())
                step = level.token[prefixes].masked_fill(~exists, generator.pad_token)
            else:
                step = torch.full_like(prefixes, generator.start_token)
            rows_before, place_before = prefixes.shape[1], place_of
            hidden = cross_attention.decode(
                decoder, step.flatten().unsqueeze(1), contexts.states[chunk], contexts.mask[chunk], cache
            ).view(*prefixes.shape, -1)
            if i < found.forced:
                continue

            normalisers = hidden.new_full(prefixes.shape, torch.nan, dtype=logprobs.dtype)
            here = (found.batch_row >= some.start) & (found.batch_row < some.stop) & (found_as >= 0)
            here &= runs_on[found_as]
            place = place_of[level.of_sequence[found_as[here]]]
            normalisers[found.batch_row[here] - some.start, place] = found.normalisers[here, 0, i]
            unknown = exists & normalisers.isnan()
            normalisers[unknown] = output.log_normalisers(hidden[unknown])

            sequences = race.own.numbers[asked]
            row, at = ((sequences >= 0) & runs_on[sequences]).nonzero(as_tuple=True)
            sequence = sequences[row, at]
            place = place_of[level.of_sequence[sequence]]
            logits = output.token_logits(hidden[row, place], tokens[sequence, i])
            of_token = logits - normalisers[row, place]
            logprobs[sequence, doc[row], i] = of_token
            race.add(sequence, doc[row], of_token)
    return logprobs


@dataclass(frozen=True)
class _Grid:
    """Things that belong to questions, and are numbered in the order of these, laid out in a row for each question."""

    numbers: Int[Tensor, "batch most"]  # −1 where a question has fewer than the most
    place: Int[Tensor, " things"]  # each thing's place in its question's row

    @classmethod
    def of(cls, question: Int[Tensor, " things"], batch: int) -> "_Grid":
        counts = torch.bincount(question, minlength=batch)
        place = torch.arange(len(question), device=question.device) - (counts.cumsum(0) - counts)[question]
        numbers = question.new_full((batch, int(counts.max())), -1)
        numbers[question, place] = torch.arange(len(question), device=question.device)
        return cls(numbers, place)


@dataclass(frozen=True)
class _Level:
    """The distinct prefixes of i tokens that sequences go on from, in the order of their questions."""

    question: Int[Tensor, " prefixes"]
    token: Int[Tensor, " prefixes"]  # the last of each
    parent: Int[Tensor, " prefixes"]  # what comes before it, one level up
    of_sequence: Int[Tensor, " sequences"]  # each sequence's prefix; −1 for those that end before


def _levels(question: Int[Tensor, " sequences"], tokens: Int[Tensor, "sequences tokens"]) -> list[_Level]:
    levels: list[_Level] = []
    before = question  # of each sequence, what its prefix goes on from
    for i in range(tokens.shape[1]):
        goes_on = tokens[:, i] != NO_TOKEN
        key = before * (tokens.max() + 1) + tokens[:, i - 1] if i else question
        # Sorted: the prefixes of a question stay together.
        _, of_those = torch.unique(key[goes_on], return_inverse=True)
        of_sequence = torch.full_like(question, -1)
        of_sequence[goes_on] = of_those
        one = question.new_zeros(int(of_those.max()) + 1)  # a sequence for each prefix
        one[of_those] = goes_on.nonzero().squeeze(1)
        parent = before[one] if i else torch.zeros_like(one)
        levels.append(_Level(question[one], tokens[one, i - 1], parent, of_sequence))
        before = of_sequence
    return levels


def _nothing_scored(
    contexts: Contexts, tokens: Int[Tensor, "sequences tokens"]
) -> Float[Tensor, "sequences docs tokens"]:
    dtype = torch.promote_types(contexts.states.dtype, torch.float32)
    shape = (len(tokens), contexts.n_docs, tokens.shape[1])
    return contexts.states.new_full(shape, -torch.inf, dtype=dtype)


def _chunks(length: int, size: int) -> Iterator[slice]:
    size = max(1, size)
    return (slice(start, start + size) for start in range(0, length, size))


@dataclass(frozen=True)
class _Scored:
    """N sequences: the question each is of, and what `Answer` says of it."""

    question: Int[Tensor, " found"]
    tokens: Int[Tensor, "found tokens"]  # NO_TOKEN after the last
    logprob: Float[Tensor, " found"]
    doc_scores: Float[Tensor, "found docs"]
    token_posterior: Float[Tensor, "found docs tokens"] | None

    def __getitem__(self, which: Int[Tensor, " chosen"] | Bool[Tensor, " found"]) -> "_Scored":
        by_token = None if self.token_posterior is None else self.token_posterior[which]
        return _Scored(
            self.question[which], self.tokens[which], self.logprob[which], self.doc_scores[which], by_token
        )

    def sorted(self) -> "_Scored":
        """Best first."""
        return self[torch.argsort(self.logprob, descending=True, stable=True)]


def _answers(generator: Generator, contexts: Contexts, scored: _Scored, count: int) -> list[list[Answer]]:
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
                rows=_rows(contexts, question),
            )
        )
    return [own or [_no_answer(contexts, question)] for question, own in enumerate(answers)]


def _no_answer(contexts: Contexts, question: int) -> Answer:
    """Where retrieval found nothing at all, nothing is known."""
    doc_logprobs = contexts.doc_logprobs[question].float().cpu()
    never = torch.full_like(doc_logprobs, -torch.inf)
    return Answer("", (), -torch.inf, doc_logprobs, never, never.exp(), None, _rows(contexts, question))


def _rows(contexts: Contexts, question: int) -> Int64[np.ndarray, " docs"]:
    return np.full(contexts.n_docs, -1) if contexts.retrieved is None else contexts.retrieved.rows[question]
