"""Every command says its first word before it imports what takes seconds; nobody reading is no traceback.

Seconds are not tested, which a busy machine would fail: what is imported is.
"""

import json
import os
import subprocess
import sys

import pytest
import transformers
from huggingface_hub.utils import are_progress_bars_disabled
from transformers.utils import logging

from benchmarks.startup import COMMANDS, measure
from rag.generators.seq2seq import Generator
from rag.miniwiki.world import write_world
from rag.runs import PROJECT

HEAVY = (
    "torch",
    "transformers",
    "pytorch_lightning",
    "datasets",
    "pandas",
    "sklearn",
    "scipy",
    "faiss",
    "matplotlib",
)
HEAVY += ("sacrebleu", "wandb", "gradio", "nltk")
# Runs programs as __main__, one after another, and prints after each its exit code, which heavy modules it imported,
# and what it wrote to standard error.
WATCHED = """
import contextlib, io, json, runpy, sys
heavy, commands = sys.argv[1].split(","), json.loads(sys.argv[2])
sys.path.insert(0, ".")
for command, *arguments in commands:
    module = command == "-m"
    name = arguments.pop(0) if module else command
    sys.argv = [name, *arguments]
    code = 0
    with contextlib.redirect_stderr(io.StringIO()) as error:
        try:
            if module:
                sys.modules.pop(name, None)  # another of its commands may have imported it
                runpy.run_module(name, run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(name, run_name="__main__")
        except SystemExit as stopped:
            code = stopped.code or 0
    print(json.dumps([code, [each for each in heavy if each in sys.modules], error.getvalue()]))
"""


def watched(*commands: list[str]) -> list[tuple[int, list[str], str]]:
    """(exit code, heavy modules that were imported by then, standard error) of commands in one process."""
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, ",".join(HEAVY), json.dumps(commands)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if line.startswith("[")]
    return [tuple(json.loads(line)) for line in said[-len(commands) :]]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_first_word_waits_for_nothing_heavy(name):
    command, wrong = COMMANDS[name]
    helped, *refused = watched([*command, "--help"], *([*command, *each] for each in wrong))
    assert helped[:2] == (0, []) and len(refused) == len(wrong)
    for code, heavy, error in refused:
        assert (code, heavy) == (2, []), error
        assert error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.slow
def test_what_trains_nothing_waits_for_no_lightning():
    """Nor for what fits a calibration, where one is only used; tests/test_layers.py reads as much in the files."""
    code = (
        "import sys, rag.commands.evaluating, rag.commands.indexing, rag.ask.session, rag.ask.documents\n"
        "print([each for each in ('lightning_fabric', 'pytorch_lightning', 'torchmetrics', 'sklearn', 'pandas')"
        " if each in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_finished_run_is_found_without_torch(tmp_path):
    """And one with other settings is refused so; the default is said to be that in the first line."""
    settings = [f"paths.outputs={tmp_path / 'out'}", f"paths.data={tmp_path / 'data'}"]
    write_world(tmp_path / "data" / "miniwiki", seed=1, people=120, institutions=40)
    # the run as it begins, in a process of its own, finished by hand
    make = (
        "import sys; from rag.compose import compose_config; from rag.training import plan; from rag.files import *\n"
        "run = plan.open_run(compose_config('train', sys.argv[1:])); run.begin(); run.finish({})\n"
        "(run.folder / 'report.md').touch()"
    )
    asked = ["experiment=miniwiki/denoising", *settings]
    subprocess.run([sys.executable, "-c", make, *asked], cwd=PROJECT, check=True)
    finished, (code, heavy, error) = watched(["train.py", *asked], ["train.py", *asked, "seed=9"])
    assert finished == (0, [], "")
    assert (code, heavy) == (2, []) and "made with other settings (module.seed: 2020 → 9)" in error


def test_the_default_says_what_it_is_first(tmp_path):
    from rag.compose import compose_config
    from rag.training.plan import default_line

    line = default_line(compose_config("train", []))
    assert "miniwiki/rag_sequence" in line and "260 steps" in line and "experiment=NAME" in line


@pytest.mark.parametrize(
    "command",
    [
        ["train.py", "--help"],
        ["evaluate.py", "report=table1"],  # a table, which rich prints
        pytest.param(["train.py", "info=true"], marks=pytest.mark.slow),  # another, after torch
    ],
    ids=" ".join,
)
def test_nobody_reading_is_no_traceback(tmp_path, command):
    """As in train.py … | head, whose reader goes before everything is written."""
    reading, writing = os.pipe()
    os.close(reading)
    outputs = [f"paths.outputs={tmp_path}"] * ("--help" not in command)
    done = subprocess.run(
        [sys.executable, *command, *outputs], cwd=PROJECT, stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert done.stderr == "" and done.returncode in (1, 141)  # 1: rich's own way to leave


def test_the_benchmark_measures_a_process_and_its_children():
    clock, cpu, code = measure(["-c", "raise SystemExit(3)"], 1)
    assert code == 3 and 0 < cpu and 0 < clock < 60


def test_weights_are_loaded_without_transformers_bar(tmp_path, bart, capfd):
    """In Python too, where no command has quietened transformers; downloads would have theirs."""
    bart.save_pretrained(tmp_path)
    logging.enable_progress_bar()  # which tests/conftest.py has switched off, with that of downloads
    try:
        transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
        assert "Loading" in capfd.readouterr().err
        Generator.from_pretrained(str(tmp_path))
        assert logging.is_progress_bar_enabled() and not are_progress_bars_disabled()
        assert "Loading" not in capfd.readouterr().err
    finally:
        logging.disable_progress_bar()
