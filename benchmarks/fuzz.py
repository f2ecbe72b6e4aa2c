"""Readers under mutated files, command lines under random overrides: python -m benchmarks.fuzz [--seed N]

Each input is a small file in a form people have, changed at random: bytes flipped, cut, doubled and spliced, quotes,
brackets, byte order marks, halves of characters and numbers of thousands of digits put in, another name, packed and
damaged. A reader gives passages or questions that can be written and read again, or one sentence (`UserError`);
anything else is printed with what makes it happen again. Each set of overrides is composed as a script does it.

    inputs      how many files a reader was given
    read        passages or questions came of it
    refused     one sentence
    broken      anything else: there should be none

An input is known by --seed and its number alone. ../shared/cases, where it is, is a part of the seeds.
"""

import argparse
import gzip
import json
import lzma
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from io import StringIO
from itertools import islice
from pathlib import Path

from rag.errors import LONGEST_SENTENCE, UserError
from rag.index.documents import read_documents
from rag.index.passage import Passage
from rag.index.readers import read_passages
from rag.tasks.example import Example

CASES = Path(__file__).resolve().parents[2] / "shared" / "cases"
LARGEST_SEED = 5_000  # bytes
MOST = 2_000  # passages or questions that are taken of one input

_ROWS = [
    ("1", "Opening hours", "The shop in Cork opens at nine."),
    ("2", "Größe", 'A 5" screw, "new"; 猫 and 🚲.'),
]
_QUESTION = {"question": "who sells the milk can?", "answers": ["Pia Roth", "P. Roth"], "positive_ids": ["1"]}
_OBJECTS = [{"id": id, "title": title, "text": text} for id, title, text in _ROWS]
_SQUAD_QUESTION = {"id": "q1", "question": "when?", "answers": [{"text": "nine", "answer_start": 4}]}
_SQUAD = {"data": [{"title": "Shop", "paragraphs": [{"context": _ROWS[0][2], "qas": [_SQUAD_QUESTION]}]}]}
_CONTEXT = {"title": "T", "text": "Pia Roth sells it.", "passage_id": "7"}
_DPR = _QUESTION | {
    "positive_ctxs": [_CONTEXT],
    "negative_ctxs": [],
    "hard_negative_ctxs": [_CONTEXT | {"text": "x"}],
}


def _lines(*records: dict) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _table(separator: str, *rows: Sequence[str]) -> str:
    return "".join(separator.join(row) + "\n" for row in rows)


