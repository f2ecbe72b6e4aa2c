"""Write the built-in encyclopedia: python -m rag.miniwiki [output=FOLDER] [seed=N] [people=N] [institutions=N]

python -m rag.miniwiki                                     data/miniwiki, as the demo uses it but for its seed
python -m rag.miniwiki output=small people=300 institutions=60

Passages of two editions, questions with answers and gold passages (train, dev, test), and those of the hot-swap.
"""

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from rich.table import Table

from rag.errors import UserError
from rag.miniwiki.world import write_world
from rag.safe_text import say
from rag.terminal import Terminal

DEFAULTS: dict[str, Any] = {"output": "data/miniwiki", "seed": 1, "people": 3000, "institutions": 700}


def parse(arguments: Sequence[str]) -> dict[str, Any]:
    """Read `key=value` arguments over the defaults; UserError names the keys there are."""
    settings = dict(DEFAULTS)
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key not in DEFAULTS:
            near = get_close_matches(key, DEFAULTS, n=1)
            hint = f"did you mean {near[0]}=…? " if near else ""
            raise UserError(f"{argument}: {hint}The keys are {', '.join(f'{name}=' for name in DEFAULTS)}")
        if isinstance(DEFAULTS[key], str):
            settings[key] = value
        elif value.isascii() and value.isdigit():
            settings[key] = int(value)
        else:
            raise UserError(f"{argument}: {key} must be a whole number, 0 or more")
    return settings


def main(arguments: Sequence[str]) -> int:
    """Write the world; returns the exit code (2 for a mistake of the user's)."""
    if {"-h", "--help"} & set(arguments):
        print((__doc__ or "").strip())
        return 0
    console = Terminal(highlight=False, soft_wrap=True)
    try:
        settings = parse(arguments)
        console.print(
            f"Writing a mini-wiki of {settings['people']} people and {settings['institutions']} institutions "
            f"(seed {settings['seed']}) to {settings['output']}",
            markup=False,
        )
        summary = write_world(**settings)
    except UserError as error:
        say(f"error: {error}", file=sys.stderr)
        return 2
    table = Table("what", "count", title=f"{settings['output']}")
    table.columns[1].justify = "right"
    for what, count in summary["counts"].items():
        table.add_row(what, f"{count:,}")
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
