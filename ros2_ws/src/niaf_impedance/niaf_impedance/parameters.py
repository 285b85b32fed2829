"""Parameters of the impedance node: one table for declaration, validation and documentation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from niaf_impedance import tuning as tune
from niaf_impedance.lateness import LIMITS, LoopLimits
from niaf_impedance.robot_config import RobotConfig
from niaf_impedance.settings import FEEDFORWARD, ControllerConfig
from niaf_impedance.tuning import Tuning

Value = bool | int | float | str


@dataclass(frozen=True)
class ParameterSpec:
    """One parameter. ``live``: may be changed while the node runs; others are read at configure."""

    name: str
    default: Value
    unit: str
    description: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    live: bool = False

    @property
    def type_name(self) -> str:
        return {bool: "bool", int: "integer", float: "double", str: "string"}[type(self.default)]


_NODE = (
    ParameterSpec("robot_config", "", "", "Robot description (YAML); empty: the Panda shipped with "
                  "niaf_impedance."),
    ParameterSpec("base_frame", "", "", "frame_id of states and reports; empty: the base frame of "
                  "the robot description."),
    ParameterSpec("prior", "", "", "prior.safetensors, or the checkpoint folder that holds it."),
    ParameterSpec("arm_interface", "effort", "", "How the arm is reached: effort (topics of "
                  "ros2_control and of the simulator), or by frames of its motors on a bus: "
                  "mit_can or moteus.", choices=("effort", "mit_can", "moteus")),
    ParameterSpec("drive_config", "", "", "Drive description (YAML) of motors on a bus; empty: "
                  "that of the simulated Panda's."),
    ParameterSpec("autostart", True, "", "Configure and activate without a lifecycle manager."),
    ParameterSpec("loop", "event", "", "What a tick waits for over topics: the joint state (event: "
                  "the freshest state) or a deadline of the compiled loop in a thread of its own "
                  "(clock: a steady time base that needs no Python). Over a bus it is the clock.",
                  choices=("event", "clock")),
    ParameterSpec("control_rate_hz", 1000.0, "Hz", "Expected rate of joint_states; with loop: "
                  "clock the rate of the loop. Timing figures and the damping bound refer to it.",
                  50.0, 5000.0),
    ParameterSpec("late_brake_s", LIMITS.brake_lateness_s, "s", "One tick that comes this late by "
                  "the loop's own doing brakes along the path; one later than state_timeout_s "
                  "damps.", 0.001, 10.0),
    ParameterSpec("late_window_s", LIMITS.window_s, "s", "Time over which the share of late "
                  "periods is averaged; a tick is late one period after it was due.", 0.1, 10.0),
    ParameterSpec("late_brake_share", LIMITS.brake_share, "1", "Share of late periods that brakes "
                  "along the path; 1 never does.", 0.01, 1.0),
    ParameterSpec("late_damp_share", LIMITS.damp_share, "1", "Share of late periods that damps; 1 "
                  "never does.", 0.01, 1.0),
    ParameterSpec("state_rate_hz", 100.0, "Hz", "Rate of ~/state.", 1.0, 1000.0, live=True),
    ParameterSpec("tool_pose_rate_hz", 100.0, "Hz", "Rate of ~/tool_pose, the measured pose that "
                  "policies anchor relative cartesian channels at.", 1.0, 1000.0),
    ParameterSpec("gripper_rate_hz", 50.0, "Hz", "Rate of gripper_controller/commands.", 1.0,
                  1000.0),
    ParameterSpec("field_max_age_s", 0.5, "s", "Oldest observation a new field may answer to.",
                  0.01, 30.0),
    ParameterSpec("field_max_future_s", 0.05, "s", "How far stamps may lie ahead of this node's "
                  "clock.", 0.0, 1.0),
    ParameterSpec("clock_skew_max_s", 0.1, "s", "Largest difference between a policy's clock and "
                  "this one, by its fastest messages, at which its fields are followed.", 0.005,
                  10.0),
    ParameterSpec("anchor", "field", "", "Where relative channels begin: at the pose that the "
                  "field names, or at the one that this node measured at its observation time.",
                  choices=("field", "measured")),
    ParameterSpec("handover_lead_s", 0.01, "s", "How far ahead of the present a hand-over is "
                  "planned: covers the judging of the new reference beside the running loop.",
                  0.0, 0.2),
    ParameterSpec("gains_file", "", "", "Where ~/save_gains writes the tuning; empty: "
                  "~/.ros/niaf/<robot>_gains.yaml."),
    ParameterSpec("journal", False, "", "Publish ~/journal: all that a bit-for-bit replay needs."),
    ParameterSpec("realtime_priority", 65, "", "SCHED_FIFO priority asked for; 0: do not ask.",
                  0, 99),
)

#: settings that may change while the arm runs
_LIVE_SETTINGS = frozenset({
    "blend_s", "blend_max_s", "gain_ramp_s", "velocity_filter_s", "slow_min_scale",
    "coulomb_speed_rad_s", "admit_velocity_ratio", "admit_acceleration_ratio",
    "admit_torque_ratio", "admit_torque_rate_ratio", "tracking_error_limit_rad",
    "tracking_tool_limit_m", "tracking_tool_limit_rad",
})

# unit, minimum, maximum, description of each ControllerConfig field that is a parameter
_CONTROLLER: dict[str, tuple[str, float | None, float | None, str]] = {
    "feedforward": ("", None, None, "Rigid-body torque: gravity, nonlinear (adds Coriolis) or full "
                    "(adds inertia times reference acceleration)."),
    "coulomb_speed_rad_s": ("rad/s", 0.001, 1.0, "Speed over which the Coulomb term changes sign."),
    "blend_s": ("s", 0.005, 2.0, "Duration of the hand-over from one reference to the next."),
    "blend_max_s": ("s", 0.005, 2.0, "Longest hand-over that admission may choose to keep limits."),
    "brake_s": ("s", 0.02, 2.0, "Shortest duration of braking along the path."),
    "brake_max_s": ("s", 0.02, 5.0, "Longest duration of braking along the path."),
    "bridge_s": ("s", 0.02, 5.0, "Time in which a motion that is left comes to rest."),
    "gain_ramp_s": ("s", 0.01, 10.0, "Time in which gains reach a new value."),
    "deactivate_s": ("s", 0.02, 10.0, "Ramp from holding to gravity only at deactivation."),
    "state_timeout_s": ("s", 0.002, 1.0, "Silence of joint_states after which the arm damps."),
    "jump_margin_rad": ("rad", 0.0, 1.0, "Jump of a measured position, beyond what twice the "
                        "velocity limit explains, that is a fault."),
    "frozen_reference_rad": ("rad", 0.0, 1.0, "How far a reference may go while the joint's "
                             "reading does not change in any bit; 0: not checked."),
    "frozen_motion_rad": ("rad", 0.0, 1.0, "How far the measured velocity may lead while the "
                          "joint's reading does not change in any bit; 0: not checked."),
    "overspeed_ratio": ("1", 1.0, 10.0, "Measured speed over velocity limit that is a fault."),
    "tracking_error_limit_rad": ("rad", 0.01, 10.0, "Tracking error that is a fault."),
    "tracking_tool_limit_m": ("m", 0.005, 1.0, "Position error of the tool that is a fault, for "
                              "references that move the tool."),
    "tracking_tool_limit_rad": ("rad", 0.01, 3.0, "Orientation error of the tool that is a fault, "
                                "for references that move the tool."),
    "standstill_rad_s": ("rad/s", 0.001, 0.5, "Speed below which ~/reset is allowed."),
    "damp_gravity": ("", None, None, "Carry the arm's weight in DAMP and ESTOP."),
    "admission_samples": ("1", 8, 1000, "Instants at which a new field is checked."),
    "admit_velocity_ratio": ("1", 0.1, 10.0, "Largest admitted peak velocity over limit."),
    "admit_acceleration_ratio": ("1", 0.1, 100.0, "Largest admitted peak acceleration over limit."),
    "admit_torque_ratio": ("1", 0.1, 1.0, "Largest admitted peak predicted torque over limit."),
    "admit_torque_rate_ratio": ("1", 0.1, 100.0, "Largest admitted mean torque rate between two "
                                "samples over its limit."),
    "seam_position_limit_rad": ("rad", 0.001, 10.0, "Largest admitted position step at a hand-over "
                                "(the blend takes it out)."),
    "seam_velocity_limit_rad_s": ("rad/s", 0.001, 100.0, "Largest admitted velocity step at a "
                                  "hand-over."),
    "seam_tool_position_limit_m": ("m", 0.001, 1.0, "Largest admitted position step of the tool at "
                                   "a hand-over."),
    "seam_tool_rotation_limit_rad": ("rad", 0.001, 2.0, "Largest admitted turn of the tool at a "
                                     "hand-over."),
    "seam_tool_velocity_limit_m_s": ("m/s", 0.001, 10.0, "Largest admitted velocity step of the "
                                     "tool at a hand-over."),
    "seam_tool_velocity_limit_rad_s": ("rad/s", 0.001, 100.0, "Largest admitted step of the tool's "
                                       "angular velocity at a hand-over."),
    "slow_min_scale": ("1", 0.05, 1.0, "How far admission may slow a reference that is too fast, "
                       "as a share of its speed; 1 refuses it instead."),
    "velocity_filter_s": ("s", 0.0, 0.02, "Time constant of the filter on the velocity that "
                          "damping sees; damping then acts that much later; 0: no filter."),
    "min_remaining_s": ("s", 0.0, 10.0, "Least time that a new field must still cover."),
}


def node_schema() -> tuple[ParameterSpec, ...]:
    """Parameters that do not depend on the arm."""
    defaults = {entry.name: entry.default for entry in fields(ControllerConfig)}
    controller = tuple(
        ParameterSpec(
            name, defaults[name], unit, text, low, high,  # type: ignore[arg-type]
            tuple(FEEDFORWARD) if name == "feedforward" else (), name in _LIVE_SETTINGS,
        )
        for name, (unit, low, high, text) in _CONTROLLER.items()
    )
    return _NODE + controller


_PER_JOINT = {  # unit, description
    "gains.{joint}.kp": ("Nm/rad", "Stiffness of {joint}; ramped."),
    "gains.{joint}.kd": ("Nm s/rad", "Damping of {joint}; ramped; unused while damping_ratio is "
                         "above 0."),
    "friction.{joint}.coulomb_nm": ("Nm", "Coulomb friction of {joint} that is compensated."),
    "friction.{joint}.viscous_nms_rad": ("Nm s/rad", "Viscous friction of {joint} that is "
                                         "compensated."),
    "limits.{joint}.torque_nm": ("Nm", "Largest torque commanded to {joint}."),
}
_GLOBAL = (
    ("stiffness_scale", "1", tune.STIFFNESS_SCALE, "Multiplies the stiffness of every joint."),
    ("damping_ratio", "1", tune.DAMPING_RATIO, "0: damping as set per joint; above: 2 ratio "
     "sqrt(kp M_ii(q)) with the inertia of the present pose."),
    ("error_clip_rad", "rad", tune.ERROR_CLIP_RAD, "Largest position error that stiffness acts on, "
     "so that a blocked arm pushes no harder; 0: no clip."),
    ("friction_scale", "1", tune.FRICTION_SCALE, "Share of the friction that is compensated."),
)


#: unit, description of ``tuning.TOOL_GAINS``
_CARTESIAN = (
    ("Nm/rad", "Pull towards the posture at activation, where the tool does not feel it"),
    ("Nm s/rad", "Damping of motion that the tool does not feel"),
)


#: unit, description by name of ``tuning.AXIS_GAINS``
_PER_AXIS = {
    "stiffness_n_m": ("N/m", "Stiffness of the tool's position along {axis}"),
    "stiffness_nm_rad": ("Nm/rad", "Stiffness of the tool's orientation about {axis}"),
    "damping_ns_m": ("N s/m", "Damping of the tool's velocity along {axis}"),
    "damping_nms_rad": ("Nm s/rad", "Damping of the tool's angular velocity about {axis}"),
}


def tuning_schema(robot: RobotConfig) -> tuple[ParameterSpec, ...]:
    """The live parameters that make up a :class:`Tuning`, with the ranges of the description."""
    defaults = Tuning.of(robot)
    specs = [
        ParameterSpec(name, getattr(defaults, name), unit, text, low, high, live=True)
        for name, unit, (low, high), text in _GLOBAL
    ]
    specs += [
        ParameterSpec(f"cartesian.{name}", gain.default, unit, f"{text}; ramped.", gain.minimum,
                      gain.maximum, live=True)
        for (name, gain), (unit, text) in zip(
            tune.tool_gains(robot).items(), _CARTESIAN, strict=False)
    ]
    frame = "" if robot.cartesian is None else robot.cartesian.axes
    for name, axes, triple, (low, high) in tune.per_axis(defaults, robot):
        unit, text = _PER_AXIS[name.split(".")[-1]]
        specs += [
            ParameterSpec(
                name.format(axis=axis), value, unit,
                f"{text.format(axis=axis[-1])} of the {frame}; ramped.", low, high, live=True,
            )
            for axis, value in zip(axes, triple, strict=True)
        ]
    for name, values, ranges in tune.per_joint(defaults, robot):
        unit, text = _PER_JOINT[name]
        specs += [
            ParameterSpec(
                name.format(joint=joint.name), value, unit, text.format(joint=joint.name), low,
                high, live=True,
            )
            for joint, value, (low, high) in zip(robot.joints, values, ranges, strict=True)
        ]
    return tuple(specs)


def tuning_from(values: Mapping[str, Value], robot: RobotConfig) -> Tuning:
    """Tuning from parameter values, names as in :func:`tuning_schema`; KeyError if one lacks."""
    rows = [
        tuple(float(values[name.format(joint=joint.name)]) for joint in robot.joints)
        for name in _PER_JOINT
    ]
    kp, kd, coulomb, viscous, torque = rows
    scale, ratio, clip, friction = (float(values[name]) for name, *_ in _GLOBAL)
    tool: dict[str, Any] = {
        f"tool_{name}": float(values[f"cartesian.{name}"]) for name in tune.tool_gains(robot)}
    for name in tune.axis_gains(robot):
        tool[f"tool_{name}"] = tuple(
            float(values[f"cartesian.{axis}.{name}"]) for axis in tune.AXIS_GAINS[name])
    return Tuning(kp, kd, coulomb, viscous, torque, scale, ratio, clip, friction, **tool)


def parameter_file_text(node: str, values: Mapping[str, Value]) -> str:
    """A ROS parameter file that sets ``values`` on every node called ``node``."""
    lines = [f"/**/{node}:", "  ros__parameters:"]
    lines += [f"    {name}: {value!r}" for name, value in sorted(values.items())]
    return "\n".join(lines) + "\n"


def controller_settings(values: dict[str, Value]) -> ControllerConfig:
    """ControllerConfig from parameter values (names as in the schema)."""
    known = {name: values[name] for name in _CONTROLLER if name in values}
    return ControllerConfig(**known)  # type: ignore[arg-type]


def loop_limits(values: Mapping[str, Value]) -> LoopLimits:
    """LoopLimits from parameter values; LoopLimitsError when they contradict each other."""
    brake_s, damp_s, window_s, brake, damp = (
        float(values[name]) for name in (
            "late_brake_s", "state_timeout_s", "late_window_s", "late_brake_share",
            "late_damp_share",
        )
    )
    return LoopLimits(
        brake_lateness_s=brake_s, damp_lateness_s=damp_s, window_s=window_s, brake_share=brake,
        damp_share=damp,
    )


def render_markdown(schema: tuple[ParameterSpec, ...]) -> str:
    """The schema as a Markdown table, for docs."""
    rows = ["| parameter | type | unit | default | range | live | meaning |",
            "|---|---|---|---|---|---|---|"]
    for spec in schema:
        if spec.choices:
            limits = ", ".join(spec.choices)
        elif spec.minimum is not None and spec.maximum is not None:
            limits = f"{spec.minimum:g} to {spec.maximum:g}"
        else:
            limits = ""
        default = spec.default if spec.default != "" else "(empty)"
        rows.append(
            f"| `{spec.name}` | {spec.type_name} | {spec.unit} | {default} | {limits} | "
            f"{'yes' if spec.live else ''} | {spec.description} |"
        )
    return "\n".join(rows) + "\n"
