"""The inverse cloze task (Lee et al. 2019): find the passage that a sentence was taken from.

Gives a bi-encoder its first idea of which passage goes with which words, before it sees a question. Two changes to the
usual task did most for small encoders: the title stands anywhere among noise words that tell nothing, as it does in
questions ("when did … take up …"), and the passages of a batch share words of their titles, or the whole title, so that
neither half a name nor all of it is enough and what a passage says has to be read.
"""

import re
from array import array
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from rag.index.passage import Passage
from rag.scratch.denoising import split_sentences

_WORD = re.compile(r"\w+")


class InverseCloze:
    """Makes (query, row, passage) triples: the title and the words of one sentence → the passage.

    keep_sentence: how often the sentence stays in the passage. drop_words: share of its words left out of the query.
    noise_words: up to so many random words that occur in no title are mixed in.
    max_words: of a sentence with more words, so many in a row make the query, as questions are no longer either.
    """

    def __init__(
        self,
        keep_sentence: float = 0.3,
        drop_words: float = 0.25,
        noise_words: int = 5,
        max_words: int = 30,
    ):
        self.keep_sentence = keep_sentence
        self.drop_words = drop_words
        self.noise_words = noise_words
        self.max_words = max_words
        self.passages: Sequence[Passage] = ()

    def setup(self, passages: Sequence[Passage]) -> None:
        """Learn which passages share their title or a word of it, and which words occur in no title."""
        self.passages = passages
        by_word: dict[str, array] = defaultdict(lambda: array("i"))
        by_title: dict[str, array] = defaultdict(lambda: array("i"))
        vocabulary: dict[str, None] = {}
        for row, passage in enumerate(passages):
            by_title[passage.title].append(row)
            for word in dict.fromkeys(_WORD.findall(passage.title.lower())):
                by_word[word].append(row)
            if row < 50_000:
                vocabulary.update(dict.fromkeys(_WORD.findall(passage.text.lower())))
        self.clusters = [np.array(rows, np.int64) for rows in by_word.values() if 2 <= len(rows) <= 1000]
        self.same_title = {row: rows for rows in by_title.values() for row in rows}
        self.noise = [word for word in vocabulary if word not in by_word]

    def make(self, random: np.random.Generator, count: int) -> list[tuple[str, int, Passage]]:
        """`count` triples whose passages come in clusters: titles that share a word, some passages of each."""
        rows: dict[int, None] = {}
        while len(rows) < count:
            if not self.clusters:
                rows[int(random.integers(len(self.passages)))] = None
                continue
            cluster = self.clusters[random.integers(len(self.clusters))]
            for row in random.permutation(cluster)[:4].tolist():
                beside = random.permutation(self.same_title[row])[:4].tolist()
                rows.update(dict.fromkeys([row, *beside]))
        return [self._triple(random, row) for row in list(rows)[:count]]

    def _triple(self, random: np.random.Generator, row: int) -> tuple[str, int, Passage]:
        passage = self.passages[row]
        sentences = split_sentences(passage.text)
        number = int(random.integers(len(sentences)))
        words = _WORD.findall(sentences[number])
        if len(words) > self.max_words:
            start = int(random.integers(len(words) - self.max_words + 1))
            words = words[start : start + self.max_words]
        words = [word for word in words if random.random() >= self.drop_words]
        for _ in range(int(random.integers(self.noise_words + 1)) if self.noise else 0):
            words.insert(int(random.integers(len(words) + 1)), self.noise[random.integers(len(self.noise))])
        if len(sentences) > 1 and random.random() >= self.keep_sentence:
            rest = " ".join(sentences[:number] + sentences[number + 1 :])
            passage = Passage(passage.id, passage.title, rest)
        words.insert(int(random.integers(len(words) + 1)), self.passages[row].title)
        return " ".join(words), row, passage
