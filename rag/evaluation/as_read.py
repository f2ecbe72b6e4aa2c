"""What the generator reads of a passage (section 2.3): all of it, or what its context leaves beside the question.

A passage that is too long is cut at its end, so that an answer can stand in a retrieved passage and never be read. Here
such passages are counted, and cut as the generator cuts them, so that `answer_recall` judges what is read.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rag.generators.seq2seq import Generator
from rag.index.folder import Index
from rag.index.passage import Passage
from rag.index.tokens import TokenStore
from rag.words import cut_at


class AsRead:
    """Passages of an index as a generator reads them beside a question."""

    def __init__(self, generator: Generator, index: Index):
        self.generator = generator
        self.index = index
        self._tokens = index.tokens(generator.tokenizer, generator.title_separator, generator.prefix)
        self._room = generator.room
        self._rooms: dict[str, int] = {}  # a question is asked of each of its passages

    def room(self, question: str) -> int:
        """How many tokens of "title / text" are read beside a question."""
        if (room := self._rooms.get(question)) is None:
            length = int(self.generator.tokenize_questions([question]).lengths[0])
            room = self._rooms[question] = max(0, self._room - length)
        return room

    def __call__(self, question: str, row: int, passage: Passage) -> Passage:
        """The passage of a row with the part of its text that is read; a word that is cut in two is left out."""
        room = self.room(question)
        if self._tokens.lengths(np.array([row]))[0] <= room:
            return passage
        head = f"{self.generator.prefix}{passage.title}{self.generator.title_separator}"
        ends = self.generator.tokenizer(
            head + passage.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )["offset_mapping"]
        end = max(0, ends[room - 1][1] - len(head)) if room else 0
        return replace(passage, text=cut_at(passage.text, end))

    def count_cut(self, questions: Sequence[str] = ()) -> int:
        """How many passages do not fit beside a question of the mean length of `questions`, or beside an empty one.
        Those that an engine has, and not this machine, are not counted: each would have to be fetched."""
        if not isinstance(self._tokens, TokenStore):
            return 0
        lengths = self.generator.tokenize_questions(questions or [""]).lengths
        return int((self._tokens.lengths() > self._room - int(np.mean(lengths))).sum())

    def describe_cut(self, questions: Sequence[str] = ()) -> str | None:
        """One sentence about the passages that are not read to their end; None where all are."""
        if not (cut := self.count_cut(questions)):
            return None
        of = f"{cut:,} of the {len(self.index):,} passages of {self.index.folder}"
        return (
            f"{of} {'does' if cut == 1 else 'do'} not fit the generator's context of "
            f"{self.generator.max_context_length} tokens: the rest is not read, and an answer there does not count as "
            "found; build the index with corpus.split=words, or raise generator.max_context_length"
        )
