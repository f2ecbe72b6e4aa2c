"""What `rag.commands.evaluate` does once it is known what to evaluate: answer, judge, write the results."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from rag.checkpoint_config import in_transformers_format
from rag.commands.retrieving import PREFIX, alone
from rag.compose import CONFIGS, compose_config, key_of, plain, reading
from rag.errors import UserError
from rag.evaluation.answering import answer_in_parts, find_scored, questions_at_once, read_parts, scores_of
from rag.evaluation.as_read import AsRead
from rag.evaluation.exports import FORMS, Outcome, check_exports, write_exports
from rag.evaluation.hot_swap import hot_swap
from rag.evaluation.judging import describe_gold_not_held, judge, judge_passages, write_predictions
from rag.files import read_json, write_aside
from rag.fingerprints import digest
from rag.index.folder import Index
from rag.index.unembedded import prepare_passages
from rag.int8 import to_int8
from rag.processes import local_device, processes, wait_for_all
from rag.reopen import open_model
from rag.reports import result_table
from rag.reports.finished import complete_run
from rag.reports.paper_cells import Cell, cells_of
from rag.runs import Run, git_commit, mentions, portable
from rag.safe_text import say
from rag.saved_model import verify_model
from rag.tasks.qa import read_examples
from rag.terminal import Terminal
from rag.training.questions import check_questions, sample

LEAST_INDEX_RECALL = 0.95  # below this, what the generator reads is noticeably not what the scores ask for
DECISIVE = (
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


def evaluate(cfg: DictConfig, overrides: list[str]) -> Path:
    """Evaluate what the configuration of a run, with overrides on top, asks for; the folder of the results.

    cfg: as `from_checkpoint` gives it. By each process of its own share where several were started.
    """
    check_numbers(cfg)
    if cfg.verify:
        verify(cfg)
    exports = check_exports(
        [*cfg.export, *(["trec"] if cfg.trec else [])], cfg.module.answers, cfg.module.reads
    )
    if not cfg.module.answers:
        return evaluate_retrieval(cfg, overrides, exports)
    settings = {key: plain(cfg[key]) for key in DECISIVE} | {"model": plain(cfg.module.model)}
    settings |= {"int8": True} if cfg.int8 else {}
    closed_book = not cfg.module.reads
    ks = [1] if closed_book else sorted({cfg.n_docs, *cfg.k_sweep})
    n_docs = 1 if closed_book else cfg.n_docs
    swap = None if closed_book else cfg.hot_swap
    with processes() as (number, count):
        run = open_run(cfg, settings, closed_book, swap, first=number == 0)
        check_exported(run, exports)
        if not run.finished:
            task = instantiate(cfg.task)
            everything = task.examples(cfg.split)
            examples = sample(everything, cfg.limit)
            if number == 0:
                k_of_run = None if closed_book else n_docs
                say(first_line(cfg, len(examples), len(everything), k_of_run, count, run))
            model = open_model(cfg.module).to(local_device())
            if cfg.int8:
                to_int8(model.generator)
            check_questions(model, examples, task.source(cfg.split))
            decoding = instantiate(cfg.decoding)
            store = None if model.retriever is None else model.retriever.index.passages
            if model.retriever is not None:
                for k in ks:
                    model.retriever.check_depth(k, "n_docs" if k == n_docs else "k_sweep")
            as_read = None if model.retriever is None else AsRead(model.generator, model.retriever.index)
            cut = None if as_read is None else as_read.describe_cut([one.question for one in examples])
            absent = (
                None if store is None else describe_gold_not_held(store, examples, task.source(cfg.split))
            )
            for said in filter(None, (cut, absent)) if number == 0 else ():
                say(said)
            deepest = 0 if store is None else min(max(cfg.recall_at, default=0), len(store))
            indexes, asked = open_editions(swap, cfg.limit)
            for questions in asked.values():
                check_questions(model, questions, str(cfg.hot_swap.questions))
            wait_for_all()
            if number == 0:
                run.begin()
            wait_for_all()
            parts = run.folder / "parts"
            at_once = cfg.batch_size or questions_at_once(max(ks))
            answer_in_parts(model, examples, decoding, ks, n_docs, at_once, deepest, parts, number, count)
            wait_for_all()
            if number == 0:
                answered = read_parts(parts)
                sweep = [] if closed_book else list(cfg.k_sweep)
                wanted = (list(cfg.recall_at), cfg.bm25, as_read)
                records = judge(task, examples, answered, n_docs, cfg.split, sweep, store, *wanted)
                if swap is not None:
                    of = Path(swap.questions).stem
                    records += hot_swap(model, indexes, asked, decoding, n_docs, at_once, of)
                write_predictions(
                    run.folder / "predictions.jsonl", task, examples, answered, n_docs, store, as_read=as_read
                )
                texts = [each.texts[n_docs] for each in answered]
                for name, content in task.submission(texts, examples).items():
                    with write_aside(run.folder / name) as aside:
                        aside.write_text(content, encoding="utf-8")
                    say(f"the answers are not public: {run.folder / name} is what is sent in")
                found = (scores_of(answered), store, n_docs, texts, as_read)
                export(
                    exports,
                    Outcome(task, examples, np.array([each.rows for each in answered], np.int64), *found),
                    run,
                    cfg,
                )
                of_run = described(cfg, overrides, examples, n_docs, model.retriever)
                run.finish(of_run | {"metrics": [record.plain() for record in records]})
        if number == 0:
            complete_run(run.folder)
            show_result(cfg, run)
            show_measures(run.folder)
            say(f"predictions, metrics and report.md in {run.folder}")
        return run.folder


def evaluate_retrieval(cfg: DictConfig, overrides: list[str], exports: list[str]) -> Path:
    """A bi-encoder answers nothing: what it finds is judged (section 2.2). DPR's top-K accuracy is answer_recall@K.

    What a retriever found that is no run's (reader=none) is written as well. By the first process alone, where several
    were started: it takes seconds.
    """
    settings = {key: plain(cfg[key]) for key in ("task", "index", "split", "limit", "recall_at", "bm25")}
    settings["model"] = plain(cfg.module.model)
    exports += ["fid"] if alone(cfg) and "fid" not in exports else []
    with processes() as (number, _):
        run = open_run(cfg, settings, first=number == 0)
        check_exported(run, exports)
        if number > 0:
            return run.folder
        if not run.finished:
            task = instantiate(cfg.task)
            everything = task.examples(cfg.split)
            examples = sample(everything, cfg.limit)
            retriever = open_model(with_passages(cfg)).to(local_device())
            ks = sorted({k for k in cfg.recall_at if k <= len(retriever.index)})
            if not ks:
                raise UserError(
                    f"recall_at={list(cfg.recall_at)} asks for no passage, or for more than the "
                    f"{len(retriever.index):,} of the index: give some, as in recall_at=[1,5,20,100]"
                )
            say(first_line(cfg, len(examples), len(everything), ks[-1], 1, run))
            run.begin()
            if absent := describe_gold_not_held(retriever.index.passages, examples, task.source(cfg.split)):
                say(absent)
            questions = [example.question for example in examples]
            rows, scores = find_scored(retriever, questions, ks[-1], cfg.batch_size, device=local_device())
            store = retriever.index.passages
            records = judge_passages(task, examples, rows, cfg.split, store, ks, cfg.bm25)
            export(exports, Outcome(task, examples, rows, scores, store, ks[-1]), run, cfg)
            of_run = described(cfg, overrides, examples, ks[-1], retriever)
            run.finish(of_run | {"metrics": [record.plain() for record in records]})
        complete_run(run.folder)
        show_result(cfg, run)
        show_measures(run.folder)
        say(f"metrics and report.md in {run.folder}")
        return run.folder


def with_passages(cfg: DictConfig) -> dict[str, Any]:
    """`cfg.module` with an index that is there: what is searched by its words needs the corpus's passages alone."""
    module = plain(cfg.module)
    if module.get("prepare"):
        index = prepare_passages(cfg.corpus.path, Path(cfg.paths.data) / "passages", reading(cfg.corpus))
        module["model"]["index"] = str(index.folder)
    return module


