"""report.md and report.png of whatever train.py, evaluate.py or build_index.py finished, in its own folder.

    training    the last metrics, and the curves of metrics.csv
    evaluation  metrics with intervals and n beside the paper's, more passages, hot-swap, ten answers
    index       recall against exact search, milliseconds per query, seconds and bytes

Each page ends with the command that made it. Nothing is measured here: the numbers are those of result.json,
metrics.csv and manifest.json. Matplotlib is imported once there is something to draw, not when a script starts.
"""

import json
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rag.files import read_json, write_aside
from rag.metrics.record import BM25, by_k, records_of, swap_cells, swap_pair, training_metrics
from rag.reports import result_table
from rag.reports.page import cell, table
from rag.reports.paper_cells import cells_of
from rag.runs import PROJECT, provenance
from rag.safe_text import fenced
from rag.safe_text import markdown as escaped

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
    run, result, config = read_json(folder / "run.json"), read_json(folder / "result.json"), _config(folder)
    steps, seconds = result["steps"], result["training_seconds"]
    speed = f", {steps / seconds:.2f} steps per second" if seconds else ""
    seed = escaped(str(config["seed"]))
    lines = [f"# {escaped(config['name'])}", "", f"{steps:,} steps in {seconds:,.0f} s{speed}; seed {seed}."]
    if best := config.get("monitor"):
        lines += ["", f"The weights are those of the best {escaped(best)}; the metrics are the last step's."]
    rows = [[escaped(name), cell(value)] for name, value in training_metrics(result).items()]
    lines += ["", *table(["metric", "value"], rows)]
    figure, shown = _curves(folder)
    if figure is not None:
        lines += ["", f"![{', '.join(shown)}, against training steps](report.png)"]
    return [*lines, *_made_by(run)], figure


