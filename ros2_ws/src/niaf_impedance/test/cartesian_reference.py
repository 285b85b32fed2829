"""Plain numpy statements of the Cartesian kinematics and law: slow, to be read and compared with.

Nothing here shares code with niaf_impedance.kinematics or niaf_impedance.cartesian, only the
layout of their parameter arrays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pinocchio
from scipy.spatial.transform import Rotation

from niaf_impedance import cartesian as c


@dataclass(frozen=True)
class ToolState:
    """Tool by pinocchio: rotation [3, 3], position [3], Jacobian [6, n], dJ/dt dq [6]."""

    rotation: np.ndarray
    position: np.ndarray
    jacobian: np.ndarray
    bias: np.ndarray


def tool_state(model: pinocchio.Model, tool: np.ndarray, q, dq) -> ToolState:
    """Tool frame fixed to the last joint, in base axes, from pinocchio."""
    data = model.createData()
    pinocchio.forwardKinematics(model, data, q, dq, np.zeros(model.nv))
    pinocchio.computeJointJacobians(model, data, q)
    last = model.njoints - 1
    placement = data.oMi[last] * pinocchio.SE3(tool[:9].reshape(3, 3), tool[9:])
    joint = pinocchio.getJointJacobian(
        model, data, last, pinocchio.ReferenceFrame.LOCAL_WORLD_ALIGNED)
    arm = placement.translation - data.oMi[last].translation
    jacobian = joint.copy()
    jacobian[:3] = joint[:3] + np.cross(joint[3:].T, arm).T
    classical = pinocchio.getClassicalAcceleration(
        model, data, last, pinocchio.ReferenceFrame.LOCAL_WORLD_ALIGNED)
    omega = joint[3:] @ dq
    linear = (classical.linear + np.cross(classical.angular, arm)
              + np.cross(omega, np.cross(omega, arm)))
    return ToolState(
        placement.rotation, placement.translation, jacobian,
        np.concatenate([linear, classical.angular]))


def pseudo_inverse(jacobian: np.ndarray, length: float, sigma_min: float) -> np.ndarray:
    """Damped pseudo-inverse [n, 6] by singular values, each with a damping of its own."""
    weight = np.diag([1.0 / length] * 3 + [1.0] * 3)
    u, sigma, vt = np.linalg.svd(weight @ jacobian, full_matrices=False)
    damping = np.where(
        sigma < sigma_min, (0.5 * sigma_min * (1.0 - (sigma / sigma_min) ** 2)) ** 2, 0.0)
    return vt.T @ np.diag(sigma / (sigma**2 + damping)) @ u.T @ weight


def _clip(vector: np.ndarray, limit: float) -> np.ndarray:
    norm = np.linalg.norm(vector)
    return vector * (limit / norm) if norm > limit else vector


def _clip_each(vector: np.ndarray, limits: np.ndarray) -> np.ndarray:
    return vector / max(1.0, float(np.max(np.abs(vector) / limits)))


def law(state: ToolState, q, dq, ref: np.ndarray, cp: np.ndarray, cj: np.ndarray) -> np.ndarray:
    """Rows CO_* of the law, float64[CO_ROWS, n]."""
    jacobian = state.jacobian
    inverse = pseudo_inverse(jacobian, cp[c.CP_LENGTH], cp[c.CP_SIGMA])
    projector = np.eye(q.size) - inverse @ jacobian
    turn = Rotation.from_matrix(ref[:9].reshape(3, 3) @ state.rotation.T).as_rotvec()
    error = np.concatenate([
        _clip(ref[9:12] - state.position, cp[c.CP_CLIP_M]), _clip(turn, cp[c.CP_CLIP_RAD])])
    slip = ref[12:18] - jacobian @ dq
    slip = np.concatenate([
        _clip(slip[:3], cp[c.CP_CLIP_M_S]), _clip(slip[3:], cp[c.CP_CLIP_RAD_S])])
    out = np.zeros((c.CO_ROWS, q.size))
    out[c.CO_STIFFNESS] = jacobian.T @ (cp[0:6] * error)
    out[c.CO_DAMPING] = jacobian.T @ (cp[6:12] * slip)
    cap = cp[c.CP_NULL_TORQUE]
    out[c.CO_NULL_STIFFNESS] = projector @ _clip(
        cj[c.CJ_NULL_KP] * (cj[c.CJ_POSTURE] - q), cap)
    out[c.CO_NULL_DAMPING] = projector @ _clip(
        -cj[c.CJ_NULL_KD] * (projector @ dq), cap)
    margin = cp[c.CP_LIMIT_MARGIN]
    below = np.clip((cj[c.CJ_LOW] + margin - q) / margin, 0.0, 1.0)
    above = np.clip((q - cj[c.CJ_HIGH] + margin) / margin, 0.0, 1.0)
    out[c.CO_LIMIT] = cj[c.CJ_LIMIT_TORQUE] * (
        below**2 * (3.0 - 2.0 * below) - above**2 * (3.0 - 2.0 * above))
    out[c.CO_DDQ_FF] = _clip_each(inverse @ (ref[18:24] - state.bias), cj[c.CJ_DDQ_MAX])
    out[c.CO_DQ_FF] = _clip_each(inverse @ ref[12:18], cj[c.CJ_DQ_MAX])
    return out
