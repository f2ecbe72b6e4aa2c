"""Look at what a run did: python -m rag.analysis NAME run=FOLDER [key=value …]"""

import importlib
import inspect
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rag.cli import mistakes_in_one_sentence, quieten_logs, quieten_models
from rag.compose import nearest
from rag.errors import UserError
from rag.safe_text import say

USAGE = """
python -m rag.analysis NAME run=FOLDER [run=FOLDER …] [key=value …]

Analyses a run and writes NAME.md and NAME.png. FOLDER is a run of train.py or an evaluation of evaluate.py. The pages
are written to its subfolder analysis/, or to output=….

  python -m rag.analysis document_posterior run=outputs/demo/rag_token question="Where did Ada Abbott study?"
  python -m rag.analysis more_passages run=outputs/demo/rag_sequence run=outputs/demo/rag_token
  python -m rag.analysis retrieval_change run=outputs/demo/rag_sequence depth=50 output=/tmp/looked
"""


# Each is the function of that name in the module of that name; imported when it is asked for, for --help and mistakes
# need neither torch nor matplotlib.
ANALYSES = {
    "document_posterior": "Which passage each token of an answer comes from (figure 2).",
    "more_passages": "Metrics and recall of one or more runs against K (figure 3).",
    "hot_swap_table": "Exact match of one or more runs with the index exchanged (section 4.5).",
    "retrieval_change": "What end-to-end training changed: the gold passage's rank before and after (section 4.5).",
    "answerability": "What the passages do not hold: a score to refuse by, fitted and measured (abstain=true).",
    "error_breakdown": "Answers by whether a passage with the answer was read, and whether they were right.",
    "diversity": "Distinct trigrams of what one or more runs generated (Table 5).",
    "attention": "What the generator attends to in a passage at each token of its answer (the LSTM baseline).",
}


def usage() -> str:
    width = max(map(len, ANALYSES))
    lines = [f"  {name:{width}}  {does}" for name, does in ANALYSES.items()]
    more = "python -m rag.analysis NAME --help shows the settings of NAME."
    return "\n".join([USAGE.strip(), "", *lines, "", more])


def load(name: str) -> Callable[..., Any]:
    """The analysis of that name; UserError if there is none."""
    if name not in ANALYSES:
        raise UserError(f"the analysis {name} does not exist: {nearest(name, list(ANALYSES))}")
    return getattr(importlib.import_module(f"rag.analysis.{name}"), name)


def usage_of(name: str) -> str:
    """What an analysis does, and its settings with what they are if not given."""
    parameters = inspect.signature(analysis := load(name)).parameters.values()
    settings = " ".join(
        f"[{each.name}={each.default}]" for each in parameters if each.name not in ("run", "runs")
    )
    runs = "run=FOLDER [run=FOLDER …]" if any(each.name == "runs" for each in parameters) else "run=FOLDER"
    return f"python -m rag.analysis {name} {runs} {settings} [output=FOLDER]\n\n{inspect.getdoc(analysis)}"


def main(arguments: Sequence[str]) -> None:
    asked = [argument for argument in arguments if argument not in ("-h", "--help")]
    if len(asked) < len(arguments) or not asked:
        print(usage_of(asked[0]) if asked else usage())
        return
    name, *rest = arguments
    check_folders(name, rest)
    parameters = inspect.signature(analysis := load(name)).parameters
    runs, output, chosen = parse(rest, parameters)
    several = "runs" in parameters
    if not runs or (len(runs) > 1 and not several):
        raise UserError(f"{name} takes {'one or more runs' if several else 'one run'}: give run=FOLDER")
    quieten_models()
    folder = Path(output) if output else runs[0] / "analysis"
    say(f"{name} of {', '.join(map(str, runs))}")
    result = analysis(runs if several else runs[0], **chosen)
    from rich.table import Table

    from rag.reports.page import cell
    from rag.terminal import Terminal

    page = result.write(folder, name, ["python", "-m", "rag.analysis", *arguments])
    frame = result.table if result.table.index.name is None else result.table.reset_index()
    table = Table(*map(str, frame.columns), title=result.title)
    for row in frame.head(30).itertuples(index=False):
        table.add_row(*map(cell, row))
    Terminal().print(table)
    say(f"written: {page} and {page.with_suffix('.png').name}")


def check_folders(name: str, arguments: Sequence[str]) -> None:
    """UserError for an analysis or a run that does not exist, before what takes seconds to import."""
    if name not in ANALYSES:
        load(name)
    for argument in arguments:
        key, _, folder = argument.partition("=")
        if key == "run" and not Path(folder).is_dir():
            raise UserError(f"{argument} does not exist: give a folder that train.py or evaluate.py left")


def parse(arguments: Sequence[str], parameters: Any) -> tuple[list[Path], str, dict[str, Any]]:
    """The runs, where the pages go, and an analysis' own settings, each of the kind that its signature says."""
    runs, output, chosen = [], "", {}
    settings_of = [name for name in parameters if name not in ("run", "runs")]
    for argument in arguments:
        key, separator, value = argument.partition("=")
        if not separator:
            raise UserError(f"{argument} is not a setting: write key=value, or --help for examples")
        if key == "run":
            runs.append(Path(value))
        elif key == "output":
            output = value
        elif key not in settings_of:
            raise UserError(
                f"the setting {key} does not exist: {nearest(key, ['run', 'output', *settings_of])}"
            )
        elif parameters[key].annotation is int:
            if not value.isdecimal():
                raise UserError(
                    f"{argument}: a whole number is expected, as in {key}={parameters[key].default}"
                )
            chosen[key] = int(value)
        elif parameters[key].annotation is float:
            chosen[key] = number_of(argument, parameters[key].default)
        else:
            chosen[key] = value
    return runs, output, chosen


def number_of(argument: str, default: float) -> float:
    """The number of key=value; UserError where it is none."""
    key, _, value = argument.partition("=")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{argument}: a number is expected, as in {key}={default}")
    return number


if __name__ == "__main__":
    quieten_logs()
    with mistakes_in_one_sentence():
        main(sys.argv[1:])
