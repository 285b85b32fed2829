"""Description of the drives of one arm, read from YAML and checked field by field.

The arm's own description says what the controller must know of it; this file says how its motors
are reached: bus, ids, encoding ranges, directions, and how the loop over the bus runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import can
import yaml

from niaf_impedance.description_reader import DescriptionReader, RobotConfigError
from niaf_impedance.drives import mit_frames as mit
from niaf_impedance.drives.bus_load import BitRates
from niaf_impedance.drives.bus_loop import BusLoopConfig, Closing, GripperMotor
from niaf_impedance.drives.joint_map import JointMap
from niaf_impedance.drives.mit_can import MitCanConfig, MitJoint

_RANGES = ("position_rad", "velocity_rad_s", "torque_nm", "kp_max", "kd_max")


@dataclass(frozen=True)
class DriveDescription:
    """Motors of one arm on one bus.

    Attributes:
        bus: arguments of ``can.Bus``.
        drive: motors (the arm's joints in their order, then the gripper's), bit rates, watchdogs.
        loop: settings of the loop.
        gripper: the gripper's motor, if it is on the bus.
        source: the file.
    """

    bus: dict[str, Any]
    drive: MitCanConfig
    loop: BusLoopConfig
    gripper: GripperMotor | None
    source: Path

    def open_bus(self) -> can.BusABC:
        """Connect to the bus.

        Raises:
            RobotConfigError: the interface cannot be opened; says why.
        """
        try:
            return can.Bus(**self.bus)
        except (can.CanError, OSError, ValueError, NotImplementedError, ImportError) as error:
            raise RobotConfigError(
                f"{self.source}: bus {self.bus} cannot be opened: {error}"
            ) from error


def _optional_number(
    reader: DescriptionReader, key: str, default: float, low: float = 0.0, above: bool = False
) -> float:
    if key not in reader.mapping:
        reader.used.add(key)
        return default
    return reader.number(key, low, above=above)


def _whole(reader: DescriptionReader, key: str, low: int, high: int) -> int:
    value = reader.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise reader.fail(key, f"must be a whole number from {low} to {high}, not {value!r}")
    return value


def _choice(reader: DescriptionReader, key: str, choices: tuple[Any, ...]) -> Any:
    value = reader.get(key)
    if value not in choices or isinstance(value, bool) != isinstance(choices[0], bool):
        raise reader.fail(key, f"must be one of {list(choices)}, not {value!r}")
    return value


def _motor(reader: DescriptionReader) -> MitJoint:
    """One motor; reads the keys that arm joints and gripper have in common."""
    name = reader.text("joint")
    reader.used.add("ranges")
    ranges = None
    if "ranges" in reader.mapping:
        inner = DescriptionReader(reader.mapping["ranges"], f"{reader.where}.ranges", reader.file)
        ranges = mit.MotorRanges(**{key: inner.number(key, 0.0, above=True) for key in _RANGES})
        inner.finish()
    kind = reader.text("motor")
    if ranges is None and kind not in mit.MOTORS:
        raise reader.fail(
            "motor", f"{kind!r} is not known ({', '.join(mit.MOTORS)}); add its ranges"
        )
    return MitJoint(
        name=name,
        motor=kind,
        motor_id=_whole(reader, "motor_id", 1, 0xFF),
        reply_id=_whole(reader, "reply_id", 0, 0x7FE),
        torque_limit_nm=reader.number("torque_limit_nm", 0.0, above=True),
        map=JointMap(
            direction=_choice(reader, "direction", (1, -1)),
            gear=_optional_number(reader, "gear", 1.0, above=True),
            offset_rad=_optional_number(reader, "offset_rad", 0.0, -1e3),
        ),
        own_ranges=ranges,
    )


def load_drive_description(path: str | Path, arm_joints: tuple[str, ...]) -> DriveDescription:
    """Read and check the description of the drives of an arm with these joints.

    Raises:
        RobotConfigError: naming file, key, value and remedy.
    """
    file = Path(path).expanduser()
    try:
        document = yaml.safe_load(file.read_text())
    except OSError as error:
        raise RobotConfigError(f"cannot read drive description {file}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RobotConfigError(f"{file} is not valid YAML: {error}") from error
    reader = DescriptionReader(document, "", file)
    _choice(reader, "protocol", ("mit_can",))
    bus = reader.get("bus")
    if not isinstance(bus, dict) or not isinstance(bus.get("interface"), str):
        raise reader.fail("bus", f"must be a mapping with 'interface' (and what it needs): {bus!r}")
    rates = DescriptionReader(reader.get("bit_rates"), "bit_rates", file)
    nominal = rates.number("nominal_hz", 0.0, above=True)
    rates.used.add("data_hz")
    data = rates.number("data_hz", nominal) if "data_hz" in rates.mapping else None
    rates.finish()

    entries = reader.get("motors")
    if not isinstance(entries, list) or not entries:
        raise reader.fail("motors", "must be a list with one entry per joint")
    motors = []
    for index, entry in enumerate(entries):
        inner = DescriptionReader(entry, f"motors[{index}]", file)
        motors.append(_motor(inner))
        inner.finish()
    names = tuple(motor.name for motor in motors)
    if names != arm_joints:
        raise reader.fail(
            "motors", f"are those of {list(names)}; the arm has {list(arm_joints)}, in this order"
        )
    gripper = None
    reader.used.add("gripper")
    if reader.mapping.get("gripper") is not None:
        inner = DescriptionReader(reader.mapping["gripper"], "gripper", file)
        motors.append(_motor(inner))
        gripper = GripperMotor(
            joint=motors[-1].name,
            width_scale=inner.number("width_scale", 0.0, above=True),
            kp=inner.number("kp", 0.0, above=True),
            kd=inner.number("kd", 0.0),
        )
        inner.finish()

    rate_hz = reader.number("rate_hz", 10.0, 5000.0)
    watchdog = reader.number("watchdog_s", 0.0, 1.0, above=True)
    config = DriveDescription(
        bus=dict(bus),
        drive=MitCanConfig(
            joints=tuple(motors),
            rate_hz=rate_hz,
            bit_rates=BitRates(nominal, data),
            reply_deadline_s=reader.number("reply_deadline_s", 0.0, 1.0 / rate_hz, above=True),
            watchdog_max_s=watchdog,
            set_watchdog_s=watchdog if _choice(reader, "write_watchdog", (True, False)) else None,
        ),
        loop=BusLoopConfig(
            rate_hz=rate_hz,
            closing=Closing(_choice(reader, "closing", tuple(c.value for c in Closing))),
            fall_back=_choice(reader, "fall_back", (True, False)),
            late_periods=_optional_number(reader, "late_periods", 1.0, above=True),
            missing_limit=_whole(reader, "missing_limit", 2, 100),
        ),
        gripper=gripper,
        source=file,
    )
    reader.finish()
    return config
