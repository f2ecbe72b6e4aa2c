"""DPR's training files (Karpukhin et al. 2020; biencoder-nq-train.json and the like, CC BY-NC 4.0).

One JSON array of objects: `question`, `answers`, and three lists of passages, `positive_ctxs`, `negative_ctxs` and
`hard_negative_ctxs`, each passage with `title`, `text` and usually `passage_id`. The files are gigabytes long, so
that they are streamed once into a passage store and a list of row numbers, and kept so in a cache folder.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from rag.errors import UserError, listed
from rag.files import one_process, read_json, write_aside, write_json
from rag.fingerprints import digest, fingerprint
from rag.index.passage import Passage
from rag.index.passages import PassageStore
from rag.progress import progress_bar
from rag.safe_text import json_text
from rag.tasks.records import Record, kind, read_records, text_field

log = logging.getLogger(__name__)

_FORMAT = 3  # 2: without the answers
_NONE = np.empty(0, np.int32)


@dataclass(frozen=True, slots=True)
class AskedQuestion:
    """A question with the rows of passages that are right for it, look right (hard), or are merely wrong (other), and
    its answers, where they are known."""

    question: str
    positives: Int32[np.ndarray, " positives"]
    hard: Int32[np.ndarray, " hard"] = field(default_factory=lambda: _NONE)
    other: Int32[np.ndarray, " other"] = field(default_factory=lambda: _NONE)
    answers: tuple[str, ...] = ()


def open_dpr_json(path: str | Path, cache: str | Path) -> tuple[PassageStore, list[AskedQuestion]]:
    """The passages and questions of one of DPR's files, converted into `cache` at the first use.

    Questions without a positive passage are left out, as DPR does, and counted in a warning. Raises UserError, with
    file and line, for whatever is not of the format, and for a file without one usable question; nothing is left
    behind then.
    """
    name = Path(path).name.split(".")[0]
    if not Path(path).is_file():
        raise UserError(f"{path} does not exist: give one of DPR's training files")
    folder = Path(cache) / f"{name}-{digest([_FORMAT, fingerprint(path)])}"
    with one_process(folder):
        if not folder.exists():
            with write_aside(folder) as aside:
                aside.mkdir()
                _convert(Path(path), aside)
    counts = read_json(folder / "counts.json")
    warn_of_left_out(path, counts["left_out"], counts["questions"])
    with open(folder / "questions.jsonl", encoding="utf-8") as file:
        return PassageStore.open(folder / "passages"), [_asked(json.loads(line)) for line in file]


def warn_of_left_out(path: str | Path, left_out: int, questions: int) -> None:
    """Say how many questions have no positive passage and are not trained on, where there are any."""
    if left_out:
        log.warning(
            "%s: %s of %s questions name no positive passage and are left out",
            path,
            f"{left_out:,}",
            f"{questions:,}",
        )


def _asked(record: Record) -> AskedQuestion:
    positives, hard, other = (np.array(record[key], np.int32) for key in ("positives", "hard", "other"))
    return AskedQuestion(record["question"], positives, hard, other, tuple(record["answers"]))


def _convert(path: Path, folder: Path) -> None:
    rows: dict[int, int] = {}  # 64 bits of a hash of title and text → row
    usable = number = 0

    def passages() -> Iterator[Passage]:
        """The passages that are new, while the questions are written beside."""
        nonlocal usable, number
        with (
            open(folder / "questions.jsonl", "w", encoding="utf-8") as out,
            progress_bar(f"converting {path.name}", None, "questions") as advance,
        ):
            for where, record in read_records(path):
                number += 1
                question, answers = text_field(record, "question", where), _answers(record, where)
                rows_of_question: dict[str, list[int]] = {}
                for contexts, name in _LISTS.items():
                    rows_of_question[name] = []
                    for passage in _contexts(record, contexts, where):
                        key = int(passage.id, 16)
                        if key not in rows:
                            rows[key] = len(rows)
                            yield passage
                        rows_of_question[name].append(rows[key])
                advance(1)
                if rows_of_question["positives"]:
                    usable += 1
                    out.write(
                        json_text({"question": question, "answers": answers, **rows_of_question}) + "\n"
                    )
            if not usable:
                raise UserError(f"{path} holds no question with a positive passage")

    PassageStore.write(passages(), folder / "passages")
    write_json(folder / "counts.json", {"questions": number, "left_out": number - usable})


_LISTS = {"positive_ctxs": "positives", "hard_negative_ctxs": "hard", "negative_ctxs": "other"}


def _answers(record: Record, where: str) -> list[str]:
    """The answers, by which mined negatives are judged; files without them can be trained on."""
    answers = record.get("answers") or []
    if not isinstance(answers, list) or not all(isinstance(each, str) for each in answers):
        raise UserError(f"{where}: answers is {kind(answers)}, a list of strings is expected")
    return answers


def _contexts(record: Record, key: str, where: str) -> Iterator[Passage]:
    """The passages of one of the lists; its id is a hash, since DPR's own ids are missing here and there."""
    if key == "positive_ctxs" and key not in record:
        raise UserError(
            f"{where}: no key 'positive_ctxs', found {listed(record)}: DPR's training format has "
            "question, answers, positive_ctxs, negative_ctxs and hard_negative_ctxs"
        )
    contexts = record.get(key, [])
    if not isinstance(contexts, list):
        raise UserError(f"{where}: {key} is {kind(contexts)}, a list of passages is expected")
    for number, context in enumerate(contexts, start=1):
        location = f"{where}: passage {number} of {key}"
        if not isinstance(context, dict):
            raise UserError(f"{location} is {kind(context)}, an object with title and text is expected")
        title = _title(context, location)
        text = text_field(context, "text", location)
        name = hashlib.sha256(f"{title}\n{text}".encode()).hexdigest()[:16]
        yield Passage(name, title, text)


def _title(context: dict[str, Any], location: str) -> str:
    title = context.get("title", "")
    if title is None:
        return ""
    if not isinstance(title, str):
        raise UserError(f"{location}: the title is {kind(title)}, a string is expected")
    return title
