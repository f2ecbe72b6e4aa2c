"""Run folders: what a run was made from, whether it is finished, and how the next command goes on from there.

    config.yaml    the resolved configuration, enough for evaluate.py
    run.json       the run's identity, command, versions, git commit
    last.ckpt      where an interrupted training goes on
    model/         the result, in Hugging Face's format
    result.json    metrics and seconds; written last, so its presence says that the run is finished

A run's identity is a hash of its configuration and of what its inputs consist of (rag/fingerprints.py). The same
command given again finds the finished run and stops; after an interruption it goes on; with other settings it refuses
to touch what is there. Where the project's folder lies is no part of it: a checkout that was moved knows its runs.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

from filelock import Timeout

from rag.errors import UserError
from rag.files import is_leftover, lock_file, packed, read_json, remove_leftovers, write_aside, write_json
from rag.fingerprints import digest, fingerprint

MODEL_FILE = "model.json"  # in model/: how the model is made again, see rag/parts.py
ANSWERABILITY_FILE = "answerability.json"  # beside model/: when its answers are believed
# What it says in place of the folder with the weights, of the index and of K; of the questions that are asked, for a
# retriever that knows their passages: their task, its splits, and the folder of data.
FOLDER, INDEX, N_DOCS = "${folder}", "${index}", "${n_docs}"
TASK, ASKED, DATA = "${task}", "${asked}", "${data}"

_CHECKOUT = Path(__file__).resolve().parents[1]
# From a wheel, whose package holds the configs.
INSTALLED = not (_CHECKOUT / "configs" / "base.yaml").is_file()
CONFIGS = Path(__file__).resolve().parent / "configs" if INSTALLED else _CHECKOUT / "configs"
PROJECT = Path.cwd() if INSTALLED else _CHECKOUT  # where outputs/, data/ and indexes/ go
SHIPPED = Path(__file__).resolve().parent / "shipped" if INSTALLED else _CHECKOUT / "pretrained"  # weights
PACKAGES = ("torch", "transformers", "pytorch-lightning", "faiss-cpu", "numpy", "datasets", "hydra-core")


LOCK = ".lock"  # in a run's folder, held by the process that works there, from `Run.begin` to its end
_held: dict[Path, Any] = {}  # this process's
# What a run keeps in its folder until it is finished: an evaluation's answers, the checkpoint before the last.
WHILE_AT_WORK = ("parts", "last-before.ckpt")


def _of_begin(path: Path) -> bool:
    """Whether `Run.begin` leaves it where it is cut short before run.json is written."""
    return path.name in (LOCK, "config.yaml") or is_leftover(path)


class Run:
    """A run folder, opened for one configuration.

    finished: its result is there. resumable: an interrupted run left last.ckpt.
    """

    def __init__(self, folder: Path, record: dict[str, Any], config_yaml: str, finished: bool, begun: bool):
        self.folder = folder
        self.record = record
        self.config_yaml = config_yaml
        self.finished = finished
        self.begun = begun
        self.resumable = begun and not finished and (folder / "last.ckpt").exists()
        self.started = time.perf_counter()

    @classmethod
    def open(
        cls,
        folder: str | Path,
        config: dict[str, Any],
        config_yaml: str,
        inputs: list[str],
        overwrite: bool | str = False,
        setting: str = "paths.run",
    ) -> Self:
        """Find out where the run in `folder` stands; nothing is written before `begin`.

        config: what decides the result, as plain containers. inputs: paths whose content does too. overwrite: "changed"
        replaces a run that was made with other settings, True any run. setting: what chooses the folder, for messages.
        Raises UserError if there is another run and `overwrite` is not given, if an input is missing, or if the folder
        cannot be written or is somebody else's.
        """
        folder = Path(folder)
        if overwrite not in (True, False, "changed"):
            raise UserError(f"overwrite={overwrite} does not exist; available: false, changed and true")
        description = portable({"config": config, "inputs": {path: fingerprint(path) for path in inputs}})
        record = {"identity": digest(description), "description": description}
        check_place(folder, setting)
        if (folder / "run.json").exists():
            before = read_json(folder / "run.json")
            if not differences(before["description"], _with_commits_of(before["description"], description)):
                record = {key: before[key] for key in record}  # as far as can be known, it is the same
            if before["identity"] == record["identity"] and overwrite is not True:
                finished = (folder / "result.json").exists()
                return cls(folder, record, config_yaml, finished, begun=True)
            if not overwrite:
                change = next(iter(differences(before["description"], description)), "its settings")
                raise UserError(
                    f"{folder} holds a run made with other settings ({change}): choose another folder with {setting}=… "
                    "or replace that run with overwrite=true"
                )
        elif folder.is_dir() and not all(map(_of_begin, folder.iterdir())):
            raise UserError(
                f"{folder} holds files that do not belong to a run: choose another folder with {setting}=…"
            )
        return cls(folder, record, config_yaml, finished=False, begun=False)

    def begin(self) -> None:
        """Make the folder, in place of a run that is to be replaced; where an interrupted run goes on, leave it.

        To be called once everything that a user can get wrong has been looked at, so that a mistake costs nothing.
        Until the process ends, no other can begin in this folder: UserError where one is at work there.

        run.json comes first and says whose folder it is: whenever this is cut short, the same command takes it up.
        """
        _take(self.folder)
        remove_leftovers(self.folder)
        if self.begun:
            if not (self.folder / "config.yaml").exists():
                self._write_config()
            curves = self.folder / "metrics.csv"
            if self.resumable and curves.exists():  # the logger begins a new file
                number = len(list(self.folder.glob("metrics-*.csv"))) + 1
                curves.rename(self.folder / f"metrics-{number}.csv")
            return
        # What makes the old run look finished, or able to go on, goes first, and run.json, which owns the rest, last.
        old = sorted(self.folder.iterdir(), key=lambda each: each.name not in ("result.json", "last.ckpt"))
        for each in old:
            if each.name not in (LOCK, "run.json"):
                shutil.rmtree(each) if each.is_dir() and not each.is_symlink() else each.unlink()
        write_json(self.folder / "run.json", self.record | provenance())
        self._write_config()
        self.begun = True

    def _write_config(self) -> None:
        with write_aside(self.folder / "config.yaml") as aside:
            aside.write_text(portable(self.config_yaml), encoding="utf-8")

    def finish(self, result: dict[str, Any]) -> None:
        """Write result.json: the run is finished."""
        seconds = round(time.perf_counter() - self.started, 1)
        write_json(
            self.folder / "result.json", {"identity": self.record["identity"], "seconds": seconds, **result}
        )


def _take(folder: Path) -> None:
    """Keep other processes out of a run's folder until this one ends. UserError where one is at work there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock_path = folder.resolve() / LOCK
        if lock_path not in _held:
            lock = lock_file(lock_path, wait=False)
            lock.acquire()
            _held[lock_path] = lock
    except Timeout:
        raise UserError(
            f"another process is at work in {folder}: wait until it has ended, or choose another folder"
        ) from None
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror or error})") from error


