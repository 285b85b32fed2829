"""Forward and inverse kinematics of the arm's tool centre point (pinocchio), for the expert."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pinocchio as pin

FloatArray = np.ndarray


class UnreachableError(ValueError):
    """No joint position within limits reaches the pose."""


class ToolKinematics:
    """Tool pose of a serial arm; joints outside ``joint_names`` are locked at zero."""

    def __init__(
        self, urdf: Path, joint_names: tuple[str, ...], frame: str = "panda_hand_tcp"
    ) -> None:
        full = pin.buildModelFromUrdf(str(urdf))
        keep = {full.getJointId(name) for name in joint_names}
        lock = [i for i in range(1, full.njoints) if i not in keep]
        self.model = pin.buildReducedModel(full, lock, pin.neutral(full))
        self.data = self.model.createData()
        self.frame = self.model.getFrameId(frame)

    def pose(self, q: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Position [3] and rotation matrix [3, 3] of the tool at ``q`` [n]."""
        pin.framesForwardKinematics(self.model, self.data, q)
        placement = self.data.oMf[self.frame]
        return placement.translation.copy(), placement.rotation.copy()

    def jacobian(self, q: FloatArray) -> FloatArray:
        """Geometric Jacobian [6, n] in world axes at the tool, linear part first."""
        return pin.computeFrameJacobian(
            self.model, self.data, q, self.frame, pin.ReferenceFrame.LOCAL_WORLD_ALIGNED
        )

    def solve(
        self,
        position_m: FloatArray,
        rotation: FloatArray,
        q_start: FloatArray,
        q_posture: FloatArray,
        tolerance_m: float = 1e-4,
        iterations: int = 60,
    ) -> FloatArray:
        """Damped least-squares inverse kinematics from ``q_start``, drawn to ``q_posture`` in the
        null space. Raises UnreachableError when the pose is not reached."""
        q = np.array(q_start, dtype=float)
        low, high = self.model.lowerPositionLimit + 0.02, self.model.upperPositionLimit - 0.02
        damping = 1e-4 * np.eye(6)
        error = np.empty(6)
        for _ in range(iterations):
            now, turn = self.pose(q)
            error[:3] = position_m - now
            error[3:] = pin.log3(rotation @ turn.T)
            posture = 0.1 * (q_posture - q)
            if np.linalg.norm(error) < tolerance_m:
                return q
            jacobian = self.jacobian(q)
            gain = jacobian.T @ np.linalg.inv(jacobian @ jacobian.T + damping)
            step = gain @ (error - jacobian @ posture) + posture
            q = np.clip(q + np.clip(step, -0.2, 0.2), low, high)
        raise UnreachableError(
            f"no joint position reaches {np.round(position_m, 3).tolist()} m "
            f"(residual {np.linalg.norm(error):.4f} after {iterations} iterations)"
        )
