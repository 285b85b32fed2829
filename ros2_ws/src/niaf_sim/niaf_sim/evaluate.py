"""Closed-loop evaluation in the lock-step environment.

    python -m niaf_sim.evaluate --checkpoint checkpoints/demo --episodes 120
    python -m niaf_sim.evaluate --agent nothing --episodes 60

Agents: ``policy`` (needs --checkpoint), ``expert`` (upper bound), ``nothing`` (the arm holds).
``--wrong-instruction`` tells the agent another colour than the one that is scored: a policy that
ignores language scores a third of its rate here, one that listens scores zero.

Writes a JSON result with success per instruction and 95 % Wilson intervals, tracking and smoothness
figures, and optionally a video of the first episodes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from niaf_sim.agents import (
    DEFAULT_POLICY_FACTORY,
    ExpertAgent,
    NothingAgent,
    PolicyAgent,
    load_policy,
)
from niaf_sim.env import (
    Agent,
    EpisodeConfig,
    LockstepEnv,
    Observation,
    robot_config,
    run_episode,
)
from niaf_sim.expert import Expert
from niaf_sim.record import EVALUATION_SEED
from niaf_sim.summary import wilson_interval
from niaf_sim.tasks import COLOURS, INSTRUCTIONS, Task, parse_instruction

AGENTS = ("policy", "expert", "nothing")
VIDEO_FPS = 20


@dataclass(frozen=True)
class EvaluationJob:
    """What one worker process needs; plain data, so that it can be sent to it."""

    agent: str
    checkpoint: str | None
    factory: str
    robot: str
    seeds: tuple[int, ...]
    wrong_instruction: bool
    video_episodes: int
    episode: EpisodeConfig


class TickStatistics:
    """Running sums over control periods: tracking error, torque and reference smoothness."""

    def __init__(self, env: LockstepEnv) -> None:
        self._limit = env.arm.limits.torque_nm
        self.reset()

    def reset(self) -> None:
        self.ticks = 0
        self.error_square = 0.0
        self.acceleration_square = 0.0
        self.jerk_square = 0.0
        self.peak_torque_ratio = 0.0
        self.peak_velocity = 0.0
        self._last_ddq: np.ndarray | None = None

    def __call__(self, env: LockstepEnv) -> None:
        telemetry = env.controller.telemetry
        error = telemetry.q_ref - env.cell.q_true
        self.ticks += 1
        self.error_square += float(error @ error)
        self.acceleration_square += float(telemetry.ddq_ref @ telemetry.ddq_ref)
        if self._last_ddq is not None:
            jerk = (telemetry.ddq_ref - self._last_ddq) / env.cell.config.control_period_s
            self.jerk_square += float(jerk @ jerk)
        self._last_ddq = telemetry.ddq_ref.copy()
        ratio = float(np.max(np.abs(telemetry.tau) / self._limit))
        self.peak_torque_ratio = max(self.peak_torque_ratio, ratio)
        self.peak_velocity = max(self.peak_velocity, float(np.max(np.abs(env.cell.dq_true))))

    def summary(self) -> dict[str, float]:
        n = max(self.ticks, 1)
        joints = len(self._limit)
        return {
            "tracking_rms_rad": float(np.sqrt(self.error_square / n / joints)),
            "reference_acceleration_rms_rad_s2": float(
                np.sqrt(self.acceleration_square / n / joints)
            ),
            "reference_jerk_rms_rad_s3": float(np.sqrt(self.jerk_square / n / joints)),
            "peak_torque_ratio": self.peak_torque_ratio,
            "peak_velocity_rad_s": self.peak_velocity,
        }


def wrong_instruction(task: Task) -> str:
    """The same verb with the next colour."""
    colour = COLOURS[(task.cube + 1) % len(COLOURS)]
    return Task(task.kind, colour).instruction


def make_agent(job: EvaluationJob) -> Agent:
    """Agent named by the job; raises SystemExit with the reason when it cannot be made."""
    if job.agent == "policy":
        if job.checkpoint is None:
            raise SystemExit("--agent policy needs --checkpoint DIR")
        return PolicyAgent(load_policy(job.checkpoint, job.factory))
    if job.agent == "expert":
        return ExpertAgent(Expert())
    return NothingAgent()


class ExpertUnderInstruction:
    """The expert obeying what it is told, which may not be what is scored."""

    def __init__(self, agent: ExpertAgent) -> None:
        self._agent = agent

    def reset(self) -> None:
        self._agent.reset()

    def act(self, env: LockstepEnv, observation: Observation) -> Any:
        scored = env.cell.task
        env.cell.task = parse_instruction(env.instruction)
        try:
            return self._agent.act(env, observation)
        finally:
            env.cell.task = scored


def _work(job: EvaluationJob, queue: Any) -> None:
    try:
        agent = make_agent(job)
        prior = agent.policy.prior if isinstance(agent, PolicyAgent) else None
        env = LockstepEnv(robot_config(job.robot), prior)
        if isinstance(agent, ExpertAgent):
            agent = ExpertUnderInstruction(agent)
        statistics = TickStatistics(env)
        env.on_tick = statistics
        for k, seed in enumerate(job.seeds):
            task = parse_instruction(INSTRUCTIONS[seed % len(INSTRUCTIONS)])
            told = wrong_instruction(task) if job.wrong_instruction else task.instruction
            env.reset(seed, task.instruction, "home", told)
            statistics.reset()
            frames: list[np.ndarray] = []
            film = k < job.video_episodes

            def keep(
                env: LockstepEnv, observation: Observation, clip: list[np.ndarray] = frames
            ) -> None:
                clip.append(env.cell.render("overview"))

            result = run_episode(env, agent, job.episode, keep if film else None)
            row = {
                "seed": seed,
                "instruction": task.instruction,
                "told": told,
                **asdict(result),
                **statistics.summary(),
            }
            queue.put((row, np.stack(frames) if film else None))
        env.cell.close()
        queue.put(None)
    except SystemExit as error:
        queue.put(str(error))
    except Exception as error:
        queue.put(f"{type(error).__name__}: {error}")
        raise


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Result dictionary over all episodes and per instruction."""

    def rate(group: list[dict[str, Any]]) -> dict[str, Any]:
        wins = sum(row["success"] for row in group)
        low, high = wilson_interval(wins, len(group))
        return {
            "episodes": len(group),
            "successes": wins,
            "success_rate": wins / max(len(group), 1),
            "interval95": [round(low, 4), round(high, 4)],
        }

    instructions = sorted({row["instruction"] for row in rows}, key=INSTRUCTIONS.index)
    figures = {}
    for key in (
        "tracking_rms_rad",
        "reference_acceleration_rms_rad_s2",
        "reference_jerk_rms_rad_s3",
    ):
        figures[key] = float(np.sqrt(np.mean([row[key] ** 2 for row in rows])))
    for key in ("peak_torque_ratio", "peak_velocity_rad_s"):
        figures[key] = float(np.max([row[key] for row in rows]))
    won = [row["duration_s"] for row in rows if row["success"]]
    return {
        **rate(rows),
        "per_instruction": {
            name: rate([row for row in rows if row["instruction"] == name]) for name in instructions
        },
        "mean_success_duration_s": float(np.mean(won)) if won else None,
        "references_offered": sum(row["offered"] for row in rows),
        "references_refused": sum(row["refused"] for row in rows),
        "refusal_reasons": {
            reason: sum(row["reasons"].get(reason, 0) for row in rows)
            for reason in sorted({reason for row in rows for reason in row["reasons"]})
        },
        **figures,
    }


