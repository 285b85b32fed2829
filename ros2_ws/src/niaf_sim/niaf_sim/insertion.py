"""Peg in hole: a contact task for the controller, in lock-step and from a seed.

A round-nosed peg sits rigidly in the Panda's hand. A block with a chamfered hole stands in front of
it, a few millimetres and a degree or two away from where the reference believes it to be. The
reference is one straight path, turned into joint positions offline: down to the hole's nominal
mouth and on to its nominal bottom. Nothing measures the error, so whatever corrects it is the
arm's compliance.

Besides the project's controller there is :class:`WaypointLaw`, the same arm model, gains and limits
fed with a poorer reference: positions without derivatives, or waypoints at a low rate.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Protocol

import mujoco
import numpy as np

from niaf_field import SplineReference, spline_reference
from niaf_impedance.arm_model import ArmModel
from niaf_impedance.controller import ControllerConfig, ImpedanceController
from niaf_impedance.robot_config import PayloadConfig, RobotConfig
from niaf_sim.kinematics import ToolKinematics
from niaf_sim.urdf_plant import UrdfPlant

FloatArray = np.ndarray

CONTROL_PERIOD_S = 0.001
#: flat walls that stand for the hole's round one; the hole is this many-sided, the peg round
WALLS = 24
#: hand's tool centre point in the frame of the last joint: along the flange axis, Panda
TOOL_OFFSET_M = 0.107 + 0.1034
DENSITY_KG_M3 = 2700.0
#: bandwidth of the wrist sensor whose peak is reported
SENSOR_HZ = 100.0
#: share of the described friction that the controller compensates by default
FRICTION_SHARE = 0.8


@dataclass(frozen=True)
class InsertionConfig:
    """The task. Lengths in metres; the mouth is the nominal centre of the hole's rim."""

    mouth_m: tuple[float, float, float] = (0.50, 0.0, 0.15)
    peg_radius_m: float = 0.010
    #: peg below the tool centre point
    peg_length_m: float = 0.060
    #: gap all round the centred peg: 0.5 mm in diameter
    clearance_m: float = 0.00025
    chamfer_m: float = 0.004
    hole_depth_m: float = 0.045
    friction: float = 0.2
    #: how far the block is off: sideways, and tilted about a horizontal axis through the mouth
    lateral_m: tuple[float, float] = (0.001, 0.003)
    tilt_rad: tuple[float, float] = (math.radians(1.0), math.radians(2.0))
    #: path of the tip, against the nominal mouth, straight down and from rest to rest
    start_above_m: float = 0.040
    end_below_m: float = 0.040
    motion_s: float = 2.5
    settle_s: float = 0.5
    #: the peg is in when its tip ends this far below the block's true rim (nine tenths of the way)
    success_depth_m: float = 0.036


@dataclass(frozen=True)
class Outcome:
    """One insertion. Forces on the peg at 1 kHz, rms over the time in contact.

    ``net`` is the vector sum of the contact forces, what a wrist sensor would feel; its peak is
    taken behind such a sensor's low-pass, ``net_peak_raw_n`` without. ``squeeze`` is the sum of
    the normal forces' sizes, which also counts walls that press against each other.
    """

    seed: int
    lateral_m: float
    tilt_rad: float
    depth_m: float
    success: bool
    net_peak_n: float
    net_peak_raw_n: float
    net_rms_n: float
    impulse_ns: float
    squeeze_rms_n: float
    final_squeeze_n: float


class Law(Protocol):
    """Whatever turns a measured state into torque, Nm[n]."""

    def tick(self, t_s: float, q: FloatArray, dq: FloatArray) -> FloatArray:
        """Torque for the state measured at ``t_s``."""


def carrying_the_peg(robot: RobotConfig, config: InsertionConfig) -> RobotConfig:
    """``robot`` with the peg as its payload, so that the controller carries its weight."""
    mass = math.pi * config.peg_radius_m**2 * config.peg_length_m * DENSITY_KG_M3
    middle = (0.0, 0.0, TOOL_OFFSET_M + 0.5 * config.peg_length_m)
    return dataclasses.replace(robot, payload=PayloadConfig(mass, middle))


