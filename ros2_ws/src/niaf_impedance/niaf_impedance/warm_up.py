"""Compile (or load from the cache) everything the loop calls, before the loop runs."""

from __future__ import annotations

import numpy as np

from niaf_field import ActionField, fold_prior, hold_reference, warm_up_kernels
from niaf_impedance.arm_model import ArmModel
from niaf_impedance.controller import ControllerConfig, ImpedanceController
from niaf_impedance.kinematics import vector_between
from niaf_impedance.robot_config import default_robot_config_path
from niaf_impedance.tool_setup import tool_pose


def warm_up(controller: ImpedanceController | None = None) -> None:
    """Run tick and admission once, with a twin of ``controller`` or with the shipped arm."""
    warm_up_kernels()
    if controller is None:
        arm = ArmModel.from_yaml(default_robot_config_path())
        config, prior = ControllerConfig(), None
    else:
        arm, config, prior = controller.arm, controller.config, controller.prior
    twin = ImpedanceController(config, arm, prior)
    home = arm.config.home_rad
    zero = np.zeros(arm.n)
    twin.activate(0.0, home, zero)
    twin.tick(0.0, home, zero)
    if not twin.moves_tool:
        hold = hold_reference(home, 0.0, 1.0, sequence=1)
        plan = twin.plan(twin.snapshot(), 0.0, hold, 0.0005)
        twin.commit(plan)  # waits for the tick: compiles that way in too
        twin.tick(0.0007, home, zero)
    if prior is not None:
        anchor = np.zeros(prior.D)
        if twin.moves_tool:  # a field that is judged, not refused for a step at its beginning
            pose, _ = tool_pose(arm, home)
            turn = vector_between(np.eye(3).ravel(), pose)
            names = ("x", "y", "z", "rx", "ry", "rz")
            measured = dict(zip(names, (*pose[9:12], *turn), strict=True))
            anchor[:] = [measured.get(channel.name, 0.0) for channel in prior.channels]
        field = ActionField(fold_prior(prior, anchor), 0.001, 1.0, 2, 0.001, prior.prior_id)
        twin.offer(0.001, field)
    twin.tick(0.001, home, zero)
    twin.brake(0.001)
    assert not twin.silent