def evaluate(
    agent: str,
    checkpoint: str | None,
    episodes: int,
    seed: int = EVALUATION_SEED,
    workers: int = 2,
    robot: str = "panda",
    factory: str = DEFAULT_POLICY_FACTORY,
    wrong: bool = False,
    episode: EpisodeConfig | None = None,
    video: Path | None = None,
) -> dict[str, Any]:
    """Run ``episodes`` with seeds from ``seed`` on, spread over worker processes."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    seeds = list(range(seed, seed + episodes))
    timing = episode or EpisodeConfig()
    workers = min(workers, episodes)
    processes = []
    for k in range(workers):
        film = 3 if video is not None and k == 0 else 0
        job = EvaluationJob(
            agent, checkpoint, factory, robot, tuple(seeds[k::workers]), wrong, film, timing
        )
        processes.append(context.Process(target=_work, args=(job, queue), daemon=True))
        processes[-1].start()
    rows: list[dict[str, Any]] = []
    clips: list[np.ndarray] = []
    finished = 0
    started = time.monotonic()
    with tqdm(total=episodes, unit="episode", desc=f"evaluating {agent}") as bar:
        while finished < workers:
            report = queue.get()
            if report is None:
                finished += 1
            elif isinstance(report, str):
                raise SystemExit(f"evaluation failed: {report}")
            else:
                rows.append(report[0])
                if report[1] is not None:
                    clips.append(report[1])
                wins = sum(row["success"] for row in rows)
                bar.set_postfix(success=f"{wins}/{len(rows)}")
                bar.update()
    for process in processes:
        process.join()
    rows.sort(key=lambda row: row["seed"])
    if video is not None and clips:
        from niaf_data.video import write_video

        write_video(video, np.concatenate(clips), round(1.0 / timing.replan_s))
    return {
        "agent": agent,
        "wrong_instruction": wrong,
        "checkpoint": checkpoint,
        "first_seed": seed,
        "timing": asdict(timing),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "wall_s": round(time.monotonic() - started, 1),
        **summarise(rows),
        "episodes_detail": rows,
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--agent", choices=AGENTS, default="policy")
    parser.add_argument("--checkpoint", help="checkpoint folder of the policy")
    parser.add_argument(
        "--factory", default=DEFAULT_POLICY_FACTORY, help="module:function of the policy"
    )
    parser.add_argument("--episodes", type=int, default=120)
    parser.add_argument("--seed", type=int, default=EVALUATION_SEED, help="first seed")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--robot", default="panda", help="robot config: name or YAML file")
    parser.add_argument("--wrong-instruction", action="store_true")
    parser.add_argument("--replan-s", type=float, default=EpisodeConfig.replan_s)
    parser.add_argument("--latency-s", type=float, default=EpisodeConfig.latency_s)
    parser.add_argument("--timeout-s", type=float, default=EpisodeConfig.timeout_s)
    parser.add_argument("--out", type=Path, help="write the JSON result here")
    parser.add_argument("--video", type=Path, help="write an MP4 of the first episodes here")
    args = parser.parse_args(argv)
    timing = EpisodeConfig(args.replan_s, args.latency_s, args.timeout_s)
    result = evaluate(
        args.agent,
        args.checkpoint,
        args.episodes,
        args.seed,
        args.workers,
        args.robot,
        args.factory,
        args.wrong_instruction,
        timing,
        args.video,
    )
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=2) + "\n")
    brief = {key: value for key, value in result.items() if key != "episodes_detail"}
    print(json.dumps(brief, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
