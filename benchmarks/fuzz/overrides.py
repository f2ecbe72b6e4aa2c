"""Command lines under random overrides, composed as a script does it."""

import random
import time

from benchmarks.fuzz.counts import Counts, count

VALUES = [
    *(
        "",
        "null",
        "0",
        "-1",
        "1.5",
        "1e999",
        "true",
        "yes",
        "[]",
        "[1,2]",
        "{}",
        "{a:1}",
        "{a:{b:[1,{c:2}]}}",
        "x",
        "a b",
    ),
    *(
        "${name}",
        "${nothing}",
        "${oc.env:HOME}",
        "${",
        "}",
        "???",
        "'",
        '"',
        "\\",
        "=",
        "a=b",
        "1,2",
        "[1,",
        "{a",
        "..",
        "/",
    ),
    *(
        "../../x",
        "~",
        "*",
        "%",
        "\0",
        "\n",
        "é",
        "🚲",
        "\udc80",
        "9" * 5000,
        "x" * 3000,
        "[" * 300,
        "@package",
        "nan",
        ".inf",
    ),
    *(
        "glob(*)",
        "range(1,5)",
        "choice(1,2)",
        "sort(3,1)",
        "int(x)",
        "!!python/object:os.system",
        "&a",
        "*a",
        "- a",
        "? b",
    ),
]
PREFIXES = ["", "", "", "", "", "+", "++", "~", "-", "--", "+++", "@", "$", " "]


def overrides_of(keys: list[str], groups: list[str], dice: random.Random) -> list[str]:
    """One to four random overrides of settings and groups that exist, and of some that do not."""
    made = []
    if dice.random() < 0.4:  # nothing but a setting and a value
        return [f"{dice.choice(keys)}={dice.choice(('3', '0.5', 'true', 'null', 'x', '[]'))}"]
    for _ in range(dice.choice((1, 1, 1, 2, 3, 4))):
        key = dice.choice((dice.choice(keys), dice.choice(keys), dice.choice(groups), dice.choice(VALUES)))
        if dice.random() < 0.1:
            at = dice.randrange(len(key) + 1)
            key = key[:at] + dice.choice(("", ".", "x", "/", "@", " ", "[0]")) + key[at + 1 :]
        equals = dice.choice(("=", "=", "=", "=", "=", "=", "", "==", ":", " = "))
        made.append(f"{dice.choice(PREFIXES)}{key}{equals}{dice.choice(VALUES) if equals else ''}")
    return made


def fuzz_overrides(sets: int, seed: int = 0, seconds: float = float("inf")) -> dict[str, Counts]:
    """Compose so many sets of overrides, at most for so long: {script: what became of its sets}."""
    from rag.cli import compose_command
    from rag.compose import GROUPS, plain, settings

    scripts = ("train", "evaluate", "build_index", "ask", "documents")
    counts = {script: Counts() for script in scripts}
    keys = {script: sorted(settings(script, [])) for script in scripts}
    end = time.monotonic() + seconds
    for number in range(sets):
        if time.monotonic() > end:
            break
        dice = random.Random(f"{seed}/{number}")
        script = scripts[number % len(scripts)]
        overrides = overrides_of(keys[script], sorted(GROUPS), dice)
        if script == "documents":
            overrides.insert(0, "documents=notes")

        def compose() -> list:
            cfg = compose_command(script, overrides)  # noqa: B023
            parts = ("corpus", "decoding", "generator")
            for key in parts if script == "documents" else ("task", *parts):  # noqa: B023
                plain(cfg.get(key))
            return []

        count(counts[script], compose, f"--seed {seed}, set {number}: {script} {overrides!r:.500}")
    return counts
