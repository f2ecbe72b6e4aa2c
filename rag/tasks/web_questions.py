"""WebQuestions (section 3.1): questions from a search engine's suggestions, answered by Freebase entities.

Sources: DPR's `biencoder-webquestions-{train,dev}.json.gz` and `webquestions-test.qa.csv` (the paper's splits of
3,417 / 361 / 2,032 questions, the first two without those that no passage answers), the original
`webquestions.examples.{train,test}.json` (3,778 / 2,032; an array with `utterance` and `targetValue`), and the hub's
stanfordnlp/web_questions, which is the latter with `question` and `answers`.
Berant et al. 2013; CC BY 4.0. The paper starts this task from the model trained on Natural Questions.
"""

import re
from collections.abc import Iterator

from rag.errors import UserError
from rag.metrics.retrieval import tokenize
from rag.tasks.example import Example
from rag.tasks.qa import QuestionAnswering, example_of
from rag.tasks.records import read_records, text_field

HUB_TRAIN = "hub://stanfordnlp/web_questions/default/train"
HUB_TEST = "hub://stanfordnlp/web_questions/default/test"

_DESCRIPTION = re.compile(r'\(description (?:"((?:[^"\\]|\\.)*)"|([^()"\s]+))\)')


class WebQuestions(QuestionAnswering):
    """WebQuestions in DPR's, the hub's or the original form."""

    tokens = staticmethod(tokenize)

    def __init__(
        self,
        train: str | None = HUB_TRAIN,
        dev: str | None = None,
        test: str | None = HUB_TEST,
        limit: int | None = None,
    ):
        super().__init__(train, dev, test, limit=limit)

    def read(self, source: str) -> Iterator[Example]:
        for number, (where, record) in enumerate(read_records(source), start=1):
            if "targetValue" in record:
                answers = target_values(text_field(record, "targetValue", where), where)
                record = {"question": record.get("utterance"), "answers": answers}
            yield example_of(record, where, str(number))


def target_values(value: str, where: str) -> list[str]:
    """The answers in '(list (description Fauvism) (description "St. Paul"))'; UserError if there are none."""
    values = [re.sub(r"\\(.)", r"\1", quoted) or bare for quoted, bare in _DESCRIPTION.findall(value)]
    if not values:
        raise UserError(f"{where}: targetValue holds no (description …): {value[:60]}")
    return values
