"""report.md and report.png of whatever train.py, evaluate.py or build_index.py finished, in its own folder.

    training    the last figures, and the curves of metrics.csv
    evaluation  figures with their intervals beside the paper's, exact match and recall against K, hot-swap, ten answers
    index       recall against exact search, milliseconds a query, seconds and bytes

Each page ends with the command that made it. Nothing is measured here: the figures are those of result.json,
metrics.csv and manifest.json. Matplotlib is imported once there is something to draw, not when a script starts.
"""

import json
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rag.files import read_json, write_aside
from rag.runs import PROJECT, provenance

ANSWERS = 10  # questions shown of an evaluation
PASSAGES = 3  # of each


def write_run_report(folder: str | Path) -> Path:
    """Write the page of the finished run, evaluation or index in `folder` and return its path."""
    folder = Path(folder)
    if (folder / "manifest.json").exists():
        lines, figure = _index(folder)
    elif "questions" in read_json(folder / "result.json"):
        lines, figure = _evaluation(folder)
    else:
        lines, figure = _training(folder)
    if figure is not None:
        from rag.reports import plots

        plots.save(figure, folder / "report.png")
    page = folder / "report.md"
    with write_aside(page) as aside:
        aside.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return page


# -- training ------------------------------------------------------------------------------------


def _training(folder: Path) -> tuple[list[str], Any]:
    from rag.reports.page import cell, table

    run, result, config = read_json(folder / "run.json"), read_json(folder / "result.json"), _config(folder)
    steps, seconds = result["steps"], result["training_seconds"]
    speed = f", {steps / seconds:.2f} steps a second" if seconds else ""
    lines = [f"# {config['name']}", "", f"{steps:,} steps in {seconds:,.0f} s{speed}; seed {config['seed']}."]
    if best := config.get("monitor"):
        lines += ["", f"The weights are those of the best {best}; the figures are the last step's."]
    lines += ["", *table(["figure", "value"], [[name, cell(v)] for name, v in result["figures"].items()])]
    figure = _curves(folder)
    if figure is not None:
        lines += ["", "![figures against training steps](report.png)"]
    return [*lines, *_made_by(run)], figure


def _curves(folder: Path) -> Any:
    """The figures of metrics.csv against steps, losses and dev's scores and the others apart; None without any."""
    from rag.reports import plots

    series = curves(folder)
    panels = {
        "loss, nats": {n: s for n, s in series.items() if "loss" in n or "nll" in n},
        "score on dev": {n: s for n, s in series.items() if n.startswith("dev/")},
        "share, or nats of entropy": {
            n: s for n, s in series.items() if n.startswith("train/") and "loss" not in n and "nll" not in n
        },
    }
    panels = {label: own for label, own in panels.items() if own}
    if not panels:
        return None
    figure, axes = plots.new_figure(4.6 * len(panels), 3.6, columns=len(panels))
    for axis, (label, own) in zip(axes[0], panels.items(), strict=True):
        plots.curves(axis, own)
        axis.set_ylabel(label)
        if label == "score on dev":
            axis.set_ylim(0, 1.02)
    return figure


def curves(folder: Path) -> dict[str, tuple[list[float], list[float]]]:
    """{figure: (steps, values)} of a run's CSV files; where an interrupted run did a step twice, the later counts."""
    import pandas as pd

    files = sorted(folder.glob("metrics-*.csv"), key=lambda file: int(file.stem.split("-")[1]))
    files += [folder / "metrics.csv"] if (folder / "metrics.csv").exists() else []
    frames = [pd.read_csv(file) for file in files if file.stat().st_size]
    if not frames:
        return {}
    whole = pd.concat(frames)
    found = {}
    for name in whole.columns.drop(["step", "epoch"], errors="ignore"):
        own: Any = whole.set_index("step")[name].dropna().groupby(level="step").last()
        if len(own):
            found[str(name)] = ((own.index + 1).tolist(), own.tolist())
    return found


# -- evaluation ----------------------------------------------------------------------------------


