"""What a command asks: a run, checkpoint=RUN, or a folder, documents=FOLDER; without waiting for torch."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from rag.compose import key_of
from rag.errors import UserError
from rag.files import hidden_beside
from rag.runs import ANSWERABILITY_FILE

DOUBT = ("abstain", "answerability", "precision")  # settings of rag/ask/doubt.py


def about_documents(overrides: Sequence[str]) -> bool:
    """Whether a command asks about documents=FOLDER (configs/documents.yaml), not a run alone (configs/ask.yaml)."""
    return any(key_of(each) == "documents" for each in overrides)


def check_documents(folder: str) -> None:
    """UserError for documents that are not there."""
    if not Path(folder).expanduser().exists():
        raise UserError(f"{folder} does not exist: give documents=FOLDER, a folder of documents")


def opening(cfg: DictConfig) -> str:
    """The first line about documents: where the cache is."""
    place = cfg.index.path or hidden_beside(cfg.documents, "rag") / "index"
    return f"reading {cfg.documents}; its index is kept in {place}"


def quoted(path: str | Path) -> str:
    """A path as a value of Hydra's grammar, whatever is in it."""
    text = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"


def with_folder_quoted(overrides: Sequence[str]) -> list[str]:
    """The same, where a folder's name has spaces or commas in it, as a shell gives documents="my notes"."""
    given = []
    for each in overrides:
        key, _, value = each.partition("=")
        bare = key == "documents" and value[:1] not in ("'", '"')
        given.append(f"{key}={quoted(value)}" if bare else each)
    return given


def check_doubt(cfg: DictConfig, run: str | None = None) -> None:
    """UserError for settings of doubt that are wrong, or ask for a calibration that is not there. run: whose; None:
    the project's reader, which has one."""
    precision = cfg.precision
    if precision is not None and (type(precision) not in (int, float) or not 0 < precision <= 1):
        raise UserError(
            f"precision={precision} is no share: give a number above 0 and at most 1, as in precision=0.9"
        )
    if run is not None or cfg.answerability is not None:
        check_calibrated(str(run), cfg.answerability, bool(cfg.abstain), precision)


def check_calibrated(run: str, file: str | None, abstain: bool, precision: float | None) -> None:
    """UserError where a calibration is asked for that is not there; needs no model."""
    if file is not None:
        if not Path(file).is_file():
            raise UserError(
                f"answerability={file} does not exist: give a calibration, as python -m rag.analysis answerability "
                "run=RUN writes"
            )
        return
    if (abstain or precision is not None) and not (Path(run) / ANSWERABILITY_FILE).is_file():
        if not (Path(run) / "run.json").is_file():
            raise UserError(
                f"{asked_for(abstain)} a calibration, which is made of a run of train.py, and {run} is none: leave it "
                "out"
            )
        raise UserError(
            f"{asked_for(abstain)} a calibration, and {run} has none: python -m rag.analysis answerability run={run} "
            "makes one from dev questions"
        )


def asked_for(abstain: bool) -> str:
    """ "abstain=true needs", or the setting that does."""
    return f"{'abstain=true' if abstain else 'precision=…'} needs"
