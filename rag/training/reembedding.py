"""Embedding an index again beside training: python -m rag.training.reembedding FOLDER [FINGERPRINT]

FOLDER is a run's indexes/. A request there, .FINGERPRINT.request, holds a passage encoder as it was at a step and says
which index to make anew; the edition appears as FOLDER/FINGERPRINT when it is complete, and the request goes. With
refresh_in=background training starts this process by itself, for one request. With refresh_in=elsewhere somebody does,
on another node that sees the same folder for instance: without FINGERPRINT it answers requests until it is ended.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import Float32

from rag.cli import mistakes_in_one_sentence, quieten
from rag.encoders.opening import open_passage_encoder
from rag.encoders.precisions import BFLOAT16
from rag.encoders.reduced import InBfloat16
from rag.errors import UserError
from rag.files import read_json, write_aside, write_json
from rag.index.folder import Index
from rag.index.passage import Passage
from rag.index.reembed import reembed
from rag.index.vectors import EncoderInfo
from rag.processes import local_device
from rag.progress import progress_bar
from rag.runs import PROJECT
from rag.stages import end_with_parent

LOOKS = 1.0  # seconds between two looks for a request
ENDING = ".request"


class Request:
    """What is asked of the process that embeds: the edition `fingerprint` of the index that is searched now."""

    def __init__(self, folder: Path, fingerprint: str):
        self.folder = folder
        self.fingerprint = fingerprint
        self.path = folder / f".{fingerprint}{ENDING}"
        self.edition = folder / fingerprint

    @property
    def is_written(self) -> bool:
        return self.path.is_dir() or self.edition.is_dir()

    def write(self, encoder: Any, index: Index, name: Path) -> None:
        """The encoder's weights and the rest, complete or not at all. name: what the edition's manifest calls it."""
        with write_aside(self.path) as aside:
            aside.mkdir()
            encoder.save_pretrained(aside / "passage_encoder")
            write_json(aside / "request.json", {"index": str(index.folder.resolve()), "name": str(name)})

    def answer(self) -> None:
        """Make the edition. Raises UserError where the encoder is not the one that the request is named after."""
        asked = read_json(self.path / "request.json")
        old = Index.open(asked["index"])
        encoder = open_passage_encoder(self.path / "passage_encoder").eval().to(local_device())
        if (held := encoder.fingerprint()) != self.fingerprint:
            raise UserError(
                f"{self.path} holds an encoder of weights {held}, not {self.fingerprint}: delete it"
            )
        if not self.edition.is_dir():
            told = f"embedding the passages of {old.folder} again"
            with progress_bar(str(self.edition), len(old), "passages", told=told) as advance:
                encoder = Counted(as_the_index(encoder, old), advance)
                reembed(old, encoder, self.edition, asked["name"])
        shutil.rmtree(self.path, ignore_errors=True)


def as_the_index(encoder: Any, index: Index) -> Any:
    """The encoder, in the precision that the index was embedded with."""
    return InBfloat16(encoder) if index.manifest.encoder.precision == BFLOAT16 else encoder


class Counted:
    """A passage encoder, as `reembed` needs one, that says how many passages it has embedded."""

    def __init__(self, encoder: Any, advance: Callable[[int], None]):
        self.encoder, self.advance = encoder, advance

    def describe(self) -> EncoderInfo:
        return self.encoder.describe()

    def encode(self, passages: Sequence[Passage]) -> Float32[np.ndarray, "passages dim"]:
        vectors = self.encoder.encode(passages)
        self.advance(len(passages))
        return vectors


class Worker:
    """Who answers one request while training goes on: a process that ends with training, however that ends, or
    somebody elsewhere (process: None)."""

    def __init__(self, request: Request, process: subprocess.Popen | None, log: Path):
        self.request, self.process, self.log = request, process, log

    @classmethod
    def start(cls, request: Request, gpu: int | None) -> Self:
        """gpu: the number of the one to take, the first again where there are no more; None: start no process."""
        log = request.folder / ".reembedding.log"
        if gpu is None or request.edition.is_dir():
            return cls(request, None, log)
        with open(log, "w", encoding="utf-8") as written:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "rag.training.reembedding"),
                    *(str(request.folder.resolve()), request.fingerprint),
                ],
                cwd=PROJECT,
                env=os.environ | {"LOCAL_RANK": str(gpu)},
                stdout=written,
                stderr=subprocess.STDOUT,
                preexec_fn=end_with_parent if sys.platform == "linux" else None,
            )
        return cls(request, process, log)

    def is_done(self) -> bool:
        """Whether the edition is there; UserError where the process ended without it."""
        state = None if self.process is None else self.process.poll()
        if self.request.edition.is_dir():
            return True
        if state is not None:
            told = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise UserError(
                f"embedding the index again failed ({told[-1] if told else f'exit code {state}'}): see {self.log}, and "
                "rerun the same command to resume"
            )
        return False

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait()


def answer_all(folder: Path) -> None:
    """Answer the requests in a folder, the newest first."""
    waiting = [each for each in folder.glob(f".*{ENDING}") if each.is_dir()]
    for path in sorted(waiting, key=lambda each: each.stat().st_mtime_ns, reverse=True):
        Request(folder, path.name.removeprefix(".").removesuffix(ENDING)).answer()


def parser() -> argparse.ArgumentParser:
    described = argparse.ArgumentParser(
        prog="python -m rag.training.reembedding", description=(__doc__ or "").partition("\n")[0]
    )
    described.add_argument("folder", type=Path, help="a run's indexes/")
    described.add_argument(
        "fingerprint", nargs="?", help="of one request; without it, all are answered as they come"
    )
    return described


def main() -> None:
    given = parser().parse_args()
    quieten()
    with mistakes_in_one_sentence():
        if given.fingerprint is not None:
            Request(given.folder, given.fingerprint).answer()
            return
        while True:
            answer_all(given.folder)
            time.sleep(LOOKS)


if __name__ == "__main__":
    main()
