"""Drive descriptions: the shipped ones mean what they say, and bad ones are refused by name."""

from __future__ import annotations

import sys
from pathlib import Path

import can
import numpy as np
import pytest
import yaml

from niaf_impedance import default_robot_config_path
from niaf_impedance.drives import DriveError, DriveFault
from niaf_impedance.drives.bus_loop import watchdog_problem
from niaf_impedance.drives.description import (
    MIT_CAN,
    MOTEUS,
    PROTOCOLS,
    drives_of_arm,
    load_drive_description,
    make_drive,
    make_emulator,
)
from niaf_impedance.drives.emulation import InProcessBus
from niaf_impedance.drives.mit_can import MitCanDrive
from niaf_impedance.drives.moteus_drive import TWO_PI, MoteusDrive
from niaf_impedance.parameters import node_schema
from niaf_impedance.robot_config import RobotConfigError
from niaf_impedance.settings import ControllerConfig


def shipped(protocol: str) -> Path:
    return default_robot_config_path(f"panda_{protocol}")


@pytest.fixture
def changed(tmp_path):
    """A shipped description with one piece of text replaced."""

    def make(protocol: str, old: str, new: str) -> Path:
        text = shipped(protocol).read_text()
        assert old in text
        file = tmp_path / "drives.yaml"
        file.write_text(text.replace(old, new, 1))
        return file

    return make


@pytest.mark.parametrize(
    ("protocol", "back_end"), [(MIT_CAN, MitCanDrive), (MOTEUS, MoteusDrive)]
)
def test_a_description_opens_the_back_end_that_it_names(arm, protocol, back_end):
    description = drives_of_arm(protocol, "", arm.joint_names)
    assert (description.protocol, description.source) == (protocol, shipped(protocol))
    with InProcessBus(make_emulator(description)) as bus:
        drive = make_drive(description, bus)
        assert isinstance(drive, back_end)
        assert drive.capabilities.joints == (*arm.joint_names, "panda_finger_joint1")
        assert drive.enable().ok  # its self-check agrees with the emulated motors
        drive.disable()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_entry_of_a_description_is_in_force(arm, protocol):
    document = yaml.safe_load(shipped(protocol).read_text())
    description = load_drive_description(shipped(protocol), arm.joint_names)
    drive, loop = description.drive, description.loop
    assert description.bus == document["bus"]
    assert drive.bit_rates.nominal == document["bit_rates"]["nominal_hz"]
    assert drive.bit_rates.data == document["bit_rates"]["data_hz"]
    assert drive.rate_hz == loop.rate_hz == document["rate_hz"]
    assert drive.reply_deadline_s == document["reply_deadline_s"]
    assert (loop.closing.value, loop.fall_back) == (document["closing"], document["fall_back"])
    assert loop.missing_limit == document["missing_limit"]
    watchdog_s = drive.set_watchdog_s if protocol == MIT_CAN else drive.watchdog_s
    assert watchdog_s == document["watchdog_s"]
    names = {"joint": "name", "ranges": "own_ranges"}
    in_map = {"direction": 1, "gear": 1.0, "offset_rad": 0.0}
    entries = [*document["motors"], document["gripper"]]
    for entry, motor in zip(entries, drive.joints, strict=True):
        for key, default in in_map.items():
            assert getattr(motor.map, key) == entry.pop(key, default)
        for key, value in entry.items():
            if key in ("width_scale", "kp", "kd"):
                assert getattr(description.gripper, key) == value
                continue
            found = getattr(motor, names.get(key, key))
            assert (vars(found) if key == "ranges" else found) == value


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_shipped_description_suits_the_shipped_controller(arm, protocol):
    """All default gains act in the motors, and a silent one is named before anything times out."""
    description = drives_of_arm(protocol, "", arm.joint_names)
    with InProcessBus(make_emulator(description)) as bus:
        capabilities = make_drive(description, bus).capabilities
    kp = np.array([joint.kp.default for joint in arm.config.joints])
    kd = np.array([joint.kd.default for joint in arm.config.joints])
    n = arm.n
    assert (kp <= capabilities.kp_max[:n]).all()
    share = np.ones(n) if capabilities.damping_alone else kp / capabilities.kp_max[:n]
    assert (kd <= share * capabilities.kd_max[:n] * (1.0 + 1e-6)).all()
    assert (capabilities.torque_limit[:n] <= arm.limits.torque_nm * (1.0 + 1e-9)).all()
    assert not watchdog_problem(
        description.loop, description.drive.watchdog_s if protocol == MOTEUS else 0.1,
        ControllerConfig().state_timeout_s,
    )


def test_stored_gains_of_moteus_become_the_largest_gains_at_the_joint(arm):
    description = drives_of_arm(MOTEUS, "", arm.joint_names)
    with InProcessBus(make_emulator(description)) as bus:
        capabilities = make_drive(description, bus).capabilities
    assert capabilities.kp_max[6] == pytest.approx(4.0 * 400.0 / TWO_PI)  # behind a gear of 2
    assert capabilities.torque_limit[6] == pytest.approx(12.0)