CORPORA = {
    "p.jsonl": _lines(*_OBJECTS),
    "p.json": json.dumps(_OBJECTS, indent=1),
    "squad.json": json.dumps(_SQUAD),
    "p.tsv": _table("\t", ("id", "text", "title"), *_ROWS),
    "plain.tsv": _table("\t", *_ROWS),
    "p.csv": '\ufeff"id","title","text"\r\n"1","a ""b""","c\nd, e"\r\n2,f,g\r\n',
    "semicolons.csv": _table(";", ("text", "id"), ("a, b", "1"), ("c", "2")),
    "kilt.jsonl": _lines(
        {"_id": "1", "wikipedia_title": "T", "text": ["T\n", "A paragraph.\n", "BULLET::::- x"]}
    ),
    "pyserini.jsonl": _lines({"id": "1", "contents": '"T"\nA text.'}),
}
TEXTS = {
    "a.md": "---\ntitle: 'Shop'\n---\n# Shop\n\nOpens **at nine**. See [it](http://x).\n\n## Returns\n\n```\n# no\n```",
    "a.txt": "The guaran-\ntee is valid.\n\nSecond ﬁeld. 猫が好き。\n",
}
QUESTIONS = {
    "q.jsonl": _lines(_QUESTION, {"question": "what?", "answer": 7}),
    "q.json": json.dumps([_QUESTION, _QUESTION]),
    "squad.json": json.dumps(_SQUAD, indent=2),
    "mrqa.jsonl": _lines(
        {"header": {}}, {"context": "c", "qas": [{"qid": "1", "question": "q", "answers": ["a"]}]}
    ),
    "trivia.json": json.dumps(
        {
            "Data": [
                {
                    "Question": "who sells the can?",
                    "QuestionId": "1",
                    "Answer": {"Value": "a", "Aliases": ["b"]},
                }
            ]
        }
    ),
    "kilt.jsonl": _lines({"id": "1", "input": "q", "output": [{"answer": "a"}, {"provenance": []}]}),
    "dpr.json": json.dumps([_DPR], indent=4),
    "q.csv": "question,answers\nwho?,\"['a', 'b']\"\nwhat?,a|b\n",
    "q.qa.csv": 'who?\t[\'a\', "b"]\nwhat?\t["c"]\n',
    "q.tsv": "who?\ta\nwhat?\tb\n",
    "q.source": "who?\nwhat?\n",
    "q.target": "a\nb\n",
    "text.jsonl": _lines(
        {"input": "who sells the milk can in Parma?", "target": ["it is Pia Roth who sells it"]}
    ),
    "fever.jsonl": _lines(
        {
            "id": 1,
            "claim": "the shop in Cork opens at nine",
            "label": "SUPPORTS",
            "evidence": [[[1, 2, "Page", 0]]],
        }
    ),
    "trec.jsonl": _lines({"question": "q", "answer": ["Jan(uary)? \\d+"]}),
    "web.json": json.dumps(
        [{"utterance": "who painted like that?", "targetValue": "(list (description Fauvism))"}]
    ),
    "marco.json": json.dumps(
        {"query": {"0": "who sells the milk can?"}, "query_id": {"0": 1}, "wellFormedAnswers": {"0": ["a"]}}
    ),
    "jeopardy.jsonl": _lines({"answer": "'a'", "clue": "It\\'s <i>a</i> &amp; b"}),
    "dialogue.jsonl": _lines({"history": ["when does it open?", "at nine"], "reply": "thank you very much"}),
}
TOKENS = [
    *(
        '"',
        '""',
        "'",
        "[",
        "]",
        "{",
        "}",
        ",",
        ";",
        ":",
        "\t",
        "\n",
        "\r\n",
        "\r",
        "\0",
        "\\",
        "|",
        "#",
        "---\n",
        "```\n",
    ),
    *(
        "\ufeff",
        "\u2028",
        "\x85",
        "\x1a",
        "\x1b[31m",
        "\u202e",
        "\u200b",
        "🚲",
        "é",
        "ﬁ",
        " ",
        "  \n\n",
        "null",
        "true",
    ),
    *(
        "NaN",
        "-Infinity",
        "1e999",
        "7.0",
        "-0",
        "9" * 5000,
        "0x" + "f" * 4000,
        "[" * 1200,
        '{"a":' * 900,
        "\\ud83d",
    ),
    *(
        '"\\udc00"',
        '"id"',
        '"text": ',
        '"question": ',
        "id\ttext\ttitle\n",
        "question,answer\n",
        '"data": [',
        '"qas": [{',
    ),
    *(
        "<b>",
        "<!--",
        "__import__('os')",
        "['a'",
        "PK\x03\x04",
        "PAR1",
        "%PDF-1.4",
        '"is_impossible": true',
        '"Data": [{',
    ),
    *('"paragraphs": [', '"positive_ctxs": [', "[" * 600 + "1" + "]" * 600, "x" * 20_000),
]
ENCODINGS = [None] * 60 + [
    "latin-1",
    "utf-16",
    "utf-32",
    "cp1252",
    "utf-7",
    "idna",
    "rot13",
    "unicode_escape",
    "no\0ne",
]
SUFFIXES = [
    ".jsonl",
    ".json",
    ".tsv",
    ".csv",
    ".txt",
    ".md",
    ".qa.csv",
    ".source",
    ".parquet",
    ".html",
    ".zip",
    "",
]


@dataclass
class Counts:
    """What became of the inputs of a reader."""

    inputs: int = 0
    read: int = 0
    refused: int = 0
    broken: list[str] = field(default_factory=list)


