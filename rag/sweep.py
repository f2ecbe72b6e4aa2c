"""A training for each combination of values: python train.py -m optimization.lr=1e-4,3e-4 seed=1,2

The values are written as for Hydra's own multirun. Each run is a process of its own, one after the other: memory,
threads, seeds and whatever a library keeps between two trainings are new each time, a run that fails takes no other
with it, and a run on several GPUs can launch its own processes, which it does by its own command line. That costs the
seconds of the imports, once a run.
"""

import csv
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isnan, nan
from os import environ
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig

from rag.cli import check_script, mistakes_in_one_sentence, quieten_logs
from rag.compose import CONFIGS, compose_config, key_of
from rag.errors import UserError, one_line
from rag.files import remove_leftovers, write_aside
from rag.fingerprints import digest
from rag.reports.finished import complete_run
from rag.safe_text import markdown as escaped
from rag.safe_text import say
from rag.training import plan

FLAGS = ("-m", "--multirun")
LONGEST = 80  # characters of a folder's name


@dataclass(frozen=True)
class Job:
    """One training of a sweep: what was chosen for it, {key: value}, its whole command line, and its folder."""

    chosen: dict[str, str]
    arguments: list[str]
    folder: Path
    cfg: DictConfig

    def __str__(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.chosen.items())


def sweep_if_asked(script: str, arguments: Sequence[str]) -> None:
    """Where -m is among the arguments, train every combination with `script` and exit; else return."""
    if not any(each in FLAGS for each in arguments) or any(each in ("-h", "--help") for each in arguments):
        return
    quieten_logs()
    with mistakes_in_one_sentence():
        sys.exit(sweep(script, [each for each in arguments if each not in FLAGS]))


