"""Evaluate a trained model: python evaluate.py checkpoint=RUN key=value …"""

import sys
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from rag.analysis.hot_swap import hot_swap
from rag.analysis.run_report import write_run_report
from rag.cli import from_checkpoint, plain, run_script
from rag.errors import UserError
from rag.evaluation import answer_questions, bm25_figures, retrieval_figures, write_predictions
from rag.files import read_json
from rag.index import Index
from rag.retriever import check_depth
from rag.runs import Run, digest, portable
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


LEAST_INDEX_RECALL = 0.95  # below this, what the generator reads is noticeably not what the scores ask for


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
            "bm25",
            "hot_swap",
        )
    }
    settings["model"] = plain(model_config)
    closed_book = "retriever" not in model_config
    if cfg.split not in ("train", "dev", "test"):
        raise UserError(f"split={cfg.split} does not exist: there are train, dev and test")
    if cfg.limit is not None and cfg.limit < 1:
        raise UserError(f"limit={cfg.limit} leaves no question: give 1 or more")
    inputs = [str(Path(cfg.checkpoint) / "model"), settings["task"].get(cfg.split)]
    if not closed_book:
        inputs.append(cfg.index.path)
        if cfg.hot_swap is not None:
            inputs += [cfg.hot_swap.questions, *(each.index for each in cfg.hot_swap.editions.values())]
    folder = (
        cfg.results or Path(cfg.checkpoint) / "evaluation" / f"{cfg.split}-{digest(portable(settings))[:6]}"
    )
    yaml = OmegaConf.to_yaml(cfg, resolve=True)
    run = Run.open(
        folder, settings, yaml, [each for each in inputs if each], cfg.overwrite, setting="results"
    )
    if run.finished:
        print(f"{run.folder} is there already, made with these settings (overwrite=true evaluates again)")
    else:
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
        for k in () if closed_book else ks:
            check_depth(model.retriever.index, k)
        swap: Any = (None if closed_book else cfg.hot_swap) or {"editions": {}, "questions": None}
        editions, file = swap["editions"], swap["questions"]
        indexes = {name: Index.open(Path(edition.index)) for name, edition in editions.items()}
        asked = {name: read_examples(file, e.answers) for name, e in editions.items()}
        run.begin()
        found = answer_questions(model, examples, decoding, ks, cfg.batch_size, deepest)
        scores = {k: task.score(found.texts(k), examples) for k in ks}
        result = {
            "questions": len(examples),
            "n_docs": n_docs,
            **{name: score.value for name, score in scores[n_docs].items()},
            "intervals": {name: [score.low, score.high] for name, score in scores[n_docs].items()},
        }
        if found.rows is not None:
            store = model.retriever.index.passages
            result |= retrieval_figures(store, found.rows, examples, cfg.recall_at)
            if cfg.bm25:
                result["bm25"] = bm25_figures(store, examples, cfg.recall_at)
            manifest = model.retriever.index.manifest
            other_way = getattr(model.retriever, "kind", None)  # than the index's FAISS file
            result["index"] = {"type": other_way or manifest.factory, "passages": manifest.corpus.passages}
            if other_way is None:
                result["index"]["recall"] = manifest.recall
            if cfg.k_sweep:
                result["em_by_k"] = {str(k): scores[k]["em"].value for k in cfg.k_sweep}
        if indexes:
            result["hot_swap"] = hot_swap(model, indexes, asked, decoding, n_docs, cfg.batch_size)
        write_predictions(run.folder / "predictions.jsonl", model, found, n_docs)
        run.finish(result)
        write_run_report(run.folder)
    show(read_json(run.folder / "result.json"), str(cfg.checkpoint), cfg.split)
    print(f"predictions, figures and report.md in {run.folder}")


def show(result: dict, checkpoint: str, split: str) -> None:
    n_docs, index, bm25 = result["n_docs"], result.get("index"), result.get("bm25", {})
    table = Table("figure", "value", "95 % interval", title=f"{checkpoint} on {split}, K = {n_docs}")
    if bm25:
        table.add_column("BM25")
    for name, (low, high) in result["intervals"].items():
        table.add_row(name, f"{result[name]:.3f}", f"{low:.3f} – {high:.3f}")
    if index:
        table.add_row("index", f"{index['type']}, {index['passages']:,} passages")
    found = index_recall(result)
    if index and index.get("recall") == {}:
        table.add_row("index against exact search", "unknown")
    if found is not None:
        table.add_row("index against exact search", f"{found:.3f}")
    for name in ("recall", "answer_recall"):
        for k, value in result.get(name, {}).items():
            beside = [f"{bm25[name][k]:.3f}"] if bm25 else []
            table.add_row(f"{name}@{k}", f"{value:.3f}", "", *beside)
    for k, value in result.get("em_by_k", {}).items():
        table.add_row(f"em at K = {k}", f"{value:.3f}")
    for cell, value in result.get("hot_swap", {}).items():
        table.add_row(f"hot-swap: asked {cell[0]}, indexed {cell[1]}", f"{value:.3f}")
    Console().print(table)
    if found is not None and found < LEAST_INDEX_RECALL:
        print(
            f"warning: the index finds {found:.0%} of the passages that exact search finds, which costs exact match: "
            "build it again with index.type.target_recall=0.99 or as index=flat",
            file=sys.stderr,
        )


def index_recall(result: dict) -> float | None:
    """How much of what exact search finds the index finds, measured when it was built, at the K that covers n_docs."""
    recall = {int(k): value for k, value in result.get("index", {}).get("recall", {}).items()}
    deep_enough = [k for k in sorted(recall) if k >= result["n_docs"]] or sorted(recall)[-1:]
    return recall[deep_enough[0]] if deep_enough else None


if __name__ == "__main__":
    run_script("evaluate", USAGE, evaluate)
