"""Fields that move the tool: the same admission, hand-over, stop ladder and tick as for joints."""

import dataclasses
import time
from types import SimpleNamespace

import numpy as np
import pinocchio
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from impedance_support import Plant, make_prior, make_spline, run
from numba.core.runtime import _nrt_python, rtsys
from scipy.spatial.transform import Rotation

from niaf_field import (
    ActionField,
    Channel,
    ChannelError,
    fold,
    initial_prior,
    make_field_message,
    to_message,
)
from niaf_impedance import (
    ArmModel,
    ControllerConfig,
    Fault,
    ImpedanceController,
    Mode,
    Verdict,
    default_robot_config_path,
)
from niaf_impedance import tick as k
from niaf_impedance import tool_task as task
from niaf_impedance.admission import Reason
from niaf_impedance.journal import JournaledController, restore_state, state_values
from niaf_impedance.lateness import ONLY_COUNT
from niaf_impedance.loop import ControlLoop
from niaf_impedance.references import reference_from_message
from niaf_impedance.replay import replay_session
from niaf_impedance.robot_config import RobotConfigError, load_robot_config
from niaf_impedance.settings import ControllerConfigError
from niaf_impedance.tool_setup import tool_pose
from niaf_impedance.warm_up import warm_up

NAMES = ("x", "y", "z", "rx", "ry", "rz")
STEP_S = 0.001


def make_tool_prior(scale_m=0.02, scale_rad=0.06, semantics="relative", horizon_s=1.0):
    channels = [Channel(n, "m", "cartesian_position", semantics, 0.0, scale_m) for n in NAMES[:3]]
    channels += [
        Channel(n, "rad", "cartesian_rotation", semantics, 0.0, scale_rad) for n in NAMES[3:]]
    channels.append(Channel("gripper", "m", "gripper", "absolute", 0.04, 0.02))
    return initial_prior(
        channels, sine_layers=3, width=16, omega0=4.0, horizon_s=horizon_s, seed=1)


def anchor_of(arm, q):
    pose, _ = tool_pose(arm, q)
    turn = Rotation.from_matrix(pose[:9].reshape(3, 3)).as_rotvec()
    return np.concatenate([pose[9:12], turn, [0.0]])


def make_tool_field(prior, anchor, stamp_s, sequence, seed=0, strength=0.2, late_s=0.0):
    rng = np.random.default_rng(seed)
    gamma = strength * rng.normal(size=prior.gamma_length)
    beta = strength * rng.normal(size=prior.beta_length)
    folded = fold(prior, gamma, beta, anchor)
    return ActionField(
        folded, stamp_s - late_s, prior.horizon_s, sequence, stamp_s, prior.prior_id)


def tool_jet(controller):
    """(R [3, 3], jet [3, 3] of position, omega and alpha [2, 3]) commanded by the last tick."""
    m = controller._scratch[task.T_REF : task.T_REF + 24]
    return (m[:9].reshape(3, 3).copy(), np.stack([m[9:12], m[12:15], m[18:21]]),
            np.stack([m[15:18], m[21:24]]))


def report(controller, index):
    return controller._scratch[task.T_REPORT + index]


@pytest.fixture(scope="module")
def tool_prior():
    return make_tool_prior()


@pytest.fixture
def tool_holding(arm, tool_prior):
    """(controller, plant) that hold the home pose since t = 0."""
    controller = ImpedanceController(ControllerConfig(), arm, tool_prior)
    plant = Plant(arm, arm.config.home_rad)
    controller.activate(0.0, plant.q, plant.dq, gripper_m=0.08)
    return controller, plant


class Ideal:
    """Joints that do what the law asks for (its feed-forward plus a correction of what drifts)."""

    def __init__(self, controller, q):
        self.controller, self.q, self.dq, self.time_s = controller, q.copy(), q * 0.0, 0.0

    def tick(self, step_s=STEP_S):
        c = self.controller
        self.time_s += step_s
        c.tick(self.time_s, self.q, self.dq)
        tel = c.telemetry
        _, jac = tool_pose(c.arm, self.q)
        # pose error taken out at 30 rad/s, as in the rollout
        error = c._scratch[task.T_REPORT : task.T_REPORT + 6]
        dq = tel.dq_ref + np.linalg.pinv(jac) @ (30.0 * error)
        self.q = self.q + step_s * dq
        self.dq = dq


