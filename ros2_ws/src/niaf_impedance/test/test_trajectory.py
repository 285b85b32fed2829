"""JointTrajectory to spline: against SciPy, its stated rules, and through the controller."""

from __future__ import annotations

import itertools
from dataclasses import replace
from types import SimpleNamespace as Bunch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial import polynomial
from scipy.interpolate import BPoly, make_interp_spline

from niaf_field import SplineReference
from niaf_impedance import Mode
from niaf_impedance.robot_config import GripperConfig
from niaf_impedance.trajectory import (
    BRAKE,
    LEAD_MIN_S,
    MAX_POINTS,
    RunningReference,
    TrajectoryError,
    TrajectoryPoints,
    from_message,
    trajectory_reference,
)

ARM = ("a", "b", "c")
GRIPPER = GripperConfig("gripper", "finger", 2.0, 0.08, 0.2, 0.003, 0.02)
NOW_S = 100.0
KINDS = ("positions", "velocities", "accelerations")


def running(seed=0, t_s=NOW_S):
    rng = np.random.default_rng(seed)
    return RunningReference(t_s, *rng.normal(size=(3, 3)), gripper_m=0.05)


def trajectory(seed=0, count=5, kind="positions", first_s=0.2, start_s=None, names=ARM):
    rng = np.random.default_rng(seed + 1000)
    times = first_s + np.concatenate([[0.0], np.cumsum(rng.uniform(0.05, 0.4, count - 1))])
    p, v, a = rng.normal(size=(3, count, len(names)))
    return TrajectoryPoints(
        names, start_s, times, p, None if kind == "positions" else v,
        a if kind == "accelerations" else None,
    )


def convert(points, now=None, gripper=GRIPPER, sequence=1):
    reference = trajectory_reference(points, ARM, gripper, now or running(), sequence=sequence)
    assert isinstance(reference, SplineReference)
    return reference


def assert_continuous(reference, orders):
    """The end of every piece against the beginning of the next."""
    pieces, steps = reference.coefficients, np.diff(reference.knots_s)
    for order in range(orders + 1):
        ends = [
            polynomial.polyval(step, polynomial.polyder(piece, order), tensor=False)
            for piece, step in zip(pieces, steps, strict=True)
        ]
        starts = [polynomial.polyder(piece, order)[0] for piece in pieces]
        size = 1.0 + np.abs(ends).max()
        np.testing.assert_allclose(starts[1:], ends[:-1], atol=1e-9 * size)


CASES = given(
    seed=st.integers(0, 10_000), count=st.integers(1, 12), kind=st.sampled_from(KINDS),
    first_s=st.floats(LEAD_MIN_S + 0.01, 1.0),
)


@settings(max_examples=25, deadline=None)
@CASES
def test_leads_from_the_running_reference_through_every_point_without_a_kink(
    seed, count, kind, first_s
):
    points, now = trajectory(seed, count, kind, first_s), running(seed)
    reference = convert(points, now)
    assert reference.start_s == NOW_S
    np.testing.assert_allclose(reference.jet(NOW_S, 2), [now.q, now.dq, now.ddq], atol=1e-12)
    assert_continuous(reference, 2)
    jets = reference.batch(NOW_S + points.time_from_start_s, 2)
    size = 1.0 + np.abs(jets).max(axis=(0, 2))
    np.testing.assert_allclose(jets[:, 0], points.positions, atol=1e-9 * size[0])
    if points.velocities is not None:
        np.testing.assert_allclose(jets[:, 1], points.velocities, atol=1e-9 * size[1])
    if points.accelerations is not None:
        np.testing.assert_allclose(jets[:, 2], points.accelerations, atol=1e-9 * size[2])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(2, 12))
