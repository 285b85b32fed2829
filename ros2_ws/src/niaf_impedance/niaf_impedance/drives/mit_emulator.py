"""Emulated MIT-mode motors that answer real frames, for tests and for an arm in simulation.

Motor law: ``torque = kp (p_ref - p) + kd (v_ref - v) + t_ff`` with the values *as decoded from the
frame*, limited to TMAX. A motor whose watchdog (register 9) expires goes to status D and damps or
lets go; only command and enable frames feed the watchdog.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import can

from niaf_impedance.drives import mit_frames as mit
from niaf_impedance.drives.emulation import Emulator
from niaf_impedance.drives.interface import Floats
from niaf_impedance.drives.mit_can import MitJoint

_LOST_COMMUNICATION = 0xD


class EmulatedMotor:
    """State machine of one motor. Fields may be changed by a test to inject faults.

    Attributes:
        registers: values by register number; change one to emulate a wrongly set motor.
        silent: answers nothing (a dead or unplugged motor); its watchdog runs on.
        deaf: hears nothing either.
        drop_replies: number of replies still to be swallowed.
        damping_nms: damping after the watchdog expired, Nms/rad at the motor; 0 lets go.
        measured_nm: torque that replies report; None: what the law asks for. For a plant with a
            current loop of its own.
        frames: frames heard on the motor's own id.
        commands: command frames followed.
    """

    def __init__(
        self,
        joint: MitJoint,
        watchdog_s: float = 0.05,
        damping_nms: float = 0.5,
    ) -> None:
        self.joint = joint
        self.ranges = joint.ranges
        self.status = mit.STATUS_DISABLED
        self.command = mit.MitCommand(0.0, 0.0, 0.0, 0.0, 0.0)
        self.registers: dict[int, float] = {
            mit.Register.TIMEOUT: round(watchdog_s / mit.TIMEOUT_UNIT_S),
            mit.Register.CTRL_MODE: mit.CONTROL_MODE_MIT,
            mit.Register.PMAX: self.ranges.position_rad,
            mit.Register.VMAX: self.ranges.velocity_rad_s,
            mit.Register.TMAX: self.ranges.torque_nm,
            mit.Register.CAN_BAUD: 4,
        }
        self.saved: dict[int, float] = dict(self.registers)
        self.silent = False
        self.deaf = False
        self.drop_replies = 0
        self.damping_nms = damping_nms
        self.zero_rad = 0.0
        self.torque_nm = 0.0
        self.measured_nm: float | None = None
        self.frames = 0
        self.commands = 0
        self._fed_s = math.nan

    @property
    def off(self) -> bool:
        """Switched off: no torque, no fault."""
        return self.status == mit.STATUS_DISABLED

    @property
    def tripped(self) -> bool:
        """Its watchdog expired, and it damps."""
        return self.status == _LOST_COMMUNICATION

    @property
    def target_rad(self) -> float | None:
        """Position that stiffness pulls to; None without."""
        if self.status == mit.STATUS_ENABLED and self.command.kp > 0.0:
            return self.command.position + self.zero_rad
        return None

    def inject_status(self, status: int) -> None:
        """Put the motor into a status (a fault nibble stops its torque until cleared)."""
        self.status = status

    def receive(
        self, arbitration_id: int, data: bytes, now_s: float, p: float, v: float
    ) -> bytes | None:
        """Handle one frame; the reply, if any. p, v: shaft position and velocity, rad, rad/s."""
        if self.deaf or len(data) != 8:
            return None
        if arbitration_id == mit.PARAMETER_ID:
            if data[0] | data[1] << 8 != self.joint.motor_id:
                return None
            reply = self._parameter(data, p, v)
        elif arbitration_id == self.joint.motor_id:
            self.frames += 1
            self._command(data, now_s, p)
            reply = self._state(p, v)
        else:
            return None
        if self.silent:
            return None
        if reply is not None and self.drop_replies > 0:
            self.drop_replies -= 1
            return None
        return reply

    def torque(self, now_s: float, p: float, v: float) -> float:
        """Torque on the shaft now, Nm; also runs the watchdog."""
        timeout_s = self.registers[mit.Register.TIMEOUT] * mit.TIMEOUT_UNIT_S
        if self.status == mit.STATUS_ENABLED and timeout_s and now_s - self._fed_s > timeout_s:
            self.status = _LOST_COMMUNICATION
        if self.status == mit.STATUS_ENABLED:
            c = self.command
            torque = c.kp * (c.position - (p - self.zero_rad)) + c.kd * (c.velocity - v) + c.torque
        elif self.status == _LOST_COMMUNICATION:
            torque = -self.damping_nms * v
        else:
            torque = 0.0
        limit = self.ranges.torque_nm
        self.torque_nm = min(max(torque, -limit), limit)
        return self.torque_nm

    def _command(self, data: bytes, now_s: float, p: float) -> None:
        data = bytes(data)
        if data == mit.ENABLE:
            if self.status == mit.STATUS_DISABLED:
                self.status = mit.STATUS_ENABLED
                self.command = mit.MitCommand(0.0, 0.0, 0.0, 0.0, 0.0)
                self._fed_s = now_s
        elif data == mit.DISABLE:
            if self.status == mit.STATUS_ENABLED:
                self.status = mit.STATUS_DISABLED
        elif data == mit.SET_ZERO:
            self.zero_rad = p
        elif data == mit.CLEAR_ERROR:
            if self.status != mit.STATUS_ENABLED:
                self.status = mit.STATUS_DISABLED
        elif self.status == mit.STATUS_ENABLED:
            self.command = mit.decode_command(self.ranges, data)
            self.commands += 1
            self._fed_s = now_s

    def _parameter(self, data: bytes, p: float, v: float) -> bytes | None:
        operation, register = data[2], data[3]
        if operation == mit.REQUEST_STATE:
            return self._state(p, v)
        if operation == mit.SAVE_REGISTERS:
            self.saved = dict(self.registers)
            return bytes(data)
        if register not in self.registers:
            return None
        if operation == mit.WRITE_REGISTER:
            self.registers[register] = mit.decode_register(data).value
        elif operation != mit.READ_REGISTER:
            return None
        return bytes(data[:4]) + mit.register_bytes(register, self.registers[register])

    def _state(self, p: float, v: float) -> bytes:
        torque = self.torque_nm if self.measured_nm is None else self.measured_nm
        return mit.encode_reply(
            self.ranges, self.joint.motor_id, self.status, p - self.zero_rad, v, torque
        )


class MitEmulator(Emulator[EmulatedMotor]):
    """Emulated MIT-mode motors of an arm; see ``Emulator``."""

    def __init__(
        self,
        joints: Sequence[MitJoint],
        q: Floats | None = None,
        dq: Floats | None = None,
        tau: Floats | None = None,
        watchdog_s: float = 0.05,
        damping_nms: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        motors = [EmulatedMotor(j, watchdog_s, damping_nms) for j in joints]
        hears = {mit.PARAMETER_ID, *(j.motor_id for j in joints)}
        super().__init__(motors, hears, q, dq, tau, clock)

    def _addressed(self, arbitration_id: int, data: bytes) -> int:
        if arbitration_id == mit.PARAMETER_ID and len(data) >= 2:
            return data[0] | data[1] << 8
        return arbitration_id

    def _answer(
        self,
        motor: EmulatedMotor,
        arbitration_id: int,
        data: bytes,
        now_s: float,
        p: float,
        v: float,
    ) -> tuple[int, bytes] | None:
        reply = motor.receive(arbitration_id, data, now_s, p, v)
        return None if reply is None else (motor.joint.reply_id, reply)

    def reply_message(self, reply_id: int, data: bytes, request: can.Message) -> can.Message:
        """Frame of a reply, of the request's kind (classic or FD)."""
        return can.Message(
            arbitration_id=reply_id,
            data=data,
            is_extended_id=False,
            is_fd=request.is_fd,
            bitrate_switch=request.bitrate_switch,
        )