# -- field and prior -------------------------------------------------------------------------------
def test_the_anchor_of_rotation_channels_is_composed_not_added(arm, tool_prior):
    anchor = anchor_of(arm, arm.config.home_rad)
    assert np.linalg.norm(anchor[3:6]) > 2.0  # the hand points down
    field = make_tool_field(tool_prior, anchor, 0.0, 1)
    still = make_tool_field(tool_prior, np.zeros(7), 0.0, 1)
    np.testing.assert_allclose(field.folded.anchor_rotation_rad, anchor[3:6])
    jet, bare = field.jet(0.3, 2), still.jet(0.3, 2)
    np.testing.assert_array_equal(jet[:, 3:], bare[:, 3:])
    np.testing.assert_allclose(jet[0, :3], bare[0, :3] + anchor[:3])
    assert still.folded.anchor_rotation_rad == (0.0, 0.0, 0.0)
    absolute = make_tool_field(make_tool_prior(semantics="absolute"), anchor, 0.0, 1)
    assert absolute.folded.anchor_rotation_rad == (0.0, 0.0, 0.0)


def test_rotation_channels_must_be_a_whole_vector():
    turn = [Channel(n, "rad", "cartesian_rotation", "relative") for n in ("rx", "rz", "ry")]
    with pytest.raises(ChannelError, match="rx, ry, rz in this order"):
        initial_prior(turn, sine_layers=1, width=4, omega0=1.0, horizon_s=1.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c[1:], "no channel 'x'"),
        (lambda c: [dataclasses.replace(c[0], unit="mm"), *c[1:]], "'x' of the prior is a"),
        (lambda c: [*c, Channel("panda_joint1", "rad", "joint_position", "relative")],
         "panda_joint1"),
    ],
)
def test_a_prior_whose_channels_do_not_fit_is_refused_by_name(arm, tool_prior, change, words):
    prior = initial_prior(
        change(list(tool_prior.channels)), sine_layers=1, width=4, omega0=1.0, horizon_s=1.0)
    with pytest.raises(ControllerConfigError, match=words):
        ImpedanceController(ControllerConfig(), arm, prior)


def test_an_arm_without_cartesian_parameters_is_refused(arm, tool_prior):
    bare = ArmModel(dataclasses.replace(arm.config, cartesian=None))
    with pytest.raises(ControllerConfigError, match="no section 'cartesian'"):
        ImpedanceController(ControllerConfig(), bare, tool_prior)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("stiffness_n_m", {"default": 9e3, "min": 0.0, "max": 2e3}, "n_m.default: is 9000"),
        ("error_clip_m", -0.1, "cartesian.error_clip_m: is -0.1"),
        ("limit_torque_share", 1.5, "cartesian.limit_torque_share: is 1.5"),
        ("softness", 1.0, "cartesian.softness: unknown key"),
    ],
)
def test_cartesian_parameters_are_checked_by_name(arm, tmp_path, key, value, words):
    document = yaml.safe_load(arm.config.source.read_text())
    document["cartesian"][key] = value
    file = tmp_path / "robot.yaml"
    file.write_text(yaml.safe_dump(document))
    with pytest.raises(RobotConfigError, match=words):
        load_robot_config(file)


@pytest.mark.parametrize("robot", ["panda", "fr3", "ur5e"])
def test_the_shipped_gains_suit_the_delay_and_hold_the_arm(robot):
    # the small plant adds no gravity of its own
    described = load_robot_config(default_robot_config_path(robot))
    arm = ArmModel(dataclasses.replace(described, gravity_added_by_robot=False))
    channels = make_tool_prior().channels[: 7 if arm.config.gripper else 6]
    prior = initial_prior(channels, sine_layers=1, width=4, omega0=1.0, horizon_s=1.0)
    controller = ImpedanceController(ControllerConfig(), arm, prior)
    assert controller.check_tuning(controller.tuning, 0.002) == ""
    plant = Plant(arm, arm.config.home_rad)
    controller.activate(0.0, plant.q, plant.dq)
    run(controller, plant, 0.3)
    np.testing.assert_allclose(plant.q, arm.config.home_rad, atol=1e-6)
    assert controller.mode == Mode.HOLD


# -- hold and follow -------------------------------------------------------------------------------
def test_activation_holds_the_pose_without_a_step(arm, tool_holding):
    controller, plant = tool_holding
    start, _ = tool_pose(arm, plant.q)
    tau = controller.tick(0.0, plant.q, plant.dq)
    np.testing.assert_allclose(tau, arm.gravity_torque(plant.q), atol=1e-9)
    run(controller, plant, 0.5)
    now, _ = tool_pose(arm, plant.q)
    np.testing.assert_allclose(now[:12], start[:12], atol=1e-6)
    assert controller.mode == Mode.HOLD
    np.testing.assert_array_equal(controller.telemetry.q_ref, controller.telemetry.q)


