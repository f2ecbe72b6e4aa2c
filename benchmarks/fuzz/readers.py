"""Readers of corpora and questions under mutated files."""

import random
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from itertools import islice
from pathlib import Path

from benchmarks.fuzz.counts import MOST, Counts, count
from benchmarks.fuzz.mutations import ENCODINGS, mutated
from benchmarks.fuzz.seeds import CORPORA, QUESTIONS, RICH, TEXTS, saved, seeds_of
from rag.index.documents import read_documents
from rag.index.passage import Passage
from rag.index.readers import read_passages
from rag.index.reading import CorpusReading
from rag.tasks.example import Example

Reader = Callable[[Path, random.Random], list]


def reading(dice: random.Random) -> CorpusReading:
    """A way to read a corpus."""
    size = dice.choice((1, 2, 3, 100))
    columns = dice.choice([{}] * 20 + [{"text": "title"}, {"id": "text", "title": "id"}, {"text": "nothing"}])
    return CorpusReading(
        dice.choice(ENCODINGS),
        split := dice.choice((None, None, None, "words", "sentences", "headings")),
        None if split is None else size,
        0 if split is None else dice.randrange(size),
        columns=columns,
    )


def readers() -> dict[str, tuple[Mapping[str, str | bytes], Reader]]:
    """Name → the seeds that are its own, and what reads a file."""
    from rag.tasks.curated_trec import CuratedTREC
    from rag.tasks.dialogue import Dialogue
    from rag.tasks.fever import Fever
    from rag.tasks.jeopardy import JeopardyQuestions
    from rag.tasks.ms_marco import MsMarco
    from rag.tasks.qa import QuestionAnswering
    from rag.tasks.text_to_text import TextToText
    from rag.tasks.trivia_qa import TriviaQA
    from rag.tasks.web_questions import WebQuestions

    def passages(path: Path, dice: random.Random) -> list[Passage]:
        return list(islice(read_passages(path, reading(dice)), MOST))

    def documents(path: Path, dice: random.Random) -> list[Passage]:
        return list(islice(read_documents(path, reading(dice)), MOST))

    def datasets(path: Path, dice: random.Random) -> list[Passage]:
        """A folder of which the mutated file takes the place of one."""
        with tempfile.TemporaryDirectory() as folder:
            for name, content in saved().items():
                (Path(folder) / name).write_bytes(path.read_bytes() if name == path.name else content)
            return list(islice(read_passages(folder, reading(dice)), MOST))

    def questions(path: Path, dice: random.Random) -> list[Example]:
        form = dice.choice(
            [None] * 30 + ["json", "csv", "tsv", "dpr_csv", "source", "squad", "parquet", "kilt"]
        )
        skip = dice.choice(("stop", "skip"))
        return QuestionAnswering(
            dev=str(path), format=form, encoding=dice.choice(ENCODINGS), on_bad_row=skip, limit=MOST
        ).examples("dev")

    def task(kind: Callable) -> Reader:
        return lambda path, dice: kind(train=None, dev=str(path), limit=MOST).examples("dev")

    others = {
        TextToText: "text.jsonl",
        Fever: "fever.jsonl",
        CuratedTREC: "trec.jsonl",
        WebQuestions: "web.json",
        MsMarco: "marco.json",
        Dialogue: "dialogue.jsonl",
        TriviaQA: "trivia.json",
        JeopardyQuestions: "jeopardy.jsonl",
    }
    return {
        "read_passages": (CORPORA | TEXTS, passages),
        "read_documents": (TEXTS, documents),
        "rich_document": (RICH, documents),
        "datasets": (saved(), datasets),
        "QuestionAnswering": (QUESTIONS, questions),
        **{kind.__name__: ({name: QUESTIONS[name]}, task(kind)) for kind, name in others.items()},
    }


def fuzz_readers(
    inputs: int, seed: int = 0, seconds: float = float("inf"), only: str | None = None
) -> dict[str, Counts]:
    """Give the readers, or `only` one of them, so many inputs between them, at most for so long: {reader: what became
    of its inputs}."""
    every = {name: each for name, each in readers().items() if only in (None, name)}
    counts = {name: Counts() for name in every}
    folders = {"QuestionAnswering": "questions", "read_passages": "corpus", "read_documents": "folder"}
    seeds = {name: seeds_of(own, folders.get(name)) for name, (own, _) in every.items()}
    names = list(every) if only else ["read_passages"] * 3 + ["QuestionAnswering"] * 3 + list(every)
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        for number in range(inputs):
            if time.monotonic() > end:
                break
            dice = random.Random(f"{seed}/{number}")
            reader = names[number % len(names)]
            name, content = dice.choice(seeds[reader])
            name, content = mutated(name, content, [each for _, each in seeds[reader]], dice)
            path = Path(folder) / name
            path.write_bytes(content)
            if name.endswith(".source"):
                path.with_suffix(".target").write_text("a\nb\n")
            read = partial(every[reader][1], path, dice)
            with redirect_stdout(StringIO()):
                count(counts[reader], read, f"--seed {seed}, input {number} ({name})")
            path.unlink(missing_ok=True)
            path.with_suffix(".target").unlink(missing_ok=True)
    return counts
