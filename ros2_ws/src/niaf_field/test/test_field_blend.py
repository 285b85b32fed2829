"""Hand-over: exact derivatives, continuity at both ends, plain switch, aliasing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from niaf_field import blend_jets, smoothstep5

SEAM_S = 10.4


@pytest.fixture(scope="module")
def pair(make_field):
    return make_field(1, start_s=10.0, omega0=5.0), make_field(2, start_s=10.2, omega0=5.0)


def blended(pair, t_s, blend_s, order=3):
    out = np.full((order + 1, pair[0].D), np.nan)
    blend_jets(pair[0].jet(t_s, order), pair[1].jet(t_s, order), t_s, SEAM_S, blend_s, out)
    return out


@settings(max_examples=50, deadline=None)
@given(blend_s=st.floats(0.02, 0.6), seeds=st.tuples(st.integers(0, 50), st.integers(0, 50)))
def test_value_velocity_acceleration_are_continuous_at_both_ends(make_field, blend_s, seeds):
    pair = (
        make_field(seeds[0], start_s=10.0, omega0=5.0),
        make_field(seeds[1], start_s=10.2, omega0=5.0),
    )
    step = 1e-7
    for t_s, outside in ((SEAM_S, pair[0]), (SEAM_S + blend_s, pair[1])):
        before, after = blended(pair, t_s - step, blend_s), blended(pair, t_s + step, blend_s)
        # Over 2 steps a continuous order moves by at most its own derivative times 2 steps.
        gap = np.abs(pair[0].jet(t_s, 2) - pair[1].jet(t_s, 2)).max()
        jerk = max(np.abs(before[3]).max(), np.abs(after[3]).max(), 60.0 * gap / blend_s**3)
        rates = [np.abs(before[n + 1]).max() + 1.0 for n in range(2)] + [10.0 * jerk + 1.0]
        for n in range(3):
            assert np.abs(after[n] - before[n]).max() <= 4.0 * step * rates[n]
        np.testing.assert_allclose(
            blended(pair, t_s, blend_s)[:3], outside.jet(t_s, 2), rtol=1e-9, atol=1e-9
        )


@settings(max_examples=50, deadline=None)
@given(phase=st.floats(0.05, 0.95), blend_s=st.floats(0.05, 0.6))
def test_derivatives_are_the_finite_differences_of_the_blend(pair, phase, blend_s):
    t_s = SEAM_S + phase * blend_s
    step = 1e-5 * blend_s
    here = blended(pair, t_s, blend_s)
    slope = (blended(pair, t_s + step, blend_s) - blended(pair, t_s - step, blend_s)) / (2 * step)
    for n in range(3):
        size = np.abs(here[n + 1]).max() + np.abs(here[n]).max() / blend_s
        assert np.abs(slope[n] - here[n + 1]).max() <= 1e-5 * size


def test_outside_the_blend_the_fields_are_returned_exactly(pair):
    np.testing.assert_array_equal(blended(pair, SEAM_S - 0.01, 0.1), pair[0].jet(SEAM_S - 0.01, 3))
    np.testing.assert_array_equal(blended(pair, SEAM_S, 0.1), pair[0].jet(SEAM_S, 3))
    np.testing.assert_array_equal(blended(pair, SEAM_S + 0.11, 0.1), pair[1].jet(SEAM_S + 0.11, 3))


def test_a_nan_in_the_old_field_does_not_survive_the_blend(pair):
    out = np.empty((3, pair[0].D))
    new = pair[1].jet(11.0, 2)
    blend_jets(np.full_like(new, np.nan), new, 11.0, SEAM_S, 0.1, out)
    np.testing.assert_array_equal(out, new)


def test_zero_blend_time_is_a_switch_at_the_seam(pair):
    np.testing.assert_array_equal(blended(pair, SEAM_S - 1e-9, 0.0), pair[0].jet(SEAM_S - 1e-9, 3))
    np.testing.assert_array_equal(blended(pair, SEAM_S, 0.0), pair[1].jet(SEAM_S, 3))


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_orders_agree_and_output_may_alias_either_input(pair, order):
    t_s = SEAM_S + 0.04
    expected = blended(pair, t_s, 0.1)[: order + 1]
    np.testing.assert_allclose(blended(pair, t_s, 0.1, order), expected, rtol=1e-12)
    for alias in (0, 1):
        jets = [field.jet(t_s, order) for field in pair]
        blend_jets(jets[0], jets[1], t_s, SEAM_S, 0.1, jets[alias])
        np.testing.assert_allclose(jets[alias], expected, rtol=1e-12)


def test_blending_a_field_with_itself_changes_nothing(pair):
    same = (pair[0], pair[0])
    np.testing.assert_allclose(
        blended(same, SEAM_S + 0.05, 0.1), pair[0].jet(SEAM_S + 0.05, 3), rtol=1e-12
    )


def test_nan_time_gives_nan(pair):
    assert np.isnan(blended(pair, float("nan"), 0.1)).all()


@given(x=st.floats(-1.0, 2.0))
def test_smoothstep_stays_between_zero_and_one_and_is_symmetric(x):
    value, first, second, _ = smoothstep5(x)
    mirrored = smoothstep5(1.0 - x)
    assert 0.0 <= value <= 1.0
    assert first >= 0.0
    assert value + mirrored[0] == pytest.approx(1.0, abs=1e-12)
    assert second == pytest.approx(-mirrored[2], abs=1e-9)


def test_smoothstep_derivatives_match_finite_differences():
    step = 1e-6
    for x in np.linspace(0.01, 0.99, 25):
        here = smoothstep5(x)
        slope = (np.array(smoothstep5(x + step)) - np.array(smoothstep5(x - step))) / (2 * step)
        np.testing.assert_allclose(slope[:3], here[1:], atol=1e-7 * 60)
