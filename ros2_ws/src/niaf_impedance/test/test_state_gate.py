"""Which measured states may reach the tick."""

import math

import pytest

from niaf_impedance.faults import Mode
from niaf_impedance.state_gate import PERSISTENT_S, StateGate

TIMEOUT_S, FUTURE_S, STEP_S = 0.02, 0.05, 0.001


@pytest.fixture
def gate():
    return StateGate(FUTURE_S)


def admit(gate, stamp_s, now_s, mode=Mode.HOLD):
    return gate.admit(stamp_s, now_s, now_s, mode, TIMEOUT_S)


def test_fresh_states_pass_and_the_newest_is_kept(gate):
    assert admit(gate, 1.0, 1.001)
    assert (gate.newest_s, gate.received_s, gate.problem) == (1.0, 1.001, "")


@pytest.mark.parametrize(
    ("age_s", "words"), [(-0.06, "ahead of this clock"), (0.03, "was measured 0.030 s ago")])
def test_states_from_the_future_or_too_old_are_refused_by_name(gate, age_s, words):
    assert not admit(gate, 1.0, 1.0 + age_s)
    assert words in gate.problem
    assert gate.rejected == 1
    assert gate.received_s == -math.inf  # so that silence is noticed


def test_states_out_of_order_pass_by_and_a_clock_set_back_is_followed_only_at_rest(gate):
    assert admit(gate, 10.0, 10.0)
    assert not admit(gate, 9.999, 10.001)
    assert gate.problem == ""
    assert not admit(gate, 5.0, 5.0, Mode.TRACK)
    assert "before the one before" in gate.problem
    assert admit(gate, 5.0, 5.0, Mode.DAMP)


def test_states_that_are_all_too_old_to_damp_with_are_refused_and_single_ones_are_not(gate):
    gate.bearable_s = 0.005

    def run(began_s, age_s, steps):
        times = [began_s + STEP_S * k for k in range(steps)]
        return [admit(gate, t - age_s, t) for t in times]

    assert all(run(1.0, 0.001, 200))
    old = run(1.21, 0.008, 200)
    first = old.index(False)
    assert 0.5 * PERSISTENT_S - 0.01 <= first * STEP_S <= PERSISTENT_S + 0.01
    assert not any(old[first:])
    assert "at least 8.0 ms old" in gate.problem
    assert "lower kd" in gate.problem
    assert admit(gate, 1.42, 1.421)  # one fresh state shows that the way is free again
    assert gate.problem == ""
