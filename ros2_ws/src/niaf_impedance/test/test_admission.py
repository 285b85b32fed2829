"""Admission: what is wrong is refused with a reason, and the arm goes on as before."""

import dataclasses

import numpy as np
import pytest
from impedance_support import Plant, make_field, make_prior, make_spline, run

from niaf_field import spline_reference
from niaf_impedance import ControllerConfig, ImpedanceController, Mode, Verdict
from niaf_impedance.admission import REASON_TEXT, Reason
from niaf_impedance.controller import ControllerConfigError


def refused(controller, t, reference):
    before = controller.telemetry.tau.copy()
    verdict = controller.offer(t, reference)
    assert verdict.verdict == Verdict.REFUSED
    assert verdict.text
    np.testing.assert_array_equal(controller.telemetry.tau, before)
    return verdict.reason


def test_good_field_is_accepted_with_figures(holding, prior):
    controller, plant = holding
    run(controller, plant, 0.2)
    verdict = controller.offer(0.2, make_field(prior, plant.q, 0.1, 7))
    assert verdict.verdict == Verdict.ACCEPTED
    assert verdict.sequence == controller.sequence == 7
    assert verdict.age_s == pytest.approx(0.1)
    assert verdict.consumed_fraction == pytest.approx(0.1)
    assert 0.0 < verdict.torque_ratio < 1.0
    assert verdict.seam_position_rad.shape == (7,)


def test_wrong_prior(holding, arm, prior):
    controller, plant = holding
    other = make_prior(arm, width=12)
    assert refused(controller, 0.0, make_field(other, plant.q, 0.0, 1)) == Reason.PRIOR_MISMATCH


def test_no_prior_loaded(arm, prior):
    controller = ImpedanceController(ControllerConfig(), arm)
    q = arm.config.home_rad
    controller.activate(0.0, q, np.zeros(7))
    assert refused(controller, 0.0, make_field(prior, q, 0.0, 1)) == Reason.PRIOR_MISMATCH


def test_not_active(controller, prior, arm):
    field = make_field(prior, arm.config.home_rad, 0.0, 1)
    assert refused(controller, 0.0, field) == Reason.NOT_FOLLOWING


def test_times(holding, prior):
    controller, plant = holding
    run(controller, plant, 0.3)
    q = plant.q
    assert refused(controller, 0.3, make_field(prior, q, 9.0, 1)) == Reason.STARTS_TOO_LATE
    assert refused(controller, 0.3, make_field(prior, q, -0.699, 1)) == Reason.EXHAUSTED
    assert controller.offer(0.3, make_field(prior, q, 0.2, 5)).accepted
    assert refused(controller, 0.3, make_field(prior, q, 0.2, 5)) == Reason.OUT_OF_ORDER
    assert refused(controller, 0.3, make_field(prior, q, 0.1, 6)) == Reason.OUT_OF_ORDER
    # a policy that restarted counts from one again: the newer observation decides
    assert controller.offer(0.3, make_field(prior, q, 0.25, 1)).accepted


def test_channels(holding):
    controller, plant = holding
    spline = spline_reference([0.0, 1.0], np.zeros((2, 5)), sequence=1, stamp_s=0.0)
    assert refused(controller, 0.0, spline) == Reason.CHANNEL_MISMATCH


def test_not_finite(holding, prior):
    controller, plant = holding
    field = make_field(prior, plant.q, 0.0, 1)
    field.folded.weights[3] = np.nan
    assert refused(controller, 0.0, field) == Reason.NOT_FINITE


def motion(q, joint, amount, duration_s, sequence=1, start_s=0.0):
    """Rest to rest, one joint."""
    positions = np.tile(np.append(q, 0.04), (2, 1))
    positions[1, joint] += amount
    times = [start_s, start_s + duration_s]
    still = np.zeros(8)
    return spline_reference(
        times, positions, start_velocity=still, sequence=sequence, stamp_s=start_s
    )


