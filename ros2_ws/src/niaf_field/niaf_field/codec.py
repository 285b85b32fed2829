"""ActionField messages: to and from plain numpy, and the checks that keep a bad one out.

Nothing here imports ROS: ``to_message`` and ``from_message`` work on any object that has the
attributes of ``niaf_msgs/msg/ActionField``.

Times are float64 seconds. An absolute ROS time in a float64 is resolved to 0.24 us; pass the same
``epoch_sec`` (whole seconds, subtracted before conversion) everywhere in a process to keep
nanoseconds.
"""

from __future__ import annotations

import array
import math
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from niaf_field.errors import CodecError
from niaf_field.fold import fold
from niaf_field.prior import Prior
from niaf_field.reference import ActionField

_NANOSECONDS = 1_000_000_000
_INT32 = 2**31


class RefusalReason(IntEnum):
    """Why a field is not even considered. Numbers 1 to 99 belong to this package; 0 means none."""

    PRIOR_MISMATCH = 1
    GAMMA_LENGTH = 2
    BETA_LENGTH = 3
    ANCHOR_LENGTH = 4
    NOT_FINITE = 5
    MODULATION_TOO_LARGE = 6
    BAD_HORIZON = 7
    START_IN_FUTURE = 8
    START_IN_PAST = 9
    STAMP_IN_FUTURE = 10
    STAMP_TOO_OLD = 11
    EXHAUSTED = 12
    OUT_OF_ORDER = 13


@dataclass(frozen=True)
class FieldLimits:
    """What ``check_field`` tolerates.

    max_age_s: oldest observation and oldest field start accepted; max_future_s: how far a start or
    a stamp may lie ahead (clock skew); max_modulation: largest magnitude of any gamma or beta.
    """

    max_age_s: float = 0.5
    max_future_s: float = 0.05
    min_horizon_s: float = 0.05
    max_horizon_s: float = 30.0
    max_modulation: float = 1.0e3

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not math.isfinite(value) or value < 0.0:
                raise CodecError(f"field limit {name} must be finite and not negative, got {value}")
        if not 0.0 < self.min_horizon_s <= self.max_horizon_s:
            raise CodecError(
                f"field limits need 0 < min_horizon_s <= max_horizon_s, got {self.min_horizon_s} "
                f"and {self.max_horizon_s}"
            )


class Ordered(Protocol):
    """The field accepted before: a FieldMessage, an ActionField or any reference."""

    @property
    def stamp_s(self) -> float: ...
    @property
    def sequence(self) -> int: ...


@dataclass(frozen=True, eq=False)
class FieldMessage:
    """ActionField.msg with numpy arrays and float seconds; field by field as in the .msg file."""

    stamp_s: float
    frame_id: str
    sequence: int
    prior_id: str
    start_s: float
    horizon_s: float
    gamma: NDArray[np.float32]
    beta: NDArray[np.float32]
    anchor: NDArray[np.float64]
    instruction: str = ""
    observation_age_s: float = 0.0
    inference_s: float = 0.0

    def __post_init__(self) -> None:
        for name, kind in (("gamma", np.float32), ("beta", np.float32), ("anchor", np.float64)):
            values = np.ascontiguousarray(getattr(self, name), dtype=kind)
            if values.ndim != 1:
                raise CodecError(f"{name} must be one-dimensional, got shape {values.shape}")
            object.__setattr__(self, name, values)


def check_field(
    message: FieldMessage,
    prior: Prior,
    now_s: float,
    limits: FieldLimits,
    previous: Ordered | None = None,
) -> RefusalReason | None:
    """The first reason to refuse the field, or None. ``previous``: the field accepted before."""
    finding = diagnose_field(message, prior, now_s, limits, previous)
    return None if finding is None else finding[0]


def diagnose_field(
    message: FieldMessage,
    prior: Prior,
    now_s: float,
    limits: FieldLimits,
    previous: Ordered | None = None,
) -> tuple[RefusalReason, str] | None:
    """As ``check_field``, with a text that names the value, what was expected and a remedy."""
    return _diagnose_content(message, prior, limits) or _diagnose_times(
        message, now_s, limits, previous
    )


