"""Figures of a demo run, computed from what was collected. No ROS, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

FloatArray = np.ndarray

#: ImpedanceState.TRACK: the only mode in which the reference is a field being followed
MODE_TRACK = 1


@dataclass
class ControlTrace:
    """Samples of ImpedanceState of one episode, in order of arrival; K samples, n joints.

    Fill it with :meth:`append`; the array properties stack what was appended.
    """

    joint_names: tuple[str, ...] = ()
    stamp_s: list[float] = field(default_factory=list)
    mode: list[int] = field(default_factory=list)
    field_sequence: list[int] = field(default_factory=list)
    reference_rad: list[FloatArray] = field(default_factory=list)
    reference_rad_s: list[FloatArray] = field(default_factory=list)
    measured_rad: list[FloatArray] = field(default_factory=list)
    measured_rad_s: list[FloatArray] = field(default_factory=list)
    torque_nm: list[FloatArray] = field(default_factory=list)
    lateness_s: list[float] = field(default_factory=list)
    state_age_s: list[float] = field(default_factory=list)
    execution_s: list[float] = field(default_factory=list)
    tick_count: list[int] = field(default_factory=list)
    missed_ticks: list[int] = field(default_factory=list)
    peak_torque_ratio: list[float] = field(default_factory=list)
    peak_torque_rate_ratio: list[float] = field(default_factory=list)
    seam_peaks: list[tuple[float, float, float]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def append(self, message: Any) -> None:
        """Add one niaf_msgs/ImpedanceState (or any object with its attributes)."""
        if not self.joint_names:
            self.joint_names = tuple(message.name)
        stamp = message.header.stamp
        self.stamp_s.append(stamp.sec + stamp.nanosec * 1e-9)
        self.mode.append(int(message.mode))
        self.field_sequence.append(int(message.field_sequence))
        self.reference_rad.append(np.array(message.reference_position))
        self.reference_rad_s.append(np.array(message.reference_velocity))
        self.measured_rad.append(np.array(message.measured_position))
        self.measured_rad_s.append(np.array(message.measured_velocity))
        self.torque_nm.append(np.array(message.torque_command))
        self.lateness_s.append(float(message.tick_lateness_s))
        self.state_age_s.append(float(message.state_age_s))
        self.execution_s.append(float(message.tick_execution_s))
        self.tick_count.append(int(message.tick_count))
        self.missed_ticks.append(int(message.missed_ticks))
        self.peak_torque_ratio.append(float(message.peak_torque_ratio))
        self.peak_torque_rate_ratio.append(float(message.peak_torque_rate_ratio))
        self.seam_peaks.append(
            (
                float(message.seam_position_peak_rad),
                float(message.seam_velocity_peak_rad_s),
                float(message.seam_acceleration_peak_rad_s2),
            )
        )
        if message.fault and (not self.faults or self.faults[-1] != message.fault_text):
            self.faults.append(str(message.fault_text))

    def __len__(self) -> int:
        return len(self.stamp_s)

    def seam_times_s(self) -> FloatArray:
        """Stamps at which another field took over (the first field of the episode included)."""
        sequence = np.array(self.field_sequence)
        changes = np.flatnonzero(np.diff(sequence) != 0) + 1
        return np.array(self.stamp_s)[changes]


@dataclass
class Episode:
    """One episode of the demo and what was seen of it."""

    number: int
    instruction: str
    seed: int
    success: bool = False
    outcome: str = ""
    duration_s: float = 0.0
    fields: int = 0
    refused_fields: int = 0
    slowed_fields: int = 0
    policy_span_s: float = 0.0
    latency_s: list[float] = field(default_factory=list)
    field_age_s: list[float] = field(default_factory=list)
    simulated_s: float = 0.0
    wall_s: float = 0.0
    overruns: int = 0
    #: last "loop" diagnostics of the controller: figures over every tick since activation
    loop: dict[str, float] = field(default_factory=dict)
    trace: ControlTrace = field(default_factory=ControlTrace)

    @property
    def real_time_factor(self) -> float:
        return self.simulated_s / self.wall_s if self.wall_s > 0.0 else float("nan")

    @property
    def policy_rate_hz(self) -> float:
        if self.fields < 2 or self.policy_span_s <= 0.0:
            return float("nan")
        return (self.fields - 1) / self.policy_span_s

    def tracking_rms_rad(self) -> float:
        """Root mean square of reference - measured over samples in TRACK and over joints."""
        chosen = np.array(self.trace.mode) == MODE_TRACK
        if not len(self.trace) or not chosen.any():
            return float("nan")
        error = np.array(self.trace.reference_rad) - np.array(self.trace.measured_rad)
        return float(np.sqrt(np.mean(error[chosen] ** 2)))


def percentiles(values: Sequence[float] | FloatArray, scale: float, names: str) -> dict[str, float]:
    """Figures named in ``names`` ("p50 p99 max") of ``values * scale``; NaN when there are none."""
    data = np.asarray(values, dtype=np.float64) * scale
    data = data[np.isfinite(data)]
    result: dict[str, float] = {}
    for name in names.split():
        rank = 100.0 if name == "max" else float(name.removeprefix("p"))
        result[name] = float(np.percentile(data, rank)) if data.size else float("nan")
    return result


def wilson_interval(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """95 % confidence interval of a success rate (Wilson 1927)."""
    if trials == 0:
        return 0.0, 1.0
    p = successes / trials
    centre = p + z * z / (2 * trials)
    half = z * float(np.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials)))
    scale = 1 + z * z / trials
    low, high = (centre - half) / scale, (centre + half) / scale
    return max(low, 0.0), min(high, 1.0)  # rounding alone passes 0 and 1


def _finite(values: Sequence[float]) -> list[float]:
    return [value for value in values if np.isfinite(value)]


def _mean(values: Sequence[float]) -> float:
    kept = _finite(values)
    return float(np.mean(kept)) if kept else float("nan")


def _largest(values: Sequence[float]) -> float:
    kept = _finite(values)
    return float(max(kept)) if kept else float("nan")


def _every_tick_us(episodes: Sequence[Episode], name: str) -> dict[str, float]:
    """p50, p99, max over every tick, from the histograms in the diagnostics of each episode.

    p50 is the mean of the episodes' weighted by ticks, p99 the worst episode's. Empty without
    diagnostics.
    """
    wanted = {f"{name}.{figure}" for figure in ("p50", "p99", "max")}
    rows = [episode.loop for episode in episodes if wanted <= set(episode.loop)]
    if not rows:
        return {}
    weights = [max(row.get("ticks", 1.0), 1.0) for row in rows]
    return {
        "p50": float(np.average([row[f"{name}.p50"] for row in rows], weights=weights)),
        "p99": max(row[f"{name}.p99"] for row in rows),
        "max": max(row[f"{name}.max"] for row in rows),
    }


def _control_rate_hz(episodes: Sequence[Episode]) -> float:
    ticks = seconds = 0.0
    for episode in episodes:
        trace = episode.trace
        if len(trace) < 2:
            continue
        ticks += trace.tick_count[-1] - trace.tick_count[0]
        seconds += trace.stamp_s[-1] - trace.stamp_s[0]
    return ticks / seconds if seconds > 0.0 else float("nan")


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: figures nobody measured become null."""
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(inner) for inner in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def build_summary(episodes: Sequence[Episode], checkpoint: str, seed: int) -> dict[str, Any]:
    """The content of summary.json; figures that could not be measured are None."""
    traces = [episode.trace for episode in episodes]
    successes = sum(episode.success for episode in episodes)
    per_instruction: dict[str, dict[str, Any]] = {}
    for episode in episodes:
        row = per_instruction.setdefault(
            episode.instruction, {"episodes": 0, "successes": 0, "success_rate": 0.0}
        )
        row["episodes"] += 1
        row["successes"] += int(episode.success)
        row["success_rate"] = row["successes"] / row["episodes"]
    squares: list[float] = []
    weights: list[int] = []
    for episode in episodes:
        rms = episode.tracking_rms_rad()
        if np.isfinite(rms):
            squares.append(rms**2)
            weights.append(int(np.sum(np.array(episode.trace.mode) == MODE_TRACK)))
    peaks = [peak for trace in traces for peak in trace.seam_peaks]
    lateness = [value for trace in traces for value in trace.lateness_s]
    age = [value for trace in traces for value in trace.state_age_s]
    execution = [value for trace in traces for value in trace.execution_s]
    latency = [value for episode in episodes for value in episode.latency_s]
    summary = {
        "episodes": len(episodes),
        "success_rate": successes / len(episodes) if episodes else float("nan"),
        "per_instruction": per_instruction,
        "policy_rate_hz": _mean([episode.policy_rate_hz for episode in episodes]),
        "policy_latency_ms": percentiles(latency, 1e3, "p50 p95"),
        "control_rate_hz": _control_rate_hz(episodes),
        "tick_lateness_us": (
            _every_tick_us(episodes, "tick_lateness_us")
            or percentiles(lateness, 1e6, "p50 p99 max")
        ),
        "state_age_us": (
            _every_tick_us(episodes, "state_age_us") or percentiles(age, 1e6, "p50 p99 max")
        ),
        "missed_ticks": sum(trace.missed_ticks[-1] for trace in traces if len(trace)),
        "real_time_factor": _mean([episode.real_time_factor for episode in episodes]),
        "peak_torque_ratio": _largest([v for t in traces for v in t.peak_torque_ratio]),
        "tracking_rms_rad": (
            float(np.sqrt(np.average(squares, weights=weights))) if squares else float("nan")
        ),
        "seam_jump": {
            "position_rad": _largest([peak[0] for peak in peaks]),
            "velocity_rad_s": _largest([peak[1] for peak in peaks]),
            "acceleration_rad_s2": _largest([peak[2] for peak in peaks]),
        },
        "checkpoint": checkpoint,
        "seed": seed,
        # extras
        "successes": successes,
        "success_interval_95": list(wilson_interval(successes, len(episodes))),
        "tick_execution_us": (
            _every_tick_us(episodes, "execution_us") or percentiles(execution, 1e6, "p50 p99 max")
        ),
        "peak_torque_rate_ratio": _largest([v for t in traces for v in t.peak_torque_rate_ratio]),
        "field_age_ms": percentiles(
            [value for episode in episodes for value in episode.field_age_s], 1e3, "p50 p95"
        ),
        "fields": sum(episode.fields for episode in episodes),
        "refused_fields": sum(episode.refused_fields for episode in episodes),
        "slowed_fields": sum(episode.slowed_fields for episode in episodes),
        "simulation_overruns": sum(episode.overruns for episode in episodes),
        "faults": sorted({fault for trace in traces for fault in trace.faults}),
        "runs": [
            {
                "episode": episode.number,
                "instruction": episode.instruction,
                "seed": episode.seed,
                "success": episode.success,
                "outcome": episode.outcome,
                "duration_s": episode.duration_s,
                "fields": episode.fields,
                "policy_rate_hz": episode.policy_rate_hz,
                "tracking_rms_rad": episode.tracking_rms_rad(),
                "real_time_factor": episode.real_time_factor,
            }
            for episode in episodes
        ],
    }
    return _without_nan(summary)