def _evaluation(folder: Path) -> tuple[list[str], Any]:
    from rag.reports.page import cell, table

    run, result, config = read_json(folder / "run.json"), read_json(folder / "result.json"), _config(folder)
    lines = [
        f"# {config['name']} on {config['split']}",
        "",
        f"{result['questions']:,} questions, K = {result['n_docs']}, checkpoint {_short(config['checkpoint'])}.",
        "",
        *_figures(result, config),
    ]
    if "index" in result:
        index = result["index"]
        lines += ["", f"Index: {index['type']}, {index['passages']:,} passages."]
    lines += _recalls(result)
    if sweeps := sweeps_of(result):
        header = ["figure", *(f"K = {k}" for k in next(iter(sweeps.values())))]
        rows = [[name, *(cell(value) for value in by_k.values())] for name, by_k in sweeps.items()]
        lines += ["", "## More passages at test time", "", *table(header, rows)]
    if "hot_swap" in result:
        from rag.reports import plots

        cells = plots.cells_of(result["hot_swap"], list(config["hot_swap"]["editions"]))
        indexed = [f"{name} indexed" for name in cells]
        rows = [[name, *(cell(float(value)) for value in own.values())] for name, own in cells.items()]
        lines += ["", "## Hot-swap: exact match", "", *table(["asked about", *indexed], rows)]
    figure = _scores(result, config)
    if figure is not None:
        lines += ["", "![scores, recall, exact match against K, hot-swap](report.png)"]
    if (folder / "predictions.jsonl").exists():  # a bi-encoder answers nothing
        lines += answers(folder / "predictions.jsonl", result["questions"], config["name"])
    return [*lines, *_made_by(run)], figure


def _figures(result: Mapping[str, Any], config: dict[str, Any]) -> list[str]:
    """The metrics with their intervals, beside the paper's where the experiment names them (its `paper` node)."""
    from rag.reports.page import cell, table

    nodes = sorted(config.get("paper") or [], key=lambda node: node["split"] == config["split"])
    paper = {node["metric"]: node for node in nodes}  # this split's before another's
    header = ["figure", "value", "95 % interval", *(["paper", "difference"] if paper else [])]
    rows, intervals = [], result["intervals"] | result.get("intervals_at", {})
    for name in dict.fromkeys([*result["intervals"], *paper]):
        metric, _, key = name.partition("@")
        value = result.get(metric)
        value = value.get(key) if isinstance(value, dict) else value
        if value is None:
            continue
        low, high = intervals.get(name, (None, None))
        row = [name, cell(float(value)), "–" if low is None else f"{low:.3f} – {high:.3f}"]
        if node := paper.get(name):
            of = "" if node["split"] == config["split"] else f" ({node['split']})"
            row += [f"{node['value'] / 100:.3f}{of}", f"{value - node['value'] / 100:+.3f}"]
        elif paper:
            row += ["", ""]
        rows.append(row)
    return table(header, rows) if rows else []


