"""Run folders: what a run was made from, whether it is finished, and how the next command goes on from there.

    config.yaml    the resolved configuration, enough for evaluate.py
    run.json       the run's identity, command, versions, git commit
    last.ckpt      where an interrupted training goes on
    model/         the result, in Hugging Face's format
    result.json    figures and seconds; written last, so its presence says that the run is finished

A run's identity is a hash of its configuration and of its inputs (files, index folders, other runs). The same command
given again finds the finished run and stops; after an interruption it goes on; with other settings it refuses to
touch what is there.
"""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

from rag.errors import UserError
from rag.files import hash_file, read_json, write_aside, write_json

PROJECT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "transformers", "pytorch-lightning", "faiss-cpu", "numpy", "datasets", "hydra-core")


class Run:
    """A run folder, opened for one configuration."""

    def __init__(self, folder: Path, identity: str, finished: bool, resumable: bool):
        self.folder = folder
        self.identity = identity
        self.finished = finished
        self.resumable = resumable
        self.started = time.perf_counter()

    @classmethod
    def open(
        cls,
        folder: str | Path,
        config: dict[str, Any],
        config_yaml: str,
        inputs: list[str],
        overwrite: bool | str = False,
    ) -> Self:
        """Find out where the run in `folder` stands; make the folder if it is new.

        config: what decides the result, as plain containers. inputs: paths whose content does too. overwrite: "changed"
        replaces a run that was made with other settings, True any run. Raises UserError if there is another run and
        `overwrite` is not given, if an input is missing, or if the folder cannot be written.
        """
        folder = Path(folder)
        description = {"config": config, "inputs": {path: fingerprint(path) for path in inputs}}
        identity = digest(description)
        record = folder / "run.json"
        if record.exists():
            before = read_json(record)
            if before["identity"] == identity and overwrite is not True:
                checkpoint = folder / "last.ckpt"
                return cls(folder, identity, (folder / "result.json").exists(), checkpoint.exists())
            if not overwrite:
                change = next(iter(differences(before["description"], description)), "its settings")
                raise UserError(
                    f"{folder} holds a run made with other settings ({change}): choose another folder with paths.run=… "
                    "or replace that run with overwrite=true"
                )
            shutil.rmtree(folder)
        elif folder.exists() and any(folder.iterdir()) and not overwrite:
            raise UserError(f"{folder} holds other files: choose another folder with paths.run=…")
        with write_aside(folder / "config.yaml") as aside:
            aside.write_text(config_yaml, encoding="utf-8")
        write_json(record, {"identity": identity, "description": description, **provenance()})
        return cls(folder, identity, finished=False, resumable=False)

    def finish(self, result: dict[str, Any]) -> None:
        """Write result.json: the run is finished."""
        seconds = round(time.perf_counter() - self.started, 1)
        write_json(self.folder / "result.json", {"identity": self.identity, "seconds": seconds, **result})


def provenance() -> dict[str, Any]:
    """What a result needs beside its settings to be made again: command, git commit, versions, machine."""
    return {
        "command": " ".join(["python", *sys.argv]),
        "commit": git_commit(),
        "versions": {"python": platform.python_version(), **versions()},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def git_commit() -> str:
    """The commit of the code, with "+" if files were changed since; "unknown" outside a checkout."""
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        return commit + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(PROJECT), *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


def fingerprint(path: str | Path) -> str:
    """What identifies an input: a run's identity, an index's manifest, a file's bytes.

    Files over 256 MB are known by size and time of change, so that a corpus of gigabytes is not read for this.
    """
    path = Path(path)
    for holder in (path, *path.parents[:4]):
        if (holder / "result.json").exists():
            return read_json(holder / "result.json")["identity"]
    if (path / "manifest.json").exists():
        return hash_file(path / "manifest.json")
    if path.is_file():
        status = path.stat()
        return (
            hash_file(path) if status.st_size < 1 << 28 else f"{status.st_size} bytes at {status.st_mtime_ns}"
        )
    if path.is_dir():
        return digest(
            {
                str(file.relative_to(path)): fingerprint(file)
                for file in sorted(path.rglob("*"))
                if file.is_file()
            }
        )
    raise UserError(f"{path} does not exist, and this run needs it")


def digest(value: Any) -> str:
    """A short hash of plain containers."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(before: Any, after: Any, where: str = "") -> list[str]:
    """The first leaves in which two nested containers differ, as "name old → new"."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = dict.fromkeys([*before, *after])
        found = [
            change
            for key in keys
            for change in differences(
                before.get(key), after.get(key), f"{where}.{key}" if where else str(key)
            )
        ]
        return [change.removeprefix("config.").removeprefix("inputs.") for change in found]
    return [] if before == after else [f"{where} {before} → {after}"]
