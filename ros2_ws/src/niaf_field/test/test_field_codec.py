"""Codec round trip, and every refusal with its own clear text."""

from __future__ import annotations

import array
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from niaf_field import (
    CodecError,
    FieldLimits,
    ModulationError,
    RefusalReason,
    check_field,
    diagnose_field,
    field_from_message,
    fold,
    from_message,
    make_field_message,
    shift_field,
    stamp_from_time,
    time_from_stamp,
    to_message,
)

NOW_S = 1000.0
LIMITS = FieldLimits()


def blank_message():
    """What an empty niaf_msgs ActionField looks like."""
    return SimpleNamespace(
        header=SimpleNamespace(stamp=SimpleNamespace(sec=0, nanosec=0), frame_id=""),
        sequence=0,
        prior_id="",
        start=SimpleNamespace(sec=0, nanosec=0),
        horizon=0.0,
        gamma=array.array("f"),
        beta=array.array("f"),
        anchor=array.array("d"),
        instruction="",
        observation_age_s=0.0,
        inference_s=0.0,
    )


@pytest.fixture(scope="module")
def prior(make_prior):
    return make_prior(H=8)


@pytest.fixture(scope="module")
def good(prior, modulate):
    gamma, beta, anchor = modulate(prior)
    return make_field_message(
        prior,
        gamma,
        beta,
        anchor,
        stamp_s=NOW_S - 0.125,
        sequence=7,
        frame_id="panda_link0",
        instruction="pick up the red cube",
        observation_age_s=0.11,
        inference_s=0.08,
    )


def test_good_field_is_accepted(good, prior):
    assert check_field(good, prior, NOW_S, LIMITS) is None
    assert diagnose_field(good, prior, NOW_S, LIMITS, previous=None) is None
    assert good.start_s == good.stamp_s
    assert good.horizon_s == prior.horizon_s


def test_round_trip_keeps_every_value(good):
    message = to_message(blank_message(), good)
    assert isinstance(message.gamma, array.array), "the fast path of rclpy"
    back = from_message(message)
    for name in vars(good):
        sent, received = getattr(good, name), getattr(back, name)
        if isinstance(sent, np.ndarray):
            assert received.dtype == sent.dtype
            np.testing.assert_array_equal(received, sent)
        else:
            assert received == sent, name
            assert type(received) is type(sent), name


def test_decoded_arrays_are_copies(good):
    message = to_message(blank_message(), good)
    back = from_message(message)
    message.gamma[0] = 99.0
    np.testing.assert_array_equal(back.gamma, good.gamma)


def test_lists_and_arrays_decode_as_well(good):
    message = to_message(blank_message(), good)
    message.gamma, message.anchor = list(message.gamma), np.array(message.anchor)
    back = from_message(message)
    np.testing.assert_array_equal(back.gamma, good.gamma)
    np.testing.assert_array_equal(back.anchor, good.anchor)


def test_folding_a_decoded_message_gives_the_field_that_was_sent(good, prior):
    field = field_from_message(from_message(to_message(blank_message(), good)), prior)
    np.testing.assert_array_equal(
        field.folded.weights, fold(prior, good.gamma, good.beta, good.anchor).weights
    )
    assert (field.start_s, field.horizon_s) == (good.start_s, good.horizon_s)
    assert (field.sequence, field.stamp_s) == (7, good.stamp_s)
    assert field.prior_id == prior.prior_id


def test_real_message_type_round_trips(good):
    msgs = pytest.importorskip("niaf_msgs.msg", reason="niaf_msgs is not built in this environment")
    back = from_message(to_message(msgs.ActionField(), good))
    np.testing.assert_array_equal(back.gamma, good.gamma)
    assert (back.stamp_s, back.sequence, back.prior_id) == (good.stamp_s, 7, good.prior_id)


