"""Settings of the controller that do not belong to one arm."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from niaf_impedance import tick as k

FEEDFORWARD = {"gravity": k.FF_GRAVITY, "nonlinear": k.FF_NONLINEAR, "full": k.FF_FULL}


class ControllerConfigError(ValueError):
    """A setting that the controller cannot run with; names setting, value and remedy."""


@dataclass(frozen=True)
class ControllerConfig:
    """Settings of the controller that do not belong to one arm.

    feedforward: 'gravity' (at the measured pose), 'nonlinear' (adds Coriolis and centrifugal
    torque) or 'full' (adds inertia times reference acceleration, rotor inertia included).

    brake_s is the shortest duration of braking; it is lengthened up to brake_max_s to respect the
    acceleration limits. bridge_s: time in which a motion that has to be left comes to rest under
    the blend. damp_gravity: in DAMP and ESTOP the arm's weight is still carried, so that it sinks
    neither onto the work nor onto a hand; switch it off only for an arm whose model or mounting is
    in doubt, for then the weight comes down against the damping. admit_*_ratio: largest peak over
    limit that admission lets through; accelerations may pass the maker's planning limit for an
    instant (a blend does), torque may not. slow_min_scale: how far admission may stretch a
    reference that is too fast, as a share of its speed; 1 refuses it instead. velocity_filter_s:
    time constant of the first-order filter on the velocity that damping sees, which then acts that
    much later; 0 for drives that filter themselves. frozen_*_rad: a joint whose reading does not
    change in any bit while its reference (beyond what friction explains) or the integral of its
    measured velocity goes that far is a fault; 0 does not check.

    ``*_tool_*``: the limits of the same name without "tool", for references that move the tool.
    """

    feedforward: str = "full"
    coulomb_speed_rad_s: float = 0.03
    blend_s: float = 0.15
    blend_max_s: float = 0.40
    brake_s: float = 0.30
    brake_max_s: float = 1.0
    bridge_s: float = 0.30
    gain_ramp_s: float = 0.5
    deactivate_s: float = 0.3
    state_timeout_s: float = 0.02
    dt_max_s: float = 0.005
    clock_tolerance_ticks: int = 20
    jump_margin_rad: float = 0.05
    frozen_reference_rad: float = 0.03
    frozen_motion_rad: float = 0.015
    overspeed_ratio: float = 1.5
    tracking_error_limit_rad: float = 0.5
    tracking_tool_limit_m: float = 0.15
    tracking_tool_limit_rad: float = 0.8
    standstill_rad_s: float = 0.05
    damp_gravity: bool = True
    velocity_filter_s: float = 0.0
    admission_samples: int = 96
    admit_velocity_ratio: float = 1.0
    admit_acceleration_ratio: float = 3.0
    admit_torque_ratio: float = 1.0
    admit_torque_rate_ratio: float = 1.0
    seam_position_limit_rad: float = 0.35
    seam_velocity_limit_rad_s: float = 2.0
    seam_tool_position_limit_m: float = 0.10
    seam_tool_rotation_limit_rad: float = 0.5
    seam_tool_velocity_limit_m_s: float = 1.0
    seam_tool_velocity_limit_rad_s: float = 2.0
    start_ahead_s: float = 0.5
    min_remaining_s: float = 0.02
    slow_min_scale: float = 0.2

    def __post_init__(self) -> None:
        if self.feedforward not in FEEDFORWARD:
            raise ControllerConfigError(
                f"feedforward is {self.feedforward!r}; use one of {sorted(FEEDFORWARD)}"
            )
        zero_allowed = {
            "frozen_motion_rad", "frozen_reference_rad", "jump_margin_rad", "min_remaining_s",
            "start_ahead_s", "velocity_filter_s",
        }
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, (str, bool)):
                continue
            bad = not math.isfinite(value) or value < 0.0
            if bad or (value == 0.0 and entry.name not in zero_allowed):
                raise ControllerConfigError(
                    f"{entry.name} is {value!r}; it must be finite and positive"
                )
        if self.admission_samples < 8:
            raise ControllerConfigError(
                f"admission_samples is {self.admission_samples}; it must be at least 8"
            )
        if self.slow_min_scale > 1.0:
            raise ControllerConfigError(
                f"slow_min_scale is {self.slow_min_scale:g}; it is a share of the speed, at most 1"
            )
