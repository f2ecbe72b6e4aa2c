"""Passages and questions of the package ir_datasets, by its ids ("beir/scifact"), written out as BEIR lays them out.

    corpus.jsonl       {"_id", "title", "text"} of each document
    queries.jsonl      {"_id", "text"} of each question
    qrels/test.tsv     question, document and grade; train.tsv and dev.tsv where there are judgments of these

So every command reads them as files, and reads them again where the package is not installed. What the package has
downloaded lies in its own folder (IR_DATASETS_HOME), where it may also be put by hand.
"""

import logging
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from rag.errors import UserError, one_line
from rag.files import one_process, write_aside
from rag.index.passage import without_half_pairs
from rag.progress import progress_bar
from rag.safe_text import json_text, say

SPLITS = {"train": ("train",), "dev": ("dev", "validation"), "test": ("test",)}


def export(id: str, folder: Path | str) -> None:
    """Write a dataset of ir_datasets into `folder`, which appears when it is complete; nothing where it is there.

    Judgments are those of `id` itself, as test.tsv, or else of its parts ("beir/scifact/train", …). Raises UserError
    where the package is not installed or knows no such dataset with documents, or cannot get it.
    """
    folder = Path(folder)
    if (folder / "corpus.jsonl").is_file():
        return
    if find_spec("ir_datasets") is None:
        raise UserError(
            f"corpus.id={id} is a dataset of ir_datasets, which is not installed: pip install 'rag[ir]', or give the "
            "dataset's own files with corpus.path and task.test"
        )
    dataset = _load(id)
    if dataset is None or not dataset.has_docs():
        state = "has no documents" if dataset is not None else "does not exist"
        raise UserError(f"corpus.id={id} {state} in ir_datasets: give one of its ids, such as beir/scifact")
    try:
        with one_process(folder), write_aside(folder) as aside:
            if (folder / "corpus.jsonl").is_file():  # another process was faster
                return
            (aside / "qrels").mkdir(parents=True)
            _write(aside / "corpus.jsonl", _documents(dataset, id))
            splits = _judged(id, dataset)
            _write(aside / "queries.jsonl", _questions([dataset, *splits.values()]))
            for split, judged in splits.items():
                _write_qrels(aside / "qrels" / f"{split}.tsv", judged)
    except (OSError, RuntimeError, ValueError, KeyError, BadZipFile) as error:  # of downloads and readers
        raise UserError(
            f"corpus.id={id} cannot be had from ir_datasets ({one_line(str(error))}): go online, or put its files "
            "where IR_DATASETS_HOME says"
        ) from error
    say(f"{id} of ir_datasets is written into {folder}: questions of {', '.join(splits) or 'no split'}")


def _load(id: str) -> Any:
    import ir_datasets

    logging.getLogger("ir_datasets").setLevel(logging.WARNING)  # it tells of each file that it opens
    try:
        return ir_datasets.load(id)
    except KeyError:
        return None


def _judged(id: str, dataset: Any) -> dict[str, Any]:
    """The parts of a dataset that have questions and judgments, by split."""
    if dataset.has_qrels() and dataset.has_queries():
        return {"test": dataset}
    parts = {
        split: part
        for split, names in SPLITS.items()
        for part in (_load(f"{id}/{name}") for name in names)
        if part is not None and part.has_qrels() and part.has_queries()
    }
    return parts


def _documents(dataset: Any, id: str) -> Iterator[dict[str, str]]:
    """Documents with a text; one with a title alone has that as its text."""
    left_out = 0
    with progress_bar(f"writing {id}", dataset.docs_count() or None, "documents") as advance:
        for document in dataset.docs_iter():
            advance(1)
            known = document._asdict()  # a named tuple, whose fields are the dataset's own
            title = known.get("title") or ""
            text = known.get("text") or (document.default_text() if not title else "") or title
            if text.strip():
                yield {"_id": str(document.doc_id), "title": title, "text": text}
            else:
                left_out += 1
    if left_out:
        say(f"{id}: {left_out:,} documents without a text are left out")


def _questions(datasets: list[Any]) -> Iterator[dict[str, str]]:
    seen = set()
    for dataset in datasets:
        for query in dataset.queries_iter() if dataset.has_queries() else ():
            text = getattr(query, "text", None) or query.default_text()
            if query.query_id not in seen and text.strip():
                seen.add(query.query_id)
                yield {"_id": str(query.query_id), "text": text}


def _write(file: Path, records: Iterator[dict[str, str]]) -> None:
    with open(file, "w", encoding="utf-8") as out:
        for record in records:
            out.write(json_text({key: without_half_pairs(value) for key, value in record.items()}) + "\n")


def _write_qrels(file: Path, dataset: Any) -> None:
    with open(file, "w", encoding="utf-8") as out:
        out.write("query-id\tcorpus-id\tscore\n")
        for judgment in dataset.qrels_iter():
            out.write(f"{judgment.query_id}\t{judgment.doc_id}\t{judgment.relevance}\n")
