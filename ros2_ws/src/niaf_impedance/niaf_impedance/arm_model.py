"""Arm model: URDF and robot description become constants of the compiled dynamics, checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pinocchio

from niaf_impedance.dynamics import MODEL_COLUMNS, PRISMATIC, REVOLUTE, WORK_COLUMNS, rnea
from niaf_impedance.robot_config import RobotConfig, RobotConfigError, load_robot_config

FloatArray = np.ndarray

#: largest accepted difference between the compiled dynamics and pinocchio
AGREEMENT_NM = 1e-9

_AXES = {"X": (1.0, 0.0, 0.0), "Y": (0.0, 1.0, 0.0), "Z": (0.0, 0.0, 1.0)}


class ArmModelError(RuntimeError):
    """The arm's model cannot be used by the compiled loop."""


@dataclass(frozen=True)
class ArmLimits:
    """Limits per joint, float64[n]. Position limits include the configured margin."""

    position_min_rad: FloatArray
    position_max_rad: FloatArray
    velocity_rad_s: FloatArray
    acceleration_rad_s2: FloatArray
    jerk_rad_s3: FloatArray
    torque_nm: FloatArray
    torque_rate_nm_s: FloatArray


class ArmModel:
    """Rigid-body model of one arm with ``n`` joints, in the order of the robot description.

    Building it compares the compiled dynamics with pinocchio on random states and refuses on a
    difference above 1e-9 Nm.
    """

    def __init__(self, config: RobotConfig) -> None:
        self.config = config
        self.joint_names = config.joint_names
        self.n = len(config.joints)
        self.pinocchio_model = _build_reduced(config)
        self._pinocchio_data = self.pinocchio_model.createData()
        self.model, self.parent, self.kind = _extract(self.pinocchio_model)
        self.gravity = np.array(config.gravity_m_s2)
        self.armature_kgm2 = np.array([joint.armature_kgm2 for joint in config.joints])
        self.limits = _limits(config, self.pinocchio_model)
        #: tool frame in the last joint's frame: rotation row-major [0:9], translation [9:12]
        self.tool = _tool_placement(config, self.pinocchio_model)
        self._work = np.zeros((self.n, WORK_COLUMNS))
        self._tau = np.zeros(self.n)
        self._zero = np.zeros(self.n)
        self._check_against_pinocchio()

    @classmethod
    def from_yaml(cls, path: str | Path) -> ArmModel:
        """Model of the arm described by the YAML file ``path``."""
        return cls(load_robot_config(path))

    def inverse_dynamics(self, q: FloatArray, dq: FloatArray, ddq: FloatArray) -> FloatArray:
        """Torque [n] for the motion, rotor inertia included, friction not."""
        self._rnea(q, dq, ddq)
        return self._tau + self.armature_kgm2 * ddq

    def _rnea(self, q: FloatArray, dq: FloatArray, ddq: FloatArray) -> None:
        rnea(
            self.model, self.parent, self.kind, self.gravity, q, dq, ddq, self._work, self._tau
        )

    def gravity_torque(self, q: FloatArray) -> FloatArray:
        """Torque [n] that holds the arm still at ``q``."""
        return self.inverse_dynamics(q, self._zero, self._zero)

    def mass_matrix(self, q: FloatArray) -> FloatArray:
        """Joint-space inertia [n, n], rotor inertia included (pinocchio; not for the loop)."""
        upper = pinocchio.crba(self.pinocchio_model, self._pinocchio_data, q)
        full = np.triu(upper) + np.triu(upper, 1).T
        return full + np.diag(self.armature_kgm2)

    def _check_against_pinocchio(self, states: int = 50) -> None:
        rng = np.random.default_rng(0)
        low, high = self.limits.position_min_rad, self.limits.position_max_rad
        for _ in range(states):
            q = rng.uniform(low, high)
            dq, ddq = rng.normal(size=(2, self.n)) * ((2.0,), (10.0,))
            self._rnea(q, dq, ddq)
            oracle = pinocchio.rnea(self.pinocchio_model, self._pinocchio_data, q, dq, ddq)
            worst = float(np.max(np.abs(self._tau - oracle)))
            if not worst <= AGREEMENT_NM:
                raise ArmModelError(
                    f"compiled dynamics of {self.config.urdf} differ from pinocchio by "
                    f"{worst:.3g} Nm (allowed {AGREEMENT_NM:g}); do not run it, report its URDF"
                )


