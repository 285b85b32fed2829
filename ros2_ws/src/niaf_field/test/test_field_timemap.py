"""Time map: ends of the horizon, inverse, query grids, large absolute times."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from niaf_field import query_grid, tau_of_time, time_grid, time_of_tau


def test_ends_of_the_horizon_are_minus_one_and_one():
    assert tau_of_time(5.0, 5.0, 2.0) == -1.0
    assert tau_of_time(7.0, 5.0, 2.0) == 1.0
    assert tau_of_time(6.0, 5.0, 2.0) == 0.0


@given(t_s=st.floats(-100.0, 100.0), horizon_s=st.floats(0.1, 10.0))
def test_time_of_tau_inverts_tau_of_time(t_s, horizon_s):
    tau = tau_of_time(t_s, 3.0, horizon_s)
    assert time_of_tau(tau, 3.0, horizon_s) == pytest.approx(t_s, abs=1e-12 * (1 + abs(t_s)))


def test_absolute_times_lose_no_more_than_their_own_resolution():
    start_s = 1_790_000_000.0
    times = start_s + np.array([0.0, 0.25, 0.5, 1.0])
    np.testing.assert_array_equal(tau_of_time(times, start_s, 1.0), [-1.0, -0.5, 0.0, 1.0])


def test_grids_include_both_ends():
    np.testing.assert_allclose(query_grid(5), [-1.0, -0.5, 0.0, 0.5, 1.0])
    np.testing.assert_allclose(time_grid(2.0, 1.0, 3), [2.0, 2.5, 3.0])
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        query_grid(1)
