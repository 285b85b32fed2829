"""moteus motors of one arm on a CAN FD bus, through the moteus library.

The library builds and parses the register frames; sending, collecting and deadlines are those of
every drive here (``bus_drive``), which works on any python-can bus. This module converts units
(turns to rad), decodes faults and compares the gains stored in the motors with the host's table.
Every command carries its own watchdog time and a query, so a period is one frame out and one back
per motor.

The library's own transport is not used: it awaits the answers to a batch in an event loop, which
takes twice the processor time, cannot tell a late answer from the next one, and hides bus-off.

Position mode of moteus is ``kp kp_scale (p_ref - p) + kd kd_scale (v_ref - v) + tau_ff`` in turns,
with two properties that the MIT-mode law does not have:

* the reference moves on at ``v_ref`` between two commands;
* scales only shrink (0..1), and the firmware limits kd_scale to kp_scale. A damping without enough
  stiffness is therefore *not* what the motor does: it is clipped here and reported.

Integral gain is switched off (``ilimit_scale = 0``), and so are trajectory limits.
"""

from __future__ import annotations

import math
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import can
import moteus
import numpy as np

from niaf_impedance.drives.back_end import Finding, checked_bus_load, raise_findings
from niaf_impedance.drives.bus_drive import BusDrive, listen_to
from niaf_impedance.drives.bus_load import BitRates, BusLoad, fd_length
from niaf_impedance.drives.interface import (
    DRIVE_FAULT_TEXT,
    Drive,
    DriveCapabilities,
    DriveError,
    DriveFault,
    Saturation,
)
from niaf_impedance.drives.joint_map import JointMap

TWO_PI = 2.0 * math.pi
COMMAND_BYTES = 64
REPLY_BYTES = 24
REPLY_WANTED = 0x8000  # bit of the id of a frame that asks for an answer
PADDING = b"\x50"  # "no operation": what fills a frame up to a length that CAN FD has
_SAFE_TIMEOUT_MODES = (0, 12, 15)  # stopped, zero velocity, brake
_READY_MODES = (2, 3, 4, 10)  # 2 to 4: getting ready to operate
_FIRST_LIMITING_CODE = 96  # these say what limits the output; they are not faults
_ROUNDING = 1e-9  # relative; what is sent has single precision
_MOST_POLLS = 100  # of a motor's console for one answer
_POLL_PAUSE_S = 0.002

FAULT_CODES: dict[int, DriveFault] = {
    32: DriveFault.NOT_CALIBRATED,
    33: DriveFault.POWER_STAGE,
    34: DriveFault.OVER_VOLTAGE,
    35: DriveFault.SENSOR,
    36: DriveFault.NOT_CALIBRATED,
    37: DriveFault.FIRMWARE,
    38: DriveFault.OVER_TEMPERATURE,
    39: DriveFault.OUTSIDE_LIMIT,
    40: DriveFault.UNDER_VOLTAGE,
    41: DriveFault.PARAMETER,
    42: DriveFault.SENSOR,
    43: DriveFault.SENSOR,
    44: DriveFault.POWER_STAGE,
    45: DriveFault.PARAMETER,
    46: DriveFault.FIRMWARE,
    47: DriveFault.PARAMETER,
    48: DriveFault.PARAMETER,
}


_STORED = ("servo.pid_position.kp", "servo.pid_position.kd", "servo.timeout_mode")
#: what comes of taking apart bytes that are no answer to a query
_NOT_AN_ANSWER = (KeyError, ValueError, IndexError, RuntimeError, struct.error)


class _NoAnswer(Exception):
    """A motor's console did not answer; says how."""


@dataclass(frozen=True)
class MoteusJoint:
    """One moteus controller and the joint it moves.

    Attributes:
        name: joint name.
        motor_id: id on the bus (1..126).
        torque_limit_nm: largest torque at the motor's output, Nm; sent with every command.
        kp_nm_turn: servo.pid_position.kp stored in the motor, Nm per turn.
        kd_nm_s_turn: servo.pid_position.kd stored in the motor, Nm per turn/s.
        map: direction, gear and offset between the motor's output and the joint.
    """

    name: str
    motor_id: int
    torque_limit_nm: float
    kp_nm_turn: float
    kd_nm_s_turn: float
    map: JointMap = JointMap()