BAD = [
    ("protocol: {p}", "protocol: voodoo", "protocol.*mit_can.*moteus.*voodoo"),
    ("motor_id: {three}", "motor_id: 0x300", "motors.2..motor_id"),
    ("direction: -1", "direction: 0", "direction.*one of"),
    ("closing: gains", "closing: voodoo", "closing.*torque"),
    ("rate_hz: 250.0", "rate_hz: fast", "rate_hz.*number"),
    ("panda_joint3,", "panda_joint9,", "panda_joint9.*in this order"),
    ("fall_back: true", "fallback: true", "fall_back.*missing"),
    ("watchdog_s: 0.1", "watchdog_s: 3.0", "watchdog_s: is 3 but must be > 0 and <= 1"),
    ("reply_deadline_s: 0.003", "reply_deadline_s: 0.03", "reply_deadline_s: is 0.03"),
    ("bus: {interface", "bus: {kind", "bus: must be a mapping with 'interface'"),
    ("missing_limit: 3", "missing_limit: 3\nspeed: 3", "speed: unknown key; known keys here"),
]  # fmt: skip
BAD_MIT = [
    ("motor: DM3507", "motor: DM9", "DM9.*not known"),
    ("kd_max: 20.0", "kd_max: 0.0", "kd_max.*> 0"),
    ("write_watchdog: true", "write_watchdog: 1", "write_watchdog: must be one of"),
]
BAD_MOTEUS = [
    ("motor_id: 3", "motor_id: 127", "motors.2..motor_id.*1 to 126"),
    ("kp_nm_turn: 400.0", "kp_nm_turn: 0.0", "motors.6..kp_nm_turn: is 0 but must be > 0"),
    ("kd_nm_s_turn: 80.0", "kd_nm_turn: 80.0", "motors.6..kd_nm_s_turn: missing; add it"),
    (", data_hz: 5000000.0", "", "bit_rates.data_hz: missing"),
    ("motor_id: 1,", "motor_id: 1, reply_id: 0x11,", "motors.0..reply_id: unknown key"),
    ("watchdog_s: 0.1", "write_watchdog: true\nwatchdog_s: 0.1", "write_watchdog: unknown key"),
]


@pytest.mark.parametrize(
    ("protocol", "old", "new", "words"),
    [(p, *bad) for p in PROTOCOLS for bad in BAD]
    + [(MIT_CAN, *bad) for bad in BAD_MIT]
    + [(MOTEUS, *bad) for bad in BAD_MOTEUS],
)
def test_a_bad_description_is_refused_by_name(arm, changed, protocol, old, new, words):
    old = old.replace("{p}", protocol).replace("{three}", "0x03" if protocol == MIT_CAN else "3")
    file = changed(protocol, old, new)
    with pytest.raises(RobotConfigError, match=words) as caught:
        load_drive_description(file, arm.joint_names)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "fault", "words"),
    [
        ("motor_id: 3,", "motor_id: 2,", DriveFault.BAD_CONFIGURATION, "share motor_id 2"),
        ("watchdog_s: 0.1", "watchdog_s: 0.01", DriveFault.BAD_CONFIGURATION, "three periods"),
        ("deadline_s: 0.0035", "deadline_s: 0.002", DriveFault.BAD_CONFIGURATION, "2.43 ms"),
        ("nominal_hz: 1000000", "nominal_hz: 250000", DriveFault.BUS_OVER_BUDGET, "at most"),
    ],
)
def test_what_does_not_fit_the_bus_is_refused_with_the_reason(
    arm, changed, old, new, fault, words
):
    description = load_drive_description(changed(MOTEUS, old, new), arm.joint_names)
    bus = InProcessBus(make_emulator(description))
    with bus, pytest.raises(DriveError, match=words) as caught:
        make_drive(description, bus)
    assert caught.value.fault is fault


def test_the_parameters_of_node_and_description_must_agree(arm):
    with pytest.raises(RobotConfigError) as caught:
        drives_of_arm(MIT_CAN, shipped(MOTEUS), arm.joint_names)
    for word in (str(shipped(MOTEUS)), "protocol", "'moteus'", "arm_interface", "drive_config"):
        assert word in str(caught.value)
    with pytest.raises(RobotConfigError, match="cannot read drive description .*nowhere.yaml"):
        drives_of_arm(MOTEUS, "/nowhere.yaml", arm.joint_names)


def test_the_node_offers_every_protocol():
    spec = next(s for s in node_schema() if s.name == "arm_interface")
    assert spec.choices == ("effort", *PROTOCOLS)


def test_without_the_package_moteus_only_moteus_is_refused(arm, monkeypatch):
    monkeypatch.setitem(sys.modules, "moteus", None)
    monkeypatch.delitem(sys.modules, "niaf_impedance.drives.moteus_drive")
    with pytest.raises(RobotConfigError, match="protocol: moteus needs.*pip install moteus"):
        load_drive_description(shipped(MOTEUS), arm.joint_names)
    assert load_drive_description(shipped(MIT_CAN), arm.joint_names).protocol == MIT_CAN


def test_a_bus_that_cannot_be_opened_is_named(arm, changed):
    file = changed(MOTEUS, "interface: udp_multicast", "interface: no_such_thing")
    description = load_drive_description(file, arm.joint_names)
    with pytest.raises(RobotConfigError, match="no_such_thing.*cannot be opened") as caught:
        description.open_bus()
    assert isinstance(caught.value.__cause__, can.CanError)
