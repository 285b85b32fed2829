"""Live tuning: what each value does to the torque, and what is refused with which words."""

import dataclasses

import numpy as np
import pytest
from impedance_support import Plant, run

from niaf_impedance import ControllerConfig, ImpedanceController
from niaf_impedance.settings import ControllerConfigError
from niaf_impedance.tuning import Tuning

PERIOD_S = 0.001


def retune(controller, **changes):
    controller.set_tuning(dataclasses.replace(controller.tuning, **changes))


def test_stiffness_scale_multiplies_every_gain_over_the_ramp(holding):
    controller, plant = holding
    run(controller, plant, 0.05)
    before = controller.kp.copy()
    retune(controller, stiffness_scale=0.5)
    run(controller, plant, 0.25)
    np.testing.assert_allclose(controller.kp, 0.75 * before, rtol=0.02)
    run(controller, plant, 0.5)
    np.testing.assert_allclose(controller.kp, 0.5 * before)


def test_damping_ratio_follows_the_inertia_of_the_pose(holding, arm):
    controller, plant = holding
    retune(controller, damping_ratio=0.3)
    run(controller, plant, 1.5)
    inertia = np.diag(arm.mass_matrix(plant.q))
    wanted = 2.0 * 0.3 * np.sqrt(controller.kp * inertia)
    low = [joint.kd.minimum for joint in arm.config.joints]
    high = [joint.kd.maximum for joint in arm.config.joints]
    np.testing.assert_allclose(controller.kd, np.clip(wanted, low, high), rtol=1e-6)


def test_damping_returns_to_the_set_value_when_the_ratio_is_switched_off(holding, arm):
    controller, plant = holding
    retune(controller, damping_ratio=0.3)
    run(controller, plant, 0.6)
    retune(controller, damping_ratio=0.0)
    run(controller, plant, 0.6)
    np.testing.assert_allclose(controller.kd, [joint.kd.default for joint in arm.config.joints])


def test_error_clip_bounds_the_stiffness_torque(holding):
    controller, plant = holding
    retune(controller, error_clip_rad=0.01)
    run(controller, plant, 0.01)
    pushed = plant.q + 0.04
    for i in range(3):
        controller.tick(plant.time_s + 0.001 * (i + 1), pushed, plant.dq)
    np.testing.assert_allclose(
        np.abs(controller.telemetry.tau_stiffness), 0.01 * controller.kp, rtol=1e-9)


def test_velocity_filter_lags_by_its_time_constant(arm):
    controller = ImpedanceController(ControllerConfig(velocity_filter_s=0.004), arm)
    q = arm.config.home_rad
    controller.activate(0.0, q, np.zeros(7))
    ramp = 2.0  # rad/s^2
    for i in range(1, 60):
        t = i * PERIOD_S
        controller.tick(t, q, np.full(7, ramp * t))
    damping = controller.telemetry.tau_damping / controller.kd
    np.testing.assert_allclose(-damping, ramp * (59 * PERIOD_S - 0.004), rtol=0.02)


def test_a_filter_counts_as_delay_in_the_damping_bound(controller):
    tuning = controller.tuning
    assert controller.check_tuning(tuning, PERIOD_S) == ""
    problem = controller.check_tuning(tuning, PERIOD_S, velocity_filter_s=0.02)
    assert "damping too high for the delay" in problem


def test_damping_ratio_is_judged_by_the_same_bound(controller):
    problem = controller.check_tuning(
        dataclasses.replace(controller.tuning, damping_ratio=2.0, stiffness_scale=2.0), 0.004)
    assert "lower damping_ratio" in problem


def test_friction_and_torque_limit_take_effect(holding, arm):
    controller, plant = holding
    limits = tuple(0.5 * joint.torque_limit_nm for joint in arm.config.joints)
    retune(controller, torque_limit_nm=limits, viscous_nms_rad=(0.9,) * 7, friction_scale=1.0)
    far = plant.q + 0.04
    for i in range(400):
        controller.tick(0.001 * (i + 1), far, plant.dq)
    assert (np.abs(controller.telemetry.tau) <= np.array(limits) + 1e-12).all()


def test_a_lower_torque_limit_under_load_does_not_step_the_torque(holding, arm):
    controller, plant = holding
    far = plant.q + 0.09
    for i in range(400):
        controller.tick(0.001 * (i + 1), far, plant.dq)
    before = controller.telemetry.tau.copy()
    limits = tuple(0.1 * joint.torque_limit_nm for joint in arm.config.joints)
    assert (np.abs(before) > np.array(limits)).any()
    retune(controller, torque_limit_nm=limits)
    for i in range(400, 900):
        tau = controller.tick(0.001 * (i + 1), far, plant.dq)
        assert (np.abs(tau - before) <= 1.001e-3 * arm.limits.torque_rate_nm_s).all()
        before = tau.copy()
    assert (np.abs(before) <= np.array(limits) + 1e-9).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stiffness_scale": 3.0}, "stiffness_scale = 3 is outside"),
        ({"friction_scale": float("nan")}, "friction_scale = nan is outside"),
        ({"kp": (1.0,)}, "kp needs 7 values, got 1"),
        ({"torque_limit_nm": (1e3,) * 7}, "limits.panda_joint1.torque_nm = 1000 is outside"),
        ({"error_clip_rad": 0.9}, "the clip would never act"),
    ],
)
def test_values_that_make_no_sense_are_refused_by_name(controller, changes, words):
    before = controller.tuning
    with pytest.raises(ControllerConfigError, match=words.replace(".", r"\.")):
        retune(controller, **changes)
    assert controller.tuning == before


def test_stiffness_scale_stays_inside_each_joints_range(arm):
    tuning = dataclasses.replace(Tuning.of(arm.config), stiffness_scale=2.0)
    for kp, joint in zip(tuning.effective_kp(arm.config), arm.config.joints, strict=True):
        assert kp <= joint.kp.maximum


def test_settings_change_while_the_arm_runs(holding):
    controller, plant = holding
    controller.set_config(dataclasses.replace(controller.config, tracking_error_limit_rad=0.02))
    run(controller, plant, 0.01)
    for i in range(3):
        controller.tick(plant.time_s + 0.001 * (i + 1), plant.q + 0.03, plant.dq)
    assert controller.fault.name == "TRACKING_ERROR"


def test_reset_keeps_the_tuning(holding, arm):
    controller, plant = holding
    retune(controller, stiffness_scale=0.5)
    run(controller, plant, 0.6)
    controller.estop()
    run(controller, Plant(arm, plant.q), 0.0)
    controller.tick(plant.time_s, plant.q, np.zeros(7))
    controller.reset()
    assert controller.tuning.stiffness_scale == 0.5
    np.testing.assert_allclose(controller.kp, controller.tuning.effective_kp(arm.config))
