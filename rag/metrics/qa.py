"""Exact match and token F1 for short answers (section 3.1): the best over a question's answers counts.

Answers are compared after the official normalisation of SQuAD's evaluation script (Rajpurkar et al. 2016),
which DPR and RAG use as well: lower case, ASCII punctuation dropped, the articles a, an, the dropped, white space
collapsed; no Unicode normalisation. Nothing is no answer, though: to one that it leaves nothing of, such as "A" or "%",
an empty prediction is wrong here. CuratedTREC's answers are regular expressions (Baudiš and Šedivý 2015)
and are matched as in DrQA's evaluation (Chen et al. 2017): from the beginning of the prediction, ignoring
case. An expression with accents is compared in composed form (NFC), so that "São Paulo" matches however its accent is
written; one in plain ASCII sees the text as DrQA and DPR show it.
"""

import re
import string
import unicodedata
import warnings
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from rag.errors import UserError

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NAMED_LETTER = re.compile(r"\\[xuUN]")  # an accented letter written in ASCII, as "\u00e3"
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalize(text: str) -> str:
    """SQuAD's normalisation: "The  Beatles!" becomes "beatles"."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> np.ndarray:
    """(N,) scores, 1.0 where the prediction equals one of the answers after normalisation, else 0.0."""
    pairs = zip(predictions, answers, strict=True)
    return np.array(
        [any(_same(prediction, one) for one in right) for prediction, right in pairs], dtype=np.float64
    )


def token_f1(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> np.ndarray:
    """(N,) scores, the F1 over normalised words of prediction and answer, the best over the answers."""
    pairs = zip(predictions, answers, strict=True)
    return np.array(
        [max((_f1(prediction, one) for one in right), default=0.0) for prediction, right in pairs],
        dtype=np.float64,
    )


def regex_match(predictions: Sequence[str], patterns: Sequence[Sequence[str]]) -> np.ndarray:
    """(N,) scores, 1.0 where a regular expression of the question matches the prediction's beginning.

    Raises UserError for a pattern that does not compile.
    """
    pairs = zip(predictions, patterns, strict=True)
    return np.array(
        [
            any(compile_answer(one).match(as_seen_by(one, prediction)) for one in right)
            for prediction, right in pairs
        ],
        dtype=np.float64,
    )


@lru_cache(maxsize=65536)
def compile_answer(pattern: str, where: str = "") -> re.Pattern[str]:
    """Compile a CuratedTREC answer with DrQA's and DPR's flags, for text that `as_seen_by` gives.

    Raises UserError if it does not compile.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what a later Python may read otherwise
            return re.compile(
                unicodedata.normalize("NFC", pattern), re.IGNORECASE | re.UNICODE | re.MULTILINE
            )
    except (re.error, OverflowError, RecursionError) as error:  # {99999999999}, brackets inside brackets
        location = f"{where}: " if where else ""
        raise UserError(f"{location}the answer {pattern!r} is not a regular expression ({error})") from None


def as_seen_by(pattern: str, text: str) -> str:
    """`text` for an expression to be matched in: composed (NFC) where the expression names accented letters."""
    if text.isascii() or pattern.isascii() and not _NAMED_LETTER.search(pattern):
        return text
    return unicodedata.normalize("NFC", text)


def decompose(text: str) -> str:
    """The text with accents after their letters (NFD), as DPR compares texts."""
    return text if text.isascii() else unicodedata.normalize("NFD", text)


def _same(prediction: str, answer: str) -> bool:
    if answer.strip() and not prediction.strip():
        return False
    return normalize(prediction) == normalize(answer)


def _f1(prediction: str, answer: str) -> float:
    predicted, expected = normalize(prediction).split(), normalize(answer).split()
    shared = sum((Counter(predicted) & Counter(expected)).values())
    if shared == 0:
        return 0.0
    precision, recall = shared / len(predicted), shared / len(expected)
    return 2 * precision * recall / (precision + recall)
