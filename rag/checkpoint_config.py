"""What a script runs with where a trained model decides: the run's own settings, and overrides on top."""

import re
from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from rag.compose import key_of, plain
from rag.errors import UserError
from rag.saved_model import questions_of, saved_config, saved_model

# What evaluate.py may change of a run; everything else is decided by the checkpoint.
CHANGEABLE = ("corpus", "task", "index", "decoding", "n_docs", "k_sweep", "recall_at", "bm25", "hot_swap")
OWN = (
    "checkpoint",
    "trust",
    "verify",
    "int8",
    "split",
    "limit",
    "batch_size",
    "reader",
    "export",
    "trec",
    "results",
    "overwrite",
    "report",
)
# What it may change where the checkpoint is a bi-encoder, which finds passages and answers nothing.
FINDS_WITH = ("corpus", "task", "index", "recall_at", "bm25")
# Groups of settings that an experiment gives beside the model; they belong to the composed config in any case.
_NEUTRAL = ("paths", "hydra")


def from_checkpoint(
    cfg: DictConfig,
    overrides: list[str],
    script: str = "evaluate.py",
    changeable: tuple[str, ...] = CHANGEABLE,
    script_settings: tuple[str, ...] = OWN,
) -> DictConfig:
    """The configuration a run was trained with, its weights as the model's, and a script's overrides on top.

    The checkpoint is a run folder of train.py, or a folder or hub id in the format of facebook/rag-token-nq, which
    says nothing of questions and passages: an experiment, or task= and index.path=, does.
    changeable: what the script may change of the run. script_settings: those that the script has and the run has not.
    Raises UserError for a checkpoint that is not a finished run of a model that answers questions, and for an override
    that contradicts it.
    """
    if OmegaConf.is_missing(cfg, "checkpoint"):
        raise UserError(
            "say which model: checkpoint=RUN, a run folder of train.py, or a checkpoint in the format of "
            "facebook/rag-token-nq"
        )
    folder = Path(cfg.checkpoint)
    refuse = _refusal(overrides, script, changeable, script_settings)
    if in_transformers_format(cfg.checkpoint):
        return _from_transformers(cfg, overrides, refuse, (*changeable, *script_settings))
    trust = bool(cfg.get("trust"))
    saved = saved_config(folder, trust)
    described = saved_model(folder, plain(saved), trust)
    if not described.answers:
        if script != "evaluate.py":
            raise UserError(
                f"checkpoint={folder} is a bi-encoder, which finds passages and answers nothing: {script} needs a "
                "model that answers"
            )
        changeable = FINDS_WITH
        refuse = _refusal(overrides, f"{script} of a bi-encoder", changeable, script_settings)
    for key in (
        *script_settings,
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
        elif key == "retriever" and described.may_be_searched_by(cfg.retriever):
            search = cfg.retriever
        elif refuse(key, override):
            OmegaConf.update(saved, path, OmegaConf.select(cfg, path), merge=False, force_add=True)
    asked_for = changed & {"index", "index.path"}
    if changed & {"corpus", "corpus.name"} and not asked_for:
        saved.index.path = cfg.index.path  # the index of that corpus
    elif described.index is not None and saved.index.path == trained_over:
        # A run that trained its passage encoder has an index of its own beside the one that it began with.
        if not (asked_for and Path(trained_over).exists()):
            saved.index.path = described.find_index(folder)
    saved.asked = cfg.get("asked")
    if search is not None:
        if "question_encoder" not in search:  # its questions and passages are those of this evaluation
            saved.retriever = OmegaConf.to_container(search, resolve=False)
            search = saved.retriever
        described = described.searched_by(plain(search))
    asked = {
        key: OmegaConf.to_container(saved[key], resolve=True)
        for key in ("task", "asked", "paths")
        if key in saved
    }
    saved.module = {
        "model": described.node(folder, saved.index.path, saved.n_docs, questions_of(asked)),
        "folder": str(folder / "model"),
        "answers": described.answers,
        "reads": described.reads,
    }
    return saved


def _refusal(
    overrides: list[str], script: str, changeable: tuple[str, ...], script_settings: tuple[str, ...]
) -> Callable[[str, str], bool]:
    """A function of (key, override): whether the override changes the run; UserError if it may not."""

    def changes(key: str, override: str) -> bool:
        if key in changeable and not override.startswith("~"):
            return True
        if key in (*script_settings, *_NEUTRAL):
            return False
        raise UserError(
            f"{override} contradicts the checkpoint, which decides it: {script} takes "
            f"{', '.join((*changeable, *script_settings))}"
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
        wanted, trained = (
            each.rpartition(".")[2] for each in (cfg.model._target_, saved.module.model._target_)
        )
        raise UserError(
            f"{override} is about {wanted} but {cfg.checkpoint} is {trained}: give a checkpoint of that model"
        )
    for key in (*changeable, "name", "paper"):
        OmegaConf.update(saved, key, cfg[key], merge=False, force_add=True)
    if cfg.test_n_docs is not None and not n_docs_given:
        saved.n_docs = cfg.test_n_docs


def in_transformers_format(checkpoint: str) -> bool:
    """Whether it is a folder in the format of facebook/rag-token-nq, or a hub id, and not a run folder of train.py."""
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
    # One that needs no question encoder, as for passages that come with their questions.
    others = "retriever" in keys and "task" in settings and "question_encoder" not in cfg.retriever
    for key, override in keys.items():
        if key not in ("experiment", "model", *(["retriever"] if others else [])):
            refuse(key, override)
    needs_index = not others or "index" in cfg.retriever
    over_passages = "index" in keys or "corpus" in keys or not needs_index
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
    fits = others or "question_encoder" in cfg.retriever
    if named is not None and (cfg.model._target_ != target or not fits):
        retriever = "" if fits else " over another retriever than a question encoder"
        wanted, of_file = (each.rpartition(".")[2] for each in (cfg.model._target_, str(target)))
        raise UserError(
            f"{named} is about {wanted}{retriever} but checkpoint={path} is {of_file}: give an experiment of that model"
        )
    if "n_docs" not in keys:
        of_experiment = cfg.n_docs if cfg.test_n_docs is None else cfg.test_n_docs
        cfg.n_docs = of_experiment if "experiment" in keys else n_docs
    for key in cfg.task:
        if OmegaConf.is_missing(cfg.task, key):  # files that only training needs
            cfg.task[key] = None
    cfg.module = {
        "model": {
            "_target_": f"{target}.from_pretrained",
            "path": path,
            "index": cfg.index.path if needs_index else None,
            "n_docs": cfg.n_docs,
            "trainable": False,
            **({"retriever": plain(cfg.retriever)} if others else {}),
        },
        "folder": None,
        "answers": True,
        "reads": True,
    }
    kept = ("name", "seed", "paths", "module", "paper", "scripts", *settings)
    return OmegaConf.create(
        {
            key: OmegaConf.to_container(cfg[key], resolve=True) if OmegaConf.is_config(cfg[key]) else cfg[key]
            for key in kept
            if key in cfg
        }
    )
