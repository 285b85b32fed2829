"""The tick: sign of the law, limits under anything, activation, gains, no allocation."""

import dataclasses
import gc
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from impedance_support import Plant, make_field, make_spline, run

from niaf_impedance import ArmModel, ControllerConfig, Fault, ImpedanceController, Mode
from niaf_impedance import tick as tick_module
from niaf_impedance.controller import ControllerConfigError


def test_first_torque_is_gravity_and_holding_stays_put(holding, arm):
    controller, plant = holding
    np.testing.assert_allclose(
        controller.tick(0.0, plant.q, plant.dq), arm.gravity_torque(plant.q), atol=1e-12
    )
    run(controller, plant, 0.5)
    assert controller.mode == Mode.HOLD
    np.testing.assert_allclose(plant.q, arm.config.home_rad, atol=1e-6)
    assert controller.statistics.peak_torque_rate_ratio < 1e-3


def test_activation_while_moving_gives_no_torque_step(controller, arm):
    q, dq = arm.config.home_rad, np.full(7, 0.4)
    controller.activate(0.0, q, dq)
    before = controller.telemetry.tau.copy()
    after = controller.tick(0.001, q + 0.0004, dq)
    assert np.all(np.abs(after - before) <= arm.limits.torque_rate_nm_s * 0.001 * (1 + 1e-12))


def test_activation_from_a_given_torque_starts_there(controller, arm):
    start = np.array([1.0, -10.0, 0.0, 15.0, 0.0, 2.0, 0.1])
    controller.activate(0.0, arm.config.home_rad, np.zeros(7), tau_start_nm=start)
    tau = controller.tick(0.001, arm.config.home_rad, np.zeros(7))
    np.testing.assert_allclose(tau, start, atol=1.0 + 1e-9)


@pytest.mark.parametrize("feedforward", ["gravity", "nonlinear", "full"])
def test_pushed_arm_returns(arm, feedforward):
    plant = Plant(arm, arm.config.home_rad)
    controller = ImpedanceController(ControllerConfig(feedforward=feedforward), arm)
    controller.activate(0.0, plant.q, plant.dq)
    plant.q = plant.q + 0.03
    before = np.abs(plant.q - arm.config.home_rad).max()
    run(controller, plant, 1.0)
    assert np.abs(plant.q - arm.config.home_rad).max() < 0.02 * before


def test_full_feedforward_tracks_better_than_gravity(arm):
    errors = {}
    for feedforward in ("gravity", "full"):
        plant = Plant(arm, arm.config.home_rad)
        config = ControllerConfig(feedforward=feedforward)
        controller = ImpedanceController(config, arm)
        controller.set_tuning(dataclasses.replace(controller.tuning, friction_scale=0.0))
        controller.activate(0.0, plant.q, plant.dq)
        assert controller.offer(0.0, make_spline(plant.q, 0.0, 1, reach=0.2)).accepted
        worst = []
        for _ in range(1000):
            plant.step(controller.tick(plant.time_s, plant.q, plant.dq))
            worst.append(np.abs(controller.telemetry.q_ref - plant.q).max())
        errors[feedforward] = max(worst)
    assert errors["full"] < errors["gravity"] / 3


def test_terms_add_up_to_the_command(holding):
    controller, plant = holding
    controller.offer(0.0, make_spline(plant.q, 0.0, 1))
    run(controller, plant, 0.3)
    t = controller.telemetry
    total = t.tau_stiffness + t.tau_damping + t.tau_gravity + t.tau_inertia + t.tau_friction
    np.testing.assert_allclose(t.tau, total, atol=1e-9)
    assert np.all(np.abs(t.tau_inertia).max() > 0.0)


numbers = st.one_of(
    st.floats(-1e3, 1e3),
    st.sampled_from([float("nan"), float("inf"), -float("inf"), 1e308, -1e308, 0.0]),
)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_torque_and_rate_limits_hold_whatever_comes_in(arm, prior, data):
    controller = ImpedanceController(ControllerConfig(), arm, prior)
    home = arm.config.home_rad
    controller.activate(0.0, home, np.zeros(7))
    limit, rate = arm.limits.torque_nm, arm.limits.torque_rate_nm_s
    seed = data.draw(st.integers(0, 1000))
    rng = np.random.default_rng(seed)
    t, previous = 0.0, controller.telemetry.tau.copy()
    for i in range(40):
        step = data.draw(st.sampled_from([0.001, 0.001, 0.001, 0.0, -0.01, 0.004, 0.5]))
        t += step
        if data.draw(st.booleans()):
            controller.offer(t, make_field(prior, home, t, i + 1, seed + i, 1.0))
        q, dq = home + 0.02 * rng.normal(size=7), rng.normal(size=7)
        if data.draw(st.integers(0, 9)) == 0:
            q[data.draw(st.integers(0, 6))] = data.draw(numbers)
            dq[data.draw(st.integers(0, 6))] = data.draw(numbers)
        if data.draw(st.integers(0, 19)) == 0:
            controller.estop()
        tau = controller.tick(t, q, dq)
        assert np.isfinite(tau).all()
        assert np.all(np.abs(tau) <= limit)
        assert np.all(np.abs(tau - previous) <= rate * max(step, 0.0) * (1 + 1e-9) + 1e-12)
        previous = tau.copy()


