"""Section 2.2: training the bi-encoder itself (Karpukhin et al. 2020, Dense Passage Retrieval).

    loss = −log exp(q(x)ᵀd(z⁺)) / Σ_z exp(q(x)ᵀd(z))   over all passages of the batch

The passages of the other questions in the batch are negatives, and so are each question's hard negatives. A passage
that is also right for another question of the batch is no negative of it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from rag.datamodule import Shuffled, StepDataModule, step_generator, torch_seed
from rag.encoders import PassageEncoder, QuestionEncoder
from rag.errors import UserError
from rag.optimization import Optimization
from rag.passages import Passage, read_passages
from rag.tasks.example import Example
from rag.tasks.qa import read_examples


@dataclass(frozen=True)
class BiEncoderBatch:
    """B questions and P passages; positive[b] is the passage of question b; allowed[b, p]: p counts for b."""

    questions: dict[str, Tensor]
    passages: dict[str, Tensor]
    positive: Int[Tensor, " batch"]
    allowed: Bool[Tensor, "batch passages"]

    def to(self, device: torch.device | str) -> "BiEncoderBatch":
        return BiEncoderBatch(
            {name: value.to(device) for name, value in self.questions.items()},
            {name: value.to(device) for name, value in self.passages.items()},
            self.positive.to(device),
            self.allowed.to(device),
        )


def contrastive_loss(
    questions: Float[Tensor, "batch dim"],
    passages: Float[Tensor, "passages dim"],
    positive: Int[Tensor, " batch"],
    allowed: Bool[Tensor, "batch passages"],
) -> tuple[Float[Tensor, ""], Float[Tensor, "batch passages"]]:
    """DPR's loss in nats (mean over the batch) and the scores q(x)ᵀd(z), −inf where a passage does not count."""
    scores = (questions.float() @ passages.float().T).masked_fill(~allowed, -torch.inf)
    return F.cross_entropy(scores, positive), scores


class BiEncoder(nn.Module):
    """The two encoders that are trained together."""

    def __init__(self, encoders: tuple[QuestionEncoder, PassageEncoder]):
        super().__init__()
        self.question_encoder, self.passage_encoder = encoders

    def save_pretrained(self, folder: Path) -> None:
        """Write question_encoder/ and passage_encoder/; the former remembers the latter's fingerprint."""
        self.question_encoder.model.config.passage_encoder = self.passage_encoder.fingerprint()
        self.question_encoder.save_pretrained(folder / "question_encoder")
        self.passage_encoder.save_pretrained(folder / "passage_encoder")


class DprModule(pl.LightningModule):
    """Trains both encoders."""

    def __init__(self, model: BiEncoder, optimization: Optimization, seed: int = 0):
        super().__init__()
        self.model = model
        self.optimization = optimization
        self.seed = seed

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        torch_seed(self.seed, self.global_step, self.global_rank)

    def training_step(self, batch: BiEncoderBatch, batch_idx: int) -> Tensor:
        loss, scores = contrastive_loss(
            self.model.question_encoder(**batch.questions),
            self.model.passage_encoder(**batch.passages),
            batch.positive,
            batch.allowed,
        )
        first = (scores.argmax(dim=1) == batch.positive).float().mean()
        self.log_dict({"train/loss": loss, "train/top1_in_batch": first}, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        assert self.trainer.max_steps > 0
        return self.optimization.configure([(self, self.optimization.lr)], self.trainer.max_steps)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch.to(device)

    def save_pretrained(self, folder: Path) -> None:
        self.model.save_pretrained(folder)


class DprData(StepDataModule):
    """Batches for the bi-encoder: inverse cloze over the corpus, questions with gold passages, or first one, then both.

    All passages are held as Python objects, about a kilobyte each: a few hundred thousand do, not 21 million.

    questions: a file with positive_ids (and hard_negative_ids); None trains on inverse cloze alone.
    inverse_cloze: makes queries out of passages (rag/scratch/inverse_cloze.py); None trains on questions alone.
    inverse_cloze_steps: so many first steps see inverse cloze alone; after that it makes up half of each batch.
    """

    def __init__(
        self,
        passages: str | Path,
        model: BiEncoder,
        batch_size: int,
        questions: str | Path | None = None,
        inverse_cloze: Any = None,
        inverse_cloze_steps: int = 0,
        hard_negatives: int = 1,
        num_workers: int = 0,
        seed: int = 0,
    ):
        super().__init__(num_workers)
        self.file = passages
        self.model = model
        self.batch_size = batch_size
        self.question_file = questions
        self.questions: list[Example] = []
        self.inverse_cloze: Any = inverse_cloze
        self.inverse_cloze_steps = inverse_cloze_steps
        self.hard_negatives = hard_negatives
        self.seed = seed
        self.passages: list[Passage] = []

    def setup(self, stage: str | None = None) -> None:
        if self.passages:
            return
        self.passages = list(read_passages(self.file))
        self.row_of = {passage.id: row for row, passage in enumerate(self.passages)}
        if self.question_file is not None:
            self.questions = [e for e in read_examples(self.question_file) if e.positive_ids]
        if not self.questions and self.inverse_cloze is None:
            raise UserError("DPR has nothing to train on: give questions with positive_ids, or inverse_cloze")
        for example in self.questions:
            for passage_id in (*example.positive_ids, *example.hard_negative_ids):
                if passage_id not in self.row_of:
                    raise UserError(
                        f"question {example.id} names passage {passage_id}, which {self.file} does not hold: "
                        "give the passages that the questions were made for"
                    )
        if self.questions:
            self.order = Shuffled(len(self.questions), self.seed)
        if self.inverse_cloze is not None:
            self.inverse_cloze.setup(self.passages)

    def make_batch(self, step: int) -> BiEncoderBatch:
        random = step_generator(self.seed, step)
        only_cloze = not self.questions or (
            self.inverse_cloze is not None and step < self.inverse_cloze_steps
        )
        asked = 0 if only_cloze else self.batch_size if self.inverse_cloze is None else self.batch_size // 2
        queries: list[str] = []
        passages: list[Passage] = []
        rows: list[int] = []  # of each passage
        right: list[set[int]] = []  # the rows that are right for each query
        positive: list[int] = []  # where in `passages` each query's own passage stands
        if self.inverse_cloze is not None and asked < self.batch_size:
            for query, row, passage in self.inverse_cloze.make(random, self.batch_size - asked):
                positive.append(len(passages))
                queries.append(query)
                passages.append(passage)
                rows.append(row)
                right.append({row})
        for number in self.order.take(step * asked, asked) if asked else ():
            example = self.questions[number]
            gold = [self.row_of[i] for i in example.positive_ids]
            hard = [self.row_of[i] for i in example.hard_negative_ids]
            positive.append(len(passages))
            queries.append(example.question)
            right.append(set(gold))
            chosen = [gold[random.integers(len(gold))]]
            chosen += [hard[i] for i in random.permutation(len(hard))[: self.hard_negatives]]
            rows += chosen
            passages += [self.passages[row] for row in chosen]
        allowed = np.array([[row not in own for row in rows] for own in right])
        allowed[np.arange(len(queries)), positive] = True
        return BiEncoderBatch(
            self.model.question_encoder.tokenize(queries),
            self.model.passage_encoder.tokenize(passages),
            torch.tensor(positive),
            torch.from_numpy(allowed),
        )