def check_exported(run: Run, exports: Sequence[str]) -> None:
    """UserError for an evaluation that is finished and did not write one of its exports."""
    for name in exports if run.finished else ():
        if not (run.folder / FORMS[name].file).exists():
            raise UserError(
                f"{run.folder} is finished and was evaluated without export={name}: overwrite=true evaluates again and "
                "writes it"
            )


def export(names: Sequence[str], outcome: Outcome, run: Run, cfg: DictConfig) -> None:
    """Write the exports and say where they are."""
    for path in write_exports(names, outcome, run.folder, str(cfg.name)):
        say(f"written: {path}")


def show_measures(folder: Path) -> None:
    """What ir_measures says of a TREC run, where there is one."""
    if not (folder / "trec").is_dir():
        return
    if not (file := folder / "trec" / "measures.json").exists():
        say("nDCG, MRR and MAP are computed where ir_measures is installed: pip install 'rag[ir]'")
        return
    for name, measures in read_json(file).items():
        said = ", ".join(f"{measure} {of['value']:.4f}" for measure, of in measures.items())
        say(f"by ir_measures over qrels.{name}.txt: {said}")


def verify(cfg: DictConfig) -> None:
    """Read every byte of what is evaluated, by one process; UserError at the first file that was altered."""
    with processes() as (number, _):
        if number == 0:
            if not alone(cfg):
                model = 0 if in_transformers_format(cfg.checkpoint) else verify_model(Path(cfg.checkpoint))
                known = f"its {model} files are as written" if model else "nobody wrote down its hashes"
                print(f"{cfg.checkpoint}: {known}")
            editions = cfg.hot_swap.editions.values() if cfg.module.reads and cfg.hot_swap else ()
            indexes = [each.index for each in editions]
            if over_index(cfg):
                indexes.append(cfg.index.path)
            for folder in dict.fromkeys(indexes):
                index = Index.open(Path(folder))
                index.verify()
                print(f"{folder}: its {len(index.manifest.files)} files are as written")
        wait_for_all()


