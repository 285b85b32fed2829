#!/usr/bin/env bash
# Records expert episodes (options of niaf_sim.record may follow). Runs inside the environment (see run.sh).
set -euo pipefail
cd "$(dirname -- "${BASH_SOURCE[0]}")/.."
exec python -m niaf_sim.record --out "${OUT:-data/demo}" --episodes "${EPISODES:-600}" --seed "${SEED:-0}" "$@"
