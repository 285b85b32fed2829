"""The moteus back end: the library's own transport on a virtual bus, emulated controllers."""

from __future__ import annotations

import math
import uuid
from dataclasses import replace

import can
import moteus
import numpy as np
import pytest
from drives_support import HandClock

from niaf_impedance.drives import DriveCommand, DriveError, DriveFault, JointMap
from niaf_impedance.drives.moteus_drive import (
    COMMAND_BYTES,
    FAULT_CODES,
    REPLY_BYTES,
    TWO_PI,
    MoteusConfig,
    MoteusDrive,
    MoteusJoint,
    decode_fault,
)
from niaf_impedance.drives.moteus_emulator import MoteusEmulator

JOINTS = (
    MoteusJoint("shoulder", 1, 20.0, kp_nm_turn=600.0, kd_nm_s_turn=20.0),
    MoteusJoint("elbow", 4, 10.0, 400.0, 12.0, JointMap(-1, 2.0, 0.3)),
)
CONFIG = MoteusConfig(JOINTS, rate_hz=500.0, watchdog_s=0.05, reply_deadline_s=0.5)


class MoteusRig:
    """Drive and emulated controllers on one virtual bus; the emulator's clock is moved by hand."""

    def __init__(self) -> None:
        channel = f"moteus-{uuid.uuid4()}"
        self.clock = HandClock()
        self.q = np.array([0.4, -0.5])
        self.dq = np.zeros(2)
        self.emulator = MoteusEmulator(JOINTS, self.q, self.dq, clock=self.clock)
        self.bus = can.Bus(interface="virtual", channel=channel)
        self._serving = self.emulator.serve(self.bus)
        self._serving.__enter__()
        device = moteus.PythonCanDevice(interface="virtual", channel=channel)
        self.drive = MoteusDrive(moteus.Transport(device), CONFIG)

    def close(self) -> None:
        self.drive.close()
        self._serving.__exit__(None, None, None)
        self.bus.shutdown()


@pytest.fixture(scope="module")
def shared():
    rig = MoteusRig()
    yield rig
    rig.close()


@pytest.fixture
def rig(shared):
    """Motors stopped, healthy and at rest."""
    shared.q[:] = [0.4, -0.5]
    shared.dq[:] = 0.0
    for motor in shared.emulator.motors:
        motor.silent = False
        motor.mode, motor.fault = 0, 0
        motor.stored["servo.timeout_mode"] = 12.0
        motor.stored["servo.pid_position.kp"] = motor.joint.kp_nm_turn
    shared.drive.disable()
    shared.drive._checked = False
    shared.drive.config = CONFIG
    return shared


@pytest.fixture
def enabled(rig):
    rig.drive.enable()
    return rig


def command(**fields) -> DriveCommand:
    result = DriveCommand.zeros(2)
    for name, values in fields.items():
        getattr(result, name)[:] = values
    return result


def refused(fault: DriveFault, action) -> DriveError:
    with pytest.raises(DriveError) as caught:
        action()
    assert caught.value.fault is fault
    return caught.value


def test_state_is_read_in_joint_units(rig):
    rig.dq[:] = [0.7, -0.3]
    state = rig.drive.read()
    assert state.ok
    assert state.q == pytest.approx(rig.q, abs=1e-6)
    assert state.dq == pytest.approx(rig.dq, abs=1e-6)
    assert state.temperature_c == pytest.approx([32.0, 32.0])


def test_enabling_applies_no_torque_and_leaves_no_reference(enabled):
    assert [m.mode for m in enabled.emulator.motors] == [moteus.Mode.POSITION] * 2
    assert enabled.emulator.step() == pytest.approx([0.0, 0.0])
    assert math.isnan(enabled.emulator.motors[0].registers[moteus.Register.COMMAND_POSITION])