class InsertionCell:
    """The arm with its peg over the block. ``plant`` is the arm behind its drives."""

    def __init__(self, robot: RobotConfig, config: InsertionConfig | None = None) -> None:
        self.config = config or InsertionConfig()
        self.plant = UrdfPlant(robot, CONTROL_PERIOD_S, self._furnish)
        model = self.plant.model
        self._peg, self._tip = model.body("peg").id, model.site("tip").id
        self._block = model.body("block").id
        self.lateral_m = self.tilt_rad = 0.0

    def _furnish(self, spec: mujoco.MjSpec) -> None:
        c = self.config
        spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
        spec.option.impratio = 10.0
        peg = spec.body("panda_hand_tcp").add_body(name="peg")
        geom = peg.add_geom(
            name="peg",
            type=mujoco.mjtGeom.mjGEOM_CAPSULE,
            size=(c.peg_radius_m, c.peg_length_m / 2, 0.0),
            pos=(0.0, 0.0, c.peg_length_m / 2 - c.peg_radius_m),
            density=DENSITY_KG_M3,
            contype=1,
            conaffinity=0,
        )
        _hard(geom, c.friction)
        peg.add_site(name="tip", pos=(0.0, 0.0, c.peg_length_m))
        block = spec.worldbody.add_body(name="block", pos=c.mouth_m)
        # Half-spaces around the hole's axis: where one face reaches past its neighbour, it lies in
        # the neighbour's solid, so the free space is exactly the many-sided funnel.
        hole, rim = c.peg_radius_m + c.clearance_m, c.peg_radius_m + c.clearance_m + c.chamfer_m
        wide, thick, bottom = rim * math.tan(math.pi / WALLS), 0.01, c.hole_depth_m + 0.01
        slope = c.chamfer_m * math.sqrt(2.0)
        for k in range(WALLS):
            angle = 2.0 * math.pi * k / WALLS
            out = np.array([math.cos(angle), math.sin(angle), 0.0])
            turn = np.array([math.cos(angle / 2), 0.0, 0.0, math.sin(angle / 2)])
            height = (bottom - c.chamfer_m) / 2
            wall = block.add_geom(
                name=f"wall{k}",
                type=mujoco.mjtGeom.mjGEOM_BOX,
                size=(thick, wide, height),
                pos=out * (hole + thick) - [0.0, 0.0, c.chamfer_m + height],
                quat=turn,
            )
            # the chamfer's face runs from (hole, -chamfer) to (rim, 0); the box lies below it
            tilted = np.array([math.cos(math.pi / 8), 0.0, -math.sin(math.pi / 8), 0.0])
            both = np.empty(4)
            mujoco.mju_mulQuat(both, turn, tilted)
            inward = (out - [0.0, 0.0, 1.0]) / math.sqrt(2.0)
            middle = out * (hole + rim) / 2 - [0.0, 0.0, c.chamfer_m / 2]
            chamfer = block.add_geom(
                name=f"chamfer{k}",
                type=mujoco.mjtGeom.mjGEOM_BOX,
                size=(slope / 2, wide, thick / 4),
                pos=middle + inward * thick / 4,
                quat=both,
            )
            for face in (wall, chamfer):
                _hard(face, c.friction)
                face.contype, face.conaffinity = 2, 1
        floor = block.add_geom(
            name="hole_floor",
            type=mujoco.mjtGeom.mjGEOM_BOX,
            size=(rim, rim, 0.005),
            pos=(0.0, 0.0, -c.hole_depth_m - 0.005),
            contype=2,
            conaffinity=1,
        )
        _hard(floor, c.friction)

    def reset(self, seed: int, q_start: FloatArray) -> None:
        """Place the block from ``seed`` and the arm at rest at ``q_start`` [7]."""
        c = self.config
        rng = np.random.default_rng(seed)
        self.lateral_m = rng.uniform(*c.lateral_m)
        self.tilt_rad = rng.uniform(*c.tilt_rad)
        toward, about = rng.uniform(0.0, 2.0 * math.pi, 2)
        model = self.plant.model
        offset = self.lateral_m * np.array([math.cos(toward), math.sin(toward), 0.0])
        model.body_pos[self._block] = np.array(c.mouth_m) + offset
        axis = np.array([math.cos(about), math.sin(about), 0.0])
        mujoco.mju_axisAngle2Quat(model.body_quat[self._block], axis, self.tilt_rad)
        self.plant.reset(q_start)

    def depth_m(self) -> float:
        """Tip below the block's true rim, along the hole's axis."""
        data = self.plant.data
        away = data.site_xpos[self._tip] - data.xpos[self._block]
        return -float(data.xmat[self._block].reshape(3, 3)[:, 2] @ away)

    def forces_n(self) -> FloatArray:
        """[4]: the net contact force on the peg (x, y, z), and the sum of the normal forces."""
        data = self.plant.data
        out = np.zeros(4)
        if data.ncon:
            mujoco.mj_rnePostConstraint(self.plant.model, data)
            rows = data.contact.efc_address
            out[:3] = data.cfrc_ext[self._peg, 3:]
            out[3] = data.efc_force[rows[rows >= 0]].sum()
        return out


