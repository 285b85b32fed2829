"""Splines against SciPy and against their own promises (C2, boundary values, holding)."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.polynomial import polynomial
from scipy.interpolate import BPoly, CubicSpline, make_interp_spline

from niaf_field import (
    FieldError,
    Reference,
    SplineError,
    SplineReference,
    hold_reference,
    quintic_segment,
    spline_reference,
    spline_through,
)

D = 3


def knots(seed=0, count=7):
    random = np.random.default_rng(seed)
    return 100.0 + np.cumsum(random.uniform(0.05, 0.3, count)), random.normal(size=(count, D))


def sample(times, reference, order=3):
    inside = np.linspace(times[0], times[-1], 401)
    return inside, reference.batch(inside, order)


def as_reference(pair):
    return SplineReference(pair[0], pair[1], sequence=1, stamp_s=0.0)


def assert_continuous(reference, orders):
    """The end of each piece against the beginning of the next, order by order."""
    steps = np.diff(reference.knots_s)
    size = np.abs(reference.batch(reference.knots_s, 3)).max(axis=(0, 2))
    for k in range(len(steps) - 1):
        for n in range(orders + 1):
            left, right = (
                polynomial.polyval(
                    x, polynomial.polyder(reference.coefficients[piece], n), tensor=False
                )
                for piece, x in ((k, steps[k]), (k + 1, 0.0))
            )
            assert np.abs(left - right).max() <= 1e-9 * (1.0 + size[n]), (k, n)


def test_natural_spline_equals_scipy():
    times, positions = knots()
    spline = as_reference(spline_through(times, positions, end="natural"))
    oracle = CubicSpline(times, positions, bc_type="natural")
    inside, jets = sample(times, spline)
    for n in range(4):
        expected = oracle(inside, n)
        np.testing.assert_allclose(jets[:, n], expected, atol=1e-8 * np.abs(expected).max())


def test_given_start_velocity_equals_scipy_clamped_start():
    times, positions = knots(1)
    velocity = np.array([0.3, -0.2, 0.9])
    spline = as_reference(spline_through(times, positions, start_velocity=velocity, end="natural"))
    oracle = CubicSpline(times, positions, bc_type=((1, velocity), (2, np.zeros(D))))
    inside, jets = sample(times, spline)
    for n in range(3):
        expected = oracle(inside, n)
        np.testing.assert_allclose(jets[:, n], expected, atol=1e-8 * np.abs(expected).max())


def test_given_start_acceleration_equals_scipy():
    times, positions = knots(2)
    acceleration = np.array([1.0, 0.0, -2.0])
    spline = as_reference(
        spline_through(times, positions, start_acceleration=acceleration, end="natural")
    )
    oracle = CubicSpline(times, positions, bc_type=((2, acceleration), (2, np.zeros(D))))
    inside, jets = sample(times, spline)
    expected = oracle(inside, 1)
    np.testing.assert_allclose(jets[:, 1], expected, atol=1e-8 * np.abs(expected).max())


def test_end_at_rest_is_clamped_cubic_but_for_the_last_piece_and_stops_without_acceleration():
    times, positions = knots(3)
    velocity = np.array([0.1, 0.0, -0.4])
    spline = as_reference(spline_through(times, positions, start_velocity=velocity))
    oracle = CubicSpline(times, positions, bc_type=((1, velocity), (1, np.zeros(D))))
    inside = np.linspace(times[0], times[-2], 200)
    np.testing.assert_allclose(spline.batch(inside, 2)[:, 0], oracle(inside), atol=1e-9)
    end = spline.jet(times[-1], 2)
    np.testing.assert_allclose(end[0], positions[-1], atol=1e-9)
    np.testing.assert_allclose(end[1:], 0.0, atol=1e-7)


@pytest.mark.parametrize("end", ["rest", "natural"])
@pytest.mark.parametrize("with_velocities", [False, True])
@pytest.mark.parametrize("count", [2, 3, 8])
def test_every_spline_is_c2_and_meets_knots_and_start_state(end, with_velocities, count):
    times, positions = knots(4, count)
    random = np.random.default_rng(5)
    v0, a0 = random.normal(size=D), random.normal(size=D)
    velocities = random.normal(size=positions.shape) if with_velocities else None
    spline = as_reference(
        spline_through(
            times, positions, velocities, start_velocity=v0, start_acceleration=a0, end=end
        )
    )
    start = spline.jet(times[0], 2)
    np.testing.assert_allclose(start, [positions[0], v0, a0], atol=1e-12)
    at_knots = spline.batch(times, 2)
    np.testing.assert_allclose(at_knots[:, 0], positions, atol=1e-9)
    if velocities is not None:
        np.testing.assert_allclose(at_knots[1:, 1], velocities[1:], atol=1e-8)
    assert_continuous(spline, 2)


def test_knot_velocities_give_the_least_jerk_curve():
    """Jerk is continuous, and SciPy's quintic with those accelerations is the same curve."""
    times, positions = knots(6)
    velocities = np.random.default_rng(7).normal(size=positions.shape)
    spline = as_reference(spline_through(times, positions, velocities, end="natural"))
    assert_continuous(spline, 3)
    accelerations = spline.batch(times, 2)[:, 2]
    oracle = BPoly.from_derivatives(times, np.stack([positions, velocities, accelerations], axis=1))
    inside, jets = sample(times, spline)
    np.testing.assert_allclose(jets[:, 0], oracle(inside), atol=1e-9)

    def squared_jerk(a):
        pair = spline_through(times, positions, velocities, a)
        fine = np.linspace(times[0], times[-1], 4001)
        return (as_reference(pair).batch(fine, 3)[:, 3] ** 2).sum()

    best = squared_jerk(accelerations)
    random = np.random.default_rng(8)
    for _ in range(5):
        assert squared_jerk(accelerations + random.normal(0, 0.5, accelerations.shape)) > best


