"""The lock-step environment: expert, do-nothing and wrong-instruction episodes, and recordings."""

import numpy as np
import pytest

from niaf_data.features import recording_features
from niaf_data.reader import open_dataset
from niaf_data.writer import LeRobotWriter
from niaf_sim import scene
from niaf_sim.agents import ExpertAgent, NothingAgent
from niaf_sim.env import EpisodeConfig, LockstepEnv, robot_config, run_episode
from niaf_sim.evaluate import (
    ExpertUnderInstruction,
    TickStatistics,
    summarise,
    wrong_instruction,
)
from niaf_sim.expert import Expert
from niaf_sim.record import EVALUATION_SEED, RecordConfig, record, record_episode
from niaf_sim.summary import wilson_interval
from niaf_sim.tasks import COLOURS, INSTRUCTIONS, parse_instruction

TIMING = EpisodeConfig(replan_s=0.25, latency_s=0.05, timeout_s=10.0)


@pytest.fixture(scope="module")
def env():
    env = LockstepEnv(robot_config("panda"))
    yield env
    env.cell.close()


@pytest.fixture(scope="module")
def expert():
    return Expert()


@pytest.mark.parametrize("index", [1, 5])
def test_expert_succeeds_within_all_limits(env, expert, index):
    env.reset(index, INSTRUCTIONS[index])
    statistics = TickStatistics(env)
    env.on_tick = statistics
    result = run_episode(env, ExpertAgent(expert), TIMING)
    env.on_tick = None
    assert result.success and result.refused == 0
    figures = statistics.summary()
    assert figures["peak_torque_ratio"] <= 1.0
    assert figures["tracking_rms_rad"] < 0.005


def test_doing_nothing_does_not_succeed_and_does_not_move(env):
    env.reset(2, INSTRUCTIONS[2])
    before = env.cell.q_true.copy()
    result = run_episode(env, NothingAgent(), EpisodeConfig(timeout_s=1.0))
    assert not result.success
    assert np.abs(env.cell.q_true - before).max() < 2e-3


def test_expert_under_the_wrong_instruction_does_not_succeed(env, expert):
    task = parse_instruction(INSTRUCTIONS[0])
    env.reset(4, task.instruction, instruction=wrong_instruction(task))
    result = run_episode(env, ExpertUnderInstruction(ExpertAgent(expert)), TIMING)
    assert not result.success
    lifted = env.cell.cube_positions_m()[:, 2] > 0.08
    assert lifted[1] and not lifted[0]


def test_an_episode_is_the_same_twice(env, expert):
    ends = []
    for _ in range(2):
        env.reset(8, INSTRUCTIONS[2])
        run_episode(env, ExpertAgent(expert), EpisodeConfig(timeout_s=1.5))
        ends.append(env.cell.snapshot())
    assert np.array_equal(ends[0], ends[1])


def test_recorded_episode_reads_back_and_marks_who_drove(env, expert, tmp_path):
    env.reset(0, INSTRUCTIONS[0], "random")
    config = RecordConfig(disturbed=1.0, disturb_every_s=(1.5, 2.5))
    frames, success = record_episode(env, expert, np.random.default_rng(0), config, None)
    assert success
    driven = frames["is_expert"][:, 0]
    assert driven.any() and not driven.all()
    cameras = {"scene": (96, 96), "wrist": (96, 96)}
    features = recording_features(scene.ARM_JOINTS, cameras, COLOURS, tool=True)
    with LeRobotWriter(tmp_path / "set", config.fps, features, "panda_sim") as writer:
        writer.add_episode(frames, INSTRUCTIONS[0])
    read = open_dataset(tmp_path / "set")
    columns = read.columns()
    assert np.array_equal(columns["action"], frames["action"])
    assert np.array_equal(columns["observation.velocity"], frames["observation.velocity"])
    video = read.video_frames("observation.images.scene", 0)
    error = np.abs(video.astype(int) - frames["observation.images.scene"].astype(int))
    assert error.mean() < 3.0


def test_recorded_action_is_the_reference_the_drives_followed(env, expert):
    env.reset(3, INSTRUCTIONS[3])
    config = RecordConfig(disturbed=0.0, max_s=3.0)
    frames, _ = record_episode(env, expert, np.random.default_rng(0), config, None)
    error = frames["action"][:, :7] - frames["observation.state"][:, :7]
    assert np.abs(error).max() < 0.02
    # drive-reported velocity agrees with the slope of the recorded positions
    slope = (frames["action"][2:, :7] - frames["action"][:-2, :7]) * config.fps / 2
    assert np.abs(slope - frames["observation.velocity"][1:-1]).max() < 0.15


def test_recording_refuses_evaluation_seeds_and_full_directories(tmp_path):
    with pytest.raises(SystemExit, match="evaluation seeds"):
        record(tmp_path, 10, EVALUATION_SEED - 5, 1, "panda")
    (tmp_path / "part-000").mkdir()
    with pytest.raises(SystemExit, match="already holds a recording"):
        record(tmp_path, 1, 0, 1, "panda")


def test_wilson_interval_matches_the_published_example():
    low, high = wilson_interval(8, 10)  # Agresti & Coull 1998
    assert low == pytest.approx(0.490, abs=1e-3) and high == pytest.approx(0.943, abs=1e-3)
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_summary_groups_by_instruction():
    row = {
        "instruction": INSTRUCTIONS[0],
        "success": True,
        "duration_s": 3.0,
        "offered": 4,
        "refused": 1,
        "reasons": {"EXHAUSTED": 1},
        "tracking_rms_rad": 3.0,
        "reference_acceleration_rms_rad_s2": 0.0,
        "reference_jerk_rms_rad_s3": 0.0,
        "peak_torque_ratio": 0.5,
        "peak_velocity_rad_s": 1.0,
    }
    other = {**row, "instruction": INSTRUCTIONS[3], "success": False, "tracking_rms_rad": 4.0}
    result = summarise([row, other])
    assert result["success_rate"] == 0.5 and result["references_refused"] == 2
    assert result["refusal_reasons"] == {"EXHAUSTED": 2}
    assert result["per_instruction"][INSTRUCTIONS[0]]["success_rate"] == 1.0
    assert result["per_instruction"][INSTRUCTIONS[3]]["success_rate"] == 0.0
    assert result["tracking_rms_rad"] == pytest.approx(np.sqrt(12.5))
