"""moteus motors of one arm, through the moteus library.

The library builds and parses the register frames and owns the transport; this module converts
units (turns to rad), keeps the deadline, decodes faults and compares the gains stored in the motors
with the host's table. Every command carries its own watchdog time and a query, so a ``write`` is
one frame out and one back per motor; all frames are sent before any reply is awaited.

Position mode of moteus is ``kp kp_scale (p_ref - p) + kd kd_scale (v_ref - v) + tau_ff`` in turns,
with two properties that the MIT-mode law does not have:

* the reference moves on at ``v_ref`` between two commands;
* scales only shrink (0..1), and the firmware limits kd_scale to kp_scale. A damping without enough
  stiffness is therefore *not* what the motor does: it is clipped here and reported.

Integral gain is switched off (``ilimit_scale = 0``), and so are trajectory limits.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import moteus
import numpy as np

from niaf_impedance.drives.back_end import (
    Finding,
    all_or_none,
    checked_bus_load,
    mark_missing,
    not_confirmed,
    raise_findings,
    refusal,
)
from niaf_impedance.drives.bus_load import BitRates, BusLoad
from niaf_impedance.drives.interface import (
    DRIVE_FAULT_TEXT,
    NOTHING_CLIPPED,
    Drive,
    DriveCapabilities,
    DriveCommand,
    DriveError,
    DriveFault,
    DriveState,
    Saturation,
    WriteReport,
    check_command,
)
from niaf_impedance.drives.joint_map import JointMap

TWO_PI = 2.0 * math.pi
COMMAND_BYTES = 64
REPLY_BYTES = 24
_SAFE_TIMEOUT_MODES = (0, 12, 15)  # stopped, zero velocity, brake
_READY_MODES = (2, 3, 4, 10)  # 2 to 4: getting ready to operate
_FIRST_LIMITING_CODE = 96  # these say what limits the output; they are not faults

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
        reply_deadline_s: how long a cycle waits for replies.
        register_deadline_s: how long a stored value may take to come at start-up.
    """

    joints: tuple[MoteusJoint, ...]
    rate_hz: float
    watchdog_s: float = 0.05
    bit_rates: BitRates = BitRates(1_000_000.0, 5_000_000.0)
    max_bus_load: float = 0.9
    reply_deadline_s: float = 0.002
    register_deadline_s: float = 1.0


@dataclass(frozen=True)
class MoteusStatistics:
    """Counters per motor [n], updated in place.

    ``limiting``: code of what limits the motor's output at present (96 to 103), 0 if nothing.
    """

    sent: np.ndarray
    replies: np.ndarray
    missing: np.ndarray
    saturated: np.ndarray
    limiting: np.ndarray


