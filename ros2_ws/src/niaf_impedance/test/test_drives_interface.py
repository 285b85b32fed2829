"""Joint mapping, bus arithmetic and the fault list."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from niaf_impedance.drives import DriveFault, DriveState, JointMap
from niaf_impedance.drives.bus_load import BitRates, bus_load, frame_s
from niaf_impedance.drives.interface import DRIVE_FAULT_TEXT, describe_faults, render_markdown
from niaf_impedance.faults import Fault

FD = BitRates(1e6, 5e6)


@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("gear", [1.0, 2.5])
def test_joint_map_keeps_power_stiffness_and_inverts_itself(direction, gear):
    m = JointMap(direction, gear, 0.3)
    q, dq, tau, kp, kd, error = 0.7, -1.2, 4.0, 60.0, 2.0, 0.05
    assert m.joint_position(m.motor_position(q)) == pytest.approx(q)
    assert m.joint_velocity(m.motor_velocity(dq)) == pytest.approx(dq)
    assert m.joint_torque(m.motor_torque(tau)) == pytest.approx(tau)
    assert m.motor_torque(tau) * m.motor_velocity(dq) == pytest.approx(tau * dq)
    # the motor's law, seen at the joint, has the joint's gains
    motor_error = m.motor_position(q + error) - m.motor_position(q)
    assert m.joint_torque(m.motor_gain(kp) * motor_error) == pytest.approx(kp * error)
    assert m.joint_torque(m.motor_gain(kd) * m.motor_velocity(dq)) == pytest.approx(kd * dq)
    assert m.joint_gain(m.motor_gain(kp)) == pytest.approx(kp)


def test_joint_map_signs_are_those_of_its_definition():
    m = JointMap(-1, 2.0, 0.5)
    assert m.joint_position(1.0) == 0.0  # -1 / 2 + 0.5
    assert m.motor_position(1.0) == -1.0
    assert m.joint_velocity(2.0) == -1.0
    assert m.motor_torque(4.0) == -2.0


@pytest.mark.parametrize("bad", [{"direction": 0}, {"gear": 0.0}, {"gear": -1.0}, {"gear": np.nan}])
def test_joint_map_refuses_what_is_no_map(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        JointMap(**bad)


def test_frame_times_match_the_bit_count_of_the_standard():
    assert frame_s(8, BitRates(1e6), worst_case=False) == pytest.approx(111e-6)
    assert frame_s(8, BitRates(1e6)) == pytest.approx(135e-6)
    assert frame_s(8, BitRates(1e6), extended=True) == pytest.approx(160e-6)
    # FD, 8 bytes: 29 nominal bits + 97 data bits without dynamic stuffing
    assert frame_s(8, FD, worst_case=False) == pytest.approx(29e-6 + 97 / 5 * 1e-6)


def test_bus_ceilings_agree_with_published_estimates():
    # i2rt's 130 bits a frame give 640, 550, 480 Hz for 6, 7, 8 motors on 1 Mbit/s
    for motors, published_hz in ((6, 640), (7, 550), (8, 480)):
        lowest = bus_load(motors, 100.0, BitRates(1e6)).max_rate_hz
        highest = bus_load(motors, 100.0, BitRates(1e6), worst_case=False).max_rate_hz
        assert lowest < published_hz < highest
    # Damiao's claim for 1/5 Mbit/s: nine motors at 1 kHz
    assert bus_load(9, 1000.0, FD).load == pytest.approx(1.0, abs=0.05)
    assert bus_load(7, 1000.0, FD).load < 0.9


def test_payloads_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="classic"):
        frame_s(9, BitRates(1e6))
    with pytest.raises(ValueError, match="64"):
        frame_s(65, FD)


def test_every_fault_has_a_text_and_a_number_of_its_own():
    assert set(DRIVE_FAULT_TEXT) == set(DriveFault)
    assert not {int(f) for f in DriveFault if f} & {int(f) for f in Fault if f}


def test_unknown_state_is_not_mistaken_for_a_measurement():
    state = DriveState.unknown(2)
    assert not state.ok
    assert np.isnan(state.q).all()
    assert np.isnan(state.age_s(5.0)).all()
    assert "a: 101 MISSING_REPLY" in describe_faults(state, ("a", "b"))
    kept = state.copy()
    state.q[:] = 1.0
    assert np.isnan(kept.q).all()


def test_fault_table_of_the_docs_is_the_one_in_the_code():
    for parent in Path(__file__).resolve().parents:
        page = parent / "docs" / "drives.md"
        if page.is_file():
            assert render_markdown() in page.read_text()
            return
    pytest.skip("docs are not beside an installed package")
