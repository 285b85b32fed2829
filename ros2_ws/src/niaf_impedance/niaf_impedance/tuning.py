"""What an operator may change while the arm runs: gains, friction, torque limits, with ranges.

Values are per joint in the order of the robot description [n], or global. Ranges come from the
description; whether the damping suits the loop is checked by ``ImpedanceController.check_tuning``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from niaf_impedance.robot_config import AxisGains, GainRange, RobotConfig

#: values along or about three axes
Axes = tuple[float, float, float]
_NO_AXES: Axes = (0.0, 0.0, 0.0)

#: ranges of the global values: (minimum, maximum)
STIFFNESS_SCALE = (0.0, 2.0)
DAMPING_RATIO = (0.0, 2.0)
FRICTION_SCALE = (0.0, 1.2)
ERROR_CLIP_RAD = (0.0, 1.0)
#: per-joint friction may be set up to this multiple of the described value (at least 1 unit)
FRICTION_RANGE = 2.0
#: per-joint torque limit: at least this share of the described one, so that the arm can be held
TORQUE_LIMIT_SHARE = 0.1


@dataclass(frozen=True)
class Tuning:
    """kp Nm/rad, kd Nm s/rad, coulomb_nm, viscous_nms_rad, torque_limit_nm: one value per joint.

    stiffness_scale multiplies every kp (the product stays inside the joint's range).
    damping_ratio: 0 uses kd as set; above, kd_i = 2 ratio sqrt(kp_i M_ii(q)) with the inertia of
    the present pose, inside the joint's range of kd. error_clip_rad: largest position error that
    the stiffness acts on, so that a blocked arm pushes with at most kp times clip; 0: no clip.
    friction_scale: share of the friction that is compensated (above 1 it would drive the joint).
    tool_*: Cartesian impedance, for references that move the tool, per axis (x y z, rx ry rz) of
    the base or the tool as the description says; zero where it has no section ``cartesian``.
    stiffness_scale multiplies its stiffness as well.
    """

    kp: tuple[float, ...]
    kd: tuple[float, ...]
    coulomb_nm: tuple[float, ...]
    viscous_nms_rad: tuple[float, ...]
    torque_limit_nm: tuple[float, ...]
    stiffness_scale: float = 1.0
    damping_ratio: float = 0.0
    error_clip_rad: float = 0.0
    friction_scale: float = 0.8
    tool_stiffness_n_m: Axes = _NO_AXES
    tool_stiffness_nm_rad: Axes = _NO_AXES
    tool_damping_ns_m: Axes = _NO_AXES
    tool_damping_nms_rad: Axes = _NO_AXES
    tool_null_stiffness_nm_rad: float = 0.0
    tool_null_damping_nms_rad: float = 0.0

    @staticmethod
    def of(robot: RobotConfig) -> Tuning:
        """The defaults of the robot description."""
        joints = robot.joints
        tool: dict[str, Any] = {
            f"tool_{name}": gain.default
            for name, gain in (tool_gains(robot) | axis_gains(robot)).items()
        }
        return Tuning(
            kp=tuple(joint.kp.default for joint in joints),
            kd=tuple(joint.kd.default for joint in joints),
            coulomb_nm=tuple(joint.coulomb_nm for joint in joints),
            viscous_nms_rad=tuple(joint.viscous_nms_rad for joint in joints),
            torque_limit_nm=tuple(joint.torque_limit_nm for joint in joints),
            **tool,
        )

    def effective_kp(self, robot: RobotConfig) -> tuple[float, ...]:
        """kp times the stiffness scale, inside each joint's range."""
        return tuple(
            min(max(kp * self.stiffness_scale, joint.kp.minimum), joint.kp.maximum)
            for kp, joint in zip(self.kp, robot.joints, strict=True)
        )

    def effective_tool_stiffness(self, robot: RobotConfig) -> tuple[float, ...]:
        """Cartesian stiffness x y z (N/m) rx ry rz (Nm/rad) times the stiffness scale, inside its
        ranges."""
        gains = axis_gains(robot)
        return tuple(
            min(max(value * self.stiffness_scale, gains[name].minimum), gains[name].maximum)
            for name, values in (("stiffness_n_m", self.tool_stiffness_n_m),
                                 ("stiffness_nm_rad", self.tool_stiffness_nm_rad))
            for value in values
        )

    def outside_ranges(self, robot: RobotConfig) -> str:
        """The first value outside its range, by parameter name; empty when all are inside."""
        for name, values, ranges in per_joint(self, robot):
            if len(values) != len(robot.joints):
                return f"{name.split('.')[-1]} needs {len(robot.joints)} values, got {len(values)}"
            for joint, value, (low, high) in zip(robot.joints, values, ranges, strict=True):
                if not low <= value <= high:
                    return (
                        f"{name.format(joint=joint.name)} = {value:g} is outside "
                        f"[{low:g}, {high:g}]; choose a value inside"
                    )
        for name, axes, triple, limits in per_axis(self, robot):
            if len(triple) != len(axes):
                return f"{name.split('.')[-1]} needs {len(axes)} values, got {len(triple)}"
            for axis, value in zip(axes, triple, strict=True):
                if not limits[0] <= value <= limits[1]:
                    return (
                        f"{name.format(axis=axis)} = {value:g} is outside "
                        f"[{limits[0]:g}, {limits[1]:g}]; choose a value inside"
                    )
        for name, value, (low, high) in (
            ("stiffness_scale", self.stiffness_scale, STIFFNESS_SCALE),
            ("damping_ratio", self.damping_ratio, DAMPING_RATIO),
            ("error_clip_rad", self.error_clip_rad, ERROR_CLIP_RAD),
            ("friction_scale", self.friction_scale, FRICTION_SCALE),
            *((f"cartesian.{name}", getattr(self, f"tool_{name}"), (gain.minimum, gain.maximum))
              for name, gain in tool_gains(robot).items()),
        ):
            if not low <= value <= high:
                return f"{name} = {value:g} is outside [{low:g}, {high:g}]; choose a value inside"
        if self.error_clip_rad > 0.0:
            for joint, kp, limit in zip(
                robot.joints, self.effective_kp(robot), self.torque_limit_nm, strict=True
            ):
                if kp * self.error_clip_rad > limit:
                    return (
                        f"{joint.name}: stiffness {kp:g} Nm/rad times error_clip_rad "
                        f"{self.error_clip_rad:g} is {kp * self.error_clip_rad:.1f} Nm, above the "
                        f"torque limit {limit:g} Nm: the clip would never act; lower "
                        f"error_clip_rad to {limit / kp:.3f} or kp"
                    )
        return ""


Range = tuple[float, float]

#: Cartesian gains: name in the description and of the parameter ``cartesian.<name>``
TOOL_GAINS = ("null_stiffness_nm_rad", "null_damping_nms_rad")
#: those along or about axes: name, and the axes of the parameters ``cartesian.<axis>.<name>``
AXIS_GAINS = {
    "stiffness_n_m": ("x", "y", "z"), "stiffness_nm_rad": ("rx", "ry", "rz"),
    "damping_ns_m": ("x", "y", "z"), "damping_nms_rad": ("rx", "ry", "rz"),
}


def tool_gains(robot: RobotConfig) -> dict[str, GainRange]:
    """The Cartesian gains of the description; none without its section ``cartesian``."""
    if robot.cartesian is None:
        return {}
    return {name: getattr(robot.cartesian, name) for name in TOOL_GAINS}


def axis_gains(robot: RobotConfig) -> dict[str, AxisGains]:
    """The Cartesian gains per axis; none without the description's section ``cartesian``."""
    if robot.cartesian is None:
        return {}
    return {name: getattr(robot.cartesian, name) for name in AXIS_GAINS}


def per_axis(
    tuning: Tuning, robot: RobotConfig
) -> list[tuple[str, tuple[str, ...], Axes, Range]]:
    """(parameter name with {axis}, axes, values, range) of every value per axis of the tool."""
    return [
        (f"cartesian.{{axis}}.{name}", AXIS_GAINS[name], getattr(tuning, f"tool_{name}"),
         (gains.minimum, gains.maximum))
        for name, gains in axis_gains(robot).items()
    ]


def friction_range(described: float) -> Range:
    """Range of one friction value around the described one."""
    return 0.0, max(FRICTION_RANGE * described, 1.0)


def per_joint(
    tuning: Tuning, robot: RobotConfig
) -> list[tuple[str, tuple[float, ...], list[Range]]]:
    """(parameter name with {joint}, values, range per joint) of every per-joint value."""
    joints = robot.joints
    return [
        ("gains.{joint}.kp", tuning.kp, [(j.kp.minimum, j.kp.maximum) for j in joints]),
        ("gains.{joint}.kd", tuning.kd, [(j.kd.minimum, j.kd.maximum) for j in joints]),
        ("friction.{joint}.coulomb_nm", tuning.coulomb_nm,
         [friction_range(j.coulomb_nm) for j in joints]),
        ("friction.{joint}.viscous_nms_rad", tuning.viscous_nms_rad,
         [friction_range(j.viscous_nms_rad) for j in joints]),
        ("limits.{joint}.torque_nm", tuning.torque_limit_nm,
         [(TORQUE_LIMIT_SHARE * j.torque_limit_nm, j.torque_limit_nm) for j in joints]),
    ]

