"""How long every command takes to its first word, and rag.ask to its first answer: python -m benchmarks.startup

  python -m benchmarks.startup                                   --help, a typo and a wrong path, of every command
  python -m benchmarks.startup checkpoint=outputs/demo/rag_token  and the first answer of rag.ask
  python -m benchmarks.startup repeats=5

Seconds are the least of the repeats: on the clock, which on a busy machine says little, and of the CPU, as the
operating system counts them for the process and its children.
"""

import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rag.cli import mistakes_in_one_sentence
from rag.errors import UserError
from rag.runs import PROJECT, git_commit

NOWHERE = "no/such/folder"
COMMANDS: dict[str, tuple[list[str], list[list[str]]]] = {  # its command, and what is wrong with it
    "train.py": (
        ["train.py"],
        [
            ["optimization.lrr=1"],
            [f"ckpt_path={NOWHERE}"],
            ["retriever=dense_trained", "retriever.overfetch=1"],
        ],
    ),
    "evaluate.py": (["evaluate.py"], [["spilt=dev"], [f"checkpoint={NOWHERE}"]]),
    "build_index.py": (
        ["build_index.py"],
        [["shard_sise=3"], ["experiment=null", f"corpus.path={NOWHERE}"], ["int8=true", "bfloat16=true"]],
    ),
    "rag.ask": (["-m", "rag.ask"], [["chekpoint=x"], [f"checkpoint={NOWHERE}"]]),
    "rag.ask.page": (["-m", "rag.ask.page"], [["chekpoint=x"], [f"checkpoint={NOWHERE}"]]),
    "rag.analysis": (["-m", "rag.analysis"], [["difersity"], ["diversity", f"run={NOWHERE}"]]),
    "rag.compare": (["-m", "rag.compare"], [["shwo=3"], [NOWHERE, NOWHERE]]),
    "rag.download": (["-m", "rag.download"], [["nqq"]]),
    "rag.demo": (["-m", "rag.demo"], [["seeed=1"]]),
    "rag.wiki": (["-m", "rag.wiki"], [["limmit=1"], ["data=nowhere"]]),
    "rag.miniwiki": (["-m", "rag.miniwiki"], [["seeed=1"]]),
}


def measure(command: Sequence[str], repeats: int) -> tuple[float, float, int]:
    """(seconds on the clock, seconds of the CPU, exit code) of a command of Python's, the least of the repeats."""
    clock, cpu, code = [], [], 0
    for _ in range(repeats):
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(
            [sys.executable, *command], cwd=PROJECT, capture_output=True, stdin=subprocess.DEVNULL
        )
        clock.append(time.perf_counter() - began)
        after, code = resource.getrusage(resource.RUSAGE_CHILDREN), done.returncode
        cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(clock), min(cpu), code


def main(arguments: Sequence[str]) -> None:
    settings = {"checkpoint": "", "repeats": "3"}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key not in settings:
            raise UserError(
                f"{argument} is no setting: there are {', '.join(f'{each}=…' for each in settings)}"
            )
        settings[key] = value
    if not settings["repeats"].isdecimal() or settings["repeats"] == "0":
        raise UserError(f"repeats={settings['repeats']}: a whole number from 1 is expected")
    repeats = int(settings["repeats"])
    machine = f"commit {git_commit()}, {os.cpu_count()} cores, {platform.machine()}"
    table = Table("command", "clock, s", "CPU, s", "exit", title=f"{machine}, least of {repeats}")
    for name, (command, wrong) in COMMANDS.items():
        for asked in (["--help"], *wrong):
            clock, cpu, code = measure([*command, *asked], repeats)
            table.add_row(f"{name} {' '.join(asked)}", f"{clock:.2f}", f"{cpu:.2f}", str(code))
    if settings["checkpoint"]:
        if not Path(settings["checkpoint"]).is_dir():
            raise UserError(
                f"checkpoint={settings['checkpoint']} does not exist: give a run folder of train.py"
            )
        asked = ["-m", "rag.ask", f"checkpoint={Path(settings['checkpoint']).resolve()}", "Where is it?"]
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        clock, cpu, code = measure(asked, repeats)
        table.add_row("rag.ask, its first answer", f"{clock:.2f}", f"{cpu:.2f}", str(code))
    Console().print(table)


if __name__ == "__main__":
    with mistakes_in_one_sentence():
        main(sys.argv[1:])
