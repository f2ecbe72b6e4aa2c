"""A folder that says which class opens it: encoder.json, for an encoder that is none of this package's own kinds.

{"question": "mymodule.MyEncoder.from_pretrained"}, likewise "passage", or both. The class's `save_pretrained` calls
`write_class`; every command then opens the folder by its path, like any other encoder's. Only local folders are asked:
what the hub holds does not decide which code runs.
"""

import pydoc
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from rag import hub
from rag.errors import UserError
from rag.files import read_json, write_json
from rag.parts import describe
from rag.trust import check_targets

ENCODER_FILE = "encoder.json"


def write_class(folder: str | Path, **openers: Callable[..., Any]) -> None:
    """Say in `folder` what opens it: question=, passage=, a class, function or classmethod that takes the path."""
    write_json(
        Path(folder) / ENCODER_FILE, {side: describe(opener)["_target_"] for side, opener in openers.items()}
    )


def opener_of(path: str | Path, side: Literal["question", "passage"]) -> Callable[[Any], Any] | None:
    """What opens one side of the encoder in a folder; None where the folder does not say.

    Raises UserError where it says what is not there.
    """
    file = Path(path) / ENCODER_FILE
    if hub.is_name(str(path)) or not file.is_file():
        return None
    named = read_json(file)
    if not isinstance(named, dict) or side not in named:
        return None
    check_targets({"_target_": named[side]}, file, trust=None)
    try:
        opener = pydoc.locate(str(named[side]))
    except pydoc.ErrorDuringImport as error:
        raise UserError(
            f"{file} names {named[side]}, which fails to import ({error.value}): fix it"
        ) from error
    if not callable(opener):
        raise UserError(
            f"{file} names {named[side]}, which is not there: put its module next to the scripts, or install it"
        )
    return opener
