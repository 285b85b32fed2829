#!/usr/bin/env bash
# Trains the policy ("section.name=value" may follow). Runs inside the environment (see run.sh).
set -euo pipefail
cd "$(dirname -- "${BASH_SOURCE[0]}")/.."
exec python -m niaf_policy.train --config "${CONFIG:-ros2_ws/src/niaf_policy/config/train_demo.yaml}" "$@"
