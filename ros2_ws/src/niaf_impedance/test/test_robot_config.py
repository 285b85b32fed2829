"""Robot descriptions: the shipped one loads; every mistake is named."""

import copy

import numpy as np
import pytest
import yaml

from niaf_impedance.arm_model import ArmModel
from niaf_impedance.robot_config import (
    RobotConfigError,
    default_robot_config_path,
    load_robot_config,
)


@pytest.fixture(scope="module")
def document():
    return yaml.safe_load(default_robot_config_path().read_text())


def load(tmp_path, document):
    file = tmp_path / "robot.yaml"
    file.write_text(yaml.safe_dump(document))
    return load_robot_config(file)


def test_panda_has_seven_joints_and_its_gripper(arm):
    config = arm.config
    assert config.joint_names == tuple(f"panda_joint{i}" for i in range(1, 8))
    assert config.gripper.max_width_m == 0.08
    np.testing.assert_allclose(arm.limits.torque_nm, [87.0] * 4 + [12.0] * 3)
    np.testing.assert_allclose(config.home_rad, [0, -0.35, 0, -2.3, 0, 1.95, 0.785398])


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("joints", 2, "torque_limit_nm"), float("nan"), ["panda_joint3", "limit_nm", "finite"]),
        (("joints", 0, "velocity_limit_rad_s"), -1.0, ["panda_joint1", "-1", "> 0"]),
        (("joints", 0, "torque_limit_nm"), "strong", ["torque_limit_nm", "'strong'", "number"]),
        (("joints", 0, "torque_limit_nm"), True, ["torque_limit_nm", "True", "number"]),
        (("joints", 4, "kp", "default"), 9999.0, ["panda_joint5", "kp.default", "9999", "400"]),
        (("joints", 4, "kd", "min"), -3.0, ["kd.min", "-3", ">= 0"]),
        (("joints", 1, "name"), "panda_joint1", ["panda_joint1", "twice"]),
        (("joints", 1, "speed"), 1.0, ["panda_joint2", "speed", "unknown key"]),
        (("gravity_m_s2",), [0.0, -9.81], ["gravity_m_s2", "three"]),
        (("gripper", "max_width_m"), 0.0, ["gripper.max_width_m", "> 0"]),
        (("urdf",), "missing.urdf", ["urdf", "missing.urdf", "does not exist"]),
        (("urdf",), "example-robot-data:no/arm.urdf", ["no/arm.urdf", "example-robot-data"]),
        (("urdf",), "package://no_such_package/arm.urdf", ["no_such_package"]),
        (("payload", "mass_kg"), -0.1, ["payload.mass_kg", "-0.1"]),
    ],
)
def test_names_key_and_value(tmp_path, document, path, value, words):
    broken = copy.deepcopy(document)
    target = broken
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    with pytest.raises(RobotConfigError) as error:
        load(tmp_path, broken)
    for word in words:
        assert word in str(error.value)


def test_names_a_missing_key(tmp_path, document):
    broken = copy.deepcopy(document)
    del broken["joints"][3]["damp_nms_rad"]
    with pytest.raises(RobotConfigError, match=r"panda_joint4.*damp_nms_rad.*missing"):
        load(tmp_path, broken)


def test_names_a_joint_that_the_urdf_lacks_and_those_it_has(tmp_path, document):
    broken = copy.deepcopy(document)
    broken["joints"][0]["name"] = "elbow"
    with pytest.raises(RobotConfigError) as error:
        ArmModel(load(tmp_path, broken))
    assert "'elbow'" in str(error.value)
    assert "panda.urdf" in str(error.value)
    assert "panda_finger_joint1" in str(error.value)


def test_refuses_limits_beyond_the_urdf(tmp_path, document):
    broken = copy.deepcopy(document)
    broken["joints"][6]["torque_limit_nm"] = 40.0
    with pytest.raises(RobotConfigError, match=r"panda_joint7.*exceeds the URDF's effort limit 12"):
        ArmModel(load(tmp_path, broken))


def test_refuses_unreadable_files(tmp_path):
    with pytest.raises(RobotConfigError, match="cannot read"):
        load_robot_config(tmp_path / "nowhere.yaml")
    file = tmp_path / "broken.yaml"
    file.write_text("joints: [1, 2")
    with pytest.raises(RobotConfigError, match="not valid YAML"):
        load_robot_config(file)
    file.write_text("just text")
    with pytest.raises(RobotConfigError, match="must be a mapping"):
        load_robot_config(file)


def test_payload_is_carried(tmp_path, document, arm):
    loaded = copy.deepcopy(document)
    loaded["payload"] = {"mass_kg": 1.0, "com_m": [0.0, 0.0, 0.1]}
    heavy = ArmModel(load(tmp_path, loaded))
    q = arm.config.home_rad
    assert np.max(np.abs(heavy.gravity_torque(q) - arm.gravity_torque(q))) > 1.0