def _build_reduced(config: RobotConfig) -> pinocchio.Model:
    try:
        full = pinocchio.buildModelFromUrdf(str(config.urdf))
    except Exception as error:
        raise RobotConfigError(f"urdf: {config.urdf} cannot be read: {error}") from error
    available = list(full.names)[1:]
    wanted = list(config.joint_names)
    gripper = config.gripper
    for name in [*wanted, *([gripper.joint] if gripper is not None else [])]:
        if name not in available:
            raise RobotConfigError(
                f"{config.source}: joint {name!r} is not in the URDF {config.urdf}; "
                f"its joints are {available}"
            )
    if not full.existFrame(config.base_frame):
        raise RobotConfigError(
            f"{config.source}: base_frame {config.base_frame!r} is not in the URDF {config.urdf}; "
            f"its frames are {[frame.name for frame in full.frames]}"
        )
    neutral = pinocchio.neutral(full)
    locked = []
    for name in available:
        if name in wanted:
            continue
        index = full.getJointId(name)
        joint = full.joints[index]
        if joint.nq != 1:
            raise RobotConfigError(
                f"{config.source}: joint {name!r} of {config.urdf} has {joint.nq} coordinates and "
                "is not an arm joint; only joints with one can be locked"
            )
        locked.append(index)
        if gripper is not None:
            position = gripper.lock_position_m
            neutral[joint.idx_q] = min(
                max(position, full.lowerPositionLimit[joint.idx_q]),
                full.upperPositionLimit[joint.idx_q],
            )
    model = pinocchio.buildReducedModel(full, locked, neutral) if locked else full
    order = list(model.names)[1:]
    if order != wanted:
        raise RobotConfigError(
            f"{config.source}: joints must be listed in the URDF's order {order}, not {wanted}"
        )
    if config.payload.mass_kg > 0.0:
        load = pinocchio.Inertia(
            config.payload.mass_kg, np.array(config.payload.com_m), np.zeros((3, 3))
        )
        model.appendBodyToJoint(model.njoints - 1, load, pinocchio.SE3.Identity())
    model.gravity.linear = np.array(config.gravity_m_s2)
    # The armature is added by our own law; pinocchio must not count it too.
    model.armature = np.zeros(model.nv)
    return model


def _tool_placement(config: RobotConfig, model: pinocchio.Model) -> FloatArray:
    if not config.tool_frame:
        return np.append(np.eye(3).ravel(), np.zeros(3))
    if not model.existFrame(config.tool_frame):
        raise RobotConfigError(
            f"{config.source}: tool_frame {config.tool_frame!r} is not in the URDF {config.urdf}; "
            f"its frames are {[frame.name for frame in model.frames]}"
        )
    frame = model.frames[model.getFrameId(config.tool_frame)]
    parent = int(getattr(frame, "parentJoint", 0) or frame.parent)
    if parent != model.njoints - 1:
        raise RobotConfigError(
            f"{config.source}: tool_frame {config.tool_frame!r} hangs on joint "
            f"{model.names[parent]!r}; it must lie behind the last joint {model.names[-1]!r}"
        )
    placement = frame.placement
    return np.append(placement.rotation.ravel(), placement.translation)


