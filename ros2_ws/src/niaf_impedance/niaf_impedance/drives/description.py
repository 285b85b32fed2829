"""Description of the drives of one arm, read from YAML and checked field by field.

The arm's own description says what the controller must know of it; this file says how its motors
are reached: protocol, bus, ids, scaling, directions, and how the loop over the bus runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import can

from niaf_impedance.description_reader import (
    DescriptionReader,
    RobotConfigError,
    open_description,
)
from niaf_impedance.drives import mit_frames as mit
from niaf_impedance.drives.bus_load import BitRates
from niaf_impedance.drives.bus_loop import BusLoopConfig, Closing, GripperMotor
from niaf_impedance.drives.emulation import Emulator
from niaf_impedance.drives.interface import Drive
from niaf_impedance.drives.joint_map import JointMap
from niaf_impedance.drives.mit_can import MitCanConfig, MitCanDrive, MitJoint
from niaf_impedance.robot_config import default_robot_config_path

if TYPE_CHECKING:  # the package moteus is only needed for arms that have such motors
    from niaf_impedance.drives.moteus_drive import MoteusConfig, MoteusJoint

MIT_CAN, MOTEUS = "mit_can", "moteus"
#: what ``protocol`` may say, and ``arm_interface`` for an arm behind such motors
PROTOCOLS = (MIT_CAN, MOTEUS)

_RANGES = ("position_rad", "velocity_rad_s", "torque_nm", "kp_max", "kd_max")


@dataclass(frozen=True)
class DriveDescription:
    """Motors of one arm on one bus.

    Attributes:
        protocol: what the motors speak, one of ``PROTOCOLS``.
        bus: arguments of ``can.Bus``.
        drive: motors (the arm's joints in their order, then the gripper's), bit rates, watchdogs.
        loop: settings of the loop.
        gripper: the gripper's motor, if it is on the bus.
        source: the file.
    """

    protocol: str
    bus: dict[str, Any]
    drive: MitCanConfig | MoteusConfig
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


def make_drive(
    description: DriveDescription,
    bus: can.BusABC,
    clock: Callable[[], float] = time.monotonic,
) -> Drive:
    """The back end that the description names, on an open bus.

    Raises:
        DriveError: the configuration contradicts itself or does not fit on the bus.
    """
    if isinstance(description.drive, MitCanConfig):
        return MitCanDrive(bus, description.drive, clock)
    from niaf_impedance.drives.moteus_drive import MoteusDrive

    return MoteusDrive(bus, description.drive, clock)


def make_emulator(
    description: DriveDescription, clock: Callable[[], float] = time.monotonic
) -> Emulator[Any]:
    """Emulated motors that answer this back end's frames."""
    if isinstance(description.drive, MitCanConfig):
        from niaf_impedance.drives.mit_emulator import MitEmulator

        return MitEmulator(description.drive.joints, clock=clock)
    from niaf_impedance.drives.moteus_emulator import MoteusEmulator

    return MoteusEmulator(description.drive.joints, clock=clock)


def drives_of_arm(
    arm_interface: str, file: str | Path, arm_joints: tuple[str, ...]
) -> DriveDescription:
    """The description that a node's parameters name.

    Args:
        arm_interface: protocol that the arm is to be reached by, one of ``PROTOCOLS``.
        file: the description; empty: that of the simulated Panda.
        arm_joints: the arm's joints in their order.

    Raises:
        RobotConfigError: naming file, key, value and remedy, also where the file is for motors
            that speak something else.
    """
    path = file or default_robot_config_path(f"panda_{arm_interface}")
    reader = open_description(path, "drive")
    protocol = reader.choice("protocol", PROTOCOLS)
    if protocol != arm_interface:
        raise reader.fail(
            "protocol",
            f"is {protocol!r}, but arm_interface is {arm_interface!r}; set arm_interface to "
            f"{protocol!r}, or name the description of {arm_interface} motors as drive_config",
        )
    return load_drive_description(path, arm_joints)


