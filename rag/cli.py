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
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, InstantiationException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError

from rag.errors import UserError
from rag.runs import PROJECT
from rag.saved_model import saved_config, saved_model

CONFIGS = PROJECT / "configs"
SCRIPTS = ("train", "build_index", "evaluate")
GROUPS = {str(folder.relative_to(CONFIGS)) for folder in CONFIGS.iterdir() if folder.is_dir()}


@contextmanager
def mistakes_in_one_sentence() -> Iterator[None]:
    """Print a user's mistake as one sentence and exit with code 2; an interruption exits with 130.

    A process that waited in vain for another one, which says what is wrong, exits with 1 and one sentence.
    """
    try:
        yield
    except (UserError, InstantiationException, OmegaConfBaseException) as error:
        print(f"error: {one_sentence(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    except RuntimeError as error:
        from rag.processes import lost_another  # with torch, which is there where this can happen

        if not lost_another(error):
            raise
        print("stopped, because another process of this command did: its message says why", file=sys.stderr)
        sys.exit(1)


def one_sentence(error: Exception) -> str:
    """What a user got wrong; an error raised while a configured object was made is told as its cause.

    Raises `error` again if its cause is no mistake of a user's.
    """
    if isinstance(error, OmegaConfBaseException):
        if "Missing mandatory value" in str(error):
            return explain_value(error)
        return f"the configuration is wrong: {one_line(str(error))}"
    if isinstance(error, UserError):
        return str(error)
    cause: BaseException = error
    while cause.__cause__ is not None and not isinstance(cause, UserError):
        cause = cause.__cause__
    if isinstance(cause, UserError):
        return str(cause)
    key = re.search(r"full_key: (\S+)", str(error))
    where = f"the setting {key[1]} is wrong: " if key else "a setting is wrong: "
    called = re.search(r"'([\w.]+)'", str(error))
    of_lightning = called is not None and called[1].startswith(
        "pytorch_lightning."
    )  # such as trainer.precision
    if (
        isinstance(cause, InstantiationException | ImportError)
        or type(cause).__module__.startswith(("pytorch_lightning.", "lightning_fabric."))
        or (isinstance(cause, ValueError | TypeError) and of_lightning)
        or re.search(r"unexpected keyword argument|missing \d+ required", str(cause))
    ):
        return where + one_line(str(cause))
    raise error


def one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def run_script(
    name: str, usage: str, body: Callable[[DictConfig], None], arguments: list[str] | None = None
) -> None:
    """Compose configs/<name>.yaml with the command line's overrides and call `body` with it."""
    quieten_logs()
    with mistakes_in_one_sentence():
        cfg = read_command(name, usage, sys.argv[1:] if arguments is None else arguments)
        if cfg is not None:
            quieten_models()
            body(cfg)


def check_command(name: str, usage: str) -> None:
    """Answer --help and tell a mistake in the command line: before a script's imports, which take seconds."""
    quieten_logs()
    with mistakes_in_one_sentence():
        if read_command(name, usage, sys.argv[1:]) is None:
            sys.exit()


def read_command(name: str, usage: str, arguments: list[str]) -> DictConfig | None:
    """The configuration that a command line asks for; None where it asked for something else, which was answered."""
    if any(argument in ("-h", "--help") for argument in arguments):
        print(usage.strip())
        return None
    if arguments[:1] == ["-sc"]:
        complete_in_shell(name, arguments[1:])
        return None
    cfg = compose_config(name, arguments)
    check_script(cfg, name, arguments)
    return cfg


def check_script(cfg: DictConfig, name: str, arguments: list[str]) -> None:
    """UserError where the experiment is one of other scripts alone."""
    if name not in SCRIPTS or name in (scripts := cfg.get("scripts", SCRIPTS)):
        return
    chosen = next((each for each in arguments if key_of(each) == "experiment"), f"the experiment {cfg.name}")
    raise UserError(
        f"{chosen} does not fit {name}.py: it is for {' and '.join(f'{each}.py' for each in scripts)}"
    )


def complete_in_shell(name: str, arguments: list[str]) -> None:
    """Hydra's shell completion, as its own entry point has it: -sc install=bash prints what the shell has to run."""
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            hydra = GlobalHydra.instance().hydra
            assert hydra is not None
            hydra.shell_completion(name, arguments)
    except ValueError as error:
        raise UserError(
            f"-sc {' '.join(arguments)} is no shell completion: there are install=bash, install=zsh and install=fish"
        ) from error


def compose_config(name: str, overrides: list[str]) -> DictConfig:
    """The resolved-on-demand configuration of a script, or UserError in one sentence."""
    for override in overrides:
        if not re.match(r"~\w[^=]*$|(~|\+{0,2})\w[^=]*=", override):
            raise UserError(f"{override} is not an override: write key=value, or --help for examples")
    # Hydra's way of choosing nothing from a group is ~group; group=null is what one would type.
    nothing = {f"{group}=null": f"~{group}" for group in GROUPS}
    overrides = [nothing.get(override, override) for override in overrides]
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            cfg = compose(name, overrides)
            groups = [each for each in overrides if key_of(each) in GROUPS]
            default = compose(name, groups) if len(groups) < len(overrides) else cfg
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error, name, overrides)) from error
    except MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{mark.name}, line {mark.line + 1}" if mark else "a config"
        raise UserError(f"{place} is not valid YAML ({error.problem})") from error
    for override in {key_of(each): each for each in overrides}.values():  # the last of each key
        check_kind(override, cfg, default)
    return cfg


