"""Description of one arm, read from YAML and checked field by field.

The URDF gives geometry, inertia and position limits; this file gives what a URDF does not know:
limits of acceleration and torque rate, gains and their ranges, friction, rotor inertia, gripper.
"""

from __future__ import annotations

import importlib.metadata
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from niaf_impedance.description_reader import (
    DescriptionReader,
    RobotConfigError,
    open_description,
)

__all__ = [
    "CartesianConfig",
    "GainRange",
    "GripperConfig",
    "JointConfig",
    "PayloadConfig",
    "RobotConfig",
    "RobotConfigError",
    "WorkspaceConfig",
    "default_robot_config_path",
    "load_robot_config",
    "resolve_urdf",
]

FloatArray = np.ndarray


@dataclass(frozen=True)
class GainRange:
    """Default and allowed range of one gain."""

    default: float
    minimum: float
    maximum: float


@dataclass(frozen=True)
class AxisGains:
    """Default along (or about) each of three axes, and the allowed range of all of them."""

    default: tuple[float, float, float]
    minimum: float
    maximum: float


@dataclass(frozen=True)
class JointConfig:
    """What the controller must know about one joint beyond its URDF entry."""

    name: str
    home_rad: float
    position_margin_rad: float
    velocity_limit_rad_s: float
    acceleration_limit_rad_s2: float
    jerk_limit_rad_s3: float
    torque_limit_nm: float
    torque_rate_limit_nm_s: float
    kp: GainRange
    kd: GainRange
    damp_nms_rad: float
    coulomb_nm: float
    viscous_nms_rad: float
    armature_kgm2: float


@dataclass(frozen=True)
class GripperConfig:
    """Gripper that follows the field channel ``channel`` (opening width, metres).

    ``joint`` is its joint in ``joint_states``; width = ``width_scale`` * joint position. Every URDF
    joint that is not an arm joint is locked at ``lock_position_m`` in the dynamics.
    """

    channel: str
    joint: str
    width_scale: float
    max_width_m: float
    speed_limit_m_s: float
    hysteresis_m: float
    lock_position_m: float


@dataclass(frozen=True)
class PayloadConfig:
    """Point mass carried by the last joint, centre of mass in that joint's frame."""

    mass_kg: float = 0.0
    com_m: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class WorkspaceConfig:
    """Box that the tool frame's origin may not leave, in the frame of the URDF's root."""

    min_m: tuple[float, float, float]
    max_m: tuple[float, float, float]


@dataclass(frozen=True)
class CartesianConfig:
    """Cartesian impedance at the tool frame, for references that move the tool.

    Stiffness and damping are given along and about the axes of the base, or (``axes``: "tool") of
    the tool frame as the reference has it. The clips bound the pose and twist error that they act
    on, ``null_*`` is the pull towards the posture at activation
    (capped at ``null_torque_nm``). ``singular_value`` and ``length_m``: below this singular value
    of the Jacobian (metres divided by the length) a direction is damped. ``limit_margin_rad``:
    width of the push away from joint limits, ``limit_torque_share`` its largest torque over the
    limit.
    """

    stiffness_n_m: AxisGains
    stiffness_nm_rad: AxisGains
    damping_ns_m: AxisGains
    damping_nms_rad: AxisGains
    null_stiffness_nm_rad: GainRange
    null_damping_nms_rad: GainRange
    null_torque_nm: float
    error_clip_m: float
    error_clip_rad: float
    velocity_clip_m_s: float
    velocity_clip_rad_s: float
    singular_value: float
    length_m: float
    limit_margin_rad: float
    limit_torque_share: float
    axes: str = "base"


@dataclass(frozen=True)
class RobotConfig:
    """One arm. ``urdf`` is the resolved path; ``feedback_delay_s`` the delay inside the drives.

    ``gravity_added_by_robot``: its torque interface adds the arm's gravity to what is sent, so that
    none is sent. ``tool_frame`` is a frame of the URDF behind the last joint; empty: the last
    joint's own frame.
    """

    robot: str
    urdf: Path
    base_frame: str
    gravity_m_s2: tuple[float, float, float]
    feedback_delay_s: float
    joints: tuple[JointConfig, ...]
    gripper: GripperConfig | None
    payload: PayloadConfig
    source: Path
    tool_frame: str = ""
    workspace: WorkspaceConfig | None = None
    gravity_added_by_robot: bool = False
    cartesian: CartesianConfig | None = None

    @property
    def joint_names(self) -> tuple[str, ...]:
        return tuple(joint.name for joint in self.joints)

    @property
    def home_rad(self) -> FloatArray:
        return np.array([joint.home_rad for joint in self.joints])