def test_the_law_holds_a_pushed_tool_like_a_spring(arm, tool_holding):
    """At rest the push displaces the tool by force over stiffness."""
    controller, plant = tool_holding
    start, _ = tool_pose(arm, plant.q)
    force = np.array([10.0, -8.0, 6.0])
    for i in range(3000):
        _, jac = tool_pose(arm, plant.q)
        tau = controller.tick(plant.time_s, plant.q, plant.dq)
        plant.step(tau + jac[:3].T @ (force * min(1.0, i / 300)))
    now, _ = tool_pose(arm, plant.q)
    np.testing.assert_allclose(now[9:12] - start[9:12], force / 600.0, rtol=0.02)


def test_fields_are_followed_with_small_error(arm, tool_prior):
    """Hand-overs every 0.3 s; the plant's friction is compensated as far as it is described."""
    config = dataclasses.replace(arm.config, joints=tuple(
        dataclasses.replace(j, coulomb_nm=0.0, viscous_nms_rad=0.3) for j in arm.config.joints))
    controller = ImpedanceController(ControllerConfig(), ArmModel(config), tool_prior)
    controller.set_tuning(dataclasses.replace(controller.tuning, friction_scale=1.0))
    plant = Plant(arm, arm.config.home_rad)
    controller.activate(0.0, plant.q, plant.dq)
    verdicts, worst_m, worst_rad, travel = [], 0.0, 0.0, 0.0
    for i in range(1800):
        t = plant.time_s
        if i % 300 == 10:
            anchor = anchor_of(arm, plant.q)
            field = make_tool_field(tool_prior, anchor, t, i, seed=i, strength=0.3)
            verdicts.append(controller.offer(t, field))
        plant.step(controller.tick(t, plant.q, plant.dq))
        worst_m = max(worst_m, report(controller, k.CR_POSITION_ERROR))
        worst_rad = max(worst_rad, report(controller, k.CR_ROTATION_ERROR))
        travel += STEP_S * np.linalg.norm(tool_jet(controller)[1][1])
    assert all(v.accepted for v in verdicts), [v.text for v in verdicts]
    assert controller.fault == Fault.NONE
    assert travel > 0.05
    assert worst_m < 0.5e-3
    assert worst_rad < 3e-3
    s = controller.statistics
    assert s.seam_position_peak_rad < 1e-12
    assert s.seam_velocity_peak_rad_s < 1e-11
    assert s.seam_acceleration_peak_rad_s2 < 1e-9
    run(controller, plant, 1.5)
    assert controller.mode == Mode.HOLD


def test_after_the_blend_the_field_turns_its_anchor(arm, tool_holding, tool_prior):
    controller, plant = tool_holding
    anchor = anchor_of(arm, plant.q)
    field = make_tool_field(tool_prior, anchor, 0.0, 1, strength=0.1)
    verdict = controller.offer(0.0, field)
    assert verdict.verdict == Verdict.ACCEPTED, verdict.text
    ideal = Ideal(controller, plant.q)
    while ideal.time_s < 0.6:
        ideal.tick()
    jet = field.jet(ideal.time_s, 2)
    rotation, position, _ = tool_jet(controller)
    np.testing.assert_allclose(position, jet[:, :3], atol=1e-12)
    expected = Rotation.from_rotvec(jet[0, 3:6]) * Rotation.from_rotvec(anchor[3:6])
    np.testing.assert_allclose(rotation, expected.as_matrix(), atol=1e-12)
    assert controller.telemetry.q_ref is not None
    assert controller._tel[k.TEL_Q_REF, 7] == pytest.approx(jet[0, 6])


# -- hand-over -------------------------------------------------------------------------------------
FINE_S = 2e-5
WIDE = ControllerConfig(
    admit_velocity_ratio=1e9, admit_acceleration_ratio=1e9, admit_torque_ratio=1e9,
    admit_torque_rate_ratio=1e9, seam_tool_position_limit_m=1.0, seam_tool_rotation_limit_rad=1.5,
    seam_tool_velocity_limit_m_s=9.0, seam_tool_velocity_limit_rad_s=90.0,
    tracking_tool_limit_m=1.0, tracking_tool_limit_rad=3.0,
)