def sweep(script: str, arguments: list[str]) -> int:
    """Train what is not there yet, show the table of all, and give the exit code: 1 where a run failed.

    What is wrong with any of the runs' settings is told before the first one begins. Raises UserError, and
    KeyboardInterrupt once the run at hand has stopped.
    """
    if int(environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("-m starts the runs itself, so torchrun cannot: give trainer.devices=N instead")
    folder, jobs = plan_jobs(arguments)
    states = []
    for job in jobs:
        run = plan.look(job.cfg)
        states.append("done" if run is not None and run.finished else "")
    say(f"{len(jobs)} runs, {states.count('done')} of them there already; in {folder}", flush=True)
    for number, job in enumerate(jobs):
        if states[number]:
            complete_run(job.folder)
            continue
        say(f"\nrun {number + 1} of {len(jobs)}: {job}", flush=True)
        code = run_to_its_end([sys.executable, script, *job.arguments])
        if code == 130:
            raise KeyboardInterrupt
        states[number] = "done" if code == 0 else f"failed ({code})"
    if jobs[0].cfg.info:
        return 0
    header, rows = table(jobs, states)
    show(header, rows)
    remove_leftovers(folder, "sweep.md.*")
    with write_aside(folder / "sweep.md") as aside:
        lines = [header, ["---"] * len(header), *rows]
        aside.write_text(
            "".join(f"| {' | '.join(map(escaped, each))} |\n" for each in lines), encoding="utf-8"
        )
    say(f"the table is in {folder / 'sweep.md'}, the runs in the folders beside it")
    failed = [str(job.folder) for job, state in zip(jobs, states, strict=True) if state != "done"]
    if failed:
        say(f"{len(failed)} of {len(jobs)} runs failed: the same command tries them again", file=sys.stderr)
    return 1 if failed else 0


def plan_jobs(arguments: list[str]) -> tuple[Path, list[Job]]:
    """The folder of a sweep and its runs; UserError for what is wrong with any."""
    fixed, combinations = expand(arguments)
    composed = []
    for combination in combinations:
        cfg = compose_config("train", [*fixed, *combination])
        check_script(cfg, "train", [*fixed, *combination])
        composed.append(cfg)
    keys = short_names([key_of(each) for each in combinations[0]])
    names = {cfg.name for cfg in composed}
    sweep_name = names.pop() if len(names) == 1 else "-".join(keys)
    folder = Path(composed[0].paths.outputs) / "sweeps" / sweep_name
    if any(key_of(each) == "paths.run" for each in fixed):
        folder = Path(composed[0].paths.run)
        fixed = [each for each in fixed if key_of(each) != "paths.run"]
    if (folder / "run.json").exists():
        raise UserError(f"{folder} is a run's own folder: give another for the sweep's runs with paths.run=…")
    jobs = []
    for combination, cfg in zip(combinations, composed, strict=True):
        chosen = {key: each.partition("=")[2] for key, each in zip(keys, combination, strict=True)}
        run_folder = folder / folder_name(chosen)
        cfg.paths.run = str(run_folder)
        jobs.append(
            Job(chosen, [*fixed, *combination, f"paths.run={quoted(str(run_folder))}"], run_folder, cfg)
        )
    return folder, jobs


def expand(arguments: list[str]) -> tuple[list[str], list[list[str]]]:
    """The overrides that all runs share, and those of each run, by Hydra's grammar of sweeps."""
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            parser = OverridesParser.create(GlobalHydra.instance().config_loader())
            parsed = parser.parse_overrides(arguments)
            swept = [each for each in parsed if each.is_sweep_override()]
            combinations = BasicSweeper.split_arguments(swept, max_batch_size=None)[0] if swept else []
    except HydraException as error:
        raise UserError(f"the command of the sweep cannot be read: {one_line(str(error))}") from error
    if not swept:
        raise UserError(
            "-m trains every combination of values, and no setting has several: write them with commas, as in "
            "seed=1,2, or leave -m out"
        )
    for each in swept:
        if each.key_or_group in ("paths.run", "overwrite", "info"):
            raise UserError(f"{each.input_line}: {each.key_or_group} is the same for all runs of a sweep")
    fixed = [each for each, one in zip(arguments, parsed, strict=True) if one not in swept]
    return fixed, [list(each) for each in combinations]


def short_names(keys: list[str]) -> list[str]:
    """ "lr" of optimization.lr, unless another of the keys ends so too."""
    last = [key.rpartition(".")[2] for key in keys]
    return [name if last.count(name) == 1 else key for name, key in zip(last, keys, strict=True)]


def folder_name(chosen: dict[str, str]) -> str:
    """ "lr-0.0001_seed-1": the same for the same values, whatever others the sweep has."""
    plain = "_".join(f"{key}-{value}" for key, value in chosen.items())
    name = re.sub(r"[^\w.-]+", "-", plain).strip("-.")
    told_apart = re.fullmatch(r"[\w.-]+", plain) and len(name) <= LONGEST
    return name if told_apart else f"{name[:LONGEST]}-{digest(chosen)[:6]}"


def quoted(path: str) -> str:
    """A path as a value on Hydra's command line."""
    if re.fullmatch(r"[\w./-]+", path):
        return path
    escaped = path.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def run_to_its_end(command: list[str]) -> int:
    """The exit code of a command; 130 where it was interrupted.

    Ctrl-C and SIGTERM are passed on once each, so that a run stops between two steps with a checkpoint.
    """
    # in a session of its own: a terminal's Ctrl-C would reach it twice, and a second one ends it at once
    process = subprocess.Popen(command, start_new_session=True)
    with passed_on(process) as signals:
        code = process.wait()
    return 130 if signals or code in (130, -signal.SIGINT, -signal.SIGTERM) else code


@contextmanager
def passed_on(process: subprocess.Popen) -> Iterator[list[int]]:
    """Send SIGINT and SIGTERM on to a process; the list of those that came."""
    came: list[int] = []

    def send(number: int, frame: Any) -> None:
        came.append(number)
        process.send_signal(number)

    before = {each: signal.signal(each, send) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


# -- the table -------------------------------------------------------------------------------------


def table(jobs: Sequence[Job], states: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: what was chosen for each run, the step that model/ holds, and dev's metrics there."""
    results = [
        dev_metrics(job.folder, job.cfg.monitor, job.cfg.monitor_mode) if state == "done" else (None, {})
        for job, state in zip(jobs, states, strict=True)
    ]
    names = sorted({name for _, metrics in results for name in metrics})
    first = [name for name in dict.fromkeys(job.cfg.monitor for job in jobs) if name in names]
    names = [*first, *(name for name in names if name not in first)]
    header = [*jobs[0].chosen, "step", *names]
    rows = []
    for job, state, (step, metrics) in zip(jobs, states, results, strict=True):
        at = state if state != "done" else "–" if step is None else f"{step:,}"
        values = [f"{metrics[name]:.4f}" if name in metrics else "–" for name in names]
        rows.append([*job.chosen.values(), at, *values])
    return header, rows


def dev_metrics(folder: Path, monitor: str | None, mode: str) -> tuple[int | None, dict[str, float]]:
    """(step, {metric of dev: value}) at the step whose weights a run keeps, from its curves.

    That is the first step with the best `monitor`, the last one where there is none. (None, {}) where a run has no
    curves, or never looked at dev.
    """
    parts = sorted(folder.glob("metrics-*.csv"), key=lambda file: int(file.stem.rpartition("-")[2]))
    looks: list[tuple[int, dict[str, float]]] = []
    for file in [*parts, folder / "metrics.csv"]:
        if not file.exists():
            continue
        with file.open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                metrics = {
                    key: float(value) for key, value in row.items() if key.startswith("dev/") and value
                }
                if metrics:
                    looks.append((int(row["step"]), metrics))
    if monitor is not None:
        judged = [each for each in looks if not isnan(each[1].get(monitor, nan))]
        if judged:
            sign = 1 if mode == "max" else -1
            return max(judged, key=lambda each: sign * each[1][monitor])  # the first of equals
    return looks[-1] if looks else (None, {})


def show(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    from rag.terminal import Terminal

    shown = Table()
    for name in header:
        shown.add_column(name, overflow="fold")
    for row in rows:
        shown.add_row(*map(Text, row))
    Terminal(highlight=False).print(shown)
