"""Evaluate a trained model: python evaluate.py checkpoint=RUN key=value …"""

import sys
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from rag.analysis.hot_swap import hot_swap
from rag.cli import from_checkpoint, plain, run_script
from rag.evaluation import answer_questions, retrieval_figures, write_predictions
from rag.files import read_json
from rag.index import Index
from rag.runs import Run, digest
from rag.tasks.qa import read_examples

USAGE = """
python evaluate.py checkpoint=RUN [key=value …]

Answers the questions of a split with a model that train.py left in the folder RUN, with that run's own settings,
and writes predictions.jsonl and result.json into RUN/evaluation/.

  python evaluate.py checkpoint=outputs/demo/rag_sequence
  python evaluate.py checkpoint=… split=dev limit=100          a hundred questions of dev
  python evaluate.py checkpoint=… n_docs=20 decoding=beam4     more passages, beam search
  python evaluate.py checkpoint=… k_sweep=[1,5,10,50]          exact match against K (figure 3)
  python evaluate.py checkpoint=… index.path=indexes/other     another memory, nothing retrained (hot-swap)
  python evaluate.py checkpoint=… task.test=my.jsonl           other questions
"""


def evaluate(cfg: DictConfig) -> None:
    cfg = from_checkpoint(cfg, sys.argv[1:])
    model_config = cfg.module.model
    settings = {
        key: plain(cfg[key])
        for key in (
            "task",
            "index",
            "decoding",
            "n_docs",
            "split",
            "limit",
            "k_sweep",
            "recall_at",
            "hot_swap",
        )
    }
    settings["model"] = plain(model_config)
    closed_book = "retriever" not in model_config
    inputs = [str(Path(cfg.checkpoint) / "model"), plain(cfg.task).get(cfg.split)]
    inputs += [] if closed_book else [cfg.index.path]
    folder = cfg.results or Path(cfg.checkpoint) / "evaluation" / f"{cfg.split}-{digest(settings)[:6]}"
    run = Run.open(
        folder, settings, OmegaConf.to_yaml(cfg, resolve=True), [i for i in inputs if i], cfg.overwrite
    )
    if not run.finished:
        task = instantiate(cfg.task)
        examples = task.examples(cfg.split)[: cfg.limit]
        print(
            f"evaluating {cfg.checkpoint} on {len(examples):,} questions ({cfg.split}), results in {run.folder}"
        )
        model = instantiate(model_config)
        decoding = instantiate(cfg.decoding)
        ks = [1] if closed_book else sorted({cfg.n_docs, *cfg.k_sweep})
        n_docs = 1 if closed_book else cfg.n_docs
        deepest = 0 if closed_book else min(max(cfg.recall_at), len(model.retriever.index))
        found = answer_questions(model, examples, decoding, ks, cfg.batch_size, deepest)
        scores = {k: task.score(found.texts(k), examples) for k in ks}
        result = {
            "questions": len(examples),
            "n_docs": n_docs,
            **{name: score.value for name, score in scores[n_docs].items()},
            "intervals": {name: [score.low, score.high] for name, score in scores[n_docs].items()},
        }
        if found.rows is not None:
            result |= retrieval_figures(model, found.rows, examples, cfg.recall_at)
            result["index"] = {
                "type": model.retriever.index.manifest.factory,
                "passages": len(model.retriever.index),
            }
            if cfg.k_sweep:
                result["em_by_k"] = {str(k): scores[k]["em"].value for k in cfg.k_sweep}
        if cfg.hot_swap is not None and not closed_book:
            editions = cfg.hot_swap.editions
            result["hot_swap"] = hot_swap(
                model,
                {name: Index.open(Path(edition.index)) for name, edition in editions.items()},
                {name: read_examples(cfg.hot_swap.questions, e.answers) for name, e in editions.items()},
                decoding,
                n_docs,
                cfg.batch_size,
            )
        write_predictions(run.folder / "predictions.jsonl", model, found, n_docs)
        run.finish(result)
    show(read_json(run.folder / "result.json"), str(cfg.checkpoint), cfg.split)
    print(f"predictions and figures in {run.folder}")


def show(result: dict, checkpoint: str, split: str) -> None:
    table = Table(
        "figure", "value", "95 % interval", title=f"{checkpoint} on {split}, K = {result['n_docs']}"
    )
    for name, (low, high) in result["intervals"].items():
        table.add_row(name, f"{result[name]:.3f}", f"{low:.3f} – {high:.3f}")
    for name in ("recall", "answer_recall"):
        for k, value in result.get(name, {}).items():
            table.add_row(f"{name}@{k}", f"{value:.3f}")
    for k, value in result.get("em_by_k", {}).items():
        table.add_row(f"em at K = {k}", f"{value:.3f}")
    for cell, value in result.get("hot_swap", {}).items():
        table.add_row(f"hot-swap: asked {cell[0]}, indexed {cell[1]}", f"{value:.3f}")
    Console().print(table)


if __name__ == "__main__":
    run_script("evaluate", USAGE, evaluate)
