"""Section 2.2: training the bi-encoder itself (Karpukhin et al. 2020, Dense Passage Retrieval).

    loss = −log exp(s·q(x)ᵀd(z⁺)) / Σ_z exp(s·q(x)ᵀd(z))   over all passages of the batch

s is 1, or for vectors of unit length a temperature, a number or learned.

The passages of the other questions in the batch are negatives, and so are each question's hard negatives; with several
ranks, the passages of all ranks. A passage that is also right for another question of the batch is no negative of it.

Validation is DPR's average rank: how many passages stand before a question's own one, among the golds and negatives of
all dev questions.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoTokenizer, BertModel, DPRConfig, DPRContextEncoder, DPRQuestionEncoder

from rag import hub
from rag.encoders.dpr import PassageEncoder, QuestionEncoder
from rag.encoders.opening import open_embedder
from rag.encoders.protocol import AnyPassageEncoder, AnyQuestionEncoder, default_scale
from rag.encoders.sentence_transformer import SentencePassageEncoder, SentenceQuestionEncoder
from rag.encoders.settings import EncoderSettings
from rag.errors import UserError
from rag.marginalize import at_least_float32, without_autocast
from rag.parts import TrainedPart, check_parts, describe, recompute_layers, save_model
from rag.pretrained import load_weights
from rag.retrievers.dense import DenseRetriever
from rag.retrievers.scale import Scale, checked, described, number_of, parts_of, value_of
from rag.runs import FOLDER, INDEX
from rag.training.datamodule import torch_seed
from rag.training.optimization import Optimization
from rag.training.whole_batch import WholeBatchModule

_RANKED_AT_ONCE = 256
LOOKED_AT = 8  # batches, for whether there are negatives at all


@dataclass(frozen=True)
class BiEncoderBatch:
    """B questions and P passages of one rank.

    rows: of the passages in their store. right: the rows that are right for each question, −1 beyond their number.
    positive[b]: where among the P the passage of question b stands. number: which batch of training it is.
    mined_after: the step after which the hard negatives it was made with were mined, if any were.
    """

    questions: dict[str, Tensor]
    passages: dict[str, Tensor]
    rows: Int[Tensor, " passages"]
    right: Int[Tensor, "batch right"]
    positive: Int[Tensor, " batch"]
    number: int = 0
    mined_after: int | None = None

    def to(self, device: torch.device | str) -> "BiEncoderBatch":
        return BiEncoderBatch(
            {name: value.to(device, non_blocking=True) for name, value in self.questions.items()},
            {name: value.to(device, non_blocking=True) for name, value in self.passages.items()},
            self.rows.to(device, non_blocking=True),
            self.right.to(device, non_blocking=True),
            self.positive.to(device, non_blocking=True),
            self.number,
            self.mined_after,
        )


@dataclass(frozen=True)
class DevBatch:
    """Questions or passages of dev to be encoded, and which of them they are."""

    questions: bool
    numbers: Int[Tensor, " batch"]
    tokens: dict[str, Tensor]

    def to(self, device: torch.device | str) -> "DevBatch":
        tokens = {name: value.to(device, non_blocking=True) for name, value in self.tokens.items()}
        return DevBatch(self.questions, self.numbers.to(device, non_blocking=True), tokens)


def passages_allowed(
    rows: Int[Tensor, " passages"], right: Int[Tensor, "batch right"], positive: Int[Tensor, " batch"]
) -> Bool[Tensor, "batch passages"]:
    """Which passages count for which question: its own one and all that are not right for it."""
    is_right = (rows[None, :, None] == right[:, None, :]).any(dim=2)
    return (~is_right).scatter(1, positive[:, None], True)


def contrastive_loss(
    questions: Float[Tensor, "batch dim"],
    passages: Float[Tensor, "passages dim"],
    positive: Int[Tensor, " batch"],
    allowed: Bool[Tensor, "batch passages"],
) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch passages"]]:
    """DPR's loss of each question in nats and the scores q(x)ᵀd(z), −inf where a passage does not count.

    Both are float32 (or float64, if given that) under every precision setting.
    """
    scores = inner_products(questions, passages).masked_fill(~allowed, -torch.inf)
    return F.cross_entropy(scores, positive, reduction="none"), scores


def inner_products(
    questions: Float[Tensor, "batch dim"], passages: Float[Tensor, "passages dim"]
) -> Float[Tensor, "batch passages"]:
    """q(x)ᵀd(z), in float32 at least: autocast would cast the operands of a product down again."""
    with without_autocast(questions):
        return at_least_float32(questions) @ at_least_float32(passages).T


class _GatherWithGradient(torch.autograd.Function):
    """All ranks' tensors of one shape, stacked; the gradient is the sum of what all ranks ask of one's own."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        every = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(every, tensor.contiguous())
        return torch.stack(every)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].contiguous()
        dist.all_reduce(gradient)
        return gradient[dist.get_rank()]