def default_robot_config_path(name: str = "panda") -> Path:
    """Path of a robot description shipped with this package (installed or from the source tree)."""
    file = f"{name}.yaml"
    source = Path(__file__).resolve().parent.parent / "config" / file
    if source.is_file():
        return source
    try:
        from ament_index_python.packages import get_package_share_directory

        share = Path(get_package_share_directory("niaf_impedance")) / "config" / file
    except Exception as error:
        raise RobotConfigError(
            f"robot description {file!r} not found beside the package, and the ROS index does not "
            f"know niaf_impedance ({error}); source the workspace or give a full path"
        ) from error
    if not share.is_file():
        known = sorted(p.stem for p in share.parent.glob("*.yaml"))
        raise RobotConfigError(f"no robot description {name!r}; shipped ones: {known}")
    return share


def resolve_urdf(text: str, beside: Path) -> Path:
    """Path of the URDF named by ``text`` (see the comment in ``config/panda.yaml``)."""
    if text.startswith("example-robot-data:"):
        tail = text.split(":", 1)[1]
        path = _in_example_robot_data(tail)
        if path is None:
            raise RobotConfigError(
                f"urdf: {text!r} not found: install the PyPI package example-robot-data or the ROS "
                "package example-robot-data, or give a path to the URDF"
            )
        return path
    if text.startswith("package://"):
        package, _, tail = text[len("package://") :].partition("/")
        try:
            from ament_index_python.packages import get_package_share_directory

            path = Path(get_package_share_directory(package)) / tail
        except Exception as error:
            raise RobotConfigError(
                f"urdf: ROS package {package!r} of {text!r} not found ({error}); "
                "source its workspace or give a path"
            ) from error
    else:
        path = Path(os.path.expandvars(text)).expanduser()
        if not path.is_absolute():
            path = beside / path
    if not path.is_file():
        raise RobotConfigError(f"urdf: file {path} does not exist (given as {text!r})")
    return path


def _in_example_robot_data(tail: str) -> Path | None:
    try:
        for entry in importlib.metadata.files("example-robot-data") or ():
            if str(entry).endswith(f"robots/{tail}"):
                return Path(os.path.realpath(str(entry.locate())))
    except importlib.metadata.PackageNotFoundError:
        pass
    prefixes = os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) + ["/usr", "/usr/local"]
    for prefix in filter(None, prefixes):
        path = Path(prefix) / "share" / "example-robot-data" / "robots" / tail
        if path.is_file():
            return path
    return None


def _gain(reader: DescriptionReader, key: str) -> GainRange:
    inner = reader.inner(key)
    low = inner.number("min", 0.0)
    high = inner.number("max", low)
    gain = GainRange(inner.number("default", low, high), low, high)
    inner.finish()
    return gain


def _axis_gains(reader: DescriptionReader, key: str) -> AxisGains:
    """``default`` is one number for all axes, or a list of three."""
    inner = reader.inner(key)
    low = inner.number("min", 0.0)
    high = inner.number("max", low)
    if isinstance(inner.get("default"), list):
        for i, value in enumerate(default := inner.vector("default")):
            inner.check(f"default[{i}]", value, low, high)
    else:
        default = (inner.number("default", low, high),) * 3
    inner.finish()
    return AxisGains(default, low, high)


def _joint(reader: DescriptionReader) -> JointConfig:
    name = reader.text("name")
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
        raise reader.fail("name", f"{name!r} cannot be part of a ROS parameter name "
                          "(letters, digits and _ only); rename the joint in the URDF")
    reader.where = f"joints[{name}]"
    joint = JointConfig(
        name=name,
        home_rad=reader.number("home_rad"),
        position_margin_rad=reader.number("position_margin_rad", 0.0),
        velocity_limit_rad_s=reader.number("velocity_limit_rad_s", 0.0, above=True),
        acceleration_limit_rad_s2=reader.number("acceleration_limit_rad_s2", 0.0, above=True),
        jerk_limit_rad_s3=reader.optional_number("jerk_limit_rad_s3", math.inf, 0.0, above=True),
        torque_limit_nm=reader.number("torque_limit_nm", 0.0, above=True),
        torque_rate_limit_nm_s=reader.number("torque_rate_limit_nm_s", 0.0, above=True),
        kp=_gain(reader, "kp"),
        kd=_gain(reader, "kd"),
        damp_nms_rad=reader.number("damp_nms_rad", 0.0, above=True),
        coulomb_nm=reader.number("coulomb_nm", 0.0),
        viscous_nms_rad=reader.number("viscous_nms_rad", 0.0),
        armature_kgm2=reader.number("armature_kgm2", 0.0),
    )
    reader.finish()
    return joint


