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
