"""Control experiments that give a success rate its meaning.

    python -m niaf_sim.controls --out data/demo/controls.json --episodes 60

Runs, on the same evaluation seeds, the scripted expert (upper bound), an arm that does nothing, and
the expert told another colour than the one that is scored (a lower bound for anything that ignores
the instruction). With --checkpoint the policy is run under right and wrong instructions as well.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from niaf_sim.evaluate import evaluate


def run_controls(
    episodes: int, workers: int, robot: str, checkpoint: str | None = None
) -> dict[str, Any]:
    """Result per control, episode details left out."""
    runs: dict[str, tuple[str, bool]] = {
        "expert": ("expert", False),
        "nothing": ("nothing", False),
        "expert_wrong_instruction": ("expert", True),
    }
    if checkpoint is not None:
        runs["policy"] = ("policy", False)
        runs["policy_wrong_instruction"] = ("policy", True)
    results = {}
    for name, (agent, wrong) in runs.items():
        result = evaluate(agent, checkpoint, episodes, workers=workers, robot=robot, wrong=wrong)
        results[name] = {key: result[key] for key in result if key != "episodes_detail"}
    return results


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--episodes", type=int, default=60)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--robot", default="panda", help="robot config: name or YAML file")
    parser.add_argument("--checkpoint", help="also run this policy")
    args = parser.parse_args(argv)
    results = run_controls(args.episodes, args.workers, args.robot, args.checkpoint)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=2) + "\n")
    for name, result in results.items():
        low, high = result["interval95"]
        print(
            f"{name:>26}: {result['successes']:3d}/{result['episodes']} = "
            f"{result['success_rate']:6.1%}  (95 % interval {low:.1%} .. {high:.1%})"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
