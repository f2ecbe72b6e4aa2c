"""The Hugging Face hub: what a name there stands for today, what is done without it, and what its refusals mean.

A run's identity holds the commit of every repository it reads. Where the hub cannot be reached, that is found out
once, and said; what was downloaded before is used from then on.
"""

import logging
import os
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, is_offline_mode
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from rag.errors import UserError, causes
from rag.files import write_aside

log = logging.getLogger(__name__)

# transformers would otherwise start a thread for each repository without safetensors, which downloads the weights of
# another branch, or asks a third party to make them.
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")

PREFIX = "hub://"
SECONDS = 10  # until the hub counts as unreachable
# What can go wrong on the way: besides the system's errors those of huggingface_hub's HTTP client, which has changed.
FAILURES: tuple[type[BaseException], ...] = (OSError, *HfHubHTTPError.__bases__)


def is_name(path: Any) -> bool:
    """Whether a string is a name on the hub, "owner/model" or "model", and no path that exists or begins with one."""
    if not isinstance(path, str) or not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", path):
        return False
    return not any(each.exists() for each in (Path(path), Path(path.split("/")[0])))


@cache
def commit(name: str, kind: str = "model") -> str | None:
    """The commit that a repository's main branch is at; of what was downloaded before where the hub is out of reach.

    kind: "model" or "dataset". None where it is not known: opening the repository will tell why. Where the hub does
    not answer within SECONDS, it is not asked again by this process or those that it starts.
    """
    folder = Path(constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}"
    if not is_offline_mode():
        try:
            sha = HfApi().repo_info(name, repo_type=kind, timeout=SECONDS).sha
        except HfHubHTTPError as error:
            if error.response is None or error.response.status_code >= 500:
                _go_offline(error)
        except FAILURES as error:
            _go_offline(error)
        else:
            # `datasets` opens commits and leaves no note of the branch
            if kind == "dataset" and sha is not None and (folder / "snapshots" / sha).exists():
                with write_aside(folder / "refs" / "main") as aside:
                    aside.write_text(sha, encoding="utf-8")
            return sha
    try:
        return (folder / "refs" / "main").read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _go_offline(error: BaseException) -> None:
    constants.HF_HUB_OFFLINE = True
    os.environ["HF_HUB_OFFLINE"] = "1"
    if (datasets := sys.modules.get("datasets")) is not None:  # which looks at its own copy
        datasets.config.HF_HUB_OFFLINE = True
    log.warning(
        "the hub (%s) cannot be reached (%s): what was downloaded before is used, and nothing else is asked for",
        constants.ENDPOINT,
        reason(error),
    )


def models_in(node: Any) -> Iterator[str]:
    """What a configuration loads models from, names on the hub and folders, by the settings that take one."""
    if isinstance(node, list):
        for each in node:
            yield from models_in(each)
    elif isinstance(node, dict):
        for key, each in node.items():
            if (
                key in ("path", "question_encoder", "passage_encoder")
                and "_target_" in node
                and isinstance(each, str)
            ):
                yield each
            else:
                yield from models_in(each)


def identity(address: str) -> str:
    """ "hub://owner/model@commit" of "hub://owner/model"; of "hub://owner/name/config/split", the data set's commit."""
    parts = address.removeprefix(PREFIX).split("/")
    known = commit("/".join(parts[:2]), "dataset" if len(parts) > 2 else "model")
    return address if known is None else f"{address}@{known}"


def reason(error: BaseException) -> str:
    """The first line of an error's text, or its kind where it has none."""
    # a path that does not exist, taken for a name on the hub
    if any(isinstance(cause, HFValidationError) for cause in causes(error, context=True)):
        return "there is no such folder"
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def refusal(error: BaseException, name: str | Path, kind: str = "model") -> UserError | None:
    """What the hub meant by an error under `error`, and what to do; None if it was none of the hub's."""
    if not is_name(str(name)):
        return None
    if kind == "dataset" and not is_offline_mode():
        try:  # `datasets` keeps the hub's own answer to itself
            HfApi().auth_check(str(name), repo_type=kind)
        except FAILURES as answer:
            error = answer
    for cause in causes(error, context=True):
        if isinstance(cause, GatedRepoError):
            return UserError(
                f"{name} is gated on the hub: request access at {constants.ENDPOINT}/"
                f"{'datasets/' if kind == 'dataset' else ''}{name}, then log in with `hf auth login` or set HF_TOKEN"
            )
        if isinstance(cause, RepositoryNotFoundError):
            return UserError(
                f"{name} is neither a folder here nor a repository on the hub that you may read: check the name, or "
                "log in with `hf auth login` if it is private"
            )
        if isinstance(cause, LocalEntryNotFoundError | OfflineModeIsEnabled):
            return UserError(
                f"{name} is neither a folder here nor was it downloaded before, and the hub "
                f"({constants.ENDPOINT}) was not asked: go online, without HF_HUB_OFFLINE, or give a folder"
            )
    return None
