"""The log of what was run: python -m rag.reproductions RUN … adds a finished run's row to docs/reproductions.md.

A row says when, which experiment, its metrics with their 95 % intervals, the commit, the machine and the commands. The
comment at the head of the experiment's file then states the newest row, in one line that begins with "Ours:".
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from pathlib import Path

from rag.cli import mistakes_in_one_sentence, quieten_logs
from rag.errors import UserError
from rag.files import read_json, write_aside
from rag.metrics.record import Record, records_of
from rag.runs import CONFIGS, INSTALLED, PROJECT, portable
from rag.safe_text import say

USAGE = """
python -m rag.reproductions RUN [RUN …]

Adds the row of each finished run to docs/reproductions.md, and states it at the head of the experiment's file. RUN is a
run of train.py that was evaluated (its latest evaluation counts), or a folder with results of evaluate.py. A row that
is there already is not added again.

  python -m rag.reproductions outputs/demo/rag_token
  python -m rag.reproductions outputs/table1/nq_rag_sequence/evaluation/test-1a2b3c
"""

LOG = PROJECT / "docs" / "reproductions.md"
NAME = "docs/reproductions.md"
INTRODUCTION = """# What was run

Finished runs, newest first. `python -m rag.reproductions RUN` adds the row of a run that was evaluated, and states it
at the head of the experiment's file. Metrics are in percent, with 95 % intervals; a `+` after a commit says that files
were changed since. Settings that choose a folder are left out of the commands.

"""
HEADER = ("date", "experiment", "questions", "metrics", "commit", "machine", "commands")
# Settings that say where something lies, not what is computed.
_PLACES = re.compile(r"(paths\.\w+|results|overwrite|index\.path|batch_size|trainer\.devices)=")


@dataclass(frozen=True)
class Row:
    """A line of the log. date: when the evaluation ended, in UTC. questions: "500 of test, K = 5, seed 1"."""

    date: str
    experiment: str
    questions: str
    metrics: str
    commit: str
    machine: str
    commands: str

    def line(self) -> str:
        """As it stands in the table."""
        return f"| {' | '.join(each.replace('|', chr(92) + '|') for each in astuple(self))} |"

    @classmethod
    def read(cls, line: str) -> "Row | None":
        """The row of a line of the table; None for any other line."""
        cells = [each.strip().replace("\\|", "|") for each in re.split(r"(?<!\\)\|", line.strip())[1:-1]]
        is_row = len(cells) == len(HEADER) and re.fullmatch(r"\d{4}-\d\d-\d\d", cells[0])
        return cls(*cells) if is_row else None

    def ours(self) -> str:
        """The comment at the head of the experiment: the first metric, and what it is of."""
        metric, commit = re.split(r", (?=[a-z])", self.metrics)[0], self.commit.split(",")[0]
        return f"# Ours: {metric}, {self.questions}; {self.date}, {commit} ({NAME})."


def row_of(run: str | Path) -> Row:
    """The row of a finished run; UserError where it was not evaluated, or is of no experiment of the project's."""
    folder = evaluation_of(Path(run))
    result, record = read_json(folder / "result.json"), read_json(folder / "run.json")
    trained = Path(run) if Path(run) != folder else Path(str(result.get("checkpoint")))
    training = read_json(trained / "run.json") if (trained / "run.json").is_file() else {}
    file = experiment_file(str(result.get("name")))
    if file is None:
        raise UserError(
            f"{folder} is of {result.get('name')}, which no experiment of the project is named: add "
            "configs/experiment/NAME.yaml first"
        )
    depth = f", K = {result['n_docs']}" if result.get("n_docs") else ""
    commits = [each for each in (training.get("commit"), result.get("commit")) if each]
    evaluated = f", evaluated {commits[-1]}" if len(set(commits)) > 1 else ""
    device = "" if result.get("device") in (None, "CPU") else f", {result['device']}"
    return Row(
        date=datetime.fromtimestamp((folder / "result.json").stat().st_mtime, UTC).strftime("%Y-%m-%d"),
        experiment=file.relative_to(CONFIGS / "experiment").with_suffix("").as_posix(),
        questions=f"{result['questions']:,} of {result['split']}{depth}, seed {result.get('seed')}",
        metrics=said(records_of(result), result.get("n_docs")),
        commit=f"{commits[0] if commits else 'unknown'}{evaluated}",
        machine=f"{record.get('machine', 'unknown')}{device}",
        commands="; ".join(
            f"`{command(each['command'])}`" for each in (training, record) if "command" in each
        ),
    )


def evaluation_of(run: Path) -> Path:
    """The evaluation in a folder, or the latest of the run there. UserError where there is none."""
    if not run.is_dir():
        raise UserError(f"{run} does not exist: give a folder that train.py or evaluate.py left")
    places = [run, *run.glob("evaluation/*"), run.parent / "evaluation" / run.name]
    finished = [each for each in places if (each / "result.json").is_file() and _is_evaluation(each)]
    if not finished:
        raise UserError(f"{run} holds no finished evaluation: run python evaluate.py checkpoint={run} first")
    return max(finished, key=lambda each: (each / "result.json").stat().st_mtime_ns)


