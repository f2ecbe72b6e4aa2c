"""Search passages in the terminal, without a model: python -m rag.search FOLDER-OR-INDEX [key=value …] ["question"]

    from rag.search import open_search
    for passage in open_search("notes")("who built the lighthouse?"):
        print(passage.score, passage.title, passage.text)

A corpus of any form that build_index.py reads is searched by its words (BM25). An index of build_index.py is, too, and
by its vectors where retriever=dense or hybrid says so. What was read of a corpus is kept beside it, hidden, until it
changes.
"""

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.text import Text

from rag.ask.highlight import answer_spans, snippet
from rag.ask.printed import MARKED, SNIPPET
from rag.cli import mistakes_in_one_sentence, quieten_logs
from rag.compose import nearest
from rag.errors import UserError
from rag.files import hidden_beside
from rag.fingerprints import digest
from rag.index.corpus_files import corpus_files, is_mixture
from rag.index.folder import Index
from rag.index.reading import AS_USUAL, CorpusReading
from rag.index.unembedded import open_passages, prepare_passages
from rag.lazy import many_imports
from rag.retrievers.lexical import BM25
from rag.safe_text import json_text, printable, say
from rag.terminal import Terminal

USAGE = """
python -m rag.search FOLDER-OR-INDEX [key=value …] ["question"]

Finds passages of a corpus (a file or folder that build_index.py reads) or of an index, without a model: the best by
BM25, with their scores and the question's words marked. Without a question, reads questions from a pipe, one a line.

  python -m rag.search notes "Who built the lighthouse?"
  python -m rag.search passages.tsv n_docs=10 "Who built the lighthouse?"
  python -m rag.search indexes/mine retriever=hybrid "Who built the lighthouse?"    by vectors and words; or dense
  python -m rag.search notes json=true < questions.txt > found.jsonl

  n_docs=5               passages shown for each question
  retriever=bm25         or dense, hybrid, where an index has vectors
  json=false             true: a line of JSON for each question
  question_encoder=PATH  of retriever=dense and hybrid; by default the encoder that the index was made with
  encoding=NAME          of text files that are not UTF-8
  split=WAY size=NUMBER  cut every text by words, sentences or headings, into pieces of so many words at most
  cache=FOLDER           where what was read is kept; by default hidden beside the corpus
"""

WAYS = ("bm25", "dense", "hybrid")


@dataclass(frozen=True)
class Found:
    """A passage with its rank, from 1, and its score: BM25's, the inner product, or their sum."""

    rank: int
    id: str
    title: str
    text: str
    score: float


@dataclass(frozen=True)
class Search:
    """Finds the best passages of each question. index: what is searched. way: "bm25", "dense" or "hybrid"."""

    index: Index
    way: str
    find: Callable[[list[str], int], tuple[Any, Any]]  # scores and rows, both (questions, K)

    def __call__(self, question: str, n_docs: int = 5) -> list[Found]:
        return self.all([question], n_docs)[0]

    def all(self, questions: Sequence[str], n_docs: int = 5) -> list[list[Found]]:
        """The best `n_docs` passages of each question, or fewer where fewer share a word with it, or exist."""
        for number, question in enumerate(questions, start=1):
            if not question.strip():
                raise UserError(f"question {number} is empty: write what is sought")
        if n_docs < 1:
            raise UserError(f"n_docs={n_docs} finds nothing: give 1 or more")
        scores, rows = self.find(list(questions), min(n_docs, len(self.index)))
        return [list(self._found(*each)) for each in zip(rows.tolist(), scores.tolist(), strict=True)]

    def _found(self, rows: list[int], scores: list[float]) -> Iterator[Found]:
        for rank, (row, score) in enumerate(zip(rows, scores, strict=True), start=1):
            if row >= 0:
                passage = self.index.passages[row]
                yield Found(rank, passage.id, passage.title, passage.text, score)


def open_search(
    place: str | Path,
    retriever: str = "bm25",
    question_encoder: str | None = None,
    reading: CorpusReading = AS_USUAL,
    cache: str | Path | None = None,
) -> Search:
    """Read a corpus, or what is kept of it, or open an index. reading: how a corpus is read; the other parameters are
    the command's settings.

    Raises UserError for what is not there or cannot be read, and for vectors where there are none.
    """
    place = Path(place).expanduser()
    if retriever not in WAYS:
        raise UserError(f"retriever={retriever} does not exist: there is {', '.join(WAYS)}")
    is_index = (place / "passages" / "store.json").is_file()
    if retriever != "bm25" and not (place / "manifest.json").is_file():
        raise UserError(
            f"retriever={retriever} searches vectors, and {place} is no index: make one with build_index.py, or leave "
            "retriever= out to search by words"
        )
    kept = hidden_beside(place, "search") if cache is None else Path(cache).expanduser()
    if is_index:
        if reading != AS_USUAL:
            raise UserError(
                f"encoding=, split= and size= say how a corpus is read, and {place} is an index already: leave them out"
            )
        index = open_passages(place)
    else:
        if place.exists() and is_mixture(corpus_files(place)[0]):
            reading = reading.by("headings")  # of documents, as rag.ask reads them
        index = prepare_passages(place, kept, reading)
        kept = index.folder
        for other in kept.parent.glob(f"{place.resolve().name}-*") if cache is None else ():
            if other != kept:  # the corpus as it was
                shutil.rmtree(other, ignore_errors=True)
    if retriever == "bm25":
        return Search(index, retriever, open_bm25(index, kept).search)
    return Search(index, retriever, by_vectors(index, retriever, question_encoder))