def assert_continuous(before, after, step_s, slack):
    """Each derivative changes by its own derivative times the step."""
    (r0, p0, w0), (r1, p1, w1) = before, after
    np.testing.assert_allclose(p1[0], p0[0] + 0.5 * step_s * (p0[1] + p1[1]), atol=slack[0])
    np.testing.assert_allclose(p1[1], p0[1] + 0.5 * step_s * (p0[2] + p1[2]), atol=slack[1])
    turn = Rotation.from_matrix(r1 @ r0.T).as_rotvec()
    np.testing.assert_allclose(turn, 0.5 * step_s * (w0[0] + w1[0]), atol=slack[0])
    np.testing.assert_allclose(w1[0], w0[0] + 0.5 * step_s * (w0[1] + w1[1]), atol=slack[1])


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    gaps=st.lists(st.sampled_from([0.005, 0.02, 0.05, 0.11, 0.3, 1.3]), min_size=2, max_size=5),
    late=st.lists(st.booleans(), min_size=5, max_size=5),
    seed=st.integers(0, 10_000),
)
def test_no_step_of_the_pose_at_any_arrival_time(arm, tool_prior, gaps, late, seed):
    """Fields with different anchors: pose, twist and acceleration of the composite are smooth."""
    controller = ImpedanceController(WIDE, arm, tool_prior)
    ideal = Ideal(controller, arm.config.home_rad)
    controller.activate(0.0, ideal.q, ideal.dq)
    ideal.tick(FINE_S)
    for number, (gap, is_late) in enumerate(zip(gaps, late, strict=False)):
        t = ideal.time_s
        anchor = anchor_of(arm, ideal.q)
        field = make_tool_field(
            tool_prior, anchor, t, number + 1, seed + number, 0.3, 0.2 if is_late else 0.0)
        before = tool_jet(controller)
        verdict = controller.offer(t, field)
        assert verdict.accepted, verdict.text
        for _ in range(3):
            ideal.tick(FINE_S)
            after = tool_jet(controller)
            assert_continuous(before, after, FINE_S, (1e-9, 1e-6))
            for old, new in ((before[1], after[1]), (before[2], after[2])):
                np.testing.assert_allclose(new[-1], old[-1], atol=FINE_S * 5e3)
            before = after
        end = t + gap
        while ideal.time_s < end:
            ideal.tick()
            after = tool_jet(controller)
            assert_continuous(before, after, STEP_S, (2e-6, 2e-3))
            before = after
        assert controller.mode in (Mode.TRACK, Mode.BRAKE, Mode.HOLD)
    s = controller.statistics
    assert s.seam_position_peak_rad < 1e-12
    assert s.seam_velocity_peak_rad_s < 1e-11
    assert s.seam_acceleration_peak_rad_s2 < 1e-9


def test_braking_stays_on_the_path_and_ends_in_hold(arm, tool_holding, tool_prior):
    controller, plant = tool_holding
    field = make_tool_field(tool_prior, anchor_of(arm, plant.q), 0.0, 1, strength=0.2)
    assert controller.offer(0.0, field).accepted
    ideal = Ideal(controller, plant.q)
    while ideal.time_s < 0.3:
        ideal.tick()
    controller.brake(ideal.time_s)
    path = field.batch(np.linspace(0.3, 1.0, 4000), 0)[:, 0, :3]
    while controller.mode != Mode.HOLD and ideal.time_s < 2.0:
        ideal.tick()
        position = tool_jet(controller)[1][0]
        assert np.min(np.linalg.norm(path - position, axis=1)) < 1e-4
    assert controller.mode == Mode.HOLD
    held = tool_jet(controller)
    for _ in range(50):
        ideal.tick()
    still = tool_jet(controller)
    np.testing.assert_allclose(still[0], held[0], atol=1e-14)
    np.testing.assert_array_equal(still[1][1:], 0.0)
    np.testing.assert_allclose(still[1][0], held[1][0], atol=1e-14)


