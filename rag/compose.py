"""Hydra configurations composed, and what is wrong in one told with the nearest names that exist."""

import copy
import difflib
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError

from rag.errors import UserError, listed, one_line, shortened
from rag.runs import CONFIGS, know_project

know_project()
RENAMED = {"corpus.split_words": "corpus.split=words corpus.size="}
GROUPS = {str(folder.relative_to(CONFIGS)) for folder in CONFIGS.iterdir() if folder.is_dir()}


def compose_config(name: str, overrides: list[str]) -> DictConfig:
    """The resolved-on-demand configuration of a script, or UserError in one sentence."""
    overrides = [quoted_schedule(each) for each in overrides]
    for override in overrides:
        if not re.match(r"~\w[^=]*$|(~|\+{0,2})\w[^=]*=", override):
            if override in ("-m", "--multirun"):
                raise UserError(f"{override}: only train.py sweeps, as in python train.py -m seed=1,2")
            raise UserError(
                f"{shortened(override)} is not an override: write key=value, or --help for examples"
            )
        if (key := key_of(override)) in RENAMED:
            raise UserError(
                f"{key} is not a setting any more: give {RENAMED[key]}{override.partition('=')[2]}"
            )
        check_choice(override)
        check_readable(override)
    # Hydra's way of choosing nothing from a group is ~group; group=null is what one would type.
    nothing = {f"{group}=null": f"~{group}" for group in GROUPS}
    overrides = [nothing.get(override, override) for override in overrides]
    values = [each for each in overrides if _is_value(each)]
    try:
        default = composed(name, [each for each in overrides if each not in values])
        cfg = copy.deepcopy(default)
        ConfigLoaderImpl._apply_overrides_to_config(_parser().parse_overrides(values), cfg)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error, name, overrides)) from error
    except (ValueError, RecursionError) as error:
        shown = shortened(" ".join(overrides))
        raise UserError(f"{shown} cannot be composed ({shortened(one_line(str(error)))})") from error
    except MarkedYAMLError as error:
        mark = error.problem_mark
        location = f"{mark.name}, line {mark.line + 1}" if mark else "a config"
        raise UserError(f"{location} is not valid YAML ({error.problem})") from error
    for override in {key_of(each): each for each in overrides}.values():  # the last of each key
        check_kind(override, cfg, default)
    return cfg


def quoted_schedule(override: str) -> str:
    """refresh=0-1000:500,1000-:1000 in the quotes that Hydra wants around a comma: it is one value."""
    parts = re.fullmatch(r"([\w.]+)=(\d[\d:,-]*:[\d:,-]*)", override)
    return override if parts is None else f"{parts[1]}='{parts[2]}'"


def composed(name: str, choices: list[str]) -> DictConfig:
    """A script's configuration with what was chosen from groups; it is not to be changed.

    Hydra takes a tenth of a second for it, so that it is composed once in a process, until a file of a config changes.
    """
    files = (file for folder in folders() for file in folder.rglob("*.yaml"))
    stamps = sorted((str(file), (stat := file.stat()).st_mtime_ns, stat.st_size) for file in files)
    return _composed(name, (*_searched(), *choices), tuple(stamps))


@lru_cache(maxsize=64)
def _composed(name: str, overrides: tuple[str, ...], stamps: tuple[Any, ...]) -> DictConfig:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(name, list(overrides))


@lru_cache(maxsize=1)
def _parser() -> OverridesParser:
    return OverridesParser.create()


def _is_value(override: str) -> bool:
    """Whether Hydra sets it once all else is composed: neither a choice from a group nor what it alone understands."""
    parsed = _parser().parse_override(override)
    key = parsed.key_or_group
    apart = parsed.package is not None or parsed.is_sweep_override() or key.split(".")[0] == "hydra"
    return not apart and not any((folder / key).is_dir() for folder in folders())


def check_choice(override: str) -> None:
    """UserError for a group that is given something else than the name of one of its files."""
    group, equals, choice = override.lstrip("+~").partition("=")
    if equals and group in GROUPS and not re.fullmatch(r"""(['"]?)[A-Za-z_][\w./-]*\1|""", choice):
        raise UserError(
            f"{shortened(override)}: {group} is chosen by name, one of {listed(choices(group))}; single "
            f"settings are {group}.NAME=…"
        )


