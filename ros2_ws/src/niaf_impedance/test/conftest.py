"""One arm, one prior and one small plant for all tests of this package."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from niaf_field import Prior
from niaf_impedance import (
    ArmModel,
    ControllerConfig,
    ImpedanceController,
    default_robot_config_path,
)

sys.path.insert(0, str(Path(__file__).parent))  # for impedance_support, also under importlib mode

from impedance_support import Plant, make_prior


@pytest.fixture(scope="session")
def arm() -> ArmModel:
    return ArmModel.from_yaml(default_robot_config_path("panda"))


@pytest.fixture(scope="session")
def prior(arm: ArmModel) -> Prior:
    return make_prior(arm)


@pytest.fixture
def controller(arm: ArmModel, prior: Prior) -> ImpedanceController:
    return ImpedanceController(ControllerConfig(), arm, prior)


@pytest.fixture
def holding(controller, arm):
    """(controller, plant) that hold the home pose since t = 0."""
    plant = Plant(arm, arm.config.home_rad)
    controller.activate(0.0, plant.q, plant.dq, gripper_m=0.08)
    return controller, plant
