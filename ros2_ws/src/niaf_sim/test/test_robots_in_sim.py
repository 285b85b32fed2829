"""Every shipped robot under the controller's whole life in simulation, behind FOC drives."""

import numpy as np
import pytest

from niaf_field import spline_reference
from niaf_impedance import (
    ArmModel,
    ControllerConfig,
    ImpedanceController,
    default_robot_config_path,
)
from niaf_impedance.admission import Verdict
from niaf_impedance.faults import Fault, Mode
from niaf_sim.urdf_plant import UrdfPlant, drive_config

CASES = [("panda", 1000), ("fr3", 1000), ("ur5e", 500), ("openarm_like", 1000)]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}Hz")
def case(request):
    """(arm, tick period); the model is built once per robot."""
    name, rate_hz = request.param
    return ArmModel.from_yaml(default_robot_config_path(name)), 1.0 / rate_hz


@pytest.fixture
def live(case):
    """(controller, plant) holding the home pose."""
    arm, period_s = case
    plant = UrdfPlant(arm.config, period_s)
    controller = ImpedanceController(ControllerConfig(), arm)
    controller.activate(0.0, plant.q, plant.dq)
    return controller, plant


def run(controller, plant, duration_s):
    """Largest |reference - true position|, rad [n]."""
    worst = np.zeros(controller.n)
    for _ in range(round(duration_s / plant.control_period_s)):
        tau = controller.tick(plant.time_s, plant.q, plant.dq)
        assert np.isfinite(tau).all()
        plant.step(tau)
        worst = np.maximum(worst, np.abs(controller.telemetry.q_ref - plant.q_true))
    return worst


def swing(controller, plant, duration_s=3.0, seed=1, reach_rad=0.2):
    """A smooth random motion from here, from rest to rest, offered to the controller."""
    arm, start = controller.arm, plant.time_s
    rng = np.random.default_rng(seed)
    q = controller.telemetry.q_ref.copy()
    offsets = np.cumsum(rng.uniform(-reach_rad, reach_rad, (5, arm.n)), axis=0)
    offsets[0] = 0.0
    inside = arm.limits.position_min_rad + 0.1, arm.limits.position_max_rad - 0.1
    reference = spline_reference(
        start + np.linspace(0.0, duration_s, 5), np.clip(q + offsets, *inside),
        start_velocity=np.zeros(arm.n), sequence=seed, stamp_s=start,
    )
    verdict = controller.offer(start, reference)
    assert verdict.verdict == Verdict.ACCEPTED, verdict


def test_mujoco_and_the_controller_agree_on_the_dynamics(case):
    arm, period_s = case
    plant = UrdfPlant(arm.config, period_s)
    rng = np.random.default_rng(0)
    for _ in range(10):
        q = rng.uniform(arm.limits.position_min_rad, arm.limits.position_max_rad)
        dq = rng.normal(size=arm.n)
        bias = arm.inverse_dynamics(q, dq, np.zeros(arm.n))
        np.testing.assert_allclose(plant.bias_nm(q, dq), bias, atol=1e-9)
        np.testing.assert_allclose(plant.mass_matrix(q), arm.mass_matrix(q), atol=1e-9)


def test_drives_delay_as_long_as_the_description_says(case):
    arm, _ = case
    drives = drive_config(arm.config)
    lag_s = drives.current_loop_s + 2.0 / (2.0 * np.pi * drives.observer_hz)
    assert lag_s == pytest.approx(arm.config.feedback_delay_s)


def test_holds_the_pose_within_a_milliradian(live):
    controller, plant = live
    run(controller, plant, 2.0)
    assert controller.mode == Mode.HOLD
    assert np.abs(plant.q_true - controller.arm.config.home_rad).max() < 1e-3


def test_gives_way_to_a_push_as_its_stiffness_says_and_returns(live):
    controller, plant = live
    push = 0.08 * controller.kp  # 80 mrad where nothing but stiffness holds against it
    push = np.minimum(push, 0.3 * controller.arm.limits.torque_nm)
    for _ in range(round(1.5 / plant.control_period_s)):
        plant.step(controller.tick(plant.time_s, plant.q, plant.dq), push)
    given_way = plant.q_true - controller.arm.config.home_rad
    friction = np.array([joint.coulomb_nm for joint in controller.arm.config.joints])
    # tolerance: stiction may hold the arm short of the balance
    assert (np.abs(given_way - push / controller.kp) <= 1.1 * friction / controller.kp + 2e-3).all()
    run(controller, plant, 1.5)
    back = np.abs(plant.q_true - controller.arm.config.home_rad)
    assert (back <= 1.1 * friction / controller.kp + 2e-3).all()


def test_follows_a_smooth_motion_within_milliradians_and_holds_its_end(live):
    controller, plant = live
    start = plant.q_true
    swing(controller, plant)
    worst = run(controller, plant, 3.4)
    assert np.abs(plant.q_true - start).max() > 0.2  # it moved
    assert worst.max() < 5e-3
    assert controller.mode == Mode.HOLD
    assert controller.fault == Fault.NONE
    assert controller.statistics.peak_torque_ratio <= 1.0


def test_brakes_along_the_path_and_holds(live):
    controller, plant = live
    swing(controller, plant)
    run(controller, plant, 1.3)
    assert np.abs(plant.dq_true).max() > 0.1
    controller.brake(plant.time_s)
    worst = run(controller, plant, 1.5)
    assert controller.mode == Mode.HOLD
    assert worst.max() < 5e-3
    assert np.abs(plant.dq_true).max() < 5e-3


def test_e_stop_damps_the_arm_to_rest_without_dropping_it(live):
    controller, plant = live
    swing(controller, plant)
    run(controller, plant, 1.3)
    at, speed = plant.q_true, np.abs(plant.dq_true).max()
    assert speed > 0.1
    controller.estop()
    run(controller, plant, 1.5)
    assert controller.mode == Mode.ESTOP
    assert np.abs(plant.dq_true).max() < 5e-3
    assert np.abs(plant.q_true - at).max() < 0.5 * speed  # coasts, does not fall


def test_deactivates_to_gravity_only_and_then_nothing(live):
    controller, plant = live
    run(controller, plant, 0.2)
    controller.deactivate(plant.time_s)
    last = controller.telemetry.tau.copy()
    while controller.mode != Mode.OFF:
        tau = controller.tick(plant.time_s, plant.q, plant.dq)
        if controller.mode != Mode.OFF:
            last = tau.copy()
        plant.step(tau)
        assert plant.time_s < 2.0
    weight = controller.arm.gravity_torque(plant.q)
    if controller.arm.config.gravity_added_by_robot:
        weight = np.zeros_like(weight)
    np.testing.assert_allclose(last, weight, atol=0.5)
    assert not controller.tick(plant.time_s, plant.q, plant.dq).any()


def test_drives_damp_by_themselves_when_commands_stop(live):
    controller, plant = live
    swing(controller, plant)
    run(controller, plant, 1.3)
    for _ in range(round(0.1 / plant.control_period_s)):
        plant.step(None)
    assert plant.drives.watchdog_tripped
