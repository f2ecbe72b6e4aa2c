"""Text in, text out: a generic task for files of one's own, and what the paper's generation tasks share.

A file is JSON lines or a JSON array of objects; `source` and `target` name the keys of the input and of what
should come out (a string, or a list of strings that are all right). Judged by BLEU-1, ROUGE-L and the ratio
of distinct trigrams (sections 3.2, 4.5).
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from rag.metrics.bootstrap import Metric
from rag.metrics.generation import bleu_1, rouge_l, trigram_diversity
from rag.tasks.contexts import contexts_of
from rag.tasks.example import Example
from rag.tasks.records import field, read_records, text_field, texts
from rag.tasks.task import Task


class TextToText(Task):
    """Inputs with the texts that should come out.

    Args:
        train, dev, test: sources; a split may be left out.
        source, target: the keys of input and output.
        limit: read only the first so many examples of every split.
    """

    measures = ("bleu_1", "rouge_l", "distinct_trigrams", "distinct_trigrams_gold")

    def __init__(
        self,
        train: str | None = None,
        dev: str | None = None,
        test: str | None = None,
        source: str = "input",
        target: str = "target",
        limit: int | None = None,
    ):
        super().__init__(train, dev, test, limit)
        self.input_key = source
        self.target_key = target

    def read(self, source: str) -> Iterator[Example]:
        for number, (where, record) in enumerate(read_records(source), start=1):
            question = text_field(record, self.input_key, where)
            answers = texts(field(record, self.target_key, where), f"{where}: {self.target_key}")
            yield Example(
                question, answers, id=str(record.get("id", number)), contexts=contexts_of(record, where)
            )

    def score(self, predictions: Sequence[str], examples: Sequence[Example]) -> dict[str, Metric]:
        """{"bleu_1", "rouge_l", "distinct_trigrams", "distinct_trigrams_gold"}.

        BLEU and ROUGE are over the examples that have answers; in `per_example` the others are NaN. The last is the
        ratio of the first answers instead of the predictions (the row "gold" of Table 5).
        """
        judged = np.array([bool(example.answers) for example in examples], dtype=bool)
        answered = [one for one, counts in zip(predictions, judged, strict=True) if counts]
        references = [example.answers for example in examples if example.answers]
        return {
            "bleu_1": _spread(bleu_1(answered, references), judged),
            "rouge_l": _spread(rouge_l(answered, references), judged),
            "distinct_trigrams": trigram_diversity(predictions),
            "distinct_trigrams_gold": trigram_diversity([right[0] for right in references]),
        }


def _spread(metric: Metric, judged: np.ndarray) -> Metric:
    """The metric of the judged examples with NaN in the places of the others."""
    per_example = np.full(len(judged), np.nan)
    per_example[judged] = metric.per_example
    return replace(metric, per_example=per_example)
