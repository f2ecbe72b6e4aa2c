"""What a run of train.py will do, in one line and as a table (info=true), before it does it."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from rich.table import Table
from torch import nn

from rag.files import read_json
from rag.model import RagModel
from rag.processes import cpu_has_bfloat16
from rag.terminal import Terminal

# Bytes for each trained parameter in float32: itself, its gradient and AdamW's two moments; a frozen one has none.
_TRAINED_BYTES, _FROZEN_BYTES = 16, 4
_MEMORY_OF = "weights, gradients, AdamW; activations on top"
# Parameters of the paper's models, for an estimate before they are downloaded.
_PUBLISHED = {
    "facebook/bart-large": 406_291_456,
    "facebook/bart-base": 139_420_416,
    "facebook/dpr-question_encoder-single-nq-base": 108_891_648,
    "facebook/dpr-question_encoder-multiset-base": 108_891_648,
}


def device(trainer: pl.Trainer) -> str:
    """ "2 × cuda (bf16-mixed)": what a run computes on."""
    count = trainer.world_size
    kind = trainer.strategy.root_device.type
    precision = "" if trainer.precision == "32-true" else f" ({trainer.precision})"
    return f"{f'{count} × ' if count > 1 else ''}{kind}{precision}"


def first_line(name: str, trainer: pl.Trainer, datamodule: Any, folder: Path, resumable: bool) -> str:
    """What is going to happen, on what device, for about how long where an earlier run tells, and where it will be."""
    doing = "resuming" if resumable else "training"
    batch = examples_a_step(trainer, datamodule)
    of = f" of {batch:,} examples" if batch else ""
    duration = expected_duration(folder, trainer.max_steps)
    about = f", about {duration} as last time" if duration else ""
    return f"{doing} {name}: {trainer.max_steps:,} steps{of} on {device(trainer)}{about}; results in {folder}"


def slow_precision(trainer: pl.Trainer) -> str | None:
    """A sentence where a CPU without bfloat16 arithmetic is asked for it; None otherwise, or if torch does not know."""
    on_cpu = trainer.strategy.root_device.type == "cpu"
    if not on_cpu or not str(trainer.precision).startswith("bf16") or cpu_has_bfloat16() is not False:
        return None
    return (
        f"trainer.precision={trainer.precision}: this CPU has no bfloat16 arithmetic and emulates it, several times "
        "slower than trainer.precision=32-true"
    )


def examples_a_step(trainer: pl.Trainer, datamodule: Any) -> int:
    """Examples an optimiser's step, over all ranks and accumulated batches; 0 if the data module has no batch size."""
    return datamodule.batch_size * trainer.world_size * trainer.accumulate_grad_batches


def expected_duration(folder: Path, steps: int) -> str | None:
    """By the finished run that is to be replaced, where there is one: "3 min"."""
    if not (folder / "result.json").exists():
        return None
    before = read_json(folder / "result.json")
    if not before.get("steps") or before.get("training_seconds") is None:
        return None
    seconds = steps * before["training_seconds"] / before["steps"]
    return f"{max(seconds, 1):,.0f} s" if seconds < 90 else f"{seconds / 60:,.0f} min"


def parameters(module: nn.Module) -> tuple[int, int]:
    """Numbers of trained and of frozen parameters, each shared one counted once."""
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return trained, sum(p.numel() for p in module.parameters()) - trained


def dtypes(module: nn.Module) -> str:
    """The types of a part's parameters: "float32", or all of them where they differ."""
    return " and ".join(sorted({str(p.dtype).removeprefix("torch.") for p in module.parameters()}))


def memory(module: nn.Module) -> int:
    """Bytes of weights and, of those that are trained, gradients and AdamW's moments; activations come on top."""
    return sum(p.numel() * p.element_size() * (4 if p.requires_grad else 1) for p in module.parameters())


