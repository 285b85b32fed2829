"""MIT-mode frames against bytes worked out by hand from the field table."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from niaf_impedance.drives import DriveFault
from niaf_impedance.drives import mit_frames as mit

DM4310 = mit.MOTORS["DM4310"]
DM8009 = mit.MOTORS["DM8009"]
COMMAND = mit.MitCommand

# Counts by hand, e.g. position 1 on +-12.5: 13.5 / 25 * 65535 = 35388.9 -> 35389 = 0x8A3D.
GOLDENS = [
    # zero: 0x8000 | 0x800 | 0x000 | 0x000 | 0x800
    (DM4310, COMMAND(0.0, 0.0, 0.0, 0.0, 0.0), "8000800000000800"),
    # bottom of every range
    (DM4310, COMMAND(-12.5, -30.0, 0.0, 0.0, -10.0), "0000000000000000"),
    # top of every range
    (DM4310, COMMAND(12.5, 30.0, 500.0, 5.0, 10.0), "ffffffffffffffff"),
    # 0x8A3D | -2: 28/60*4095 = 1911.0 = 0x777 | 20: 163.8 -> 0x0A4 | 1: 819 = 0x333
    # | 1.5: 11.5/20*4095 = 2354.6 -> 2355 = 0x933
    (DM4310, COMMAND(1.0, -2.0, 20.0, 1.0, 1.5), "8a3d7770a4333933"),
    # -0.5: 12/25*65535 = 31456.8 -> 0x7AE1 | 10: 55/90*4095 = 2502.5 -> 2503 = 0x9C7
    # | 240: 1965.6 -> 1966 = 0x7AE | 2.5: 2047.5 -> 2048 = 0x800 | -20: 34/108*4095 = 0x509
    (DM8009, COMMAND(-0.5, 10.0, 240.0, 2.5, -20.0), "7ae19c77ae800509"),
]


@pytest.mark.parametrize(("ranges", "command", "expected"), GOLDENS)
def test_commands_equal_bytes_worked_out_by_hand(ranges, command, expected):
    data, clipped = mit.encode_command(ranges, command)
    assert data.hex() == expected
    assert clipped == ()


def test_special_and_parameter_frames_equal_bytes_worked_out_by_hand():
    assert mit.ENABLE.hex() == "fffffffffffffffc"
    assert mit.DISABLE.hex() == "fffffffffffffffd"
    assert mit.SET_ZERO.hex() == "fffffffffffffffe"
    assert mit.CLEAR_ERROR.hex() == "fffffffffffffffb"
    assert mit.read_register(0x03, mit.Register.TMAX).hex() == "0300331700000000"
    assert mit.request_state(0x105).hex() == "0501cc0000000000"
    assert mit.save_registers(0x03).hex() == "0300aa0000000000"
    # 8000 counts of 50 us = 400 ms = 0x1F40, little-endian
    assert mit.write_register(0x03, mit.Register.TIMEOUT, 8000).hex() == "03005509401f0000"
    # float32 of 12.5 is 0x41480000
    assert mit.write_register(0x03, mit.Register.PMAX, 12.5).hex() == "0300551500004841"
    answer = mit.decode_register(bytes.fromhex("0300331500004841"))
    assert answer == (3, mit.READ_REGISTER, 21, 12.5)


def test_reply_equals_bytes_worked_out_by_hand():
    # status 1, id 3 | 0x8A3D | 0x777 | 0x933 | 40 C | 55 C
    reply = mit.decode_reply(DM4310, bytes.fromhex("138a3d7779332837"))
    assert (reply.status, reply.id_low, reply.mosfet_c, reply.rotor_c) == (1, 3, 40, 55)
    assert reply.position == pytest.approx(35389 * 25 / 65535 - 12.5, abs=1e-12)
    assert reply.velocity == pytest.approx(1911 * 60 / 4095 - 30, abs=1e-12)
    assert reply.torque == pytest.approx(2355 * 20 / 4095 - 10, abs=1e-12)
    assert not reply.at_range_end
    assert mit.encode_reply(DM4310, 0x03, 1, 1.0, -2.0, 1.5, 40, 55).hex() == "138a3d7779332837"
    assert mit.decode_reply(DM4310, bytes.fromhex("13ffff7779332837")).at_range_end


@pytest.mark.parametrize("motor", mit.MOTORS)
def test_a_zero_request_is_half_a_count_and_gains_are_exactly_zero(motor):
    ranges = mit.MOTORS[motor]
    data, _ = mit.encode_command(ranges, COMMAND(0.0, 0.0, 0.0, 0.0, 0.0))
    sent = mit.decode_command(ranges, data)
    offset = mit.zero_offset(ranges)
    assert sent.kp == 0.0
    assert sent.kd == 0.0
    assert sent.torque == pytest.approx(offset.torque_nm, rel=1e-9)
    assert sent.velocity == pytest.approx(offset.velocity_rad_s, rel=1e-9)
    assert sent.position == pytest.approx(offset.position_rad, rel=1e-9)


def test_zero_offsets_have_the_documented_size():
    assert mit.zero_offset(DM4310).torque_nm == pytest.approx(2.44e-3, rel=0.01)
    assert mit.zero_offset(DM8009).torque_nm == pytest.approx(13.2e-3, rel=0.01)
    assert mit.zero_offset(DM8009).velocity_rad_s * 5.0 == pytest.approx(55e-3, rel=0.01)


def _value(low, high):
    return st.floats(low, high, allow_nan=False)


@settings(max_examples=300, deadline=None)
@given(
    motor=st.sampled_from(sorted(mit.MOTORS)),
    u=st.tuples(*(_value(0.0, 1.0) for _ in range(5))),
)
def test_round_trip_is_within_half_a_count_of_every_field(motor, u):
    r = mit.MOTORS[motor]
    asked = COMMAND(
        (2 * u[0] - 1) * r.position_rad,
        (2 * u[1] - 1) * r.velocity_rad_s,
        u[2] * r.kp_max,
        u[3] * r.kd_max,
        (2 * u[4] - 1) * r.torque_nm,
    )
    data, clipped = mit.encode_command(r, asked)
    sent = mit.decode_command(r, data)
    half = (
        r.position_rad / 65535,
        r.velocity_rad_s / 4095,
        r.kp_max / 8190,
        r.kd_max / 8190,
        r.torque_nm / 4095,
    )
    assert clipped == ()
    for a, s, h in zip(asked, sent, half, strict=True):
        assert abs(a - s) <= h * (1 + 1e-9)
    # what was decoded encodes to the same bytes again
    assert mit.encode_command(r, sent)[0] == data


@settings(max_examples=200, deadline=None)
@given(
    motor=st.sampled_from(sorted(mit.MOTORS)),
    p=_value(-3, 3),
    v=_value(-0.1, 0.1),
    kp=_value(0, 500),
    kd=_value(0, 5),
    share=_value(-0.5, 0.5),
)
def test_compensation_leaves_half_a_torque_count_at_zero_error(motor, p, v, kp, kd, share):
    r = mit.MOTORS[motor]
    torque = share * r.torque_nm
    out = bytearray(8)
    assert mit.pack_command(out, r, p, v, kp, kd, torque, compensate=True) == 0
    sent = mit.decode_command(r, out)
    applied = sent.kp * (sent.position - p) + sent.kd * (sent.velocity - v) + sent.torque
    assert abs(applied - torque) <= r.torque_nm / 4095 * (1 + 1e-6)


def test_a_zero_request_with_full_damping_is_compensated():
    # DM8009 at kd 5: 55 mNm from the velocity's half count alone, less than 14 mNm after.
    out = bytearray(8)
    for compensate, largest in ((False, 0.07), (True, 0.0132)):
        mit.pack_command(out, DM8009, 0.0, 0.0, 0.0, 5.0, 0.0, compensate=compensate)
        sent = mit.decode_command(DM8009, out)
        assert abs(sent.kd * sent.velocity + sent.torque) < largest


@pytest.mark.parametrize(
    ("command", "fields"),
    [
        (COMMAND(13.0, 0, 0, 0, 0), ("position",)),
        (COMMAND(0, -31.0, 0, 0, 0), ("velocity",)),
        (COMMAND(0, 0, 501.0, 8.0, 0), ("kp", "kd")),
        (COMMAND(0, 0, -1.0, -0.1, 0), ("kp", "kd")),
        (COMMAND(0, 0, 0, 0, 10.01), ("torque",)),
        (COMMAND(-99, 99, 999, 9, -99), ("position", "velocity", "kp", "kd", "torque")),
    ],
)
def test_saturation_is_reported_and_clipped_to_the_nearest_end(command, fields):
    data, clipped = mit.encode_command(DM4310, command)
    assert clipped == fields
    ends = {
        "position": 12.5,
        "velocity": 30.0,
        "torque": 10.0,
    }
    sent = mit.decode_command(DM4310, data)
    for field, end in ends.items():
        if field in fields:
            assert getattr(sent, field) == pytest.approx(
                math.copysign(end, getattr(command, field)), rel=1e-9
            )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", range(5))
def test_values_that_are_not_finite_never_become_a_frame(value, field):
    values = [0.0] * 5
    values[field] = value
    out = bytearray(b"untouched")[:8]
    with pytest.raises(ValueError, match="not finite"):
        mit.pack_command(out, DM4310, *values)
    assert out == bytearray(b"untouche")


def test_no_command_is_mistaken_for_a_special_frame():
    # All fields at the top and a torque some counts lower is "set zero" or "disable" by bytes.
    step = 20.0 / 4095
    for counts in range(8):
        data, _ = mit.encode_command(DM4310, COMMAND(12.5, 30, 500, 5, 10 - counts * step))
        assert data not in mit.SPECIAL
        sent = mit.decode_command(DM4310, data)
        assert sent.torque == pytest.approx(10 - counts * step)
        assert sent.kd >= 5.0 - 5.0 / 4095 - 1e-12


@pytest.mark.parametrize(
    ("nibble", "name"),
    [
        (0x0, "DISABLED"),
        (0x1, "NONE"),
        (0x5, "SENSOR"),
        (0x6, "PARAMETER"),
        (0x8, "OVER_VOLTAGE"),
        (0x9, "UNDER_VOLTAGE"),
        (0xA, "OVER_CURRENT"),
        (0xB, "MOSFET_HOT"),
        (0xC, "COIL_HOT"),
        (0xD, "LOST_COMMUNICATION"),
        (0xE, "OVERLOAD"),
        (0x7, "UNKNOWN_STATUS"),
        (0xF, "UNKNOWN_STATUS"),
    ],
)
def test_every_status_nibble_has_a_named_fault(nibble, name):
    assert mit.status_fault(nibble) is DriveFault[name]


@pytest.mark.parametrize("length", [0, 7, 9])
def test_frames_of_a_wrong_length_are_refused(length):
    for decode in (mit.decode_reply, mit.decode_command):
        with pytest.raises(ValueError, match=f"{length} bytes"):
            decode(DM4310, bytes(length))
    with pytest.raises(ValueError, match=f"{length} bytes"):
        mit.decode_register(bytes(length))