def check_readable(override: str) -> None:
    """UserError for what Hydra's grammar has no value for, also where its parser gives up in other ways."""
    try:
        _parser().parse_override(override)
    except HydraException:
        raise UserError(unreadable(override)) from None
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, brackets inside brackets
        raise UserError(
            f"{shortened(override)} cannot be read ({shortened(one_line(str(error)))})"
        ) from error


def unreadable(override: str) -> str:
    key, value = shortened(key_of(override), 40), shortened(override.partition("=")[2], 40)
    return (
        f"{shortened(override)} cannot be read: a value with =, commas, brackets or spaces needs quotes, as in "
        f"""'{key}="{value}"', and a list brackets, as in {key}=[1,2]; train.py -m """
        "takes several values with commas and trains with each"
    )


def folders() -> list[Path]:
    """Where configs are looked for: the project's, then configs/ of the current folder, whose own names come on top.

    A file of the current folder never takes the place of one of the project's.
    """
    here = Path.cwd() / "configs"
    return [CONFIGS, here] if here.is_dir() and here.resolve() != CONFIGS.resolve() else [CONFIGS]


def _searched() -> list[str]:
    """Hydra's override for the folders beside the project's."""
    quoted = [str(folder).replace("\\", "\\\\").replace("'", "\\'") for folder in folders()[1:]]
    return [f"hydra.searchpath=['file://{folder}']" for folder in quoted]


def check_kind(override: str, cfg: DictConfig, default: DictConfig) -> None:
    """UserError for text where the default is a number or a truth value, for a fraction where it is whole, and for what
    is no list or no settings where a command's own default is."""
    key = key_of(override)
    if override[0] in "~+" or key in GROUPS or key in ("overwrite", "trainer.devices", "refresh"):
        return  # the last ones have texts for values as well
    try:
        value, before = OmegaConf.select(cfg, key), OmegaConf.select(default, key)
    except OmegaConfBaseException:
        return  # an interpolation that leads nowhere is told where it is used
    none_of_it = value is None and OmegaConf.is_dict(before)  # as in hot_swap=null
    if (
        "." not in key
        and OmegaConf.is_config(before)
        and not isinstance(value, type(before))
        and not none_of_it
    ):
        raise UserError(
            f"{shortened(override)}: "
            + (
                f"a list is expected, as in {key}=[]"
                if OmegaConf.is_list(before)
                else f"set {key}.NAME=… instead"
            )
        )
    kinds = {bool: "true or false", int: "a whole number", float: "a number"}
    allowed = (int, float) if type(before) is float else type(before)
    if (
        type(before) in kinds
        and value is not None
        and (not isinstance(value, allowed) or isinstance(value, bool) is not (type(before) is bool))
    ):
        raise UserError(
            f"{shortened(override)}: {kinds[type(before)]} is expected, as in {key}={str(before).lower()}"
        )


def key_of(override: str) -> str:
    return override.lstrip("+~").split("=")[0]


def explain(error: Exception, name: str, overrides: list[str]) -> str:
    """One sentence for what Hydra found wrong, with the names that exist."""
    text = one_line(str(error))
    if "Ambiguous value" in text and (several := next((each for each in overrides if each in text), None)):
        return unreadable(several)
    missing = re.search(r"Could not (?:find|load) '([^']+)'", text)
    if missing:
        for override in overrides:
            group, _, choice = override.lstrip("+").partition("=")
            if f"{group}/{choice}" == missing[1]:
                return f"{shortened(override)} does not exist: {nearest(choice, choices(group))}"
        group, _, choice = missing[1].partition("/")
        hint = f": {nearest(choice, choices(group))}" if group in GROUPS else ""
        return f"a config names {missing[1]}, which does not exist under {' or '.join(map(str, folders()))}{hint}"
    key = re.search(r"Key '([^']+)' is not in struct", text) or re.search(r"override '?\+?([\w./@]+)'?", text)
    for override in overrides:
        path = key_of(override)
        if key and key[1] in (path, *path.split(".")):
            known = settings(
                name, [each for each in overrides if each != override and key_of(each) in GROUPS]
            )
            if path not in known and not override.startswith("+"):
                if above := nothing_above(path, known):
                    return off(above, path, overrides)
                return f"the setting {shortened(path)} does not exist: {nearest_setting(path, list(known))}"
    return shortened(text, 500)