def describe(
    name: str, settings: dict[str, Any], module: Any, datamodule: Any, trainer: pl.Trainer
) -> list[tuple[str, str]]:
    """(what, value) rows of the summary of an experiment.

    settings: what `settings_shown` takes of the configuration of the run.
    """
    model = module.model
    rows = [("experiment", name), ("model", type(model).__name__)]
    if datamodule.task is not None:
        rows.append(("task", type(datamodule.task).__name__))
    rows += [(what, f"{count:,}") for what, count in datamodule.sizes().items()]
    for part in model.trained_parts():
        trained, frozen = parameters(part.module)
        state = (
            "trained" if trained and not frozen else "frozen" if frozen and not trained else "partly frozen"
        )
        name_of_part = part.file.removesuffix(".safetensors").replace("_", " ")
        rows.append((name_of_part, f"{trained + frozen:,} parameters, {dtypes(part.module)}, {state}"))
    trained, frozen = parameters(model)
    rows.append(("parameters", f"{trained:,} trained, {frozen:,} frozen"))
    if isinstance(model, RagModel) and model.retriever is not None:
        index = model.retriever.index
        dimensions = f" of {index.dim} dimensions" if index.dim else ""
        searches = f" ({kind})" if (kind := model.retriever.kind) else ""
        rows += [
            ("retriever", f"{type(model.retriever).__name__}{searches}"),
            ("K", f"{model.n_docs} passages per question"),
            ("index", f"{len(index):,} passages{dimensions}, {index.manifest.factory}"),
            ("index folder", str(index.folder)),
        ]
    rows += of_passages(settings)
    ranks, accumulated = trainer.world_size, trainer.accumulate_grad_batches
    batch = examples_a_step(trainer, datamodule)
    shares = f" × {ranks} ranks" if ranks > 1 else ""
    shares += f" × {accumulated} accumulated" if accumulated > 1 else ""
    rows.append(("batch", f"{batch:,} examples per step ({batch // ranks // accumulated:,}{shares})"))
    rows += [
        ("steps", f"{trainer.max_steps:,}"),
        ("learning rate", rates(settings["optimization"])),
        ("device", device(trainer)),
        ("memory", f"{memory(model) / 1e9:,.2f} GB per device: {_MEMORY_OF}"),
        ("best checkpoint", best(settings)),
        ("results", str(settings["paths"]["run"])),
    ]
    return rows


def describe_unopened(settings: dict[str, Any], missing: list[Path]) -> list[tuple[str, str]]:
    """`describe` by the configuration alone, for an experiment whose data, index or start is not there yet."""
    model = settings["module"]["model"]
    model = model.get("model", model) if isinstance(model, dict) else {}  # a classifier's is inside
    retriever, data, trainer = model.get("retriever"), settings["datamodule"], settings["trainer"]
    rows = [("experiment", settings["name"])]
    rows += [(name, class_of(node)) for name, node in (("model", model), ("task", data.get("task"))) if node]
    parts = {"question encoder": (retriever or {}).get("question_encoder")}
    parts["generator"] = (model.get("generator") or {}).get("path")
    parts = {part: name for part, name in parts.items() if isinstance(name, str)}
    kept_as = {"generator": (model.get("generator") or {}).get("dtype", "float32")}
    rows += [(part, f"{name}, {kept_as.get(part, 'float32')}") for part, name in parts.items()]
    if retriever is not None:
        later = settings.get("test_n_docs") or settings["n_docs"]
        asked = f", {later} in evaluation" if later != settings["n_docs"] else ""
        inside = [
            class_of(node) for node in retriever.values() if isinstance(node, dict) and "_target_" in node
        ]
        rows += [
            ("retriever", class_of(retriever) + (f" ({', '.join(inside)})" if inside else "")),
            ("K", f"{settings['n_docs']} passages per question{asked}"),
            ("index", settings["index"]["type"].get("factory", class_of(settings["index"]["type"]))),
            ("index folder", settings["index"]["path"]),
        ]
    rows += of_passages(settings)
    accumulated = trainer.get("accumulate_grad_batches", 1)
    shares = f" × {accumulated} accumulated" if accumulated > 1 else ""
    rows += [
        ("batch", f"{data['batch_size']:,} examples per device{shares}"),
        ("steps", f"{trainer['max_steps']:,}"),
        ("learning rate", rates(settings["optimization"])),
    ]
    if parts and all(name in _PUBLISHED for name in parts.values()):
        frozen = {"question encoder"} if retriever and not retriever.get("trainable", True) else set()
        bytes_of = {part: _FROZEN_BYTES if part in frozen else _TRAINED_BYTES for part in parts}
        total = sum(_PUBLISHED[name] * bytes_of[part] for part, name in parts.items())
        rows.append(("memory", f"{total / 1e9:,.1f} GB per device: {_MEMORY_OF}"))
    rows += [
        ("best checkpoint", best(settings)),
        *(
            (f"the paper: {cell['metric']}", f"{cell['value']} ({cell['split']})")
            for cell in settings["paper"] or ()
        ),
        ("results", settings["paths"]["run"]),
        ("not there yet", "\n".join(map(str, missing))),
    ]
    return rows


