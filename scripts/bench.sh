#!/usr/bin/env bash
# bench.sh [NAME...] [--OPTION...]: runs benchmarks/NAME.py, or all of them, each writing to out/bench; options go to each.
# Runs inside the environment (see run.sh).
set -euo pipefail
cd "$(dirname -- "${BASH_SOURCE[0]}")/.."
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 ROS_DOMAIN_ID=${ROS_DOMAIN_ID:-$((RANDOM % 100 + 1))}
mkdir -p out/bench
names=()
options=()
while [ $# -gt 0 ]; do
    case $1 in
        --*=*|--quick) options+=("$1") ;;
        -*) options+=("$1" "$2"); shift ;;
        *) names+=("$1") ;;
    esac
    shift
done
if [ ${#names[@]} = 0 ]; then # modules beside them that are no commands are skipped
    for file in $(grep -l __main__ benchmarks/[a-z]*.py); do names+=("$(basename "$file" .py)"); done
fi
for name in "${names[@]}"; do
    if [ ! -f "benchmarks/$name.py" ]; then
        echo "[bench] no benchmark $name; there are: $(cd benchmarks 2>/dev/null && ls [a-z]*.py 2>/dev/null | sed 's/\.py$//' | tr '\n' ' ')" >&2
        exit 2
    fi
    echo "[bench] $name"
    python "benchmarks/$name.py" --out "out/bench/$name.json" ${options[@]+"${options[@]}"}
done
