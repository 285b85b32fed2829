"""Timing contract of the loop: histograms that cost nothing per tick, percentiles on demand."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import numpy as np

FloatArray = np.ndarray

#: resolution and range of the histograms; later values land in the last bin, the maximum is exact
BIN_S = 1e-6
BINS = 20_000


@dataclass(frozen=True)
class Percentiles:
    """Seconds. ``count`` values; all zero when there were none."""

    count: int
    p50_s: float
    p99_s: float
    p999_s: float
    max_s: float


def percentiles_of(counts: FloatArray, max_s: float) -> Percentiles:
    """Percentiles of a histogram ``counts`` [BINS] whose largest value was ``max_s``."""
    count = int(counts.sum())
    if count == 0:
        return Percentiles(0, 0.0, 0.0, 0.0, 0.0)
    ranks = np.ceil(np.array([0.5, 0.99, 0.999]) * count)
    p50, p99, p999 = (np.searchsorted(np.cumsum(counts), ranks) + 0.5) * BIN_S
    return Percentiles(
        count, min(float(p50), max_s), min(float(p99), max_s), min(float(p999), max_s), max_s
    )


class Histogram:
    """Counts of durations with 1 us resolution up to 20 ms."""

    def __init__(self) -> None:
        # one element at a time: twice as fast here as numpy's arrays
        self._counts = array("q", bytes(8 * BINS))
        self._max_s = 0.0

    def add(self, value_s: float) -> None:
        """Count one duration; negative ones count as zero."""
        index = int(value_s / BIN_S)
        self._counts[0 if index < 0 else (index if index < BINS else BINS - 1)] += 1
        if value_s > self._max_s:
            self._max_s = value_s

    def clear(self) -> None:
        np.frombuffer(self._counts, dtype=np.int64)[:] = 0
        self._max_s = 0.0

    def percentiles(self) -> Percentiles:
        return percentiles_of(np.frombuffer(self._counts, dtype=np.int64), self._max_s)


class LoopTiming:
    """What the loop measured since activation.

    ``lateness``: how long after it was due a tick began; ``age``: age of the measured state then;
    ``execution``: from there to the departure of the command; ``command_age``: age of the measured
    state when its command left. ``missed``: periods without a tick, whoever made them.
    ``window_late_s``, ``window_age_s``: the largest since whoever reads them cleared them.
    """

    def __init__(self, period_s: float) -> None:
        self.period_s = period_s
        self.lateness, self.age = Histogram(), Histogram()
        self.execution, self.command_age = Histogram(), Histogram()
        self.ticks = 0
        self.missed = 0
        self.window_ticks = 0
        self.window_late_s = self.window_age_s = 0.0
        self.last_execution_s = 0.0
        self._began_s = 0.0
        self._stamp_s = 0.0
        self._age_s = 0.0

    def clear(self) -> None:
        """Start a new activation."""
        for histogram in (self.lateness, self.age, self.execution, self.command_age):
            histogram.clear()
        self.ticks = self.missed = self.window_ticks = 0
        self.window_late_s = self.window_age_s = self.last_execution_s = 0.0

    def begin(self, began_s: float, stamp_s: float, age_s: float, late_s: float) -> None:
        """A tick begins: ``began_s`` on a monotonic clock, ``late_s`` after it was due.

        ``stamp_s`` is what ticks are counted by: the stamp of the state where the tick answers to
        one, else its deadline. ``age_s`` is the state's age.
        """
        if self.ticks > 0:
            gap = int((stamp_s - self._stamp_s) / self.period_s + 0.5) - 1
            if gap > 0:
                self.missed += gap
        self.lateness.add(late_s)
        self.age.add(age_s)
        self.window_late_s = max(self.window_late_s, late_s)
        self.window_age_s = max(self.window_age_s, age_s)
        self._began_s, self._stamp_s, self._age_s = began_s, stamp_s, age_s
        self.ticks += 1
        self.window_ticks += 1

    def end(self, ended_s: float) -> None:
        """The command of this tick has left."""
        took_s = self.last_execution_s = ended_s - self._began_s
        self.execution.add(took_s)
        self.command_age.add(self._age_s + took_s)