# -- admission -------------------------------------------------------------------------------------
def path_of(controller, plan, snapshot, count=400):
    """(times, joint path [K, 3, n], residual) that a plan leads to, sampled finely."""
    planner = controller._planner
    from niaf_impedance import composite as c

    stop = plan.brake_at_s + plan.brake_s if plan.brake_s > 0.0 else plan.end_s
    times = np.linspace(plan.flip_s, stop, count)
    tool = np.empty((count, c.TOOL_JET))
    c.tool_commanded_many(
        times, plan.brake_at_s, plan.brake_s, plan.end_s, plan.count, planner.pool, plan.meta,
        plan.sf, 0.04, planner._raw, planner._work, planner._jets, planner._slot, tool)
    path, residual, _ = planner._roll_out(
        times, tool[:, :24].copy(), snapshot, plan.verdict.time_scale)
    return times, path, residual


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(seeds=st.lists(st.integers(0, 10_000), min_size=2, max_size=2), strength=st.floats(0.1, 1.2))
def test_no_admitted_field_ever_commands_outside_the_limits(arm, seeds, strength):
    """Joint position, velocity, acceleration and torque on the joint path, finely sampled."""
    prior = make_tool_prior(scale_m=0.12, scale_rad=0.3)
    config = ControllerConfig(tracking_tool_limit_m=1.0, tracking_tool_limit_rad=3.0)
    controller = ImpedanceController(config, arm, prior)
    ideal = Ideal(controller, arm.config.home_rad)
    controller.activate(0.0, ideal.q, ideal.dq)
    ideal.tick()
    limits = arm.limits
    for number, seed in enumerate(seeds):
        anchor = anchor_of(arm, ideal.q)
        bare = make_tool_field(prior, np.zeros(7), 0.0, 1, seed, strength).jet(0.0, 0)[0]
        anchor[:3] -= bare[:3]  # begin where the tool is
        turn = Rotation.from_rotvec(-bare[3:6]) * Rotation.from_rotvec(anchor[3:6])
        anchor[3:6] = turn.as_rotvec()
        field = make_tool_field(prior, anchor, ideal.time_s, number + 1, seed, strength)
        snapshot = controller.snapshot()
        plan = controller.plan(snapshot, ideal.time_s, field)
        if plan.verdict.accepted:
            _, path, residual = path_of(controller, plan, snapshot)
            q, dq, ddq = path[:, 0], path[:, 1], path[:, 2]
            assert residual[:, 0].max() < 1.5e-3
            assert (q >= limits.position_min_rad).all()
            assert (q <= limits.position_max_rad).all()
            assert (np.abs(dq) <= 1.01 * limits.velocity_rad_s).all()
            assert (np.abs(ddq) <= 1.03 * 3.0 * limits.acceleration_rad_s2).all()
            for row in path[::10]:
                assert (np.abs(arm.inverse_dynamics(*row)) <= 1.01 * limits.torque_nm).all()
            assert controller.commit(plan).accepted
        else:
            assert plan.verdict.text
        for _ in range(300):
            ideal.tick()
            assert (np.abs(controller.telemetry.tau) <= limits.torque_nm).all()
    assert controller.fault == Fault.NONE


def steady_prior(horizon_s=2.0):
    """One sine layer, so that a field can be written down: channel = b + w sin(pi tau / 2)."""
    prior = make_tool_prior(scale_m=1.0, scale_rad=1.0, horizon_s=horizon_s)
    flat = initial_prior(prior.channels, sine_layers=1, width=4, omega0=1.0, horizon_s=horizon_s)
    return dataclasses.replace(
        flat, weights=(np.full((4, 1), 0.5 * np.pi, np.float32),),
        biases=(np.zeros(4, np.float32),), w_out=np.zeros((7, 4), np.float32))


def half_wave(arm, q, amplitudes, horizon_s=2.0):
    """Prior and field along ``amplitudes`` [6] from the pose at q: A (1 + sin(pi tau / 2)) / 2."""
    prior = steady_prior(horizon_s)
    w_out = np.zeros((7, 4), np.float32)
    w_out[:6, 0] = 0.5 * np.asarray(amplitudes)
    b_out = np.zeros(7, np.float32)
    b_out[:6] = 0.5 * np.asarray(amplitudes)
    prior = dataclasses.replace(prior, w_out=w_out, b_out=b_out)
    gamma, beta = prior.layout.zeros()
    folded = fold(prior, gamma, beta, anchor_of(arm, q))
    return prior, lambda start_s, n: ActionField(
        folded, start_s, horizon_s, n, start_s, prior.prior_id)


def refused(arm, amplitudes, q=None, horizon_s=2.0, **changes):
    q = arm.config.home_rad if q is None else q
    prior, field = half_wave(arm, q, amplitudes, horizon_s)
    controller = ImpedanceController(ControllerConfig(**changes), arm, prior)
    controller.activate(0.0, q, np.zeros(7))
    controller.tick(0.001, q, np.zeros(7))
    return controller.offer(0.001, field(0.001, 1))


def test_a_short_way_is_admitted_as_it_is(arm):
    verdict = refused(arm, [0.1, 0.05, 0.05, 0.2, 0.0, 0.0])
    assert verdict.verdict == Verdict.ACCEPTED, verdict.text
    assert 0.0 < verdict.velocity_ratio < 1.0


def test_a_pose_out_of_reach_is_refused_by_name(arm):
    verdict = refused(arm, [0.8, 0.0, 0.0, 0.0, 0.0, 0.0], horizon_s=4.0)
    assert (verdict.verdict, verdict.reason) == (Verdict.REFUSED, Reason.UNREACHABLE), verdict.text
    assert "cannot bring its tool there" in verdict.text


