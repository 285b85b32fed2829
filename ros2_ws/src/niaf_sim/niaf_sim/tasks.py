"""Language-conditioned tasks of the cell: instructions, their meaning, success predicates."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

COLOURS = ("red", "green", "blue")
KINDS = ("pick", "bin")


@dataclass(frozen=True)
class Task:
    """What an instruction asks for: ``kind`` is 'pick' or 'bin', ``colour`` one of COLOURS."""

    kind: str
    colour: str

    @property
    def cube(self) -> int:
        """Index of the target cube."""
        return COLOURS.index(self.colour)

    @property
    def instruction(self) -> str:
        if self.kind == "pick":
            return f"pick up the {self.colour} cube"
        return f"put the {self.colour} cube in the bin"


TASKS = tuple(Task(kind, colour) for kind in KINDS for colour in COLOURS)
INSTRUCTIONS = tuple(task.instruction for task in TASKS)

_PICK = re.compile(r"^pick up the (red|green|blue) cube$")
_BIN = re.compile(r"^put the (red|green|blue) cube in the bin$")


class UnknownInstructionError(ValueError):
    """The cell has no success predicate for this instruction."""


def parse_instruction(text: str) -> Task:
    """Task named by ``text``; raises UnknownInstructionError with the list of known ones."""
    cleaned = " ".join(text.lower().split()).rstrip(".")
    for kind, pattern in (("pick", _PICK), ("bin", _BIN)):
        match = pattern.match(cleaned)
        if match:
            return Task(kind, match.group(1))
    known = "; ".join(INSTRUCTIONS)
    raise UnknownInstructionError(f"no task for instruction {text!r}; the cell knows: {known}")


@dataclass(frozen=True)
class SuccessRule:
    """Thresholds of the success predicates, in metres, metres per second and seconds."""

    lift_height_m: float = 0.10
    bin_half_m: float = 0.075
    bin_depth_m: float = 0.05
    rest_speed_m_s: float = 0.05
    open_width_m: float = 0.06
    hold_s: float = 0.25


def goal_reached(
    task: Task,
    rule: SuccessRule,
    cube_position_m: np.ndarray,
    cube_speed_m_s: float,
    bin_position_m: np.ndarray,
    gripper_width_m: float,
) -> bool:
    """Instantaneous predicate; the cell asks that it holds for ``rule.hold_s``.

    cube_position_m[3] and bin_position_m[3] are in the base frame, z = 0 being the table top.
    """
    if task.kind == "pick":
        return bool(cube_position_m[2] > rule.lift_height_m)
    offset = np.abs(cube_position_m[:2] - bin_position_m[:2])
    inside = bool(np.all(offset < rule.bin_half_m)) and cube_position_m[2] < rule.bin_depth_m
    released = gripper_width_m > rule.open_width_m
    return bool(inside and released and cube_speed_m_s < rule.rest_speed_m_s)
