"""What retrieval finds among real passages: BM25, and a dense index where one is given.

    python -m benchmarks.retrieval recall --passages FILE --questions FILE [--limit N] [--dense RUN] [--types a,b]
    python -m benchmarks.retrieval swap   --passages A B --questions FILE --answers KEY_A KEY_B [--dense RUN]

`recall` counts the questions for which one of the first K passages contains an answer (DPR's token match, title and
text), and for which one of the listed gold ids is among them. `swap` is section 4.5 without a generator: the same
questions over two editions of a corpus; each cell is the share of questions for which the right answer of the edition
asked about stands in one of the first K passages of the edition indexed. A memory that can be exchanged is right on
the diagonal. Questions whose answers differ between the editions are told apart from all of them.

RUN is a run folder of train.py with both encoders (experiment=scratch/dpr); its index is built in --folder, and swapped
by `DenseRetriever.swap`. BM25 is bm25s with k1 = 0.9, b = 0.4, English stop words, over "title text".
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.index import index_type
from rag.encoders.dpr import PassageEncoder, QuestionEncoder
from rag.errors import UserError
from rag.evaluation.answering import find_passages
from rag.evaluation.judging import passage_metrics, passage_text
from rag.files import hash_file, write_json
from rag.index.build import build
from rag.index.embed import embed, prepare
from rag.index.folder import Index
from rag.index.passages import PassageStore
from rag.index.tokens import tokenizer_fingerprint
from rag.index.vectors import EncoderInfo
from rag.metrics.retrieval import answer_recall_at
from rag.retrievers.dense import DenseRetriever
from rag.retrievers.lexical import BM25
from rag.tasks.example import Example
from rag.tasks.qa import QuestionAnswering, read_examples
from rag.tasks.records import read_records
from rag.training.questions import sample

KS = (1, 5, 20, 100)
SWAP_KS = (1, 5, 20)


def store_of(passages: Path, folder: Path) -> tuple[PassageStore, Path]:
    """The passages of a file, in a folder of `folder` that is named for its content."""
    index_folder = folder / f"{passages.name.split('.')[0]}-{hash_file(passages)[:8]}"
    return prepare(passages, index_folder), index_folder


def dense_index(
    run: Path, index_folder: Path, kind: str = "flat", queries: np.ndarray | None = None
) -> Index:
    """The index of a folder's passages by the passage encoder of a run; goes on after an interruption."""
    encoder = PassageEncoder.from_pretrained(run / "model" / "passage_encoder").eval()
    info = EncoderInfo(str(run), encoder.fingerprint(), tokenizer_fingerprint(encoder.tokenizer))
    embed(PassageStore.open(index_folder / "passages"), encoder.encode, index_folder, info, batch_size=128)
    build(index_folder, index_type(kind), queries)
    return Index.open(index_folder)


def recall(
    passages: Path,
    questions: Path,
    folder: Path,
    limit: int | None = None,
    run: Path | None = None,
    types: Sequence[str] = ("flat",),
    answers: str = "answers",
) -> list[dict[str, Any]]:
    """A row for each retriever and each kind of recall, with its value at each K.

    `exact` is what an index's manifest says of it: the share of exact search's 50 best that it finds for 200 of the
    questions, drawn at random.
    """
    examples = read_examples(questions, answers, limit)
    asked = [example.question for example in examples]
    store, index_folder = store_of(passages, folder)
    ks = [k for k in KS if k <= len(store)]
    rows = []

    def add(name: str, exact: float, retrieved: np.ndarray) -> None:
        for metric, by_k in passage_metrics(QuestionAnswering(), store, retrieved, examples, ks).items():
            values = {str(k): measured.value for k, measured in by_k.items()}
            rows.append(
                {"retriever": name, "exact": exact, "metric": metric, "questions": len(examples), **values}
            )

    add("BM25", 1.0, BM25.build(store).search(asked, max(ks))[1])
    if run is not None:
        asker = QuestionEncoder.from_pretrained(run / "model" / "question_encoder").eval()
        with torch.inference_mode():
            some = [example.question for example in sample(examples, 200)]
            queries = asker(**asker.tokenize(some)).float().numpy()
        for kind in types:
            index = dense_index(run, index_folder, kind, queries)
            retriever = DenseRetriever(asker, index, trainable=False)
            exact = index.manifest.recall[str(min(50, max(ks)))]
            add(f"dense, {index.manifest.factory}", exact, find_passages(retriever, asked, max(ks)))
    return rows


