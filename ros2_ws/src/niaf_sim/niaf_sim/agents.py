"""Agents of the lock-step environment: the scripted expert, a policy, and one that does nothing."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from niaf_field.fold import fold
from niaf_field.prior import Prior
from niaf_field.reference import ActionField, SplineReference, spline_reference
from niaf_impedance.arm_model import ArmModel
from niaf_impedance.reanchoring import measured_anchor
from niaf_sim import scene
from niaf_sim.env import LockstepEnv, Observation
from niaf_sim.expert import Expert

FloatArray = np.ndarray

DEFAULT_POLICY_FACTORY = "niaf_policy.runtime:load_policy"


class Policy(Protocol):
    """What :func:`load_policy` must return; niaf_sim itself knows nothing of torch."""

    prior: Prior

    def infer(self, observation: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Modulation (gamma, beta), float32 vectors in the prior's layout.

        observation: images {camera: uint8[h, w, 3]}, state float64[15], instruction, stamp_s.
        """

    def reset(self) -> None:
        """Forget the last episode."""


def load_policy(checkpoint: str, factory: str = DEFAULT_POLICY_FACTORY, **options: Any) -> Policy:
    """Call the ``module:function`` named by ``factory`` with the checkpoint folder.

    The evaluation lives in this package but policies live elsewhere: naming the factory keeps the
    arrow of imports pointing one way.
    """
    module_name, _, function = factory.partition(":")
    if not function:
        raise ValueError(f"policy factory {factory!r} must read 'module:function'")
    return getattr(importlib.import_module(module_name), function)(checkpoint, **options)


class NothingAgent:
    """Never offers a reference: the arm holds where it was activated."""

    def reset(self) -> None:
        pass

    def act(self, env: LockstepEnv, observation: Observation) -> None:
        return None


class ExpertAgent:
    """Follows the expert's plan and plans anew when it has run out without success."""

    def __init__(self, expert: Expert | None = None) -> None:
        self.expert = expert or Expert()
        self._until_s = -np.inf

    def reset(self) -> None:
        self._until_s = -np.inf

    def act(self, env: LockstepEnv, observation: Observation) -> SplineReference | None:
        if env.time_s < self._until_s:
            return None
        plan = plan_from_here(env, self.expert)
        self._until_s = plan.end_s
        return plan


class PolicyAgent:
    """Turns a policy's modulation into the field that the policy node would publish."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def reset(self) -> None:
        self.policy.reset()

    def act(self, env: LockstepEnv, observation: Observation) -> ActionField:
        gamma, beta = self.policy.infer(vars(observation))
        prior = self.policy.prior
        return ActionField(
            folded=fold(prior, gamma, beta, anchor_of(prior, env.arm, observation.state)),
            start_s=observation.stamp_s,
            horizon_s=prior.horizon_s,
            sequence=env.next_sequence(),
            stamp_s=observation.stamp_s,
            prior_id=prior.prior_id,
        )


def anchor_of(prior: Prior, arm: ArmModel, state: FloatArray) -> FloatArray:
    """Anchor [D] for an observed ``state``: what is measured for relative channels, zero for
    absolute ones. Of channels that move the tool that is its pose at the observed joints."""
    return measured_anchor(prior, arm, state[: arm.n], float(state[-1]))


def plan_from_here(env: LockstepEnv, expert: Expert) -> SplineReference:
    """Expert plan that continues the running reference without a step."""
    telemetry = env.controller.telemetry
    return expert.plan(
        env.cell,
        env.time_s,
        telemetry.q_ref.copy(),
        telemetry.dq_ref.copy(),
        env.controller.gripper_m,
        env.next_sequence(),
    )


def disturbance(
    env: LockstepEnv, expert: Expert, rng: np.random.Generator, duration_s: float
) -> SplineReference:
    """A smooth random detour from the running reference; now and then the gripper flips too."""
    telemetry = env.controller.telemetry
    q, dq = telemetry.q_ref.copy(), telemetry.dq_ref.copy()
    spread = np.array([0.15, 0.12, 0.15, 0.15, 0.15, 0.15, 0.25])
    width = env.controller.gripper_m
    for _ in range(20):
        goal = q + 0.5 * duration_s * dq + spread * rng.uniform(-1.0, 1.0, 7)
        low = expert.tool.model.lowerPositionLimit + 0.05
        high = expert.tool.model.upperPositionLimit - 0.05
        goal = np.clip(goal, low, high)
        position, _ = expert.tool.pose(goal)
        if position[2] > 0.03 and 0.3 < position[0] < 0.72 and abs(position[1]) < 0.45:
            break
        spread = spread * 0.8
    end_width = width
    if rng.random() < 0.15:
        end_width = scene.GRIPPER_MAX_M - width
    times = env.time_s + np.array([0.0, duration_s])
    values = np.stack([np.append(q, width), np.append(goal, end_width)])
    return spline_reference(
        times,
        values,
        start_velocity=np.append(dq, 0.0),
        sequence=env.next_sequence(),
        stamp_s=env.time_s,
    )