def choices(group: str) -> list[str]:
    """The configs of a group."""
    names = {
        file.relative_to(folder / group).with_suffix("").as_posix()
        for folder in folders()
        for file in (folder / group).rglob("*.yaml")
        if not file.name.startswith("_")
    }
    return sorted(names)


def settings(name: str, overrides: list[str]) -> dict[str, Any]:
    """All dotted names of a script's configuration, with what they are."""
    held: dict[str, Any] = {}

    def walk(node: Any, prefix: str) -> None:
        for key, value in node.items() if isinstance(node, dict) else ():
            held[f"{prefix}{key}"] = value
            walk(value, f"{prefix}{key}.")

    walk(OmegaConf.to_container(composed(name, overrides), resolve=False), "")
    return held


def nothing_above(path: str, known: dict[str, Any]) -> str | None:
    """The setting above `path` that is null, as what is not used is; None where there is none."""
    parent = path.rpartition(".")[0]
    while parent and parent not in known:
        parent = parent.rpartition(".")[0]
    return parent if parent and known[parent] is None else None


def off(above: str, path: str, overrides: list[str]) -> str:
    """One sentence for a setting of something that is null: how it is had, by what a config says beside the null."""
    said = f"the setting {shortened(path)} does not exist, because {above} is null: "
    asked = {key_of(each): each.partition("=")[2] for each in overrides}
    own = [f"{key.removeprefix(f'{above}.')}: {asked[key]}" for key in asked if key.startswith(f"{above}.")]
    noted = rf"^ *{re.escape(above.rpartition('.')[2])}: null +#(.*)"
    for file in sorted(CONFIGS.rglob("*.yaml")):
        for note in re.findall(noted, file.read_text(encoding="utf-8"), re.MULTILINE):
            if target := re.search(r"\{(_target_: [\w.]+)", note):
                inside = shortened(", ".join([target[1], *own]), 200)
                return f"{said}give '{above}={{{inside}}}' instead"
            return f"{said}give {above}=…, as {file.relative_to(CONFIGS.parent)} says beside it"
    return f"{said}give {above}=…"


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
    """ "did you mean …?" or the names that exist, the nearest first."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.75)
    if close:
        return f"did you mean {' or '.join(prefix + each for each in close)}?"
    if not known:
        return f"there is nothing under {prefix.removesuffix('.')}"
    shown = sorted(each for each in known if not each.startswith("_"))
    shown.sort(key=lambda each: -difflib.SequenceMatcher(None, name, each).ratio())
    return f"there is {listed(prefix + each for each in shown)}"


def reading(corpus: DictConfig) -> Any:
    """How a corpus is read, a CorpusReading; configs of earlier runs have `encoding` and `split_words` instead."""
    words = corpus.get("split_words")
    before = {"encoding": corpus.get("encoding"), "split": None if words is None else "words", "size": words}
    return instantiate(corpus.get("reading", {"_target_": "rag.index.CorpusReading", **before}))


def plain(node: Any) -> Any:
    """A configuration node as plain containers, resolved; UserError names a value that is missing."""
    if not OmegaConf.is_config(node):
        return node
    try:
        return OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(explain_value(error)) from error


def resolved(cfg: DictConfig) -> DictConfig:
    """The same with every ${…} in it replaced by its value; `cfg` itself where one has none.

    OmegaConf parses each anew whenever something that holds it is read, which costs a command a tenth of a second.
    """
    try:
        made = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]
    except OmegaConfBaseException:
        return cfg
    OmegaConf.set_struct(made, OmegaConf.is_struct(cfg))
    return made  # type: ignore[return-value]


def explain_value(error: OmegaConfBaseException) -> str:
    """One sentence for a value that cannot be resolved; one that has to be given is named as it is typed."""
    missing = re.search(r"Missing mandatory value: (\S+)", str(error))
    if missing is None:
        return shortened(one_line(str(error).split("\n")[0]), 500)
    key = re.search(r"full_key: (\S+)", str(error))
    name = key[1] if key and key[1].endswith(f".{missing[1]}") else missing[1]
    return f"{name} has no value and this run needs it: give {name}=…"
