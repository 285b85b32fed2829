"""The loop over the bus: both ways of closing it, and all that can fail, with time by hand."""

from __future__ import annotations

from dataclasses import replace

import can
import numpy as np
import pytest
from drives_support import HandClock
from impedance_support import make_spline

from niaf_impedance import ControllerConfig, ImpedanceController, default_robot_config_path
from niaf_impedance.controller import ResetRefusedError
from niaf_impedance.drives import DriveError, DriveFault
from niaf_impedance.drives import mit_frames as mit
from niaf_impedance.drives.bus_loop import (
    BusLoop,
    BusLoopConfig,
    BusLoopError,
    Closing,
    watchdog_problem,
)
from niaf_impedance.drives.description import load_drive_description
from niaf_impedance.drives.emulation import InProcessBus
from niaf_impedance.drives.mit_can import MitCanDrive
from niaf_impedance.drives.mit_emulator import MitEmulator
from niaf_impedance.faults import Fault, Mode

PERIOD_S = 0.004


class ArmRig:
    """The Panda's motors in one process; the arm itself is moved by the test (``q``, ``dq``)."""

    def __init__(self, arm, *, own_ranges: bool = True, **loop) -> None:
        self.arm, self.clock = arm, HandClock()
        description = load_drive_description(
            default_robot_config_path("panda_mit_can"), arm.joint_names
        )
        motors = description.drive.joints
        if not own_ranges:  # the largest motor of the table: kd ends at 5
            motors = tuple(
                replace(m, motor="DM10010", own_ranges=None, map=replace(m.map, gear=1.0))
                for m in motors
            )
        self.emulator = MitEmulator(motors, clock=self.clock)
        self.emulator.q[: arm.n] = arm.config.home_rad
        self.emulator.q[arm.n] = 0.03
        self.bus = InProcessBus(self.emulator)
        self.drive = MitCanDrive(self.bus, replace(description.drive, joints=motors), self.clock)
        self.controller = ImpedanceController(ControllerConfig(), arm)
        damp = np.array([joint.damp_nms_rad for joint in arm.config.joints])
        self.loop = BusLoop(
            self.drive, self.controller, arm.joint_names, damp,
            replace(description.loop, **loop), description.gripper,
        )
        self.loop.clock_offset_s = -100.0

    @property
    def q(self):
        return self.emulator.q[: self.arm.n]

    @property
    def dq(self):
        return self.emulator.dq[: self.arm.n]

    @property
    def motors(self):
        return self.emulator.motors

    def start(self) -> None:
        self.loop.start(0.02)

    def step(self, count: int = 1, late_s: float = 0.0) -> np.ndarray:
        """Steps of the host; the torque that the motors apply after the last one."""
        for _ in range(count):
            self.clock.advance(PERIOD_S)
            self.loop.step(self.clock.now_s - late_s, self.clock.now_s)
        return self.emulator.step()[: self.arm.n].copy()

    def close(self) -> None:
        self.bus.shutdown()


@pytest.fixture
def make(arm):
    rigs = []

    def build(**settings) -> ArmRig:
        rigs.append(ArmRig(arm, **settings))
        return rigs[-1]

    yield build
    for rig in rigs:
        rig.close()


@pytest.fixture
def running(make):
    rig = make()
    rig.start()
    rig.step(30)
    return rig


def fault_of(rig) -> tuple[Mode, Fault, str]:
    return rig.controller.mode, rig.controller.fault, rig.controller.fault_joint


