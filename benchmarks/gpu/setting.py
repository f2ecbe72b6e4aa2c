"""Where the parts run, how long they may, what card it is, and where their results go."""

import json
import time
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.table import RESULTS
from benchmarks.machine import gemm_peak

# By a part of the name that the driver gives, the more special first: dense bfloat16 FLOP/s without sparsity, bytes/s.
# From the makers' data sheets; the V100's are float16's.
CARDS = (
    ("B200", 2250e12, 8.0e12),
    ("H200", 989e12, 4.8e12),
    ("H100 PCIe", 756e12, 2.0e12),
    ("H100 NVL", 835e12, 3.9e12),
    ("H100", 989e12, 3.35e12),
    ("A100-SXM4-40GB", 312e12, 1.555e12),
    ("A100-PCIE-40GB", 312e12, 1.555e12),
    ("A100", 312e12, 2.0e12),
    ("L40S", 362e12, 0.864e12),
    ("L4", 121e12, 0.3e12),
    ("A10", 125e12, 0.6e12),
    ("RTX A6000", 154.8e12, 0.768e12),
    ("RTX 4090", 165.2e12, 1.008e12),
    ("RTX 3090", 71e12, 0.936e12),
    ("V100", 125e12, 0.9e12),
)


def card_peak(name: str) -> float | None:
    """The card's bfloat16 FLOP a second by its data sheet; None for one that is not in CARDS."""
    return next((flop for part, flop, _ in CARDS if part in name), None)


@dataclass
class Setting:
    """One part's run. dry: sizes that take seconds, to see that everything runs. seconds: the part's time limit."""

    part: str
    device: str
    dry: bool
    out: Path
    prepared: Path
    seconds: float
    began: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds until the limit, less some to write what was found."""
        return self.seconds - 5 - (time.monotonic() - self.began)

    @property
    def memory(self) -> int:
        """Bytes of the card."""
        return torch.cuda.get_device_properties(0).total_memory if self.device == "cuda" else 1 << 30

    def peaks(self) -> tuple[float, float]:
        """bfloat16 FLOP a second: by the card's data sheet (as measured, for a card without one), and as measured."""
        n, repeats = (8192, 10) if self.device == "cuda" else (256, 2)
        measured = gemm_peak(n, repeats, self.device, torch.bfloat16)
        name = torch.cuda.get_device_name() if self.device == "cuda" else ""
        return card_peak(name) or measured, measured

    def tell(
        self,
        what: str,
        metrics: dict[str, Any],
        settings: dict[str, Any] | None = None,
        aim: str = "",
        reached: bool | None = None,
        must: bool = False,
    ) -> None:
        """Write one result at once; what comes after may be stopped.

        reached: whether the aim is; None without one. must: it has to be on every machine and with every size. Other
        aims are a real card's, and say nothing about a dry run.
        """
        if self.dry and not must:
            aim, reached = "", None
        # JSON has no NaN
        odd = {
            name: str(value)
            for name, value in metrics.items()
            if isinstance(value, float) and not isfinite(value)
        }
        metrics = metrics | odd
        row = {"what": what, "settings": settings or {}, "metrics": metrics, "aim": aim, "reached": reached}
        self._write(row)

    def skip(self, what: str, reason: str) -> None:
        self._write({"what": what, "skipped": reason})

    def _write(self, row: dict[str, Any]) -> None:
        line = json.dumps({"part": self.part} | row)
        with open(self.out / RESULTS, "a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)


def release() -> None:
    """Give the card's memory that nothing uses any more back."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
