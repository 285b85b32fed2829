"""Emulated MIT-mode motors that answer real frames, for tests and for an arm in simulation.

``MitEmulator`` is attached to arrays that the owner of a plant shares: it reads joint positions and
velocities, and ``step`` writes the torque that the motors apply. It answers frames

* over any python-can bus from a thread of its own (``serve``), or
* in the caller's thread through an ``InProcessBus``: deterministic, for lock-step simulation.

Motor law: ``torque = kp (p_ref - p) + kd (v_ref - v) + t_ff`` with the values *as decoded from the
frame*, limited to TMAX. A motor whose watchdog (register 9) expires goes to status D and damps or
lets go; only command and enable frames feed the watchdog.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import can
import numpy as np

from niaf_impedance.drives import mit_frames as mit
from niaf_impedance.drives.emulation import serving
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


class MitEmulator:
    """Emulated motors of an arm, attached to a plant through shared arrays.

    Attributes:
        motors: the emulated motors, in joint order.
        q, dq: joint positions and velocities [n], read; rad, rad/s.
        tau: joint torque that the motors apply [n], written by ``step``; Nm.
    """

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
        n = len(joints)
        self.motors = [EmulatedMotor(j, watchdog_s, damping_nms) for j in joints]
        self.q = np.zeros(n) if q is None else q
        self.dq = np.zeros(n) if dq is None else dq
        self.tau = np.zeros(n) if tau is None else tau
        self._clock = clock
        self._lock = threading.Lock()

    def handle(self, arbitration_id: int, data: bytes) -> list[tuple[int, bytes]]:
        """Replies (id, data) to one frame."""
        now_s = self._clock()
        replies = []
        addressed = arbitration_id
        if arbitration_id == mit.PARAMETER_ID and len(data) >= 2:
            addressed = data[0] | data[1] << 8
        with self._lock:
            for i, motor in enumerate(self.motors):
                if motor.joint.motor_id != addressed:
                    continue
                m = motor.joint.map
                p = m.motor_position(float(self.q[i]))
                v = m.motor_velocity(float(self.dq[i]))
                motor.torque(now_s, p, v)  # its own fast loop ran since the last frame: watchdog
                reply = motor.receive(arbitration_id, data, now_s, p, v)
                if reply is not None:
                    replies.append((motor.joint.reply_id, reply))
        return replies

    def step(self) -> Floats:
        """Run every motor's loop once at the plant's present state; returns ``tau`` [n], Nm."""
        now_s = self._clock()
        with self._lock:
            for i, motor in enumerate(self.motors):
                m = motor.joint.map
                p = m.motor_position(float(self.q[i]))
                v = m.motor_velocity(float(self.dq[i]))
                self.tau[i] = m.joint_torque(motor.torque(now_s, p, v))
        return self.tau

    @contextmanager
    def serve(self, bus: can.BusABC) -> Iterator[MitEmulator]:
        """Answer frames of ``bus`` from a thread while the context is open."""
        with serving(bus, self.handle, reply_message):
            yield self


class InProcessBus(can.BusABC):
    """A python-can bus whose other end is an emulator in the same thread.

    ``recv`` never waits: what has not been answered when it is called never will be, exactly as a
    deadline that has passed.
    """

    def __init__(self, emulator: MitEmulator) -> None:
        super().__init__(channel="in-process")
        self.channel_info = "in-process bus of emulated motors"
        self._emulator = emulator
        self._queue: deque[can.Message] = deque()
        self._connected = True

    def send(self, msg: can.Message, timeout: float | None = None) -> None:
        """Deliver a frame to the emulator and queue its replies."""
        if not self._connected:
            raise can.CanOperationError("the in-process bus is disconnected")
        for reply_id, data in self._emulator.handle(msg.arbitration_id, bytes(msg.data)):
            self._queue.append(reply_message(reply_id, data, msg))

    def recv(self, timeout: float | None = None) -> can.Message | None:
        """Next reply, or None at once."""
        return self._queue.popleft() if self._queue else None

    def inject(self, message: can.Message) -> None:
        """Queue a frame that no motor sent: noise, an error frame, a stray reply."""
        self._queue.append(message)

    def disconnect(self) -> None:
        """Make every later ``send`` fail."""
        self._connected = False


def reply_message(reply_id: int, data: bytes, request: can.Message) -> can.Message:
    """Frame of a reply, of the request's kind (classic or FD)."""
    return can.Message(
        arbitration_id=reply_id,
        data=data,
        is_extended_id=False,
        is_fd=request.is_fd,
        bitrate_switch=request.bitrate_switch,
    )
