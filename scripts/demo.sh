#!/usr/bin/env bash
# Runs inside the environment (see run.sh). Options of niaf_demo may follow.
set -euo pipefail
cd "$(dirname -- "${BASH_SOURCE[0]}")/.."
options=()
[ -z "${EPISODES:-}" ] || options+=(--episodes "$EPISODES")
[ -z "${SEED:-}" ] || options+=(--seed "$SEED")
[ -z "${CHECKPOINT:-}" ] || options+=(--checkpoint "$CHECKPOINT")
case ${VIEWER:-0} in 0 | false | no | "") ;; *) options+=(--viewer) ;; esac
# A domain of its own: another ROS graph on this machine or network does not get our commands.
export ROS_DOMAIN_ID=${ROS_DOMAIN_ID:-$((RANDOM % 100 + 1))}
exec python -m niaf_sim.demo --out out/demo ${options[@]+"${options[@]}"} "$@"