def test_host_torque_arrives_exactly_with_signs_limit_and_watchdog(enabled):
    report = enabled.drive.write(command(tau_ff=[3.25, -1.5]))
    assert report.saturations == ()
    assert enabled.emulator.step() == pytest.approx([3.25, -1.5])
    motor = enabled.emulator.motors[1]
    assert motor.torque_nm == pytest.approx(0.75)  # other direction, behind a gear of 2
    get = motor.registers.get
    assert get(moteus.Register.COMMAND_POSITION_MAX_TORQUE) == pytest.approx(10.0)
    assert get(moteus.Register.COMMAND_TIMEOUT) == pytest.approx(0.05)
    assert get(moteus.Register.COMMAND_ILIMIT_SCALE) == 0.0
    assert get(moteus.Register.COMMAND_VELOCITY_LIMIT) < 0.0
    assert get(moteus.Register.COMMAND_ACCEL_LIMIT) < 0.0
    # a zero request is exactly zero
    enabled.drive.write(command())
    assert enabled.emulator.step().tolist() == [0.0, 0.0]


def test_gains_in_the_drive_act_as_gains_at_the_joint(enabled):
    kp, kd = np.array([50.0, 40.0]), np.array([1.5, 1.0])
    reference = enabled.q + [0.05, -0.02]
    enabled.dq[:] = [0.3, -0.2]
    assert enabled.drive.write(command(q=reference, kp=kp, kd=kd)).saturations == ()
    expected = kp * (reference - enabled.q) - kd * enabled.dq
    assert enabled.emulator.step() == pytest.approx(expected, rel=1e-4)


def test_what_moteus_cannot_do_is_reported(enabled):
    kp_max, kd_max = enabled.drive.capabilities.kp_max[0], enabled.drive.capabilities.kd_max[0]
    assert kp_max == pytest.approx(600.0 / TWO_PI)
    report = enabled.drive.write(
        command(tau_ff=[25.0, 0.0], kp=[2 * kp_max, 0.0], kd=[2 * kd_max, 1.0])
    )
    found = {(s.joint, s.field): s for s in report.saturations}
    assert found["shoulder", "torque"].sent == pytest.approx(20.0)
    assert found["shoulder", "kp"].sent == pytest.approx(kp_max)
    assert found["shoulder", "kd"].sent == pytest.approx(kd_max)
    # damping without stiffness: the firmware would drop it
    assert found["elbow", "kd"].sent == 0.0
    assert "kd_scale" in found["elbow", "kd"].limit


def test_commands_that_are_not_finite_reach_no_motor(enabled):
    sent = enabled.drive.statistics.sent.copy()
    error = refused(
        DriveFault.COMMAND_INVALID, lambda: enabled.drive.write(command(tau_ff=[0.0, math.nan]))
    )
    assert error.motors == ("elbow",)
    assert (enabled.drive.statistics.sent == sent).all()


def test_the_watchdog_trips_without_commands_and_must_be_cleared(enabled):
    enabled.drive.write(command(tau_ff=[2.0, 0.0]))
    enabled.clock.advance(0.051)
    enabled.dq[:] = [1.0, 1.0]
    assert (enabled.emulator.step() < 0.0).all()
    enabled.drive.write(command(tau_ff=[2.0, 0.0]))
    assert (enabled.drive.read().fault == DriveFault.LOST_COMMUNICATION).all()
    enabled.drive.disable()
    assert enabled.drive.enable().ok


def test_a_silent_motor_is_named_and_keeps_its_stamp(enabled):
    enabled.drive.write(command())
    stamp = enabled.drive.read().stamp.copy()
    enabled.emulator.motors[1].silent = True
    enabled.drive.config = replace(CONFIG, reply_deadline_s=0.05)
    enabled.drive.write(command())
    state = enabled.drive.read()
    assert state.fault.tolist() == [0, DriveFault.MISSING_REPLY]
    assert state.stamp[1] == stamp[1]
    assert state.stamp[0] > stamp[0]
    error = refused(DriveFault.DISABLE_NOT_CONFIRMED, enabled.drive.disable)
    assert error.motors == ("elbow",)


@pytest.mark.parametrize(("code", "fault"), FAULT_CODES.items())
def test_fault_codes_have_names(code, fault):
    assert decode_fault(int(moteus.Mode.FAULT), code, True) is fault


def test_modes_have_names():
    assert decode_fault(0, 0, True) is DriveFault.DISABLED
    assert decode_fault(0, 0, False) is DriveFault.NONE
    assert decode_fault(11, 0, True) is DriveFault.LOST_COMMUNICATION
    assert decode_fault(9, 0, True) is DriveFault.WRONG_MODE
    assert decode_fault(1, 77, True) is DriveFault.UNKNOWN_STATUS
    assert decode_fault(10, 99, True) is DriveFault.NONE  # limiting, not a fault