def test_epoch_keeps_nanoseconds_of_present_day_times():
    epoch_sec = 1_790_000_000
    stamp = SimpleNamespace(sec=epoch_sec + 12, nanosec=123_456_789)
    time_s = time_from_stamp(stamp, epoch_sec)
    assert time_s == pytest.approx(12.123456789, abs=1e-12)
    assert stamp_from_time(time_s, epoch_sec) == (stamp.sec, stamp.nanosec)


@given(sec=st.integers(-1000, 100_000), nanosec=st.integers(0, 999_999_999))
def test_stamps_survive_the_trip_through_float_seconds(sec, nanosec):
    stamp = SimpleNamespace(sec=sec, nanosec=nanosec)
    assert stamp_from_time(time_from_stamp(stamp)) == (sec, nanosec)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e12])
def test_times_that_cannot_be_sent_are_refused_by_name(good, bad):
    with pytest.raises(CodecError, match="start: a time of"):
        to_message(blank_message(), replace(good, start_s=bad))


def _spoilt(values, value):
    copy = values.copy()
    copy[2] = value
    return copy


R = RefusalReason
REFUSALS = [
    (R.PRIOR_MISMATCH, lambda m: {"prior_id": "0" * 64}, r"prior_id is 000000000000\.\.\."),
    (R.PRIOR_MISMATCH, lambda m: {"prior_id": ""}, "prior_id is empty"),
    (R.GAMMA_LENGTH, lambda m: {"gamma": m.gamma[:-1]}, "gamma has 135 values, .* needs 136"),
    (R.GAMMA_LENGTH, lambda m: {"gamma": m.gamma[:0]}, "gamma has 0 values"),
    (R.BETA_LENGTH, lambda m: {"beta": m.beta[:3]}, "beta has 3 values, the prior needs 24"),
    (R.ANCHOR_LENGTH, lambda m: {"anchor": np.zeros(5)}, "anchor has 5 values, .* needs 3"),
    (R.NOT_FINITE, lambda m: {"gamma": _spoilt(m.gamma, np.nan)}, r"gamma\[2\] is nan"),
    (R.NOT_FINITE, lambda m: {"beta": _spoilt(m.beta, -np.inf)}, r"beta\[2\] is -inf"),
    (R.NOT_FINITE, lambda m: {"anchor": _spoilt(m.anchor, np.nan)}, r"anchor\[2\] is nan"),
    (R.NOT_FINITE, lambda m: {"horizon_s": float("nan")}, "horizon is nan s"),
    (R.NOT_FINITE, lambda m: {"start_s": float("inf")}, "start is inf s"),
    (R.NOT_FINITE, lambda m: {"stamp_s": float("nan")}, "stamp is nan s"),
    (R.MODULATION_TOO_LARGE, lambda m: {"gamma": _spoilt(m.gamma, 1e6)}, "gamma reaches 1e.06"),
    (R.BAD_HORIZON, lambda m: {"horizon_s": 0.0}, "horizon is 0 s, allowed are 0.05 to 30 s"),
    (R.BAD_HORIZON, lambda m: {"horizon_s": -1.0}, "horizon is -1 s"),
    (R.BAD_HORIZON, lambda m: {"horizon_s": 1e4}, "horizon is 10000 s"),
    (R.START_IN_FUTURE, lambda m: {"start_s": NOW_S + 2.0}, r"start lies 2\.000 s ahead"),
    (R.STAMP_IN_FUTURE, lambda m: {"stamp_s": NOW_S + 0.5}, r"stamp lies 0\.500 s ahead"),
    (R.EXHAUSTED, lambda m: {"start_s": NOW_S - 60.0}, r"ended 58\.700 s ago"),
    (R.START_IN_PAST, lambda m: {"start_s": NOW_S - 0.8}, r"started 0\.800 s ago"),
    (R.STAMP_TOO_OLD, lambda m: {"stamp_s": NOW_S - 3.0}, r"observation is 3\.000 s old"),
]


