"""The reader that comes with the project: trained on people's questions about Wikipedia (its card says how well)."""

from pathlib import Path
from typing import Any

from rag.errors import UserError
from rag.generators.seq2seq import Generator
from rag.runs import PROJECT

FOLDER = PROJECT / "pretrained" / "reader"


def pretrained_reader(folder: Path | None = None, **settings: Any) -> Generator:
    """The generator in `folder` (None: the project's own). settings: `Generator`'s. UserError where it is missing."""
    folder = FOLDER if folder is None else folder
    if not folder.is_dir():
        raise UserError(
            f"the reader that comes with the project is not at {folder}: restore that folder, or give checkpoint=RUN, "
            "a run of experiment=wiki/reader"
        )
    return Generator.from_pretrained(folder, **settings)
