"""Every rung of the stop ladder, every fault injected."""

import numpy as np
import pytest
from impedance_support import make_field, make_spline, run

from niaf_impedance import Fault, Mode, tick
from niaf_impedance.controller import ResetRefusedError
from niaf_impedance.faults import FAULT_TEXT, describe, render_markdown


def test_field_that_runs_out_brakes_along_its_path_and_holds(holding, prior, arm):
    controller, plant = holding
    field = make_field(prior, plant.q, 0.0, 1, strength=0.3)
    assert controller.offer(0.0, field).accepted
    modes, positions, rates = [], [], []

    def watch(t):
        modes.append(controller.mode)
        positions.append(controller.telemetry.q_ref.copy())
        rates.append(controller.path_rate)

    run(controller, plant, 1.6, watch)
    order = [modes[0]] + [b for a, b in zip(modes, modes[1:], strict=False) if a != b]
    assert order == [Mode.TRACK, Mode.BRAKE, Mode.HOLD]
    np.testing.assert_allclose(controller.telemetry.q_ref, field.jet(field.end_s, 0)[0, :7])
    braking = [r for m, r in zip(modes, rates, strict=True) if m == Mode.BRAKE]
    assert all(b <= a for a, b in zip(braking, braking[1:], strict=False))
    # on the path: every braking position is one the field passes
    path = field.batch(np.linspace(0.5, 1.0, 5001), 0)[:, 0, :7]
    on_path = [p for m, p in zip(modes, positions, strict=True) if m == Mode.BRAKE][::20]
    for p in on_path:
        assert np.min(np.abs(path - p).max(axis=1)) < 1e-4
    assert np.all(controller.telemetry.dq_ref == 0.0)


def test_requested_brake_keeps_the_acceleration_limit(holding, arm):
    controller, plant = holding
    assert controller.offer(0.0, make_spline(plant.q, 0.0, 1, seed=4, reach=0.25)).accepted
    run(controller, plant, 0.4)
    controller.brake(plant.time_s)
    ratios = []
    run(controller, plant, 0.8, lambda t: ratios.append(
        np.max(np.abs(controller.telemetry.ddq_ref) / arm.limits.acceleration_rad_s2)))
    assert controller.mode == Mode.HOLD
    assert max(ratios) < controller.config.admit_acceleration_ratio


def test_new_field_during_braking_and_holding_resumes(holding, prior):
    controller, plant = holding
    controller.offer(0.0, make_field(prior, plant.q, 0.0, 1, strength=0.1))
    run(controller, plant, 0.9)
    assert controller.mode == Mode.BRAKE
    assert controller.offer(plant.time_s, make_field(prior, plant.q, plant.time_s, 2)).accepted
    run(controller, plant, 1.5)
    assert controller.mode == Mode.HOLD
    assert controller.offer(plant.time_s, make_field(prior, plant.q, plant.time_s, 3)).accepted
    run(controller, plant, 0.1)
    assert controller.mode == Mode.TRACK
    assert controller.statistics.seam_acceleration_peak_rad_s2 < 1e-9


def inject(controller, plant, fault):
    q, dq, t = plant.q.copy(), plant.dq.copy(), plant.time_s
    if fault == Fault.STATE_NOT_FINITE:
        q[3] = np.nan
    elif fault == Fault.STATE_STALE:
        t += 0.03
    elif fault == Fault.STATE_JUMP:
        q[0] += 0.2
    elif fault == Fault.OVERSPEED:
        dq[5] = 10.0
    elif fault == Fault.TRACKING_ERROR:
        for _ in range(12):  # pushed away slower than a jump
            q = q + 0.05
            t += 0.001
            controller.tick(t, q, dq)
    elif fault == Fault.CLOCK_NOT_ADVANCING:
        for _ in range(30):
            controller.tick(t - 0.002, q, dq)
    elif fault == Fault.STATE_FROZEN:
        for _ in range(100):
            dq[1] = 0.2
            t += 0.001
            controller.tick(t, q, dq)
    elif fault == Fault.REFERENCE_NOT_FINITE:
        controller._pool[0, 0] = np.nan
    elif fault == Fault.DYNAMICS_NOT_FINITE:
        controller._jp[tick.JP_KD, 0] = controller._jp[tick.JP_KD_TARGET, 0] = np.inf
    elif fault == Fault.ESTOP_REQUESTED:
        controller.estop()
    else:  # seen by the caller only: drives, bus, loop
        controller.report_fault(fault, 2)
        assert controller.fault_joint == "panda_joint3"
    controller.tick(t, q, dq)


