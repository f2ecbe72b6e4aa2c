"""scripts/slurm/pipeline.sh: the jobs it submits, in their order, each run as SLURM would run it on this machine."""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from test_scripts import RAG, demo, weights  # noqa: F401

from rag.index.folder import Index
from rag.runs import PROJECT

SCRIPT = PROJECT / "scripts" / "slurm" / "pipeline.sh"
pytestmark = pytest.mark.xdist_group("scripts")

# Runs a job at once, every part of an array but the second, as if that machine had been lost.
SBATCH = r"""#!/usr/bin/env bash
set -euo pipefail
number=$(($(cat "$JOBS/number" 2>/dev/null || echo 100) + 1))
echo "$number" > "$JOBS/number"
printf '%s\x1f' "$@" >> "$JOBS/log"; echo >> "$JOBS/log"
parts=""
while [[ $# -gt 0 ]]; do
    case $1 in
        --array=0-*) parts=${1#--array=0-} ;;
        --wrap) shift; wrapped=$1 ;;
    esac
    shift
done
export SLURM_JOB_ID=$number
if [[ -n $parts ]]; then
    for ((part = 0; part <= parts; part++)); do
        if ((part == 1)); then continue; fi
        SLURM_ARRAY_TASK_ID=$part SLURM_ARRAY_TASK_COUNT=$((parts + 1)) bash -c "$wrapped" >> "$JOBS/output" 2>&1
    done
else
    bash -c "$wrapped" >> "$JOBS/output" 2>&1
fi
echo "$number;cluster"
"""


def script(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    variables = os.environ | {"PYTHON": sys.executable, "GPUS": "0", "HF_HUB_OFFLINE": "1"} | environment
    return subprocess.run([str(SCRIPT), *arguments], env=variables, capture_output=True, text=True, cwd="/")


def test_it_says_how_it_is_used():
    said = script("--help").stdout
    assert "scripts/slurm/pipeline.sh submit RUN key=value" in said and "set -euo" not in said
    assert script("submit").returncode != 0 and script().returncode != 0
    assert script("somewhere", "run").returncode == 2


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="it is a script of bash")
def test_four_jobs_of_which_one_part_is_lost(demo, tmp_path):  # noqa: F811
    jobs, programs, run = tmp_path / "jobs", tmp_path / "bin", tmp_path / "runs" / "run"
    jobs.mkdir()
    programs.mkdir()
    (programs / "sbatch").write_text(SBATCH)
    (programs / "sbatch").chmod(0o755)
    place = tmp_path / "index"
    given = [
        "experiment=miniwiki/rag_sequence",
        *RAG,
        *demo.places,
        f"index.path={place}",
        "hot_swap=null",
        "k_sweep=[]",
    ]
    done = script(
        *("submit", str(run), *given),
        NODES="3",
        SBATCH="--account=me --time=1:00:00",
        PATH=f"{programs}:{os.environ['PATH']}",
        JOBS=str(jobs),
    )
    output = (jobs / "output").read_text()
    assert done.returncode == 0, done.stderr + output
    assert done.stdout == "jobs: 101 (embed, 3 parts), 102 (build), 103 (train), 104 (evaluate)\n"
    log = [line.split("\x1f")[:-1] for line in (jobs / "log").read_text().splitlines()]
    assert all({"--account=me", "--time=1:00:00", "--requeue"} <= set(job) for job in log)
    assert "--array=0-2" in log[0] and "--dependency=afterany:101" in log[1]
    assert "--dependency=afterok:102" in log[2] and "--dependency=afterok:103" in log[3]
    assert "all vectors are in" in output and Index.open(place).manifest.recall["1"] == 1.0
    assert weights(run) == weights(demo.run("rag_sequence"))
    (result,) = run.glob("evaluation/*/result.json")
    assert json.loads(result.read_text())["metrics"]


def test_it_may_be_run():
    assert SCRIPT.stat().st_mode & stat.S_IXUSR and Path(SCRIPT).read_text().startswith(
        "#!/usr/bin/env bash\n"
    )
