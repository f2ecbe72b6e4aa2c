"""What fewer bits gain on a CPU: python -m benchmarks.reduced [--json FILE] [--passages FILE]

Passages embedded by MiniLM and RAG-Token's greedy answers at BART-base's size (random weights, K = 5, B = 4, 16
tokens), CPU time on one core, ways in turn (A B C A B C …), medians. Ways are

    torch        float32 as torch and transformers have it
    float32      ours: linear layers by the faster of torch's two libraries (rag/products.py)
    bfloat16     bfloat16=true of build_index.py
    int8         int8=true of build_index.py and evaluate.py (rag/int8.py)
    openvino     openvino=true of build_index.py (the extra), compiled beforehand

with the cosine of each vector to torch's, and for answers the share that is equal and the largest difference of
log p(y|x) where it is. Passages are made of random words, or the first of a file that build_index.py reads.
"""

import argparse
import copy
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
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
from benchmarks.sides import Generate, Side, as_published
from rag.encoders.opening import open_passage_encoder
from rag.encoders.reduced import in_precision
from rag.files import write_json
from rag.index.passage import Passage
from rag.index.readers import read_passages
from rag.int8 import to_int8
from rag.minilm import minilm
from rag.model import RagToken

PASSAGES, DOCS, QUESTIONS = 256, 5, 4


def in_turn(ways: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median CPU seconds of each way, after one call of each."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for call in ways.values():
        call()
    for _ in range(repeats):
        for name, call in ways.items():
            start = time.process_time()
            call()
            taken[name].append(time.process_time() - start)
    return {name: statistics.median(each) for name, each in taken.items()}


def embedding(passages: list[Passage], repeats: int) -> list[dict[str, Any]]:
    def encoder() -> Any:
        return open_passage_encoder(str(minilm())).eval()

    encoders = {"torch": as_published(encoder()), "float32": encoder()}
    for precision in ("bfloat16", "int8", *(["openvino"] if find_spec("openvino") else [])):
        encoders[precision] = in_precision(encoder(), precision)
    seconds = in_turn({name: lambda e=each: e.encode(passages) for name, each in encoders.items()}, repeats)
    vectors = {name: each.encode(passages) for name, each in encoders.items()}
    exact = vectors["torch"]
    rows = []
    for name, found in vectors.items():
        cosines = (found * exact).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(exact, axis=1)
        row = {"what": "passages", "way": name, "a second": len(passages) / seconds[name]}
        row |= {"times torch's": seconds["torch"] / seconds[name], "least cosine": float(cosines.min())}
        rows.append(row)
    return rows


def answers(repeats: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        side = Side(world.SIZES["base"], DOCS, QUESTIONS, 64, Path(folder))
        sides = {"torch": copy.copy(side), "float32": side, "int8": copy.copy(side)}
        for name in ("torch", "int8"):
            sides[name].generator = copy.copy(side.generator)
            sides[name].generator._modules = dict(side.generator._modules)
        sides["torch"].generator.model = as_published(side.generator.model)
        sides["int8"].generator.model = copy.deepcopy(side.generator.model)
        to_int8(sides["int8"].generator.model)
        kinds = RagToken, transformers.RagTokenForGeneration
        calls = {name: Generate(each, *kinds, beams=1).ours() for name, each in sides.items()}
        seconds = in_turn(calls, repeats)
        found = {name: [ranked[0] for ranked in call()] for name, call in calls.items()}
    rows = []
    for name, of_way in found.items():
        pairs = list(zip(of_way, found["torch"], strict=True))
        same = [abs(a.logprob - b.logprob) for a, b in pairs if a.tokens == b.tokens]
        row = {"what": "greedy answers", "way": name, "a second": QUESTIONS / seconds[name]}
        row |= {"times torch's": seconds["torch"] / seconds[name], "equal answers": len(same) / len(pairs)}
        rows.append(row | {"difference of log p": max(same, default=None)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reduced", description=(__doc__ or "").split(":")[0]
    )
    parser.add_argument("--passages", type=Path, help="a file of passages; default: of random words")
    parser.add_argument("--only", choices=("passages", "answers"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    given = parser.parse_args()
    pin_to_one_core()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    if given.passages is None:
        made = world.Text().passages(PASSAGES)
        passages = [Passage(str(row), *each) for row, each in enumerate(made)]
    else:
        passages = [each for each, _ in zip(read_passages(given.passages), range(PASSAGES), strict=False)]
    console = Console(width=120)
    asked = [f"{len(passages)} passages"] * (given.only != "answers")
    asked += [f"{QUESTIONS} answers"] * (given.only != "passages")
    console.print(f"{describe()}: {' and '.join(asked)}, some minutes", highlight=False)
    rows = [] if given.only == "answers" else embedding(passages, given.repeats)
    rows += [] if given.only == "passages" else answers(given.repeats)
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = Table(*names)
    for row in rows:
        values = [row.get(name, "") for name in names]
        table.add_row(*(f"{value:.5g}" if isinstance(value, float) else str(value) for value in values))
    console.print(table)
    if given.json:
        write_json(given.json, rows)


if __name__ == "__main__":
    main()