def mutated(name: str, content: bytes, seeds: list[bytes], dice: random.Random) -> tuple[str, bytes]:
    """A file's name and content after one to four random changes."""
    for _ in range(dice.choice((1, 1, 1, 1, 1, 2, 3))):
        at = dice.randrange(len(content) + 1)
        length = dice.choice((1, 1, 2, 8, 64))
        match dice.randrange(9):
            case 0:
                flipped = bytes([content[at] ^ 1 << dice.randrange(8)]) if at < len(content) else b"\xff"
                content = content[:at] + flipped + content[at + 1 :]
            case 1:
                content = content[:at] + content[at + length :]
            case 2:
                content = (
                    content[:at]
                    + content[at : at + length] * dice.choice((2, 3, 50))
                    + content[at + length :]
                )
            case 3 | 4 | 5:
                token = dice.choice(TOKENS).encode("utf-8", "surrogatepass")
                content = content[:at] + token + content[at + (length if dice.random() < 0.5 else 0) :]
            case 6:
                content = content[:at]
            case 7:
                other = dice.choice(seeds)
                begin = dice.randrange(len(other) + 1)
                content = content[:at] + other[begin:]
            case 8:
                content = content[:at] + dice.randbytes(length) + content[at:]
    if dice.random() < 0.15:
        name = Path(name).stem + dice.choice(SUFFIXES)
    if dice.random() < 0.05:
        content = content.decode("utf-8", "replace").encode(dice.choice(("utf-16", "utf-32", "utf-8-sig")))
    if dice.random() < 0.1:
        packed = (
            gzip.compress(content, 1, mtime=0) if dice.random() < 0.7 else lzma.compress(content, preset=0)
        )
        name += ".gz" if packed.startswith(b"\x1f") else ".xz"
        content = packed
        if dice.random() < 0.5:
            at = dice.randrange(len(content))
            content = content[:at] + dice.randbytes(1) * dice.randrange(2) + content[at + 1 :]
    return name, content


def check(found: list[Passage] | list[Example]) -> None:
    """What was read can be written to a file: no half characters, no empty texts, no id twice."""
    for one in found:
        texts = (
            (one.id, one.title, one.text)
            if isinstance(one, Passage)
            else (one.id, one.question, *one.answers)
        )
        "\n".join(texts).encode("utf-8")
        assert (one.text if isinstance(one, Passage) else one.question).strip(), "an empty text"
    if found and isinstance(found[0], Passage) and len(found) < MOST:
        assert len({one.id for one in found}) == len(found), "an id twice"


Reader = Callable[[Path, random.Random], list]


def readers() -> dict[str, tuple[dict[str, str], Reader]]:
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
        words = dice.choice((None, None, None, 100, 2))
        return list(islice(read_passages(path, dice.choice(ENCODINGS), words), MOST))

    def documents(path: Path, dice: random.Random) -> list[Passage]:
        return list(islice(read_documents(path, dice.choice(ENCODINGS), dice.choice((None, 3))), MOST))

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
        "QuestionAnswering": (QUESTIONS, questions),
        **{kind.__name__: ({name: QUESTIONS[name]}, task(kind)) for kind, name in others.items()},
    }


def seeds_of(own: dict[str, str], folder: str | None) -> list[tuple[str, bytes]]:
    """A reader's own seeds, and the small files of ../shared/cases."""
    place = CASES / folder if folder else None
    there = sorted(file for file in place.rglob("*") if file.is_file()) if place and place.is_dir() else []
    small = [(file.name, file.read_bytes()) for file in there if file.stat().st_size <= LARGEST_SEED]
    return [*((name, text.encode()) for name, text in own.items()), *small]


def fuzz_readers(inputs: int, seed: int = 0, seconds: float = float("inf")) -> dict[str, Counts]:
    """Give the readers so many inputs between them, at most for so long: {reader: what became of its inputs}."""
    every = readers()
    counts = {name: Counts() for name in every}
    folders = {"QuestionAnswering": "questions", "read_passages": "corpus", "read_documents": "folder"}
    seeds = {name: seeds_of(own, folders.get(name)) for name, (own, _) in every.items()}
    names = ["read_passages"] * 3 + ["QuestionAnswering"] * 3 + list(every)
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
                _count(counts[reader], read, f"--seed {seed}, input {number} ({name})")
            path.unlink(missing_ok=True)
            path.with_suffix(".target").unlink(missing_ok=True)
    return counts


def _count(counts: Counts, read: Callable[[], list], where: str) -> None:
    counts.inputs += 1
    try:
        check(read())
    except UserError as error:
        counts.refused += 1
        sentence = str(error)
        if "\n" in sentence or len(sentence) > LONGEST_SENTENCE + 3:
            counts.broken.append(f"{where}: a sentence of {len(sentence)} characters: {sentence[:200]!r}")
    except Exception:
        counts.broken.append(f"{where}: {traceback.format_exc(limit=-3)}")
    else:
        counts.read += 1