def check_kind(override: str, cfg: DictConfig, default: DictConfig) -> None:
    """UserError for text where the default is a number or a truth value, and for a fraction where it is whole."""
    key = key_of(override)
    if override[0] in "~+" or key in GROUPS or key in ("overwrite", "trainer.devices"):
        return  # the last two have names for values as well
    try:
        value, before = OmegaConf.select(cfg, key), OmegaConf.select(default, key)
    except OmegaConfBaseException:
        return  # an interpolation that leads nowhere is told where it is used
    kinds = {bool: "true or false", int: "a whole number", float: "a number"}
    allowed = (int, float) if type(before) is float else type(before)
    if (
        type(before) in kinds
        and value is not None
        and (not isinstance(value, allowed) or isinstance(value, bool) is not (type(before) is bool))
    ):
        raise UserError(f"{override}: {kinds[type(before)]} is expected, as in {key}={str(before).lower()}")


def key_of(override: str) -> str:
    return override.lstrip("+~").split("=")[0]


def explain(error: Exception, name: str, overrides: list[str]) -> str:
    """One sentence for what Hydra found wrong, with the names that exist."""
    text = one_line(str(error))
    if isinstance(error, OverrideParseException) or "Ambiguous value" in text:
        given = error.override if isinstance(error, OverrideParseException) else None
        wrong = given or next(each for each in overrides if each in text)
        value = wrong.partition("=")[2]
        return (
            f"{wrong} cannot be read: a value with =, commas, brackets or spaces needs quotes, as in "
            f"""'{key_of(wrong)}="{value}"', and a list brackets, as in {key_of(wrong)}=[1,2]"""
        )
    missing = re.search(r"Could not find '([^']+)'", text)
    if missing:
        for override in overrides:
            group, _, choice = override.lstrip("+").partition("=")
            if f"{group}/{choice}" == missing[1]:
                return f"{override} does not exist: {nearest(choice, choices(group))}"
        return f"a config names {missing[1]}, which does not exist under {CONFIGS}"
    key = re.search(r"Key '([^']+)' is not in struct", text) or re.search(r"override '?\+?([\w./@]+)'?", text)
    for override in overrides:
        path = key_of(override)
        if key and key[1] in (path, *path.split(".")):
            known = settings(
                name, [each for each in overrides if each != override and key_of(each) in GROUPS]
            )
            if path not in known and not override.startswith("+"):
                return f"the setting {path} does not exist: {nearest_setting(path, known)}"
    return text


def choices(group: str) -> list[str]:
    """The configs of a group."""
    folder = CONFIGS / group
    return sorted(
        str(file.relative_to(folder).with_suffix(""))
        for file in folder.rglob("*.yaml")
        if not file.name.startswith("_")
    )


