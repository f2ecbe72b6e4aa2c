"""The machine that is measured: what it is, one core of it, and its own limit of matrix products."""

import math
import os
import platform
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


def pin_to_one_core() -> None:
    """Run on one core alone, the last that this process may use."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def describe() -> str:
    """Date, commit and machine, for the head of a table."""
    root = Path(__file__).resolve().parents[1]
    commit = subprocess.run(
        ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        text=True,
    ).stdout.strip()
    if torch.cuda.is_available():
        machine = torch.cuda.get_device_name()
    else:
        machine = f"one core of {os.cpu_count()}, {platform.machine()}"
    return f"{datetime.now(UTC):%Y-%m-%d}, commit {commit or 'unknown'}, {machine}"


def gemm_peak(
    n: int = 2048, repeats: int = 5, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> float:
    """FLOP a second of an n × n × n matrix product, the best of some."""
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(repeats):
        seconds = timed(lambda: a @ b, device)
        best = max(best, 2 * n**3 / seconds)
    return best


def timed(call: Callable[[], Any], device: str = "cpu") -> float:
    """Seconds of one call: CPU time on a CPU, time until the device is done elsewhere."""
    if device == "cpu":
        start = time.process_time()
        call()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def copy_bandwidth(device: str = "cpu") -> float:
    """Bytes a second read and written while a large tensor is copied, the best of some."""
    source = torch.empty((1 << 32) if device == "cuda" else (1 << 26), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return max(2 * source.numel() / timed(lambda: target.copy_(source), device) for _ in range(5))


def count_flop(call: Callable[[], Any]) -> int:
    """FLOP of the matrix products of one call, attention's included (torch leaves out its kernels for CPUs)."""

    def forward(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return sdpa_flop_count(query, key, value)

    def backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return sdpa_backward_flop_count(gradient, query, key, value)

    def linear(x: Any, weight: Any, *_: Any, **__: Any) -> int:
        return 2 * math.prod(x) * weight[0]

    kernels = {
        torch.ops.mkldnn._linear_pointwise: linear,  # rag/products.py
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: forward,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
    with FlopCounterMode(display=False, custom_mapping=kernels) as counter:
        call()
    return counter.get_total_flops()
