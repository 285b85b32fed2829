"""What every drive back end offers to the controller, in joint coordinates and SI units.

A drive stands for *all* motors of one arm. The two ways to close the loop differ only in the
command: ``kp = kd = 0`` means torque from the host, anything else hands gains and reference to the
motors, whose own law is ``kp (q_ref - q) + kd (dq_ref - dq) + tau_ff``.

A control period is ``state = drive.read(); ...; drive.write(command)``: ``write`` sends to every
motor before anything is awaited, ``read`` collects the answers until a deadline.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class DriveFault(IntEnum):
    """Faults of drives. Numbers are part of the record: never reuse one.

    100 to 149 are states of one motor (``DriveState.fault``), 150 and above are raised by the host
    (``DriveError.fault``). Numbers below 100 belong to the controller.
    """

    NONE = 0
    DISABLED = 100
    MISSING_REPLY = 101
    SENSOR = 102
    PARAMETER = 103
    OVER_VOLTAGE = 104
    UNDER_VOLTAGE = 105
    OVER_CURRENT = 106
    MOSFET_HOT = 107
    COIL_HOT = 108
    LOST_COMMUNICATION = 109
    OVERLOAD = 110
    POSITION_RANGE = 111
    UNKNOWN_STATUS = 112
    POWER_STAGE = 113
    NOT_CALIBRATED = 114
    OUTSIDE_LIMIT = 115
    FIRMWARE = 116
    OVER_TEMPERATURE = 117
    WRONG_MODE = 118
    STATE_NOT_FINITE = 119

    NO_MOTOR = 150
    SCALING_MISMATCH = 151
    WRONG_CONTROL_MODE = 152
    WATCHDOG_OFF = 153
    WATCHDOG_OUT_OF_RANGE = 154
    BUS_OVER_BUDGET = 155
    BUS_ERROR = 156
    BUS_OFF = 157
    COMMAND_INVALID = 158
    NOT_ENABLED = 159
    ENABLE_REFUSED = 160
    DISABLE_NOT_CONFIRMED = 161
    BAD_CONFIGURATION = 162
    NOT_CHECKED = 163
    GAIN_MISMATCH = 164
    UNSAFE_TIMEOUT_MODE = 165


class DriveFaultText(NamedTuple):
    """Cause and cure of one fault."""

    cause: str
    cure: str


_T = DriveFaultText
DRIVE_FAULT_TEXT: dict[DriveFault, DriveFaultText] = {
    DriveFault.NONE: _T("no fault", "none needed"),
    DriveFault.DISABLED: _T(
        "the motor reports that it is disabled although the host enabled it",
        "look for a power dip or a second host on the bus, then enable() again",
    ),
    DriveFault.MISSING_REPLY: _T(
        "the motor did not answer before the deadline; its old state and stamp are kept",
        "check wiring, termination, id and bit rate, and the bus load",
    ),
    DriveFault.SENSOR: _T(
        "the motor's position sensor failed",
        "check encoder and magnet, power-cycle the motor, recalibrate",
    ),
    DriveFault.PARAMETER: _T(
        "the motor could not read its parameters, or one changed while it ran",
        "write the parameters again, save them, power-cycle",
    ),
    DriveFault.OVER_VOLTAGE: _T(
        "the supply voltage exceeded the motor's limit, often by braking energy",
        "lower the supply or add a brake resistor, then clear_faults()",
    ),
    DriveFault.UNDER_VOLTAGE: _T(
        "the supply voltage fell below the motor's limit",
        "check supply, its current limit and the cable, then clear_faults()",
    ),
    DriveFault.OVER_CURRENT: _T(
        "the motor's phase current exceeded its limit",
        "look for a jam or a short, lower gains and torque limit, then clear_faults()",
    ),
    DriveFault.MOSFET_HOT: _T(
        "the motor's power transistors are too hot", "let it cool, lower the load"
    ),
    DriveFault.COIL_HOT: _T("the motor's winding is too hot", "let it cool, lower the load"),
    DriveFault.LOST_COMMUNICATION: _T(
        "the motor's watchdog expired: no command came for longer than its timeout",
        "find out why the host was late or died, then clear_faults() and enable()",
    ),
    DriveFault.OVERLOAD: _T(
        "the motor was overloaded for too long", "lower the load, then clear_faults()"
    ),
    DriveFault.POSITION_RANGE: _T(
        "the measured position is at the end of the frame's range, so its value is not known",
        "move the joint back by hand, set the motor's zero inside its range, correct offset_rad",
    ),
    DriveFault.UNKNOWN_STATUS: _T(
        "the motor sent a status this version does not know",
        "see the number in the message and the maker's manual",
    ),
    DriveFault.POWER_STAGE: _T(
        "the motor's gate driver reported an electrical fault",
        "check supply and phases, lower the current, then clear_faults()",
    ),
    DriveFault.NOT_CALIBRATED: _T(
        "the motor was never calibrated, or its calibration failed",
        "run the maker's calibration with the joint free",
    ),
    DriveFault.OUTSIDE_LIMIT: _T(
        "the joint stood outside the position limits stored in the motor",
        "move it back inside by hand, then clear_faults()",
    ),
    DriveFault.FIRMWARE: _T(
        "the motor's firmware reported an internal fault", "power-cycle, update the firmware"
    ),
    DriveFault.OVER_TEMPERATURE: _T(
        "the motor or its board is too hot", "let it cool, lower the load"
    ),
    DriveFault.WRONG_MODE: _T(
        "the motor is in a mode that does not follow commands",
        "make sure that no other host commands it, then clear_faults() and enable()",
    ),
    DriveFault.STATE_NOT_FINITE: _T(
        "the motor sent a position, velocity or torque that is not a number",
        "check its encoder sources and calibration",
    ),
    DriveFault.NO_MOTOR: _T(
        "a configured motor did not answer at start-up",
        "check power, wiring, termination, bit rate and both ids",
    ),
    DriveFault.SCALING_MISMATCH: _T(
        "the ranges in the motor differ from the host's table: every value would be scaled wrongly",
        "name the right motor type, or write the range registers and save",
    ),
    DriveFault.WRONG_CONTROL_MODE: _T(
        "the motor is not in MIT mode", "write register 10 (CTRL_MODE) = 1 and save"
    ),
    DriveFault.WATCHDOG_OFF: _T(
        "the motor's watchdog is off: it would hold its last torque when the host dies",
        "set set_watchdog_s, or write register 9 (TIMEOUT) and save",
    ),
    DriveFault.WATCHDOG_OUT_OF_RANGE: _T(
        "the motor's watchdog is longer than allowed or shorter than the loop needs",
        "set set_watchdog_s, or write register 9 (TIMEOUT) and save",
    ),
    DriveFault.BUS_OVER_BUDGET: _T(
        "commands and replies would not fit on the bus at this rate",
        "lower the rate, use CAN FD, or split the motors over two buses",
    ),
    DriveFault.BUS_ERROR: _T(
        "the bus refused a frame or reported an error",
        "check that the interface is up, its queue length, wiring and termination",
    ),
    DriveFault.BUS_OFF: _T(
        "the CAN controller went bus-off after too many errors",
        "check wiring, termination and bit rates, then restart the interface",
    ),
    DriveFault.COMMAND_INVALID: _T(
        "a command was NaN, infinite, negative where it must not be, or of the wrong length; "
        "nothing was sent",
        "find the producer of the value; the motors' watchdogs act meanwhile",
    ),
    DriveFault.NOT_ENABLED: _T("a command was written to disabled motors", "call enable() first"),
    DriveFault.ENABLE_REFUSED: _T(
        "a motor had a fault or did not confirm that it was enabled; all were disabled again",
        "cure the named fault, clear_faults(), enable() again",
    ),
    DriveFault.DISABLE_NOT_CONFIRMED: _T(
        "a motor did not confirm that it was disabled",
        "treat it as live: cut its power; its watchdog should act",
    ),
    DriveFault.BAD_CONFIGURATION: _T(
        "the drive's configuration contradicts itself", "correct the named entry"
    ),
    DriveFault.NOT_CHECKED: _T(
        "the motors' registers were not read yet", "call self_check() or enable() first"
    ),
    DriveFault.GAIN_MISMATCH: _T(
        "the gains stored in the motor differ from the host's table, so scales would be wrong",
        "correct the table, or write the gains in the motor and save",
    ),
    DriveFault.UNSAFE_TIMEOUT_MODE: _T(
        "the motor would hold position with full torque after its watchdog expired",
        "set servo.timeout_mode to 0, 12 or 15 and save",
    ),
}


class DriveError(RuntimeError):
    """A named refusal or failure of a drive.

    Attributes:
        fault: number and name of what happened.
        motors: names of the joints concerned; empty when it concerns the whole bus.
    """

    def __init__(self, fault: DriveFault, message: str, motors: tuple[str, ...] = ()) -> None:
        super().__init__(f"[{int(fault)} {fault.name}] {message}")
        self.fault = fault
        self.motors = motors


@dataclass(frozen=True)
class DriveState:
    """Measured state of n motors; the arrays are filled in place by every ``read``.

    Keep a ``copy()`` of what must survive the next ``read``.

    Attributes:
        q: joint positions [n], rad.
        dq: joint velocities [n], rad/s.
        tau: joint torques as the motors report them [n], Nm.
        fault: DriveFault numbers [n].
        stamp: when each motor's answer was asked for [n], seconds of the drive's clock: never later
            than the measurement, so ``now - stamp`` bounds the age from above. NaN before any.
        missing: replies missed in a row [n].
        temperature_c: hottest temperature the motor reports [n], degrees Celsius; NaN if none.
    """

    q: Floats
    dq: Floats
    tau: Floats
    fault: Ints
    stamp: Floats
    missing: Ints
    temperature_c: Floats

    @classmethod
    def unknown(cls, joints: int) -> DriveState:
        """State before any measurement: NaN everywhere, every reply missing."""
        nan = np.full((5, joints), np.nan)
        return cls(
            q=nan[0].copy(),
            dq=nan[1].copy(),
            tau=nan[2].copy(),
            fault=np.full(joints, int(DriveFault.MISSING_REPLY), dtype=np.int64),
            stamp=nan[3].copy(),
            missing=np.zeros(joints, dtype=np.int64),
            temperature_c=nan[4].copy(),
        )

    def copy(self) -> DriveState:
        """A state with its own arrays."""
        return DriveState(**{f.name: getattr(self, f.name).copy() for f in fields(self)})

    def age_s(self, now_s: float) -> Floats:
        """Upper bound of each motor's age [n], seconds; NaN where nothing was ever measured."""
        return now_s - self.stamp

    @property
    def ok(self) -> bool:
        """True when every motor answered the last request and none reports a fault."""
        return not self.fault.any()


