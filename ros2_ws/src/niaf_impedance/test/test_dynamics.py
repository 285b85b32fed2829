"""Compiled rigid-body torque against pinocchio, also for odd axes and prismatic joints."""

import numpy as np
import pinocchio
import pytest

from niaf_impedance import arm_model
from niaf_impedance.arm_model import ArmModel, ArmModelError
from niaf_impedance.dynamics import WORK_COLUMNS, rnea


def test_matches_pinocchio_on_random_states(arm):
    data = arm.pinocchio_model.createData()
    rng = np.random.default_rng(3)
    for _ in range(200):
        q = rng.uniform(arm.limits.position_min_rad, arm.limits.position_max_rad)
        dq, ddq = rng.normal(size=(2, arm.n)) * 5.0
        expected = pinocchio.rnea(arm.pinocchio_model, data, q, dq, ddq) + arm.armature_kgm2 * ddq
        np.testing.assert_allclose(arm.inverse_dynamics(q, dq, ddq), expected, atol=1e-11)


def test_matches_pinocchio_on_a_random_tree_of_every_joint_type():
    rng = np.random.default_rng(5)
    model = pinocchio.Model()
    axis = np.array([1.0, -2.0, 0.5]) / np.linalg.norm([1.0, -2.0, 0.5])
    joints = [
        pinocchio.JointModelRX(), pinocchio.JointModelPY(), pinocchio.JointModelRZ(),
        pinocchio.JointModelRevoluteUnaligned(axis), pinocchio.JointModelPrismaticUnaligned(axis),
        pinocchio.JointModelRY(), pinocchio.JointModelPX(), pinocchio.JointModelPZ(),
    ]
    for i, (joint, parent) in enumerate(zip(joints, [0, 1, 2, 3, 4, 3, 6, 7], strict=True)):
        index = model.addJoint(parent, joint, pinocchio.SE3.Random(), f"joint{i}")
        model.appendBodyToJoint(index, pinocchio.Inertia.Random(), pinocchio.SE3.Identity())
    rows, parents, kinds = arm_model._extract(model)
    gravity = np.array(model.gravity.linear)
    work, tau = np.zeros((model.nv, WORK_COLUMNS)), np.zeros(model.nv)
    data = model.createData()
    for _ in range(50):
        q, dq, ddq = rng.normal(size=(3, model.nv))
        rnea(rows, parents, kinds, gravity, q, dq, ddq, work, tau)
        np.testing.assert_allclose(tau, pinocchio.rnea(model, data, q, dq, ddq), atol=1e-10)


def test_refuses_to_run_on_a_mismatch(arm, monkeypatch):
    monkeypatch.setattr(arm_model, "AGREEMENT_NM", 0.0)
    with pytest.raises(ArmModelError, match="differ from pinocchio"):
        ArmModel(arm.config)


def test_mass_matrix_is_the_derivative_of_torque_by_acceleration(arm):
    q, zero = arm.config.home_rad, np.zeros(arm.n)
    columns = [
        arm.inverse_dynamics(q, zero, e) - arm.gravity_torque(q) for e in np.eye(arm.n)
    ]
    np.testing.assert_allclose(arm.mass_matrix(q), np.array(columns).T, atol=1e-12)
