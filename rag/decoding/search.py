"""Section 2.5: one search over the marginal, by transformers' own `generate`."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from transformers import (
    Cache,
    GenerationConfig,
    GenerationMixin,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

from rag import marginalize
from rag.decoding import shared_contexts
from rag.decoding.settings import NO_TOKEN, Decoding, chunks
from rag.decoding.shared_contexts import SharedContexts
from rag.errors import UserError
from rag.generators.seq2seq import Generator


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
        states: Shaped[Tensor, "contexts ..."],
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
        self.shared: SharedContexts | None = None
        self.for_each_row: tuple[Tensor, Tensor] | None = None
        self.steps: list[Step] = []
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
        questions, docs = self.doc_logprobs.shape
        copies = len(decoder_input_ids) // questions
        ids = decoder_input_ids.unflatten(0, (questions, copies)).unsqueeze(1).expand(-1, docs, -1, -1)
        first = not self.steps
        if first and use_cache:
            self.shared = shared_contexts.share(self.generator, self.states, self.mask, past_key_values)
        if self.shared is not None:
            if first:  # the beams of a question are the same still
                ids = ids[:, :, :1]
            hidden = self.shared.decode(ids[..., -1:].flatten(0, 2))
            if first and copies > 1:
                contexts = torch.arange(len(self.states), device=hidden.device)
                self.shared.take_rows(contexts.repeat_interleave(copies))
        else:
            if self.for_each_row is None:
                self.for_each_row = (
                    self.states.repeat_interleave(copies, dim=0),
                    self.mask.repeat_interleave(copies, dim=0),
                )
            decoded, past_key_values = self.generator.decode_on(
                ids.flatten(0, 2), *self.for_each_row, past_key_values
            )
            hidden = decoded[:, -1]
        logprobs, normalisers = self._marginal(hidden.view(questions, docs, -1, hidden.shape[-1]))
        self.steps.append(Step(hidden.view(*normalisers.shape, -1), normalisers))
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
        for some in chunks(batch, at_once):
            states = side_by_side[some]
            # `generate` copies what it is given, so that the scores of the step before are free again.
            logits, normaliser = self.output.normalised(states.flatten(0, -2), self.scores)
            if self.scores is None or len(self.scores) < len(logits):
                self.scores = logits
            logits, normaliser = logits.view(*states.shape[:-1], -1), normaliser.view(states.shape[:-1])
            if self.alone:  # `generate` normalises where it has to
                marginals.append(logits.squeeze(2))
            elif docs == 1:  # a prior of 1
                marginals.append(logits.sub_(normaliser.unsqueeze(-1)).squeeze(2))
            else:
                marginals.append(marginalize.mixed_vocabulary(self.doc_logprobs[some], logits, normaliser))
            normalisers.append(normaliser)
        marginal = marginals[0] if len(marginals) == 1 else torch.cat(marginals)
        return marginal, torch.cat(normalisers).transpose(1, 2)

    def _reorder_cache(self, past_key_values: Cache, beam_idx: Int[Tensor, " batch"]) -> Cache:
        """Beams go on from other beams of their question, under each passage. Called by beam search at every step."""
        questions, docs = self.doc_logprobs.shape
        copies = len(beam_idx) // questions
        contexts = torch.arange(questions * docs, device=beam_idx.device).unsqueeze(1)
        beams = (beam_idx % copies).view(questions, 1, copies).expand(-1, docs, -1).flatten(0, 1)
        rows: Any = (contexts * copies + beams).flatten()
        if self.shared is not None:
            self.shared.take_rows(rows)
        else:
            past_key_values.reorder_cache(rows)
        return past_key_values


@dataclass(frozen=True)
class Step:
    """The decoder's states for the next token, and the logarithm of what normalises p_θ there.

    copies: beams or samples of a question, or 1 where they are all the same.
    """

    hidden: Float[Tensor, "batch docs copies width"]
    normalisers: Float[Tensor, "batch docs copies"]


@dataclass(frozen=True)
class SearchResult:
    """N generated sequences: tokens, NO_TOKEN after the last, and the row of the batch that each is of."""

    tokens: Int[Tensor, "found tokens"]
    forced: int  # leading tokens that were given, not generated: 1 with a forced first token, else 0
    batch_row: Int[Tensor, " found"]
    token_logprobs: Float[Tensor, "found docs tokens"]  # log p_θ(y_i|x,z,y_<i) of these tokens
    normalisers: Float[Tensor, "found docs tokens"]  # the logarithm of what normalises p_θ there
    shared: SharedContexts | None  # the contexts, (batch · docs) of them; None where each row had a copy


def search(
    generator: Generator,
    states: Shaped[Tensor, "contexts ..."],
    mask: Bool[Tensor, "contexts length"],
    doc_logprobs: Float[Tensor, "batch docs"],
    decoding: Decoding,
    count: int,
    alone: bool,
    generate_kwargs: dict[str, Any],
) -> SearchResult:
    """Generate `count` sequences for each row of a batch from the marginal over its `docs` passages.

    alone: each row is one context that the generator reads by itself, and no marginal over one passage.
    """
    config = generation_config(generator, decoding, count)
    rest = config.update(**generate_kwargs)  # what is not a setting: processors, streamer, …
    forced = int(config.forced_bos_token_id is not None)
    # A first token that is given takes none of the answer's; transformers counts it among the new ones.
    config.max_new_tokens = decoding.max_new_tokens + forced
    if decoding.min_new_tokens:
        config.min_new_tokens = decoding.min_new_tokens + forced
    check_positions(generator, decoding)
    config.return_dict_in_generate = True
    ends = None
    if criteria := rest.get("stopping_criteria"):
        ends = _Ends(criteria)
        rest["stopping_criteria"] = StoppingCriteriaList([ends])
    marginal: Any = MarginalForGeneration(generator, states, mask, doc_logprobs, alone)
    # Of questions, which are never padded: without it transformers warns where padding is the end-of-sequence token.
    seen = torch.ones(len(doc_logprobs), 1, dtype=torch.long, device=mask.device)
    output = marginal.generate(
        generation_config=config, encoder_outputs=marginal.questions, attention_mask=seen, **rest
    )
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
    sequence = torch.arange(len(tokens), device=tokens.device)
    token_logprobs, normalisers = [], []
    for i, step in enumerate(marginal.steps[: tokens.shape[1]]):
        batch, docs, copies = step.normalisers.shape
        row = sequence if beams is None else beams[:, i].clamp(min=0).long()
        question = row // (len(sequence) // batch if beams is None else decoding.num_beams)
        indices = (question, slice(None), row % copies)
        normalisers.append(step.normalisers[indices])
        logits = marginal.output.token_logits(step.hidden[indices], tokens[:, i : i + 1].expand(-1, docs))
        token_logprobs.append(logits - normalisers[-1])
    return SearchResult(
        tokens.masked_fill(~real, NO_TOKEN),
        forced,
        sequence // count,
        torch.stack(token_logprobs, dim=2),
        torch.stack(normalisers, dim=2),
        marginal.shared,
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


def generation_config(generator: Generator, decoding: Decoding, count: int) -> GenerationConfig:
    """What `generate` is told: the decoding settings, our special tokens and the generator's forced ones."""
    of_generator = getattr(generator.model, "generation_config", None)
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
        forced_eos_token_id=getattr(of_generator, "forced_eos_token_id", None),
        **settings,
    )


def check_positions(generator: Generator, decoding: Decoding) -> None:
    """UserError where the generator has no place for so many tokens beside a forced first one."""
    forced = int(generator.first_token is not None)
    positions = generator.answer_positions
    if positions is not None and decoding.max_new_tokens + forced > positions:
        raise UserError(
            f"decoding.max_new_tokens is {decoding.max_new_tokens} but the generator has {positions} positions for an "
            f"answer{', one of them for its forced first token' if forced else ''}: give at most {positions - forced}"
        )
