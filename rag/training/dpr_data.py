"""Batches for training the bi-encoder, and what its dev set is ranked among (rag/training/dpr.py)."""

import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch.utils.data import DataLoader

from rag.errors import UserError
from rag.files import one_process
from rag.fingerprints import digest, fingerprint
from rag.index.passage import Passage, piece_id
from rag.index.passages import PassageStore
from rag.index.reading import AS_USUAL, CorpusReading
from rag.metrics.retrieval import answer_matcher
from rag.tasks.dpr_json import AskedQuestion, open_dpr_json, warn_of_left_out
from rag.tasks.example import Example
from rag.tasks.qa import read_examples
from rag.training.datamodule import Listed, Shuffled, StepDataModule, sample, step_generator
from rag.training.dpr import BiEncoder, BiEncoderBatch, DevBatch
from rag.training.hard_negatives import DistantPositives, MinedNegatives
from rag.training.remining import Remining, RetrievedNegatives
from rag.training.schedule import Schedule

log = logging.getLogger(__name__)


class DprData(StepDataModule):
    """Batches for the bi-encoder: inverse cloze over the corpus, questions with gold passages, or first one, then both.

    Passages stay in memory-mapped files; of the questions, texts and row numbers are held.

    passages: the corpus that the questions name passages of; None: `questions` is in DPR's training format, which
        brings its passages along.
    questions: a file with positive_ids (and hard_negative_ids); None trains on inverse cloze alone.
    dev: a file of the same kind, for validation by average rank; dev_limit: a seeded sample of so many questions.
    dev_negatives: so many hard negatives of each dev question, and as many others, stand among the passages of dev
        (DPR takes 30 and 30).
    inverse_cloze: makes queries out of passages (rag/scratch/inverse_cloze.py); None trains on questions alone.
    inverse_cloze_steps: so many first steps see inverse cloze alone; after that it makes up `inverse_cloze_share` of
        each batch.
    hard_negatives: of each question in a batch, drawn anew each time.
    mined: adds BM25's to the hard negatives that the files name; None adds none.
    remine: after which steps the encoders under training mine hard negatives anew: 500, or 0-1000:500,1000-:1000; None
        never. remining: how.
    distant: finds passages that contain the answers for a file whose questions name none; None refuses such a file.
    distant_cloze: an inverse cloze for training on such questions, beside them, where there is no `inverse_cloze`.
    reading: how the corpus is read.
    cache: a folder for what is made of the files once (passage stores, mined negatives).
    """

    def __init__(
        self,
        passages: str | Path | None,
        model: BiEncoder,
        batch_size: int,
        questions: str | Path | None = None,
        inverse_cloze: Any = None,
        inverse_cloze_steps: int = 0,
        hard_negatives: int = 1,
        num_workers: int = 0,
        seed: int = 0,
        *,
        cache: str | Path,
        inverse_cloze_share: float = 0.5,
        dev: str | Path | None = None,
        dev_limit: int | None = None,
        dev_negatives: int = 30,
        eval_batch_size: int = 64,
        mined: MinedNegatives | None = None,
        remine: int | str | Iterable[str] | None = None,
        remining: Remining | None = None,
        distant: DistantPositives | None = None,
        distant_cloze: Any = None,
        reading: CorpusReading = AS_USUAL,
    ):
        super().__init__(num_workers)
        self.file = passages
        self.model = model
        self.batch_size = batch_size
        self.question_file = questions
        self.inverse_cloze: Any = inverse_cloze
        self.inverse_cloze_steps = inverse_cloze_steps
        self.inverse_cloze_share = inverse_cloze_share
        self.hard_negatives = hard_negatives
        self.dev_file = dev
        self.dev_limit = dev_limit
        self.dev_negatives = dev_negatives
        self.eval_batch_size = eval_batch_size
        self.mined = mined
        self.remine = Schedule.set_by("datamodule.remine", remine)
        if not isinstance(remining, Remining | None):
            raise UserError(
                f"datamodule.remining={remining} names no class: give datamodule.remining="
                "{_target_: rag.training.Remining, depth: 50, keep: 10}"
            )
        self.remining = remining or Remining()
        self.retrieved: RetrievedNegatives | None = None
        self.distant = distant
        self.distant_cloze = distant_cloze
        self.cache = Path(cache)
        self.reading = reading
        self.seed = seed
        self.store: PassageStore | None = None
        self.questions: list[AskedQuestion] = []
        self.dev: DevSet | None = None

    def setup(self, stage: str | None = None) -> None:
        if self.store is not None:
            return
        if self.question_file is None and self.inverse_cloze is None:
            raise UserError("DPR has nothing to train on: give questions with positive_ids, or inverse_cloze")
        if self.file is None and self.question_file is None:
            raise UserError("DPR has no passages: give passages, or questions in DPR's training format")
        files = [file for file in (self.question_file, self.dev_file) if file is not None]
        self._check_remining()
        # Before the corpus is converted and searched, which takes a while, all questions are read once.
        read = {} if self.file is None else {file: read_examples(file) for file in dict.fromkeys(files)}
        for file, examples in read.items():
            self._check_named(file, examples)
        corpus = None if self.file is None else open_corpus(self.file, self.cache, self.reading)
        store, questions = corpus, []
        if self.question_file is not None:
            store, questions = self._asked(corpus, self.question_file, read.get(self.question_file))
            self.order = Shuffled(len(questions), self.seed)
            if self.distant_cloze is not None and not _names_passages(read.get(self.question_file, ())):
                self.inverse_cloze = self.inverse_cloze or self.distant_cloze
        if self.inverse_cloze is not None and (
            not questions or self.inverse_cloze_steps or self.inverse_cloze_share
        ):
            self.inverse_cloze.setup(store)
        if self.dev_file is not None:
            asked = self._asked(corpus, self.dev_file, read.get(self.dev_file), self.dev_limit)
            self.dev = DevSet(*asked, self.dev_negatives)
        self.store, self.questions = store, questions
        if store is not None and (self.remine or self.remining.at_start):
            self.retrieved = RetrievedNegatives(self.remining, self.remine, store, questions, self.seed)

    def _check_remining(self) -> None:
        if not self.remine and not self.remining.at_start:
            if self.remining != Remining():
                log.warning(
                    "datamodule.remining says how negatives are mined, and datamodule.remine, which says when, is "
                    "null: none are; give datamodule.remine=500"
                )
            return
        setting = f"datamodule.remine={self.remine}" if self.remine else "datamodule.remining.at_start=true"
        if self.question_file is None:
            raise UserError(
                f"{setting} mines negatives of questions, and datamodule.questions=null gives none: give questions "
                "with positive_ids, or leave it out"
            )
        if self.hard_negatives < 1:
            raise UserError(
                f"{setting} mines hard negatives, and datamodule.hard_negatives={self.hard_negatives} takes none "
                "into a batch: give datamodule.hard_negatives=1 or more"
            )

    def _check_named(self, file: str | Path, examples: Sequence[Example]) -> None:
        """UserError where no question names a passage, and none is found by its answers."""
        if not _names_passages(examples) and self.distant is None:
            raise UserError(
                f"{file} holds no question with positive_ids, the passages that DPR is trained on and judged by: give "
                "them, or go without (datamodule.questions=null, or datamodule.dev=null monitor=null), or take those "
                "that contain the answers (+datamodule.distant._target_=rag.training.DistantPositives)"
            )

    def _asked(
        self,
        corpus: PassageStore | None,
        file: str | Path,
        everything: Sequence[Example] | None,
        limit: int | None = None,
    ) -> tuple[PassageStore, list[AskedQuestion]]:
        """The passages and questions of a file; everything: its questions, where they are not in DPR's format."""
        if corpus is None or everything is None:
            store, questions = open_dpr_json(file, self.cache)
            return store, sample(questions, limit, self.seed)
        if _names_passages(everything):
            examples = [example for example in everything if example.positive_ids]
            warn_of_left_out(file, len(everything) - len(examples), len(everything))
            examples = sample(examples, limit, self.seed)
            named_by_answer = None
        else:
            examples, named_by_answer = self._distant(corpus, file, everything, limit)
        named = [
            [_row(corpus, one, example, right, self.file) for one in ids]
            for example in examples
            for right, ids in ((True, example.positive_ids), (False, example.hard_negative_ids))
        ]
        positives, hard = named_by_answer or named[::2], named[1::2]
        if self.mined is not None:
            mined = self.mined.rows(corpus, examples, self.cache).tolist()
            hard = [
                list(dict.fromkeys([*of_file, *(row for row in more if row >= 0)]))
                for of_file, more in zip(hard, mined, strict=True)
            ]
        rows = zip(positives, hard, strict=True)
        return corpus, [
            AskedQuestion(
                example.question,
                np.array(right, np.int32),
                np.array(wrong, np.int32),
                answers=tuple(example.answers),
            )
            for example, (right, wrong) in zip(examples, rows, strict=True)
        ]

    def _distant(
        self, corpus: PassageStore, file: str | Path, everything: Sequence[Example], limit: int | None
    ) -> tuple[list[Example], list[list[int]]]:
        """The questions of a file that an answer is found for, with the rows of the passages that contain one."""
        assert self.distant is not None
        examples = sample(everything, limit, self.seed)
        rows = self.distant.rows(corpus, examples, self.cache).tolist()
        found = [
            (one, [row for row in of_one if row >= 0]) for one, of_one in zip(examples, rows, strict=True)
        ]
        found = [(one, of_one) for one, of_one in found if of_one]
        if not found:
            raise UserError(
                f"{file}: its questions name no passages (positive_ids), and no answer stands in the "
                f"{self.distant.depth} best passages of its question by BM25: give positive_ids, or the corpus that "
                "the questions are asked of"
            )
        cloze = (self.inverse_cloze or self.distant_cloze) if self.inverse_cloze_share else None
        beside = ", and inverse cloze beside them" if cloze is not None and file == self.question_file else ""
        log.warning(
            "%s: its questions name no passages (positive_ids); for %s of %s the best by BM25 that contains an answer "
            "is taken (distant supervision)%s",
            file,
            f"{len(found):,}",
            f"{len(examples):,}",
            beside,
        )
        return [one for one, _ in found], [of_one for _, of_one in found]

    def sizes(self) -> dict[str, int]:
        counts = {"passages": len(self.store or ()), "training questions": len(self.questions)}
        if self.dev is not None:
            counts |= {"dev questions": len(self.dev.questions), "dev passages": len(self.dev.rows)}
        return counts

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        if self.remine and trainer is not None and trainer.max_steps > 0:
            if not any(map(self.remine.due, range(1, trainer.max_steps))):
                log.warning(
                    "datamodule.remine=%s: no negatives are mined before training ends at step %s (trainer.max_steps)",
                    self.remine,
                    f"{trainer.max_steps:,}",
                )
        return super().train_dataloader()

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """The batch of the step that begins, after the negatives were mined where that is due.

        Loaders work ahead: a batch that was made with older negatives is made again.
        """
        trainer = self.trainer
        if self.retrieved is None or trainer is None or not isinstance(batch, BiEncoderBatch):
            return batch
        if self.retrieved.due(trainer.global_step):
            self.retrieved.mine(self.model, trainer.global_step)
        return batch if batch.mined_after == self.retrieved.after else self.make_batch(batch.number)

    def take_metrics(self) -> dict[str, float]:
        return {} if self.retrieved is None else self.retrieved.take_metrics()

    def state_dict(self) -> dict[str, Any]:
        return {} if self.retrieved is None else self.retrieved.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.retrieved is not None:
            self.retrieved.load_state_dict(state_dict)

    def make_batch(self, step: int) -> BiEncoderBatch:
        assert self.store is not None
        mined_after = None if self.retrieved is None else self.retrieved.after  # before they are read
        random = step_generator(self.seed, step)
        only_cloze = not self.questions or (
            self.inverse_cloze is not None and step < self.inverse_cloze_steps
        )
        cloze = 0 if self.inverse_cloze is None else round(self.inverse_cloze_share * self.batch_size)
        asked = 0 if only_cloze else self.batch_size - cloze
        queries: list[str] = []
        passages: list[Passage] = []
        rows: list[int] = []  # of each passage
        right: list[list[int]] = []  # the rows that are right for each query
        positive: list[int] = []  # where in `passages` each query's own passage stands
        if asked < self.batch_size:
            assert self.inverse_cloze is not None
            for query, row, passage in self.inverse_cloze.make(random, self.batch_size - asked):
                positive.append(len(passages))
                queries.append(query)
                passages.append(passage)
                rows.append(row)
                right.append([row])
        for number in self.order.take(step * asked, asked) if asked else ():
            example = self.questions[number]
            gold = example.positives.tolist()
            hard = example.hard.tolist() if self.retrieved is None else self.retrieved.hard(number)
            hard = hard or example.other.tolist()
            positive.append(len(passages))
            queries.append(example.question)
            right.append(gold)
            chosen = [gold[random.integers(len(gold))]]
            chosen += [hard[i] for i in random.permutation(len(hard))[: self.hard_negatives]]
            rows += chosen
            passages += [self.store[row] for row in chosen]
        return BiEncoderBatch(
            self.model.question_encoder.tokenize(queries),
            self.model.passage_encoder.tokenize(passages),
            torch.tensor(rows),
            torch.from_numpy(padded(right)),
            torch.tensor(positive),
            step,
            mined_after,
        )

    def val_dataloader(self) -> DataLoader | list:
        if self.dev is None:
            return []
        trainer = self.trainer
        assert trainer is not None
        sizes = (len(self.dev.questions), len(self.dev.rows))
        jobs = [
            (number == 0, range(start, min(start + self.eval_batch_size, size)))
            for number, size in enumerate(sizes)
            for start in range(0, size, self.eval_batch_size)
        ]
        return self._loader(Listed(jobs[trainer.global_rank :: trainer.world_size], self._dev_batch))

    def _dev_batch(self, job: tuple[bool, range]) -> DevBatch:
        questions, numbers = job
        assert self.dev is not None
        if questions:
            tokens = self.model.question_encoder.tokenize([self.dev.questions[i].question for i in numbers])
        else:
            tokens = self.model.passage_encoder.tokenize([self.dev.store[self.dev.rows[i]] for i in numbers])
        return DevBatch(questions, torch.tensor(numbers), tokens)


