"""The folder format of sentence-transformers, read and written without that package.

    modules.json                        Transformer, Pooling, then any of Dense and Normalize, and their folders
    config_sentence_transformers.json   prompts by name, the one that is used by default
    sentence_bert_config.json           max_seq_length, do_lower_case
    1_Pooling/config.json               pooling_mode, or a flag a mode in older versions
    2_Dense/config.json, model.safetensors

Only JSON and safetensors are read, and a Dense's pytorch_model.bin as tensors alone.
"""

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from pickle import UnpicklingError  # what torch.load refuses with; nothing is unpickled here
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rag import hub
from rag.encoders.settings import EncoderSettings
from rag.errors import UserError
from rag.files import read_json, write_json
from rag.finite import check_finite

log = logging.getLogger(__name__)

MODULES = "modules.json"
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_lasttoken": "last",
}
_MODES = {
    "cls": "cls",
    "mean": "mean",
    "max": "max",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "lasttoken": "last",
}
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    f"torch.nn.modules.{module}.{kind.__name__}": kind
    for module, kinds in {
        "activation": (nn.Tanh, nn.ReLU, nn.GELU, nn.SiLU, nn.Sigmoid),
        "linear": (nn.Identity,),
    }.items()
    for kind in kinds
}
_QUESTION_NAMES, _PASSAGE_NAMES = (
    ("query",),
    ("document", "passage", "corpus"),
)  # as encode_query, encode_document


class Dense(nn.Module):
    """A layer after the pooling: activation(W v + b)."""

    def __init__(self, inputs: int, outputs: int, bias: bool, activation: str):
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=bias)
        self.activation = activation
        self._apply_activation = _ACTIVATIONS[activation]()

    def forward(self, vectors: Tensor) -> Tensor:
        return self._apply_activation(self.linear(vectors))


@dataclass(frozen=True)
class SentenceFormat:
    """What a folder says beside the transformer's own files.

    max_length: None: what the tokenizer and the positions allow. partner: the passage encoder's fingerprint, ours.
    """

    pooling: str
    normalize: bool = False
    question_prompt: str = ""
    passage_prompt: str = ""
    max_length: int | None = None
    lower_case: bool = False
    dense: list[Dense] = field(default_factory=list)

    def with_settings(self, settings: EncoderSettings) -> "SentenceFormat":
        """The same with what was asked for in its place; prompts asked for by name are resolved before."""
        names = ("pooling", "normalize", "question_prompt", "passage_prompt", "max_length")
        return replace(self, **{name: value for name, value in settings.given.items() if name in names})


def local_copy(path: str | Path) -> Path:
    """The folder itself, or that of a repository on the hub, downloaded without weights in other formats."""
    if not hub.is_name(str(path)):
        return Path(path)
    hub.commit(str(path))
    try:
        kinds = ["*.json", "*.txt", "*.model", "*.safetensors"]
        folder = Path(
            snapshot_download(str(path), allow_patterns=kinds, ignore_patterns=["onnx/*", "openvino/*"])
        )
        if not any(folder.rglob("*.safetensors")):
            snapshot_download(str(path), allow_patterns=["*.bin"], ignore_patterns=["onnx/*", "openvino/*"])
        return folder
    except (*hub.FAILURES, ValueError) as error:
        raise hub.refusal(error, path) or UserError(
            f"{path} could not be downloaded ({hub.reason(error)})"
        ) from error


def read_format(folder: Path, settings: EncoderSettings) -> tuple[SentenceFormat, Path]:
    """What a folder with modules.json says, after `settings`, and where its transformer is.

    Raises UserError for modules, poolings, activations or prompts that are not there or not read.
    """
    modules = _read(folder / MODULES, list)
    try:
        kinds = [(str(each["type"]).rpartition(".")[2], folder / each["path"]) for each in modules]
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / MODULES} names no modules with type and path: restore it") from error
    names = [kind for kind, _ in kinds]
    if (
        names[:2] != ["Transformer", "Pooling"]
        or set(names[2:]) - {"Dense", "Normalize"}
        or "Normalize" in names[2:-1]
    ):
        raise UserError(
            f"{folder} is made of {', '.join(names) or 'no modules'}: Transformer and Pooling are read, then "
            "Dense, and Normalize at the end"
        )
    transformer = kinds[0][1]
    read = SentenceFormat(
        _pooling(kinds[1][1] / "config.json"),
        names[-1] == "Normalize",
        dense=[_dense(subfolder) for kind, subfolder in kinds if kind == "Dense"],
        **_lengths(transformer),
    )
    return _prompted(read, folder, settings).with_settings(settings), transformer


