"""Q-BLEU-1: BLEU-1 with the words that make a question answerable weighed higher (section 3.3).

Nema and Khapra (2018), "Towards a Better Metric for Evaluating Question Generation Systems". Each question is
split into four parts: its type (the question words, and the word after "what" or "which"), its entities
(words that start with a capital; a leading question word aside), its stop words, and its relevant words (all
others).
With F the F-measure of BLEU-1 taken both ways round, which is 0 where a part is empty,

    answerability = relevant · F(relevant) + entities · F(entities) + type · F(type) + stop · F(stop words)
    Q-BLEU-n = δ · answerability + (1 − δ) · BLEU-n          for each question, averaged over questions

The words are those between white space; within them the Penn Treebank's tokens are compared, in lower case
and without punctuation. The tokenizer is NLTK's; the authors used Stanford's, with which it was not compared.
BLEU is that of a single sentence, unsmoothed, with brevity penalty.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from nltk.tokenize import TreebankWordTokenizer

from rag.metrics.bootstrap import Metric, mean_with_interval


@dataclass(frozen=True, slots=True)
class Weights:
    """What each part of a question counts; what the three leave to 1 is the stop words' weight."""

    relevant: float
    entities: float
    type: float
    delta: float  # of answerability against BLEU

    @property
    def stop(self) -> float:
        return 1 - self.relevant - self.entities - self.type


# Tuned on SQuAD by the metric's authors: the ones the paper uses.
SQUAD = Weights(relevant=0.36, entities=0.41, type=0.20, delta=0.66)

_QUESTION_WORDS = frozenset("what which why who whom whose where when how".split())
_STOP_WORDS = frozenset(  # NLTK's English list (from Snowball) without the question words
    "i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she her "
    "hers herself it its itself they them their theirs themselves this that these those am is are was "
    "were be been being have has had having do does did doing a an the and but if or because as until "
    "while of at by for with about against between into through during before after above below to from "
    "up down in out on off over under again further then once here there all any both each few more most "
    "other some such no nor not only own same so than too very s t can will just don should now".split()
)
_PUNCTUATION = frozenset("'' ' `` ` ( ) { } [ ] . ? ! , : - -- ... ; \" -LRB- -RRB- -LCB- -RCB-".split())
_treebank = TreebankWordTokenizer()


def q_bleu(
    predictions: Sequence[str], references: Sequence[str], n: int = 1, weights: Weights = SQUAD
) -> Metric:
    """Q-BLEU-n of generated questions (N,) against one reference each; the mean over questions."""
    pairs = zip(predictions, references, strict=True)
    return mean_with_interval(
        [
            weights.delta * answerability(one, right, weights)
            + (1 - weights.delta) * _bleu(_tokens(one), _tokens(right), n)
            for one, right in pairs
        ]
    )


def answerability(prediction: str, reference: str, weights: Weights = SQUAD) -> float:
    """How well the parts of a question agree with those of the reference, from 0 to 1."""
    shares = (weights.relevant, weights.entities, weights.type, weights.stop)
    parts = zip(shares, question_parts(prediction), question_parts(reference), strict=True)
    return sum(share * _f_measure(_tokens(one), _tokens(right)) for share, one, right in parts)


def question_parts(question: str) -> tuple[str, str, str, str]:
    """The words of a question that are relevant, entities, its type, and stop words, each joined by spaces.

    A word may be in two parts: a capitalised stop word is an entity as well.
    """
    words = question.split()
    types: list[str] = []
    for position, word in enumerate(words):
        if _is_question_word(word):
            types.append(word)
            if word.lower() in ("what", "which"):
                types += words[position + 1 : position + 2]
    first = 1 if words and words[0].lower() in _QUESTION_WORDS else 0
    entities = [word for word in words[first:] if word[0].isupper()]
    stop = [word.lower() for word in words if word.lower() in _STOP_WORDS]
    relevant = [
        word for word in words if word not in types and not word[0].isupper() and word not in _STOP_WORDS
    ]
    return " ".join(relevant), " ".join(entities), " ".join(types), " ".join(stop)


def _is_question_word(word: str) -> bool:
    return word in _QUESTION_WORDS or (word.istitle() and word.lower() in _QUESTION_WORDS)


def _tokens(text: str) -> list[str]:
    return [token for token in _treebank.tokenize(text.lower()) if token not in _PUNCTUATION]


def _f_measure(prediction: list[str], reference: list[str]) -> float:
    """The F-measure of BLEU-1 of the prediction against the reference and the other way round."""
    precision, recall = _bleu(prediction, reference, 1), _bleu(reference, prediction, 1)
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


def _bleu(prediction: list[str], reference: list[str], n: int) -> float:
    """BLEU-n of one sentence: the geometric mean of its n-gram precisions, times the brevity penalty."""
    logarithms = 0.0
    for size in range(1, n + 1):
        predicted, expected = _ngrams(prediction, size), _ngrams(reference, size)
        matches = sum((predicted & expected).values())
        if matches == 0:
            return 0.0
        logarithms += math.log(matches / predicted.total())
    return math.exp(logarithms / n + min(0.0, 1 - len(reference) / len(prediction)))


def _ngrams(tokens: list[str], size: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[start : start + size]) for start in range(len(tokens) - size + 1))
