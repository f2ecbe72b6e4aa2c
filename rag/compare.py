"""Finished evaluations side by side: python -m rag.compare RUN RUN … [show=10] [output=FILE.md]"""

import sys
from collections.abc import Iterator, Sequence
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING

from rag.cli import mistakes_in_one_sentence, quieten_logs
from rag.compose import nearest
from rag.errors import UserError
from rag.safe_text import say

if TYPE_CHECKING:
    from rag.evaluation.compare import Answers, Comparison, Row

USAGE = """
python -m rag.compare RUN RUN … [show=10] [output=FILE.md]

Compares finished evaluations of the same questions, each with the first: every metric of the task with its 95 %
interval, the difference with the interval of the paired bootstrap, for exact match and accuracy the exact p of
McNemar's test, and the questions that one has right and the other wrong. RUN is a run of train.py that was evaluated,
or a folder with results of evaluate.py.

  python -m rag.compare outputs/demo/closed_book outputs/demo/rag_token
  python -m rag.compare outputs/demo/frozen outputs/demo/rag_sequence outputs/demo/bm25 show=0
  python -m rag.compare RUN/evaluation/test-1a2b3c RUN/evaluation/test-4d5e6f output=beams.md

  show=10         questions that changed sides, for each pair in each direction; show=all
  output=FILE.md  the same as Markdown, with all of those questions
"""


def main(arguments: Sequence[str]) -> None:
    if not arguments or any(each in ("-h", "--help") for each in arguments):
        print(USAGE.strip())
        return
    runs, show, output = parse(arguments)
    from rag.analysis.opened import Evaluation
    from rag.evaluation.compare import Answers, compare

    opened = [Evaluation.open(run) for run in runs]
    names = [each.name for each in opened]
    answers = [
        Answers(name if names.count(name) == 1 else str(each.folder), each.config, each.predictions)
        for name, each in zip(names, opened, strict=True)
    ]
    comparison = compare(answers)
    print_comparison(comparison, answers, show)
    if output is not None:
        from rag.files import remove_leftovers, write_aside

        remove_leftovers(output.parent, f"{escape(output.name)}.*")
        with write_aside(output) as aside:
            aside.write_text("\n".join(markdown(comparison, answers)) + "\n", encoding="utf-8")
        say(f"written into {output}")


def parse(arguments: Sequence[str]) -> tuple[list[Path], int | None, Path | None]:
    """The folders, how many questions are shown (None: all), and where the page goes."""
    runs: list[Path] = []
    show, output = 10, None
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and key == "show":
            if value != "all" and not value.isdecimal():
                raise UserError(f"{argument}: a number of questions is expected, or show=all")
            show = None if value == "all" else int(value)
        elif equals and key == "output" and value:
            output = Path(value).expanduser()
        elif equals and not Path(argument).exists():
            raise UserError(f"the setting {key} does not exist: {nearest(key, ['show', 'output'])}")
        elif not Path(argument).is_dir():
            raise UserError(f"{argument} does not exist: give a folder that train.py or evaluate.py left")
        else:
            runs.append(Path(argument))
    if len(runs) < 2:
        raise UserError("a comparison takes two evaluations or more: python -m rag.compare RUN RUN")
    return runs, show, output


def cells(row: "Row") -> list[str]:
    """A row of the table, as text, in percent."""
    value, change = row.value, row.change
    interval = "–" if value.low != value.low else f"{100 * value.low:.1f} – {100 * value.high:.1f}"
    shown = [row.metric, row.name, f"{value.count:,}", percent(value.value), interval]
    if change is None:
        return [*shown, "", "", "", ""]
    shown += [f"{100 * change.value:+.1f}", f"{100 * change.low:+.1f} – {100 * change.high:+.1f}"]
    if change.p is None:
        return [*shown, "", ""]
    return [*shown, f"{change.p:.2g}", f"+{change.gained} −{change.lost}"]


def percent(value: float) -> str:
    return "–" if value != value else f"{100 * value:.1f}"


HEADER = ("metric", "run", "n", "%", "95 % interval", "difference", "95 % interval", "McNemar's p", "changed")


def title(comparison: "Comparison", answers: Sequence["Answers"]) -> str:
    return f"{comparison.questions:,} questions, differences from {answers[0].name}"


def notes(answers: Sequence["Answers"]) -> Iterator[str]:
    yield "Differences in points; their intervals are the paired bootstrap's over the questions."
    if len(answers) > 2:
        yield f"The {len(answers) - 1} p-values are not corrected for multiple comparisons."


def print_comparison(comparison: "Comparison", answers: Sequence["Answers"], show: int | None) -> None:
    from rich.table import Table
    from rich.text import Text

    from rag.terminal import Terminal

    console = Terminal(highlight=False)
    table = Table(title=title(comparison, answers))
    for number, name in enumerate(HEADER):
        table.add_column(name, justify="left" if number < 2 else "right")
    for row in comparison.rows:
        table.add_row(*map(Text, cells(row)))
    console.print(table)
    for note in notes(answers):
        console.print(Text(note, style="dim"))
    for name, questions in comparison.changed.items():
        for right, who, other in ((True, name, answers[0].name), (False, answers[0].name, name)):
            chosen = [each for each in questions if each.right is right]
            console.print(
                Text(f"\n{len(chosen):,} questions that {who} has right and {other} wrong", style="bold")
            )
            for each in chosen[:show]:
                said = f"  {each.question}  {answers[0].name}: {each.before}; {name}: {each.after}"
                console.print(Text(f"{said} (right: {' | '.join(each.answers)})"))
            if show is not None and len(chosen) > show > 0:
                console.print(Text(f"  … and {len(chosen) - show:,} more: show=all", style="dim"))


def markdown(comparison: "Comparison", answers: Sequence["Answers"]) -> Iterator[str]:
    from rag.reports.page import table
    from rag.safe_text import markdown as escaped

    rows = [[escaped(cell) for cell in cells(row)] for row in comparison.rows]
    yield from (f"# {escaped(title(comparison, answers))}", "", *table(HEADER, rows), "")
    yield from notes(answers)
    for name, questions in comparison.changed.items():
        yield from ("", f"## Questions that changed sides: {escaped(name)}", "")
        header = ("question", "right answers", escaped(answers[0].name), escaped(name), "right")
        yield from table(
            header,
            [
                [
                    *map(escaped, (each.question, " / ".join(each.answers), each.before, each.after)),
                    escaped(name if each.right else answers[0].name),
                ]
                for each in questions
            ],
        )


if __name__ == "__main__":
    quieten_logs()
    with mistakes_in_one_sentence():
        main(sys.argv[1:])