def _number(value: float | None, pattern: str) -> str:
    return "-" if value is None else format(value, pattern)


def format_table(summary: dict[str, Any]) -> str:
    """The summary as the text printed at the end of the demo."""
    lines = [
        " #  result   time  fields   rate    rms      rtf    instruction",
        "--  -------  -----  ------  ------  -------  -----  " + "-" * 32,
    ]
    for run in summary["runs"]:
        lines.append(
            f"{run['episode']:2d}  {'success' if run['success'] else 'FAILED ':7s}  "
            f"{run['duration_s']:4.1f}s  {run['fields']:6d}  "
            f"{_number(run['policy_rate_hz'], '4.1f'):>4s}Hz  "
            f"{_number(run['tracking_rms_rad'], '7.4f'):>7s}  "
            f"{_number(run['real_time_factor'], '5.3f'):>5s}  {run['instruction']}"
            + ("" if run["success"] else f"  ({run['outcome']})")
        )
    latency, seam = summary["policy_latency_ms"], summary["seam_jump"]
    late, age = summary["tick_lateness_us"], summary["state_age_us"]
    low, high = summary["success_interval_95"]
    rows = [
        (
            "success",
            f"{summary['successes']}/{summary['episodes']} = "
            f"{_number(summary['success_rate'], '.0%')} (95 %: {low:.0%} to {high:.0%})",
        ),
        (
            "policy",
            f"{_number(summary['policy_rate_hz'], '.1f')} fields/s, latency p50 "
            f"{_number(latency['p50'], '.0f')} ms, p95 {_number(latency['p95'], '.0f')} ms; "
            f"{summary['refused_fields']} refused, {summary['slowed_fields']} slowed",
        ),
        (
            "control",
            f"{_number(summary['control_rate_hz'], '.0f')} Hz, ticks late by p50 "
            f"{_number(late['p50'], '.0f')} us, p99 {_number(late['p99'], '.0f')} us, max "
            f"{_number(late['max'], '.0f')} us, on states p50 {_number(age['p50'], '.0f')} us, p99 "
            f"{_number(age['p99'], '.0f')} us old; {summary['missed_ticks']} missed",
        ),
        (
            "tracking",
            f"{_number(summary['tracking_rms_rad'], '.4f')} rad rms, torque up to "
            f"{_number(summary['peak_torque_ratio'], '.0%')} of the limit",
        ),
        (
            "seams",
            f"{_number(seam['position_rad'], '.1e')} rad, "
            f"{_number(seam['velocity_rad_s'], '.1e')} rad/s, "
            f"{_number(seam['acceleration_rad_s2'], '.1e')} rad/s2",
        ),
        ("real time", f"factor {_number(summary['real_time_factor'], '.3f')}"),
        ("checkpoint", str(summary["checkpoint"])),
    ]
    if summary["faults"]:
        rows.append(("faults", "; ".join(summary["faults"])))
    width = max(len(name) for name, _ in rows)
    return "\n".join([*lines, "", *(f"{name:<{width}}  {text}" for name, text in rows)])