def open_run(
    cfg: DictConfig,
    settings: dict[str, Any],
    closed_book: bool = False,
    swap: DictConfig | None = None,
    first: bool = True,
) -> Run:
    """The folder of the results; the first process says so where they are there already."""
    run = Run.open(
        cfg.results or place(cfg, settings),
        settings,
        OmegaConf.to_yaml(cfg, resolve=True),
        inputs(cfg, settings, closed_book, swap),
        cfg.overwrite,
        setting="results",
    )
    if run.finished and first:
        say(f"{run.folder} already exists, made with these settings (overwrite=true evaluates again)")
    return run


def show_result(cfg: DictConfig, run: Run) -> None:
    """The table of a finished evaluation, beside the paper's values."""
    cells = paper_cells(cfg)
    show(read_json(run.folder / "result.json"), str(cfg.checkpoint), cells)


def paper_cells(cfg: DictConfig) -> list[Cell]:
    """The paper's values for what was evaluated; none where the questions are not the experiment's but one's own.

    Those are another kind of task, or a file of another name: the experiment's may lie anywhere.
    """
    cells = cells_of(plain(cfg.get("paper") or []), cfg.name)
    files = (file for file in sorted((CONFIGS / "experiment").rglob("*.yaml")) if cells)
    named = (
        file for file in files if re.search(rf"(?m)^name: {re.escape(cfg.name)}\s*$", file.read_text("utf-8"))
    )
    if (file := next(named, None)) is None:
        return cells
    experiment = file.relative_to(CONFIGS / "experiment").with_suffix("")
    of_experiment = compose_config("train", [f"experiment={experiment}"])
    asked, of_paper = (
        (each.task._target_, Path(str(each.task.get(cfg.split))).name) for each in (cfg, of_experiment)
    )
    return cells if asked == of_paper else []


def check_numbers(cfg: DictConfig) -> None:
    """UserError for a limit, a batch size or numbers of passages that are none."""
    for name in ("limit", "batch_size", "n_docs"):
        value = plain(cfg.get(name))
        if value is not None and (type(value) is not int or value < 1):
            raise UserError(f"{name}={value}: a whole number from 1 is expected, as in {name}=32")
    for name in ("k_sweep", "recall_at"):
        value = plain(cfg.get(name, []))
        if not isinstance(value, list) or any(type(each) is not int or each < 1 for each in value):
            raise UserError(
                f"{name}={_typed(value)}: a list of whole numbers from 1 is expected, as in {name}=[1,5,20]"
            )
    exports = plain(cfg.export)
    if not isinstance(exports, list) or not all(isinstance(each, str) for each in exports):
        raise UserError(f"export={_typed(exports)}: a list is expected, as in export=[{','.join(FORMS)}]")
    swap = plain(cfg.get("hot_swap"))
    if swap is not None and not (isinstance(swap, dict) and {"questions", "editions"} <= swap.keys()):
        raise UserError(
            f"hot_swap={_typed(swap)}: two editions are expected, as in "
            "configs/experiment/hotswap/nq_rag_sequence.yaml, or null"
        )


def _typed(value: Any) -> Any:
    return "null" if value is None else value


def place(cfg: DictConfig, settings: dict[str, Any]) -> Path:
    """The folder of the results: inside the run's, or under outputs/ for a checkpoint that is none."""
    name = f"{cfg.split}-{digest(portable(settings))[:6]}"
    if in_transformers_format(cfg.checkpoint) or alone(cfg):
        of = cfg.checkpoint.removeprefix(PREFIX).strip("/").replace("/", "--")
        return Path(cfg.paths.outputs) / "evaluation" / of / name
    return Path(cfg.checkpoint) / "evaluation" / name


