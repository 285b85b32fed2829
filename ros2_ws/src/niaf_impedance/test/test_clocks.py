"""Skew of a sender's clock, and the wall clock of a loop that runs on the monotonic one."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from niaf_impedance.clocks import LEAST_MESSAGES, SLEW, STEP_S, WINDOW_S, SkewEstimate, WallClock


@given(st.floats(-0.2, 0.2), st.integers(0, 2**32 - 1))
def test_the_skew_is_found_as_closely_as_the_fastest_message(skew_s, seed):
    rng = np.random.default_rng(seed)
    estimate, t = SkewEstimate(), 1000.0
    delays = 0.002 + rng.exponential(0.02, 200)
    for delay in delays:
        t += 0.125
        estimate.add(t + delay, t - skew_s)
    assert skew_s + 0.002 - 1e-9 <= estimate.skew_s <= skew_s + delays[-40:].min() + 1e-9


def test_a_clock_that_was_set_is_seen_within_one_window():
    estimate = SkewEstimate()
    for k in range(200):
        t = 0.1 * k
        estimate.add(t + 0.001, t)
        if t >= 5.0:
            break
    for k in range(200):
        t = 5.0 + 0.1 * k
        estimate.add(t + 0.001, t - 0.3)
    assert estimate.skew_s == pytest.approx(0.301)
    assert t - 5.0 >= WINDOW_S


def test_few_or_broken_messages_say_nothing():
    estimate = SkewEstimate()
    for _ in range(LEAST_MESSAGES - 1):
        estimate.add(1.0, 0.5)
        estimate.add(math.nan, 0.5)
        estimate.add(1.0, -math.inf)
    assert math.isnan(estimate.skew_s)
    assert estimate.problem(0.1) == ""
    estimate.add(1.0, 0.5)
    assert "+500.0 ms" in estimate.problem(0.1)
    assert "behind" in estimate.problem(0.1)
    assert estimate.problem(0.6) == ""
    estimate.clear()
    for _ in range(LEAST_MESSAGES):
        estimate.add(1.0, 1.5)
    assert "ahead" in estimate.problem(0.1)


def test_a_clock_set_back_here_begins_anew():
    estimate = SkewEstimate()
    for k in range(20):
        estimate.add(100.0 + 0.1 * k, 100.0 + 0.1 * k - 0.002)
    for k in range(20):
        estimate.add(50.0 + 0.1 * k, 50.0 + 0.1 * k - 0.003)
    assert estimate.skew_s == pytest.approx(0.003)


@given(st.floats(-4e-4, 4e-4))
def test_slewing_is_followed_within_its_bound(rate):
    clock = WallClock()
    clock.set(10.0, 1010.0)
    before = clock.offset_s
    for k in range(1, 2001):
        monotonic_s = 10.0 + 0.01 * k
        clock.follow(monotonic_s, 1010.0 + 0.01 * k * (1.0 + rate))
        assert abs(clock.offset_s - before) <= SLEW * 0.01 + 1e-12
        before = clock.offset_s
    assert clock.problem == ""
    assert clock.offset_s == pytest.approx(1000.0 + 20.0 * rate, abs=1e-5)


def test_a_step_is_named_and_not_followed_until_it_is_taken():
    clock = WallClock()
    clock.set(10.0, 1010.0)
    clock.follow(10.1, 1010.1 + 3.0)
    assert clock.offset_s == 1000.0
    assert "+3.000 s" in clock.problem
    clock.follow(10.2, 1010.2)  # set back again
    assert clock.problem == ""
    clock.follow(10.3, 1010.3 - 2.0 * STEP_S)
    assert clock.problem
    clock.set(10.4, 1010.4 - 2.0 * STEP_S)
    assert clock.problem == ""
    assert clock.offset_s == pytest.approx(1000.0 - 2.0 * STEP_S)
