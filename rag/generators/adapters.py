"""Adapters by `peft`: a few weights beside a model's own, which stay as they are (LoRA: Hu et al. 2022).

Any kind of `peft` that changes modules will do: lora, ia3, loha, … A prompt that is learned, as in prefix tuning, would
change what is read, and is not one.
"""

import warnings
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rag.errors import UserError, one_line
from rag.files import read_json

ADAPTER = "adapter_config.json"  # the file of peft's by which a folder with an adapter is known


def _peft() -> Any:
    if find_spec("peft") is None:
        raise UserError(
            "adapters need peft, which is not installed: pip install peft, or this project with its extra causal"
        )
    import peft  # pyright: ignore[reportMissingImports]

    return peft


def add_adapter(
    model: Any,
    kind: str,
    rank: int | None = None,
    modules: Sequence[str] | str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Any:
    """Put a new adapter into a model, whose own weights are frozen, and return peft's view of the two.

    kind: a name of peft.PeftType, in any case. rank: its `r`; None: peft's. modules: the ends of modules' names, or a
    pattern; None: those that peft takes for this kind of model. settings: more of the adapter's config.

    Raises UserError for a kind, a setting or a module that does not exist.
    """
    peft = _peft()
    known = sorted(
        name.value.lower()
        for name, config in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING.items()
        if not issubclass(config, peft.PromptLearningConfig)
    )
    if kind.lower() not in known:
        raise UserError(
            f"generator.adapter={kind} is no adapter that changes modules: there are {', '.join(known)}"
        )
    given: dict[str, Any] = {"task_type": "CAUSAL_LM", **(settings or {})}
    if rank is not None:
        given["r"] = rank
    if modules is not None:
        if not isinstance(modules, str) and not (
            isinstance(modules, Sequence) and modules and all(isinstance(each, str) for each in modules)
        ):
            raise UserError(
                f"generator.modules={modules} names no modules: give a list such as [q_proj, v_proj], or all-linear"
            )
        given["target_modules"] = modules if isinstance(modules, str) else list(modules)
        _check_modules(model, given["target_modules"])
    config_class = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(kind.upper())]
    try:
        with _quietly():
            return peft.get_peft_model(model, config_class(**given))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"generator.adapter={kind} cannot be put into this {type(model).__name__} ({one_line(str(error))}): change "
            f"its settings; the model's linear modules are {', '.join(_linear(model))}"
        ) from error


def base_of(folder: Path) -> str:
    """The model that a saved adapter was trained with, by its own config; UserError where that does not say."""
    base = read_json(folder / ADAPTER).get("base_model_name_or_path")
    if not base:
        raise UserError(
            f"{folder / ADAPTER} does not name the model beneath: give it as generator.base, a folder or hub id"
        )
    return str(base)


def open_adapter(model: Any, folder: Path) -> Any:
    """A saved adapter in the model it was trained with; UserError where the two do not fit."""
    peft = _peft()
    try:
        with _quietly():
            return peft.PeftModel.from_pretrained(model, folder, is_trainable=True)
    except (TypeError, ValueError, RuntimeError, OSError) as error:
        raise UserError(
            f"{folder} holds no adapter for this {type(model).__name__} ({one_line(str(error))}): restore it, or give "
            "the model that it was trained with as generator.base"
        ) from error


def merge_adapter(adapted: Any) -> Any:
    """The model of `add_adapter` or `open_adapter` with the adapter's weights added to its own.

    An output layer that shares its matrix with the embeddings gets one of its own if it was adapted: the embeddings
    were not.
    """
    model = adapted.get_base_model()
    output, tuned = model.get_output_embeddings(), _peft().tuners.tuners_utils.BaseTunerLayer
    if isinstance(output, tuned):
        layer, embeddings = output.get_base_layer(), model.get_input_embeddings()
        if isinstance(embeddings, tuned):
            embeddings = embeddings.get_base_layer()
        if layer.weight is embeddings.weight:
            layer.weight = nn.Parameter(layer.weight.detach().clone())
            model.config.tie_word_embeddings = False
    with _quietly():
        return adapted.merge_and_unload()


def leave_out_frozen(module: nn.Module, applies: Callable[[Any], bool]) -> None:
    """Where `applies(module)`, keep its frozen weights, which are read from where they came from, out of its state:
    checkpoints hold what is trained, and a state with or without the others is loaded."""

    def frozen(of: nn.Module, prefix: str) -> dict[str, Tensor]:
        every = of.named_parameters(remove_duplicate=False) if applies(of) else ()
        return {prefix + name: each.detach() for name, each in every if not each.requires_grad}

    def drop(state: dict[str, Any], names: Container[str]) -> None:
        for key in list(state):
            if any(part in names for part in _and_above(key)):
                del state[key]

    def saved(of: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
        drop(state, frozen(of, prefix))

    def loaded(of: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        own = frozen(of, prefix)
        drop(state, own)
        state.update(own)

    module.register_state_dict_post_hook(saved)
    module.register_load_state_dict_pre_hook(loaded)


def _and_above(key: str) -> Iterator[str]:
    """a.b.c, a.b and a: what a quantised weight is beside its bits has names below its own."""
    while key:
        yield key
        key = key.rpartition(".")[0]


@contextmanager
def _quietly() -> Iterator[None]:
    """Without peft's warnings: of its own use of transformers, and of settings that it mends by itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _check_modules(model: Any, modules: Sequence[str] | str) -> None:
    if isinstance(modules, str):  # a pattern, or all-linear, which peft refuses by itself
        return
    names = [name for name, _ in model.named_modules()]
    for module in modules:
        if not any(name == module or name.endswith(f".{module}") for name in names):
            raise UserError(
                f"generator.modules names {module}, which a {type(model).__name__} does not have: its linear modules "
                f"are {', '.join(_linear(model))}"
            )


def _linear(model: Any) -> list[str]:
    """The last names of modules that are one matrix, each once."""
    ends = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if not list(module.children()) and getattr(getattr(module, "weight", None), "dim", int)() == 2
    }
    return sorted(ends)
