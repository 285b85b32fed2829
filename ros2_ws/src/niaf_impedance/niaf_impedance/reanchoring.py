"""Anchors of relative channels from what this controller measured, instead of from the policy.

A relative channel is a displacement from where the arm was when the observation was made. The
policy sends that pose along (``ActionField.anchor``) as it knows it: from the joint state that
stood beside the image, tens of milliseconds off where cameras and drives do not share a clock. The
controller has every state that it ticked with; it looks up the pose at the field's stamp and puts
it in the policy's place. With parameter ``anchor`` at ``measured`` only.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.spatial.transform import Rotation

from niaf_field import Prior
from niaf_field.channels import CARTESIAN_PREFIX
from niaf_impedance.arm_model import ArmModel
from niaf_impedance.tool_setup import tool_columns, tool_pose

FloatArray = np.ndarray

#: states further apart than this are not interpolated between
LARGEST_GAP_S = 0.1


class NoPoseError(LookupError):
    """No state was measured around the instant asked for; the text says what there is."""


class PoseHistory:
    """The last measured positions [columns] by stamp; one thread at a time.

    ``add`` costs two assignments: a ring is written over.
    """

    def __init__(self, columns: int, span_s: float, rate_hz: float, ahead_s: float) -> None:
        """Room for ``span_s`` at ``rate_hz``, and a fifth more.

        A stamp up to ``ahead_s`` beyond the newest state gets that one: its own is on its way.
        """
        self._ahead_s = ahead_s
        room = max(8, math.ceil(1.2 * span_s * rate_hz))
        self._stamps, self._rows = np.full(room, -np.inf), np.zeros((room, columns))
        self._next = self._count = 0

    def clear(self) -> None:
        """Forget everything (the clock was set)."""
        self._next = self._count = 0

    def add(self, stamp_s: float, q: FloatArray, gripper_m: float | None = None) -> None:
        """Keep a state. One that is older than the newest was stamped by a clock that was set back:
        what came before is forgotten."""
        room, at = self._stamps.size, self._next
        if self._count and stamp_s <= self._stamps[at - 1]:
            if stamp_s == self._stamps[at - 1]:
                return
            self.clear()
            at = 0
        self._stamps[at] = stamp_s
        row = self._rows[at]
        row[: q.size] = q
        row[q.size :] = math.nan if gripper_m is None else gripper_m
        self._next = (at + 1) % room
        self._count = min(self._count + 1, room)

    def at(self, stamp_s: float) -> FloatArray:
        """Positions [columns] at ``stamp_s``, linear between two states.

        Raises:
            NoPoseError: the instant lies outside what is kept, or in a gap.
        """
        if not self._count:
            raise NoPoseError("no joint state has been measured yet")
        order = np.arange(self._next - self._count, self._next) % self._stamps.size
        stamps = self._stamps[order]
        after = int(np.searchsorted(stamps, stamp_s))
        if after == stamps.size:
            ahead_s = stamp_s - stamps[-1]
            if ahead_s > self._ahead_s:
                raise NoPoseError(
                    f"the newest joint state is {ahead_s:.3f} s older; are the clocks of cameras "
                    "and drives synchronised?"
                )
            return self._rows[order[-1]].copy()
        if stamps[after] == stamp_s:
            return self._rows[order[after]].copy()
        if after == 0:
            raise NoPoseError(
                f"the oldest joint state that is kept is {stamps[0] - stamp_s:.3f} s newer; the "
                "observation is too old"
            )
        gap_s = float(stamps[after] - stamps[after - 1])
        if gap_s > LARGEST_GAP_S:
            raise NoPoseError(f"no joint state came for {gap_s:.3f} s around it")
        share = (stamp_s - stamps[after - 1]) / gap_s
        before, behind = self._rows[order[after - 1]], self._rows[order[after]]
        return np.asarray(before + share * (behind - before))


def measured_anchor(prior: Prior, arm: ArmModel, q: FloatArray, gripper_m: float) -> FloatArray:
    """Anchor [D] of a field of ``prior`` for an observation made at the pose ``q`` [n].

    Relative channels: the joint's position, the gripper's width, the tool's position in the base
    frame, the rotation vector of the tool's orientation. Absolute channels: 0.

    Raises:
        NoPoseError: a relative gripper channel, and the gripper's width is not measured.
    """
    anchor = np.zeros(prior.D)
    if not any(channel.semantics == "relative" for channel in prior.channels):
        return anchor
    value = dict(zip(arm.joint_names, q, strict=True))
    if arm.config.gripper is not None:
        value[arm.config.gripper.channel] = gripper_m
    if any(channel.kind.startswith(CARTESIAN_PREFIX) for channel in prior.channels):
        motion, _ = tool_pose(arm, q)
        vector = Rotation.from_matrix(motion[0:9].reshape(3, 3)).as_rotvec()
        columns = tool_columns(prior, arm)[:6]
        for column, coordinate in zip(columns, (*motion[9:12], *vector), strict=True):
            value[prior.channels[column].name] = coordinate
    for i, channel in enumerate(prior.channels):
        if channel.semantics == "relative":
            anchor[i] = value[channel.name]
            if not math.isfinite(anchor[i]):
                raise NoPoseError(f"the position of {channel.name!r} is not measured")
    return anchor
