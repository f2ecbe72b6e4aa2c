"""Section 2.4, where the passage encoder is trained as well: its index is embedded again while training goes on.

    step N done ──▶ every passage through d(z) as it is now ──▶ a new edition of the index ──▶ step N + 1 searches it

An edition is an index folder below the run's indexes/, named after the passage encoder's fingerprint, so that a folder
says whose vectors it holds: a resumed run that comes to the same weights finds its edition, complete or begun. It is
built aside and renamed, and all ranks exchange it between the same two steps. Editions stay while a checkpoint needs
them to go on from; the last one is of the weights that are saved, and travels with the run as its index.

In the foreground training waits. In the background the weights of step N are written down, another process embeds the
passages by them (reembedding.py), and training goes on over the old edition until that is done; an edition that is due
meanwhile is left out. That process is started here (refresh_in=background) or elsewhere, on another node for instance.
"""

import sys
import time
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import Callback

from rag.errors import UserError, listed
from rag.index.folder import Index
from rag.index.reembed import check_passages, drop, reembed, wait_for
from rag.model import RagModel
from rag.processes import WORKING
from rag.progress import progress_bar, rate, span
from rag.retrievers.dense import DenseRetriever
from rag.safe_text import say
from rag.training.reembedding import Counted, Request, Worker, as_the_index
from rag.training.resume import BEFORE, LAST, read_checkpoint
from rag.training.schedule import Schedule

EDITIONS = "indexes"  # in the run's folder
SAMPLE = 64  # passages and questions that staleness is measured on
PLACES = ("foreground", "background", "elsewhere")


