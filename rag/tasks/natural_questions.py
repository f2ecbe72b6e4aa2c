"""Natural Questions, open-domain (sections 3.1, 4.1): questions to a search engine, short answers.

Sources: DPR's `nq-{train,dev,test}.qa.csv` (79,168 / 8,757 / 3,610 questions, the paper's splits; their dev
comes from NQ's train, their test is NQ's dev), NQ-open's `NQ-open.{train,dev}.jsonl` (87,925 / 3,610), and
the hub's google-research-datasets/nq_open, which is the latter. Kwiatkowski et al. 2019, Lee et al. 2019; CC
BY-SA 3.0. DPR's files are at dl.fbaipublicfiles.com/dpr/data/retriever/.
"""

from collections.abc import Iterator

from rag.metrics.retrieval import tokenize
from rag.tasks.example import Example
from rag.tasks.qa import QuestionAnswering, example_of
from rag.tasks.records import read_records

HUB_TRAIN = "hub://google-research-datasets/nq_open/nq_open/train"
HUB_TEST = "hub://google-research-datasets/nq_open/nq_open/validation"


class NaturalQuestions(QuestionAnswering):
    """Natural Questions, with the answers under `answer` (NQ-open) or `answers` (DPR)."""

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
            yield example_of(record, where, str(number))