@dataclass(frozen=True)
class MoteusConfig:
    """Configuration of a bus of moteus controllers.

    Attributes:
        joints: motors in joint order.
        rate_hz: loop rate.
        watchdog_s: validity of every command: the motor stops following after this long.
        bit_rates: bit rates of the bus.
        max_bus_load: refused above this worst-case load, 1 = full.
        reply_deadline_s: how long after the last command ``read`` waits for answers.
        register_deadline_s: how long a stored value may take to come at start-up.
        register_attempts: tries per stored value.
    """

    joints: tuple[MoteusJoint, ...]
    rate_hz: float
    watchdog_s: float = 0.05
    bit_rates: BitRates = BitRates(1_000_000.0, 5_000_000.0)
    max_bus_load: float = 0.9
    reply_deadline_s: float = 0.002
    register_deadline_s: float = 0.3
    register_attempts: int = 3


class MoteusDrive(BusDrive):
    """``Drive`` for moteus controllers. Not thread-safe: one loop owns it.

    Attributes:
        limiting: code of what limits each motor's output at present (96 to 103), 0 if nothing [n].
    """

    def __init__(
        self,
        bus: can.BusABC,
        config: MoteusConfig,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Check the configuration and the bus load; touches the bus only for its filters.

        Raises:
            DriveError: BAD_CONFIGURATION or BUS_OVER_BUDGET.
        """
        super().__init__(
            bus,
            [j.name for j in config.joints],
            _check_config(config),
            clock,
            reply_deadline_s=config.reply_deadline_s,
            patience_s=config.register_deadline_s,
        )
        self.config = config
        joints = config.joints
        self._maps = [j.map for j in joints]
        query = moteus.QueryResolution()
        query.mode = query.fault = moteus.INT8
        query.position = query.velocity = query.torque = moteus.F32
        query.temperature = moteus.INT8
        query.voltage = moteus.IGNORE
        self._controllers = [
            moteus.Controller(id=j.motor_id, query_resolution=query)  # only makes frames
            for j in joints
        ]
        self._by_reply = {j.motor_id << 8: i for i, j in enumerate(joints)}
        # A bus that hears itself (multicast) hands the commands back.
        self._own_ids = command_ids(joints)
        self._checked = False
        self.limiting = np.zeros(self._n, dtype=np.int64)
        listen_to(bus, self._by_reply)

    # ---- contract -----------------------------------------------------------------------------

    @property
    def capabilities(self) -> DriveCapabilities:
        """Limits in joint units; all fields travel as float32, so steps are 0."""
        joints = self.config.joints
        zero = np.zeros(self._n)
        return DriveCapabilities(
            joints=self._names,
            torque_on_host=True,
            gains_in_drive=True,
            torque_limit=np.array([j.map.gear * j.torque_limit_nm for j in joints]),
            kp_max=np.array([j.map.joint_gain(j.kp_nm_turn / TWO_PI) for j in joints]),
            kd_max=np.array([j.map.joint_gain(j.kd_nm_s_turn / TWO_PI) for j in joints]),
            torque_step=zero,
            kp_step=zero.copy(),
            kd_step=zero.copy(),
            max_rate_hz=self.config.max_bus_load * self._load.max_rate_hz,
            damping_alone=False,
        )

    @property
    def watchdog_s(self) -> float:
        """Validity of every command, seconds."""
        return self.config.watchdog_s

    def self_check(self) -> None:
        """Compare what is stored in the motors with the host's table.

        Raises:
            DriveError: with a line per finding: joint, id, value, expected, remedy.
        """
        findings: list[Finding] = []
        for i, joint in enumerate(self.config.joints):
            who = f"- {joint.name} (id {joint.motor_id})"
            try:
                stored = {name: self._stored(i, name) for name in _STORED}
            except _NoAnswer as error:
                findings.append(
                    (
                        DriveFault.NO_MOTOR,
                        joint.name,
                        f"{who}: {error}; " + DRIVE_FAULT_TEXT[DriveFault.NO_MOTOR].cure,
                    )
                )
                continue
            for name, expected in (
                ("servo.pid_position.kp", joint.kp_nm_turn),
                ("servo.pid_position.kd", joint.kd_nm_s_turn),
            ):
                if not math.isclose(stored[name], expected, rel_tol=1e-4):
                    findings.append(
                        (
                            DriveFault.GAIN_MISMATCH,
                            joint.name,
                            f"{who}: {name} is {stored[name]:g}, expected {expected:g}; "
                            + DRIVE_FAULT_TEXT[DriveFault.GAIN_MISMATCH].cure,
                        )
                    )
            mode = stored["servo.timeout_mode"]
            if mode not in _SAFE_TIMEOUT_MODES:
                findings.append(
                    (
                        DriveFault.UNSAFE_TIMEOUT_MODE,
                        joint.name,
                        f"{who}: servo.timeout_mode is {mode:g}, expected one of "
                        f"{_SAFE_TIMEOUT_MODES}; "
                        + DRIVE_FAULT_TEXT[DriveFault.UNSAFE_TIMEOUT_MODE].cure,
                    )
                )
        raise_findings(findings)
        self._checked = True

    # ---- frames -------------------------------------------------------------------------------

    def _message(self, command: Any) -> can.Message:
        """Frame of one of the library's commands."""
        wanted = REPLY_WANTED if command.reply_required else 0
        data = command.data
        return can.Message(
            arbitration_id=command.destination | wanted,
            data=data.ljust(fd_length(len(data)), PADDING),
            is_extended_id=bool(wanted),
            is_fd=True,
            bitrate_switch=True,
        )

    def _ensure_checked(self) -> None:
        if not self._checked:
            self.self_check()

    def _state_requests(self) -> list[can.Message]:
        return [self._message(c.make_query()) for c in self._controllers]

    def _off_frame(self, i: int) -> can.Message:
        return self._message(self._controllers[i].make_stop(query=True))

    def _clear_frame(self, i: int) -> can.Message:
        return self._off_frame(i)  # a stop clears latched faults and the timeout state

    def _switch_on(self) -> None:
        """The first command does; the answer to it may still show the mode before it."""
        self._write_idle()
        self._read(self._patience_s)

    def _commands(
        self,
        tau: list[float],
        q: list[float],
        dq: list[float],
        kp: list[float],
        kd: list[float],
        clipped: list[Saturation],
    ) -> list[can.Message]:
        return [
            self._message(self._frame(i, tau[i], q[i], dq[i], kp[i], kd[i], clipped))
            for i in range(self._n)
        ]

    def _frame(
        self,
        i: int,
        tau: float,
        q: float,
        dq: float,
        kp: float,
        kd: float,
        clipped: list[Saturation],
    ) -> Any:
        joint, m = self.config.joints[i], self._maps[i]
        kp_scale = m.motor_gain(kp) * TWO_PI / joint.kp_nm_turn
        kd_scale = m.motor_gain(kd) * TWO_PI / joint.kd_nm_s_turn
        torque = m.motor_torque(tau)
        before = len(clipped)
        # A value at its limit comes out of the conversions a few roundings off: that is no loss.
        if kp_scale > 1.0 + _ROUNDING:
            sent = m.joint_gain(joint.kp_nm_turn / TWO_PI)
            limit = "servo.pid_position.kp of the motor"
            clipped.append(Saturation(joint.name, "kp", kp, sent, limit))
        kp_scale = min(kp_scale, 1.0)
        if kd_scale > kp_scale * (1.0 + _ROUNDING):
            limit = "servo.pid_position.kd of the motor"
            if kd_scale <= 1.0 + _ROUNDING or kp_scale < 1.0 - _ROUNDING:
                limit = "moteus limits kd_scale to kp_scale"
            sent = m.joint_gain(kp_scale * joint.kd_nm_s_turn / TWO_PI)
            clipped.append(Saturation(joint.name, "kd", kd, sent, limit))
        kd_scale = min(kd_scale, kp_scale)
        if abs(torque) > joint.torque_limit_nm * (1.0 + _ROUNDING):
            sent = m.joint_torque(math.copysign(joint.torque_limit_nm, torque))
            limit = f"torque_limit_nm {joint.torque_limit_nm:g}"
            clipped.append(Saturation(joint.name, "torque", tau, sent, limit))
        torque = min(max(torque, -joint.torque_limit_nm), joint.torque_limit_nm)
        if len(clipped) > before:
            self.statistics.saturated[i] += 1
        no_gains = kp_scale == 0.0
        return self._controllers[i].make_position(
            # NaN means "where you are": without gains no reference is left behind in the motor.
            position=math.nan if no_gains else m.motor_position(q) / TWO_PI,
            velocity=0.0 if no_gains else m.motor_velocity(dq) / TWO_PI,
            feedforward_torque=torque,
            kp_scale=kp_scale,
            kd_scale=kd_scale,
            maximum_torque=joint.torque_limit_nm,
            watchdog_timeout=self.config.watchdog_s,
            velocity_limit=-1.0,  # negative: none, whatever the motor's default says
            accel_limit=-1.0,
            ilimit_scale=0.0,
            query=True,
        )

    def _take(self, message: can.Message) -> tuple[int, bool] | None:
        i = self._by_reply.get(message.arbitration_id)
        if i is None:
            if message.arbitration_id not in self._own_ids:
                self.statistics.bus[0] += 1
            return None
        try:
            values = moteus.parse_registers(bytes(message.data)).response
            position = values[moteus.Register.POSITION] * TWO_PI
            velocity = values[moteus.Register.VELOCITY] * TWO_PI
            torque = values[moteus.Register.TORQUE]
            mode, code = values[moteus.Register.MODE], values[moteus.Register.FAULT]
        except _NOT_AN_ANSWER:
            self.statistics.bus[2] += 1
            return None
        state, m = self._state, self._maps[i]
        off = mode == moteus.Mode.STOPPED
        if not math.isfinite(position + velocity + torque):
            state.fault[i] = DriveFault.STATE_NOT_FINITE  # old values and stamp stay
            return i, off
        state.q[i] = m.joint_position(position)
        state.dq[i] = m.joint_velocity(velocity)
        state.tau[i] = m.joint_torque(torque)
        state.temperature_c[i] = values.get(moteus.Register.TEMPERATURE, math.nan)
        state.stamp[i] = self._sent_at
        self.limiting[i] = code if code >= _FIRST_LIMITING_CODE else 0
        state.fault[i] = decode_fault(mode, code, self._enabled)
        return i, off

    # ---- what is stored in a motor ------------------------------------------------------------

    def _stored(self, i: int, name: str) -> float:
        """A configuration value, over the motor's console; only while nothing else is awaited.

        Raises:
            _NoAnswer: why there is none.
        """
        problem = ""
        for _ in range(self.config.register_attempts):
            try:
                answer = self._console(i, f"conf get {name}\n".encode())
            except _NoAnswer as error:
                problem = str(error)
                continue
            try:
                return float(answer)
            except ValueError:  # of an earlier question, or cut off by a lost frame
                problem = f"answered {answer!r} to 'conf get {name}'"
        raise _NoAnswer(problem)

    def _console(self, i: int, line: bytes) -> str:
        end = self._clock() + self.config.register_deadline_s
        while self._poll(i, end):  # what an earlier question left
            pass
        self._send(self._message(self._controllers[i].make_diagnostic_write(line)))
        text = b""
        for _ in range(_MOST_POLLS):
            chunk = self._poll(i, end)
            text += chunk
            if b"\n" in text:
                return text.split(b"\n", 1)[0].decode("latin1").strip()
            if not chunk:
                self._receive(_POLL_PAUSE_S)  # it is still thinking
        raise _NoAnswer(f"did not answer {line.decode().strip()!r} in {_MOST_POLLS} polls")

    def _poll(self, i: int, end_s: float) -> bytes:
        """What the motor's console has to say now; may be nothing."""
        command = self._controllers[i].make_diagnostic_read()
        self._send(self._message(command))
        while (left := end_s - self._clock()) > 0.0:
            message = self._receive(left)
            if message is None:
                break
            if self._by_reply.get(message.arbitration_id) == i and not message.is_error_frame:
                data = command.parse(message).data
                if data is not None:  # None: not of the console
                    return bytes(data)
        raise _NoAnswer(
            f"did not answer on {self._bus.channel_info} within "
            f"{self.config.register_deadline_s:g} s in {self.config.register_attempts} tries"
        )


_CONTRACT: type[Drive] = MoteusDrive  # checked by mypy


def decode_fault(mode: int, code: int, enabled: bool) -> DriveFault:
    """Named fault of a moteus mode and fault register."""
    if mode == moteus.Mode.FAULT:
        return FAULT_CODES.get(code, DriveFault.UNKNOWN_STATUS)
    if mode == moteus.Mode.TIMEOUT:
        return DriveFault.LOST_COMMUNICATION
    if mode == moteus.Mode.STOPPED:
        return DriveFault.DISABLED if enabled else DriveFault.NONE
    if mode in _READY_MODES:
        return DriveFault.NONE
    return DriveFault.WRONG_MODE


def _check_config(config: MoteusConfig) -> BusLoad:
    def bad(message: str, *motors: str) -> DriveError:
        return DriveError(DriveFault.BAD_CONFIGURATION, message, motors)

    if not config.joints:
        raise bad("no joints")
    names: set[str] = set()
    ids: dict[int, str] = {}
    for joint in config.joints:
        if joint.name in names:
            raise bad(f"joint {joint.name} is listed twice", joint.name)
        names.add(joint.name)
        if not 1 <= joint.motor_id <= 126:
            raise bad(f"{joint.name}: motor_id {joint.motor_id} is not in 1..126", joint.name)
        other = ids.setdefault(joint.motor_id, joint.name)
        if other != joint.name:
            raise bad(f"{joint.name} and {other} share motor_id {joint.motor_id}")
        for field in ("torque_limit_nm", "kp_nm_turn", "kd_nm_s_turn"):
            value = getattr(joint, field)
            if not 0.0 < value < math.inf:
                raise bad(f"{joint.name}: {field} {value} must be finite and > 0", joint.name)
    if not config.bit_rates.is_fd:
        raise bad("moteus speaks CAN FD only; give the bus a data bit rate (commonly 5 Mbit/s)")
    low_s = 3.0 / config.rate_hz
    if not low_s <= config.watchdog_s <= 1.0:  # false for NaN, which moteus takes as "no watchdog"
        raise bad(
            f"watchdog_s {config.watchdog_s} must be between three periods ({low_s:g} s) and 1 s; "
            "NaN would switch the watchdog off and 0 take the motor's default"
        )
    load = checked_bus_load(
        len(config.joints),
        config.rate_hz,
        config.bit_rates,
        config.max_bus_load,
        command_bytes=COMMAND_BYTES,
        reply_bytes=REPLY_BYTES,
        extended=True,
    )
    if not config.reply_deadline_s >= load.exchange_s:
        raise bad(
            f"reply_deadline_s {config.reply_deadline_s:g} is shorter than the frames of one "
            f"period are on the wire ({load.exchange_s * 1e3:.2f} ms): answers would be missed"
        )
    return load


def command_ids(joints: Sequence[MoteusJoint]) -> set[int]:
    """Ids of the frames that the host sends to these motors."""
    return {j.motor_id | wanted for j in joints for wanted in (0, REPLY_WANTED)}
