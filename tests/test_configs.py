"""Every experiment composes for every script, and every `_target_` takes exactly the arguments that it is given.

A constructor's signature is the schema of its config; nothing else would notice a misspelt key before a run starts.
"""

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra._internal import config_loader_impl
from hydra._internal.config_repository import CachingConfigRepository
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from rag.compose import CONFIGS, _composed, choices, compose_config, plain, resolved
from rag.training.summary import describe_unopened

SCRIPTS = ("train", "build_index", "evaluate")
# Composing all of the paper's takes a while: of each of its tables the first stands for the others in the quick suite.
QUICK = {
    "table1/ct_rag_token",
    "table2/fever3_bart",
    "table6/nq_rag_token_bm25",
    "figure3/nq_rag_token",
    "hotswap/nq_rag_sequence",
}
EXPERIMENTS = [
    name
    if name in QUICK or not name.startswith(("table", "figure", "hotswap"))
    else pytest.param(name, marks=pytest.mark.slow)
    for name in choices("experiment")
]
GIVEN = {"datamodule": {"model"}, "trainer": {"logger", "callbacks"}}  # what train.py adds itself


def targets(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every mapping with a `_target_` in plain containers, with its dotted name."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key, value in node.items():
            yield from targets(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from targets(value, f"{path}.{number}")


def bind(path: str, node: dict[str, Any]) -> None:
    """Raise TypeError unless the target can be called with the node's keys."""
    target = get_object(node["_target_"])
    # Lightning's Trainer hides its arguments behind a decorator that keeps the original
    function: Callable[..., Any] = inspect.unwrap(target.__init__) if inspect.isclass(target) else target
    signature = inspect.signature(function)
    keys = {key for key in node if key not in ("_target_", "_partial_", "_recursive_", "_convert_", "_args_")}
    arguments = dict.fromkeys(keys | GIVEN.get(path, set()))
    receiver = [None] if inspect.isclass(target) else []
    binder = signature.bind_partial if node.get("_partial_") else signature.bind
    binder(*receiver, *node.get("_args_", []), **arguments)


@pytest.fixture(scope="module")
def names() -> dict[str, str]:
    """Run name → experiment, of the experiments that were looked at."""
    return {}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_fits_every_script(experiment, names):
    """An index's experiment leaves out what only training needs, and evaluate.py takes its model from a checkpoint."""
    for script in SCRIPTS:
        cfg = compose_config(script, [f"experiment={experiment}"])
        for key in cfg.task:
            if OmegaConf.is_missing(cfg.task, key):
                cfg.task[key] = "given"  # a file of the user's
        cfg = resolved(cfg)
        nodes = ["corpus", "task", "index", "decoding", "paths", "logger"]
        if script == "train" and "index" not in experiment.rpartition("/")[2]:
            nodes += ["module", "datamodule", "trainer", "inputs", "monitor", "needs"]
        for key in nodes:
            for path, node in targets(plain(cfg[key]), key):
                try:
                    bind(path, node)
                except TypeError as error:
                    pytest.fail(f"{script}.py experiment={experiment}, {path} ({node['_target_']}): {error}")
        if "module" in nodes:  # info=true before anything is there
            rows = dict(describe_unopened(plain(cfg), [CONFIGS / "nothing"]))
            assert rows["experiment"] == cfg.name and rows["not there yet"] == str(CONFIGS / "nothing")
            reads = "retriever" in cfg.model and "retriever" in plain(cfg.module.model)
            assert not reads or rows["K"].startswith(f"{cfg.n_docs} passages")
    # two in one folder would take each other's runs for runs with other settings
    assert names.setdefault(cfg.name, experiment) == experiment


def with_defaults(file: Path) -> dict:
    """What a choice of a group holds, with those of its own group that it builds on beneath."""
    content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    beneath = [each for each in content.pop("defaults", []) if isinstance(each, str) and each != "_self_"]
    held = {}
    for each in beneath if file.parent != CONFIGS else ():
        held |= with_defaults(file.parent / f"{each}.yaml")
    return held | content


def test_every_choice_of_every_group_binds():
    """Also those that no experiment takes."""
    bound = 0
    for file in sorted(CONFIGS.rglob("*.yaml")):
        if file.relative_to(CONFIGS).parts[0] == "experiment":
            continue
        content = with_defaults(file)
        for path, node in targets(content):
            if file.parent.name == "trainer":
                path = "trainer"
            bind(path, node)
            bound += 1
    assert bound >= 20


@pytest.mark.parametrize(
    ("node", "wrong"),
    [
        ({"_target_": "rag.model.RagToken", "retriever": None, "generator": None, "n_doc": 5}, "n_doc"),
        ({"_target_": "rag.model.RagToken", "retriever": None}, "generator"),
        ({"_target_": "pytorch_lightning.Trainer", "max_stepz": 5}, "max_stepz"),
    ],
)
def test_a_wrong_key_is_noticed(node, wrong):
    """The check above can fail."""
    with pytest.raises(TypeError, match=wrong):
        bind("", node)


def test_no_experiment_leaves_the_papers_own_settings():
    """What the README gives to whoever has the hub at hand."""
    files = ["task=qa", "task.passages=a.tsv", "task.train=b.jsonl", "task.dev=c.jsonl", "corpus=local"]
    cfg = compose_config("train", ["experiment=null", *files, "generator=bart_base", "name=mine"])
    assert cfg.generator.path == "facebook/bart-base"
    assert cfg.module.model.retriever.question_encoder == "facebook/dpr-question_encoder-single-nq-base"
    assert cfg.corpus.path == "a.tsv" and cfg.inputs == [] and cfg.paths.run.endswith("outputs/mine")


def test_files_that_are_read_once_are_as_hydra_reads_them(monkeypatch):
    """tests/composing.py; twice, since merging could change what is kept."""

    def composed() -> list[DictConfig]:
        made = []
        for name in ("dpr", "bm25", "dpr"):
            _composed.cache_clear()
            made.append(compose_config("train", [f"experiment=miniwiki/{name}"]))
        return made

    kept = composed()
    monkeypatch.setattr(config_loader_impl, "CachingConfigRepository", CachingConfigRepository)
    assert kept == composed() and kept[0] == kept[2] != kept[1]
