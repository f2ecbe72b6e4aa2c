"""Hard negatives (Karpukhin et al. 2020, section 3.2): what BM25 finds and does not hold the answer."""

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


class MinedNegatives:
    """Hard negatives for any questions over any corpus, kept in a cache folder under a hash of what made them.

    depth: so many of BM25's first passages are looked at. keep: at most so many are kept for a question, best first.
    k1, b: BM25's settings.
    """

    def __init__(self, depth: int = 50, keep: int = 10, k1: float = 0.9, b: float = 0.4):
        self.depth = depth
        self.keep = keep
        self.k1 = k1
        self.b = b

    def rows(
        self, store: PassageStore, questions: Sequence[Example], cache: str | Path
    ) -> Int32[np.ndarray, "questions keep"]:
        """Rows of each question's negatives, −1 where there are fewer; opened by mapping if they were mined before.

        A passage is no negative if it is one of the question's positives or contains one of its answers.
        """
        made_from = [
            _FORMAT,
            store.sha256,
            vars(self),
            [(example.question, example.answers, example.positive_ids) for example in questions],
        ]
        file = Path(cache) / f"hard_negatives-{digest(made_from)}.npy"
        with one_process(file):
            if not file.exists():
                mined = self._mine(store, questions)
                with write_aside(file) as aside, aside.open("wb") as out:
                    np.save(out, mined, allow_pickle=False)
        return np.load(file, mmap_mode="r", allow_pickle=False)

    def _mine(self, store: PassageStore, questions: Sequence[Example]) -> Int32[np.ndarray, "questions keep"]:
        scorer = BM25.build(store, self.k1, self.b)
        depth = min(self.depth, len(store))
        mined = np.full((len(questions), self.keep), -1, np.int32)
        with progress_bar("mining hard negatives", len(questions), "questions") as advance:
            for start in range(0, len(questions), _QUESTIONS_AT_ONCE):
                chunk = questions[start : start + _QUESTIONS_AT_ONCE]
                _, retrieved = scorer.search([example.question for example in chunk], depth)
                for number, (example, rows) in enumerate(zip(chunk, retrieved.tolist(), strict=True), start):
                    wrong = [
                        row for row, _ in zip(_wrong(store, example, rows), range(self.keep), strict=False)
                    ]
                    mined[number, : len(wrong)] = wrong
                advance(len(chunk))
        return mined


def _wrong(store: PassageStore, example: Example, rows: Sequence[int]) -> Iterator[int]:
    """Those of `rows` that are no positive of the question and contain none of its answers, in their order."""
    contains = answer_matcher(example.answers, regular=False)
    for row in rows:
        if row < 0:
            return
        passage = store[row]
        if passage.id not in example.positive_ids and not contains(f"{passage.title} {passage.text}"):
            yield row
