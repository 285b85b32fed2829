"""Pictures of a demo run."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from niaf_sim.summary import Episode

FloatArray = np.ndarray

_REFERENCE, _MEASURED, _TORQUE, _SEAM = "#1f4e9c", "#e07b00", "#3a7d44", "#999999"


def _busiest(episode: Episode, joints: int) -> list[int]:
    """Indices of the joints that moved most, in joint order."""
    measured = np.array(episode.trace.measured_rad)
    order = np.argsort(np.ptp(measured, axis=0))[::-1]
    return sorted(int(k) for k in order[:joints])


def plot_tracking(
    path: str | os.PathLike[str],
    episode: Episode,
    torque_limit_nm: FloatArray,
    joints: int = 3,
) -> None:
    """Reference against measured position and velocity, and torque with its limits, to a PNG.

    The ``joints`` joints that moved most, one column each; grey lines are hand-overs.
    torque_limit_nm[n] in the order of the trace's joints. Raises ValueError without samples.
    """
    trace = episode.trace
    if len(trace) < 2:
        raise ValueError(
            f"episode {episode.number} left {len(trace)} controller states: nothing to plot; "
            "is the impedance node's state topic published?"
        )
    t = np.array(trace.stamp_s) - trace.stamp_s[0]
    seams = trace.seam_times_s() - trace.stamp_s[0]
    reference, measured = np.array(trace.reference_rad), np.array(trace.measured_rad)
    reference_v, measured_v = np.array(trace.reference_rad_s), np.array(trace.measured_rad_s)
    torque = np.array(trace.torque_nm)
    chosen = _busiest(episode, min(joints, measured.shape[1]))

    figure = Figure(figsize=(5.2 * len(chosen), 8.4), layout="constrained")
    axes = figure.subplots(3, len(chosen), sharex=True, squeeze=False)
    for column, k in enumerate(chosen):
        top, middle, bottom = axes[:, column]
        for axis in (top, middle, bottom):
            for seam in seams:
                axis.axvline(seam, color=_SEAM, lw=0.5, alpha=0.55, zorder=0)
            axis.grid(alpha=0.2)
            axis.margins(x=0.0)
        top.plot(t, reference[:, k], color=_REFERENCE, lw=2.2, alpha=0.75, label="reference")
        top.plot(t, measured[:, k], color=_MEASURED, lw=1.1, label="measured")
        middle.plot(t, reference_v[:, k], color=_REFERENCE, lw=2.2, alpha=0.75)
        middle.plot(t, measured_v[:, k], color=_MEASURED, lw=1.0)
        bottom.plot(t, torque[:, k], color=_TORQUE, lw=1.0, label="command")
        limit = float(torque_limit_nm[k])
        bottom.axhline(limit, color="#b00020", lw=1.0, ls="--", label=f"limit ±{limit:.0f} N m")
        bottom.axhline(-limit, color="#b00020", lw=1.0, ls="--")
        bottom.set_ylim(-1.12 * limit, 1.12 * limit)
        error = reference[:, k] - measured[:, k]
        top.set_title(
            f"{trace.joint_names[k]}   (rms error {np.sqrt(np.mean(error**2)) * 1e3:.1f} mrad)",
            fontsize=11,
        )
        bottom.set_xlabel("time [s]")
        bottom.legend(loc="upper right", fontsize=8, framealpha=0.9)
    axes[0, 0].set_ylabel("position [rad]")
    axes[1, 0].set_ylabel("velocity [rad/s]")
    axes[2, 0].set_ylabel("torque [N m]")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    handles.append(Line2D([], [], color=_SEAM, lw=1.0))
    labels.append(f"hand-over to a new field ({len(seams)})")
    axes[0, 0].legend(handles, labels, loc="best", fontsize=8, framealpha=0.9)
    result = "success" if episode.success else f"not done: {episode.outcome}"
    figure.suptitle(
        f"Episode {episode.number}: \u201c{episode.instruction}\u201d \u2014 {result}, "
        f"{episode.fields} action fields at {episode.policy_rate_hz:.1f} Hz",
        fontsize=13,
    )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
