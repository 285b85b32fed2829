"""Cartesian law against plain numpy, its promises as properties, and in closed loop on an arm."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pinocchio
import pytest
from cartesian_reference import law, pseudo_inverse, tool_state
from hypothesis import given, settings
from hypothesis import strategies as some
from scipy.spatial.transform import Rotation

from niaf_impedance import ArmModel, arm_model, default_robot_config_path
from niaf_impedance import cartesian as c
from niaf_impedance.dynamics import WORK_COLUMNS, rnea
from niaf_impedance.kinematics import FRAME_COLUMNS, motion_from_channels, tool_motion

#: flange to the middle of the fingertips of the Panda's hand
TOOL = np.append(Rotation.from_euler("z", -np.pi / 4).as_matrix().ravel(), [0.0, 0.0, 0.2104])
ARM = ArmModel.from_yaml(default_robot_config_path("panda"))
N = ARM.n


def parameters() -> tuple[np.ndarray, np.ndarray]:
    cp, cj = np.zeros(c.CP_SIZE), np.zeros((c.CJ_ROWS, N))
    cp[c.CP_STIFFNESS : c.CP_STIFFNESS + 6] = [600.0] * 3 + [30.0] * 3
    cp[c.CP_DAMPING : c.CP_DAMPING + 6] = [70.0] * 3 + [5.0] * 3
    cp[c.CP_CLIP_M], cp[c.CP_CLIP_RAD] = 0.05, 0.3
    cp[c.CP_CLIP_M_S], cp[c.CP_CLIP_RAD_S] = 0.5, 2.0
    cp[c.CP_NULL_TORQUE] = 5.0
    cp[c.CP_SIGMA], cp[c.CP_LENGTH] = 0.08, 0.4
    cp[c.CP_LIMIT_MARGIN] = 0.1
    cj[c.CJ_POSTURE] = ARM.config.home_rad
    cj[c.CJ_NULL_KP], cj[c.CJ_NULL_KD] = 10.0, 4.0
    cj[c.CJ_LOW], cj[c.CJ_HIGH] = ARM.limits.position_min_rad, ARM.limits.position_max_rad
    cj[c.CJ_LIMIT_TORQUE] = 0.3 * ARM.limits.torque_nm
    cj[c.CJ_DQ_MAX] = ARM.limits.velocity_rad_s
    cj[c.CJ_DDQ_MAX] = 3.0 * ARM.limits.acceleration_rad_s2
    cj[c.CJ_INERTIA] = np.diag(ARM.mass_matrix(ARM.config.home_rad))
    return cp, cj


@dataclass
class Law:
    """The compiled law with its arrays."""

    cp: np.ndarray
    cj: np.ndarray

    def __post_init__(self) -> None:
        self.frames, self.jac = np.zeros((N, FRAME_COLUMNS)), np.zeros((6, N))
        self.motion, self.work = np.zeros(24), np.zeros(c.law_work_size(N))
        self.out, self.report = np.zeros((c.CO_ROWS, N)), np.zeros(c.CR_SIZE)

    def kinematics(self, q, dq) -> np.ndarray:
        tool_motion(
            ARM.model, ARM.parent, ARM.kind, TOOL, q, dq, self.frames, self.jac, self.motion)
        return self.motion

    def __call__(self, q, dq, ref) -> np.ndarray:
        self.kinematics(q, dq)
        c.cartesian_law(
            q, dq, self.motion, self.jac, ref, self.cp, self.cj, self.work, self.out, self.report)
        return self.out

    def pose(self, q) -> np.ndarray:
        """Motion at rest at ``q``."""
        return self.kinematics(q, np.zeros(N)).copy()


@pytest.fixture
def compiled() -> Law:
    return Law(*parameters())


def random_state(rng):
    return rng.uniform(ARM.limits.position_min_rad, ARM.limits.position_max_rad), rng.normal(size=N)


def random_reference(rng, base: np.ndarray, reach: float) -> np.ndarray:
    ref = base.copy()
    ref[9:12] += reach * rng.normal(size=3)
    turn = Rotation.from_rotvec(2.0 * reach * rng.normal(size=3))
    ref[:9] = (turn.as_matrix() @ base[:9].reshape(3, 3)).ravel()
    ref[12:24] = rng.normal(size=12)
    return ref


SINGULAR = {
    "straight": np.zeros(N),
    "shoulder": np.array([0.0, 0.0, np.pi / 2, -1.5, 0.0, 1.5, 0.5]),  # within all limits
    "elbow out": np.array([0.0, 0.0, np.pi / 2, -2.3, np.pi / 2, 2.0, 0.5]),
}


# -- against plain numpy ---------------------------------------------------------------------------
@pytest.mark.parametrize("reach", [0.005, 0.3])
def test_law_equals_plain_numpy(compiled, reach):
    rng = np.random.default_rng(0)
    poses = [random_state(rng) for _ in range(40)]
    poses += [(q, rng.normal(size=N)) for q in SINGULAR.values()]
    for q, dq in poses:
        ref = random_reference(rng, compiled.pose(q), reach)
        out = compiled(q, dq, ref)
        expected = law(tool_state(ARM.pinocchio_model, TOOL, q, dq), q, dq, ref, *parameters())
        np.testing.assert_allclose(out, expected, atol=1e-8)


def test_report_names_error_wrench_and_singular_values(compiled):
    rng = np.random.default_rng(1)
    q, dq = random_state(rng)
    ref = random_reference(rng, compiled.pose(q), 0.01)
    compiled(q, dq, ref)
    report, jac = compiled.report, compiled.jac
    np.testing.assert_allclose(report[0:3], ref[9:12] - compiled.motion[9:12])
    turn = Rotation.from_rotvec(report[3:6]).as_matrix() @ compiled.motion[:9].reshape(3, 3)
    np.testing.assert_allclose(turn.ravel(), ref[:9], atol=1e-12)
    assert report[c.CR_POSITION_ERROR] == pytest.approx(np.linalg.norm(report[0:3]))
    assert report[c.CR_ROTATION_ERROR] == pytest.approx(np.linalg.norm(report[3:6]))
    np.testing.assert_allclose(
        jac.T @ report[c.CR_WRENCH : c.CR_WRENCH + 6],
        compiled.out[c.CO_STIFFNESS] + compiled.out[c.CO_DAMPING])
    weighted = np.diag([1 / 0.4] * 3 + [1.0] * 3) @ jac
    assert report[c.CR_SIGMA] == pytest.approx(np.linalg.svd(weighted)[1][-1], rel=1e-9)
    assert report[c.CR_MANIPULABILITY] == pytest.approx(np.sqrt(np.linalg.det(jac @ jac.T)))


# -- pseudo-inverse and projector ------------------------------------------------------------------
def _inverse(compiled, q) -> np.ndarray:
    compiled.kinematics(q, np.zeros(N))
    c.damped_inverse(compiled.jac, 0.4, 0.08, compiled.work)
    return compiled.jac.T @ compiled.work[72:108].reshape(6, 6)


def test_inverse_is_exact_away_from_singularities_and_bounded_at_them(compiled):
    np.testing.assert_allclose(
        _inverse(compiled, ARM.config.home_rad), np.linalg.pinv(compiled.jac), atol=1e-12)
    unweighted = np.diag([0.4] * 3 + [1.0] * 3)
    for q in SINGULAR.values():
        inverse = _inverse(compiled, q)
        assert np.linalg.svd(inverse @ unweighted)[1][0] <= 1.31 / 0.08
        exact = np.linalg.svd(np.linalg.inv(unweighted) @ compiled.jac)[1]
        assert exact[-1] < 1e-6  # this pose is singular


def test_only_the_singular_direction_is_given_up(compiled):
    inverse = _inverse(compiled, SINGULAR["shoulder"])
    scale = np.diag([0.4] * 3 + [1.0] * 3)
    u, sigma, _ = np.linalg.svd(np.linalg.inv(scale) @ compiled.jac)
    kept = scale @ u[:, sigma > 0.08]
    assert kept.shape[1] == 5
    np.testing.assert_allclose(compiled.jac @ inverse @ kept, kept, atol=1e-10)


def test_damping_sets_in_continuously_differentiably():
    """Through the threshold the gain has neither a step nor a kink."""
    work = np.zeros(c.law_work_size(6))
    step = 1e-5
    sigma = 0.08 + step * np.arange(-200, 201)
    gain = []
    for s in sigma:
        jac = np.diag([1.0, 1.0, 1.0, 1.0, 1.0, s])
        c.damped_inverse(jac, 1.0, 0.08, work)
        gain.append(s * work[72 + 35])
    slope = np.diff(gain) / step
    assert np.max(np.abs(np.diff(slope))) < 0.2  # a kink (damping without the square) makes 12
    jac = np.diag([1.0, 1.0, 1.0, 1.0, 1.0, 0.0])
    c.damped_inverse(jac, 1.0, 0.08, work)
    assert np.isfinite(work).all()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(some.integers(0, 100_000))
def test_projector_is_symmetric_contracting_and_statically_consistent(seed):
    rng = np.random.default_rng(seed)
    q = random_state(rng)[0]
    state = tool_state(ARM.pinocchio_model, TOOL, q, np.zeros(N))
    compiled = Law(*parameters())
    inverse = _inverse(compiled, q)
    np.testing.assert_allclose(inverse, pseudo_inverse(state.jacobian, 0.4, 0.08), atol=1e-7)
    projector = np.eye(N) - inverse @ compiled.jac
    np.testing.assert_allclose(projector, projector.T, atol=1e-10)
    eigenvalues = np.linalg.eigvalsh(0.5 * (projector + projector.T))
    assert eigenvalues.min() > -1e-9
    assert eigenvalues.max() < 1.0 + 1e-9
    if np.linalg.svd(np.diag([1 / 0.4] * 3 + [1.0] * 3) @ state.jacobian)[1][-1] > 0.08:
        # posture torque is not felt as a wrench at the tool, and moves nothing at first order
        np.testing.assert_allclose(projector @ compiled.jac.T, 0.0, atol=1e-9)
        np.testing.assert_allclose(compiled.jac @ projector, 0.0, atol=1e-9)


# -- properties of the law -------------------------------------------------------------------------
finite = some.floats(-1e6, 1e6)
vectors = some.lists(finite, min_size=N, max_size=N).map(np.array)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    some.one_of(vectors, some.sampled_from(list(SINGULAR.values()))),
    some.one_of(vectors, some.just(np.zeros(N))),
    some.lists(finite, min_size=15, max_size=15).map(np.array),
)
def test_torque_is_finite_and_inside_its_bounds_whatever_comes_in(q, dq, numbers):
    compiled = Law(*parameters())
    cp, cj = compiled.cp, compiled.cj
    ref = np.zeros(24)
    motion_from_channels(
        np.array([[*numbers[:3], *np.clip(numbers[3:6], -np.pi, np.pi)],
                  [*numbers[6:9], *numbers[9:12]], [*numbers[12:15], *numbers[6:9]]]),
        np.eye(3).ravel(), ref)
    out = compiled(q, dq, ref)
    assert np.isfinite(out).all()
    assert np.isfinite(compiled.report).all()
    force, moment = c.wrench_bound(cp)
    task = np.abs(out[c.CO_STIFFNESS] + out[c.CO_DAMPING])
    linear, angular = (np.linalg.norm(compiled.jac[k : k + 3], axis=0) for k in (0, 3))
    assert np.all(task <= (linear * force + angular * moment) * (1 + 1e-9))
    for row in (c.CO_NULL_STIFFNESS, c.CO_NULL_DAMPING):
        assert np.linalg.norm(out[row]) <= cp[c.CP_NULL_TORQUE] * (1 + 1e-6)
    assert np.all(np.abs(out[c.CO_LIMIT]) <= cj[c.CJ_LIMIT_TORQUE])
    assert np.all(np.abs(out[c.CO_DQ_FF]) <= cj[c.CJ_DQ_MAX] * (1 + 1e-12))
    assert np.all(np.abs(out[c.CO_DDQ_FF]) <= cj[c.CJ_DDQ_MAX] * (1 + 1e-12))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(some.integers(0, 100_000), some.floats(0.0, 20.0), some.sampled_from([None, *SINGULAR]))
def test_damping_takes_power_out_of_every_motion(seed, speed, singular):
    rng = np.random.default_rng(seed)
    compiled = Law(*parameters())
    compiled.cp[c.CP_DAMPING : c.CP_DAMPING + 6] = rng.uniform(0.0, 100.0, 6)
    compiled.cj[c.CJ_NULL_KD] = rng.uniform(0.0, 10.0, N)
    q, dq = random_state(rng)
    if singular is not None:
        q = SINGULAR[singular]
    dq *= speed
    out = compiled(q, dq, compiled.pose(np.array(ARM.config.home_rad)))
    assert dq @ out[c.CO_DAMPING] <= 1e-9 * (1 + dq @ dq)
    assert dq @ out[c.CO_NULL_DAMPING] <= 1e-9 * (1 + dq @ dq)


def test_reference_at_the_measured_motion_asks_for_nothing_but_its_feed_forward(compiled):
    rng = np.random.default_rng(2)
    q = np.array(ARM.config.home_rad)
    dq_wanted, ddq_wanted = 0.3 * rng.normal(size=(2, N))
    compiled.kinematics(q, dq_wanted)
    jac = compiled.jac.copy()
    inverse = np.linalg.pinv(jac)
    dq_wanted, ddq_wanted = inverse @ jac @ dq_wanted, inverse @ jac @ ddq_wanted
    ref = compiled.kinematics(q, dq_wanted).copy()
    ref[18:24] += jac @ ddq_wanted
    out = compiled(q, dq_wanted, ref)
    np.testing.assert_allclose(out[c.CO_STIFFNESS : c.CO_LIMIT + 1], 0.0, atol=1e-9)
    np.testing.assert_allclose(out[c.CO_DQ_FF], dq_wanted, atol=1e-10)
    np.testing.assert_allclose(out[c.CO_DDQ_FF], ddq_wanted, atol=1e-9)


def test_tool_accelerates_as_its_own_inertia_under_the_wrench(compiled):
    """Lambda (x'' - x''_ref) = K e + D v, when posture is left out."""
    rng = np.random.default_rng(3)
    compiled.cj[c.CJ_NULL_KP] = compiled.cj[c.CJ_NULL_KD] = 0.0
    for _ in range(10):
        q = ARM.config.home_rad + rng.normal(scale=0.2, size=N)
        dq = 0.3 * rng.normal(size=N)
        ref = random_reference(rng, compiled.pose(q), 0.005)
        out = compiled(q, dq, ref)
        tau = out[c.CO_STIFFNESS] + out[c.CO_DAMPING] + out[c.CO_LIMIT]
        tau = tau + ARM.inverse_dynamics(q, dq, out[c.CO_DDQ_FF])
        inertia = ARM.mass_matrix(q)
        ddq = np.linalg.solve(inertia, tau - ARM.inverse_dynamics(q, dq, np.zeros(N)))
        acceleration = compiled.jac @ ddq + compiled.motion[18:24]
        lam = np.linalg.inv(compiled.jac @ np.linalg.solve(inertia, compiled.jac.T))
        wrench = lam @ (acceleration - ref[18:24])
        assert np.all(out[c.CO_LIMIT] == 0.0)
        np.testing.assert_allclose(
            wrench, compiled.report[c.CR_WRENCH : c.CR_WRENCH + 6], atol=1e-8)


def test_limit_push_is_zero_outside_the_margin_and_smooth_inside():
    position = np.linspace(-1.2, 1.2, 48_001)
    push = np.array([c.limit_push(p, -1.0, 1.0, 0.1, 20.0) for p in position])
    inside = np.abs(position) <= 0.9
    assert np.all(push[inside] == 0.0)
    assert np.all(push[position < -0.9001] > 0.0)
    assert np.all(push[position > 0.9001] < 0.0)
    assert push[0] == 20.0
    assert push[-1] == -20.0
    step = position[1] - position[0]
    slope = np.diff(push) / step
    assert np.max(np.abs(slope)) <= 1.5 * 20.0 / 0.1 * 1.001
    assert np.max(np.abs(np.diff(slope))) < 6.0 * 20.0 / 0.1**2 * step * 1.001  # no kink


# -- joint path of a reference ---------------------------------------------------------------------
RATE, STEP = 30.0, 0.008


def rollout(times, references, q, dq, **changes):
    cp, cj = parameters()
    for row, value in changes.items():
        cj[getattr(c, row)] = value
    K = times.size
    q_path, dq_path, ddq_path = (np.full((K, N), np.nan) for _ in range(3))
    residual, sigma = np.full((K, 2), np.nan), np.full(K, np.nan)
    c.cartesian_rollout(
        times, references, q, dq, ARM.model, ARM.parent, ARM.kind, TOOL, cp, cj, RATE, STEP,
        np.full(c.rollout_work_size(N), np.nan), q_path, dq_path, ddq_path, residual, sigma)
    return q_path, dq_path, ddq_path, residual, sigma


def joint_path(t):
    """A smooth motion around home: q, dq, ddq."""
    a = np.array([0.3, 0.2, -0.2, 0.3, 0.25, -0.3, 0.4])
    return (ARM.config.home_rad + a * np.sin(2 * t) ** 2, a * 2 * np.sin(4 * t),
            a * 8 * np.cos(4 * t))


def references_of(times, path):
    compiled, rows = Law(*parameters()), []
    for t in times:
        q, dq, ddq = path(t)
        motion = compiled.kinematics(q, dq).copy()
        motion[18:24] += compiled.jac @ ddq
        rows.append(motion)
    return np.array(rows)


def test_rollout_follows_a_path_made_by_forward_kinematics():
    times = 5.0 + np.linspace(0.0, 1.0, 64)
    references = references_of(times - 5.0, joint_path)
    q0, dq0, _ = joint_path(0.0)
    q, dq, ddq, residual, sigma = rollout(times, references, q0, dq0)
    assert residual.max() < 1e-4
    assert sigma.min() > 0.1
    compiled = Law(*parameters())
    for k in (0, 20, 40, 63):
        motion = compiled.kinematics(q[k], dq[k])
        np.testing.assert_allclose(motion[12:18], references[k, 12:18], atol=2e-3)
        np.testing.assert_allclose(
            compiled.jac @ ddq[k] + motion[18:24], references[k, 18:24], atol=0.05)
    # q, dq and ddq belong together
    step = np.diff(times)[:, None]
    np.testing.assert_allclose(
        np.diff(q, axis=0), 0.5 * step * (dq[1:] + dq[:-1]) - step**2 / 12 * np.diff(ddq, axis=0),
        atol=1e-5)
    # self-motion decays towards the posture instead of following the original elbow
    assert np.linalg.norm(q[-1] - joint_path(1.0)[0]) > 1e-3


def test_rollout_of_an_arm_without_redundancy_recovers_its_joints():
    """Joint 3 locked: six joints, so the pose alone decides position, velocity, acceleration."""
    kept = [0, 1, 3, 4, 5, 6]
    model = pinocchio.buildReducedModel(ARM.pinocchio_model, [3], np.array(ARM.config.home_rad))
    arrays = arm_model._extract(model)
    cp, cj = parameters()
    cj = np.ascontiguousarray(cj[:, kept])
    cj[c.CJ_POSTURE] += 0.5  # must have no influence
    times = np.linspace(0.0, 1.0, 64)
    expected = np.array([[row[kept] for row in joint_path(t)] for t in times])
    references = np.zeros((64, 24))
    jac, frames = np.zeros((6, 6)), np.zeros((6, FRAME_COLUMNS))
    for k in range(64):
        tool_motion(*arrays, TOOL, expected[k, 0], expected[k, 1], frames, jac, references[k])
        references[k, 18:24] += jac @ expected[k, 2]
    path = [np.zeros((64, 6)) for _ in range(3)]
    residual, sigma = np.zeros((64, 2)), np.zeros(64)
    c.cartesian_rollout(
        times, references, expected[0, 0], expected[0, 1], *arrays, TOOL, cp, cj, RATE, STEP,
        np.zeros(c.rollout_work_size(6)), *path, residual, sigma)
    assert sigma.min() > cp[c.CP_SIGMA]
    assert residual.max() < 1e-4
    np.testing.assert_allclose(path[0], expected[:, 0], atol=1e-4)
    np.testing.assert_allclose(path[1], expected[:, 1], atol=5e-3)
    np.testing.assert_allclose(path[2], expected[:, 2], atol=0.1)


def test_rollout_starts_on_the_reference_not_where_contact_pushed_the_arm():
    times = np.linspace(0.0, 0.5, 32)
    references = references_of(times, joint_path)
    q0, dq0, _ = joint_path(0.0)
    pushed = q0 + 0.05 * np.array([1.0, -1.0, 0.5, 1.0, -1.0, 1.0, 1.0])
    q, _, ddq, residual, _ = rollout(times, references, pushed, dq0)
    assert residual.max() < 1e-4
    assert np.linalg.norm(q[0] - pushed) < 0.3
    assert np.abs(ddq[0]).max() < 10.0


def test_rollout_of_an_unreachable_path_leaves_a_residual():
    times = np.linspace(0.0, 1.5, 80)
    base = references_of([0.0], joint_path)[0]
    references = np.tile(base, (80, 1))
    s = times / 1.5
    references[:, 9] += 1.0 * (10 * s**3 - 15 * s**4 + 6 * s**5)  # 1.5 m from the shoulder
    references[:, 12] = 1.0 * (30 * s**2 - 60 * s**3 + 30 * s**4) / 1.5
    references[:, 18] = 1.0 * (60 * s - 180 * s**2 + 120 * s**3) / 1.5**2
    path = rollout(times, references, np.array(ARM.config.home_rad), np.zeros(N))
    for array in path:
        assert np.isfinite(array).all()
    residual, sigma = path[3], path[4]
    assert residual[:20].max() < 1e-3  # the first part can be reached
    assert residual[-1, 0] > 0.3
    assert sigma.min() < 0.08


def test_rollout_of_numbers_that_are_not_finite_ends_and_shows_it():
    times = np.linspace(0.0, 0.5, 16)
    references = references_of(times, joint_path)
    references[7, 9] = np.nan
    q0, dq0, _ = joint_path(0.0)
    q, _, _, residual, _ = rollout(times, references, q0, dq0)
    assert np.isfinite(q[:6]).all()
    assert np.isnan(residual[-1]).all()
    times[3] = np.inf
    rollout(times, references, q0, dq0)  # returns


def test_rollout_through_the_straight_arm_stays_finite():
    times = np.linspace(0.0, 1.0, 40)
    references = references_of(times, lambda t: (
        SINGULAR["straight"] - 0.3 * np.eye(N)[3] * (1 - t) ** 2,
        0.6 * np.eye(N)[3] * (1 - t), -0.6 * np.eye(N)[3]))
    path = rollout(times, references, -0.3 * np.eye(N)[3], 0.6 * np.eye(N)[3])
    for array in path:
        assert np.isfinite(array).all()


# -- closed loop -----------------------------------------------------------------------------------
class Simulation:
    """Rigid Panda with rotor inertia at 1 kHz under law, gravity, Coriolis and feed-forward.

    Joints rub with ``viscous`` Nm s/rad; as in the tick, 80 % of it is fed forward from dq_ff.
    """

    dt_s = 0.001

    def __init__(self, viscous: float) -> None:
        self.viscous = viscous
        self.law = Law(*parameters())
        self.q, self.dq = np.array(ARM.config.home_rad), np.zeros(N)
        self.data = ARM.pinocchio_model.createData()
        self.dynamics_work, self.tau = np.zeros((N, WORK_COLUMNS)), np.zeros(N)

    def step(self, ref, wrench=None) -> np.ndarray:
        """One period; returns the pose error before it (m and rad, float64[6])."""
        out = self.law(self.q, self.dq, ref)
        rnea(
            ARM.model, ARM.parent, ARM.kind, ARM.gravity, self.q, self.dq, out[c.CO_DDQ_FF],
            self.dynamics_work, self.tau)
        tau = self.tau + ARM.armature_kgm2 * out[c.CO_DDQ_FF] + out[: c.CO_LIMIT + 1].sum(axis=0)
        tau = tau + 0.8 * self.viscous * out[c.CO_DQ_FF]
        if wrench is not None:
            tau = tau + self.law.jac.T @ wrench
        model = ARM.pinocchio_model
        bias = pinocchio.nonLinearEffects(model, self.data, self.q, self.dq)
        acceleration = np.linalg.solve(ARM.mass_matrix(self.q), tau - bias - self.viscous * self.dq)
        self.dq = self.dq + self.dt_s * acceleration
        self.q = self.q + self.dt_s * self.dq
        return self.law.report[:6].copy()


def circle(t, base, anchor):
    """Once around 8 cm in 2 s from rest to rest, the hand tilting by 0.2 rad on the way."""
    x = t / 2.0
    angle = 2 * np.pi * (10 * x**3 - 15 * x**4 + 6 * x**5)
    speed = 2 * np.pi * (30 * x**2 - 60 * x**3 + 30 * x**4) / 2.0
    change = 2 * np.pi * (60 * x - 180 * x**2 + 120 * x**3) / 4.0
    s, k = np.sin(angle), np.cos(angle)
    scale = np.array([0.0, 0.08, 0.08, 0.2, 0.15, -0.1])
    shape = np.array([
        [0.0, s, 1 - k, s, 1 - k, s],
        [0.0, k * speed, s * speed, k * speed, s * speed, k * speed],
        [0.0, -s * speed**2 + k * change, k * speed**2 + s * change,
         -s * speed**2 + k * change, k * speed**2 + s * change, -s * speed**2 + k * change],
    ])
    jets = scale * shape
    jets[0, :3] += base
    motion = np.zeros(24)
    motion_from_channels(jets, anchor, motion)
    return motion


@pytest.mark.parametrize(("viscous", "allowed_m", "allowed_deg"), [
    (0.0, 0.2e-3, 0.03),
    (0.3, 1.0e-3, 0.5),
])
def test_a_circle_is_followed_within_a_millimetre(viscous, allowed_m, allowed_deg):
    """At 600 N/m and 30 Nm/rad; friction that is not fed forward is what the error consists of."""
    simulation = Simulation(viscous)
    start = simulation.law.pose(simulation.q)
    errors = []
    for k in range(2000):
        ref = circle(0.001 * k, start[9:12].copy(), start[:9].copy())
        errors.append(simulation.step(ref))
    rms = np.sqrt(np.mean(np.square(errors), axis=0))
    assert np.linalg.norm(rms[:3]) < allowed_m
    assert np.rad2deg(np.linalg.norm(rms[3:])) < allowed_deg


def test_a_constant_wrench_displaces_the_tool_by_wrench_over_stiffness():
    simulation = Simulation(0.3)
    simulation.law.cp[0:6] = [600.0, 400.0, 800.0, 30.0, 20.0, 40.0]
    simulation.law.cj[c.CJ_POSTURE] = ARM.config.home_rad + 0.2  # a posture pull that must not show
    ref = simulation.law.pose(simulation.q)
    wrench = np.array([10.0, -8.0, 6.0, 1.0, -0.8, 1.2])
    for k in range(4000):
        error = simulation.step(ref, wrench * min(1.0, k / 500))
    assert np.abs(simulation.dq).max() < 1e-3
    np.testing.assert_allclose(-error, wrench / simulation.law.cp[0:6], rtol=0.01, atol=2e-5)
    assert np.linalg.norm(simulation.law.out[c.CO_NULL_STIFFNESS]) < 2.0


def test_posture_is_pulled_home_without_moving_the_tool():
    simulation = Simulation(0.3)
    ref = simulation.law.pose(simulation.q)
    null = np.linalg.svd(simulation.law.jac)[2][-1]
    simulation.law.cj[c.CJ_POSTURE] = simulation.q + 0.3 * null
    worst = 0.0
    for _ in range(3000):
        worst = max(worst, np.linalg.norm(simulation.step(ref)[:3]))
    moved = (simulation.q - ARM.config.home_rad) @ null
    assert moved > 0.2
    assert worst < 2e-3
