"""Labels of channels that displace the tool, from recorded tool poses. Base axes throughout.

A rotation label is the rotation vector r that turns the orientation R_a measured at the observation
into the recorded one, R = exp([r]x) R_a, as the controller composes it (see niaf_field.channels).
Its rate follows from the angular velocity w: dr/dt = J_l(r)^-1 w, J_l the left Jacobian of SO(3).
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from niaf_field.channels import POSITION_NAMES, ROTATION_NAMES

#: channels that displace the tool, in their order
TOOL_NAMES = (*POSITION_NAMES, *ROTATION_NAMES)
POSE = 7  # x y z, quaternion x y z w


def tool_labels(
    anchor: np.ndarray, poses: np.ndarray, twists: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Values and rates [B, K, 6] of the tool channels.

    anchor [B, 7] pose at each observation, poses [B, K, 7], twists [B, K, 6] (m/s, rad/s). Values
    are x y z (m, not yet relative) and r (rad).
    """
    batch, samples = poses.shape[:2]
    start = Rotation.from_quat(np.repeat(anchor[:, 3:], samples, axis=0))
    turn = (Rotation.from_quat(poses[..., 3:].reshape(-1, 4)) * start.inv()).as_rotvec()
    turn = turn.reshape(batch, samples, 3)
    values = np.concatenate([poses[..., :3], turn], axis=-1)
    rates = np.concatenate([twists[..., :3], rotation_rate(turn, twists[..., 3:])], axis=-1)
    return values, rates


def rotation_rate(vector: np.ndarray, omega: np.ndarray) -> np.ndarray:
    """J_l(r)^-1 w of rotation vectors r [..., 3], shorter than 2 pi, and angular velocities w."""
    angle = np.linalg.norm(vector, axis=-1, keepdims=True)
    half = 0.5 * np.maximum(angle, 1e-3)
    # (1 - h cot h) / (2 h)^2; its limit at zero is 1 / 12
    share = np.where(angle < 1e-3, 1.0 / 12.0, (1.0 - half / np.tan(half)) / (4.0 * half * half))
    once = np.cross(vector, omega)
    return np.asarray(omega - 0.5 * once + share * np.cross(vector, once))
