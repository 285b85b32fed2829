"""Emulated moteus controllers that answer real register frames, for tests.

Frames are taken apart with the library's own ``multiplex.parse_frame``. Emulated: modes stopped,
fault, position and timeout; the position-mode law with scales, torque limit and per-command
watchdog; queries in any resolution; ``conf get`` over the diagnostic channel.
"""

from __future__ import annotations

import io
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import can
import numpy as np
from moteus import Mode, Register
from moteus import multiplex as mp

from niaf_impedance.drives.bus_load import fd_length
from niaf_impedance.drives.emulation import serving
from niaf_impedance.drives.interface import Floats
from niaf_impedance.drives.moteus_drive import TWO_PI, MoteusJoint

_SCALES = {  # int8, int16, int32 units of the registers that are read as other than float32
    Register.POSITION: (0.01, 0.0001, 0.00001),
    Register.VELOCITY: (0.1, 0.00025, 0.00001),
    Register.TORQUE: (0.5, 0.01, 0.001),
    Register.TEMPERATURE: (1.0, 0.1, 0.001),
}


class EmulatedMoteus:
    """One controller. Fields may be changed by a test to inject faults.

    Attributes:
        mode, fault: registers 0 and 15.
        stored: values that ``conf get`` answers.
        silent: hears, but answers nothing.
        registers: values written last, by register.
    """

    def __init__(self, joint: MoteusJoint) -> None:
        self.joint = joint
        self.mode = int(Mode.STOPPED)
        self.fault = 0
        self.silent = False
        self.registers: dict[int, float] = {}
        self.torque_nm = 0.0
        self.temperature_c = 32.0
        self.stored = {
            "servo.pid_position.kp": joint.kp_nm_turn,
            "servo.pid_position.kd": joint.kd_nm_s_turn,
            "servo.timeout_mode": 12.0,
        }
        self._fed_s = math.nan
        self._console = b""
        self._line = b""

    def inject_fault(self, code: int) -> None:
        """Enter fault mode with a code."""
        self.mode, self.fault = int(Mode.FAULT), code

    def torque(self, now_s: float, turns: float, turns_s: float) -> float:
        """Torque on the output now, Nm; also runs the watchdog."""
        get = self.registers.get
        timeout_s = get(Register.COMMAND_TIMEOUT, math.nan)
        if self.mode == Mode.POSITION and now_s - self._fed_s > timeout_s:  # never for NaN
            self.mode = int(Mode.TIMEOUT)
        torque = 0.0
        if self.mode == Mode.POSITION:
            kp_scale = get(Register.COMMAND_KP_SCALE, 1.0)
            kd_scale = min(get(Register.COMMAND_KD_SCALE, 1.0), kp_scale)
            velocity = get(Register.COMMAND_VELOCITY, 0.0)
            reference = get(Register.COMMAND_POSITION, 0.0)
            if math.isnan(reference):
                reference = turns
            else:
                reference += velocity * (now_s - self._fed_s)
            torque = (
                self.joint.kp_nm_turn * kp_scale * (reference - turns)
                + self.joint.kd_nm_s_turn * kd_scale * (velocity - turns_s)
                + get(Register.COMMAND_FEEDFORWARD_TORQUE, 0.0)
            )
            limit = get(Register.COMMAND_POSITION_MAX_TORQUE, math.nan)
            if not math.isnan(limit):
                torque = min(max(torque, -limit), limit)
        elif self.mode == Mode.TIMEOUT:
            torque = -self.joint.kd_nm_s_turn * turns_s
        self.torque_nm = torque
        return torque

    def receive(self, data: bytes, now_s: float, turns: float, turns_s: float) -> bytes:
        """Handle one frame; the reply's payload (empty if nothing was asked)."""
        out = io.BytesIO()
        writer = mp.WriteFrame(out)
        for sub in mp.parse_frame(data):
            if isinstance(sub, mp.RegisterSubframe) and sub.type == mp.SubframeType.WRITE:
                self._write(sub.register, sub.resolution, sub.value, now_s)
            elif isinstance(sub, mp.RegisterSubframe) and sub.type == mp.SubframeType.READ:
                writer.write_int8(mp.REPLY_BASE | sub.resolution << 2 | 1)
                writer.write_varuint(sub.register)
                self._read(writer, sub.register, sub.resolution, turns, turns_s)
            elif isinstance(sub, mp.StreamSubframe):
                self._stream(writer, sub)
        return out.getvalue()

    def _write(self, register: int, resolution: int, value: float, now_s: float) -> None:
        if register == Register.MODE:
            if value == Mode.STOPPED:
                self.mode, self.fault = int(Mode.STOPPED), 0
            elif value == Mode.POSITION and self.mode not in (Mode.FAULT, Mode.TIMEOUT):
                self.mode = int(Mode.POSITION)
                self.registers = {}
                self._fed_s = now_s
        elif resolution == mp.F32:
            self.registers[register] = value

    def _read(
        self, writer: mp.WriteFrame, register: int, resolution: int, turns: float, turns_s: float
    ) -> None:
        values = {
            Register.MODE: self.mode,
            Register.POSITION: turns,
            Register.VELOCITY: turns_s,
            Register.TORQUE: self.torque_nm,
            Register.TEMPERATURE: self.temperature_c,
            Register.FAULT: self.fault,
        }
        value = values.get(Register(register), 0.0)
        scale = _SCALES.get(Register(register), (1.0, 1.0, 1.0))
        writer.write_mapped(value, *scale, resolution)

    def _stream(self, writer: mp.WriteFrame, sub: mp.StreamSubframe) -> None:
        if sub.type == mp.SubframeType.STREAM_CLIENT_TO_SERVER:
            self._line += sub.data
            while b"\n" in self._line:
                line, self._line = self._line.split(b"\n", 1)
                name = line.decode().removeprefix("conf get ").strip()
                value = self.stored.get(name)
                self._console += f"{value:g}\r\n".encode() if value is not None else b"ERR\r\n"
        elif sub.type == mp.SubframeType.STREAM_CLIENT_POLL_SERVER:
            size = min(sub.data[0], len(self._console))
            chunk, self._console = self._console[:size], self._console[size:]
            writer.write_int8(mp.STREAM_SERVER_DATA)
            writer.write_varuint(sub.channel)
            writer.write_varuint(size)
            for byte in chunk:
                writer.write_int8(byte if byte < 128 else byte - 256)