def settings(name: str, overrides: list[str]) -> list[str]:
    """All dotted names of a script's configuration."""
    names: list[str] = []

    def walk(node: Any, prefix: str) -> None:
        for key, value in node.items() if isinstance(node, dict) else ():
            names.append(f"{prefix}{key}")
            walk(value, f"{prefix}{key}.")

    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        walk(OmegaConf.to_container(compose(name, overrides), resolve=False), "")
    return names


def nearest_setting(path: str, known: list[str]) -> str:
    """The settings beside a misspelt one that are like it, those of the same name elsewhere, or all beside it."""
    parent, _, last = path.rpartition(".")
    while parent and parent not in known:
        parent, _, last = parent.rpartition(".")
    beside = [each.rpartition(".")[2] for each in known if each.rpartition(".")[0] == parent]
    elsewhere = [each for each in known if each.rpartition(".")[2] == path.rpartition(".")[2]]
    if elsewhere and not difflib.get_close_matches(last, beside, cutoff=0.75):
        return f"did you mean {' or '.join(elsewhere[:3])}?"
    return nearest(last, beside, f"{parent}." if parent else "")


def nearest(name: str, known: list[str], prefix: str = "") -> str:
    """ "did you mean …?" or the names that exist."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.75)
    if close:
        return f"did you mean {' or '.join(prefix + each for each in close)}?"
    if not known:
        return f"there is nothing under {prefix.removesuffix('.')}"
    shown = [prefix + each for each in sorted(known) if not each.startswith("_")]
    return f"there is {', '.join(shown[:20])}{', …' if len(shown) > 20 else ''}"


def reading(corpus: DictConfig) -> tuple[str | None, int | None]:
    """How a corpus is read: corpus.encoding and corpus.split_words, which configs of earlier runs may lack."""
    return corpus.get("encoding"), corpus.get("split_words")


def plain(node: Any) -> Any:
    """A configuration node as plain containers, resolved; UserError names a value that is missing."""
    if not OmegaConf.is_config(node):
        return node
    try:
        return OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(explain_value(error)) from error


def explain_value(error: OmegaConfBaseException) -> str:
    """One sentence for a value that cannot be resolved; one that has to be given is named as it is typed."""
    missing = re.search(r"Missing mandatory value: (\S+)", str(error))
    if missing is None:
        return one_line(str(error).split("\n")[0])
    key = re.search(r"full_key: (\S+)", str(error))
    name = key[1] if key and key[1].endswith(f".{missing[1]}") else missing[1]
    return f"{name} has no value and this run needs it: give {name}=…"


def quieten() -> None:
    """Silence what libraries print about themselves, so that what is shown is about the user's run."""
    quieten_logs()
    quieten_models()


