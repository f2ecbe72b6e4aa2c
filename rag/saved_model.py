"""What a run says of its model: model/model.json, written when training ends and read by whatever reopens it.

It holds the model's description (rag/parts.py), the index and K it was trained with, and whether it answers questions
or, as a bi-encoder, finds passages. Reading it needs neither torch nor Hydra.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from yaml import MarkedYAMLError

from rag.errors import UserError, one_line
from rag.files import read_json
from rag.fingerprints import check_files, check_hashes, digest
from rag.runs import FOLDER, INDEX, MODEL_FILE, N_DOCS, know_project, mentions
from rag.trust import check_targets

know_project()

# Where the classes are that configurations of older runs name, by the module they were in.
MOVED = {
    "rag.datamodule": "rag.training",
    "rag.dpr": "rag.training",
    "rag.dpr_data": "rag.training",
    "rag.exact": "rag.retrievers",
    "rag.generator": "rag.generators",
    "rag.hard_negatives": "rag.training",
    "rag.index_type": "rag.index",
    "rag.lexical": "rag.retrievers",
    "rag.loggers": "rag.training",
    "rag.module": "rag.training",
    "rag.null_document": "rag.retrievers",
    "rag.optimization": "rag.training",
    "rag.ready_index": "rag.index",
    "rag.retriever": "rag.retrievers",
}
# Of these settings of a retriever none is the search: they stay where another retriever searches.
_OF_THE_MODEL = (
    *("question_encoder", "index", "trainable", "null_document", "scale", "encoder"),
    *("passage_encoder", "overfetch"),
)


@dataclass(frozen=True)
class SavedModel:
    """What model.json says.

    index: the folder that was searched in training; None: the model reads no passages, or the index is chosen later.
    index_from_run: the same, as seen from the run's folder, so that both can be moved together. files: name → bytes and
    SHA-256 of what else is in model/; empty for runs of older versions.
    """

    model: dict[str, Any]
    answers: bool
    index: str | None
    index_from_run: str | None
    n_docs: int
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, run: Path, trust: bool = False) -> "SavedModel":
        """The description of a finished run; UserError where it is damaged, names what is not trusted, or where a file
        of the model is missing or of another size. `verify_model` reads the files as well."""
        file = run / "model" / MODEL_FILE
        try:
            record = read_json(file)
            if (checksum := record.pop("checksum", None)) is not None and checksum != digest(record):
                raise KeyError("its checksum does not fit")
            saved = cls(**record)
            sizes = {name: each["bytes"] for name, each in saved.files.items()}
        except (TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"{file} is no model description, or was edited ({error}): {_restore(file.name)}"
            ) from error
        check_files(file.parent, sizes, _restore)
        check_targets(saved.node(run, saved.index, saved.n_docs), file, trust)
        return saved

    @property
    def reads(self) -> bool:
        """Whether the model reads passages."""
        return _retriever_of(self.model) is not None

    @property
    def over_index(self) -> bool:
        """Whether it is made over an index; passages that come with their questions need none."""
        return mentions(self.model, INDEX)

    def node(
        self, run: Path, index: str | None, n_docs: int, asked: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """The node that makes the model, with its weights in `run`, over `index`. asked: see `questions_of`."""
        root = {"folder": str(run / "model"), "index": index, "n_docs": n_docs, "model": self.model}
        root |= asked or {"task": None, "asked": [], "data": None}
        resolved: Any = OmegaConf.to_container(OmegaConf.create(root), resolve=True)
        return resolved["model"]

    def may_be_searched_by(self, retriever: dict[str, Any]) -> bool:
        """Whether another retriever's node finds passages for this model: with the question encoder that it trained,
        or without any."""
        retriever_here = _retriever_of(self.model)
        return retriever_here is not None and (
            "question_encoder" in retriever_here or "question_encoder" not in retriever
        )

    def searched_by(self, retriever: dict[str, Any]) -> "SavedModel":
        """The same model, its passages found in the way of another retriever's node."""
        changed: Any = OmegaConf.to_container(OmegaConf.create(self.model))  # a copy
        retriever_here = _retriever_of(changed)
        assert retriever_here is not None
        if "question_encoder" not in retriever:
            retriever_here.clear()
            retriever_here |= retriever | ({"index": INDEX} if "index" in retriever else {})
            return replace(self, model=changed)
        kept = {key: retriever_here[key] for key in _OF_THE_MODEL if key in retriever_here}
        retriever_here.clear()
        retriever_here |= {key: value for key, value in retriever.items() if key not in _OF_THE_MODEL}
        retriever_here["_target_"] = _loading(retriever_here["_target_"])
        retriever_here |= kept
        return replace(self, model=changed)

    def find_index(self, run: Path) -> str | None:
        """The index that the model was trained over: where it was, or beside the run as it was then.

        Raises UserError where it is in neither place.
        """
        if self.index is None:
            return None
        folders = [Path(self.index), run / (self.index_from_run or self.index)]
        for folder in folders:
            if (folder / "manifest.json").is_file():
                return str(folder)
        raise UserError(
            f"{run} was trained over the index {self.index}, which is not there: give index.path=…, the folder of that "
            "index or of another made with the same passage encoder"
        )


