#!/usr/bin/env bash
# Closed loop in the lock-step environment (options of niaf_sim.evaluate may follow). Runs inside the environment (see run.sh).
set -euo pipefail
cd "$(dirname -- "${BASH_SOURCE[0]}")/.."
checkpoint=${CHECKPOINT:-ros2_ws/src/niaf_policy/checkpoints/demo}
exec python -m niaf_sim.evaluate --checkpoint "$checkpoint" --episodes "${EPISODES:-120}" --out out/eval/summary.json --video out/eval/episodes.mp4 "$@"
