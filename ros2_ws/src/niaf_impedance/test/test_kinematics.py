"""Tool kinematics against pinocchio; rotation vectors and blends against finite differences."""

import numpy as np
import pinocchio
import pytest
from cartesian_reference import tool_state
from hypothesis import given, settings
from hypothesis import strategies as some
from scipy.spatial.transform import Rotation

from niaf_impedance import arm_model
from niaf_impedance import kinematics as kin

TOOL = np.append(Rotation.from_rotvec([0.3, -0.4, 1.1]).as_matrix().ravel(), [0.04, -0.02, 0.21])


def _random_tree() -> pinocchio.Model:
    """Every joint type, a branch that does not carry the tool, odd axes."""
    model = pinocchio.Model()
    pinocchio.seed(4)
    axis = np.array([1.0, -2.0, 0.5]) / np.linalg.norm([1.0, -2.0, 0.5])
    joints = [
        pinocchio.JointModelRX(), pinocchio.JointModelPY(), pinocchio.JointModelRZ(),
        pinocchio.JointModelRevoluteUnaligned(axis), pinocchio.JointModelPrismaticUnaligned(axis),
        pinocchio.JointModelRY(), pinocchio.JointModelPX(), pinocchio.JointModelRZ(),
    ]
    for i, (joint, parent) in enumerate(zip(joints, [0, 1, 2, 3, 4, 3, 6, 7], strict=True)):
        model.addJoint(parent, joint, pinocchio.SE3.Random(), f"joint{i}")
    return model


def _tool_motion(model, parent, kind, tool, q, dq):
    n = q.size
    jac, motion = np.full((6, n), np.nan), np.full(24, np.nan)
    kin.tool_motion(
        model, parent, kind, tool, q, dq, np.full((n, kin.FRAME_COLUMNS), np.nan), jac, motion)
    return jac, motion


def _compare(pinocchio_model, arrays, q, dq):
    jac, motion = _tool_motion(*arrays, TOOL, q, dq)
    expected = tool_state(pinocchio_model, TOOL, q, dq)
    np.testing.assert_allclose(jac, expected.jacobian, atol=1e-12)
    np.testing.assert_allclose(motion[:9], expected.rotation.ravel(), atol=1e-12)
    np.testing.assert_allclose(motion[9:12], expected.position, atol=1e-12)
    np.testing.assert_allclose(motion[12:18], expected.jacobian @ dq, atol=1e-11)
    np.testing.assert_allclose(motion[18:24], expected.bias, atol=1e-10)


def test_matches_pinocchio_on_random_states(arm):
    rng = np.random.default_rng(0)
    for _ in range(100):
        q = rng.uniform(arm.limits.position_min_rad, arm.limits.position_max_rad)
        _compare(
            arm.pinocchio_model, (arm.model, arm.parent, arm.kind), q, rng.normal(size=arm.n) * 2)


def test_matches_pinocchios_own_frame_on_the_hand(arm):
    model, rng = arm.pinocchio_model, np.random.default_rng(1)
    index = model.getFrameId("panda_hand_tcp")
    placement = model.frames[index].placement
    tool = np.append(placement.rotation.ravel(), placement.translation)
    aligned = pinocchio.ReferenceFrame.LOCAL_WORLD_ALIGNED
    data = model.createData()
    for _ in range(20):
        q = rng.uniform(arm.limits.position_min_rad, arm.limits.position_max_rad)
        dq = rng.normal(size=arm.n)
        jac, motion = _tool_motion(arm.model, arm.parent, arm.kind, tool, q, dq)
        pinocchio.forwardKinematics(model, data, q, dq, np.zeros(arm.n))
        pinocchio.updateFramePlacements(model, data)
        np.testing.assert_allclose(
            jac, pinocchio.computeFrameJacobian(model, data, q, index, aligned), atol=1e-13)
        classical = pinocchio.getFrameClassicalAcceleration(model, data, index, aligned)
        np.testing.assert_allclose(motion[18:24], classical.vector, atol=1e-12)


def test_matches_pinocchio_on_a_random_tree_of_every_joint_type():
    model, rng = _random_tree(), np.random.default_rng(5)
    arrays = arm_model._extract(model)
    for _ in range(30):
        _compare(model, arrays, *rng.normal(size=(2, model.nv)))