def gather_passages(
    passages: Float[Tensor, "passages dim"], rows: Int[Tensor, " passages"]
) -> tuple[Float[Tensor, "all dim"], Int[Tensor, " all"], int]:
    """The passages of all ranks in the ranks' order, differentiable, their rows, and where one's own begin.

    Ranks may hold different numbers. Each rank's loss is the sum over its own questions, so that the sum of the ranks'
    gradients is the gradient of one process that holds them all.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return passages, rows, 0
    size = torch.tensor([len(passages)], device=passages.device)
    sizes = [torch.empty_like(size) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, size)
    counts = [int(each) for each in sizes]
    missing = max(counts) - len(passages)
    vectors = _GatherWithGradient.apply(F.pad(passages, (0, 0, 0, missing)))
    assert isinstance(vectors, Tensor)
    numbers = [torch.empty(max(counts), dtype=rows.dtype, device=rows.device) for _ in counts]
    dist.all_gather(numbers, F.pad(rows, (0, missing), value=-1))
    first_row = sum(counts[: dist.get_rank()])
    return (
        torch.cat([each[:count] for each, count in zip(vectors, counts, strict=True)]),
        torch.cat([each[:count] for each, count in zip(numbers, counts, strict=True)]),
        first_row,
    )


def ranks_of_gold(
    questions: Float[Tensor, "batch dim"],
    passages: Float[Tensor, "passages dim"],
    gold: Int[Tensor, " batch"],
    right: Int[Tensor, "batch right"],
) -> Int64[Tensor, " batch"]:
    """How many passages score higher than each question's own one; others that are right for it do not count.

    A score that is NaN is as good as none: every passage stands before it.
    """
    ranks = []
    for start in range(0, len(questions), _RANKED_AT_ONCE):
        part = slice(start, start + _RANKED_AT_ONCE)
        scores = inner_products(questions[part], passages)
        ahead = ~(scores <= scores.gather(1, gold[part, None]))
        others = right[part]
        ahead_and_right = ahead.gather(1, others.clamp(min=0)) & (others >= 0)
        ranks.append(ahead.sum(dim=1) - ahead_and_right.sum(dim=1))
    return torch.cat(ranks)


class BiEncoder(nn.Module):
    """The two encoders that are trained together.

    gradient_checkpointing: recompute each layer's activations in the backward pass instead of keeping them. scale: s of
    the loss, and then the retriever's; None: 1, or 20 where the vectors have unit length.
    """

    def __init__(
        self,
        encoders: tuple[AnyQuestionEncoder | Any, AnyPassageEncoder | Any],
        gradient_checkpointing: bool = False,
        scale: Scale | None = None,
    ):
        super().__init__()
        self.question_encoder: Any
        self.passage_encoder: Any
        self.question_encoder, self.passage_encoder = encoders
        self.scale = checked(default_scale(self.passage_encoder.reading) if scale is None else scale, "scale")
        if gradient_checkpointing:
            recompute_layers(self.trained_parts())

    def trained_parts(self) -> list[TrainedPart]:
        return [
            TrainedPart("question_encoder", self.question_encoder, save=self._save_question_encoder),
            TrainedPart("passage_encoder", self.passage_encoder, save=self.passage_encoder.save_pretrained),
            *parts_of(self.scale, "scale"),
        ]

    def description(self) -> dict[str, Any]:
        """The retriever that the question encoder becomes over an index of the passage encoder's vectors."""
        return describe(
            DenseRetriever.from_pretrained,
            question_encoder=f"{FOLDER}/question_encoder",
            index=INDEX,
            trainable=False,
            scale=described(self.scale),
        )

    def _save_question_encoder(self, folder: Path) -> None:
        """It remembers the passage encoder's fingerprint, and refuses vectors of another one, and the scale."""
        self.question_encoder.partner = self.passage_encoder.fingerprint()
        self.question_encoder.scale = number_of(self.scale)
        self.question_encoder.save_pretrained(folder)


