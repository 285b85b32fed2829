import numpy as np
import pytest

from niaf_sim.cell import Cell, CellConfig
from niaf_sim.tasks import INSTRUCTIONS, UnknownInstructionError


@pytest.fixture(scope="module")
def cell():
    cell = Cell()
    yield cell
    cell.close()


def test_reset_holds_still_under_its_own_torque(cell):
    cell.reset(3, INSTRUCTIONS[0])
    before = cell.q_true.copy()
    for _ in range(100):
        cell.step(cell.torque_nm.copy())
    assert np.abs(cell.q_true - before).max() < 1e-4


def test_same_seed_and_commands_give_the_same_state(cell):
    ends = []
    for _ in range(2):
        cell.reset(11, INSTRUCTIONS[4])
        for k in range(200):
            cell.step(cell.torque_nm + np.sin(0.05 * k), 0.04)
        ends.append(cell.snapshot())
    assert np.array_equal(ends[0], ends[1])


def test_seeds_place_cubes_apart_and_on_the_table(cell):
    c = cell.config
    for seed in range(20):
        cell.reset(seed, INSTRUCTIONS[0])
        cubes = cell.cube_positions_m()
        gaps = [np.linalg.norm(cubes[i, :2] - cubes[j, :2]) for i, j in ((0, 1), (0, 2), (1, 2))]
        assert min(gaps) > c.cube_gap_m
        assert np.all((cubes[:, 0] >= c.cube_x_m[0]) & (cubes[:, 0] <= c.cube_x_m[1]))
        assert np.all((cubes[:, 1] >= c.cube_y_m[0]) & (cubes[:, 1] <= c.cube_y_m[1]))


def test_watchdog_lets_the_arm_sink_slowly_when_commands_stop(cell):
    cell.reset(0, INSTRUCTIONS[0])
    start = cell.q_true.copy()
    for _ in range(500):
        cell.step(None)
    assert cell.drives.watchdog_tripped
    assert np.abs(cell.dq_true).max() < 1.0  # damped, not falling
    assert np.abs(cell.q_true - start).max() > 1e-3  # and not held either


def test_reported_state_is_quantised_truth(cell):
    cell.reset(1, INSTRUCTIONS[0])
    cell.step(cell.torque_nm.copy())
    lsb = 2 * np.pi / 131072
    assert np.abs(cell.q - cell.q_true).max() < lsb
    assert np.abs(cell.q / lsb - np.round(cell.q / lsb)).max() < 1e-6


def test_bad_reset_leaves_the_episode_running(cell):
    cell.reset(5, INSTRUCTIONS[2])
    before = cell.snapshot()
    with pytest.raises(UnknownInstructionError):
        cell.reset(6, "dance")
    with pytest.raises(ValueError, match="start 'upside-down'"):
        cell.reset(6, INSTRUCTIONS[0], "upside-down")
    assert np.array_equal(before, cell.snapshot())
    assert cell.seed == 5 and cell.instruction == INSTRUCTIONS[2]


def test_success_must_hold_for_a_while(cell):
    cell.reset(0, "pick up the red cube")
    address = cell._cube_q[0]
    for k in range(400):
        cell.data.qpos[address + 2] = 0.2
        cell.data.qvel[cell._cube_v[0] : cell._cube_v[0] + 3] = 0.0
        cell.step(cell.torque_nm.copy())
        if k == 100:
            assert not cell.success()
    assert cell.success()


@pytest.mark.parametrize("camera", ["scene", "wrist", "overview"])
def test_cameras_see_all_three_colours(cell, camera):
    cell.reset(0, INSTRUCTIONS[0])
    image = cell.render(camera)
    settings = next(c for c in cell.config.scene.cameras if c.name == camera)
    assert image.shape == (settings.height, settings.width, 3) and image.dtype == np.uint8
    pixels = image.reshape(-1, 3).astype(int)
    for channel in range(3):
        others = [k for k in range(3) if k != channel]
        pure = pixels[:, channel] - pixels[:, others].max(axis=1)
        assert (pure > 60).sum() >= 4, f"no cube of colour {channel} in {camera}"


def test_unknown_camera_is_named(cell):
    with pytest.raises(KeyError, match="no camera 'side'"):
        cell.render("side")


def test_control_period_must_be_a_multiple_of_the_physics_step():
    with pytest.raises(ValueError, match="not a multiple"):
        Cell(CellConfig(control_period_s=0.0007))
