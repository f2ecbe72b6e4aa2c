"""Look at what a run did: python -m rag.analysis NAME run=FOLDER [key=value …]"""

import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rag.cli import mistakes_in_one_sentence, nearest, quieten
from rag.errors import UserError

USAGE = """
python -m rag.analysis NAME run=FOLDER [run=FOLDER …] [key=value …]

Looks at what a run did and writes NAME.md and NAME.png. FOLDER is a run of train.py or an evaluation of evaluate.py;
the pages go into its folder analysis/, or where output=… says.

  python -m rag.analysis document_posterior run=outputs/demo/rag_token question="Where did Ada Abbott study?"
  python -m rag.analysis more_passages run=outputs/demo/rag_sequence run=outputs/demo/rag_token
  python -m rag.analysis retrieval_change run=outputs/demo/rag_sequence depth=50 output=/tmp/looked
"""


def analyses() -> dict[str, Callable[..., Any]]:
    """The analyses by name. Imported here: --help and mistakes need neither torch nor matplotlib."""
    from rag.analysis.attention import attention
    from rag.analysis.diversity import diversity
    from rag.analysis.document_posterior import document_posterior
    from rag.analysis.error_breakdown import error_breakdown
    from rag.analysis.hot_swap_table import hot_swap_table
    from rag.analysis.more_passages import more_passages
    from rag.analysis.retrieval_change import retrieval_change

    each = (
        document_posterior,
        more_passages,
        hot_swap_table,
        retrieval_change,
        error_breakdown,
        diversity,
        attention,
    )
    return {analysis.__name__: analysis for analysis in each}


def usage() -> str:
    lines = [USAGE.strip(), ""]
    for name, analysis in analyses().items():
        doc = inspect.getdoc(analysis) or ""
        first, _, rest = doc.partition("\n\n")
        lines += [name, f"  {first}", *(f"  {line}" for line in rest.splitlines())]
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    if not arguments or any(argument in ("-h", "--help") for argument in arguments):
        print(usage())
        return
    name, *rest = arguments
    known = analyses()
    if name not in known:
        raise UserError(f"the analysis {name} does not exist: {nearest(name, list(known))}")
    runs, output, chosen = parse(rest, inspect.signature(known[name]).parameters)
    several = "runs" in inspect.signature(known[name]).parameters
    if not runs or (len(runs) > 1 and not several):
        raise UserError(f"{name} takes {'one or more runs' if several else 'one run'}: give run=FOLDER")
    folder = Path(output) if output else runs[0] / "analysis"
    print(f"{name} of {', '.join(map(str, runs))}, written into {folder}")
    found = known[name](runs if several else runs[0], **chosen)
    from rich.console import Console
    from rich.table import Table

    from rag.analysis.page import cell

    page = found.write(folder, name, ["python", "-m", "rag.analysis", *arguments])
    frame = found.table if found.table.index.name is None else found.table.reset_index()
    table = Table(*map(str, frame.columns), title=found.title)
    for row in frame.head(30).itertuples(index=False):
        table.add_row(*map(cell, row))
    Console().print(table)
    print(f"{page} and {page.with_suffix('.png').name}")


def parse(arguments: Sequence[str], parameters: Any) -> tuple[list[Path], str, dict[str, Any]]:
    """The runs, where the pages go, and an analysis' own settings, each of the kind that its signature says."""
    runs, output, chosen = [], "", {}
    own = [name for name in parameters if name not in ("run", "runs")]
    for argument in arguments:
        key, separator, value = argument.partition("=")
        if not separator:
            raise UserError(f"{argument} is not a setting: write key=value, or --help for examples")
        if key == "run":
            runs.append(Path(value))
        elif key == "output":
            output = value
        elif key not in own:
            raise UserError(f"the setting {key} does not exist: {nearest(key, ['run', 'output', *own])}")
        elif parameters[key].annotation is int:
            if not value.isdecimal():
                raise UserError(
                    f"{argument}: a whole number is expected, as in {key}={parameters[key].default}"
                )
            chosen[key] = int(value)
        else:
            chosen[key] = value
    return runs, output, chosen


if __name__ == "__main__":
    quieten()
    with mistakes_in_one_sentence():
        main(sys.argv[1:])
