"""What the control loop costs and how punctual it is, beside what the machine allows.

    make bench-controller

Time per tick by part beside the arithmetic bound, a C kernel, plain numpy + pinocchio and torch's
autograd; lateness and misses of the compiled loop thread under load; latency from a joint state to
its torque command. The last table holds the figures against their targets; a target that is not
reached is shown as such. Takes under four minutes on two quiet cores; ``--quick`` is a smoke run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from dataclasses import asdict, dataclass, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import controller_c
import controller_latency
import controller_loop
import controller_parts
import numpy as np
import torch
from controller_parts import WIDTHS, Times

from niaf_impedance.arm_model import ArmModel
from niaf_impedance.realtime import (
    avoid_shared_memory_stall,
    fine_timer_slack,
    lock_memory,
    quiet_interpreter,
)
from niaf_impedance.robot_config import default_robot_config_path
from niaf_impedance.warm_up import warm_up

ORDERS = ("value", "+ velocity", "+ acceleration", "+ jerk")
#: the width of the shipped policy's targets
WIDTH = 128


@dataclass(frozen=True)
class Target:
    """One line of the verdict. ``reached`` is None where it could not be measured."""

    name: str
    measured: str
    target: str
    reached: bool | None
    why: str = ""


def machine() -> str:
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return (
        f"{model}, {os.cpu_count()} cores, Linux {platform.release()}, "
        f"Python {platform.python_version()}, load before the run {load:.1f}"
    )


def print_fields(fields: dict[int, dict[str, Any]]) -> None:
    print("\nField jets, L = 3, full modulation, float64: microseconds (p50 / p99 / p99.9)")
    print(f"{'H':>4} {'jets':>15} {'this':>20} {'C kernel':>20} {'bound':>7} {'numpy':>7} "
          f"{'torch':>8}   {'/bound':>6} {'/C':>5} {'numpy/':>6} {'/value':>6}")
    for width, row in fields.items():
        for order, name in enumerate(ORDERS):
            ours, c, bound = row["niaf"][order], row["c"][order], row["bound"][order]
            plain = row["numpy"][order]
            autograd = row["torch"][order] if order < len(row["torch"]) else None
            print(
                f"{width:>4} {name:>15} {_three(ours):>20} {_three(c):>20} "
                f"{'-' if bound is None else f'{bound.total_s * 1e6:.2f}':>7} "
                f"{plain.p50:7.1f} {'-' if autograd is None else f'{autograd.p50:.0f}':>8}   "
                f"{'-' if bound is None else f'{ours.p50 / bound.total_s * 1e-6:.2f}':>6} "
                f"{'-' if c is None else f'{ours.p50 / c.p50:.2f}':>5} "
                f"{plain.p50 / ours.p50:6.1f} {ours.p50 / row['niaf'][0].p50:6.2f}"
            )


def print_ticks(ticks: dict[str, Any], fields: dict[int, dict[str, Any]]) -> None:
    print("\nTick by part, microseconds at p50 (checks, limits and law are differences of ticks)")
    for width in WIDTHS:
        field = fields[width]["niaf"][2].p50
        print(
            f"  H = {width:3}: field to acceleration {field:.2f}, law {ticks['law']:.2f}, "
            f"dynamics 2 x {ticks['rnea'].p50:.2f}, limits {ticks['limits']:.2f}, "
            f"checks {ticks['checks']:.2f}"
        )
    print("Whole tick, microseconds (p50 / p99 / p99.9)")
    print(f"{'H':>4} {'compiled caller':>20} {'called from Python':>20} {'numpy + pinocchio':>22} "
          f"{'torch autograd':>26} {'numpy/ours':>10} {'torch/ours':>10}")
    for width, row in ticks["tick"].items():
        ours = row["niaf_from_python"]
        print(
            f"{width:>4} {_three(row['niaf']):>20} {_three(ours):>20} {_three(row['numpy']):>22} "
            f"{_three(row['torch']):>26} {row['numpy'].p50 / ours.p50:>10.1f} "
            f"{row['torch'].p50 / ours.p50:>10.0f}"
        )


def print_loop(rows: list[dict[str, Any]]) -> None:
    print("\nCompiled loop thread, H = 128: lateness, microseconds")
    print(f"{'rate':>6} {'load':>34} {'ticks':>6} {'p50':>6} {'p99':>6} {'p99.9':>7} {'max':>7} "
          f"{'missed':>6} {'tick p50':>8} {'p99':>6} {'core':>6}")
    for row in rows:
        s = row["statistics"]
        late, execution = s.lateness, s.execution
        print(
            f"{row['rate_hz']:>6.0f} {row['load']:>34} {s.ticks:>6} {late.p50_s * 1e6:6.0f} "
            f"{late.p99_s * 1e6:6.0f} {late.p999_s * 1e6:7.0f} {late.max_s * 1e6:7.0f} "
            f"{s.missed:>6} {execution.p50_s * 1e6:8.1f} {execution.p99_s * 1e6:6.0f} "
            f"{s.core_share:6.2%}"
        )


def _three(times: Times | None) -> str:
    if times is None:
        return "-"
    return f"{times.p50:.2f} / {times.p99:.2f} / {times.p999:.1f}"


def judge(
    fields: dict[int, dict[str, Any]], ticks: dict[str, Any], loops: list[dict[str, Any]]
) -> list[Target]:
    """The figures against their targets (ratios first), with what explains a remainder."""
    targets = []
    whole = ticks["tick"][WIDTH]
    ratio = whole["numpy"].p50 / whole["niaf_from_python"].p50
    targets.append(Target(
        "whole tick against numpy + pinocchio, H = 128", f"1/{ratio:.1f}", "<= 1/6", ratio >= 6.0,
    ))
    for width in WIDTHS:
        row = fields[width]
        ratio = row["niaf"][3].p50 / row["niaf"][0].p50
        why = ""
        if ratio > 1.9 and row["bound"][0] is not None:
            low, high = row["bound"][0].total_s * 1e6, row["bound"][3].total_s * 1e6
            c = row["c"][3].p50 / row["c"][0].p50
            why = (
                f"arithmetic alone: {high / low:.2f} ({low:.2f} us of reading and sines for the "
                f"value, {high:.2f} us of multiply-adds and sines up to jerk); the C kernel: "
                f"{c:.2f}; this is {row['niaf'][0].p50 / low:.2f} and "
                f"{row['niaf'][3].p50 / high:.2f} of the two bounds"
            )
        targets.append(Target(
            f"up to jerk against the value alone, H = {width}", f"{ratio:.2f}", "<= 1.9",
            ratio <= 1.9, why,
        ))
    for width in WIDTHS:
        row = fields[width]
        for order, name in enumerate(ORDERS):
            if row["c"][order] is None:
                targets.append(Target(
                    f"field ({name}) against the C kernel, H = {width}", "-", "<= 1.3", None,
                    "no C compiler"))
                continue
            ratio = row["niaf"][order].p50 / row["c"][order].p50
            excess = row["niaf"][order].p50 - row["c"][order].p50
            in_tick = row["niaf"][2].p50 / row["c"][2].p50
            targets.append(Target(
                f"field ({name}) against the C kernel, H = {width}", f"{ratio:.2f}", "<= 1.3",
                ratio <= 1.3,
                f"{excess:.2f} us more; at the order that the tick asks for, acceleration, the "
                f"ratio is {in_tick:.2f}" if ratio > 1.3 else "",
            ))
    heavy = next(r for r in loops if r["rate_hz"] == 1000 and r["load"].startswith("torch"))
    quiet = next(r for r in loops if r["rate_hz"] == 1000 and r["load"] == "idle")
    statistics = heavy["statistics"]
    targets.append(Target(
        f"deadlines missed in {statistics.ticks} at 1 kHz, torch and ROS in this process",
        f"{statistics.missed}", "0", statistics.missed == 0,
        "" if statistics.missed == 0 else _explain_misses(heavy),
    ))
    late = statistics.lateness
    targets.append(Target(
        "wake-up p99 / p99.9 under that load",
        f"{late.p99_s * 1e6:.0f} / {late.p999_s * 1e6:.0f} us", "<= 80 / 200 us",
        late.p99_s <= 80e-6 and late.p999_s <= 200e-6, _explain_lateness(heavy, quiet),
    ))
    share = quiet["statistics"].core_share
    targets.append(Target(
        "share of a core at 1 kHz, idle", f"{share:.2%}", "<= 3 %", share <= 0.03))
    share = statistics.core_share
    targets.append(Target(
        "share of a core at 1 kHz under that load", f"{share:.2%}", "<= 3 %", share <= 0.03))
    return targets


def _explain_lateness(row: dict[str, Any], quiet: dict[str, Any]) -> str:
    idle = quiet["statistics"].lateness
    return (
        f"without that load {idle.p99_s * 1e6:.0f} / {idle.p999_s * 1e6:.0f} us on this machine; "
        f"{_explain_misses(row)}"
    )


def _explain_misses(row: dict[str, Any]) -> str:
    s = row["statistics"]
    parts = [
        f"{s.late} late wake-ups", f"latest {s.lateness.max_s * 1e3:.2f} ms",
        f"longest tick {s.execution.max_s * 1e3:.2f} ms", row["scheduling"],
    ]
    if row["steal_ms"] > 0.0:
        parts.append(f"the hypervisor took {row['steal_ms']:.0f} ms of CPU time meanwhile")
    return "; ".join(parts)


def _steal_ms() -> float:
    """CPU time that the hypervisor gave to others since boot."""
    try:
        words = Path("/proc/stat").read_text().splitlines()[0].split()
        return float(words[8]) * 1000.0 / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError):
        return 0.0


def measure_loops(arm: ArmModel, ticks: int) -> list[dict[str, Any]]:
    cores = sorted(os.sched_getaffinity(0))
    core, other = cores[-1], cores[0]
    conditions: list[tuple[str, Any]] = [
        ("idle", controller_loop.idle),
        ("other core busy", partial(controller_loop.other_core_busy, other)),
        ("torch + ROS traffic in this process", controller_loop.torch_and_ros),
    ]
    rows = []
    for rate in (1000.0, 500.0):
        for name, load in conditions:
            before = _steal_ms()
            statistics, scheduling = controller_loop.run_loop(arm, rate, ticks, load, core)
            rows.append({
                "rate_hz": rate, "load": name, "statistics": statistics,
                "scheduling": scheduling, "steal_ms": _steal_ms() - before,
            })
    return rows


def _plain(value: Any) -> Any:
    """``value`` as JSON can hold it."""
    if is_dataclass(value) and not isinstance(value, type):
        return {name: _plain(entry) for name, entry in asdict(value).items()}
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.generic):
        return value.item()
    return value


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="smoke run: few samples")
    parser.add_argument("--out", type=Path, default=Path("out/bench/controller.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    where = machine()
    fine_timer_slack()
    avoid_shared_memory_stall()
    arm = ArmModel.from_yaml(default_robot_config_path("panda"))
    warm_up()
    print(f"machine: {where}", flush=True)
    if args.quick:
        print("quick: a smoke run with few samples, not for quoting")

    libraries = controller_c.build()
    samples = 500 if args.quick else 20_000
    difference = controller_parts.same_torque(arm)
    assert difference < 1e-9, f"the versions compute different torques ({difference} Nm)"
    fields = controller_parts.measure_fields(arm, libraries, samples)
    if libraries:
        lib = libraries[-1]
        print(
            f"bound: weights read once or multiply-adds done, whichever takes longer, plus the "
            f"sines.\n       This machine: {2e-9 * lib.multiply_adds_per_s:.0f} GFLOP/s; "
            + ", ".join(
                f"{lib.read_bytes_per_s(2 * width * width) * 1e-9:.0f} GB/s (H = {width})"
                for width in WIDTHS)
            + f"; {1e9 * lib.sin_cos_s(WIDTH):.2f} ns a sine and cosine.\n"
            f"C kernel: best of {'; '.join(library.compiler for library in libraries)}"
        )
    else:
        print("no C compiler: neither bound nor C kernel")
    print_fields(fields)
    ticks = controller_parts.measure_ticks(arm, samples)
    print_ticks(ticks, fields)
    print(f"  (all versions agree to {difference:.1e} Nm)", flush=True)

    memory = lock_memory()
    quiet_interpreter()
    loops = measure_loops(arm, 500 if args.quick else 10_000)
    print_loop(loops)
    print(f"  {loops[0]['scheduling']}; {memory}", flush=True)

    inside = controller_latency.in_process(arm, 500 if args.quick else 10_000)
    outside = {
        loop: controller_latency.over_dds(arm, 300 if args.quick else 5000, loop)
        for loop in controller_latency.LOOP_RATE_HZ
    }
    trip = outside["event"]["round_trip"]
    print("\nFrom joint state to torque command, H = 128, microseconds")
    print(f"  in one process (bytes to bytes)      p50 {inside.p50:.1f}, p99 {inside.p99:.1f}, "
          f"p99.9 {inside.p999:.1f}")
    for loop, figures in outside.items():
        times = figures["round_trip"]
        print(f"  over DDS, own process, loop: {loop}   p50 {times.p50:.0f}, p99 {times.p99:.0f}, "
              f"p99.9 {times.p999:.0f}; {figures['unanswered']} of {figures['states']} states "
              "without an answer in 20 ms")

    targets = judge(fields, ticks, loops)
    targets.append(Target(
        "round trip over ROS, p50 / p99", f"{trip.p50:.0f} / {trip.p99:.0f} us",
        "<= 120 / 200 us", trip.p50 <= 120.0 and trip.p99 <= 200.0,
        f"decoding, tick and encoding are {inside.p50:.0f} us of it; the rest is the middleware, "
        "both executors and the scheduler (UDP, so that publish never waits for a shared-memory "
        "port)",
    ))
    print("\nTargets")
    for target in targets:
        mark = {True: "reached", False: "NOT REACHED", None: "not measured"}[target.reached]
        print(f"  {mark:>12}  {target.name}: {target.measured} (target {target.target})")
        if target.why and not target.reached:
            print(f"                {target.why}")
    reached = sum(bool(target.reached) for target in targets)
    print(f"{reached} of {len(targets)} targets reached")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(_plain({
        "machine": where, "quick": args.quick, "fields": fields, "tick": ticks, "loop": loops,
        "memory": memory, "latency_in_process": inside, "latency_dds": outside,
        "targets": targets, "agreement_nm": difference,
    }), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