class MoteusEmulator:
    """Emulated controllers of an arm, attached to a plant through shared arrays (as MitEmulator).

    Attributes:
        motors: the emulated controllers, in joint order.
        q, dq: joint positions and velocities [n], read; rad, rad/s.
        tau: joint torque [n], written by ``step``; Nm.
    """

    def __init__(
        self,
        joints: Sequence[MoteusJoint],
        q: Floats | None = None,
        dq: Floats | None = None,
        tau: Floats | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        n = len(joints)
        self.motors = [EmulatedMoteus(j) for j in joints]
        self.q = np.zeros(n) if q is None else q
        self.dq = np.zeros(n) if dq is None else dq
        self.tau = np.zeros(n) if tau is None else tau
        self._clock = clock
        self._lock = threading.Lock()

    def handle(self, arbitration_id: int, data: bytes) -> list[tuple[int, bytes]]:
        """Replies (id, payload) to one frame."""
        destination, source = arbitration_id & 0x7F, arbitration_id >> 8 & 0x7F
        now_s = self._clock()
        replies = []
        with self._lock:
            for i, motor in enumerate(self.motors):
                if motor.joint.motor_id != destination:
                    continue
                turns, turns_s = self._shaft(i)
                motor.torque(now_s, turns, turns_s)
                payload = motor.receive(data, now_s, turns, turns_s)
                if arbitration_id & 0x8000 and payload and not motor.silent:
                    replies.append((motor.joint.motor_id << 8 | source, payload))
        return replies

    def step(self) -> Floats:
        """Run every motor's loop once at the plant's present state; returns ``tau`` [n], Nm."""
        now_s = self._clock()
        with self._lock:
            for i, motor in enumerate(self.motors):
                self.tau[i] = motor.joint.map.joint_torque(motor.torque(now_s, *self._shaft(i)))
        return self.tau

    def _shaft(self, i: int) -> tuple[float, float]:
        m = self.motors[i].joint.map
        turns = m.motor_position(float(self.q[i])) / TWO_PI
        return turns, m.motor_velocity(float(self.dq[i])) / TWO_PI

    @contextmanager
    def serve(self, bus: can.BusABC) -> Iterator[MoteusEmulator]:
        """Answer frames of ``bus`` from a thread while the context is open."""
        with serving(bus, self.handle, _reply_message):
            yield self


def _reply_message(reply_id: int, payload: bytes, request: can.Message) -> can.Message:
    return can.Message(
        arbitration_id=reply_id,
        data=payload.ljust(fd_length(len(payload)), bytes([mp.NOP])),
        is_extended_id=reply_id > 0x7FF,
        is_fd=True,
        bitrate_switch=request.bitrate_switch,
    )
