"""Parameters of the policy node: one table for declaration, validation and documentation."""

from __future__ import annotations

from dataclasses import dataclass

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
    live: bool = False

    @property
    def type_name(self) -> str:
        return {bool: "bool", int: "integer", float: "double", str: "string"}[type(self.default)]


SCHEMA = (
    ParameterSpec("checkpoint", "", "", "Checkpoint folder written by training."),
    ParameterSpec("autostart", True, "", "Configure and activate without a lifecycle manager; the "
                  "process ends with code 2 when that fails."),
    ParameterSpec("policy_rate_hz", 8.0, "Hz", "Action fields per second, on average; every field "
                  "begins with an image, so it is bounded by the cameras' rate.", 1.0, 30.0,
                  live=True),
    ParameterSpec("max_observation_age_s", 0.25, "s", "Oldest observation that inference may begin "
                  "with.", 0.01, 5.0, live=True),
    ParameterSpec("max_future_s", 0.05, "s", "How far stamps may lie ahead of this node's clock.",
                  0.0, 1.0),
    ParameterSpec("max_skew_s", 0.06, "s", "Largest time between the views of an observation, and "
                  "from them to joint state and tool pose.", 0.0, 1.0, live=True),
    ParameterSpec("fault_patience_s", 2.0, "s", "Time without a new field after which the goal is "
                  "aborted with the reason.", 0.2, 60.0, live=True),
    ParameterSpec("torch_threads", 1, "", "Compute threads of inference; 0: torch's own choice.",
                  0, 64),
    ParameterSpec("gripper_joint", "panda_finger_joint1", "", "Joint in joint_states that tells "
                  "the gripper's opening."),
    ParameterSpec("gripper_width_scale", 2.0, "1 (m/m, m/rad)", "Opening width in metres over the "
                  "position of gripper_joint; 2 for one of two mirrored fingers.", -100.0, 100.0),
    ParameterSpec("base_frame", "panda_link0", "", "frame_id of action fields, and the "
                  "one that tool poses must be in: the robot's base."),
)


def render_markdown(schema: tuple[ParameterSpec, ...] = SCHEMA) -> str:
    """The schema as a Markdown table, for docs."""
    rows = ["| parameter | type | unit | default | range | live | meaning |",
            "|---|---|---|---|---|---|---|"]
    for spec in schema:
        limits = ""
        if spec.minimum is not None and spec.maximum is not None:
            limits = f"{spec.minimum:g} to {spec.maximum:g}"
        default = spec.default if spec.default != "" else "(empty)"
        rows.append(
            f"| `{spec.name}` | {spec.type_name} | {spec.unit} | {default} | {limits} | "
            f"{'yes' if spec.live else ''} | {spec.description} |"
        )
    return "\n".join(rows) + "\n"
