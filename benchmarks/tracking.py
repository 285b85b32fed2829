"""How well the controller tracks a learned policy's fields, and what its parts are worth.

    make bench ARGS=tracking

Records the stream of action fields of the shipped policy, episode by episode, in the lock-step
cell. Then replays each stream, open loop from the same initial state, through one controller
setting after another, so that all of them are asked for the very same motion:

* feed-forward and friction compensation switched off one by one, at the same gains, and longer
  hand-overs;
* the same motion as 20 Hz waypoint chunks: as the spline chunks of niaf_impedance.trajectory,
  through the same admission and hand-over, and the way a plain runner follows them (zero-order
  hold, or linear interpolation at the control rate; hard switch when a chunk arrives), under the
  same gains, limits, gravity and Coriolis compensation.

Columns: rms error to the own reference and to the newest field (what the policy wants at that
instant, before any hand-over); change of the torque that the law asks for from one tick to the
next, before the rate limiter, largest joint, in per mille of that joint's limit: at hand-overs and
elsewhere (p50, p99), their ratio, and P(step at a hand-over > step elsewhere), 0.5 when the two
cannot be told apart; share of ticks in which the rate limiter acts; rms jerk of the true motion,
differences over 10 ms.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from niaf_field import Prior
from niaf_field.reference import ActionField
from niaf_impedance.controller import ControllerConfig
from niaf_impedance.trajectory import (
    RunningReference,
    Stop,
    TrajectoryPoints,
    trajectory_reference,
)
from niaf_sim.agents import PolicyAgent, load_policy
from niaf_sim.env import EpisodeConfig, LockstepEnv, Observation, robot_config, run_episode
from niaf_sim.record import EVALUATION_SEED
from niaf_sim.tasks import INSTRUCTIONS

CHECKPOINT = Path(__file__).resolve().parent.parent / "ros2_ws/src/niaf_policy/checkpoints/demo"
WAYPOINT_S = 0.05
JERK_WINDOW = 10
FloatArray = np.ndarray


@dataclass(frozen=True)
class Stream:
    """The fields of one episode in the order of arrival; ``arrivals_s`` on the episode's clock."""

    seed: int
    fields: list[ActionField]
    arrivals_s: list[float]
    success: bool


@dataclass
class Trace:
    """One replay, a row per tick (joints in columns): own reference, truth, torque asked and sent.

    ``arrival`` marks the first tick after one; ``newest`` [ticks since the first, n] is what the
    newest field asks for.
    """

    time_s: list[float] = field(default_factory=list)
    reference: list[FloatArray] = field(default_factory=list)
    q: list[FloatArray] = field(default_factory=list)
    dq: list[FloatArray] = field(default_factory=list)
    asked_nm: list[FloatArray] = field(default_factory=list)
    sent_nm: list[FloatArray] = field(default_factory=list)
    arrival: list[bool] = field(default_factory=list)
    newest: FloatArray = field(default_factory=lambda: np.zeros((0, 0)))
    offered: int = 0
    refused: int = 0


class RecordingAgent:
    """The policy, remembering what it answered."""

    def __init__(self, agent: PolicyAgent) -> None:
        self.agent = agent
        self.fields: list[ActionField] = []

    def reset(self) -> None:
        self.agent.reset()
        self.fields = []

    def act(self, env: LockstepEnv, observation: Observation) -> ActionField:
        self.fields.append(self.agent.act(env, observation))
        return self.fields[-1]


def instruction_of(seed: int) -> str:
    return INSTRUCTIONS[seed % len(INSTRUCTIONS)]


def record(agent: RecordingAgent, seed: int, timing: EpisodeConfig) -> Stream:
    env = LockstepEnv(robot_config("panda"), agent.agent.policy.prior)
    env.reset(seed, instruction_of(seed))
    result = run_episode(env, agent, timing)
    env.cell.close()
    arrivals = [reference.stamp_s + timing.latency_s for reference in agent.fields]
    return Stream(seed, agent.fields, arrivals, result.success)


def chunk_of(source: ActionField) -> tuple[FloatArray, FloatArray]:
    """Waypoint times [K] (episode clock) and channels [K, D] of a field, as a chunk policy has."""
    times = source.start_s + np.arange(0.0, source.horizon_s + 1e-9, WAYPOINT_S)
    return times, source.batch(times, 0)[:, 0]


