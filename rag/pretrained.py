"""Loading transformers' models and tokenizers: every weight accounted for, in float32 unless asked otherwise."""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError  # what torch.load refuses with; nothing is unpickled here
from typing import Any

import torch
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)
from safetensors import SafetensorError, safe_open
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
)
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from rag import hub
from rag.errors import UserError
from rag.files import read_json
from rag.finite import check_finite

log = logging.getLogger(__name__)

_OBJECTS = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")

FLOAT32 = "float32"  # what weights are, whatever they were saved as: see `load_weights`


def checkpoint_layers(model: Any) -> None:
    """Let a transformers model keep only each layer's input, and recompute the rest in the backward pass.

    Raises UserError for a model that cannot.
    """
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise UserError(
            f"gradient_checkpointing=true, but a {type(model).__name__} cannot do it: leave that setting out"
        )
    # the former is its name in newer versions, the latter goes with version 6
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, model: Any, what: str) -> None:
    """UserError where a tokenizer knows tokens that a model has no embeddings for, or no words at all."""
    if len(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids)) <= 1:
        raise UserError(  # transformers makes an empty one where a tokenizer's files are missing
            f"the {what}'s tokenizer has an empty vocabulary ({tokenizer.name_or_path or 'not from a folder'}): "
            "restore its files beside the model's"
        )
    embeddings = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > embeddings:
        raise UserError(
            f"the tokenizer has {len(tokenizer):,} tokens but the {what} only {embeddings:,} embeddings: "
            "use both from the same model"
        )


def load_pretrained(
    model_class: Any, path: str | Path, what: str, dtype: str = FLOAT32, **settings: Any
) -> tuple[Any, PreTrainedTokenizerBase]:
    """Load a Hugging Face model and its tokenizer from a folder or the hub. Raises UserError if it fails."""
    try:
        model = load_weights(model_class, path, dtype, **settings)
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # transformers and tokenizers raise any of damaged files, plain ones too
        raise hub.refusal(error, path) or UserError(
            f"{path} holds no {what} with its tokenizer ({hub.reason(error)}): give a folder written by "
            "save_pretrained or the name of a model on the hub"
        ) from error
    return model, tokenizer


def check_files(path: str | Path) -> None:
    """UserError for a file of a local folder that transformers would fail on: JSON that is no object, and weights that
    are empty or cut short. Headers alone are read of the weights."""
    folder = Path(path)
    if not folder.is_dir():
        return
    for name in _OBJECTS:
        if (folder / name).is_file():
            read_json(folder / name)
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{file} is damaged or was cut short ({hub.reason(error)}): restore it"
            ) from error


