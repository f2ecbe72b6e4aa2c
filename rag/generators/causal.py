"""Section 2.3 with a decoder alone: log p_θ(y_i | x, z, y_<i) of any causal language model.

The prompt is a template with the passage and the question in it (rag/generators/prompts.py), the answer what follows.
`encode` covers the prompt without its last token, which is always the same and takes the place of a decoder's start
token: everything above, the marginals and the decoding, is what it is for BART.

- Without gradient, what is known of a prompt is its keys and values, computed once; several answers go on from them.
- In training, prompt and answer are read in one pass. Scores over the vocabulary are made of the answer's states alone.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from rag.errors import UserError
from rag.files import write_json
from rag.generators.adapters import (
    ADAPTER,
    add_adapter,
    base_of,
    leave_out_frozen,
    merge_adapter,
    open_adapter,
)
from rag.generators.causal_loading import check_reads, let_gradients_through, load_causal, mark
from rag.generators.context import Ragged, token_rows
from rag.generators.prompts import Prompt, Template
from rag.generators.seq2seq import SETTINGS, Generator
from rag.generators.shared_prompts import SharedPrompts
from rag.parts import read_settings
from rag.pretrained import FLOAT32


class CausalGenerator(Generator):
    """A causal language model with its tokenizer, and how a passage and a question become its prompt.

    template: text with {passage} and {question}, `chat` for the tokenizer's chat template around the usual words, or
        messages for it, each with a role and a content. None: passage, question, "Answer:".
    max_context_length: tokens of the whole prompt. The passage is cut to what the question leaves, never the question.
    title_separator: between a passage's title and its text; the rest as in `Generator`.

    Raises UserError where tokenizer and model do not belong together, a special token or a place in the template is
    missing, or prompt and answer would be longer than the model's context.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_context_length: int = 300,
        max_target_length: int = 25,
        template: Template | None = None,
        title_separator: str = "\n",
        prefix: str = "",
        lowercase_questions: bool = False,
        quote: bool = False,
    ):
        mark(tokenizer)
        prompt = Prompt.of(template, tokenizer)
        super().__init__(
            model,
            tokenizer,
            max_context_length,
            max_target_length,
            title_separator,
            prompt.between,
            prefix,
            lowercase_questions,
            prompt.question_first,
            quote,
        )
        positions = self._positions
        if positions is not None and max_context_length + max_target_length > positions:
            raise UserError(
                f"generator.max_context_length={max_context_length} and max_target_length={max_target_length} together "
                f"are more than the {positions} positions of this model: lower them"
            )
        self.max_context_length, self.max_target_length = max_context_length, max_target_length
        self.prompt = prompt
        self.template: Any = template if template is None or isinstance(template, str) else list(template)
        self._prefix, self._suffix = prompt.before, prompt.after[:-1]
        if self.room < 1:
            raise UserError(
                f"generator.template is {max_context_length - self.room} tokens by itself, and max_context_length "
                f"{max_context_length}: shorten the one or raise the other"
            )
        self.origin: dict[str, Any] = {}  # how the model beneath an adapter is loaded again
        self._adapted: tuple[Any, ...] = ()  # peft's view of the model; no module of its own
        leave_out_frozen(self, _is_read_again)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        dtype: str | None = None,
        adapter: str | None = None,
        rank: int | None = None,
        modules: Sequence[str] | str | None = None,
        adapter_settings: Mapping[str, Any] | None = None,
        base: str | Path | None = None,
        quantize: str | None = None,
        pad_token: str | None = None,
        eos_token: str | None = None,
        **settings: Any,
    ) -> Self:
        """Load a folder, a file in GGUF's format or a hub id, such as HuggingFaceTB/SmolLM2-135M-Instruct.

        dtype: of the weights, float32 unless given. adapter, rank, modules, adapter_settings: a new adapter
        (rag/generators/adapters.py), which is then all that is trained. base: the model beneath an adapter that was
        saved in `path`, where it has moved. quantize: "4bit", weights in four bits by bitsandbytes, which stay as
        they are. pad_token, eos_token: where the tokenizer has none. `settings` are the constructor's; those not given
        are as they were when the folder was written here.
        """
        saved = read_settings(cls, Path(path) / SETTINGS, ["origin"])
        origin = saved.pop("origin", {})
        own = {"path": _absolute(path), "dtype": dtype or FLOAT32, "quantize": quantize}
        reopened = (Path(path) / ADAPTER).is_file()
        if reopened:
            if adapter is not None:
                raise UserError(
                    f"{path} holds an adapter already: leave generator.adapter out to train that one further"
                )
            given = {"path": base and _absolute(base), "dtype": dtype, "quantize": quantize}
            own |= origin | {name: value for name, value in given.items() if value is not None}
            if not origin and base is None:  # peft wrote it by itself
                own["path"] = base_of(Path(path))
        elif base is not None:
            raise UserError(f"generator.base={base} is for an adapter, but {path} holds none: leave it out")
        model, tokenizer = load_causal(
            own["path"], own["dtype"], own["quantize"], path if reopened else None, pad_token, eos_token
        )
        generator = cls(model, tokenizer, **(saved | settings))
        if own["quantize"] is not None and (reopened or adapter is not None):
            let_gradients_through(model)
        check_reads(generator)
        if reopened:
            generator._adapted = (open_adapter(model, Path(path)),)
        elif adapter is not None:
            generator._adapted = (add_adapter(model, adapter, rank, modules, adapter_settings),)
        generator.origin = own
        return generator

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model, or its adapter alone, with tokenizer and settings."""
        if self._adapted:
            self._adapted[0].save_pretrained(str(folder), save_embedding_layers=False)
        else:
            self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        more = {"origin": self.origin} if self._adapted else {}
        write_json(Path(folder) / SETTINGS, self.settings | more)

    def merge(self) -> Self:
        """The same model with its adapter's weights added to its own, to be saved or trained as a whole."""
        if self._adapted:
            self.model = merge_adapter(self._adapted[0])
            for weight in self.model.parameters():
                weight.requires_grad_(weight.is_floating_point())  # four bits are not
            self._adapted = ()
        return self

    @property
    def settings(self) -> dict[str, Any]:
        names = ("max_context_length", "max_target_length", "template", "title_separator", "prefix")
        return {name: getattr(self, name) for name in (*names, "lowercase_questions", "quote")}

    def _check_start(self) -> None:
        """The prompt's own end stands for a start token."""

    @property
    def start_token(self) -> int:
        return self.prompt.after[-1]

    @property
    def first_token(self) -> None:
        return None

    @property
    def _positions(self) -> int | None:
        return getattr(self.model.config, "max_position_embeddings", None)

    @property
    def answer_positions(self) -> int | None:
        return None if self._positions is None else self._positions - self.max_context_length

    @property
    def room(self) -> int:
        return super().room - 1  # the prompt's last token

    @property
    def body(self) -> Any:
        """The model without its output layer."""
        return self.model.base_model

    # -- text to tokens ---------------------------------------------------------------------------

    def tokenize_questions(self, questions: Sequence[str], separator: bool = True) -> Ragged:
        """The question and the text between it and the passage; without a passage less the empty lines there."""
        if separator:
            return super().tokenize_questions(questions)
        if self.lowercase_questions:
            questions = [question.lower() for question in questions]
        between = "" if self.question_first else self.passage_separator.lstrip()
        return Ragged.of(token_rows(self.tokenizer, [between + question for question in questions]))

    def answer_tokens(self, targets: Sequence[str]) -> list[list[int]]:
        return super().answer_tokens([self.prompt.joint + target for target in targets])

    def assemble(
        self, questions: Ragged, passages: Ragged | None = None
    ) -> tuple[Int[Tensor, "rows length"], Bool[Tensor, "rows length"]]:
        if passages is not None and not self.prompt.reads_passages:
            raise UserError(
                "generator.template has no place for the passage: write {passage} where it belongs, or train without "
                "retrieval (model=closed_book)"
            )
        return super().assemble(questions, passages)

    # -- tokens to probabilities ------------------------------------------------------------------

    def encode(
        self, input_ids: Int[Tensor, "rows length"], mask: Bool[Tensor, "rows length"]
    ) -> Shaped[Tensor, "rows ..."]:
        """The prompts' keys and values; where a gradient is wanted, their tokens, which are read with the answers.

        Whichever side the padding is on, a prompt's first token comes first in what is returned: positions count from
        there. `mask` says how many there are.
        """
        if (mask[:, 1:] & ~mask[:, :-1]).any():
            order = (~mask).long().argsort(dim=1, stable=True)
            input_ids = input_ids.gather(1, order)
        return input_ids if torch.is_grad_enabled() else self._keys(input_ids, mask.sum(dim=1))

    def for_decoding(
        self, states: Shaped[Tensor, "rows ..."], mask: Bool[Tensor, "rows length"]
    ) -> Float[Tensor, "rows layers heads length width"]:
        return states if states.is_floating_point() else self._keys(states, mask.sum(dim=1))

    @torch.no_grad()
    def _keys(
        self, tokens: Int[Tensor, "rows length"], lengths: Int[Tensor, " rows"]
    ) -> Float[Tensor, "rows layers heads length width"]:
        """Keys and values of each token in each layer, in turn, prompts of like length together; zeros at padding."""
        order = lengths.argsort()
        found = None
        for rows in order.split(self._rows_at_once(tokens)):
            own = tokens[rows, : max(1, int(lengths[rows].max()))]
            cache = DynamicCache()
            # What stands behind a prompt is seen by none of its tokens: no padding has to be masked.
            self.body(
                input_ids=own, attention_mask=torch.ones_like(own), past_key_values=cache, use_cache=True
            )
            layers: list[Any] = cache.layers
            for number, layer in enumerate(layers):
                for offset, held in enumerate((layer.keys, layer.values)):
                    if found is None:
                        heads, width = held.shape[1], held.shape[3]
                        found = held.new_zeros((len(tokens), 2 * len(layers), heads, tokens.shape[1], width))
                    found[rows, 2 * number + offset, :, : own.shape[1]] = held
        assert found is not None
        return found.masked_fill_(
            (torch.arange(tokens.shape[1], device=tokens.device) >= lengths.unsqueeze(1))[
                :, None, None, :, None
            ],
            0.0,
        )

    def shared_prompts(
        self, keys: Float[Tensor, "rows layers heads length width"], mask: Bool[Tensor, "rows length"]
    ) -> SharedPrompts:
        """Prompts from which several answers go on, nothing of them copied."""
        return SharedPrompts(self.body, keys, mask.sum(dim=1))

    def token_logprobs(
        self,
        states: Shaped[Tensor, "rows ..."],
        mask: Bool[Tensor, "rows length"],
        labels: Int[Tensor, "rows tokens"],
        want_mean: bool = False,
    ) -> tuple[Float[Tensor, "rows tokens"], Float[Tensor, "rows tokens"] | None]:
        tokens = labels.roll(1, dims=1)
        tokens[:, 0] = self.start_token
        hidden = self.decode(tokens, states, mask)
        targets, means = self.output_layer.target_logprobs(hidden.flatten(0, 1), labels.flatten(), want_mean)
        return targets.view(labels.shape), None if means is None else means.view(labels.shape)

    def decode(
        self,
        tokens: Int[Tensor, "rows tokens"],
        states: Shaped[Tensor, "rows ..."],
        mask: Bool[Tensor, "rows length"],
    ) -> Float[Tensor, "rows tokens wide"]:
        lengths = mask.sum(dim=1)
        if not states.is_floating_point():
            return self._read(tokens, states, lengths)
        at_once = self._rows_at_once(mask)
        pieces = [
            SharedPrompts(self.body, *piece[:2]).decode_all(piece[2])
            for piece in zip(
                states.split(at_once), lengths.split(at_once), tokens.split(at_once), strict=True
            )
        ]
        return torch.cat(pieces)

    def decode_on(
        self, tokens: Tensor, states: Tensor, mask: Bool[Tensor, "rows length"], cache: Any
    ) -> tuple[Tensor, Any]:
        return self.decode(tokens, states, mask), cache

    def _read(
        self,
        tokens: Int[Tensor, "rows tokens"],
        prompts: Int[Tensor, "rows length"],
        lengths: Int[Tensor, " rows"],
    ) -> Float[Tensor, "rows tokens wide"]:
        """The states of `tokens` behind their prompts, in one pass over both; what would keep more than a training step
        may is computed again in the backward pass."""
        places = lengths.unsqueeze(1) + torch.arange(tokens.shape[1], device=tokens.device)
        whole = torch.nn.functional.pad(prompts, (0, tokens.shape[1]), value=self.pad_token)
        whole = whole.scatter(1, places, tokens)
        order = lengths.argsort()
        # One look-up for all pieces: each has a gradient of the size of the whole vocabulary.
        embedded, places = self.model.get_input_embeddings()(whole[order]), places[order]
        rows = self._rows_at_once(whole)
        while rows > 1 and self._kept_by(rows * whole.shape[1]) > self._may_keep:
            rows = -(-rows // 2)
        pieces, kept = [], 0
        for inputs, own in zip(embedded.split(rows), places.split(rows), strict=True):
            inputs = inputs[:, : int(own[-1, -1]) + 1]
            kept += self._kept_by(inputs.shape[0] * inputs.shape[1])
            if torch.is_grad_enabled() and kept > self._may_keep:
                pieces.append(checkpoint(self._states_at, inputs, own, use_reentrant=False))
            else:
                pieces.append(self._states_at(inputs, own))
        return torch.cat(pieces)[order.argsort()]

    def _states_at(
        self, inputs: Float[Tensor, "rows length width"], places: Int[Tensor, "rows tokens"]
    ) -> Float[Tensor, "rows tokens wide"]:
        seen = torch.ones(inputs.shape[:2], dtype=torch.long, device=inputs.device)
        states = self.body(inputs_embeds=inputs, attention_mask=seen, use_cache=False).last_hidden_state
        return states.gather(1, places.unsqueeze(2).expand(-1, -1, states.shape[2]))


def _is_read_again(generator: CausalGenerator) -> bool:
    """Whether what is not trained is read from where it came from, when a checkpoint is."""
    return bool(generator._adapted) or generator.origin.get("quantize") is not None


def _absolute(path: str | Path) -> str:
    """A path that means the same in every folder; a name on the hub as it is."""
    return str(Path(path).resolve()) if Path(path).exists() else str(path)
