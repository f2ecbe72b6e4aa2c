"""The whole default run: python -m rag.demo [seed=N] [preset=quick] [outputs=FOLDER]

Writes a mini-wiki, trains a generator and a bi-encoder from scratch, builds the indexes of both editions, trains RAG
and its baselines, evaluates all of them on people who do not occur in training, and writes a report. Each stage is an
ordinary command, shown in its log. Independent stages run in parallel, one core each. Rerun the same command to resume;
finished stages are skipped.

  seed=N          another world, trained with another seed
  preset=quick    a small world and short trainings, in two or three minutes: does everything run?
  outputs=FOLDER  where the results go
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from rag.cli import mistakes_in_one_sentence
from rag.errors import UserError
from rag.progress import REPORT_FILE
from rag.runs import INSTALLED, PROJECT

SEED = 2020  # of the mini-wiki and of all training; fixed before any result was seen, the year of the paper
VARIANTS = ("rag_sequence", "rag_token", "frozen", "bm25")
QUICK = {"trainer.max_steps": "24", "trainer.val_check_interval": "12", "datamodule.dev_limit": "40"}


@dataclass
class Stage:
    """One command and the stages whose results it uses."""

    name: str
    command: list[str]
    needs: list[str] = field(default_factory=list)
    seconds: float = 0.0


def stages(seed: int, outputs: Path, data: Path, quick: bool) -> list[Stage]:
    """All stages, those that others wait for longest first."""
    folders = [f"paths.outputs={outputs}", f"paths.demo={outputs}", f"paths.data={data}", f"seed={seed}"]

    def train(name: str, *needs: str) -> Stage:
        shorter = [f"{key}={value}" for key, value in QUICK.items()] if quick else []
        if quick and name in ("denoising", "dpr", "closed_book"):
            shorter = shorter[:1]
        run = f"paths.run={outputs / name}"
        command = ["train.py", f"experiment=miniwiki/{name}", *folders, run, *shorter, "overwrite=changed"]
        return Stage(name, command, list(needs))

    def index(edition: str) -> Stage:
        name = f"index_{edition}"
        return Stage(
            name, ["build_index.py", f"experiment=miniwiki/{name}", *folders, "overwrite=changed"], ["dpr"]
        )

    def evaluate(name: str, split: str = "test", *needs: str) -> Stage:
        results = outputs / "evaluation" / (name if split == "test" else f"{name}_{split}")
        command = ["evaluate.py", f"checkpoint={outputs / name}", f"results={results}", f"split={split}"]
        command += ["limit=40"] if quick else ["batch_size=50"]
        return Stage(f"evaluate {name} on {split}", [*command, "overwrite=changed"], [name, *needs])

    people, institutions = (300, 60) if quick else (3000, 700)
    world = Stage(
        "miniwiki",
        [
            "-m",
            "rag.miniwiki",
            f"output={data / 'miniwiki'}",
            f"seed={seed}",
            f"people={people}",
            f"institutions={institutions}",
        ],
    )
    first = [train("denoising", "miniwiki"), train("dpr", "miniwiki"), index("a"), index("b")]
    second = [train("warmup", "denoising", "index_a"), train("closed_book", "denoising")]
    third = [train(name, "warmup") for name in VARIANTS]
    last = [evaluate(name, "test", "index_a", "index_b") for name in VARIANTS]
    last += [evaluate("closed_book"), evaluate("closed_book", "train")]
    return [world, *first, *second, *third, *last]


def run_all(plan: list[Stage], folder: Path, workers: int, threads: int) -> None:
    """Run the stages, `workers` at a time, each when what it needs is done; UserError if one fails."""
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    waiting, running, done = list(plan), {}, set()
    with _bars(plan) as show, _children(running):
        while waiting or running:
            for stage in [s for s in waiting if done.issuperset(s.needs)][: workers - len(running)]:
                waiting.remove(stage)
                running[stage.name] = (stage, _start(stage, logs, threads), time.perf_counter())
            for name, (stage, process, began) in list(running.items()):
                stage.seconds = time.perf_counter() - began
                state = process.poll()
                show(stage, _reported(logs, stage), state)
                if state is None:
                    continue
                del running[name]
                if state != 0:
                    log = (logs / f"{_file(stage)}.log").read_text(encoding="utf-8", errors="replace").strip()
                    raise UserError(
                        f"the stage {name} failed ({log.splitlines()[-1] if log else f'exit code {state}'}); "
                        f"see {logs / _file(stage)}.log, and rerun the same command to resume"
                    )
                done.add(name)
            time.sleep(0.1)


def _file(stage: Stage) -> str:
    return stage.name.replace(" ", "_")


def _start(stage: Stage, logs: Path, threads: int) -> subprocess.Popen:
    report = logs / f"{_file(stage)}.progress"
    report.unlink(missing_ok=True)
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        REPORT_FILE: str(report),
        "PYTHONUNBUFFERED": "1",
        "COLUMNS": "120",
    }
    first, *rest = stage.command
    if INSTALLED and first.endswith(".py"):  # a wheel holds what the scripts call, not the scripts
        first, rest = "-m", ["rag.console", first.removesuffix(".py"), *rest]
    command = [sys.executable, first, *rest]
    with open(logs / f"{_file(stage)}.log", "w", encoding="utf-8") as log:
        log.write(f"$ python {' '.join(command[1:])}\n")
        log.flush()
        return subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=log, stderr=subprocess.STDOUT)


def _reported(logs: Path, stage: Stage) -> dict:
    try:
        return json.loads((logs / f"{_file(stage)}.progress").read_text())
    except (OSError, ValueError):
        return {}


@contextmanager
def _children(running: dict) -> Iterator[None]:
    """End the stages that are still running when something ends the run: a failure, Ctrl-C, a scheduler's SIGTERM."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        for _, process, _ in running.values():
            process.terminate()
        for _, process, _ in running.values():
            process.wait()


