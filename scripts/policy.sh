#!/usr/bin/env bash
# Makes the demo policy from nothing: demonstrations, training, rounds of corrections (DAgger), evaluation.
# About two and a half hours on two free cores; see docs/training.md. Runs inside the environment (see run.sh).
set -euo pipefail
cd "$(dirname -- "${BASH_SOURCE[0]}")/.."
# Without this, half of the time goes into page faults of freshly mapped memory.
export MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592 MALLOC_TOP_PAD_=268435456
config=ros2_ws/src/niaf_policy/config/train_demo.yaml
rounds=${ROUNDS:-6}

parts() { printf '%s,' data/"$1"/part-* | sed 's/,$//'; }
train() { # NAME INIT MINUTES ROOTS WEIGHTS LR
    python -m niaf_policy.train --config "$config" "data.roots=[$4]" "data.weights=[$5]" "train.init_from=$2" \
        "train.max_minutes=$3" "optimizer.lr=$6" "train.output_dir=runs/$1"
    last=runs/$1/checkpoints/$(cat "runs/$1/last")
}

[ -e data/demo ] || python -m niaf_sim.record --out data/demo --episodes 540 --seed 0
[ -e data/demo/controls.json ] || python -m niaf_sim.controls --out data/demo/controls.json
roots=$(parts demo)
ones() { printf '%s' "$1" | sed 's/[^,][^,]*/1/g'; }
train round0 "" 35 "$roots" "$(ones "$roots")" 8e-4
for ((k = 1; k <= rounds; k++)); do
    [ -e "data/corrections$k" ] ||
        python -m niaf_sim.record --out "data/corrections$k" --episodes 220 --seed $((10000 * k)) --checkpoint "$last"
    newest=$(parts "corrections$k")
    # the newest corrections answer to the newest policy: they count three times
    train "round$k" "$last" 16 "$roots,$newest" "$(ones "$roots"),$(ones "$newest" | tr 1 3)" 6e-4
    roots=$roots,$newest
done
python -m niaf_sim.evaluate --checkpoint "$last" --episodes 120 --out "$last/results.json"
echo "policy: $last"