def test_nan_in_the_loaded_gains_damps_with_a_finite_torque(holding):
    controller, plant = holding
    controller._jp[tick_module.JP_KP, 2] = controller._jp[tick_module.JP_KP_TARGET, 2] = np.nan
    tau = controller.tick(0.001, plant.q, plant.dq)
    assert np.isfinite(tau).all()
    assert (controller.mode, controller.fault) == (Mode.DAMP, Fault.DYNAMICS_NOT_FINITE)
    assert controller.fault_joint == "panda_joint3"


def test_gain_change_is_ramped(holding, arm):
    controller, plant = holding
    start = controller.kp.copy()
    target = start * 0.5
    controller.set_gains(target, controller.kd)
    seen = []
    run(controller, plant, 0.25, lambda t: seen.append(controller.kp.copy()))
    steps = np.abs(np.diff(seen, axis=0))
    assert np.all(steps <= (start - target) / controller.config.gain_ramp_s * 0.001 * 1.001)
    assert np.all(controller.kp < start)
    assert np.all(controller.kp > target)
    run(controller, plant, 0.3)
    np.testing.assert_allclose(controller.kp, target)


def test_gain_outside_its_range_is_refused_by_name(controller):
    kp = controller.kp.copy()
    kp[4] = 401.0
    with pytest.raises(ControllerConfigError, match=r"gains.panda_joint5.kp = 401.*\[0, 400\]"):
        controller.set_gains(kp, controller.kd)
    kp[4] = np.nan
    with pytest.raises(ControllerConfigError, match="panda_joint5"):
        controller.set_gains(kp, controller.kd)


def test_damping_that_the_delay_would_turn_unstable_is_refused(controller):
    kp, kd = controller.kp.copy(), controller.kd.copy()
    assert controller.check_gains(kp, kd, 0.001) == ""
    stiff = np.array([40.0, 40.0, 30.0, 30.0, 10.0, 10.0, 7.0])  # shook in simulation
    problem = controller.check_gains(kp, stiff, 0.001)
    assert "damping too high for the delay" in problem
    assert "panda_joint1 40" in problem
    assert "control_rate_hz" in controller.check_gains(kp, kd, 0.01)


def test_stiffness_without_the_damping_that_its_delay_eats_is_refused(controller):
    kp, kd = controller.kp.copy(), controller.kd.copy()
    delay_s = 0.001 + controller.arm.config.feedback_delay_s
    kp[3], kd[3] = 1000.0, 1.01 * 1000.0 * delay_s
    assert controller.check_gains(kp, kd, 0.001) == ""
    kd[3] *= 0.98
    assert "too little damping for the stiffness of panda_joint4" in controller.check_gains(
        kp, kd, 0.001)
    assert controller.check_gains(0.0 * kp, 0.0 * kd, 0.001) == ""  # led by hand


@pytest.mark.parametrize("inertia_kgm2", [0.1, 1.0])
def test_a_late_spring_swings_up_where_its_damping_is_eaten(inertia_kgm2):
    """What the bound rests on, by stepping a joint whose state is 5 ms old."""
    step_s, delay_s, kp = 1e-4, 0.005, 400.0

    def last_swing_over_first(kd):
        q, dq, late = 0.01, 0.0, [(0.01, 0.0)] * int(delay_s / step_s)
        swings = []
        for _ in range(20_000):
            seen_q, seen_dq = late.pop(0)
            dq += step_s * (-kp * seen_q - kd * seen_dq) / inertia_kgm2
            q += step_s * dq
            late.append((q, dq))
            swings.append(abs(q))
        return max(swings[-5000:]) / max(swings[:5000])

    assert last_swing_over_first(0.7 * kp * delay_s) > 1.2
    assert last_swing_over_first(1.3 * kp * delay_s) < 0.8


