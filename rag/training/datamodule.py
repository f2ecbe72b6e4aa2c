"""Examples → batches.

Training is counted in steps, and the batch of a step is a function of (seed, step): a run that was interrupted goes on
with the very batches it would have seen, with any number of loader workers, and each rank takes its own share.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytorch_lightning as pl
import torch
from jaxtyping import Int64
from torch.utils.data import DataLoader, Dataset

from rag.errors import UserError
from rag.model import Batch, RagModel
from rag.tasks.example import Example
from rag.tasks.preparation import training_pairs
from rag.tasks.task import Task
from rag.training.questions import check_questions, sample

Prepare = Callable[..., Batch]  # RagModel.prepare
Item = TypeVar("Item")


class Shuffled:
    """An endless shuffled order over `size` items: a new permutation for each pass, a function of (seed, pass)."""

    def __init__(self, size: int, seed: int):
        self.size = size
        self.seed = seed
        self._permutation = lru_cache(maxsize=2)(self._permute)

    def _permute(self, number: int) -> Int64[np.ndarray, " size"]:
        return np.random.default_rng([self.seed, number]).permutation(self.size)

    def take(self, start: int, count: int) -> list[int]:
        """The items at positions start, …, start + count − 1 of the endless order."""
        return [int(self._permutation(i // self.size)[i % self.size]) for i in range(start, start + count)]


class StepDataModule(pl.LightningDataModule):
    """Training batches made one by one from the number of the step; subclasses say how in `make_batch`.

    task: what judges predictions on dev; None: nothing is predicted there. batch_size: examples per step and rank.
    """

    task: Task | None = None
    batch_size: int = 0

    def __init__(self, num_workers: int = 0):
        super().__init__()
        self.num_workers = num_workers

    def make_batch(self, step: int) -> Any:
        """The batch of a step (counted over all ranks: step · ranks + rank)."""
        raise NotImplementedError

    def sizes(self) -> dict[str, int]:
        """How many training examples, dev examples, … there are, once the data is set up."""
        return {}

    def take_metrics(self) -> dict[str, float]:
        """What is to be logged with the step at hand of how its data came about; each is given once."""
        return {}

    def watched_questions(self, count: int) -> list[str]:
        """At most `count` questions, always the same, whose retrieval is watched in training; none where none are."""
        return []

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        assert trainer is not None
        done = trainer.global_step * trainer.accumulate_grad_batches
        steps = _Steps(done, trainer.world_size, trainer.global_rank)
        return self._loader(_Made(self.make_batch), steps)

    def _loader(self, dataset: Any, sampler: Any = None) -> DataLoader:
        return DataLoader(
            dataset,
            batch_size=None,
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=False,
        )


class _Made(Dataset):
    def __init__(self, make: Callable[[int], Any]):
        self.make = make

    def __getitem__(self, step: int) -> Any:
        return self.make(step)


class _Steps:
    """The step numbers of one rank, from where training stands, without an end: max_steps ends training."""

    def __init__(self, done: int, ranks: int, rank: int):
        self.done, self.ranks, self.rank = done, ranks, rank

    def __iter__(self) -> Iterator[int]:
        step = self.done
        while True:
            yield step * self.ranks + self.rank
            step += 1


class Listed(Dataset):
    def __init__(self, items: Sequence[Any], make: Callable[[Any], Any]):
        self.items, self.make = items, make

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> Any:
        return self.make(self.items[number])


class RagDataModule(StepDataModule):
    """Question–answer examples of a task, for training on answers alone (section 2.4).

    batch_size: examples per step and rank. dev_limit: so many dev examples, a seeded sample, judge the checkpoints.
    target_retriever: finds the passages that decide the training targets of TriviaQA and CuratedTREC (appendix D);
    None: the model's own, as it is before training. prepared: the folder where such targets are kept.
    """

    def __init__(
        self,
        task: Task,
        model: RagModel,
        batch_size: int,
        eval_batch_size: int | None = None,
        dev_limit: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        target_retriever: Any = None,
        prepared: str | Path = "data/prepared",
    ):
        super().__init__(num_workers)
        self.task: Task = task
        self.target_retriever = model.retriever if target_retriever is None else target_retriever
        self.prepared = prepared
        self.model = model
        self.prepare_batch = model.prepare
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.dev_limit = dev_limit
        self.seed = seed
        self.pairs: list[tuple[Example, str]] = []
        self.dev: list[Example] = []

    def setup(self, stage: str | None = None) -> None:
        if not self.pairs:
            self.dev = sample(self.task.examples("dev"), self.dev_limit, self.seed)
            self.pairs = training_pairs(self.task, self.target_retriever, self.prepared)
            if not self.pairs:
                raise UserError("the task has no training example: check task.train and task.train_sets")
            check_questions(self.model, self.dev, self.task.source("dev"))
            check_questions(self.model, [example for example, _ in self.pairs], self.task.source("train"))
            self.order = Shuffled(len(self.pairs), self.seed)

    def sizes(self) -> dict[str, int]:
        return {"training pairs": len(self.pairs), "dev examples": len(self.dev)}

    def watched_questions(self, count: int) -> list[str]:
        asked = self.dev or [example for example, _ in self.pairs]
        return [example.question for example in sample(asked, count)]

    def make_batch(self, step: int) -> tuple[list[Example], Batch]:
        chosen = [self.pairs[i] for i in self.order.take(step * self.batch_size, self.batch_size)]
        examples = [example for example, _ in chosen]
        return examples, self.prepare_batch([e.question for e in examples], [target for _, target in chosen])

    def val_dataloader(self) -> DataLoader:
        trainer = self.trainer
        assert trainer is not None
        of_rank = self.dev[trainer.global_rank :: trainer.world_size]
        return self._loader(evaluation_batches(of_rank, self.prepare_batch, self.eval_batch_size))


def evaluation_batches(examples: Sequence[Example], prepare: Prepare, batch_size: int) -> Dataset:
    """Batches of (examples, Batch) in order, with the first answer as the target."""
    chunks = [examples[i : i + batch_size] for i in range(0, len(examples), batch_size)]

    def make(chunk: Sequence[Example]) -> tuple[list[Example], Batch]:
        return list(chunk), prepare([e.question for e in chunk], [e.answers[0] for e in chunk])

    return Listed(chunks, make)


def step_generator(seed: int, step: int) -> np.random.Generator:
    """The random numbers of one step, for tasks that make up their examples."""
    return np.random.default_rng([seed, 1_000_003, step])


def torch_seed(seed: int, step: int, rank: int) -> None:
    """Set torch's random state (dropout) for one step, so that a resumed run draws what it would have drawn."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0]))
