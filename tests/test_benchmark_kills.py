"""The harness that kills commands: it kills where it says, and sees what is broken; and a short run of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.kills.contents import contents, differences
from rag.runs import PROJECT

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")


def test_what_differs_between_two_folders(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name / "model").mkdir(parents=True)
        (tmp_path / name / ".lock").write_text(name)
        (tmp_path / name / "report.md").write_text(f"in {len(name)} s")
        (tmp_path / name / "model" / "weights").write_bytes(b"same")
        record = {"seconds": len(name), "metrics": {"em": 0.5}, "files": {"passages/store.json": name}}
        (tmp_path / name / "result.json").write_text(json.dumps(record))
    one, other = tmp_path / "one", tmp_path / "other"
    assert not differences(contents(one), contents(other))
    (other / ".model.12.partial").mkdir()
    (other / "report.md").write_text("")
    (other / "model" / "weights").unlink()
    (other / "result.json").write_text(json.dumps({"metrics": {"em": 0.25}}))
    assert differences(contents(one), contents(other)) == [
        ".model.12.partial/ is one too many",
        "model/ is one too many",  # it is empty
        "model/weights is missing",
        "report.md differs",
        "result.json differs",
    ]


# Writes a file aside and renames it, twice; prints how each try ended and what it left.
HARNESS = """
import json, os, sys
from pathlib import Path
from benchmarks.kills.trying import give
root = Path(sys.argv[1])
work = root / "work"
work.mkdir()
def command():
    for name in ("one", "two"):
        with open(work / f".{name}", "w") as file:
            file.write(name)
        os.replace(work / f".{name}", work / name)
    open(root / "elsewhere", "w").close()
    open(work / "one").close()  # read
def wrong():
    from rag.errors import UserError
    raise UserError("not so")
def bug():
    return 1 / 0
def endless():
    import time
    time.sleep(60)
ended = []
for settings in ({}, *({"operation": number} for number in (1, 2, 3, 4, 5))):
    each = give(command, root / "log", watched=work, **settings)
    ended.append([each.code, each.operations, sorted(os.listdir(work))])
    for file in work.iterdir():
        file.unlink()
ended += [[each.code, each.last] for each in (give(wrong, root / "log"), give(bug, root / "log"))]
ended.append(give(endless, root / "log", seconds=0.2).code)
print(json.dumps(ended))
"""


def test_a_process_is_killed_before_each_change_to_a_file_in_turn(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", HARNESS, str(tmp_path)], cwd=PROJECT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    ended = json.loads(done.stdout.splitlines()[-1])
    whole, killed, last = ended[0], ended[1:5], ended[5]
    assert whole == [0, 4, ["one", "two"]] == last
    assert [code for code, _, _ in killed] == [-9] * 4
    assert [left for _, _, left in killed] == [[], [".one"], ["one"], [".two", "one"]]
    assert ended[6] == [2, "error: not so"]
    assert ended[7] == [1, "ZeroDivisionError: division by zero"]
    assert ended[8] < 0


@pytest.mark.slow
def test_a_few_kills_of_each_command(tmp_path):
    """`python -m benchmarks.kills` tries all of them."""
    command = [sys.executable, "-m", "benchmarks.kills", f"output={tmp_path}", "most=3", "random=2"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not Path(tmp_path / "broken").exists()
    assert "commands that were killed and given again" in done.stdout