@pytest.mark.parametrize(("reason", "change", "text"), REFUSALS)
def test_bad_field_is_refused_with_its_reason_and_a_clear_text(good, prior, reason, change, text):
    import re

    bad = replace(good, **change(good))
    assert check_field(bad, prior, NOW_S, LIMITS) is reason
    found = diagnose_field(bad, prior, NOW_S, LIMITS)
    assert found is not None
    assert found[0] is reason
    assert re.search(text, found[1]), found[1]
    assert "field 7" in found[1]


def test_older_observation_after_a_newer_one_is_out_of_order(good, prior):
    newer = replace(good, stamp_s=good.stamp_s + 0.05, sequence=6)
    assert check_field(good, prior, NOW_S, LIMITS, newer) is R.OUT_OF_ORDER
    assert check_field(good, prior, NOW_S, LIMITS, good) is R.OUT_OF_ORDER, "a repeated field"
    found = diagnose_field(good, prior, NOW_S, LIMITS, newer)
    assert found is not None
    assert "0.050 s older" in found[1]


def test_a_restarted_policy_that_counts_from_one_is_heard(good, prior):
    restarted = replace(good, stamp_s=good.stamp_s + 0.05, sequence=1)
    assert check_field(restarted, prior, NOW_S, LIMITS, good) is None
    assert check_field(replace(good, sequence=8), prior, NOW_S, LIMITS, good) is None


def test_previous_may_be_an_action_field(good, prior):
    field = field_from_message(good, prior)
    assert check_field(good, prior, NOW_S, LIMITS, field) is R.OUT_OF_ORDER


def test_every_reason_has_a_test():
    tested = {reason for reason, _, _ in REFUSALS} | {R.OUT_OF_ORDER}
    assert tested == set(RefusalReason)


def test_reason_numbers_are_fixed():
    """Recordings hold these numbers: add new ones, never renumber."""
    assert [int(reason) for reason in RefusalReason] == list(range(1, 14))
    assert R.PRIOR_MISMATCH == 1
    assert R.OUT_OF_ORDER == 13


def test_edges_of_the_limits_are_accepted(good, prior):
    for change in (
        {"start_s": NOW_S + 0.05},
        {"start_s": NOW_S - 0.5},
        {"stamp_s": NOW_S - 0.5},
        {"horizon_s": 30.0},
        {"stamp_s": NOW_S + 0.05},
    ):
        assert check_field(replace(good, **change), prior, NOW_S, LIMITS) is None, change


def test_shifted_field_is_the_same_field_later(good, prior):
    shifted = shift_field(good, 50.0)
    assert shifted.stamp_s == good.stamp_s + 50.0
    assert check_field(shifted, prior, NOW_S + 50.0, LIMITS) is None


def test_policy_side_refuses_its_own_broken_output(prior, good):
    with pytest.raises(ModulationError, match="gamma has shape"):
        make_field_message(prior, [0.0], good.beta, good.anchor, stamp_s=0.0, sequence=1)
    with pytest.raises(ModulationError, match=r"beta\[2\] is nan"):
        make_field_message(
            prior, good.gamma, _spoilt(good.beta, np.nan), good.anchor, stamp_s=0.0, sequence=1
        )


def test_foreign_message_and_foreign_prior_are_codec_errors(good, make_prior):
    with pytest.raises(CodecError, match="SimpleNamespace is not an ActionField message"):
        from_message(SimpleNamespace(data=1))
    with pytest.raises(CodecError, match="call check_field before folding"):
        field_from_message(good, make_prior(H=4))


@pytest.mark.parametrize(
    "change", [{"max_age_s": -1.0}, {"min_horizon_s": 0.0}, {"max_horizon_s": float("nan")}]
)
def test_limits_that_make_no_sense_are_refused(change):
    with pytest.raises(CodecError, match="field limit"):
        FieldLimits(**change)