@contextmanager
def _bars(plan: list[Stage]) -> Iterator:
    """One bar a stage; in a log file, one line when a stage is done."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:32}"),
        BarColumn(),
        TextColumn("{task.fields[note]:36}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bars: dict[str, TaskID] = {
            stage.name: progress.add_task(stage.name, total=None, note="waiting", start=False)
            for stage in plan
        }

        def show(stage: Stage, report: dict, state: int | None) -> None:
            bar = bars[stage.name]
            progress.start_task(bar) if not progress.tasks[bar].started else None
            total = report.get("total")
            note = f"{report['what']} {report['done']:,}/{total or '?'}" if report else "starting"
            if state is not None:
                note, total = f"done in {stage.seconds:,.0f} s" if state == 0 else "failed", total or 1
                progress.update(bar, total=total, completed=total, note=note)
                progress.stop_task(bar)
                if not console.is_terminal:
                    console.print(f"{stage.name}: {note}")
            else:
                progress.update(bar, total=total, completed=report.get("done", 0), note=note)

        yield show


def ensure(names: list[str], outputs: Path, data: Path, seed: int) -> None:
    """Run the stages `names` and whatever they need, unless their results are there."""
    plan = stages(seed, outputs, data, quick=False)
    wanted: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        wanted.add(name)
        waiting += next(stage.needs for stage in plan if stage.name == name)
    chosen = [stage for stage in plan if stage.name in wanted]
    print(f"first what this run starts from: {', '.join(stage.name for stage in chosen)}")
    run_all(chosen, outputs, *share_cores())


def share_cores() -> tuple[int, int]:
    """How many stages run side by side, and on how many threads each."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = max(1, min(cores, 4))
    return workers, max(1, cores // workers)


def main(arguments: list[str]) -> None:
    settings = {"seed": str(SEED), "preset": "full", "outputs": "", "data": ""}
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key not in settings:
            raise UserError(f"{argument} is not a setting of the demo; available: {', '.join(settings)}")
        settings[key] = value
    if settings["preset"] not in ("full", "quick"):
        raise UserError(f"preset={settings['preset']} does not exist; available: full and quick")
    if not settings["seed"].isdecimal():
        raise UserError(f"seed={settings['seed']} is not a whole number")
    seed, quick = int(settings["seed"]), settings["preset"] == "quick"
    usual = PROJECT / "outputs" / ("demo_quick" if quick else "demo")
    outputs = Path(settings["outputs"] or usual).resolve()
    # The built-in world of the usual run lies where the configs look for it; other runs keep theirs to themselves.
    data = Path(
        settings["data"]
        or (PROJECT / "data" if outputs == PROJECT / "outputs" / "demo" else outputs / "data")
    )
    data = data.resolve()
    workers, threads = share_cores()
    plan = stages(seed, outputs, data, quick)
    minutes = "two or three" if quick else "about nine"
    print(
        f"the demo: {len(plan)} stages, {workers} at a time, {minutes} minutes on two cores; "
        f"results in {outputs}"
    )
    start = time.perf_counter()
    run_all(plan, outputs, workers, threads)
    seconds = {stage.name: round(stage.seconds, 1) for stage in plan}
    seconds["total"] = round(time.perf_counter() - start, 1)

    # Imported here, because the stages do not need matplotlib.
    from rag.reports.demo_report import write_report

    write_report(outputs, seed, seconds)


if __name__ == "__main__":
    if any(argument in ("-h", "--help") for argument in sys.argv[1:]):
        print(__doc__)
    else:
        with mistakes_in_one_sentence():
            main(sys.argv[1:])