VALUES = [
    *(
        "",
        "null",
        "0",
        "-1",
        "1.5",
        "1e999",
        "true",
        "yes",
        "[]",
        "[1,2]",
        "{}",
        "{a:1}",
        "{a:{b:[1,{c:2}]}}",
        "x",
        "a b",
    ),
    *(
        "${name}",
        "${nothing}",
        "${oc.env:HOME}",
        "${",
        "}",
        "???",
        "'",
        '"',
        "\\",
        "=",
        "a=b",
        "1,2",
        "[1,",
        "{a",
        "..",
        "/",
    ),
    *(
        "../../x",
        "~",
        "*",
        "%",
        "\0",
        "\n",
        "é",
        "🚲",
        "\udc80",
        "9" * 5000,
        "x" * 3000,
        "[" * 300,
        "@package",
        "nan",
        ".inf",
    ),
    *(
        "glob(*)",
        "range(1,5)",
        "choice(1,2)",
        "sort(3,1)",
        "int(x)",
        "!!python/object:os.system",
        "&a",
        "*a",
        "- a",
        "? b",
    ),
]
PREFIXES = ["", "", "", "", "", "+", "++", "~", "-", "--", "+++", "@", "$", " "]


def overrides_of(keys: list[str], groups: list[str], dice: random.Random) -> list[str]:
    """One to four random overrides of settings and groups that exist, and of some that do not."""
    made = []
    if dice.random() < 0.4:  # nothing but a setting and a value
        return [f"{dice.choice(keys)}={dice.choice(('3', '0.5', 'true', 'null', 'x', '[]'))}"]
    for _ in range(dice.choice((1, 1, 1, 2, 3, 4))):
        key = dice.choice((dice.choice(keys), dice.choice(keys), dice.choice(groups), dice.choice(VALUES)))
        if dice.random() < 0.1:
            at = dice.randrange(len(key) + 1)
            key = key[:at] + dice.choice(("", ".", "x", "/", "@", " ", "[0]")) + key[at + 1 :]
        equals = dice.choice(("=", "=", "=", "=", "=", "=", "", "==", ":", " = "))
        made.append(f"{dice.choice(PREFIXES)}{key}{equals}{dice.choice(VALUES) if equals else ''}")
    return made


def fuzz_overrides(sets: int, seed: int = 0, seconds: float = float("inf")) -> dict[str, Counts]:
    """Compose so many sets of overrides, at most for so long: {script: what became of its sets}."""
    from rag.cli import compose_command
    from rag.compose import GROUPS, plain, settings

    scripts = ("train", "evaluate", "build_index", "ask", "documents")
    counts = {script: Counts() for script in scripts}
    keys = {script: settings(script, []) for script in scripts}
    end = time.monotonic() + seconds
    for number in range(sets):
        if time.monotonic() > end:
            break
        dice = random.Random(f"{seed}/{number}")
        script = scripts[number % len(scripts)]
        overrides = overrides_of(keys[script], sorted(GROUPS), dice)
        if script == "documents":
            overrides.insert(0, "documents=notes")

        def compose() -> list:
            cfg = compose_command(script, overrides)  # noqa: B023
            parts = ("corpus", "decoding", "generator")
            for key in parts if script == "documents" else ("task", *parts):  # noqa: B023
                plain(cfg.get(key))
            return []

        _count(counts[script], compose, f"--seed {seed}, set {number}: {script} {overrides!r:.500}")
    return counts


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fuzz", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--inputs", type=int, default=100_000, help="files for the readers")
    parser.add_argument("--overrides", type=int, default=2_000, help="sets of overrides to compose")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    import logging

    logging.disable(logging.WARNING)
    broken = 0
    for what, fuzz, number in (
        ("reader", fuzz_readers, given.inputs),
        ("script", fuzz_overrides, given.overrides),
    ):
        start = time.perf_counter()
        counts = fuzz(number, given.seed)
        print(f"{what:<20}{'inputs':>10}{'read':>10}{'refused':>10}{'broken':>10}")
        for name, each in counts.items():
            print(f"{name:<20}{each.inputs:>10,}{each.read:>10,}{each.refused:>10,}{len(each.broken):>10,}")
            broken += len(each.broken)
            for problem in each.broken[:5]:
                print(problem, file=sys.stderr)
        seconds = time.perf_counter() - start
        print(f"{sum(each.inputs for each in counts.values()):,} in {seconds:,.0f} s")
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
