"""When to start an inference, and figures about those that ran. Reads no clock."""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass, field

import numpy as np

# An image may come this share of a period before it is due and still be used: waiting for the next
# one would cost a whole image period.
EARLY_SHARE = 0.2


class Pacer:
    """Keeps an average rate while every inference begins with the arrival of an image."""

    def __init__(self, rate_hz: float) -> None:
        self.period_s = 1.0 / rate_hz
        self._due_s = float("-inf")

    def set_rate(self, rate_hz: float) -> None:
        self.period_s = 1.0 / rate_hz

    def reset(self) -> None:
        """The next image is due at once."""
        self._due_s = float("-inf")

    def take(self, now_s: float) -> bool:
        """Whether to use the image that has just come; if so, the next becomes due."""
        if now_s < self._due_s - EARLY_SHARE * self.period_s:
            return False
        # What was missed by more than one period is not caught up.
        first = math.isinf(self._due_s)
        self._due_s = now_s + self.period_s if first else max(self._due_s + self.period_s, now_s)
        return True


@dataclass(frozen=True)
class Quantiles:
    """Of a window of durations in seconds; zero when it is empty."""

    p50_s: float
    p95_s: float
    max_s: float


class Window:
    """The last durations."""

    def __init__(self, length: int = 200) -> None:
        self._values: deque[float] = deque(maxlen=length)

    def add(self, value_s: float) -> None:
        self._values.append(value_s)

    def quantiles(self) -> Quantiles:
        values = list(self._values)
        if not values:
            return Quantiles(0.0, 0.0, 0.0)
        p50, p95 = np.quantile(values, (0.5, 0.95))
        return Quantiles(float(p50), float(p95), max(values))


@dataclass
class Figures:
    """Counts since the node was configured; latency: from observation to publication."""

    fields: int = 0
    latency: Window = field(default_factory=Window)
    inference: Window = field(default_factory=Window)
    drops: Counter[str] = field(default_factory=Counter)
    _times_s: deque[float] = field(default_factory=lambda: deque(maxlen=64))

    def note_field(self, now_s: float, latency_s: float, inference_s: float) -> None:
        self.fields += 1
        self.latency.add(latency_s)
        self.inference.add(inference_s)
        self._times_s.append(now_s)

    def rate_hz(self, now_s: float) -> float:
        """Fields within the last second."""
        return float(sum(1 for t in list(self._times_s) if now_s - t < 1.0))
