"""Any arm that the controller can drive, simulated from its URDF behind FOC drives, in lock-step.

The plant of :class:`niaf_sim.cell.Cell` without the cell: no table, no cameras, no contacts. It
serves to try a robot description before the robot moves. MuJoCo reads the URDF by itself, so its
dynamics are independent of the pinocchio model that the controller is built from.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable

import mujoco
import numpy as np

from niaf_impedance.robot_config import RobotConfig
from niaf_sim.drive import DriveBank, DriveConfig

FloatArray = np.ndarray

#: time constant of the drives' current loop, as in DriveConfig
CURRENT_LOOP_S = 0.0008
#: largest physics step: explicit torques on light wrists need short ones
PHYSICS_STEP_S = 0.0005
#: largest product of the velocity observer's natural frequency and the physics step, at which it
#: is advanced: it is unstable from about 0.8
OBSERVER_STEP = 0.35


def drive_config(robot: RobotConfig) -> DriveConfig:
    """Drives whose current loop and velocity observer add up to ``robot.feedback_delay_s``."""
    # A critically damped observer lags by 2 / (2 pi f).
    observer_s = robot.feedback_delay_s - CURRENT_LOOP_S
    if observer_s <= 0.0:
        raise ValueError(
            f"{robot.source}: feedback_delay_s {robot.feedback_delay_s:g} leaves nothing beside "
            f"the current loop's {CURRENT_LOOP_S:g} s; raise it"
        )
    return DriveConfig(
        torque_limit_nm=tuple(joint.torque_limit_nm for joint in robot.joints),
        current_loop_s=CURRENT_LOOP_S,
        observer_hz=1.0 / (math.pi * observer_s),
        watchdog_damping_nms=tuple(joint.damp_nms_rad for joint in robot.joints),
    )


def build_spec(robot: RobotConfig, timestep_s: float) -> mujoco.MjSpec:
    """``robot`` for MuJoCo: its URDF without shapes, joints outside the arm locked.

    Rotor inertia and friction, which a URDF lacks, come from the robot description. Its payload is
    not added: what the arm carries is the caller's to build. A robot that adds gravity itself does.
    """
    root = ElementTree.parse(robot.urdf).getroot()
    for link in root.iter("link"):
        for shape in (*link.findall("visual"), *link.findall("collision")):
            link.remove(shape)  # MuJoCo cannot decode every mesh, and nothing is touched here
    settings = ElementTree.SubElement(ElementTree.SubElement(root, "mujoco"), "compiler")
    # identified inertias may break the triangle inequality by a rounding; links keep their frames
    settings.attrib |= {"balanceinertia": "true", "fusestatic": "false"}
    spec = mujoco.MjSpec.from_string(ElementTree.tostring(root, encoding="unicode"))
    spec.option.timestep = timestep_s
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.option.gravity = robot.gravity_m_s2
    if robot.gravity_added_by_robot:
        for body in spec.bodies:
            body.gravcomp = 1.0
    lock = robot.gripper.lock_position_m if robot.gripper is not None else 0.0
    for joint in [joint for joint in spec.joints if joint.name not in robot.joint_names]:
        _lock(spec, joint, lock)
    for config in robot.joints:
        joint = spec.joint(config.name)
        joint.armature = config.armature_kgm2
        joint.frictionloss = config.coulomb_nm
        joint.damping = (config.viscous_nms_rad, 0.0, 0.0)  # linear term of a polynomial
        motor = spec.add_actuator(name=config.name, target=config.name)
        motor.trntype = mujoco.mjtTrn.mjTRN_JOINT
    return spec


def _lock(spec: mujoco.MjSpec, joint: mujoco.MjsJoint, position: float) -> None:
    """Weld a joint outside the arm at ``position``, clipped to its range, as ArmModel does."""
    body = joint.parent
    turn = np.array(body.quat)
    at = min(max(position, joint.range[0]), joint.range[1])
    if joint.type == mujoco.mjtJoint.mjJNT_SLIDE:
        shift = np.empty(3)
        mujoco.mju_rotVecQuat(shift, np.array(joint.axis), turn)
        body.pos = np.array(body.pos) + at * shift
    else:
        extra, total = np.empty(4), np.empty(4)
        mujoco.mju_axisAngle2Quat(extra, np.array(joint.axis), at)
        mujoco.mju_mulQuat(total, turn, extra)
        body.quat = total
    # what refers to the joint (a mimic becomes an equality) goes with it
    for equality in [e for e in spec.equalities if joint.name in (e.name1, e.name2)]:
        spec.delete(equality)
    spec.delete(joint)


class UrdfPlant:
    """One arm in lock-step. ``q``, ``dq`` (float64[n]) are what its drives report."""

    def __init__(
        self,
        robot: RobotConfig,
        control_period_s: float = 0.001,
        furnish: Callable[[mujoco.MjSpec], None] | None = None,
    ) -> None:
        """``furnish`` may add to the model before it is compiled: a tool, things to touch."""
        self.robot = robot
        self.control_period_s = control_period_s
        drives = drive_config(robot)
        longest = min(PHYSICS_STEP_S, OBSERVER_STEP / (2.0 * math.pi * drives.observer_hz))
        self._substeps = max(1, math.ceil(control_period_s / longest - 1e-9))
        spec = build_spec(robot, control_period_s / self._substeps)
        if furnish is not None:
            furnish(spec)
        self.model = spec.compile()
        self.data = mujoco.MjData(self.model)
        self.drives = DriveBank(drives)
        joints = [self.model.joint(name) for name in robot.joint_names]
        self._q = np.array([int(joint.qposadr[0]) for joint in joints])
        self._v = np.array([int(joint.dofadr[0]) for joint in joints])
        self.reset(robot.home_rad)

    @property
    def time_s(self) -> float:
        return float(self.data.time)

    @property
    def q(self) -> FloatArray:
        return self.drives.q

    @property
    def dq(self) -> FloatArray:
        return self.drives.dq

    @property
    def torque_nm(self) -> FloatArray:
        return self.drives.torque_nm

    @property
    def q_true(self) -> FloatArray:
        """Joint positions without encoder, float64[n] (a copy)."""
        return self.data.qpos[self._q]

    @property
    def dq_true(self) -> FloatArray:
        return self.data.qvel[self._v]

    def reset(self, q_rad: FloatArray) -> None:
        """At rest at ``q_rad`` with the holding torque flowing already; time starts at 0."""
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[self._q] = q_rad
        mujoco.mj_forward(self.model, self.data)
        self.drives.reset(q_rad, self.data.qfrc_bias[self._v])

    def bias_nm(self, q_rad: FloatArray, dq_rad_s: FloatArray) -> FloatArray:
        """Gravity, Coriolis and centrifugal torque [n] as MuJoCo sees them; for checks."""
        data = mujoco.MjData(self.model)
        data.qpos[self._q], data.qvel[self._v] = q_rad, dq_rad_s
        mujoco.mj_forward(self.model, data)
        return data.qfrc_bias[self._v]

    def mass_matrix(self, q_rad: FloatArray) -> FloatArray:
        """Joint-space inertia [n, n] as MuJoCo sees it, rotor inertia included; for checks."""
        data = mujoco.MjData(self.model)
        data.qpos[self._q] = q_rad
        mujoco.mj_forward(self.model, data)
        full = np.empty((self.model.nv, self.model.nv))
        mujoco.mj_fullM(self.model, data, full)
        return full[np.ix_(self._v, self._v)]

    def step(self, torque_nm: FloatArray | None, push_nm: FloatArray | None = None) -> None:
        """Advance one control period. ``None``: no command arrived; ``push_nm`` acts outside."""
        if torque_nm is not None:
            self.drives.command(torque_nm)
        data = self.data
        data.qfrc_applied[self._v] = 0.0 if push_nm is None else push_nm
        for _ in range(self._substeps):
            data.ctrl[:] = self.drives.step(self.model.opt.timestep, data.qpos[self._q])
            mujoco.mj_step(self.model, data)