def _hard(geom: mujoco.MjsGeom, friction: float) -> None:
    """Metal on metal: stiff contact, given sliding friction."""
    geom.condim = 3
    geom.friction = (friction, 0.0, 0.0)
    geom.solref = (0.002, 1.0)
    geom.solimp[0:3] = (0.95, 0.99, 0.0002)


def nominal_path(
    robot: RobotConfig, config: InsertionConfig, start_s: float, pieces: int = 40
) -> SplineReference:
    """Joint spline of the straight path to the nominal hole, tool pointing down.

    The tip's speed follows the minimum-jerk profile; between the knots it stays within a few
    micrometres of the line.
    """
    tool = ToolKinematics(robot.urdf, robot.joint_names)
    down = np.diag([1.0, -1.0, -1.0])
    x = np.linspace(0.0, 1.0, pieces + 1)
    share = x**3 * (10.0 - 15.0 * x + 6.0 * x**2)
    length = config.start_above_m + config.end_below_m
    rows = []
    q = robot.home_rad
    for s in share:
        above = config.start_above_m - s * length + config.peg_length_m
        position = np.array(config.mouth_m) + [0.0, 0.0, above]
        for tolerance in (1e-3, 1e-5, 1e-6):
            # drawn to where it is: a pull elsewhere keeps the solver a little off the pose
            q = tool.solve(position, down, q, q, tolerance_m=tolerance, iterations=200)
        rows.append(q)
    n = len(robot.joints)
    return spline_reference(
        start_s + config.motion_s * x, np.array(rows), start_velocity=np.zeros(n),
        start_acceleration=np.zeros(n), sequence=1, stamp_s=start_s,
    )


def stiffest_gains(controller: ImpedanceController) -> tuple[FloatArray, FloatArray]:
    """Highest allowed stiffness, and the highest damping in proportion that the loop accepts."""
    joints = controller.arm.config.joints
    kp = np.array([joint.kp.maximum for joint in joints])
    low = np.array([joint.kd.default for joint in joints])
    high = np.array([joint.kd.maximum for joint in joints])
    share = 0.0
    for trial in np.linspace(0.0, 1.0, 41):
        if not controller.check_gains(kp, low + trial * (high - low), CONTROL_PERIOD_S):
            share = float(trial)
    return kp, low + share * (high - low)


class FieldLaw:
    """The project's controller following ``path``, derivatives and feed-forward included."""

    def __init__(
        self, arm: ArmModel, path: SplineReference, q: FloatArray,
        gains: tuple[FloatArray, FloatArray] | None = None,
    ) -> None:
        self.controller = ImpedanceController(ControllerConfig(), arm)
        if gains is not None:
            self.controller.set_gains(*gains)
        self.controller.activate(0.0, q, np.zeros(arm.n))
        verdict = self.controller.offer(0.0, path)
        if not verdict.accepted:
            raise ValueError(f"the path was refused: {verdict}")

    def tick(self, t_s: float, q: FloatArray, dq: FloatArray) -> FloatArray:
        return self.controller.tick(t_s, q, dq)


