"""Parameters of the impedance node: one table for declaration, validation and documentation."""

from __future__ import annotations

from dataclasses import dataclass, fields

from niaf_impedance.robot_config import RobotConfig
from niaf_impedance.settings import FEEDFORWARD, ControllerConfig

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
    ParameterSpec("prior", "", "", "prior.safetensors, or the checkpoint folder that holds it."),
    ParameterSpec("autostart", True, "", "Configure and activate without a lifecycle manager."),
    ParameterSpec("control_rate_hz", 1000.0, "Hz", "Expected rate of joint_states; the timing "
                  "figures and the damping bound refer to it.", 50.0, 5000.0),
    ParameterSpec("state_rate_hz", 100.0, "Hz", "Rate of ~/state.", 1.0, 1000.0),
    ParameterSpec("gripper_rate_hz", 50.0, "Hz", "Rate of gripper_controller/commands.", 1.0,
                  1000.0),
    ParameterSpec("field_max_age_s", 0.5, "s", "Oldest observation a new field may answer to.",
                  0.01, 30.0),
    ParameterSpec("field_max_future_s", 0.05, "s", "How far stamps may lie ahead of this node's "
                  "clock.", 0.0, 1.0),
    ParameterSpec("realtime_priority", 65, "", "SCHED_FIFO priority asked for; 0: do not ask.",
                  0, 99),
)

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
    "overspeed_ratio": ("1", 1.0, 10.0, "Measured speed over velocity limit that is a fault."),
    "tracking_error_limit_rad": ("rad", 0.01, 10.0, "Tracking error that is a fault."),
    "standstill_rad_s": ("rad/s", 0.001, 0.5, "Speed below which ~/reset is allowed."),
    "damp_gravity": ("", None, None, "Carry the arm's weight in DAMP and ESTOP."),
    "admission_samples": ("1", 8, 1000, "Instants at which a new field is checked."),
    "admit_velocity_ratio": ("1", 0.1, 10.0, "Largest admitted peak velocity over limit."),
    "admit_acceleration_ratio": ("1", 0.1, 100.0, "Largest admitted peak acceleration over limit."),
    "admit_torque_ratio": ("1", 0.1, 1.0, "Largest admitted peak predicted torque over limit."),
    "seam_position_limit_rad": ("rad", 0.001, 10.0, "Largest admitted position step at a hand-over "
                                "(the blend takes it out)."),
    "seam_velocity_limit_rad_s": ("rad/s", 0.001, 100.0, "Largest admitted velocity step at a "
                                  "hand-over."),
    "min_remaining_s": ("s", 0.0, 10.0, "Least time that a new field must still cover."),
}


def gain_parameter(joint: str, gain: str) -> str:
    """Name of the live gain parameter, ``gain`` is 'kp' or 'kd'."""
    return f"gains.{joint}.{gain}"


def node_schema() -> tuple[ParameterSpec, ...]:
    """Parameters that do not depend on the arm."""
    defaults = {entry.name: entry.default for entry in fields(ControllerConfig)}
    controller = tuple(
        ParameterSpec(
            name, defaults[name], unit, text, low, high,  # type: ignore[arg-type]
            tuple(FEEDFORWARD) if name == "feedforward" else (),
        )
        for name, (unit, low, high, text) in _CONTROLLER.items()
    )
    return _NODE + controller


def gain_schema(robot: RobotConfig) -> tuple[ParameterSpec, ...]:
    """One stiffness and one damping parameter per joint, with the ranges of the description."""
    specs = []
    for joint in robot.joints:
        for gain, unit, text, limits in (
            ("kp", "Nm/rad", "Stiffness", joint.kp), ("kd", "Nm s/rad", "Damping", joint.kd),
        ):
            specs.append(
                ParameterSpec(
                    gain_parameter(joint.name, gain), limits.default, unit,
                    f"{text} of {joint.name}; ramped.", limits.minimum, limits.maximum, live=True,
                )
            )
    return tuple(specs)


def controller_settings(values: dict[str, Value]) -> ControllerConfig:
    """ControllerConfig from parameter values (names as in the schema)."""
    known = {name: values[name] for name in _CONTROLLER if name in values}
    return ControllerConfig(**known)  # type: ignore[arg-type]


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
