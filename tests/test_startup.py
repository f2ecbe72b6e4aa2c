"""Every command says its first word before it imports what takes seconds; nobody reading is no traceback.

Seconds are not tested, which a busy machine would fail: what is imported is.
"""

import json
import os
import subprocess
import sys

import pytest

from benchmarks.startup import COMMANDS, measure
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
# Runs a program as __main__ and prints, after whatever it does, its exit code and which heavy modules it imported.
WATCHED = """
import json, runpy, sys
heavy, (command, *arguments) = sys.argv[1].split(","), sys.argv[2:]
module = command == "-m"
name = arguments.pop(0) if module else command
sys.argv = [name, *arguments]
sys.path.insert(0, ".")
code = 0
try:
    if module:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(name, run_name="__main__")
except SystemExit as stopped:
    code = stopped.code or 0
print(json.dumps([code, [each for each in heavy if each in sys.modules]]))
"""


def watched(command: list[str]) -> tuple[int, list[str], str]:
    """(exit code, heavy modules that were imported, standard error) of a command."""
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, ",".join(HEAVY), *command],
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    code, heavy = json.loads(done.stdout.splitlines()[-1])
    return code, heavy, done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_the_first_word_waits_for_nothing_heavy(name):
    command, wrong = COMMANDS[name]
    assert watched([*command, "--help"])[:2] == (0, [])
    for each in wrong:
        code, heavy, error = watched([*command, *each])
        assert (code, heavy) == (2, []), error
        assert error.startswith("error: ") and error.count("\n") == 1


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
    code, heavy, error = watched(["train.py", *asked])
    assert (code, heavy, error) == (0, [], "")
    code, heavy, error = watched(["train.py", *asked, "seed=9"])
    assert (code, heavy) == (2, []) and "made with other settings (module.seed: 2020 → 9)" in error


def test_the_default_says_what_it_is_first(tmp_path):
    from rag.compose import compose_config
    from rag.training.plan import default_line

    line = default_line(compose_config("train", []))
    assert "miniwiki/rag_sequence" in line and "340 steps" in line and "experiment=NAME" in line


def test_nobody_reading_is_no_traceback(tmp_path):
    """As in train.py … | head, whose reader goes before everything is written."""
    for command in (["train.py", "--help"], ["train.py", "info=true", f"paths.outputs={tmp_path}"]):
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run(
            [sys.executable, *command], cwd=PROJECT, stdout=writing, stderr=subprocess.PIPE, text=True
        )
        os.close(writing)
        assert done.stderr == "" and done.returncode in (1, 141)  # 1: rich's own way to leave


def test_the_benchmark_measures_a_process_and_its_children():
    clock, cpu, code = measure(["-c", "raise SystemExit(3)"], 1)
    assert code == 3 and 0 < cpu and 0 < clock < 60


def test_weights_are_loaded_without_transformers_bar(tmp_path, bart):
    """In Python too, where no command has quietened transformers; downloads would have theirs."""
    bart.save_pretrained(tmp_path)
    code = (
        "import sys\nfrom rag.generators.seq2seq import Generator\n"
        "from huggingface_hub.utils import are_progress_bars_disabled\n"
        "from transformers.utils import logging\n"
        "Generator.from_pretrained(sys.argv[1])\n"
        "print(logging.is_progress_bar_enabled(), are_progress_bars_disabled())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=PROJECT, capture_output=True, text=True
    )
    assert done.stdout.split() == ["True", "False"] and "Loading" not in done.stderr, done.stderr
