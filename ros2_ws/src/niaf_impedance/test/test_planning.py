"""Whole-horizon admission: what is let in keeps every limit; what is too fast is slowed exactly."""

import dataclasses
import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from impedance_support import make_field, make_prior, make_spline, run

from niaf_impedance import ArmModel, ControllerConfig, ImpedanceController, Mode, Verdict
from niaf_impedance.admission import Reason
from niaf_impedance.robot_config import WorkspaceConfig, default_robot_config_path

STEP_S = 0.0005


def follow_exactly(controller, t_s, duration_s):
    """Tick with the reference as the measured state; yields (t, jet [3, n]) of every tick."""
    zero = np.zeros(controller.n)
    for _ in range(round(duration_s / STEP_S)):
        t_s += STEP_S
        controller.tick(t_s, controller.telemetry.q_ref.copy(), zero)
        tel = controller.telemetry
        yield t_s, np.stack([tel.q_ref, tel.dq_ref, tel.ddq_ref])


def assert_inside_limits(arm, config, jet):
    limits = arm.limits
    q, dq, ddq = jet
    assert (q >= limits.position_min_rad - 1e-6).all()
    assert (q <= limits.position_max_rad + 1e-6).all()
    assert (np.abs(dq) <= config.admit_velocity_ratio * limits.velocity_rad_s).all()
    assert (
        np.abs(ddq) <= config.admit_acceleration_ratio * limits.acceleration_rad_s2
    ).all()
    torque = arm.inverse_dynamics(q, dq, ddq)
    assert (np.abs(torque) <= config.admit_torque_ratio * limits.torque_nm).all()


@pytest.fixture(scope="module")
def wild_prior(arm):
    """Channels that reach a radian: half of its random fields pass some limit."""
    return make_prior(arm, scale=0.6)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seeds=st.lists(st.integers(0, 10_000), min_size=3, max_size=3),
    strength=st.floats(0.05, 1.5),
    gaps=st.lists(st.sampled_from([0.01, 0.04, 0.1, 0.25, 0.6, 1.2]), min_size=3, max_size=3),
    late=st.sampled_from([0.0, 0.1, 0.4]),
    blend_s=st.sampled_from([0.02, 0.1]),
)
def test_no_admitted_reference_ever_commands_outside_the_limits(
    arm, wild_prior, seeds, strength, gaps, late, blend_s
):
    config = ControllerConfig(
        blend_s=blend_s, seam_position_limit_rad=2.0, tracking_error_limit_rad=9.0)
    controller = ImpedanceController(config, arm, wild_prior)
    home, t = arm.config.home_rad, 0.0
    controller.activate(t, home, np.zeros(7))
    controller.tick(t, home, np.zeros(7))
    for number, (seed, gap) in enumerate(zip(seeds, gaps, strict=True)):
        pose = controller.telemetry.q_ref.copy()
        if seed % 3 == 0:
            reference = make_spline(pose, t - late, number + 1, seed, reach=strength)
        else:
            reference = make_field(wild_prior, pose, t - late, number + 1, seed, strength)
        verdict = controller.offer(t, reference)
        if verdict.verdict == Verdict.SLOWED:
            assert 0.2 <= verdict.time_scale < 1.0
            assert verdict.text
        for tick_s, jet in follow_exactly(controller, t, gap):
            t_next = tick_s
            assert_inside_limits(arm, config, jet)
        t = t_next
    for _, jet in follow_exactly(controller, t, 6.0):
        assert_inside_limits(arm, config, jet)
    assert controller.mode == Mode.HOLD


def test_admission_is_not_needlessly_slow(arm, wild_prior):
    """The chosen stretch is the smallest one: a step faster would pass a limit."""
    controller = ImpedanceController(ControllerConfig(blend_max_s=0.1), arm, wild_prior)
    controller.activate(0.0, arm.config.home_rad, np.zeros(7))
    spline = make_spline(arm.config.home_rad, 0.0, 1, seed=2, reach=0.9)
    verdict = controller.offer(0.0, spline)
    assert verdict.verdict == Verdict.SLOWED
    peaks = [verdict.velocity_ratio, verdict.acceleration_ratio / 3.0, verdict.torque_ratio,
             verdict.position_ratio, verdict.torque_rate_ratio]
    assert 0.93 < max(peaks) <= 1.0
    assert f"slowed to {verdict.time_scale:.2f}" in verdict.text


