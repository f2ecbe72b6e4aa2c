#!/usr/bin/env bash
# What a GPU is to show, in one call of at most eleven minutes: scripts/gpu_check.sh [dry | prepare] [PART …]
#
#   (nothing)   every part on this machine's GPU, or those that are named: a b c d e f
#   dry         every part on the CPU with tiny sizes, in less than two minutes, to see that it runs
#   prepare     on a CPU, before: make what part f starts from, PREPARED, to be copied to where the GPU is
#
# Parts are described in benchmarks/gpu/. Each has a time limit of its own; what it finds is written to
# OUT/results.jsonl as it comes, its output to OUT/log.txt, and a table for benchmarks/RESULTS.md to OUT/table.md.
# OUT is outputs/gpu_check where it is not set, PREPARED outputs/gpu_check/prepared. PYTHON says which Python, COMMIT which
# commit this is where the folder is no checkout.
# Torch, transformers, pytorch-lightning, pyarrow, rich and jaxtyping are all it needs.
set -uo pipefail
cd "$(dirname "$0")/.."

declare -A limits=([machine]=30 [a]=80 [b]=200 [c]=120 [d]=60 [e]=50 [f]=90 [table]=10)
dry=()
command="scripts/gpu_check.sh${*:+ $*}"
mode=${1:-}
if [[ $mode == dry || $mode == prepare ]]; then shift; fi
out=${OUT:-outputs/gpu_check}
prepared=${PREPARED:-outputs/gpu_check/prepared}
python=${PYTHON:-$([[ -x .venv/bin/python ]] && echo .venv/bin/python || echo python3)}

if [[ $mode == prepare ]]; then
    exec "$python" -m benchmarks.gpu prepare --out "$out" --prepared "$prepared"
fi
if [[ $mode == dry ]]; then
    dry=(--dry)
    out=$out/dry
    export OMP_NUM_THREADS=1
    for part in "${!limits[@]}"; do limits[$part]=120; done
fi
parts=("$@")
if [[ ${#parts[@]} == 0 ]]; then parts=(a b c d e f); fi
for part in "${parts[@]}"; do
    if [[ ! $part =~ ^[a-f]$ ]]; then
        echo "error: $part is not a part: there are a b c d e f, after dry or prepare or nothing" >&2
        exit 2
    fi
done

mkdir -p "$out"
rm -f "$out"/results.jsonl "$out"/log.txt "$out"/table.md
export PYTHONUNBUFFERED=1
failed=0
started=$SECONDS
for part in machine "${parts[@]}"; do
    began=$SECONDS
    timeout --kill-after=2 "${limits[$part]}" \
        "$python" -m benchmarks.gpu "$part" --out "$out" --prepared "$prepared" --seconds "${limits[$part]}" \
        "${dry[@]}" >>"$out/log.txt" 2>&1
    code=$?
    what=
    case $code in
        0) ;;
        124 | 137) what="stopped at its limit of ${limits[$part]} s" ;;
        *) what="failed with exit code $code, see log.txt" ;;
    esac
    if [[ -n $what ]]; then
        failed=1
        printf '{"part": "%s", "what": "the part", "skipped": "%s"}\n' "$part" "$what" >>"$out/results.jsonl"
        tail -n 12 "$out/log.txt" >&2
    fi
    echo "$part: ${what:-done} ($((SECONDS - began)) s)"
    if [[ $part == machine && $code != 0 ]]; then exit "$code"; fi
done
timeout "${limits[table]}" "$python" -m benchmarks.gpu table --out "$out" --command "$command" || failed=1
echo "$((SECONDS - started)) s in all; results in $out"
exit $failed