# -- three ways to follow a stream -----------------------------------------------------------------
class FieldFollower:
    """The controller, given the fields."""

    def __init__(self, env: LockstepEnv, columns: list[int]) -> None:
        self.env = env
        self.columns = columns

    @property
    def width_m(self) -> float:
        return self.env.controller.gripper_m

    def offer(self, source: ActionField) -> bool:
        return self.env.offer(source).accepted

    def tick(self, trace: Trace) -> FloatArray:
        env = self.env
        torque = env.controller.tick(env.time_s, env.cell.q, env.cell.dq)
        tel = env.controller.telemetry
        asked = tel.tau_stiffness + tel.tau_damping + tel.tau_gravity
        trace.reference.append(tel.q_ref.copy())
        trace.asked_nm.append(asked + tel.tau_inertia + tel.tau_friction)
        return torque


class SplineFollower(FieldFollower):
    """The controller, given the fields' waypoints through its JointTrajectory input."""

    def offer(self, source: ActionField) -> bool:
        controller, arm = self.env.controller, self.env.arm
        times, values = chunk_of(source)
        tel = controller.telemetry
        running = RunningReference(
            controller.last_tick_s, tel.q_ref, tel.dq_ref, tel.ddq_ref, controller.gripper_m
        )
        points = TrajectoryPoints(
            (*arm.joint_names, "gripper"), source.start_s, times - source.start_s,
            values[:, self.columns],
        )
        reference = trajectory_reference(
            points, arm.joint_names, arm.config.gripper, running, sequence=source.sequence
        )
        assert not isinstance(reference, Stop)
        return self.env.offer(reference).accepted


class PlainFollower(FieldFollower):
    """A waypoint runner: newest chunk at once, joint impedance, same gains and limits.

    hold: zero-order hold, reference velocity zero. Otherwise linear interpolation, reference
    velocity zero or, with ``slope``, that of the line.
    """

    def __init__(self, env: LockstepEnv, columns: list[int], hold: bool, slope: bool) -> None:
        super().__init__(env, columns)
        self.hold, self.slope = hold, slope
        self.wanted_width_m = 0.08
        self.times, self.values = np.array([0.0]), np.append(env.cell.q, self.wanted_width_m)[None]
        self.sent = env.cell.torque_nm.copy()

    @property
    def width_m(self) -> float:
        return self.wanted_width_m

    def offer(self, source: ActionField) -> bool:
        times, values = chunk_of(source)
        self.times, self.values = times, values[:, self.columns]
        return True

    def tick(self, trace: Trace) -> FloatArray:
        env, n = self.env, self.env.arm.n
        arm, controller, period = env.arm, env.controller, env.cell.config.control_period_s
        now, last = env.time_s, len(self.times) - 1
        k = min(max(int(np.searchsorted(self.times, now, "right")) - 1, 0), last)
        target, velocity = self.values[k].copy(), np.zeros(n)
        if not self.hold and k < last:
            rise = (self.values[k + 1] - target) / (self.times[k + 1] - self.times[k])
            target += rise * (now - self.times[k])
            if self.slope:
                velocity = rise[:n]
        tuning, speed = controller.tuning, controller.config.coulomb_speed_rad_s
        friction = np.array(tuning.coulomb_nm) * np.tanh(velocity / speed)
        friction += np.array(tuning.viscous_nms_rad) * velocity
        q, dq = env.cell.q, env.cell.dq
        asked = controller.kp * (target[:n] - q) + controller.kd * (velocity - dq)
        asked += arm.inverse_dynamics(q, dq, np.zeros(n)) + tuning.friction_scale * friction
        trace.reference.append(target[:n])
        trace.asked_nm.append(asked)
        step = arm.limits.torque_rate_nm_s * period
        limit = arm.limits.torque_nm
        self.sent = np.clip(np.clip(asked, self.sent - step, self.sent + step), -limit, limit)
        self.wanted_width_m = float(np.clip(target[n], 0.0, 0.08))
        return self.sent


@dataclass(frozen=True)
class Setting:
    """One row of the table."""

    name: str
    follower: Callable[[LockstepEnv, list[int]], FieldFollower]
    feedforward: str = "full"
    friction: bool = True
    blend_s: float = ControllerConfig().blend_s