def test_slowed_field_runs_along_the_same_path(arm, wild_prior):
    """After the blend: the field at the stretched instant, derivatives by the chain rule."""
    controller = ImpedanceController(ControllerConfig(), arm, wild_prior)
    home = arm.config.home_rad
    controller.activate(0.0, home, np.zeros(7))
    start, field = 0.0, None
    for seed in range(40):
        field = make_field(wild_prior, home, start, seed + 1, seed, strength=1.0)
        verdict = controller.plan(controller.snapshot(), 0.0, field).verdict
        if verdict.verdict == Verdict.SLOWED and verdict.time_scale > 0.3:
            break
    assert verdict.verdict == Verdict.SLOWED, "no seed gave a slowed field"
    assert controller.offer(0.0, field).verdict == Verdict.SLOWED
    scale = verdict.time_scale
    for t, jet in follow_exactly(controller, 0.0, verdict.blend_s + 0.2):
        if t > verdict.blend_s and controller.mode == Mode.TRACK:
            original = field.jet(t * scale, 2)[:, :7]
            np.testing.assert_allclose(jet[0], original[0], atol=1e-9)
            np.testing.assert_allclose(jet[1], scale * original[1], atol=1e-8)
            np.testing.assert_allclose(jet[2], scale**2 * original[2], atol=1e-7)


def test_slowing_can_be_switched_off(arm, wild_prior):
    spline = make_spline(arm.config.home_rad, 0.0, 1, seed=2, reach=0.9)
    controller = ImpedanceController(
        ControllerConfig(slow_min_scale=1.0, blend_max_s=0.1), arm, wild_prior)
    controller.activate(0.0, arm.config.home_rad, np.zeros(7))
    verdict = controller.offer(0.0, spline)
    assert verdict.verdict == Verdict.REFUSED
    assert verdict.reason in (Reason.VELOCITY_LIMIT, Reason.ACCELERATION_LIMIT)


def test_a_position_outside_the_limits_cannot_be_slowed_away(holding):
    controller, plant = holding
    spline = make_spline(plant.q + np.eye(7)[3] * 0.2, 0.0, 1, reach=0.9, seed=4)
    verdict = controller.offer(0.0, spline)
    assert (verdict.verdict, verdict.reason) == (Verdict.REFUSED, Reason.POSITION_LIMIT)


def test_jerk_and_workspace_are_checked_where_described(arm, prior):
    joints = tuple(dataclasses.replace(j, jerk_limit_rad_s3=5.0) for j in arm.config.joints)
    gentle = ArmModel(dataclasses.replace(arm.config, joints=joints))
    q = arm.config.home_rad
    for model, reason in (
        (gentle, Reason.JERK_LIMIT),
        (ArmModel(dataclasses.replace(
            arm.config, workspace=WorkspaceConfig((-1.0, -0.01, 0.0), (1.0, 0.01, 1.5)),
            tool_frame="panda_hand")), Reason.WORKSPACE),
    ):
        controller = ImpedanceController(ControllerConfig(slow_min_scale=1.0), model, prior)
        controller.activate(0.0, q, np.zeros(7))
        verdict = controller.offer(0.0, make_spline(q, 0.0, 1, seed=3, reach=0.2, horizon_s=2.0))
        assert (verdict.verdict, verdict.reason) == (Verdict.REFUSED, reason)
    assert verdict.joint == "tool y"


def test_plan_of_another_thread_is_taken_over_by_the_tick(holding, prior):
    """Planned on a snapshot while the tick goes on; continuous at the flip to rounding."""
    controller, plant = holding
    assert controller.offer(0.0, make_field(prior, plant.q, 0.0, 1, strength=0.1)).accepted
    run(controller, plant, 0.2)
    snapshot, plans = controller.snapshot(), []
    field = make_field(prior, plant.q, plant.time_s - 0.05, 2, seed=5, strength=0.1)
    thread = threading.Thread(
        target=lambda: plans.append(controller.plan(snapshot, plant.time_s, field, lead_s=0.02)))
    thread.start()
    run(controller, plant, 0.01)
    thread.join()
    assert controller.commit(plans[0]).accepted
    assert controller.sequence == 1
    run(controller, plant, 0.02)
    assert controller.sequence == 2
    assert controller.statistics.seam_position_peak_rad < 1e-12
    assert controller.statistics.seam_acceleration_peak_rad_s2 < 1e-9


