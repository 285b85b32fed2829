"""A field whose hand-over alone passes a limit is let in over a longer blend."""

import numpy as np
import pytest

from niaf_field.reference import spline_reference
from niaf_impedance.admission import Reason
from niaf_impedance.arm_model import ArmModel
from niaf_impedance.controller import ControllerConfig, ImpedanceController
from niaf_impedance.robot_config import default_robot_config_path

DT_S = 0.001


@pytest.fixture(scope="module")
def arm():
    return ArmModel.from_yaml(default_robot_config_path())


def controller_at_home(arm, **settings):
    controller = ImpedanceController(ControllerConfig(**settings), arm)
    controller.activate(0.0, arm.config.home_rad, np.zeros(arm.n))
    for k in range(5):
        controller.tick(k * DT_S, arm.config.home_rad, np.zeros(arm.n))
    return controller


def stepping_reference(arm, step_rad):
    """Stands ``step_rad`` away from home on joint 2 and stays there."""
    goal = np.append(arm.config.home_rad, 0.08)
    goal[1] += step_rad
    return spline_reference([0.0, 2.0], np.stack([goal, goal]), sequence=1, stamp_s=0.0)


@pytest.mark.parametrize(("step_rad", "blend_s"), [(0.01, 0.15), (0.08, 0.3), (0.3, 0.4)])
def test_a_larger_step_gets_a_longer_blend(arm, step_rad, blend_s):
    controller = controller_at_home(arm)
    verdict = controller.offer(0.004, stepping_reference(arm, step_rad))
    assert verdict.accepted
    assert verdict.blend_s == pytest.approx(blend_s)


def test_the_longer_blend_keeps_the_commanded_reference_within_the_admitted_acceleration(arm):
    controller = controller_at_home(arm)
    verdict = controller.offer(0.004, stepping_reference(arm, 0.2))
    assert verdict.accepted and verdict.blend_s > controller.config.blend_s
    limit = arm.limits.acceleration_rad_s2 * controller.config.admit_acceleration_ratio
    for k in range(5, 600):
        controller.tick(k * DT_S, controller.telemetry.q_ref.copy(), np.zeros(arm.n))
        assert np.all(np.abs(controller.telemetry.ddq_ref) <= limit * 1.001)


def test_without_room_for_a_longer_blend_the_field_is_refused(arm):
    controller = controller_at_home(arm, blend_s=0.1, blend_max_s=0.1)
    verdict = controller.offer(0.004, stepping_reference(arm, 0.08))
    assert not verdict.accepted
    assert verdict.reason == Reason.ACCELERATION_LIMIT
