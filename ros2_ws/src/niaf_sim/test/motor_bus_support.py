"""Cell, motors and host loop on one virtual bus, in lock-step: time passes only when pumped."""

from __future__ import annotations

import uuid
from dataclasses import replace

import can
import numpy as np

from niaf_impedance import ControllerConfig, ImpedanceController
from niaf_impedance.drives.bus_loop import BusLoop
from niaf_impedance.drives.description import MIT_CAN, drives_of_arm, make_drive
from niaf_impedance.drives.mit_emulator import EmulatedMotor
from niaf_impedance.drives.moteus_emulator import EmulatedMoteus
from niaf_sim.cell import Cell
from niaf_sim.motor_bus import MotorBus

STEP_S = 0.001


class PumpedBus(can.BusABC):
    """The host's side of a virtual bus: while the host waits for a frame, the arm lives on."""

    def __init__(self, inner: can.BusABC, pump) -> None:
        super().__init__(channel="pumped")
        self.channel_info = "virtual bus in lock-step"
        self._inner, self._pump = inner, pump
        self.cut = False  # nothing gets through any more
        self.error: can.Message | None = None

    def set_filters(self, filters=None) -> None:
        if hasattr(self, "_inner"):
            self._inner.set_filters(filters)

    def send(self, msg: can.Message, timeout: float | None = None) -> None:
        if not self.cut:
            self._inner.send(msg)

    def recv(self, timeout: float | None = None) -> can.Message | None:
        if self.error is not None:
            return self.error
        waited = 0.0
        while True:
            message = None if self.cut else self._inner.recv(0.0)
            if message is not None or waited >= (timeout or 0.0):
                return message
            self._pump()
            waited += STEP_S

    def shutdown(self) -> None:
        super().shutdown()
        self._inner.shutdown()


def break_down(motor: EmulatedMotor | EmulatedMoteus) -> None:
    """The motor reports an electrical fault and lets go."""
    if isinstance(motor, EmulatedMotor):
        motor.inject_status(0xA)
    else:
        motor.inject_fault(33)


class LockStep:
    """Simulated Panda whose motors are driven by frames."""

    def __init__(
        self, arm, cell: Cell, prior=None, loop_changes=None, protocol: str = MIT_CAN,
        **drive_changes,
    ) -> None:
        self.arm, self.cell = arm, cell
        cell.reset(0, "pick up the red cube")
        self.now_s = 0.0
        description = drives_of_arm(protocol, "", arm.joint_names)
        self.description = description
        channel = f"motors-{uuid.uuid4()}"
        # Both sides hear themselves, as on a multicast bus.
        options = {"interface": "virtual", "channel": channel, "receive_own_messages": True}
        self.motor_side = can.Bus(**options)
        self.host_side = PumpedBus(can.Bus(**options), self.pump)
        self.motors = MotorBus(
            cell, description, np.array(cell.drives.config.watchdog_damping_nms)
        )
        self.motors.attach(self.motor_side)
        self.drive = make_drive(
            replace(description, drive=replace(description.drive, **drive_changes)),
            self.host_side, lambda: self.now_s,
        )
        self.controller = ImpedanceController(ControllerConfig(), arm, prior)
        damp = np.array([joint.damp_nms_rad for joint in arm.config.joints])
        self.loop = BusLoop(
            self.drive, self.controller, arm.joint_names, damp,
            replace(description.loop, **(loop_changes or {})), description.gripper,
        )
        self.due_s = 0.0

    def pump(self) -> None:
        """One millisecond of the arm."""
        self.motors.poll()
        torque, width = self.motors.command()
        if torque is not None:
            self.cell.step(torque, width)
        self.motors.advance(STEP_S)
        self.now_s += STEP_S

    def start(self) -> None:
        self.loop.start(self.controller.config.state_timeout_s)
        self.due_s = self.now_s

    def run(self, seconds: float, each=None, late_s: float = 0.0) -> None:
        """Host steps at the loop's rate; every one begins ``late_s`` after its deadline."""
        period = self.loop.config.period_s
        end = self.now_s + seconds
        while self.now_s < end - 1e-9:
            while self.now_s < self.due_s + late_s - 1e-9:
                self.pump()
            self.loop.step(self.due_s, self.now_s)
            if each is not None:
                each()
            self.due_s += period * max(1, int(np.ceil((self.now_s - self.due_s) / period - 1e-6)))

    def silence(self, seconds: float) -> None:
        """The host does nothing."""
        end = self.now_s + seconds
        while self.now_s < end - 1e-9:
            self.pump()

    def close(self) -> None:
        self.host_side.shutdown()
        self.motor_side.shutdown()
