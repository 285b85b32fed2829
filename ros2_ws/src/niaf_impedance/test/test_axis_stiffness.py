"""Stiffness and damping per axis, in the axes of the base or of the tool: law, statics, sliders."""

import dataclasses
import json

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from impedance_support import Plant, run
from scipy.spatial.transform import Rotation
from test_cartesian import Law, N, parameters
from test_cartesian_control import anchor_of, make_tool_field, make_tool_prior

from niaf_impedance import ArmModel, ControllerConfig, ImpedanceController, Mode
from niaf_impedance import cartesian as c
from niaf_impedance import tool_task as task
from niaf_impedance.journal import tuning_from_json
from niaf_impedance.parameters import tuning_from, tuning_schema
from niaf_impedance.robot_config import RobotConfigError, load_robot_config
from niaf_impedance.settings import ControllerConfigError
from niaf_impedance.tool_setup import damping_matrix, gain_targets, tool_pose
from niaf_impedance.tuning import Tuning

#: as for wiping a tilted plate: soft along the tool's own z, stiff across it
STIFF, SOFT = 900.0, 150.0


def described(arm, axes="tool", **gains):
    """The arm with these axes and default gains."""
    cartesian = arm.config.cartesian
    changes = {
        name: dataclasses.replace(getattr(cartesian, name), default=default)
        for name, default in gains.items()
    }
    return ArmModel(dataclasses.replace(
        arm.config, cartesian=dataclasses.replace(cartesian, axes=axes, **changes)))


@pytest.fixture(scope="module")
def tool_prior():
    return make_tool_prior()


# -- law -------------------------------------------------------------------------------------------
@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), own=st.booleans(), far=st.floats(0.0, 3.0))
def test_the_wrench_is_that_of_rotated_diagonal_matrices(seed, own, far):
    rng = np.random.default_rng(seed)
    cp, cj = parameters()
    cp[c.CP_STIFFNESS : c.CP_STIFFNESS + 6] = rng.uniform(0.0, 900.0, 6)
    cp[c.CP_DAMPING : c.CP_DAMPING + 6] = rng.uniform(0.0, 90.0, 6)
    cp[c.CP_TOOL_AXES] = own
    law = Law(cp, cj)
    q, dq = 0.3 * rng.normal(size=N), rng.normal(size=N)
    motion = law.kinematics(q, dq)
    ref = motion.copy()
    ref[9:12] += 0.05 * far * rng.normal(size=3)
    turn = Rotation.from_rotvec(0.3 * far * rng.normal(size=3))
    wanted = turn * Rotation.from_matrix(motion[:9].reshape(3, 3))
    ref[:9] = wanted.as_matrix().ravel()
    ref[12:18] = rng.normal(size=6)
    c.cartesian_law(
        q, dq, motion, law.jac, ref, cp, cj, law.work, law.out, law.report)
    error = np.concatenate([ref[9:12] - motion[9:12], turn.as_rotvec()])
    rate = ref[12:18] - motion[12:18]
    axes = wanted.as_matrix() if own else np.eye(3)
    wrench = np.zeros(6)
    for half in (0, 1):
        part = slice(3 * half, 3 * half + 3)
        for gains, value, clip in (
            (c.CP_STIFFNESS, error, cp[c.CP_CLIP_M + half]),
            (c.CP_DAMPING, rate, cp[c.CP_CLIP_M_S + half]),
        ):
            vector = value[part] * min(1.0, clip / max(np.linalg.norm(value[part]), 1e-300))
            diagonal = np.diag(cp[gains + 3 * half : gains + 3 * half + 3])
            wrench[part] += axes @ diagonal @ axes.T @ vector
    np.testing.assert_allclose(law.report[c.CR_WRENCH : c.CR_WRENCH + 6], wrench, atol=1e-8)
    np.testing.assert_allclose(law.out[0] + law.out[1], law.jac.T @ wrench, atol=1e-8)
    force, moment = c.wrench_bound(cp)
    assert np.linalg.norm(wrench[:3]) <= force * (1.0 + 1e-12)
    assert np.linalg.norm(wrench[3:]) <= moment * (1.0 + 1e-12)


# -- statics ---------------------------------------------------------------------------------------
def deflection(arm, prior, wrench):
    """Where a held tool comes to rest under ``wrench`` [6] (base axes): position, rotation vector,
    orientation before."""
    controller = ImpedanceController(ControllerConfig(), arm, prior)
    plant = Plant(arm, arm.config.home_rad)
    controller.activate(0.0, plant.q, plant.dq)
    start, _ = tool_pose(arm, plant.q)
    for i in range(3000):
        _, jac = tool_pose(arm, plant.q)
        tau = controller.tick(plant.time_s, plant.q, plant.dq)
        plant.step(tau + jac.T @ (wrench * min(1.0, i / 300)))
    assert controller.mode == Mode.HOLD
    now, _ = tool_pose(arm, plant.q)
    before, after = (Rotation.from_matrix(m[:9].reshape(3, 3)) for m in (start, now))
    return now[9:12] - start[9:12], (after * before.inv()).as_rotvec(), before.as_matrix()


