"""One-axis inertias held through real frames both ways: torque on the host, gains in the drive."""

from __future__ import annotations

import numpy as np
import pytest
from drives_support import Rig

from niaf_impedance.drives import DriveCommand

DT_S = 0.001
INERTIA = np.array([0.5, 0.3, 0.05])  # kg m2
LOAD_NM = np.array([3.0, -2.0, 0.5])  # constant load, as gravity would be


def _run(rig: Rig, control, seconds: float) -> None:
    """Control at 1 kHz, plant in steps of 0.1 ms against the drives' own loops."""
    command = DriveCommand.zeros(3)
    for _ in range(round(seconds / DT_S)):
        state = rig.drive.read()
        assert state.ok
        control(state, command)
        assert rig.drive.write(command).saturations == ()
        for _ in range(10):
            rig.clock.advance(DT_S / 10)
            acceleration = (rig.emulator.step() - LOAD_NM) / INERTIA
            rig.dq += acceleration * DT_S / 10
            rig.q += rig.dq * DT_S / 10


@pytest.fixture
def rig():
    rig = Rig()
    rig.drive.enable()
    rig.q += [0.1, -0.1, 0.08]
    yield rig
    rig.close()


TARGET = np.array([0.4, -0.5, 0.6])
KP = np.array([25.0, 30.0, 20.0])
KD = 2.0 * 0.7 * np.sqrt(KP * INERTIA)  # within the 5 Nms/rad of the frame


def test_host_torque_holds_inertias_under_load(rig):
    def control(state, command):
        command.tau_ff[:] = KP * (TARGET - state.q) - KD * state.dq + LOAD_NM

    _run(rig, control, 1.5)
    assert rig.q == pytest.approx(TARGET, abs=2e-3)
    # 12-bit velocity feedback: what is left is a few counts
    assert np.abs(rig.dq).max() < 0.03


def test_gains_in_the_drive_hold_inertias_under_load(rig):
    def control(state, command):
        command.q[:], command.kp[:], command.kd[:], command.tau_ff[:] = TARGET, KP, KD, LOAD_NM

    _run(rig, control, 1.5)
    assert rig.q == pytest.approx(TARGET, abs=1e-3)
    assert np.abs(rig.dq).max() < 1e-3


def test_gains_in_the_drive_follow_a_moving_reference(rig):
    rig.q[:] = TARGET
    t = 0.0
    errors = []

    def control(state, command):
        nonlocal t
        t += DT_S
        command.q[:] = TARGET + 0.2 * (1 - np.cos(2 * t))
        command.dq[:] = 0.4 * np.sin(2 * t)
        command.tau_ff[:] = LOAD_NM + INERTIA * 0.8 * np.cos(2 * t)
        command.kp[:], command.kd[:] = KP, KD
        errors.append(np.abs(command.q - state.q).max())

    _run(rig, control, 1.0)
    assert max(errors) < 2e-3


def test_a_host_that_dies_leaves_the_motors_damped(rig):
    rig.dq[:] = [1.0, -1.0, 1.0]
    rig.drive.write(DriveCommand.zeros(3))
    for _ in range(1000):
        rig.clock.advance(0.0005)
        rig.dq += rig.emulator.step() / INERTIA * 0.0005
    assert np.abs(rig.dq).max() < 0.7  # half a second of 0.5 Nms/rad
    assert {m.status for m in rig.motors} == {0xD}
