import numpy as np
import pytest

from niaf_sim.tasks import (
    INSTRUCTIONS,
    TASKS,
    SuccessRule,
    Task,
    UnknownInstructionError,
    goal_reached,
    parse_instruction,
)

BIN = np.array([0.5, -0.3, 0.0])


@pytest.mark.parametrize("task", TASKS)
def test_every_instruction_parses_to_its_task(task):
    assert parse_instruction(task.instruction) == task
    assert parse_instruction(f"  {task.instruction.upper()}. ") == task


@pytest.mark.parametrize(
    "text", ["", "dance", "pick up the yellow cube", "pick up the red cube now"]
)
def test_unknown_instructions_are_refused_with_the_known_ones(text):
    with pytest.raises(UnknownInstructionError) as error:
        parse_instruction(text)
    assert all(known in str(error.value) for known in INSTRUCTIONS)


def test_pick_needs_height():
    task, rule = Task("pick", "red"), SuccessRule()
    assert not goal_reached(task, rule, np.array([0.5, 0.0, 0.09]), 0.0, BIN, 0.04)
    assert goal_reached(task, rule, np.array([0.5, 0.0, 0.11]), 0.5, BIN, 0.04)


@pytest.mark.parametrize(
    ("position", "speed", "width", "expected"),
    [
        ((0.5, -0.3, 0.02), 0.0, 0.08, True),
        ((0.5, -0.3, 0.02), 0.0, 0.04, False),  # still in the fingers
        ((0.5, -0.3, 0.02), 0.2, 0.08, False),  # still moving
        ((0.5, -0.3, 0.12), 0.0, 0.08, False),  # above the bin
        ((0.5, -0.2, 0.02), 0.0, 0.08, False),  # beside the bin
    ],
)
def test_bin_needs_a_released_cube_at_rest_inside(position, speed, width, expected):
    task = Task("bin", "blue")
    assert goal_reached(task, SuccessRule(), np.array(position), speed, BIN, width) is expected
