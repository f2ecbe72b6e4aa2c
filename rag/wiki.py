"""The paper's comparison on real text: python -m rag.wiki data=FOLDER [key=value …]

Trains a bi-encoder from MiniLM and embeds the passages, takes the project's own reader or trains one from MiniLM, then
RAG and its baselines from both, evaluates all of them on the same dev questions, and writes a report. Each stage is an
ordinary command, shown in its log. Independent stages run in parallel, one core each. Rerun the same command to resume;
finished stages are skipped.

  data=FOLDER     passages.tsv (id, text, title), train.jsonl and dev.jsonl, whose questions name their gold passages as
                  positive_ids; each as it is, .gz or .xz. `python -m rag.download squad` writes such a folder
  reader=train    a reader trained on these questions with the passage given (experiment=wiki/reader), instead of the
                  project's (pretrained/reader)
  limit=N         so many dev questions, drawn at random, the same for all
  seed=N          of all training and of the questions drawn
  preset=quick    a few steps of everything, in minutes: does it run?
  outputs=FOLDER  where the results go
"""

import sys
import time
from pathlib import Path

from rag.cli import mistakes_in_one_sentence
from rag.errors import UserError
from rag.files import packed
from rag.runs import PROJECT
from rag.safe_text import say
from rag.stages import Stage, run_all, share_cores

VARIANTS = ("hybrid", "rag_sequence", "rag_token", "frozen", "bm25")


def stages(
    data: Path, outputs: Path, seed: int, limit: int, quick: bool, bfloat16: bool, own_reader: bool
) -> list[Stage]:
    """All stages, those that others wait for longest first. bfloat16: train in it, mixed with float32. own_reader:
    train a reader instead of taking the project's."""
    folders = [f"data={data}", f"paths.outputs={outputs.parent}", f"paths.wiki={outputs}", f"seed={seed}"]
    settings = [*folders, "overwrite=changed", *(["trainer.precision=bf16-mixed"] if bfloat16 else [])]
    reader = ["reader"] if own_reader else []
    from_reader = [f"generator.path={outputs / 'reader'}"] if own_reader else []

    def train(name: str, *needs: str, steps: int = 6) -> Stage:
        shorter = [f"trainer.max_steps={steps}"] if quick and steps else []
        if quick and steps and name != "dpr":
            shorter.append(f"trainer.val_check_interval={steps}")
        chosen = [] if name in ("dpr", "reader") else from_reader
        command = ["train.py", f"experiment=wiki/{name}", f"paths.run={outputs / name}", *settings, *chosen]
        return Stage(name, [*command, *shorter], list(needs))

    def evaluate(name: str, *needs: str) -> Stage:
        results = outputs / "evaluation" / name
        command = ["evaluate.py", f"checkpoint={outputs / name}", f"results={results}", "split=dev"]
        return Stage(f"evaluate {name}", [*command, f"limit={limit}", "overwrite=changed"], [name, *needs])

    index = Stage(
        "index", ["build_index.py", "experiment=wiki/index", *folders, "overwrite=changed"], ["dpr"]
    )
    plan = [train("dpr"), *(train(name) for name in reader), index]
    plan += [train(name, *reader, "index") for name in VARIANTS]
    plan += [train("gold", *reader, "index", steps=0), train("closed_book", *reader)]
    plan += [evaluate(name) for name in (*VARIANTS, "gold", "closed_book")]
    dpr_stage = evaluate("dpr", "index")
    return [
        *plan,
        Stage(dpr_stage.name, [*dpr_stage.command, f"index.path={outputs / 'index'}"], dpr_stage.needs),
    ]


def check_data(data: Path) -> None:
    """UserError unless the folder holds the three files."""
    for name, others in (("passages.tsv", ()), ("train.jsonl", ()), ("dev.jsonl", ("squad_dev.jsonl",))):
        if not packed(*(data / other for other in others), data / name).exists():
            raise UserError(
                f"data={data} holds no {name} (nor {name}.gz or .xz): give a folder with passages.tsv, train.jsonl and "
                "dev.jsonl, as python -m rag.download squad writes"
            )


def main(arguments: list[str]) -> None:
    settings = {
        "data": "",
        "seed": "1",
        "limit": "1000",
        "preset": "full",
        "outputs": "",
        "reader": "pretrained",
    }
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key not in settings:
            raise UserError(f"{argument} is not a setting of rag.wiki: available are {', '.join(settings)}")
        settings[key] = value
    if settings["preset"] not in ("full", "quick"):
        raise UserError(f"preset={settings['preset']} does not exist: available are full and quick")
    if settings["reader"] not in ("pretrained", "train"):
        raise UserError(f"reader={settings['reader']} does not exist: available are pretrained and train")
    for key in ("seed", "limit"):
        if not settings[key].isdecimal() or (key == "limit" and int(settings[key]) < 1):
            raise UserError(
                f"{key}={settings[key]} is not a whole number{' from 1' if key == 'limit' else ''}"
            )
    quick, seed, limit = settings["preset"] == "quick", int(settings["seed"]), int(settings["limit"])
    if quick and not any(each.startswith("limit=") for each in arguments):
        limit = 20
    data = Path(settings["data"] or PROJECT / "data" / "wiki").resolve()
    check_data(data)
    usual = PROJECT / "outputs" / ("wiki_quick" if quick else "wiki")
    outputs = Path(settings["outputs"] or usual).resolve()
    workers, threads = share_cores()
    from rag.processes import cpu_has_bfloat16  # with torch, which no mistake waits for

    bfloat16 = bool(cpu_has_bfloat16())
    plan = stages(data, outputs, seed, limit, quick, bfloat16, settings["reader"] == "train")
    say(
        f"the comparison on {data}: {len(plan)} stages, {workers} at a time, "
        f"{'a few minutes' if quick else 'three quarters of an hour for 7,000 passages'} on two cores, trained in "
        f"{'bfloat16' if bfloat16 else 'float32'}; results in {outputs}"
    )
    start = time.perf_counter()
    run_all(plan, outputs, workers, threads)
    seconds = {stage.name: round(stage.seconds, 1) for stage in plan}
    seconds["total"] = round(time.perf_counter() - start, 1)

    # Imported here, because the stages do not need matplotlib.
    from rag.reports.wiki_report import write_report

    write_report(outputs, seconds)


if __name__ == "__main__":
    if any(argument in ("-h", "--help") for argument in sys.argv[1:]):
        print(__doc__)
    else:
        with mistakes_in_one_sentence():
            main(sys.argv[1:])