class WaypointLaw:
    """The controller's law, model and limits, fed with less than the field knows.

    ``rate_hz`` 0 reads positions at every tick, else positions are waypoints held in between.
    ``velocity`` is 'none' (zero reference), 'difference' (of successive waypoints, held) or
    'exact' (with the acceleration too: then this is the controller's own law).
    """

    def __init__(
        self, arm: ArmModel, path: SplineReference, q: FloatArray,
        gains: tuple[FloatArray, FloatArray], velocity: str, rate_hz: float = 0.0,
    ) -> None:
        if velocity not in ("none", "difference", "exact"):
            raise ValueError(f"velocity {velocity!r} is not none, difference or exact")
        if velocity == "difference" and not rate_hz > 0.0:
            raise ValueError(f"rate_hz is {rate_hz}; differences need waypoints")
        self.arm, self.path, self.velocity = arm, path, velocity
        self.kp, self.kd = gains
        self._period_s = 1.0 / rate_hz if rate_hz > 0.0 else 0.0
        defaults = ControllerConfig()
        self._speed = defaults.coulomb_speed_rad_s
        joints = arm.config.joints
        self._coulomb = FRICTION_SHARE * np.array([joint.coulomb_nm for joint in joints])
        self._viscous = FRICTION_SHARE * np.array([joint.viscous_nms_rad for joint in joints])
        self._tau = arm.gravity_torque(q).copy()
        self._last_s = 0.0

    def reference(self, t_s: float) -> FloatArray:
        """Position, velocity and acceleration [3, n] that the law is given at ``t_s``."""
        if self.velocity == "exact":
            return np.asarray(self.path.jet(t_s, 2))
        jet = np.zeros((3, self.arm.n))
        period = self._period_s
        if period == 0.0:
            jet[0] = self.path.jet(t_s, 0)[0]
            return jet
        index = math.floor(t_s / period + 1e-9)
        jet[0] = self.path.jet((index + 1) * period, 0)[0]  # where to be when the next one comes
        if self.velocity == "difference":
            jet[1] = (jet[0] - self.path.jet(index * period, 0)[0]) / period
        return jet

    def tick(self, t_s: float, q: FloatArray, dq: FloatArray) -> FloatArray:
        wanted, speed, acceleration = self.reference(t_s)
        wish = (
            self.kp * (wanted - q) + self.kd * (speed - dq)
            + self.arm.inverse_dynamics(q, dq, acceleration)
            + self._coulomb * np.tanh(speed / self._speed) + self._viscous * speed
        )
        limits = self.arm.limits
        step = limits.torque_rate_nm_s * (t_s - self._last_s)
        self._last_s = t_s
        wish = np.clip(wish, self._tau - step, self._tau + step)
        self._tau = np.clip(wish, -limits.torque_nm, limits.torque_nm)
        return self._tau


def insert(cell: InsertionCell, law: Law, seed: int) -> Outcome:
    """Run the motion to its end; the cell must have been reset with ``seed``."""
    config, plant = cell.config, cell.plant
    ticks = round((config.motion_s + config.settle_s) / CONTROL_PERIOD_S)
    forces = np.empty((ticks, 4))
    felt, share = np.zeros(3), 1.0 - math.exp(-2.0 * math.pi * SENSOR_HZ * CONTROL_PERIOD_S)
    peak = 0.0
    for k in range(ticks):
        plant.step(law.tick(plant.time_s, plant.q, plant.dq))
        forces[k] = cell.forces_n()
        felt += share * (forces[k, :3] - felt)
        peak = max(peak, float(np.linalg.norm(felt)))
    net, squeeze = np.linalg.norm(forces[:, :3], axis=1), forces[:, 3]
    touching = squeeze > 0.0
    depth = cell.depth_m()
    return Outcome(
        seed=seed,
        lateral_m=cell.lateral_m,
        tilt_rad=cell.tilt_rad,
        depth_m=depth,
        success=depth >= config.success_depth_m,
        net_peak_n=peak,
        net_peak_raw_n=float(net.max()),
        net_rms_n=_rms(net[touching]),
        impulse_ns=float(net.sum() * CONTROL_PERIOD_S),
        squeeze_rms_n=_rms(squeeze[touching]),
        final_squeeze_n=float(np.mean(squeeze[-100:])),
    )


def _rms(values: FloatArray) -> float:
    return float(np.sqrt(np.mean(values**2))) if values.size else 0.0