def test_a_fault_of_one_motor_is_reported_for_its_joint_and_refuses_enabling(enabled):
    enabled.emulator.motors[0].inject_fault(33)
    enabled.drive.write(command())
    assert enabled.drive.read().fault.tolist() == [DriveFault.POWER_STAGE, 0]
    enabled.drive.disable()  # a stop clears it, as in the firmware
    enabled.emulator.motors[0].inject_fault(35)
    error = refused(DriveFault.ENABLE_REFUSED, enabled.drive.enable)
    assert error.motors == ("shoulder",)
    assert "SENSOR" in str(error)


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("servo.pid_position.kp", 50.0, DriveFault.GAIN_MISMATCH),
        ("servo.timeout_mode", 10.0, DriveFault.UNSAFE_TIMEOUT_MODE),
    ],
)
def test_self_check_refuses_and_names_motor_value_expected(rig, name, value, fault):
    rig.emulator.motors[1].stored[name] = value
    error = refused(fault, rig.drive.enable)
    assert error.motors == ("elbow",)
    for word in ("elbow", "id 4", name, f"{value:g}"):
        assert word in str(error)


def test_a_missing_motor_is_named(rig):
    rig.emulator.motors[0].silent = True
    rig.drive.config = replace(CONFIG, register_deadline_s=0.1)
    error = refused(DriveFault.NO_MOTOR, rig.drive.enable)
    assert error.motors == ("shoulder",)
    rig.emulator.motors[0].silent = False


def test_planned_frame_sizes_cover_the_real_ones():
    drive_joint = JOINTS[0]
    query = moteus.QueryResolution()
    query.voltage = moteus.IGNORE
    controller = moteus.Controller(id=drive_joint.motor_id, query_resolution=query)
    frame = controller.make_position(
        position=0.1, velocity=0.0, feedforward_torque=0.0, kp_scale=1.0, kd_scale=1.0,
        maximum_torque=1.0, watchdog_timeout=0.1, velocity_limit=-1.0, accel_limit=-1.0,
        ilimit_scale=0.0, query=True,
    )  # fmt: skip
    assert len(frame.data) <= COMMAND_BYTES
    assert frame.expected_reply_size <= REPLY_BYTES


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"watchdog_s": math.nan}, DriveFault.BAD_CONFIGURATION),
        ({"watchdog_s": 0.0}, DriveFault.BAD_CONFIGURATION),
        ({"joints": (JOINTS[0], replace(JOINTS[1], motor_id=1))}, DriveFault.BAD_CONFIGURATION),
        ({"joints": (replace(JOINTS[0], kp_nm_turn=0.0),)}, DriveFault.BAD_CONFIGURATION),
        ({"rate_hz": 5000.0}, DriveFault.BUS_OVER_BUDGET),
    ],
)
def test_contradictory_configurations_are_refused(change, fault):
    refused(fault, lambda: MoteusDrive(None, replace(CONFIG, **change)))


@pytest.mark.parametrize("where", ["host", "drive"])
def test_inertias_are_held_through_real_frames(enabled, where):
    target, inertia = np.array([0.4, -0.5]), np.array([0.05, 0.03])
    kp, kd = np.array([60.0, 40.0]), np.array([1.9, 1.0])
    enabled.q += [0.1, -0.1]
    wanted = DriveCommand.zeros(2)
    dt_s = 0.005
    for _ in range(200):
        state = enabled.drive.read()
        assert state.ok
        if where == "host":
            wanted.tau_ff[:] = kp * (target - state.q) - kd * state.dq
        else:
            wanted.q[:], wanted.kp[:], wanted.kd[:] = target, kp, kd
        assert enabled.drive.write(wanted).saturations == ()
        for _ in range(5):
            enabled.clock.advance(dt_s / 5)
            enabled.dq += enabled.emulator.step() / inertia * dt_s / 5
            enabled.q += enabled.dq * dt_s / 5
    assert enabled.q == pytest.approx(target, abs=2e-3)
