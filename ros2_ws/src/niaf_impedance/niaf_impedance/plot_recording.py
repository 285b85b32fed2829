"""Draws what a recording holds of one arm: tracking, torque by term, modes, verdicts, faults; the
tool's error where references moved the tool.

    python -m niaf_impedance.plot_recording recording.mcap --out tracking.png

Reads ``~/state`` and ``~/admission`` of the impedance node; a journal is not needed.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from niaf_impedance.admission import Verdict
from niaf_impedance.faults import Fault, Mode
from niaf_impedance.replay import ReplayError, read_messages

FloatArray = np.ndarray

STATE_TYPE = "niaf_msgs/msg/ImpedanceState"
REPORT_TYPE = "niaf_msgs/msg/AdmissionReport"

#: joints drawn side by side unless they are named
JOINTS = 3

_REFERENCE, _MEASURED, _SEAM = "#1f4e9c", "#e07b00", "#555555"
_MODE_COLOURS = {
    Mode.OFF: "#d9d9d9", Mode.TRACK: "#d8ecd8", Mode.BRAKE: "#fde9b8", Mode.HOLD: "#dbe6f5",
    Mode.DAMP: "#f7cfc6", Mode.ESTOP: "#e5a39b",
}
_VERDICTS = {
    Verdict.ACCEPTED: ("#3a7d44", "^", "accepted"),
    Verdict.SLOWED: ("#c98a00", "D", "slowed"),
    Verdict.REFUSED: ("#b3261e", "x", "refused"),
}
_AXES = (("x", "#c0392b"), ("y", "#3a7d44"), ("z", "#1f4e9c"))
_TERMS = (
    ("gravity", "#8a8a8a"), ("stiffness", "#2a9df4"), ("damping", "#d62976"),
    ("inertia", "#8e44ad"), ("friction", "#3a7d44"), ("posture", "#b8860b"),
)


@dataclass
class Trace:
    """States of one arm: time_s [K] since its first, arrays [K, n]; reports (time_s, verdict).

    tool_error [K, 6] in m and rad; None where the references moved the joints.
    """

    joints: tuple[str, ...]
    time_s: FloatArray
    mode: FloatArray
    fault: FloatArray
    sequence: FloatArray
    arrays: dict[str, FloatArray]
    tool_error: FloatArray | None = None
    reports: list[tuple[float, Verdict, str]] = field(default_factory=list)

    def __getitem__(self, name: str) -> FloatArray:
        return self.arrays[name]

    def spans(self, values: FloatArray) -> list[tuple[float, float, int]]:
        """(start_s, end_s, value) of every stretch of equal values."""
        edges = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
        last = self.time_s[-1]
        return [
            (float(self.time_s[a]), float(self.time_s[b] if b < len(values) else last),
             int(values[a]))
            for a, b in zip(edges, edges[1:], strict=False)
        ]

    def hand_overs(self) -> list[float]:
        """Times at which another reference came into force, s."""
        changed = (np.diff(self.sequence) != 0) & (self.sequence[1:] != 0)
        return [float(t) for t in self.time_s[1:][changed]]


_ARRAYS = (
    "reference_position", "measured_position", "reference_velocity", "measured_velocity",
    "torque_command", *(f"torque_{name}" for name, _ in _TERMS),
)


def _stamp_s(message: Any) -> float:
    return float(message.header.stamp.sec + message.header.stamp.nanosec * 1e-9)


def read_trace(path: Path, topic: str = "", from_s: float = 0.0, to_s: float = np.inf) -> Trace:
    """States and reports of one arm between two times after its first state; ReplayError."""
    states: dict[str, list[Any]] = {}
    reports: dict[str, list[Any]] = {}
    for name, kind, _, message in read_messages(path, {STATE_TYPE, REPORT_TYPE}):
        (states if kind == STATE_TYPE else reports).setdefault(name, []).append(message)
    if not states:
        raise ReplayError(f"{path} holds no ImpedanceState; record the node's ~/state topic")
    if topic not in states and (topic or len(states) > 1):
        raise ReplayError(
            f"choose one of the arms with --topic: {', '.join(sorted(states))}"
        )
    topic = topic or next(iter(states))
    messages = states[topic]
    start = _stamp_s(messages[0])
    chosen = [m for m in messages if from_s <= _stamp_s(m) - start <= to_s]
    if len(chosen) < 2:
        end_s = _stamp_s(messages[-1]) - start
        raise ReplayError(f"{len(chosen)} states between these times; the recording of {topic} "
                          f"lasts from 0 to {end_s:.1f} s")
    node = topic.rpartition("/")[0]
    trace = Trace(
        tuple(chosen[0].name),
        np.array([_stamp_s(m) - start for m in chosen]),
        np.array([m.mode for m in chosen]),
        np.array([m.fault for m in chosen]),
        np.array([m.field_sequence for m in chosen]),
        {name: np.array([getattr(m, name) for m in chosen]) for name in _ARRAYS},
        _tool_error(chosen),
    )
    for message in reports.get(f"{node}/admission", []):
        at = _stamp_s(message) - start
        if from_s <= at <= to_s:
            trace.reports.append((at, Verdict(message.verdict), message.reason_text))
    return trace


def _tool_error(messages: list[Any]) -> FloatArray | None:
    """[K, 6]; None unless all states have it (older recordings know nothing of it)."""
    rows = [getattr(message, "tool_error", ()) for message in messages]
    return np.array(rows) if all(len(row) == 6 for row in rows) else None


def busiest(trace: Trace, count: int = JOINTS) -> list[int]:
    """Indices of the joints that moved most, in joint order."""
    order = np.argsort(np.ptp(trace["measured_position"], axis=0))[::-1]
    return sorted(int(j) for j in order[:count])


def _strip(axis: Axes, trace: Trace) -> None:
    """Modes, verdicts and faults along time."""
    modes = trace.spans(trace.mode)
    total = trace.time_s[-1] - trace.time_s[0]
    for start, end, mode in modes:
        axis.axvspan(start, end, color=_MODE_COLOURS[Mode(mode)], lw=0)
        if end - start > 0.04 * total:
            axis.text(0.5 * (start + end), 0.78, Mode(mode).name, ha="center", va="center",
                      fontsize=8)
    for at, verdict, _ in trace.reports:
        colour, marker, _ = _VERDICTS[verdict]
        axis.plot(at, 0.35, marker=marker, color=colour, ms=5, ls="none")
    for start, _, fault in trace.spans(trace.fault):
        if fault:
            axis.axvline(start, color="#b3261e", lw=1.5)
            right = start > trace.time_s[0] + 0.75 * total
            name = Fault(fault).name if fault in set(Fault) else "fault"
            axis.annotate(
                f"{fault} {name}", (start, 0.08), xytext=(-3 if right else 3, 0),
                textcoords="offset points", fontsize=7, color="#b3261e",
                ha="right" if right else "left",
            )
    axis.set(ylim=(0.0, 1.0), yticks=[], xlim=(trace.time_s[0], trace.time_s[-1]))
    axis.tick_params(labelbottom=False)
    shown = [Mode(mode) for mode in sorted({mode for _, _, mode in modes})]
    handles: list[Any] = [Patch(color=_MODE_COLOURS[mode], label=mode.name) for mode in shown]
    for verdict, (colour, marker, label) in _VERDICTS.items():
        count = sum(1 for _, v, _ in trace.reports if v == verdict)
        if count:
            handles.append(Line2D([], [], color=colour, marker=marker, ls="none",
                                  label=f"{label} ({count})"))
    axis.legend(handles=handles, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncol=len(handles),
                fontsize=8, frameon=False, borderaxespad=0.2)


def _panels(axes: list[Axes], trace: Trace, joint: int) -> None:
    """Position, velocity, tracking error and torque by term of one joint."""
    t = trace.time_s
    position, velocity, error, torque = axes
    for axis, what in ((position, "position"), (velocity, "velocity")):
        axis.plot(t, trace[f"reference_{what}"][:, joint], color=_REFERENCE, lw=2.0,
                  alpha=0.75)
        axis.plot(t, trace[f"measured_{what}"][:, joint], color=_MEASURED, lw=1.0)
    difference = trace["reference_position"] - trace["measured_position"]
    error.plot(t, 1e3 * difference[:, joint], color=_MEASURED, lw=1.0)
    error.axhline(0.0, color="#999999", lw=0.6)
    torque.plot(t, trace["torque_command"][:, joint], color="black", lw=1.8)
    for name, colour in _TERMS:
        values = trace[f"torque_{name}"][:, joint]
        if values.any():
            torque.plot(t, values, color=colour, lw=0.9)
    position.set_title(trace.joints[joint], fontsize=10, loc="left")
    for axis in axes:
        _mark_time(axis, trace)
    torque.set_xlabel("time [s]")


def _tool_panels(axes: list[Axes], trace: Trace) -> None:
    """Position and orientation error of the tool, by axis of the base."""
    error = trace.tool_error
    assert error is not None
    for axis, part, unit, what in (
        (axes[0], error[:, :3], "mm", "tool position error"),
        (axes[1], error[:, 3:], "mrad", "tool orientation error"),
    ):
        for k, (name, colour) in enumerate(_AXES):
            axis.plot(trace.time_s, 1e3 * part[:, k], color=colour, lw=1.0, label=name)
        axis.plot(trace.time_s, 1e3 * np.linalg.norm(part, axis=1), color="black", lw=1.4,
                  label="norm")
        axis.set_title(what, fontsize=10, loc="left")
        axis.set_ylabel(f"[{unit}]")
        axis.legend(loc="upper right", ncol=4, fontsize=7, frameon=False)
        _mark_time(axis, trace)
        axis.tick_params(labelbottom=False)


def _mark_time(axis: Axes, trace: Trace) -> None:
    """Modes other than TRACK as bands, hand-overs as lines."""
    for start, end, mode in trace.spans(trace.mode):
        if mode != Mode.TRACK:
            axis.axvspan(start, end, color=_MODE_COLOURS[Mode(mode)], alpha=0.55, lw=0)
    for seam in trace.hand_overs():
        axis.axvline(seam, color=_SEAM, lw=0.5, ls=":", zorder=0)
    axis.grid(alpha=0.2)
    axis.set_xlim(trace.time_s[0], trace.time_s[-1])


def draw(trace: Trace, joints: list[int], title: str) -> Figure:
    """One column per joint under a strip of modes, verdicts and faults."""
    columns, tool = len(joints), trace.tool_error is not None
    heights = [0.5, *([1.6] if tool else []), 2, 2, 1.3, 2.4]
    figure = Figure(
        figsize=(max(5.4 * columns, 11.0), 1.22 * sum(heights)), layout="constrained")
    grid = figure.add_gridspec(len(heights), columns, height_ratios=heights)
    strip = figure.add_subplot(grid[0, :])
    _strip(strip, trace)
    if tool:
        inner = grid[1, :].subgridspec(1, 2)
        _tool_panels([figure.add_subplot(inner[0, k]) for k in range(2)], trace)
    for column, joint in enumerate(joints):
        axes: list[Axes] = []
        for row in range(4):
            axes.append(figure.add_subplot(grid[len(heights) - 4 + row, column],
                                           sharex=axes[0] if axes else None))
        _panels(axes, trace, joint)
        for axis in axes[:-1]:
            axis.tick_params(labelbottom=False)
        if column == 0:
            labels = ("position [rad]", "velocity [rad/s]", "error [mrad]", "torque [Nm]")
            for axis, label in zip(axes, labels, strict=True):
                axis.set_ylabel(label)
    handles = [
        Line2D([], [], color=_REFERENCE, lw=2.0, alpha=0.75, label="reference"),
        Line2D([], [], color=_MEASURED, lw=1.0, label="measured"),
        Line2D([], [], color=_SEAM, lw=0.8, ls=":", label="hand-over"),
        Line2D([], [], color="black", lw=1.8, label="torque command"),
        *(Line2D([], [], color=colour, lw=1.2, label=name) for name, colour in _TERMS
          if trace[f"torque_{name}"].any()),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncol=len(handles), fontsize=8,
                  frameon=False)
    figure.suptitle(title, fontsize=11)
    return figure


def _joint_index(trace: Trace, text: str) -> int:
    """A joint by name or by its number from 1."""
    if text in trace.joints:
        return trace.joints.index(text)
    if text.isdigit() and 1 <= int(text) <= len(trace.joints):
        return int(text) - 1
    raise ReplayError(f"no joint {text!r}; joints 1 to {len(trace.joints)} are "
                      f"{', '.join(trace.joints)}")


def main(arguments: list[str] | None = None) -> int:
    """Exit code 2 when the recording cannot be drawn."""
    parser = argparse.ArgumentParser(
        prog="python -m niaf_impedance.plot_recording",
        description="Draw tracking, torque by term, modes, verdicts and faults of a recording.",
    )
    parser.add_argument("recording", type=Path, help="MCAP file, or folder of a bag")
    parser.add_argument("--out", type=Path, required=True, help="picture to write")
    parser.add_argument("--joint", action="append", default=[],
                        help=f"joint name, or number from 1; may be repeated; by default the "
                        f"{JOINTS} that moved most")
    parser.add_argument("--topic", default="", help="state topic, if there are several arms")
    parser.add_argument("--from-s", type=float, default=0.0, help="after the first state")
    parser.add_argument("--to-s", type=float, default=np.inf)
    options = parser.parse_args(arguments)
    try:
        trace = read_trace(options.recording, options.topic, options.from_s, options.to_s)
        joints = [_joint_index(trace, text) for text in options.joint] or busiest(trace)
        figure = draw(trace, joints, options.recording.name)
        figure.savefig(options.out, dpi=110)
    except (ReplayError, OSError, ValueError) as error:
        print(f"plot_recording: {error}", file=sys.stderr)
        return 2
    faults = sum(1 for *_, fault in trace.spans(trace.fault) if fault)
    print(f"{options.out}: {len(trace.time_s)} states, {len(trace.hand_overs())} hand-overs, "
          f"{len(trace.reports)} verdicts, {faults} faults")
    return 0


if __name__ == "__main__":
    sys.exit(main())
