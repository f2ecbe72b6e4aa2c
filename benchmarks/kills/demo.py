"""Kill the quick demo until it ends: python -m benchmarks.kills.demo [random=50] [seed=1] [output=FOLDER]

It runs once to its end; then in another folder, where its driver (by SIGKILL, SIGTERM or Ctrl-C) or one of its stages
(by SIGKILL) is ended after a time drawn at random and the same command is given again, until it reaches its end; that
as often as it takes for `random` kills. What is left then has to be what the unkilled run left, and no process
may outlive its driver. A kill costs the ten seconds in which a stage starts anew: half an hour for 50 on two cores.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.kills.contents import contents, differences
from rag.cli import mistakes_in_one_sentence
from rag.errors import UserError
from rag.runs import PROJECT

WAITS = 9.0, 24.0  # seconds between two kills: enough that each start gets on, so that the demo ends at last
PATIENCE = 1800.0
SECONDS_TO_END = 5.0  # that a stage may take to see that its driver is gone


@dataclass
class Tally:
    """What was killed, by which signal, and what was wrong afterwards."""

    kills: Counter = field(default_factory=Counter)
    ends: int = 0
    broken: list[str] = field(default_factory=list)


def start(outputs: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "rag.demo", "preset=quick", f"outputs={outputs}"]
    with open(outputs.with_suffix(".log"), "a") as log:
        return subprocess.Popen(
            command,
            cwd=PROJECT,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def left(outputs: Path) -> dict[str, Any]:
    """What a run left, but for the logs, and for last.ckpt, which is saved once a minute."""
    return {
        name: held
        for name, held in contents(outputs).items()
        if not name.startswith("logs/") and not name.endswith("/last.ckpt")
    }


def at_work(outputs: Path) -> list[int]:
    """The processes whose command names the folder."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has ended
            continue
        if process.name.isdecimal() and any(f"={outputs}" in word for word in words):
            found.append(int(process.name))
    return sorted(set(found) - {os.getpid()})


def kill(driver: subprocess.Popen, outputs: Path, dice: random.Random, tally: Tally) -> None:
    """The driver or one of its stages."""
    stages = [number for number in at_work(outputs) if number != driver.pid]
    if stages and dice.random() < 0.4:
        try:
            os.kill(dice.choice(stages), signal.SIGKILL)
        except ProcessLookupError:  # it ended a moment ago
            return
        tally.kills["a stage, SIGKILL"] += 1
        if driver.wait(PATIENCE) != 2:
            tally.broken.append(f"a stage was killed and the driver ended with {driver.returncode}")
        return
    asked = dice.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
    driver.send_signal(asked)
    driver.wait(PATIENCE)
    tally.kills[f"the driver, {asked.name}"] += 1
    until = time.monotonic() + SECONDS_TO_END
    while left := at_work(outputs):
        if time.monotonic() > until:
            tally.broken.append(f"{len(left)} stages outlived their driver ({asked.name})")
            for number in left:
                os.kill(number, signal.SIGKILL)
            return
        time.sleep(0.05)


def to_its_end(outputs: Path, dice: random.Random, tally: Tally, times: int) -> None:
    """The demo, killed until it ends or has been killed so often."""
    while True:
        driver = start(outputs)
        try:
            code = driver.wait(dice.uniform(*WAITS) if tally.kills.total() < times else PATIENCE)
        except subprocess.TimeoutExpired:
            kill(driver, outputs, dice, tally)
            continue
        tally.ends += 1
        if code != 0:
            said = outputs.with_suffix(".log").read_text().strip().splitlines()
            tally.broken.append(f"it ended with {code} after {tally.kills.total()} kills: {said[-1]}")
        return


def main(arguments: Sequence[str]) -> int:
    settings = {"random": "50", "seed": "1", "output": ""}
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key not in settings or (key != "output" and not value.isdecimal()):
            raise UserError(f"{argument} is no setting: available are random=N, seed=N and output=FOLDER")
        settings[key] = value
    root = Path(settings["output"] or tempfile.mkdtemp(prefix="kills-of-the-demo-")).resolve()
    demo = root / "demo"  # the same place each time, since its path stands in what the runs say of themselves
    root.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    shutil.rmtree(demo, ignore_errors=True)
    if start(demo).wait() != 0:
        raise UserError(f"the demo failed where nobody killed it: see {demo.with_suffix('.log')}")
    expected = left(demo)
    print(f"the demo took {time.perf_counter() - began:.0f} s and left {len(expected)} files", flush=True)
    dice, tally, times = random.Random(int(settings["seed"])), Tally(), int(settings["random"])
    while tally.kills.total() < times:
        shutil.rmtree(demo)
        to_its_end(demo, dice, tally, times)
        if wrong := differences(expected, left(demo)):
            tally.broken.append(f"end {tally.ends}: {len(wrong)} differences: {'; '.join(wrong[:6])}")
        print(
            f"{time.perf_counter() - began:,.0f} s: {tally.kills.total()} kills, {tally.ends} ends",
            flush=True,
        )
    for what, count in sorted(tally.kills.items()):
        print(f"  {what}: {count}")
    print(f"{len(tally.broken)} broken", *tally.broken, sep="\n  ")
    return 1 if tally.broken else 0


if __name__ == "__main__":
    if any(each in ("-h", "--help") for each in sys.argv[1:]):
        print((__doc__ or "").strip())
    else:
        with mistakes_in_one_sentence():
            sys.exit(main(sys.argv[1:]))
