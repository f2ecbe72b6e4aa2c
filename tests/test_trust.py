"""What came with a run is opened only where it makes parts of this project, or is trusted."""

import json
from typing import Any

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from test_parts import finished, likelihood

from rag.encoders.named_class import ENCODER_FILE, opener_of
from rag.errors import UserError
from rag.model import ClosedBook
from rag.reopen import reopen
from rag.runs import CONFIGS
from rag.saved_model import load_config
from rag.trust import check_targets

RUNS_CODE: list[Any] = [
    {"_target_": "pandas.read_pickle", "filepath_or_buffer": "x.pkl"},
    {"_target_": "os.system", "command": "true"},
    {"_target_": "builtins.eval", "_args_": ["1"]},
    {"_target_": "torch.load", "f": "x.pt", "weights_only": False},
    {"_target_": "rag.files.shutil.rmtree", "path": "/nowhere"},  # what a module of ours imports is not ours
    {
        "_target_": "rag.files.replace_folder",
        "new": "a",
        "old": "b",
    },  # nor is all that is ours a part of a model
    {"_target_": "rag.model.RagSequence", "retriever": [{"deep": {"_target_": "subprocess.run"}}]},
    {"_target_": "rag.model.ClosedBook.__init__.__globals__"},
]


@pytest.mark.parametrize("node", RUNS_CODE)
def test_what_could_run_any_code_is_refused_unless_trusted(node, monkeypatch):
    with pytest.raises(UserError, match=r"run/config.yaml names .*, which is no part of this project"):
        check_targets(node, "run/config.yaml")
    check_targets(node, "run/config.yaml", trust=True)
    monkeypatch.setenv("RAG_TRUST", "1")
    check_targets(node, "run/config.yaml")


@pytest.mark.parametrize("key", ["task", "decoding", "module"])
def test_nothing_of_a_saved_configuration_is_made_before_it_is_looked_at(key, tmp_path):
    """Neither what is written there, nor what an interpolation leads to."""
    file = tmp_path / "config.yaml"
    for nodes in (
        {key: {"model": {"_target_": "os.system", "command": "true"}}},
        {key: {"model": "${elsewhere}"}, "elsewhere": {"_target_": "os.system", "command": "true"}},
    ):
        file.write_text(OmegaConf.to_yaml(OmegaConf.create(nodes)))
        with pytest.raises(
            UserError, match="config.yaml names os.system.*give trust=true, or set RAG_TRUST=1"
        ):
            load_config(file)
        assert load_config(file, trust=True)[key] is not None


def test_a_run_whose_model_is_somebody_else_s_class(bart, tmp_path):
    """model.json of a real run with one target exchanged: refused, and nothing was called."""
    run = finished(tmp_path / "run", ClosedBook(bart).eval())
    expected = likelihood(reopen(run))
    file = run / "model" / "model.json"
    saved = json.loads(file.read_text())
    del saved["checksum"]  # against accidents: whoever means harm can write it too
    written = tmp_path / "written"
    touch = {"_target_": "pathlib.Path", "_args_": [str(written)]}
    saved["model"]["generator"] = {"_target_": "pathlib.Path.touch", "_args_": [touch]}
    file.write_text(json.dumps(saved))
    with pytest.raises(
        UserError, match=r"model.json names pathlib.Path.touch, which is no part of this project"
    ):
        reopen(run)
    assert not written.exists()
    instantiate(saved["model"]["generator"])
    assert written.exists() and expected.isfinite().all()  # it would have been


def test_a_folder_that_names_the_class_of_its_encoder(tmp_path, monkeypatch):
    (tmp_path / ENCODER_FILE).write_text(json.dumps({"passage": "os.system"}))
    with pytest.raises(UserError, match=r"encoder.json names os.system, which is no part of this project"):
        opener_of(tmp_path, "passage")
    monkeypatch.setenv("RAG_TRUST", "1")
    assert opener_of(tmp_path, "passage") is not None


def test_the_project_s_own_parts_are_trusted():
    """Whatever its configurations make that is made again from a run."""
    for group in ("model", "generator", "retriever", "task", "decoding", "index", "retriever_loss"):
        for file in (CONFIGS / group).glob("*.yaml"):
            check_targets(OmegaConf.to_container(OmegaConf.load(file)), file)