def settings() -> list[Setting]:
    rows = [
        Setting(
            f"fields, {feedforward}, friction {'on' if friction else 'off'}", FieldFollower,
            feedforward, friction,
        )
        for feedforward in ("full", "nonlinear", "gravity")
        for friction in (True, False)
    ]
    rows += [
        Setting(f"fields, full, blend {blend_s:g} s", FieldFollower, blend_s=blend_s)
        for blend_s in (0.15, 0.2)
    ]
    rows.append(Setting("20 Hz chunks, spline, full", SplineFollower))
    for name, hold, slope in (
        ("linear, line's velocity", False, True),
        ("linear, velocity zero", False, False),
        ("zero-order hold", True, False),
    ):
        rows.append(
            Setting(
                f"20 Hz chunks, {name}",
                lambda env, columns, hold=hold, slope=slope: PlainFollower(  # type: ignore[misc]
                    env, columns, hold, slope
                ),
            )
        )
    return rows


def replay(env: LockstepEnv, stream: Stream, setting: Setting, columns: list[int]) -> Trace:
    """The stream through one setting, from the episode's initial state."""
    env.reset(stream.seed, instruction_of(stream.seed))
    follower = setting.follower(env, columns)
    trace, cell, n = Trace(), env.cell, env.arm.n
    period = cell.config.control_period_s
    upcoming = 0
    end = stream.arrivals_s[-1] + 0.1
    while env.time_s < end:
        arrived = upcoming < len(stream.fields) and (
            env.time_s >= stream.arrivals_s[upcoming] - 0.5 * period
        )
        if arrived:
            trace.offered += 1
            trace.refused += not follower.offer(stream.fields[upcoming])
            upcoming += 1
        trace.time_s.append(env.time_s)
        torque = follower.tick(trace)
        trace.q.append(cell.q_true.copy())
        trace.dq.append(cell.dq_true.copy())
        trace.sent_nm.append(torque.copy())
        trace.arrival.append(arrived)
        cell.step(torque, follower.width_m)
    edges = [*np.flatnonzero(trace.arrival), len(trace.time_s)]
    trace.newest = np.concatenate([
        source.batch(trace.time_s[first:last], 0)[:, 0, columns[:n]]
        for source, first, last in zip(stream.fields, edges[:-1], edges[1:], strict=True)
    ])
    return trace


# -- figures ---------------------------------------------------------------------------------------
def exceedance(first: FloatArray, second: FloatArray) -> float:
    """P(a draw from ``first`` > a draw from ``second``), ties counted half."""
    ordered = np.sort(second)
    below = np.searchsorted(ordered, first, "left")
    upto = np.searchsorted(ordered, first, "right")
    return float(np.mean(0.5 * (below + upto)) / len(ordered))


