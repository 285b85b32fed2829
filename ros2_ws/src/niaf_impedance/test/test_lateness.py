"""When a late loop goes down the ladder: the rule itself. Each loop's own tests inject it there."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from niaf_impedance.lateness import (
    M_SIZE,
    ONLY_COUNT,
    Lateness,
    LoopLimits,
    LoopLimitsError,
    Rung,
    judge,
)
from niaf_impedance.settings import ControllerConfig
from niaf_impedance.state_gate import OwnDelay

PERIOD_S = 0.001
RATES_HZ = (50.0, 250.0, 1000.0, 5000.0)


def rungs(lateness: Lateness, count: int, late_s: float = 0.0, gap_s: float | None = None):
    gap_s = lateness.period_s if gap_s is None else gap_s
    return [lateness.judge(late_s, gap_s) for _ in range(count)]


def test_a_loop_on_time_is_never_late():
    lateness = Lateness(LoopLimits(), PERIOD_S)
    assert set(rungs(lateness, 5000, 0.4e-3)) == {Rung.ON_TIME}  # p99 of the demo
    assert lateness.share == 0.0 and lateness.late == 0 and lateness.text == ""


def test_a_hiccup_of_a_few_milliseconds_is_counted_and_nothing_else():
    lateness = Lateness(LoopLimits(), PERIOD_S)
    rungs(lateness, 100)
    assert lateness.judge(4.9e-3, 5.9e-3) == Rung.LATE  # the demo's worst
    assert set(rungs(lateness, 100)) == {Rung.ON_TIME}
    assert lateness.late == 1
    assert lateness.worst_s == pytest.approx(4.9e-3)
    assert lateness.share < 0.1 * LoopLimits().brake_share


def test_a_hiccup_every_tenth_of_a_second_still_does_not_stop_the_arm():
    lateness = Lateness(LoopLimits(), PERIOD_S)
    for _ in range(50):
        rungs(lateness, 95)
        assert lateness.judge(4.0e-3, 5.0e-3) == Rung.LATE
    assert lateness.outcome == Rung.LATE


@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_a_host_that_is_late_all_the_time_brakes_and_then_damps(rate_hz):
    limits = LoopLimits(brake_lateness_s=1.0, damp_lateness_s=1.0)  # the share alone
    lateness = Lateness(limits, 1.0 / rate_hz)
    seen = rungs(lateness, round(rate_hz), 1.1 / rate_hz)
    brake, damp = seen.index(Rung.BRAKE), seen.index(Rung.DAMP)
    tolerance = 2.0 / rate_hz
    assert brake / rate_hz == pytest.approx(-math.log(0.8) * 0.5, abs=tolerance)
    assert damp / rate_hz == pytest.approx(-math.log(0.5) * 0.5, abs=tolerance)
    assert seen == sorted(seen), "one rung after the other, without flapping"
    assert "enough to damp" in lateness.text


def test_periods_without_a_tick_count_as_much_as_late_ticks():
    lateness = Lateness(LoopLimits(), PERIOD_S)
    seen = rungs(lateness, 300, 0.0, 3.0 * PERIOD_S)  # two of three are lost
    assert seen.index(Rung.BRAKE) < 80
    assert lateness.share == pytest.approx(2.0 / 3.0, abs=0.06)
    assert Rung.DAMP in seen


@pytest.mark.parametrize(("late_s", "gap_s"), [(0.011, 0.001), (0.0, 0.0115)])
def test_one_tick_beyond_the_limit_brakes(late_s, gap_s):
    lateness = Lateness(LoopLimits(), PERIOD_S)
    rungs(lateness, 10)
    assert lateness.judge(late_s, gap_s) == Rung.BRAKE
    assert set(rungs(lateness, 10)) == {Rung.ON_TIME}, "and it may move again"


@pytest.mark.parametrize(("late_s", "gap_s"), [(0.0201, 0.001), (0.0, 0.0201)])
def test_one_tick_as_late_as_a_state_may_be_old_damps(late_s, gap_s):
    """Named before the tick would take the same gap for a silent driver."""
    assert LoopLimits().damp_lateness_s == ControllerConfig().state_timeout_s
    assert Lateness(LoopLimits(), PERIOD_S).judge(late_s, gap_s) == Rung.DAMP


def test_motion_is_held_back_until_the_lateness_has_passed():
    lateness = Lateness(LoopLimits(brake_lateness_s=1.0), PERIOD_S)
    rungs(lateness, 150, 1.5 * PERIOD_S)
    seen = rungs(lateness, 1000)
    assert seen[0] == Rung.BRAKE and seen[-1] == Rung.ON_TIME
    assert seen == sorted(seen, reverse=True)


def test_a_slow_loop_is_not_stopped_by_less_than_a_late_tick():
    lateness = Lateness(LoopLimits(), 0.02)  # 50 Hz: the limits lie below its period
    assert set(rungs(lateness, 100, 0.019)) == {Rung.ON_TIME}


def test_limits_that_only_count_never_stop():
    lateness = Lateness(ONLY_COUNT, PERIOD_S)
    assert set(rungs(lateness, 5000, 1.0, 1.0)) == {Rung.LATE}
    assert lateness.late == 5000


@given(st.lists(st.tuples(
    st.sampled_from([0.0, 0.4e-3, 1.5e-3, 6e-3]), st.sampled_from([0.0, 1e-3, 1.2e-3, 5e-3]),
    st.integers(1, 60)), max_size=30))
def test_ticks_that_are_only_counted_change_nothing_of_the_rule(runs):
    limits = LoopLimits(brake_share=0.1, damp_share=0.3)
    lateness, memory = Lateness(limits, PERIOD_S), np.zeros(M_SIZE)
    for late_s, gap_s, count in runs:
        for _ in range(count):
            assert lateness.judge(late_s, gap_s) == judge(lateness.limits, memory, late_s, gap_s)
        assert lateness.share == pytest.approx(memory[0])
        assert (lateness.late, lateness.outcome) == (memory[1], memory[3])


def test_judging_leaves_no_object_behind():
    lateness = Lateness(LoopLimits(), PERIOD_S)
    times = [1e-4 * i for i in range(1300)]  # made before, and late ones among them
    for late_s in times[:300]:
        lateness.judge(late_s, PERIOD_S)
    before = sys.getallocatedblocks()
    for late_s in times[300:]:
        lateness.judge(late_s, PERIOD_S)
    assert abs(sys.getallocatedblocks() - before) < 10


def test_clear_forgets():
    lateness = Lateness(LoopLimits(), PERIOD_S)
    rungs(lateness, 1, 1.0)
    assert lateness.outcome == Rung.DAMP
    lateness.clear()
    assert lateness.judge(0.0, 0.0) == Rung.ON_TIME
    assert lateness.text == ""


@given(
    delays=st.lists(st.tuples(st.floats(), st.floats()), max_size=60),
)
def test_whatever_it_is_told_the_share_stays_a_share(delays):
    limits, memory = LoopLimits().array(PERIOD_S), np.zeros(M_SIZE)
    for late_s, gap_s in delays:
        assert judge(limits, memory, late_s, gap_s) in list(Rung)
        assert 0.0 <= memory[0] <= 1.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"window_s": 0.0}, "window_s is 0"),
        ({"brake_share": 0.6}, "damp_share 0.5 is below brake_share 0.6"),
        ({"window_s": 0.003}, "fewer than four periods"),
    ],
)
def test_limits_that_make_no_sense_are_refused(changes, words):
    with pytest.raises(LoopLimitsError, match=words):
        Lateness(LoopLimits(**changes), PERIOD_S)


# -- delay of an event-driven loop's own -----------------------------------------------------------
def test_the_wait_in_this_process_is_the_loops_own_and_the_way_there_is_not():
    delay = OwnDelay(PERIOD_S)
    delay.note(1.000, 1.030, 1.0299, 1)  # the network took 30 ms
    assert delay.late_s == pytest.approx(1e-4)
    delay.note(1.001, 1.035, 1.0301, 2)  # then the executor was busy
    assert delay.late_s == pytest.approx(4.9e-3)


def test_a_silent_driver_leaves_no_gap_and_skipped_states_do():
    delay = OwnDelay(PERIOD_S)
    delay.note(1.0, 1.0, 1.0, 7)
    assert delay.gap_s == 0.0
    delay.note(1.5, 1.5, 1.5, 8)
    assert delay.gap_s == 0.0, "the next one published, half a second later"
    delay.note(1.512, 1.512, 1.512, 20)
    assert delay.gap_s == pytest.approx(0.012), "eleven were published and never seen"


def test_numbers_never_explain_more_than_the_stamps_do():
    delay = OwnDelay(PERIOD_S)
    delay.note(1.000, 1.000, 1.000, 7)
    delay.note(1.001, 1.001, 1.001, 900_000)  # another publisher of the same topic
    assert delay.gap_s == pytest.approx(PERIOD_S)
    delay.note(1.002, 1.002, 1.002, 8)
    assert delay.gap_s == 0.0
    delay.note(2.0, 2.0, 2.0, 10)  # one lost, and a driver that was silent
    assert delay.gap_s == pytest.approx(2.5 * PERIOD_S)


def test_a_middleware_that_tells_nothing_makes_no_loop_late():
    delay = OwnDelay(PERIOD_S)
    for i in range(3):
        delay.note(1.0 + i, 1.0 + i, None, None)
        assert (delay.late_s, delay.gap_s) == (0.0, 0.0)


def test_a_late_loop_holds_new_motion_back_until_it_has_caught_up():
    lateness = Lateness(LoopLimits(), 0.001)
    assert lateness.holds_back == ""
    for _ in range(200):
        lateness.judge(0.0015, 0.001)
    assert "% of its periods" in lateness.holds_back
    for _ in range(1000):
        lateness.judge(0.0, 0.001)
    assert lateness.holds_back == ""