# -- rotation vectors --------------------------------------------------------------------------
def _vector_path(t):
    """A smooth rotation vector through zero at t = 0, with its derivatives."""
    a, b = np.array([0.9, -0.5, 0.3]), np.array([-0.4, 0.8, 1.2])
    return (
        a * np.sin(t) + b * t**2,
        a * np.cos(t) + 2 * b * t,
        -a * np.sin(t) + 2 * b,
    )


def _rotation(t, anchor):
    return Rotation.from_rotvec(_vector_path(t)[0]) * anchor


def _angular_velocity(t, rotation_at, h=1e-4):
    """Fourth-order central difference of an orientation's path."""
    here = rotation_at(t).inv()
    def turn(k):
        return (rotation_at(t + k * h) * here).as_rotvec()
    return (8 * (turn(1) - turn(-1)) - (turn(2) - turn(-2))) / (12 * h)


@pytest.mark.parametrize("t", [-0.9, -0.3, -1e-3, -1e-9, 0.0, 1e-7, 0.02, 0.35, 0.8, 1.1])
def test_channels_become_the_exact_motion(t):
    anchor = Rotation.from_rotvec([1.0, 2.0, -0.5])
    r, dr, ddr = _vector_path(t)
    jets = np.array([[1.0, 2.0, 3.0, *r], [4.0, 5.0, 6.0, *dr], [7.0, 8.0, 9.0, *ddr]])
    motion = np.zeros(24)
    kin.motion_from_channels(jets, anchor.as_matrix().ravel(), motion)
    np.testing.assert_allclose(
        motion[:9].reshape(3, 3), _rotation(t, anchor).as_matrix(), atol=1e-14)
    np.testing.assert_allclose(motion[9:15], [1, 2, 3, 4, 5, 6])
    np.testing.assert_allclose(motion[18:21], [7, 8, 9])
    omega = _angular_velocity(t, lambda s: _rotation(s, anchor))
    np.testing.assert_allclose(motion[15:18], omega, atol=1e-10)
    h = 1e-5
    after, before = (kin.angular_motion(*np.concatenate(_vector_path(s))) for s in (t + h, t - h))
    slope = (np.array(after[:3]) - np.array(before[:3])) / (2 * h)
    np.testing.assert_allclose(motion[21:24], slope, atol=1e-8)


def test_series_and_closed_form_meet():
    x = kin._SERIES
    below = kin.rotation_coefficients(np.nextafter(x, 0.0))
    np.testing.assert_allclose(below, kin.rotation_coefficients(x), rtol=1e-13)
    np.testing.assert_allclose(
        kin.rotation_coefficients(0.0), [1.0, 1 / 2, 1 / 6, -1 / 12, -1 / 60], rtol=1e-15)
    axis = np.array([0.6, 0.0, 0.8])
    near = [kin.vector_rate(*(axis * np.sqrt(v)), 1.0, 2.0, 3.0) for v in (np.nextafter(x, 0), x)]
    np.testing.assert_allclose(near[0], near[1], rtol=1e-13)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    some.lists(some.floats(-1, 1), min_size=3, max_size=3),
    some.one_of(some.floats(0, np.pi), some.floats(0, 1e-7), some.floats(0, 1e-7).map(
        lambda gap: np.pi - gap)),
)
def test_vector_of_a_rotation_is_recovered_up_to_half_a_turn(axis, angle):
    axis = np.array(axis)
    if np.linalg.norm(axis) < 1e-3:
        axis = np.array([0.0, 0.0, 1.0])
    r = axis / np.linalg.norm(axis) * angle
    base, turned = np.zeros(9), np.zeros(9)
    kin.rotation_from_vector(0.4, -1.0, 0.7, base)
    kin.rotation_from_vector(*r, turned)
    turned = (turned.reshape(3, 3) @ base.reshape(3, 3)).ravel()
    found = np.array(kin.vector_between(base, turned))
    assert np.linalg.norm(found) <= np.pi + 1e-12
    # both signs describe half a turn
    other = found - 2 * np.pi * found / max(np.linalg.norm(found), 1e-300)
    assert min(np.linalg.norm(found - r), np.linalg.norm(other - r)) < 1e-12 + 1e-14


