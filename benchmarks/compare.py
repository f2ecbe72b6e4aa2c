"""Ours beside transformers.models.rag, on the same weights and inputs: python -m benchmarks.compare [--json FILE]

What is compared, each for K passages and B questions:

    token_train, sequence_train      forward and backward of a whole training step: question encoder, search, contexts,
                                     generator, marginal
    token_greedy, token_beam4        RAG-Token's answers, from contexts' tokens
    thorough_greedy, thorough_beam4  RAG-Sequence's answers by Thorough decoding, from contexts' tokens
    glue                             from questions' vectors to contexts' tokens: search, gather, assemble

The reference is run as it should be: RAG-Sequence with the attention mask that it forgets (docs/differences.md),
contexts padded to `max_combined_length` by its own retriever, retrieval once a question. Losses, gradients and answers
have to be equal, or the row says so.

Time is the process's CPU time on one core, ours and theirs in turn (A B A B …) after one warm-up each; the ratio is
that of the medians. Memory is measured in a process of its own for each figure: the highest resident memory during one
call, above what the process held before it, gradients included. Models stand ready on both sides; there is no
optimiser, which would add the same to both.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table

from benchmarks import world
from benchmarks.machine import describe, pin_to_one_core
from rag.errors import UserError
from rag.files import write_json

RTOL = 1e-4
SHAPES = ((5, 4), (10, 8))  # K passages, B questions
GENERATED = 16  # tokens an answer
PASSAGES = 2_000
WHAT = (
    "token_train",
    "sequence_train",
    "token_greedy",
    "token_beam4",
    "thorough_greedy",
    "thorough_beam4",
    "glue",
)


@dataclass(frozen=True)
class Row:
    """One comparison. Ratios are theirs / ours: how many times faster, how many times less memory."""

    size: str
    what: str
    K: int
    B: int
    time_ratio: float | None
    memory_ratio: float | None
    equal: bool | None
    seconds: tuple[float, float] | None  # ours, theirs
    bytes: tuple[int, int] | None  # ours, theirs


class Side:
    """Both implementations over the same weights, passages, questions and answers."""

    def __init__(self, size: world.Size, docs: int, questions: int, passages: int, folder: Path):
        from rag.encoders import QuestionEncoder
        from rag.index import build
        from rag.passages import Passage, PassageStore
        from rag.retriever import DenseRetriever
        from rag.vectors import EncoderInfo, embed

        self.docs = docs
        text = world.Text()
        self.passages = text.passages(passages)
        self.questions = text.questions(questions)
        self.answers = text.answers(questions)
        corpus = [f"{title} / {body} //" for title, body in self.passages] + self.questions + self.answers
        self.generator = world.generator(size, world.generator_tokenizer(corpus))
        encoder = QuestionEncoder(world.question_encoder(size), world.question_tokenizer(corpus))
        store = PassageStore.write(
            [Passage(str(row), *passage) for row, passage in enumerate(self.passages)], folder / "passages"
        )
        draw = np.random.default_rng(world.SEED)

        def vectors(batch: Sequence[Passage]) -> np.ndarray:
            return 0.1 * draw.standard_normal((len(batch), encoder.dim), np.float32)

        info = EncoderInfo("random", "random", "random")
        embed(store, vectors, folder, info, show_progress=False)
        self.index = build(folder, "Flat", show_progress=False)
        self.index.tokens(self.generator.tokenizer, show_progress=False)
        self.retriever = DenseRetriever(encoder, self.index)

    # -- ours -------------------------------------------------------------------------------------

    def model(self, kind: type) -> Any:
        return kind(self.retriever, self.generator, n_docs=self.docs).eval()

    # -- theirs -----------------------------------------------------------------------------------

    @cached_property
    def their_config(self) -> Any:
        return transformers.RagConfig.from_question_encoder_generator_configs(
            self.retriever.question_encoder.model.config,
            self.generator.model.config,
            n_docs=self.docs,
            retrieval_vector_size=self.retriever.question_encoder.dim,
            max_combined_length=self.generator.max_context_length,
        )

    @cached_property
    def their_retriever(self) -> Any:
        import datasets
        import faiss
        from transformers.models.rag.retrieval_rag import CustomHFIndex

        datasets.disable_progress_bars()
        columns = {
            "title": [title for title, _ in self.passages],
            "text": [body for _, body in self.passages],
            "embeddings": list(self.index.vectors(np.arange(len(self.passages)))),
        }
        dataset = datasets.Dataset.from_dict(columns)
        dataset.add_faiss_index("embeddings", metric_type=faiss.METRIC_INNER_PRODUCT)
        index = CustomHFIndex(self.index.dim, dataset)
        tokenizers = self.retriever.question_encoder.tokenizer, self.generator.tokenizer
        return transformers.RagRetriever(self.their_config, *tokenizers, index=index)

    def their_model(self, kind: type) -> Any:
        return kind(
            config=self.their_config,
            question_encoder=self.retriever.question_encoder.model,
            generator=self.generator.model,
            retriever=self.their_retriever,
        ).eval()

    @property
    def weights(self) -> list[torch.nn.Parameter]:
        return [*self.generator.parameters(), *self.retriever.parameters()]


class Train:
    """Forward and backward of one training step."""

    def __init__(self, side: Side, ours: type, theirs: type):
        self.side, self.our_kind, self.their_kind = side, ours, theirs

    def ours(self) -> Callable[[], Any]:
        model = self.side.model(self.our_kind)
        batch = model.prepare(self.side.questions, self.side.answers)

        def step() -> torch.Tensor:
            model.zero_grad()
            losses = -model(batch).logprob
            losses.sum().backward()
            return losses.detach()

        return step

    def theirs(self) -> Callable[[], Any]:
        model = self.side.their_model(self.their_kind)
        generator = self.side.generator
        questions = self.side.retriever.question_encoder.tokenize(self.side.questions)
        labels, mask = generator.tokenize_targets(self.side.answers)
        labels = torch.nn.functional.pad(
            labels.masked_fill(~mask, generator.pad_token), (1, 0), value=generator.start_token
        )

        def step() -> torch.Tensor:
            model.zero_grad()
            losses = model(**questions, labels=labels).loss
            losses.sum().backward()
            return losses.detach()

        return step

    def result(self, losses: torch.Tensor) -> Any:
        gradients = [None if w.grad is None else w.grad.clone() for w in self.side.weights]
        return losses, gradients

    def equal(self, ours: Any, theirs: Any) -> bool:
        """Losses, and the gradient as a whole: |ours − theirs| / |theirs|."""
        if not torch.allclose(ours[0], theirs[0], rtol=RTOL, atol=0):
            return False
        difference = of_theirs = 0.0
        for mine, other in zip(ours[1], theirs[1], strict=True):
            if (mine is None) != (other is None):
                return False
            if mine is not None:
                difference += float((mine - other).square().sum())
                of_theirs += float(other.square().sum())
        return difference**0.5 <= RTOL * of_theirs**0.5


class Generate:
    """Answers from contexts whose passages were retrieved already."""

    def __init__(self, side: Side, ours: type, theirs: type, beams: int):
        self.side, self.our_kind, self.their_kind, self.beams = side, ours, theirs, beams

    def _retrieved(self) -> Any:
        with torch.no_grad():
            return self.side.retriever(self.side.retriever.prepare(self.side.questions), self.side.docs)

    def ours(self) -> Callable[[], Any]:
        from rag.decoding import Decoding, generate

        model = self.side.model(self.our_kind)
        batch = model.prepare(self.side.questions)
        retrieved = self._retrieved()
        decoding = Decoding(max_new_tokens=GENERATED, num_beams=self.beams)

        @torch.no_grad()
        def answer() -> Any:
            return generate(model, model.read_retrieved(batch, retrieved), decoding)

        return answer

    def theirs(self) -> Callable[[], Any]:
        model = self.side.their_model(self.their_kind)
        retriever, encoder = self.side.their_retriever, self.side.retriever.question_encoder
        tokens = encoder.tokenize(self.side.questions)
        with torch.no_grad():
            queries = encoder(**tokens)
            found = retriever(
                tokens["input_ids"], queries.numpy(), n_docs=self.side.docs, return_tensors="pt"
            )
        scores = torch.einsum("bd,bkd->bk", queries, found["retrieved_doc_embeds"].float())
        length = (
            {"max_length": GENERATED + 1}  # RAG-Token knows no other, and counts the start token
            if self.their_kind is transformers.RagTokenForGeneration
            else {"max_new_tokens": GENERATED}
        )
        generator = self.side.generator.model
        generate, pad = generator.generate, self.side.generator.pad_token

        def with_mask(ids: torch.Tensor, **kwargs: Any) -> Any:
            return generate(ids, **(kwargs | {"attention_mask": (ids != pad).long()}))

        def answer() -> Any:
            if self.their_kind is transformers.RagSequenceForGeneration:
                generator.generate = with_mask
            try:
                return model.generate(
                    context_input_ids=found["context_input_ids"],
                    context_attention_mask=found["context_attention_mask"],
                    doc_scores=scores,
                    num_beams=self.beams,
                    **length,
                )
            finally:
                generator.__dict__.pop("generate", None)

        return answer

    def result(self, answers: Any) -> list[list[int]]:
        if isinstance(answers, torch.Tensor):
            rows = answers[:, 1:].tolist()
            return [[t for t in row if t != self.side.generator.pad_token] for row in rows]
        return [list(own[0].tokens) for own in answers]

    def equal(self, ours: Any, theirs: Any) -> bool:
        return ours == theirs


class Glue:
    """Vectors of questions in, what the generator reads out."""

    def __init__(self, side: Side):
        self.side = side
        with torch.no_grad():
            self.tokens = side.retriever.prepare(side.questions).tokens
            self.queries = side.retriever.question_encoder(**self.tokens).numpy()

    def ours(self) -> Callable[[], Any]:
        from rag.generator import Ragged

        side, generator = self.side, self.side.generator
        questions = generator.tokenize_questions(side.questions)

        def glue() -> Any:
            _, rows = side.index.search(self.queries, side.docs)
            vectors = side.index.vectors(rows)
            passages = Ragged(*side.index.tokens(generator.tokenizer).gather(rows.reshape(-1)))
            ids, mask = generator.assemble(questions.repeat(side.docs), passages)
            return ids, mask, vectors

        return glue

    def theirs(self) -> Callable[[], Any]:
        retriever, docs = self.side.their_retriever, self.side.docs

        def glue() -> Any:
            found = retriever(self.tokens["input_ids"], self.queries, n_docs=docs, return_tensors="pt")
            return (
                found["context_input_ids"],
                found["context_attention_mask"].bool(),
                found["retrieved_doc_embeds"],
            )

        return glue

    def result(self, contexts: Any) -> Any:
        ids, mask, vectors = contexts
        rows = [row[own].tolist() for row, own in zip(ids, mask, strict=True)]
        return rows, torch.as_tensor(vectors).float()

    def equal(self, ours: Any, theirs: Any) -> bool:
        return ours[0] == theirs[0] and torch.allclose(ours[1], theirs[1], rtol=RTOL)


def task(what: str, side: Side) -> Any:
    from rag.model import RagSequence, RagToken

    if what == "glue":
        return Glue(side)
    if what.startswith("token"):
        kinds = RagToken, transformers.RagTokenForGeneration
    else:
        kinds = RagSequence, transformers.RagSequenceForGeneration
    if what.endswith("_train"):
        return Train(side, *kinds)
    return Generate(side, *kinds, beams=4 if what.endswith("beam4") else 1)


def measure_time(own: Any, repeats: int) -> tuple[tuple[float, float], bool]:
    """Median CPU seconds of ours and theirs, taken in turn, and whether their results are equal."""
    calls = (own.ours(), own.theirs())
    results = [own.result(call()) for call in calls]
    equal = own.equal(*results)
    del results
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for call, taken in zip(calls, seconds, strict=True):
            start = time.process_time()
            call()
            taken.append(time.process_time() - start)
    return (statistics.median(seconds[0]), statistics.median(seconds[1])), equal


def peak_memory(call: Callable[[], Any]) -> int:
    """The most bytes that `call` held at once, above what the process held before."""
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins again here
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def measure_memory(size: str, what: str, docs: int, questions: int, passages: int) -> tuple[int, int]:
    """Peak bytes of ours and theirs, each in a process of its own."""
    peaks = []
    for side in ("ours", "theirs"):
        shape = ["--only", what, "--shapes", f"{docs}x{questions}", "--passages", str(passages)]
        command = [sys.executable, "-m", "benchmarks.compare", "--size", size, *shape, "--peak-of", side]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        peaks.append(int(done.stdout.splitlines()[-1]))
    return peaks[0], peaks[1]


def compare(
    sizes: Sequence[str],
    what: Sequence[str],
    shapes: Sequence[tuple[int, int]],
    repeats: int,
    want_memory: bool,
    passages: int,
    tell: Callable[[Row], None],
) -> list[Row]:
    rows = []
    for size in sizes:
        for docs, questions in shapes:
            with tempfile.TemporaryDirectory() as folder:
                side = Side(world.SIZES[size], docs, questions, passages, Path(folder))
                for name in what:
                    seconds, equal = measure_time(task(name, side), repeats) if repeats else (None, None)
                    peaks = None
                    if want_memory and name != "glue":
                        peaks = measure_memory(size, name, docs, questions, passages)
                    row = Row(
                        size,
                        name,
                        docs,
                        questions,
                        seconds and seconds[1] / seconds[0],
                        peaks and peaks[1] / peaks[0],
                        equal,
                        seconds,
                        peaks,
                    )
                    rows.append(row)
                    tell(row)
    return rows


def table(rows: Sequence[Row]) -> Table:
    shown = Table(
        "size", "what", "K", "B", "time", "memory", "equal", "ours s", "theirs s", "ours MB", "theirs MB"
    )
    for row in rows:
        seconds = row.seconds or (None, None)
        peaks = row.bytes or (None, None)
        shown.add_row(
            row.size,
            row.what,
            str(row.K),
            str(row.B),
            "–" if row.time_ratio is None else f"{row.time_ratio:.2f}×",
            "–" if row.memory_ratio is None else f"1/{row.memory_ratio:.1f}",
            {None: "–", True: "yes", False: "NO"}[row.equal],
            *("–" if value is None else f"{value:.3f}" for value in seconds),
            *("–" if value is None else f"{value / 1e6:.0f}" for value in peaks),
        )
    return shown


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--size", default="small", help="small, base or several: small,base")
    parser.add_argument("--only", default=",".join(WHAT), help="what to compare, separated by commas")
    parser.add_argument("--shapes", default=",".join(f"{k}x{b}" for k, b in SHAPES), help="KxB, KxB, …")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each side; 0: memory alone")
    parser.add_argument("--no-memory", action="store_true", help="time alone")
    parser.add_argument("--passages", type=int, default=PASSAGES, help="in the index")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument(
        "--device", default="cpu", help="cuda: throughput there instead (benchmarks.throughput)"
    )
    parser.add_argument("--peak-of", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.size, given.only = given.size.split(","), given.only.split(",")
    for name, known in ((given.size, world.SIZES), (given.only, WHAT)):
        if unknown := [each for each in name if each not in known]:
            parser.error(f"{unknown[0]} is unknown: choose from {', '.join(known)}")
    try:
        given.shapes = [tuple(map(int, shape.split("x"))) for shape in given.shapes.split(",")]
        if any(len(shape) != 2 or min(shape) < 1 for shape in given.shapes):
            raise ValueError
    except ValueError:
        parser.error("--shapes: give K and B as 5x4, or several: 5x4,10x8")
    return given


def main() -> None:
    given = _arguments()
    if given.device != "cpu":
        from benchmarks import throughput

        return throughput.main(
            ["--device", given.device, *(["--json", str(given.json)] if given.json else [])]
        )
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    pin_to_one_core()
    if given.peak_of:
        ((docs, questions),) = given.shapes
        with tempfile.TemporaryDirectory() as folder:
            side = Side(world.SIZES[given.size[0]], docs, questions, given.passages, Path(folder))
            call = getattr(task(given.only[0], side), given.peak_of)()
            print(peak_memory(call))
        return
    console = Console(width=120)
    console.print(
        f"{describe()}\ntransformers {transformers.__version__}, torch {torch.__version__}, float32"
    )
    rows = compare(
        given.size,
        given.only,
        given.shapes,
        given.repeats,
        not given.no_memory,
        given.passages,
        lambda row: print(json.dumps(asdict(row)), file=sys.stderr),
    )
    console.print(table(rows))
    if given.json:
        write_json(given.json, [asdict(row) for row in rows])
        console.print(f"written to {given.json}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