def rms(values: FloatArray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def figures(traces: list[Trace], torque_limit_nm: FloatArray, period_s: float) -> dict[str, Any]:
    """Figures of one setting over all episodes, from the first hand-over on."""
    own, wanted, steps, marks, limited, jerk = [], [], [], [], [], []
    for trace in traces:
        begin = trace.arrival.index(True)
        q = np.array(trace.q)
        own.append((np.array(trace.reference) - q)[begin:])
        wanted.append(trace.newest - q[begin:])
        asked, sent = np.array(trace.asked_nm), np.array(trace.sent_nm)
        step = np.max(np.abs(np.diff(asked, axis=0)) / torque_limit_nm, axis=1)
        limited.append(np.any(np.abs(asked - sent) > 1e-9, axis=1)[begin:])
        steps.append(step[begin:])  # without the first hand-over, which is from standstill
        marks.append(np.array(trace.arrival[1:])[begin:])
        w = JERK_WINDOW
        dq = np.array(trace.dq)[begin:]
        jerk.append((dq[2 * w :] - 2.0 * dq[w:-w] + dq[: -2 * w]) / (w * period_s) ** 2)
    step, mark = np.concatenate(steps), np.concatenate(marks)
    seam, elsewhere = step[mark], step[~mark]
    error = np.concatenate(own)
    at = {name: np.percentile(part, [50, 99, 100]) * 1e3
          for name, part in (("seam", seam), ("elsewhere", elsewhere))}
    return {
        "rms_own_mrad": rms(error) * 1e3,
        "rms_per_joint_mrad": [rms(column) * 1e3 for column in error.T],
        "rms_newest_field_mrad": rms(np.concatenate(wanted)) * 1e3,
        **{
            f"step_{name}_{label}_permille": float(value)
            for name, values in at.items()
            for label, value in zip(("p50", "p99", "max"), values, strict=True)
        },
        "step_ratio_p50": float(at["seam"][0] / at["elsewhere"][0]),
        "step_ratio_p99": float(at["seam"][1] / at["elsewhere"][1]),
        "step_seam_exceeds_elsewhere": exceedance(seam, elsewhere),
        "rate_limited_share": float(np.mean(np.concatenate(limited))),
        "jerk_rms_rad_s3": rms(np.concatenate(jerk)),
        "hand_overs": int(mark.sum()),
        "offered": sum(trace.offered for trace in traces),
        "refused": sum(trace.refused for trace in traces),
    }


def columns_of(prior: Prior, names: tuple[str, ...]) -> list[int]:
    """Field channels of the arm's joints, then of the gripper."""
    known = [channel.name for channel in prior.channels]
    return [known.index(name) for name in (*names, "gripper")]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--checkpoint", default=str(CHECKPOINT))
    parser.add_argument("--episodes", type=int, default=6)
    parser.add_argument("--seed", type=int, default=EVALUATION_SEED, help="of the first episode")
    parser.add_argument("--out", type=Path, default=Path("out/bench/tracking.json"))
    args = parser.parse_args()
    began = time.perf_counter()
    agent = RecordingAgent(PolicyAgent(load_policy(args.checkpoint)))
    prior = agent.agent.policy.prior
    seeds = range(args.seed, args.seed + args.episodes)
    streams = [record(agent, seed, EpisodeConfig()) for seed in seeds]
    recorded_s = time.perf_counter() - began

    rows: dict[str, dict[str, Any]] = {}
    composite: list[FloatArray] = []
    for setting in settings():
        config = ControllerConfig(feedforward=setting.feedforward, blend_s=setting.blend_s)
        env = LockstepEnv(robot_config("panda"), prior, config)
        if not setting.friction:
            env.controller.set_tuning(replace(env.controller.tuning, friction_scale=0.0))
        columns = columns_of(prior, env.arm.joint_names)
        traces = [replay(env, stream, setting, columns) for stream in streams]
        rows[setting.name] = figures(
            traces, env.arm.limits.torque_nm, env.cell.config.control_period_s
        )
        env.cell.close()
        if setting.follower is FieldFollower and setting.blend_s == ControllerConfig().blend_s:
            asked = [np.array(trace.reference) for trace in traces]
            composite = composite or asked
            same = max(np.abs(a - b).max() for a, b in zip(asked, composite, strict=True))
            rows[setting.name]["reference_differs_rad"] = float(same)
    on, off = "friction on", "friction off"
    ratios = {
        "full / gravity only, friction on in both": (f"full, {on}", f"gravity, {on}"),
        "full / gravity only, friction off in both": (f"full, {off}", f"gravity, {off}"),
        "full with friction / gravity only without": (f"full, {on}", f"gravity, {off}"),
        "friction on / off, full": (f"full, {on}", f"full, {off}"),
    }
    shares = {
        name: rows[f"fields, {a}"]["rms_own_mrad"] / rows[f"fields, {b}"]["rms_own_mrad"]
        for name, (a, b) in ratios.items()
    }
    machine = f"{platform.processor() or platform.machine()}, Python {platform.python_version()}"
    result = {
        "machine": machine,
        "episodes": [
            {"seed": s.seed, "instruction": instruction_of(s.seed), "fields": len(s.fields),
             "success": s.success} for s in streams
        ],
        "recording_wall_s": recorded_s,
        "wall_s": time.perf_counter() - began,
        "settings": rows,
        "rms_ratios": shares,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")

    print(f"machine: {machine}; {len(streams)} episodes, "
          f"{sum(len(s.fields) for s in streams)} fields, {result['wall_s']:.0f} s")
    print(
        f"{'':>36}  rms error, mrad   torque step, per mille of limit  "
        " ratio       P  limited    jerk\n"
        f"{'':>36}     own  newest   seam p50   p99   else p50   p99  "
        "  p50   p99  s>e    ticks  rad/s3  refused"
    )
    for name, row in rows.items():
        print(
            f"{name:>36}  {row['rms_own_mrad']:6.2f}  {row['rms_newest_field_mrad']:6.2f}   "
            f"{row['step_seam_p50_permille']:8.1f} {row['step_seam_p99_permille']:5.1f}   "
            f"{row['step_elsewhere_p50_permille']:8.1f} {row['step_elsewhere_p99_permille']:5.1f}  "
            f"{row['step_ratio_p50']:5.1f} {row['step_ratio_p99']:5.1f} "
            f"{row['step_seam_exceeds_elsewhere']:4.2f} {row['rate_limited_share']:7.1%}  "
            f"{row['jerk_rms_rad_s3']:6.0f}  {row['refused']}/{row['offered']}"
        )
    for name, share in shares.items():
        print(f"rms error, {name}: {share:.2f}")


if __name__ == "__main__":
    main()
