"""The six losses for the retriever on the mini-wiki: python -m benchmarks.losses [--steps N] [--seeds 1 2 3]

RAG-Token is trained with each loss from the same weights (the finished demo's: its reader, its bi-encoder), for the
same steps and with each seed, which decides the order of the questions, and answers the test questions. Each is an
ordinary run with an ordinary evaluation below --outputs; rerun the same command to resume.

    loss          retriever_loss=…; marginal is none, RAG's own
    recall@1, EM  the mean over the seeds; its 95 % interval by the bootstrap over questions, each with the mean of its
                  seeds; and each seed's own
    difference    from the marginal, with the interval of the paired bootstrap over the same questions

Beside RAG-Sequence, whose marginal gives the retriever the gradient of emdr2, two of the rows would be one.
"""

import argparse
import gc
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
from hydra.utils import instantiate

from rag.analysis.opened import Evaluation
from rag.cli import mistakes_in_one_sentence
from rag.commands.evaluate import evaluate
from rag.commands.train import train
from rag.errors import UserError
from rag.evaluation.compare import Answers, examples_of, order_of
from rag.files import write_aside
from rag.metrics.bootstrap import bootstrap

MARGINAL = "marginal"
LOSSES = (MARGINAL, "emdr2", "pdist", "loop", "adist", "replug")
START = "before"
METRICS = ("recall@1", "EM")
TEST = ("k_sweep=[]", "hot_swap=null", "recall_at=[1]", "batch_size=50")


@dataclass(frozen=True)
class Row:
    """One loss: {metric: (seeds, questions)} of 0 and 1, the same questions in the same order everywhere."""

    loss: str
    scores: dict[str, np.ndarray]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.losses", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--demo", type=Path, default=Path("outputs/demo"), help="the finished demo")
    parser.add_argument("--data", type=Path, default=Path("data"), help="the folder that holds its miniwiki/")
    parser.add_argument("--outputs", type=Path, default=Path("outputs/losses"), help="where the runs go")
    parser.add_argument("--steps", type=int, default=260, help="260 are the demo's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES))
    given = parser.parse_args(arguments)
    with mistakes_in_one_sentence():
        if not (given.demo / "warmup" / "model").is_dir():
            raise UserError(
                f"{given.demo} holds no finished demo: run python -m rag.demo, or give its folder as --demo"
            )
        rows = measure(given.demo, given.data, given.outputs, given.steps, given.seeds, given.losses)
        text = table(rows)
        print(text)
        given.outputs.mkdir(parents=True, exist_ok=True)
        with write_aside(given.outputs / f"losses-{given.steps}.md") as aside:
            aside.write_text(text, encoding="utf-8")


def measure(
    demo: Path, data: Path, outputs: Path, steps: int, seeds: Sequence[int], losses: Sequence[str]
) -> list[Row]:
    """Train and evaluate what is not there yet, seed by seed; a row for the start and one for each loss."""
    demo, data, outputs = demo.resolve(), data.resolve(), outputs.resolve()
    places = [f"paths.outputs={outputs}", f"paths.demo={demo}", f"paths.data={data}"]
    asked = f"task.test={data / 'miniwiki' / 'test.jsonl'}"
    start = evaluate(f"checkpoint={demo / 'warmup'}", f"results={outputs / START}", asked, "n_docs=5", *TEST)
    found: dict[str, list[Path]] = {loss: [] for loss in losses}
    for seed in seeds:
        for loss in losses:
            run = outputs / f"{loss}-{steps}-{seed}"
            train(
                "experiment=miniwiki/rag_token",
                *places,
                f"paths.run={run}",
                f"retriever_loss={'null' if loss == MARGINAL else loss}",
                f"seed={seed}",
                f"trainer.max_steps={steps}",
                f"trainer.val_check_interval={steps}",
                "monitor=null",  # the last weights, whatever they are
                "datamodule.dev_limit=50",
                "checkpoint_minutes=60",
            )
            results = evaluate(f"checkpoint={run}", f"results={run / 'test'}", *TEST)
            assert results is not None
            found[loss].append(results)
            gc.collect()
    assert start is not None
    return rows_of({START: [start], **found})


def rows_of(found: dict[str, list[Path]]) -> list[Row]:
    """The scores in the folders of evaluations, questions in the order of the first."""
    opened = {loss: [answers(folder) for folder in folders] for loss, folders in found.items()}
    first = next(iter(opened.values()))[0]
    task = instantiate(first.config.task)
    examples = examples_of(task, first)
    rows = []
    for loss, evaluations in opened.items():
        recall, exact = [], []
        for each in evaluations:
            records = [each.predictions[place] for place in order_of(first, each)]
            exact.append(task.score([record["prediction"] for record in records], examples)["em"].per_example)
            recall.append([float(record["passages"][0]["gold"]) for record in records])
        counted = ~np.isnan(exact[0])  # what the task leaves out of its metrics
        scores = (np.array(own)[:, counted] for own in (recall, exact))
        rows.append(Row(loss, dict(zip(METRICS, scores, strict=True))))
    return rows


def answers(folder: Path) -> Answers:
    opened = Evaluation.open(folder)
    return Answers(str(folder), opened.config, opened.predictions)


def table(rows: Sequence[Row]) -> str:
    """Markdown. Raises UserError for rows of different questions."""
    if len({scores.shape[1] for row in rows for scores in row.scores.values()}) > 1:
        raise UserError("the evaluations are of different numbers of questions: give another --outputs")
    base = next((row for row in rows if row.loss == MARGINAL), None)
    header = ["loss"]
    for metric in METRICS:
        header += [f"{metric} [95 %]", "seeds", "difference [95 %]"]
    lines = [header, ["---"] * len(header)]
    for row in rows:
        cells = [row.loss]
        for metric in METRICS:
            own = row.scores[metric]
            cells += [
                interval(own.mean(axis=0)),
                " / ".join(f"{value:.3f}".removeprefix("0") for value in own.mean(axis=1)),
            ]
            if base is None or row is base or row.loss == START:
                cells.append("")
            else:
                cells.append(interval(own.mean(axis=0) - base.scores[metric].mean(axis=0), "+"))
        lines.append(cells)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def interval(per_question: np.ndarray, sign: str = "") -> str:
    """ ".576 [.534, .618]" """
    shown = [
        f"{value:{sign}.3f}".replace("0.", ".", 1).replace("-", "−") for value in bootstrap(per_question)
    ]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"


if __name__ == "__main__":
    main()