class MoteusDrive:
    """``Drive`` for moteus controllers. Not thread-safe: one loop owns it, and its event loop."""

    def __init__(
        self,
        transport: Any,
        config: MoteusConfig,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Check the configuration and the bus load.

        Args:
            transport: a ``moteus.Transport`` (e.g. over ``moteus.PythonCanDevice``).
            config: motors and limits.
            clock: seconds, monotonic; stamps are taken from it.

        Raises:
            DriveError: BAD_CONFIGURATION or BUS_OVER_BUDGET.
        """
        self.config = config
        self._load = _check_config(config)
        self._transport = transport
        self._clock = clock
        self._loop = asyncio.new_event_loop()
        joints = config.joints
        self._n = len(joints)
        self._names = tuple(j.name for j in joints)
        self._maps = [j.map for j in joints]
        query = moteus.QueryResolution()
        query.mode = query.fault = moteus.INT8
        query.position = query.velocity = query.torque = moteus.F32
        query.temperature = moteus.INT8
        query.voltage = moteus.IGNORE
        self._controllers = [
            moteus.Controller(id=j.motor_id, query_resolution=query, transport=transport)
            for j in joints
        ]
        self._state = DriveState.unknown(self._n)
        self._fresh = False  # a write has filled the state and read() has not handed it out
        self._enabled = False
        self._checked = False
        self._late_possible = False
        self.statistics = MoteusStatistics(*np.zeros((5, self._n), dtype=np.int64))

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

    @property
    def load(self) -> BusLoad:
        """Worst-case bus load at the configured rate."""
        return self._load

    @property
    def enabled(self) -> bool:
        """True between ``enable`` and ``disable``."""
        return self._enabled

    def __enter__(self) -> MoteusDrive:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._enabled:
                self.disable()
        finally:
            self.close()

    def close(self) -> None:
        """Close the transport and the event loop."""
        self._transport.close()
        self._loop.close()

    def self_check(self) -> None:
        """Compare what is stored in the motors with the host's table.

        Raises:
            DriveError: with a line per finding: joint, id, value, expected, remedy.
        """
        findings: list[Finding] = []
        for joint, controller in zip(self.config.joints, self._controllers, strict=True):
            who = f"- {joint.name} (id {joint.motor_id})"
            try:
                stored = self._loop.run_until_complete(
                    asyncio.wait_for(_stored(controller), self.config.register_deadline_s)
                )
            except (asyncio.TimeoutError, ValueError) as error:
                reason = "did not answer" if not str(error) else f"answered {error}"
                findings.append(
                    (
                        DriveFault.NO_MOTOR,
                        joint.name,
                        f"{who}: {reason} within {self.config.register_deadline_s:g} s; "
                        + DRIVE_FAULT_TEXT[DriveFault.NO_MOTOR].cure,
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

    def enable(self) -> DriveState:
        """Self-check once, then position mode with zero gains and torque; all or none."""
        if not self._checked:
            self.self_check()
        self._fresh = False
        state = self.read()
        if not state.ok:
            raise refusal("before enabling", state, self._names)
        self._enabled = True
        with all_or_none(self.disable):
            idle = DriveCommand.zeros(self._n)
            idle.q[:] = state.q
            self.write(idle)
            self.write(idle)  # the reply to the first may still show the mode before it
            if not self._state.ok:
                raise refusal("after the first command", self._state, self._names)
        return self._state

    def disable(self) -> None:
        """Send stop until every motor confirms mode 0, at most five rounds.

        Raises:
            DriveError: DISABLE_NOT_CONFIRMED naming the motors that did not.
        """
        self._enabled = False
        off = [False] * self._n
        for _ in range(5):
            replies = self._cycle([c.make_stop(query=True) for c in self._controllers])
            for i, reply in enumerate(replies):
                if reply is not None and int(reply[moteus.Register.MODE]) == moteus.Mode.STOPPED:
                    off[i] = True
            if all(off):
                return
        raise not_confirmed(self._names, off, "the stop")

    def clear_faults(self) -> None:
        """Send stop, which clears latched faults and the timeout state.

        Raises:
            DriveError: BAD_CONFIGURATION while enabled.
        """
        if self._enabled:
            raise DriveError(
                DriveFault.BAD_CONFIGURATION, "clear_faults() while enabled; disable() first"
            )
        self._cycle([c.make_stop(query=True) for c in self._controllers])

    def read(self) -> DriveState:
        """State that came back with the last ``write``, or a query if there was none since.

        Returns:
            The drive's own state, filled in place. A motor that did not answer keeps its old values
            *and its old stamp*, has fault MISSING_REPLY and a ``missing`` count.
        """
        if not self._fresh:
            self._cycle([c.make_query() for c in self._controllers])
        self._fresh = False
        return self._state

    def write(self, command: DriveCommand) -> WriteReport:
        """Send one frame to every motor and take the replies that come before the deadline.

        Raises:
            DriveError: COMMAND_INVALID (nothing was sent), NOT_ENABLED or BUS_ERROR.
        """
        if not self._enabled:
            raise DriveError(
                DriveFault.NOT_ENABLED, "write() to disabled motors; call enable() first"
            )
        tau, q, dq = command.tau_ff.tolist(), command.q.tolist(), command.dq.tolist()
        kp, kd = command.kp.tolist(), command.kd.tolist()
        check_command(tau, q, dq, kp, kd, self._names)
        clipped: list[Saturation] = []
        frames = [
            self._frame(i, tau[i], q[i], dq[i], kp[i], kd[i], clipped) for i in range(self._n)
        ]
        self._cycle(frames)
        self._fresh = True
        return WriteReport(tuple(clipped)) if clipped else NOTHING_CLIPPED

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
        if kp_scale > 1.0:
            kp_scale = 1.0
            sent = m.joint_gain(joint.kp_nm_turn / TWO_PI)
            limit = "servo.pid_position.kp of the motor"
            clipped.append(Saturation(joint.name, "kp", kp, sent, limit))
        if kd_scale > kp_scale:
            limit = "servo.pid_position.kd of the motor"
            if kd_scale <= 1.0 or kp_scale < 1.0:
                limit = "moteus limits kd_scale to kp_scale"
            kd_scale = kp_scale
            sent = m.joint_gain(kd_scale * joint.kd_nm_s_turn / TWO_PI)
            clipped.append(Saturation(joint.name, "kd", kd, sent, limit))
        if abs(torque) > joint.torque_limit_nm:
            torque = math.copysign(joint.torque_limit_nm, torque)
            limit = f"torque_limit_nm {joint.torque_limit_nm:g}"
            clipped.append(Saturation(joint.name, "torque", tau, m.joint_torque(torque), limit))
        if len(clipped) > before:
            self.statistics.saturated[i] += 1
        self.statistics.sent[i] += 1
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

    def _cycle(self, commands: list[Any]) -> list[dict[int, Any] | None]:
        """Send every command, await replies until the deadline, fill the state."""
        sent_at = self._clock()
        try:
            replies = self._loop.run_until_complete(self._exchange(commands))
        except Exception as error:
            # The transport's own errors differ by interface; none may pass unnamed.
            raise DriveError(
                DriveFault.BUS_ERROR,
                f"the transport failed: {type(error).__name__}: {error}; "
                + DRIVE_FAULT_TEXT[DriveFault.BUS_ERROR].cure,
            ) from error
        for i, reply in enumerate(replies):
            self._take(i, reply, sent_at)
        return replies

    async def _exchange(self, commands: list[Any]) -> list[dict[int, Any] | None]:
        if self._late_possible:
            # A late reply must not be taken for this cycle's: a few turns of the event loop hand
            # what has arrived meanwhile to nobody.
            for _ in range(5):
                await asyncio.sleep(0)
        tasks = [asyncio.ensure_future(self._transport.cycle([command])) for command in commands]
        done, pending = await asyncio.wait(tasks, timeout=self.config.reply_deadline_s)
        self._late_possible = bool(pending)
        for task in pending:
            task.cancel()
        if pending:
            await asyncio.gather(*pending, return_exceptions=True)
        values: list[dict[int, Any] | None] = []
        for task in tasks:
            result = task.result() if task in done else []
            values.append(result[0].values if result else None)
        return values

    def _take(self, i: int, values: dict[int, Any] | None, sent_at: float) -> None:
        state, m = self._state, self._maps[i]
        if values is None:
            mark_missing(state, self.statistics.missing, i)
            return
        self.statistics.replies[i] += 1
        state.missing[i] = 0
        position = values[moteus.Register.POSITION] * TWO_PI
        velocity = values[moteus.Register.VELOCITY] * TWO_PI
        torque = values[moteus.Register.TORQUE]
        if not math.isfinite(position + velocity + torque):
            state.fault[i] = DriveFault.STATE_NOT_FINITE  # old values and stamp stay
            return
        state.q[i] = m.joint_position(position)
        state.dq[i] = m.joint_velocity(velocity)
        state.tau[i] = m.joint_torque(torque)
        state.temperature_c[i] = values.get(moteus.Register.TEMPERATURE, math.nan)
        state.stamp[i] = sent_at
        mode, code = int(values[moteus.Register.MODE]), int(values[moteus.Register.FAULT])
        self.statistics.limiting[i] = code if code >= _FIRST_LIMITING_CODE else 0
        state.fault[i] = decode_fault(mode, code, self._enabled)


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


async def _stored(controller: Any) -> dict[str, float]:
    """Configuration values of one motor, over its diagnostic channel."""
    stream = moteus.Stream(controller, use_flow_control=False)
    await stream.flush_read(0.03)
    values = {}
    for name in ("servo.pid_position.kp", "servo.pid_position.kd", "servo.timeout_mode"):
        answer = await stream.command(f"conf get {name}".encode(), allow_any_response=True)
        values[name] = float(answer)
    return values


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
    low_s = 3.0 / config.rate_hz
    if not low_s <= config.watchdog_s <= 1.0:  # false for NaN, which moteus takes as "no watchdog"
        raise bad(
            f"watchdog_s {config.watchdog_s} must be between three periods ({low_s:g} s) and 1 s; "
            "NaN would switch the watchdog off and 0 take the motor's default"
        )
    return checked_bus_load(
        len(config.joints),
        config.rate_hz,
        config.bit_rates,
        config.max_bus_load,
        command_bytes=COMMAND_BYTES,
        reply_bytes=REPLY_BYTES,
        extended=True,
    )