def _names_passages(examples: Sequence[Example]) -> bool:
    return any(example.positive_ids for example in examples)


class DevSet:
    """Dev questions and the passages that they are ranked among: all their golds and negatives, each once.

    rows: of the passages. gold[b]: where among `rows` question b's own passage stands, the first of its positives.
    right[b]: where all of its positives stand, −1 beyond their number.
    """

    def __init__(self, store: PassageStore, questions: list[AskedQuestion], negatives: int):
        self.store = store
        self.questions = questions
        number_of: dict[int, int] = {}
        for one in questions:
            for row in (*one.positives[:1], *one.hard[:negatives], *one.other[:negatives]):
                number_of.setdefault(int(row), len(number_of))
        self.rows = list(number_of)
        self.gold = torch.tensor([number_of[int(one.positives[0])] for one in questions])
        known = [[number_of[row] for row in one.positives.tolist() if row in number_of] for one in questions]
        self.right = torch.from_numpy(padded(known))


def open_corpus(passages: str | Path, cache: Path, reading: CorpusReading = AS_USUAL) -> PassageStore:
    """A corpus as a memory-mapped store: a store that is there (an index's passages/), or a file converted once."""
    path = Path(passages)
    if (path / "store.json").is_file():
        return PassageStore.open(path)
    if not path.exists():
        raise UserError(f"{path} does not exist: give the passages that the questions were made for")
    way = reading.settings()
    folder = cache / f"passages-{digest([fingerprint(path), way] if way else fingerprint(path))}"
    with one_process(folder):
        return PassageStore.prepare(path, folder, True, reading)


def _row(store: PassageStore, passage: str, example: Example, right: bool, file: Any) -> int:
    """The row of a passage that a question names. Of one that was split into pieces, the first that holds an answer, or
    that holds none where it is not a right one; the first where there is no such piece."""
    try:
        return store.row_of(passage)
    except KeyError:
        if pieces := _pieces(store, passage):
            contains = answer_matcher(example.answers)
            return next((row for row in pieces if contains(store[row].text) is right), pieces[0])
        raise UserError(
            f"question {example.id} names passage {passage}, which {file} does not hold: "
            "give the passages that the questions were made for, and in positive_ids their ids, not their titles"
        ) from None


def _pieces(store: PassageStore, passage: str) -> list[int]:
    rows: list[int] = []
    with suppress(KeyError):
        while True:
            rows.append(store.row_of(piece_id(passage, len(rows) + 1)))
    return rows


def padded(lists: Sequence[Sequence[int]]) -> Int64[np.ndarray, "lists longest"]:
    """Lists of whole numbers as one array, −1 beyond their ends."""
    longest = max((len(one) for one in lists), default=0)
    array = np.full((len(lists), longest), -1, np.int64)
    for number, one in enumerate(lists):
        array[number, : len(one)] = one
    return array
