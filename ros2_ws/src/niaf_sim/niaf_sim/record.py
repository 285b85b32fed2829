"""Record expert demonstrations, and expert corrections of a policy, as LeRobot v3 directories.

    python -m niaf_sim.record --out data/demo --episodes 600 --workers 2
    python -m niaf_sim.record --out data/dagger1 --episodes 160 --seed 10000 --checkpoint DIR

Each worker writes its own directory ``part-NNN`` (a dataset by itself). A demonstration is
disturbed now and then by a random detour; with a checkpoint, policy and expert take turns
(human-gated DAgger, Kelly et al. 2019), so that the expert shows the way back from the states that
the policy really visits. Frames in which the expert was not driving carry ``is_expert`` False and
are never labels.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from niaf_data.features import recording_features
from niaf_data.writer import LeRobotWriter
from niaf_impedance.tool_setup import moves_tool, tool_pose
from niaf_impedance.tool_state import pose_vector
from niaf_sim import scene
from niaf_sim.agents import (
    DEFAULT_POLICY_FACTORY,
    PolicyAgent,
    disturbance,
    load_policy,
    plan_from_here,
)
from niaf_sim.env import OBSERVED_CAMERAS, LockstepEnv, Observation, robot_config
from niaf_sim.expert import Expert
from niaf_sim.kinematics import UnreachableError
from niaf_sim.tasks import COLOURS, INSTRUCTIONS

#: seeds below this one are for recording, seeds from it on for evaluation only
EVALUATION_SEED = 1_000_000


@dataclass(frozen=True)
class RecordConfig:
    """Timing in frames and seconds; probabilities per episode."""

    fps: int = 20
    max_s: float = 14.0
    after_success_s: float = 0.4
    random_start: float = 0.35
    disturbed: float = 0.55
    disturb_every_s: tuple[float, float] = (0.8, 3.0)
    disturb_s: tuple[float, float] = (0.35, 0.8)
    #: with a policy: how long each side drives
    policy_turn_s: tuple[float, float] = (0.5, 2.5)
    expert_turn_s: tuple[float, float] = (1.2, 2.6)
    policy_replan_frames: int = 3


class EpisodeRecorder:
    """Columns of one episode, one row per frame."""

    def __init__(self) -> None:
        self.columns: dict[str, list[Any]] = {}

    def add(self, env: LockstepEnv, observation: Observation, is_expert: bool) -> None:
        cell, telemetry = env.cell, env.controller.telemetry
        row = {
            "observation.state": np.append(cell.q, cell.gripper_width_m).astype(np.float32),
            "observation.velocity": cell.dq.astype(np.float32),
            "action": np.append(telemetry.q_ref, env.controller.gripper_m).astype(np.float32),
            **tool_columns(env),
            "is_expert": np.array([is_expert]),
            "privileged.cubes": cell.cube_positions_m().ravel().astype(np.float32),
        }
        for name in OBSERVED_CAMERAS:
            row[f"observation.images.{name}"] = observation.images[name]
        for key, value in row.items():
            self.columns.setdefault(key, []).append(value)

    def frames(self) -> dict[str, np.ndarray]:
        return {key: np.stack(rows) for key, rows in self.columns.items()}


def tool_columns(env: LockstepEnv) -> dict[str, np.ndarray]:
    """Tool pose and twist at the drives' joints, and tool pose of the reference's joints."""
    cell, arm = env.cell, env.arm
    measured, jac = tool_pose(arm, cell.q)
    reference, _ = tool_pose(arm, env.controller.telemetry.q_ref)
    columns = {
        "observation.tool_pose": pose_vector(measured),
        "observation.tool_velocity": jac @ cell.dq,
        "action.tool_pose": pose_vector(reference),
    }
    return {key: values.astype(np.float32) for key, values in columns.items()}


def record_episode(
    env: LockstepEnv,
    expert: Expert,
    rng: np.random.Generator,
    config: RecordConfig,
    policy: PolicyAgent | None,
) -> tuple[dict[str, np.ndarray], bool]:
    """Frames of one episode and whether it ended in success; ``env`` must have been reset."""
    frame_s = 1.0 / config.fps
    recorder = EpisodeRecorder()
    begin = env.time_s
    disturbed = policy is None and rng.random() < config.disturbed
    turn = "expert" if policy is None or rng.random() < 0.2 else "policy"
    turn_until = begin + _turn_length(turn, rng, config, policy is not None)
    next_disturbance = begin + (rng.uniform(*config.disturb_every_s) if disturbed else np.inf)
    plan_until = -np.inf
    frame = 0
    success_s = np.inf
    pending = None
    if policy is not None:
        policy.reset()
    while env.time_s - begin < config.max_s:
        now = env.time_s
        observation = env.observe()
        if turn != "expert" and now >= turn_until:
            turn, plan_until, pending = "expert", -np.inf, None
            turn_until = now + _turn_length(turn, rng, config, policy is not None)
        elif turn == "expert" and policy is not None and now >= turn_until:
            turn = "policy"
            turn_until = now + _turn_length(turn, rng, config, True)
        elif turn == "expert" and now >= next_disturbance:
            turn = "disturbance"
            turn_until = now + rng.uniform(*config.disturb_s)
            env.offer(disturbance(env, expert, rng, turn_until - now))
            next_disturbance = now + rng.uniform(*config.disturb_every_s)
        if pending is not None:
            env.offer(pending)
            pending = None
        if turn == "expert" and now >= plan_until:
            plan = plan_from_here(env, expert)
            plan_until = plan.end_s
            env.offer(plan)
        elif turn == "policy" and policy is not None and frame % config.policy_replan_frames == 0:
            pending = policy.act(env, observation)  # takes effect one frame later
        recorder.add(env, observation, turn == "expert")
        env.run(frame_s)
        frame += 1
        if env.cell.success() and turn == "expert" and success_s == np.inf:
            success_s = env.time_s
        if not env.cell.success():
            success_s = np.inf
        if env.time_s - success_s >= config.after_success_s:
            break
    return recorder.frames(), bool(env.cell.success())


def _turn_length(
    turn: str, rng: np.random.Generator, config: RecordConfig, with_policy: bool
) -> float:
    if not with_policy:
        return np.inf
    return rng.uniform(*(config.policy_turn_s if turn == "policy" else config.expert_turn_s))


@dataclass(frozen=True)
class WorkerJob:
    """One worker's share: seeds ``first_seed .. first_seed + episodes - 1``."""

    root: str
    first_seed: int
    episodes: int
    robot: str
    checkpoint: str | None
    factory: str


