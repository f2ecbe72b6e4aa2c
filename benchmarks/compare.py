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
that of the medians. Memory is measured in a process of its own for each number: the highest resident memory during one
call, above what the process held before it, gradients included. Models stand ready on both sides; there is no
optimiser, which would add the same to both. On a GPU scripts/gpu_check.sh does the same in bfloat16.
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
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from rich.console import Console
from rich.table import Table

from benchmarks import world
from benchmarks.machine import describe, pin_to_one_core
from benchmarks.sides import Side, task
from rag.errors import UserError
from rag.files import write_json

SHAPES = ((5, 4), (10, 8))  # K passages, B questions
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


def measure_time(side: Any, repeats: int) -> tuple[tuple[float, float], bool]:
    """Median CPU seconds of ours and theirs, taken in turn, and whether their results are equal."""
    calls = (side.ours(), side.theirs())
    results = [side.result(call()) for call in calls]
    equal = side.equal(*results)
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
