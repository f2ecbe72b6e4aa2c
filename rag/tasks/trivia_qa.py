"""TriviaQA (section 3.1, appendix D): trivia questions, whose answers come with many aliases.

Sources: DPR's `trivia-{train,dev,test}.qa.csv.gz` (78,785 / 8,837 / 11,313 questions, the paper's open-domain
splits, made of the unfiltered set); the original `{unfiltered-web,wikipedia}-{train,dev,test-without-answers}
.json` of nlp.cs.washington.edu/triviaqa (an object whose `Data` is the list of questions), and the hub's
mandarjoshi/trivia_qa (configs unfiltered.nocontext, rc.wikipedia.nocontext). Joshi et al. 2017; the code is
Apache 2.0, the questions' copyright stays with their authors, so nothing of them may be passed on.

The answers to the Wikipedia test set, the second number in the paper's Table 1, are not public: its examples
have no answers and predictions for them are sent in as a file {question id: answer}.

Preparation: an answer is a training target only if it occurs in one of the 1000 best passages for its
question (`found_answers`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rag.errors import UserError
from rag.metrics.retrieval import answer_finder, tokenize
from rag.safe_text import json_text
from rag.tasks.example import Example
from rag.tasks.qa import QuestionAnswering, example_of
from rag.tasks.records import (
    Record,
    kind,
    read_records,
    text_field,
    texts,
)

HUB_TRAIN = "hub://mandarjoshi/trivia_qa/unfiltered.nocontext/train"
HUB_DEV = "hub://mandarjoshi/trivia_qa/unfiltered.nocontext/validation"
HUB_WIKIPEDIA_DEV = "hub://mandarjoshi/trivia_qa/rc.wikipedia.nocontext/validation"
HUB_WIKIPEDIA_TEST = "hub://mandarjoshi/trivia_qa/rc.wikipedia.nocontext/test"

TOP = 1000  # passages searched for each question (appendix D)


class TriviaQA(QuestionAnswering):
    """TriviaQA in DPR's, the hub's or the original form.

    Its splits are train, dev, test (open-domain), wikipedia_dev and wikipedia_test; `limit` as for every task.
    """

    depth = TOP
    tokens = staticmethod(tokenize)

    def __init__(
        self,
        train: str | None = HUB_TRAIN,
        dev: str | None = HUB_DEV,
        test: str | None = None,
        wikipedia_dev: str | None = HUB_WIKIPEDIA_DEV,
        wikipedia_test: str | None = HUB_WIKIPEDIA_TEST,
        limit: int | None = None,
    ):
        super().__init__(train, dev, test, limit=limit)
        self.sources |= {"wikipedia_dev": wikipedia_dev, "wikipedia_test": wikipedia_test}

    def read(self, source: str) -> Iterator[Example]:
        for number, (where, record) in enumerate(read_records(source), start=1):
            if "Question" in record:
                yield _original(record, where)
            elif isinstance(record.get("answer"), dict):
                yield _hub(record, where)
            else:
                yield example_of(record, where, str(number))

    def submission(self, predictions: Sequence[str], examples: Sequence[Example]) -> Mapping[str, str]:
        """The leaderboard's {question id: answer}, where an example has no public answer."""
        if all(example.answers for example in examples):
            return {}
        answers = {example.id: text for example, text in zip(examples, predictions, strict=True)}
        return {"submission.json": json_text(answers, indent=1) + "\n"}

    def targets(self, example: Example, texts: Iterable[str]) -> tuple[str, ...]:
        return found_answers(example.answers, texts)


def found_answers(answers: Sequence[str], passages: Iterable[str]) -> tuple[str, ...]:
    """Those of the answers, in their order, that one of the passages contains by DPR's token match."""
    numbers: set[int] = set()
    which = answer_finder(answers, tokenize)
    for text in passages:
        numbers.update(which(text))
        if len(numbers) == len(answers):
            break
    return tuple(answer for number, answer in enumerate(answers) if number in numbers)


def _original(record: Record, where: str) -> Example:
    answer = record.get("Answer")  # the test set has none
    return Example(
        question=text_field(record, "Question", where),
        answers=() if answer is None else _names(answer, "Value", "Aliases", f"{where}: Answer"),
        id=text_field(record, "QuestionId", where),
    )


def _hub(record: Record, where: str) -> Example:
    answer = record["answer"]
    hidden = answer.get("value") == "<unk>"  # how the hub marks the test set
    return Example(
        question=text_field(record, "question", where),
        answers=() if hidden else _names(answer, "value", "aliases", f"{where}: answer"),
        id=text_field(record, "question_id", where),
    )


def _names(answer: Any, value: str, aliases: str, where: str) -> tuple[str, ...]:
    """An answer's name and then its other names, each once."""
    if not isinstance(answer, dict):
        raise UserError(f"{where} is {kind(answer)}, an object is expected")
    names = [text_field(answer, value, where), *texts(answer.get(aliases) or [answer[value]], where)]
    return tuple(dict.fromkeys(names))
