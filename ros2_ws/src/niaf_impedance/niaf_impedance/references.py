"""Received messages as references: the same code in the node and in the replay of a recording.

Nothing here imports ROS; a message is any object with the attributes of its .msg file.
"""

from __future__ import annotations

from typing import Any

from niaf_field import Prior, Reference
from niaf_field.codec import field_from_message
from niaf_field.codec import from_message as field_message
from niaf_impedance.arm_model import ArmModel
from niaf_impedance.planning import Snapshot
from niaf_impedance.trajectory import (
    RunningReference,
    Stop,
    TrajectoryError,
    from_message,
    trajectory_reference,
)


def reference_from_trajectory(
    message: Any, snapshot: Snapshot, arm: ArmModel, epoch_sec: int, sequence: int
) -> Reference:
    """Spline of a JointTrajectory that starts from the motion of ``snapshot``; TrajectoryError."""
    n = arm.n
    q, dq, ddq = snapshot.jet
    running = RunningReference(snapshot.last_s, q[:n], dq[:n], ddq[:n], float(q[n]))
    reference = trajectory_reference(
        from_message(message, epoch_sec), arm.joint_names, arm.config.gripper, running,
        sequence=sequence,
    )
    if isinstance(reference, Stop):
        raise TrajectoryError("the trajectory has no points; brake instead of judging it")
    return reference


def reference_from_message(
    message: Any, snapshot: Snapshot, arm: ArmModel, prior: Prior | None, epoch_sec: int,
    sequence: int,
) -> Reference:
    """Reference of an ActionField or a JointTrajectory whose content was found good before.

    ``sequence`` is that of a trajectory; a field brings its own.
    """
    if hasattr(message, "points"):
        return reference_from_trajectory(message, snapshot, arm, epoch_sec, sequence)
    if prior is None:
        raise ValueError("an action field cannot be folded without its prior")
    return field_from_message(field_message(message, epoch_sec), prior)