# -- closing the loop ------------------------------------------------------------------------------
@pytest.mark.parametrize("own_ranges", [True, False])
@pytest.mark.parametrize("closing", list(Closing))
def test_the_motors_apply_what_the_controller_asks_for(make, closing, own_ranges):
    rig = make(closing=closing, own_ranges=own_ranges)
    rig.start()
    rig.step(30)
    rng = np.random.default_rng(1)
    rig.q[:] += rng.uniform(-0.02, 0.02, rig.arm.n)
    rig.dq[:] = rng.uniform(-0.05, 0.05, rig.arm.n)
    rig.step(20)
    applied = rig.step()
    step = rig.drive.capabilities.torque_step[: rig.arm.n]
    kp, kd = rig.controller.kp, rig.controller.kd
    # the host knows the state to half a count, and carries it on by the velocity over a period
    ranges = [motor.joint.ranges for motor in rig.motors[: rig.arm.n]]
    q_error = np.array([r.position_rad / 65535 for r in ranges]) + np.abs(rig.dq) * PERIOD_S
    dq_error = np.array([r.velocity_rad_s / 4095 for r in ranges])
    bound = step + 1.5 * (kp * q_error + kd * dq_error)
    assert (np.abs(applied - rig.controller.telemetry.tau) < bound).all()
    in_motor = np.array([motor.command.kd for motor in rig.motors[: rig.arm.n]])
    if closing is Closing.TORQUE:
        assert not in_motor.any()
    elif own_ranges:
        assert (in_motor > 0.9 * kd / [m.joint.map.gear**2 for m in rig.motors[:7]]).all()
    else:  # what the frame cannot carry stays with the host
        assert in_motor == pytest.approx(np.minimum(kd, 5.0), abs=1e-3)
        assert rig.loop.host_share(kp, kd)[1] == pytest.approx(np.maximum(kd - 5.0, 0.0))


def test_activation_holds_the_measured_pose_and_steps_no_torque(make):
    rig = make()
    rig.start()
    assert rig.controller.mode is Mode.HOLD
    assert rig.controller.telemetry.q_ref == pytest.approx(rig.q, abs=1e-4)
    assert rig.controller.gripper_m == pytest.approx(0.06, abs=1e-4)
    before = rig.emulator.step()[:7].copy()
    limit = rig.arm.limits.torque_rate_nm_s * PERIOD_S
    for _ in range(30):
        torque = rig.step()
        assert (np.abs(torque - before) <= limit + 0.2).all()
        before = torque
    assert torque == pytest.approx(rig.arm.gravity_torque(rig.q), abs=0.2)


def test_damping_acts_in_the_motors(running):
    running.controller.estop()
    running.step(20)
    running.dq[:] = 0.2
    moving = running.emulator.step()[:7].copy()  # the host has not seen it yet
    running.dq[:] = 0.0
    resting = running.emulator.step()[:7]
    damp = [joint.damp_nms_rad for joint in running.arm.config.joints]
    assert resting - moving == pytest.approx(0.2 * np.array(damp), rel=0.01)
    assert all(motor.command.kp == 0.0 for motor in running.motors[:7])


def test_stiffness_in_the_motor_never_passes_the_torque_limit(running):
    running.dq[5] = -1.0
    torques = []
    for _ in range(100):  # pushed 0.4 rad away: 40 Nm of stiffness for a motor of 12 Nm
        running.q[5] -= PERIOD_S
        torques.append(running.step()[5])
    assert running.controller.mode is Mode.HOLD
    # half a count of position (6 mNm), velocity (12) and torque (4), measured and commanded
    assert max(torques) <= 12.0 + 2 * 0.022 + 1e-3
    assert max(torques) > 11.9
    assert running.loop.figures.saturated == 0


def test_deactivation_fades_the_stiffness_in_the_motors_then_disables_them(running):
    running.q[:] += 0.005
    running.step(5)
    full = np.array([motor.command.kp for motor in running.motors[:7]])
    running.controller.deactivate(running.controller.last_tick_s)
    shares = []
    while running.loop.enabled and len(shares) < 200:
        running.step()
        shares.append(running.motors[0].command.kp / full[0])
    assert len(shares) < 150
    assert (np.diff(shares[:-1]) <= 1e-3).all() and min(shares[:-1]) < 0.05
    assert [m.status for m in running.motors] == [mit.STATUS_DISABLED] * 8


