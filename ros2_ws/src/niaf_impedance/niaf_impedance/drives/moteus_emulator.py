"""Emulated moteus controllers that answer real register frames, for tests and for a simulated arm.

Frames are taken apart with the library's own ``multiplex.parse_frame``. Emulated: modes stopped,
fault, position and timeout; the position-mode law with scales, torque limit and per-command
watchdog; queries in any resolution; ``conf get`` over the diagnostic channel.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Sequence

import can
from moteus import Mode, Register
from moteus import multiplex as mp

from niaf_impedance.drives.bus_load import fd_length
from niaf_impedance.drives.emulation import Emulator
from niaf_impedance.drives.interface import Floats
from niaf_impedance.drives.moteus_drive import (
    PADDING,
    REPLY_WANTED,
    TWO_PI,
    MoteusJoint,
    command_ids,
)

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
        silent: answers nothing (a dead or unplugged motor); its watchdog runs on.
        drop_replies: number of replies still to be swallowed.
        registers: values written last, by register.
        damping_nms: damping after the watchdog expired, Nms/rad at the motor (the zero-velocity
            mode of ``servo.timeout_mode``, which damps with the stored kd).
        measured_nm: torque that replies report; None: what the law asks for. For a plant with a
            current loop of its own.
        commands: command frames followed.
    """

    def __init__(self, joint: MoteusJoint) -> None:
        self.joint = joint
        self.mode = int(Mode.STOPPED)
        self.fault = 0
        self.silent = False
        self.drop_replies = 0
        self.registers: dict[int, float] = {}
        self.torque_nm = 0.0
        self.measured_nm: float | None = None
        self.damping_nms = joint.kd_nm_s_turn / TWO_PI
        self.commands = 0
        self.temperature_c = 32.0
        self.stored = {
            "servo.pid_position.kp": joint.kp_nm_turn,
            "servo.pid_position.kd": joint.kd_nm_s_turn,
            "servo.timeout_mode": 12.0,
            "servo.timeout_max_torque_Nm": joint.torque_limit_nm,
        }
        self._fed_s = math.nan
        self._console = b""
        self._line = b""

    @property
    def off(self) -> bool:
        """Switched off: no torque, no fault."""
        return self.mode == Mode.STOPPED

    @property
    def tripped(self) -> bool:
        """Its watchdog expired, and it damps."""
        return self.mode == Mode.TIMEOUT

    @property
    def target_rad(self) -> float | None:
        """Position that stiffness pulls to; None without."""
        turns = self.registers.get(Register.COMMAND_POSITION, math.nan)
        if self.mode != Mode.POSITION or math.isnan(turns):
            return None
        return turns * TWO_PI if self.registers.get(Register.COMMAND_KP_SCALE, 1.0) > 0.0 else None

    def inject_fault(self, code: int) -> None:
        """Enter fault mode with a code."""
        self.mode, self.fault = int(Mode.FAULT), code

    def torque(self, now_s: float, p: float, v: float) -> float:
        """Torque on the output now, Nm; also runs the watchdog. p, v: rad, rad/s."""
        turns, turns_s = p / TWO_PI, v / TWO_PI
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
            limit = self.stored["servo.timeout_max_torque_Nm"]
            torque = min(max(-self.damping_nms * v, -limit), limit)
        self.torque_nm = torque
        return torque

    def receive(self, data: bytes, now_s: float, p: float, v: float) -> bytes:
        """Handle one frame; the reply's payload (empty if nothing was asked). p, v: rad, rad/s."""
        turns, turns_s = p / TWO_PI, v / TWO_PI
        out = io.BytesIO()
        writer = mp.WriteFrame(out)
        asked: list[list[tuple[int, int]]] = []  # runs of registers that follow each other
        for sub in mp.parse_frame(data):
            if isinstance(sub, mp.StreamSubframe):
                self._stream(writer, sub)
            elif not isinstance(sub, mp.RegisterSubframe):
                continue
            elif sub.type == mp.SubframeType.WRITE:
                self._write(sub.register, sub.resolution, sub.value, now_s)
            elif sub.type == mp.SubframeType.READ:
                this = (sub.register, sub.resolution)
                if asked and asked[-1][-1] == (sub.register - 1, sub.resolution):
                    asked[-1].append(this)
                else:
                    asked.append([this])
        for run in asked:
            first, resolution = run[0]
            count = len(run)
            writer.write_int8(mp.REPLY_BASE | resolution << 2 | (count if count < 4 else 0))
            if count >= 4:
                writer.write_varuint(count)
            writer.write_varuint(first)
            for register, _ in run:
                self._read(writer, register, resolution, turns, turns_s)
        return out.getvalue()

    def _write(self, register: int, resolution: int, value: float, now_s: float) -> None:
        if register == Register.MODE:
            if value == Mode.STOPPED:
                self.mode, self.fault = int(Mode.STOPPED), 0
            elif value == Mode.POSITION and self.mode not in (Mode.FAULT, Mode.TIMEOUT):
                self.mode = int(Mode.POSITION)
                self.registers = {}
                self._fed_s = now_s
                self.commands += 1
        elif resolution == mp.F32:
            self.registers[register] = value

    def _read(
        self, writer: mp.WriteFrame, register: int, resolution: int, turns: float, turns_s: float
    ) -> None:
        values = {
            Register.MODE: self.mode,
            Register.POSITION: turns,
            Register.VELOCITY: turns_s,
            Register.TORQUE: self.torque_nm if self.measured_nm is None else self.measured_nm,
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


class MoteusEmulator(Emulator[EmulatedMoteus]):
    """Emulated moteus controllers of an arm; see ``Emulator``."""

    def __init__(
        self,
        joints: Sequence[MoteusJoint],
        q: Floats | None = None,
        dq: Floats | None = None,
        tau: Floats | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        motors = [EmulatedMoteus(j) for j in joints]
        super().__init__(motors, command_ids(joints), q, dq, tau, clock)

    def _addressed(self, arbitration_id: int, data: bytes) -> int:
        return arbitration_id & 0x7F if arbitration_id in self.hears else -1

    def _answer(
        self,
        motor: EmulatedMoteus,
        arbitration_id: int,
        data: bytes,
        now_s: float,
        p: float,
        v: float,
    ) -> tuple[int, bytes] | None:
        payload = motor.receive(data, now_s, p, v)
        if motor.silent or not payload or not arbitration_id & REPLY_WANTED:
            return None
        if motor.drop_replies > 0:
            motor.drop_replies -= 1
            return None
        return motor.joint.motor_id << 8, payload

    def reply_message(self, reply_id: int, data: bytes, request: can.Message) -> can.Message:
        """Frame of a reply."""
        return can.Message(
            arbitration_id=reply_id,
            data=data.ljust(fd_length(len(data)), PADDING),
            is_extended_id=reply_id > 0x7FF,
            is_fd=True,
            bitrate_switch=request.bitrate_switch,
        )
