"""Closed-loop success in the lock-step environment, next to its controls.

    make bench ARGS=closed_loop

Runs on the evaluation seeds, which no recording uses: the shipped policy, the policy told another
colour than the one that is scored, the scripted expert (upper bound), the expert told another
colour, and an arm that does nothing. Prints one table and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

from niaf_sim.controls import run_controls
from niaf_sim.evaluate import evaluate

CHECKPOINT = Path(__file__).resolve().parent.parent / "ros2_ws/src/niaf_policy/checkpoints/demo"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--checkpoint", default=str(CHECKPOINT))
    parser.add_argument("--episodes", type=int, default=120, help="of the policy")
    parser.add_argument("--control-episodes", type=int, default=60, help="of each control")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("out/bench/closed_loop.json"))
    args = parser.parse_args()
    policy = evaluate("policy", args.checkpoint, args.episodes, workers=args.workers)
    details = policy.pop("episodes_detail")
    results = {"policy": policy}
    results |= run_controls(args.control_episodes, args.workers, "panda")
    wrong = evaluate(
        "policy", args.checkpoint, args.control_episodes, workers=args.workers, wrong=True
    )
    wrong.pop("episodes_detail")
    results["policy_wrong_instruction"] = wrong
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results | {"policy_episodes": details}, indent=2) + "\n")

    print(
        f"machine: {platform.processor() or platform.machine()}, Python {platform.python_version()}"
    )
    print(f"{'':>26}  {'success':>9}  {'rate':>6}  95 % interval")
    for name, result in results.items():
        low, high = result["interval95"]
        count = f"{result['successes']}/{result['episodes']}"
        print(f"{name:>26}  {count:>9}  {result['success_rate']:6.1%}  {low:.1%} .. {high:.1%}")
    print("per instruction (policy):")
    for name, result in policy["per_instruction"].items():
        print(f"{name:>34}  {result['successes']}/{result['episodes']}")
    print(
        f"policy: tracking rms {policy['tracking_rms_rad'] * 1e3:.2f} mrad, "
        f"reference acceleration rms {policy['reference_acceleration_rms_rad_s2']:.2f} rad/s^2, "
        f"jerk rms {policy['reference_jerk_rms_rad_s3']:.1f} rad/s^3, "
        f"peak torque {policy['peak_torque_ratio']:.2f} of the limit, "
        f"fields refused {policy['references_refused']}/{policy['references_offered']}"
    )


if __name__ == "__main__":
    main()
