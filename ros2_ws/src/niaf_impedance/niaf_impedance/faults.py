"""Modes of the stop ladder and the list of faults: number, cause, reaction, cure.

Numbers are part of the message contract (``ImpedanceState.fault``): never reuse one.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Mode(IntEnum):
    """Rungs of the stop ladder (numbers as in ImpedanceState.msg)."""

    OFF = 0
    TRACK = 1
    BRAKE = 2
    HOLD = 3
    DAMP = 4
    ESTOP = 5


class Fault(IntEnum):
    """Why the controller left normal operation."""

    NONE = 0
    STATE_NOT_FINITE = 10
    STATE_STALE = 11
    STATE_JUMP = 12
    CLOCK_NOT_ADVANCING = 13
    STATE_FROZEN = 14
    OVERSPEED = 20
    TRACKING_ERROR = 21
    REFERENCE_NOT_FINITE = 30
    DYNAMICS_NOT_FINITE = 31
    ESTOP_REQUESTED = 40
    DRIVE_FAULT = 50
    DRIVE_SILENT = 51
    BUS_OFF = 52
    LOOP_LATE = 60


@dataclass(frozen=True)
class FaultText:
    """One row of the fault list."""

    cause: str
    reaction: str
    cure: str


FAULT_TEXT: dict[Fault, FaultText] = {
    Fault.NONE: FaultText("no fault", "none", "none needed"),
    Fault.STATE_NOT_FINITE: FaultText(
        "a measured position or velocity was NaN or infinite",
        "DAMP with gravity at the last finite pose",
        "repair the encoder or driver that reports it, then ~/reset at standstill",
    ),
    Fault.STATE_STALE: FaultText(
        "for longer than state_timeout_s no measured state arrived, or none young enough for the "
        "damping that is set",
        "DAMP; the node stops sending torque, so that the drives' own watchdog damps",
        "restore the joint-state stream, then ~/reset at standstill",
    ),
    Fault.STATE_JUMP: FaultText(
        "the measured position moved further between two states than the arm can",
        "DAMP",
        "check encoder and homing (a simulator that was reset does this too), then ~/reset",
    ),
    Fault.CLOCK_NOT_ADVANCING: FaultText(
        "many states in a row carried a time stamp that did not advance",
        "DAMP",
        "check the publisher's clock and that only one publishes joint states, then ~/reset",
    ),
    Fault.STATE_FROZEN: FaultText(
        "a measured position did not change in any bit while the joint should have moved",
        "torque down to the arm's weight, then silence, so that the drives' own watchdog damps",
        "free the joint if it is stuck; repair the encoder or the driver that repeats old values, "
        "then ~/reset at standstill",
    ),
    Fault.OVERSPEED: FaultText(
        "a joint moved faster than overspeed_ratio times its velocity limit",
        "DAMP",
        "look for a collision, a wrong payload or too little damping, then ~/reset",
    ),
    Fault.TRACKING_ERROR: FaultText(
        "a joint was further from its reference than tracking_error_limit_rad",
        "DAMP",
        "free the arm from what it pushed against, check gains and payload, then ~/reset",
    ),
    Fault.REFERENCE_NOT_FINITE: FaultText(
        "the field gave a NaN or infinite reference",
        "DAMP",
        "the field passed admission, so report it; send a new field after ~/reset",
    ),
    Fault.DYNAMICS_NOT_FINITE: FaultText(
        "the rigid-body torque or the law gave a NaN or infinite value",
        "DAMP with damping only",
        "check gains and payload in the robot description; report it; then ~/reset",
    ),
    Fault.ESTOP_REQUESTED: FaultText(
        "~/estop was called",
        "ESTOP: damps at once and latches",
        "when the cell is safe, ~/reset at standstill",
    ),
    Fault.DRIVE_FAULT: FaultText(
        "a motor drive reported a fault of its own (named in the diagnostics)",
        "DAMP through the drives that still answer",
        "read the drive's fault, cure it there, clear it, then ~/reset at standstill",
    ),
    Fault.DRIVE_SILENT: FaultText(
        "a motor drive left several requests in a row unanswered",
        "DAMP through the drives that still answer; its own watchdog damps the silent one",
        "check its supply, connector and bus termination, then ~/reset at standstill",
    ),
    Fault.BUS_OFF: FaultText(
        "the bus to the drives failed: nothing can be sent",
        "DAMP is latched; the drives' own watchdogs damp",
        "check wiring, termination and bit rate, bring the bus up again, then ~/reset",
    ),
    Fault.LOOP_LATE: FaultText(
        "this controller was late: one tick by more than state_timeout_s, or late_damp_share of "
        "the periods within late_window_s",
        "BRAKE along the path first (late_brake_s, late_brake_share), then DAMP",
        "relieve the CPU or the network, grant SCHED_FIFO (see the loop diagnostics), then ~/reset",
    ),
}


def describe(fault: Fault) -> str:
    """One line: name, cause, cure."""
    if fault == Fault.NONE:
        return ""
    text = FAULT_TEXT[fault]
    return f"{fault.name}: {text.cause}; {text.cure}"


def render_markdown() -> str:
    """The fault list as a Markdown table, for docs."""
    rows = ["| number | name | cause | reaction | cure |", "|--:|---|---|---|---|"]
    for fault, text in FAULT_TEXT.items():
        rows.append(
            f"| {int(fault)} | {fault.name} | {text.cause} | {text.reaction} | {text.cure} |"
        )
    return "\n".join(rows) + "\n"