@pytest.mark.parametrize(("share", "calms"), [(0.8, True), (1.3, False)])
def test_states_older_than_the_bearable_age_drive_the_arm_and_younger_ones_do_not(
    arm, share, calms
):
    """A whole arm in the pose where it has least inertia, ticked with old states."""
    config = ControllerConfig(
        frozen_reference_rad=0.0, frozen_motion_rad=0.0, tracking_error_limit_rad=10.0,
        overspeed_ratio=10.0,
    )
    controller = ImpedanceController(config, arm)
    age_s = controller.bearable_age_s(0.001) + arm.config.feedback_delay_s  # the plant has none
    damping = np.diag(controller.kd)
    poses = [arm.config.home_rad + spread for spread in np.random.default_rng(0).normal(
        scale=0.4, size=(40, 7))]
    poses = [np.clip(q, arm.limits.position_min_rad, arm.limits.position_max_rad) for q in poses]
    pose = max(poses, key=lambda q: np.linalg.eigvals(
        np.linalg.solve(arm.mass_matrix(q), damping)).real.max())
    plant = Plant(arm, pose)
    controller.activate(0.0, plant.q, plant.dq)
    plant.dq = np.full(7, 1e-3)
    states = [(plant.q, plant.dq)] * round(share * age_s / plant.dt_s)
    speeds = []
    for _ in range(900):
        states.append((plant.q.copy(), plant.dq.copy()))
        q, dq = states.pop(0)
        plant.step(controller.tick(plant.time_s + plant.dt_s, q, dq))
        speeds.append(np.abs(plant.dq).max())
    assert (max(speeds[-100:]) < 1e-4) == calms
    assert (max(speeds) > 0.1) == (not calms)


def test_gripper_ignores_wobble_and_keeps_its_speed(holding, arm):
    controller, plant = holding
    gripper = arm.config.gripper
    q = plant.q
    from niaf_field import spline_reference

    width = 0.04 + 0.5 * gripper.hysteresis_m * np.sin(np.arange(21))
    positions = np.hstack([np.tile(q, (21, 1)), width[:, None]])
    controller.offer(0.0, spline_reference(np.linspace(0, 1, 21), positions, sequence=1, stamp_s=0))
    widths = []
    run(controller, plant, 1.0, lambda t: widths.append(controller.gripper_m))
    speed = np.abs(np.diff(widths)) / 0.001
    assert speed.max() <= gripper.speed_limit_m_s * (1 + 1e-9)
    assert np.ptp(widths[600:]) == 0.0


def test_tick_allocates_nothing(holding, prior):
    controller, plant = holding
    controller.offer(0.0, make_field(prior, plant.q, 0.0, 1, strength=0.0))
    q, dq = plant.q.copy(), plant.dq.copy()
    for i in range(100):
        controller.tick(0.001 * i, q, dq)
    gc.disable()
    tracemalloc.start()
    try:
        before = tracemalloc.take_snapshot()
        for i in range(100, 600):
            controller.tick(0.001 * i, q, dq)
        after = tracemalloc.take_snapshot()
    finally:
        tracemalloc.stop()
        gc.enable()
    grown = [
        s for s in after.compare_to(before, "filename")
        if s.size_diff > 0 and "niaf_impedance" in s.traceback[0].filename
        and "test_" not in s.traceback[0].filename
    ]
    assert sum(s.size_diff for s in grown) < 200  # a float object or two, nothing per tick


def test_gravity_that_the_robot_adds_is_not_sent(arm):
    """Same law, less exactly the weight; nothing while damping at rest, nothing at activation."""
    q = arm.config.home_rad
    own = ArmModel(dataclasses.replace(arm.config, gravity_added_by_robot=True))
    torques = []
    for model in (arm, own):
        controller = ImpedanceController(ControllerConfig(), model)
        controller.activate(0.0, q, np.zeros(7))
        start = controller.telemetry.tau.copy()
        for i in range(1, 400):
            tau = controller.tick(0.001 * i, q + 0.002, np.full(7, 0.01))
        torques.append((start, tau.copy(), controller))
    weight = arm.gravity_torque(q + 0.002)
    np.testing.assert_allclose(torques[0][1] - torques[1][1], weight, atol=1e-9)
    np.testing.assert_array_equal(torques[1][0], 0.0)
    controller = torques[1][2]
    controller.estop()
    for i in range(400, 600):
        tau = controller.tick(0.001 * i, q + 0.002, np.zeros(7))
    np.testing.assert_allclose(tau, 0.0, atol=1e-12)
