"""Opening what the scripts left: a run folder of train.py, or one of evaluate.py, by its own settings."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from rag import reopen
from rag.checkpoint_config import from_checkpoint
from rag.compose import compose_config
from rag.decoding.settings import Decoding
from rag.errors import UserError
from rag.files import read_json
from rag.metrics.record import Record, records_of
from rag.model import RagModel
from rag.safe_text import say
from rag.saved_model import load_config
from rag.tasks.example import Example
from rag.training.questions import sample


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation: its settings (evaluate.py's), result.json and predictions.jsonl."""

    folder: Path
    config: DictConfig
    result: dict[str, Any]
    predictions: list[dict[str, Any]]

    @cached_property
    def records(self) -> list[Record]:
        """What was measured."""
        return records_of(self.result)

    @property
    def name(self) -> str:
        """The name of the run that was evaluated."""
        return Path(self.config.checkpoint).name

    @classmethod
    def open(cls, run: str | Path) -> "Evaluation":
        """The evaluation in the folder `run`, or the latest of the trained run in that folder.

        Says which where there are several. Raises UserError where there is none.
        """
        folder = find_evaluation(Path(run))
        with open(folder / "predictions.jsonl", encoding="utf-8") as file:
            predictions = [json.loads(line) for line in file]
        return cls(folder, saved(folder), read_json(folder / "result.json"), predictions)


def find_evaluation(run: Path) -> Path:
    """`run` itself, the latest evaluation inside it or, as the demo has it, beside it under evaluation/."""
    if (run / "predictions.jsonl").exists():
        return run
    beside = run.parent / "evaluation" / run.name
    folders = [f.parent for f in sorted(run.glob("evaluation/*/predictions.jsonl"))]
    folders += [beside] if (beside / "predictions.jsonl").exists() else []
    finished = [folder for folder in folders if (folder / "result.json").exists()]
    if finished:
        latest = max(finished, key=lambda folder: (folder / "result.json").stat().st_mtime_ns)
        if len(finished) > 1:
            others = " or ".join(f"run={folder}" for folder in finished if folder != latest)
            say(
                f"{run} has {len(finished)} evaluations: using {latest}, the latest; for another, give {others}"
            )
        return latest
    if not run.is_dir():
        raise UserError(f"run={run} does not exist: give a folder that train.py or evaluate.py left")
    raise UserError(f"{run} has no finished evaluation: python evaluate.py checkpoint={run} makes one")


def settings(run: str | Path) -> DictConfig:
    """evaluate.py's settings for a trained run, or those that an evaluation was made with."""
    run = Path(run)
    if (run / "predictions.jsonl").exists():
        return saved(run)
    cfg = compose_config("evaluate", [])
    cfg.checkpoint = str(run)
    return from_checkpoint(cfg, [])


def saved(folder: Path) -> DictConfig:
    return load_config(folder / "config.yaml")


def open_model(config: DictConfig) -> tuple[RagModel, Decoding]:
    """The trained model, in evaluation mode, and how it is decoded."""
    return reopen.open_model(config.module), instantiate(config.decoding)


def open_examples(config: DictConfig) -> list[Example]:
    """The questions that are evaluated: `limit` of `split`."""
    return sample(instantiate(config.task).examples(config.split), config.limit)
