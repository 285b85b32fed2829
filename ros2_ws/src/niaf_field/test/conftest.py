"""Shared fixtures: a channel table that mixes units, kinds and semantics, and seeded fields."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from niaf_field import ActionField, Channel, FoldedField, Prior, fold, initial_prior

MakePrior = Callable[..., Prior]


@pytest.fixture(scope="session")
def channels() -> tuple[Channel, ...]:
    return (
        Channel("shoulder", "rad", "joint_position", "relative", mean=0.02, scale=0.6),
        Channel("elbow", "rad", "joint_position", "absolute", mean=-0.4, scale=1.7),
        Channel("gripper", "m", "gripper", "absolute", mean=0.04, scale=0.03),
    )


@pytest.fixture(scope="session")
def make_prior(channels: tuple[Channel, ...]) -> MakePrior:
    def make(L: int = 3, H: int = 16, omega0: float = 8.0, kind: str = "full") -> Prior:
        return initial_prior(
            channels,
            sine_layers=L,
            width=H,
            omega0=omega0,
            horizon_s=1.3,
            gamma_kind=kind,
            seed=100 * L + H,
            limits={"position_min": [-1.0, -2.0, 0.0], "position_max": [1.0, 2.0, 0.08]},
        )

    return make


@pytest.fixture(scope="session")
def modulate() -> Callable[[Prior, int], tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Random (gamma, beta, anchor) of a size that changes the field visibly."""

    def draw(prior: Prior, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        random = np.random.default_rng(seed)
        return (
            random.normal(0.0, 0.3, prior.gamma_length).astype(np.float32),
            random.normal(0.0, 0.1, prior.beta_length).astype(np.float32),
            random.normal(0.0, 1.0, prior.D),
        )

    return draw


@pytest.fixture(scope="session")
def make_folded(make_prior: MakePrior, modulate: Callable) -> Callable[..., FoldedField]:
    def make(seed: int = 0, **shape: object) -> FoldedField:
        prior = make_prior(**shape)
        return fold(prior, *modulate(prior, seed))

    return make


@pytest.fixture(scope="session")
def make_field(make_folded: Callable[..., FoldedField]) -> Callable[..., ActionField]:
    def make(
        seed: int = 0, start_s: float = 10.0, horizon_s: float = 1.3, **shape: object
    ) -> ActionField:
        return ActionField(
            make_folded(seed, **shape), start_s, horizon_s, seed, start_s, prior_id="test"
        )

    return make