def test_positions_alone_give_scipys_cubic_spline_with_a_free_end(seed, count):
    points, now = trajectory(seed, count), running(seed)
    times = np.append(NOW_S, NOW_S + points.time_from_start_s)
    ends = ([(1, now.dq)], [(2, np.zeros(3))])
    oracle = make_interp_spline(times, np.vstack([now.q, points.positions]), k=3, bc_type=ends)
    reference = convert(points, now)
    # the first piece also starts with the running acceleration, which no cubic can
    first = BPoly.from_derivatives(
        times[:2], [[now.q, now.dq, now.ddq], [oracle(times[1], n) for n in range(3)]]
    )
    for curve, instants in (
        (first, np.linspace(times[0], times[1], 30)),
        (oracle, np.linspace(times[1] + 1e-9, times[-1], 200)),
    ):
        jets = reference.batch(instants, 2)
        for order in range(3):
            expected = curve(instants, nu=order)
            np.testing.assert_allclose(
                jets[:, order], expected, atol=1e-6 * (1.0 + np.abs(expected).max())
            )


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 12))
def test_full_points_give_scipys_quintic_hermite(seed, count):
    points, now = trajectory(seed, count, "accelerations"), running(seed)
    times = np.append(NOW_S, NOW_S + points.time_from_start_s)
    states = np.stack([
        np.vstack([now.q, points.positions]), np.vstack([now.dq, points.velocities]),
        np.vstack([now.ddq, points.accelerations]),
    ], axis=1)
    oracle = BPoly.from_derivatives(times, states)
    instants = np.linspace(times[0], times[-1], 200)
    expected = oracle(instants)
    np.testing.assert_allclose(
        convert(points, now).batch(instants, 0)[:, 0], expected,
        atol=1e-8 * (1.0 + np.abs(expected).max()),
    )


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(2, 12))
def test_velocities_without_accelerations_keep_even_jerk_continuous(seed, count):
    assert_continuous(convert(trajectory(seed, count, "velocities"), running(seed)), 3)


@pytest.mark.parametrize("kind", KINDS)
def test_order_of_joint_names_does_not_matter(kind):
    names = (*ARM, "gripper")
    points = trajectory(3, 6, kind, names=names)
    expected = convert(points)
    for order in itertools.permutations(range(4)):
        index = list(order)
        shuffled = replace(
            points, joint_names=tuple(names[i] for i in index),
            **{n: v[:, index] for n in KINDS if (v := getattr(points, n)) is not None},
        )
        np.testing.assert_array_equal(convert(shuffled).coefficients, expected.coefficients)


def test_a_lone_goal_is_reached_at_rest():
    now = running(1)
    reference = convert(trajectory(1, 1, first_s=1.5), now)
    np.testing.assert_allclose(reference.jet(NOW_S, 2), [now.q, now.dq, now.ddq], atol=1e-12)
    np.testing.assert_allclose(reference.jet(reference.end_s, 2)[1:], 0.0, atol=1e-9)


def test_final_velocity_zero_means_rest_and_positions_alone_do_not():
    points = trajectory(2, 6, "velocities")
    points.velocities[-1] = 0.0
    end = convert(points).jet(convert(points).end_s, 2)
    np.testing.assert_allclose(end[1:], 0.0, atol=1e-8)
    moving = convert(replace(points, velocities=None))
    assert np.abs(moving.jet(moving.end_s, 1)[1]).min() > 1e-3


def test_an_observation_stamp_aligns_the_chunk_in_time():
    points = trajectory(4, 6, first_s=0.0, start_s=NOW_S - 0.15)
    reference = convert(points)
    assert reference.start_s == reference.stamp_s == NOW_S - 0.15
    np.testing.assert_allclose(
        reference.batch(NOW_S - 0.15 + points.time_from_start_s, 0)[:, 0], points.positions,
        atol=1e-9,
    )