@pytest.mark.parametrize(
    ("joint", "amount", "duration_s", "reason"),
    [
        (3, -0.8, 3.0, Reason.POSITION_LIMIT),
        (0, 2.0, 1.0, Reason.VELOCITY_LIMIT),
        (6, 0.4, 0.1, Reason.VELOCITY_LIMIT),
    ],
)
def test_limits_name_joint_and_instant(arm, joint, amount, duration_s, reason):
    controller = ImpedanceController(ControllerConfig(slow_min_scale=1.0), arm)
    plant = Plant(arm, arm.config.home_rad)
    controller.activate(0.0, plant.q, plant.dq)
    verdict = controller.offer(0.0, motion(plant.q, joint, amount, duration_s))
    assert verdict.reason == reason
    assert verdict.joint == f"panda_joint{joint + 1}"
    assert 0.0 < verdict.instant_s <= duration_s
    assert verdict.joint in verdict.text


def test_acceleration_and_torque_limits(arm):
    q = arm.config.home_rad
    config = ControllerConfig(admit_velocity_ratio=10.0, blend_s=0.02, slow_min_scale=1.0)
    controller = ImpedanceController(config, arm)
    controller.activate(0.0, q, np.zeros(7))
    assert controller.offer(0.0, motion(q, 0, 0.5, 0.25)).reason == Reason.ACCELERATION_LIMIT
    config = dataclasses.replace(config, admit_acceleration_ratio=100.0)
    controller = ImpedanceController(config, arm)
    controller.activate(0.0, q, np.zeros(7))
    assert controller.offer(0.0, motion(q, 1, -0.6, 0.2)).reason == Reason.TORQUE_LIMIT


def test_seam_step(holding):
    controller, plant = holding
    far = make_spline(plant.q + 0.5, 0.0, 1)
    assert refused(controller, 0.0, far) == Reason.SEAM_POSITION
    controller.set_config(ControllerConfig(slow_min_scale=1.0, admit_velocity_ratio=10.0,
                                           admit_acceleration_ratio=99.0))
    fast = make_spline(plant.q, 0.0, 1, velocity=np.append(3.0, np.zeros(6)))
    assert refused(controller, 0.0, fast) == Reason.SEAM_VELOCITY


def test_from_outside_a_limit_the_way_back_is_allowed(arm):
    q = arm.config.home_rad.copy()
    q[3] = arm.limits.position_max_rad[3] + 0.01
    controller = ImpedanceController(ControllerConfig(), arm)
    controller.activate(0.0, q, np.zeros(7))
    assert controller.offer(0.0, motion(q, 3, 0.2, 2.0)).reason == Reason.POSITION_LIMIT
    assert controller.offer(0.0, motion(q, 3, -0.2, 2.0)).accepted


def test_refusals_are_counted_and_the_running_field_goes_on(holding, prior):
    controller, plant = holding
    assert controller.offer(0.0, make_field(prior, plant.q, 0.0, 1)).accepted
    run(controller, plant, 0.2)
    bad = make_field(prior, plant.q, 0.2, 2)
    bad.folded.weights[:] = np.inf
    refused(controller, 0.2, bad)
    run(controller, plant, 0.1)
    assert (controller.mode, controller.sequence) == (Mode.TRACK, 1)
    assert (controller.accepted_count, controller.refused_count) == (1, 1)


def test_prior_of_another_arm_is_refused_at_construction(arm):
    from niaf_field import Channel, initial_prior

    stranger = initial_prior(
        [Channel("elbow", "rad", "joint_position", "relative")], sine_layers=2, width=8,
        omega0=4.0, horizon_s=1.0,
    )
    with pytest.raises(ControllerConfigError, match=r"no channel for joint 'panda_joint1'.*elbow"):
        ImpedanceController(ControllerConfig(), arm, stranger)


def test_every_reason_has_a_text():
    assert set(REASON_TEXT) == set(Reason) - {Reason.NONE}
