"""What messages say about the tool: poses against scipy and pinocchio, error, wrench."""

import numpy as np
import pinocchio
import pytest
from impedance_support import Plant, run
from scipy.spatial.transform import Rotation
from test_cartesian_control import anchor_of, make_tool_field, make_tool_prior

from niaf_impedance import ControllerConfig, Fault, ImpedanceController, Mode
from niaf_impedance.cartesian import CP_DAMPING, CP_STIFFNESS
from niaf_impedance.tool_state import _BASE, ToolState, pose_of_motion
from niaf_impedance.tool_task import NOW


@pytest.fixture(scope="module")
def tool_prior():
    return make_tool_prior()


@pytest.fixture
def tracking(arm, tool_prior):
    """(controller, plant, tool) half-way through a field."""
    controller = ImpedanceController(ControllerConfig(), arm, tool_prior)
    plant = Plant(arm, arm.config.home_rad)
    controller.activate(0.0, plant.q, plant.dq)
    tool = ToolState(controller)
    field = make_tool_field(tool_prior, anchor_of(arm, plant.q), 0.0, 1, strength=0.3)
    assert controller.offer(0.0, field).accepted
    run(controller, plant, 0.4)
    return controller, plant, tool


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-4, 1.0, np.pi - 1e-9, np.pi])
def test_quaternions_are_those_of_scipy(angle):
    axis = np.array([0.6, 0.0, -0.8])
    motion = np.zeros(24)
    expected = Rotation.from_rotvec(angle * axis)
    motion[:9], motion[9:12] = expected.as_matrix().ravel(), (1.0, 2.0, 3.0)
    pose = np.zeros(7)
    pose_of_motion(motion, _BASE, pose)
    np.testing.assert_array_equal(pose[:3], (1.0, 2.0, 3.0))
    assert np.linalg.norm(pose[3:]) == pytest.approx(1.0, abs=1e-12)
    assert pose[6] >= -1e-12
    np.testing.assert_allclose(
        Rotation.from_quat(pose[3:]).as_matrix(), expected.as_matrix(), atol=1e-9)


def test_the_measured_pose_is_that_of_pinocchio(arm, tracking):
    controller, _, tool = tracking
    model, data = arm.pinocchio_model, arm.pinocchio_model.createData()
    frame = model.getFrameId(arm.config.tool_frame)
    pinocchio.framesForwardKinematics(model, data, controller.telemetry.q)
    tool.measure()
    np.testing.assert_allclose(tool.measured[:3], data.oMf[frame].translation, atol=1e-12)
    np.testing.assert_allclose(
        Rotation.from_quat(tool.measured[3:]).as_matrix(), data.oMf[frame].rotation, atol=1e-12)


def test_reference_error_and_wrench_belong_together(tracking):
    controller, _, tool = tracking
    tool.measure()
    tool.note()
    assert controller.mode == Mode.TRACK
    assert np.linalg.norm(tool.error[:3]) > 1e-6
    np.testing.assert_allclose(tool.reference[:3] - tool.measured[:3], tool.error[:3], atol=1e-12)
    turn = Rotation.from_quat(tool.reference[3:]) * Rotation.from_quat(tool.measured[3:]).inv()
    np.testing.assert_allclose(turn.as_rotvec(), tool.error[3:], atol=1e-9)
    gains = controller._gains[NOW]
    elastic = gains[CP_STIFFNESS : CP_STIFFNESS + 6] * tool.error
    viscous = gains[CP_DAMPING : CP_DAMPING + 6]
    assert (np.abs(tool.wrench - elastic) < 2.0 * viscous).all()  # below 2 m/s and rad/s
    assert not np.allclose(tool.wrench, 0.0)


def test_while_damping_nothing_pulls_the_tool(tracking):
    controller, plant, tool = tracking
    controller.report_fault(Fault.DRIVE_FAULT)
    run(controller, plant, 0.1)
    tool.measure()
    tool.note()
    np.testing.assert_array_equal(tool.reference, tool.measured)
    np.testing.assert_array_equal(tool.error, 0.0)
    np.testing.assert_array_equal(tool.wrench, 0.0)


def test_the_arrays_are_filled_in_place(tracking):
    """The node's message holds views of them."""
    _, _, tool = tracking
    before = [tool.measured, tool.reference, tool.error, tool.wrench]
    held = [array.ctypes.data for array in before]
    tool.measure()
    tool.note()
    after = [tool.measured, tool.reference, tool.error, tool.wrench]
    assert [array.ctypes.data for array in after] == held
