"""The demo over the running ROS graph, long enough for a success rate.

    make bench ARGS=ros_graph

Runs `niaf_demo` (real-time simulation, policy and controller as separate processes over DDS) on
scenes that no recording uses and prints its summary.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--episodes", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("out/bench/ros_graph.json"))
    args = parser.parse_args()
    folder = args.out.parent / "ros_graph"
    command = [sys.executable, "-m", "niaf_sim.demo", "--episodes", str(args.episodes)]
    command += ["--seed", str(args.seed), "--out", str(folder)]
    code = subprocess.call(command)
    if code == 0:
        summary = json.loads((folder / "summary.json").read_text())
        args.out.write_text(json.dumps(summary, indent=2) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