@settings(max_examples=100, deadline=None, derandomize=True)
@given(some.integers(0, 10_000), some.floats(0.0, 3.1))
def test_vector_derivatives_invert_the_left_jacobian(seed, angle):
    rng = np.random.default_rng(seed)
    r = rng.normal(size=3)
    r *= angle / np.linalg.norm(r)
    dr, ddr = rng.normal(size=(2, 3))
    w = kin.angular_motion(*r, *dr, *ddr)
    np.testing.assert_allclose(kin.vector_rate(*r, *w[:3]), dr, atol=1e-11)
    np.testing.assert_allclose(kin.vector_acceleration(*r, *dr, *w[3:]), ddr, atol=1e-10)


# -- motions ------------------------------------------------------------------------------------
def _moving(seed):
    """A smooth motion as a function of time (float64[24])."""
    rng = np.random.default_rng(seed)
    a, b, c = rng.normal(size=(3, 6)) * 0.4
    anchor = Rotation.from_rotvec([0.5, 0.2, -0.3]).as_matrix().ravel()

    def at(t):
        jets = np.array([
            a * np.sin(2 * t) + b * t**2 + c,
            2 * a * np.cos(2 * t) + 2 * b * t,
            -4 * a * np.sin(2 * t) + 2 * b,
        ])
        motion = np.zeros(24)
        kin.motion_from_channels(jets, anchor, motion)
        return motion

    return at


def _assert_consistent(at, t, atol):
    """Velocities and accelerations of a motion are the derivatives of its pose."""
    h = 1e-5
    here, after, before = at(t), at(t + h), at(t - h)
    np.testing.assert_allclose((after[9:12] - before[9:12]) / (2 * h), here[12:15], atol=atol)
    np.testing.assert_allclose((after[12:18] - before[12:18]) / (2 * h), here[18:24], atol=atol)
    turn = Rotation.from_matrix(after[:9].reshape(3, 3) @ before[:9].reshape(3, 3).T).as_rotvec()
    np.testing.assert_allclose(turn / (2 * h), here[15:18], atol=atol)


@pytest.mark.parametrize("t", [0.0, 0.11, 0.37, 0.5])
def test_blend_is_consistent_in_velocity_and_acceleration(t):
    old, new = _moving(1), _moving(2)

    def at(s):
        out = np.zeros(24)
        kin.blend_motions(
            old(s), new(s), 0.5 - 0.4 * np.cos(3 * s), 1.2 * np.sin(3 * s), 3.6 * np.cos(3 * s),
            out)
        return out

    _assert_consistent(at, t, 1e-7)


def test_blend_begins_with_the_old_and_ends_with_the_new_motion():
    old, new, out = _moving(3)(0.2), _moving(4)(0.2), np.zeros(24)
    kin.blend_motions(old, new, 0.0, 0.0, 0.0, out)
    np.testing.assert_array_equal(out, old)
    kin.blend_motions(old, new, 1.0 - 1e-15, 0.0, 0.0, out)
    np.testing.assert_allclose(out, new, atol=1e-12)
    kin.blend_motions(old, new, 0.3, 0.7, -0.2, out)
    for target in (old, new):  # in place
        again = target.copy()
        kin.blend_motions(
            again if target is old else old, again if target is new else new, 0.3, 0.7, -0.2,
            again)
        np.testing.assert_array_equal(again, out)


def test_interpolation_meets_both_ends_and_is_consistent():
    path, h = _moving(5), 0.2
    a, b = path(0.3), path(0.3 + h)

    def at(t):
        out = np.zeros(24)
        kin.interpolate_motions(a, b, h, (t - 0.3) / h, out)
        return out

    np.testing.assert_allclose(at(0.3), a, atol=1e-12)
    np.testing.assert_allclose(at(0.3 + h), b, atol=1e-9)
    np.testing.assert_allclose(at(0.3 + h / 3), path(0.3 + h / 3), atol=2e-3)
    for t in (0.33, 0.41, 0.47):
        _assert_consistent(at, t, 1e-7)


def test_scaled_motion_follows_the_chain_rule():
    path = _moving(6)

    def at(t):  # path time 0.4 sin t
        motion = path(0.4 * np.sin(t))
        kin.scale_motion(motion, 0.4 * np.cos(t), -0.4 * np.sin(t))
        return motion

    _assert_consistent(at, 0.6, 1e-7)
