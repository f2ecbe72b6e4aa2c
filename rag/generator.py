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
from rag.encoders import check_vocabulary, load_pretrained
from rag.errors import UserError
from rag.files import read_json, write_json

log = logging.getLogger(__name__)

SETTINGS = "rag_generator.json"

# How many logits (rows × V) are held at once while scoring: 64 MiB in float32.
LOGITS_AT_ONCE = 1 << 24
# How many numbers of encoder states are computed at once where no gradient is wanted: on a CPU few enough to stay
# in its caches, on an accelerator enough to keep it busy.
ENCODED_AT_ONCE_ON_CPU, ENCODED_AT_ONCE = 1 << 18, 1 << 26


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
        self.model: Any = model
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
    def from_pretrained(cls, path: str | Path, **settings: Any) -> Self:
        """Load a folder or hub id, such as facebook/bart-large.

        `settings` are the constructor's; those not given are as they were when the folder was written here.
        """
        model, tokenizer = load_pretrained(AutoModelForSeq2SeqLM, path, "sequence-to-sequence model")
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
        padding is. A training step on a GPU is faster in one piece.
        """
        on_cpu = input_ids.device.type == "cpu"
        at_once = ENCODED_AT_ONCE_ON_CPU if on_cpu else ENCODED_AT_ONCE
        rows_at_once = max(1, at_once // max(1, input_ids.shape[1] * self.model.config.hidden_size))
        if (torch.is_grad_enabled() and not on_cpu) or len(input_ids) <= rows_at_once:
            return self._encode(input_ids, mask)
        ends = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(dim=1).clamp(min=1)
        ends, order = ends.sort()
        pieces = []
        for rows, own in zip(order.split(rows_at_once), ends.split(rows_at_once), strict=True):
            longest = int(own[-1])
            encoded = self._encode(input_ids[rows, :longest], mask[rows, :longest])
            pieces.append(nn.functional.pad(encoded, (0, 0, 0, mask.shape[1] - longest)))
        return torch.cat(pieces)[order.argsort()]

    def _encode(
        self, input_ids: Int[Tensor, "rows length"], mask: Bool[Tensor, "rows length"]
    ) -> Float[Tensor, "rows length width"]:
        return self.model.get_encoder()(input_ids=input_ids, attention_mask=mask.long()).last_hidden_state

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
        inputs = labels.roll(1, dims=1)
        inputs[:, 0] = self.start_token
        hidden = self.model.get_decoder()(
            input_ids=inputs,
            encoder_hidden_states=states,
            encoder_attention_mask=mask.long(),
            use_cache=False,
        ).last_hidden_state
        rows = self.rows_at_once
        flat_hidden, flat_labels = hidden.flatten(0, 1), labels.flatten()
        if len(flat_labels) <= rows:
            scored = [self._score(flat_hidden, flat_labels, want_mean)]
        else:
            scored = [
                checkpoint(self._score, h, y, want_mean, use_reentrant=False, preserve_rng_state=False)
                for h, y in zip(flat_hidden.split(rows), flat_labels.split(rows), strict=True)
            ]
        targets, means = zip(*scored, strict=True)
        shape = labels.shape
        return torch.cat(targets).view(shape), torch.cat(means).view(shape) if want_mean else None

    def _score(self, hidden: Tensor, labels: Tensor, want_mean: bool) -> tuple[Tensor, Tensor | None]:
        # One pass over V; logsumexp makes several.
        logprobs = marginalize.at_least_float32(self.logits(hidden)).log_softmax(dim=-1)
        target = logprobs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
        return target, logprobs.mean(dim=-1) if want_mean else None

    @property
    def rows_at_once(self) -> int:
        """How many rows of logits are held at once."""
        return max(1, LOGITS_AT_ONCE // self.model.config.vocab_size)

    def log_normalisers(self, hidden: Float[Tensor, "rows width"]) -> Float[Tensor, " rows"]:
        """log Σ_v exp(logit of v) for the decoder's states, without gradient; a few rows at a time."""
        parts = []
        for some in hidden.detach().split(self.rows_at_once):
            logits = marginalize.at_least_float32(self.logits(some))
            top = logits.amax(dim=-1, keepdim=True)
            parts.append(logits.sub_(top).exp_().sum(dim=-1).log_() + top.squeeze(-1))
        return torch.cat(parts) if parts else hidden.new_zeros(0)

    def token_logits(
        self, hidden: Float[Tensor, "*rows width"], tokens: Int[Tensor, "*rows"]
    ) -> Float[Tensor, "*rows"]:
        """The score of one token in each of the decoder's states."""
        output = self.model.get_output_embeddings()
        logits = (self._scaled(hidden) * output.weight[tokens]).sum(dim=-1)
        for bias in (output.bias, getattr(self.model, "final_logits_bias", None)):
            if bias is not None:
                logits = logits + bias.flatten()[tokens]
        return marginalize.at_least_float32(logits)

    def _scaled(self, hidden: Tensor) -> Tensor:
        config = self.model.config
        # T5 with tied embeddings
        return hidden * config.d_model**-0.5 if getattr(config, "scale_decoder_outputs", False) else hidden

    def logits(self, hidden: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows vocab"]:
        """The scores over the vocabulary of the decoder's states."""
        logits = self.model.get_output_embeddings()(self._scaled(hidden))
        bias = getattr(self.model, "final_logits_bias", None)  # BART
        return logits if bias is None else logits.add_(bias)


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
