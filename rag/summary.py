"""What a run of train.py will do, in one line and as a table (info=true), before it does it."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from rich.console import Console
from rich.table import Table
from torch import nn

from rag.files import read_json

# Bytes for each trained parameter in float32: itself, its gradient and AdamW's two moments; a frozen one has none.
_TRAINED_BYTES, _FROZEN_BYTES = 16, 4


def device(trainer: pl.Trainer) -> str:
    """ "2 × cuda (bf16-mixed)": what a run computes on."""
    count = trainer.world_size
    kind = trainer.strategy.root_device.type
    precision = "" if trainer.precision == "32-true" else f" ({trainer.precision})"
    return f"{f'{count} × ' if count > 1 else ''}{kind}{precision}"


def first_line(name: str, trainer: pl.Trainer, datamodule: Any, folder: Path, resumable: bool) -> str:
    """What is going to happen, on what device, for about how long where an earlier run tells, and where it will be."""
    doing = "going on with" if resumable else "training"
    batch = examples_a_step(trainer, datamodule)
    of = f" of {batch:,} examples" if batch else ""
    duration = expected_duration(folder, trainer.max_steps)
    about = f", about {duration} as last time" if duration else ""
    return f"{doing} {name}: {trainer.max_steps:,} steps{of} on {device(trainer)}{about}; results in {folder}"


def examples_a_step(trainer: pl.Trainer, datamodule: Any) -> int:
    """Examples an optimiser's step, over all ranks and accumulated batches; 0 if the data module has no batch size."""
    return getattr(datamodule, "batch_size", 0) * trainer.world_size * trainer.accumulate_grad_batches


def expected_duration(folder: Path, steps: int) -> str | None:
    """By the finished run that is to be replaced, where there is one: "3 min"."""
    if not (folder / "result.json").exists():
        return None
    before = read_json(folder / "result.json")
    if not before.get("steps") or before.get("training_seconds") is None:
        return None
    seconds = steps * before["training_seconds"] / before["steps"]
    return f"{max(seconds, 1):,.0f} s" if seconds < 90 else f"{seconds / 60:,.0f} min"


def parts(model: nn.Module) -> dict[str, nn.Module]:
    """The encoders, generator, … that a model is made of, those of its retriever included."""
    found = {}
    for name, part in model.named_children():
        found |= parts(part) if name == "retriever" else {name: part}
    return found


def parameters(module: nn.Module) -> tuple[int, int]:
    """Numbers of trained and of frozen parameters, each shared one counted once."""
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return trained, sum(p.numel() for p in module.parameters()) - trained


def memory(module: nn.Module) -> int:
    """Bytes of weights, gradients and AdamW's moments in float32; activations come on top."""
    trained, frozen = parameters(module)
    return trained * _TRAINED_BYTES + frozen * _FROZEN_BYTES


def describe(
    name: str, settings: dict[str, Any], module: Any, datamodule: Any, trainer: pl.Trainer
) -> list[tuple[str, str]]:
    """(what, value) rows of the summary of an experiment.

    settings: the composed configuration of the run, as plain containers.
    """
    model = module.model
    rows = [("experiment", name), ("model", type(model).__name__)]
    if hasattr(datamodule, "task"):
        rows.append(("task", type(datamodule.task).__name__))
    rows += [(what, f"{count:,}") for what, count in datamodule.sizes().items()]
    for part, layers in parts(model).items():
        trained, frozen = parameters(layers)
        state = (
            "trained" if trained and not frozen else "frozen" if frozen and not trained else "partly frozen"
        )
        rows.append((part.replace("_", " "), f"{trained + frozen:,} parameters, {state}"))
    trained, frozen = parameters(model)
    rows.append(("parameters", f"{trained:,} trained, {frozen:,} frozen"))
    index = getattr(getattr(model, "retriever", None), "index", None)
    if index is not None:
        rows += [
            ("K", f"{model.n_docs} passages a question"),
            ("index", f"{len(index):,} passages of {index.dim} dimensions, {index.manifest.factory}"),
            ("index folder", str(index.folder)),
        ]
    ranks, accumulated = trainer.world_size, trainer.accumulate_grad_batches
    batch = examples_a_step(trainer, datamodule)
    shares = f" × {ranks} ranks" if ranks > 1 else ""
    shares += f" × {accumulated} accumulated" if accumulated > 1 else ""
    rows.append(("batch", f"{batch:,} examples a step ({batch // ranks // accumulated:,}{shares})"))
    best = f"by {settings['monitor']} ({settings['monitor_mode']})" if settings["monitor"] else "the last"
    optimization = settings["optimization"]
    rates = f"{optimization['lr']:g}"
    if optimization.get("question_encoder_lr") is not None:
        rates += f", question encoder {optimization['question_encoder_lr']:g}"
    rows += [
        ("steps", f"{trainer.max_steps:,}"),
        (
            "learning rate",
            f"{rates}; {optimization['schedule']}, {optimization['warmup_steps']:,} steps of warm-up",
        ),
        ("device", device(trainer)),
        ("memory", f"{memory(model) / 1e9:,.2f} GB a device: weights, gradients, AdamW; activations on top"),
        ("best checkpoint", best),
        ("results", str(settings["paths"]["run"])),
    ]
    return rows


def show(rows: list[tuple[str, str]]) -> None:
    """Print the rows as a table."""
    table = Table(show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for what, value in rows:
        table.add_row(what, value)
    Console().print(table)
