"""The tool as messages show it: measured pose, reference in force, error, wrench.

    tool = ToolState(controller)
    tool.measure()   # after a tick: ``tool.measured`` is the pose at that tick's joint state
    tool.note()      # the rest, of a controller that moves the tool

Poses are x, y, z [m] and the unit quaternion x, y, z, w (w >= 0), axes of the robot's base. Both
methods allocate nothing but what a call of compiled code costs, and belong to the tick's thread.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from niaf_impedance.controller import ImpedanceController
from niaf_impedance.faults import Mode
from niaf_impedance.kinematics import FRAME_COLUMNS, MOTION_SIZE, tool_motion, vector_between

FloatArray = np.ndarray

POSE = 7
_BASE = np.eye(3).ravel()
_FOLLOWING = (Mode.TRACK, Mode.BRAKE, Mode.HOLD)


@njit(cache=True, nogil=True, error_model="numpy")
def pose_of_motion(motion, base, out):  # type: ignore[no-untyped-def]
    """Pose ``out`` [7] of ``motion`` [24]; base [9]: the identity."""
    for k in range(3):
        out[k] = motion[9 + k]
    x, y, z = vector_between(base, motion)
    angle = np.sqrt(x * x + y * y + z * z)
    share = 0.5 if angle < 1e-9 else np.sin(0.5 * angle) / angle
    out[3], out[4], out[5] = share * x, share * y, share * z
    out[6] = np.cos(0.5 * angle)


def pose_vector(motion: FloatArray) -> FloatArray:
    """Pose [7] of a motion [24]."""
    pose = np.zeros(POSE)
    pose_of_motion(motion, _BASE, pose)
    return pose


class ToolState:
    """Of one controller.

    Attributes:
        measured, reference: poses [7].
        error: reference minus measured [6]: position (m), rotation vector (rad).
        wrench: what stiffness and damping ask for [6]: force (N), moment (Nm).
    """

    def __init__(self, controller: ImpedanceController) -> None:
        self._controller = controller
        n = controller.n
        self._jac, self._motion = np.zeros((6, n)), np.zeros(MOTION_SIZE)
        self._frames, self._rest = np.zeros((n, FRAME_COLUMNS)), np.zeros(n)
        self._q = controller.telemetry.q
        self.measured, self.reference = np.zeros(POSE), np.zeros(POSE)
        self.error, self.wrench = np.zeros(6), np.zeros(6)
        self.measure()  # compiled now, not beside the first tick
        pose_of_motion(self._motion, _BASE, self.reference)

    def measure(self) -> None:
        """The pose at the joint positions of the last tick."""
        arm = self._controller.arm
        tool_motion(
            arm.model, arm.parent, arm.kind, arm.tool, self._q, self._rest, self._frames,
            self._jac, self._motion)
        pose_of_motion(self._motion, _BASE, self.measured)

    def note(self) -> None:
        """Reference, error and wrench of the last tick, after :meth:`measure`."""
        telemetry = self._controller.telemetry
        if self._controller.mode in _FOLLOWING:
            pose_of_motion(telemetry.tool_reference, _BASE, self.reference)
            self.error[:] = telemetry.tool_error
            self.wrench[:] = telemetry.tool_wrench
        else:  # nothing pulls the tool anywhere
            self.reference[:] = self.measured
            self.error[:] = 0.0
            self.wrench[:] = 0.0
