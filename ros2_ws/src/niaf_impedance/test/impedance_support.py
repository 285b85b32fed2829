"""Helpers of this package's tests: a prior, fields, splines and a small plant."""

from __future__ import annotations

import numpy as np
import pinocchio

from niaf_field import ActionField, Channel, Prior, fold, initial_prior, spline_reference
from niaf_impedance import ArmModel, ImpedanceController


def make_prior(arm: ArmModel, width: int = 16, scale: float = 0.05) -> Prior:
    joints = tuple(
        Channel(name, "rad", "joint_position", "relative", 0.0, scale) for name in arm.joint_names
    )
    gripper = Channel("gripper", "m", "gripper", "absolute", 0.04, 0.02)
    return initial_prior(
        (*joints, gripper), sine_layers=3, width=width, omega0=4.0, horizon_s=1.0, seed=1
    )


def make_field(prior, q, start_s, sequence, seed=0, strength=0.2) -> ActionField:
    rng = np.random.default_rng(seed)
    gamma = strength * rng.normal(size=prior.gamma_length)
    beta = strength * rng.normal(size=prior.beta_length)
    folded = fold(prior, gamma, beta, np.append(q, 0.0))
    return ActionField(folded, start_s, prior.horizon_s, sequence, start_s, prior.prior_id)


def make_spline(q, start_s, sequence, seed=0, reach=0.1, horizon_s=1.0, velocity=None):
    """Smooth random motion from q that ends at rest."""
    rng = np.random.default_rng(seed)
    times = start_s + np.linspace(0.0, horizon_s, 4)
    offset = np.cumsum(rng.uniform(-reach, reach, (4, q.shape[0])), axis=0)
    offset[0] = 0.0
    width = np.full((4, 1), 0.04)
    start_velocity = np.zeros(q.shape[0] + 1) if velocity is None else np.append(velocity, 0.0)
    return spline_reference(
        times, np.hstack([q + offset, width]), start_velocity=start_velocity,
        sequence=sequence, stamp_s=start_s,
    )


class Plant:
    """Rigid arm with rotor inertia and viscous friction, semi-implicit Euler."""

    def __init__(self, arm: ArmModel, q: np.ndarray, dt_s: float = 0.001) -> None:
        self.arm, self.dt_s = arm, dt_s
        self.q, self.dq, self.time_s = q.copy(), np.zeros(arm.n), 0.0
        self._data = arm.pinocchio_model.createData()

    def step(self, tau: np.ndarray) -> None:
        model = self.arm.pinocchio_model
        bias = pinocchio.nonLinearEffects(model, self._data, self.q, self.dq)
        inertia = self.arm.mass_matrix(self.q)
        self.dq = self.dq + self.dt_s * np.linalg.solve(inertia, tau - bias - 0.3 * self.dq)
        self.q = self.q + self.dt_s * self.dq
        self.time_s += self.dt_s


def run(controller: ImpedanceController, plant: Plant, duration_s: float, each=None) -> None:
    for _ in range(round(duration_s / plant.dt_s)):
        if each is not None:
            each(plant.time_s)
        plant.step(controller.tick(plant.time_s, plant.q, plant.dq))