@pytest.mark.parametrize("fault", [f for f in Fault if f != Fault.NONE])
def test_each_fault_damps_and_latches(holding, fault):
    controller, plant = holding
    run(controller, plant, 0.05)
    inject(controller, plant, fault)
    expected = Mode.ESTOP if fault == Fault.ESTOP_REQUESTED else Mode.DAMP
    assert (controller.mode, controller.fault) == (expected, fault)
    assert np.isfinite(controller.telemetry.tau).all()
    for _ in range(50):
        plant.time_s += 0.001
        controller.tick(plant.time_s + 0.1, plant.q, plant.dq)
    assert controller.mode == expected


def test_damping_torque_opposes_motion_and_carries_the_weight(holding, arm):
    controller, plant = holding
    controller.estop()
    dq = np.full(7, 0.2)
    for i in range(1, 200):
        tau = controller.tick(0.001 * i, plant.q, dq)
    damp = np.array([joint.damp_nms_rad for joint in arm.config.joints])
    np.testing.assert_allclose(tau, arm.gravity_torque(plant.q) - damp * dq, atol=1e-9)


def test_reset_only_at_standstill_and_without_a_step(holding):
    controller, plant = holding
    run(controller, plant, 0.01)
    controller.estop()
    controller.tick(plant.time_s, plant.q, np.full(7, 0.3))
    with pytest.raises(ResetRefusedError, match=r"panda_joint1 moves at 0.300 rad/s"):
        controller.reset()
    controller.tick(plant.time_s + 0.001, plant.q, np.zeros(7))
    before = controller.telemetry.tau.copy()
    controller.reset()
    assert (controller.mode, controller.fault) == (Mode.HOLD, Fault.NONE)
    np.testing.assert_array_equal(controller.telemetry.tau, before)


def test_there_is_nothing_to_reset_while_the_arm_follows_or_ramps_down(holding, prior):
    controller, plant = holding
    for mode in (Mode.HOLD, Mode.TRACK):
        run(controller, plant, 0.05)
        assert controller.mode == mode
        with pytest.raises(ResetRefusedError, match=f"the controller is in {mode.name}"):
            controller.reset()
        field = make_field(prior, plant.q, plant.time_s, 1, strength=0.2)
        assert controller.offer(plant.time_s, field).accepted or mode == Mode.TRACK
    controller.estop()
    controller.deactivate(plant.time_s)
    with pytest.raises(ResetRefusedError, match="on its way to OFF"):
        controller.reset()


def test_a_moving_arm_that_damps_is_switched_off_only_at_rest(holding, prior):
    controller, plant = holding
    controller.offer(0.0, make_field(prior, plant.q, 0.0, 1, strength=0.3))
    run(controller, plant, 0.3)
    controller.estop()
    assert np.abs(plant.dq).max() > 2.0 * controller.config.standstill_rad_s
    controller.deactivate(plant.time_s)
    speeds = []
    while controller.mode != Mode.OFF:
        assert plant.time_s < 5.0
        speeds.append(np.abs(plant.dq).max())
        plant.step(controller.tick(plant.time_s, plant.q, plant.dq))
    assert max(speeds[:-1]) > controller.config.standstill_rad_s >= speeds[-1]


def test_silent_state_is_a_named_fault(holding):
    controller, plant = holding
    run(controller, plant, 0.01)
    assert not controller.note_state_age(0.01)
    assert controller.note_state_age(0.021)
    assert (controller.mode, controller.fault) == (Mode.DAMP, Fault.STATE_STALE)


def test_deactivation_brakes_then_ramps_to_gravity_then_off(holding, prior, arm):
    controller, plant = holding
    controller.offer(0.0, make_field(prior, plant.q, 0.0, 1, strength=0.2))
    run(controller, plant, 0.4)
    controller.deactivate(plant.time_s)
    assert not controller.offer(plant.time_s, make_field(prior, plant.q, 0.3, 2)).accepted
    torques, modes, weights = [], [], []

    def watch(t):
        torques.append(controller.telemetry.tau.copy())
        modes.append(controller.mode)
        weights.append(arm.gravity_torque(plant.q))

    run(controller, plant, 1.5, watch)
    assert controller.mode == Mode.OFF
    last = modes.index(Mode.OFF)
    np.testing.assert_allclose(torques[last], weights[last], atol=0.05)
    steps = np.abs(np.diff(torques[:last], axis=0))
    assert np.all(steps <= arm.limits.torque_rate_nm_s * 0.001 * 1.001)
    assert np.all(controller.tick(plant.time_s, plant.q, plant.dq) == 0.0)