def inputs(
    cfg: DictConfig, settings: dict[str, Any], closed_book: bool, swap: DictConfig | None
) -> list[str]:
    """What decides the result beside the settings: weights, questions, indexes."""
    model = str(Path(cfg.checkpoint) / "model")
    if alone(cfg):
        encoder = cfg.module.model.get("question_encoder")
        model = encoder if encoder and Path(encoder).exists() else None
        corpus = cfg.corpus.path if cfg.module.prepare else None
        searched = corpus or (cfg.index.path if over_index(cfg) else None)
        return [str(each) for each in (model, settings["task"].get(cfg.split), searched) if each]
    if in_transformers_format(cfg.checkpoint):
        model = cfg.checkpoint if Path(cfg.checkpoint).exists() else f"hub://{cfg.checkpoint}"
    files = [model, settings["task"].get(cfg.split)]
    if not closed_book and over_index(cfg):
        files.append(cfg.index.path)
    if swap is not None:
        files += [swap.questions, *(each.index for each in swap.editions.values())]
    return [each for each in files if each]


def over_index(cfg: DictConfig) -> bool:
    """Whether passages of the configuration's index are read."""
    return cfg.module.reads and mentions(plain(cfg.module.model), cfg.index.path)


def open_editions(swap: DictConfig | None, limit: int | None) -> tuple[dict[str, Index], dict[str, list]]:
    """The indexes of a hot-swap and its questions, at most `limit`, with the answers of each edition."""
    if swap is None:
        return {}, {}
    editions = {str(name): each for name, each in swap.editions.items()}
    asked = {
        name: sample(read_examples(swap.questions, each.answers), limit) for name, each in editions.items()
    }
    return {name: Index.open(Path(each.index)) for name, each in editions.items()}, asked


def first_line(cfg: DictConfig, chosen: int, there: int, n_docs: int | None, processes: int, run: Run) -> str:
    """What will happen, and where its results go."""
    part = f"{chosen:,} of {there:,} questions of {cfg.split}, drawn at random," if chosen < there else ""
    there_already = len(read_parts(run.folder / "parts"))
    return (
        f"{'resuming' if there_already else 'evaluating'} {cfg.checkpoint} on "
        f"{part or f'{chosen:,} questions of {cfg.split},'} {result_table.reads(n_docs)}"
        f"{f', {there_already:,} of them answered before' if there_already else ''}"
        f"{f', {processes} processes' if processes > 1 else ''}; results in {run.folder}"
    )


def described(
    cfg: DictConfig, overrides: list[str], examples: list, n_docs: int, retriever: Any
) -> dict[str, Any]:
    """What a result says of itself beside its metrics: enough to find its place in a table of the paper."""
    changed = [
        each for each in overrides if key_of(each).split(".")[0] in ("task", "corpus", "index", "decoding")
    ]
    result: dict[str, Any] = {
        "name": cfg.name,
        "checkpoint": str(cfg.checkpoint),
        "split": cfg.split,
        "limit": cfg.limit,
        "questions": len(examples),
        "n_docs": n_docs if retriever is not None else None,
        "seed": cfg.seed,
        "commit": git_commit(),
        "changed": changed + [each for each in overrides if key_of(each) == "n_docs"],
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
    }
    trained = Path(cfg.checkpoint) / "result.json"
    if trained.exists():
        result["training_seconds"] = read_json(trained).get("training_seconds")
    if retriever is not None:
        manifest = retriever.index.manifest
        other_way = retriever.kind  # than the index's FAISS file
        result["index"] = {"type": other_way or manifest.factory, "passages": len(retriever.index)}
        if other_way is None:
            result["index"]["recall"] = manifest.recall
    return result


def show(result: dict, checkpoint: str, cells: list[Cell]) -> None:
    index, lines = result.get("index"), []
    if index:
        lines.append(("index", f"{index['type']}, {index['passages']:,} passages"))
    index_finds = index_recall(result)
    if index and index.get("recall") == {}:
        lines.append(("index against exact search", "unknown"))
    if index_finds is not None:
        lines.append(("index against exact search", f"{index_finds:.3f}"))
    title = f"{checkpoint} on {result['split']}, {result_table.reads(result_table.own_k(result))}"
    Terminal().print(result_table.terminal(title, result_table.sections(result, cells), lines))
    if index_finds is not None and index_finds < LEAST_INDEX_RECALL:
        say(
            f"warning: the index finds {index_finds:.0%} of the passages that exact search finds, which costs exact "
            "match: rebuild it with index.type.target_recall=0.99 or as index=flat",
            file=sys.stderr,
        )


def index_recall(result: dict) -> float | None:
    """How much of what exact search finds the index finds, measured when it was built, at the K that covers n_docs."""
    recall = {int(k): value for k, value in result.get("index", {}).get("recall", {}).items()}
    deep_enough = [k for k in sorted(recall) if k >= result["n_docs"]] or sorted(recall)[-1:]
    return recall[deep_enough[0]] if deep_enough else None