def test_a_way_into_a_singular_pose_is_refused_by_name(arm):
    """The shoulder's singular pose, inside the workspace; away from it is allowed."""
    shoulder = np.array([0.0, 0.2, np.pi / 2, -1.5, 0.0, 1.5, 0.5])
    verdict = refused(arm, [-0.1, 0.0, 0.0, 0.0, 0.0, 0.0], q=shoulder, horizon_s=6.0)
    assert (verdict.verdict, verdict.reason) == (Verdict.REFUSED, Reason.SINGULAR), verdict.text
    assert "singular pose" in verdict.text
    assert refused(arm, [0.1, 0.0, 0.0, 0.0, 0.0, 0.0], q=shoulder, horizon_s=6.0).accepted


def test_out_of_a_singular_pose_the_way_is_free(arm):
    shoulder = np.array([0.0, 0.1, np.pi / 2, -1.5, 0.0, 1.5, 0.5])
    _, jac = tool_pose(arm, shoulder)
    weighted = np.diag([1 / 0.4] * 3 + [1.0] * 3) @ jac
    assert np.linalg.svd(weighted)[1][-1] < arm.config.cartesian.singular_value
    assert refused(arm, [0.1, 0.0, 0.0, 0.0, 0.0, 0.0], q=shoulder, horizon_s=6.0).accepted


def test_a_turn_of_half_a_revolution_is_refused(arm):
    verdict = refused(arm, [0.0, 0.0, 0.0, 0.0, 0.0, 3.3], horizon_s=6.0)
    assert (verdict.verdict, verdict.reason) == (Verdict.REFUSED, Reason.UNREACHABLE)
    assert "must stay below pi" in verdict.text


def test_a_joint_limit_on_the_way_is_named(arm):
    verdict = refused(arm, [0.0, 0.0, 0.0, 0.0, 0.0, -2.9], horizon_s=8.0)
    assert (verdict.verdict, verdict.reason) == (Verdict.REFUSED, Reason.POSITION_LIMIT)
    assert verdict.joint.startswith("panda_joint")


def test_a_step_at_the_seam_is_refused_in_metres_and_in_radians(arm, tool_holding, tool_prior):
    controller, plant = tool_holding
    anchor = anchor_of(arm, plant.q)
    far = anchor + np.array([0.0, 0.3, 0.0, 0.0, 0.0, 0.0, 0.0])
    verdict = controller.offer(0.0, make_tool_field(tool_prior, far, 0.0, 1))
    assert verdict.reason == Reason.SEAM_POSITION
    assert "m at the hand-over" in verdict.text
    assert verdict.seam_position_rad.shape == (6,)
    turned = anchor.copy()
    turned[3:6] = (
        Rotation.from_rotvec([0.0, 0.0, 0.9]) * Rotation.from_rotvec(anchor[3:6])).as_rotvec()
    verdict = controller.offer(0.0, make_tool_field(tool_prior, turned, 0.0, 2))
    assert verdict.reason == Reason.SEAM_POSITION
    assert "turn by" in verdict.text


def test_joint_references_and_foreign_fields_are_refused(arm, tool_holding):
    controller, plant = tool_holding
    verdict = controller.offer(0.0, make_spline(plant.q, 0.0, 1))
    assert verdict.reason == Reason.CHANNEL_MISMATCH
    assert "follows the tool" in verdict.text
    joints = make_prior(arm)
    field = make_tool_field(joints, np.append(plant.q, 0.0), 0.0, 1)
    assert controller.offer(0.0, field).reason == Reason.PRIOR_MISMATCH


def test_a_field_that_is_not_finite_is_refused(arm, tool_holding, tool_prior):
    controller, plant = tool_holding
    field = make_tool_field(tool_prior, anchor_of(arm, plant.q), 0.0, 1)
    field.folded.weights[-5] = np.nan
    assert controller.offer(0.0, field).reason == Reason.NOT_FINITE


def test_a_field_that_is_too_fast_is_slowed_along_its_path(arm):
    prior, field_at = half_wave(
        arm, arm.config.home_rad, [0.12, 0.3, 0.1, 0.0, 0.0, 0.3], horizon_s=0.5)
    controller = ImpedanceController(ControllerConfig(), arm, prior)
    ideal = Ideal(controller, arm.config.home_rad)
    controller.activate(0.0, ideal.q, ideal.dq)
    field = field_at(0.0, 1)
    verdict = controller.offer(0.0, field)
    assert verdict.verdict == Verdict.SLOWED, verdict.text
    scale = verdict.time_scale
    assert f"slowed to {scale:.2f}" in verdict.text
    seen = 0
    while ideal.time_s < verdict.blend_s + 0.25:
        ideal.tick()
        if ideal.time_s > verdict.blend_s and controller.mode == Mode.TRACK:
            jet = field.jet(ideal.time_s * scale, 2)
            position = tool_jet(controller)[1]
            np.testing.assert_allclose(position[0], jet[0, :3], atol=1e-9)
            np.testing.assert_allclose(position[1], scale * jet[1, :3], atol=1e-8)
            np.testing.assert_allclose(position[2], scale**2 * jet[2, :3], atol=1e-7)
            seen += 1
    assert seen > 100