def _prompted(read: SentenceFormat, folder: Path, settings: EncoderSettings) -> SentenceFormat:
    file = folder / "config_sentence_transformers.json"
    said = _read(file, dict) if file.is_file() else {}
    prompts, default = said.get("prompts") or {}, said.get("default_prompt_name")
    prompts_by_side = {}
    for side, names in (("question", _QUESTION_NAMES), ("passage", _PASSAGE_NAMES)):
        asked = getattr(settings, f"{side}_prompt_name")
        name = asked or next((each for each in names if each in prompts), default)
        if name is not None and name not in prompts:
            what = f"encoder.{side}_prompt_name={name}" if asked else f"default_prompt_name {name}"
            raise UserError(
                f"{what} is none of the prompts of {file}: it has {', '.join(sorted(prompts)) or 'none'}; "
                f"encoder.{side}_prompt gives the text itself"
            )
        prompts_by_side[f"{side}_prompt"] = "" if name is None else str(prompts[name])
    normalize = read.normalize if settings.normalize is None else settings.normalize
    if said.get("similarity_fn_name") == "cosine" and not normalize:
        log.warning(
            "%s names the cosine as its similarity but does not normalise its vectors: inner products are used; "
            "encoder.normalize=true takes cosines",
            folder,
        )
    return replace(read, **prompts_by_side)


def _pooling(file: Path) -> str:
    said = _read(file, dict)
    mode = said.get("pooling_mode")
    modes: list[str]
    if mode is None:
        flags = [key for key, value in said.items() if key.startswith("pooling_mode_") and value]
        modes = [_FLAGS.get(key, str(key)) for key in flags]
    else:
        modes = [_MODES.get(each, str(each)) for each in ([mode] if isinstance(mode, str) else mode)]
    if len(modes) != 1 or modes[0] not in _MODES.values():
        raise UserError(
            f"{file} pools by {' and '.join(modes) or 'nothing'}: expected one of {', '.join(_MODES)}"
        )
    if said.get("include_prompt") is False:
        raise UserError(
            f"{file} leaves prompts out of the pooling (include_prompt: false), which is not supported"
        )
    return modes[0]


def _lengths(transformer: Path) -> dict[str, Any]:
    files = (
        transformer / f"sentence_{kind}_config.json" for kind in ("bert", "roberta", "distilbert", "xlnet")
    )
    said = next((_read(file, dict) for file in files if file.is_file()), {})
    return {"max_length": said.get("max_seq_length"), "lower_case": bool(said.get("do_lower_case"))}


def _dense(folder: Path) -> Dense:
    said = _read(folder / "config.json", dict)
    activation = said.get("activation_function", "torch.nn.modules.activation.Tanh")
    if activation not in _ACTIVATIONS or said.get("use_residual"):
        what = "a residual connection" if activation in _ACTIVATIONS else activation
        known = ", ".join(kind.__name__ for kind in _ACTIVATIONS.values())
        raise UserError(f"{folder} is a Dense with {what}: Dense is read with {known} and without a residual")
    safe = folder / "model.safetensors"
    file = safe if safe.is_file() else folder / "pytorch_model.bin"
    try:
        layer = Dense(said["in_features"], said["out_features"], said.get("bias", True), activation)
        weights = load_file(file) if file == safe else torch.load(file, weights_only=True, map_location="cpu")
        layer.load_state_dict(weights)
    except UnpicklingError as error:
        raise UserError(
            f"{file} holds more than tensors, and could run code when opened: give safetensors"
        ) from error
    except (OSError, KeyError, SafetensorError, RuntimeError) as error:
        raise UserError(
            f"{folder} does not hold the Dense of its config.json ({hub.reason(error)}): restore it"
        ) from error
    check_finite(weights, file)
    return layer.float()


def _read(file: Path, kind: type) -> Any:
    content = read_json(file, object) if file.is_file() else None
    if not isinstance(content, kind):
        state = "is missing" if content is None else "is damaged"
        raise UserError(f"{file} {state}: restore it from the model in sentence-transformers' format")
    return content


def write_format(read: SentenceFormat, folder: Path, width: int, max_length: int) -> None:
    """Write everything beside the transformer's own files, as every version of sentence-transformers reads it.

    width: of the transformer's states.
    """
    kinds = ["Transformer", "Pooling", *["Dense"] * len(read.dense), *["Normalize"] * read.normalize]
    subfolders = ["", *(f"{number}_{kind}" for number, kind in enumerate(kinds[1:], start=1))]
    modules = [
        {
            "idx": number,
            "name": str(number),
            "path": subfolder,
            "type": f"sentence_transformers.models.{kind}",
        }
        for number, (kind, subfolder) in enumerate(zip(kinds, subfolders, strict=True))
    ]
    flags = {flag: mode == read.pooling for flag, mode in _FLAGS.items()}
    write_json(folder / subfolders[1] / "config.json", {"word_embedding_dimension": width} | flags)
    for subfolder, layer in zip(subfolders[2:], read.dense, strict=False):
        linear = layer.linear
        config = {
            "in_features": linear.in_features,
            "out_features": linear.out_features,
            "bias": linear.bias is not None,
            "activation_function": layer.activation,
        }
        write_json(folder / subfolder / "config.json", config)
        weights = {name: weight.detach().cpu().contiguous() for name, weight in layer.state_dict().items()}
        save_file(weights, folder / subfolder / "model.safetensors")
    if read.normalize:
        (folder / subfolders[-1]).mkdir(parents=True, exist_ok=True)
    write_json(
        folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": read.lower_case}
    )
    prompts = {"query": read.question_prompt, "document": read.passage_prompt}
    write_json(
        folder / "config_sentence_transformers.json",
        {
            "prompts": prompts,
            "default_prompt_name": None,
            "similarity_fn_name": "cosine" if read.normalize else "dot",
        },
    )
    write_json(folder / MODULES, modules)