def test_fault_numbers_agree_with_the_compiled_ones_and_all_are_documented():
    numbers = {
        "STATE_NOT_FINITE": tick.F_STATE_NOT_FINITE, "STATE_STALE": tick.F_STATE_STALE,
        "STATE_JUMP": tick.F_STATE_JUMP, "CLOCK_NOT_ADVANCING": tick.F_CLOCK,
        "OVERSPEED": tick.F_OVERSPEED, "TRACKING_ERROR": tick.F_TRACKING_ERROR,
        "REFERENCE_NOT_FINITE": tick.F_REFERENCE_NOT_FINITE,
        "DYNAMICS_NOT_FINITE": tick.F_DYNAMICS_NOT_FINITE,
    }
    for name, number in numbers.items():
        assert Fault[name] == number
    assert set(FAULT_TEXT) == set(Fault)
    for fault in Fault:
        assert (describe(fault) == "") == (fault == Fault.NONE)
        assert fault.name in render_markdown()
    for mode in Mode:
        assert mode == getattr(tick, f"MODE_{mode.name}")


def test_damping_goes_on_when_the_clock_is_set_back(holding, arm):
    controller, plant = holding
    run(controller, plant, 0.05)
    controller.note_state_age(0.03)
    damp = np.array([joint.damp_nms_rad for joint in arm.config.joints])
    dq = np.full(7, 0.3)
    for i in range(300):
        tau = controller.tick(0.001 * i - 2.0, plant.q, dq)
    np.testing.assert_allclose(tau - arm.gravity_torque(plant.q), -damp * dq, atol=1e-9)


def test_a_joint_without_a_number_leaves_the_others_damped(holding, arm):
    controller, plant = holding
    run(controller, plant, 0.05)
    damp = np.array([joint.damp_nms_rad for joint in arm.config.joints])
    for i in range(1, 300):
        q, dq = plant.q + 0.0003 * i, np.full(7, 0.3)
        q[6] = np.nan
        dq[2] = np.inf
        tau = controller.tick(plant.time_s + 0.001 * i, q, dq)
    assert controller.fault == Fault.STATE_NOT_FINITE
    q[6] = plant.q[6]
    expected = arm.gravity_torque(q) - damp * 0.3  # joint 3 from its positions
    np.testing.assert_allclose(tau, expected, atol=1e-6)


def test_a_frozen_reading_is_named_and_the_controller_falls_silent(holding):
    controller, plant = holding
    run(controller, plant, 0.05)
    assert controller.offer(plant.time_s, make_spline(plant.q, plant.time_s, 1, reach=0.2)).accepted
    stuck = plant.q[0]
    for _ in range(1000):
        measured = plant.q.copy()
        measured[0] = stuck
        plant.step(controller.tick(plant.time_s, measured, plant.dq))
        if controller.mode == Mode.DAMP:
            break
    assert controller.fault == Fault.STATE_FROZEN
    assert controller.fault_joint == "panda_joint1"
    for _ in range(200):
        plant.step(controller.tick(plant.time_s, measured, plant.dq))
    assert controller.silent
    weight = controller.arm.gravity_torque(measured)
    np.testing.assert_allclose(controller.telemetry.tau, weight, atol=1e-6)
    measured, still = measured.copy(), np.zeros(7)
    controller.tick(plant.time_s, measured, still)
    with pytest.raises(ResetRefusedError, match="panda_joint1 still does not change"):
        controller.reset()
    measured[0] += 1e-4  # it lives again
    controller.tick(plant.time_s + 0.001, measured, still)
    controller.reset()
    assert controller.mode == Mode.HOLD


def test_an_arm_at_rest_is_not_taken_for_a_frozen_one(holding):
    controller, plant = holding
    for i in range(2000):
        controller.tick(0.001 * (i + 1), plant.q, plant.dq)
    assert controller.mode == Mode.HOLD
