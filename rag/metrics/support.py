"""How much of a generated text the passages support: the share of its n-grams, and of its names, that stand in them.

Beside the share of distinct trigrams (section 4.5) it shows what diversity costs: a text that is drawn more freely says
more that no passage says. It is no proof of a false statement, nor of a true one: words in another order support
nothing here, and a passage's words can be put together wrongly.

- Words are Unicode's (rag/words.py), compared in normal form and without case; in scripts without spaces, characters.
- n-grams do not cross the end of a sentence of the text. In a passage they stand in its title or in its text.
- Names are numbers, and runs of words with a capital letter; of a run that begins a sentence, common words that always
  have a capital there are left out, and a single word counts if it has a digit or a second capital. Where a script or a
  text has no capitals, there are no names but numbers.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from rag.metrics.bootstrap import Metric, bootstrap, mean_with_interval
from rag.words import word_places

N = 3  # of n-grams, as of the distinct ones
# Words that have a capital only because a sentence begins with them.
_BEGIN = frozenset(
    "a an and are as at be but by did do does for from had has have he her his how i if in into is it its no not of on "
    "or she since so such that the their then there these they this those to was we were what when where which while "
    "who whom whose why will with you your after also although before both during each either other under until".split()
)


@dataclass(frozen=True)
class Support:
    """Of one sentence, or of several: n-grams and names, and those that stand in a passage."""

    ngrams: int
    supported_ngrams: int
    names: tuple[str, ...]
    unsupported_names: tuple[str, ...]

    @property
    def share(self) -> float:
        """Of the n-grams; NaN where there is none."""
        return self.supported_ngrams / self.ngrams if self.ngrams else math.nan

    @property
    def name_share(self) -> float:
        """Of the names; NaN where there is none."""
        return 1 - len(self.unsupported_names) / len(self.names) if self.names else math.nan

    @classmethod
    def all_of(cls, parts: Iterable["Support"]) -> "Support":
        parts = list(parts)
        return cls(
            sum(each.ngrams for each in parts),
            sum(each.supported_ngrams for each in parts),
            tuple(name for each in parts for name in each.names),
            tuple(name for each in parts for name in each.unsupported_names),
        )


class PassageWords:
    """The words of some passages, ready to be looked up. passages: titles and texts, a string each."""

    def __init__(self, passages: Iterable[str], n: int = N):
        if n < 1:
            raise ValueError("an n-gram has at least one word")
        self.n = n
        self._words = [_words(passage) for passage in passages]
        self._ngrams = {gram for words in self._words for gram in _ngrams(words, n)}
        self._runs: dict[int, set[tuple[str, ...]]] = {}

    def of_sentence(self, sentence: str) -> Support:
        grams = _ngrams(_words(sentence), self.n)
        names = names_in(sentence)
        return Support(
            len(grams),
            sum(gram in self._ngrams for gram in grams),
            tuple(names),
            tuple(name for name in names if not self.holds(name)),
        )

    def holds(self, name: str) -> bool:
        """Whether the words of a name follow one another somewhere."""
        words = tuple(_words(name))
        if len(words) not in self._runs:
            self._runs[len(words)] = {run for held in self._words for run in _ngrams(held, len(words))}
        return words in self._runs[len(words)]


def names_in(sentence: str) -> list[str]:
    """The names of a sentence in their order, as it writes them."""
    words = [(start, end) for (start, end), _ in word_places(sentence)]
    names: list[str] = []
    run: list[tuple[int, int]] = []

    def finish() -> None:
        first = bool(run) and run[0] == words[0]
        while run and first and sentence[slice(*run[0])].casefold() in _BEGIN:
            run.pop(0)
            first = False
        if run and not (first and len(run) == 1 and not _stands_out(sentence[slice(*run[0])])):
            names.append(sentence[run[0][0] : run[-1][1]])
        run.clear()

    for place, (start, end) in enumerate(words):
        word = sentence[start:end]
        if run and sentence[run[-1][1] : start].strip(" \u00a0'’-.") and not _is_number(word):
            finish()  # a comma or a bracket stands between two names
        if _is_number(word):
            if run and sentence[run[-1][1] : start].strip():
                finish()
            run.append((start, end))
        elif word[0].isupper() or word[0].istitle():
            run.append((start, end))
        elif run:
            finish()
        if place == len(words) - 1:
            finish()
    return names


def _is_number(word: str) -> bool:
    return any(character.isdigit() for character in word)


def _stands_out(word: str) -> bool:
    return _is_number(word) or sum(character.isupper() for character in word) > 1


def _words(text: str) -> list[str]:
    return [word for _, word in word_places(text)]


def _ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def support(parts: Sequence[Support]) -> tuple[Metric, Metric]:
    """The share of all n-grams and of all names of N texts that their passages support, with intervals over texts.

    NaN where no text has any; `per_example` are the texts' own shares.
    """
    grams = np.array([[each.supported_ngrams, each.ngrams] for each in parts], dtype=np.float64)
    names = np.array(
        [[len(each.names) - len(each.unsupported_names), len(each.names)] for each in parts], dtype=np.float64
    )
    return _ratio(grams), _ratio(names)


def _ratio(counts: np.ndarray) -> Metric:
    """Σ first column / Σ second column."""
    if len(counts) == 0 or counts[:, 1].sum() == 0:
        return mean_with_interval(np.full(len(counts), np.nan))
    with np.errstate(invalid="ignore"):
        per_example = counts[:, 0] / counts[:, 1]
    value, low, high = bootstrap(counts, _of_counts)
    judged = int((counts[:, 1] > 0).sum())
    return Metric(value, low, high, judged, per_example, counts, _of_counts)


def _of_counts(means: np.ndarray) -> np.ndarray:
    """A draw without any n-gram supports all there is of it."""
    supported, total = means.T
    return np.where(total > 0, supported / np.maximum(total, 1e-12), 1.0)
