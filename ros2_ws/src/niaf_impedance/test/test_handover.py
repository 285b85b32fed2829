"""Hand-over: the commanded position, velocity and acceleration stay continuous, exactly."""

import numpy as np
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from impedance_support import make_field, make_spline

from niaf_impedance import ControllerConfig, ImpedanceController, Mode, tick

ADMIT_ALL = ControllerConfig(
    admit_velocity_ratio=1e9, admit_acceleration_ratio=1e9, admit_torque_ratio=1e9,
    seam_position_limit_rad=10.0, seam_velocity_limit_rad_s=100.0, tracking_error_limit_rad=10.0,
)
FINE_S = 2e-5


@example(gaps=[0.02, 1.3, 1.3], kinds=["field", "field", "field_late"] + ["field"] * 5, seed=0)
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    gaps=st.lists(st.sampled_from([0.005, 0.02, 0.05, 0.09, 0.11, 0.3, 0.7, 1.3]), min_size=2,
                  max_size=8),
    kinds=st.lists(st.sampled_from(["field", "spline", "field_late", "spline_ahead"]), min_size=8,
                   max_size=8),
    seed=st.integers(0, 10_000),
)
def test_no_step_at_any_arrival_time(arm, prior, gaps, kinds, seed):
    """Dense ticks around each arrival: each derivative changes by no more than its slope allows."""
    controller = ImpedanceController(ADMIT_ALL, arm, prior)
    home = arm.config.home_rad
    t = 0.0
    controller.activate(t, home, np.zeros(7))
    zero = np.zeros(7)
    controller.tick(t, home, zero)
    for number, (gap, kind) in enumerate(zip(gaps, kinds, strict=False)):
        if kind == "spline":
            reference = make_spline(home, t, number + 1, seed + number)
        elif kind == "spline_ahead":
            reference = make_spline(home, t + 0.03, number + 1, seed + number)
        else:
            late = 0.2 if kind == "field_late" else 0.0
            reference = make_field(prior, home, t - late, number + 1, seed + number)
        before = np.stack(
            [controller.telemetry.q_ref, controller.telemetry.dq_ref, controller.telemetry.ddq_ref]
        )
        if controller.offer(t, reference).accepted:
            assert controller.mode == Mode.TRACK
        # the instants right after the arrival, where a kink would show
        for _ in range(3):
            t += FINE_S
            controller.tick(t, controller.telemetry.q_ref.copy(), zero)
            tel = controller.telemetry
            after = np.stack([tel.q_ref, tel.dq_ref, tel.ddq_ref])
            # a blend over 0.1 s of references d apart has jerk up to 60 d / 0.1^3 rad/s^3
            np.testing.assert_allclose(after[0], before[0] + FINE_S * before[1], atol=1e-7)
            np.testing.assert_allclose(after[1], before[1] + FINE_S * before[2], atol=1e-5)
            np.testing.assert_allclose(after[2], before[2], atol=FINE_S * 5e4)
            before = after
        # and every millisecond until the next arrival
        end = t + gap
        while t < end:
            t += 0.001
            controller.tick(t, controller.telemetry.q_ref.copy(), zero)
            tel = controller.telemetry
            after = np.stack([tel.q_ref, tel.dq_ref, tel.ddq_ref])
            trapezium = before[0] + 0.0005 * (before[1] + after[1])
            np.testing.assert_allclose(after[0], trapezium, atol=2e-5)
            trapezium = before[1] + 0.0005 * (before[2] + after[2])
            np.testing.assert_allclose(after[1], trapezium, atol=2e-2)
            before = after
        assert controller.mode in (Mode.TRACK, Mode.BRAKE, Mode.HOLD)
    s = controller.statistics
    assert s.seam_position_peak_rad < 1e-12
    assert s.seam_velocity_peak_rad_s < 1e-11
    assert s.seam_acceleration_peak_rad_s2 < 1e-9


def test_arrival_inside_a_running_blend_keeps_the_blend(holding, prior):
    """Three references at once are kept exactly; a fourth starts from a bridge."""
    controller, plant = holding
    q, zero = plant.q, np.zeros(7)
    counts = []
    t = 0.0
    for i in range(5):
        assert controller.offer(t, make_field(prior, q, t, i + 1, i, 0.05)).accepted
        counts.append(int(controller._si[tick.SI_COUNT]))
        for _ in range(20):
            t += 0.001
            controller.tick(t, controller.telemetry.q_ref.copy(), zero)
    assert counts == [2, 3, 2, 3, 2]
    assert controller.statistics.seam_acceleration_peak_rad_s2 < 1e-9


def test_after_the_blend_the_reference_is_the_field_itself(holding, prior):
    controller, plant = holding
    field = make_field(prior, plant.q, 0.0, 1, strength=0.1)
    assert controller.offer(0.0, field).accepted
    for i in range(1, 300):
        controller.tick(0.001 * i, controller.telemetry.q_ref.copy(), plant.dq)
    jet = field.jet(0.299, 2)
    np.testing.assert_array_equal(controller.telemetry.q_ref, jet[0, :7])
    np.testing.assert_array_equal(controller.telemetry.ddq_ref, jet[2, :7])
    assert not controller.blending


def test_reference_that_starts_later_is_entered_when_it_starts(holding):
    controller, plant = holding
    spline = make_spline(plant.q, 0.2, 1, velocity=np.full(7, 0.05))
    assert controller.offer(0.0, spline).accepted
    zero = np.zeros(7)
    for i in range(1, 201):
        controller.tick(0.001 * i, plant.q, zero)
    np.testing.assert_allclose(controller.telemetry.q_ref, plant.q, atol=1e-12)
    for i in range(201, 360):
        controller.tick(0.001 * i, controller.telemetry.q_ref.copy(), zero)
    np.testing.assert_allclose(controller.telemetry.q_ref, spline.jet(0.359, 0)[0, :7], atol=1e-12)