@dataclass(frozen=True)
class DriveCommand:
    """What n motors shall do; preallocate one and fill its arrays in place.

    Attributes:
        tau_ff: feed-forward torque, or the whole torque when kp = kd = 0 [n], Nm.
        q: position reference [n], rad (used with kp).
        dq: velocity reference [n], rad/s (used with kd).
        kp: stiffness closed in the motor [n], Nm/rad.
        kd: damping closed in the motor [n], Nms/rad.
    """

    tau_ff: Floats
    q: Floats
    dq: Floats
    kp: Floats
    kd: Floats

    @classmethod
    def zeros(cls, joints: int) -> DriveCommand:
        """No torque, no gains."""
        return cls(*(np.zeros(joints) for _ in range(5)))


@dataclass(frozen=True)
class Saturation:
    """One value that did not fit, in joint units.

    Attributes:
        joint: name of the joint.
        field: ``position``, ``velocity``, ``kp``, ``kd`` or ``torque``.
        requested: what was asked for.
        sent: what the motor was told instead.
        limit: why, in words.
    """

    joint: str
    field: str
    requested: float
    sent: float
    limit: str

    def __str__(self) -> str:
        return (
            f"{self.joint}: {self.field} {self.requested:.6g} sent as {self.sent:.6g} "
            f"({self.limit})"
        )


