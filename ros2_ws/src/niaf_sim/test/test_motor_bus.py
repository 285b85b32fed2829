"""The simulated Panda held, moved and stopped through frames, in lock-step on a virtual bus."""

from __future__ import annotations

import can
import numpy as np
import pytest
from motor_bus_support import LockStep, break_down

from niaf_field import spline_reference
from niaf_impedance import ArmModel, default_robot_config_path
from niaf_impedance.admission import Verdict
from niaf_impedance.drives.bus_loop import Closing
from niaf_impedance.drives.description import PROTOCOLS
from niaf_impedance.faults import Fault, Mode
from niaf_sim.cell import Cell

MOVE_RAD = np.array([0.3, 0.2, -0.2, 0.2, 0.3, -0.2, 0.4])


@pytest.fixture(scope="module")
def arm():
    return ArmModel.from_yaml(default_robot_config_path("panda"))


@pytest.fixture(scope="module")
def cell():
    cell = Cell()
    yield cell
    cell.close()


@pytest.fixture(params=PROTOCOLS)
def make(arm, cell, request):
    rigs = []

    def build(**settings) -> LockStep:
        rigs.append(LockStep(arm, cell, loop_changes=settings, protocol=request.param))
        return rigs[-1]

    yield build
    for rig in rigs:
        rig.close()


@pytest.fixture
def holding(make):
    rig = make()
    rig.start()
    rig.run(0.15)
    return rig


def move(rig: LockStep) -> np.ndarray:
    """Follow a spline of a second to MOVE_RAD and 20 mm of opening; tracking errors [K, 7], rad."""
    t, q_ref = rig.now_s, rig.controller.telemetry.q_ref
    ends = np.vstack([np.append(q_ref, 0.08), np.append(q_ref + MOVE_RAD, 0.02)])
    reference = spline_reference(
        np.array([t, t + 1.0]), ends, start_velocity=np.zeros(8), sequence=1, stamp_s=t
    )
    assert rig.controller.offer(t, reference).verdict is Verdict.ACCEPTED
    errors = []
    rig.run(
        1.2, lambda: errors.append(np.abs(rig.controller.telemetry.q_ref - rig.cell.q_true))
    )
    return np.array(errors)


@pytest.mark.parametrize(
    ("closing", "bound_rad"), [(Closing.GAINS, 2e-3), (Closing.TORQUE, 2.5e-3)]
)
def test_the_arm_is_held_and_moved_by_frames(make, closing, bound_rad):
    rig = make(closing=closing)
    before = rig.cell.q_true.copy()
    rig.start()
    assert np.abs(rig.cell.q_true - before).max() < 1e-4  # brakes held, torque began at zero
    rig.run(0.3)
    assert np.abs(rig.cell.q_true - before).max() < 3e-3
    errors = move(rig)
    assert rig.controller.mode is Mode.HOLD
    assert errors.max() < bound_rad
    assert rig.cell.q_true == pytest.approx(rig.controller.telemetry.q_ref, abs=2e-3)
    assert rig.cell.gripper_width_m == pytest.approx(0.02, abs=4e-3)  # hysteresis 3 mm
    assert rig.loop.figures.missing_replies == rig.loop.figures.saturated == 0
    rig.controller.deactivate(rig.now_s)
    rig.run(0.5)
    assert not rig.loop.enabled
    assert all(motor.off for motor in rig.motors.emulator.motors)


def test_quantised_gains_and_references_cost_little(make):
    """Against the same arm moved by exact torque at 1 kHz through the effort interface."""
    rig = make()
    rig.start()
    rig.run(0.3)
    through_frames = move(rig)
    exact = make()
    controller, cell = exact.controller, exact.cell
    controller.activate(0.0, cell.q, cell.dq, tau_start_nm=cell.torque_nm.copy())
    errors = []

    def run(seconds: float) -> None:
        for _ in range(round(seconds / 0.001)):
            cell.step(controller.tick(exact.now_s, cell.q, cell.dq).copy(), controller.gripper_m)
            exact.now_s += 0.001
            errors.append(np.abs(controller.telemetry.q_ref - cell.q_true))

    run(0.3)
    t = exact.now_s
    ends = np.vstack([controller.telemetry.q_ref, controller.telemetry.q_ref + MOVE_RAD])
    controller.offer(
        t,
        spline_reference(
            np.array([t, t + 1.0]), ends, start_velocity=np.zeros(7), sequence=1, stamp_s=t
        ),
    )
    errors.clear()
    run(1.2)
    assert through_frames.max() < np.array(errors).max() + 1e-3


def test_brakes_hold_until_every_motor_is_commanded(make):
    rig = make()
    rig.silence(0.05)
    before = rig.cell.time_s
    assert before == 0.0
    rig.start()
    rig.run(0.02)
    assert rig.cell.time_s > 0.01
    rig.motors.close_brakes()  # as after a reset of the scene
    assert rig.motors.command() == (None, None)


def test_replies_report_the_torque_that_flows(holding):
    reported = holding.loop.state.tau[:7]
    # 3 ms old, and one count of velocity is 50 mNm of damping
    assert reported == pytest.approx(holding.cell.torque_nm, abs=0.6)
    assert np.abs(reported).max() > 5.0  # the arm's weight


def test_a_motor_in_fault_damps_the_arm_and_is_named(holding):
    start = holding.cell.q_true.copy()
    break_down(holding.motors.emulator.motors[3])
    speeds = []
    holding.run(0.3, lambda: speeds.append(np.abs(holding.cell.dq_true).max()))
    assert holding.controller.mode is Mode.DAMP
    assert holding.controller.fault is Fault.DRIVE_FAULT
    assert holding.controller.fault_joint == "panda_joint4"
    others = [0, 1, 2, 4, 5, 6]
    # the elbow lets go; the joints below it carry their weight and damp
    assert np.abs(holding.cell.q_true - start)[others].max() < 0.2
    assert max(speeds) < 10.0


def test_a_silent_host_trips_the_motors_watchdogs_which_damp(holding):
    holding.silence(0.5)  # the watchdog acts after 0.1 s
    assert all(motor.tripped for motor in holding.motors.emulator.motors)
    assert np.abs(holding.cell.dq_true).max() < 1.0  # sinking slowly, not falling


def test_a_silent_bus_is_named_while_the_motors_damp(holding):
    holding.host_side.cut = True
    holding.run(0.5)
    assert holding.controller.fault is Fault.DRIVE_SILENT
    assert holding.loop.silent
    assert all(motor.tripped for motor in holding.motors.emulator.motors)
    assert np.abs(holding.cell.dq_true).max() < 1.0


def test_a_bus_off_is_named(holding):
    holding.host_side.error = can.Message(is_error_frame=True, arbitration_id=0x40)
    holding.run(0.3)
    assert holding.controller.fault is Fault.BUS_OFF
    assert all(motor.tripped for motor in holding.motors.emulator.motors)


def test_a_late_host_falls_back_to_gains_and_keeps_the_arm(make):
    rig = make(closing=Closing.TORQUE)
    rig.start()
    rig.run(0.3)
    before = rig.cell.q_true.copy()
    rig.run(0.3, late_s=0.006)
    assert rig.loop.closing is Closing.GAINS
    assert "LOOP_LATE" in rig.loop.fell_back
    rig.run(0.3)
    assert rig.controller.mode is Mode.HOLD
    assert np.abs(rig.cell.q_true - before).max() < 2e-3