# -- late host -------------------------------------------------------------------------------------
def test_a_late_host_hands_the_gains_to_the_motors_and_says_so(make):
    rig = make(closing=Closing.TORQUE)
    rig.start()
    rig.step(30)
    rig.q[:] += 0.01
    before = rig.step(10)
    rig.step(2, late_s=1.5 * PERIOD_S)
    assert rig.loop.closing is Closing.TORQUE
    after = rig.step(1, late_s=1.5 * PERIOD_S)
    assert rig.loop.closing is Closing.GAINS
    assert "LOOP_LATE" in rig.loop.fell_back and "3 steps" in rig.loop.fell_back
    assert all(motor.command.kp > 0.0 for motor in rig.motors[:7])
    assert after == pytest.approx(before, abs=0.3)  # no step in torque
    assert rig.controller.mode is Mode.HOLD


def test_falling_back_is_a_choice(make):
    rig = make(closing=Closing.TORQUE, fall_back=False)
    rig.start()
    rig.step(10, late_s=1.5 * PERIOD_S)
    assert rig.loop.closing is Closing.TORQUE
    assert rig.loop.figures.late_steps == 10
    assert rig.loop.figures.worst_lateness_s == pytest.approx(1.5 * PERIOD_S)


def following(rig) -> None:
    """Take over and follow a motion of a second (so small that the arm here may stand still)."""
    rig.start()
    rig.step(2)
    now = rig.controller.last_tick_s
    assert rig.controller.offer(now, make_spline(rig.q.copy(), now, 1, reach=0.002)).accepted
    rig.step(2)
    assert rig.controller.mode is Mode.TRACK


def until(rig, mode: Mode, count: int, late_s: float) -> int:
    for i in range(count):
        rig.step(1, late_s)
        if rig.controller.mode is mode:
            return i + 1
    raise AssertionError(f"not {mode.name} after {count} steps")


def test_a_host_that_stays_late_brakes_and_then_damps_by_name(make):
    rig = make(closing=Closing.GAINS)
    following(rig)
    late_s = 1.5 * PERIOD_S
    rig.step(3, late_s)
    assert rig.controller.mode is Mode.TRACK, "three late steps are counted"
    until(rig, Mode.BRAKE, 40, late_s)
    assert rig.controller.fault is Fault.NONE
    assert "late enough to brake" in rig.loop.lateness.text
    until(rig, Mode.DAMP, 80, late_s)
    assert rig.controller.fault is Fault.LOOP_LATE
    assert "late enough to damp" in rig.loop.problem
    assert all(motor.command.kp == 0.0 for motor in rig.motors[:7])
    rig.step(5)  # damping goes on
    rig.loop.reset(rig.clock.now_s)
    rig.step(5)
    assert rig.controller.mode is Mode.HOLD and rig.loop.problem == ""


def test_gains_in_the_motors_come_before_braking_where_they_are_configured(make):
    rig = make(closing=Closing.TORQUE)
    following(rig)
    rig.step(1, late_s=0.015)  # late enough to brake
    assert rig.loop.closing is Closing.GAINS
    rig.step(2)
    assert rig.controller.mode is Mode.TRACK
    rig.step(1, late_s=0.015)  # and again
    rig.step(1)
    assert rig.controller.mode is Mode.BRAKE


def test_one_step_as_late_as_a_state_may_be_old_damps(make):
    rig = make(closing=Closing.TORQUE)
    following(rig)
    rig.clock.advance(0.021)
    rig.step(1, late_s=0.021)
    assert (rig.controller.mode, rig.controller.fault) == (Mode.DAMP, Fault.LOOP_LATE)


def test_late_steps_far_apart_are_no_reason_to_fall_back(make):
    rig = make(closing=Closing.TORQUE, late_window_s=0.1)
    rig.start()
    for _ in range(4):
        rig.step(1, late_s=1.5 * PERIOD_S)
        rig.step(30)
    assert rig.loop.closing is Closing.TORQUE


