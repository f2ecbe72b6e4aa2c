"""Readers under mutated files, command lines under random overrides: python -m benchmarks.fuzz [--seed N]

Each input is a small file in a form people have, changed at random: bytes flipped, cut, doubled and spliced, quotes,
brackets, byte order marks, halves of characters and numbers of thousands of digits put in, another name, packed and
damaged. A reader gives passages or questions that can be written and read again, or one sentence (`UserError`);
anything else is printed with what makes it happen again. Each set of overrides is composed as a script does it.

    inputs      how many files a reader was given
    read        passages or questions came of it
    refused     one sentence
    broken      anything else: there should be none

An input is known by --seed and its number alone. ../shared/cases, where it is, is a part of the seeds.
"""

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from functools import partial

from benchmarks.fuzz.overrides import fuzz_overrides
from benchmarks.fuzz.readers import fuzz_readers


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fuzz", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--inputs", type=int, default=100_000, help="files for the readers")
    parser.add_argument("--overrides", type=int, default=2_000, help="sets of overrides to compose")
    parser.add_argument("--reader", help="give all of them to this reader, such as rich_document")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    broken = 0
    for what, fuzz, number in (
        ("reader", partial(fuzz_readers, only=given.reader), given.inputs),
        ("script", fuzz_overrides, given.overrides),
    ):
        start = time.perf_counter()
        counts = fuzz(number, given.seed)
        print(f"{what:<20}{'inputs':>10}{'read':>10}{'refused':>10}{'broken':>10}")
        for name, each in counts.items():
            print(f"{name:<20}{each.inputs:>10,}{each.read:>10,}{each.refused:>10,}{len(each.broken):>10,}")
            broken += len(each.broken)
            for problem in each.broken[:5]:
                print(problem, file=sys.stderr)
        seconds = time.perf_counter() - start
        print(f"{sum(each.inputs for each in counts.values()):,} in {seconds:,.0f} s")
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