def bert_encoders(
    path: str | Path, max_length: int = 256, dropout: float | None = None
) -> tuple[QuestionEncoder, PassageEncoder]:
    """Both encoders from one BERT, such as bert-base-uncased: a folder or a hub id (Karpukhin et al. 2020, section 3).

    dropout: of hidden states and attention; None: the checkpoint's own (0.1). Raises UserError where there is no BERT
    with its tokenizer.
    """
    settings = (
        {}
        if dropout is None
        else dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), dropout)
    )
    try:
        # BERT's own pooler is not part of DPR: the state of [CLS] is the vector.
        bert: Any = load_weights(BertModel, path, add_pooling_layer=False, **settings)
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise hub.refusal(error, path) or UserError(
            f"{path} holds no BERT with its tokenizer ({hub.reason(error)}): give a folder written by "
            "save_pretrained or the name of a model on the hub, such as bert-base-uncased"
        ) from error
    config = DPRConfig(**{**bert.config.to_dict(), "architectures": None})
    question, passage = DPRQuestionEncoder(config), DPRContextEncoder(config)
    question.question_encoder.bert_model.load_state_dict(bert.state_dict())
    passage.ctx_encoder.bert_model.load_state_dict(bert.state_dict())
    return QuestionEncoder(question, tokenizer, max_length), PassageEncoder(passage, tokenizer, max_length)


def sentence_encoders(
    path: str | Path,
    shared: bool = False,
    dropout: float | None = None,
    settings: EncoderSettings | None = None,
) -> tuple[SentenceQuestionEncoder, SentencePassageEncoder]:
    """Both encoders from one in sentence-transformers' format, or one of AutoModel's with `settings.pooling`.

    shared: one set of weights for both sides; False: a copy each. dropout: of every layer that has some; None: the
    checkpoint's own. Raises UserError where there is no such encoder.
    """
    first = open_embedder(path, settings)
    second = first if shared else copy.deepcopy(first)
    for embedder in (first, second):
        # whom an earlier training made it belong to, and the scale of that
        embedder.model.config.passage_encoder = embedder.model.config.retriever_scale = None
        for module in embedder.modules():
            if dropout is not None and isinstance(module, nn.Dropout):
                module.p = dropout
    return SentenceQuestionEncoder(first), SentencePassageEncoder(second)