def _diagnose_content(
    m: FieldMessage, prior: Prior, limits: FieldLimits
) -> tuple[RefusalReason, str] | None:
    if m.prior_id != prior.prior_id:
        sent = f"{m.prior_id[:12]}..." if m.prior_id else "empty"
        return RefusalReason.PRIOR_MISMATCH, (
            f"field {m.sequence}: prior_id is {sent}, this node loaded {prior.prior_id[:12]}...; "
            "load the prior.safetensors of the policy's checkpoint on both sides"
        )
    for reason, name, length, expected in (
        (RefusalReason.GAMMA_LENGTH, "gamma", m.gamma.shape[0], prior.gamma_length),
        (RefusalReason.BETA_LENGTH, "beta", m.beta.shape[0], prior.beta_length),
        (RefusalReason.ANCHOR_LENGTH, "anchor", m.anchor.shape[0], prior.D),
    ):
        if length != expected:
            return reason, (
                f"field {m.sequence}: {name} has {length} values, the prior needs {expected} "
                f"(L={prior.L}, H={prior.H}, D={prior.D}, gamma_kind={prior.gamma_kind!r})"
            )
    for name, values in (("gamma", m.gamma), ("beta", m.beta), ("anchor", m.anchor)):
        # One pass: the largest magnitude is NaN or infinite if any value is.
        peak = float(np.max(np.abs(values)))
        if not math.isfinite(peak):
            index = int(np.flatnonzero(~np.isfinite(values))[0])
            return RefusalReason.NOT_FINITE, (
                f"field {m.sequence}: {name}[{index}] is {values[index]}; the policy produced a "
                "value that is not finite"
            )
        if name != "anchor" and peak > limits.max_modulation:
            return RefusalReason.MODULATION_TOO_LARGE, (
                f"field {m.sequence}: {name} reaches {peak:g}, the limit is "
                f"{limits.max_modulation:g}; check the policy's normalisation"
            )
    return None


def _diagnose_times(
    m: FieldMessage, now_s: float, limits: FieldLimits, previous: Ordered | None
) -> tuple[RefusalReason, str] | None:
    for name, value in (
        ("stamp", m.stamp_s),
        ("start", m.start_s),
        ("horizon", m.horizon_s),
        ("present time", now_s),
    ):
        if not math.isfinite(value):
            return RefusalReason.NOT_FINITE, f"field {m.sequence}: {name} is {value} s"
    if not limits.min_horizon_s <= m.horizon_s <= limits.max_horizon_s:
        return RefusalReason.BAD_HORIZON, (
            f"field {m.sequence}: horizon is {m.horizon_s:g} s, allowed are "
            f"{limits.min_horizon_s:g} to {limits.max_horizon_s:g} s"
        )
    clock = "are the clocks of the two machines synchronised?"
    stamp_age_s = now_s - m.stamp_s
    start_age_s = now_s - m.start_s
    if start_age_s < -limits.max_future_s:
        return RefusalReason.START_IN_FUTURE, (
            f"field {m.sequence}: start lies {-start_age_s:.3f} s ahead, the limit is "
            f"{limits.max_future_s:g} s; {clock}"
        )
    if stamp_age_s < -limits.max_future_s:
        return RefusalReason.STAMP_IN_FUTURE, (
            f"field {m.sequence}: observation stamp lies {-stamp_age_s:.3f} s ahead, the limit is "
            f"{limits.max_future_s:g} s; {clock}"
        )
    if start_age_s >= m.horizon_s:
        return RefusalReason.EXHAUSTED, (
            f"field {m.sequence}: ended {start_age_s - m.horizon_s:.3f} s ago (started "
            f"{start_age_s:.3f} s ago, horizon {m.horizon_s:g} s); the policy is too slow for its "
            "horizon"
        )
    if start_age_s > limits.max_age_s:
        return RefusalReason.START_IN_PAST, (
            f"field {m.sequence}: started {start_age_s:.3f} s ago, the limit is "
            f"{limits.max_age_s:g} s; the policy is too slow or {clock}"
        )
    if stamp_age_s > limits.max_age_s:
        return RefusalReason.STAMP_TOO_OLD, (
            f"field {m.sequence}: observation is {stamp_age_s:.3f} s old, the limit is "
            f"{limits.max_age_s:g} s; the policy is too slow or {clock}"
        )
    # Stamps decide; the sequence only ranks fields from one observation, so that a policy that
    # restarts (and counts from one again) is heard.
    if previous is not None and (
        m.stamp_s < previous.stamp_s
        or (m.stamp_s == previous.stamp_s and m.sequence <= previous.sequence)
    ):
        return RefusalReason.OUT_OF_ORDER, (
            f"field {m.sequence} (observation {previous.stamp_s - m.stamp_s:.3f} s older) came "
            f"after field {previous.sequence}; are two policies publishing on one topic?"
        )
    return None


def field_from_message(message: FieldMessage, prior: Prior) -> ActionField:
    """Fold a message into an action field; call ``check_field`` first (lengths raise here too)."""
    if message.prior_id != prior.prior_id:
        raise CodecError(
            f"field {message.sequence} was made for prior {message.prior_id[:12]!r}..., not for "
            f"{prior.prior_id[:12]}...; call check_field before folding"
        )
    return ActionField(
        folded=fold(prior, message.gamma, message.beta, message.anchor),
        start_s=message.start_s,
        horizon_s=message.horizon_s,
        sequence=message.sequence,
        stamp_s=message.stamp_s,
        prior_id=message.prior_id,
    )


