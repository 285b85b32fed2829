"""Peg in hole: what compliance and the field's derivatives are worth in contact.

    make bench ARGS=insertion

One straight path, five ways to follow it, the same misaligned holes for each (1 to 3 mm, 1 to 2
degrees, drawn by seed; 0.5 mm between the diameters). Two of the ways are the project's controller,
three the same law, arm model and limits with a poorer reference. Prints one table and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from niaf_impedance.arm_model import ArmModel
from niaf_impedance.controller import ControllerConfig, ImpedanceController
from niaf_impedance.robot_config import default_robot_config_path, load_robot_config
from niaf_sim.insertion import (
    FieldLaw,
    InsertionCell,
    InsertionConfig,
    Law,
    Outcome,
    WaypointLaw,
    carrying_the_peg,
    insert,
    nominal_path,
    stiffest_gains,
)
from niaf_sim.summary import wilson_interval

WAYPOINT_HZ = 20.0

VARIANTS = {
    "impedance": "moderate gains, field with velocity and acceleration",
    "impedance, no velocity": "moderate gains, the field's positions only",
    "stiff": "highest gains, field with velocity and acceleration",
    "stiff, position only": "highest gains, the field's positions only",
    "stiff, waypoints": f"highest gains, {WAYPOINT_HZ:g} Hz waypoints and their differences, held",
}
FIGURES = (
    "depth_m", "net_peak_n", "net_peak_raw_n", "net_rms_n", "impulse_ns", "squeeze_rms_n",
    "final_squeeze_n",
)


class Bench:
    """What one worker needs, built once."""

    def __init__(self) -> None:
        config = InsertionConfig()
        robot = carrying_the_peg(load_robot_config(default_robot_config_path("panda")), config)
        self.arm = ArmModel(robot)
        self.cell = InsertionCell(robot, config)
        self.path = nominal_path(robot, config, 0.0)
        self.q_start = self.path.jet(0.0, 0)[0]
        controller = ImpedanceController(ControllerConfig(), self.arm)
        self.moderate = controller.kp.copy(), controller.kd.copy()
        self.stiff = stiffest_gains(controller)

    def law(self, variant: str) -> Law:
        arm, path, q = self.arm, self.path, self.q_start
        if variant == "impedance":
            return FieldLaw(arm, path, q)
        if variant == "impedance, no velocity":
            return WaypointLaw(arm, path, q, self.moderate, "none")
        if variant == "stiff":
            return FieldLaw(arm, path, q, self.stiff)
        if variant == "stiff, position only":
            return WaypointLaw(arm, path, q, self.stiff, "none")
        return WaypointLaw(arm, path, q, self.stiff, "difference", WAYPOINT_HZ)

    def run(self, variant: str, seed: int) -> Outcome:
        self.cell.reset(seed, self.q_start)
        return insert(self.cell, self.law(variant), seed)


_bench: list[Bench] = []


def run_seed(seed: int) -> dict[str, Outcome]:
    if not _bench:
        _bench.append(Bench())
    return {variant: _bench[0].run(variant, seed) for variant in VARIANTS}


def bootstrap(values: np.ndarray, draws: int = 2000) -> tuple[float, float, float]:
    """Mean and 95 % interval of it."""
    rng = np.random.default_rng(0)
    means = rng.choice(values, (draws, values.size)).mean(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(values.mean()), float(low), float(high)


def ratio_of_means(
    values: np.ndarray, base: np.ndarray, draws: int = 2000
) -> tuple[float, float, float]:
    """mean(values) / mean(base) over the same holes, and its 95 % interval."""
    rng = np.random.default_rng(0)
    picks = rng.integers(0, values.size, (draws, values.size))
    ratios = values[picks].mean(axis=1) / base[picks].mean(axis=1)
    low, high = np.percentile(ratios, (2.5, 97.5))
    return float(values.mean() / base.mean()), float(low), float(high)


def processor() -> str:
    """Name of the processor, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=60, help="misaligned holes")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--out", type=Path, default=Path("out/bench/insertion.json"))
    args = parser.parse_args()
    began_s = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
        per_seed = pool.map(run_seed, range(args.seeds), chunksize=1)
    wall_s = time.monotonic() - began_s

    table = {
        variant: {
            figure: np.array([getattr(row[variant], figure) for row in per_seed])
            for figure in FIGURES
        }
        for variant in VARIANTS
    }
    results: dict[str, dict[str, object]] = {}
    for variant, text in VARIANTS.items():
        wins = sum(row[variant].success for row in per_seed)
        results[variant] = {
            "what": text,
            "successes": wins,
            "episodes": args.seeds,
            "interval95": list(wilson_interval(wins, args.seeds)),
            "mean_low_high": {f: bootstrap(table[variant][f]) for f in FIGURES},
            "ratio_to_impedance": {
                f: ratio_of_means(table[variant][f], table["impedance"][f]) for f in FIGURES
            },
        }
    bench = Bench()
    document = {
        "machine": {
            "processor": processor(), "cores": os.cpu_count(), "system": platform.platform(),
            "python": platform.python_version(), "wall_s": wall_s, "workers": args.workers,
        },
        "task": asdict(InsertionConfig()),
        "gains": {
            "moderate": [values.tolist() for values in bench.moderate],
            "stiff": [values.tolist() for values in bench.stiff],
        },
        "results": results,
        "episodes": {v: [asdict(row[v]) for row in per_seed] for v in VARIANTS},
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(document, indent=2) + "\n")

    machine = document["machine"]
    assert isinstance(machine, dict)
    print(f"machine: {machine['processor']}, {machine['cores']} cores, Python {machine['python']}")
    print(f"{args.seeds} holes, {wall_s:.0f} s; means with 95 % intervals")
    shown = (("depth_m", 1e3, "depth [mm]"), ("net_peak_n", 1.0, "peak [N]"),
             ("net_rms_n", 1.0, "rms [N]"), ("impulse_ns", 1.0, "impulse [Ns]"),
             ("final_squeeze_n", 1.0, "squeeze left [N]"))
    print(f"{'':>24}  {'in the hole':>21}" + "".join(f"  {name:>21}" for *_, name in shown))
    for variant in VARIANTS:
        wins = sum(row[variant].success for row in per_seed)
        low, high = wilson_interval(wins, args.seeds)
        line = f"{variant:>24}  {f'{wins}/{args.seeds} ({low:.0%}..{high:.0%})':>21}"
        for figure, scale, _ in shown:
            mean, low, high = (scale * value for value in bootstrap(table[variant][figure]))
            line += f"  {f'{mean:.1f} ({low:.1f}..{high:.1f})':>21}"
        print(line)


if __name__ == "__main__":
    main()
