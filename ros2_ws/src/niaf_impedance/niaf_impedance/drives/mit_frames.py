"""Byte-exact frames of MIT-mode motors (Damiao and the MIT-cheetah family). Pure: no bus, no clock.

A command is 8 bytes, fields packed tightly, most significant bit first::

    position 16 | velocity 12 | kp 12 | kd 12 | torque 12

A field of b bits spans [low, high] with count c meaning ``low + c (high - low) / (2**b - 1)``.
Values are rounded to the nearest count; a tie goes up.

**Zero.** Signed fields span [-R, R] with an even number of counts, so zero lies exactly half way
between two counts and *cannot* be sent: a zero request becomes count 2048 (32768 for position),
which decodes as +R/4095 (+R/65535), half a count (``zero_offset``). Encoders that truncate send the
same distance on the negative side. kp and kd start at count 0, which is exactly zero.

**Compensation.** With gains in the drive the half count of velocity is multiplied by kd and is
worth more than that of torque. Since the host knows the rounding errors it sends,
``pack_command`` takes their torque, kp (p_sent - p) + kd (v_sent - v), out of the torque field
before rounding that. What the drive then applies at zero error is off by at most half a *torque*
count, whatever the gains.

**Special frames** are seven FF bytes and one of FB to FE. A command at the top of all ranges with a
torque a little below its own would be the same bytes: it would enable, disable or *set a new zero*.
``pack_command`` never makes one: kd is then sent one count lower.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import NamedTuple

from niaf_impedance.drives.interface import DriveFault

PARAMETER_ID = 0x7FF
STATUS_ENABLED = 0x1
STATUS_DISABLED = 0x0
CONTROL_MODE_MIT = 1
TIMEOUT_UNIT_S = 50e-6

ENABLE = bytes.fromhex("fffffffffffffffc")
DISABLE = bytes.fromhex("fffffffffffffffd")
SET_ZERO = bytes.fromhex("fffffffffffffffe")
CLEAR_ERROR = bytes.fromhex("fffffffffffffffb")
SPECIAL = frozenset((ENABLE, DISABLE, SET_ZERO, CLEAR_ERROR))

READ_REGISTER = 0x33
WRITE_REGISTER = 0x55
SAVE_REGISTERS = 0xAA
REQUEST_STATE = 0xCC


class Register:
    """Registers this code uses."""

    TIMEOUT = 9
    CTRL_MODE = 10
    PMAX = 21
    VMAX = 22
    TMAX = 23
    CAN_BAUD = 35


REGISTER_NAMES = {
    9: "TIMEOUT",
    10: "CTRL_MODE",
    21: "PMAX",
    22: "VMAX",
    23: "TMAX",
    35: "CAN_BAUD",
}
FLOAT_REGISTERS = frozenset((Register.PMAX, Register.VMAX, Register.TMAX))
BAUD_CODES = {0: 125_000, 1: 200_000, 2: 250_000, 3: 500_000, 4: 1_000_000}

STATUS_FAULTS: dict[int, DriveFault] = {
    0x0: DriveFault.DISABLED,
    0x1: DriveFault.NONE,
    0x5: DriveFault.SENSOR,
    0x6: DriveFault.PARAMETER,
    0x8: DriveFault.OVER_VOLTAGE,
    0x9: DriveFault.UNDER_VOLTAGE,
    0xA: DriveFault.OVER_CURRENT,
    0xB: DriveFault.MOSFET_HOT,
    0xC: DriveFault.COIL_HOT,
    0xD: DriveFault.LOST_COMMUNICATION,
    0xE: DriveFault.OVERLOAD,
}

# Bits of the value that pack_command returns.
SATURATED_POSITION = 1
SATURATED_VELOCITY = 2
SATURATED_KP = 4
SATURATED_KD = 8
SATURATED_TORQUE = 16
SATURATION_FIELDS = (
    (SATURATED_POSITION, "position"),
    (SATURATED_VELOCITY, "velocity"),
    (SATURATED_KP, "kp"),
    (SATURATED_KD, "kd"),
    (SATURATED_TORQUE, "torque"),
)


@dataclass(frozen=True)
class MotorRanges:
    """Encoding ranges of one motor type (not its rating).

    Attributes:
        position_rad: PMAX; the position field spans plus and minus this.
        velocity_rad_s: VMAX.
        torque_nm: TMAX.
        kp_max: top of the stiffness field, Nm/rad.
        kd_max: top of the damping field, Nms/rad.
    """

    position_rad: float
    velocity_rad_s: float
    torque_nm: float
    kp_max: float = 500.0
    kd_max: float = 5.0


MOTORS: dict[str, MotorRanges] = {
    "DM3507": MotorRanges(12.5, 50.0, 5.0),
    "DM4310": MotorRanges(12.5, 30.0, 10.0),
    "DM4310_48V": MotorRanges(12.5, 50.0, 10.0),
    "DM4340": MotorRanges(12.5, 10.0, 28.0),
    "DM6006": MotorRanges(12.5, 45.0, 20.0),
    "DM8006": MotorRanges(12.5, 45.0, 40.0),
    "DM8009": MotorRanges(12.5, 45.0, 54.0),
    "DM10010": MotorRanges(12.5, 20.0, 200.0),
    "DMH3510": MotorRanges(12.5, 280.0, 1.0),
}


def to_count(value: float, low: float, high: float, bits: int) -> int:
    """Nearest count of a value inside [low, high]; a tie goes up."""
    top = (1 << bits) - 1
    # Divided first, so that a zero in a symmetric range is exactly half of the top.
    return min(top, math.floor((value - low) / (high - low) * top + 0.5))


def from_count(count: int, low: float, high: float, bits: int) -> float:
    """Value that a count stands for."""
    return low + count * (high - low) / ((1 << bits) - 1)


class ZeroOffset(NamedTuple):
    """What a request of zero decodes as: half a count of each signed field."""

    position_rad: float
    velocity_rad_s: float
    torque_nm: float


def zero_offset(ranges: MotorRanges) -> ZeroOffset:
    """Decoded value of a zero request per signed field (see the module's page)."""
    return ZeroOffset(
        ranges.position_rad / 65535.0, ranges.velocity_rad_s / 4095.0, ranges.torque_nm / 4095.0
    )


class MitCommand(NamedTuple):
    """Values of a command frame in motor units: rad, rad/s, Nm/rad, Nms/rad, Nm."""

    position: float
    velocity: float
    kp: float
    kd: float
    torque: float


def pack_command(
    out: bytearray,
    ranges: MotorRanges,
    position: float,
    velocity: float,
    kp: float,
    kd: float,
    torque: float,
    torque_limit_nm: float = math.inf,
    compensate: bool = True,
) -> int:
    """Write one command into ``out`` (8 bytes) and say which fields were clipped.

    Args:
        out: buffer of 8 bytes; untouched when this raises.
        ranges: encoding ranges of the motor.
        position: rad. velocity: rad/s. kp: Nm/rad. kd: Nms/rad. torque: Nm.
        torque_limit_nm: rating of the motor, at most this is requested as feed-forward.
        compensate: take the torque of the rounding errors out of the torque field.

    Returns:
        0, or a sum of ``SATURATED_*`` bits.

    Raises:
        ValueError: a value is NaN or infinite.
    """
    # One sum is NaN or infinite if any part is (or overflows, which is as bad).
    if not math.isfinite(position + velocity + kp + kd + torque):
        raise ValueError(
            f"command is not finite: position {position}, velocity {velocity}, kp {kp}, kd {kd}, "
            f"torque {torque}"
        )
    clipped = 0
    p_max, v_max = ranges.position_rad, ranges.velocity_rad_s
    t_max = min(ranges.torque_nm, torque_limit_nm)
    if not -p_max <= position <= p_max:
        clipped |= SATURATED_POSITION
        position = p_max if position > 0.0 else -p_max
    if not -v_max <= velocity <= v_max:
        clipped |= SATURATED_VELOCITY
        velocity = v_max if velocity > 0.0 else -v_max
    if not 0.0 <= kp <= ranges.kp_max:
        clipped |= SATURATED_KP
        kp = ranges.kp_max if kp > 0.0 else 0.0
    if not 0.0 <= kd <= ranges.kd_max:
        clipped |= SATURATED_KD
        kd = ranges.kd_max if kd > 0.0 else 0.0
    if not -t_max <= torque <= t_max:
        clipped |= SATURATED_TORQUE
        torque = t_max if torque > 0.0 else -t_max

    p = math.floor((position + p_max) / (2.0 * p_max) * 65535.0 + 0.5)
    v = math.floor((velocity + v_max) / (2.0 * v_max) * 4095.0 + 0.5)
    kp_count = math.floor(kp / ranges.kp_max * 4095.0 + 0.5)
    kd_count = math.floor(kd / ranges.kd_max * 4095.0 + 0.5)
    if compensate and (kp_count or kd_count):
        p_error = p * (2.0 * p_max / 65535.0) - p_max - position
        v_error = v * (2.0 * v_max / 4095.0) - v_max - velocity
        torque -= kp_count * (ranges.kp_max / 4095.0) * p_error
        torque -= kd_count * (ranges.kd_max / 4095.0) * v_error
        torque = min(max(torque, -t_max), t_max)  # a few counts at most: not worth a report
    t_range = ranges.torque_nm
    t = math.floor((torque + t_range) / (2.0 * t_range) * 4095.0 + 0.5)

    if (
        p == 0xFFFF
        and v == 0xFFF
        and kp_count == 0xFFF
        and kd_count == 0xFFF
        and 0xFFB <= t < 0xFFF
    ):
        kd_count = 0xFFE  # would be a special frame

    out[0] = p >> 8
    out[1] = p & 0xFF
    out[2] = v >> 4
    out[3] = (v & 0xF) << 4 | kp_count >> 8
    out[4] = kp_count & 0xFF
    out[5] = kd_count >> 4
    out[6] = (kd_count & 0xF) << 4 | t >> 8
    out[7] = t & 0xFF
    return clipped


def encode_command(
    ranges: MotorRanges, command: MitCommand, *, compensate: bool = False
) -> tuple[bytes, tuple[str, ...]]:
    """Bytes of one command and the names of the fields that were clipped."""
    out = bytearray(8)
    mask = pack_command(out, ranges, *command, compensate=compensate)
    return bytes(out), tuple(name for bit, name in SATURATION_FIELDS if mask & bit)


def decode_command(ranges: MotorRanges, data: bytes | bytearray) -> MitCommand:
    """What a motor understands from a command frame.

    Raises:
        ValueError: the frame has another length than 8 bytes.
    """
    _need_eight(data, "command")
    p = data[0] << 8 | data[1]
    v = data[2] << 4 | data[3] >> 4
    kp = (data[3] & 0xF) << 8 | data[4]
    kd = data[5] << 4 | data[6] >> 4
    t = (data[6] & 0xF) << 8 | data[7]
    return MitCommand(
        from_count(p, -ranges.position_rad, ranges.position_rad, 16),
        from_count(v, -ranges.velocity_rad_s, ranges.velocity_rad_s, 12),
        from_count(kp, 0.0, ranges.kp_max, 12),
        from_count(kd, 0.0, ranges.kd_max, 12),
        from_count(t, -ranges.torque_nm, ranges.torque_nm, 12),
    )


class MitReply(NamedTuple):
    """State that a motor reports, motor units."""

    status: int
    id_low: int  # low nibble of the motor id
    position: float
    velocity: float
    torque: float
    mosfet_c: int
    rotor_c: int
    at_range_end: bool  # position count is the first or the last one: the true value is unknown


def decode_reply(ranges: MotorRanges, data: bytes | bytearray) -> MitReply:
    """State from a reply frame.

    Raises:
        ValueError: the frame has another length than 8 bytes.
    """
    _need_eight(data, "reply")
    p = data[1] << 8 | data[2]
    v = data[3] << 4 | data[4] >> 4
    t = (data[4] & 0xF) << 8 | data[5]
    p_max, v_max, t_max = ranges.position_rad, ranges.velocity_rad_s, ranges.torque_nm
    return MitReply(
        data[0] >> 4,
        data[0] & 0xF,
        p * (2.0 * p_max / 65535.0) - p_max,
        v * (2.0 * v_max / 4095.0) - v_max,
        t * (2.0 * t_max / 4095.0) - t_max,
        data[6],
        data[7],
        p in (0, 0xFFFF),
    )


def encode_reply(
    ranges: MotorRanges,
    motor_id: int,
    status: int,
    position: float,
    velocity: float,
    torque: float,
    mosfet_c: int = 30,
    rotor_c: int = 30,
) -> bytes:
    """Reply frame as a motor sends it (for emulators); values outside the ranges are clipped."""
    p_max, v_max, t_max = ranges.position_rad, ranges.velocity_rad_s, ranges.torque_nm
    p = to_count(min(max(position, -p_max), p_max), -p_max, p_max, 16)
    v = to_count(min(max(velocity, -v_max), v_max), -v_max, v_max, 12)
    t = to_count(min(max(torque, -t_max), t_max), -t_max, t_max, 12)
    return bytes(
        (
            status << 4 | motor_id & 0xF,
            p >> 8,
            p & 0xFF,
            v >> 4,
            (v & 0xF) << 4 | t >> 8,
            t & 0xFF,
            mosfet_c,
            rotor_c,
        )
    )


def status_fault(status: int) -> DriveFault:
    """Named fault of a status nibble; DISABLED for 0, NONE for 1."""
    return STATUS_FAULTS.get(status, DriveFault.UNKNOWN_STATUS)


def read_register(motor_id: int, register: int) -> bytes:
    """Frame on PARAMETER_ID that asks a motor for one register."""
    return struct.pack("<HBBI", motor_id, READ_REGISTER, register, 0)


def write_register(motor_id: int, register: int, value: float) -> bytes:
    """Frame on PARAMETER_ID that writes one register (lost at power-off unless saved)."""
    return struct.pack("<HBB", motor_id, WRITE_REGISTER, register) + register_bytes(register, value)


def save_registers(motor_id: int) -> bytes:
    """Frame on PARAMETER_ID that saves all registers of a disabled motor to flash."""
    return struct.pack("<HBBI", motor_id, SAVE_REGISTERS, 0, 0)


def request_state(motor_id: int) -> bytes:
    """Frame on PARAMETER_ID that asks for a state reply without commanding anything."""
    return struct.pack("<HBBI", motor_id, REQUEST_STATE, 0, 0)


def register_bytes(register: int, value: float) -> bytes:
    """Four bytes of a register's value: float32 or uint32, little-endian."""
    if register in FLOAT_REGISTERS:
        return struct.pack("<f", value)
    return struct.pack("<I", int(value))


class RegisterReply(NamedTuple):
    """Answer to a register frame."""

    motor_id: int
    operation: int  # READ_REGISTER, WRITE_REGISTER or SAVE_REGISTERS
    register: int
    value: float


def decode_register(data: bytes | bytearray) -> RegisterReply:
    """Answer to a register frame. Only meaningful when one was asked for: a state reply may look
    the same.

    Raises:
        ValueError: the frame has another length than 8 bytes.
    """
    _need_eight(data, "register reply")
    motor_id, operation, register = struct.unpack_from("<HBB", data)
    form = "<f" if register in FLOAT_REGISTERS else "<I"
    return RegisterReply(motor_id, operation, register, struct.unpack_from(form, data, 4)[0])


def _need_eight(data: bytes | bytearray, what: str) -> None:
    if len(data) != 8:
        raise ValueError(f"{what} frame has {len(data)} bytes, expected 8: {bytes(data).hex()}")