@pytest.mark.parametrize("ahead_s", [-0.9 * LEAD_MIN_S, 0.0, 0.9 * LEAD_MIN_S])
@pytest.mark.parametrize("kind", KINDS)
def test_a_first_point_due_about_now_starts_with_the_running_velocity(ahead_s, kind):
    points, now = trajectory(5, 5, kind, first_s=0.0, start_s=NOW_S + ahead_s), running(5)
    reference = convert(points, now)
    assert reference.start_s == min(NOW_S, NOW_S + ahead_s)
    assert_continuous(reference, 2)
    times = points.start_s + points.time_from_start_s
    jets = reference.batch(times, 2)
    np.testing.assert_allclose(jets[:, 0], points.positions, atol=1e-7)
    first = [
        points.positions[0],
        now.dq if points.velocities is None else points.velocities[0],
        now.ddq if points.accelerations is None else points.accelerations[0],
    ]
    np.testing.assert_allclose(jets[0], first, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(widths=st.lists(st.floats(0.0, 0.08), min_size=2, max_size=10), kind=st.sampled_from(KINDS))
def test_the_gripper_never_overshoots_its_widths(widths, kind):
    points = trajectory(6, len(widths), kind, names=(*ARM, "gripper"))
    points.positions[:, 3] = widths
    reference = convert(points)
    assert reference.D == 4
    width = reference.batch(np.linspace(reference.start_s, reference.end_s, 500), 0)[:, 0, 3]
    assert width.min() >= min(*widths, 0.05) - 1e-9
    assert width.max() <= max(*widths, 0.05) + 1e-9
    assert_continuous(reference, 2)


def test_the_gripper_may_be_named_by_its_joint():
    points = trajectory(7, 4, names=(*ARM, "finger"))
    reference = convert(points)
    np.testing.assert_allclose(
        reference.batch(NOW_S + points.time_from_start_s, 0)[:, 0, 3], 2.0 * points.positions[:, 3],
        atol=1e-12,
    )


def test_no_points_means_brake():
    empty = message(points=[])
    assert trajectory_reference(
        from_message(empty), ARM, GRIPPER, running(), sequence=1) is BRAKE


# -- messages --------------------------------------------------------------------------------------
def point(time_s, positions=(0.1, 0.2, 0.3), velocities=(), accelerations=(), effort=()):
    sec = int(time_s)
    return Bunch(
        positions=list(positions), velocities=list(velocities), accelerations=list(accelerations),
        effort=list(effort), time_from_start=Bunch(sec=sec, nanosec=round((time_s - sec) * 1e9)),
    )


def message(names=ARM, points=None, stamp=(0, 0)):
    stamp_of = Bunch(sec=stamp[0], nanosec=stamp[1])
    points = [point(0.5), point(1.25)] if points is None else points
    return Bunch(header=Bunch(stamp=stamp_of), joint_names=list(names), points=points)


def test_message_becomes_numbers():
    points = from_message(message(stamp=(1_700_000_000, 250_000_000)), epoch_sec=1_700_000_000)
    assert points.start_s == 0.25
    assert from_message(message()).start_s is None
    assert points.joint_names == ARM
    np.testing.assert_array_equal(points.time_from_start_s, [0.5, 1.25])
    np.testing.assert_array_equal(points.positions, [[0.1, 0.2, 0.3]] * 2)
    assert points.velocities is None and points.accelerations is None


def test_the_real_message_type_is_read():
    msg = pytest.importorskip("trajectory_msgs.msg")
    real = msg.JointTrajectory()
    real.joint_names = list(ARM)
    for time_s in (1, 2):
        entry = msg.JointTrajectoryPoint(positions=[0.1, 0.2, 0.3], velocities=[0.0] * 3)
        entry.time_from_start.sec = time_s
        real.points.append(entry)
    reference = convert(from_message(real))
    np.testing.assert_allclose(reference.jet(NOW_S + 2.0, 2)[0], [0.1, 0.2, 0.3], atol=1e-12)
    assert reference.end_s == NOW_S + 2.0


NAN3 = (0.0, float("nan"), 0.0)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (message(names=("a", "b", "x")), "unknown 'x'"),
        (message(names=("a", "b"), points=[point(1.0, (0.1, 0.2))]), "lacks 'c'"),
        (message(names=("a", "b", "b")), "'b' more than once"),
        (message(names=(*ARM, "finger", "gripper"), points=[point(1.0, [0.0] * 5)]), "twice"),
        (message(points=[point(1.0, (0.1, 0.2))]), "positions has 2 values"),
        (message(points=[point(1.0, ())]), "positions has 0 values"),
        (message(points=[point(1.0), point(2.0, velocities=(0.0, 0.0, 0.0))]), "or in none"),
        (message(points=[point(1.0, velocities=(0.0,))]), "velocities has 1 values"),
        (message(points=[point(1.0, accelerations=(0.0,) * 3)]), "no velocities"),
        (message(points=[point(1.0, NAN3)]), "positions of b is nan"),
        (message(points=[point(1.0, velocities=NAN3)]), "velocities of b is nan"),
        (message(points=[point(1.0, effort=(0.0, 0.0, 4.0))]), "effort of c is 4"),
        (message(points=[point(1.0), point(1.0)]), "increase strictly"),
        (message(points=[point(1.0), point(0.5)]), "increase strictly"),
        (message(points=[point(-1.0), point(0.5)]), "not negative"),
        (message(points=[point(0.1 * (k + 1)) for k in range(MAX_POINTS + 1)]), "at most 500"),
        (message(points=[point(70.0)]), "lasts 70 s"),
        (message(points=[point(0.0)]), "only point is due"),
        (message(stamp=(98, 0), points=[point(0.5), point(1.0)]), "due 1.000 s ago"),
        (message(stamp=(102, 0)), "2.000 s ahead"),
        (message(points=[point(1.0, (1e308, -1e308, 0.0)), point(1.001)]), "no spline"),
        (Bunch(header=Bunch(stamp=Bunch(sec=0, nanosec=0)), joint_names=list(ARM),
               points=[Bunch(transforms=[])]), "not a trajectory_msgs/JointTrajectory"),
    ],
)
def test_bad_trajectories_are_refused_by_name(bad, said):
    with np.errstate(over="ignore", invalid="ignore"), pytest.raises(TrajectoryError, match=said):
        trajectory_reference(from_message(bad), ARM, GRIPPER, running(), sequence=1)


