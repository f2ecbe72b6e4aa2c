"""What it is worth to train the passage encoder as well: frozen, query side only, both sides.

    python -m benchmarks.whole_retriever miniwiki [--demo outputs/demo] [--data data]
    python -m benchmarks.whole_retriever text DATA

    frozen           neither encoder is trained (the reader is, on the mini-wiki)
    query            the question encoder, as in the paper, over an index that stays
    both             both encoders; the index is embedded again on the way and at the end
    both, overfetch  the same, the K passages chosen by fresh vectors among four times as many of the index

miniwiki: the demo's experiments from the demo's reader and bi-encoder, the same steps for each row; recall@1 and EM on
the test questions. text: MiniLM over DATA (passages.tsv, train.jsonl and dev.jsonl, each also as .gz or .xz), of which
the project's reader judges the passages and is not trained. There the rows have about the same CPU time, start to end,
the query side more steps for it; recall@1 is on all dev questions, EM on --limit of them.

Each row and seed is an ordinary run below --outputs; rerun the same command to resume. CPU seconds are of this process,
so give it one thread (the default here); those of a run that was interrupted count from its last start.
"""

import argparse
import gc
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
from hydra.utils import instantiate

from benchmarks.losses import answers, interval
from rag.cli import mistakes_in_one_sentence
from rag.commands.build_index import build_index
from rag.commands.evaluate import evaluate
from rag.commands.train import train
from rag.errors import UserError
from rag.evaluation.compare import examples_of
from rag.files import packed, read_json, write_aside, write_json
from rag.reopen import reopen
from rag.tasks.qa import read_examples

ROWS = ("frozen", "query", "both", "both, overfetch")
BASE = "query"
CPU = "cpu_seconds.json"
TIMES = 4  # passages of the index for each one that is read, with overfetch
AT_ONCE = 64  # questions
QUERY_STEPS = 300  # of real text, in about the CPU time of the experiment's steps with both sides


