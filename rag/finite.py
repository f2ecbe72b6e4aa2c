"""Weights that are numbers: a model of NaN or infinity answers nothing, and comparisons with NaN are all false."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from rag.errors import UserError
from rag.files import read_json


def not_finite(weights: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that holds NaN or infinity; None where there is none. Copies nothing."""
    for name, weight in weights.items():
        if weight.is_floating_point() and weight.numel():
            low, high = weight.detach().aminmax()  # NaN where any number is
            if not (torch.isfinite(low) and torch.isfinite(high)):
                return name
    return None


def check_finite(weights: Mapping[str, Tensor], path: str | Path) -> None:
    """UserError that names the file, among those of `path`, and the weight that is not finite.

    path: a file, a folder in Hugging Face's format, or a hub id.
    """
    if (name := not_finite(weights)) is not None:
        raise UserError(
            f"{_file_of(Path(path), name)} holds weights that are not finite ({name} has NaN or infinity): the "
            "training that wrote them has diverged; give another checkpoint, or train again with a lower learning rate"
        )


def _file_of(path: Path, name: str) -> Path:
    index = path / "model.safetensors.index.json"
    if index.is_file():
        return path / read_json(index).get("weight_map", {}).get(name, index.name)
    files = (path / each for each in ("model.safetensors", "pytorch_model.bin"))
    return next((file for file in files if file.is_file()), path)
