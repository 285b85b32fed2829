"""Lock-step environment: cell and impedance controller advanced together, without ROS or a clock.

Deterministic by seed and faster than real time. The torque comes from the same
:class:`niaf_impedance.controller.ImpedanceController` that the ROS node runs, so what is learnt and
measured here is the law that moves the arm there.

An *agent* is called at every replanning instant with the environment and an observation and
returns a reference (or None to leave the running one). Its reference is offered ``latency_s``
later, as a policy's inference time would delay it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from niaf_field.prior import Prior
from niaf_field.reference import ActionField, SplineReference
from niaf_impedance.admission import AdmissionVerdict
from niaf_impedance.arm_model import ArmModel
from niaf_impedance.controller import ControllerConfig, ImpedanceController
from niaf_impedance.robot_config import RobotConfig, default_robot_config_path, load_robot_config
from niaf_sim.cell import Cell, CellConfig

FloatArray = np.ndarray
Reference = ActionField | SplineReference

OBSERVED_CAMERAS = ("scene", "wrist")


@dataclass(frozen=True)
class Observation:
    """What a policy sees. ``state`` float64[15]: q (7, rad), dq (7, rad/s), gripper width (m)."""

    images: dict[str, np.ndarray]
    state: FloatArray
    instruction: str
    stamp_s: float


class Agent(Protocol):
    """Anything that turns observations into references."""

    def reset(self) -> None:
        """Forget the last episode."""

    def act(self, env: LockstepEnv, observation: Observation) -> Reference | None:
        """Reference to follow from now on; None keeps the running one."""


def robot_config(name_or_path: str) -> RobotConfig:
    """Robot description by the name of a shipped one ('panda') or by the path of a YAML file."""
    if "/" in name_or_path or name_or_path.endswith((".yaml", ".yml")):
        return load_robot_config(name_or_path)
    return load_robot_config(default_robot_config_path(name_or_path))


class LockstepEnv:
    """One cell and one controller on one simulated time line.

    ``prior`` is the prior whose fields the controller admits; without one it follows splines only.
    """

    def __init__(
        self,
        robot: RobotConfig,
        prior: Prior | None = None,
        controller: ControllerConfig | None = None,
        cell: CellConfig | None = None,
    ) -> None:
        self.cell = Cell(cell)
        self.arm = ArmModel(robot)
        self.controller = ImpedanceController(controller or ControllerConfig(), self.arm, prior)
        self.instruction = self.cell.instruction
        self._sequence = 0
        #: called after every control period (for traces); None costs nothing
        self.on_tick: Callable[[LockstepEnv], None] | None = None

    @property
    def time_s(self) -> float:
        return self.cell.time_s

    def next_sequence(self) -> int:
        """Number for the next reference; all agents of an environment share the count."""
        self._sequence += 1
        return self._sequence

    def reset(
        self, seed: int, task: str, start: str = "home", instruction: str | None = None
    ) -> None:
        """New episode of ``task``; the policy is told ``instruction`` (default: the task's own)."""
        self.cell.reset(seed, task, start)
        self.instruction = task if instruction is None else instruction
        cell = self.cell
        self.controller.activate(
            cell.time_s, cell.q, cell.dq, cell.gripper_width_m, cell.torque_nm.copy()
        )
        self.run(0.05)

    def observe(self) -> Observation:
        """Images and drive-reported state at this instant."""
        cell = self.cell
        images = {name: cell.render(name) for name in OBSERVED_CAMERAS}
        state = np.concatenate([cell.q, cell.dq, [cell.gripper_width_m]])
        return Observation(images, state, self.instruction, cell.time_s)

    def offer(self, reference: Reference) -> AdmissionVerdict:
        """Hand a reference to the controller's admission now; returns its verdict."""
        return self.controller.offer(self.cell.time_s, reference)

    def run(self, duration_s: float) -> None:
        """Advance both by ``duration_s`` (a whole number of control periods)."""
        cell, controller = self.cell, self.controller
        for _ in range(round(duration_s / cell.config.control_period_s)):
            torque = controller.tick(cell.time_s, cell.q, cell.dq)
            cell.step(torque, controller.gripper_m)
            if self.on_tick is not None:
                self.on_tick(self)


@dataclass(frozen=True)
class EpisodeConfig:
    """Timing of an episode, seconds."""

    replan_s: float = 0.15
    latency_s: float = 0.05
    timeout_s: float = 14.0
    #: keep going after success, so that the end of the motion is seen too
    after_success_s: float = 0.0


@dataclass(frozen=True)
class EpisodeResult:
    """``refused`` counts references that admission did not let in, ``reasons`` says why."""

    success: bool
    duration_s: float
    offered: int
    refused: int
    reasons: dict[str, int] = field(default_factory=dict)


def run_episode(
    env: LockstepEnv,
    agent: Agent,
    config: EpisodeConfig,
    on_observation: Callable[[LockstepEnv, Observation], None] | None = None,
) -> EpisodeResult:
    """Run the agent until success or time-out; ``env`` must have been reset."""
    agent.reset()
    offered = refused = 0
    reasons: dict[str, int] = {}
    begin = env.time_s
    success_s = np.inf
    while env.time_s - begin < config.timeout_s:
        observation = env.observe()
        if on_observation is not None:
            on_observation(env, observation)
        reference = agent.act(env, observation)
        env.run(config.latency_s)
        if reference is not None:
            offered += 1
            verdict = env.offer(reference)
            if not verdict.accepted:
                refused += 1
                reasons[verdict.reason.name] = reasons.get(verdict.reason.name, 0) + 1
        env.run(config.replan_s - config.latency_s)
        if env.cell.success() and success_s == np.inf:
            success_s = env.time_s
        if env.time_s - success_s >= config.after_success_s:
            break
    return EpisodeResult(bool(success_s < np.inf), env.time_s - begin, offered, refused, reasons)
