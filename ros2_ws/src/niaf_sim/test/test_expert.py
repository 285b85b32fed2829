import numpy as np
import pytest

from niaf_sim.cell import Cell
from niaf_sim.expert import Expert
from niaf_sim.kinematics import UnreachableError
from niaf_sim.tasks import INSTRUCTIONS


@pytest.fixture(scope="module")
def expert():
    return Expert()


@pytest.fixture(scope="module")
def cell():
    return Cell()


@pytest.mark.parametrize("seed", range(4))
def test_plan_starts_at_the_arms_state_and_ends_at_rest(cell, expert, seed):
    cell.reset(seed, INSTRUCTIONS[seed % 6], "random")
    dq = np.random.default_rng(seed).uniform(-0.2, 0.2, 7)
    plan = expert.plan(cell, 2.0, cell.q.copy(), dq, 0.08, 1)
    first, last = plan.jet(2.0, 2), plan.jet(plan.end_s, 2)
    assert np.allclose(first[0, :7], cell.q) and np.allclose(first[1, :7], dq)
    assert np.abs(last[1]).max() < 1e-9


@pytest.mark.parametrize("seed", range(4))
def test_plan_stays_within_velocity_limits(cell, expert, seed):
    cell.reset(seed, INSTRUCTIONS[seed % 6], "random")
    plan = expert.plan(cell, 0.0, cell.q.copy(), np.zeros(7), 0.08, 1)
    jets = plan.batch(np.linspace(0.0, plan.end_s, 500), 1)
    assert np.abs(jets[:, 1, :7]).max() < 2.1


def test_tool_points_down_above_the_cube_before_it_descends(cell, expert):
    cell.reset(7, "pick up the green cube")
    plan = expert.plan(cell, 0.0, cell.q.copy(), np.zeros(7), 0.08, 1)
    cube = cell.cube_positions_m()[1]
    near = []
    for t in np.linspace(0.0, plan.end_s, 300):
        position, rotation = expert.tool.pose(plan.jet(t, 0)[0, :7])
        if position[2] < 0.06:
            near.append(np.linalg.norm(position[:2] - cube[:2]))
            assert rotation[2, 2] < -0.99
    assert near and max(near) < 0.01


def test_inverse_kinematics_reaches_what_it_says(expert):
    q = expert.tool.solve(
        np.array([0.5, 0.1, 0.1]),
        np.diag([1.0, -1.0, -1.0]),
        np.array(expert._posture),
        expert._posture,
    )
    position, rotation = expert.tool.pose(q)
    assert np.allclose(position, [0.5, 0.1, 0.1], atol=2e-4)
    assert np.allclose(rotation, np.diag([1.0, -1.0, -1.0]), atol=2e-3)


def test_unreachable_pose_is_an_error(expert):
    with pytest.raises(UnreachableError, match="no joint position reaches"):
        expert.tool.solve(
            np.array([2.0, 0.0, 0.5]), np.eye(3), np.array(expert._posture), expert._posture
        )
