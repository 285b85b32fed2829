#!/usr/bin/env bash
# Style and types of every package. Runs inside the environment (see run.sh).
set -uo pipefail
cd "$(dirname -- "${BASH_SOURCE[0]}")/.."
status=0
echo "[lint] ruff"
python -m ruff check . || status=1
echo "[lint] mypy"
packages=()
for package in ros2_ws/src/niaf_{field,data,policy,impedance,sim}; do
    packages+=("$package/$(basename "$package")")
done
[ ! -d benchmarks ] || packages+=(benchmarks)
python -m mypy "${packages[@]}" launch/niaf_bringup || status=1
exit $status
