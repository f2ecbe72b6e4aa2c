"""Where our own time goes: python -m benchmarks.profile [--only token_train] [--shapes 5x4]

The share of matrix products in one call, by torch.profiler, and the FLOP a second they reach beside what a large matrix
product reaches on the same core.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import compare, world  # sets the environment before torch is imported

# isort: split
import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from benchmarks.machine import count_flop, describe, gemm_peak, pin_to_one_core, timed
from rag.files import write_json

PRODUCTS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "mkldnn::_linear_pointwise"}
ATTENTION = "scaled_dot_product"  # products and softmax in one


@dataclass(frozen=True)
class Breakdown:
    """One call: CPU seconds, the shares of it by kind of operation, and FLOP/s."""

    what: str
    seconds: float
    in_products: float  # share of time
    in_attention: float
    flop: int  # of matrix products, attention's included
    flop_per_second: float  # over the whole call
    flop_per_second_in_products: float
    machine_flop_per_second: float
    largest: list[tuple[str, float]]  # the operations that take most, with their share


def breakdown(what: str, call: Callable[[], Any], peak: float) -> Breakdown:
    call()
    seconds = min(timed(call) for _ in range(3))
    flop = count_flop(call)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        call()
    self_time = {event.key: event.self_cpu_time_total for event in profiled.key_averages()}
    total = sum(self_time.values())
    products = sum(time for name, time in self_time.items() if name in PRODUCTS)
    attention = sum(time for name, time in self_time.items() if ATTENTION in name)
    largest = sorted(((name, time / total) for name, time in self_time.items()), key=lambda pair: -pair[1])
    share = (products + attention) / total
    return Breakdown(
        what,
        seconds,
        products / total,
        attention / total,
        flop,
        flop / seconds,
        flop / (seconds * share),
        peak,
        largest[:12],
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parser.add_argument("--size", default="small", choices=list(world.SIZES))
    parser.add_argument("--only", default=",".join(what for what in compare.WHAT if what != "glue"))
    parser.add_argument("--shapes", default="5x4", help="KxB")
    parser.add_argument("--passages", type=int, default=compare.PASSAGES)
    parser.add_argument("--json", type=Path, help="write the measurements to this file")
    given = parser.parse_args()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    pin_to_one_core()
    console = Console(width=120)
    console.print(describe())
    peak = gemm_peak()
    console.print(f"a product of 2,048 x 2,048 matrices: {peak / 1e9:.0f} GFLOP/s")
    docs, questions = map(int, given.shapes.split("x"))
    results = []
    with tempfile.TemporaryDirectory() as folder:
        side = compare.Side(world.SIZES[given.size], docs, questions, given.passages, Path(folder))
        for what in given.only.split(","):
            results.append(breakdown(what, compare.task(what, side).ours(), peak))
    shown = Table(
        "what", "s", "products", "attention", "GFLOP", "GFLOP/s", "in products", "of the peak", "largest"
    )
    for one in results:
        shown.add_row(
            one.what,
            f"{one.seconds:.3f}",
            f"{one.in_products:.0%}",
            f"{one.in_attention:.0%}",
            f"{one.flop / 1e9:.1f}",
            f"{one.flop_per_second / 1e9:.0f}",
            f"{one.flop_per_second_in_products / 1e9:.0f}",
            f"{one.flop_per_second / peak:.0%}",
            "\n".join(f"{name} {share:.1%}" for name, share in one.largest),
        )
    console.print(shown)
    if given.json:
        write_json(given.json, [asdict(one) for one in results])


if __name__ == "__main__":
    main()
