"""MIT-mode motors of one arm on a CAN bus, through python-can.

Works on any python-can bus: SocketCAN on a robot, ``virtual`` or ``udp_multicast`` in tests, or
``mit_emulator.InProcessBus`` in a lock-step simulation. How requests and answers are kept together
is in ``bus_drive``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import can
import numpy as np

from niaf_impedance.drives import mit_frames as mit
from niaf_impedance.drives.back_end import Finding, checked_bus_load, raise_findings, refusal
from niaf_impedance.drives.bus_drive import BusDrive, listen_to
from niaf_impedance.drives.bus_load import BitRates, BusLoad
from niaf_impedance.drives.interface import (
    DRIVE_FAULT_TEXT,
    Drive,
    DriveCapabilities,
    DriveError,
    DriveFault,
    Saturation,
)
from niaf_impedance.drives.joint_map import JointMap

_MODE_OFFSETS = (0x000, 0x100, 0x200, 0x300)  # ids a motor listens on, one per control mode


@dataclass(frozen=True)
class MitJoint:
    """One motor and the joint it moves.

    Attributes:
        name: joint name.
        motor: type, a key of ``mit_frames.MOTORS`` (any name if ``own_ranges`` is given).
        motor_id: id that the motor listens on (1..0xFF).
        reply_id: id that the motor answers with (its master id), commonly motor_id + 0x10.
        torque_limit_nm: rating of the motor's output, Nm. TMAX is only an encoding range.
        map: direction, gear and offset between motor and joint.
        own_ranges: encoding ranges that are set in the motor in place of its type's; None: the
            type's.
    """

    name: str
    motor: str
    motor_id: int
    reply_id: int
    torque_limit_nm: float
    map: JointMap = JointMap()
    own_ranges: mit.MotorRanges | None = None

    @property
    def ranges(self) -> mit.MotorRanges:
        """Encoding ranges of the motor."""
        return mit.MOTORS[self.motor] if self.own_ranges is None else self.own_ranges


@dataclass(frozen=True)
class MitCanConfig:
    """Configuration of a bus of MIT-mode motors.

    Attributes:
        joints: motors in joint order.
        rate_hz: loop rate, for the bus load and the watchdog's lower bound.
        bit_rates: bit rates of the bus; CAN FD frames are used when ``data`` is set.
        max_bus_load: refused above this worst-case load, 1 = full.
        reply_deadline_s: how long after the last command ``read`` waits for answers.
        watchdog_max_s: longest drive watchdog that is accepted.
        watchdog_min_periods: shortest accepted watchdog in control periods.
        set_watchdog_s: written to every motor (until power-off) by the self-check; None = only
            check what is there.
        register_deadline_s: how long one register answer may take.
        register_attempts: tries per register.
        compensate_rounding: see ``mit_frames``.
    """

    joints: tuple[MitJoint, ...]
    rate_hz: float
    bit_rates: BitRates = BitRates()
    max_bus_load: float = 0.9
    reply_deadline_s: float = 0.001
    watchdog_max_s: float = 0.2
    watchdog_min_periods: float = 3.0
    set_watchdog_s: float | None = None
    register_deadline_s: float = 0.05
    register_attempts: int = 3
    compensate_rounding: bool = True


@dataclass(frozen=True)
class SelfCheckReport:
    """What the motors' registers said, per joint.

    Attributes:
        watchdog_s: drive watchdog [n], seconds.
        baud_code: register 35 [n] (see ``mit_frames.BAUD_CODES``; higher codes are CAN FD rates).
        load: worst-case bus load at the configured rate.
    """

    watchdog_s: tuple[float, ...]
    baud_code: tuple[int, ...]
    load: BusLoad


class MitCanDrive(BusDrive):
    """``Drive`` for MIT-mode motors. Not thread-safe: one loop owns it."""

    def __init__(
        self,
        bus: can.BusABC,
        config: MitCanConfig,
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
        # A reply is told by its id and the motor id's low nibble: motors may share a master id.
        self._by_reply = {j.reply_id << 4 | j.motor_id & 0xF: i for i, j in enumerate(joints)}
        self._ranges = [j.ranges for j in joints]
        self._maps = [j.map for j in joints]
        self._motor_limit = [min(j.torque_limit_nm, j.ranges.torque_nm) for j in joints]
        self._messages = [self._message(j.motor_id, bytes(8)) for j in joints]
        self._checked: SelfCheckReport | None = None
        # A bus that hears itself (multicast) hands the commands back.
        self._own_ids = {mit.PARAMETER_ID, *(j.motor_id for j in joints)}
        listen_to(bus, {j.reply_id for j in joints}, standard_only=True)

    # ---- contract -----------------------------------------------------------------------------

    @property
    def capabilities(self) -> DriveCapabilities:
        """Limits and steps in joint units."""
        maps, ranges = self._maps, self._ranges
        pairs = list(zip(maps, ranges, strict=True))
        return DriveCapabilities(
            joints=self._names,
            torque_on_host=True,
            gains_in_drive=True,
            torque_limit=np.array(
                [m.gear * limit for m, limit in zip(maps, self._motor_limit, strict=True)]
            ),
            kp_max=np.array([m.joint_gain(r.kp_max) for m, r in pairs]),
            kd_max=np.array([m.joint_gain(r.kd_max) for m, r in pairs]),
            torque_step=np.array([m.gear * 2.0 * r.torque_nm / 4095.0 for m, r in pairs]),
            kp_step=np.array([m.joint_gain(r.kp_max / 4095.0) for m, r in pairs]),
            kd_step=np.array([m.joint_gain(r.kd_max / 4095.0) for m, r in pairs]),
            max_rate_hz=self.config.max_bus_load * self._load.max_rate_hz,
        )

    @property
    def watchdog_s(self) -> float:
        """Shortest watchdog of the motors, as read from them.

        Raises:
            DriveError: NOT_CHECKED before the self-check.
        """
        if self._checked is None:
            raise DriveError(
                DriveFault.NOT_CHECKED, "watchdog_s is known after self_check() or enable()"
            )
        return min(self._checked.watchdog_s)

    def self_check(self) -> SelfCheckReport:
        """Compare scaling, mode and watchdog registers with the host's table.

        Every motor is read before anything is refused, so that one error lists all of them.

        Raises:
            DriveError: with the first fault's number and a line per finding: joint, motor,
                register, found, expected, remedy.
        """
        config = self.config
        findings: list[Finding] = []
        watchdogs: list[float] = []
        bauds: list[int] = []
        for i, joint in enumerate(config.joints):
            try:
                self._check_scaling(i, findings)
                watchdogs.append(self._check_watchdog(i, findings))
                bauds.append(int(self._read_register(i, mit.Register.CAN_BAUD)))
            except DriveError as error:
                if error.fault is not DriveFault.NO_MOTOR:
                    raise
                findings.append((error.fault, joint.name, str(error)))
        raise_findings(findings)
        self._checked = SelfCheckReport(tuple(watchdogs), tuple(bauds), self._load)
        return self._checked

    # ---- registers ----------------------------------------------------------------------------

    def _check_scaling(self, i: int, findings: list[Finding]) -> None:
        joint, ranges = self.config.joints[i], self._ranges[i]
        for register, expected in (
            (mit.Register.PMAX, ranges.position_rad),
            (mit.Register.VMAX, ranges.velocity_rad_s),
            (mit.Register.TMAX, ranges.torque_nm),
        ):
            found = self._read_register(i, register)
            if not math.isclose(found, expected, rel_tol=1e-4):
                self._find(
                    findings,
                    i,
                    DriveFault.SCALING_MISMATCH,
                    register,
                    f"{found:g}",
                    f"{expected:g} for a {joint.motor}",
                    "name the right motor type, or write this register and save",
                )
        mode = self._read_register(i, mit.Register.CTRL_MODE)
        if mode != mit.CONTROL_MODE_MIT:
            self._find(
                findings,
                i,
                DriveFault.WRONG_CONTROL_MODE,
                mit.Register.CTRL_MODE,
                f"{mode:g}",
                "1 (MIT)",
                "write 1 to this register and save",
            )

    def _check_watchdog(self, i: int, findings: list[Finding]) -> float:
        config = self.config
        if config.set_watchdog_s is not None:
            counts = round(config.set_watchdog_s / mit.TIMEOUT_UNIT_S)
            self._register_exchange(
                i,
                mit.write_register(config.joints[i].motor_id, mit.Register.TIMEOUT, counts),
                mit.WRITE_REGISTER,
                mit.Register.TIMEOUT,
            )
        counts = int(self._read_register(i, mit.Register.TIMEOUT))
        found_s = counts * mit.TIMEOUT_UNIT_S
        low_s = config.watchdog_min_periods / config.rate_hz
        allowed = f"{low_s * 1e3:g} to {config.watchdog_max_s * 1e3:g} ms"
        remedy = (
            f"set set_watchdog_s, or write {round(config.watchdog_max_s / mit.TIMEOUT_UNIT_S)} "
            "or less (in 50 us) to this register and save"
        )
        if config.set_watchdog_s is not None and abs(found_s - config.set_watchdog_s) > 1e-4:
            self._find(
                findings,
                i,
                DriveFault.WATCHDOG_OUT_OF_RANGE,
                mit.Register.TIMEOUT,
                f"{counts} ({found_s * 1e3:g} ms) after writing it",
                f"{config.set_watchdog_s * 1e3:g} ms",
                "the motor did not take the value: check its firmware",
            )
        elif counts == 0:
            self._find(
                findings,
                i,
                DriveFault.WATCHDOG_OFF,
                mit.Register.TIMEOUT,
                "0 (off)",
                allowed,
                remedy,
            )
        elif not low_s <= found_s <= config.watchdog_max_s:
            self._find(
                findings,
                i,
                DriveFault.WATCHDOG_OUT_OF_RANGE,
                mit.Register.TIMEOUT,
                f"{counts} ({found_s * 1e3:g} ms)",
                allowed,
                remedy,
            )
        return found_s

    def _find(
        self,
        findings: list[Finding],
        i: int,
        fault: DriveFault,
        register: int,
        found: str,
        expected: str,
        remedy: str,
    ) -> None:
        joint = self.config.joints[i]
        findings.append(
            (
                fault,
                joint.name,
                f"- {joint.name} ({joint.motor}, id 0x{joint.motor_id:02X}): register {register} "
                f"{mit.REGISTER_NAMES[register]} is {found}, expected {expected}; {remedy}",
            )
        )

    def _read_register(self, i: int, register: int) -> float:
        frame = mit.read_register(self.config.joints[i].motor_id, register)
        return self._register_exchange(i, frame, mit.READ_REGISTER, register)

    def _register_exchange(self, i: int, frame: bytes, operation: int, register: int) -> float:
        """One register request and its answer; only while no state reply is expected."""
        if self._enabled:
            raise DriveError(
                DriveFault.BAD_CONFIGURATION, "registers are only read or written while disabled"
            )
        joint = self.config.joints[i]
        self._drain()
        for _ in range(self.config.register_attempts):
            self._send(self._message(mit.PARAMETER_ID, frame))
            end = self._clock() + self.config.register_deadline_s
            while (left := end - self._clock()) > 0.0:
                message = self._receive(left)
                if message is None:
                    break
                if message.arbitration_id != joint.reply_id or len(message.data) != 8:
                    continue
                answer = mit.decode_register(message.data)
                if (answer.motor_id, answer.operation, answer.register) == (
                    joint.motor_id,
                    operation,
                    register,
                ):
                    return answer.value
        raise DriveError(
            DriveFault.NO_MOTOR,
            f"- {joint.name} ({joint.motor}): no answer from id 0x{joint.motor_id:02X} on id "
            f"0x{joint.reply_id:02X} to register {register} {mit.REGISTER_NAMES[register]} in "
            f"{self.config.register_attempts} tries on {self._bus.channel_info}; "
            + DRIVE_FAULT_TEXT[DriveFault.NO_MOTOR].cure,
            (joint.name,),
        )

    # ---- frames -------------------------------------------------------------------------------

    def _message(self, arbitration_id: int, data: bytes) -> can.Message:
        fd = self.config.bit_rates.is_fd
        return can.Message(
            arbitration_id=arbitration_id,
            data=bytearray(data),
            is_extended_id=False,
            is_fd=fd,
            bitrate_switch=fd,
        )

    def _ensure_checked(self) -> None:
        if self._checked is None:
            self.self_check()

    def _state_requests(self) -> list[can.Message]:
        return [
            self._message(mit.PARAMETER_ID, mit.request_state(j.motor_id))
            for j in self.config.joints
        ]

    def _off_frame(self, i: int) -> can.Message:
        return self._message(self.config.joints[i].motor_id, mit.DISABLE)

    def _clear_frame(self, i: int) -> can.Message:
        return self._message(self.config.joints[i].motor_id, mit.CLEAR_ERROR)

    def _switch_on(self) -> None:
        joints = self.config.joints
        self._send_to(range(self._n), lambda i: self._message(joints[i].motor_id, mit.ENABLE))
        self._collect(self._patience_s)
        if not self._state.ok:
            raise refusal("after the enable frame", self._state, self._names)

    def _commands(
        self,
        tau: list[float],
        q: list[float],
        dq: list[float],
        kp: list[float],
        kd: list[float],
        clipped: list[Saturation],
    ) -> list[can.Message]:
        compensate = self.config.compensate_rounding
        for i in range(self._n):
            m = self._maps[i]
            mask = mit.pack_command(
                self._messages[i].data,
                self._ranges[i],
                m.motor_position(q[i]),
                m.motor_velocity(dq[i]),
                m.motor_gain(kp[i]),
                m.motor_gain(kd[i]),
                m.motor_torque(tau[i]),
                self._motor_limit[i],
                compensate,
            )
            if mask:
                self.statistics.saturated[i] += 1
                self._saturations(i, mask, (q[i], dq[i], kp[i], kd[i], tau[i]), clipped)
        return self._messages

    def _take(self, message: can.Message) -> tuple[int, bool] | None:
        data = message.data
        if message.arbitration_id in self._own_ids:
            return None
        if len(data) != 8:
            self.statistics.bus[2] += 1
            return None
        i = self._by_reply.get(message.arbitration_id << 4 | data[0] & 0xF)
        if i is None:
            self.statistics.bus[0] += 1
            return None
        reply = mit.decode_reply(self._ranges[i], data)
        state, m = self._state, self._maps[i]
        state.q[i] = m.joint_position(reply.position)
        state.dq[i] = m.joint_velocity(reply.velocity)
        state.tau[i] = m.joint_torque(reply.torque)
        state.temperature_c[i] = max(reply.mosfet_c, reply.rotor_c)
        state.stamp[i] = self._sent_at
        fault = mit.status_fault(reply.status)
        if fault is DriveFault.DISABLED and not self._enabled:
            fault = DriveFault.NONE
        if fault is DriveFault.NONE and reply.at_range_end:
            fault = DriveFault.POSITION_RANGE
        state.fault[i] = fault
        return i, reply.status != mit.STATUS_ENABLED

    def _saturations(
        self, i: int, mask: int, requested: tuple[float, ...], out: list[Saturation]
    ) -> None:
        joint, m = self.config.joints[i], self._maps[i]
        sent = mit.decode_command(self._ranges[i], self._messages[i].data)
        in_joint = (
            m.joint_position(sent.position),
            m.joint_velocity(sent.velocity),
            m.joint_gain(sent.kp),
            m.joint_gain(sent.kd),
            m.joint_torque(sent.torque),
        )
        for k, (bit, field) in enumerate(mit.SATURATION_FIELDS):
            if mask & bit:
                limit = f"range of the {joint.motor}'s frame"
                if field == "torque" and joint.torque_limit_nm < self._ranges[i].torque_nm:
                    limit = f"torque_limit_nm {joint.torque_limit_nm:g}"
                out.append(Saturation(joint.name, field, requested[k], in_joint[k], limit))


_CONTRACT: type[Drive] = MitCanDrive  # checked by mypy


def _check_config(config: MitCanConfig) -> BusLoad:
    """Refuse a configuration that contradicts itself or does not fit on the bus."""

    def bad(message: str, *motors: str) -> DriveError:
        return DriveError(DriveFault.BAD_CONFIGURATION, message, motors)

    joints = config.joints
    if not joints:
        raise bad("no joints")
    names: set[str] = set()
    replies: dict[int, str] = {}
    listening: dict[int, str] = {mit.PARAMETER_ID: "the parameter frames"}
    for joint in joints:
        if joint.name in names:
            raise bad(f"joint {joint.name} is listed twice", joint.name)
        names.add(joint.name)
        if joint.own_ranges is None and joint.motor not in mit.MOTORS:
            raise bad(
                f"{joint.name}: unknown motor type {joint.motor!r}; known: {', '.join(mit.MOTORS)}",
                joint.name,
            )
        if not 1 <= joint.motor_id <= 0xFF:
            raise bad(f"{joint.name}: motor_id {joint.motor_id} is not in 1..255", joint.name)
        if not 0 <= joint.reply_id < mit.PARAMETER_ID:
            raise bad(f"{joint.name}: reply_id {joint.reply_id} is not in 0..0x7FE", joint.name)
        if not 0.0 < joint.torque_limit_nm < math.inf:
            raise bad(
                f"{joint.name}: torque_limit_nm {joint.torque_limit_nm} must be > 0", joint.name
            )
        for offset in _MODE_OFFSETS:
            other = listening.setdefault(joint.motor_id + offset, joint.name)
            if other != joint.name:
                raise bad(f"{joint.name} and {other} share id 0x{joint.motor_id + offset:X}")
        key = joint.reply_id << 4 | joint.motor_id & 0xF
        other = replies.setdefault(key, joint.name)
        if other != joint.name:
            raise bad(
                f"{joint.name} and {other} cannot be told apart: same reply_id "
                f"0x{joint.reply_id:X} and same low nibble of motor_id; give one another reply_id"
            )
    for joint in joints:
        if joint.reply_id in listening:
            raise bad(
                f"{joint.name}: reply_id 0x{joint.reply_id:X} is an id that "
                f"{listening[joint.reply_id]} listens on",
                joint.name,
            )
    if config.set_watchdog_s is not None and not (
        config.watchdog_min_periods / config.rate_hz
        <= config.set_watchdog_s
        <= config.watchdog_max_s
    ):
        raise bad(
            f"set_watchdog_s {config.set_watchdog_s} is outside "
            f"{config.watchdog_min_periods / config.rate_hz:g} to {config.watchdog_max_s:g} s "
            "(watchdog_min_periods / rate_hz to watchdog_max_s)"
        )
    return checked_bus_load(len(joints), config.rate_hz, config.bit_rates, config.max_bus_load)
