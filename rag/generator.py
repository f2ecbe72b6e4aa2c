"""Section 2.3: the generator, log p_θ(y_i | x, z, y_<i), any sequence-to-sequence model; BART in the paper.

It reads "title / text // question". The passage's part was tokenised when the index was built and the
question's part when the batch was made, so a context is put together from arrays of tokens. Where it would be
too long the passage is cut, never the question.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

import rag.lstm  # noqa: F401  so that folders that hold such a model are known to transformers
from rag import marginalize
from rag.encoders import FLOAT32, check_vocabulary, load_pretrained, plain_outputs
from rag.errors import UserError
from rag.files import read_json, write_json

log = logging.getLogger(__name__)

SETTINGS = "rag_generator.json"

# How many logits (rows × V) are held at once while scoring: 64 MiB in float32.
LOGITS_AT_ONCE = 1 << 24
# How many logits are computed together on a CPU where their sum is wanted (512 KiB in float32), and the fewest words to
# do so for.
SCORED_AT_ONCE, WORDS_AT_ONCE = 1 << 17, 1_024
# How many numbers of encoder states are computed at once where no gradient is wanted: on a CPU few enough to stay
# in its caches, on an accelerator enough to keep it busy.
ENCODED_AT_ONCE_ON_CPU, ENCODED_AT_ONCE = 1 << 18, 1 << 26
# How many numbers a training step keeps of the encoder, and half as many of the decoder, for its backward pass; what
# goes beyond is computed again there. 256 MiB in float32; on an accelerator an eighth as many as it has bytes.
KEPT_ON_CPU = 1 << 26
# A layer keeps about so many numbers for each one of a token's state: 4 of the feed-forward part twice, queries, keys,
# values, what was read, norms and sums.
KEPT_IN_A_LAYER = 18


@dataclass(frozen=True)
class Ragged:
    """Rows of tokens of different lengths, laid end to end."""

    tokens: Int64[np.ndarray, " total"]
    lengths: Int64[np.ndarray, " rows"]

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> "Ragged":
        lengths = np.fromiter((len(row) for row in rows), np.int64, len(rows))
        tokens = np.fromiter((token for row in rows for token in row), np.int64, int(lengths.sum()))
        return cls(tokens, lengths)

    def repeat(self, times: int) -> "Ragged":
        """Each row `times` times in a row."""
        return Ragged(
            self.tokens[positions(np.repeat(self.starts, times), np.repeat(self.lengths, times))],
            np.repeat(self.lengths, times),
        )

    @property
    def starts(self) -> Int64[np.ndarray, " rows"]:
        return np.cumsum(self.lengths) - self.lengths


def positions(
    starts: Int64[np.ndarray, " rows"], lengths: Int64[np.ndarray, " rows"]
) -> Int64[np.ndarray, " total"]:
    """The integers starts[r], …, starts[r] + lengths[r] − 1 of every row r, laid end to end."""
    first = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum())) + np.repeat(starts - first, lengths)


class Generator(nn.Module):
    """A sequence-to-sequence model with its tokenizer, and how a passage and a question become its input.

    max_context_length: tokens of title, text, question and separators together (300 in the released models).
    max_target_length: tokens of an answer in training, end-of-sequence included; longer ones are cut, with
        one warning.
    prefix: stands before the title; a space in the released models.
    lowercase_questions: the generator reads questions in lower case, as the released models were trained to.

    Raises UserError where the tokenizer and the model do not belong together or lack a special token.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_context_length: int = 300,
        max_target_length: int = 25,
        title_separator: str = " / ",
        passage_separator: str = " // ",
        prefix: str = "",
        lowercase_questions: bool = False,
    ):
        super().__init__()
        self.model: Any = plain_outputs(model)
        self.tokenizer = tokenizer
        limit = getattr(model.config, "max_position_embeddings", None) or max(
            max_context_length, max_target_length
        )
        self.max_context_length = min(max_context_length, limit)
        self.max_target_length = min(max_target_length, limit)
        self.title_separator = title_separator
        self.passage_separator = passage_separator
        self.prefix = prefix
        self.lowercase_questions = lowercase_questions
        check_vocabulary(tokenizer, self.model, "generator")
        if not isinstance(tokenizer.eos_token_id, int) or not isinstance(tokenizer.pad_token_id, int):
            raise UserError("the generator's tokenizer has no end-of-sequence or no padding token: set both")
        if not isinstance(model.config.decoder_start_token_id, int):
            raise UserError("the generator's config has no decoder_start_token_id: set it")
        self.end_token: int = tokenizer.eos_token_id
        self.pad_token: int = tokenizer.pad_token_id
        self._prefix, self._suffix = special_tokens(tokenizer)
        self._warned = False

    @classmethod
    def from_pretrained(cls, path: str | Path, dtype: str = FLOAT32, **settings: Any) -> Self:
        """Load a folder or hub id, such as facebook/bart-large.

        dtype: of the weights, whatever they were saved as. `settings` are the constructor's; those
        not given are as they were when the folder was written here.
        """
        model, tokenizer = load_pretrained(AutoModelForSeq2SeqLM, path, "sequence-to-sequence model", dtype)
        saved = read_json(Path(path) / SETTINGS) if (Path(path) / SETTINGS).is_file() else {}
        return cls(model, tokenizer, **(saved | settings))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model, tokenizer and settings; transformers reads the first two."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        write_json(Path(folder) / SETTINGS, self.settings)

    @property
    def settings(self) -> dict[str, Any]:
        """What the constructor was given, beside model and tokenizer."""
        names = ("max_context_length", "max_target_length", "title_separator", "passage_separator", "prefix")
        return {name: getattr(self, name) for name in (*names, "lowercase_questions")}

    @property
    def start_token(self) -> int:
        """What the decoder sees before the first token, the same in training and in generation."""
        return self.model.config.decoder_start_token_id

    @property
    def first_token(self) -> int | None:
        """A token that is given, like the start token, and never scored: <s> for facebook/bart-large.

        It is the `forced_bos_token_id` of the model's generation_config; most models have none.
        """
        return getattr(getattr(self.model, "generation_config", None), "forced_bos_token_id", None)

    # -- text to tokens ---------------------------------------------------------------------------

    def tokenize_questions(self, questions: Sequence[str], separator: bool = True) -> Ragged:
        """The tokens that follow a passage, " // question"; those of "question" if not `separator`."""
        start = self.passage_separator if separator else ""
        if self.lowercase_questions:
            questions = [question.lower() for question in questions]
        return Ragged.of(token_rows(self.tokenizer, [start + question for question in questions]))

    def tokenize_targets(
        self, targets: Sequence[str]
    ) -> tuple[Int[Tensor, "batch tokens"], Bool[Tensor, "batch tokens"]]:
        """Labels with end-of-sequence and without a start token, padded, and the mask of real tokens."""
        rows = token_rows(self.tokenizer, targets)
        longest = max(map(len, rows), default=0) + 1
        if longest > self.max_target_length and not self._warned:
            self._warned = True
            log.warning(
                "a target of %d tokens was cut to generator.max_target_length = %d; later ones are cut "
                "without a word",
                longest,
                self.max_target_length,
            )
        return self.pad(Ragged.of([[*row[: self.max_target_length - 1], self.end_token] for row in rows]))

    def assemble(
        self, questions: Ragged, passages: Ragged | None = None
    ) -> tuple[Int[Tensor, "rows length"], Bool[Tensor, "rows length"]]:
        """Contexts "<s> title / text // question </s>", padded to the longest, and the mask of real tokens.

        questions, passages: one row of tokens for each context. A passage is cut to what the question leaves
        free of `max_context_length`. Raises UserError where a question alone is too long for that.
        """
        free = self.max_context_length - len(self._prefix) - len(self._suffix) - questions.lengths
        if free.size and free.min() < 0:
            raise UserError(
                f"a question of {int(questions.lengths.max())} tokens, its separator included, does not fit "
                f"the generator's context of {self.max_context_length}: shorten it or raise "
                "generator.max_context_length"
            )
        rows = len(questions.lengths)
        parts = [(np.tile(self._prefix, rows), np.full(rows, len(self._prefix)))]
        if passages is not None:
            kept = np.minimum(passages.lengths, free)
            parts.append((passages.tokens[positions(passages.starts, kept)], kept))
        parts += [
            (questions.tokens, questions.lengths),
            (np.tile(self._suffix, rows), np.full(rows, len(self._suffix))),
        ]
        lengths = np.sum([length for _, length in parts], axis=0)
        tokens = np.empty(int(lengths.sum()), np.int64)
        start = np.cumsum(lengths) - lengths
        for part, length in parts:
            tokens[positions(start, length)] = part
            start = start + length
        return self.pad(Ragged(tokens, lengths))

    def pad(self, rows: Ragged) -> tuple[Int[Tensor, "rows length"], Bool[Tensor, "rows length"]]:
        """Rows of tokens padded to the longest, and the mask of real tokens."""
        mask = np.arange(rows.lengths.max(initial=0)) < rows.lengths[:, None]
        ids = np.full(mask.shape, self.pad_token, np.int64)
        ids[mask] = rows.tokens
        return torch.from_numpy(ids), torch.from_numpy(mask)

    # -- tokens to probabilities ------------------------------------------------------------------

    def encode(
        self, input_ids: Int[Tensor, "rows length"], mask: Bool[Tensor, "rows length"]
    ) -> Float[Tensor, "rows length width"]:
        """The encoder's states of each context; whatever stands at padding is not to be read.

        On the CPU, and wherever no gradient is wanted, contexts of like length are encoded together, so that little
        padding is. A training step on a GPU is faster in one piece. Where a step would keep more than it may for its
        backward pass, the rest of the contexts are encoded again there.
        """
        on_cpu = input_ids.device.type == "cpu"
        at_once = ENCODED_AT_ONCE_ON_CPU if on_cpu else ENCODED_AT_ONCE
        rows_at_once = max(1, at_once // max(1, input_ids.shape[1] * self.model.config.hidden_size))
        kept = self._kept_by(input_ids.numel()) if torch.is_grad_enabled() else 0
        in_one_piece = len(input_ids) <= rows_at_once or (torch.is_grad_enabled() and not on_cpu)
        if in_one_piece and kept <= self._may_keep:
            return self._encode(self._embedded("encoder", input_ids), mask)
        ends = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(dim=1).clamp(min=1)
        ends, order = ends.sort()
        inputs, mask = self._embedded("encoder", input_ids[order]), mask[order]
        pieces, kept = [], 0
        for some, own in zip(_slices(len(order), rows_at_once), ends.split(rows_at_once), strict=True):
            longest = int(own[-1])
            piece = inputs[some, :longest], mask[some, :longest]
            kept += self._kept_by(piece[1].numel())
            if torch.is_grad_enabled() and kept > self._may_keep:
                encoded = checkpoint(self._encode, *piece, use_reentrant=False)
            else:
                encoded = self._encode(*piece)
            pieces.append(nn.functional.pad(encoded, (0, 0, 0, mask.shape[1] - longest)))
        return torch.cat(pieces)[order.argsort()]

    def _encode(
        self, inputs: Tensor, mask: Bool[Tensor, "rows length"]
    ) -> Float[Tensor, "rows length width"]:
        name = "inputs_embeds" if inputs.is_floating_point() else "input_ids"
        return self.model.get_encoder()(**{name: inputs}, attention_mask=mask.long()).last_hidden_state

    def _embedded(self, part: str, tokens: Int[Tensor, "rows tokens"]) -> Tensor:
        """The tokens' embeddings where a model takes them, else the tokens.

        Each look-up has a gradient of the size of the whole vocabulary: one for all pieces of a batch is enough.
        """
        embeddings = getattr(getattr(self.model, f"get_{part}")(), "embed_tokens", None)
        return tokens if embeddings is None else embeddings(tokens)

    def _kept_by(self, tokens: int) -> int:
        """How many numbers the encoder, or the decoder, keeps of so many tokens for the backward pass, about."""
        config = self.model.config
        return tokens * config.num_hidden_layers * config.hidden_size * KEPT_IN_A_LAYER

    @property
    def _may_keep(self) -> int:
        device = self.model.device
        if device.type != "cuda":
            return KEPT_ON_CPU
        return torch.cuda.get_device_properties(device).total_memory // 8

    def token_logprobs(
        self,
        states: Float[Tensor, "rows length width"],
        mask: Bool[Tensor, "rows length"],
        labels: Int[Tensor, "rows tokens"],
        want_mean: bool = False,
    ) -> tuple[Float[Tensor, "rows tokens"], Float[Tensor, "rows tokens"] | None]:
        """log p_θ(y_i | context, y_<i) of each label, in nats; if wanted, also the mean of log p_θ over V.

        The log-probabilities of the whole vocabulary are never held at once but for a chunk of rows at a
        time, computed again in the backward pass.
        """
        tokens = labels.roll(1, dims=1)
        tokens[:, 0] = self.start_token
        inputs = self._embedded("decoder", tokens)
        # Cross-attention keeps a key and a value of each token of the context.
        per_row = self._kept_by(labels.shape[1]) + self._kept_by(mask.shape[1]) * 2 // KEPT_IN_A_LAYER
        may_keep = self._may_keep // 2
        if not torch.is_grad_enabled() or len(labels) * per_row <= may_keep:
            hidden = self._decode(inputs, states, mask)
        else:
            rows, pieces = max(1, may_keep // (4 * per_row)), []
            for some in _slices(len(labels), rows):
                piece = inputs[some], states[some], mask[some]
                if some.stop * per_row > may_keep:
                    pieces.append(checkpoint(self._decode, *piece, use_reentrant=False))
                else:
                    pieces.append(self._decode(*piece))
            hidden = torch.cat(pieces)
        targets, means = _TargetScores.apply(
            self._scaled(hidden).flatten(0, 1),
            *self._output_weights(),
            labels.flatten(),
            self,
            want_mean,
        )
        return targets.view(labels.shape), means.view(labels.shape) if want_mean else None

    def _decode(
        self, inputs: Tensor, states: Float[Tensor, "rows length width"], mask: Bool[Tensor, "rows length"]
    ) -> Float[Tensor, "rows tokens width"]:
        name = "inputs_embeds" if inputs.is_floating_point() else "input_ids"
        return self.model.get_decoder()(
            **{name: inputs},
            encoder_hidden_states=states,
            encoder_attention_mask=mask.long(),
            use_cache=False,
        ).last_hidden_state

    def _output_weights(self) -> tuple[Tensor, Tensor | None]:
        output = self.model.get_output_embeddings()
        return output.weight, output.bias

    @property
    def rows_at_once(self) -> int:
        """How many rows of logits are held at once."""
        return max(1, LOGITS_AT_ONCE // self.model.config.vocab_size)

    def normalised(
        self, hidden: Float[Tensor, "rows width"], into: Float[Tensor, "more vocab"] | None = None
    ) -> tuple[Float[Tensor, "rows vocab"], Float[Tensor, " rows"]]:
        """The scores over the vocabulary of the decoder's states, and `log_normalisers`, without gradient.

        into: scores that nobody reads any more; on a CPU, memory that is new costs as much as half the scores.
        """
        if hidden.device.type != "cpu":
            logits = marginalize.at_least_float32(self.logits(hidden))
            return logits, logits.logsumexp(dim=-1)
        if into is None or len(into) < len(hidden):
            shape = len(hidden), len(self._output_weights()[0])
            into = hidden.new_empty(shape, dtype=torch.promote_types(hidden.dtype, torch.float32))
        logits = into[: len(hidden)]
        return logits, self.log_normalisers(hidden, logits)

    def log_normalisers(
        self, hidden: Float[Tensor, "rows width"], into: Float[Tensor, "rows vocab"] | None = None
    ) -> Float[Tensor, " rows"]:
        """log Σ_v exp(logit of v) for the decoder's states, without gradient.

        On a CPU for some words after the others, whose logits stay in its caches: nothing of the size of the vocabulary
        is written to memory, unless `into` is to hold the logits.
        """
        if hidden.device.type != "cpu":
            parts = [self.normalised(some)[1] for some in hidden.split(self.rows_at_once)]
            return torch.cat(parts) if parts else hidden.new_zeros(0)
        scaled = self._scaled(hidden.detach())
        weight, bias = self._output_weights()
        biases = [each.flatten() for each in (bias, self._final_bias) if each is not None]
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        top = hidden.new_full((len(hidden), 1), torch.finfo(dtype).min, dtype=dtype)
        total = torch.zeros_like(top)
        for words in _slices(len(weight), max(WORDS_AT_ONCE, SCORED_AT_ONCE // max(1, len(scaled)))):
            logits = marginalize.at_least_float32(nn.functional.linear(scaled, weight[words]))
            for each in biases:
                if (own_bias := each[words]).any():  # BART's is of zeros but for a few words, if any
                    logits += own_bias
            if into is not None:
                into[:, words] = logits
            highest = torch.maximum(top, logits.amax(dim=-1, keepdim=True))
            own = logits.sub_(highest).exp_().sum(dim=-1, keepdim=True)
            total.mul_((top - highest).exp_()).add_(own)
            top = highest
        return total.log_().add_(top).squeeze(-1)

    def token_logits(
        self, hidden: Float[Tensor, "*rows width"], tokens: Int[Tensor, "*rows"]
    ) -> Float[Tensor, "*rows"]:
        """The score of one token in each of the decoder's states."""
        output = self.model.get_output_embeddings()
        logits = (self._scaled(hidden) * output.weight[tokens]).sum(dim=-1)
        for bias in (output.bias, self._final_bias):
            if bias is not None:
                logits = logits + bias.flatten()[tokens]
        return marginalize.at_least_float32(logits)

    def _scaled(self, hidden: Tensor) -> Tensor:
        config = self.model.config
        # T5 with tied embeddings
        return hidden * config.d_model**-0.5 if getattr(config, "scale_decoder_outputs", False) else hidden

    def logits(self, hidden: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows vocab"]:
        """The scores over the vocabulary of the decoder's states."""
        return self._logits_of_scaled(self._scaled(hidden))

    def _logits_of_scaled(self, hidden: Tensor) -> Tensor:
        logits, bias = self.model.get_output_embeddings()(hidden), self._final_bias
        return logits if bias is None else logits.add_(bias)

    @property
    def _final_bias(self) -> Tensor | None:
        """What BART adds to its logits: zeros in every published model, which on a CPU are not worth adding."""
        bias = getattr(self.model, "final_logits_bias", None)
        return None if bias is None or (bias.device.type == "cpu" and not bias.any()) else bias


class _TargetScores(torch.autograd.Function):
    """log p_θ of one token in each of the decoder's states, and the mean over V where wanted.

    logit − log Σ_v exp(logit_v): the scores over the vocabulary are held for a chunk of rows at a time, in one buffer,
    and computed again in the backward pass; they are kept where one chunk is all. What each row is worth is known
    only after the marginal, so that nothing of the gradient could be computed forward.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        generator: Generator,
        want_mean: bool,
    ) -> tuple[Tensor, Tensor | None]:
        device = hidden.device.type
        ctx.generator, ctx.has_bias, ctx.want_mean = generator, bias is not None, want_mean
        ctx.autocast = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        rows = generator.rows_at_once
        targets, means, normalisers = [], [], []
        probabilities = None
        for some, own in zip(hidden.detach().split(rows), labels.split(rows), strict=True):
            logits = marginalize.at_least_float32(generator._logits_of_scaled(some))
            top = logits.amax(dim=-1)
            target = logits.gather(-1, own.unsqueeze(-1)).squeeze(-1)
            if want_mean:
                means.append(logits.mean(dim=-1))
            total = logits.sub_(top.unsqueeze(-1)).exp_().sum(dim=-1)
            if len(hidden) <= rows:
                probabilities = logits.div_(total.unsqueeze(-1))
            normalisers.append(top + total.log_())
            targets.append(target - normalisers[-1])
            if want_mean:
                means[-1] -= normalisers[-1]
        ctx.save_for_backward(hidden, weight, labels, torch.cat(normalisers), probabilities)
        return torch.cat(targets), torch.cat(means) if want_mean else None

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        of_target, of_mean = gradients
        hidden, weight, labels, normalisers, probabilities = ctx.saved_tensors
        hidden = hidden.detach()
        generator, (enabled, dtype) = ctx.generator, ctx.autocast
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        to_hidden = torch.empty_like(hidden) if needs_hidden else None
        to_weight = torch.zeros_like(weight) if needs_weight else None
        to_bias = weight.new_zeros(len(weight)) if needs_bias else None
        rows = generator.rows_at_once
        with torch.autocast(hidden.device.type, dtype=dtype, enabled=enabled):
            for some in _slices(len(hidden), rows):
                # d log p(y) / d logit_v = [v = y] − p_v, and of the mean 1/V − p_v
                ours = of_target[some]
                factor = -(ours + of_mean[some] if ctx.want_mean else ours).unsqueeze(-1)
                if probabilities is None:
                    logits = marginalize.at_least_float32(generator._logits_of_scaled(hidden[some]))
                    logits.sub_(normalisers[some].unsqueeze(-1)).exp_().mul_(factor)
                else:
                    logits = probabilities * factor
                logits.scatter_add_(-1, labels[some].unsqueeze(-1), ours.unsqueeze(-1))
                if ctx.want_mean:
                    logits.add_(of_mean[some].unsqueeze(-1) / logits.shape[-1])
                if to_bias is not None:
                    to_bias += logits.sum(dim=0)
                logits = logits.to(hidden.dtype)
                if to_hidden is not None:
                    to_hidden[some] = logits @ weight
                if to_weight is not None:
                    if enabled:
                        to_weight += logits.T @ hidden[some]
                    else:
                        to_weight.addmm_(logits.T, hidden[some])
        return to_hidden, to_weight, to_bias, None, None, None


def _slices(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def token_rows(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], special: bool = False
) -> list[list[int]]:
    """The token ids of each text, whole, with or without the tokenizer's special tokens."""
    if not texts:
        return []
    encoded = tokenizer(
        list(texts), add_special_tokens=special, truncation=False, padding=False, verbose=False
    )
    return cast(list[list[int]], encoded["input_ids"])


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The tokens a tokenizer puts before and after a text: ([<s>], [</s>]) for BART, ([], [</s>]) for T5."""
    plain, whole = token_rows(tokenizer, ["a"])[0], token_rows(tokenizer, ["a"], special=True)[0]
    for start in range(len(whole) - len(plain) + 1 if plain else 0):
        if whole[start : start + len(plain)] == plain:
            return whole[:start], whole[start + len(plain) :]
    raise UserError(
        "the generator's tokenizer makes nothing of the letter a, or something else when it adds special "
        "tokens: take one with an unknown token or a fuller vocabulary"
    )