@pytest.mark.parametrize("event", ["late", "brake", "estop", "other plan"])
def test_a_plan_that_the_world_overtook_is_not_taken(holding, prior, event):
    controller, plant = holding
    assert controller.offer(0.0, make_field(prior, plant.q, 0.0, 1, strength=0.1)).accepted
    run(controller, plant, 0.2)
    field = make_field(prior, plant.q, plant.time_s, 2, seed=5, strength=0.1)
    plan = controller.plan(controller.snapshot(), plant.time_s, field, lead_s=0.01)
    if event == "late":
        run(controller, plant, 0.03)
    elif event == "brake":
        controller.brake(plant.time_s)
    elif event == "estop":
        controller.estop()
    else:
        other = make_field(prior, plant.q, plant.time_s, 3, seed=6, strength=0.1)
        assert controller.offer(plant.time_s, other).accepted
    verdict = controller.commit(plan)
    assert (verdict.verdict, verdict.reason) == (Verdict.REFUSED, Reason.OVERTAKEN)
    run(controller, plant, 0.05)
    assert controller.sequence == (3 if event == "other plan" else 1)


def test_a_committed_plan_is_dropped_when_the_arm_stops_first(holding, prior):
    controller, plant = holding
    run(controller, plant, 0.1)
    field = make_field(prior, plant.q, plant.time_s, 1)
    assert controller.commit(
        controller.plan(controller.snapshot(), plant.time_s, field, lead_s=0.01)).accepted
    controller.estop()
    run(controller, plant, 0.1)
    assert (controller.mode, controller.sequence) == (Mode.ESTOP, 0)


def test_too_many_pieces_are_refused(holding):
    from niaf_field import spline_reference

    controller, plant = holding
    times = np.linspace(0.0, 1.0, 700)
    spline = spline_reference(times, np.tile(plant.q, (700, 1)), sequence=1, stamp_s=0.0)
    assert controller.offer(0.0, spline).reason == Reason.TOO_LONG


def test_default_arm_has_no_jerk_limit():
    arm = ArmModel.from_yaml(default_robot_config_path())
    assert np.isinf(arm.limits.jerk_rad_s3).all()


def reference_jets(controller, arm, t0_s, duration_s):
    zero, jets = np.zeros(arm.n), []
    for i in range(round(duration_s / 0.001)):
        controller.tick(t0_s + 0.001 * (i + 1), controller.telemetry.q_ref.copy(), zero)
        jets.append(controller.telemetry.q_ref.copy())
    return np.array(jets)


@pytest.mark.parametrize("others", [1, 2, 3, 6])
def test_judging_the_next_reference_never_touches_the_one_that_was_admitted(arm, prior, others):
    """Fields that arrive while one is judged are judged on a snapshot that does not know it."""
    q = arm.config.home_rad
    runs = []
    for count in (0, others):
        controller = ImpedanceController(ControllerConfig(), arm, prior)
        controller.activate(0.0, q, np.zeros(arm.n))
        controller.tick(0.001, q, np.zeros(arm.n))
        snapshots = [controller.snapshot() for _ in range(count + 1)]
        first = controller.plan(snapshots[0], 0.001, make_spline(q, 0.001, 1, seed=1), 0.01)
        assert controller.commit(first).accepted
        for i, snapshot in enumerate(snapshots[1:]):
            late = controller.plan(snapshot, 0.002, make_spline(q, 0.002, i + 2, seed=i + 2), 0.01)
            assert controller.commit(late).reason == Reason.OVERTAKEN
        runs.append(reference_jets(controller, arm, 0.001, 1.2))
    np.testing.assert_array_equal(runs[0], runs[1])


def test_a_plan_that_lost_its_buffers_before_its_commit_is_overtaken(arm, prior):
    q = arm.config.home_rad
    controller = ImpedanceController(ControllerConfig(), arm, prior)
    controller.activate(0.0, q, np.zeros(arm.n))
    controller.tick(0.001, q, np.zeros(arm.n))
    snapshot = controller.snapshot()
    plans = [
        controller.plan(snapshot, 0.001, make_spline(q, 0.001, 1 + i, seed=i), 0.01)
        for i in range(8)
    ]
    verdicts = [controller.commit(plan) for plan in plans]
    assert verdicts[0].reason == Reason.OVERTAKEN
    assert sum(verdict.accepted for verdict in verdicts) == 1


def test_a_plan_judged_under_other_limits_is_overtaken(holding, prior):
    controller, plant = holding
    field = make_field(prior, plant.q, plant.time_s, 1, strength=0.1)
    plan = controller.plan(controller.snapshot(), plant.time_s, field, lead_s=0.01)
    controller.set_tuning(dataclasses.replace(controller.tuning, torque_limit_nm=tuple(
        0.5 * limit for limit in controller.tuning.torque_limit_nm)))
    assert controller.commit(plan).reason == Reason.OVERTAKEN