class DprModule(WholeBatchModule):
    """Trains both encoders; judges them on dev by the average rank of the gold passage (lower is better)."""

    dev_metrics = ("dev/average_rank", "dev/first")
    loss_metric = "train/loss"

    def __init__(self, model: BiEncoder, optimization: Optimization, seed: int = 0):
        super().__init__()
        self.model = model
        check_parts(model, model.trained_parts())
        self.optimization = optimization
        self.seed = seed
        self.encoded: dict[bool, list[tuple[Tensor, Tensor]]] = {True: [], False: []}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        torch_seed(self.seed, self.global_step, self.global_rank)

    def training_step(self, batch: BiEncoderBatch, batch_idx: int) -> Tensor:
        questions = self.model.question_encoder(**batch.questions)
        passages, rows, first_row = gather_passages(self.model.passage_encoder(**batch.passages), batch.rows)
        positive = batch.positive + first_row
        allowed = passages_allowed(rows, batch.right, positive)
        losses, scores = contrastive_loss(questions * value_of(self.model.scale), passages, positive, allowed)
        compared = allowed.sum(dim=1) > 1  # the others' loss is zero, whatever the encoders
        count, first = compared.sum(), (scores.argmax(dim=1) == positive) & compared
        sums = {"first": first.sum(), "left_out": (~compared).sum()}
        # zero times a loss, not none: every weight has a gradient on every rank
        return self.add_up((losses * compared).sum(), count, **sums)

    def log_step(self, sums: dict[str, float]) -> None:
        if count := sums["weight"]:
            means = {"train/loss": sums["loss"] / count, "train/top1_in_batch": sums["first"] / count}
            self.log_dict(means, prog_bar=True)
        self.log("train/without_negatives", sums["left_out"])
        for name, value in self.trainer.datamodule.take_metrics().items():  # type: ignore[attr-defined]
            self.log(name, value)

    def check_data(self, datamodule: Any, ranks: int) -> None:
        """UserError where no question of the first steps has a negative: the loss would be zero throughout."""
        for step in range(LOOKED_AT):
            batches = [datamodule.make_batch(step * ranks + rank) for rank in range(ranks)]
            rows = torch.cat([batch.rows for batch in batches])
            start = 0
            for batch in batches:
                allowed = passages_allowed(rows, batch.right, batch.positive + start)
                if (allowed.sum(dim=1) > 1).any():
                    return
                start += len(batch.rows)
        raise UserError(
            f"no question of the first {LOOKED_AT} batches has a negative passage (each holds "
            f"{len(batches[0].positive)}, without hard negatives), so that there is nothing to learn: raise "
            "datamodule.batch_size to 2 or more, or "
            "give the questions hard_negative_ids and datamodule.hard_negatives=1"
        )

    def validation_step(self, batch: DevBatch, batch_idx: int) -> None:
        encoder = self.model.question_encoder if batch.questions else self.model.passage_encoder
        self.encoded[batch.questions].append((batch.numbers, encoder(**batch.tokens).float()))

    def on_validation_epoch_end(self) -> None:
        dev = self.trainer.datamodule.dev  # type: ignore[attr-defined]
        questions = self._everyones(len(dev.questions), self.encoded[True])
        passages = self._everyones(len(dev.rows), self.encoded[False])
        self.encoded = {True: [], False: []}
        if not (questions.isfinite().all() and passages.isfinite().all()):
            self.stop_not_finite(self.global_step, "a vector of dev is not finite")
        ranks = ranks_of_gold(
            questions, passages, dev.gold.to(questions.device), dev.right.to(questions.device)
        )
        metrics = {"dev/average_rank": ranks.float().mean(), "dev/first": (ranks == 0).float().mean()}
        self.log_dict(metrics, prog_bar=True, rank_zero_only=False, sync_dist=False)

    def _everyones(self, count: int, encoded: list[tuple[Tensor, Tensor]]) -> Tensor:
        """The vectors of all ranks, each in its place: (count, D)."""
        vectors = torch.zeros(count, self.model.question_encoder.dim, device=self.device)
        for numbers, vectors_of_batch in encoded:
            vectors[numbers] = vectors_of_batch
        if dist.is_initialized():
            dist.all_reduce(vectors)
        return vectors

    def configure_optimizers(self) -> Any:
        assert self.trainer.max_steps > 0
        return self.optimization.configure(
            self.model.trained_parts(), self.trainer.max_steps, str(self.trainer.precision)
        )

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch.to(device)

    def save(self, folder: Path, run: Path) -> None:
        """Write what evaluate.py and build_index.py open into `folder`, which becomes `run`/model."""
        save_model(self.model, folder, run, answers=False)