@dataclass(frozen=True)
class Found:
    """Of one run: 0 or 1 for each question, CPU seconds of training, and the share of them that refreshing took."""

    recall: np.ndarray
    em: np.ndarray
    seconds: float
    share: float | None


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.whole_retriever", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("world", choices=("miniwiki", "text"))
    parser.add_argument("texts", type=Path, nargs="?", help="the folder of real text")
    parser.add_argument("--demo", type=Path, default=Path("outputs/demo"), help="the finished demo")
    parser.add_argument("--data", type=Path, default=Path("data"), help="the folder that holds its miniwiki/")
    parser.add_argument("--outputs", type=Path, default=Path("outputs/whole_retriever"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--steps", type=int, help="of a row; the default is the experiment's")
    parser.add_argument("--query-steps", type=int, help="of the row query on real text")
    parser.add_argument("--limit", type=int, default=300, help="dev questions of real text that are answered")
    given = parser.parse_args(arguments)
    with mistakes_in_one_sentence():
        measure = of_miniwiki if given.world == "miniwiki" else of_text
        found: dict[str, list[Found]] = {row: [] for row in given.rows}
        for seed in given.seeds:
            for row in given.rows:
                found[row].append(measure(given, row, seed))
            text = table(found)
            print(text)
            with write_aside(given.outputs / f"{given.world}.md") as aside:
                aside.write_text(text, encoding="utf-8")


def of_miniwiki(given: argparse.Namespace, row: str, seed: int) -> Found:
    demo, data = given.demo.resolve(), given.data.resolve()
    if not (demo / "warmup" / "model").is_dir():
        raise UserError(
            f"{demo} holds no finished demo: run python -m rag.demo, or give its folder as --demo"
        )
    experiment, *more = {
        "frozen": ["frozen"],
        "query": ["rag_sequence"],
        "both": ["end2end"],
        "both, overfetch": ["end2end", f"retriever.overfetch={TIMES * 5}"],
    }[row]
    run = given.outputs.resolve() / "miniwiki" / f"{row.replace(', ', '-')}-{seed}"
    places = [f"paths.outputs={run.parent}", f"paths.demo={demo}", f"paths.data={data}"]
    steps = [] if given.steps is None else [f"trainer.max_steps={given.steps}"]
    trained(
        run,
        f"experiment=miniwiki/{experiment}",
        *places,
        *more,
        *steps,
        *(
            "hot_swap=null",
            "monitor=null",
            f"seed={seed}",
            "datamodule.dev_limit=50",
            "checkpoint_minutes=10",
        ),
    )
    asked = [f"task.test={data / 'miniwiki' / 'test.jsonl'}", "k_sweep=[]", "recall_at=[1]", "batch_size=50"]
    results = evaluate(f"checkpoint={run}", f"results={run / 'test'}", "hot_swap=null", *asked)
    assert results is not None
    em = exact_matches(results)
    counted = ~np.isnan(em)  # what the task leaves out of its metrics
    recall = np.array([float(record["passages"][0]["gold"]) for record in answers(results).predictions])
    return found_in(run, recall[counted], em[counted])


def of_text(given: argparse.Namespace, row: str, seed: int) -> Found:
    if given.texts is None:
        raise UserError("say which text: python -m benchmarks.whole_retriever text DATA")
    texts, outputs = given.texts.resolve(), given.outputs.resolve() / "text"
    places = [f"data={texts}", f"paths.outputs={outputs}", f"paths.wiki={outputs}"]
    build_index("experiment=wiki/end2end", *places, "bfloat16=true")
    more = {
        "frozen": ["retriever=dense", "retriever.trainable=false", "trainer.max_steps=0"],
        "query": ["retriever=dense", f"trainer.max_steps={given.query_steps or QUERY_STEPS}"],
        "both": [],
        "both, overfetch": [f"retriever.overfetch={TIMES * 4}"],
    }[row]
    if row == "frozen":  # one run serves all seeds
        seed, more = given.seeds[0], [*more, "retriever_loss=null", "module.generator_loss=true"]
    if row in ("frozen", "query"):
        more.append("refresh=null")
    elif given.steps is not None:
        more.append(f"trainer.max_steps={given.steps}")
    run = outputs / f"{row.replace(', ', '-')}-{seed}"
    trained(
        run,
        "experiment=wiki/end2end",
        *places,
        *more,
        *("trainer.precision=bf16-mixed", "trainer.val_check_interval=null"),
        *(f"seed={seed}", "checkpoint_minutes=10"),
    )
    results = evaluate(
        f"checkpoint={run}", f"results={run / 'dev'}", "split=dev", f"limit={given.limit}", "k_sweep=[]"
    )
    assert results is not None
    return found_in(run, recall_of(run, packed(texts / "dev.jsonl")), exact_matches(results))


def trained(run: Path, *settings: str) -> None:
    """Train a run unless it is finished, and write down the CPU seconds of that."""
    if (run / CPU).exists():
        return
    start = time.process_time()
    train(f"paths.run={run}", *settings)
    write_json(run / CPU, {"seconds": time.process_time() - start})
    gc.collect()


def found_in(run: Path, recall: np.ndarray, em: np.ndarray) -> Found:
    share = read_json(run / "result.json")["metrics"].get("refresh/share")
    return Found(recall, em, read_json(run / CPU)["seconds"], share)


def exact_matches(results: Path) -> np.ndarray:
    """Of an evaluation, 0 or 1 for each question, in the order of its predictions."""
    opened = answers(results)
    task = instantiate(opened.config.task)
    texts = [record["prediction"] for record in opened.predictions]
    return task.score(texts, examples_of(task, opened))["em"].per_example


def recall_of(run: Path, dev: Path) -> np.ndarray:
    """Whether the first passage that a run's retriever finds is a gold one, for each dev question that names some."""
    file = run / "recall.json"
    if not file.exists():
        examples = [example for example in read_examples(dev) if example.positive_ids]
        retriever = reopen(run).retriever
        first: list[int] = []
        for start in range(0, len(examples), AT_ONCE):
            asked = retriever.prepare([example.question for example in examples[start : start + AT_ONCE]])
            first += retriever.find(asked, 1)[:, 0].tolist()
        ids = retriever.index.passages.ids(np.array(first))
        gold = [int(id in example.positive_ids) for id, example in zip(ids, examples, strict=True)]
        write_json(file, {"gold": gold})
    return np.array(read_json(file)["gold"], float)


def table(found: dict[str, list[Found]]) -> str:
    """Markdown: means over the seeds, intervals by the bootstrap over questions, differences from the query side."""
    header = ["trained", "recall@1 [95 %]", "seeds", f"difference from {BASE} [95 %]", "EM [95 %]", "seeds"]
    lines = [[*header, "CPU seconds", "refreshing"], ["---"] * (len(header) + 2)]

    def recall(row: str) -> np.ndarray:
        return np.mean([each.recall for each in found[row]], axis=0)

    for row, runs in found.items():
        difference = "" if row == BASE or BASE not in found else interval(recall(row) - recall(BASE), "+")
        em = np.concatenate([each.em for each in runs])  # each seed draws its own questions of real text
        cells = [row, interval(recall(row)), seeds([each.recall for each in runs]), difference]
        cells += [interval(em), seeds([each.em for each in runs])]
        shares = [each.share for each in runs if each.share is not None]
        cells.append(f"{np.mean([each.seconds for each in runs]):,.0f}")
        cells.append(f"{np.mean(shares):.0%}" if shares else "")
        lines.append(cells)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def seeds(scores: list[np.ndarray]) -> str:
    return " / ".join(f"{each.mean():.3f}".removeprefix("0") for each in scores)


if __name__ == "__main__":
    main()
