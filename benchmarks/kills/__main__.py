"""Kill commands at every moment and give them again: python -m benchmarks.kills [SCENARIO …] [key=value …]

Each command is run to its end once; then it is killed before each of its changes to files in turn (of `most` of them,
drawn at random, where there are more), and `random` times by the clock. Given again, it has to leave the same files as
the run that nobody killed; or to say one sentence, and work once that is done. Anything else is broken. Of two
processes under torchrun's environment one is killed: the other has to end by itself.

  python -m benchmarks.kills                        all scenarios; half an hour on one core
  python -m benchmarks.kills update training        some
  python -m benchmarks.kills random=100 most=400    more tries
  python -m benchmarks.kills output=FOLDER          where the inputs are made, and what broke is kept

Nothing but the system's memory is lost in these kills: a power failure would also need fsync, which rag/files.py asks
for and no process can try.
"""

import os

os.environ |= {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "COLUMNS": "120",
}

import random
import shutil
import signal
import socket
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.kills.contents import contents, differences
from benchmarks.kills.scenarios import Inputs, Scenario, imported, renew, scenarios
from benchmarks.kills.trying import BROKEN, FINE, PATIENCE, TOLD, Ended, give, start, wait
from rag.cli import mistakes_in_one_sentence, quieten_logs
from rag.errors import UserError
from rag.terminal import Terminal

SAME, SENTENCE, WRONG, ALIVE = "same", "one sentence", "broken", "not killed"
SURVIVOR_SECONDS = 30.0  # that a process may take to see that the other is gone, before torchrun's SIGTERM


@dataclass
class Result:
    """What became of a scenario's tries."""

    scenario: Scenario
    operations: int
    seconds: float
    of_operations: Counter = field(default_factory=Counter)
    by_clock: Counter = field(default_factory=Counter)
    survivors: Counter = field(default_factory=Counter)
    sentences: Counter = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)


class Trials:
    """The tries of a scenario in the folder `root`/work; what broke is kept in `root`/broken."""

    def __init__(self, root: Path, inputs: Inputs, scenario: Scenario, seed: int):
        self.root, self.work, self.scenario = root, inputs.work, scenario
        self.dice = random.Random(f"{seed} {scenario.name}")
        self.before: Path | None = None
        self.log = root / "log"
        if scenario.prepare is not None:
            self.before = root / "before"
            renew(self.work, None)
            prepare = scenario.prepare
            self.check(give(lambda: prepare(self.work), self.log), "was prepared")
            shutil.rmtree(self.before, ignore_errors=True)
            self.work.rename(self.before)
        renew(self.work, self.before)
        whole = self.run(watched=self.work)
        self.check(whole, "was run to its end")
        self.expected = contents(self.work)
        self.result = Result(scenario, whole.operations, whole.seconds)

    def check(self, ended: Ended, when: str) -> None:
        if ended.code != FINE:
            raise UserError(f"the scenario {self.scenario.name} failed when it {when}: {ended.last}")

    def run(self, **settings: Any) -> Ended:
        """The command by as many processes as the scenario has; none of them is killed but as `settings` say of the
        first or, with `victim`, of another. Where one is, the others have to end by themselves."""
        count, victim = self.scenario.processes, settings.pop("victim", 0)
        if count == 1:
            return give(self.scenario.command, self.log, **settings)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        began = time.perf_counter()
        started: list[tuple[int, Path]] = []
        for rank in range(count):
            environment = torchrun(rank, count, port)
            of_rank = settings if rank == victim else {}
            log = self.log.with_name(f"log-{rank}")
            started.append((start(self.scenario.command, log, environment=environment, **of_rank), log))
        number, log = started[victim]
        ended = [wait(number, log, began)]
        for rank, (number, log) in enumerate(started):
            if rank != victim:
                ended.append(self.survivor(number, log, ended[0].code < 0))
        if ended[0].code < 0:  # it was killed; what the others said counts
            return next((each for each in ended[1:] if each.code == BROKEN), ended[0])
        return max(ended, key=lambda each: each.code != FINE)

    def survivor(self, number: int, log: Path, alone: bool) -> Ended:
        """How a process ends whose companion has: by itself, or once torchrun ends it, as it does where one failed."""
        ended = wait(
            number, log, time.perf_counter(), SURVIVOR_SECONDS if alone else PATIENCE, signal.SIGTERM
        )
        if alone:
            self.result.survivors["by itself" if ended.code > -signal.SIGTERM else "by SIGTERM"] += 1
        return ended

    def try_once(self, tally: Counter, how: str, **settings: Any) -> None:
        """Killed so, and given again."""
        renew(self.work, self.before)
        first = self.run(watched=self.work, **settings)
        if first.code == BROKEN or self.scenario.processes == 1 and first.code == TOLD:
            return self.broke(tally, how, f"the first time: {first.last}", first)
        killed = first.code < 0
        if not killed:
            self.result.seconds = min(self.result.seconds, first.seconds)
        second = self.run()
        if second.code == TOLD:
            self.result.sentences[second.last] += 1
            return self.broke(tally, how, f"told: {second.last}", second)
        if second.code != FINE:
            return self.broke(tally, how, second.last, second)
        wrong = differences(self.expected, contents(self.work))
        if wrong:
            return self.broke(tally, how, "; ".join(wrong[:4]), second)
        tally[SAME if killed else ALIVE] += 1

    def broke(self, tally: Counter, how: str, why: str, ended: Ended) -> None:
        tally[WRONG] += 1
        self.result.broken.append(f"{self.scenario.name}, killed {how}: {why}")
        kept = self.root / "broken" / f"{self.scenario.name} {how}".replace(" ", "-")
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(self.work, kept, symlinks=True)
        (kept / "printed.log").write_text(ended.printed)

    def systematically(self, most: int) -> None:
        """Before each operation in turn; of `most` where there are more."""
        numbers = range(1, self.result.operations + 1)
        chosen = sorted(self.dice.sample(numbers, most)) if len(numbers) > most else list(numbers)
        for number in chosen:
            victim = self.dice.randrange(self.scenario.processes)
            how = f"before operation {number}" + f" of process {victim}" * (self.scenario.processes > 1)
            self.try_once(self.result.of_operations, how, operation=number, victim=victim)

    def at_random(self, times: int) -> None:
        """So many kills, each after a time that is drawn at random of the command's own."""
        tally = self.result.by_clock
        for _ in range(3 * times):  # some come too late, the more the faster the machine has become
            if tally[SAME] + tally[WRONG] >= times:
                return
            victim = self.dice.randrange(self.scenario.processes)
            seconds = self.dice.uniform(0.02, self.result.seconds)
            how = f"after {seconds:.3f} s" + f" of process {victim}" * (self.scenario.processes > 1)
            self.try_once(tally, how, seconds=seconds, victim=victim)