def _work(job: WorkerJob, queue: Any) -> None:
    """Worker process: record its share and report after each episode."""
    try:
        policy = None
        if job.checkpoint is not None:
            policy = PolicyAgent(load_policy(job.checkpoint, job.factory))
            if moves_tool(policy.policy.prior):
                raise ValueError(
                    f"{job.checkpoint} moves the tool: its controller refuses the expert's plans, "
                    "which are of joints; record demonstrations only (without --checkpoint)"
                )
        env = LockstepEnv(
            robot_config(job.robot), prior=None if policy is None else policy.policy.prior
        )
        expert = Expert()
        config = RecordConfig()
        cameras = {
            camera.name: (camera.height, camera.width)
            for camera in env.cell.config.scene.cameras
            if camera.name in OBSERVED_CAMERAS
        }
        features = recording_features(scene.ARM_JOINTS, cameras, COLOURS, tool=True)
        with LeRobotWriter(job.root, config.fps, features, "panda_sim") as writer:
            for k in range(job.episodes):
                seed = job.first_seed + k
                rng = np.random.default_rng([seed, 1])
                task = INSTRUCTIONS[seed % len(INSTRUCTIONS)]
                start = "random" if rng.random() < config.random_start else "home"
                env.reset(seed, task, start)
                try:
                    frames, success = record_episode(env, expert, rng, config, policy)
                except UnreachableError:
                    queue.put((False, 0))
                    continue
                keep = success or policy is not None
                if keep and len(frames["action"]) > 10:
                    writer.add_episode(frames, task)
                queue.put((success, len(frames["action"]) if keep else 0))
        env.cell.close()
        queue.put(None)
    except Exception as error:
        queue.put(f"{type(error).__name__}: {error}")
        raise


def record(
    out: Path,
    episodes: int,
    seed: int,
    workers: int,
    robot: str,
    checkpoint: str | None = None,
    factory: str = DEFAULT_POLICY_FACTORY,
) -> dict[str, Any]:
    """Record ``episodes`` with ``workers`` processes; returns and writes a summary."""
    if seed + episodes > EVALUATION_SEED:
        raise SystemExit(
            f"seeds {seed}..{seed + episodes - 1} reach into the evaluation seeds "
            f"(from {EVALUATION_SEED}); choose a smaller --seed"
        )
    if out.exists() and any(out.glob("part-*")):
        raise SystemExit(f"{out} already holds a recording; remove it or choose another --out")
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    shares = [episodes // workers + (k < episodes % workers) for k in range(workers)]
    processes = []
    first = seed
    for k, share in enumerate(shares):
        job = WorkerJob(str(out / f"part-{k:03d}"), first, share, robot, checkpoint, factory)
        first += share
        processes.append(context.Process(target=_work, args=(job, queue), daemon=True))
        processes[-1].start()
    started = time.monotonic()
    successes = frames = finished = 0
    with tqdm(total=episodes, unit="episode", desc="recording") as bar:
        while finished < len(processes):
            report = queue.get()
            if report is None:
                finished += 1
            elif isinstance(report, str):
                raise SystemExit(f"a recording worker failed: {report}")
            else:
                successes += report[0]
                frames += report[1]
                bar.update()
    for process in processes:
        process.join()
    summary = {
        "episodes": episodes,
        "success_rate": successes / max(episodes, 1),
        "frames": frames,
        "first_seed": seed,
        "checkpoint": checkpoint,
        "wall_s": round(time.monotonic() - started, 1),
    }
    (out / "recording.json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="directory for the part-NNN datasets"
    )
    parser.add_argument("--episodes", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0, help="first seed")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--robot", default="panda", help="robot config: name or YAML file")
    parser.add_argument("--checkpoint", help="record corrections of this policy")
    parser.add_argument(
        "--factory", default=DEFAULT_POLICY_FACTORY, help="module:function of the policy"
    )
    args = parser.parse_args(argv)
    summary = record(
        args.out, args.episodes, args.seed, args.workers, args.robot, args.checkpoint, args.factory
    )
    print(json.dumps(summary, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
