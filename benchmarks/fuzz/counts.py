"""What became of the inputs of a reader."""

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

from rag.errors import LONGEST_SENTENCE, UserError
from rag.index.passage import Passage
from rag.tasks.example import Example

MOST = 2_000  # passages or questions that are taken of one input


@dataclass
class Counts:
    """What became of the inputs of a reader."""

    inputs: int = 0
    read: int = 0
    refused: int = 0
    broken: list[str] = field(default_factory=list)


def check(found: list[Passage] | list[Example]) -> None:
    """What was read can be written to a file: no half characters, no empty texts, no id twice."""
    for one in found:
        texts = (
            (one.id, one.title, one.text)
            if isinstance(one, Passage)
            else (one.id, one.question, *one.answers)
        )
        "\n".join(texts).encode("utf-8")
        assert (one.text if isinstance(one, Passage) else one.question).strip(), "an empty text"
    if found and isinstance(found[0], Passage) and len(found) < MOST:
        assert len({one.id for one in found}) == len(found), "an id twice"


def count(counts: Counts, read: Callable[[], list], where: str) -> None:
    counts.inputs += 1
    try:
        check(read())
    except UserError as error:
        counts.refused += 1
        sentence = str(error)
        if "\n" in sentence or len(sentence) > LONGEST_SENTENCE + 3:
            counts.broken.append(f"{where}: a sentence of {len(sentence)} characters: {sentence[:200]!r}")
    except Exception:
        counts.broken.append(f"{where}: {traceback.format_exc(limit=-3)}")
    else:
        counts.read += 1