@dataclass(frozen=True)
class WriteReport:
    """What one ``write`` did: every value that was clipped. Nothing is clipped silently."""

    saturations: tuple[Saturation, ...] = ()


NOTHING_CLIPPED = WriteReport()


@dataclass(frozen=True)
class DriveCapabilities:
    """What a drive can do, in joint units.

    Attributes:
        joints: names, in the order of all arrays.
        torque_on_host: commands with kp = kd = 0 are followed as torque.
        gains_in_drive: kp, kd, q and dq are used by the motors' own loops.
        torque_limit: largest feed-forward torque that is ever sent [n], Nm; what kp and kd add in
            the motor is limited only by the motor, unless the back end says otherwise.
        kp_max: largest stiffness [n], Nm/rad.
        kd_max: largest damping [n], Nms/rad.
        torque_step: one count of the torque field [n], Nm; 0 where it is a float.
        kp_step: one count of the stiffness field [n], Nm/rad; 0 where it is a float.
        kd_step: one count of the damping field [n], Nms/rad; 0 where it is a float.
        max_rate_hz: highest loop rate the bus carries inside its budget.
        damping_alone: the motor damps with kp = 0; if not, kd goes at most as far of its range as
            kp of its own.
    """

    joints: tuple[str, ...]
    torque_on_host: bool
    gains_in_drive: bool
    torque_limit: Floats
    kp_max: Floats
    kd_max: Floats
    torque_step: Floats
    kp_step: Floats
    kd_step: Floats
    max_rate_hz: float
    damping_alone: bool = True


