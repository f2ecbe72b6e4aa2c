"""Hard negatives mined with the encoders under training, again and again (after Xiong et al. 2021, ANCE).

    after a step of the schedule: the passages z of the pool with the largest q(x)ᵀd(z), best first, less those that
    are right for x or contain one of its answers; the first `keep` of them are negatives of x until the next time

What BM25 finds stays as it is while the encoders learn to tell it apart; what they themselves mistake for the gold
passage changes with them. The search is exact and needs no index: each block of passages is embedded, compared with all
questions, and forgotten, so that memory holds the questions' vectors and `depth` candidates each, whatever the size of
the pool. (With BERT, comparing a passage with 60,000 questions costs half a percent of embedding it.) Ranks share the
blocks and end with the same candidates.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, Int32, Int64
from torch import Tensor, nn

from rag.errors import UserError
from rag.fingerprints import digest
from rag.index.passages import PassageStore
from rag.metrics.retrieval import answer_matcher
from rag.progress import progress_bar
from rag.tasks.dpr_json import AskedQuestion
from rag.training.dpr import BiEncoder, inner_products
from rag.training.schedule import Schedule

log = logging.getLogger(__name__)

_QUESTIONS_AT_ONCE = 64  # embedded
_COMPARED_AT_ONCE = 1_024  # with a block of passages
_PASSAGES_AT_ONCE = 64
_BLOCKS, _LARGEST_BLOCK = 32, 8_192  # a pool is cut into so many, or into more that are no larger

_NEVER = -1  # the step after which nothing was mined yet


@dataclass(frozen=True)
class Remining:
    """What is mined.

    depth: so many of a question's nearest passages are looked at. keep: at most so many become its negatives.
    pool: searched are the passages that some question names, and so many others, drawn by the seed; None: all.
    alone: True puts them in place of the negatives that files name and BM25 found, where there are any; False beside.
    at_start: mine before the first step as well, for encoders that were trained before.
    """

    depth: int = 50
    keep: int = 10
    pool: int | None = None
    alone: bool = False
    at_start: bool = False

    def __post_init__(self) -> None:
        for name, least in (("depth", 1), ("keep", 1), ("pool", 0)):
            value = getattr(self, name)
            if not (value is None and name == "pool" or type(value) is int and value >= least):
                raise UserError(
                    f"remining.{name}={value}: a whole number of {least} or more is expected"
                    + (", or null for all passages" if name == "pool" else "")
                )
        if self.keep > self.depth:
            raise UserError(
                f"remining.keep={self.keep} negatives cannot be found among the remining.depth={self.depth} nearest "
                f"passages: raise remining.depth to {self.keep} or more"
            )


class RetrievedNegatives:
    """Each question's negatives as they were mined last, shared with the processes that make batches.

    after: the step after which they were mined. metrics: of that mining, for the log.
    """

    def __init__(
        self,
        settings: Remining,
        schedule: Schedule,
        store: PassageStore,
        questions: Sequence[AskedQuestion],
        seed: int,
    ):
        self.settings = settings
        self.schedule = schedule
        self.store = store
        self.questions = questions
        self.pool = _pool(store, questions, settings.pool, seed)
        # A loader's workers read these while they are mined; what they made of older ones is made again.
        self._rows = torch.full((len(questions), settings.keep), -1, dtype=torch.int32).share_memory_()
        self._after = torch.tensor([_NEVER]).share_memory_()
        self.metrics: dict[str, float] = {}
        self._began, self._mining = time.perf_counter(), 0.0
        if not any(one.answers for one in questions):
            log.warning(
                "the questions name no answers, so that mined negatives may contain them: only the passages that a "
                "question names as right are left out"
            )

    @property
    def after(self) -> int:
        return int(self._after)

    def of(self, number: int) -> list[int]:
        """The rows of a question's negatives, the nearest first."""
        return [row for row in self._rows[number].tolist() if row >= 0]

    def hard(self, number: int) -> list[int]:
        """A question's hard negatives: these, and what it has beside them."""
        mined, named = self.of(number), self.questions[number].hard.tolist()
        return mined if mined and self.settings.alone else list(dict.fromkeys([*mined, *named]))

    def due(self, step: int) -> bool:
        """Whether they are to be mined after `step` optimiser steps, and were not yet."""
        due = self.schedule.due(step) or step == 0 and self.settings.at_start
        return due and step != self.after

    def mine(self, model: BiEncoder, step: int) -> None:
        """Mine them anew; every rank calls this after the same step, and all get the same.

        Raises UserError on every rank where a vector is not finite.
        """
        began, first = time.perf_counter(), _place()[0] == 0
        modes = {module: module.training for module in model.modules()}
        model.eval()
        try:
            with progress_bar(
                f"negatives after step {step:,}",
                len(self.pool),
                "passages",
                show=first,
                told=f"mined among {len(self.pool):,} passages for {len(self.questions):,} questions",
            ) as advance:
                near = nearest(model, self.store, self.questions, self.pool, self.settings.depth, advance)
        finally:
            for module, training in modes.items():
                module.training = training
        rows, left_out = without_false(near, self.store, self.questions, self.settings.keep, _device(model))
        changed = found = 0
        for number, row in enumerate(rows.tolist()):
            now = {each for each in row if each >= 0}
            before = self.of(number) or self.questions[number].hard.tolist()
            found, changed = found + len(now), changed + len(now.difference(before))
        self._after.fill_(_NEVER)
        self._rows.copy_(rows)
        self._after.fill_(step)
        self._mining += (seconds := time.perf_counter() - began)
        self.metrics = {
            "train/negatives_changed": changed / found if found else 0.0,
            "train/false_negatives": float(left_out),
            "train/mining_seconds": seconds,
            "train/mining_share": self._mining / (time.perf_counter() - self._began),
        }

    def take_metrics(self) -> dict[str, float]:
        """The last mining's, once: the share of negatives that the question did not have before, how many passages were
        left out because they contain an answer, seconds, and all minings' share of the time since training began."""
        metrics, self.metrics = self.metrics, {}
        return metrics

    # -- for a checkpoint: the encoders that mined them are gone when a run resumes

    def state_dict(self) -> dict[str, Any]:
        return {"negatives": self._rows.clone(), "after": self.after, "made_from": self._made_from()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """UserError where they are of other questions or passages, or of another number for each."""
        rows = state["negatives"]
        if state["made_from"] != self._made_from() or rows.shape != self._rows.shape:
            raise UserError(
                "the checkpoint holds negatives that were mined for other questions or passages, or with another "
                "remining.keep: give the last.ckpt of a run over the same files, or train from the beginning without "
                "ckpt_path"
            )
        self._rows.copy_(rows)
        self._after.fill_(state["after"])

    def _made_from(self) -> str:
        asked = [(one.question, one.positives.tolist()) for one in self.questions]
        return digest([self.store.sha256, asked])


def _pool(
    store: PassageStore, questions: Sequence[AskedQuestion], others: int | None, seed: int
) -> Int64[np.ndarray, " pool"]:
    """The rows that are searched, in order."""
    if others is None or others >= len(store):
        return np.arange(len(store))
    named = np.unique(np.concatenate([each for q in questions for each in (q.positives, q.hard, q.other)]))
    unnamed = np.setdiff1d(np.arange(len(store)), named, assume_unique=True)
    random = np.random.default_rng([seed, 3_000_017])
    drawn = random.choice(unnamed, min(others, len(unnamed)), replace=False)
    return np.sort(np.concatenate([named, drawn])).astype(np.int64)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _place() -> tuple[int, int]:
    """This process's rank, and of how many."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


@torch.no_grad()
def nearest(
    model: BiEncoder,
    store: PassageStore,
    questions: Sequence[AskedQuestion],
    pool: Int64[np.ndarray, " pool"],
    depth: int,
    advance: Callable[[int], None] = lambda passages: None,
) -> Int64[Tensor, "questions depth"]:
    """The `depth` rows of `pool` with the largest q(x)ᵀd(z) for each question, best first, on the CPU; −1 where the
    pool holds fewer. Every rank embeds its share of both sides, and gets what one process would have found.

    advance: called as passages are searched, by all ranks together. Raises UserError on every rank where a vector is
    not finite.
    """
    rank, ranks = _place()
    queries = _question_vectors(model, [one.question for one in questions])
    best = torch.full((len(questions), depth), -torch.inf, device=queries.device)
    rows = torch.full((len(questions), depth), -1, dtype=torch.int64, device=queries.device)
    size = min(
        _LARGEST_BLOCK, max(1, -(-len(pool) // _BLOCKS))
    )  # whatever the number of ranks: the same batches
    for start in range(rank * size, len(pool), ranks * size):
        block = pool[start : start + size]
        vectors = torch.from_numpy(_passage_vectors(model, store, block)).to(queries.device)
        of_block = torch.from_numpy(block).to(queries.device)
        for first in range(0, len(questions), _COMPARED_AT_ONCE):
            part = slice(first, first + _COMPARED_AT_ONCE)
            both = torch.cat([best[part], inner_products(queries[part], vectors)], dim=1)
            best[part], kept = both.topk(depth, dim=1)
            before = rows[part].gather(1, kept.clamp(max=depth - 1))
            rows[part] = torch.where(kept < depth, before, of_block[(kept - depth).clamp(min=0)])
        advance(min(ranks * size, len(pool) - start))  # what the other ranks search meanwhile, too
    if ranks > 1:
        best, rows = (torch.cat(_everyones(each), dim=1) for each in (best, rows))
    if not queries.isfinite().all() or best.isnan().any() or best.isposinf().any():
        raise UserError(
            "hard negatives cannot be mined, because a vector of the encoders under training is not finite: lower "
            "optimization.lr, and train again with overwrite=true"
        )
    in_order = rows.argsort(dim=1)  # among equals, the lower row
    best, rows = best.gather(1, in_order), rows.gather(1, in_order)
    order = best.argsort(dim=1, descending=True, stable=True)[:, :depth]
    return rows.gather(1, order).cpu()


def _everyones(tensor: Tensor) -> list[Tensor]:
    every = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(every, tensor.contiguous())
    return every


def _question_vectors(model: BiEncoder, questions: Sequence[str]) -> Float[Tensor, "questions dim"]:
    """q(x) of all, on the model's device; each rank embeds every so many-th batch."""
    rank, ranks = _place()
    device = _device(model)
    vectors = torch.zeros(len(questions), model.question_encoder.dim, device=device)
    by_length = sorted(range(len(questions)), key=lambda number: -len(questions[number]))
    for start in range(rank * _QUESTIONS_AT_ONCE, len(questions), ranks * _QUESTIONS_AT_ONCE):
        chosen = by_length[start : start + _QUESTIONS_AT_ONCE]
        tokens = model.question_encoder.tokenize([questions[number] for number in chosen])
        vectors[torch.tensor(chosen, device=device)] = model.question_encoder(
            **{name: value.to(device) for name, value in tokens.items()}
        ).float()
    if ranks > 1:
        dist.all_reduce(vectors)
    return vectors


def _passage_vectors(
    model: BiEncoder, store: PassageStore, rows: Int64[np.ndarray, " rows"]
) -> Float[np.ndarray, "rows dim"]:
    passages = [store[int(row)] for row in rows]
    by_length = sorted(range(len(rows)), key=lambda i: -len(passages[i].title) - len(passages[i].text))
    vectors = np.empty((len(rows), model.passage_encoder.dim), np.float32)
    for start in range(0, len(rows), _PASSAGES_AT_ONCE):
        chosen = by_length[start : start + _PASSAGES_AT_ONCE]
        vectors[chosen] = model.passage_encoder.encode([passages[i] for i in chosen])
    return vectors


def without_false(
    near: Int64[Tensor, "questions depth"],
    store: PassageStore,
    questions: Sequence[AskedQuestion],
    keep: int,
    device: torch.device,
) -> tuple[Int32[Tensor, "questions keep"], int]:
    """The first `keep` of each question's nearest that are neither right for it nor contain one of its answers, −1
    where there are fewer, and how many were passed over because they contain one (DPR's token match, title and text).

    Ranks share the questions; device: where they exchange what they found.
    """
    rank, ranks = _place()
    found = torch.zeros(len(questions), keep + 1, dtype=torch.int32)
    for number in range(rank, len(questions), ranks):
        one = questions[number]
        contains = answer_matcher(one.answers)
        right = set(one.positives.tolist())
        kept = 0
        for row in near[number].tolist():
            if row < 0 or kept == keep:
                break
            if row in right:
                continue
            passage = store[row]
            if contains(f"{passage.title} {passage.text}"):
                found[number, keep] += 1
            else:
                found[number, kept] = row + 1
                kept += 1
    if ranks > 1:
        found = found.to(device)
        dist.all_reduce(found)
        found = found.cpu()
    return found[:, :keep] - 1, int(found[:, keep].sum())
