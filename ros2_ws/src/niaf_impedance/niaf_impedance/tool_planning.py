"""Admission of references that move the tool: the joint path that they lead to is what is judged.

A tool reference says nothing about the joints, so the composite that would be commanded is rolled
out into a joint path (``cartesian_rollout``, from the measured joints) and that path is held
against the limits of the joints, besides two limits of its own: the pose must be reached, and not
through poses in which the arm loses a direction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from niaf_field import ActionField, Prior, Reference
from niaf_impedance import composite as c
from niaf_impedance import tick as k
from niaf_impedance.admission import Reason
from niaf_impedance.arm_model import ArmModel
from niaf_impedance.cartesian import (
    CJ_NULL_KD,
    CJ_NULL_KP,
    CP_LIMIT_MARGIN,
    CP_SIGMA,
    CP_SIZE,
    cartesian_rollout,
    rollout_work_size,
)
from niaf_impedance.faults import Mode
from niaf_impedance.kinematics import motion_from_channels, rotation_from_vector
from niaf_impedance.planning import (
    _REASONS,
    _ROWS,
    AnyReference,
    Planner,
    Snapshot,
)
from niaf_impedance.settings import ControllerConfig
from niaf_impedance.tool_setup import tool_columns
from niaf_impedance.tool_task import G_NULL_KD, G_NULL_KP, TARGET

FloatArray = np.ndarray

#: rows beyond those of the joints
UNREACHABLE, SINGULAR = _ROWS, _ROWS + 1
#: pose error that the rollout may leave, m and rad
_RESIDUAL = np.array([1e-3, 3e-3])
#: a residual this many times larger than allowed is not the fault of the reference's speed
_FAR = 10.0
#: bandwidth and step of the rollout (rate times step below 0.5)
_RATE_RAD_S, _STEP_S = 30.0, 0.016
#: deceleration that the brake at the end of a field is planned for, m/s^2 and rad/s^2; whether the
#: joints stand it is judged like everything else
_BRAKE_M_S2, _BRAKE_RAD_S2 = 3.0, 12.0
#: instants at which the length of the rotation vector is looked at
_ROTATION_SAMPLES = 64


class ToolPlanner(Planner):
    """As :class:`Planner`, for a prior that moves the tool.

    ``gains`` and ``cj`` are the controller's arrays of the law (only read).
    """

    reasons = ((UNREACHABLE, Reason.UNREACHABLE), (SINGULAR, Reason.SINGULAR), *enumerate(_REASONS))
    bisections = 3  # a rollout takes milliseconds

    #: the joints' path has sharper bends than the tool's
    _density = 2

    def __init__(
        self, config: ControllerConfig, arm: ArmModel, prior: Prior, jp: FloatArray,
        cf: FloatArray, in_use: Callable[[], Iterable[int]], gains: FloatArray, cj: FloatArray,
    ) -> None:
        super().__init__(config, arm, prior, jp, cf, in_use)
        self.pool[:, self.pool.shape[1] - c.ANCHOR :] = np.eye(3).ravel()
        self._gains, self._cj = gains, cj
        # the law's push away from the limits is not part of the rollout, so keep out of its reach
        margin = gains[TARGET, CP_LIMIT_MARGIN]
        self._limits[0] += margin
        self._limits[1] -= margin
        self._jets, self._slot = np.zeros((3, c.TOOL_COLUMNS)), np.zeros(c.TOOL_JET)
        self._rollout_work = np.zeros(rollout_work_size(arm.n))

    # -- what a reference is ----------------------------------------------------------------------
    def _columns_of_prior(self, prior: Prior) -> list[int]:
        return tool_columns(prior, self.arm)

    def _columns_of(self, reference: Reference) -> tuple[Reason, str, list[int]]:
        if not isinstance(reference, ActionField):
            return (
                Reason.CHANNEL_MISMATCH,
                "this controller follows the tool (its prior has cartesian channels); joint "
                "trajectories need a controller with a prior of joint channels, or without one", [],
            )
        return super()._columns_of(reference)

    def _unfit(
        self, reference: AnyReference, columns: Sequence[int], seam: float
    ) -> tuple[Reason, str]:
        times = np.linspace(seam, reference.end_s, _ROTATION_SAMPLES)
        turn = np.linalg.norm(reference.batch(times, 0)[:, 0, list(columns[3:6])], axis=1)
        worst = int(np.argmax(np.where(np.isfinite(turn), turn, np.inf)))
        if not np.isfinite(turn[worst]):
            return Reason.NOT_FINITE, "the field's orientation is not finite"
        if turn[worst] >= np.pi:
            return Reason.UNREACHABLE, (
                f"the rotation vector rx, ry, rz would be {turn[worst]:.2f} rad long "
                f"{times[worst] - seam:+.3f} s after the hand-over; it must stay below pi: turn "
                "the anchor instead (relative channels)"
            )
        return Reason.NONE, ""

    def _anchor(self, reference: AnyReference) -> FloatArray:
        """Orientation [9] that the field's rotation channels turn."""
        assert isinstance(reference, ActionField)
        rotation = np.zeros(9)
        rotation_from_vector(*reference.folded.anchor_rotation_rad, rotation)
        return rotation

    # -- hand-over --------------------------------------------------------------------------------
    def _seam_step(
        self, jet: FloatArray, old: FloatArray, reference: AnyReference
    ) -> FloatArray:
        """[3, 6]: x, y, z and rotation vector, twist, acceleration; ``old`` is a tool jet."""
        new, step = np.zeros(c.TOOL_JET), np.zeros((3, 6))
        motion_from_channels(np.ascontiguousarray(jet), self._anchor(reference), new)
        c.tool_step_between(old, new, step)
        return step

    def _seam_too_far(self, step: FloatArray) -> tuple[str, str]:
        config = self.config
        distance, angle = (float(np.linalg.norm(step[0, i : i + 3])) for i in (0, 3))
        if distance > config.seam_tool_position_limit_m:
            return (
                f"the tool would step by {distance:.3f} m at the hand-over; allowed is "
                f"{config.seam_tool_position_limit_m:g}"
            ), "tool"
        if angle > config.seam_tool_rotation_limit_rad:
            return (
                f"the tool would turn by {angle:.3f} rad at the hand-over; allowed is "
                f"{config.seam_tool_rotation_limit_rad:g}"
            ), "tool"
        return "", ""

    def _seam_too_fast(self, step: FloatArray) -> tuple[str, str] | None:
        config = self.config
        for i, unit, limit in (
            (0, "m/s", config.seam_tool_velocity_limit_m_s),
            (3, "rad/s", config.seam_tool_velocity_limit_rad_s),
        ):
            speed = float(np.linalg.norm(step[1, i : i + 3]))
            if speed > limit:
                return (
                    f"the tool's velocity would step by {speed:.3f} {unit} at the hand-over; "
                    f"allowed is {limit:g}"
                ), "tool"
        return None

    def _hopeless(self, ratios: FloatArray, allowed: FloatArray) -> bool:
        """Slower, the tool goes through the same poses; only a small residual comes from speed."""
        return bool(ratios[UNREACHABLE] > _FAR or ratios[SINGULAR] > allowed[SINGULAR])

    def _position_at(self, snapshot: Snapshot, flip: float) -> FloatArray:
        return snapshot.q

    def _brake_time(self, speed: FloatArray) -> float:
        # in units in which the limits are those of the first joint
        needed = max(
            float(np.linalg.norm(speed[0:3])) / _BRAKE_M_S2,
            float(np.linalg.norm(speed[3:6])) / _BRAKE_RAD_S2,
        )
        return self.brake_time(needed * self.arm.limits.acceleration_rad_s2)

    # -- the composite ----------------------------------------------------------------------------
    def _running_jet(self, snapshot: Snapshot, t: float) -> FloatArray:
        """The tool jet [27] commanded at clock time ``t``."""
        st, out = snapshot.st, np.zeros(c.TOOL_JET)
        hold = st[k.ST_GRIPPER_HOLD]
        tables = (self.pool, snapshot.meta, snapshot.sf, hold)
        scratch = (self._raw, self._work, self._jets, self._slot, out)
        if snapshot.mode == Mode.HOLD:
            c.tool_composite(1, *tables, t, *scratch)
        else:
            c.tool_commanded(
                t, st[k.ST_BRAKE_AT], st[k.ST_BRAKE_T], st[k.ST_END], snapshot.count, *tables,
                *scratch)
        return out

    def _old_jet(self, count: int, snapshot: Snapshot, seam: float) -> FloatArray:
        out = np.zeros(c.TOOL_JET)
        c.tool_composite(
            count, self.pool, self._meta, self._sf, snapshot.st[k.ST_GRIPPER_TARGET], seam,
            self._raw, self._work, self._jets, self._slot, out,
        )
        return out

    def _bridge(self, snapshot: Snapshot, flip: float, buffer: int) -> None:
        """Slot 0: from the pose, twist and acceleration commanded at ``flip`` to rest.

        Its orientation is anchored at that of ``flip``, where the rotation vector is zero and its
        derivatives are the angular velocity and acceleration.
        """
        jet = self._running_jet(snapshot, flip)
        g = c.TOOL_GRIPPER
        x0 = np.concatenate([jet[9:12], np.zeros(3), jet[g : g + 1]])
        v0 = np.append(jet[12:18], jet[g + 1])
        a0 = np.append(jet[18:24], jet[g + 2])
        self._write_bridge(x0, v0, a0, flip, buffer)
        data = self.pool[buffer]
        data[data.size - c.ANCHOR :] = jet[:9]

    def _fill_slot(
        self, slot: int, buffer: int, reference: AnyReference, columns: Sequence[int],
        seam: float, scale: float,
    ) -> None:
        super()._fill_slot(slot, buffer, reference, columns, seam, scale)
        data = self.pool[buffer]
        data[data.size - c.ANCHOR :] = self._anchor(reference)

    # -- verdict ----------------------------------------------------------------------------------
    def _allowed(self, snapshot: Snapshot, flip: float) -> FloatArray:
        """As for joints; from a nearly singular pose the way out is allowed."""
        sigma = self._start_sigma(snapshot)
        return np.append(super()._allowed(snapshot, flip), [1.0, max(1.0, sigma) * (1.0 + 1e-9)])

    def _start_sigma(self, snapshot: Snapshot) -> float:
        """Ratio of the row SINGULAR where the arm is now."""
        motion = np.tile(self._running_jet(snapshot, snapshot.last_s)[:24], (1, 1))
        motion[:, 12:] = 0.0
        _, _, sigma = self._roll_out(np.zeros(1), motion, snapshot)
        return float(self._gains[TARGET, CP_SIGMA] / max(sigma[0], 1e-9))

    def _roll_out(
        self, times: FloatArray, motions: FloatArray, snapshot: Snapshot, scale: float = 1.0
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Joint path [K, 3, n], residual [K, 2], sigma [K] of ``motions`` [K, 24].

        A motion slowed to ``scale`` is followed that much more slowly, in as many steps.
        """
        arm, count = self.arm, times.size
        gains, cj = self._gains[TARGET], self._cj.copy()
        # what the gains will be, not what a ramp has reached: a plan must not depend on the tick
        # that goes on beside it
        cj[CJ_NULL_KP], cj[CJ_NULL_KD] = gains[G_NULL_KP], gains[G_NULL_KD]
        path = [np.empty((count, self.n)) for _ in range(3)]
        residual, sigma = np.empty((count, 2)), np.empty(count)
        cartesian_rollout(
            times, motions, snapshot.q, snapshot.dq, arm.model, arm.parent, arm.kind, arm.tool,
            gains[:CP_SIZE], cj, _RATE_RAD_S * scale, _STEP_S / scale, self._rollout_work,
            *path, residual, sigma,
        )
        return np.stack(path, axis=1), residual, sigma

    def _judge(
        self, times: FloatArray, rows: int, brake_at: float, brake_t: float, end: float,
        count: int, snapshot: Snapshot, scale: float,
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        times = np.unique(times)
        tool = np.empty((times.size, c.TOOL_JET))
        c.tool_commanded_many(
            times, brake_at, brake_t, end, count, self.pool, self._meta, self._sf,
            snapshot.st[k.ST_GRIPPER_TARGET], self._raw, self._work, self._jets, self._slot, tool)
        motions = np.ascontiguousarray(tool[:, : c.TOOL_GRIPPER])
        path, residual, sigma = self._roll_out(times, motions, snapshot, scale)
        jets = np.zeros((times.size, rows, self.n + 1))
        jets[:, :3, : self.n] = path
        jets[:, :3, self.n] = tool[:, c.TOOL_GRIPPER :]
        if rows == 4:
            jets[:, 3, : self.n] = np.gradient(path[:, 2], times, axis=0)
        ratios, joints, instants = self._scan_jets(times, jets)
        unreached = np.max(residual / _RESIDUAL, axis=1)
        lost = self._gains[TARGET, CP_SIGMA] / np.maximum(sigma, 1e-9)
        for values in (unreached, lost):
            finite = np.where(np.isfinite(values), values, np.inf)
            worst = int(np.argmax(finite))
            ratios = np.append(ratios, finite[worst])
            joints, instants = np.append(joints, -1), np.append(instants, times[worst])
        return ratios, joints, instants

    def _name(self, row: int, index: int) -> str:
        return "tool" if row in (UNREACHABLE, SINGULAR) else super()._name(row, index)

    def _limit_text(
        self, joint: str, reason: Reason, ratio: float, ahead_s: float, allowed: float
    ) -> str:
        if reason == Reason.UNREACHABLE:
            return (
                f"the arm cannot bring its tool there: {ahead_s:+.3f} s from now it would be "
                f"{ratio:.1f} times further off than {1e3 * _RESIDUAL[0]:g} mm or "
                f"{_RESIDUAL[1]:g} rad (within its speed)"
            )
        if reason == Reason.SINGULAR:
            return (
                f"the arm would come too close to a singular pose {ahead_s:+.3f} s from now: "
                f"smallest singular value {self._gains[TARGET, CP_SIGMA] / ratio:.3f}, at least "
                f"{self._gains[TARGET, CP_SIGMA] / allowed:.3f} is needed"
            )
        return super()._limit_text(joint, reason, ratio, ahead_s, allowed)