def test_effort_of_zero_says_nothing_and_is_let_through():
    assert convert(from_message(message(points=[point(1.0, effort=(0.0,) * 3)]))).D == 3


# -- through the controller ------------------------------------------------------------------------
def follow(controller, until_s, t):
    """Ticks of an arm that is exactly where it should be; dq_ref of each."""
    speeds = []
    zero = np.zeros(controller.n)
    while t < until_s - 1e-9:
        t += 0.001
        controller.tick(t, controller.telemetry.q_ref.copy(), zero)
        speeds.append(controller.telemetry.dq_ref.copy())
    return t, np.array(speeds).reshape(-1, controller.n)


def offer(controller, t, times, positions, velocities=None, sequence=1):
    tel = controller.telemetry
    now = RunningReference(
        controller.last_tick_s, tel.q_ref.copy(), tel.dq_ref.copy(), tel.ddq_ref.copy(),
        controller.gripper_m,
    )
    points = TrajectoryPoints(controller.arm.joint_names, None, times, positions, velocities)
    reference = trajectory_reference(
        points, controller.arm.joint_names, controller.arm.config.gripper, now, sequence=sequence)
    verdict = controller.offer(t, reference)
    assert verdict.accepted, verdict.text


def test_replaced_chunks_of_positions_never_slow_the_arm(holding):
    """20 Hz positions of a steady motion, replaced every 0.15 s: the speed stays the motion's."""
    controller, _ = holding
    home, speed = controller.arm.config.home_rad, np.full(7, 0.2)
    steps = 0.05 * np.arange(1, 17)
    t, seen = 0.0, []
    for number in range(8):
        # a motion that begins smoothly, then goes on at constant speed
        ahead = np.maximum(t + steps - 0.2, 0.0)
        offer(controller, t, steps, home + ahead[:, None] * speed, sequence=number + 1)
        t, speeds = follow(controller, t + 0.15, t)
        if t > 0.5:
            seen.append(speeds)
    np.testing.assert_allclose(np.concatenate(seen), 0.2, atol=0.01)
    # nothing replaces the last chunk: the arm comes to rest at its last point
    t, _ = follow(controller, t + 2.0, t)
    assert controller.mode == Mode.HOLD
    np.testing.assert_allclose(
        controller.telemetry.q_ref, home + (7 * 0.15 + 0.8 - 0.2) * speed, atol=1e-6
    )


def test_a_complete_trajectory_ends_at_rest_on_time(holding):
    controller, _ = holding
    home = controller.arm.config.home_rad
    goal = home + 0.1
    offer(
        controller, 0.0, np.array([0.5, 1.0]), np.stack([0.5 * (home + goal), goal]),
        np.stack([np.full(7, 0.15), np.zeros(7)]),
    )
    follow(controller, 1.001, 0.0)
    assert controller.mode == Mode.HOLD
    np.testing.assert_allclose(controller.telemetry.q_ref, goal, atol=1e-9)
