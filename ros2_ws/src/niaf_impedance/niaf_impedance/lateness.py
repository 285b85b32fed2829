"""When a loop that is late itself goes down the stop ladder: one rule for every loop.

``judge`` is asked once at the beginning of every tick and answers with a rung. It knows two things:

* **how late this tick is**: ``late_s`` after it was due, or ``gap_s`` after the tick before. A
  torque that was computed for another instant is worth less with every millisecond: one tick that
  is late enough brakes, and one as late as a measured state may be old damps.
* **which share of the periods went wrong lately**: late, or without a tick of their own. It is an
  average over about ``window_s`` that forgets exponentially, so one hiccup of a few periods means
  next to nothing, a host that is late all the time brakes within a fraction of the window and then
  damps, and after an interruption it takes about a window until motion is allowed again.

What "due" and "gap" mean is the loop's business:

===================  ===========================================  =================================
loop                 due                                          gap
===================  ===========================================  =================================
clock (compiled)     its deadline; a command that still waits to  between the beginnings of two
                     be sent counts as late too                   ticks
bus                  its deadline                                 the same
event (joint state)  the state's arrival in this process; an      stamps of two states, as far as
                     executor that stood still counts too         states between them were published
                                                                  and never reached a tick
===================  ===========================================  =================================

So a driver that is silent or slow does not make an event-driven loop late (STATE_STALE is about
that), and an executor that was busy does.

Pure: times are arguments. ``judge`` is compiled, allocates nothing and needs no GIL.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import numpy as np
from numba import njit

from niaf_impedance.faults import Fault, Mode

FloatArray = np.ndarray


class Rung(IntEnum):
    """How far down the ladder lateness leads."""

    ON_TIME = 0
    LATE = 1  # counted, nothing else
    BRAKE = 2
    DAMP = 3


RUNG_ON_TIME, RUNG_LATE, RUNG_BRAKE, RUNG_DAMP = (int(rung) for rung in Rung)

L_PERIOD, L_LATE, L_BRAKE, L_DAMP, L_KEEP, L_BRAKE_SHARE, L_DAMP_SHARE, L_SIZE = range(8)
M_SHARE, M_LATE, M_WORST, M_OUTCOME, M_SIZE = range(5)


class LoopLimitsError(ValueError):
    """Limits that contradict each other; names setting, value and remedy."""


@dataclass(frozen=True)
class LoopLimits:
    """When a late loop goes down the ladder.

    Attributes:
        late_periods: a tick this many periods after it was due is late.
        brake_lateness_s: one tick this late brakes along the path (never less than a late tick).
        damp_lateness_s: one tick this late damps and latches LOOP_LATE; the node takes
            ``state_timeout_s``, because both are the age of what a torque was computed from.
        window_s: over which the share of late periods is averaged.
        brake_share: share of late periods that brakes.
        damp_share: share of late periods that damps.
    """

    late_periods: float = 1.0
    brake_lateness_s: float = 0.01
    damp_lateness_s: float = 0.02
    window_s: float = 0.5
    brake_share: float = 0.2
    damp_share: float = 0.5

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0.0:
                raise LoopLimitsError(f"{name} is {value:g}; it must be above 0")
        if self.damp_share < self.brake_share:
            raise LoopLimitsError(
                f"damp_share {self.damp_share:g} is below brake_share {self.brake_share:g}: "
                "the arm would be damped before it could brake; raise it"
            )

    def array(self, period_s: float) -> FloatArray:
        """As ``judge`` takes them, for a loop of this period; LoopLimitsError if none fits."""
        if not self.window_s >= 4.0 * period_s:
            raise LoopLimitsError(
                f"window_s {self.window_s:g} holds fewer than four periods of {period_s:g} s; "
                "lengthen it"
            )
        late_s = self.late_periods * period_s
        return np.array([
            period_s, late_s, max(self.brake_lateness_s, late_s),
            max(self.damp_lateness_s, late_s), math.exp(-period_s / self.window_s),
            self.brake_share, self.damp_share,
        ])


LIMITS = LoopLimits()
#: never goes down the ladder: for measurements and for tests that are not about it
ONLY_COUNT = LoopLimits(
    brake_lateness_s=math.inf, damp_lateness_s=math.inf, brake_share=2.0, damp_share=2.0)


@njit(cache=True, nogil=True)
def judge(limits, memory, late_s, gap_s):
    """Rung of a tick that began ``late_s`` after it was due and ``gap_s`` after the tick before.

    limits float64[L_SIZE], memory float64[M_SIZE] (zeros at the start of a run, updated here).
    gap_s 0: there was no tick before that counts. NaN counts as no delay.
    """
    period = limits[L_PERIOD]
    delay = late_s if late_s > 0.0 else 0.0
    lost = 0.0
    if gap_s > 1.5 * period:
        lost = np.floor(gap_s / period - 0.5)
        delay = max(delay, gap_s - period)
    late = delay > limits[L_LATE] or lost > 0.0
    if late:
        itself = 1.0 if late_s > limits[L_LATE] else 0.0
        bad = max(lost + itself, 1.0)
        memory[M_SHARE] = 1.0 - (1.0 - memory[M_SHARE]) * limits[L_KEEP] ** bad
        memory[M_LATE] += 1.0
        memory[M_WORST] = max(memory[M_WORST], delay)
    else:
        memory[M_SHARE] *= limits[L_KEEP]
    share = memory[M_SHARE]
    # the tick itself takes a longer gap for a stale state: name what made it
    if late and (max(delay, gap_s) > limits[L_DAMP]) or share > limits[L_DAMP_SHARE]:
        rung = RUNG_DAMP
    elif delay > limits[L_BRAKE] or share > limits[L_BRAKE_SHARE]:
        rung = RUNG_BRAKE
    else:
        rung = RUNG_LATE if late else RUNG_ON_TIME
    memory[M_OUTCOME] = max(memory[M_OUTCOME], rung)
    return rung


class Lateness:
    """``judge`` with its arrays: limits of one loop, and what it remembers since ``clear``."""

    def __init__(self, limits: LoopLimits, period_s: float) -> None:
        self.period_s = period_s
        self.limits, self.memory = limits.array(period_s), np.zeros(M_SIZE)
        self._window_s, self._late_s = limits.window_s, float(self.limits[L_LATE])
        self._on_time = 0  # ticks since the share was written down
        self._calm = True  # the share alone leads to nothing
        judge(self.limits, np.zeros(M_SIZE), 0.0, 0.0)  # compiles

    def judge(self, late_s: float, gap_s: float) -> int:
        """Number of a Rung."""
        if self._calm and late_s <= self._late_s and gap_s <= self.period_s:
            self._on_time += 1  # nearly every tick: what it does to the share can wait
            return RUNG_ON_TIME
        self.memory[M_SHARE] = self.share
        self._on_time = 0
        rung = int(judge(self.limits, self.memory, late_s, gap_s))
        self._calm = bool(self.memory[M_SHARE] <= self.limits[L_BRAKE_SHARE])
        return rung

    def clear(self) -> None:
        """A new run: an activation, a reset."""
        self.memory[:] = 0.0
        self._on_time, self._calm = 0, True

    @property
    def damp_s(self) -> float:
        """A tick later than this damps."""
        return float(self.limits[L_DAMP])

    @property
    def share(self) -> float:
        """Share of the periods of about the last window that went wrong."""
        return float(self.memory[M_SHARE] * self.limits[L_KEEP] ** self._on_time)

    @property
    def late(self) -> int:
        """Late ticks."""
        return int(self.memory[M_LATE])

    @property
    def worst_s(self) -> float:
        """Latest tick; 0 when none was late."""
        return float(self.memory[M_WORST])

    @property
    def outcome(self) -> Rung:
        """The worst that lateness has led to."""
        return Rung(int(self.memory[M_OUTCOME]))

    @property
    def holds_back(self) -> str:
        """Why no new motion may begin now; empty when it may."""
        most = float(self.limits[L_BRAKE_SHARE])
        if self.share <= most:
            return ""
        return (
            f"the loop is late: {100.0 * self.share:.0f} % of its periods within {self._window_s:g}"
            f" s (at most {100.0 * most:.0f} %); relieve the CPU or grant real-time priority"
        )

    @property
    def text(self) -> str:
        """One sentence on what lateness has led to; empty when it led to nothing."""
        if self.outcome < Rung.BRAKE:
            return ""
        enough = "damp" if self.outcome == Rung.DAMP else "brake"
        return (
            f"LOOP_LATE: the loop was late enough to {enough} ({100.0 * self.share:.0f} % of the "
            f"periods within {self._window_s:g} s now, the latest tick {self.worst_s * 1e3:.1f} "
            "ms); relieve the CPU, grant real-time priority or lower the rate"
        )


class Stoppable(Protocol):
    """What ``step_down`` asks of a controller (``ImpedanceController``)."""

    @property
    def mode(self) -> Mode: ...
    @property
    def last_tick_s(self) -> float: ...

    def brake(self, t_s: float) -> None: ...
    def report_fault(self, fault: Fault, joint: int = -1) -> None: ...


def step_down(rung: int, controller: Stoppable) -> None:
    """Go down the ladder as far as the lateness of the loop demands, from the thread that ticks."""
    if rung >= RUNG_DAMP:
        controller.report_fault(Fault.LOOP_LATE)
    elif rung == RUNG_BRAKE and controller.mode == Mode.TRACK:
        controller.brake(controller.last_tick_s)
