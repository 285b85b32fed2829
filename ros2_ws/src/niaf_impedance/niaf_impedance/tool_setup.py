"""What the Cartesian law of one controller is built from: channels, parameters, damping bound."""

from __future__ import annotations

import numpy as np

from niaf_field import Prior
from niaf_field.channels import CARTESIAN_POSITION, CARTESIAN_PREFIX, CARTESIAN_ROTATION
from niaf_impedance import cartesian as law
from niaf_impedance import tool_task as task
from niaf_impedance.arm_model import ArmModel
from niaf_impedance.kinematics import FRAME_COLUMNS, MOTION_SIZE, tool_motion
from niaf_impedance.robot_config import CartesianConfig
from niaf_impedance.settings import ControllerConfig, ControllerConfigError
from niaf_impedance.tuning import Tuning

FloatArray = np.ndarray

_KINDS = {
    "x": CARTESIAN_POSITION, "y": CARTESIAN_POSITION, "z": CARTESIAN_POSITION,
    "rx": CARTESIAN_ROTATION, "ry": CARTESIAN_ROTATION, "rz": CARTESIAN_ROTATION,
}
_UNITS = {CARTESIAN_POSITION: "m", CARTESIAN_ROTATION: "rad"}


def moves_tool(prior: Prior | None) -> bool:
    """True when the prior's channels move the tool instead of the joints."""
    return prior is not None and any(
        channel.kind.startswith(CARTESIAN_PREFIX) for channel in prior.channels)


def cartesian_of(arm: ArmModel) -> CartesianConfig:
    """The arm's Cartesian parameters; ControllerConfigError where it has none or cannot follow."""
    if arm.config.cartesian is None:
        raise ControllerConfigError(
            f"the prior moves the tool, but {arm.config.source} has no section 'cartesian'; add it "
            "(see panda.yaml) or use a prior with joint channels"
        )
    if arm.n < len(_KINDS):
        raise ControllerConfigError(
            f"the prior moves the tool in six directions, but the arm has {arm.n} joints; use a "
            "prior with joint channels"
        )
    return arm.config.cartesian


def tool_columns(prior: Prior, arm: ArmModel) -> list[int]:
    """Channel of x, y, z, rx, ry, rz and the gripper (-1: none); ControllerConfigError if wrong."""
    channels = {channel.name: (i, channel) for i, channel in enumerate(prior.channels)}
    columns = []
    for name, kind in _KINDS.items():
        if name not in channels:
            raise ControllerConfigError(
                f"the prior moves the tool but has no channel {name!r}; its channels are "
                f"{list(channels)}: it needs {list(_KINDS)}"
            )
        index, channel = channels[name]
        if channel.kind != kind or channel.unit != _UNITS[kind]:
            raise ControllerConfigError(
                f"channel {name!r} of the prior is a {channel.kind} in {channel.unit}; it must be "
                f"a {kind} in {_UNITS[kind]}"
            )
        columns.append(index)
    gripper = arm.config.gripper
    has_gripper = gripper is not None and gripper.channel in channels
    columns.append(channels[gripper.channel][0] if gripper is not None and has_gripper else -1)
    unused = sorted(name for name, (index, _) in channels.items() if index not in columns)
    if unused:
        raise ControllerConfigError(
            f"the prior moves the tool and has channels that do not: {unused}; one controller "
            "follows either the tool or the joints"
        )
    return columns


def gain_targets(arm: ArmModel, tuning: Tuning) -> FloatArray:
    """Law parameters and null-space gains [GAINS] of a tuning."""
    config, row = cartesian_of(arm), np.zeros(task.GAINS)
    row[law.CP_STIFFNESS : law.CP_STIFFNESS + 6] = tuning.effective_tool_stiffness(arm.config)
    row[law.CP_DAMPING : law.CP_DAMPING + 3] = tuning.tool_damping_ns_m
    row[law.CP_DAMPING + 3 : law.CP_DAMPING + 6] = tuning.tool_damping_nms_rad
    row[law.CP_CLIP_M], row[law.CP_CLIP_RAD] = config.error_clip_m, config.error_clip_rad
    row[law.CP_CLIP_M_S] = config.velocity_clip_m_s
    row[law.CP_CLIP_RAD_S] = config.velocity_clip_rad_s
    row[law.CP_NULL_TORQUE] = config.null_torque_nm
    row[law.CP_SIGMA], row[law.CP_LENGTH] = config.singular_value, config.length_m
    row[law.CP_LIMIT_MARGIN] = config.limit_margin_rad
    row[law.CP_TOOL_AXES] = 1.0 if config.axes == "tool" else 0.0
    row[task.G_NULL_KP] = tuning.tool_null_stiffness_nm_rad
    row[task.G_NULL_KD] = tuning.tool_null_damping_nms_rad
    return row


def joint_parameters(arm: ArmModel, config: ControllerConfig) -> FloatArray:
    """Rows ``CJ_*`` of the law [CJ_ROWS, n]; posture: home until the arm is activated."""
    cartesian, limits = cartesian_of(arm), arm.limits
    cj = np.zeros((law.CJ_ROWS, arm.n))
    cj[law.CJ_POSTURE] = arm.config.home_rad
    cj[law.CJ_LOW], cj[law.CJ_HIGH] = limits.position_min_rad, limits.position_max_rad
    cj[law.CJ_LIMIT_TORQUE] = cartesian.limit_torque_share * limits.torque_nm
    cj[law.CJ_DQ_MAX] = limits.velocity_rad_s
    cj[law.CJ_DDQ_MAX] = config.admit_acceleration_ratio * limits.acceleration_rad_s2
    cj[law.CJ_INERTIA] = np.diag(arm.mass_matrix(arm.config.home_rad))
    return cj


def tool_pose(arm: ArmModel, q: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(motion [24] at rest, Jacobian [6, n]) of the tool frame at ``q``."""
    motion, jac = np.zeros(MOTION_SIZE), np.zeros((6, arm.n))
    tool_motion(
        arm.model, arm.parent, arm.kind, arm.tool, np.ascontiguousarray(q, dtype=np.float64),
        np.zeros(arm.n), np.zeros((arm.n, FRAME_COLUMNS)), jac, motion)
    return motion, jac


def damping_matrix(arm: ArmModel, gains: FloatArray, q: FloatArray) -> FloatArray:
    """Joint damping [n, n] that the law amounts to at ``q``: J^T D J + N D_n N."""
    pose, jac = tool_pose(arm, q)
    work = np.zeros(law.law_work_size(arm.n))
    law.damped_inverse(jac, gains[law.CP_LENGTH], gains[law.CP_SIGMA], work)
    inverse = work[72:108].reshape(6, 6)
    projector = np.eye(arm.n) - jac.T @ inverse @ jac
    along = jac  # the twist in the axes that the damping is given in
    if gains[law.CP_TOOL_AXES] != 0.0:
        turn = pose[:9].reshape(3, 3).T
        along = np.vstack([turn @ jac[:3], turn @ jac[3:]])
    task_space = along.T @ (gains[law.CP_DAMPING : law.CP_DAMPING + 6, None] * along)
    return task_space + gains[task.G_NULL_KD] * projector @ projector
