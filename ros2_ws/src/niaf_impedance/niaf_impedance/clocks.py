"""Other clocks beside the controller's own: a sender's, and the wall clock of this machine.

No clock is read here; readings are arguments. All times are seconds.
"""

from __future__ import annotations

import math

#: the smallest delay is taken over this time: long enough to see a message that was not held up
WINDOW_S = 10.0
#: fewer messages say nothing about a clock
LEAST_MESSAGES = 5
#: a wall clock that moves against the monotonic one by more than this at once was set
STEP_S = 0.01
#: how fast the wall clock's slewing is followed (NTP slews by at most 500 ppm)
SLEW = 1e-3


class SkewEstimate:
    """How far a sender's clock stands from this one, from one-way messages.

    A message sent at ``sent_s`` on the sender's clock arrives at ``received_s`` on this one. The
    difference is skew plus transport, and transport is never negative: over a window the smallest
    difference is the skew from above, as close as the fastest message. (Two-way exchange would
    bound it from below too; NTP and PTP do that between the machines, this watches them.)
    """

    def __init__(self, window_s: float = WINDOW_S) -> None:
        self._half_s = 0.5 * window_s
        self.clear()

    def clear(self) -> None:
        """Forget everything (a clock was set)."""
        self._began_s = -math.inf
        self._now = self._before = math.inf
        self._count_now = self._count_before = 0

    def add(self, received_s: float, sent_s: float) -> None:
        """One message; readings that are not finite are left out."""
        difference = received_s - sent_s
        if not math.isfinite(difference):
            return
        if not 0.0 <= received_s - self._began_s < self._half_s:
            recent = 0.0 <= received_s - self._began_s < 2.0 * self._half_s
            self._before = self._now if recent else math.inf
            self._count_before = self._count_now if recent else 0
            self._began_s, self._now, self._count_now = received_s, math.inf, 0
        self._now = min(self._now, difference)
        self._count_now += 1

    @property
    def skew_s(self) -> float:
        """Smallest difference over the last half to whole window; NaN before enough messages.

        Positive: the sender's clock is behind by at most this. Negative: it is ahead by at least
        this much.
        """
        if self._count_now + self._count_before < LEAST_MESSAGES:
            return math.nan
        return min(self._now, self._before)

    def problem(self, limit_s: float) -> str:
        """Why the sender's times cannot be used; empty when they can (or nothing is known yet)."""
        skew_s = self.skew_s
        if not abs(skew_s) > limit_s:
            return ""
        where = (
            "is ahead of this one, or measures are stamped too late" if skew_s < 0.0
            else "is behind this one, or every message takes as long"
        )
        return (
            f"the sender's clock differs by {skew_s * 1e3:+.1f} ms (clock_skew_max_s is "
            f"{limit_s:g}): it {where}; synchronise the machines (chrony, PTP)"
        )


class WallClock:
    """The wall clock as a function of the monotonic one, for a loop that runs on the latter.

    Follows what NTP slews, at most ``SLEW``, so that fields of other machines stay aligned over
    hours; never follows a step, which would move the arm: a step is a ``problem`` until ``set``.

    Attributes:
        offset_s: wall-clock time minus monotonic time, as used.
        problem: what happened to the wall clock; empty when nothing did.
    """

    def __init__(self) -> None:
        self.offset_s = 0.0
        self.problem = ""
        self._last_s = math.nan

    def set(self, monotonic_s: float, wall_s: float) -> None:
        """Take the wall clock as it is now (the arm is at rest)."""
        self.offset_s, self.problem, self._last_s = wall_s - monotonic_s, "", monotonic_s

    def follow(self, monotonic_s: float, wall_s: float) -> None:
        """Two readings taken together; call it more than once a second."""
        passed_s, self._last_s = monotonic_s - self._last_s, monotonic_s
        error_s = wall_s - monotonic_s - self.offset_s
        if abs(error_s) > STEP_S:
            self.problem = (
                f"the wall clock was set by {error_s:+.3f} s since the last activation or ~/reset: "
                "stamps of other nodes are off by that much; stop, then activate again"
            )
            return
        self.problem = ""
        most_s = SLEW * passed_s
        if most_s > 0.0:
            self.offset_s += min(max(error_s, -most_s), most_s)
