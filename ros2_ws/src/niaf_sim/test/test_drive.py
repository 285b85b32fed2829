"""The drive model behaves as a FOC drive: lag, saturation, quantisation, observer, watchdog."""

import numpy as np
import pytest

from niaf_sim.drive import DriveBank, DriveConfig

DT_S = 0.0005


def one_joint(**changes):
    return DriveBank(DriveConfig(torque_limit_nm=(10.0,), watchdog_damping_nms=(5.0,), **changes))


def run(drive, position, seconds, torque=None):
    for k in range(round(seconds / DT_S)):
        if torque is not None:
            drive.command(np.array([torque]))
        drive.step(DT_S, np.array([position(k * DT_S)]))


def test_torque_follows_the_request_with_the_current_loops_time_constant():
    drive = one_joint(current_loop_s=0.002)
    drive.reset(np.zeros(1))
    run(drive, lambda t: 0.0, 0.002, torque=1.0)
    assert drive.torque_nm[0] == pytest.approx(1.0 - np.exp(-1.0), rel=1e-6)


@pytest.mark.parametrize("request_nm", [1e3, -1e3, np.inf, -np.inf, np.nan])
def test_torque_never_passes_the_limit_and_is_always_finite(request_nm):
    drive = one_joint()
    drive.reset(np.zeros(1))
    run(drive, lambda t: 0.0, 0.05, torque=request_nm)
    assert np.isfinite(drive.torque_nm[0])
    assert abs(drive.torque_nm[0]) <= 10.0


def test_position_is_quantised_to_the_encoder():
    drive = one_joint(encoder_counts=4096)
    drive.reset(np.zeros(1))
    lsb = 2 * np.pi / 4096
    drive.step(DT_S, np.array([10.4 * lsb]))
    assert drive.q[0] == pytest.approx(10 * lsb)
    drive.step(DT_S, np.array([10.6 * lsb]))
    assert drive.q[0] == pytest.approx(11 * lsb)


def test_velocity_estimate_converges_on_a_ramp_and_lags_a_step():
    drive = one_joint()
    drive.reset(np.zeros(1))
    run(drive, lambda t: 0.7 * t, 0.001)
    assert drive.dq[0] < 0.35  # lag: an observer, not a difference
    run(drive, lambda t: 0.7 * (t + 0.001), 0.2)
    assert drive.dq[0] == pytest.approx(0.7, abs=0.03)


def test_velocity_ripple_comes_from_quantisation():
    coarse, fine = one_joint(encoder_counts=4096), one_joint(encoder_counts=2**22)
    ripple = []
    for drive in (coarse, fine):
        drive.reset(np.zeros(1))
        values = []
        for k in range(1000):
            drive.step(DT_S, np.array([0.3 * k * DT_S]))
            values.append(drive.dq[0])
        ripple.append(np.std(values[500:]))
    assert ripple[0] > 20 * ripple[1]


def test_watchdog_damps_instead_of_holding_the_last_torque():
    drive = one_joint(watchdog_s=0.02)
    drive.reset(np.zeros(1))
    drive.command(np.array([5.0]))
    run(drive, lambda t: 0.5 * t, 0.019)
    assert not drive.watchdog_tripped and drive.torque_nm[0] > 4.0
    run(drive, lambda t: 0.5 * (t + 0.019), 0.2)
    assert drive.watchdog_tripped
    assert drive.torque_nm[0] == pytest.approx(-5.0 * 0.5, rel=0.1)
    drive.command(np.array([1.0]))
    run(drive, lambda t: 0.1, 0.01)
    assert not drive.watchdog_tripped and drive.torque_nm[0] == pytest.approx(1.0, rel=1e-3)


def test_damping_needs_one_value_per_joint():
    with pytest.raises(ValueError, match="2 entries for 1 joints"):
        DriveBank(DriveConfig(torque_limit_nm=(1.0,), watchdog_damping_nms=(1.0, 2.0)))