def make_field_message(
    prior: Prior,
    gamma: ArrayLike,
    beta: ArrayLike,
    anchor: ArrayLike,
    *,
    stamp_s: float,
    sequence: int,
    start_s: float | None = None,
    horizon_s: float | None = None,
    frame_id: str = "",
    instruction: str = "",
    observation_age_s: float = 0.0,
    inference_s: float = 0.0,
) -> FieldMessage:
    """A message of this prior; the field starts at the observation and spans the prior's horizon.

    Lengths and finiteness are checked here, so that a broken policy fails on its own side.
    """
    prior.layout.check_gamma(gamma)
    prior.layout.check_beta(beta)
    return FieldMessage(
        stamp_s=stamp_s,
        frame_id=frame_id,
        sequence=sequence,
        prior_id=prior.prior_id,
        start_s=stamp_s if start_s is None else start_s,
        horizon_s=prior.horizon_s if horizon_s is None else horizon_s,
        gamma=np.asarray(gamma, dtype=np.float32),
        beta=np.asarray(beta, dtype=np.float32),
        anchor=np.asarray(anchor, dtype=np.float64),
        instruction=instruction,
        observation_age_s=observation_age_s,
        inference_s=inference_s,
    )


def shift_field(message: FieldMessage, offset_s: float) -> FieldMessage:
    """The same field with stamp and start moved by offset_s (replay of a recording)."""
    return replace(message, stamp_s=message.stamp_s + offset_s, start_s=message.start_s + offset_s)


def to_message(message: Any, field: FieldMessage, epoch_sec: int = 0) -> Any:
    """Fill an ActionField message object from a FieldMessage and return it."""
    _write_time(message.header.stamp, field.stamp_s, epoch_sec, "stamp")
    message.header.frame_id = field.frame_id
    message.sequence = int(field.sequence)
    message.prior_id = field.prior_id
    _write_time(message.start, field.start_s, epoch_sec, "start")
    message.horizon = float(field.horizon_s)
    # array.array is what rclpy stores; assigning an ndarray would be checked value by value.
    message.gamma = array.array("f", field.gamma.tobytes())
    message.beta = array.array("f", field.beta.tobytes())
    message.anchor = array.array("d", field.anchor.tobytes())
    message.instruction = field.instruction
    message.observation_age_s = float(field.observation_age_s)
    message.inference_s = float(field.inference_s)
    return message


def from_message(message: Any, epoch_sec: int = 0) -> FieldMessage:
    """A FieldMessage with its own copy of the arrays."""
    try:
        return FieldMessage(
            stamp_s=time_from_stamp(message.header.stamp, epoch_sec),
            frame_id=message.header.frame_id,
            sequence=int(message.sequence),
            prior_id=message.prior_id,
            start_s=time_from_stamp(message.start, epoch_sec),
            horizon_s=float(message.horizon),
            gamma=_vector(message.gamma, np.float32),
            beta=_vector(message.beta, np.float32),
            anchor=_vector(message.anchor, np.float64),
            instruction=message.instruction,
            observation_age_s=float(message.observation_age_s),
            inference_s=float(message.inference_s),
        )
    except AttributeError as error:
        kind = type(message).__name__
        raise CodecError(f"{kind} is not an ActionField message: {error}") from error


def time_from_stamp(stamp: Any, epoch_sec: int = 0) -> float:
    """builtin_interfaces/Time (or any object with sec and nanosec) in seconds since epoch_sec."""
    return float((stamp.sec - epoch_sec) + stamp.nanosec * 1e-9)


def stamp_from_time(time_s: float, epoch_sec: int = 0) -> tuple[int, int]:
    """(sec, nanosec) of a time in seconds since epoch_sec, rounded to nanoseconds."""
    if not math.isfinite(time_s):
        raise CodecError(f"a time of {time_s} s cannot be sent")
    whole = math.floor(time_s)
    nanosec = round((time_s - whole) * _NANOSECONDS)
    if nanosec == _NANOSECONDS:
        whole += 1
        nanosec = 0
    sec = whole + epoch_sec
    if not -_INT32 <= sec < _INT32:
        raise CodecError(f"a time of {time_s} s (epoch {epoch_sec}) does not fit in int32 seconds")
    return sec, nanosec


def _write_time(target: Any, time_s: float, epoch_sec: int, name: str) -> None:
    try:
        target.sec, target.nanosec = stamp_from_time(time_s, epoch_sec)
    except CodecError as error:
        raise CodecError(f"{name}: {error}") from error


def _vector(values: Any, kind: type[np.floating[Any]]) -> NDArray[Any]:
    if isinstance(values, array.array):
        return np.frombuffer(values, dtype=values.typecode).astype(kind)
    return np.array(values, dtype=kind)