def torchrun(rank: int, count: int, port: int) -> dict[str, str]:
    """What torchrun says to each of its processes."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "kills",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }


def main(arguments: Sequence[str]) -> int:
    settings = {"random": "50", "most": "60", "seed": "1", "output": ""}
    names: list[str] = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            names.append(argument)
        elif key not in settings or (key != "output" and not value.isdecimal()):
            raise UserError(
                f"{argument} is no setting: available are random=N, most=N, seed=N and output=FOLDER"
            )
        else:
            settings[key] = value
    root = Path(settings["output"] or tempfile.mkdtemp(prefix="kills-")).resolve()
    root.mkdir(parents=True, exist_ok=True)
    inputs = Inputs(root)
    known = {each.name.replace(" ", "_"): each for each in scenarios(inputs)}
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"{unknown[0]} is no scenario: available are {', '.join(known)}")
    imported()
    made = root / "inputs" / "made"
    if not made.exists():
        print(f"making what the commands start from in {inputs.root}", flush=True)
        shutil.rmtree(inputs.root, ignore_errors=True)
        inputs.root.mkdir()
        ended = give(inputs.make, root / "inputs.log")
        if ended.code != FINE:
            raise UserError(f"the inputs could not be made: {ended.last} (see {root / 'inputs.log'})")
        made.touch()
    results = []
    for name, scenario in known.items():
        if names and name not in names:
            continue
        trials = Trials(root, inputs, scenario, int(settings["seed"]))
        began = time.perf_counter()
        trials.systematically(int(settings["most"]))
        trials.at_random(int(settings["random"]))
        results.append(trials.result)
        told(trials.result, time.perf_counter() - began)
    show(results)
    return 1 if any(each.broken for each in results) else 0


def told(result: Result, seconds: float) -> None:
    done = result.of_operations + result.by_clock
    counts = ", ".join(f"{count} {what}" for what, count in done.items())
    print(f"{result.scenario.name}: {sum(done.values())} tries in {seconds:,.0f} s: {counts}", flush=True)
    if result.survivors:
        print(
            f"  the other process ended {', '.join(f'{how} {n} times' for how, n in result.survivors.items())}"
        )
    for each in result.broken:
        print(f"  {each}", flush=True)


def show(results: Sequence[Result]) -> None:
    table = Table(title="commands that were killed and given again")
    for name in ("command", "file operations", "killed before one", "same", "by the clock", "same", "broken"):
        table.add_column(name, justify="left" if name == "command" else "right")
    for each in results:
        systematic, clock = each.of_operations, each.by_clock
        table.add_row(
            each.scenario.what,
            str(each.operations),
            str(systematic[SAME] + systematic[WRONG]),
            str(systematic[SAME]),
            str(clock[SAME] + clock[WRONG]),
            str(clock[SAME]),
            str(systematic[WRONG] + clock[WRONG]),
        )
    Terminal().print(table)


if __name__ == "__main__":
    if any(each in ("-h", "--help") for each in sys.argv[1:]):
        print((__doc__ or "").strip())
    else:
        quieten_logs()
        warnings.filterwarnings("ignore", message=".*multi-threaded.*fork.*")
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        with mistakes_in_one_sentence():
            sys.exit(main(sys.argv[1:]))
