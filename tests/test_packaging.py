"""What `pip install .` gives: console commands, configs inside the package, results under the current folder."""

import importlib
import inspect
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from rag import console
from rag.runs import PROJECT

PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
SCRIPTS = PYPROJECT["project"]["scripts"]


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_a_command_leads_to_a_function(name):
    module, _, function = SCRIPTS[name].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_every_function_of_the_console_is_a_command():
    functions = {name for name, each in inspect.getmembers(console, inspect.isfunction) if name[0] != "_"}
    functions = {name for name in functions if getattr(console, name).__module__ == console.__name__}
    named = {target.removeprefix("rag.console:") for target in SCRIPTS.values() if "rag.console:" in target}
    assert functions == named


def test_the_citation_has_the_projects_version_and_licence():
    lines = (PROJECT / "CITATION.cff").read_text(encoding="utf-8").splitlines()
    assert f"version: {PYPROJECT['project']['version']}" in lines
    assert f"license: {PYPROJECT['project']['license']}" in lines


def test_what_is_required_is_pinned():
    """constraints.txt has a version of every dependency, extras included."""
    lines = (PROJECT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    wanted = [
        *PYPROJECT["project"]["dependencies"],
        *(each for extra in PYPROJECT["project"]["optional-dependencies"].values() for each in extra),
    ]
    names = {re.split(r"[=<>\[]", each)[0].lower().replace("_", "-") for each in wanted}
    assert not names - pinned


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands' folder of a fresh environment into which the wheel was installed, beside this one's packages."""
    folder = tmp_path_factory.mktemp("installed")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=PROJECT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    (packages,) = (folder / "venv").glob("lib/python*/site-packages")
    # A line of a .pth adds a folder, not what .pth files in that folder name: no checkout.
    others = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "others.pth").write_text("\n".join(others) + "\n", encoding="utf-8")
    python = folder / "venv" / "bin" / "python"
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
    ]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True)
    return python.parent


def call(commands: Path, folder: Path, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    return subprocess.run(
        [str(commands / name), *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.mark.slow
def test_a_wheel_works_in_an_empty_folder(installed: Path, tmp_path: Path):
    for name in sorted(SCRIPTS):
        done = call(installed, tmp_path, name, "--help")
        assert done.returncode == 0 and "python" in done.stdout, (name, done.stderr)
    where = "import rag.runs as r; print(r.__file__, r.CONFIGS, r.PROJECT)"
    done = call(installed, tmp_path, "python", "-c", where)
    module, configs, project = map(Path, done.stdout.split())
    assert module.is_relative_to(installed.parent) and configs == module.parent / "configs"
    assert project.resolve() == tmp_path.resolve()
    done = call(installed, tmp_path, "rag-train", "n_dosc=3")
    assert done.returncode == 2 and "n_docs" in done.stderr and "Traceback" not in done.stderr
    done = call(installed, tmp_path, "rag-train", "info=true")
    assert done.returncode == 0 and str(tmp_path / "data") in done.stdout.replace("\n", ""), done.stderr
    assert not list(tmp_path.iterdir())

    world = ["output=data/miniwiki", "people=120", "institutions=40"]
    assert call(installed, tmp_path, "rag-miniwiki", *world).returncode == 0
    tiny = ["generator.width=16", "generator.heads=2", "generator.feedforward=32", "trainer.max_steps=2"]
    done = call(installed, tmp_path, "rag-train", "experiment=miniwiki/denoising", *tiny)
    run = tmp_path / "outputs" / "demo" / "denoising"
    assert done.returncode == 0 and (run / "model" / "generator").is_dir(), done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"data", "outputs"}
    report = (run / "report.md").read_text(encoding="utf-8")
    assert "rag-train experiment=miniwiki/denoising" in report and str(installed) not in report
    done = call(installed, tmp_path, "rag-train", "experiment=miniwiki/denoising", *tiny)
    assert done.returncode == 0 and "already exists" in done.stdout
    done = call(installed, tmp_path, "rag-evaluate", "report=table1")
    assert done.returncode == 0 and (tmp_path / "outputs" / "reports" / "table1.md").is_file(), done.stderr
