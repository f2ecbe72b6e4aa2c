"""Section 2.3: scores over the vocabulary from the decoder's states, in bounded memory, forward and backward.

    log p_θ(y_i | x, z, y_<i) = logit(y_i) − log Σ_v exp(logit(v))

Whatever needs these scores asks an `OutputLayer`: the loss for the target's log-probability, decoding for all of
them. Any module can make them: a linear layer, one with an adapter, a mixture. `OutputLayer` itself needs nothing but
the logits and leaves the gradient to autograd, some rows at a time; `PlainOutputLayer` computes the same by hand for
an unaltered `nn.Linear`.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rag.errors import UserError
from rag.marginalize import at_least_float32 as wide
from rag.products import is_plain_linear, linear, prefers_onednn

# How many logits (rows × V) are held at once while scoring: 64 MiB in float32.
LOGITS_AT_ONCE = 1 << 24
# How many logits are computed together on a CPU where their sum is wanted (512 KiB in float32), and the fewest words to
# do so for.
SCORED_AT_ONCE, WORDS_AT_ONCE = 1 << 17, 1_024
# Where the vocabulary is gone through in parts, not the rows, and how many logits are kept there instead.
BY_WORDS, LOGITS_KEPT = ("cpu",), 1 << 23


class OutputLayer:
    """Scores over a vocabulary of V words by any function of the decoder's states.

    score: (*rows, width) -> (*rows, V), differentiable by autograd.
    """

    def __init__(self, score: Callable[[Tensor], Tensor], vocabulary: int):
        self._score = score
        self.vocabulary = vocabulary

    @property
    def rows_at_once(self) -> int:
        """How many rows of logits are held at once."""
        return max(1, LOGITS_AT_ONCE // self.vocabulary)

    def logits(self, hidden: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows vocab"]:
        """The scores of the whole vocabulary, with gradient where one is wanted; for few rows."""
        return self._score(hidden)

    def target_logprobs(
        self, hidden: Float[Tensor, "rows width"], labels: Int[Tensor, " rows"], want_mean: bool = False
    ) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"] | None]:
        """log p_θ of one word in each of the decoder's states, in nats, and if wanted the mean of log p_θ over V.

        Logits are held for `rows_at_once` rows and computed again in the backward pass.
        """
        targets, means = [], []
        for some, labels_of_block in zip(
            hidden.split(self.rows_at_once), labels.split(self.rows_at_once), strict=True
        ):
            if torch.is_grad_enabled() and len(hidden) > self.rows_at_once:
                target, mean = checkpoint(self._target_and_mean, some, labels_of_block, use_reentrant=False)
            else:
                target, mean = self._target_and_mean(some, labels_of_block)
            targets.append(target)
            means.append(mean)
        return torch.cat(targets), torch.cat(means) if want_mean else None

    def _target_and_mean(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = wide(self._score(hidden))
        total = logits.logsumexp(dim=-1)
        target = logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
        return target - total, logits.mean(dim=-1) - total

    @torch.no_grad()
    def normalised(
        self, hidden: Float[Tensor, "rows width"], into: Float[Tensor, "more vocab"] | None = None
    ) -> tuple[Float[Tensor, "rows vocab"], Float[Tensor, " rows"]]:
        """The scores of the whole vocabulary and `log_normalisers`, without gradient.

        into: scores that nobody reads any more; on a CPU, memory that is new costs as much as half the scores.
        """
        logits = wide(self._score(hidden))
        return logits, logits.logsumexp(dim=-1)

    @torch.no_grad()
    def log_normalisers(self, hidden: Float[Tensor, "rows width"]) -> Float[Tensor, " rows"]:
        """log Σ_v exp(logit of v) for the decoder's states, without gradient."""
        parts = [self.normalised(some)[1] for some in hidden.split(self.rows_at_once)]
        return torch.cat(parts) if parts else hidden.new_zeros(0)

    @torch.no_grad()
    def token_logits(
        self, hidden: Float[Tensor, "*rows width"], tokens: Int[Tensor, "*rows"]
    ) -> Float[Tensor, "*rows"]:
        """The score of one word in each of the decoder's states, without gradient."""
        flat, words = hidden.flatten(0, -2), tokens.flatten().unsqueeze(-1)
        parts = [
            wide(self._score(some)).gather(-1, words_of_block).squeeze(-1)
            for some, words_of_block in zip(
                flat.split(self.rows_at_once), words.split(self.rows_at_once), strict=True
            )
        ]
        return torch.cat(parts).view(tokens.shape) if parts else hidden.new_zeros(tokens.shape)