def settings_shown(settings: dict[str, Any]) -> dict[str, Any]:
    """Those of a run's composed configuration, as plain containers, that the summary shows as they are."""
    shown = (
        "optimization",
        "monitor",
        "monitor_mode",
        "paths",
        "refresh",
        "refresh_in",
        "module",
        "datamodule",
    )
    return {key: settings[key] for key in shown}


def of_passages(settings: dict[str, Any]) -> list[tuple[str, str]]:
    """What is searched again and again while training goes on, and how; nothing where that stays as it is."""
    model, data = settings["module"].get("model") or {}, settings["datamodule"]
    model = model.get("model", model)  # a classifier's is inside
    rows = []
    if overfetch := (model.get("retriever") or {}).get("overfetch"):
        rows.append(
            ("overfetch", f"{overfetch} passages from the index, of which K are chosen by fresh vectors")
        )
    if settings["refresh"] is not None:
        where = {"foreground": "while training waits", "background": "in the background"}
        where = where.get(settings["refresh_in"], settings["refresh_in"])
        rows.append(("refresh", f"the index is embedded again {schedule(settings['refresh'])}, {where}"))
    if data.get("remine") is not None:
        how = {name: value for name, value in (data.get("remining") or {}).items() if name != "_target_"}
        given = f" ({', '.join(f'{name} {value}' for name, value in how.items())})" if how else ""
        rows.append(("remine", f"hard negatives are mined {schedule(data['remine'])}{given}"))
    return rows


def schedule(given: Any) -> str:
    """ "every 500 steps", "after the steps 0-1000:500,1000-:1000"."""
    return f"every {given:,} steps" if isinstance(given, int) else f"after the steps {given}"


def class_of(node: dict[str, Any]) -> str:
    """ "RagSequence" of {"_target_": "rag.model.RagSequence"}, "BM25" of "rag.retrievers.BM25.build"."""
    *before, last = node["_target_"].split(".")
    return before[-1] if before and before[-1][:1].isupper() else last  # a class's own way to be made


def best(settings: dict[str, Any]) -> str:
    return f"by {settings['monitor']} ({settings['monitor_mode']})" if settings["monitor"] else "the last"


def rates(optimization: dict[str, Any]) -> str:
    """Learning rates and their schedule."""
    text = f"{optimization['lr']:g}"
    if optimization.get("question_encoder_lr") is not None:
        text += f", question encoder {optimization['question_encoder_lr']:g}"
    if optimization.get("passage_encoder_lr") is not None:
        text += f", passage encoder {optimization['passage_encoder_lr']:g}"
    return f"{text}; {optimization['schedule']}, {optimization['warmup_steps']:,} steps of warm-up"


def show(rows: list[tuple[str, str]]) -> None:
    """Print the rows as a table."""
    table = Table(show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for what, value in rows:
        table.add_row(what, value)
    Terminal().print(table)
