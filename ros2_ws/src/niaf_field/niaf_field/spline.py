"""C2 splines of quintic pieces: the reference for waypoint trajectories.

A spline is ``knots_s`` [K + 1] (absolute seconds, strictly increasing) and ``coefficients``
[K, 6, D]: ascending powers of (t - knots_s[k]) in seconds. Outside the knots the end position is
held with zero derivatives.

Which C2 curve goes through the knots:

* positions only: the C2 cubic spline;
* positions and velocities: quintic pieces whose knot accelerations make jerk continuous (this is
  the curve of least integrated squared jerk through them);
* positions, velocities and accelerations: quintic pieces, fully determined.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from niaf_field.errors import SplineError
from niaf_field.jit import strict_kernel

F64 = NDArray[np.float64]
End = Literal["rest", "natural"]

REST: End = "rest"
NATURAL: End = "natural"


@strict_kernel
def spline_jets(knots_s: F64, coefficients: F64, t_s: float, order: int, out: F64) -> None:
    """Value and derivatives at t_s into out [>= order + 1, D]; order 0 to 3. No allocation.

    Outside [knots_s[0], knots_s[-1]]: end position, zero derivatives. The end instants themselves
    belong to the spline. A t_s that is not a number gives NaN.
    """
    pieces, _, channels = coefficients.shape
    low = 0
    high = pieces
    while high - low > 1:
        middle = (low + high) // 2
        if t_s >= knots_s[middle]:
            low = middle
        else:
            high = middle
    held = t_s < knots_s[0] or t_s > knots_s[pieces]
    t = min(max(t_s, knots_s[0]), knots_s[pieces]) if held else t_s
    x = t - knots_s[low]
    for d in range(channels):
        c0 = coefficients[low, 0, d]
        c1 = coefficients[low, 1, d]
        c2 = coefficients[low, 2, d]
        c3 = coefficients[low, 3, d]
        c4 = coefficients[low, 4, d]
        c5 = coefficients[low, 5, d]
        out[0, d] = c0 + x * (c1 + x * (c2 + x * (c3 + x * (c4 + x * c5))))
        if order >= 1:
            if held:
                out[1, d] = 0.0
            else:
                out[1, d] = c1 + x * (2.0 * c2 + x * (3.0 * c3 + x * (4.0 * c4 + x * 5.0 * c5)))
        if order >= 2:
            if held:
                out[2, d] = 0.0
            else:
                out[2, d] = 2.0 * c2 + x * (6.0 * c3 + x * (12.0 * c4 + x * 20.0 * c5))
        if order >= 3:
            if held:
                out[3, d] = 0.0
            else:
                out[3, d] = 6.0 * c3 + x * (24.0 * c4 + x * 60.0 * c5)


@strict_kernel
def spline_jets_many(knots_s: F64, coefficients: F64, t_s: F64, order: int, out: F64) -> None:
    """``spline_jets`` for every instant of t_s [K] into out [K, >= order + 1, D]."""
    for k in range(t_s.shape[0]):
        spline_jets(knots_s, coefficients, t_s[k], order, out[k])


def quintic_segment(
    position0: ArrayLike,
    velocity0: ArrayLike,
    acceleration0: ArrayLike,
    position1: ArrayLike,
    velocity1: ArrayLike,
    acceleration1: ArrayLike,
    duration_s: float,
) -> F64:
    """Coefficients [6, D] of the quintic that joins two states in duration_s."""
    if not np.isfinite(duration_s) or duration_s <= 0.0:
        raise SplineError(f"duration_s must be finite and positive, got {duration_s}")
    states = [
        np.atleast_1d(np.asarray(state, dtype=np.float64))
        for state in (position0, velocity0, acceleration0, position1, velocity1, acceleration1)
    ]
    if len({state.shape for state in states}) != 1 or states[0].ndim != 1:
        shapes = ", ".join(str(state.shape) for state in states)
        raise SplineError(f"the six boundary states must have one shape [D], got {shapes}")
    if not all(np.isfinite(state).all() for state in states):
        raise SplineError("the boundary states of a quintic segment must be finite")
    p, v, a = (np.stack([states[n], states[n + 3]]) for n in range(3))
    return _hermite_pieces(np.array([duration_s]), p, v, a)[0]


def spline_through(
    knots_s: ArrayLike,
    positions: ArrayLike,
    velocities: ArrayLike | None = None,
    accelerations: ArrayLike | None = None,
    *,
    start_velocity: ArrayLike | None = None,
    start_acceleration: ArrayLike | None = None,
    end: End = REST,
) -> tuple[F64, F64]:
    """(knots_s [K + 1], coefficients [K, 6, D]) of the C2 spline through the knots.

    positions, velocities, accelerations: [K + 1, D] in unit, unit/s, unit/s^2 (accelerations only
    together with velocities). start_velocity, start_acceleration [D] replace the values at the
    first knot, so that the spline leaves a moving arm without a step. ``end="rest"``: zero
    velocity and acceleration at the last knot unless ``velocities``/``accelerations`` say
    otherwise; ``end="natural"``: zero acceleration, free velocity (positions only), or free end
    acceleration (with velocities).
    """
    times = np.array(knots_s, dtype=np.float64)
    p = np.array(positions, dtype=np.float64)
    _check_knots(times, p)
    if end not in (REST, NATURAL):
        raise SplineError(f"end must be {REST!r} or {NATURAL!r}, got {end!r}")
    if accelerations is not None and velocities is None:
        raise SplineError("accelerations were given without velocities; give both or neither")
    channels = p.shape[1]
    v0 = _optional("start_velocity", start_velocity, (channels,))
    a0 = _optional("start_acceleration", start_acceleration, (channels,))
    v_given = _optional("velocities", velocities, p.shape)
    a_given = _optional("accelerations", accelerations, p.shape)
    steps = np.diff(times)

    if v_given is None:
        last_velocity = np.zeros(channels) if end == REST else None
        v = _cubic_velocities(steps, p, v0, a0, last_velocity)
        a = _cubic_accelerations(steps, p, v)
        if end == REST:
            a[-1] = 0.0
    else:
        v = v_given
        if v0 is not None:
            v[0] = v0
        if a_given is not None:
            a = a_given
        else:
            # End at rest means no acceleration either, when the last velocity is zero.
            resting = end == REST and not v[-1].any()
            a = _least_jerk_accelerations(steps, p, v, a0, np.zeros(channels) if resting else None)
    if a0 is not None:
        a[0] = a0
    return times, _hermite_pieces(steps, p, v, a)


def _hermite_pieces(steps: F64, p: F64, v: F64, a: F64) -> F64:
    """Quintic pieces [K, 6, D] from knot positions, velocities and accelerations [K + 1, D]."""
    h = steps[:, None]
    p0, v0, a0 = p[:-1], v[:-1], a[:-1]
    v1, a1 = v[1:], a[1:]
    dp = p[1:] - p0
    pieces = np.empty((steps.shape[0], 6, p.shape[1]))
    pieces[:, 0] = p0
    pieces[:, 1] = v0
    pieces[:, 2] = 0.5 * a0
    pieces[:, 3] = (10.0 * dp - (6.0 * v0 + 4.0 * v1) * h - (1.5 * a0 - 0.5 * a1) * h**2) / h**3
    pieces[:, 4] = (-15.0 * dp + (8.0 * v0 + 7.0 * v1) * h + (1.5 * a0 - a1) * h**2) / h**4
    pieces[:, 5] = (6.0 * dp - 3.0 * (v0 + v1) * h - 0.5 * (a0 - a1) * h**2) / h**5
    return pieces


def _cubic_velocities(steps: F64, p: F64, v0: F64 | None, a0: F64 | None, v_end: F64 | None) -> F64:
    """Knot velocities [K + 1, D] of the C2 cubic spline.

    First knot: velocity v0 if given, else acceleration a0 (zero if not given). Last knot: velocity
    v_end if given, else acceleration zero.
    """
    n = p.shape[0]
    h = steps[:, None]
    slope = np.diff(p, axis=0) / h
    lower, diagonal, upper = np.zeros(n), np.ones(n), np.zeros(n)
    right = np.zeros_like(p)
    lower[1:-1] = 1.0 / steps[:-1]
    upper[1:-1] = 1.0 / steps[1:]
    diagonal[1:-1] = 2.0 * (lower[1:-1] + upper[1:-1])
    right[1:-1] = 3.0 * (slope[:-1] / h[:-1] + slope[1:] / h[1:])
    if v0 is not None:
        right[0] = v0
    else:
        diagonal[0], upper[0] = 2.0, 1.0
        right[0] = 3.0 * slope[0] - (0.0 if a0 is None else 0.5 * a0 * h[0])
    if v_end is not None:
        right[-1] = v_end
    else:
        lower[-1], diagonal[-1] = 1.0, 2.0
        right[-1] = 3.0 * slope[-1]
    return _solve_tridiagonal(lower, diagonal, upper, right)


def _cubic_accelerations(steps: F64, p: F64, v: F64) -> F64:
    """Knot accelerations [K + 1, D] of the cubic pieces given by knot positions and velocities."""
    h = steps[:, None]
    slope = np.diff(p, axis=0) / h
    a = np.empty_like(p)
    a[:-1] = (6.0 * slope - 4.0 * v[:-1] - 2.0 * v[1:]) / h
    a[-1] = (-6.0 * slope[-1] + 2.0 * v[-2] + 4.0 * v[-1]) / h[-1]
    return a


def _least_jerk_accelerations(steps: F64, p: F64, v: F64, a0: F64 | None, a_end: F64 | None) -> F64:
    """Knot accelerations that make jerk continuous; free ends have zero jerk there."""
    n = p.shape[0]
    h = steps[:, None]
    dp = np.diff(p, axis=0)
    # Jerk of a quintic piece at its two ends, without the acceleration terms.
    first = (60.0 * dp - (36.0 * v[:-1] + 24.0 * v[1:]) * h) / h**3
    last = (60.0 * dp - (24.0 * v[:-1] + 36.0 * v[1:]) * h) / h**3
    # jerk_first = first + (3 a1 - 9 a0) / h ; jerk_last = last + (9 a1 - 3 a0) / h.
    lower, diagonal, upper = np.zeros(n), np.ones(n), np.zeros(n)
    right = np.zeros_like(p)
    lower[1:-1] = -3.0 / steps[:-1]
    upper[1:-1] = -3.0 / steps[1:]
    diagonal[1:-1] = 9.0 / steps[:-1] + 9.0 / steps[1:]
    right[1:-1] = first[1:] - last[:-1]
    if a0 is not None:
        right[0] = a0
    else:
        diagonal[0], upper[0] = 9.0, -3.0
        right[0] = first[0] * h[0]
    if a_end is not None:
        right[-1] = a_end
    else:
        lower[-1], diagonal[-1] = -3.0, 9.0
        right[-1] = -last[-1] * h[-1]
    return _solve_tridiagonal(lower, diagonal, upper, right)


def _solve_tridiagonal(lower: F64, diagonal: F64, upper: F64, right: F64) -> F64:
    """Solve a diagonally dominant tridiagonal system for right-hand sides [n, D]."""
    n = diagonal.shape[0]
    ratio = np.empty(n)
    solution = np.empty_like(right)
    ratio[0] = upper[0] / diagonal[0]
    solution[0] = right[0] / diagonal[0]
    for i in range(1, n):
        pivot = diagonal[i] - lower[i] * ratio[i - 1]
        ratio[i] = upper[i] / pivot
        solution[i] = (right[i] - lower[i] * solution[i - 1]) / pivot
    for i in range(n - 2, -1, -1):
        solution[i] -= ratio[i] * solution[i + 1]
    return solution


def check_spline(knots_s: F64, coefficients: F64) -> None:
    """Refuse knots and coefficients that ``spline_jets`` could not evaluate safely."""
    if coefficients.ndim != 3 or coefficients.shape[1] != 6 or 0 in coefficients.shape:
        raise SplineError(f"coefficients have shape {coefficients.shape}, expected [K, 6, D]")
    if knots_s.shape != (coefficients.shape[0] + 1,):
        raise SplineError(
            f"{coefficients.shape[0]} pieces need {coefficients.shape[0] + 1} knots, got shape "
            f"{knots_s.shape}"
        )
    _check_times(knots_s)
    if not np.isfinite(coefficients).all():
        piece = int(np.argwhere(~np.isfinite(coefficients))[0][0])
        raise SplineError(f"coefficients of piece {piece} are not finite")


def _check_knots(times: F64, positions: F64) -> None:
    if times.ndim != 1 or times.shape[0] < 2:
        raise SplineError(f"a spline needs at least 2 knots, got times of shape {times.shape}")
    if positions.ndim != 2 or positions.shape[0] != times.shape[0] or positions.shape[1] < 1:
        raise SplineError(
            f"positions have shape {positions.shape}, expected [{times.shape[0]}, D] (one row per "
            "knot)"
        )
    _check_times(times)
    if not np.isfinite(positions).all():
        knot, channel = np.argwhere(~np.isfinite(positions))[0]
        raise SplineError(f"position of channel {channel} at knot {knot} is not finite")


def _check_times(times: F64) -> None:
    if not np.isfinite(times).all():
        raise SplineError(f"knot time {int(np.flatnonzero(~np.isfinite(times))[0])} is not finite")
    backwards = np.flatnonzero(np.diff(times) <= 0.0)
    if backwards.size:
        index = int(backwards[0])
        raise SplineError(
            f"knot times must increase strictly: knot {index} at {times[index]} s, knot "
            f"{index + 1} at {times[index + 1]} s"
        )


def _optional(name: str, values: ArrayLike | None, shape: tuple[int, ...]) -> F64 | None:
    if values is None:
        return None
    array = np.array(values, dtype=np.float64)
    if array.shape != shape:
        raise SplineError(f"{name} has shape {array.shape}, expected {shape}")
    if not np.isfinite(array).all():
        raise SplineError(f"{name} holds values that are not finite")
    return array
