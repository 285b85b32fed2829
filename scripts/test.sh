#!/usr/bin/env bash
# Style, types, then unit tests, then system tests over real DDS. Runs inside the environment (see run.sh).
# Arguments go to pytest; with any, only pytest runs.
set -uo pipefail
cd "$(dirname -- "${BASH_SOURCE[0]}")/.."

# The packages' own sources come from the workspace; a domain of its own keeps other graphs out.
export ROS_DOMAIN_ID=${ROS_DOMAIN_ID:-$((RANDOM % 100 + 1))}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} OPENBLAS_NUM_THREADS=1

# Only the plugins named here: those of an installed ROS 2 are made for an older pytest.
# CI: hypothesis then draws the same examples every time.
export CI=${CI:-true} PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 PYTEST_PLUGINS=pytest_timeout

if [ $# -gt 0 ]; then
    exec python -m pytest "$@"
fi

mkdir -p out
lint=failed
scripts/lint.sh </dev/null && lint=passed
echo "[test] pytest"
python -m pytest --junitxml=out/pytest.xml </dev/null
tests=$?
if [ $lint = failed ]; then
    echo "[test] ruff or mypy failed, see above"
    exit 1
fi
exit $tests
