"""The two kinds of reference a controller can follow; both answer ``jet`` and ``batch`` alike.

Outside [start_s, end_s] both hold the value at that end with zero derivatives. Leaving the end of a
field that is still moving is therefore a step in velocity: a controller must brake before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from niaf_field.errors import FieldError
from niaf_field.fold import FoldedField
from niaf_field.jets import MAX_ORDER, field_jets, field_jets_many, siren_work_size
from niaf_field.spline import End, check_spline, spline_jets, spline_jets_many, spline_through

F64 = NDArray[np.float64]


@runtime_checkable
class Reference(Protocol):
    """What ActionField and SplineReference have in common."""

    @property
    def sequence(self) -> int: ...
    @property
    def stamp_s(self) -> float: ...
    @property
    def start_s(self) -> float: ...
    @property
    def end_s(self) -> float: ...
    @property
    def horizon_s(self) -> float: ...
    @property
    def D(self) -> int: ...
    def jet(self, t_s: float, order: int) -> F64: ...
    def batch(self, t_s: ArrayLike, order: int) -> F64: ...


@dataclass(frozen=True, eq=False)
class ActionField:
    """An action field placed in time: tau = -1 at ``start_s``, +1 at ``start_s + horizon_s``.

    ``stamp_s`` is the observation time that the field answers to; ``sequence`` counts fields.
    Rotation channels of ``jet`` and ``batch`` are the rotation vector on top of the orientation
    ``folded.anchor_rotation_rad``.
    """

    folded: FoldedField
    start_s: float
    horizon_s: float
    sequence: int
    stamp_s: float
    prior_id: str

    def __post_init__(self) -> None:
        if not np.isfinite(self.start_s) or not np.isfinite(self.stamp_s):
            raise FieldError(
                f"start_s and stamp_s must be finite, got {self.start_s} and {self.stamp_s}"
            )
        if not np.isfinite(self.horizon_s) or self.horizon_s <= 0.0:
            raise FieldError(f"horizon_s must be finite and positive, got {self.horizon_s}")

    @property
    def end_s(self) -> float:
        return self.start_s + self.horizon_s

    @property
    def D(self) -> int:
        return self.folded.D

    def jet(self, t_s: float, order: int) -> F64:
        """[order + 1, D]: value and derivatives at t_s in channel unit / s^n."""
        f = self.folded
        out = np.empty((_checked_order(order) + 1, f.D))
        work = np.empty(siren_work_size(f.H))
        field_jets(
            f.weights, f.L, f.H, f.D, self.start_s, self.horizon_s, float(t_s), order, out, work
        )
        return out

    def batch(self, t_s: ArrayLike, order: int) -> F64:
        """[K, order + 1, D] at K instants; runs without the GIL."""
        f = self.folded
        times = _instants(t_s)
        out = np.empty((times.shape[0], _checked_order(order) + 1, f.D))
        work = np.empty(siren_work_size(f.H))
        field_jets_many(
            f.weights, f.L, f.H, f.D, self.start_s, self.horizon_s, times, order, out, work
        )
        return out


@dataclass(frozen=True, eq=False)
class SplineReference:
    """A C2 spline of quintic pieces: ``knots_s`` [K + 1], ``coefficients`` [K, 6, D]."""

    knots_s: F64
    coefficients: F64
    sequence: int
    stamp_s: float

    def __post_init__(self) -> None:
        knots = np.array(self.knots_s, dtype=np.float64, order="C")
        coefficients = np.array(self.coefficients, dtype=np.float64, order="C")
        check_spline(knots, coefficients)
        if not np.isfinite(self.stamp_s):
            raise FieldError(f"stamp_s must be finite, got {self.stamp_s}")
        object.__setattr__(self, "knots_s", knots)
        object.__setattr__(self, "coefficients", coefficients)

    @property
    def start_s(self) -> float:
        return float(self.knots_s[0])

    @property
    def end_s(self) -> float:
        return float(self.knots_s[-1])

    @property
    def horizon_s(self) -> float:
        return self.end_s - self.start_s

    @property
    def D(self) -> int:
        return int(self.coefficients.shape[2])

    def jet(self, t_s: float, order: int) -> F64:
        """[order + 1, D]: value and derivatives at t_s in channel unit / s^n."""
        out = np.empty((_checked_order(order) + 1, self.D))
        spline_jets(self.knots_s, self.coefficients, float(t_s), order, out)
        return out

    def batch(self, t_s: ArrayLike, order: int) -> F64:
        """[K, order + 1, D] at K instants; runs without the GIL."""
        times = _instants(t_s)
        out = np.empty((times.shape[0], _checked_order(order) + 1, self.D))
        spline_jets_many(self.knots_s, self.coefficients, times, order, out)
        return out


def spline_reference(
    knots_s: ArrayLike,
    positions: ArrayLike,
    velocities: ArrayLike | None = None,
    accelerations: ArrayLike | None = None,
    *,
    sequence: int,
    stamp_s: float,
    start_velocity: ArrayLike | None = None,
    start_acceleration: ArrayLike | None = None,
    end: End = "rest",
) -> SplineReference:
    """``spline_through`` as a SplineReference (absolute knot times in seconds)."""
    knots, coefficients = spline_through(
        knots_s,
        positions,
        velocities,
        accelerations,
        start_velocity=start_velocity,
        start_acceleration=start_acceleration,
        end=end,
    )
    return SplineReference(knots, coefficients, sequence, stamp_s)


def hold_reference(
    position: ArrayLike, start_s: float, horizon_s: float, *, sequence: int = 0
) -> SplineReference:
    """A reference that stands still at ``position`` [D]."""
    values = np.atleast_1d(np.asarray(position, dtype=np.float64))
    coefficients = np.zeros((1, 6, values.shape[0]))
    coefficients[0, 0] = values
    return SplineReference(
        np.array([start_s, start_s + horizon_s]), coefficients, sequence, start_s
    )


def warm_up_kernels() -> None:
    """Compile (or load from the cache) every kernel here, so that no loop meets a compiler."""
    from niaf_field.blend import blend_jets, smoothstep5
    from niaf_field.jets import siren_jets, time_scale_jets

    width, channels = 4, 2
    weights = np.zeros(2 * width + width * width + width + channels * width + channels)
    work = np.zeros(siren_work_size(width))
    out = np.zeros((MAX_ORDER + 1, channels))
    siren_jets(weights, 2, width, channels, 0.0, 2.0, MAX_ORDER, out, work)
    field = ActionField(FoldedField(weights, 2, width, channels), 0.0, 1.0, 0, 0.0, "")
    field.jet(0.5, MAX_ORDER)
    field.batch([0.5], MAX_ORDER)
    hold = hold_reference(np.zeros(channels), 0.0, 1.0)
    hold.jet(0.5, MAX_ORDER)
    hold.batch([0.5], MAX_ORDER)
    time_scale_jets(out, 1.0, 0.0, 0.0, out)
    blend_jets(out, out, 0.5, 0.0, 1.0, out)
    smoothstep5(0.5)


def _checked_order(order: int) -> int:
    if not 0 <= order <= MAX_ORDER:
        raise FieldError(f"derivative order must be between 0 and {MAX_ORDER}, got {order}")
    return order


def _instants(t_s: ArrayLike) -> F64:
    times = np.ascontiguousarray(t_s, dtype=np.float64)
    if times.ndim != 1:
        raise FieldError(f"instants must be one-dimensional, got shape {times.shape}")
    return times
