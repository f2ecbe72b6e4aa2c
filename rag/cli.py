"""What the scripts share: composing a Hydra configuration, and telling a user's mistake in one sentence.

Hydra's own entry point prints several lines and exits with code 1 on a mistake; here every mistake of a user, Hydra's
included, is one sentence and exit code 2, and a name that does not exist comes with the nearest ones that do.
"""

import errno
import logging
import os
import re
import select
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import InstantiationException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from rag.compose import CONFIGS, compose_config, explain_value, key_of, plain
from rag.errors import UserError, causes, one_line, out_of_memory
from rag.lazy import many_imports
from rag.safe_text import printable, say

SCRIPTS = ("train", "build_index", "evaluate")


# What makes a command ask for less memory at once.
LESS = {
    "train": "datamodule.batch_size or n_docs",
    "evaluate": "batch_size or n_docs",
    "build_index": "batch_size",
}


@contextmanager
def mistakes_in_one_sentence(less: str = "batch sizes or n_docs") -> Iterator[None]:
    """Print a user's mistake as one sentence and exit with code 2; an interruption exits with 130.

    A process that waited in vain for another one, which says what is wrong, exits with 1 and one sentence; one whose
    reader has had enough, such as head, says nothing. less: the settings that make it ask for less memory.
    """
    try:
        try:
            yield
        except Exception as error:
            if not out_of_memory(error):
                raise
            raise UserError(
                f"memory ran out: end other programs and rerun the same command to resume, or lower {less}"
            ) from error
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        stop_writing()
        sys.exit(128 + 13)  # as what is ended by SIGPIPE
    except (UserError, InstantiationException, OmegaConfBaseException) as error:
        say(f"error: {one_sentence(error)}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        print(
            "error: this process may open no more files: raise the limit, as with `ulimit -n 1024`, and rerun the same "
            "command to resume",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted: rerun the same command to resume", file=sys.stderr)
        sys.exit(130)
    except RuntimeError as error:
        from rag.processes import lost_another  # with torch, which is there where this can happen

        if not lost_another(error):
            raise
        print("stopped because another process of this command stopped: see its message", file=sys.stderr)
        sys.exit(1)


@contextmanager
def mistakes_as_user_errors() -> Iterator[None]:
    """For callers in Python: a mistake that Hydra or OmegaConf found, or wrapped, as the UserError that it is."""
    try:
        yield
    except (InstantiationException, OmegaConfBaseException) as error:
        raise UserError(one_sentence(error)) from error


def stop_writing() -> None:
    """Let what is still to be written to standard output go nowhere; the error again where that is not what broke."""
    there = select.poll()
    there.register(sys.stdout.fileno(), 0)  # errors alone, which are told in any case
    if not there.poll(0):
        raise
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
    chain = list(causes(error))
    mistake = next((each for each in chain if isinstance(each, UserError)), None)
    if mistake is not None:
        return str(mistake)
    cause = chain[-1]
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


def run_script(
    name: str,
    usage: str,
    body: Callable[[DictConfig], None],
    arguments: list[str] | None = None,
    check: Callable[[DictConfig], Any] | None = None,
) -> None:
    """Compose configs/<name>.yaml with the command line's overrides and call `body` with it.

    check: tells a mistake in the configuration before what takes seconds to import.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    quieten_logs()
    with mistakes_in_one_sentence(LESS.get(name, "n_docs")):
        if not answered_at_once(name, usage, arguments):
            cfg = compose_command(name, arguments)
            if check is not None:
                check(cfg)
            with many_imports():
                quieten_models()
            body(cfg)


def run_command(name: str, usage: str, command: Callable[..., Any]) -> None:
    """Call a function of overrides with those of the command line; see `run_script`."""
    quieten_logs()
    with mistakes_in_one_sentence(LESS[name]):
        if not answered_at_once(name, usage, sys.argv[1:]):
            command(*sys.argv[1:])


def answered_at_once(name: str, usage: str, arguments: list[str]) -> bool:
    """Whether a command line asked for help or for shell completion, which it got."""
    if any(argument in ("-h", "--help") for argument in arguments):
        print(usage.strip())
        return True
    if arguments[:1] == ["-sc"]:
        complete_in_shell(name, arguments[1:])
        return True
    return False


def compose_command(name: str, overrides: list[str]) -> DictConfig:
    """The configuration that a script's overrides ask for; UserError for a mistake in them."""
    cfg = compose_config(name, overrides)
    check_script(cfg, name, overrides)
    return cfg


def check_script(cfg: DictConfig, name: str, arguments: list[str]) -> None:
    """UserError where the experiment is one of other scripts alone."""
    scripts = plain(cfg.get("scripts", SCRIPTS))
    if not isinstance(scripts, list | tuple):
        raise UserError(f"scripts={scripts}: a list of scripts is expected, as in scripts=[train]")
    if name not in SCRIPTS or name in scripts:
        return
    chosen = next((each for each in arguments if key_of(each) == "experiment"), f"the experiment {cfg.name}")
    raise UserError(
        f"{chosen} is not for {name}.py, but for {' and '.join(f'{each}.py' for each in scripts)}"
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
            f"-sc {' '.join(arguments)} is not a shell completion command; available: install=bash, install=zsh and "
            "install=fish"
        ) from error


def quieten() -> None:
    """Silence what libraries print about themselves, so that what is shown is about the user's run."""
    quieten_logs()
    quieten_models()


class _Printable(logging.Formatter):
    """Messages that command no terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(printable, super().format(record).split("\n")))


def quieten_logs() -> None:
    """`quieten` but for transformers, which takes half a second to import."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_Printable())  # a warning may quote a passage or a file's name
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("WANDB_SILENT", "true")
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (
        "does not have many workers",
        "no `val_dataloader`",
        "sync_dist=True",  # dev metrics are the same on all ranks when they are logged
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
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging as of_transformers

    of_downloads = not are_progress_bars_disabled()
    of_transformers.disable_progress_bar()
    of_transformers.set_verbosity_error()
    if of_downloads:
        enable_progress_bars()  # the former has switched them off as well