# -- replies and faults ----------------------------------------------------------------------------
@pytest.mark.parametrize("speed", [0.1, 0.5])
def test_one_lost_reply_is_bridged(running, speed):
    running.dq[2] = speed
    for _ in range(3):
        running.q[2] += speed * PERIOD_S
        running.step()
    running.motors[2].drop_replies = 1
    seen = []
    for _ in range(4):
        running.q[2] += speed * PERIOD_S
        running.step()
        seen.append(running.controller.telemetry.q[2] - running.q[2])
    assert running.controller.mode is Mode.HOLD
    assert running.loop.figures.missing_replies == 1
    assert np.abs(seen).max() < 5e-4  # carried on by its velocity


def test_a_silent_motor_is_named_and_the_others_damp(running):
    running.motors[3].silent = True
    running.step(2)
    assert running.controller.mode is Mode.HOLD
    running.step(2)
    assert fault_of(running) == (Mode.DAMP, Fault.DRIVE_SILENT, "panda_joint4")
    assert "panda_joint4: 101 MISSING_REPLY" in running.loop.problem
    frames = running.motors[0].commands
    running.step(20)
    assert running.motors[0].commands == frames + 20
    assert not running.loop.silent
    # its last velocity is not pushed against for ever
    assert running.controller.telemetry.dq[3] == 0.0


@pytest.mark.parametrize(("nibble", "name"), [(0xA, "OVER_CURRENT"), (0xB, "MOSFET_HOT")])
def test_a_fault_status_is_named_with_its_joint(running, nibble, name):
    running.motors[1].inject_status(nibble)
    running.step(2)
    assert fault_of(running) == (Mode.DAMP, Fault.DRIVE_FAULT, "panda_joint2")
    assert f"panda_joint2: {int(DriveFault[name])} {name}" in running.loop.problem
    assert not running.loop.silent


def test_a_fault_of_the_gripper_motor_stops_the_arm_too(running):
    running.motors[7].inject_status(0xC)
    running.step(2)
    assert fault_of(running) == (Mode.DAMP, Fault.DRIVE_FAULT, "")
    assert "panda_finger_joint1: 108 COIL_HOT" in running.loop.problem


def test_a_silent_bus_makes_the_host_silent_and_the_motors_damp(running):
    for motor in running.motors:
        motor.silent = True
    running.step(5)
    assert fault_of(running) == (Mode.DAMP, Fault.DRIVE_SILENT, "")
    assert running.loop.silent
    commands = running.motors[0].commands
    running.step(30)  # beyond the motors' 0.1 s
    assert running.motors[0].commands == commands
    running.dq[:] = 0.3
    assert (running.emulator.step()[:7] * running.dq < 0.0).all()
    assert {m.status for m in running.motors} == {0xD}


def test_reset_cures_what_can_be_cured_and_refuses_the_rest(running):
    for motor in running.motors:
        motor.silent = True
    running.step(40)
    with pytest.raises(DriveError, match="no answer.*nothing was switched"):  # still silent
        running.loop.reset(running.clock.now_s)
    assert running.controller.mode is Mode.DAMP
    assert running.loop.enabled and running.loop.silent
    for motor in running.motors:
        motor.silent = False
    running.loop.reset(running.clock.now_s)
    assert {motor.status for motor in running.motors} == {mit.STATUS_ENABLED}
    assert running.controller.mode is Mode.HOLD
    assert running.loop.problem == "" and not running.loop.silent
    torque = running.step(40)
    assert torque == pytest.approx(running.arm.gravity_torque(running.q), abs=0.2)


