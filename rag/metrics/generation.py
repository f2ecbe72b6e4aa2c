"""Measures of generated text: BLEU-1, ROUGE-L (sections 3.2, 3.3) and the distinct-trigram ratio (section
4.5).

BLEU-1 is sacrebleu's, ROUGE-L Google's rouge-score. The paper does not say which implementations it used;
MS-MARCO's own evaluation computes both by the COCO caption code (its ROUGE-L weighs recall higher, beta 1.2),
whose values differ from these.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from rouge_score.rouge_scorer import RougeScorer

from rag.metrics.bootstrap import Metric, bootstrap, jackknife, mean_with_interval


def bleu_1(predictions: Sequence[str], references: Sequence[Sequence[str]], lowercase: bool = True) -> Metric:
    """Corpus BLEU of unigrams, with the brevity penalty against the closest reference's length.

    Args:
        predictions: (N,) generated texts.
        references: for each, one or more texts that are right.
        lowercase: compare without regard to case.
    Returns:
        The corpus score; `per_example` are sentence scores, whose mean is not the corpus score.
    """
    from sacrebleu.metrics.bleu import BLEU  # locks files as it is imported, which not every system can

    bleu = BLEU(max_ngram_order=1, lowercase=lowercase, effective_order=True)
    scores = [
        bleu.sentence_score(one, list(right)) for one, right in zip(predictions, references, strict=True)
    ]
    per_example = np.array([score.score / 100 for score in scores])
    counts = np.array([[score.counts[0], score.sys_len, score.ref_len] for score in scores], dtype=np.float64)
    if len(scores) == 0:
        return mean_with_interval(per_example)
    value, low, high = bootstrap(counts, _bleu_1_of_counts)
    return Metric(value, low, high, len(scores), per_example, counts, _bleu_1_of_counts)


def _bleu_1_of_counts(counts: np.ndarray) -> np.ndarray:
    """(R, 3) unigrams that match, the length of the predictions and of the references to (R,) BLEU-1."""
    matches, length, reference = counts.T
    length = np.maximum(length, 1e-12)
    return matches / length * np.exp(np.minimum(0.0, 1 - reference / length))


def rouge_l(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Metric:
    """Mean F1 of the longest common subsequence of words, the best over an example's references; no
    stemming."""
    scorer = RougeScorer(["rougeL"])
    pairs = zip(predictions, references, strict=True)
    return mean_with_interval(
        [scorer.score_multi(list(right), one)["rougeL"].fmeasure for one, right in pairs]
    )


def distinct_trigrams(predictions: Sequence[str]) -> float:
    """The number of distinct trigrams of white-space separated words over that of all trigrams (Table 5).

    It is a property of the whole set of predictions, and depends on how many there are: compare equal sets. NaN if
    no prediction has three words. Case counts.
    """
    return trigram_diversity(predictions).value


def trigram_diversity(predictions: Sequence[str]) -> Metric:
    """`distinct_trigrams` with its interval, the jackknife's; no prediction has a share of it by itself."""
    counted = [
        Counter(zip(words, words[1:], words[2:], strict=False))
        for words in (prediction.split() for prediction in predictions)
    ]
    nan = np.full(len(counted), np.nan)
    everywhere: Counter[tuple[str, str, str]] = Counter()
    for trigrams in counted:
        everywhere.update(trigrams)
    total = everywhere.total()
    if total == 0:
        return Metric(math.nan, math.nan, math.nan, len(counted), nan)
    value = len(everywhere) / total
    # with a prediction left out, the trigrams that stand nowhere else are gone too
    alone = np.array(
        [sum(n == everywhere[trigram] for trigram, n in trigrams.items()) for trigrams in counted]
    )
    left = total - np.array([trigrams.total() for trigrams in counted])
    if len(counted) < 2 or (left == 0).any():
        return Metric(value, math.nan, math.nan, len(counted), nan)
    low, high = jackknife(value, (len(everywhere) - alone) / left)
    return Metric(value, max(0.0, low), min(1.0, high), len(counted), nan)
