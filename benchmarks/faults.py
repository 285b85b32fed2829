"""Randomised fault trials of the whole control loop, in lock-step.

    make bench ARGS=faults
    python benchmarks/faults.py --trials 10000 --workers 2 --seed 0
    python benchmarks/faults.py --only-seed 1234

Every seed is one trial: it names a fault, draws its parameters, runs policy, host checks,
controller, drives and arm against it and judges the trace (niaf_sim/fault_trials.py). Prints a line
per kind of fault and writes JSON. Exit code 1 when any trial was violated; each can be run again
alone by its seed.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import platform
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from niaf_sim.fault_trials import KINDS, Bench, TrialResult, kind_of, run_trial

_bench: Bench | None = None


def _start() -> None:
    global _bench
    _bench = Bench()


def _work(seed: int) -> TrialResult:
    assert _bench is not None
    return run_trial(seed, _bench)


def _run(seeds: range, workers: int) -> list[TrialResult]:
    _start()
    _work(seeds[0])  # fills the compiler's cache once, before processes would race for it
    with multiprocessing.get_context("spawn").Pool(workers, _start) as pool:
        stream = pool.imap_unordered(_work, seeds, chunksize=8)
        bar = tqdm(stream, total=len(seeds), unit="trial", smoothing=0.05)
        results = []
        for result in bar:
            results.append(result)
            if result.violations:
                bar.write(_line(result))
    return sorted(results, key=lambda result: result.seed)


def _line(result: TrialResult) -> str:
    return (
        f"seed {result.seed}: {result.kind} ({result.note}) -> {result.outcome}: "
        f"{'; '.join(result.violations) or 'no violation'}"
    )


def _table(results: list[TrialResult]) -> str:
    rows = [
        f"{'fault':>22} {'trials':>6} {'torque':>7} {'rate':>6} {'drive':>6} "
        f"{'stop/bound':>10} {'viol.':>5}  outcomes"
    ]
    for kind in [*KINDS, "all"]:
        own = [r for r in results if kind in (r.kind, "all")]
        if not own:
            continue
        shares = [r.stop_s / r.bound_s for r in own if math.isfinite(r.stop_s / r.bound_s)]
        outcomes = Counter(r.outcome for r in own).most_common(4 if kind != "all" else 20)
        rows.append(
            f"{kind:>22} {len(own):6d} {max(r.worst_torque_ratio for r in own):7.3f} "
            f"{max(r.worst_rate_ratio for r in own):6.3f} "
            f"{max(r.worst_drive_ratio for r in own):6.3f} "
            f"{f'{max(shares):.2f}' if shares else '':>10} "
            f"{sum(bool(r.violations) for r in own):5d}  "
            + ", ".join(f"{name} {count}" for name, count in outcomes)
        )
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=10000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="first seed")
    parser.add_argument("--only-seed", type=int, help="run and show this trial alone")
    parser.add_argument("--out", type=Path, default=Path("out/bench/faults.json"))
    args = parser.parse_args()
    if args.only_seed is not None:
        _start()
        result = _work(args.only_seed)
        print(_line(result))
        print(json.dumps(asdict(result), indent=2))
        return int(bool(result.violations))

    began = time.monotonic()
    results = _run(range(args.seed, args.seed + args.trials), args.workers)
    wall_s = time.monotonic() - began
    bad = [r for r in results if r.violations]
    kinds = {kind: [r for r in results if r.kind == kind] for kind in KINDS}
    summary = {
        "trials": len(results),
        "first_seed": args.seed,
        "wall_s": wall_s,
        "simulated_s": sum(r.simulated_s for r in results),
        "violated": len(bad),
        "violated_seeds": [r.seed for r in bad],
        "worst_torque_ratio": max(r.worst_torque_ratio for r in results),
        "worst_rate_ratio": max(r.worst_rate_ratio for r in results),
        "kinds": {
            kind: {
                "trials": len(own),
                "violated": sum(bool(r.violations) for r in own),
                "outcomes": dict(Counter(r.outcome for r in own)),
                "refusals": dict(sum((Counter(r.reasons) for r in own), Counter())),
            }
            for kind, own in kinds.items()
        },
        "violations": [asdict(r) for r in bad],
        "python": platform.python_version(),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(summary, indent=2, default=str) + "\n")
    print(_table(results))
    print(
        f"{len(results)} trials, {summary['simulated_s']:.0f} s simulated, in {wall_s:.0f} s with "
        f"{args.workers} workers; ratios are the worst over the limit, stop/bound the slowest stop"
    )
    if bad:
        print(f"{len(bad)} trials violated; run one alone with --only-seed N:")
        for result in bad[:40]:
            print("  " + _line(result))
        print("seeds: " + " ".join(str(r.seed) for r in bad))
        return 1
    print("no limit violation, nothing that is not a number, every stop named and in time")
    return 0


if __name__ == "__main__":
    assert kind_of(0) in KINDS
    sys.exit(main())
