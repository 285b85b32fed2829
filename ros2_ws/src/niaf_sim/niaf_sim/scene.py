"""The MuJoCo model of the cell: Panda on a table, three cubes, a bin, three cameras.

The robot comes from the ``example-robot-data`` URDF. URDF has no actuators, rotor inertia or
usable friction, so they are added here from :class:`SceneConfig`. The arm's collision meshes double
as its visuals: MuJoCo has no decoder for the ``.dae`` ones, and 2300 faces render fast in software.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import mujoco
import numpy as np

ARM_JOINTS = tuple(f"panda_joint{i}" for i in range(1, 8))
FINGER_JOINTS = ("panda_finger_joint1", "panda_finger_joint2")
CUBE_RGBA = ((0.85, 0.08, 0.08, 1.0), (0.08, 0.65, 0.12, 1.0), (0.10, 0.20, 0.90, 1.0))
HOME_Q = (0.0, -0.35, 0.0, -2.30, 0.0, 1.95, 0.785398)
GRIPPER_MAX_M = 0.08


@dataclass(frozen=True)
class CameraConfig:
    """A camera: image size in pixels, vertical field of view in degrees, pose in its body."""

    name: str
    width: int
    height: int
    fovy_deg: float
    position_m: tuple[float, float, float]
    look_at_m: tuple[float, float, float]
    body: str = "world"
    shadows: bool = False


@dataclass(frozen=True)
class SceneConfig:
    """Everything of the cell that is not the URDF. Per-joint tuples have 7 entries."""

    timestep_s: float = 0.0005
    torque_limit_nm: tuple[float, ...] = (87.0, 87.0, 87.0, 87.0, 12.0, 12.0, 12.0)
    #: rotor inertia seen at the joint
    armature_kgm2: tuple[float, ...] = (0.1,) * 7
    coulomb_nm: tuple[float, ...] = (0.4, 0.4, 0.3, 0.3, 0.15, 0.15, 0.10)
    viscous_nms: tuple[float, ...] = (0.5, 0.5, 0.4, 0.4, 0.2, 0.2, 0.15)
    cube_half_m: float = 0.02
    cube_mass_kg: float = 0.05
    bin_position_m: tuple[float, float, float] = (0.50, -0.30, 0.0)
    bin_half_m: float = 0.085
    bin_wall_m: float = 0.05
    grip_force_n: float = 35.0
    cameras: tuple[CameraConfig, ...] = (
        CameraConfig("scene", 96, 96, 36.0, (1.12, -0.07, 0.62), (0.50, -0.07, 0.02)),
        CameraConfig("wrist", 96, 96, 75.0, (0.08, 0.0, 0.02), (0.035, 0.0, 0.13), "panda_hand"),
        CameraConfig("overview", 480, 360, 42.0, (1.45, 0.85, 0.95), (0.32, -0.03, 0.27)),
    )


def panda_urdf_path() -> Path:
    """URDF of the ``example-robot-data`` wheel; raises FileNotFoundError with the remedy."""
    name = "robots/panda_description/urdf/panda.urdf"
    try:
        files = metadata.files("example-robot-data") or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if str(file).endswith(name):
            return Path(str(file.locate())).resolve()
    raise FileNotFoundError(
        f"no {name}: the package example-robot-data is not installed in this Python "
        "(run `make setup`, or `pip install example-robot-data`)"
    )


def _look_at(position: tuple[float, ...], target: tuple[float, ...]) -> np.ndarray:
    """Quaternion (w, x, y, z) of a MuJoCo camera (looks along -z, y up) at ``position``."""
    backward = np.asarray(position, dtype=float) - np.asarray(target, dtype=float)
    backward /= np.linalg.norm(backward)
    up = np.array([0.0, 0.0, 1.0])
    if abs(backward @ up) > 0.999:
        up = np.array([1.0, 0.0, 0.0])
    right = np.cross(up, backward)
    right /= np.linalg.norm(right)
    matrix = np.column_stack([right, np.cross(backward, right), backward])
    quaternion = np.empty(4)
    mujoco.mju_mat2Quat(quaternion, matrix.ravel())
    return quaternion


def _look_along_hand(position: tuple[float, ...], target: tuple[float, ...]) -> np.ndarray:
    """As :func:`_look_at`, for a camera on the hand, whose image is upright when x points up."""
    backward = np.asarray(position, dtype=float) - np.asarray(target, dtype=float)
    backward /= np.linalg.norm(backward)
    right = np.cross(np.array([1.0, 0.0, 0.0]), backward)
    right /= np.linalg.norm(right)
    matrix = np.column_stack([right, np.cross(backward, right), backward])
    quaternion = np.empty(4)
    mujoco.mju_mat2Quat(quaternion, matrix.ravel())
    return quaternion


def build_model(config: SceneConfig) -> mujoco.MjModel:
    """Compile the cell. Contact groups: arm (1) touches objects (2); the arm not itself."""
    urdf = panda_urdf_path()
    share = urdf.parents[4]
    text = urdf.read_text().replace("package://", f"{share}/")
    head, tail = text.split("<robot", 1)
    attributes, body = tail.split(">", 1)
    compiler = (
        '<mujoco><compiler strippath="false" balanceinertia="true" discardvisual="true" '
        'fusestatic="false"/></mujoco>'
    )
    spec = mujoco.MjSpec.from_string(f"{head}<robot{attributes}>{compiler}{body}")
    option = spec.option
    option.timestep = config.timestep_s
    option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    option.impratio = 10.0

    for geom in spec.geoms:
        geom.contype, geom.conaffinity = 1, 0
        geom.rgba = (0.88, 0.88, 0.90, 1.0)
        parent = geom.parent.name
        if "finger" in parent:
            geom.rgba = (0.25, 0.25, 0.28, 1.0)
            geom.friction = (1.2, 0.02, 0.001)
            geom.condim = 4
            geom.solimp[0:3] = (0.95, 0.99, 0.001)
            geom.solref = (0.004, 1.0)
        elif parent == "panda_hand":
            geom.rgba = (0.35, 0.35, 0.40, 1.0)
    for i, name in enumerate(ARM_JOINTS):
        joint = spec.joint(name)
        joint.armature = config.armature_kgm2[i]
        joint.frictionloss = config.coulomb_nm[i]
        joint.damping = (config.viscous_nms[i], 0.0, 0.0)  # linear term of a polynomial
        motor = spec.add_actuator(name=f"motor{i + 1}", target=name)
        motor.trntype = mujoco.mjtTrn.mjTRN_JOINT
        limit = config.torque_limit_nm[i]
        motor.ctrllimited = True
        motor.ctrlrange = (-limit, limit)
    for name in FINGER_JOINTS:
        joint = spec.joint(name)
        joint.armature = 0.1
        joint.damping = (2.0, 0.0, 0.0)
        joint.frictionloss = 0.0
    _add_gripper(spec, config)
    _add_world(spec, config)
    for camera in config.cameras:
        parent = spec.worldbody if camera.body == "world" else spec.body(camera.body)
        aim = _look_at if camera.body == "world" else _look_along_hand
        parent.add_camera(
            name=camera.name,
            pos=camera.position_m,
            quat=aim(camera.position_m, camera.look_at_m),
            fovy=camera.fovy_deg,
        )
    model = spec.compile()
    # Multisampling and shadows cost more than everything else in software rendering (one extra
    # pass over all faces each) and must be fixed before the first renderer exists.
    model.vis.quality.offsamples = 0
    model.vis.global_.offwidth = max(c.width for c in config.cameras)
    model.vis.global_.offheight = max(c.height for c in config.cameras)
    model.vis.map.znear = 0.005
    return model


def _add_gripper(spec: mujoco.MjSpec, config: SceneConfig) -> None:
    """Mechanically coupled fingers, one force-limited position actuator on the opening width."""
    coupling = spec.add_equality(name="fingers", type=mujoco.mjtEq.mjEQ_JOINT)
    coupling.objtype = mujoco.mjtObj.mjOBJ_JOINT
    coupling.name1, coupling.name2 = FINGER_JOINTS
    coupling.data[0:5] = (0.0, 1.0, 0.0, 0.0, 0.0)
    coupling.solref = (0.005, 1.0)
    width = spec.add_tendon(name="gripper_width")
    for name in FINGER_JOINTS:
        width.wrap_joint(name, 1.0)
    servo = spec.add_actuator(name="gripper", target="gripper_width")
    servo.trntype = mujoco.mjtTrn.mjTRN_TENDON
    servo.gaintype = mujoco.mjtGain.mjGAIN_FIXED
    servo.biastype = mujoco.mjtBias.mjBIAS_AFFINE
    stiffness, damping = 1500.0, 60.0
    servo.gainprm[0] = stiffness
    servo.biasprm[0:3] = (0.0, -stiffness, -damping)
    servo.ctrllimited = True
    servo.ctrlrange = (0.0, GRIPPER_MAX_M)
    servo.forcelimited = True
    servo.forcerange = (-config.grip_force_n, config.grip_force_n)


def _add_world(spec: mujoco.MjSpec, config: SceneConfig) -> None:
    box, plane = mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_PLANE
    world = spec.worldbody
    world.add_light(
        pos=(0.6, 0.6, 2.0),
        dir=(-0.1, -0.3, -1.0),
        castshadow=False,
        diffuse=(0.7, 0.7, 0.7),
        specular=(0.1, 0.1, 0.1),
    )
    spec.visual.headlight.ambient = (0.35, 0.35, 0.35)
    spec.visual.headlight.diffuse = (0.35, 0.35, 0.35)
    spec.visual.headlight.specular = (0.0, 0.0, 0.0)
    world.add_geom(
        name="floor",
        type=plane,
        size=(3.0, 3.0, 0.1),
        pos=(0.0, 0.0, -0.75),
        rgba=(0.45, 0.48, 0.52, 1.0),
        contype=2,
        conaffinity=3,
    )
    world.add_geom(
        name="table",
        type=box,
        size=(0.5, 0.6, 0.02),
        pos=(0.42, 0.0, -0.02),
        rgba=(0.72, 0.60, 0.45, 1.0),
        contype=2,
        conaffinity=3,
    )
    x, y, z = config.bin_position_m
    half, wall, height = config.bin_half_m, 0.004, config.bin_wall_m
    grey = (0.30, 0.30, 0.33, 1.0)
    panels = (
        ("floor", (half, half, wall / 2), (x, y, z + wall / 2)),
        ("x+", (wall, half, height / 2), (x + half, y, z + height / 2)),
        ("x-", (wall, half, height / 2), (x - half, y, z + height / 2)),
        ("y+", (half, wall, height / 2), (x, y + half, z + height / 2)),
        ("y-", (half, wall, height / 2), (x, y - half, z + height / 2)),
    )
    for name, size, position in panels:
        world.add_geom(
            name=f"bin_{name}",
            type=box,
            size=size,
            pos=position,
            rgba=grey,
            contype=2,
            conaffinity=3,
        )
    for i, rgba in enumerate(CUBE_RGBA):
        body = world.add_body(name=f"cube{i}", pos=(0.5, 0.1 * i, config.cube_half_m))
        body.add_freejoint(name=f"cube{i}")
        body.add_geom(
            name=f"cube{i}",
            type=box,
            size=(config.cube_half_m,) * 3,
            rgba=rgba,
            mass=config.cube_mass_kg,
            friction=(1.0, 0.02, 0.001),
            condim=4,
            solimp=(0.95, 0.99, 0.001, 0.5, 2.0),
            solref=(0.004, 1.0),
            contype=2,
            conaffinity=3,
        )
