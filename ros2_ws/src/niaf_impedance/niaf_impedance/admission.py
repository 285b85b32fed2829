"""Verdict on a new reference, before it moves a motor.

Checked off the tick and in one batch over the whole remaining window, on the motion that would be
commanded: blended with what runs now and braked at the end.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

FloatArray = np.ndarray


class Verdict(IntEnum):
    """Numbers as in AdmissionReport.msg."""

    ACCEPTED = 0
    SLOWED = 1
    REFUSED = 2


class Reason(IntEnum):
    """Why the controller refused a reference.

    Numbers below 100 belong to ``niaf_field``'s message check; part of the message contract.
    """

    NONE = 0
    NOT_FOLLOWING = 100
    UNKNOWN_KIND = 101
    CHANNEL_MISMATCH = 102
    PRIOR_MISMATCH = 103
    NOT_FINITE = 104
    STARTS_TOO_LATE = 105
    EXHAUSTED = 106
    OUT_OF_ORDER = 107
    TOO_LONG = 108
    BAD_TRAJECTORY = 109
    SEAM_POSITION = 110
    SEAM_VELOCITY = 111
    POSITION_LIMIT = 120
    VELOCITY_LIMIT = 121
    ACCELERATION_LIMIT = 122
    TORQUE_LIMIT = 123
    JERK_LIMIT = 124
    WORKSPACE = 125
    TORQUE_RATE_LIMIT = 126
    UNREACHABLE = 127
    SINGULAR = 128
    DEACTIVATING = 130
    OVERTAKEN = 131
    SUPERSEDED = 132
    CLOCK_SKEW = 133
    NO_POSE = 134
    LOOP_LATE = 135


REASON_TEXT: dict[Reason, tuple[str, str]] = {  # what was wrong, what to do
    Reason.NOT_FOLLOWING: ("the controller is off, damping or stopped", "activate or ~/reset it"),
    Reason.UNKNOWN_KIND: ("the message is no reference", "send an ActionField or JointTrajectory"),
    Reason.CHANNEL_MISMATCH: ("its channels are not this arm's",
                              "send the arm's joints, then optionally the gripper"),
    Reason.PRIOR_MISMATCH: ("it belongs to another prior",
                            "give policy and controller the same checkpoint"),
    Reason.NOT_FINITE: ("it has a NaN or infinite value somewhere in its window",
                        "look at the policy's inputs and weights"),
    Reason.STARTS_TOO_LATE: ("it starts too far ahead", "synchronise the clocks"),
    Reason.EXHAUSTED: ("it is over, or nearly", "infer faster or train a longer horizon"),
    Reason.OUT_OF_ORDER: ("a reference for a newer observation is in force", "none needed"),
    Reason.TOO_LONG: ("the spline has too many pieces", "send fewer points, or in parts"),
    Reason.BAD_TRAJECTORY: ("the trajectory contradicts itself or the arm",
                            "correct what the text names"),
    Reason.SEAM_POSITION: ("it begins too far from where the arm is commanded to be",
                           "anchor it to the measured pose; look for an old observation"),
    Reason.SEAM_VELOCITY: ("its speed at the hand-over is too different", "as above"),
    Reason.POSITION_LIMIT: ("a joint would leave its range", "replan inside it"),
    Reason.VELOCITY_LIMIT: ("a joint would be too fast, even slowed", "replan more slowly"),
    Reason.ACCELERATION_LIMIT: ("a joint would accelerate too hard, even slowed",
                                "replan more smoothly"),
    Reason.TORQUE_LIMIT: ("the motion would need more torque than a joint has",
                          "replan; check payload and limits"),
    Reason.JERK_LIMIT: ("a joint would jerk too hard, even slowed", "replan more smoothly"),
    Reason.WORKSPACE: ("the tool would leave its box", "replan inside it"),
    Reason.TORQUE_RATE_LIMIT: ("the torque would have to change faster than it may",
                               "replan more smoothly"),
    Reason.UNREACHABLE: ("the arm cannot bring its tool there", "replan within reach"),
    Reason.SINGULAR: ("the arm would come too close to a singular pose", "replan around it"),
    Reason.DEACTIVATING: ("the controller is on its way to OFF", "activate it again"),
    Reason.OVERTAKEN: ("the controller went on while it was judged, several times",
                       "raise handover_lead_s; relieve the CPU"),
    Reason.SUPERSEDED: ("a newer reference arrived before it was judged", "send fewer"),
    Reason.CLOCK_SKEW: ("the sender's clock and this one differ too much",
                        "synchronise the machines (chrony, PTP)"),
    Reason.LOOP_LATE: ("the loop is late for much of its periods: no new motion begins",
                       "relieve the CPU; grant real-time priority"),
    Reason.NO_POSE: ("no pose was measured at its observation time, and anchor is measured",
                     "synchronise the clocks of cameras and drives"),
}


def render_markdown() -> str:
    """The reasons as a Markdown table, for docs."""
    rows = ["| number | name | what was wrong | what to do |", "|--:|---|---|---|"]
    for reason, (wrong, remedy) in REASON_TEXT.items():
        rows.append(f"| {int(reason)} | {reason.name} | {wrong} | {remedy} |")
    return "\n".join(rows) + "\n"


def _empty() -> FloatArray:
    return np.zeros(0)


@dataclass(frozen=True)
class AdmissionVerdict:
    """Verdict with its figures.

    ``instant_s`` and ``joint`` say where the worst (refusing) value is; ``text`` says it in a
    sentence. ``time_scale`` below 1: the reference runs that much slower than it was sent. Ratios
    are peak over limit (jerk and tool box only where the arm's description limits them). ``seam_*``
    is new reference minus current reference at the hand-over, per joint (the step that the blend
    takes out); of references that move the tool six values, x y z in metres, then a rotation vector
    (rad). ``age_s`` is the age of the observation, ``consumed_fraction`` the share of the reference
    that is already over, ``blend_s`` the duration of the hand-over that was chosen.
    """

    verdict: Verdict
    reason: Reason = Reason.NONE
    text: str = ""
    sequence: int = 0
    joint: str = ""
    instant_s: float = 0.0
    time_scale: float = 1.0
    position_ratio: float = 0.0
    velocity_ratio: float = 0.0
    acceleration_ratio: float = 0.0
    torque_ratio: float = 0.0
    jerk_ratio: float = 0.0
    workspace_ratio: float = 0.0
    torque_rate_ratio: float = 0.0
    seam_position_rad: FloatArray = field(default_factory=_empty)
    seam_velocity_rad_s: FloatArray = field(default_factory=_empty)
    seam_acceleration_rad_s2: FloatArray = field(default_factory=_empty)
    age_s: float = 0.0
    consumed_fraction: float = 0.0
    blend_s: float = 0.0

    @property
    def accepted(self) -> bool:
        return self.verdict != Verdict.REFUSED
