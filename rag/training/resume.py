"""Lightning's checkpoints, looked at before a run goes on from one: ckpt_path=…, or a run's own last.ckpt."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError  # what torch.load refuses with; nothing is unpickled here
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io import TorchCheckpointIO

from rag.errors import UserError
from rag.files import write_aside
from rag.finite import check_finite
from rag.safe_text import say

GIVE = "give the last.ckpt of a run of train.py of the same model"


LAST, BEFORE = "last.ckpt", "last-before.ckpt"


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints that nobody meets half of: written beside their place and renamed; `last.ckpt` leaves the one before.

    Lightning writes to the system's folder for temporary files and moves from there, which copies where that is another
    file system: a full disk, or a kill, then leaves half of one and nothing else.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        with write_aside(path) as aside:
            torch.save(checkpoint, aside)
            if path.name == LAST and path.exists():
                link = path.with_name(f".{BEFORE}.{os.getpid()}.partial")
                link.unlink(missing_ok=True)
                try:
                    os.link(path, link)
                except OSError:  # a file system without links
                    shutil.copyfile(path, link)
                link.replace(path.with_name(BEFORE))
                link.unlink(missing_ok=True)  # a link to the same file: renaming it did nothing


def resume_from(folder: Path, check: Callable[[Path], None]) -> Path:
    """The newest checkpoint of an interrupted run that training can go on from, as `check` finds.

    Where last.ckpt is damaged, the one before it, which is said. Raises UserError where neither will do.
    """
    last, before = folder / LAST, folder / BEFORE
    try:
        check(last)
    except UserError as error:
        if not before.exists():
            raise
        check(before)
        say(f"{error}; resuming from the one before it, {before}")
        return before
    return last


def read_checkpoint(path: str | Path) -> Any:
    """What a checkpoint holds, mapped and not read; None where it is none or is cut short."""
    try:
        return torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except (OSError, RuntimeError, UnpicklingError, EOFError, ValueError):
        return None


def check_checkpoint(path: str | Path, module: pl.LightningModule, max_steps: int | None = None) -> None:
    """UserError unless training can go on from the file.

    That is: a file of tensors and plain containers with an optimiser's state, of this very model and what is trained
    of it, whose weights are finite, and which stands before `max_steps`, where that matters.
    """
    if (held := read_checkpoint(path)) is None:  # only names and shapes are looked at, and the weights once
        raise UserError(f"{path} is not a checkpoint of train.py, or is cut short: {GIVE}")
    if not isinstance(held, dict) or not {"state_dict", "global_step"} <= held.keys():
        raise UserError(f"{path} holds tensors but is not a checkpoint of train.py: {GIVE}")
    if not held.get("optimizer_states"):
        raise UserError(
            f"{path} holds weights alone, without the optimizer's state that resuming needs: give the last.ckpt "
            "of that run, which an interrupted training leaves"
        )
    expected, weights = module.state_dict(), held["state_dict"]
    other = sorted(expected.keys() ^ weights.keys())
    other = other or sorted(name for name in expected if expected[name].shape != weights[name].shape)
    if other:
        raise UserError(
            f"{path} is of another model than this run trains ({other[0]} differs, the first of {len(other)} weights): "
            f"{GIVE}"
        )
    trained = sum(weight.requires_grad for weight in module.parameters())
    known = sum(len(group["params"]) for group in held["optimizer_states"][0]["param_groups"])
    if trained != known:
        raise UserError(
            f"{path} is of a run that trained {known} of the model's weights, and this one trains {trained}: {GIVE}, "
            "with the same parts frozen"
        )
    check_finite(weights, path)
    if max_steps is not None and held["global_step"] >= max_steps:
        raise UserError(
            f"{path} was saved after step {held['global_step']:,}, and this run ends at step {max_steps:,} "
            "(trainer.max_steps): give more steps, or an earlier checkpoint"
        )
