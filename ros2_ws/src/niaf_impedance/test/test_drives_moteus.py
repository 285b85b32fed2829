"""The moteus back end against emulated controllers that answer real register frames."""

from __future__ import annotations

import asyncio
import math
import uuid
from dataclasses import replace

import can
import moteus
import numpy as np
import pytest
from drives_support import HandClock

from niaf_impedance.drives import DriveCommand, DriveError, DriveFault, JointMap
from niaf_impedance.drives.bus_load import BitRates
from niaf_impedance.drives.emulation import InProcessBus
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
    """Drive and emulated controllers on a bus in this process, one clock by hand for both."""

    def __init__(self, joints=JOINTS, **config) -> None:
        self.clock = HandClock()
        self.q = np.array([0.4, -0.5])
        self.dq = np.zeros(2)
        self.emulator = MoteusEmulator(joints, self.q, self.dq, clock=self.clock)
        self.bus = InProcessBus(self.emulator)
        self.drive = MoteusDrive(self.bus, replace(CONFIG, joints=joints, **config), self.clock)

    def close(self) -> None:
        self.bus.shutdown()


@pytest.fixture
def rig():
    rig = MoteusRig()
    yield rig
    rig.close()


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


def test_gains_at_the_reach_of_the_motor_are_no_saturation(enabled):
    """Converted to the motor and back, a gain at its limit is a rounding above it now and then."""
    able, rng = enabled.drive.capabilities, np.random.default_rng(7)
    for share in [1.0, *rng.uniform(0.0, 1.0, 300)]:
        kp = share * able.kp_max
        limits = {"kp": kp, "kd": able.kd_max * kp / able.kp_max, "tau_ff": able.torque_limit}
        assert enabled.drive.write(command(**limits)).saturations == ()
        enabled.drive.read()
    kp = 0.5 * able.kp_max
    report = enabled.drive.write(command(kp=kp, kd=0.5001 * able.kd_max))
    assert [s.field for s in report.saturations] == ["kd", "kd"]


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
    enabled.clock.advance(0.002)
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
    error = refused(DriveFault.NO_MOTOR, rig.drive.enable)
    assert error.motors == ("shoulder",)
    assert "shoulder (id 1)" in str(error) and "elbow" not in str(error)


def test_a_lost_answer_of_the_console_is_asked_for_again(rig):
    rig.emulator.motors[1].drop_replies = 2
    rig.drive.enable()
    assert rig.drive.enabled


def test_what_an_earlier_question_left_in_the_console_is_not_taken_for_an_answer(rig):
    rig.emulator.motors[0]._console = b"17.5\r\n12"
    rig.drive.self_check()


def test_a_late_answer_keeps_the_stamp_of_its_own_request(enabled):
    """Frames carry no number: what is queued when the next command goes out is older than it."""
    enabled.drive.write(command())
    first_s = enabled.clock.now_s
    late = enabled.bus._queue.pop()  # the elbow's answer stays on the way
    assert enabled.drive.read().missing.tolist() == [0, 1]
    enabled.clock.advance(0.002)
    enabled.bus.inject(late)
    enabled.drive.write(command())
    assert enabled.drive.statistics.late.tolist() == [0, 1]
    assert enabled.drive._state.stamp[1] == first_s
    state = enabled.drive.read()
    assert state.ok and state.stamp.tolist() == [enabled.clock.now_s] * 2


def test_strange_frames_are_counted_and_change_nothing(enabled):
    before = enabled.drive.read().copy()
    rng = np.random.default_rng(3)
    frames = [can.Message(arbitration_id=0x0900, data=bytes(8), is_extended_id=True, is_fd=True)]
    for size in (0, 1, 3, 12, 64):  # under a motor's own id
        data = rng.integers(0, 256, size).astype(np.uint8).tobytes()
        frames.append(can.Message(arbitration_id=0x0100, data=data, is_fd=True))
    for frame in frames:
        enabled.bus.inject(frame)
    enabled.drive.write(command())
    state = enabled.drive.read()
    assert state.ok and state.q == pytest.approx(before.q)
    assert enabled.drive.statistics.bus.tolist() == [1, 0, 5, 0]


