"""Scripted expert: plans the rest of a task from any state, with privileged object poses.

The plan depends only on the present state (arm, gripper, cubes), not on how it came about. So the
same expert demonstrates from the home pose, recovers from disturbances, and corrects a policy on
the policy's own states (DAgger, Ross et al. 2011).

A plan is a list of straight tool motions with minimum-jerk timing and of gripper motions. It is
sampled every ``knot_s``, turned into joint positions by inverse kinematics, and joined by a C2
spline that starts with the arm's present velocity.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pinocchio as pin

from niaf_field.reference import SplineReference, spline_reference
from niaf_sim import scene
from niaf_sim.cell import Cell
from niaf_sim.kinematics import ToolKinematics

FloatArray = np.ndarray

#: tool pointing down, fingers opening along the base frame's y axis
TOOL_DOWN = np.diag([1.0, -1.0, -1.0])


@dataclass(frozen=True)
class ExpertConfig:
    """Heights and clearances in metres, speeds in m/s, times in seconds."""

    hover_m: float = 0.11
    grasp_m: float = 0.018
    lift_m: float = 0.17
    carry_m: float = 0.19
    release_m: float = 0.09
    speed_m_s: float = 0.32
    slow_speed_m_s: float = 0.20
    min_segment_s: float = 0.45
    close_s: float = 0.40
    open_s: float = 0.30
    rest_s: float = 0.80
    aligned_m: float = 0.012
    #: near enough to act at once. Without it a plan made anew from a standstill would always begin
    #: with a move, and a policy that replans faster than that would never come to act.
    there_m: float = 0.008
    knot_s: float = 0.05
    open_m: float = scene.GRIPPER_MAX_M
    closed_m: float = 0.0


@dataclass(frozen=True)
class _Move:
    """Go straight to ``position_m`` (None: stay) in ``duration_s``; gripper at ``width_m``."""

    position_m: FloatArray | None
    duration_s: float
    width_m: float


class Expert:
    """Plans with the arm model of the cell; holds no state between calls."""

    def __init__(self, config: ExpertConfig | None = None) -> None:
        self.config = config or ExpertConfig()
        self.tool = ToolKinematics(scene.panda_urdf_path(), scene.ARM_JOINTS)
        self._posture = np.array(scene.HOME_Q)

    def plan(
        self,
        cell: Cell,
        start_s: float,
        q: FloatArray,
        dq: FloatArray,
        gripper_command_m: float,
        sequence: int,
    ) -> SplineReference:
        """Reference for the rest of the task from joint state (q, dq) [7] at ``start_s``.

        Channels: 7 joint positions (rad) and gripper width (m). Raises UnreachableError.
        """
        position, rotation = self.tool.pose(q)
        moves = self._moves(cell, position, gripper_command_m)
        times, values = self._knots(moves, start_s, q, dq, position, rotation, gripper_command_m)
        return spline_reference(
            times, values, start_velocity=np.append(dq, 0.0), sequence=sequence, stamp_s=start_s
        )

    # -- what to do --------------------------------------------------------------------------
    def _moves(self, cell: Cell, tool_m: FloatArray, command_m: float) -> list[_Move]:
        c = self.config
        cube = cell.cube_positions_m()[cell.task.cube]
        in_bin = (
            np.all(np.abs(cube[:2] - cell.config.scene.bin_position_m[:2]) < 0.08)
            and cube[2] < 0.06
        )
        gap = np.linalg.norm(cube - tool_m)
        half = cell.config.scene.cube_half_m
        gripping = command_m < 0.04 and gap < 0.03 and half < cell.gripper_width_m < 3.2 * half
        if cell.task.kind == "bin" and in_bin and not gripping:
            return self._leave(cell, tool_m)
        moves: list[_Move] = []
        if not gripping:
            moves += self._approach(cell, tool_m, cube, command_m)
            grasp = np.array([cube[0], cube[1], max(cube[2], half) - half + c.grasp_m])
            start = moves[-1].position_m if moves else tool_m
            start = tool_m if start is None else start
            gap_xy, gap_z = np.linalg.norm(start[:2] - grasp[:2]), abs(start[2] - grasp[2])
            if gap_xy > c.there_m or gap_z > c.there_m:
                moves.append(self._move(start, grasp, c.slow_speed_m_s, c.open_m))
                start = grasp
            moves.append(_Move(None, c.close_s, c.closed_m))
            at = start
        else:
            at = tool_m
        if cell.task.kind == "pick":
            moves.append(
                self._move(at, np.array([at[0], at[1], c.lift_m]), c.speed_m_s, c.closed_m)
            )
            moves.append(_Move(None, c.rest_s, c.closed_m))
            return moves
        return moves + self._deliver(cell, at)

    def _approach(
        self, cell: Cell, tool_m: FloatArray, cube: FloatArray, command_m: float
    ) -> list[_Move]:
        """Bring the open gripper above the cube, clear of everything else."""
        c = self.config
        moves: list[_Move] = []
        at = tool_m
        hover = np.array([cube[0], cube[1], cube[2] + c.hover_m])
        closed = command_m < 0.06 or cell.gripper_width_m < 0.065
        offset = np.linalg.norm(tool_m[:2] - cube[:2])
        if closed:
            moves.append(_Move(None, c.open_s, c.open_m))
        if offset < c.aligned_m and tool_m[2] < hover[2]:
            return moves  # above the cube already: just go down
        if tool_m[2] < cube[2] + 0.06 and offset > c.aligned_m:
            up = np.array([at[0], at[1], max(hover[2], 0.12)])
            moves.append(self._move(at, up, c.speed_m_s, c.open_m))
            at = up
        moves.append(self._move(at, hover, c.speed_m_s, c.open_m))
        return moves

    def _deliver(self, cell: Cell, at: FloatArray) -> list[_Move]:
        c = self.config
        goal = np.asarray(cell.config.scene.bin_position_m)
        over = np.array([goal[0], goal[1], c.carry_m])
        drop = np.array([goal[0], goal[1], c.release_m])
        moves: list[_Move] = []
        if np.linalg.norm(at[:2] - goal[:2]) > 0.04:
            if at[2] < c.carry_m - 0.05:
                up = np.array([at[0], at[1], c.carry_m])
                moves.append(self._move(at, up, c.speed_m_s, c.closed_m))
                at = up
            moves.append(self._move(at, over, c.speed_m_s, c.closed_m))
            at = over
        if at[2] > c.release_m + 0.03:
            moves.append(self._move(at, drop, c.slow_speed_m_s, c.closed_m))
            at = drop
        moves.append(_Move(None, c.open_s, c.open_m))
        moves.append(self._move(at, over, c.speed_m_s, c.open_m))
        moves.append(_Move(None, c.rest_s, c.open_m))
        return moves

    def _leave(self, cell: Cell, tool_m: FloatArray) -> list[_Move]:
        c = self.config
        up = np.array([tool_m[0], tool_m[1], max(c.carry_m, tool_m[2])])
        return [
            _Move(None, c.open_s, c.open_m),
            self._move(tool_m, up, c.speed_m_s, c.open_m),
            _Move(None, c.rest_s, c.open_m),
        ]

    def _move(self, start: FloatArray, end: FloatArray, speed: float, width_m: float) -> _Move:
        duration = max(float(np.linalg.norm(end - start)) / speed * 1.4, self.config.min_segment_s)
        return _Move(end, duration, width_m)

    # -- how to move -------------------------------------------------------------------------
    def _knots(
        self,
        moves: list[_Move],
        start_s: float,
        q: FloatArray,
        dq: FloatArray,
        position: FloatArray,
        rotation: FloatArray,
        width_m: float,
    ) -> tuple[FloatArray, FloatArray]:
        knot = self.config.knot_s
        q_knots, widths = [np.array(q, dtype=float)], [width_m]
        at, turn = position, rotation
        velocity = self.tool.jacobian(q)[:3] @ dq
        for move in moves:
            count = max(int(round(move.duration_s / knot)), 1)
            duration = count * knot
            target = at if move.position_m is None else move.position_m
            first_width = widths[-1]
            for k in range(1, count + 1):
                x = k / count
                s = x * x * x * (10.0 - 15.0 * x + 6.0 * x * x)
                # quintic term that leaves with the present tool velocity and arrives at rest
                drift = velocity * duration * x * (1.0 - x) ** 3 * (1.0 + 3.0 * x)
                wanted = at + s * (target - at) + drift
                wanted_turn = _turn_towards(turn, TOOL_DOWN, s)
                q_knots.append(self.tool.solve(wanted, wanted_turn, q_knots[-1], self._posture))
                # the gripper's own rate limit shapes the rest; here it need only be C0
                ramp = min(k * knot / 0.15, 1.0)
                widths.append(first_width + ramp * (move.width_m - first_width))
            at, turn = target, TOOL_DOWN
            velocity = np.zeros(3)
        values = np.column_stack([np.array(q_knots), np.array(widths)])
        return start_s + knot * np.arange(len(values)), values


def _turn_towards(start: FloatArray, end: FloatArray, s: float) -> FloatArray:
    return start @ pin.exp3(s * pin.log3(start.T @ end))