def test_reset_is_refused_while_the_arm_moves(running):
    running.controller.estop()
    running.dq[:] = 0.3
    running.step(3)
    with pytest.raises(ResetRefusedError):
        running.loop.reset(running.clock.now_s)
    assert running.controller.mode is Mode.ESTOP
    running.step()
    assert running.loop.enabled


def switched(rig) -> list[str]:
    """What the drive is told to switch from now on."""
    told: list[str] = []
    for name in ("disable", "clear_faults", "enable"):
        real = getattr(rig.drive, name)
        setattr(rig.drive, name, lambda name=name, real=real: (told.append(name), real())[1])
    return told


def test_a_reset_with_a_motor_in_fault_switches_nothing_while_the_arm_moves(running):
    running.motors[1].inject_status(0xA)
    running.dq[4] = 0.3
    running.step(3)
    assert running.controller.mode is Mode.DAMP
    told = switched(running)
    with pytest.raises(ResetRefusedError, match="panda_joint5 moves"):
        running.loop.reset(running.clock.now_s, clock_offset_s=7.0)
    assert told == [] and running.loop.enabled and running.loop.clock_offset_s == -100.0
    running.dq[4] = 0.0
    running.step(3)
    running.drive.read()
    running.dq[4] = 0.3  # since the last tick: the motors are asked again
    with pytest.raises(ResetRefusedError, match="panda_joint5 moves"):
        running.loop.reset(running.clock.now_s)
    assert told == []
    running.dq[4] = 0.0
    running.loop.reset(running.clock.now_s)
    assert told[:1] == ["disable"] and running.controller.mode is Mode.HOLD


def test_a_reset_switches_nothing_while_one_motor_is_silent(running):
    running.motors[1].inject_status(0xA)
    running.motors[3].silent = True
    running.step(5)
    told = switched(running)
    with pytest.raises(DriveError, match=r"panda_joint4: no answer") as caught:
        running.loop.reset(running.clock.now_s)
    assert caught.value.motors == ("panda_joint4",)
    assert told == [] and running.loop.enabled and not running.loop.silent


@pytest.mark.parametrize("steps", [1, 2])  # lost to the reset itself, or to the last step before
def test_a_reply_lost_at_a_reset_drops_no_torque(running, steps):
    running.controller.estop()
    running.step(3)
    running.motors[2].drop_replies = 1
    running.step(steps)
    told = switched(running)
    before = running.emulator.step()[:7].copy()
    running.loop.reset(running.clock.now_s)
    assert told == [] and running.controller.mode is Mode.HOLD
    assert running.loop.figures.missing_replies + running.loop.state.missing[2] == 1
    assert running.emulator.step()[:7] == pytest.approx(before)
    assert running.step() == pytest.approx(running.arm.gravity_torque(running.q), abs=0.2)


def test_there_is_nothing_to_reset_while_the_arm_holds(running):
    told = switched(running)
    with pytest.raises(ResetRefusedError, match="HOLD"):
        running.loop.reset(running.clock.now_s, clock_offset_s=7.0)
    assert told == [] and running.loop.clock_offset_s == -100.0


def test_bus_off_is_named_and_nothing_more_is_sent(running):
    running.bus.inject(can.Message(is_error_frame=True, arbitration_id=0x40))
    running.step()
    assert fault_of(running) == (Mode.DAMP, Fault.BUS_OFF, "")
    assert running.loop.silent
    assert "BUS_OFF" in running.loop.problem


def test_a_refused_frame_is_tolerated_until_it_goes_on(running):
    running.bus.disconnect()
    running.step()
    assert running.controller.mode is Mode.HOLD
    running.step(3)
    assert running.controller.fault in (Fault.BUS_OFF, Fault.DRIVE_SILENT)
    assert running.controller.mode is Mode.DAMP and running.loop.silent
    assert running.loop.figures.bus_errors >= 3