def tidy(folder: Path) -> bool:
    """Remove what is not needed any more of a finished run whose process died before it came to that.

    Whether this process may write there: False where another one is at work, or nobody may, and nothing is touched.
    """
    try:
        _take(folder)
    except UserError:
        return False
    remove_leftovers(folder)
    for name in WHILE_AT_WORK:
        each = folder / name
        shutil.rmtree(each, ignore_errors=True) if each.is_dir() else each.unlink(missing_ok=True)
    return True


def is_reported(folder: Path, of: str = "result.json") -> bool:
    """Whether the page about a finished run or index was written, after what it tells of, and with its picture."""
    page, told = folder / "report.md", folder / of
    if not page.exists() or page.stat().st_mtime_ns < told.stat().st_mtime_ns:
        return False
    return "](report.png)" not in page.read_text("utf-8", "replace") or (folder / "report.png").exists()


def check_place(folder: Path, setting: str) -> None:
    """UserError unless `folder` is, or can become, a folder that can be written."""
    try:
        there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror}): choose another with {setting}=…"
        ) from error
    if not there.is_dir():
        raise UserError(f"{folder} cannot be written ({there} is a file): choose another with {setting}=…")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(
            f"{folder} cannot be written (no permission in {there}): choose another with {setting}=…"
        )