def test_bus_off_and_a_refused_frame_are_named(enabled):
    enabled.bus.inject(can.Message(is_error_frame=True, arbitration_id=0x40))
    refused(DriveFault.BUS_OFF, enabled.drive.read)
    enabled.bus.disconnect()
    refused(DriveFault.BUS_ERROR, lambda: enabled.drive.write(command()))


def test_a_bus_that_hears_itself_changes_nothing(rig):
    """As a multicast bus: the host's own frames come back before the answers."""
    send = rig.bus.send

    def send_and_hear(message, timeout=None):
        rig.bus.inject(message)
        send(message)

    rig.bus.send = send_and_hear
    rig.drive.enable()
    rig.drive.write(command(tau_ff=[1.0, 0.5]))
    assert rig.drive.read().ok
    assert rig.emulator.step() == pytest.approx([1.0, 0.5])
    assert rig.drive.statistics.bus.tolist() == [0, 0, 0, 0]


def test_the_library_itself_drives_the_emulated_motors():
    """The emulator against the library's own python-can transport, without any code of ours."""
    channel = f"moteus-{uuid.uuid4()}"
    emulator = MoteusEmulator(JOINTS, np.array([TWO_PI, 0.0]), np.zeros(2))
    motors = can.Bus(interface="virtual", channel=channel)

    async def drive() -> list:
        device = moteus.PythonCanDevice(interface="virtual", channel=channel)
        with moteus.Transport(device) as transport:
            controller = moteus.Controller(id=1, transport=transport)
            stopped = await controller.set_stop(query=True)
            moving = await controller.set_position(
                position=1.5, velocity=0.0, kp_scale=0.5, kd_scale=0.5, maximum_torque=20.0,
                watchdog_timeout=5.0, query=True,
            )
            stream = moteus.Stream(controller, use_flow_control=False)
            answer = await stream.command(
                b"conf get servo.pid_position.kp", allow_any_response=True
            )
            return [stopped, moving, answer]

    with emulator.serve(motors):
        stopped, moving, answer = asyncio.run(asyncio.wait_for(drive(), 10.0))
    motors.shutdown()
    assert stopped.values[moteus.Register.MODE] == moteus.Mode.STOPPED
    assert moving.values[moteus.Register.POSITION] == pytest.approx(1.0, abs=1e-3)
    assert emulator.motors[0].mode == moteus.Mode.POSITION
    assert emulator.step()[0] == pytest.approx(20.0)  # 600 * 0.5 * 0.5 turns, limited
    assert float(answer) == 600.0


def test_frames_are_as_long_as_planned(enabled):
    sent = []
    enabled.bus.send, answer = lambda m, timeout=None: sent.append(m), enabled.emulator.answer
    enabled.drive.write(command(q=[0.4, -0.5], kp=[20.0, 20.0]))
    assert [len(message.data) for message in sent] == [COMMAND_BYTES] * 2
    assert [len(answer(message)[0].data) for message in sent] == [REPLY_BYTES] * 2
    assert all(m.is_fd and m.bitrate_switch and m.is_extended_id for m in sent)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"watchdog_s": math.nan}, DriveFault.BAD_CONFIGURATION),
        ({"watchdog_s": 0.0}, DriveFault.BAD_CONFIGURATION),
        ({"joints": (JOINTS[0], replace(JOINTS[1], motor_id=1))}, DriveFault.BAD_CONFIGURATION),
        ({"joints": (replace(JOINTS[0], kp_nm_turn=0.0),)}, DriveFault.BAD_CONFIGURATION),
        ({"bit_rates": BitRates(1e6)}, DriveFault.BAD_CONFIGURATION),
        ({"reply_deadline_s": 5e-4}, DriveFault.BAD_CONFIGURATION),
        ({"rate_hz": 5000.0}, DriveFault.BUS_OVER_BUDGET),
    ],
)
def test_contradictory_configurations_are_refused(change, fault):
    emulator = MoteusEmulator(JOINTS)
    refused(fault, lambda: MoteusDrive(InProcessBus(emulator), replace(CONFIG, **change)))


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