def stir(rig, frozen: tuple[int, ...] = ()) -> None:
    """A period in which joints move by their velocity; the loop wakes a little early or late."""
    rig.q[:] += rig.dq * PERIOD_S * ~np.isin(np.arange(7), frozen)
    rig.clock.advance(np.sin(rig.loop.figures.steps) * 1e-4)
    rig.step()


@pytest.mark.parametrize("closing", list(Closing))
def test_a_frozen_reading_is_named_and_the_motors_damp(make, closing):
    rig = make(closing=closing)
    rig.start()
    rig.step(30)
    rig.dq[:] = 0.02  # the others live
    rig.dq[2] = 0.3
    for _ in range(40):
        stir(rig, frozen=(2,))
        if rig.controller.mode is not Mode.HOLD:
            break
    assert fault_of(rig) == (Mode.DAMP, Fault.STATE_FROZEN, "panda_joint3")
    rig.dq[:] = 0.0
    rig.step(80)
    assert rig.loop.silent and "STATE_FROZEN" in rig.loop.problem
    assert {motor.status for motor in rig.motors[:7]} == {0xD}


def test_a_frozen_reading_is_seen_although_some_of_its_replies_are_lost(running):
    running.dq[2] = 0.3
    for k in range(60):
        running.motors[2].drop_replies = k % 3 == 0
        stir(running, frozen=(2,))
    assert fault_of(running) == (Mode.DAMP, Fault.STATE_FROZEN, "panda_joint3")


@pytest.mark.parametrize("speed", [0.0, 0.05, 0.2])
def test_neither_rest_nor_a_slow_motion_in_counts_is_taken_for_frozen(make, speed):
    rig = make(own_ranges=False)  # half a count of velocity at rest, counts of 0.4 mrad
    rig.start()
    for k in range(1000):
        rig.dq[2] = speed * np.sin(0.004 * np.pi * k)
        stir(rig)
    assert rig.controller.fault is Fault.NONE
    assert rig.controller.mode is Mode.HOLD


# -- start -----------------------------------------------------------------------------------------
def test_watchdogs_of_host_and_motors_must_fit_together(make):
    config = BusLoopConfig(250.0)
    assert watchdog_problem(config, 0.1, 0.02) == ""
    assert "motors' watchdog is 15 ms" in watchdog_problem(config, 0.015, 0.02)
    assert "state_timeout_s is 10 ms" in watchdog_problem(config, 0.1, 0.010)
    assert "watchdog" in watchdog_problem(config, float("nan"), 0.02)
    rig = make()
    with pytest.raises(BusLoopError, match="16 ms"):
        rig.loop.start(0.01)
    assert [m.status for m in rig.motors] == [mit.STATUS_DISABLED] * 8
    assert rig.controller.mode is Mode.OFF


def test_motors_that_are_on_are_not_started_again(running):
    running.controller.deactivate(running.controller.last_tick_s)
    running.step(2)
    torque, told = running.step(), switched(running)
    with pytest.raises(BusLoopError, match="already.*wait until they are off"):
        running.start()
    assert told == [] and running.loop.enabled
    assert running.emulator.step()[:7] == pytest.approx(torque)


def test_a_wrong_scaling_is_refused_before_anything_is_enabled(make):
    rig = make()
    rig.motors[4].registers[mit.Register.VMAX] = 10.0
    with pytest.raises(DriveError, match="panda_joint5.*VMAX is 10, expected 8"):
        rig.start()
    assert rig.controller.mode is Mode.OFF and not rig.loop.enabled


def test_joints_of_drive_and_arm_must_agree(make):
    rig = make()
    with pytest.raises(BusLoopError, match="in this order"):
        BusLoop(
            rig.drive, rig.controller, tuple(reversed(rig.arm.joint_names)), np.ones(7),
            BusLoopConfig(250.0), rig.loop._gripper,
        )


def test_a_rate_that_the_bus_cannot_carry_is_refused(make):
    with pytest.raises(BusLoopError, match="does not fit on the bus"):
        make(rate_hz=2000.0)
