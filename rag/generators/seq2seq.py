"""Section 2.3: the generator, log p_θ(y_i | x, z, y_<i), any sequence-to-sequence model; BART in the paper.

It reads "title / text // question". The passage's part was tokenised when the index was built and the
question's part when the batch was made, so a context is put together from arrays of tokens. Where it would be
too long the passage is cut, never the question.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

import rag.generators.lstm  # noqa: F401  so that folders that hold such a model are known to transformers
import rag.generators.warm_start  # noqa: F401  the same
from rag.errors import UserError
from rag.files import write_json
from rag.generators.attention import cross_attention_scores
from rag.generators.context import Ragged, positions, special_tokens, token_rows
from rag.generators.encoder_decoder import AutoSeq2Seq, EncoderDecoderModel, complete
from rag.generators.output_layer import OutputLayer, check_output_layer, output_layer
from rag.memory import numbers_at_once
from rag.parts import TrainedPart, describe, read_settings
from rag.pretrained import FLOAT32, check_vocabulary, checkpoint_layers, load_pretrained, plain_outputs
from rag.products import quicken
from rag.runs import FOLDER

log = logging.getLogger(__name__)

SETTINGS = "rag_generator.json"

# How many numbers of encoder states are computed at once: on a CPU few enough to stay in its caches, on an accelerator
# enough to keep it busy; fewer where a gradient is wanted, so that little padding is.
ENCODED_AT_ONCE_ON_CPU, ENCODED_AT_ONCE, TRAINED_AT_ONCE = 1 << 18, 1 << 26, 1 << 25
# How many numbers a training step keeps of the encoder, and half as many of the decoder, for its backward pass; what
# goes beyond is computed again there. 128 MiB in float32; on an accelerator an eighth as many as it has bytes, or under
# autocast, where a number takes less than three, a sixth: half of the memory in either case, and half as much again.
KEPT_ON_CPU = 1 << 25
# A layer keeps about so many numbers for each one of a token's state: 4 of the feed-forward part twice, queries, keys,
# values, what was read, norms and sums.
KEPT_IN_A_LAYER = 18


@runtime_checkable
class LearnsUnevenly(Protocol):
    """A model some of whose modules learn at a multiple of the generator's rate: new ones beside pretrained ones."""

    def learning_rates(self) -> Sequence[tuple[nn.Module, float]]:
        """Modules and multiples; the first that holds a weight counts."""
        ...