class IndexRefresh(Callback):
    """Embeds a run's index again by a schedule, and once more at the end of training.

    run: the run's folder. Logged at every exchange: refresh/cosine, the mean over a fixed sample of passages of the
    cosine between the old edition's vector and that of the encoder as it is; refresh/recall@K, the share of the K
    passages of a fixed sample of questions in the new edition that the old one finds as well; refresh/seconds that
    training waited in all, and refresh/share of its time.
    """

    def __init__(self, schedule: Schedule, run: Path, where: str = "foreground"):
        if where not in PLACES:
            raise UserError(f"refresh_in={where} does not exist; available: {listed(PLACES)}")
        self.schedule = schedule
        self.run = run
        self.folder = run / EDITIONS
        self.where = where
        # Fingerprints: of the edition that is searched, None for the index that training began with; and of the one
        # that is being made in the background.
        self.edition: str | None = None
        self.pending: str | None = None
        self.asked: tuple[int, float] | None = None  # after which step, and when; None of an earlier process
        self.worker: Worker | None = None  # the first rank's
        self.waited = self.trained = 0.0  # seconds, of which `trained` holds `waited`
        self.began: float | None = None
        self.group: Any = None

    # -- what Lightning calls -----------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            "edition": self.edition,
            "pending": self.pending,
            "waited": self.waited,
            "trained": self._trained(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.edition, self.pending = state_dict["edition"], state_dict["pending"]
        self.waited, self.trained = state_dict["waited"], state_dict["trained"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.began, self.done = time.perf_counter(), trainer.global_step
        retriever = trained_retriever(pl_module)
        self._meet(trainer)
        if self.edition is not None:
            retriever.take_edition(self._opened(self.edition, trainer.ckpt_path))
        self.sample = np.sort(np.random.default_rng(0).permutation(len(retriever.index))[:SAMPLE])
        self.questions = trainer.datamodule.watched_questions(SAMPLE)  # type: ignore[attr-defined]
        if self.pending is not None and trainer.is_global_zero:
            self._ask(trainer, retriever, self.pending)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.done:  # amid the batches of a step
            return
        self.done = trainer.global_step
        retriever, start = trained_retriever(pl_module), time.perf_counter()
        if self.pending is not None and self._is_made(trainer):
            self._exchange(trainer, pl_module.model.n_docs, retriever, self.pending, start)
            if trainer.is_global_zero:
                self._say_exchanged(len(retriever.index))
        if self.pending is None and self.schedule.due(self.done) and self.done < trainer.max_steps:
            start = time.perf_counter()
            fingerprint = _encoder_of(retriever).fingerprint()
            if self.where == "foreground":
                self._embed(trainer, retriever, fingerprint, f"after step {self.done:,}")
                self._exchange(trainer, pl_module.model.n_docs, retriever, fingerprint, start)
            else:
                self.pending, self.asked = fingerprint, (self.done, start)
                if trainer.is_global_zero:
                    self._ask(trainer, retriever, fingerprint)
                self.waited += time.perf_counter() - start

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        if self.worker is not None:
            self.worker.stop()

    # -- editions -----------------------------------------------------------------------------

    def finish(self, trainer: pl.Trainer, module: Any) -> None:
        """Embed the index by the encoder that is saved, the best step's perhaps, and let go of the other editions."""
        retriever = trained_retriever(module)
        self._meet(trainer)
        fingerprint = _encoder_of(retriever).fingerprint()
        self._embed(trainer, retriever, fingerprint, "for the weights that are saved")
        self._take(retriever, fingerprint)
        if trainer.is_global_zero:
            self._tidy(needed_by(self.run, (LAST,)))

    def _meet(self, trainer: pl.Trainer) -> None:
        if trainer.world_size > 1 and self.group is None:
            self.group = dist.new_group(backend="gloo", timeout=WORKING)

    def _wait(self) -> None:
        if self.group is not None:
            dist.barrier(group=self.group)

    def _agree(self, trainer: pl.Trainer, answer: bool) -> bool:
        """The first rank's answer, on all of them."""
        told = torch.tensor([float(answer and trainer.is_global_zero)])
        if self.group is not None:
            dist.broadcast(told, 0, group=self.group)
        return bool(told)

    def _embed(self, trainer: pl.Trainer, retriever: Any, fingerprint: str, when: str) -> None:
        """Make the edition of the encoder as it is, unless it is there, with the help of all ranks, which is told."""
        if self._agree(trainer, (self.folder / fingerprint).is_dir()):
            return
        encoder = retriever.fresh.encoder
        was_training = encoder.training
        encoder.eval()
        index, ranks = retriever.index, trainer.world_size
        told = f"embedding its {len(index):,} passages again"
        told += f", a share by each of {ranks} processes" if ranks > 1 else ""
        own = len(index) if ranks == 1 else None
        with progress_bar(
            f"index {when}", own, "passages", show=trainer.is_global_zero, told=told
        ) as advance:
            reembed(
                index,
                Counted(as_the_index(encoder, index), advance),
                self.folder / fingerprint,
                str(self.run / "model" / "passage_encoder"),
                trainer.global_rank,
                ranks,
                self._wait,
            )
        encoder.train(was_training)

    def _exchange(
        self, trainer: pl.Trainer, n_docs: int, retriever: Any, fingerprint: str, start: float
    ) -> None:
        """Search the new edition from now on, and log how far the old one was behind."""
        measured = {"refresh/cosine": cosine(retriever, self.sample)}
        before = found(retriever, self.questions, n_docs)
        self.pending, self.worker = None, None
        self._take(retriever, fingerprint)
        after = found(retriever, self.questions, n_docs)
        if self.questions:
            shared = [np.isin(new, old).mean() for new, old in zip(after, before, strict=True)]
            measured["refresh/recall@K"] = float(np.mean(shared))
        if trainer.is_global_zero:
            self._tidy(needed_by(self.run, (LAST, BEFORE)))
        self.waited += time.perf_counter() - start
        measured |= {"refresh/seconds": self.waited, "refresh/share": self.waited / self._trained()}
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in measured.items()})
        for logger in trainer.loggers:  # whatever steps Lightning logs
            logger.log_metrics(measured, step=self.done - 1)

    def _trained(self) -> float:
        """Seconds of training so far, those before an interruption included."""
        return self.trained + (0.0 if self.began is None else time.perf_counter() - self.began)

    def _take(self, retriever: Any, fingerprint: str) -> None:
        wait_for(self.folder / fingerprint / "manifest.json")
        retriever.take_edition(Index.open(self.folder / fingerprint))
        self.edition = fingerprint

    def _opened(self, fingerprint: str, checkpoint: Any) -> Index:
        """An edition of this run, or of the one whose checkpoint it goes on from."""
        others = [] if checkpoint is None else [Path(checkpoint).parent / EDITIONS]
        for folder in (self.folder, *others):
            if (folder / fingerprint).is_dir():
                return Index.open(folder / fingerprint)
        raise UserError(
            f"the checkpoint searches the index {self.folder / fingerprint}, which is not there: restore it, or train "
            "again with overwrite=true"
        )

    def _tidy(self, needed: set[str]) -> None:
        """Remove the editions that nobody searches and no checkpoint goes on from, and what was given up half made."""
        kept = needed | {each for each in (self.edition, self.pending) if each is not None}
        for each in self.folder.iterdir():
            if each.is_dir() and each.name.lstrip(".").partition(".")[0] not in kept:
                drop(each)

    # -- in the background --------------------------------------------------------------------

    def _ask(self, trainer: pl.Trainer, retriever: Any, fingerprint: str) -> None:
        """Have another process make the edition of the encoder as it is, or go on with one that was begun."""
        request = Request(self.folder, fingerprint)
        if not request.is_written:
            if self.folder.is_dir():
                self._tidy(needed_by(self.run, (LAST, BEFORE)))
            request.write(retriever.fresh.encoder, retriever.index, self.run / "model" / "passage_encoder")
        self.worker = Worker.start(request, trainer.num_devices if self.where == "background" else None)
        by = "in the background"
        if self.where == "elsewhere":
            by = f"elsewhere, by python -m rag.training.reembedding {self.folder}"
        passages = f"{len(retriever.index):,} passages"
        tell(
            f"{self._asked()}: its {passages} are embedded again {by}; training goes on over the old edition"
        )

    def _asked(self) -> str:
        return "index" if self.asked is None else f"index after step {self.asked[0]:,}"

    def _say_exchanged(self, passages: int) -> None:
        took = ""
        if self.asked is not None:
            seconds = time.perf_counter() - self.asked[1]
            took = f" in {span(seconds)}, {rate(passages / seconds, 'passages')},"
        tell(f"{self._asked()}: {passages:,} passages{took} searched from step {self.done + 1:,} on")

    def _is_made(self, trainer: pl.Trainer) -> bool:
        """Whether the pending edition is complete."""
        return self._agree(trainer, self.worker is not None and self.worker.is_done())


