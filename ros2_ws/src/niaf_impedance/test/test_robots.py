"""The shipped robot descriptions: they load, their URDFs fit, their default gains can be used."""

import ast
from pathlib import Path

import numpy as np
import pytest
import yaml

from niaf_impedance import (
    ArmModel,
    ControllerConfig,
    ImpedanceController,
    default_robot_config_path,
)

PACKAGE = Path(__file__).resolve().parent.parent
SHIPPED = sorted(  # the folder also holds descriptions of drives
    path.stem for path in (PACKAGE / "config").glob("*.yaml")
    if "robot" in yaml.safe_load(path.read_text())
)

#: rate at which each robot's interface is driven
RATE_HZ = {"panda": 1000.0, "fr3": 1000.0, "ur5e": 500.0, "openarm_like": 1000.0}


@pytest.fixture(scope="module", params=sorted(RATE_HZ))
def robot(request):
    """(name, arm): building the model compares the compiled dynamics with pinocchio."""
    return request.param, ArmModel.from_yaml(default_robot_config_path(request.param))


def test_every_shipped_description_is_tried_here():
    assert sorted(RATE_HZ) == SHIPPED


def test_default_gains_can_be_used_at_the_rate_of_the_robot(robot):
    name, arm = robot
    controller = ImpedanceController(ControllerConfig(), arm)
    assert controller.check_gains(controller.kp, controller.kd, 1.0 / RATE_HZ[name]) == ""


def test_default_gains_leave_room_to_tune(robot):
    _, arm = robot
    for joint in arm.config.joints:
        assert joint.kp.minimum < joint.kp.default < joint.kp.maximum
        assert joint.kd.minimum < joint.kd.default < joint.kd.maximum


def test_the_arm_can_hold_itself_at_home_with_room_to_spare(robot):
    _, arm = robot
    ratio = np.abs(arm.gravity_torque(arm.config.home_rad)) / arm.limits.torque_nm
    assert ratio.max() < 0.5
    assert ratio.max() > 0.01  # weight is there


def test_inertia_is_positive_over_the_whole_range(robot):
    _, arm = robot
    rng = np.random.default_rng(3)
    for _ in range(50):
        q = rng.uniform(arm.limits.position_min_rad, arm.limits.position_max_rad)
        assert np.linalg.eigvalsh(arm.mass_matrix(q) - np.diag(arm.armature_kgm2))[0] > 0.0


@pytest.mark.parametrize(
    ("name", "torque_nm", "speed_rad_s"),
    [
        ("fr3", [87.0] * 4 + [12.0] * 3, [2.62] * 4 + [5.26, 4.18, 5.26]),
        ("ur5e", [150.0] * 3 + [28.0] * 3, [3.14] * 6),
        ("openarm_like", [40.0, 40.0, 27.0, 27.0, 7.0, 7.0, 7.0], [3.0] * 4 + [6.0] * 3),
    ],
)
def test_limits_are_those_of_the_robot(name, torque_nm, speed_rad_s):
    arm = ArmModel.from_yaml(default_robot_config_path(name))
    np.testing.assert_allclose(arm.limits.torque_nm, torque_nm)
    np.testing.assert_allclose(arm.limits.velocity_rad_s, speed_rad_s)


def test_mit_mode_gains_fit_into_the_motors_frames():
    arm = ArmModel.from_yaml(default_robot_config_path("openarm_like"))
    assert all(joint.kp.maximum <= 500.0 and joint.kd.maximum <= 5.0 for joint in arm.config.joints)


def test_a_mit_mode_arm_is_refused_at_half_the_rate():
    """Light wrists behind a slow bus shake: the check says so before they do."""
    arm = ArmModel.from_yaml(default_robot_config_path("openarm_like"))
    controller = ImpedanceController(ControllerConfig(), arm)
    assert "joint5" in controller.check_gains(controller.kp, controller.kd, 0.002)


def tool_position(arm, frame, q):
    import pinocchio

    model = arm.pinocchio_model
    data = model.createData()
    pinocchio.framesForwardKinematics(model, data, np.asarray(q, dtype=float))
    return data.oMf[model.getFrameId(frame)].translation


def test_fr3_reaches_where_its_kinematics_say():
    arm = ArmModel.from_yaml(default_robot_config_path("fr3"))
    # upright: 333 + 316 + 384 - 107 mm up, 88 mm forward
    q = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    np.testing.assert_allclose(tool_position(arm, "fr3_link8", q), [0.088, 0.0, 0.926], atol=1e-7)


def test_ur5e_reaches_where_its_denavit_hartenberg_table_says():
    """Independent of the URDF: product of the maker's Denavit-Hartenberg matrices."""
    arm = ArmModel.from_yaml(default_robot_config_path("ur5e"))
    d = [0.1625, 0.0, 0.0, 0.1333, 0.0997, 0.0996]
    a = [0.0, -0.425, -0.3922, 0.0, 0.0, 0.0]
    alpha = [np.pi / 2, 0.0, 0.0, np.pi / 2, -np.pi / 2, 0.0]
    rng = np.random.default_rng(0)
    for _ in range(5):
        q = rng.uniform(-3.0, 3.0, 6)
        total = np.diag([-1.0, -1.0, 1.0, 1.0])  # base_link is turned by half a turn against it
        for angle, di, ai, al in zip(q, d, a, alpha, strict=True):
            ct, st, ca, sa = np.cos(angle), np.sin(angle), np.cos(al), np.sin(al)
            total = total @ np.array([
                [ct, -st * ca, st * sa, ai * ct],
                [st, ct * ca, -ct * sa, ai * st],
                [0.0, sa, ca, di],
                [0.0, 0.0, 0.0, 1.0],
            ])
        np.testing.assert_allclose(tool_position(arm, "tool0", q), total[:3, 3], atol=1e-6)


def test_urdfs_are_installed_beside_the_descriptions():
    """Descriptions name ../urdf/<file>: both folders must be installed side by side."""
    calls = [n for n in ast.walk(ast.parse((PACKAGE / "setup.py").read_text()))
             if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "glob"]
    patterns = {ast.literal_eval(call.args[0]) for call in calls}
    assert patterns == {"config/*.yaml", "urdf/*.urdf"}
