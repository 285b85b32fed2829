"""From motor coordinates to joint coordinates and back: direction, gear, offset."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class JointMap:
    """``q_joint = direction * q_motor / gear + offset_rad``.

    Power is the same on both sides, so torque scales inversely to velocity and gains by gear².

    Attributes:
        direction: +1 or -1.
        gear: turns of the motor's output per turn of the joint, for gears, belts or levers
            *outside* the motor (its own gearbox is inside its units), > 0.
        offset_rad: joint angle at the motor's zero.
    """

    direction: int = 1
    gear: float = 1.0
    offset_rad: float = 0.0

    def __post_init__(self) -> None:
        if self.direction not in (1, -1):
            raise ValueError(f"direction is {self.direction!r}, must be 1 or -1")
        if not (math.isfinite(self.gear) and self.gear > 0.0):
            raise ValueError(f"gear is {self.gear!r}, must be finite and > 0 (see direction)")
        if not math.isfinite(self.offset_rad):
            raise ValueError(f"offset_rad is {self.offset_rad!r}, must be finite")

    def joint_position(self, motor_rad: float) -> float:
        """Motor angle to joint angle, rad."""
        return self.direction * motor_rad / self.gear + self.offset_rad

    def motor_position(self, joint_rad: float) -> float:
        """Joint angle to motor angle, rad."""
        return self.direction * (joint_rad - self.offset_rad) * self.gear

    def joint_velocity(self, motor_rad_s: float) -> float:
        """Motor velocity to joint velocity, rad/s."""
        return self.direction * motor_rad_s / self.gear

    def motor_velocity(self, joint_rad_s: float) -> float:
        """Joint velocity to motor velocity, rad/s."""
        return self.direction * joint_rad_s * self.gear

    def joint_torque(self, motor_nm: float) -> float:
        """Motor torque to joint torque, Nm."""
        return self.direction * motor_nm * self.gear

    def motor_torque(self, joint_nm: float) -> float:
        """Joint torque to motor torque, Nm."""
        return self.direction * joint_nm / self.gear

    def joint_gain(self, motor_gain: float) -> float:
        """Stiffness or damping at the motor to the same at the joint."""
        return motor_gain * self.gear * self.gear

    def motor_gain(self, joint_gain: float) -> float:
        """Stiffness or damping at the joint to the same at the motor."""
        return joint_gain / (self.gear * self.gear)
