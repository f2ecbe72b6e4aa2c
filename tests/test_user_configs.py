"""Experiments of a user's own, in configs/ of the current folder: each inherits any of the project's with one line."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from rag.compose import CONFIGS, choices, compose_config
from rag.errors import UserError
from rag.training import Remining

OURS = [name for name in choices("experiment")]
FIRST = {name.split("/")[0]: name for name in reversed(OURS)}  # of each folder one in the quick suite
EVERY = [name if name in FIRST.values() else pytest.param(name, marks=pytest.mark.slow) for name in OURS]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with an empty configs/experiment/."""
    (tmp_path / "configs" / "experiment").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "configs" / "experiment"


def write(file: Path, *lines: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(["# @package _global_", *lines, ""]), encoding="utf-8")


@pytest.mark.parametrize("parent", EVERY)
def test_one_line_inherits_any_experiment(here, parent):
    """What the child says holds, also where the parent chose another of the same group; the rest is the parent's."""
    locations = ("mine", "deep/er/mine")
    for location in locations:
        write(
            here / f"{location}.yaml",
            "defaults:",
            f"  - /experiment/{parent}",
            "  - override /decoding: beam4",
            "  - _self_",
            *["name: mine", "n_docs: 3", "optimization: {lr: 0.125}"],
        )
    children = [compose_config("train", [f"experiment={location}"]) for location in locations]
    assert [child.decoding.num_beams for child in children] == [4, 4]
    changes = ["name=mine", "n_docs=3", "optimization.lr=0.125", "decoding=beam4"]
    expected = compose_config("train", [f"experiment={parent}", *changes])
    for cfg in (*children, expected):  # what an experiment says of decoding goes over the group's own
        del cfg.decoding
    assert [OmegaConf.to_container(child) for child in children] == 2 * [OmegaConf.to_container(expected)]


def test_a_child_of_a_child_overrides_model_and_retriever(here):
    write(here / "a.yaml", "defaults:", "  - /experiment/miniwiki/rag_sequence", "n_docs: 7")
    write(here / "b.yaml", "defaults:", "  - /experiment/a", "  - override /model: rag_token", "name: b")
    cfg = compose_config("train", ["experiment=b"])
    assert (cfg.n_docs, cfg.model._target_, cfg.name) == (7, "rag.model.RagToken", "b")
    assert cfg.optimization.lr == 1e-3  # of miniwiki/_rag


def test_what_does_not_exist_is_told_with_what_does(here):
    write(here / "wrong.yaml", "defaults:", "  - /experiment/miniwiki/rag_sequnce")
    with pytest.raises(
        UserError, match="experiment/miniwiki/rag_sequnce.* did you mean miniwiki/rag_sequence"
    ):
        compose_config("train", ["experiment=wrong"])
    with pytest.raises(UserError, match="experiment=wrogn does not exist: did you mean wrong"):
        compose_config("train", ["experiment=wrogn"])


def test_a_file_of_the_users_takes_the_place_of_none_of_the_projects(here):
    write(here / "miniwiki" / "rag_token.yaml", "name: taken")
    (here.parent / "base.yaml").write_text("name: taken\n")
    assert compose_config("train", ["experiment=miniwiki/rag_token"]).name == "demo/rag_token"


def test_other_groups_of_the_users_are_found_too(here):
    (here.parent / "optimization").mkdir()
    (here.parent / "optimization" / "mine.yaml").write_text("defaults:\n  - paper\nlr: 0.5\n")
    cfg = compose_config("train", ["experiment=null", "optimization=mine"])
    assert cfg.optimization.lr == 0.5
    assert "mine" in choices("optimization")


def test_a_folder_of_any_name(tmp_path, monkeypatch):
    folder = tmp_path / "it's, a {new}=folder"
    write(folder / "configs" / "experiment" / "mine.yaml", "name: mine")
    monkeypatch.chdir(folder)
    assert compose_config("train", ["experiment=mine"]).name == "mine"


def test_every_experiment_names_what_it_inherits_absolutely():
    """A relative name means another file where the child is in another folder."""
    looked_at = 0
    for file in sorted((CONFIGS / "experiment").rglob("*.yaml")):
        content = OmegaConf.load(file)
        for each in content.get("defaults", []) if OmegaConf.is_dict(content) else []:
            name = each if isinstance(each, str) else next(iter(each))
            assert name == "_self_" or name.removeprefix("override ").startswith("/"), f"{file}: {name}"
            looked_at += 1
    assert looked_at > 100


# -- composed once ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["experiment=miniwiki/dpr", "seed=3", "optimization.lr=1e-3", "seed=4"],
        ["seed=1", "~experiment", "index=hnsw", "corpus.path=x", "n_docs=7"],
        ["+callbacks.mine._target_=a.B", "trainer.max_steps=5", "~monitor_mode"],
        ["~retriever", "++trainer.foo={a: [1, 2]}", "recall_at=[1,2]", "index.path=null"],
        ["experiment=table1/nq_rag_token", "decoding=beam4", "decoding.max_new_tokens=3"],
        ["callbacks=learning_rate", "seed=2"],
    ],
)
def test_a_configuration_is_the_one_that_hydra_composes_at_once(overrides, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        expected = compose("train", overrides)
    for _ in range(2):  # composed, and taken from before
        found = compose_config("train", overrides)
        assert found == expected and OmegaConf.to_yaml(found) == OmegaConf.to_yaml(expected)
        assert OmegaConf.is_struct(found)
        found.seed = 99  # whoever changes theirs changes nobody else's


def test_a_config_that_changed_is_read_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "configs/experiment/mine.yaml"
    file.parent.mkdir(parents=True)
    for n_docs in (3, 14):
        file.write_text(
            f"# @package _global_\ndefaults:\n  - /experiment/miniwiki/rag_token\nn_docs: {n_docs}\n"
        )
        assert compose_config("train", ["experiment=mine"]).n_docs == n_docs


def test_a_setting_of_what_is_off_is_told_with_what_turns_it_on():
    """And what it says to give works, all of it at once."""
    asked = ["experiment=miniwiki/dpr", "datamodule.remining.depth=20", "datamodule.remining.keep=3"]
    with pytest.raises(UserError) as error:
        compose_config("train", asked)
    said = str(error.value)
    assert said.startswith(
        "the setting datamodule.remining.depth does not exist, because datamodule.remining is null: give '"
    )
    given = said.split("'")[1]
    made = compose_config("train", [asked[0], given]).datamodule.remining
    assert made == {"_target_": "rag.training.Remining", "depth": 20, "keep": 3}
    assert instantiate(made) == Remining(depth=20, keep=3)
