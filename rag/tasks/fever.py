"""FEVER (section 3.4): is a claim supported or refuted by Wikipedia, or is there not enough information?

Sources: `{train,paper_dev,paper_test}.jsonl` of fever.ai (145,449 / 9,999 / 9,999 claims; `claim`, `label`,
and `evidence`, sets of [annotation, evidence, page, sentence]). Thorne et al. 2018; CC BY-SA 3.0. The hub's
fever/fever is a loading script, which `datasets` no longer runs, and no Parquet: `python -m rag.download fever`
fetches FEVER's own files. The paper's FEVER-3 has all three classes,
FEVER-2 (Thorne and Vlachos 2021) the claims that are supported or refuted: 96,966 / 6,666 / 6,666.

The class is one token (section 2.1), by default "true", "false", "unknown": choose others if a tokenizer
splits these. The gold evidence is not trained on: it only shows whether retrieval finds the right articles.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rag.errors import UserError
from rag.index.passage import Passage
from rag.metrics.bootstrap import Metric, mean_with_interval
from rag.metrics.classification import label_accuracy
from rag.metrics.retrieval import plain_title
from rag.tasks.contexts import contexts_of
from rag.tasks.example import Example
from rag.tasks.records import Record, field, read_records, text_field
from rag.tasks.task import Task

THREE_WAY = {"SUPPORTS": "true", "REFUTES": "false", "NOT ENOUGH INFO": "unknown"}
TWO_WAY = {"SUPPORTS": "true", "REFUTES": "false"}


@dataclass(frozen=True, slots=True)
class Claim(Example):
    """A claim as the question, its class token as the only answer, and the titles of its gold articles."""

    titles: tuple[str, ...] = ()


class Fever(Task):
    """Fact verification: classes as one-token targets, judged by label accuracy and by the titles retrieved.

    Args:
        train, dev, test: sources; a split may be left out.
        labels: the token of each label; THREE_WAY for FEVER-3, TWO_WAY for FEVER-2.
        skip: labels whose claims are left out (NOT ENOUGH INFO for FEVER-2).
        limit: read only the first so many examples of every split.
    """

    measures = ("accuracy",)

    def __init__(
        self,
        train: str | None = None,
        dev: str | None = None,
        test: str | None = None,
        labels: Mapping[str, str] = THREE_WAY,
        skip: Sequence[str] = (),
        limit: int | None = None,
    ):
        super().__init__(train, dev, test, limit)
        self.labels = labels
        self.skip = skip

    @property
    def classes(self) -> list[str]:
        """The class tokens, in the order of `labels`."""
        return list(self.labels.values())

    def read(self, source: str) -> Iterator[Claim]:
        for number, (where, record) in enumerate(read_records(source), start=1):
            claim, label = text_field(record, "claim", where), text_field(record, "label", where)
            if label in self.skip:
                continue
            if label not in self.labels:
                known = ", ".join([*self.labels, *self.skip])
                raise UserError(f"{where}: unknown label {label!r}, expected one of {known}")
            yield Claim(
                question=claim,
                answers=(self.labels[label],),
                id=str(record.get("id", number)),
                titles=evidence_titles(record, where),
                contexts=contexts_of(record, where),
            )

    def score(self, predictions: Sequence[str], examples: Sequence[Example]) -> dict[str, Metric]:
        """{"accuracy": …} of predicted class tokens."""
        right = [example.answers[0] for example in examples]
        return {"accuracy": mean_with_interval(label_accuracy([one.strip() for one in predictions], right))}

    def right_passages(self, example: Example) -> dict[str, Callable[[Passage], bool]]:
        """ "title_hit": it is from an article of the gold evidence (section 4.4); claims without are not judged."""
        gold = frozenset(example.titles) if isinstance(example, Claim) else frozenset()
        known = super().right_passages(example)
        return known | {"title_hit": lambda passage: plain_title(passage.title) in gold} if gold else known


def evidence_titles(record: Record, where: str) -> tuple[str, ...]:
    """The articles of a claim's evidence in Wikipedia's spelling, each once; () where there is none.

    Evidence is FEVER's sets of [annotation, evidence, page, sentence]; [page, sentence] or pages will do.
    """
    pages = list(_pages(field(record, "evidence", where), where)) if "evidence" in record else []
    return tuple(dict.fromkeys(plain_title(page) for page in pages))


def _pages(evidence: Any, where: str) -> Iterator[str]:
    if isinstance(evidence, str):
        yield evidence
    elif isinstance(evidence, list) and len(evidence) > 1 and isinstance(evidence[-1], int | None):
        if evidence[-2] is not None:  # NOT ENOUGH INFO has [annotation, null, null, null]
            yield from _pages(evidence[-2], where)
    elif isinstance(evidence, list):
        for one in evidence:
            yield from _pages(one, where)
    else:
        raise UserError(f"{where}: evidence is not made of [annotation, evidence, page, sentence]")
