"""The passages that come with the questions of a file, read once and kept where all processes map them.

    passages/         every passage once (PassageStore)
    questions.jsonl   the questions, a line each
    ends.npy          (Q,) where the passages of each question end in the two below
    rows.npy          (all,) their rows, each question's best first
    scores.npy        (all,) float64, NaN where nothing gave one

A file of FiD's has gigabytes of passages, most of which come several times.
"""

import hashlib
import json
import logging
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64

from rag.errors import UserError
from rag.files import one_process, write_aside
from rag.fingerprints import digest, fingerprint
from rag.index.passage import Passage, piece_id
from rag.index.passages import PassageStore
from rag.index.unembedded import UnembeddedIndex
from rag.json_files import not_too_deep
from rag.progress import progress_bar
from rag.safe_text import json_text
from rag.tasks.contexts import CONTEXTS, Context, read_contexts
from rag.tasks.example import Example

log = logging.getLogger(__name__)

_FORMAT = 1
Read = Callable[[str], Iterator[Example]]  # Task.read


@dataclass(frozen=True)
class GivenContexts:
    """Q questions with their passages. index: the passages of all. ends, rows, scores: as the files above."""

    index: UnembeddedIndex
    questions: list[str]
    ends: Int64[np.ndarray, " questions"]
    rows: Int64[np.ndarray, " contexts"]
    scores: Float64[np.ndarray, " contexts"]

    @classmethod
    def prepare(cls, read: Read, sources: Sequence[str], cache: Path | str, how: str = "") -> "GivenContexts":
        """Read the passages of the questions in `sources` into a folder of `cache`, or open what was read before.

        read: the task's, whose examples have their contexts. how: what else decides what it reads. Raises UserError,
        with file and line, for a question without passages or with passages that are wrong; nothing is left behind.
        """
        made_of = [_FORMAT, how, *(fingerprint(source) for source in sources)]
        name = "-".join(dict.fromkeys(Path(source).name.split(".")[0] for source in sources))
        folder = Path(cache) / f"{name}-{digest(made_of)}"
        with one_process(folder):
            if not folder.exists():
                with write_aside(folder) as aside:
                    aside.mkdir()
                    _convert(read, sources, aside)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path) -> "GivenContexts":
        """Map what `prepare` has kept. Raises UserError where it is damaged."""
        index = UnembeddedIndex.open(folder)
        try:
            with open(folder / "questions.jsonl", encoding="utf-8") as file:
                questions = [json.loads(line) for line in file]
            ends, rows, scores = (np.load(folder / f"{part}.npy") for part in ("ends", "rows", "scores"))
            whole = len(ends) == len(questions) and len(rows) == len(scores) == ends[-1]
            if not whole or rows.min() < 0 or rows.max() >= len(index) or np.any(np.diff(ends) < 0):
                raise ValueError("its parts do not fit together")
        except (OSError, ValueError, IndexError) as error:
            raise UserError(
                f"{folder} is damaged ({error}): delete it, and it is made again from the questions"
            ) from error
        return cls(index, questions, ends, rows, scores)

    def of(self, number: int) -> tuple[Int64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
        """The rows and scores of a question's passages, best first."""
        part = slice(self.ends[number - 1] if number else 0, self.ends[number])
        return self.rows[part], self.scores[part]


def _convert(read: Read, sources: Sequence[str], folder: Path) -> None:
    store = _Store()
    ends, scores, asked = array("q"), array("d"), {}
    without: list[str] = []

    def passages() -> Iterator[Passage]:
        """The passages that are new, while rows and scores are noted beside."""
        with progress_bar("reading given passages", None, "questions") as advance:
            for source in sources:
                with not_too_deep(source):
                    for example in read(source):
                        advance(1)
                        contexts = _of(example)
                        if not contexts:
                            without.append(_place(example, source))
                            continue
                        for context in contexts:
                            if (passage := store.new(context)) is not None:
                                yield passage
                            scores.append(np.nan if context[3] is None else context[3])
                        ends.append(len(store.rows))
                        asked.setdefault(example.question, []).append(len(ends) - 1)
            _check(asked, without, sources)

    PassageStore.write(passages(), folder / "passages", {"path": " and ".join(sources)})
    questions = [""] * len(ends)
    for question, numbers in asked.items():
        for number in numbers:
            questions[number] = question
    with open(folder / "questions.jsonl", "w", encoding="utf-8") as out:
        out.writelines(json_text(question) + "\n" for question in questions)
    for name, values in (("ends", ends), ("rows", store.rows), ("scores", scores)):
        np.save(folder / f"{name}.npy", np.array(values))


def _of(example: Example) -> list[Context]:
    return [] if example.contexts is None else read_contexts(*example.contexts)


def _place(example: Example, source: str) -> str:
    return f"{source}, question {example.id}" if example.contexts is None else example.contexts[0]


def _check(asked: dict[str, list[int]], without: list[str], sources: Sequence[str]) -> None:
    """UserError unless every question has passages."""
    keys = ", ".join(CONTEXTS)
    if not asked:
        raise UserError(
            f"{' and '.join(sources)}: no question has passages of its own, which retriever=given reads from the key "
            f"{keys}: add them, or take a retriever that searches"
        )
    if without:
        others = f" (and {len(without) - 1:,} others)" if len(without) > 1 else ""
        raise UserError(
            f"{without[0]}{others}: no passages beside the question, which retriever=given reads from the key {keys}: "
            "add them, or leave such questions out"
        )


class _Store:
    """Gives each passage its row, the same one when it comes again."""

    def __init__(self) -> None:
        self.rows = array("q")  # of every context, in order
        self._known: dict[int, int] = {}  # 64 bits of a hash of id, title and text → row
        self._uses: dict[str, int] = {}  # how many passages came under an id

    def new(self, context: Context) -> Passage | None:
        """Note a context's row; the passage if it was not there yet.

        A passage without an id is known by a hash. Another one under an id that was used, as where ids count within a
        question, becomes a piece of that id ("7#2"), so that a gold passage 7 is still found.
        """
        id, title, text, _ = context
        content = hashlib.sha256(json.dumps([id, title, text]).encode()).hexdigest()[:16]
        key = int(content, 16)
        if (row := self._known.get(key)) is not None:
            self.rows.append(row)
            return None
        self._known[key] = len(self._known)
        self.rows.append(self._known[key])
        if id is None:
            return Passage(content, title, text)
        number, name = self._uses.get(id, 0), id
        while name in self._uses:
            number += 1
            name = piece_id(id, number + 1)
        self._uses[name] = 0
        self._uses[id] = number
        return Passage(name, title, text)
