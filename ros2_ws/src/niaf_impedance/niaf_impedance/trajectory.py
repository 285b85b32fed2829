"""trajectory_msgs/JointTrajectory as a reference: any waypoint policy, MoveIt, or a single goal.

Nothing here imports ROS: ``from_message`` works on any object with the message's attributes, and
``trajectory_reference`` turns its plain form into a C2 spline that admission and hand-over treat
like any other reference. All times are seconds of the controller's clock.

Rules, in the order in which a sender meets them:

*Names.* Every joint of the arm exactly once, in any order; besides them at most the gripper, either
by its channel (positions are opening widths, m) or by its joint (positions times ``width_scale``).
A message without points asks the arm to stop (``BRAKE``), as in ROS 2's own controllers.

*Start.* A stamp of zero means now. An older stamp is honoured: points that are over are entered in
the middle, so a policy that stamps its chunk with the observation is aligned by it. When the first
point lies ahead, the spline leads there from the running reference (position, velocity and
acceleration, hence no step of any of them), at once, as joint_trajectory_controller does. When the
first point is due about now (within ``LEAD_MIN_S``) it is taken as where the arm is: what differs
in position is left to the hand-over's blend, and velocity and acceleration go on from the running
reference unless the message gives them.

*Between.* Positions only: the C2 cubic spline, which does not rest at any point. With velocities:
quintic pieces of least jerk. With accelerations too: quintic pieces, fully determined. What a
message says of one point it must say of all. The gripper follows its positions without
overshoot (its derivatives are not used: it is commanded by width).

*End.* Final velocities decide if given: zero means rest at the last point, at its time (MoveIt);
anything else is obeyed, and so is a stop that a sender asks for at every point by sending
zeros. Positions only do not say what comes after the last point: the spline passes it
with free velocity and no acceleration, so that a chunk which is replaced in time never slows down;
if nothing replaces it, the controller brakes along the path and stops *at* the last point, later by
half the braking time. A single point without velocities is a goal: it is reached at rest.

*Effort* that is not zero is refused: this controller makes its own feed-forward, and dropping
someone's in silence would be worse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.polynomial import polynomial
from numpy.typing import NDArray

from niaf_field import SplineError, SplineReference, spline_through
from niaf_field.codec import time_from_stamp
from niaf_impedance.robot_config import GripperConfig

F64 = NDArray[np.float64]

MAX_POINTS = 500
MAX_HORIZON_S = 60.0
#: a stamp further ahead than this is taken for a clock that is wrong
MAX_AHEAD_S = 0.5
#: a lead-in shorter than this could only be violent
LEAD_MIN_S = 0.02


class TrajectoryError(ValueError):
    """A trajectory that cannot be followed; names thing, value and remedy."""


class Stop(Enum):
    """What an empty trajectory asks for."""

    BRAKE = "brake"


BRAKE = Stop.BRAKE


@dataclass(frozen=True, eq=False)
class TrajectoryPoints:
    """A JointTrajectory in numbers: K points of the N named joints, in the message's order.

    ``start_s`` None: from now on. ``positions`` [K, N]; ``velocities`` and ``accelerations``
    [K, N] or None; ``time_from_start_s`` [K].
    """

    joint_names: tuple[str, ...]
    start_s: float | None
    time_from_start_s: F64
    positions: F64
    velocities: F64 | None = None
    accelerations: F64 | None = None


@dataclass(frozen=True, eq=False)
class RunningReference:
    """Where the commanded motion is at ``t_s``: joint arrays [n], gripper width in m."""

    t_s: float
    q: F64
    dq: F64
    ddq: F64
    gripper_m: float = 0.0


def from_message(message: Any, epoch_sec: int = 0) -> TrajectoryPoints:
    """Numbers of a trajectory_msgs/JointTrajectory; TrajectoryError where they are not complete."""
    try:
        names = tuple(str(name) for name in message.joint_names)
        points = message.points
        stamp = message.header.stamp
        start = None if stamp.sec == 0 and stamp.nanosec == 0 else time_from_stamp(stamp, epoch_sec)
        _check_count(len(points))
        times = np.array([time_from_stamp(point.time_from_start) for point in points])
        positions = _rows(points, "positions", len(names), required=True)
        velocities = _rows(points, "velocities", len(names))
        accelerations = _rows(points, "accelerations", len(names))
        effort = _rows(points, "effort", len(names))
    except AttributeError as error:
        raise TrajectoryError(
            f"{type(message).__name__} is not a trajectory_msgs/JointTrajectory ({error}); only "
            "joint trajectories are followed, multi-DOF ones are not"
        ) from error
    if effort is not None and effort.any():
        k, j = np.argwhere(effort)[0]
        raise TrajectoryError(
            f"points[{k}].effort of {names[j]} is {effort[k, j]:g}; leave effort empty: this "
            "controller computes the torque for the motion itself"
        )
    if positions is None:
        positions = np.zeros((0, len(names)))
    return TrajectoryPoints(names, start, times, positions, velocities, accelerations)


def trajectory_reference(
    points: TrajectoryPoints,
    joint_names: Sequence[str],
    gripper: GripperConfig | None,
    running: RunningReference,
    *,
    sequence: int,
) -> SplineReference | Stop:
    """The spline to offer to the controller, channels in arm order, then the gripper if named.

    ``joint_names`` [n] of the arm; ``running`` at the last tick: its time is "now". ``BRAKE`` when
    the trajectory has no points. See the module's text for the rules.
    """
    if points.time_from_start_s.shape[0] == 0:
        return BRAKE
    _check_values(points)
    columns, width_column, width_scale = _columns(points.joint_names, joint_names, gripper)
    now = running.t_s
    times = (now if points.start_s is None else points.start_s) + points.time_from_start_s
    _check_times(points, times, now)

    q = points.positions[:, columns]
    dq = None if points.velocities is None else points.velocities[:, columns]
    ddq = None if points.accelerations is None else points.accelerations[:, columns]
    width = None if width_column is None else width_scale * points.positions[:, width_column]
    count = times.shape[0]
    v0: F64 | None = None
    a0: F64 | None = None
    ahead = float(times[0]) - now
    lead_in = ahead > LEAD_MIN_S
    if lead_in:
        times = np.append(now, times)
        q = np.vstack([running.q, q])
        v0, a0 = running.dq, running.ddq
        dq = None if dq is None else np.vstack([running.dq, dq])
        ddq = None if ddq is None else np.vstack([running.ddq, ddq])
        width = None if width is None else np.append(running.gripper_m, width)
    elif abs(ahead) <= LEAD_MIN_S:
        v0 = running.dq if dq is None else None
        a0 = running.ddq if ddq is None else None

    # velocities are given: "rest" only adds that a last velocity of zero ends without acceleration
    resting = dq is not None or (count == 1 and lead_in)
    try:
        knots, coefficients = spline_through(
            times, q, dq, ddq, start_velocity=v0, start_acceleration=a0,
            end="rest" if resting else "natural",
        )
        if width is not None:
            zero = np.zeros((width.shape[0], 1))
            _, monotone = spline_through(times, width[:, None], zero, zero)
            coefficients = np.concatenate([coefficients, monotone], axis=2)
        if not lead_in and ahead > 0.0:
            knots, coefficients = _begin_earlier(knots, coefficients, now)
        stamp = now if points.start_s is None else points.start_s
        return SplineReference(knots, coefficients, sequence, stamp)
    except SplineError as error:
        raise TrajectoryError(
            f"no spline goes through these points: {error}; check spacing and magnitude"
        ) from error


def _begin_earlier(knots: F64, coefficients: F64, start_s: float) -> tuple[F64, F64]:
    """The same curve with its first piece continued backwards to ``start_s``."""
    shift = start_s - knots[0]
    knots, coefficients = knots.copy(), coefficients.copy()
    first = coefficients[0].copy()
    factorial = 1.0
    for order in range(6):
        factorial *= max(order, 1)
        value = polynomial.polyval(shift, polynomial.polyder(first, order), tensor=False)
        coefficients[0, order] = value / factorial
    knots[0] = start_s
    return knots, coefficients


def _rows(points: Sequence[Any], name: str, length: int, required: bool = False) -> F64 | None:
    """[K, N] of one attribute of all points; None when no point has it."""
    rows = [getattr(point, name) for point in points]
    if not required and not any(len(row) for row in rows):
        return None
    for k, row in enumerate(rows):
        if len(row) != length:
            rule = (
                "one value per joint name is needed"
                if required
                else "give one value per joint name in every point, or in none"
            )
            raise TrajectoryError(
                f"points[{k}].{name} has {len(row)} values for {length} joint names; {rule}"
            )
    return np.array(rows, dtype=np.float64).reshape(len(rows), length) if rows else None


def _check_count(count: int) -> None:
    if count > MAX_POINTS:
        raise TrajectoryError(
            f"the trajectory has {count} points, at most {MAX_POINTS} are taken; send fewer points "
            "further apart (a spline goes through them) or send it in parts"
        )


def _check_values(points: TrajectoryPoints) -> None:
    """Refuse shapes, numbers and times that no spline could follow."""
    times = points.time_from_start_s
    shape = (times.shape[0], len(points.joint_names))
    _check_count(shape[0])
    for name in ("positions", "velocities", "accelerations"):
        values = getattr(points, name)
        if values is None:
            continue
        if values.shape != shape:
            raise TrajectoryError(
                f"{name} have shape {values.shape}, expected {shape}: points times joint names"
            )
        if not np.isfinite(values).all():
            k, j = np.argwhere(~np.isfinite(values))[0]
            raise TrajectoryError(
                f"points[{k}].{name} of {points.joint_names[j]} is {values[k, j]}; every value "
                "must be a finite number"
            )
    if points.accelerations is not None and points.velocities is None:
        raise TrajectoryError(
            "points have accelerations but no velocities; give both, or positions only"
        )
    if not np.isfinite(times).all() or times[0] < 0.0:
        k = int(np.flatnonzero(~(np.isfinite(times) & (times >= 0.0)))[0])
        raise TrajectoryError(
            f"points[{k}].time_from_start is {times[k]} s; it must be finite and not negative"
        )
    backwards = np.flatnonzero(np.diff(times) <= 0.0)
    if backwards.size:
        k = int(backwards[0]) + 1
        raise TrajectoryError(
            f"points[{k}].time_from_start is {times[k]:g} s after {times[k - 1]:g} s of the point "
            "before; times must increase strictly"
        )


def _check_times(points: TrajectoryPoints, times: F64, now: float) -> None:
    """Refuse instants [K] that cannot be met from ``now``."""
    start = points.start_s
    if start is not None and not start - now <= MAX_AHEAD_S:
        raise TrajectoryError(
            f"header.stamp lies {start - now:.3f} s ahead, at most {MAX_AHEAD_S:g} s is waited; "
            "synchronise the clocks, or send a stamp of zero to start now"
        )
    if times[-1] - min(times[0], now) > MAX_HORIZON_S:
        raise TrajectoryError(
            f"the trajectory lasts {times[-1] - min(times[0], now):g} s, at most {MAX_HORIZON_S:g} "
            "s is taken at once; send it in parts"
        )
    if times.shape[0] == 1 and 0.0 <= times[0] - now <= LEAD_MIN_S:
        raise TrajectoryError(
            f"the only point is due in {times[0] - now:.3f} s; give the arm more than "
            f"{LEAD_MIN_S:g} s to get there (time_from_start)"
        )
    if times[-1] <= now:
        raise TrajectoryError(
            f"the last point was due {now - times[-1]:.3f} s ago; send points that lie ahead of "
            "header.stamp (zero: of arrival), and synchronise the clocks if they do"
        )


def _columns(
    names: Sequence[str], arm: Sequence[str], gripper: GripperConfig | None
) -> tuple[list[int], int | None, float]:
    """Message columns of the arm's joints, column of the gripper or None, width per position."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise TrajectoryError(f"joint_names has {twice[0]!r} more than once; name each joint once")
    missing = [name for name in arm if name not in names]
    extra = [name for name in names if name not in arm]
    grips = [] if gripper is None else [n for n in extra if n in (gripper.channel, gripper.joint)]
    unknown = [name for name in extra if name not in grips]
    known = f"this arm's joints are {list(arm)}"
    if gripper is not None:
        known += f", its gripper is {gripper.channel!r} (m) or {gripper.joint!r}"
    if unknown:
        raise TrajectoryError(f"joint_names has unknown {unknown[0]!r}; {known}")
    if missing:
        raise TrajectoryError(
            f"joint_names lacks {missing[0]!r}; every joint must be in the trajectory: {known}"
        )
    if len(grips) == 2:
        raise TrajectoryError(
            f"joint_names has the gripper twice, as {grips[0]!r} and as {grips[1]!r}; name one"
        )
    columns = [names.index(name) for name in arm]
    if gripper is None or not grips:
        return columns, None, 1.0
    scale = gripper.width_scale if grips[0] == gripper.joint else 1.0
    return columns, names.index(grips[0]), scale