def quieten_logs() -> None:
    """`quieten` but for transformers, which takes half a second to import."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("WANDB_SILENT", "true")
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (
        "does not have many workers",
        "no `val_dataloader`",
        "sync_dist=True",  # figures of dev are the same on all ranks when they are logged
        "across ranks is zero",  # a data module whose dev file was not given
        "exists and is not empty",
        "dirpath has changed",  # another run's last.ckpt, given as ckpt_path
        "callbacks used to create the checkpoint",
        "before `optimizer.step()`",  # float16 skips steps until it knows how far to scale the loss
        "It will use the implementation from `LightningModule`",
        "LeafSpec",
        "in eval mode at the start of training",  # a frozen question encoder is meant to be
    ):
        warnings.filterwarnings("ignore", message=f".*{re.escape(message)}.*")


def quieten_models() -> None:
    """`quieten` for transformers alone."""
    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils import logging as of_transformers

    of_transformers.disable_progress_bar()
    of_transformers.set_verbosity_error()
    enable_progress_bars()  # of downloads, which the former has switched off as well


# What evaluate.py may change of a run; everything else is decided by the checkpoint.
CHANGEABLE = ("corpus", "task", "index", "decoding", "n_docs", "k_sweep", "recall_at", "bm25", "hot_swap")
OWN = ("checkpoint", "split", "limit", "batch_size", "results", "overwrite", "report")
# What it may change where the checkpoint is a bi-encoder, which finds passages and answers nothing.
FINDS_WITH = ("corpus", "task", "index", "recall_at", "bm25")
# Groups of settings that an experiment gives beside the model; they belong to the composed config in any case.
_NEUTRAL = ("paths", "hydra")


def from_checkpoint(
    cfg: DictConfig,
    overrides: list[str],
    script: str = "evaluate.py",
    changeable: tuple[str, ...] = CHANGEABLE,
    own: tuple[str, ...] = OWN,
) -> DictConfig:
    """The configuration a run was trained with, its weights as the model's, and a script's overrides on top.

    The checkpoint is a run folder of train.py, or a folder or hub id in the format of facebook/rag-token-nq, which
    says nothing of questions and passages: an experiment, or task= and index.path=, does.
    changeable: what the script may change of the run. own: settings that the script has and the run has not.
    Raises UserError for a checkpoint that is not a finished run of a model that answers questions, and for an override
    that contradicts it.
    """
    if OmegaConf.is_missing(cfg, "checkpoint"):
        raise UserError(
            "say which model: checkpoint=RUN, a run folder of train.py, or a checkpoint in the format of "
            "facebook/rag-token-nq"
        )
    folder = Path(cfg.checkpoint)
    refuse = _refusal(overrides, script, changeable, own)
    if in_transformers_format(cfg.checkpoint):
        return _from_transformers(cfg, overrides, refuse, (*changeable, *own))
    saved = saved_config(folder)
    described = saved_model(folder, plain(saved))
    if not described.answers:
        if script != "evaluate.py":
            raise UserError(
                f"checkpoint={folder} is a bi-encoder, which finds passages and answers nothing: {script} needs a "
                "model that answers"
            )
        changeable = FINDS_WITH
        refuse = _refusal(overrides, f"{script} of a bi-encoder", changeable, own)
    for key in (
        *own,
        *(each for each in changeable if each not in saved),
    ):  # a setting that is younger than the run
        OmegaConf.update(saved, key, cfg[key], force_add=True)
    changed = {key_of(override) for override in overrides}
    trained_over = saved.index.path
    search = None
    if "n_docs" not in changed and saved.get("test_n_docs") is not None:
        saved.n_docs = saved.test_n_docs
    for override in overrides:
        path = key_of(override).replace("/", ".")
        key = path.split(".")[0].split("@")[0]
        if key == "experiment":
            _apply_experiment(cfg, saved, override, changeable, "n_docs" in changed)
        elif key == "retriever" and described.may_be_searched_by(plain(cfg.retriever)):
            search = plain(cfg.retriever)
        elif refuse(key, override):
            OmegaConf.update(saved, path, OmegaConf.select(cfg, path), merge=False, force_add=True)
    if changed & {"corpus", "corpus.name"} and not changed & {"index", "index.path"}:
        saved.index.path = cfg.index.path  # the index of that corpus
    elif described.index is not None and saved.index.path == trained_over:
        saved.index.path = described.find_index(folder)
    if search is not None:
        described = described.searched_by(search)
    saved.module = {
        "model": described.node(folder, saved.index.path, saved.n_docs),
        "folder": str(folder / "model"),
        "answers": described.answers,
        "reads": described.index is not None,
    }
    return saved


def _refusal(
    overrides: list[str], script: str, changeable: tuple[str, ...], own: tuple[str, ...]
) -> Callable[[str, str], bool]:
    """A function of (key, override): whether the override changes the run; UserError if it may not."""

    def changes(key: str, override: str) -> bool:
        if key in changeable and not override.startswith("~"):
            return True
        if key in (*own, *_NEUTRAL):
            return False
        raise UserError(
            f"{override} contradicts the checkpoint, which decides it: {script} takes "
            f"{', '.join((*changeable, *own))}"
        )

    return changes


def _apply_experiment(
    cfg: DictConfig, saved: DictConfig, override: str, changeable: tuple[str, ...], n_docs_given: bool
) -> None:
    """An experiment of evaluate.py alone (figure3, hotswap) says how to evaluate; any other has to be the run's own."""
    if list(cfg.scripts) != ["evaluate"]:
        if cfg.name != saved.name:
            raise UserError(
                f"{override} is the run {cfg.name} but {cfg.checkpoint} was trained as {saved.name}: drop one of the "
                "two"
            )
        return
    if cfg.model._target_ != saved.module.model._target_:
        wanted, found = (
            each.rpartition(".")[2] for each in (cfg.model._target_, saved.module.model._target_)
        )
        raise UserError(
            f"{override} is about {wanted} but {cfg.checkpoint} is {found}: give a checkpoint of that model"
        )
    for key in (*changeable, "name", "paper"):
        OmegaConf.update(saved, key, cfg[key], merge=False, force_add=True)
    if cfg.test_n_docs is not None and not n_docs_given:
        saved.n_docs = cfg.test_n_docs