def swap(
    passages: Mapping[str, Path],
    examples: Mapping[str, Sequence[Example]],
    changed: np.ndarray,
    folder: Path,
    run: Path | None = None,
) -> list[dict[str, Any]]:
    """A row for each retriever, choice of questions, edition asked and edition indexed.

    changed: of each question, whether the editions answer it differently.
    """
    opened = {edition: store_of(path, folder) for edition, path in passages.items()}
    retrieved: dict[tuple[str, str], np.ndarray] = {}
    questions = [example.question for example in next(iter(examples.values()))]
    for edition, (store, _) in opened.items():
        retrieved["BM25", edition] = BM25.build(store).search(questions, max(SWAP_KS))[1]
    if run is not None:
        indexes = {edition: dense_index(run, index_folder) for edition, (_, index_folder) in opened.items()}
        asker = QuestionEncoder.from_pretrained(run / "model" / "question_encoder").eval()
        retriever = DenseRetriever(asker, next(iter(indexes.values())), trainable=False)
        for edition, index in indexes.items():
            retriever.swap(index)
            retrieved["dense", edition] = find_passages(retriever, questions, max(SWAP_KS))
    rows = []
    for (name, indexed), found_rows in retrieved.items():
        store = opened[indexed][0]
        texts = [[passage_text(store, row) for row in of_question] for of_question in found_rows.tolist()]
        for asked, of_edition in examples.items():
            hits = answer_recall_at(texts, [example.answers for example in of_edition], SWAP_KS)
            for which, chosen in (("changed", changed), ("all", np.ones(len(changed), bool))):
                row = {"retriever": name, "questions": which, "asked": asked, "indexed": indexed}
                row |= {str(k): round(float(hits[k][chosen].mean()), 4) for k in SWAP_KS}
                rows.append(row | {"count": int(chosen.sum())})
    return rows


def changed_answers(questions: Path, *keys: str) -> np.ndarray:
    """What the file says of each question under `changed`; if it does not, whether its answers differ."""
    records = [record for _, record in read_records(questions)]
    return np.array([bool(each.get("changed", each[keys[0]] != each[keys[1]])) for each in records])


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.retrieval", description=(__doc__ or "").split(":")[0]
    )
    parser.add_argument("what", choices=("recall", "swap"))
    parser.add_argument("--passages", type=Path, nargs="+", required=True)
    parser.add_argument("--questions", type=Path, required=True)
    parser.add_argument(
        "--answers",
        nargs="+",
        default=["answers"],
        help="the field with the answers; swap: one for each edition",
    )
    parser.add_argument("--limit", type=int, help="recall: only the first so many questions")
    parser.add_argument("--dense", type=Path, metavar="RUN", help="a run folder with both encoders")
    parser.add_argument(
        "--types", default="flat", help="recall: types of index for --dense, as in configs/index"
    )
    parser.add_argument("--json", type=Path, help="where the rows go as well")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "rag_benchmark_retrieval"
    )
    given = parser.parse_args(arguments)
    if given.what == "swap" and (len(given.answers), len(given.passages)) != (2, 2):
        parser.error("swap takes --passages A B and --answers KEY_A KEY_B")
    print(f"{given.what} over {', '.join(map(str, given.passages))}; indexes in {given.folder}")
    if given.what == "recall":
        types = given.types.split(",")
        source = (given.passages[0], given.questions, given.folder)
        rows = recall(*source, given.limit, given.dense, types, given.answers[0])
    else:
        names = [key.removeprefix("answers_") for key in given.answers]
        editions = dict(zip(names, given.passages, strict=True))
        examples = {
            n: read_examples(given.questions, key) for n, key in zip(names, given.answers, strict=True)
        }
        rows = swap(
            editions, examples, changed_answers(given.questions, *given.answers), given.folder, given.dense
        )
    show(rows)
    if given.json:
        write_json(given.json, rows)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
