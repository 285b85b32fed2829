"""Peg in hole: the hole fits the peg, the laws compared differ in their reference only."""

import dataclasses

import numpy as np
import pytest

from niaf_impedance import (
    ArmModel,
    ControllerConfig,
    ImpedanceController,
    default_robot_config_path,
    load_robot_config,
)
from niaf_sim.insertion import (
    CONTROL_PERIOD_S,
    FieldLaw,
    InsertionCell,
    InsertionConfig,
    WaypointLaw,
    carrying_the_peg,
    insert,
    nominal_path,
    stiffest_gains,
)
from niaf_sim.kinematics import ToolKinematics

ALIGNED = InsertionConfig(lateral_m=(0.0, 0.0), tilt_rad=(0.0, 0.0), motion_s=1.2, settle_s=0.2)


@pytest.fixture(scope="module")
def robot():
    return carrying_the_peg(load_robot_config(default_robot_config_path("panda")), ALIGNED)


@pytest.fixture(scope="module")
def arm(robot):
    return ArmModel(robot)


@pytest.fixture(scope="module")
def cell(robot):
    return InsertionCell(robot, ALIGNED)


@pytest.fixture(scope="module")
def path(robot):
    return nominal_path(robot, ALIGNED, 0.0)


def default_gains(arm):
    controller = ImpedanceController(ControllerConfig(), arm)
    return controller.kp.copy(), controller.kd.copy()


def pose_at_depth(robot, path, depth_m):
    """Joint positions on the nominal path at which the tip is ``depth_m`` below the mouth."""
    tool = ToolKinematics(robot.urdf, robot.joint_names)
    times = np.linspace(path.start_s, path.end_s, 400)
    heights = np.array([tool.pose(path.jet(t, 0)[0])[0][2] for t in times])
    wanted = ALIGNED.mouth_m[2] + ALIGNED.peg_length_m - depth_m
    return path.jet(float(np.interp(-wanted, -heights, times)), 0)[0]


def test_the_path_is_straight_between_its_knots_too(robot, path):
    tool = ToolKinematics(robot.urdf, robot.joint_names)
    for t in np.linspace(path.start_s, path.end_s, 137):
        position, rotation = tool.pose(path.jet(t, 0)[0])
        assert np.abs(position[:2] - ALIGNED.mouth_m[:2]).max() < 2e-5
        assert np.abs(rotation - np.diag([1.0, -1.0, -1.0])).max() < 1e-4


@pytest.mark.parametrize("turn", [0.0, 0.7, 2.0, 4.1])
def test_the_hole_is_wider_than_the_peg_by_the_clearance_all_round(robot, path, turn):
    toward = np.array([np.cos(turn), np.sin(turn), 0.0])
    for offset_m, touches in ((0.9 * ALIGNED.clearance_m, False), (0.0004, True)):
        mouth = tuple(np.array(ALIGNED.mouth_m) + offset_m * toward)
        cell = InsertionCell(robot, dataclasses.replace(ALIGNED, mouth_m=mouth))
        cell.reset(0, pose_at_depth(robot, path, 0.03))
        assert cell.depth_m() == pytest.approx(0.03, abs=2e-4)
        assert (cell.plant.data.ncon > 0) == touches


def test_the_block_is_placed_by_the_seed_within_its_ranges(robot):
    config = InsertionConfig()
    cell = InsertionCell(robot, config)
    drawn = []
    for seed in (0, 1, 2, 0):
        cell.reset(seed, robot.home_rad)
        body = cell.plant.model.body("block")
        drawn.append(np.concatenate([body.pos, body.quat]))
        away = np.linalg.norm(body.pos - np.array(config.mouth_m))
        assert config.lateral_m[0] <= away <= config.lateral_m[1]
        assert config.tilt_rad[0] <= 2 * np.arccos(body.quat[0]) <= config.tilt_rad[1]
    np.testing.assert_array_equal(drawn[0], drawn[3])
    assert np.abs(drawn[0] - drawn[1]).max() > 1e-4


def test_given_everything_the_waypoint_law_is_the_controllers(arm, path):
    """What the comparison varies is the reference, not the law around it."""
    q0 = path.jet(0.0, 0)[0]
    ours = FieldLaw(arm, path, q0)
    same = WaypointLaw(arm, path, q0, default_gains(arm), "exact")
    rng = np.random.default_rng(0)
    for k in range(300):
        t = k * CONTROL_PERIOD_S
        q = path.jet(t, 0)[0] + 1e-3 * np.sin(0.05 * k)
        dq = path.jet(t, 1)[1] + 1e-3 * rng.normal(size=7)
        given, expected = same.tick(t, q, dq), ours.tick(t, q, dq)
        if t > 0.15:  # after the controller's hand-over from holding to the path
            np.testing.assert_allclose(given, expected, atol=1e-6)


def test_waypoints_are_held_between_their_instants(arm, path):
    law = WaypointLaw(arm, path, path.jet(0.0, 0)[0], default_gains(arm), "difference", 20.0)
    first, last, after = law.reference(0.5), law.reference(0.549), law.reference(0.55)
    np.testing.assert_array_equal(first, last)
    assert np.abs(after[0] - last[0]).max() > 1e-4
    np.testing.assert_allclose(first[0], path.jet(0.55, 0)[0])
    np.testing.assert_allclose(first[1], (path.jet(0.55, 0) - path.jet(0.5, 0))[0] / 0.05)


def test_the_stiffest_gains_are_stiff_and_accepted(arm):
    controller = ImpedanceController(ControllerConfig(), arm)
    kp, kd = stiffest_gains(controller)
    assert controller.check_gains(kp, kd, CONTROL_PERIOD_S) == ""
    assert controller.check_gains(kp, 1.5 * kd, CONTROL_PERIOD_S) != ""
    assert (kp > 2.0 * controller.kp).all()


def test_a_peg_over_its_hole_goes_in_almost_without_force(cell, arm, path):
    q0 = path.jet(0.0, 0)[0]
    cell.reset(0, q0)
    outcome = insert(cell, FieldLaw(arm, path, q0), 0)
    assert outcome.success
    assert outcome.depth_m == pytest.approx(ALIGNED.end_below_m, abs=2e-3)
    assert outcome.net_rms_n < 5.0


def test_a_hole_out_of_reach_of_the_chamfer_stops_the_peg(robot, arm, path):
    config = dataclasses.replace(ALIGNED, lateral_m=(0.02, 0.02))
    cell = InsertionCell(robot, config)
    q0 = path.jet(0.0, 0)[0]
    cell.reset(0, q0)
    outcome = insert(cell, FieldLaw(arm, path, q0), 0)
    assert not outcome.success
    assert outcome.depth_m < 0.005
    assert outcome.net_peak_n > 20.0
