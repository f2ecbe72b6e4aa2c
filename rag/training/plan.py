"""What is known of a training before torch is imported: what is wrong with its command, and where its run stands."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rag.compose import CONFIGS, key_of, plain
from rag.errors import UserError
from rag.retrievers.overfetch import check_overfetch
from rag.runs import Run, check_place, mentions
from rag.safe_text import say
from rag.training.schedule import Schedule

# The settings that decide what is trained; with the content of the inputs they are the run's identity.
DECISIVE = ("module", "datamodule", "trainer", "seed", "monitor", "monitor_mode", "patience", "stop_at_loss")


def check(cfg: DictConfig, overrides: Sequence[str] = ()) -> bool:
    """Whether nothing is left to do, which it says; UserError for what is wrong whatever the models are.

    Where no experiment was asked for, the first line says which one it is.
    """
    for name in ("module", "datamodule"):
        if cfg.get(name) is None:
            raise UserError(
                f"{name}=null leaves nothing to train: set {name}.NAME=… instead, or leave it out"
            )
    if cfg.refresh is not None:
        Schedule.set_by("refresh", plain(cfg.refresh))
    check_overfetch(OmegaConf.select(cfg, "module.model.retriever.overfetch"), cfg.n_docs)
    run = look(cfg)
    if not cfg.info and not any(key_of(each) == "experiment" for each in overrides):
        say(default_line(cfg), flush=True)
    if run is None or cfg.info or not run.finished:
        return False
    say_finished(run)
    return True


def default_line(cfg: DictConfig) -> str:
    """What is trained where nothing was asked for, for how long, and how to ask for something else."""
    chosen = next(
        each.experiment for each in OmegaConf.load(CONFIGS / "train.yaml").defaults if "experiment" in each
    )
    return (
        f"no experiment= was given: the default is {chosen}, {cfg.trainer.max_steps:,} steps on the built-in mini-wiki "
        "(a few minutes on two cores, and what it starts from as much again the first time); for another, "
        "experiment=NAME, as --help shows"
    )


def look(cfg: DictConfig) -> Run | None:
    """The run and where it stands; None where what it is made from is made first. Raises UserError as `check`."""
    check_trainer(cfg)
    check_place_of_checkpoint(cfg.ckpt_path)
    check_place(Path(cfg.paths.run), "paths.run")
    missing = missing_inputs(cfg)
    return None if are_made(cfg, missing) or cfg.info and missing else open_run(cfg)


def say_finished(run: Run) -> None:
    say(f"{run.folder} already exists, made with these settings (overwrite=true trains it again)")


def check_trainer(cfg: DictConfig) -> None:
    """UserError for callbacks and loggers given to the trainer itself, which train.py does."""
    for group, key in (("callbacks", "callbacks"), ("logger", "logger")):
        if key in cfg.trainer:
            raise UserError(
                f"trainer.{key} is not where train.py takes {group} from: give +{group}.NAME._target_=… or a file in "
                f"configs/{group}/"
            )
        for name, node in (cfg.get(group) or {}).items():
            if "_target_" not in (node if OmegaConf.is_dict(node) else {}):
                raise UserError(
                    f"{group}.{name} names no class: give {group}.{name}._target_=…, as configs/{group}/ does"
                )


def check_place_of_checkpoint(path: str | None) -> None:
    """UserError unless it is None or a file."""
    if path is not None and not Path(path).is_file():
        raise UserError(f"ckpt_path={path} does not exist: give a last.ckpt that a run of train.py left")


def inputs_of(cfg: DictConfig) -> list[str]:
    """What is read, but for a setting that was set to null, and the index where nothing searches one."""
    read = over_index(cfg)
    index = OmegaConf.select(cfg, "index.path")
    return [path for path in plain(cfg.inputs) if path is not None and (read or path != index)]


def over_index(cfg: DictConfig) -> bool:
    """Whether the model is made over the configuration's index; passages that come with the questions need none."""
    index = OmegaConf.select(cfg, "index.path")
    return index is not None and mentions(plain(cfg.module), str(index))


def missing_inputs(cfg: DictConfig) -> list[Path]:
    return [Path(path) for path in inputs_of(cfg) if "://" not in path and not Path(path).exists()]


def are_made(cfg: DictConfig, missing: list[Path]) -> bool:
    """Whether something is missing, and all of that is what the demo's stages make first."""
    made = [Path(cfg.paths.demo), Path(cfg.paths.data)] if cfg.needs else []
    return bool(missing) and all(any(path.is_relative_to(folder) for folder in made) for path in missing)


def decisive(cfg: DictConfig) -> dict[str, Any]:
    """The settings that decide what is trained, as plain containers; callbacks and refresh only where given."""
    settings = {key: plain(cfg[key]) for key in DECISIVE}
    if callbacks := plain(cfg.get("callbacks")):
        settings["callbacks"] = callbacks
    if cfg.get("refresh") is not None:
        settings["refresh"] = {"schedule": plain(cfg.refresh), "in": cfg.refresh_in}
    return settings


def open_run(cfg: DictConfig) -> Run:
    """The run folder, with where it stands; UserError as `Run.open` has it. Nothing is written."""
    from rag.hub import PREFIX, is_name, models_in  # a sixth of a second
    from rag.minilm import at_hand

    settings = decisive(cfg)
    inputs = inputs_of(cfg)
    for model in models_in(settings["module"]):
        if is_name(model) and at_hand(model) == model:  # what is installed has one form only
            inputs.append(PREFIX + model)
        elif Path(model).exists():
            inputs.append(model)
    yaml = OmegaConf.to_yaml(cfg, resolve=True)
    return Run.open(cfg.paths.run, settings, yaml, list(dict.fromkeys(inputs)), cfg.overwrite)