def questions_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a retriever that knows the passages of its questions is made of, from a configuration of a script."""
    paths = config.get("paths") or {}
    return {"task": config.get("task"), "asked": config.get("asked") or [], "data": paths.get("data")}


def _restore(name: str) -> str:
    return "restore it from a copy, or train again with overwrite=true"


def verify_model(run: Path) -> int:
    """Read every file of a finished run's model, and say how many there are; 0: its hashes were not written down.

    Raises UserError at the first that is not what was written.
    """
    if not (run / "model" / MODEL_FILE).is_file():
        return 0
    files = SavedModel.read(run, trust=True).files  # nothing is made of it
    check_hashes(run / "model", files, _restore, anew=True)
    return len(files)


def _retriever_of(model: dict[str, Any]) -> dict[str, Any] | None:
    """The retriever's node of a model; a classifier wraps the model that reads."""
    return model.get("retriever") or (model.get("model") or {}).get("retriever")


def _loading(target: str) -> str:
    return target if target.endswith(".from_pretrained") else f"{target}.from_pretrained"


# What of a saved configuration is made again when the run is evaluated, asked or analysed.
_MADE_AGAIN = ("task", "decoding", "encoder", "module")


def load_config(file: Path, trust: bool = False) -> DictConfig:
    """A configuration that a run saved, with the classes it names where they are now.

    Raises UserError where it is damaged, or would make what is no part of this project and is not trusted
    (rag/trust.py).
    """
    try:
        text = file.read_text(encoding="utf-8")
        saved = OmegaConf.create(re.sub(r"(_target_: )(rag\.\w+)(?=\.)", _moved, text))
    except (OSError, UnicodeDecodeError, MarkedYAMLError) as error:
        raise UserError(
            f"{file} cannot be read ({one_line(str(error))}): restore it, or make the run again"
        ) from error
    if not isinstance(saved, DictConfig):
        raise UserError(f"{file} is not a configuration of a run: restore it, or make the run again")
    for key in _MADE_AGAIN:
        if OmegaConf.is_config(node := saved.get(key)):
            check_targets(OmegaConf.to_container(node, resolve=True), file, trust)
    return saved


def _moved(match: re.Match[str]) -> str:
    return match[1] + MOVED.get(match[2], match[2])


def saved_config(folder: Path, trust: bool = False) -> DictConfig:
    """The configuration of a finished run of train.py; UserError if it is none. trust: as in `load_config`."""
    if not (folder / "result.json").exists():
        unfinished = (folder / "run.json").exists()
        state = (
            "an unfinished run: give train.py's command again"
            if unfinished
            else "not a run folder of train.py"
        )
        raise UserError(f"checkpoint={folder} is {state}")
    saved = load_config(folder / "config.yaml", trust)
    if OmegaConf.select(saved, "module.model") is None:
        raise UserError(f"{folder / 'config.yaml'} is not a configuration of train.py: retrain it")
    return saved


def saved_model(run: Path, config: dict[str, Any], trust: bool = False) -> SavedModel:
    """What model.json says, or, for a run of an older version, which has none, what its configuration says.

    config: the run's, as plain containers. trust: as in `load_config`. Raises UserError where neither says how the
    model is made again.
    """
    if (run / "model" / MODEL_FILE).exists():
        return SavedModel.read(run, trust)
    model = config["module"]["model"]
    index = (config.get("index") or {}).get("path")
    finder = {"question_encoder": f"{FOLDER}/question_encoder", "index": INDEX, "trainable": False}
    if "encoders" in model:
        target = "rag.retrievers.DenseRetriever.from_pretrained"
        return SavedModel({"_target_": target, **finder}, False, None, None, 1)
    reader = model.get("model", model)
    if "generator" not in reader:
        raise UserError(
            f"{run} was trained by an older version, without model/{MODEL_FILE}, and holds no generator: retrain it"
        )
    lengths = ("max_context_length", "max_target_length")
    reader["generator"] = {
        "_target_": "rag.generators.Generator.from_pretrained",
        "path": f"{FOLDER}/generator",
        **{name: reader["generator"][name] for name in lengths if name in reader["generator"]},
    }
    if "retriever" not in reader:
        index = None
    else:
        reader["n_docs"] = N_DOCS
        retriever = reader["retriever"]
        retriever["index"] = INDEX
        if "question_encoder" in retriever:
            retriever |= finder
        if null := retriever.get("null_document"):
            file = f"{FOLDER}/null_document.safetensors"
            retriever["null_document"] = {"_target_": f"{null['_target_']}.from_pretrained", "file": file}
    if (run / "model" / "head.safetensors").exists():
        model.pop("dropout", None)
        model |= {"_target_": _loading(model["_target_"]), "file": f"{FOLDER}/head.safetensors"}
    return SavedModel(model, True, index, None, config.get("n_docs", 5))