def load_weights(
    model_class: Any,
    path: str | Path,
    dtype: str = FLOAT32,
    may_lack: Callable[[str], bool] = lambda weight: False,
    **settings: Any,
) -> Any:
    """`model_class.from_pretrained`, from safetensors or tensors alone, that leaves no weight to chance.

    dtype: the weights' type, whatever they were saved as. transformers would take the saved one, and those of
    facebook/bart-large are half: AdamW's steps on half weights are rounded away or overflow. may_lack: whether a weight
    that the checkpoint lacks is meant to be a new one.

    Raises UserError for a checkpoint of another kind of model, and names the weights that one lacks, holds in another
    shape or that are not finite; extra ones are named in a warning.
    """
    if (
        not isinstance(getattr(torch, dtype, None), torch.dtype)
        or not getattr(torch, dtype).is_floating_point
    ):
        raise UserError(f"dtype={dtype} does not exist for weights; available: float32, bfloat16 and float16")
    if hub.is_name(str(path)):
        hub.commit(str(path))  # before anything else is asked of a hub that may be out of reach
    of_file = {name: settings[name] for name in ("gguf_file",) if name in settings}
    check_files(path)
    config_dict = PreTrainedConfig.get_config_dict(str(path), **of_file)[0]
    check_model_kind(config_dict.get("model_type"), model_class, path)
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # its own table of weights: one sentence says it below
    try:
        with no_bar_of_transformers():
            model, report = model_class.from_pretrained(
                path,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                weights_only=True,
                dtype=getattr(torch, dtype),
                **settings,
            )
    except UnpicklingError as error:
        raise UserError(
            f"the weights of {path} hold more than tensors, and could run code when opened: give safetensors"
        ) from error
    finally:
        transformers_logging.set_verbosity(before)
    if wrong := {key for key, *_ in report["mismatched_keys"]}:
        raise UserError(
            f"{path} holds {_named(wrong)} in another shape than its config.json says: restore it"
        )
    if missing := [weight for weight in report["missing_keys"] if not may_lack(weight)]:
        held = config_dict.get("architectures") or []
        if held and hasattr(model_class, "config_class") and model_class.__name__ not in held:
            raise UserError(
                f"{path} holds a {held[0]}, which lacks {_named(missing)} of a {model_class.__name__}: give a "
                f"checkpoint of a {model_class.__name__}"
            )
        raise UserError(f"{path} lacks {_named(missing)}: restore it, or give another checkpoint")
    # DPR's released encoders bring BERT's pooler, which DPR does not use.
    if extra := {key for key in report["unexpected_keys"] if "pooler" not in key.split(".")}:
        log.warning("%s holds %s, which this model does not use: ignored", path, _named(extra))
    check_finite(model.state_dict(), path)
    return model


@contextmanager
def no_bar_of_transformers() -> Iterator[None]:
    """Without its bar over the weights that are loaded, which takes less time than to read; downloads keep theirs."""
    shown, of_downloads = transformers_logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    transformers_logging.disable_progress_bar()
    if of_downloads:
        enable_progress_bars()  # the former has switched them off as well
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
        if shown and not of_downloads:
            disable_progress_bars()


def check_model_kind(kind: str | None, model_class: Any, where: str | Path) -> None:
    """UserError unless weights of this kind, a config's `model_type`, are those of `model_class`.

    transformers loads RoBERTa's weights into BERT without a complaint, and its vectors are then others: positions begin
    elsewhere, and the tokens' types have other embeddings.
    """
    if kind is None:  # a config older than that key
        return
    if (of_class := getattr(model_class, "config_class", None)) is not None:
        if kind != of_class.model_type:
            raise UserError(
                f"{where} holds a model of type {kind}: a {model_class.__name__} is read from type "
                f"{of_class.model_type} alone"
            )
        return
    if model_class is AutoModelForCausalLM:  # rag/generators/causal_loading.py knows which
        return
    if kind in CONFIG_MAPPING and CONFIG_MAPPING[kind] not in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
        raise UserError(
            f"{where} holds a model of type {kind}, which is not a sequence-to-sequence model: use one such as bart, "
            "mbart, pegasus or t5"
        )


def plain_outputs(model: Any) -> Any:
    """The same model, which answers with named outputs and no more than is asked for, whatever its config says.

    Both parts of facebook/rag-token-nq were saved with `return_dict: false`, with which transformers returns tuples.
    """
    for module in model.modules():
        config = getattr(module, "config", None)
        if isinstance(config, PreTrainedConfig):
            config.return_dict = True
            config.output_hidden_states = False
            config.output_attentions = False
    if getattr(model.config, "use_cache", None) is False:  # the whole model's; its encoder has one of its own
        try:  # still False for a decoder that keeps no cache, such as rag/generators/lstm.py's
            model.config.use_cache = getattr(type(model.config)(), "use_cache", True)
        except ValueError:  # a config of two parts, which there is none of without them
            model.config.use_cache = True
    return model


def _named(keys: Iterable[str]) -> str:
    names = sorted(keys)
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return f"the weight {shown}" if len(names) == 1 else f"{len(names)} weights ({shown})"
