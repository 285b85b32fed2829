"""Time to tau and back: tau = 2 (t - start) / horizon - 1. All in float64."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

_T = TypeVar("_T", float, NDArray[np.float64])


def tau_of_time(t_s: _T, start_s: float, horizon_s: float) -> _T:
    """Dimensionless field time: -1 at the start, +1 at the end of the horizon."""
    return 2.0 * ((t_s - start_s) / horizon_s) - 1.0


def time_of_tau(tau: _T, start_s: float, horizon_s: float) -> _T:
    """Instant (s) at which the field time is tau."""
    return start_s + 0.5 * (tau + 1.0) * horizon_s


def query_grid(samples: int) -> NDArray[np.float64]:
    """K values of tau from -1 to 1, ends included; [K]."""
    if samples < 2:
        raise ValueError(f"a query grid needs at least 2 samples, got {samples}")
    return np.linspace(-1.0, 1.0, samples)


def time_grid(start_s: float, horizon_s: float, samples: int) -> NDArray[np.float64]:
    """K instants (s) from the start to the end of the horizon, ends included; [K]."""
    return start_s + 0.5 * horizon_s * (query_grid(samples) + 1.0)