def _curves(folder: Path) -> tuple[Any, list[str]]:
    """The metrics of metrics.csv against steps, a panel for each unit, with the panels' labels; None without any."""
    from rag.reports import plots

    panels: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for name, series in curves(folder).items():
        unit = _unit(name, series[1])
        if name.startswith(("train/", "dev/")) and (unit != LEFT_OUT or any(series[1])):
            panels.setdefault(unit, {})[name] = series
    if not panels:
        return None, []
    ordered = {label: panels[label] for label in sorted(panels, key=_order)}
    columns = 2 if len(ordered) == 4 else min(3, len(ordered))
    rows = -(-len(ordered) // columns)
    figure, axes = plots.new_figure(4.8 * columns, 4.0 * rows, rows, columns)
    for axis, (label, series) in zip(axes.flat, ordered.items(), strict=False):
        single = all(len(values) == 1 for _, values in series.values())
        if label == "share" and not single:
            plots.shares(axis, label)
        plots.curves(axis, series)
        axis.set(**{"xlabel" if single else "ylabel": label})
    for axis in axes.flat[len(ordered) :]:
        axis.set_axis_off()
    return figure, list(ordered)


# The units of what training logs; what is none of these and lies between 0 and 1 is a share.
LEFT_OUT = "examples left out"  # most often none
_UNITS = {
    "loss": "loss, nats",
    "nll": "loss, nats",
    "entropy": "entropy of retrieval, nats",
    "rank": "rank",
    "norm": "norm of the gradient",
    "left_out": LEFT_OUT,
    "without_negatives": LEFT_OUT,
    "false_negatives": "false negatives left out",
    "seconds": "seconds",
}


def _unit(name: str, values: list[float]) -> str:
    for part, unit in _UNITS.items():
        if part in name:
            return unit
    return "share" if all(0 <= value <= 1 for value in values) else "value"


def _order(label: str) -> tuple[int, str]:
    first = ("loss, nats", "share")
    return (first.index(label) if label in first else len(first), label)


def curves(folder: Path) -> dict[str, tuple[list[float], list[float]]]:
    """{metric: (steps, values)} of a run's CSV files; where an interrupted run did a step twice, the later counts."""
    import pandas as pd

    files = sorted(folder.glob("metrics-*.csv"), key=lambda file: int(file.stem.split("-")[1]))
    files += [folder / "metrics.csv"] if (folder / "metrics.csv").exists() else []
    frames = [pd.read_csv(file) for file in files if file.stat().st_size]
    if not frames:
        return {}
    whole = pd.concat(frames)
    curve_of = {}
    for name in whole.columns.drop(["step", "epoch"], errors="ignore"):
        values: Any = whole.set_index("step")[name].dropna().groupby(level="step").last()
        if len(values):
            curve_of[str(name)] = ((values.index + 1).tolist(), values.tolist())
    return curve_of


# -- evaluation ----------------------------------------------------------------------------------


def _evaluation(folder: Path) -> tuple[list[str], Any]:
    run, result, config = read_json(folder / "run.json"), read_json(folder / "result.json"), _config(folder)
    lines = [
        f"# {escaped(config['name'])} on {escaped(config['split'])}",
        "",
        f"{result['questions']:,} questions, {result_table.reads(result_table.own_k(result))}, "
        f"checkpoint {_short(config['checkpoint'])}.",
    ]
    if "index" in result:
        index = result["index"]
        lines += ["", f"Index: {escaped(index['type'])}, {index['passages']:,} passages."]
    cells = cells_of(config.get("paper") or [], config["name"])
    for section in result_table.sections(result, cells):
        lines += ["", f"## {section.title}", ""]
        if section.title == "Retrieval":
            looked_for = {each.metric for each in records_of(result)} & set(result_table.RETRIEVAL)
            lines += [f"{_looked_for(looked_for)} among the first K.", ""]
        lines += result_table.markdown(section)
    figure, shown = _scores(result, config)
    if figure is not None:
        lines += ["", f"![{', '.join(shown)}](report.png)"]
    if (folder / "predictions.jsonl").exists():  # a bi-encoder answers nothing
        lines += answers(folder / "predictions.jsonl", result["questions"], config["name"])
    return [*lines, *_made_by(run)], figure


def _looked_for(metrics: set[str]) -> str:
    wanted = [name for name in result_table.RETRIEVAL if name in metrics]
    return "; ".join(f"{result_table.label_of(name)}: {result_table.RETRIEVAL[name]}" for name in wanted)


def _scores(result: Mapping[str, Any], config: dict[str, Any]) -> tuple[Any, list[str]]:
    """A panel for each of answers, retrieval, metrics against K and hot-swap that was measured, and their titles."""
    from rag.reports import plots

    name = Path(config["checkpoint"]).name
    records, k_of_run = records_of(result), result_table.own_k(result)
    swept = result_table.sweeps_of(records)
    cells = swap_cells(records)
    scored = [
        each
        for each in records
        if each.metric not in result_table.RETRIEVAL and each.k in (None, k_of_run) and not swap_pair(each)
    ]
    scored = [each for each in scored if each.value is not None and each.low is not None]
    retrieved: dict[str, dict[int, float | None]] = {}
    for condition, of in ((None, ""), (BM25, "BM25: ")):
        for metric, looked_for in result_table.RETRIEVAL.items():
            if at_each_k := by_k(records, metric, condition):
                retrieved[f"{of}{looked_for}"] = {k: each.value for k, each in at_each_k.items()}

    def scores(axis: Any) -> None:
        shown = scored[::-1]
        labels = [result_table.name_of(each, k_of_run).replace(", ", ",\n") for each in shown]
        labels = [
            f"{label}\nn = {each.n:,}" if each.n is not None else label
            for label, each in zip(labels, shown, strict=True)
        ]
        intervals = [(each.low or 0.0, each.high or 0.0) for each in shown]
        colours = [plots.style_of(name, 0)["color"]] * len(shown)
        plots.interval_bars(axis, labels, [each.value or 0.0 for each in shown], intervals, colours)
        axis.set_xlabel("value with 95 % interval")

    def sweep(axis: Any) -> None:
        lines = {result_table.label_of(m): {k: r.value for k, r in each.items()} for m, each in swept.items()}
        plots.against_k(axis, lines, "value")

    draw = {
        f"Answers, {result_table.reads(k_of_run)}": scores
        if scored and all(0 <= (each.value or 0) <= 1 for each in scored)
        else None,
        "Retrieved among K": (lambda axis: plots.against_k(axis, retrieved)) if retrieved else None,
        "More passages at test time": sweep if swept else None,
        "Hot-swap: exact match": (lambda axis: plots.swap_grid(axis, cells)) if cells else None,
    }
    panels = {title: panel for title, panel in draw.items() if panel is not None}
    if not panels:
        return None, []
    columns = 2 if len(panels) == 4 else len(panels)
    rows = len(panels) // columns
    figure, axes = plots.new_figure(5.2 * columns, 4.2 * rows, rows, columns)
    for axis, (title, panel) in zip(axes.flat, panels.items(), strict=True):
        panel(axis)
        axis.set_title(title)
    return figure, list(panels)


def answers(predictions: Path, questions: int, name: str) -> list[str]:
    """Ten questions, evenly from the whole set, with what was answered and the passages behind it."""
    from rag.metrics.qa import exact_match

    step = max(1, questions // ANSWERS)
    with open(predictions, encoding="utf-8") as file:
        chosen = [json.loads(line) for line in islice(file, 0, ANSWERS * step, step)]
    lines = ["", f"## {len(chosen)} questions, {escaped(name)}", ""]
    for record in chosen:
        right = exact_match([record["prediction"]], [record["answers"]])[0] == 1
        known = record["logprob"] is not None  # not where no passage was found
        certainty = f"log p = {record['logprob']:.2f}" if known else "no passage found"
        lines += [
            f"**{escaped(record['question'])}** {'✓' if right else '✗'}",
            "",
            f"answered *{escaped(record['prediction'])}* ({certainty}), "
            f"expected *{escaped(' or '.join(record['answers']))}*",
            "",
        ]
        if "passages" in record:
            rows = [
                [
                    f"{passage['prior']:.2f}",
                    f"{passage['posterior']:.2f}",
                    "gold" if passage["gold"] else "",
                    f"**{escaped(passage['title'])}** {escaped(passage['text'])}",
                ]
                for passage in record["passages"][:PASSAGES]
            ]
            lines += [*table(["p(z\\|x)", "p(z\\|x,y)", "", "passage"], rows), ""]
    return lines[:-1]


# -- index ---------------------------------------------------------------------------------------


def _index(folder: Path) -> tuple[list[str], Any]:
    from rag.reports import plots

    manifest = read_json(folder / "manifest.json")
    recall, size = manifest["recall"], sum(file["bytes"] for file in manifest["files"].values())
    lines = [
        f"# The index {_short(str(folder))}",
        "",
        f"{manifest['corpus']['passages']:,} passages of {_short(manifest['corpus']['path'])}, "
        f"{manifest['dim']} dimensions, embedded by {_short(manifest['encoder']['name'])}.",
        "",
        *table(
            ["what", "value"],
            [
                ["type", escaped(manifest["factory"])],
                [
                    "searched with",
                    ", ".join(f"{name} = {value}" for name, value in manifest["search"].items()),
                ],
                *([f"recall@{k} against exact search", cell(float(value))] for k, value in recall.items()),
                ["milliseconds per query", f"{manifest['ms_per_query']:.2f} ({manifest['threads']} threads)"],
                ["size", f"{size / 1e6:,.1f} MB"],
                *(
                    [f"seconds to {escaped(name)}", f"{value:,.1f}"]
                    for name, value in manifest["seconds"].items()
                ),
            ],
        ),
        "",
        f"Recall was measured with {escaped(manifest['recall_queries'])}.",
        "",
        f"![{'recall against exact search, ' if recall else ''}seconds of each step](report.png)",
    ]
    figure, axes = plots.new_figure(4.8 * (1 + bool(recall)), 3.8, columns=1 + bool(recall))
    if recall:  # unknown where there are no true vectors
        share = {manifest["factory"]: {int(k): value for k, value in recall.items()}}
        plots.against_k(axes[0, 0], share, "share of the exact K found")
        axes[0, 0].set_title(f"Recall, {manifest['ms_per_query']:.2f} ms per query")
    plots.bars(axes[0, -1], manifest["seconds"], "{:,.2f}")
    axes[0, -1].set(xlabel="seconds, all processes together", title="Time of each step")
    return [*lines, *_made_by(provenance())], figure


# -- what they share -----------------------------------------------------------------------------


def _made_by(run: Mapping[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    command = run["command"].replace(f"{PROJECT}/", "")
    return [
        "",
        "## Made by",
        "",
        *fenced(command),
        "",
        escaped(f"Commit {run['commit']}; {run['machine']}; {versions}."),
    ]


def _short(path: str) -> str:
    """A path as it is typed in the project's folder, for Markdown."""
    return escaped(path.replace(f"{PROJECT}/", "").replace("${project:}/", ""))


def _config(folder: Path) -> dict[str, Any]:
    """The saved configuration as plain containers; paths still begin with ${project:}."""
    config: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"), resolve=False)
    return config
