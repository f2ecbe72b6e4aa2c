"""SQuAD as open-domain questions (python -m rag.wiki): its paragraphs, cut every 100 words, are the corpus, and the
piece that holds the marked answer is a question's gold passage."""

import csv
import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rag.errors import UserError
from rag.files import write_aside
from rag.index.splitting import split_words

COLUMNS = ("id", "title", "context", "question", "answers")
SPLITS = {"train": "train", "validation": "dev"}  # how the hub's files begin → what ours are called


def open_domain(fetched: Path, folder: Path) -> list[Path]:
    """Write passages.tsv, train.jsonl and dev.jsonl into `folder` from the hub's Parquet files; their paths.

    Each appears when it is complete. Raises UserError where a file is missing or has other columns.
    """
    folder.mkdir(parents=True, exist_ok=True)
    numbers = count(1)
    ids: dict[str, list[tuple[int, str]]] = {}  # paragraph → its pieces, with their ids
    made = [folder / "passages.tsv"]
    with write_aside(made[0]) as aside, aside.open("w", encoding="utf-8", newline="") as out:
        table = csv.writer(out, delimiter="\t", lineterminator="\n")
        table.writerow(["id", "text", "title"])
        for begin, name in SPLITS.items():
            made.append(folder / f"{name}.jsonl")
            with write_aside(made[-1]) as questions, questions.open("w", encoding="utf-8") as lines:
                for row in _rows(fetched, begin):
                    context, title = row["context"], row["title"].replace("_", " ")
                    if context not in ids:
                        ids[context] = [(next(numbers), text) for text in split_words(context)]
                        table.writerows([number, text, title] for number, text in ids[context])
                    answers = list(dict.fromkeys(row["answers"]["text"]))
                    record = {
                        "id": row["id"],
                        "question": row["question"].strip(),
                        "answers": answers,
                        "positive_ids": [_gold(ids[context], context, row["answers"]["answer_start"][0])],
                        "title": title,
                    }
                    lines.write(json.dumps(record, ensure_ascii=False) + "\n")
    return made


def _gold(pieces: list[tuple[int, str]], context: str, start: int) -> int:
    """The piece in which the answer begins, by the characters before it without spaces, which a piece may differ in."""
    before = len("".join(context[:start].split()))
    seen = 0
    for number, text in pieces:
        seen += len("".join(text.split()))
        if before < seen:
            return number
    return pieces[-1][0]


def _rows(fetched: Path, begin: str) -> Iterator[dict[str, Any]]:
    files = sorted(fetched.rglob(f"{begin}-*.parquet"))
    if not files:
        raise UserError(f"{fetched} holds no {begin}-*.parquet: remove the folder and fetch squad again")
    for file in files:
        try:
            opened = pq.ParquetFile(file)
            lacking = {*COLUMNS} - {*opened.schema_arrow.names}
            if lacking:
                raise UserError(f"{file} has no column {', '.join(sorted(lacking))}: it is not SQuAD's")
            for batch in opened.iter_batches(columns=list(COLUMNS)):
                yield from (row for row in batch.to_pylist() if row["answers"]["text"])
        except pa.ArrowInvalid as error:
            raise UserError(f"{file} is damaged ({error}): remove it, and it is fetched again") from error