def open_bm25(index: Index, folder: Path) -> BM25:
    """BM25 over the passages of an index, kept in `folder` where that can be written."""
    place = folder / f"bm25-{digest(index.passages.sha256)}"
    if place.is_dir():
        return BM25.open(place)
    scorer = BM25.build(index.passages)
    try:
        scorer.save(place)
    except UserError:  # of a disk that is full, or somebody else's
        return scorer
    return BM25.open(place)


def by_vectors(
    index: Index, way: str, question_encoder: str | None
) -> Callable[[list[str], int], tuple[Any, Any]]:
    """Dense or hybrid search, with the encoder that made the index or another one."""
    with many_imports():
        import torch

        from rag.encoders.opening import open_question_encoder
        from rag.retrievers.dense import DenseRetriever
        from rag.retrievers.hybrid import HybridRetriever

    name = question_encoder or index.manifest.encoder.name
    try:
        encoder = open_question_encoder(name)
        if way == "dense":
            retriever: Any = DenseRetriever(encoder, index, trainable=False)
        else:
            retriever = HybridRetriever(encoder, index, BM25.build, trainable=False)
    except UserError as error:
        if question_encoder is not None:
            raise
        raise UserError(
            f"the index was made with {name}, which does not serve as question encoder ({error}): give "
            "question_encoder=PATH"
        ) from error
    retriever.eval()

    def find(questions: list[str], n_docs: int) -> tuple[Any, Any]:
        with torch.inference_mode():
            retrieved = retriever(retriever.prepare(questions), n_docs)
        return retrieved.scores.float().numpy(), retrieved.rows

    return find


# -- the command -----------------------------------------------------------------------------------

_KINDS = {
    "n_docs": int,
    "retriever": str,
    "json": bool,
    "question_encoder": str,
    "encoding": str,
    "split": str,
    "size": int,
    "cache": str,
}


def parse(arguments: Sequence[str]) -> tuple[str, dict[str, Any], list[str]]:
    """The place, the settings and the questions of a command line; UserError for what is none of them."""
    settings: dict[str, Any] = {}
    others = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not key.isidentifier():
            others.append(argument)
        elif key not in _KINDS:
            raise UserError(f"the setting {key} does not exist: {nearest(key, list(_KINDS))}")
        else:
            settings[key] = _value(argument, _KINDS[key], value)
    if not others:
        raise UserError(
            'say what is searched: python -m rag.search FOLDER-OR-INDEX "question"; --help has examples'
        )
    if len(others) > 2:
        raise UserError(
            f"{others[2]!r} is one argument too many: put the question in quotes, after the folder"
        )
    return others[0], settings, others[1:]


def _value(argument: str, kind: type, value: str) -> Any:
    if kind is bool:
        if value not in ("true", "false"):
            raise UserError(f"{argument}: true or false is expected")
        return value == "true"
    if kind is int:
        if not value.isdecimal() or len(value) > 9 or int(value) < 1:
            raise UserError(f"{argument}: a whole number from 1 is expected")
        return int(value)
    return value


def main(arguments: Sequence[str]) -> None:
    if any(each in ("-h", "--help") for each in arguments):
        print(USAGE.strip())
        return
    place, settings, questions = parse(arguments)
    n_docs, as_json = settings.pop("n_docs", 5), settings.pop("json", False)
    if not questions and sys.stdin.isatty():
        raise UserError('what is sought? python -m rag.search FOLDER-OR-INDEX "question"')
    given = {name: settings.pop(name) for name in ("encoding", "split", "size") if name in settings}
    search = open_search(place, reading=CorpusReading(**given).checked(), **settings)
    say(f"{len(search.index):,} passages of {place}, {search.way}", file=sys.stderr)
    asked = questions or [line.strip() for line in sys.stdin if line.strip()]
    if not asked:
        raise UserError("the pipe holds no question: give one a line")
    terminal = Terminal()
    for question, found in zip(asked, search.all(asked, n_docs), strict=True):
        if as_json:
            record = {
                "question": question,
                "retriever": search.way,
                "passages": [asdict(each) for each in found],
            }
            print(json_text(record))
            continue
        if len(asked) > 1:
            terminal.print(Text(printable(question), style="bold"))
        if not found:
            terminal.print("no passage shares a word with this question")
        for each in found:
            terminal.print(shown(each, question))


def shown(found: Found, question: str) -> Text:
    """Rank, score, title and id of a passage, and the piece of it where words of the question stand, marked."""
    passage, name = printable(found.text), printable(found.title)
    text, spans = snippet(passage, answer_spans(passage, question), SNIPPET)
    marked, title = Text(text), Text(name, style="bold")
    for where, places in ((marked, spans), (title, answer_spans(name, question))):
        for start, end in places:
            where.stylize(MARKED, start, end)
    head = Text.assemble(
        f"{found.rank}. ", title, "  " if name else "", (f"{printable(found.id)}, {found.score:.2f}", "dim")
    )
    return Text("\n").join([head, marked, Text("")])


if __name__ == "__main__":
    quieten_logs()
    with mistakes_in_one_sentence():
        main(sys.argv[1:])
