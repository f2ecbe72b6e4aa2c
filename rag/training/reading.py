"""The reader before retrieval: questions with the passage that holds their answer, as DPR's and FiD's are trained.

    input   question and passage, as the generator reads them (Generator.assemble)
    target  the passage's own tokens where the answer first stands in it, so that it can be copied;
            end-of-sequence alone where the passage holds no answer

Without passages of the second kind a reader is as sure of itself on a wrong passage as on the right one, and the sum
over passages, Σ_z p(z|x) p(y|x,z), is decided by the retriever alone. They are BM25's best without an answer.

For its first steps a passage is cut to a window around the answer, at an offset drawn anew each time: among few tokens
it is found out sooner that the answer stands there.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from torch.utils.data import DataLoader

from rag.errors import UserError
from rag.files import packed
from rag.generators.context import Ragged, special_tokens
from rag.index.passage import Passage
from rag.index.passages import PassageStore
from rag.index.reading import AS_USUAL, CorpusReading
from rag.model import Batch, RagModel
from rag.retrievers.protocol import Questions
from rag.tasks.example import Example
from rag.tasks.qa import QuestionAnswering, example_of
from rag.tasks.records import read_records
from rag.training.datamodule import Listed, Shuffled, StepDataModule, sample, step_generator
from rag.training.dpr_data import open_corpus
from rag.training.hard_negatives import MinedNegatives

POOL = 8  # batches whose examples are sorted by length together, so that little padding is


@dataclass(frozen=True)
class Source:
    """A file of questions with `positive_ids`.

    share: of each batch, relative to the other sources'. where: only records whose value of a key is one of these; null
    stands for a record without it. at_least: only records whose number of a key is not below this. optional: left out
    where no record is left.
    """

    questions: str
    share: float = 1.0
    where: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    at_least: Mapping[str, float] = field(default_factory=dict)
    optional: bool = False

    def takes(self, record: Mapping[str, Any]) -> bool:
        return all(record.get(key) in values for key, values in self.where.items()) and all(
            float(record.get(key) or 0.0) >= least for key, least in self.at_least.items()
        )


@dataclass(frozen=True)
class Reading:
    """A question, a passage as the generator's tokens, and where in these the answer stands.

    head: tokens of the title and its separator, read whole. start, end: the answer's tokens among `text`'s; None where
    the passage holds no answer, and for dev, whose answer need not be found.
    """

    example: Example
    passage: Passage
    question: Int64[np.ndarray, " question"]
    head: Int64[np.ndarray, " head"]
    text: Int64[np.ndarray, " text"]
    start: int | None = None
    end: int | None = None


class ReadingData(StepDataModule):
    """Questions with their gold passage. The model reads it as a part of the question: model=closed_book.

    passages: the corpus that holds them, which is kept in memory-mapped files under `cache`.
    unanswerable: the share of training questions that are read with a wrong passage instead, one of `mined`, anew each
        time; nothing is the right answer to them.
    dev: a file of the same kind, or several of which the first that exists is taken; its articles (titles) are left out
    of training. dev_limit: so many dev questions, a seeded sample.
    window, window_steps: so many tokens around the answer are read in so many first steps.

    A question is left out of training where no gold passage of it holds an answer, the answer is longer than
    generator.max_target_length, or stands beyond what fits the context.
    """

    def __init__(
        self,
        sources: Sequence[Mapping[str, Any] | Source],
        passages: str,
        model: RagModel,
        batch_size: int = 16,
        dev: str | Sequence[str] | None = None,
        dev_limit: int | None = None,
        eval_batch_size: int = 50,
        window: int = 48,
        window_steps: int = 0,
        num_workers: int = 0,
        seed: int = 0,
        reading: CorpusReading = AS_USUAL,
        unanswerable: float = 0.0,
        mined: MinedNegatives | None = None,
        *,
        cache: str | Path,
    ):
        super().__init__(num_workers)
        if not 0 <= unanswerable < 1:
            raise UserError(f"datamodule.unanswerable is {unanswerable}: give a share from 0 to below 1")
        try:
            self.sources = [one if isinstance(one, Source) else Source(**one) for one in sources]
        except TypeError as error:
            known = ", ".join(each.name for each in fields(Source))
            raise UserError(f"datamodule.sources: {error}; a source has {known}") from error
        self.file = packed(passages)
        self.generator = model.generator
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.dev_files = [] if dev is None else [dev] if isinstance(dev, str) else list(dev)
        self.dev_limit = dev_limit
        self.window, self.window_steps = window, window_steps
        self.seed = seed
        self.reading = reading
        self.unanswerable = unanswerable
        self.mined = mined or MinedNegatives()
        self.cache = Path(cache)
        self.store: PassageStore | None = None
        self.task: QuestionAnswering = QuestionAnswering()
        self.room = self.generator.max_context_length - sum(
            map(len, special_tokens(self.generator.tokenizer))
        )
        self.train: list[list[Reading]] = []
        self.wrong: list[
            np.ndarray
        ] = []  # rows of each training question's wrong passages, −1 beyond their number
        self.dev: list[Reading] = []
        self.left_out = 0

    # -- reading the files -----------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        if self.train:
            return
        asked = [(source, self._examples(source)) for source in self.sources]
        asked = [(source, examples) for source, examples in asked if examples]
        dev_file = self._dev_file()
        dev = [] if dev_file is None else list(self.task.read(str(dev_file)))
        dev = sample([example for example in dev if example.positive_ids], self.dev_limit, self.seed)
        every = [example for _, examples in asked for example in examples]
        every_dev = [] if dev_file is None else list(self.task.read(str(dev_file)))
        wanted = {each for example in [*every, *every_dev] for each in example.positive_ids}
        store = self.store = open_corpus(self.file, self.cache, self.reading)
        gold = _passages_of(store, wanted)
        if dev_file is not None and dev and not any(e.positive_ids[0] in gold for e in dev):
            raise UserError(
                f"{self.file} holds none of the gold passages (positive_ids) of {dev_file}: give the corpus that they "
                "are of"
            )
        held_out = {gold[i].title for example in every_dev for i in example.positive_ids if i in gold}
        given = [
            (example, gold[example.positive_ids[0]]) for example in dev if example.positive_ids[0] in gold
        ]
        self.dev = [reading for pair in given if (reading := self._reading(*pair)) is not None]
        for source, examples in asked:
            readings = [reading for example in examples if (reading := self._found(example, gold, held_out))]
            self.left_out += len(examples) - len(readings)
            if not readings:
                raise UserError(
                    f"{source.questions}: no question is left to read with: a question needs positive_ids of passages "
                    f"in {self.file} that hold its answer, and a title that dev does not ask about"
                )
            self.train.append(readings)
        if not self.train:
            raise UserError("no source has a question to read with: check datamodule.sources")
        shares = np.array([source.share for source, _ in asked])
        block = self.batch_size * POOL
        self.counts = np.diff(np.round(np.cumsum(shares) / shares.sum() * block), prepend=0).astype(int)
        self.orders = [
            Shuffled(len(readings), self.seed + number) for number, readings in enumerate(self.train)
        ]
        if self.unanswerable:
            self.wrong = [
                self.mined.rows(store, [reading.example for reading in readings], self.cache)
                for readings in self.train
            ]

    def _examples(self, source: Source) -> list[Example]:
        path = packed(source.questions)
        examples = [
            example_of(record, location, str(number))
            for number, (location, record) in enumerate(read_records(path), start=1)
            if source.takes(record)
        ]
        if not examples and not source.optional:
            conditions = [f"{key} among {list(values)}" for key, values in source.where.items()]
            conditions += [f"{key} of at least {least}" for key, least in source.at_least.items()]
            raise UserError(f"{path}: no question with {' and '.join(conditions) or 'anything in it'}")
        return [example for example in examples if example.positive_ids]

    def _dev_file(self) -> Path | None:
        if not self.dev_files:
            return None
        existing = [path for name in self.dev_files if (path := packed(name)).exists()]
        if not existing:
            raise UserError(
                f"datamodule.dev: {' and '.join(self.dev_files)} do not exist: give a question file"
            )
        return existing[0]

    def _reading(self, example: Example, passage: Passage, answer: str | None = None) -> Reading | None:
        """A question with a passage; with an answer only where it stands there, whole, among what is read."""
        generator = self.generator
        head = f"{generator.prefix}{passage.title}{generator.title_separator}"
        encoded: Any = generator.tokenizer(
            head + passage.text,
            add_special_tokens=False,
            return_offsets_mapping=True,
            truncation=False,
            verbose=False,
        )
        ids, offsets = np.array(encoded["input_ids"], np.int64), encoded["offset_mapping"]
        first = sum(start < len(head) for start, _ in offsets)
        question = generator.tokenize_questions([example.question]).tokens
        if answer is None:
            return Reading(example, passage, question, ids[:first], ids[first:])
        if (span := find_answer(answer, passage.text)) is None:
            return None
        start, end = span[0] + len(head), span[1] + len(head)
        inside = [i for i, (s, e) in enumerate(offsets) if i >= first and s < end and e > start]
        # end-of-sequence comes behind it; the question is never cut
        too_long = len(inside) >= generator.max_target_length
        if not inside or too_long or inside[-1] >= self.room - len(question):
            return None
        token_span = inside[0] - first, inside[-1] + 1 - first
        return Reading(example, passage, question, ids[:first], ids[first:], *token_span)

    def _found(self, example: Example, gold: Mapping[str, Passage], held_out: set[str]) -> Reading | None:
        """The first gold passage with an answer in it, and where; None where there is none that can be read."""
        passages = [gold[i] for i in example.positive_ids if i in gold]
        if any(passage.title in held_out for passage in passages):
            return None
        tried = (self._reading(example, p, answer) for p in passages for answer in example.answers)
        return next((reading for reading in tried if reading is not None), None)

    def sizes(self) -> dict[str, int]:
        return {
            "training questions": sum(map(len, self.train)),
            "left out": self.left_out,
            "dev questions": len(self.dev),
        }

    # -- batches ----------------------------------------------------------------------------------

    def make_batch(self, step: int) -> tuple[list[Example], Batch]:
        block, position = divmod(step, POOL)
        shuffled = step_generator(self.seed, block)
        chosen = int(shuffled.permutation(POOL)[position])
        pool = [
            self._wrong(source, i, shuffled) or readings[i]
            for source, (readings, order, count) in enumerate(
                zip(self.train, self.orders, self.counts, strict=True)
            )
            for i in order.take(block * int(count), int(count))
        ]
        pool.sort(key=lambda reading: len(reading.text) + len(reading.question))
        readings = pool[chosen * self.batch_size : (chosen + 1) * self.batch_size]
        ranks = self.trainer.world_size if self.trainer else 1
        random = step_generator(self.seed, step)
        windows = [
            window(one, self.window, random) if step // ranks < self.window_steps else (0, len(one.text))
            for one in readings
        ]
        end = self.generator.end_token
        labels = [[*answer_tokens(one), end] for one in readings]
        labels, mask = self.generator.pad(Ragged.of(labels))
        examples, batch = self._batch(readings, windows)
        return examples, replace(batch, labels=labels, label_mask=mask)

    def _wrong(self, source: int, number: int, random: np.random.Generator) -> Reading | None:
        """A training question with a passage without its answer; None where it is read with its own."""
        if not self.unanswerable or random.random() >= self.unanswerable:
            return None
        rows = self.wrong[source][number]
        rows = rows[rows >= 0]
        if not len(rows):
            return None
        assert self.store is not None
        return self._reading(self.train[source][number].example, self.store[int(random.choice(rows))])

    def dev_batch(self, readings: Sequence[Reading]) -> tuple[list[Example], Batch]:
        """Whole passages, with the first answer as the target."""
        labels, mask = self.generator.tokenize_targets([one.example.answers[0] for one in readings])
        examples, batch = self._batch(readings, [(0, len(one.text)) for one in readings])
        return examples, replace(batch, labels=labels, label_mask=mask)

    def _batch(
        self,
        readings: Sequence[Reading],
        windows: Sequence[tuple[int, int]],
    ) -> tuple[list[Example], Batch]:
        contexts = []
        for one, (start, end) in zip(readings, windows, strict=True):
            passage = np.concatenate([one.head, one.text[start:end]])[: max(0, self.room - len(one.question))]
            first = self.generator.question_first
            contexts.append([one.question, passage] if first else [passage, one.question])
        tokens = Ragged.of([np.concatenate(parts).tolist() for parts in contexts])
        examples = [one.example for one in readings]
        separator = self.generator.title_separator
        texts = tuple(f"{one.passage.title}{separator}{one.passage.text}" for one in readings)
        asked = Questions([example.question for example in examples], {})
        return examples, Batch(asked, tokens, texts=texts)

    def val_dataloader(self) -> DataLoader:
        trainer = self.trainer
        assert trainer is not None
        readings = self.dev[trainer.global_rank :: trainer.world_size]
        size = self.eval_batch_size
        return self._loader(
            Listed([readings[i : i + size] for i in range(0, len(readings), size)], self.dev_batch)
        )


def find_answer(answer: str, text: str) -> tuple[int, int] | None:
    """Where an answer first stands in a text, as whole words and whatever their case; None where it does not."""
    words = re.escape(answer.strip())
    if not words:
        return None
    begins = r"(?<!\w)" if re.match(r"\w", answer.strip()) else ""
    ends = r"(?!\w)" if re.search(r"\w$", answer.strip()) else ""
    match = re.search(begins + words + ends, text, re.IGNORECASE)
    return None if match is None else match.span()


def answer_tokens(reading: Reading) -> list[int]:
    """The answer as the passage has it; nothing where it has none."""
    return [] if reading.start is None else reading.text[reading.start : reading.end].tolist()


def window(reading: Reading, size: int, random: np.random.Generator) -> tuple[int, int]:
    """The first and the end of about `size` tokens of the text, at random; around the answer where there is one."""
    start, end = reading.start, reading.end
    if start is None or end is None:
        earliest, latest = 0, max(0, len(reading.text) - size)
    else:
        size = max(size, end - start)
        earliest = max(0, end - size)
        latest = min(start, max(0, len(reading.text) - size))
    first = int(random.integers(earliest, max(earliest, latest) + 1))
    return first, min(len(reading.text), first + size)


def _passages_of(store: PassageStore, ids: Iterable[str]) -> dict[str, Passage]:
    """Those of the passages that the store holds, by their ids."""
    held = {}
    for each in ids:
        with suppress(KeyError):
            held[each] = store[store.row_of(each)]
    return held
