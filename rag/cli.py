"""What the scripts share: composing a Hydra configuration, and telling a user's mistake in one sentence.

Hydra's own entry point prints several lines and exits with code 1 on a mistake; here every mistake of a user, Hydra's
included, is one sentence and exit code 2, and a name that does not exist comes with the nearest ones that do.
"""

import difflib
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from transformers.utils import logging as transformers_logging

from rag.errors import UserError
from rag.runs import PROJECT

CONFIGS = PROJECT / "configs"


@contextmanager
def mistakes_in_one_sentence() -> Iterator[None]:
    """Print a UserError as one sentence and exit with code 2; an interruption exits with 130."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        sys.exit(130)


def run_script(
    name: str, usage: str, body: Callable[[DictConfig], None], arguments: list[str] | None = None
) -> None:
    """Compose configs/<name>.yaml with the command line's overrides and call `body` with it."""
    quieten()
    arguments = sys.argv[1:] if arguments is None else arguments
    with mistakes_in_one_sentence():
        if any(argument in ("-h", "--help") for argument in arguments):
            print(usage.strip())
            return
        body(compose_config(name, arguments))


def compose_config(name: str, overrides: list[str]) -> DictConfig:
    """The resolved-on-demand configuration of a script, or UserError in one sentence."""
    for override in overrides:
        if override.startswith("-") or "=" not in override:
            raise UserError(f"{override} is not an override: write key=value, or --help for examples")
    if not OmegaConf.has_resolver("project"):
        OmegaConf.register_new_resolver("project", lambda: str(PROJECT))
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            return compose(name, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error, name, overrides)) from error


def explain(error: Exception, name: str, overrides: list[str]) -> str:
    """One sentence for what Hydra found wrong, with the names that exist."""
    text = str(error)
    missing = re.search(r"Could not find '([^']+)'", text)
    if missing:
        group, _, choice = missing[1].rpartition("/")
        while group and not (CONFIGS / group).is_dir():
            group, _, rest = group.rpartition("/")
            choice = f"{rest}/{choice}"
        known = choices(group)
        return f"{group}={choice} does not exist: {nearest(choice, known)}"
    key = re.search(r"Key '([^']+)' is not in struct", text) or re.search(r"override '?\+?([\w./@]+)'?", text)
    for override in overrides:
        path = override.lstrip("+~").split("=")[0]
        if key and (key[1] in path.split(".") or key[1] == path):
            return f"the setting {path} does not exist: {nearest(path, settings(name))}"
    return re.sub(r"\s+", " ", text).strip()


def choices(group: str) -> list[str]:
    """The configs of a group."""
    folder = CONFIGS / group
    return sorted(
        str(file.relative_to(folder).with_suffix(""))
        for file in folder.rglob("*.yaml")
        if not file.name.startswith("_")
    )


def settings(name: str) -> list[str]:
    """All dotted names of a script's configuration."""
    names: list[str] = []

    def walk(node: Any, prefix: str) -> None:
        for key, value in node.items() if isinstance(node, dict) else ():
            names.append(f"{prefix}{key}")
            walk(value, f"{prefix}{key}.")

    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        walk(OmegaConf.to_container(compose(name), resolve=False), "")
    return names


def nearest(name: str, known: list[str]) -> str:
    """ "did you mean …?" or the names that exist."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(close)}?"
    shown = ", ".join(sorted(known, key=lambda each: (each.count("."), each))[:20])
    return f"there is {shown}{', …' if len(known) > 20 else ''}"


def plain(node: Any) -> Any:
    """A configuration node as plain containers, resolved; UserError names a value that is missing."""
    if not OmegaConf.is_config(node):
        return node
    try:
        return OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(re.sub(r"\s+", " ", str(error).split("\n")[0])) from error


def quieten() -> None:
    """Silence what libraries print about themselves, so that what is shown is about the user's run."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("WANDB_SILENT", "true")
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (
        "does not have many workers",
        "no `val_dataloader`",
        "exists and is not empty",
        "It will use the implementation from `LightningModule`",
        "LeafSpec",
        "in eval mode at the start of training",  # a frozen question encoder is meant to be
    ):
        warnings.filterwarnings("ignore", message=f".*{re.escape(message)}.*")
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


# What evaluate.py may change of a run; everything else is decided by the checkpoint.
CHANGEABLE = ("corpus", "task", "index", "decoding", "n_docs", "k_sweep", "recall_at", "hot_swap")
OWN = ("checkpoint", "split", "limit", "batch_size", "results", "overwrite", "experiment", "paths")


def from_checkpoint(cfg: DictConfig, overrides: list[str]) -> DictConfig:
    """The configuration a run was trained with, its weights as the model's, and evaluate.py's overrides on top.

    Raises UserError for a checkpoint that is not a finished run and for an override that contradicts it.
    """
    try:
        folder = Path(cfg.checkpoint)
    except OmegaConfBaseException:
        raise UserError("say which model to evaluate: checkpoint=RUN, a run folder of train.py") from None
    if not (folder / "result.json").exists():
        state = (
            "an unfinished run: train it to its end"
            if (folder / "run.json").exists()
            else "no run folder of train.py"
        )
        raise UserError(f"checkpoint={folder} is {state}")
    loaded = OmegaConf.load(folder / "config.yaml")
    assert isinstance(loaded, DictConfig)
    saved = loaded
    for key in OWN[:-2]:
        OmegaConf.update(saved, key, cfg[key], force_add=True)
    for override in overrides:
        path = override.lstrip("+~").split("=")[0].replace("/", ".")
        key = path.split(".")[0].split("@")[0]
        if key in CHANGEABLE:
            value = OmegaConf.select(cfg, path)
            OmegaConf.update(saved, path, value, merge=False, force_add=True)
        elif key == "experiment":
            name = OmegaConf.select(cfg, "name")
            if name != saved.name:
                raise UserError(
                    f"{override} is the run {name} but {folder} was trained as {saved.name}: drop one of the two"
                )
        elif key not in OWN:
            raise UserError(
                f"{override} contradicts the checkpoint, which decides it: evaluate.py takes {', '.join(CHANGEABLE)}, "
                "split, limit and batch_size"
            )
    model = saved.module.model
    model.generator = {
        "_target_": "rag.generator.Generator.from_pretrained",
        "path": str(folder / "model" / "generator"),
        "max_context_length": model.generator.max_context_length,
        "max_target_length": model.generator.max_target_length,
    }
    if "retriever" in model:
        model.retriever.index = saved.index.path
        model.n_docs = saved.n_docs
        if "question_encoder" in model.retriever:
            model.retriever.question_encoder = str(folder / "model" / "question_encoder")
            model.retriever.trainable = False
    return saved
