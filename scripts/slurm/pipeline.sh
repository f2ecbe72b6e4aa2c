#!/usr/bin/env bash
# Embed, build, train, evaluate: under SLURM on many machines, or here, on one with several GPUs.
#
#   scripts/slurm/pipeline.sh submit RUN key=value …    four jobs of SLURM, each after the one before
#   scripts/slurm/pipeline.sh here RUN key=value …      the same on this machine, one after the other
#
# RUN is the run folder of train.py; the overrides are those of build_index.py and train.py, such as
# experiment=table1/nq_rag_sequence index=milvus retriever=milvus index.type.uri=http://engine:19530.
#
#   GPUS=8           of each machine; 0: the CPU, one process
#   NODES=16         that share the embedding, as an array of jobs that never meet: the shards of a machine that is lost,
#                    or never starts, are made by the others, and what is missing after all by the build
#   TRAIN_NODES=1    that train
#   SBATCH="--account=me --time=24:00:00"    options for every job
#   PYTHON=python    of an environment that all machines have; the folder with the index has to be common to them
#
# Every step is taken up where it was left when the same command is given again, after a kill or a time limit too.
set -euo pipefail
cd "$(dirname "$0")/../.."

usage() { sed -n '2,/^set /{s/^# \{0,1\}//;/^set /d;p}' "$0"; }
if [[ $# -lt 2 || $1 == -h || $1 == --help ]]; then
    usage
    [[ ${1:-} == -h || ${1:-} == --help ]]
    exit
fi
mode=$1 run=$2
shift 2
python=${PYTHON:-$([[ -x .venv/bin/python ]] && echo .venv/bin/python || echo python3)}
gpus=${GPUS:-8} nodes=${NODES:-16} train_nodes=${TRAIN_NODES:-1}
per_node=$((gpus > 0 ? gpus : 1))
read -ra options <<<"${SBATCH:-}"
torchrun=("$python" -m torch.distributed.run --standalone "--nproc-per-node=$per_node")

embed() { "${torchrun[@]}" build_index.py "$@" "part=$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"; }
build() { "$python" build_index.py "$@"; }
train() {
    local trainer=("paths.run=$run" "trainer.devices=$per_node")
    if ((train_nodes > 1)); then trainer+=("+trainer.num_nodes=$train_nodes"); fi
    if [[ -n ${SLURM_JOB_ID:-} && $((per_node * train_nodes)) -gt 1 ]]; then
        srun "$python" train.py "$@" "${trainer[@]}"
    else
        "$python" train.py "$@" "${trainer[@]}"
    fi
}
evaluate() { "${torchrun[@]}" evaluate.py "checkpoint=$run"; }

submit() { # NAME, options of sbatch … -- overrides …; prints the job's number
    local name=$1 given=()
    shift
    while [[ $1 != -- ]]; do
        given+=("$1")
        shift
    done
    shift
    if ((gpus > 0)); then given+=("--gres=gpu:$gpus"); fi
    sbatch --parsable --requeue "--job-name=rag-$name" "--output=$run-%x-%j.log" ${options[@]+"${options[@]}"} \
        "${given[@]}" --wrap "exec scripts/slurm/pipeline.sh $name $(printf '%q ' "$run" "$@")" | cut -d';' -f1
}

export GPUS=$gpus NODES=$nodes TRAIN_NODES=$train_nodes PYTHON=$python
case $mode in
    here)
        train_nodes=1
        if ((per_node > 1)); then "${torchrun[@]}" build_index.py "$@"; else build "$@"; fi
        train "$@"
        evaluate
        ;;
    submit)
        mkdir -p "$(dirname "$run")"
        embedding=$(submit embed "--array=0-$((nodes - 1))" --ntasks=1 -- "$@")
        building=$(submit build "--dependency=afterany:$embedding" --ntasks=1 -- "$@")
        training=$(submit train "--dependency=afterok:$building" "--nodes=$train_nodes" \
            "--ntasks-per-node=$per_node" -- "$@")
        evaluating=$(submit evaluate "--dependency=afterok:$training" --ntasks=1 --)
        echo "jobs: $embedding (embed, $nodes parts), $building (build), $training (train), $evaluating (evaluate)"
        ;;
    embed | build | train | evaluate) "$mode" "$@" ;;
    *)
        usage >&2
        exit 2
        ;;
esac