@pytest.mark.parametrize("axis", [0, 2])
def test_a_push_along_a_tool_axis_meets_that_axis_stiffness(arm, tool_prior, axis):
    """The arm is turned so that its tool's axes are none of the base's."""
    tilted = described(arm, stiffness_n_m=(STIFF, STIFF, SOFT), stiffness_nm_rad=(30.0,) * 3)
    home = arm.config.home_rad + np.array([0.3, 0.1, 0.2, 0.1, 0.5, -0.4, 0.3])
    joints = tuple(
        dataclasses.replace(j, home_rad=float(v))
        for j, v in zip(tilted.config.joints, home, strict=True))
    tilted = ArmModel(dataclasses.replace(tilted.config, joints=joints))
    pose, _ = tool_pose(tilted, home)
    turn = pose[:9].reshape(3, 3)
    assert np.abs(turn).max() < 0.97
    force_n = 6.0 * turn[:, axis]
    moved, _, _ = deflection(tilted, tool_prior, np.append(force_n, np.zeros(3)))
    expected = 6.0 / (SOFT if axis == 2 else STIFF)
    np.testing.assert_allclose(turn.T @ moved, expected * np.eye(3)[axis], atol=0.03 * expected)


def test_in_base_axes_each_axis_has_its_own_stiffness(arm, tool_prior):
    soft = described(
        arm, axes="base", stiffness_n_m=(STIFF, 450.0, SOFT), stiffness_nm_rad=(40.0, 20.0, 10.0))
    moved, turned, _ = deflection(
        soft, tool_prior, np.array([5.0, 5.0, 5.0, 0.0, 0.0, 0.0]))
    np.testing.assert_allclose(moved, [5.0 / STIFF, 5.0 / 450.0, 5.0 / SOFT], rtol=0.03)
    _, turned, _ = deflection(soft, tool_prior, np.array([0.0, 0.0, 0.0, 0.5, 0.5, 0.5]))
    np.testing.assert_allclose(turned, [0.5 / 40.0, 0.5 / 20.0, 0.5 / 10.0], rtol=0.03)


def test_fields_are_followed_with_stiffness_of_the_tools_axes(arm, tool_prior):
    tilted = described(arm, stiffness_n_m=(STIFF, STIFF, SOFT))
    controller = ImpedanceController(ControllerConfig(), tilted, tool_prior)
    plant = Plant(arm, arm.config.home_rad)
    controller.activate(0.0, plant.q, plant.dq)
    field = make_tool_field(tool_prior, anchor_of(arm, plant.q), 0.0, 1, strength=0.3)
    assert controller.offer(0.0, field).accepted
    worst = 0.0
    for _ in range(900):
        plant.step(controller.tick(plant.time_s, plant.q, plant.dq))
        worst = max(worst, np.linalg.norm(controller.telemetry.tool_error[:3]))
    assert worst < 3e-3
    assert controller.statistics.seam_position_peak_rad < 1e-12


# -- gains -----------------------------------------------------------------------------------------
def test_the_damping_check_sees_the_tools_axes(arm):
    """Equal axes: the same matrix in either frame. Unequal: that of the rotated damping."""
    q = arm.config.home_rad + 0.2
    equal = [
        damping_matrix(a, gain_targets(a, Tuning.of(a.config)), q)
        for a in (described(arm, "base"), described(arm, "tool"))
    ]
    np.testing.assert_allclose(equal[0], equal[1], atol=1e-9)
    unequal = described(arm, "tool", damping_ns_m=(20.0, 50.0, 150.0))
    gains = gain_targets(unequal, Tuning.of(unequal.config))
    without = gains.copy()
    without[c.CP_DAMPING : c.CP_DAMPING + 6] = 0.0
    pose, jac = tool_pose(arm, q)
    turn = pose[:9].reshape(3, 3)
    spatial = np.zeros((6, 6))
    spatial[:3, :3] = turn @ np.diag([20.0, 50.0, 150.0]) @ turn.T
    spatial[3:, 3:] = 5.0 * np.eye(3)
    task_space = damping_matrix(unequal, gains, q) - damping_matrix(unequal, without, q)
    np.testing.assert_allclose(task_space, jac.T @ spatial @ jac, atol=1e-9)
    controller = ImpedanceController(ControllerConfig(), unequal, make_tool_prior())
    one = dataclasses.replace(controller.tuning, tool_damping_ns_m=(70.0, 70.0, 200.0))
    rates = [controller._fastest_tool_damping(t) for t in (controller.tuning, one)]
    assert rates[1] > rates[0]