def _extract(model: pinocchio.Model) -> tuple[FloatArray, FloatArray, FloatArray]:
    n = model.njoints - 1
    rows = np.zeros((n, MODEL_COLUMNS))
    parent = np.zeros(n, dtype=np.int64)
    kind = np.zeros(n, dtype=np.int64)
    for i in range(n):
        joint = model.joints[i + 1]
        name = joint.shortname()
        if joint.nq != 1 or joint.nv != 1:
            raise ArmModelError(
                f"joint {model.names[i + 1]!r} is a {name}: the compiled loop supports revolute "
                "and prismatic joints with limits; change the joint's type in the URDF"
            )
        letter = name.removeprefix("JointModel")
        if letter in ("RX", "RY", "RZ", "PX", "PY", "PZ"):
            axis = _AXES[letter[1]]
            kind[i] = REVOLUTE if letter[0] == "R" else PRISMATIC
        elif letter in ("RevoluteUnaligned", "PrismaticUnaligned"):
            # the axis is not exposed on the generic joint: read it from its motion subspace
            data = joint.createData()
            joint.calc(data, np.zeros(model.nq))
            subspace = np.asarray(data.S).reshape(6)
            kind[i] = REVOLUTE if letter.startswith("R") else PRISMATIC
            axis = tuple(subspace[3:] if kind[i] == REVOLUTE else subspace[:3])
        else:
            raise ArmModelError(f"joint {model.names[i + 1]!r} has unsupported type {name}")
        placement = model.jointPlacements[i + 1]
        inertia = model.inertias[i + 1]
        rows[i, 0:9] = placement.rotation.ravel()
        rows[i, 9:12] = placement.translation
        rows[i, 12:15] = axis
        rows[i, 15] = inertia.mass
        rows[i, 16:19] = inertia.lever
        rows[i, 19:28] = inertia.inertia.ravel()
        parent[i] = int(model.parents[i + 1]) - 1
    return rows, parent, kind


def _limits(config: RobotConfig, model: pinocchio.Model) -> ArmLimits:
    margin = np.array([joint.position_margin_rad for joint in config.joints])
    low = np.array(model.lowerPositionLimit) + margin
    high = np.array(model.upperPositionLimit) - margin
    for i, joint in enumerate(config.joints):
        if not (np.isfinite(low[i]) and np.isfinite(high[i]) and low[i] < high[i]):
            raise RobotConfigError(
                f"{config.source}: joints[{joint.name}].position_margin_rad "
                f"{joint.position_margin_rad:g} leaves no range between the URDF's limits "
                f"{model.lowerPositionLimit[i]:g} and {model.upperPositionLimit[i]:g}"
            )
        if not low[i] <= joint.home_rad <= high[i]:
            raise RobotConfigError(
                f"{config.source}: joints[{joint.name}].home_rad {joint.home_rad:g} is outside "
                f"[{low[i]:g}, {high[i]:g}] (URDF limits less the margin)"
            )
        effort = float(model.effortLimit[i])
        if effort > 0.0 and joint.torque_limit_nm > effort + 1e-9:
            raise RobotConfigError(
                f"{config.source}: joints[{joint.name}].torque_limit_nm {joint.torque_limit_nm:g} "
                f"exceeds the URDF's effort limit {effort:g}; lower it"
            )
        speed = float(model.velocityLimit[i])
        if speed > 0.0 and joint.velocity_limit_rad_s > speed + 1e-9:
            raise RobotConfigError(
                f"{config.source}: joints[{joint.name}].velocity_limit_rad_s "
                f"{joint.velocity_limit_rad_s:g} exceeds the URDF's limit {speed:g}; lower it"
            )
    return ArmLimits(
        position_min_rad=low,
        position_max_rad=high,
        velocity_rad_s=np.array([joint.velocity_limit_rad_s for joint in config.joints]),
        acceleration_rad_s2=np.array([joint.acceleration_limit_rad_s2 for joint in config.joints]),
        jerk_rad_s3=np.array([joint.jerk_limit_rad_s3 for joint in config.joints]),
        torque_nm=np.array([joint.torque_limit_nm for joint in config.joints]),
        torque_rate_nm_s=np.array([joint.torque_rate_limit_nm_s for joint in config.joints]),
    )
