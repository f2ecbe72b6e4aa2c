"""Passages that BM25 finds for the questions that a bi-encoder is trained on, kept once they were sought.

Hard negatives (Karpukhin et al. 2020, section 3.2): what BM25 finds and does not hold the answer. Distant positives
(there, section 4.1): the best that it finds and that does, for questions that name no passage.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from rag.files import one_process, write_aside
from rag.fingerprints import digest
from rag.index.passages import PassageStore
from rag.metrics.retrieval import answer_matcher
from rag.progress import progress_bar
from rag.retrievers.lexical import BM25
from rag.tasks.example import Example

_FORMAT = 2  # 1: BM25 without marks, and without words in scripts that have no spaces
_QUESTIONS_AT_ONCE = 256


class _Found:
    """Some of BM25's first passages of any questions over any corpus, in a cache folder under a hash of what made them.

    depth: so many of BM25's first passages are looked at. keep: at most so many are kept for a question, best first.
    k1, b: BM25's settings.
    """

    name: str  # of the file
    said: str  # beside the progress bar

    def __init__(self, depth: int, keep: int, k1: float = 0.9, b: float = 0.4):
        self.depth = depth
        self.keep = keep
        self.k1 = k1
        self.b = b

    def chosen(self, store: PassageStore, example: Example, rows: Sequence[int]) -> Iterator[int]:
        """Those of a question's `rows` that are kept, in their order; a row of −1 ends them."""
        raise NotImplementedError

    def rows(
        self, store: PassageStore, questions: Sequence[Example], cache: str | Path
    ) -> Int32[np.ndarray, "questions keep"]:
        """Rows of each question's passages, −1 where there are fewer; opened by mapping if they were sought before."""
        made_from = [
            _FORMAT,
            store.sha256,
            vars(self),
            [(example.question, example.answers, example.positive_ids) for example in questions],
        ]
        file = Path(cache) / f"{self.name}-{digest(made_from)}.npy"
        with one_process(file):
            if not file.exists():
                found = self._seek(store, questions)
                with write_aside(file) as aside, aside.open("wb") as out:
                    np.save(out, found, allow_pickle=False)
        return np.load(file, mmap_mode="r", allow_pickle=False)

    def _seek(self, store: PassageStore, questions: Sequence[Example]) -> Int32[np.ndarray, "questions keep"]:
        scorer = BM25.build(store, self.k1, self.b)
        depth = min(self.depth, len(store))
        found = np.full((len(questions), self.keep), -1, np.int32)
        with progress_bar(self.said, len(questions), "questions") as advance:
            for start in range(0, len(questions), _QUESTIONS_AT_ONCE):
                chunk = questions[start : start + _QUESTIONS_AT_ONCE]
                _, retrieved = scorer.search([example.question for example in chunk], depth)
                for number, (example, rows) in enumerate(zip(chunk, retrieved.tolist(), strict=True), start):
                    kept = [
                        row
                        for row, _ in zip(self.chosen(store, example, rows), range(self.keep), strict=False)
                    ]
                    found[number, : len(kept)] = kept
                advance(len(chunk))
        return found


class MinedNegatives(_Found):
    """Hard negatives: neither one of the question's positives nor a passage that contains one of its answers."""

    name = "hard_negatives"
    said = "mining hard negatives"

    def __init__(self, depth: int = 50, keep: int = 10, k1: float = 0.9, b: float = 0.4):
        super().__init__(depth, keep, k1, b)

    def chosen(self, store: PassageStore, example: Example, rows: Sequence[int]) -> Iterator[int]:
        contains = answer_matcher(example.answers, regular=False)
        for row in rows:
            if row < 0:
                return
            passage = store[row]
            if passage.id not in example.positive_ids and not contains(f"{passage.title} {passage.text}"):
                yield row


class DistantPositives(_Found):
    """Distant supervision: the best passages whose text contains one of the question's answers, in gold ones' place."""

    name = "distant_positives"
    said = "seeking passages that contain the answers"

    def __init__(self, depth: int = 30, keep: int = 1, k1: float = 0.9, b: float = 0.4):
        super().__init__(depth, keep, k1, b)

    def chosen(self, store: PassageStore, example: Example, rows: Sequence[int]) -> Iterator[int]:
        contains = answer_matcher(example.answers, regular=False)
        for row in rows:
            if row < 0:
                return
            if contains(store[row].text):
                yield row