def _gripper(reader: DescriptionReader) -> GripperConfig:
    max_width = reader.number("max_width_m", 0.0, above=True)
    gripper = GripperConfig(
        channel=reader.text("channel"),
        joint=reader.text("joint"),
        width_scale=reader.number("width_scale", 0.0, above=True),
        max_width_m=max_width,
        speed_limit_m_s=reader.number("speed_limit_m_s", 0.0, above=True),
        hysteresis_m=reader.number("hysteresis_m", 0.0, max_width / 2),
        lock_position_m=reader.number("lock_position_m"),
    )
    reader.finish()
    return gripper


def _cartesian(reader: DescriptionReader) -> CartesianConfig:
    config = CartesianConfig(
        stiffness_n_m=_axis_gains(reader, "stiffness_n_m"),
        stiffness_nm_rad=_axis_gains(reader, "stiffness_nm_rad"),
        damping_ns_m=_axis_gains(reader, "damping_ns_m"),
        damping_nms_rad=_axis_gains(reader, "damping_nms_rad"),
        null_stiffness_nm_rad=_gain(reader, "null_stiffness_nm_rad"),
        null_damping_nms_rad=_gain(reader, "null_damping_nms_rad"),
        null_torque_nm=reader.number("null_torque_nm", 0.0, above=True),
        error_clip_m=reader.number("error_clip_m", 0.0, 1.0, above=True),
        error_clip_rad=reader.number("error_clip_rad", 0.0, 3.0, above=True),
        velocity_clip_m_s=reader.number("velocity_clip_m_s", 0.0, 5.0, above=True),
        velocity_clip_rad_s=reader.number("velocity_clip_rad_s", 0.0, 20.0, above=True),
        singular_value=reader.number("singular_value", 0.0, 1.0, above=True),
        length_m=reader.number("length_m", 0.0, 5.0, above=True),
        limit_margin_rad=reader.number("limit_margin_rad", 0.0, 1.0, above=True),
        limit_torque_share=reader.number("limit_torque_share", 0.0, 1.0),
        axes=reader.choice("axes", ("base", "tool")) if reader.has("axes") else "base",
    )
    reader.finish()
    return config


def load_robot_config(path: str | Path) -> RobotConfig:
    """Read and check a robot description. Raises RobotConfigError naming key, value, remedy."""
    reader = open_description(path, "robot")
    joints = tuple(_joint(inner) for inner in reader.items("joints", "joint"))
    names = [joint.name for joint in joints]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise reader.fail("joints", f"joint {twice[0]!r} is listed twice; remove one entry")
    gripper = None
    if reader.has("gripper"):
        gripper = _gripper(reader.inner("gripper"))
    payload = PayloadConfig()
    if reader.has("payload"):
        inner = reader.inner("payload")
        payload = PayloadConfig(inner.number("mass_kg", 0.0), inner.vector("com_m"))
        inner.finish()
    workspace = None
    if reader.has("workspace"):
        inner = reader.inner("workspace")
        workspace = WorkspaceConfig(inner.vector("min_m"), inner.vector("max_m"))
        inner.finish()
        if not all(low < high for low, high in zip(workspace.min_m, workspace.max_m, strict=True)):
            raise reader.fail("workspace", f"min_m {workspace.min_m} must lie below max_m "
                              f"{workspace.max_m} on every axis; swap or correct them")
    cartesian = None
    if reader.has("cartesian"):
        cartesian = _cartesian(reader.inner("cartesian"))
    tool_frame = ""
    if reader.has("tool_frame") and reader.mapping["tool_frame"] != "":
        tool_frame = reader.text("tool_frame")
    config = RobotConfig(
        robot=reader.text("robot"),
        urdf=resolve_urdf(reader.text("urdf"), reader.file.resolve().parent),
        base_frame=reader.text("base_frame"),
        gravity_m_s2=reader.vector("gravity_m_s2"),
        feedback_delay_s=reader.number("feedback_delay_s", 0.0, 0.1),
        joints=joints,
        gripper=gripper,
        payload=payload,
        tool_frame=tool_frame,
        gravity_added_by_robot=reader.flag("gravity_added_by_robot", False),
        workspace=workspace,
        cartesian=cartesian,
        source=reader.file,
    )
    reader.finish()
    return config