def _is_evaluation(folder: Path) -> bool:
    return "checkpoint" in read_json(folder / "result.json")


def said(records: Sequence[Record], n_docs: int | None) -> str:
    """The metrics of an evaluation at its own K, and recall at each: "em 41.2 (39.0–43.4), recall@5 …"."""
    shown = []
    for each in records:
        if each.condition is not None or each.value is None:
            continue
        of_retrieval = each.metric in ("recall", "answer_recall", "title_hit")
        if not of_retrieval and each.k != n_docs:
            continue  # another K of a sweep
        interval = (
            "" if each.low is None or each.high is None else f" ({100 * each.low:.1f}–{100 * each.high:.1f})"
        )
        at = f"@{each.k}" if of_retrieval else ""
        shown.append(f"{each.metric}{at} {100 * each.value:.1f}{interval}")
    return ", ".join(shown) or "none"


def command(typed: str) -> str:
    """A command without the settings that choose a folder; a checkpoint by its name."""
    kept = [each for each in portable(typed).replace("${project:}/", "").split() if not _PLACES.match(each)]
    return " ".join(re.sub(r"^(checkpoint=)/.*/(outputs/)?", r"\1outputs/…/", each) for each in kept).replace(
        "`", "'"
    )


def experiment_file(name: str) -> Path | None:
    """The experiment whose runs have this name."""
    for file in sorted((CONFIGS / "experiment").rglob("*.yaml")):
        if re.search(rf"(?m)^name: {re.escape(name)}\s*$", file.read_text("utf-8")):
            return file
    return None


# -- the log and the heads of the experiments ------------------------------------------------------


def rows_of(text: str) -> list[Row]:
    """The rows of the log, newest first."""
    return [row for line in text.splitlines() if (row := Row.read(line)) is not None]


def added(text: str, row: Row) -> str:
    """The log with a row on top, or as it is where the row is there already."""
    rows = rows_of(text)
    if row in rows:
        return text
    before = text[: text.index(f"| {HEADER[0]} |")] if rows else text or INTRODUCTION
    before = before[: before.index(f"| {HEADER[0]} |")] if f"| {HEADER[0]} |" in before else before
    table = [f"| {' | '.join(HEADER)} |", "|" + "---|" * len(HEADER)]
    return before + "\n".join([*table, *(each.line() for each in [row, *rows])]) + "\n"


def newest(rows: Sequence[Row]) -> dict[str, Row]:
    """{experiment: its newest row}."""
    return {row.experiment: row for row in reversed(rows)}


_LINE = re.compile(rf"(?m)^# Ours: .*\({re.escape(NAME)}\)\.$")
_NOT_RUN = re.compile(r"(?: |(?P<start>\n# ))?Ours:(?:\n#)? not(?:\n#)? run\.(?: (?=\S))?")


def with_ours(text: str, ours: str) -> str:
    """An experiment's file whose head states `ours`, in place of an older statement or of "Ours: not run."."""
    if _LINE.search(text):
        return _LINE.sub(lambda _: ours, text, count=1)
    lines = text.splitlines(keepends=True)
    end = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    head, rest = "".join(lines[:end]), "".join(lines[end:])
    if match := _NOT_RUN.search(head):
        before, after = head[: match.start()], head[match.end() :]
        after = after if after.startswith("\n") else f"\n# {after}"
        return f"{before}\n{ours}{after}{rest}"
    comments = head.splitlines(keepends=True)
    place = next((number for number, line in enumerate(comments) if line.rstrip() == "#"), len(comments))
    return "".join([*comments[:place], f"{ours}\n", *comments[place:]]) + rest


def add(run: str | Path, log: Path = LOG, configs: Path = CONFIGS) -> tuple[Row, bool]:
    """Add a run's row to the log and state it at the head of its experiment; the row, and whether it is new."""
    row = row_of(run)
    before = log.read_text(encoding="utf-8") if log.exists() else ""
    after = added(before, row)
    file = configs / "experiment" / f"{row.experiment}.yaml"
    head = file.read_text(encoding="utf-8")
    stated = with_ours(head, newest(rows_of(after))[row.experiment].ours())
    for path, old, new in ((log, before, after), (file, head, stated)):
        if old != new:
            with write_aside(path) as aside:
                aside.write_text(new, encoding="utf-8")
    return row, before != after


def main(arguments: Sequence[str]) -> None:
    if not arguments or any(each in ("-h", "--help") for each in arguments):
        print(USAGE.strip())
        return
    if INSTALLED:
        raise UserError(f"{NAME} is a file of a checkout of the project: run this command there")
    for run in arguments:
        row, is_new = add(run)
        state = f"added to {NAME}, and stated in" if is_new else f"stands in {NAME} already, and in"
        say(
            f"{row.experiment}: {row.metrics} ({row.questions}) {state} configs/experiment/{row.experiment}.yaml"
        )


if __name__ == "__main__":
    quieten_logs()
    with mistakes_in_one_sentence():
        main(sys.argv[1:])