def know_project() -> None:
    """Let OmegaConf resolve ${project:}, as configurations name the project's folder, and ${packed:FILE,FILE}, the
    first of these files that is there, as it is, .gz or .xz; and ${shipped:NAME}, weights that come with it."""
    from omegaconf import OmegaConf  # not needed by a model alone, which comes here for the run's files

    OmegaConf.register_new_resolver("project", lambda: str(PROJECT), replace=True)
    OmegaConf.register_new_resolver("shipped", lambda name: str(SHIPPED / name), replace=True)
    OmegaConf.register_new_resolver("packed", lambda *files: str(packed(*files)), replace=True)


def portable(value: Any) -> Any:
    """Text, or plain containers of text, with the project's folder written as ${project:}, which configs resolve."""
    if isinstance(value, str):
        return re.sub(rf"{re.escape(str(PROJECT))}(?![\w.-])", "${project:}", value)
    if isinstance(value, dict):
        return {portable(key): portable(each) for key, each in value.items()}
    return [portable(each) for each in value] if isinstance(value, list | tuple) else value


def mentions(node: Any, text: str) -> bool:
    """Whether `text` stands anywhere in a node of plain containers."""
    if isinstance(node, dict | list | tuple):
        return any(mentions(each, text) for each in (node.values() if isinstance(node, dict) else node))
    return isinstance(node, str) and text in node


def provenance() -> dict[str, Any]:
    """What a result needs beside its settings to be made again: command, git commit, versions, machine."""
    program = Path(sys.argv[0]).name
    typed = [program] if program.startswith("rag-") else ["python", sys.argv[0]]
    return {
        "command": " ".join([*typed, *sys.argv[1:]]),
        "commit": git_commit(),
        "versions": {"python": platform.python_version(), **versions()},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def versions() -> dict[str, str]:
    installed = {}
    for package in PACKAGES:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            continue
    return installed


def git_commit() -> str:
    """The commit of the code, with "+" if files were changed since; "unknown" outside a checkout."""
    if INSTALLED:
        return "unknown"  # a checkout around the current folder is somebody else's
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        return commit + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(PROJECT), *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


def _with_commits_of(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """`now`, with what `before` says of repositories on the hub whose commit one of the two does not know.

    Older runs did not write it down, and it cannot be asked for without a network.
    """
    inputs = dict(now["inputs"])
    for name, content in now["inputs"].items():
        known = before["inputs"].get(name)
        if name.startswith("hub://") and ("@" not in content or known is None or "@" not in known):
            inputs.pop(name)
            if known is not None:
                inputs[name] = known
    return now | {"inputs": inputs}


def differences(before: Any, after: Any, where: tuple[str, ...] = ()) -> list[str]:
    """The leaves in which two descriptions of a run differ, as "setting: old → new"."""
    if isinstance(before, dict) and isinstance(after, dict):
        changes = []
        for key in dict.fromkeys([*before, *after]):
            changes += differences(before.get(key), after.get(key), (*where, str(key)))
        return changes
    if before == after:
        return []
    if where[:1] == ("inputs",):
        what = (
            "was not there"
            if before is None
            else "is not needed any more"
            if after is None
            else "has changed"
        )
        return [f"{where[1]} {what}"]
    old, new = (text if len(text := str(value)) <= 60 else f"{text[:60]}…" for value in (before, after))
    return [f"{'.'.join(where[1:])}: {old} → {new}"]
