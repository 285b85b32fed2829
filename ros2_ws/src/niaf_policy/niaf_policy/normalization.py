"""Statistics that turn physical numbers into network numbers and back; they travel with weights."""

from __future__ import annotations

import json
import pathlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from niaf_policy.tool_labels import TOOL_NAMES

# Smallest scales: a joint that hardly moves in the data must not have its noise blown up.
MIN_JOINT_SCALE_RAD = 0.03
MIN_GRIPPER_SCALE_M = 0.005
MIN_VELOCITY_SCALE_RAD_S = 0.05
MIN_TOOL_SCALE_M, MIN_TOOL_SCALE_RAD = 0.01, 0.03
MIN_TOOL_VELOCITY_SCALE_M_S = 0.02
MIN_OBJECT_SCALE_M = 0.01
MIN_STATE_SCALE = 0.01


@dataclass(frozen=True)
class Normalization:
    """All in physical units. D channels: A that move the arm (joints or tool), then the gripper.

    network action = (action - anchor - action_mean) / action_scale; the anchor is the measured
    joint position for joints, the measured tool position for x, y, z, and zero for the gripper and
    for rx, ry, rz (whose labels are turns from the measured orientation already).
    """

    # What is observed: J joints. What the channels move: those joints, or TOOL_NAMES.
    joint_names: tuple[str, ...]
    action_names: tuple[str, ...]
    horizon_s: float
    samples: int
    # [D] rad (gripper and tool position m); velocity_scale [A] rad/s (m/s).
    action_mean: tuple[float, ...]
    action_scale: tuple[float, ...]
    velocity_scale: tuple[float, ...]
    # Observation: positions and gripper width [J + 1], velocities [J].
    state_mean: tuple[float, ...]
    state_std: tuple[float, ...]
    velocity_mean: tuple[float, ...]
    velocity_std: tuple[float, ...]
    # Seen in training, [D] each (gripper velocity 0): the limits table of the prior.
    position_min: tuple[float, ...]
    position_max: tuple[float, ...]
    velocity_min: tuple[float, ...]
    velocity_max: tuple[float, ...]
    # Privileged objects, for the training-only loss: names [M], xyz flattened [3M].
    object_names: tuple[str, ...]
    object_mean: tuple[float, ...]
    object_std: tuple[float, ...]

    @property
    def joints(self) -> int:
        return len(self.joint_names)

    @property
    def channels(self) -> int:
        return len(self.action_names) + 1

    @property
    def moves_tool(self) -> bool:
        return self.action_names == TOOL_NAMES

    def save(self, path: str | pathlib.Path) -> None:
        pathlib.Path(path).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Normalization:
        """Raises KeyError, TypeError or ValueError when an entry is missing or makes no sense."""
        plain: dict[str, Any] = {}
        # checkpoints from before there were tool channels name their joints once
        values = {"action_names": values["joint_names"], **values}
        for name in cls.__dataclass_fields__:
            value = values[name]
            if name in ("joint_names", "action_names", "object_names"):
                plain[name] = tuple(str(v) for v in value)
            elif name == "samples":
                plain[name] = int(value)
            elif name == "horizon_s":
                plain[name] = float(value)
            else:
                plain[name] = tuple(float(v) for v in value)
        made = cls(**plain)
        made.check()
        return made

    def check(self) -> None:
        """Lengths agree, numbers finite, divisors positive; else ValueError naming the entry."""
        if self.action_names not in (self.joint_names, TOOL_NAMES):
            raise ValueError(
                f"action_names is {self.action_names}, expected the joints or {TOOL_NAMES}")
        lengths = {"velocity_scale": len(self.action_names), "velocity_mean": self.joints}
        lengths |= {"velocity_std": self.joints, "object_names": len(self.object_names)}
        lengths |= {name: self.joints + 1 for name in ("state_mean", "state_std")}
        lengths |= {name: 3 * len(self.object_names) for name in ("object_mean", "object_std")}
        for name in self.__dataclass_fields__:
            values = getattr(self, name)
            if not isinstance(values, tuple) or name in ("joint_names", "action_names"):
                continue
            expected = lengths.get(name, self.channels)
            if len(values) != expected:
                raise ValueError(f"{name} has {len(values)} values, {expected} expected")
            if name == "object_names":
                continue
            if not np.isfinite(values).all():
                raise ValueError(f"{name} is not finite: {values}")
            if name.endswith(("_scale", "_std")) and min(values, default=1.0) <= 0.0:
                raise ValueError(f"{name} must be positive: {values}")
        if not (np.isfinite(self.horizon_s) and self.horizon_s > 0.0 and self.samples >= 2):
            raise ValueError(
                f"horizon_s = {self.horizon_s}, samples = {self.samples}: both must be positive"
            )


def measure_normalization(
    *,
    joint_names: tuple[str, ...],
    action_names: tuple[str, ...],
    object_names: tuple[str, ...],
    horizon_s: float,
    relative: np.ndarray,
    valid: np.ndarray,
    reached: np.ndarray,
    rate: np.ndarray,
    state: np.ndarray,
    velocity: np.ndarray,
    objects: np.ndarray | None,
) -> Normalization:
    """Measure from expert frames.

    relative [N, K, D] labels minus anchor, valid [N, K]; reached [*, D] values that channels took;
    rate [N, A] measured rates of what moves; state [N, J + 1], velocity [N, J], objects [N, 3M] or
    None.
    """
    moving = len(action_names)
    least = np.full(moving, MIN_JOINT_SCALE_RAD)
    slowest = np.full(moving, MIN_VELOCITY_SCALE_RAD_S)
    if action_names == TOOL_NAMES:
        least[:3], least[3:] = MIN_TOOL_SCALE_M, MIN_TOOL_SCALE_RAD
        slowest[:3] = MIN_TOOL_VELOCITY_SCALE_M_S
    chosen = relative[valid]  # [*, D]
    mean, scale = chosen.mean(axis=0), chosen.std(axis=0)
    scale[:moving] = np.maximum(scale[:moving], least)
    low, high = chosen[:, moving].min(), chosen[:, moving].max()
    mean[moving] = 0.5 * (low + high)
    scale[moving] = max(0.5 * (high - low), MIN_GRIPPER_SCALE_M)

    def numbers(x: np.ndarray) -> tuple[float, ...]:
        return tuple(float(np.float32(v)) for v in np.ravel(x))

    padded = np.concatenate([rate, np.zeros((len(rate), 1))], axis=1)
    empty = np.zeros((1, 0))
    xyz = empty if objects is None else objects
    return Normalization(
        joint_names=joint_names,
        action_names=action_names,
        horizon_s=float(horizon_s),
        samples=int(relative.shape[1]),
        action_mean=numbers(mean),
        action_scale=numbers(scale),
        velocity_scale=numbers(np.maximum(rate.std(axis=0), slowest)),
        state_mean=numbers(state.mean(axis=0)),
        state_std=numbers(np.maximum(state.std(axis=0), MIN_STATE_SCALE)),
        velocity_mean=numbers(velocity.mean(axis=0)),
        velocity_std=numbers(np.maximum(velocity.std(axis=0), MIN_VELOCITY_SCALE_RAD_S)),
        position_min=numbers(reached.min(axis=0)),
        position_max=numbers(reached.max(axis=0)),
        velocity_min=numbers(padded.min(axis=0)),
        velocity_max=numbers(padded.max(axis=0)),
        object_names=object_names,
        object_mean=numbers(xyz.mean(axis=0)),
        object_std=numbers(np.maximum(xyz.std(axis=0), MIN_OBJECT_SCALE_M)),
    )
