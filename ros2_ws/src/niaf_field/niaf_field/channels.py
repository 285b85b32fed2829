"""The channel table: what each output dimension of an action field means.

Tool channels. ``cartesian_position`` x, y, z [m]: the tool frame's origin in base axes.
``cartesian_rotation`` rx, ry, rz [rad]: a rotation vector r on top of the orientation R_a of the
anchor, R = exp([r]x) R_a, all in base axes. Relative rotation channels: the anchor's three values
are the rotation vector of R_a (the measured orientation); they are composed with r as rotations,
never added to it. Absolute ones: R_a is the identity, and r must stay shorter than pi.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from niaf_field.errors import ChannelError

ABSOLUTE = "absolute"
RELATIVE = "relative"
SEMANTICS = (ABSOLUTE, RELATIVE)

JOINT_POSITION = "joint_position"
GRIPPER = "gripper"
CARTESIAN_PREFIX = "cartesian_"
CARTESIAN_POSITION = "cartesian_position"
CARTESIAN_ROTATION = "cartesian_rotation"
POSITION_NAMES = ("x", "y", "z")
ROTATION_NAMES = ("rx", "ry", "rz")


@dataclass(frozen=True)
class Channel:
    """One output dimension: physical value = mean + scale * network output (+ anchor if relative).

    Rotation channels (``cartesian_rotation``) are the exception: their anchor is a rotation that
    they are composed with, see the module's text.

    ``unit`` is the physical unit of the value ("rad", "m"); ``mean`` and ``scale`` carry it. For a
    relative channel ``mean`` is the mean offset from the anchor. Derivatives have unit/s, unit/s^2
    and so on; the scale multiplies them as well.
    """

    name: str
    unit: str
    kind: str
    semantics: str
    mean: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        for attribute in ("name", "unit", "kind"):
            value = getattr(self, attribute)
            if not isinstance(value, str) or not value:
                raise ChannelError(
                    f"channel {attribute} must be a non-empty string, got {value!r} "
                    f"(channel {self.name!r})"
                )
        if self.kind not in (JOINT_POSITION, GRIPPER) and not self.kind.startswith(
            CARTESIAN_PREFIX
        ):
            raise ChannelError(
                f"channel {self.name!r}: unknown kind {self.kind!r}; use {JOINT_POSITION!r}, "
                f"{GRIPPER!r} or a kind that starts with {CARTESIAN_PREFIX!r}"
            )
        if self.semantics not in SEMANTICS:
            raise ChannelError(
                f"channel {self.name!r}: unknown semantics {self.semantics!r}; use one of "
                f"{', '.join(SEMANTICS)} (per-step deltas are not supported)"
            )
        object.__setattr__(self, "mean", float(self.mean))
        object.__setattr__(self, "scale", float(self.scale))
        if not math.isfinite(self.mean):
            raise ChannelError(f"channel {self.name!r}: mean must be finite, got {self.mean}")
        if not math.isfinite(self.scale) or self.scale <= 0.0:
            raise ChannelError(
                f"channel {self.name!r}: scale must be finite and positive, got {self.scale}; "
                "for a channel that never moved in training use scale=1"
            )

    @property
    def is_relative(self) -> bool:
        return self.semantics == RELATIVE

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "unit": self.unit,
            "kind": self.kind,
            "semantics": self.semantics,
            "mean": self.mean,
            "scale": self.scale,
        }

    @staticmethod
    def from_json(entry: Mapping[str, Any]) -> Channel:
        expected = {"name", "unit", "kind", "semantics", "mean", "scale"}
        if set(entry) != expected:
            raise ChannelError(
                f"channel entry has keys {sorted(entry)}, expected exactly {sorted(expected)}"
            )
        return Channel(**entry)


def check_channels(channels: Sequence[Channel]) -> tuple[Channel, ...]:
    """The channels as a tuple; refuses an empty table and repeated names."""
    table = tuple(channels)
    if not table:
        raise ChannelError("the channel table is empty; an action field needs at least one channel")
    names = [channel.name for channel in table]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ChannelError(f"channel names repeat: {', '.join(repeated)}; each must be unique")
    turning = [channel for channel in table if channel.kind == CARTESIAN_ROTATION]
    if turning and (
        tuple(channel.name for channel in turning) != ROTATION_NAMES
        or len({channel.semantics for channel in turning}) > 1
    ):
        found = [f"{channel.name} ({channel.semantics})" for channel in turning]
        raise ChannelError(
            f"rotation channels are {', '.join(found)}; a rotation vector needs rx, ry, rz in this "
            "order, all relative or all absolute"
        )
    return table


def channel_index(channels: Sequence[Channel], name: str) -> int:
    """Position of a channel by name; the error lists the names that exist."""
    for index, channel in enumerate(channels):
        if channel.name == name:
            return index
    known = ", ".join(channel.name for channel in channels)
    raise ChannelError(f"no channel named {name!r}; the channels are: {known}")


def relative_mask(channels: Sequence[Channel]) -> NDArray[np.bool_]:
    """True where the channel is relative to the anchor; shape [D]."""
    return np.array([channel.is_relative for channel in channels], dtype=np.bool_)


def additive_mask(channels: Sequence[Channel]) -> NDArray[np.bool_]:
    """True where the anchor is added to the channel: relative ones, but no rotations; shape [D]."""
    return np.array(
        [channel.is_relative and channel.kind != CARTESIAN_ROTATION for channel in channels],
        dtype=np.bool_,
    )


def anchor_rotation(
    channels: Sequence[Channel], anchor: NDArray[np.float64]
) -> tuple[float, float, float]:
    """Rotation vector [rad] of the orientation that rotation channels are composed with.

    Zero (the identity) where they are absolute or where there are none.
    """
    x, y, z = 0.0, 0.0, 0.0
    picks = [
        i for i, channel in enumerate(channels)
        if channel.kind == CARTESIAN_ROTATION and channel.is_relative
    ]
    if picks:
        x, y, z = (float(anchor[i]) for i in picks)
    return x, y, z


def anchor_from_state(
    channels: Sequence[Channel], measured: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Anchor [D]: the measured value (channel units) where relative, zero where absolute.

    Of rotation channels ``measured`` holds the rotation vector of the measured orientation.
    """
    values = np.asarray(measured, dtype=np.float64)
    if values.shape != (len(channels),):
        raise ChannelError(
            f"measured state has shape {values.shape}, expected ({len(channels)},): one value per "
            "channel in table order"
        )
    return np.where(relative_mask(channels), values, 0.0)