# -- stop ladder -----------------------------------------------------------------------------------
def moving(arm, tool_holding, tool_prior, duration_s=0.3):
    controller, plant = tool_holding
    assert controller.offer(
        0.0, make_tool_field(tool_prior, anchor_of(arm, plant.q), 0.0, 1)).accepted
    run(controller, plant, duration_s)
    assert controller.mode == Mode.TRACK
    return controller, plant


def test_estop_damps_and_reset_holds_the_measured_pose(arm, tool_holding, tool_prior):
    controller, plant = moving(arm, tool_holding, tool_prior)
    controller.estop()
    run(controller, plant, 0.001)
    tel = controller.telemetry
    for term in (tel.tau_stiffness, tel.tau_posture, tel.tau_inertia, tel.tau_friction):
        np.testing.assert_array_equal(term, 0.0)
    run(controller, plant, 1.5)
    assert (controller.mode, controller.fault) == (Mode.ESTOP, Fault.ESTOP_REQUESTED)
    controller.reset()
    assert controller.mode == Mode.HOLD
    pose, _ = tool_pose(arm, plant.q)
    run(controller, plant, 0.2)
    now, _ = tool_pose(arm, plant.q)
    np.testing.assert_allclose(now[:12], pose[:12], atol=2e-4)


def test_a_reference_that_becomes_nan_damps(arm, tool_holding, tool_prior):
    controller, plant = moving(arm, tool_holding, tool_prior)
    buffer = controller._meta[int(controller._si[k.SI_COUNT]) - 1, 4]
    controller._pool[buffer, 40] = np.nan
    tau = controller.tick(plant.time_s, plant.q, plant.dq)
    assert np.isfinite(tau).all()
    assert (controller.mode, controller.fault) == (Mode.DAMP, Fault.REFERENCE_NOT_FINITE)


def test_a_state_that_is_nan_damps(arm, tool_holding, tool_prior):
    controller, plant = moving(arm, tool_holding, tool_prior)
    tau = controller.tick(plant.time_s, plant.q * np.nan, plant.dq)
    assert np.isfinite(tau).all()
    assert (controller.mode, controller.fault) == (Mode.DAMP, Fault.STATE_NOT_FINITE)


def test_a_tool_far_from_its_reference_is_a_tracking_fault(arm, tool_prior):
    controller = ImpedanceController(
        ControllerConfig(tracking_tool_limit_m=0.01), arm, tool_prior)
    q = arm.config.home_rad
    controller.activate(0.0, q, np.zeros(7))
    controller.tick(0.001, q + np.eye(7)[0] * 0.04, np.zeros(7))
    assert (controller.mode, controller.fault) == (Mode.DAMP, Fault.TRACKING_ERROR)


def test_deactivation_brakes_fades_and_ends_off(arm, tool_holding, tool_prior):
    controller, plant = moving(arm, tool_holding, tool_prior)
    controller.deactivate(plant.time_s)
    while controller.mode != Mode.OFF and plant.time_s < 3.0:
        run(controller, plant, STEP_S)
    assert controller.mode == Mode.OFF
    assert np.abs(plant.dq).max() < 0.02
    run(controller, plant, STEP_S)
    np.testing.assert_array_equal(controller.telemetry.tau, 0.0)


# -- tuning ----------------------------------------------------------------------------------------
def test_gains_are_checked_ramped_and_bounded_by_the_delay(tool_holding):
    controller, plant = tool_holding
    tuning = controller.tuning
    assert controller.check_tuning(tuning, 0.001) == ""
    hard = dataclasses.replace(
        tuning, tool_damping_ns_m=(200.0,) * 3, tool_damping_nms_rad=(20.0,) * 3)
    assert "lower cartesian.<axis>.damping" in controller.check_tuning(hard, 0.004)
    with pytest.raises(ControllerConfigError, match=r"cartesian.y.stiffness_n_m = 9000 is outside"):
        controller.set_tuning(dataclasses.replace(tuning, tool_stiffness_n_m=(6e2, 9e3, 6e2)))
    controller.set_tuning(
        dataclasses.replace(tuning, tool_stiffness_n_m=(400.0,) * 3, stiffness_scale=0.5))
    run(controller, plant, 0.25)
    assert controller._gains[task.NOW, 0] == pytest.approx(400.0, rel=0.02)
    run(controller, plant, 0.4)
    assert controller._gains[task.NOW, 0] == 200.0
    assert controller._gains[task.NOW, 3] == 15.0


