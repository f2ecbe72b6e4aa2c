"""Jeopardy question generation (section 3.3): from an answer entity to the clue that asks for it.

Sources: JSON lines or an array with `answer` and `clue`, or with `answer` and `question` as in
`JEOPARDY_QUESTIONS1.json` (216,930 clues of j-archive.com), or a folder or .zip of SearchQA's JSON files (`train`,
`val`, `test`: one clue a file, with `answer` and `question`; Dunn et al. 2017,
github.com/nyu-dl/dl4ir-searchQA, 151,295 / 21,613 / 43,228). Neither states a licence; the clues belong to
the show.

The paper uses SearchQA's split with 97,392 / 13,714 / 26,849 clues and does not say how it chose them.
"""

import html
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from rag.errors import UserError
from rag.metrics.bootstrap import Metric
from rag.metrics.qbleu import q_bleu
from rag.tasks.contexts import contexts_of
from rag.tasks.example import Example
from rag.tasks.records import Record, not_empty, parse_object, read_object, read_records, text_field
from rag.tasks.text_to_text import TextToText
from rag.text_files import check_length

_TAG = re.compile(r"<[^<>]*>")


class JeopardyQuestions(TextToText):
    """An answer in, a Jeopardy clue out; judged by Q-BLEU-1 as well."""

    measures = (*TextToText.measures, "q_bleu_1")

    def __init__(
        self,
        train: str | None = None,
        dev: str | None = None,
        test: str | None = None,
        limit: int | None = None,
    ):
        super().__init__(train, dev, test, limit=limit)

    def read(self, source: str) -> Iterator[Example]:
        for number, (where, record) in enumerate(_records(source), start=1):
            answer = clean(text_field(record, "answer", where))
            clue = clean(text_field(record, "clue" if "clue" in record else "question", where))
            if answer and clue:  # some clues are nothing but a link to a picture
                yield Example(
                    answer, (clue,), id=str(record.get("id", number)), contexts=contexts_of(record, where)
                )

    def score(self, predictions: Sequence[str], examples: Sequence[Example]) -> dict[str, Metric]:
        """The measures of TextToText and "q_bleu_1"."""
        references = [example.answers[0] for example in examples]
        return {**super().score(predictions, examples), "q_bleu_1": q_bleu(predictions, references)}


def clean(text: str) -> str:
    """Without enclosing quotes, HTML and backslashes: "'It\\'s <i>a</i> sea'" gives "It's a sea"."""
    text = html.unescape(_TAG.sub("", text)).replace("\\", "")
    text = " ".join(text.split())
    return text[1:-1].strip() if len(text) > 1 and text[0] == text[-1] == "'" else text


def _records(source: str) -> Iterator[tuple[str, Record]]:
    if source.lower().endswith(".zip"):
        yield from _zipped(Path(source))
    elif not Path(source).is_dir():
        yield from read_records(source)
    else:
        for path in not_empty(source, sorted(Path(source).glob("*.json")), None, "*.json files"):
            yield str(path), read_object(path)


def _zipped(path: Path) -> Iterator[tuple[str, Record]]:
    """The objects of a .zip of JSON files, by their names, without what macOS adds to such archives."""
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    try:
        with ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(".json") and "__MACOSX" not in name]
            for name in not_empty(path, sorted(names), None, "*.json files"):
                where = f"{path}, {name}"
                check_length(archive.getinfo(name).file_size, where)
                yield where, parse_object(archive.read(name), where)
    except (BadZipFile, EOFError, zlib.error, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is not a whole .zip file ({error}): download it again") from None