@runtime_checkable
class MakesOutputLayer(Protocol):
    """A model whose scores are more than its output embeddings make of the decoder's states: it says how they are made.

    What they need beside config.hidden_size numbers of each state, such as the context's tokens, the decoder puts
    behind these: its states are then wider, as wide as it likes, and differ in width between batches.
    """

    def make_output_layer(self) -> OutputLayer:
        """Scores from the decoder's `last_hidden_state`, by the model as it is now."""
        ...


class PlainOutputLayer(OutputLayer):
    """`scale`·states through an unaltered `nn.Linear`, with a constant bias of the model on top where it has one."""

    def __init__(self, linear: nn.Linear, bias: Tensor | None = None, scale: float = 1.0):
        super().__init__(self._logits, linear.out_features)
        self._linear, self._scale = linear, scale
        # BART's bias is zeros in every published model, which on a CPU are not worth adding.
        self._bias = None if bias is None or (bias.device.type == "cpu" and not bias.any()) else bias

    def _scaled(self, hidden: Tensor) -> Tensor:
        return hidden if self._scale == 1.0 else hidden * self._scale

    def _logits(self, hidden: Tensor) -> Tensor:
        return self.logits_of_scaled(self._scaled(hidden))

    def logits_of_scaled(self, hidden: Tensor) -> Tensor:
        """The logits of states that `scale` was applied to."""
        logits = self._linear(hidden)
        return logits if self._bias is None else logits.add_(self._bias)

    def target_logprobs(
        self, hidden: Float[Tensor, "rows width"], labels: Int[Tensor, " rows"], want_mean: bool = False
    ) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"] | None]:
        weight, bias = self._linear.weight, self._linear.bias
        return _TargetScores.apply(self._scaled(hidden), weight, bias, labels, self, want_mean)  # type: ignore[return-value]

    @torch.no_grad()
    def normalised(
        self, hidden: Float[Tensor, "rows width"], into: Float[Tensor, "more vocab"] | None = None
    ) -> tuple[Float[Tensor, "rows vocab"], Float[Tensor, " rows"]]:
        if hidden.device.type != "cpu":
            return super().normalised(hidden)
        if into is None or len(into) < len(hidden):
            dtype = torch.promote_types(hidden.dtype, torch.float32)
            into = hidden.new_empty((len(hidden), self.vocabulary), dtype=dtype)
        logits = into[: len(hidden)]
        return logits, self._in_blocks(self._scaled(hidden), logits)

    @torch.no_grad()
    def log_normalisers(self, hidden: Float[Tensor, "rows width"]) -> Float[Tensor, " rows"]:
        if hidden.device.type != "cpu":
            return super().log_normalisers(hidden)
        return self._in_blocks(self._scaled(hidden))

    def _in_blocks(
        self,
        scaled: Float[Tensor, "rows width"],
        into: Float[Tensor, "rows vocab"] | None = None,
        words_of_rows: tuple[Int[Tensor, " rows"], Float[Tensor, " rows"]] | None = None,
    ) -> Float[Tensor, " rows"]:
        """`log_normalisers` on a CPU, for some words after the others, whose logits stay in its caches: nothing of the
        size of the vocabulary is written to memory, unless `into` is to hold the logits. words_of_rows: a word of each
        row, and where its logit is to be written."""
        dtype = torch.promote_types(scaled.dtype, torch.float32)
        top = scaled.new_full((len(scaled), 1), torch.finfo(dtype).min, dtype=dtype)
        total = torch.zeros_like(top)
        for words in self.word_blocks(len(scaled)):
            logits = self.logits_of_words(scaled, words)
            if into is not None:
                into[:, words] = logits
            if words_of_rows is not None:
                labels, targets = words_of_rows
                here, columns = _within(labels, words)
                targets[here] = logits[here, columns]
            highest = torch.maximum(top, logits.amax(dim=-1, keepdim=True))
            block_sums = logits.sub_(highest).exp_().sum(dim=-1, keepdim=True)
            total.mul_((top - highest).exp_()).add_(block_sums)
            top = highest
        return total.log_().add_(top).squeeze(-1)

    def word_blocks(self, rows: int) -> list[slice]:
        """The vocabulary in parts, of which the logits of so many rows stay in a CPU's caches."""
        return _slices(len(self._linear.weight), max(WORDS_AT_ONCE, SCORED_AT_ONCE // max(1, rows)))

    def logits_of_words(
        self, scaled: Float[Tensor, "rows width"], words: slice
    ) -> Float[Tensor, "rows some"]:
        """The logits of some words, without gradient, of states that `scale` was applied to."""
        logits = wide(linear(scaled, self._linear.weight[words]))
        for bias in (self._linear.bias, self._bias):
            # BART's is of zeros but for a few words, if any
            if bias is not None and (own := bias.flatten()[words]).any():
                logits += own
        return logits

    def mean_logits(self, scaled: Float[Tensor, "rows width"]) -> Float[Tensor, " rows"]:
        """The mean of the logits over V, without gradient: what the mean of all words' embeddings makes of a state."""
        mean = wide(scaled) @ wide(self._linear.weight).mean(dim=0)
        for bias in (self._linear.bias, self._bias):
            if bias is not None:
                mean = mean + wide(bias).mean()
        return mean

    @torch.no_grad()
    def token_logits(
        self, hidden: Float[Tensor, "*rows width"], tokens: Int[Tensor, "*rows"]
    ) -> Float[Tensor, "*rows"]:
        logits = (wide(self._scaled(hidden)) * wide(self._linear.weight[tokens])).sum(dim=-1)
        for bias in (self._linear.bias, self._bias):
            if bias is not None:
                logits = logits + wide(bias.flatten()[tokens])
        return logits


class _TargetScores(torch.autograd.Function):
    """log p_θ of one token in each of the decoder's states, and the mean over V where wanted.

    logit − log Σ_v exp(logit_v): the scores over the vocabulary are held for a chunk of rows at a time, in one buffer,
    and computed again in the backward pass; they are kept where one chunk is all. On a CPU they are held for some words
    of all rows at a time, and kept where they are few. What each row is worth is known only after the marginal, so that
    nothing of the gradient could be computed forward.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        layer: PlainOutputLayer,
        want_mean: bool,
    ) -> tuple[Tensor, Tensor | None]:
        device = hidden.device.type
        ctx.layer, ctx.want_mean = layer, want_mean
        ctx.autocast = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        rows = layer.rows_at_once
        if device in BY_WORDS and len(hidden) * layer.vocabulary > LOGITS_KEPT:
            states = hidden.detach()
            target = states.new_empty(len(states), dtype=torch.promote_types(states.dtype, torch.float32))
            normaliser = layer._in_blocks(states, words_of_rows=(labels, target))
            ctx.save_for_backward(hidden, weight, labels, normaliser, None)
            mean = layer.mean_logits(states) - normaliser if want_mean else None
            return target - normaliser, mean
        targets, means, normalisers = [], [], []
        probabilities = None
        for some, labels_of_block in zip(hidden.detach().split(rows), labels.split(rows), strict=True):
            logits = wide(layer.logits_of_scaled(some))
            top = logits.amax(dim=-1)
            target = logits.gather(-1, labels_of_block.unsqueeze(-1)).squeeze(-1)
            if want_mean:
                means.append(logits.mean(dim=-1))
            total = logits.sub_(top.unsqueeze(-1)).exp_().sum(dim=-1)
            if len(hidden) <= rows:  # one part is all
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
        layer, (enabled, dtype) = ctx.layer, ctx.autocast
        if hidden.device.type in BY_WORDS and probabilities is None:
            with torch.autocast(hidden.device.type, dtype=dtype, enabled=enabled):
                return *_TargetScores._by_words(ctx, of_target, of_mean), None, None, None
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        to_hidden = torch.empty_like(hidden) if needs_hidden else None
        to_weight = torch.zeros_like(weight) if needs_weight else None
        to_bias = weight.new_zeros(len(weight)) if needs_bias else None
        rows = layer.rows_at_once
        with torch.autocast(hidden.device.type, dtype=dtype, enabled=enabled):
            for some in _slices(len(hidden), rows):
                # d log p(y) / d logit_v = [v = y] − p_v, and of the mean 1/V − p_v
                ours = of_target[some]
                factor = -(ours + of_mean[some] if ctx.want_mean else ours).unsqueeze(-1)
                if probabilities is None:
                    logits = wide(layer.logits_of_scaled(hidden[some]))
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
                    to_hidden[some] = linear(logits, weight.t())
                if to_weight is not None:
                    if enabled or prefers_onednn():
                        to_weight += linear(logits.t(), hidden[some].t())
                    else:
                        to_weight.addmm_(logits.T, hidden[some])
        return to_hidden, to_weight, to_bias, None, None, None

    @staticmethod
    def _by_words(ctx: Any, of_target: Tensor, of_mean: Tensor | None) -> tuple[Tensor | None, ...]:
        """`backward` on a CPU, for some words after the others: nothing is as large as rows × V, and each word's
        gradient is written once."""
        hidden, weight, labels, normalisers, _ = ctx.saved_tensors
        hidden, layer = hidden.detach(), ctx.layer
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        to_hidden = torch.zeros_like(hidden) if needs_hidden else None
        to_weight = torch.empty_like(weight) if needs_weight else None
        to_bias = weight.new_empty(len(weight)) if needs_bias else None
        factor = -(of_target if of_mean is None else of_target + of_mean).unsqueeze(-1)
        for words in layer.word_blocks(len(hidden)):
            scores = layer.logits_of_words(hidden, words)
            scores.sub_(normalisers.unsqueeze(-1)).exp_().mul_(factor)
            here, columns = _within(labels, words)
            scores[here, columns] += of_target[here]
            if of_mean is not None:
                scores.add_(of_mean.unsqueeze(-1) / layer.vocabulary)
            if to_bias is not None:
                to_bias[words] = scores.sum(dim=0)
            scores = scores.to(hidden.dtype)
            if to_hidden is not None:
                to_hidden += linear(scores, weight[words].t())
            if to_weight is not None:
                to_weight[words] = linear(scores.t(), hidden.t())
        return to_hidden, to_weight, to_bias


def output_layer(model: Any) -> OutputLayer:
    """The output layer of a sequence-to-sequence model of transformers.

    The model's own where it makes one; `PlainOutputLayer` where its output embeddings are an `nn.Linear` and nothing
    else, without hooks, adapters or parametrisations; else they are called as the module they are.
    """
    if isinstance(model, MakesOutputLayer):
        return model.make_output_layer()
    module = model.get_output_embeddings()
    # What transformers' models do around their output embeddings: T5 with tied ones scales the states, BART and its
    # relatives add a bias. `check_output_layer` finds a model that does anything else.
    scale = model.config.d_model**-0.5 if getattr(model.config, "scale_decoder_outputs", False) else 1.0
    bias = getattr(model, "final_logits_bias", None)
    hooked = bool(module._forward_hooks or module._forward_pre_hooks)
    if is_plain_linear(module) and not hooked:
        return PlainOutputLayer(module, bias, scale)

    def score(hidden: Tensor) -> Tensor:
        logits = module(hidden if scale == 1.0 else hidden * scale)
        return logits if bias is None else logits + bias

    return OutputLayer(score, model.config.vocab_size)


@torch.no_grad()
def check_output_layer(model: Any, start_token: int) -> None:
    """UserError where the model's own scores are not those of `output_layer`, by one step over one token."""
    token = torch.tensor([[start_token]], device=model.device)
    mode = model.training
    model.eval()
    try:
        states = model.get_encoder()(input_ids=token, attention_mask=torch.ones_like(token)).last_hidden_state
        hidden = model.get_decoder()(
            input_ids=token, encoder_hidden_states=states, encoder_attention_mask=torch.ones_like(token)
        ).last_hidden_state
        ours = output_layer(model).logits(hidden)[0, -1].float()
        theirs = (
            model(input_ids=token, attention_mask=torch.ones_like(token), decoder_input_ids=token)
            .logits[0, -1]
            .float()
        )
    finally:
        model.train(mode)
    tolerance = 1e-2 if model.dtype in (torch.bfloat16, torch.float16) else 1e-3
    if not torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max())):
        raise UserError(
            f"a model of type {model.config.model_type} does more with its decoder's states than its output embeddings "
            "do (a cap or factor on the logits), which is not supported: use another generator"
        )


def _slices(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def _within(labels: Int[Tensor, " rows"], words: slice) -> tuple[Int[Tensor, " some"], Int[Tensor, " some"]]:
    """The rows whose word is one of these, and the word's place among them."""
    rows = ((labels >= words.start) & (labels < words.stop)).nonzero().squeeze(1)
    return rows, labels[rows] - words.start
