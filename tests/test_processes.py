"""Several processes of one command find each other, whoever started them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rag.errors import UserError
from rag.processes import processes

SCRIPT = """
from rag.processes import processes, wait_for_all
with processes() as (number, count):
    wait_for_all()
    print(number, count)
"""


def test_one_process_needs_no_other(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with processes() as numbers:
        assert numbers == (0, 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UserError, match="WORLD_SIZE=2 but MASTER_ADDR is not set"), processes():
        pass


@pytest.mark.slow
def test_two_tasks_of_slurm():
    """The variables that srun gives each of two tasks on one node."""
    job = {
        "SLURM_NTASKS": "2",
        "SLURM_NODELIST": "127.0.0.1",
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NAME": "index",
    }
    job |= {"SLURM_NODEID": "0", "MASTER_PORT": "29547"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            env=os.environ | job | {"SLURM_PROCID": str(number), "SLURM_LOCALID": str(number)},
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
        )
        for number in range(2)
    ]
    assert [process.communicate(timeout=300)[0].strip() for process in running] == ["0 2", "1 2"]