def test_a_quintic_polynomial_with_all_states_is_reproduced():
    times = np.array([1.0, 1.4, 2.1, 2.5])
    curve = np.polynomial.Polynomial([0.2, -1.0, 0.7, 0.3, -0.5, 0.1])
    states = [curve.deriv(n)(times)[:, None] if n else curve(times)[:, None] for n in (0, 1, 2)]
    spline = as_reference(spline_through(times, *states))
    inside, jets = sample(times, spline)
    for n in range(4):
        expected = curve.deriv(n)(inside) if n else curve(inside)
        np.testing.assert_allclose(jets[:, n, 0], expected, atol=1e-9)


def test_quintic_through_many_points_agrees_with_scipy_fifth_order_spline_at_full_states():
    times, positions = knots(9, 8)
    oracle = make_interp_spline(times, positions, k=5)
    spline = as_reference(spline_through(times, positions, oracle(times, 1), oracle(times, 2)))
    inside, jets = sample(times, spline)
    np.testing.assert_allclose(jets[:, 0], oracle(inside), atol=1e-7)


def test_derivatives_match_finite_differences():
    times, positions = knots(10)
    spline = as_reference(spline_through(times - 100.0, positions))
    step = 1e-6
    for t in np.linspace(times[0] - 99.9, times[-1] - 100.1, 11):
        if np.abs(spline.knots_s - t).min() < 2 * step:
            continue
        slope = (spline.jet(t + step, 3) - spline.jet(t - step, 3)) / (2 * step)
        here = spline.jet(t, 3)
        for n in range(3):
            assert np.abs(slope[n] - here[n + 1]).max() < 1e-5 * (1 + np.abs(here[n + 1]).max())


def test_quintic_segment_meets_both_states():
    random = np.random.default_rng(11)
    states = random.normal(size=(2, 3, D))
    coefficients = quintic_segment(*states[0], *states[1], duration_s=0.7)
    segment = SplineReference(np.array([0.0, 0.7]), coefficients[None], 0, 0.0)
    np.testing.assert_allclose(segment.jet(0.0, 2), states[0], atol=1e-12)
    np.testing.assert_allclose(segment.jet(0.7, 2), states[1], atol=1e-10)


def test_outside_the_knots_the_end_position_is_held():
    times, positions = knots(12)
    spline = spline_reference(times, positions, sequence=4, stamp_s=99.0)
    for t, row in ((times[0] - 5.0, 0), (times[-1] + 5.0, -1), (np.inf, -1), (-np.inf, 0)):
        jets = spline.jet(t, 3)
        np.testing.assert_allclose(jets[0], positions[row], atol=1e-9)
        assert not jets[1:].any()
    assert np.isnan(spline.jet(np.nan, 2)).all()


def test_batch_equals_single_jets():
    times, positions = knots(13)
    spline = spline_reference(times, positions, sequence=4, stamp_s=99.0)
    instants = np.linspace(times[0] - 0.1, times[-1] + 0.1, 31)
    np.testing.assert_array_equal(
        spline.batch(instants, 3), np.stack([spline.jet(t, 3) for t in instants])
    )


def test_both_kinds_are_references(make_field):
    hold = hold_reference([0.1, 0.2], 3.0, 2.0)
    assert isinstance(hold, Reference)
    assert isinstance(make_field(), Reference)
    assert (hold.start_s, hold.end_s, hold.horizon_s, hold.D) == (3.0, 5.0, 2.0, 2)
    np.testing.assert_array_equal(hold.jet(4.0, 1), [[0.1, 0.2], [0.0, 0.0]])
    with pytest.raises(FieldError, match="one-dimensional"):
        hold.batch(np.zeros((2, 2)), 1)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (([0.0], [[1.0]]), "at least 2 knots"),
        (([0.0, 1.0, 1.0], [[1.0]] * 3), "knot 1 at 1.0 s, knot 2 at 1.0 s"),
        (([0.0, np.nan], [[1.0]] * 2), "knot time 1 is not finite"),
        (([0.0, 1.0], [[1.0], [np.inf]]), "position of channel 0 at knot 1 is not finite"),
        (([0.0, 1.0], [1.0, 2.0]), r"expected \[2, D\]"),
        (([0.0, 1.0], [[1.0]] * 2, [[1.0]] * 3), "velocities has shape"),
        (([0.0, 1.0], [[1.0]] * 2, None, [[1.0]] * 2), "without velocities"),
    ],
)
def test_malformed_knots_are_refused_with_the_reason(arguments, text):
    with pytest.raises(SplineError, match=text):
        spline_through(*arguments)


def test_malformed_boundary_conditions_and_pieces_are_refused():
    with pytest.raises(SplineError, match="start_velocity has shape"):
        spline_through([0, 1], [[1.0], [2.0]], start_velocity=[1.0, 2.0])
    with pytest.raises(SplineError, match="end must be"):
        spline_through([0, 1], [[1.0], [2.0]], end="soft")
    with pytest.raises(SplineError, match="duration_s must be finite and positive"):
        quintic_segment([0], [0], [0], [1], [0], [0], 0.0)
    with pytest.raises(SplineError, match="need 3 knots"):
        SplineReference(np.array([0.0, 1.0]), np.zeros((2, 6, 1)), 0, 0.0)
    with pytest.raises(SplineError, match="piece 0 are not finite"):
        SplineReference(np.array([0.0, 1.0]), np.full((1, 6, 1), np.nan), 0, 0.0)
