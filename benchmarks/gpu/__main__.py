"""One part of scripts/gpu_check.sh: python -m benchmarks.gpu PART --out FOLDER [--dry] [--seconds N]

PART is machine, a, b, c, d, e, f, table or prepare. --dry: on the CPU, with sizes that take seconds.
"""

import argparse
import os
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

PARTS = {
    "machine": "machine",
    "a": "agreement",
    "b": "training",
    "c": "decoding",
    "d": "embedding",
    "e": "searching",
    "f": "miniwiki",
}
NEEDED = {
    "torch": (2, 11),
    "transformers": (5, 17),
    "pytorch_lightning": (2, 5),
    "pyarrow": (19,),
    "rich": (13,),
}
ALSO_NEEDED = ("jaxtyping",)  # pure Python, with wadler_lindig: its wheels can be copied anywhere


def missing() -> list[str]:
    """What the parts need and this machine lacks."""
    from importlib.metadata import version

    lacking = []
    for name, least in NEEDED.items():
        text = ".".join(map(str, least))
        if find_spec(name) is None:
            lacking.append(f"{name} ≥ {text} is not installed")
            continue
        installed = version(name.replace("_", "-"))
        numbers = tuple(int(part) for part in installed.split("+")[0].split(".")[:2] if part.isdigit())
        if numbers < least:
            lacking.append(f"{name} is {installed}, not ≥ {text}")
    return lacking + [f"{name} is not installed" for name in ALSO_NEEDED if find_spec(name) is None]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=(__doc__ or "").split(":")[0]
    )
    parser.add_argument("part", choices=[*PARTS, "table", "prepare"])
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu_check"), help="where results go")
    parser.add_argument("--prepared", type=Path, default=Path("outputs/gpu_check/prepared"))
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--seconds", type=float, default=600, help="the part's limit")
    parser.add_argument("--command", default="scripts/gpu_check.sh", help="for the table")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.dry:
        from benchmarks.gpu.bare import hide

        hide()
    if given.part == "table":
        from benchmarks.gpu.table import render

        return render(given.out, given.command)
    if lacking := missing():
        sys.exit(f"error: {'; '.join(lacking)}: install what is missing")
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if given.part == "prepare":
        from benchmarks.gpu.miniwiki import prepare

        return prepare(given.prepared)
    if not given.dry and not torch.cuda.is_available():
        sys.exit(
            "error: this machine has no CUDA device; `scripts/gpu_check.sh dry` runs every part on the CPU"
        )
    if given.dry:
        torch.set_num_threads(1)
    from benchmarks.gpu.setting import Setting

    device = "cpu" if given.dry else "cuda"
    setting = Setting(given.part, device, given.dry, given.out, given.prepared, given.seconds)
    return import_module(f"benchmarks.gpu.{PARTS[given.part]}").run(setting)


if __name__ == "__main__":
    sys.exit(main())