def in_transformers_format(checkpoint: str) -> bool:
    """Whether it is a folder in the format of facebook/rag-token-nq, or a hub id, and no run folder of train.py."""
    folder = Path(checkpoint)
    if folder.exists():
        return (folder / "config.json").exists() and not (folder / "run.json").exists()
    # what begins with a folder that is there is a path with a slip in it
    return re.fullmatch(r"[\w.-]+/[\w.-]+", checkpoint) is not None and not Path(folder.parts[0]).exists()


def _from_transformers(
    cfg: DictConfig, overrides: list[str], refuse: Callable[[str, str], bool], settings: tuple[str, ...]
) -> DictConfig:
    """The configuration for a checkpoint that holds a model and nothing else; `settings` are the script's."""
    path = cfg.checkpoint
    keys = {key_of(override).replace("/", ".").split(".")[0]: override for override in overrides}
    for key, override in keys.items():
        if key not in ("experiment", "model"):
            refuse(key, override)
    over_passages = "index" in keys or "corpus" in keys
    if "task" not in settings and not over_passages:
        raise UserError(
            f"checkpoint={path} does not say which passages it reads: give index.path=…, an index that build_index.py "
            "made"
        )
    if "task" in settings and "experiment" not in keys and not ("task" in keys and over_passages):
        raise UserError(
            f"checkpoint={path} does not say which questions are asked of which passages: give experiment=…, or task=… "
            "and index.path=…"
        )
    from rag.checkpoint import architecture  # with transformers and torch, which no other mistake waits for

    of_checkpoint, n_docs = architecture(path)
    known = {
        "RagSequenceForGeneration": "rag.model.RagSequence",
        "RagTokenForGeneration": "rag.model.RagToken",
    }
    target = known.get(of_checkpoint, cfg.model._target_)
    named = keys.get("model") or keys.get("experiment")
    if named is not None and (cfg.model._target_ != target or "question_encoder" not in cfg.retriever):
        retriever = (
            "" if "question_encoder" in cfg.retriever else " over another retriever than a question encoder"
        )
        wanted, found = (each.rpartition(".")[2] for each in (cfg.model._target_, str(target)))
        raise UserError(
            f"{named} is about {wanted}{retriever} but checkpoint={path} is {found}: give an experiment of that model"
        )
    if "n_docs" not in keys:
        of_experiment = cfg.n_docs if cfg.test_n_docs is None else cfg.test_n_docs
        cfg.n_docs = of_experiment if "experiment" in keys else n_docs
    cfg.module = {
        "model": {
            "_target_": f"{target}.from_pretrained",
            "path": path,
            "index": cfg.index.path,
            "n_docs": cfg.n_docs,
            "trainable": False,
        },
        "folder": None,
        "answers": True,
        "reads": True,
    }
    for key in cfg.task:
        if OmegaConf.is_missing(cfg.task, key):  # files that only training needs
            cfg.task[key] = None
    kept = ("name", "seed", "paths", "module", "paper", "scripts", *settings)
    return OmegaConf.create(
        {
            key: OmegaConf.to_container(cfg[key], resolve=True) if OmegaConf.is_config(cfg[key]) else cfg[key]
            for key in kept
            if key in cfg
        }
    )