def test_a_thousand_ticks_of_the_loop_allocate_nothing(arm, tool_prior):
    """A hand-over lies inside; the compiled loop counts what its runtime allocates."""
    warm_up(ImpedanceController(ControllerConfig(), arm, tool_prior))
    controller = ImpedanceController(ControllerConfig(state_timeout_s=30.0), arm, tool_prior)
    loop = ControlLoop(controller, 2000.0, ONLY_COUNT)
    _nrt_python.memsys_enable_stats()
    home = arm.config.home_rad
    loop.offer_state(loop.now_s(), home, np.zeros(7))
    loop.start()
    try:
        loop.activate(home, np.zeros(7))
        field = make_tool_field(tool_prior, anchor_of(arm, home), loop.now_s(), 1)
        plan = controller.plan(loop.snapshot(), loop.now_s(), field, lead_s=0.4)
        assert loop.commit(plan).accepted
        before, ticks = rtsys.get_allocation_stats(), loop.statistics.ticks
        end = time.monotonic() + 10.0
        while loop.statistics.ticks < ticks + 1000 and time.monotonic() < end:
            time.sleep(0.01)
        after, done = rtsys.get_allocation_stats(), loop.statistics.ticks
        assert controller.sequence == 1
    finally:
        loop.close()
    assert done >= ticks + 1000
    assert after == before
    assert np.isfinite(controller.telemetry.tau).all()


# -- recordings ------------------------------------------------------------------------------------
def tool_message(prior, anchor, t_s, sequence):
    rng = np.random.default_rng(sequence)
    field = make_field_message(
        prior, 0.2 * rng.normal(size=prior.gamma_length), 0.2 * rng.normal(size=prior.beta_length),
        anchor, stamp_s=t_s, sequence=sequence,
    )
    empty = SimpleNamespace(
        header=SimpleNamespace(stamp=SimpleNamespace()), start=SimpleNamespace())
    return to_message(empty, field)


def test_a_recorded_run_is_made_again_bit_for_bit(arm, tool_prior):
    """Fields judged on one tick and committed later, over a gain ramp, a brake and a stop."""
    c = JournaledController(ControllerConfig(), arm, tool_prior)
    plant = Plant(arm, arm.config.home_rad)
    c.activate(0.0, plant.q, plant.dq)
    pending, accepted, torques = None, 0, []
    for step in range(1400):
        t = plant.time_s
        if pending is not None and step % 100 == 16:
            accepted += c.commit(c.plan(*pending)).accepted
            pending = None
        if step % 100 == 10 and step < 800:
            message = tool_message(tool_prior, anchor_of(arm, plant.q), t, step)
            snapshot = c.snapshot_for(message, t, 0.01, step)
            reference = reference_from_message(message, snapshot, arm, tool_prior, 0, step)
            pending = (snapshot, t, reference, 0.01)
        if step == 315:
            c.set_tuning(dataclasses.replace(c.tuning, tool_null_stiffness_nm_rad=30.0))
        elif step == 850:
            c.brake(c.last_tick_s)
        torques.append(c.tick(t, plant.q, plant.dq).copy())
        plant.step(torques[-1])
    assert accepted >= 6
    assert c.mode == Mode.HOLD
    c.journal.hand_over()
    outcome = replay_session(
        c.journal.take(0.0),
        lambda setup: ImpedanceController(setup.config, arm, tool_prior),
        lambda event: event.message,
    )
    assert outcome.identical, outcome.departure
    assert outcome.ticks == len(torques)
    # and from a checkpoint
    other = ImpedanceController(ControllerConfig(), arm, tool_prior)
    other.set_tuning(c.tuning)
    restore_state(other, state_values(c))
    for _ in range(50):
        tau = c.tick(plant.time_s, plant.q, plant.dq)
        np.testing.assert_array_equal(other.tick(plant.time_s, plant.q, plant.dq), tau)
        plant.step(tau)


def test_the_jacobian_of_the_shipped_tool_frame_is_that_of_pinocchio(arm):
    model, data = arm.pinocchio_model, arm.pinocchio_model.createData()
    frame = model.getFrameId(arm.config.tool_frame)
    q = arm.config.home_rad
    pose, jac = tool_pose(arm, q)
    expected = pinocchio.computeFrameJacobian(
        model, data, q, frame, pinocchio.ReferenceFrame.LOCAL_WORLD_ALIGNED)
    np.testing.assert_allclose(jac, expected, atol=1e-12)
    pinocchio.updateFramePlacement(model, data, frame)
    np.testing.assert_allclose(pose[9:12], data.oMf[frame].translation, atol=1e-12)
