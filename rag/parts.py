"""What of a model is trained, where its weights go, and how the whole is made again from them.

The optimiser, the run folder and whatever reopens a run ask a model for its `trained_parts()` and its `description()`;
a model asks its retriever and its generator. Nobody looks for parts by the names of attributes or classes, so a part
that is written elsewhere is trained, saved and reopened like the project's own.
"""

import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from rag.errors import UserError
from rag.files import read_json, write_aside, write_json
from rag.fingerprints import described, digest
from rag.finite import check_finite
from rag.runs import INDEX, MODEL_FILE, mentions


@dataclass(frozen=True)
class TrainedPart:
    """A module with weights of its own, trained or frozen.

    file: where it is saved, relative to a run's model/.
    rate: whose learning rate it has: optimization.lr ("generator"), optimization.question_encoder_lr ("retriever") or
        optimization.passage_encoder_lr ("passages").
    faster: modules of it that learn at a multiple of that rate; the first that holds a weight counts.
    save: writes it to a path in a format of its own, which its description then reads; None: its state_dict is saved
        as safetensors, and loaded after the model was made from its description.
    """

    file: str
    module: nn.Module
    rate: Literal["generator", "retriever", "passages"] = "generator"
    save: Callable[[Path], None] | None = None
    faster: Sequence[tuple[nn.Module, float]] = ()


@runtime_checkable
class Recomputable(Protocol):
    """A part that can keep only each layer's input, and compute the rest again in the backward pass."""

    def recompute_layers(self) -> None:
        """From now on. Raises UserError where its model cannot."""
        ...


@runtime_checkable
class Trainable(Protocol):
    """What models, retrievers and generators offer to the optimiser, the run folder and reopening."""

    def trained_parts(self) -> Sequence[TrainedPart]:
        """Every module with weights; none for a retriever that learns nothing."""
        ...

    def description(self) -> dict[str, Any]:
        """How it is made again: a node for hydra.utils.instantiate, best written by `describe`."""
        ...


def describe(target: Callable[..., Any], **arguments: Any) -> dict[str, Any]:
    """The node that makes hydra.utils.instantiate call `target` (a class, function or classmethod) with `arguments`."""
    owner = getattr(target, "__self__", None)  # a classmethod's class
    if isinstance(owner, type):  # which may have inherited the method from a class of another module
        module, path = owner.__module__, f"{owner.__qualname__}.{target.__name__}"
    else:
        module, path = target.__module__, target.__qualname__
    return {"_target_": f"{_face_of(module, path.partition('.')[0])}.{path}", **arguments}


def _face_of(module: str, name: str) -> str:
    """The package of a module if others import `name` from there, so that files may move inside it; else the module."""
    package = module.rpartition(".")[0]
    return package if package and name in dir(sys.modules[package]) else module


def describe_partial(call: Callable[..., Any]) -> dict[str, Any]:
    """The node that makes hydra.utils.instantiate return `call` itself, functools.partial's arguments included."""
    arguments = {}
    while isinstance(call, functools.partial):
        arguments, call = call.keywords | arguments, call.func
    return describe(call, **arguments) | {"_partial_": True}


def recompute_layers(parts: Iterable[TrainedPart]) -> None:
    """Let every part that can trade time for memory; UserError where none can."""
    able = [part.module for part in parts if isinstance(part.module, Recomputable)]
    if not able:
        raise UserError(
            "gradient_checkpointing=true, but no part of this model can do it: leave that setting out"
        )
    for module in able:
        module.recompute_layers()


def check_parts(model: nn.Module, parts: Iterable[TrainedPart]) -> None:
    """UserError unless every weight of `model` that is to be trained belongs to one of its parts."""
    parts = list(parts)
    files = [part.file for part in parts]
    if repeated := sorted({file for file in files if files.count(file) > 1}):
        raise UserError(f"two trained parts are saved as {repeated[0]}: give each a file of its own")
    known = {id(weight) for part in parts for weight in part.module.parameters()}
    for name, weight in model.named_parameters():
        if weight.requires_grad and id(weight) not in known:
            raise UserError(
                f"the weight {name} asks for a gradient but is in none of the trained parts "
                f"({', '.join(files) or 'none'}): name its module in trained_parts(), or freeze it with "
                "requires_grad_(False)"
            )


def save_parts(parts: Iterable[TrainedPart], folder: Path) -> None:
    """Write each part to its file below `folder`."""
    for part in parts:
        if part.save is not None:
            part.save(folder / part.file)
        else:
            weights = {name: weight.contiguous() for name, weight in part.module.state_dict().items()}
            with write_aside(folder / part.file) as aside:
                save_file(weights, aside)


def load_parts(parts: Iterable[TrainedPart], folder: Path) -> None:
    """Read the weights of the parts that `save_parts` wrote as safetensors; the others are read by their description.

    Raises UserError where a file is missing, damaged, or of another shape.
    """
    for part in parts:
        if part.save is None:
            load_weights_of(part.module, folder / part.file)


def load_weights_of(module: nn.Module, file: Path) -> None:
    """Load a module's state_dict from safetensors; UserError where the file does not hold exactly that."""
    try:
        weights = load_file(file)
        module.load_state_dict(weights)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(
            f"{file} does not hold the weights of this {type(module).__name__} ({reason}): restore it, or train again"
        ) from error
    check_finite(weights, file)


def save_model(
    model: Trainable,
    folder: Path,
    run: Path,
    answers: bool = True,
    index: Path | None = None,
    n_docs: int = 1,
) -> None:
    """Write a model's parts and how it is made again into `folder`, which becomes `run`/model.

    answers: False for a bi-encoder, which finds passages. index: the folder that was searched in training.
    """
    save_parts(model.trained_parts(), folder)
    description = model.description()
    if not mentions(description, INDEX):
        index = None
    saved = {
        "model": description,
        "answers": answers,
        "index": None if index is None else str(index.resolve()),
        "index_from_run": None if index is None else os.path.relpath(index.resolve(), run.resolve()),
        "n_docs": n_docs,
        "files": described(folder),
    }
    write_json(folder / MODEL_FILE, saved | {"checksum": digest(saved)})


def read_settings(of: type, file: Path, more: Sequence[str] = ()) -> dict[str, Any]:
    """The settings that were saved beside a model, where that file is there: parameters of the class `of`, and `more`.

    Raises UserError where it is damaged.
    """
    if not file.is_file():
        return {}
    saved = read_json(file)
    if strange := saved.keys() - inspect.signature(of).parameters.keys() - {*more}:
        raise UserError(
            f"{file} holds {sorted(strange)[0]!r}, which is no setting of a {of.__name__}: restore it, or remove it to "
            "take the usual settings"
        )
    return saved