class Drive(Protocol):
    """Contract of a drive back end."""

    @property
    def capabilities(self) -> DriveCapabilities:
        """What this drive can do."""
        ...

    @property
    def watchdog_s(self) -> float:
        """After how long without a command the first motor stops following, seconds."""
        ...

    def enable(self) -> DriveState:
        """Check, then enable every motor with zero gains and zero torque; all or none.

        Raises:
            DriveError: naming motor, what was found, what was expected and the remedy.
        """
        ...

    def disable(self) -> None:
        """Take torque off every motor and have it confirmed."""
        ...

    def read(self) -> DriveState:
        """Collect the answers to the last ``write`` (or ask for the state, if there was none)."""
        ...

    def write(self, command: DriveCommand) -> WriteReport:
        """Send one command to every motor."""
        ...

    def clear_faults(self) -> None:
        """Clear latched faults of disabled motors."""
        ...


def check_command(
    tau: list[float],
    q: list[float],
    dq: list[float],
    kp: list[float],
    kd: list[float],
    joints: tuple[str, ...],
) -> None:
    """Refuse a command that must not reach a motor: lengths, finiteness, signs of gains.

    Raises:
        DriveError: COMMAND_INVALID naming joint, field and value.
    """
    n = len(joints)
    for name, values in (("tau_ff", tau), ("q", q), ("dq", dq), ("kp", kp), ("kd", kd)):
        if len(values) != n:
            raise DriveError(
                DriveFault.COMMAND_INVALID,
                f"command field {name} has {len(values)} values for {n} joints; nothing was sent",
            )
        for joint, value in zip(joints, values, strict=True):
            if not -1e300 < value < 1e300:  # false for NaN as well
                raise DriveError(
                    DriveFault.COMMAND_INVALID,
                    f"{joint}: command field {name} = {value} is not finite; nothing was sent",
                    (joint,),
                )
            if value < 0.0 and name in ("kp", "kd"):
                raise DriveError(
                    DriveFault.COMMAND_INVALID,
                    f"{joint}: command field {name} = {value} must not be negative; "
                    "nothing was sent",
                    (joint,),
                )


def describe_faults(state: DriveState, joints: tuple[str, ...]) -> str:
    """One line naming every joint that has a fault; empty when none has."""
    parts = []
    for joint, number in zip(joints, state.fault.tolist(), strict=True):
        if number:
            fault = DriveFault(number)
            parts.append(f"{joint}: {number} {fault.name} ({DRIVE_FAULT_TEXT[fault].cause})")
    return "; ".join(parts)


def render_markdown() -> str:
    """The fault list as a Markdown table, for docs."""
    rows = ["| number | name | cause | cure |", "|--:|---|---|---|"]
    rows += [
        f"| {int(fault)} | {fault.name} | {text.cause} | {text.cure} |"
        for fault, text in DRIVE_FAULT_TEXT.items()
    ]
    return "\n".join(rows) + "\n"
