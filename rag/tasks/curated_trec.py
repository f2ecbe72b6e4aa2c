"""CuratedTREC (section 3.1, appendix D): questions of the TREC QA tracks, answered by regular expressions.

Sources: DPR's `biencoder-curatedtrec-{train,dev}.json.gz` and `curatedtrec-test.qa.csv` (1,125 / 133 / 694
questions) and DrQA's `CuratedTrec-{train,test}.txt` (JSON lines with `question` and `answer`); the paper's split has
635 / 134 / 635. Voorhees and Tice 2000, Baudiš and Šedivý 2015 (github.com/brmson/dataset-factoid-curated, which states
no licence). The paper starts this task from the model trained on Natural Questions.

Preparation: a generator cannot be trained on a regular expression, so each becomes the string that matches it
most often in the question's 1000 best passages; where nothing matches, all strings the expression spells out,
with a space for whatever it leaves open.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, product
from re import _constants as codes  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any

import numpy as np

from rag.metrics.bootstrap import Metric
from rag.metrics.qa import as_seen_by, compile_answer, regex_match
from rag.tasks.example import Example
from rag.tasks.qa import QuestionAnswering, example_of
from rag.tasks.records import read_records

TOP = 1000  # passages searched for each question (appendix D)
SPELLINGS = 64  # at most so many strings for one expression


class CuratedTREC(QuestionAnswering):
    """CuratedTREC; answers are regular expressions, and `em` is whether one matches (see metrics/qa.py)."""

    depth = TOP
    regular = True
    measures = ("em",)

    def __init__(
        self,
        train: str | None = None,
        dev: str | None = None,
        test: str | None = None,
        answers: str = "answer",
        limit: int | None = None,
    ):
        super().__init__(train, dev, test, answers, limit=limit)

    def read(self, source: str) -> Iterator[Example]:
        for number, (where, record) in enumerate(read_records(source), start=1):
            key = self.answers if self.answers in record else "answers"
            example = example_of(record, where, str(number), key, self.answer_setting)
            for pattern in example.answers:
                compile_answer(pattern, where)
            yield example

    def match(self, predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> np.ndarray:
        """(N,) scores, 1.0 where one of the question's expressions matches the prediction."""
        return regex_match(predictions, answers)

    def score(self, predictions: Sequence[str], examples: Sequence[Example]) -> dict[str, Metric]:
        """{"em": …} alone: words shared with a regular expression would mean nothing."""
        return {"em": super().score(predictions, examples)["em"]}

    def targets(self, example: Example, texts: Iterable[str]) -> tuple[str, ...]:
        best = most_frequent_match(example.answers, texts)
        return () if best is None else (best,)

    def targets_without(self, example: Example) -> tuple[str, ...]:
        return all_spellings(example.answers)


def most_frequent_match(patterns: Sequence[str], passages: Iterable[str]) -> str | None:
    """The string that the patterns match most often in the passages; None if nothing matches.

    The passages are the texts of the 1000 best, best first; of equally frequent strings the first found counts.
    """
    compiled = [(pattern, compile_answer(pattern)) for pattern in patterns]
    matches = Counter(
        match.group().strip()
        for text in passages
        for pattern, one in compiled
        for match in one.finditer(as_seen_by(pattern, text))
    )
    matches.pop("", None)
    return matches.most_common(1)[0][0] if matches else None


def all_spellings(patterns: Sequence[str]) -> tuple[str, ...]:
    """What the patterns of a question spell out, each string once."""
    return tuple(dict.fromkeys(spelling for pattern in patterns for spelling in spellings(pattern)))


def spellings(pattern: str, limit: int = SPELLINGS) -> list[str]:
    """The strings a regular expression spells out, with a space for whatever it leaves open; at most `limit`.

    "Sept?(ember)?|Feb" gives September, Sept, Sepember, Sep, Feb: what is optional is there and is not there;
    ".", character classes and repetitions of them become a space.
    """
    compile_answer(pattern)
    strings = (" ".join(one.split()) for one in _spell(_parser.parse(pattern), limit))
    return list(islice(dict.fromkeys(one for one in strings if one), limit))


def _spell(tree: Any, limit: int) -> list[str]:
    """All strings of a sequence of nodes of a parsed expression, the fullest first, at most `limit`."""
    parts = [_spell_node(operation, argument, limit) for operation, argument in tree]
    return ["".join(choice) for choice in islice(product(*parts), limit)]


def _spell_node(operation: Any, argument: Any, limit: int) -> list[str]:
    if operation is codes.LITERAL:
        return [chr(argument)]
    if operation is codes.SUBPATTERN:
        return _spell(argument[-1], limit)
    if operation is codes.ATOMIC_GROUP:
        return _spell(argument, limit)
    if operation is codes.BRANCH:
        return [one for branch in argument[1] for one in _spell(branch, limit)][:limit]
    if operation is codes.IN and all(kind is codes.LITERAL for kind, _ in argument):
        return [chr(code) for _, code in argument]
    if operation in (codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT):
        least, most, repeated = argument
        once = _spell(repeated, limit)
        if once == [" "] and most > 1:
            return once
        return [one * max(1, least) for one in once] + ([""] if least == 0 else [])
    if operation in (codes.AT, codes.ASSERT, codes.ASSERT_NOT):
        return [""]  # a place, not a character
    return [" "]
