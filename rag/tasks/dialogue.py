"""Dialogue: from the history of a conversation to the next reply.

Not in the paper; the format is Wizard of Wikipedia's (Dinan et al. 2019): `train.json`,
`{valid,test}_{random,topic}_split.json` of parl.ai/projects/wizard_of_wikipedia, an array of conversations
with `chosen_topic` and `dialog`, whose turns have `speaker` ("0_Wizard", "1_Apprentice") and `text`; released
through ParlAI (see there for its terms; its Wikipedia sentences are under CC BY-SA). Each turn of the wizard,
who has Wikipedia at hand, is an example. For files of one's own: JSON lines with `history` (a list of
utterances) and `reply`.

Judged by the unigram F1 that is usual here, and by the measures of TextToText.
"""

from collections.abc import Iterator, Sequence

from rag.errors import UserError
from rag.metrics.bootstrap import Metric, mean_with_interval
from rag.metrics.qa import token_f1
from rag.tasks.contexts import contexts_of
from rag.tasks.example import Example
from rag.tasks.records import Record, field, kind, read_records, text_field, texts
from rag.tasks.text_to_text import TextToText


class Dialogue(TextToText):
    """Conversations: the topic and what was said, joined by `separator`, in; the reply out.

    Args:
        train, dev, test: sources; a split may be left out.
        separator: stands between utterances.
        turns: keep the last so many utterances of the history (the topic is always kept); all by default.
        limit: read only the first so many examples of every split.
    """

    measures = ("f1", *TextToText.measures)

    def __init__(
        self,
        train: str | None = None,
        dev: str | None = None,
        test: str | None = None,
        separator: str = "\n",
        turns: int | None = None,
        limit: int | None = None,
    ):
        super().__init__(train, dev, test, limit=limit)
        self.separator = separator
        self.turns = turns

    def read(self, source: str) -> Iterator[Example]:
        for number, (where, record) in enumerate(read_records(source), start=1):
            if "dialog" in record:
                yield from self._wizard(record, where, number)
            else:
                history = texts(field(record, "history", where), f"{where}: history")
                reply = texts(field(record, "reply", where), f"{where}: reply")
                yield Example(
                    self._join("", history),
                    reply,
                    id=str(record.get("id", number)),
                    contexts=contexts_of(record, where),
                )

    def score(self, predictions: Sequence[str], examples: Sequence[Example]) -> dict[str, Metric]:
        """The measures of TextToText and "f1"."""
        f1 = token_f1(predictions, [example.answers for example in examples])
        return {"f1": mean_with_interval(f1), **super().score(predictions, examples)}

    def _wizard(self, record: Record, where: str, number: int) -> Iterator[Example]:
        topic = text_field(record, "chosen_topic", where)
        turns = record["dialog"]
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            raise UserError(f"{where}: dialog is {kind(turns)}, a list of turns is expected")
        said: list[str] = []
        for turn_number, turn in enumerate(turns, start=1):
            text = text_field(turn, "text", f"{where}, turn {turn_number}")
            if text_field(turn, "speaker", f"{where}, turn {turn_number}").endswith("Wizard"):
                yield Example(self._join(topic, said), (text,), id=f"{number}-{turn_number}")
            said.append(text)

    def _join(self, topic: str, said: Sequence[str]) -> str:
        kept = said if self.turns is None else said[max(0, len(said) - self.turns) :]
        return self.separator.join([topic, *kept] if topic else kept)