def sweeps_of(result: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """{metric: {K: …}} of the evaluations with several K (figure 3)."""
    return {name.removesuffix("_by_k"): by_k for name, by_k in result.items() if name.endswith("_by_k")}


def _recalls(result: Mapping[str, Any]) -> list[str]:
    from rag.reports.page import cell, table

    kinds = [kind for kind in ("recall", "answer_recall") if kind in result]
    if not kinds:
        return []
    lines = [
        "",
        "## Retrieval",
        "",
        "recall: a gold passage among the first K; answer_recall: one that contains an answer.",
    ]
    header = ["K", *kinds, *(f"BM25, {kind}" for kind in kinds if kind in result.get("bm25", {}))]
    rows = []
    for k in result[kinds[0]]:
        own = [result[kind].get(k) for kind in kinds]
        own += [result["bm25"][kind].get(k) for kind in kinds if kind in result.get("bm25", {})]
        rows.append([k, *map(cell, own)])
    return [*lines, "", *table(header, rows)]


def _scores(result: Mapping[str, Any], config: dict[str, Any]) -> Any:
    """One panel for each of scores, recall, exact match against K and hot-swap that was measured."""
    from rag.reports import plots

    name = Path(config["checkpoint"]).name

    def scores(axis: Any) -> None:
        names = [name for name, (low, _) in result["intervals"].items() if low is not None][::-1]
        own = [result[each] for each in names]
        plots.interval_bars(
            axis,
            names,
            own,
            [result["intervals"][n] for n in names],
            [plots.style_of(name, 0)["color"]] * len(names),
        )
        axis.set(
            xlabel="score (95 % interval)", title=f"{result['questions']:,} questions, K = {result['n_docs']}"
        )

    def recall(axis: Any) -> None:
        kinds = {"recall": "gold passage", "answer_recall": "an answer"}
        by_k = {f"{what} among K": result[kind] for kind, what in kinds.items() if kind in result}
        bm25 = result.get("bm25", {})
        by_k |= {f"BM25: {what}": bm25[kind] for kind, what in kinds.items() if kind in bm25}
        plots.against_k(axis, by_k)
        axis.set(ylabel="share of questions", title="Retrieval")

    def sweep(axis: Any) -> None:
        plots.against_k(axis, sweeps_of(result))
        axis.set(ylabel="score", title="More passages at test time")

    def swap(axis: Any) -> None:
        plots.swap_grid(axis, plots.cells_of(result["hot_swap"], list(config["hot_swap"]["editions"])))
        axis.set_title("Hot-swap: exact match")

    judged = [result[each] for each, (low, _) in result["intervals"].items() if low is not None]
    panels = [scores] if judged and all(0 <= each <= 1 for each in judged) else []
    panels += [recall] if {"recall", "answer_recall"} & result.keys() else []
    panels += [sweep] if sweeps_of(result) else []
    panels += [swap] if "hot_swap" in result else []
    if not panels:
        return None
    columns = 2 if len(panels) == 4 else len(panels)
    rows = len(panels) // columns
    figure, axes = plots.new_figure(4.8 * columns, 3.8 * rows, rows, columns)
    for axis, draw in zip(axes.flat, panels, strict=True):
        draw(axis)
    return figure


def answers(predictions: Path, questions: int, name: str) -> list[str]:
    """Ten questions, evenly from the whole set, with what was answered and the passages behind it."""
    from rag.metrics.qa import exact_match
    from rag.reports.page import escaped, table

    step = max(1, questions // ANSWERS)
    with open(predictions, encoding="utf-8") as file:
        chosen = [json.loads(line) for line in islice(file, 0, ANSWERS * step, step)]
    lines = ["", f"## {len(chosen)} questions, {name}", ""]
    for record in chosen:
        right = exact_match([record["prediction"]], [record["answers"]])[0] == 1
        known = record["logprob"] is not None  # not where no passage was found
        certainty = f"log p = {record['logprob']:.2f}" if known else "no passage found"
        lines += [
            f"**{record['question']}** {'✓' if right else '✗'}",
            "",
            f"answered *{record['prediction']}* ({certainty}), expected *{' or '.join(record['answers'])}*",
            "",
        ]
        if "passages" in record:
            rows = [
                [
                    f"{passage['prior']:.2f}",
                    f"{passage['posterior']:.2f}",
                    "gold" if passage["gold"] else "",
                    escaped(f"**{passage['title']}** {passage['text']}"),
                ]
                for passage in record["passages"][:PASSAGES]
            ]
            lines += [*table(["p(z\\|x)", "p(z\\|x,y)", "", "passage"], rows), ""]
    return lines[:-1]


# -- index ---------------------------------------------------------------------------------------


def _index(folder: Path) -> tuple[list[str], Any]:
    from rag.reports import plots
    from rag.reports.page import cell, table

    manifest = read_json(folder / "manifest.json")
    recall, size = manifest["recall"], sum(file["bytes"] for file in manifest["files"].values())
    lines = [
        f"# The index {_short(str(folder))}",
        "",
        f"{manifest['corpus']['passages']:,} passages of {_short(manifest['corpus']['path'])}, "
        f"{manifest['dim']} dimensions, embedded by {_short(manifest['encoder']['name'])}.",
        "",
        *table(
            ["figure", "value"],
            [
                ["type", manifest["factory"]],
                [
                    "searched with",
                    ", ".join(f"{name} = {value}" for name, value in manifest["search"].items()),
                ],
                *([f"recall@{k} against exact search", cell(float(value))] for k, value in recall.items()),
                ["milliseconds a query", f"{manifest['ms_per_query']:.2f} ({manifest['threads']} threads)"],
                ["size", f"{size / 1e6:,.1f} MB"],
                *([f"seconds to {name}", f"{value:,.1f}"] for name, value in manifest["seconds"].items()),
            ],
        ),
        "",
        f"Recall was measured with {manifest['recall_queries']}.",
        "",
        "![recall against exact search, seconds of each step](report.png)",
    ]
    figure, axes = plots.new_figure(9.6, 3.6, columns=2)
    left, right = axes[0]
    plots.against_k(left, {manifest["factory"]: recall})
    left.set(ylabel="share of the exact K found", title=f"Recall, {manifest['ms_per_query']:.2f} ms a query")
    seconds = manifest["seconds"]
    right.barh(list(seconds)[::-1], list(seconds.values())[::-1], color=plots.PALETTE[0], height=0.65)
    right.set(xlabel="seconds", title="Time of each step")
    return [*lines, *_made_by(provenance())], figure


# -- what they share -----------------------------------------------------------------------------


def _made_by(run: Mapping[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    command = run["command"].replace(f"{PROJECT}/", "")
    return [
        "",
        "## Made by",
        "",
        "```",
        command,
        "```",
        "",
        f"Commit {run['commit']}; {run['machine']}; {versions}.",
    ]


def _short(path: str) -> str:
    """A path as it is typed in the project's folder."""
    return path.replace(f"{PROJECT}/", "").replace("${project:}/", "")


def _config(folder: Path) -> dict[str, Any]:
    """The saved configuration as plain containers; paths still begin with ${project:}."""
    config: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"), resolve=False)
    return config