def load_drive_description(path: str | Path, arm_joints: tuple[str, ...]) -> DriveDescription:
    """Read and check the description of the drives of an arm with these joints.

    Raises:
        RobotConfigError: naming file, key, value and remedy; also where what the protocol needs is
            not installed.
    """
    reader = open_description(path, "drive")
    protocol = reader.choice("protocol", PROTOCOLS)
    read_motor = _mit_motor if protocol == MIT_CAN else _moteus_motor(reader)
    bus = reader.get("bus")
    if not isinstance(bus, dict) or not isinstance(bus.get("interface"), str):
        raise reader.fail("bus", f"must be a mapping with 'interface' (and what it needs): {bus!r}")

    motors: list[Any] = []  # all MitJoint or all MoteusJoint
    for inner in reader.items("motors", "joint"):
        motors.append(read_motor(inner))
        inner.finish()
    names = tuple(motor.name for motor in motors)
    if names != arm_joints:
        raise reader.fail(
            "motors", f"are those of {list(names)}; the arm has {list(arm_joints)}, in this order"
        )
    gripper = None
    if reader.has("gripper"):
        inner = reader.inner("gripper")
        motors.append(read_motor(inner))
        gripper = GripperMotor(
            joint=motors[-1].name,
            width_scale=inner.number("width_scale", 0.0, above=True),
            kp=inner.number("kp", 0.0, above=True),
            kd=inner.number("kd", 0.0),
        )
        inner.finish()

    rate_hz = reader.number("rate_hz", 10.0, 5000.0)
    make_config = _mit_config if protocol == MIT_CAN else _moteus_config
    description = DriveDescription(
        protocol=protocol,
        bus=dict(bus),
        drive=make_config(reader, tuple(motors), rate_hz),
        loop=BusLoopConfig(
            rate_hz=rate_hz,
            closing=Closing(reader.choice("closing", tuple(c.value for c in Closing))),
            fall_back=reader.choice("fall_back", (True, False)),
            late_periods=reader.optional_number("late_periods", 1.0, 0.0, above=True),
            missing_limit=reader.whole("missing_limit", 2, 100),
        ),
        gripper=gripper,
        source=reader.file,
    )
    reader.finish()
    return description


def _map(reader: DescriptionReader) -> JointMap:
    return JointMap(
        direction=reader.choice("direction", (1, -1)),
        gear=reader.optional_number("gear", 1.0, 0.0, above=True),
        offset_rad=reader.optional_number("offset_rad", 0.0, -1e3),
    )


def _deadline(reader: DescriptionReader, rate_hz: float) -> float:
    return reader.number("reply_deadline_s", 0.0, 1.0 / rate_hz, above=True)


# -- MIT-mode motors -------------------------------------------------------------------------------
def _mit_motor(reader: DescriptionReader) -> MitJoint:
    ranges = None
    if reader.has("ranges"):
        inner = reader.inner("ranges")
        ranges = mit.MotorRanges(**{key: inner.number(key, 0.0, above=True) for key in _RANGES})
        inner.finish()
    kind = reader.text("motor")
    if ranges is None and kind not in mit.MOTORS:
        raise reader.fail(
            "motor", f"{kind!r} is not known ({', '.join(mit.MOTORS)}); add its ranges"
        )
    return MitJoint(
        name=reader.text("joint"),
        motor=kind,
        motor_id=reader.whole("motor_id", 1, 0xFF),
        reply_id=reader.whole("reply_id", 0, 0x7FE),
        torque_limit_nm=reader.number("torque_limit_nm", 0.0, above=True),
        map=_map(reader),
        own_ranges=ranges,
    )


def _mit_config(
    reader: DescriptionReader, motors: tuple[MitJoint, ...], rate_hz: float
) -> MitCanConfig:
    rates = reader.inner("bit_rates")
    nominal = rates.number("nominal_hz", 0.0, above=True)
    data = rates.number("data_hz", nominal) if rates.has("data_hz") else None
    rates.finish()
    watchdog_s = reader.number("watchdog_s", 0.0, 1.0, above=True)
    return MitCanConfig(
        joints=motors,
        rate_hz=rate_hz,
        bit_rates=BitRates(nominal, data),
        reply_deadline_s=_deadline(reader, rate_hz),
        watchdog_max_s=watchdog_s,
        set_watchdog_s=watchdog_s if reader.choice("write_watchdog", (True, False)) else None,
    )


# -- moteus ----------------------------------------------------------------------------------------
def _moteus_motor(top: DescriptionReader) -> Callable[[DescriptionReader], MoteusJoint]:
    try:
        from niaf_impedance.drives.moteus_drive import MoteusJoint
    except ImportError as error:
        raise top.fail(
            "protocol",
            f"{MOTEUS} needs the Python package moteus ({error}); install it with "
            "'pip install moteus' (the version is in requirements.txt)",
        ) from error

    def read(reader: DescriptionReader) -> MoteusJoint:
        return MoteusJoint(
            name=reader.text("joint"),
            motor_id=reader.whole("motor_id", 1, 126),
            torque_limit_nm=reader.number("torque_limit_nm", 0.0, above=True),
            kp_nm_turn=reader.number("kp_nm_turn", 0.0, above=True),
            kd_nm_s_turn=reader.number("kd_nm_s_turn", 0.0, above=True),
            map=_map(reader),
        )

    return read


def _moteus_config(
    reader: DescriptionReader, motors: tuple[MoteusJoint, ...], rate_hz: float
) -> MoteusConfig:
    from niaf_impedance.drives.moteus_drive import MoteusConfig

    rates = reader.inner("bit_rates")  # both: moteus speaks CAN FD only
    nominal = rates.number("nominal_hz", 0.0, above=True)
    data = rates.number("data_hz", nominal)
    rates.finish()
    return MoteusConfig(
        joints=motors,
        rate_hz=rate_hz,
        watchdog_s=reader.number("watchdog_s", 0.0, 1.0, above=True),
        bit_rates=BitRates(nominal, data),
        reply_deadline_s=_deadline(reader, rate_hz),
    )
