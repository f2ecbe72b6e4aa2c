"""The whole default run: python -m rag.demo [seed=N] [preset=quick] [outputs=FOLDER]

Writes a mini-wiki, trains a generator and a bi-encoder from scratch, builds the indexes of both editions, trains RAG
and its baselines, evaluates all of them on people who do not occur in training, and writes a report. Each stage is an
ordinary command, shown in its log. Independent stages run in parallel, one core each. Rerun the same command to resume;
finished stages are skipped.

  seed=N          another world, trained with another seed
  preset=quick    a small world and short trainings, in a few minutes: does everything run?
  outputs=FOLDER  where the results go
"""

import sys
import time
from pathlib import Path

from rag.cli import mistakes_in_one_sentence
from rag.errors import UserError
from rag.runs import PROJECT
from rag.safe_text import say
from rag.stages import Stage, run_all, share_cores

SEED = 2020  # of the mini-wiki and of all training; fixed before any result was seen, the year of the paper
VARIANTS = ("rag_sequence", "rag_token", "frozen", "bm25")
# As measured on servers that did nothing else; by `quick`.
TOOK = {
    False: "on two idle cores with AVX-512 it took five minutes",
    True: "on two idle cores with AVX-512 it took two to three minutes",
}
QUICK = {"trainer.max_steps": "24", "trainer.val_check_interval": "12", "datamodule.dev_limit": "40"}


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
    say(f"the demo: {len(plan)} stages, {workers} at a time; {TOOK[quick]}; results in {outputs}")
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
