#!/usr/bin/env bash
# bench.sh [NAME...]: runs benchmarks/NAME.py, or all of them, each writing to out/bench. Runs inside the environment (see run.sh).
set -euo pipefail
cd "$(dirname -- "${BASH_SOURCE[0]}")/.."
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 ROS_DOMAIN_ID=${ROS_DOMAIN_ID:-$((RANDOM % 100 + 1))}
mkdir -p out/bench
names=("$@")
if [ ${#names[@]} = 0 ]; then
    for file in benchmarks/[a-z]*.py; do names+=("$(basename "$file" .py)"); done
fi
for name in "${names[@]}"; do
    if [ ! -f "benchmarks/$name.py" ]; then
        echo "[bench] no benchmark $name; there are: $(cd benchmarks 2>/dev/null && ls [a-z]*.py 2>/dev/null | sed 's/\.py$//' | tr '\n' ' ')" >&2
        exit 2
    fi
    echo "[bench] $name"
    python "benchmarks/$name.py" --out "out/bench/$name.json"
done