class Generator(nn.Module):
    """A sequence-to-sequence model with its tokenizer, and how a passage and a question become its input.

    max_context_length: tokens of title, text, question and separators together (300 in the released models).
    max_target_length: tokens of an answer in training, end-of-sequence included; longer ones are cut, with
        one warning.
    prefix: stands before the title; a space in the released models.
    lowercase_questions: the generator reads questions in lower case, as the released models were trained to.
    question_first: it reads "question // title / text" instead, as BERT-like readers were trained to.
    quote: the text of an answer is the passage's own characters where a passage holds its tokens, as they stand there.

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
        question_first: bool = False,
        quote: bool = False,
    ):
        super().__init__()
        for name, length in {
            "max_context_length": max_context_length,
            "max_target_length": max_target_length,
        }.items():
            if not isinstance(length, int) or isinstance(length, bool) or length < 1:
                raise UserError(
                    f"generator.{name}={length} is no length: give a whole number of tokens, 1 at least"
                )
        self.model: Any = quicken(plain_outputs(model))
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
        self.question_first = question_first
        self.quote = quote
        check_vocabulary(tokenizer, self.model, "generator")
        if not isinstance(tokenizer.eos_token_id, int) or not isinstance(tokenizer.pad_token_id, int):
            raise UserError("the generator's tokenizer has no end-of-sequence or no padding token: set both")
        self._check_start()
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
        model, tokenizer = load_pretrained(AutoSeq2Seq, path, "sequence-to-sequence model", dtype)
        if isinstance(model, EncoderDecoderModel):
            complete(model, tokenizer)
        generator = cls(model, tokenizer, **(read_settings(cls, Path(path) / SETTINGS) | settings))
        check_output_layer(model, generator.start_token)
        return generator

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model, tokenizer and settings; transformers reads the first two."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        write_json(Path(folder) / SETTINGS, self.settings)

    def recompute_layers(self) -> None:
        """Keep only each layer's input for the backward pass; UserError where the model cannot."""
        checkpoint_layers(self.model)

    def trained_parts(self) -> list[TrainedPart]:
        faster = self.model.learning_rates() if isinstance(self.model, LearnsUnevenly) else ()
        return [TrainedPart("generator", self, "generator", self.save_pretrained, faster)]

    def description(self) -> dict[str, Any]:
        return describe(type(self).from_pretrained, path=f"{FOLDER}/generator")

    @property
    def settings(self) -> dict[str, Any]:
        """What the constructor was given, beside model and tokenizer."""
        names = ("max_context_length", "max_target_length", "title_separator", "passage_separator", "prefix")
        names = (*names, "lowercase_questions", "question_first", "quote")
        return {name: getattr(self, name) for name in names}

    def _check_start(self) -> None:
        if not isinstance(self.model.config.decoder_start_token_id, int):
            raise UserError("the generator's config has no decoder_start_token_id: set it")

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

    @property
    def answer_positions(self) -> int | None:
        """How many tokens an answer may have; None where the model has no limit."""
        return getattr(self.model.config, "max_position_embeddings", None)

    @property
    def room(self) -> int:
        """How many tokens a context has for passage and question together."""
        return self.max_context_length - len(self._prefix) - len(self._suffix)

    # -- text to tokens ---------------------------------------------------------------------------

    def tokenize_questions(self, questions: Sequence[str], separator: bool = True) -> Ragged:
        """The tokens that follow a passage, " // question", or with `question_first` stand before it, "question // ";
        those of "question" if not `separator`."""
        if self.lowercase_questions:
            questions = [question.lower() for question in questions]
        if separator:
            around = self.passage_separator
            questions = [q + around if self.question_first else around + q for q in questions]
        return Ragged.of(token_rows(self.tokenizer, questions))

    def tokenize_targets(
        self, targets: Sequence[str]
    ) -> tuple[Int[Tensor, "batch tokens"], Bool[Tensor, "batch tokens"]]:
        """Labels with end-of-sequence and without a start token, padded, and the mask of real tokens."""
        rows = self.answer_tokens(targets)
        longest = max(map(len, rows), default=0) + 1
        if longest > self.max_target_length and not self._warned:
            self._warned = True
            log.warning(
                "a target of %d tokens was cut to generator.max_target_length = %d; later ones are cut silently",
                longest,
                self.max_target_length,
            )
        return self.pad(Ragged.of([[*row[: self.max_target_length - 1], self.end_token] for row in rows]))

    def answer_tokens(self, targets: Sequence[str]) -> list[list[int]]:
        """The tokens of each answer as they follow what the generator reads, without end-of-sequence."""
        return token_rows(self.tokenizer, targets)

    def assemble(
        self, questions: Ragged, passages: Ragged | None = None
    ) -> tuple[Int[Tensor, "rows length"], Bool[Tensor, "rows length"]]:
        """Contexts "<s> title / text // question </s>", padded to the longest, and the mask of real tokens; with
        `question_first` "<s> question // title / text </s>".

        questions, passages: one row of tokens for each context. A passage is cut to what the question leaves
        free of `max_context_length`. Raises UserError where a question alone is too long for that.
        """
        free = self.room - questions.lengths
        if free.size and free.min() < 0:
            raise UserError(
                f"a question of {int(questions.lengths.max())} tokens, its separator included, does not fit "
                f"the generator's context of {self.max_context_length}: shorten it or raise "
                "generator.max_context_length"
            )
        middle = [(questions.tokens, questions.starts, questions.lengths)]
        if passages is not None:
            cut = passages.tokens, passages.starts, np.minimum(passages.lengths, free)
            middle.insert(int(self.question_first), cut)
        ends = [(np.array(each, np.int64), 0, len(each)) for each in (self._prefix, self._suffix)]
        parts = [ends[0], *middle, ends[1]]
        # Each context is a few stretches of all these tokens, of which one look-up makes all contexts.
        starts, lengths = np.empty((2, len(questions.lengths), len(parts)), np.int64)
        before = 0
        for column, (tokens, start, length) in enumerate(parts):
            starts[:, column], lengths[:, column] = before + start, length
            before += len(tokens)
        source = np.concatenate([tokens for tokens, _, _ in parts])
        tokens = source[positions(starts.ravel(), lengths.ravel())]
        return self.pad(Ragged(tokens, lengths.sum(axis=1)))

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

        Contexts of like length are encoded together, so that little padding is. Where a training step would keep more
        than it may for its backward pass, the rest of the contexts are encoded again there.
        """
        rows_at_once = self._rows_at_once(input_ids)
        kept = self._kept_by(input_ids.numel()) if torch.is_grad_enabled() else 0
        if len(input_ids) <= rows_at_once and kept <= self._may_keep:
            return self._encode(self._embedded("encoder", input_ids), mask)
        ends = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(dim=1).clamp(min=1)
        ends, order = ends.sort()
        inputs, mask = self._embedded("encoder", input_ids[order]), mask[order]
        pieces, kept = [], 0
        slices = _slices(len(order), rows_at_once)
        longest_of_each = ends[[some.stop - 1 for some in slices]].tolist()
        for some, longest in zip(slices, longest_of_each, strict=True):
            piece = inputs[some, :longest], mask[some, :longest]
            kept += self._kept_by(piece[1].numel())
            if torch.is_grad_enabled() and kept > self._may_keep:
                encoded = checkpoint(self._encode, *piece, use_reentrant=False)
            else:
                encoded = self._encode(*piece)
            pieces.append(nn.functional.pad(encoded, (0, 0, 0, mask.shape[1] - longest)))
        return torch.cat(pieces)[order.argsort()]

    def _rows_at_once(self, tokens: Shaped[Tensor, "rows length"]) -> int:
        """How many of these rows are read at once; on an accelerator in parts of one size, so that none is small."""
        on_cpu = tokens.device.type == "cpu"
        in_a_step = TRAINED_AT_ONCE if torch.is_grad_enabled() else ENCODED_AT_ONCE
        at_once = ENCODED_AT_ONCE_ON_CPU if on_cpu else in_a_step
        most = max(1, at_once // max(1, tokens.shape[1] * self.model.config.hidden_size))
        if on_cpu:
            return most
        parts = max(1, -(-len(tokens) // most))
        return max(1, -(-len(tokens) // parts))

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
        narrow = torch.is_autocast_enabled(self.model.device.type)
        return numbers_at_once(self.model.device, KEPT_ON_CPU, 6 if narrow else 8)

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
        inputs = self._embedded("decoder", self._shifted(labels))
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
        targets, means = self.output_layer.target_logprobs(hidden.flatten(0, 1), labels.flatten(), want_mean)
        return targets.view(labels.shape), None if means is None else means.view(labels.shape)

    def _shifted(self, labels: Int[Tensor, "rows tokens"]) -> Int[Tensor, "rows tokens"]:
        """What the decoder reads where it is to write the labels."""
        tokens = labels.roll(1, dims=1)
        tokens[:, 0] = self.start_token
        return tokens

    def context_scores(
        self,
        states: Float[Tensor, "rows length width"],
        mask: Bool[Tensor, "rows length"],
        labels: Int[Tensor, "rows tokens"],
        label_mask: Bool[Tensor, "rows tokens"],
    ) -> Float[Tensor, " rows"]:
        """How much each context is attended to while the labels are written (attention.py); a constant."""
        return cross_attention_scores(self.model, self._shifted(labels), label_mask, states, mask)

    def check_context_scores(self) -> None:
        """UserError where the model does not let its attention be seen."""
        token = torch.tensor([[self.start_token]], device=self.model.device)
        real = torch.ones_like(token, dtype=torch.bool)
        with torch.no_grad():
            self.context_scores(self._encode(token, real), real, token, real)

    def _decode(
        self, inputs: Tensor, states: Float[Tensor, "rows length width"], mask: Bool[Tensor, "rows length"]
    ) -> Float[Tensor, "rows tokens wide"]:
        name = "inputs_embeds" if inputs.is_floating_point() else "input_ids"
        return self.model.get_decoder()(
            **{name: inputs},
            encoder_hidden_states=states,
            encoder_attention_mask=mask.long(),
            use_cache=False,
        ).last_hidden_state

    def decode(
        self,
        tokens: Int[Tensor, "rows tokens"],
        states: Float[Tensor, "rows length width"],
        mask: Bool[Tensor, "rows length"],
    ) -> Float[Tensor, "rows tokens wide"]:
        """The decoder's states after each of `tokens`, the start token included."""
        return self._decode(tokens, states, mask)

    def decode_on(
        self, tokens: Tensor, states: Tensor, mask: Bool[Tensor, "rows length"], cache: Any
    ) -> tuple[Tensor, Any]:
        """`decode`, without gradient, and the cache behind what it holds already; all of `tokens` without one."""
        decoded = self.model.get_decoder()(
            input_ids=tokens,
            encoder_hidden_states=states,
            encoder_attention_mask=mask.long(),
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return decoded.last_hidden_state, decoded.past_key_values

    def for_decoding(self, states: Tensor, mask: Bool[Tensor, "rows length"]) -> Tensor:
        """What `encode` made of contexts, with everything that decoding reads of them."""
        return states

    @property
    def output_layer(self) -> OutputLayer:
        """What makes scores over the vocabulary of the decoder's states, as the model is now."""
        return output_layer(self.model)


def _slices(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]
