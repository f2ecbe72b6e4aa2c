"""What reads somebody's documents: the project's own reader, or the generator of a run or checkpoint."""

from pathlib import Path
from typing import Any

from rag import checkpoint
from rag.checkpoint_config import in_transformers_format
from rag.errors import UserError
from rag.generators.pretrained import pretrained_reader
from rag.generators.seq2seq import Generator


def open_reader(path: str | Path | None = None, **settings: Any) -> Generator:
    """The generator of a run folder of train.py, of a checkpoint in the format of facebook/rag-token-nq, or of a folder
    or hub id that holds one alone; None: the reader that comes with the project. settings: `Generator`'s.

    Raises UserError where there is none.
    """
    if path is None:
        return pretrained_reader(**settings)
    folder = Path(path) / "model" / "generator"
    if folder.is_dir():
        return Generator.from_pretrained(folder, **settings)
    if (Path(path) / "run.json").exists():
        raise UserError(
            f"checkpoint={path} has no generator yet, or is a bi-encoder's run: give a finished run"
        )
    if in_transformers_format(str(path)) and checkpoint.kind(path) == "rag":
        return checkpoint.load(path, **settings).generator
    return Generator.from_pretrained(path, **settings)
