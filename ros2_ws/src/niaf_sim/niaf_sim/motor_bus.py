"""The simulated arm behind a bus: one emulated motor per joint answers real frames.

Protocol, registers, status and watchdog are those of the emulator, of MIT-mode motors or of moteus
controllers. The motor's own law, kp (p - q) + kd (v - dq) + t, runs once per control period on what
the drive measures (encoder and observer of ``niaf_sim.drive``), and its result goes through the
drive's current loop and torque limit into the physics. A hand that is on the bus takes the
commanded position as its opening.

No ROS and no clock: time advances by ``advance``, frames are taken when ``poll`` is called. The
real-time node and lock-step tests drive the same object.
"""

from __future__ import annotations

from typing import Protocol

import can
import numpy as np

from niaf_impedance.drives.bus_drive import listen_to
from niaf_impedance.drives.description import DriveDescription, make_emulator

FloatArray = np.ndarray

#: motors are switched on by commands that ask for nothing: zero, or half a count of an MIT frame
_ASKED_NM = 0.1
#: frames taken in one poll at most: a flooded bus must not stop the physics
_MOST_FRAMES = 64


class ArmCell(Protocol):
    """What the motors see of a cell: measured state [n] and the torque that flows."""

    @property
    def q(self) -> FloatArray: ...
    @property
    def dq(self) -> FloatArray: ...
    @property
    def torque_nm(self) -> FloatArray: ...
    @property
    def gripper_width_m(self) -> float: ...


class MotorBus:
    """Motors of one simulated arm.

    Attributes:
        emulator: state machines of the motors, for tests that inject faults.
        frames: frames that were answered.
    """

    def __init__(
        self, cell: ArmCell, description: DriveDescription, damping_nms: FloatArray
    ) -> None:
        """Bind one motor to every joint, the last one to the hand if there is a gripper.

        Args:
            cell: the arm.
            description: its motors: the arm's, in its joint order, then the gripper's.
            damping_nms: damping at the joint after a motor's watchdog expired [n], Nms/rad.
        """
        gripper = self._gripper = description.gripper
        self._cell = cell
        motors = description.drive.joints
        self._n = len(motors) - (gripper is not None)
        if len(damping_nms) != self._n:
            raise ValueError(
                f"{len(damping_nms)} dampings for {self._n} motors of the arm; give one each"
            )
        self._now_s = 0.0
        self.frames = 0
        self.emulator = make_emulator(description, clock=lambda: self._now_s)
        for motor, damping in zip(self.emulator.motors, damping_nms, strict=False):
            motor.damping_nms = motor.joint.map.motor_gain(float(damping))
        self._buses: list[can.BusABC] = []
        self._braked = True
        self._seen = [0] * self._n  # commands each motor had followed when the brakes closed
        self._measure()

    def attach(self, bus: can.BusABC) -> None:
        """Answer on ``bus`` from now on."""
        listen_to(bus, self.emulator.hears)
        self._buses.append(bus)

    def _measure(self) -> None:
        cell, emulator, n = self._cell, self.emulator, self._n
        emulator.q[:n], emulator.dq[:n] = cell.q, cell.dq
        for motor, torque in zip(emulator.motors, cell.torque_nm, strict=False):
            motor.measured_nm = motor.joint.map.motor_torque(float(torque))
        if self._gripper is not None:
            emulator.q[n] = cell.gripper_width_m / self._gripper.width_scale

    def poll(self) -> None:
        """Answer the frames that have arrived, with the state as it is now."""
        self._measure()
        for bus in self._buses:
            for _ in range(_MOST_FRAMES):
                message = bus.recv(0.0)
                if message is None:
                    break
                replies = self.emulator.answer(message)
                for reply in replies:
                    bus.send(reply)
                self.frames += len(replies)

    def command(self) -> tuple[FloatArray | None, float | None]:
        """What the motors do in this period: (torque request [n], opening of the hand, m).

        The torque is None while the holding brakes are closed: from the start, after
        ``close_brakes``, and whenever every motor is off, until all motors are enabled and
        commanded and torque is asked for.
        """
        self._measure()
        motors, n = self.emulator.motors, self._n
        torque = self.emulator.step()[:n]
        if all(motor.off for motor in motors[:n]):
            self.close_brakes()
        if self._braked:
            commanded = all(
                not motor.off and motor.commands > seen
                for motor, seen in zip(motors[:n], self._seen, strict=True)
            )
            self._braked = not (commanded and np.abs(torque).max() > _ASKED_NM)
        if self._braked:
            return None, None
        width = None
        if self._gripper is not None:
            target_rad = motors[n].target_rad
            if target_rad is not None:
                width = motors[n].joint.map.joint_position(target_rad) * self._gripper.width_scale
        return torque, width

    def close_brakes(self) -> None:
        """Hold the arm until every motor got a new command (after the scene was reset)."""
        self._braked = True
        self._seen = [motor.commands for motor in self.emulator.motors[: self._n]]

    def advance(self, dt_s: float) -> None:
        """Let the motors' clock run on, whether the arm is braked or not."""
        self._now_s += dt_s
