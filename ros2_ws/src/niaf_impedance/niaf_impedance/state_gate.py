"""Which measured states may reach the tick, and how late this process is with them. No ROS, no
clock."""

from __future__ import annotations

import math

from niaf_impedance.clocks import SkewEstimate
from niaf_impedance.faults import Mode

#: a stamp this far behind the one before means that the clock was set, not that messages overtook
SET_BACK_S = 1.0
#: states that are all too old to damp with, for half this long to this long, are refused
PERSISTENT_S = 0.1
#: modes in which the arm is damped already, so that a clock that was set back may be followed
_STOPPED = (Mode.OFF, Mode.DAMP, Mode.ESTOP)


class StateGate:
    """Judges states in the order of their arrival.

    All times are seconds since one epoch, except ``received_s``, which is on a monotonic clock.

    Attributes:
        newest_s: stamp of the newest state that was let through.
        received_s: when it arrived; -inf before the first.
        rejected: states that were not let through so far.
        problem: why the last one was not, when an operator should know; empty after a good one.
        bearable_s: age at which the damping in force would drive the arm
            (``ImpedanceController.bearable_age_s``). One old state does nothing; when all have been
            older for a while they are refused, and the silence that follows leaves the arm to its
            drives, which damp on readings of their own.
    """

    def __init__(self, max_future_s: float) -> None:
        self._max_future_s = max_future_s
        self.newest_s = self.received_s = -math.inf
        self.bearable_s = math.inf
        self._recent = SkewEstimate(PERSISTENT_S)
        self.rejected = 0
        self.problem = ""

    def refuse(self, problem: str) -> bool:
        """Count a state that cannot be used at all."""
        self.rejected += 1
        self.problem = problem
        return False

    def admit(
        self, stamp_s: float, now_s: float, received_s: float, mode: Mode, timeout_s: float
    ) -> bool:
        """Whether the state stamped ``stamp_s`` may be ticked with at ``now_s``."""
        age_s = now_s - stamp_s
        if age_s < -self._max_future_s:
            return self.refuse(f"its stamp lies {-age_s:.3f} s ahead of this clock; synchronise")
        if age_s > timeout_s:
            return self.refuse(
                f"it was measured {age_s:.3f} s ago (state_timeout_s is {timeout_s:g}); "
                "synchronise the clocks or relieve the CPU"
            )
        self._recent.add(now_s, stamp_s)
        youngest_s = self._recent.skew_s
        if youngest_s > self.bearable_s:
            return self.refuse(
                f"all recent ones were at least {youngest_s * 1e3:.1f} ms old, and damping as it "
                f"is set would drive the arm from {self.bearable_s * 1e3:.1f} ms on; lower kd, or "
                "speed up what measures and carries them"
            )
        if stamp_s <= self.newest_s:
            if stamp_s == self.newest_s or self.newest_s - stamp_s < SET_BACK_S:
                self.rejected += 1  # duplicate or out of order: the watchdog sees silence
                return False
            # the clock was set back: a running arm damps (silence), then ~/reset starts anew
            if mode not in _STOPPED:
                return self.refuse("its stamp lies more than a second before the one before")
        self.newest_s, self.received_s, self.problem = stamp_s, received_s, ""
        return True


class OwnDelay:
    """What an event-driven loop itself is late with, as opposed to states that come late.

    The middleware receives in threads of its own, so it knows when a state arrived, and numbers
    tell how many were published since the one before. Where it tells neither, nothing is counted
    against the loop: STATE_STALE remains.

    Attributes:
        late_s: how long the newest state waited in this process.
        gap_s: time between the stamps of the newest two, as far as states that were published in
            between never reached the tick (the loop was busy, or the network lost them); else 0.
    """

    def __init__(self, period_s: float) -> None:
        self._period_s = period_s
        self.late_s = self.gap_s = 0.0
        self._number: int | None = None
        self._stamp_s = 0.0

    def note(
        self, stamp_s: float, now_s: float, received_s: float | None, number: int | None
    ) -> None:
        """A state stamped ``stamp_s`` reaches the loop at ``now_s``.

        received_s: when the middleware received it, clock of ``now_s``; number: its publisher's.
        """
        self.late_s = 0.0 if received_s is None else max(0.0, now_s - received_s)
        self.gap_s = 0.0
        if number is not None and self._number is not None:
            # another publisher has other numbers; never more than the stamps can explain
            published = number - self._number
            if published > 1:
                self.gap_s = max(
                    0.0, min(stamp_s - self._stamp_s, (published + 0.5) * self._period_s))
        self._number, self._stamp_s = number, stamp_s
