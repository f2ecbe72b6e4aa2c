"""`evaluate.py reader=none`: what a retriever finds by itself, without a run of train.py."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rag.checkpoint_config import FINDS_WITH, OWN
from rag.compose import key_of, plain
from rag.errors import UserError
from rag.retrievers.overfetch import check_overfetch

PREFIX = "retriever="  # what stands where a checkpoint's path would
_TAKEN = (
    *FINDS_WITH,
    *OWN,
    "retriever",
    "passage_encoder",
    "question_encoder",
    "encoder",
    "paths",
    "experiment",
)


def without_reader(cfg: DictConfig, overrides: list[str]) -> DictConfig:
    """The configuration of a retriever alone, as `from_checkpoint` gives that of a bi-encoder.

    Raises UserError for another `reader`, a checkpoint beside it, and for a retriever that searches vectors where there
    is no index.
    """
    if cfg.reader != "none":
        raise UserError(
            f"reader={cfg.reader} does not exist: reader=none evaluates a retriever alone, and without it a checkpoint "
            "says what reads"
        )
    keys = {key_of(each).replace("/", ".").split(".")[0]: each for each in overrides}
    if "checkpoint" in keys:
        raise UserError(
            f"reader=none and {keys['checkpoint']} exclude each other: a checkpoint reads, or finds, by itself"
        )
    for key, override in keys.items():
        if key not in _TAKEN:
            raise UserError(
                f"{override} belongs to a model that reads: reader=none takes {', '.join(_TAKEN)}"
            )
    for key in cfg.task:  # files that only training or other splits need
        if OmegaConf.is_missing(cfg.task, key):
            cfg.task[key] = None
    searches = OmegaConf.select(cfg, "retriever._target_") is not None
    if not searches:
        raise UserError("reader=none needs a retriever: give retriever=bm25, dense, hybrid, exact or given")
    node: Any = OmegaConf.to_container(cfg.retriever, resolve=False)
    chosen = next(
        (each.partition("=")[2] for each in reversed(overrides) if key_of(each) == "retriever"), "dense"
    )
    over_index = "index" in node
    if over_index and not Path(cfg.index.path).exists() and "question_encoder" in node:
        raise UserError(
            f"retriever={chosen} searches vectors, and there is no index at {cfg.index.path}: build one with "
            "build_index.py, give index.path=…, or take retriever=bm25, which needs none"
        )
    if over_index and ("index" not in keys and "question_encoder" not in node):
        check_corpus(cfg, chosen)
    kept = ("name", "seed", "paths", "paper", "scripts", "n_docs", "asked", "retriever", *FINDS_WITH, *OWN)
    cfg.checkpoint = PREFIX + chosen
    found = OmegaConf.create({key: plain(cfg[key]) for key in kept if key in cfg and key != "retriever"})
    found.module = {
        "model": plain(cfg.retriever),
        "folder": None,
        "answers": False,
        "reads": True,
        "prepare": over_index and "index" not in keys and "question_encoder" not in node,
    }
    return found


def check_corpus(cfg: DictConfig, chosen: str) -> None:
    """UserError unless the corpus that is to be searched by its words is there."""
    path = OmegaConf.select(cfg, "corpus.path")
    if path is None or not Path(path).expanduser().exists():
        raise UserError(
            f"retriever={chosen} searches the passages of a corpus, and {path or 'none'} does not exist: give "
            "corpus.path=…, a file or folder of passages, or index.path=…"
        )


def check_finds(cfg: DictConfig) -> None:
    """UserError for what only a model that answers can do, asked of one that finds; and for too few to choose among."""
    overfetch = OmegaConf.select(cfg, "module.model.retriever.overfetch")
    check_overfetch(overfetch, cfg.n_docs)
    for k in plain(cfg.k_sweep) if cfg.module.answers and cfg.module.reads else ():
        check_overfetch(overfetch, k, "k_sweep")
    if cfg.int8 and not cfg.module.answers:
        raise UserError("int8=true is for a model that answers, and this one finds passages: leave it out")


def alone(cfg: DictConfig) -> bool:
    """Whether a configuration is of a retriever alone."""
    return str(cfg.checkpoint).startswith(PREFIX)
