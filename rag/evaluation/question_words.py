"""Which words of a question the models know, and how many of them a passage holds.

A word is not known where no passage holds it, or where the question encoder or the generator has no token for it. The
overlap of a question and a passage weighs each of the question's terms by its inverse document frequency, as BM25 does

    idf(t) = log(1 + (N − n(t) + ½) / (n(t) + ½)),

so that a name counts for more than a word that stands in every second passage.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rag.index.passages import PassageStore
from rag.index.tokens import unread_words
from rag.model import RagModel
from rag.retrievers.lexical import BM25
from rag.retrievers.protocol import Lexicon
from rag.words import word_places

MOST_COUNTED = (
    50_000  # passages whose words are counted in a second or two, where no retriever has counted them
)
# Words that ask, which passages have no reason to hold.
_ASKING = frozenset(
    "what who whom whose which when where why how did does do many much can could would should".split()
)


@dataclass(frozen=True)
class QuestionWords:
    """The terms of one question, each as the question writes it, with its weight; and the words that are not known."""

    written: Mapping[str, str]
    weights: Mapping[str, float]
    unknown: tuple[str, ...]


class WordKnowledge:
    """What a model knows of words: those of its passages, and those that its tokenizers have tokens for."""

    def __init__(self, model: RagModel):
        self.retriever = model.retriever
        self.generator_tokenizer: Any = model.generator.tokenizer
        self._counted: tuple[PassageStore, Lexicon | None] | None = None

    @property
    def lexicon(self) -> Lexicon | None:
        """The retriever's, or one that is made of its passages, where they are not too many."""
        if (own := self.retriever.lexicon()) is not None:
            return own
        store = self.retriever.index.passages
        if self._counted is None or self._counted[0] is not store:
            self._counted = store, BM25.build(store) if len(store) <= MOST_COUNTED else None
        return self._counted[1]

    def of_question(self, question: str) -> QuestionWords:
        """The question's terms, asking words and stop words left out."""
        lexicon = self.lexicon
        words = [question[start:end] for (start, end), _ in word_places(question)]
        words = [word for word in dict.fromkeys(words) if word.casefold() not in _ASKING]
        unread = {*self.retriever.unread(words), *unread_words(self.generator_tokenizer, words)}
        if lexicon is None:
            return QuestionWords({}, {}, tuple(word for word in words if word in unread))
        written: dict[str, str] = {}
        for word in words:
            if not (terms := lexicon.analyze(word)):
                unread.discard(word)  # a stop word
            for term in terms:
                written.setdefault(term, word)
        terms = [term for term in dict.fromkeys(lexicon.analyze(question)) if term not in _ASKING]
        written = {term: written.get(term, term) for term in terms}
        held = {term: lexicon.passages_with(term) for term in terms}
        missing = [written[term] for term in terms if not held[term]]
        unknown = dict.fromkeys(word for word in [*words, *missing] if word in unread or word in missing)
        weights = {term: _idf(held[term], lexicon.passages) for term in terms}
        return QuestionWords(written, weights, tuple(unknown))

    def overlap(self, words: QuestionWords, passage: str) -> float:
        """The share of the question's terms, by weight, that a passage holds; 0 where nothing is known of words."""
        lexicon, total = self.lexicon, sum(words.weights.values())
        if lexicon is None or total == 0:
            return 0.0
        held = {*lexicon.analyze(passage)}
        return sum(weight for term, weight in words.weights.items() if term in held) / total


def _idf(holders: int, passages: int) -> float:
    return math.log1p((passages - holders + 0.5) / (holders + 0.5))