def test_one_axis_is_changed_live_and_ramps_without_a_step(arm, tool_prior):
    controller = ImpedanceController(ControllerConfig(), described(arm), tool_prior)
    plant = Plant(arm, arm.config.home_rad)
    controller.activate(0.0, plant.q, plant.dq)
    run(controller, plant, 0.1)
    tuning = dataclasses.replace(controller.tuning, tool_stiffness_n_m=(600.0, 600.0, 1200.0))
    controller.set_tuning(tuning)
    before = controller.telemetry.tau.copy()
    run(controller, plant, 0.01)
    assert 600.0 < controller._gains[task.NOW, 2] < 650.0
    assert np.abs(controller.telemetry.tau - before).max() < 0.05
    run(controller, plant, 1.0)
    np.testing.assert_array_equal(controller._gains[task.NOW, :3], [600.0, 600.0, 1200.0])
    with pytest.raises(ControllerConfigError, match="cartesian.rz.stiffness_nm_rad = 500 is outs"):
        controller.set_tuning(dataclasses.replace(
            tuning, tool_stiffness_nm_rad=(30.0, 30.0, 500.0)))


def test_every_axis_is_a_slider(arm):
    tilted = described(arm, stiffness_n_m=(STIFF, STIFF, SOFT)).config
    specs = {spec.name: spec for spec in tuning_schema(tilted)}
    for axis, default in zip("xyz", (STIFF, STIFF, SOFT), strict=True):
        spec = specs[f"cartesian.{axis}.stiffness_n_m"]
        assert (spec.default, spec.minimum, spec.maximum) == (default, 0.0, 2000.0)
        assert spec.live
        assert f"along {axis} of the tool" in spec.description
    values = {name: spec.default for name, spec in specs.items()}
    assert tuning_from(values, tilted) == Tuning.of(tilted)
    values["cartesian.ry.damping_nms_rad"] = 3.0
    assert tuning_from(values, tilted).tool_damping_nms_rad == (5.0, 3.0, 5.0)


def test_scaled_stiffness_stays_inside_its_range(arm):
    tuning = dataclasses.replace(
        Tuning.of(arm.config), tool_stiffness_n_m=(600.0, 1800.0, 0.0), stiffness_scale=2.0)
    assert tuning.effective_tool_stiffness(arm.config) == (1200.0, 2000.0, 0.0, 60.0, 60.0, 60.0)


def test_recordings_with_one_value_for_all_axes_are_still_read(arm):
    content = json.loads(json.dumps(dataclasses.asdict(Tuning.of(arm.config))))
    assert tuning_from_json(content) == Tuning.of(arm.config)
    assert tuning_from_json({**content, "tool_stiffness_n_m": 600.0}) == Tuning.of(arm.config)


# -- description -----------------------------------------------------------------------------------
def load(arm, tmp_path, **changes):
    document = yaml.safe_load(arm.config.source.read_text())
    document["cartesian"].update(changes)
    file = tmp_path / "robot.yaml"
    file.write_text(yaml.safe_dump(document))
    return load_robot_config(file).cartesian


def test_descriptions_give_one_value_or_three(arm, tmp_path):
    range_ = {"min": 0.0, "max": 2000.0}
    cartesian = load(
        arm, tmp_path, stiffness_n_m={"default": [900.0, 800.0, 150.0], **range_}, axes="tool")
    assert cartesian.stiffness_n_m.default == (900.0, 800.0, 150.0)
    assert cartesian.axes == "tool"
    cartesian = load(arm, tmp_path, stiffness_n_m={"default": 500.0, **range_})
    assert cartesian.stiffness_n_m.default == (500.0,) * 3
    assert cartesian.axes == "base"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stiffness_n_m": {"default": [1.0, 2.0], "min": 0.0, "max": 9.0}}, "list of three"),
        ({"stiffness_n_m": {"default": [1.0, 2.0, 99.0], "min": 0.0, "max": 9.0}},
         r"stiffness_n_m.default\[2\]: is 99"),
        ({"stiffness_n_m": {"default": [1.0, "a", 2.0], "min": 0.0, "max": 9.0}}, "default"),
        ({"axes": "world"}, r"cartesian.axes: must be one of \['base', 'tool'\]"),
    ],
)
def test_what_is_wrong_with_a_description_is_named(arm, tmp_path, changes, words):
    with pytest.raises(RobotConfigError, match=words):
        load(arm, tmp_path, **changes)
