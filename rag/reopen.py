"""From a run folder to its model: for evaluate.py, rag.ask, rag.analysis and Python alike."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from rag.errors import UserError, causes
from rag.parts import load_parts
from rag.saved_model import questions_of, saved_config, saved_model


def open_model(module: DictConfig | dict[str, Any]) -> Any:
    """The model of `{model: node, folder: where its parts' weights are}`, in evaluation mode.

    folder: None for a checkpoint whose node reads all its weights. Raises UserError as the parts do.
    """
    try:
        model = instantiate(module["model"])
    except InstantiationException as error:
        mistake = next((each for each in causes(error) if isinstance(each, UserError)), None)
        if mistake is None:
            raise
        raise mistake from error
    if module.get("folder") is not None:
        load_parts(model.trained_parts(), Path(module["folder"]))
    return model.eval()


def reopen(
    run: str | Path,
    index: str | Path | None = None,
    n_docs: int | None = None,
    trust: bool = False,
    splits: Sequence[str] | None = None,
) -> Any:
    """The model of a finished run of train.py, in evaluation mode: RagSequence, RagToken, ClosedBook, a classifier,
    or the retriever of a bi-encoder.

    index: another index to search than the one it was trained over; a bi-encoder's has to be given. n_docs: another K.
    trust: the run may name classes that are no part of this project, your own for instance (rag/trust.py).
    splits: of the run's task, for a retriever that knows the passages of its questions; None: those of training.
    Raises UserError for a folder that is no finished run, or whose index is not there.
    """
    run = Path(run)
    config: Any = OmegaConf.to_container(saved_config(run, trust), resolve=True)
    saved = saved_model(run, config, trust)
    if index is None and not saved.answers:
        raise UserError(f"{run} is a bi-encoder, which finds passages in an index: give index=FOLDER")
    index_folder = saved.find_index(run) if index is None else str(index)
    asked = questions_of(config) | ({} if splits is None else {"asked": list(splits)})
    node = saved.node(run, index_folder, saved.n_docs if n_docs is None else n_docs, asked)
    return open_model({"model": node, "folder": str(run / "model")})