def tell(text: str) -> None:
    """Where progress is told."""
    say(text, file=sys.stderr, flush=True)


def trained_retriever(module: Any) -> Any:
    """The retriever of a training module; UserError where its passage encoder is not trained, or its index cannot be
    embedded again."""
    model = module.model
    retriever = model.retriever if isinstance(model, RagModel) else None
    if not trains_passages(retriever):
        raise UserError(
            "refresh=… embeds the index again, but nothing here trains the passage encoder: give refresh=null, or "
            "retriever=dense_trained with retriever.trainable=passage or both"
        )
    check_passages(retriever.index)
    return retriever


def _encoder_of(retriever: DenseRetriever) -> Any:
    """The passage encoder that is trained, of a retriever as `trained_retriever` gives it."""
    assert retriever.fresh is not None
    return retriever.fresh.encoder


def trains_passages(retriever: Any) -> TypeGuard[DenseRetriever]:
    """Whether a retriever's passage encoder is trained."""
    return isinstance(retriever, DenseRetriever) and retriever.fresh is not None


def needed_by(run: Path, checkpoints: tuple[str, ...]) -> set[str]:
    """The editions that training needs to go on from the checkpoints of a run that are there."""
    needed = set()
    for file in (run / name for name in checkpoints):
        if file.exists() and (held := read_checkpoint(file)) is not None:
            state = held.get("callbacks", {}).get(IndexRefresh.__qualname__, {})
            needed |= {each for each in (state.get("edition"), state.get("pending")) if each is not None}
    return needed


@torch.no_grad()
def cosine(retriever: DenseRetriever, rows: np.ndarray) -> float:
    """The mean cosine between the index's vectors of some passages and those that the encoder would make now."""
    index, fresh = retriever.index, retriever.fresh
    assert fresh is not None
    now = fresh(index.passages, rows, gradient=False)
    then = torch.from_numpy(index.vectors(rows)).to(now)
    return float(torch.nn.functional.cosine_similarity(now, then, dim=1).mean())


def found(retriever: DenseRetriever, questions: list[str], depth: int) -> Any:
    """The rows that a search of the index finds for each question."""
    if not questions:
        return []
    encoder = retriever.question_encoder
    was_training = encoder.training
    encoder.eval()
    with torch.no_grad():
        asked = retriever.prepare(questions).to(next(encoder.parameters()).device)
        rows = retriever.search(retriever.encode(asked), depth)
    encoder.train(was_training)
    return rows
