"""Policies that move the tool: labels from recorded tool poses, statistics, prior, training."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import numpy as np
import policy_support
import pytest
from scipy.spatial.transform import Rotation

from niaf_data import DatasetError
from niaf_policy.batches import TOOL, TOOL_ACTION, TOOL_VELOCITY, ChunkData
from niaf_policy.checkpoint import CheckpointError, export_prior, load_checkpoint
from niaf_policy.config import Config
from niaf_policy.normalization import Normalization
from niaf_policy.runtime import load_policy
from niaf_policy.tool_labels import TOOL_NAMES, rotation_rate, tool_labels
from niaf_policy.train import Trainer

FRAMES = 20


@pytest.fixture(scope="module")
def tool_recording(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("recording") / "tool"
    return policy_support.make_recording(root, length=FRAMES, tool=True)


def config(recording: pathlib.Path, output: pathlib.Path, **sections: dict) -> Config:
    values: dict = {
        "data": {"roots": [str(recording)], "horizon_s": 0.5, "cache_dir": str(output / "cache"),
                 "channels": "tool"},
        "optimizer": {"warmup_steps": 2, "lr": 3e-3},
        "train": {"output_dir": str(output / "run"), "batch_size": 8, "steps": 40, "threads": 1,
                  "save_minutes": 0.0, "eval_steps": 1000, "log_steps": 1000},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return policy_support.tiny_config(**values)


@pytest.fixture(scope="module")
def chunks(tool_recording: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> ChunkData:
    return ChunkData(config(tool_recording, tmp_path_factory.mktemp("chunks")).data)


# -- labels --------------------------------------------------------------------------------------
@pytest.mark.parametrize("length", [0.0, 1e-6, 0.4, 3.0])
def test_the_rate_of_a_rotation_vector_is_that_of_its_difference(length: float) -> None:
    rng = np.random.default_rng(2)
    axis, omega = rng.normal(size=(2, 3))
    r, step = length * axis / np.linalg.norm(axis), 1e-5
    around = [
        (Rotation.from_rotvec(sign * step * omega) * Rotation.from_rotvec(r)).as_rotvec()
        for sign in (-1.0, 1.0)
    ]
    numeric = (around[1] - around[0]) / (2.0 * step)
    np.testing.assert_allclose(rotation_rate(r, omega), numeric, atol=1e-7)


def test_labels_turn_the_measured_orientation_into_the_recorded_one() -> None:
    rng = np.random.default_rng(0)
    start = Rotation.random(4, random_state=1)
    turn = 0.8 * rng.normal(size=(4, 5, 3))
    poses = np.zeros((4, 5, 7))
    for b in range(4):
        poses[b, :, 3:] = (Rotation.from_rotvec(turn[b]) * start[b]).as_quat()
    poses[..., :3] = rng.normal(size=(4, 5, 3))
    poses[0, 1, 3:] *= -1.0  # the same orientation
    anchor = np.hstack([np.zeros((4, 3)), start.as_quat()])
    values, _ = tool_labels(anchor, poses, np.zeros((4, 5, 6)))
    np.testing.assert_allclose(values[..., 3:], turn, atol=1e-9)
    np.testing.assert_array_equal(values[..., :3], poses[..., :3])


def test_a_chunk_is_the_tools_future_relative_to_its_measured_pose(chunks: ChunkData) -> None:
    frame, count = 3, chunks.samples
    anchor, action, velocity, pad = chunks.chunk(np.array([frame]))
    assert action.shape == (1, count, 7)
    rows = slice(frame, frame + count)
    measured, reference = chunks.tool[TOOL][frame], chunks.tool[TOOL_ACTION][rows]
    np.testing.assert_allclose(anchor[0], [*measured[:3], 0.0, 0.0, 0.0, 0.0], atol=1e-7)
    np.testing.assert_allclose(action[0, :, :3], reference[:, :3], atol=1e-6)
    start = Rotation.from_quat(measured[3:])
    for k in range(count):
        made = Rotation.from_rotvec(action[0, k, 3:6]) * start
        assert (made * Rotation.from_quat(reference[k, 3:]).inv()).magnitude() < 1e-6
    np.testing.assert_array_equal(action[0, :, 6], chunks.action[rows, -1])
    np.testing.assert_allclose(
        velocity[0, :, :3], chunks.tool[TOOL_VELOCITY][rows, :3], atol=1e-6)
    np.testing.assert_allclose(velocity[0, :, 4], chunks.tool[TOOL_VELOCITY][rows, 4], atol=1e-5)
    assert np.linalg.norm(action[0, 0, 3:6]) < 1e-6  # the orientation's own is pi long
    assert not pad.any()


def test_at_the_end_of_an_episode_the_tool_rests(chunks: ChunkData) -> None:
    _, action, velocity, _ = chunks.chunk(np.array([FRAMES - 3]))
    assert velocity[0, 2].any()
    assert not velocity[0, 3:].any()
    np.testing.assert_array_equal(action[0, 3:], np.tile(action[0, 2], (chunks.samples - 3, 1)))


def test_recordings_without_tool_poses_are_refused(
    recording: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(DatasetError, match=r"lacks 'observation.tool_pose'.* record it anew"):
        ChunkData(config(recording, tmp_path).data)


# -- statistics and prior ------------------------------------------------------------------------
def test_statistics_and_prior_describe_the_tool(
    chunks: ChunkData, tool_recording: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    n = chunks.normalization(np.arange(FRAMES))
    assert n.action_names == TOOL_NAMES
    assert n.moves_tool
    assert len(n.action_scale) == n.channels == 7
    assert len(n.state_mean) == 8  # what is observed are the joints, still
    assert n.action_scale[1] == pytest.approx(0.01)  # it never moves along y
    assert n.action_mean[2] == pytest.approx(0.005, abs=0.02)
    model, _ = policy_support.tiny_model(config(tool_recording, tmp_path), tool=True)
    prior = export_prior(model.prior, n)
    assert [c.name for c in prior.channels] == [*TOOL_NAMES, "gripper"]
    assert {c.kind for c in prior.channels[:3]} == {"cartesian_position"}
    assert {(c.kind, c.unit) for c in prior.channels[3:6]} == {("cartesian_rotation", "rad")}
    assert all(c.is_relative for c in prior.channels[:6])
    assert not prior.channels[6].is_relative


def test_statistics_survive_the_file_and_older_files_are_of_joints(tmp_path: pathlib.Path) -> None:
    for tool in (False, True):
        made = policy_support.normalization(tool=tool)
        made.save(tmp_path / "n.json")
        values = json.loads((tmp_path / "n.json").read_text())
        assert Normalization.from_json(values) == made
        assert made.moves_tool is tool
    values = dataclasses.asdict(policy_support.normalization())
    del values["action_names"]
    assert Normalization.from_json(values).action_names == policy_support.JOINTS
    with pytest.raises(ValueError, match="action_names is"):
        Normalization.from_json({**values, "action_names": ["x", "y"]})


def test_the_shipped_checkpoint_is_still_read() -> None:
    folder = pathlib.Path(__file__).parents[1] / "checkpoints" / "demo"
    assert not load_checkpoint(folder).normalization.moves_tool


# -- training ------------------------------------------------------------------------------------
def test_a_tool_policy_learns_saves_and_answers(
    tool_recording: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    trainer = Trainer(config(tool_recording, tmp_path))
    losses = [trainer.train_step()["position"] for _ in range(40)]
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:3])
    trainer.held_frames = np.arange(4)
    errors = trainer.evaluate()
    assert errors["tool_error_m"] < 0.1
    assert errors["tool_error_rad"] < 0.5
    assert {"velocity_error_m_s", "velocity_error_rad_s", "gripper_error_m"} <= set(errors)
    folder = trainer.save()
    policy = load_policy(folder)
    assert [c.name for c in policy.prior.channels] == [*TOOL_NAMES, "gripper"]
    gamma, beta = policy.infer({
        "images": {name: np.zeros((32, 32, 3), np.uint8) for name in policy.cameras},
        "state": np.zeros(15), "instruction": policy_support.INSTRUCTIONS[0],
    })
    assert gamma.shape == (policy.prior.gamma_length,)
    assert np.isfinite(gamma).all()
    assert np.isfinite(beta).all()


def test_a_run_does_not_go_on_with_other_channels(
    tool_recording: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    joints = policy_support.make_checkpoint(tmp_path / "joints")
    with pytest.raises(CheckpointError, match="was trained with channels"):
        Trainer(config(tool_recording, tmp_path, train={"init_from": str(joints)}))
