"""Policies whose channels move the tool, in lock-step: anchors, motion, recordings."""

from __future__ import annotations

import dataclasses

import numpy as np
import pinocchio
import pytest
from scipy.spatial.transform import Rotation

from niaf_field import Channel, initial_prior
from niaf_impedance import ArmModel, Fault, Mode
from niaf_sim import record
from niaf_sim.agents import PolicyAgent, anchor_of
from niaf_sim.env import EpisodeConfig, LockstepEnv, robot_config, run_episode
from niaf_sim.record import EpisodeRecorder, WorkerJob
from niaf_sim.tasks import INSTRUCTIONS

SPEED_M_S, HORIZON_S = 0.08, 0.6


def drive_prior():
    """The tool along y at constant speed from wherever it was seen, turning about z."""
    channels = [Channel(n, "m", "cartesian_position", "relative") for n in "xyz"]
    channels += [Channel(f"r{n}", "rad", "cartesian_rotation", "relative") for n in "xyz"]
    plain = initial_prior(channels, sine_layers=1, width=4, omega0=1.0, horizon_s=HORIZON_S)
    weight, w_out = np.zeros((4, 1), np.float32), np.zeros((6, 4), np.float32)
    weight[0] = 0.1  # a sine that is nearly straight: sin(0.1 tau) is 0.1 tau
    b_out = np.zeros(6, np.float32)
    for channel, reach in ((1, SPEED_M_S * HORIZON_S), (5, 0.3 * HORIZON_S)):
        w_out[channel, 0], b_out[channel] = 5.0 * reach, 0.5 * reach
    return dataclasses.replace(
        plain, weights=(weight,), biases=(np.zeros(4, np.float32),), w_out=w_out, b_out=b_out)


class DrivePolicy:
    """A policy that always answers with the prior's own motion."""

    def __init__(self):
        self.prior = drive_prior()

    def infer(self, observation):
        gamma, beta = self.prior.layout.zeros()
        return gamma, beta

    def reset(self):
        pass


@pytest.fixture(scope="module")
def arm():
    return ArmModel(robot_config("panda"))


def test_the_anchor_is_the_tool_pose_of_the_observed_joints(arm):
    q = arm.config.home_rad + 0.1
    state = np.concatenate([q, np.zeros(7), [0.05]])
    anchor = anchor_of(drive_prior(), arm, state)
    model, data = arm.pinocchio_model, arm.pinocchio_model.createData()
    pinocchio.framesForwardKinematics(model, data, q)
    pose = data.oMf[model.getFrameId(arm.config.tool_frame)]
    np.testing.assert_allclose(anchor[:3], pose.translation, atol=1e-12)
    np.testing.assert_allclose(
        Rotation.from_rotvec(anchor[3:]).as_matrix(), pose.rotation, atol=1e-9)


def test_joints_gripper_and_absolute_channels_keep_their_anchors(arm):
    channels = [
        Channel(arm.joint_names[2], "rad", "joint_position", "relative"),
        Channel(arm.joint_names[1], "rad", "joint_position", "absolute"),
        Channel("gripper", "m", "gripper", "relative"),
    ]
    prior = initial_prior(channels, sine_layers=1, width=4, omega0=1.0, horizon_s=1.0)
    state = np.concatenate([np.arange(7.0), np.zeros(7), [0.05]])
    np.testing.assert_array_equal(anchor_of(prior, arm, state), [2.0, 0.0, 0.05])


def test_a_tool_policy_moves_the_tool_through_the_lock_step_loop():
    """Each field begins at the tool as observed, and takes it on: 0.08 m/s along y."""
    policy = DrivePolicy()
    env = LockstepEnv(robot_config("panda"), policy.prior)
    env.reset(0, INSTRUCTIONS[0])
    site = mujoco_tool(env)
    start = site()
    result = run_episode(
        env, PolicyAgent(policy), EpisodeConfig(replan_s=0.15, latency_s=0.05, timeout_s=1.5))
    assert result.refused == 0, result.reasons
    assert result.offered >= 10
    assert env.controller.fault == Fault.NONE
    moved, expected = site() - start, SPEED_M_S * result.duration_s
    # friction holds the arm back a little, and every field begins where it is
    assert 0.6 * expected < moved[1] < 1.05 * expected
    assert np.abs(moved[[0, 2]]).max() < 0.01
    error = env.controller.telemetry.tool_error
    assert np.linalg.norm(error[:3]) < 0.01
    assert env.controller.statistics.seam_position_peak_rad < 1e-9
    env.run(HORIZON_S + 1.0)
    assert env.controller.mode == Mode.HOLD
    env.cell.close()


def mujoco_tool(env):
    """Where the simulated world has the point between the finger tips (not this stack's maths)."""
    model, data = env.cell.model, env.cell.data
    names = [model.body(i).name for i in range(model.nbody)]
    fingers = [i for i, name in enumerate(names) if "finger" in name]
    assert len(fingers) == 2, names

    def place():
        return np.mean([data.xpos[i] for i in fingers], axis=0).copy()

    return place


def test_recordings_hold_the_pose_of_the_tool_and_of_its_reference():
    env = LockstepEnv(robot_config("panda"))
    env.reset(1, INSTRUCTIONS[0])
    recorder = EpisodeRecorder()
    for _ in range(3):
        recorder.add(env, env.observe(), True)
        env.run(0.05)
    frames = recorder.frames()
    pose, reference = frames["observation.tool_pose"], frames["action.tool_pose"]
    assert pose.shape == reference.shape == (3, 7)
    assert frames["observation.tool_velocity"].shape == (3, 6)
    np.testing.assert_allclose(np.linalg.norm(pose[:, 3:], axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(pose[:, :3], reference[:, :3], atol=5e-3)  # it holds
    between = Rotation.from_quat(pose[:, 3:]) * Rotation.from_quat(reference[:, 3:]).inv()
    assert between.magnitude().max() < 0.02
    env.cell.close()


def test_corrections_of_a_tool_policy_are_refused_with_the_reason(monkeypatch, tmp_path):
    class Queue(list):
        put = list.append

    monkeypatch.setattr(record, "load_policy", lambda *_: DrivePolicy())
    queue = Queue()
    job = WorkerJob(str(tmp_path), 0, 1, "panda", "checkpoint", "factory")
    with pytest.raises(ValueError, match="moves the tool"):
        record._work(job, queue)
    assert "record demonstrations only" in queue[0]
