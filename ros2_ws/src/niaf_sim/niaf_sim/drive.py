"""FOC motor drive as the controller sees it: torque in, encoder position and velocity out.

One compiled step per physics step and for all joints at once. The model has what a field-oriented
drive has between the bus and the joint:

* torque request -> saturation at the drive's limit -> first-order current-loop lag;
* joint-side encoder with finite resolution;
* velocity from a second-order tracking observer (PLL) on the *quantised* position, as drives do it,
  so the reported velocity carries both lag and quantisation ripple;
* a watchdog: without a fresh command the drive ignores the last torque and damps its own shaft.

Coulomb and viscous friction belong to the joint and are given to the physics engine
(:mod:`niaf_sim.scene`), which can hold stiction exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

FloatArray = np.ndarray


@dataclass(frozen=True)
class DriveConfig:
    """Constants of one drive per joint (n joints). Arrays are float64[n]."""

    torque_limit_nm: tuple[float, ...]
    #: time constant of the closed current loop
    current_loop_s: float = 0.0008
    #: joint-side counts per turn (17 bit)
    encoder_counts: int = 131072
    #: natural frequency and damping of the velocity observer
    observer_hz: float = 90.0
    observer_damping: float = 1.0
    #: the drive damps when no command came for this long
    watchdog_s: float = 0.05
    #: damping torque per speed while the watchdog acts
    watchdog_damping_nms: tuple[float, ...] = (40.0, 40.0, 30.0, 30.0, 8.0, 8.0, 5.0)


@njit(cache=True, nogil=True)
def drive_step(  # type: ignore[no-untyped-def]
    dt_s,
    request,
    command_age_s,
    q_true,
    limit,
    lag_s,
    lsb_rad,
    wn,
    zeta,
    watchdog_s,
    damping,
    torque,
    q_enc,
    q_obs,
    dq_obs,
):
    """Advance every drive by one physics step; writes torque, q_enc, q_obs, dq_obs in place."""
    tripped = command_age_s > watchdog_s
    blend = 1.0 - np.exp(-dt_s / lag_s)
    for i in range(request.shape[0]):
        if tripped:
            wish = -damping[i] * dq_obs[i]
        else:
            wish = request[i]
        if not np.isfinite(wish):  # a real drive refuses a frame it cannot decode
            wish = -damping[i] * dq_obs[i]
        if wish > limit[i]:
            wish = limit[i]
        elif wish < -limit[i]:
            wish = -limit[i]
        torque[i] += blend * (wish - torque[i])
        q_enc[i] = np.floor(q_true[i] / lsb_rad + 0.5) * lsb_rad
        error = q_enc[i] - q_obs[i]
        dq_obs[i] += dt_s * wn * wn * error
        q_obs[i] += dt_s * (dq_obs[i] + 2.0 * zeta * wn * error)
    return tripped


class DriveBank:
    """State of the drives of one arm. ``q`` and ``dq`` are what the drives report (views)."""

    def __init__(self, config: DriveConfig) -> None:
        n = len(config.torque_limit_nm)
        if len(config.watchdog_damping_nms) != n:
            raise ValueError(
                f"watchdog_damping_nms has {len(config.watchdog_damping_nms)} entries "
                f"for {n} joints"
            )
        self.config = config
        self.limit_nm = np.array(config.torque_limit_nm, dtype=np.float64)
        self._damping = np.array(config.watchdog_damping_nms, dtype=np.float64)
        self._lsb_rad = 2.0 * np.pi / config.encoder_counts
        self._wn = 2.0 * np.pi * config.observer_hz
        self.torque_nm = np.zeros(n)
        self.request_nm = np.zeros(n)
        self.q = np.zeros(n)
        self.dq = np.zeros(n)
        self._q_observer = np.zeros(n)
        self.command_age_s = np.inf
        self.watchdog_tripped = True

    def reset(self, q_rad: FloatArray, torque_nm: FloatArray | None = None) -> None:
        """Start at rest at ``q_rad`` with ``torque_nm`` flowing already (holding torque)."""
        self.q[:] = np.round(q_rad / self._lsb_rad) * self._lsb_rad
        self._q_observer[:] = self.q
        self.dq[:] = 0.0
        self.torque_nm[:] = 0.0 if torque_nm is None else torque_nm
        self.request_nm[:] = self.torque_nm
        self.command_age_s = 0.0
        self.watchdog_tripped = False

    def command(self, torque_nm: FloatArray) -> None:
        """A fresh torque command arrived on the bus."""
        self.request_nm[:] = torque_nm
        self.command_age_s = 0.0

    def step(self, dt_s: float, q_true: FloatArray) -> FloatArray:
        """Advance by ``dt_s`` with the true joint angles; returns the shaft torque, Nm[n]."""
        c = self.config
        self.watchdog_tripped = bool(
            drive_step(
                dt_s,
                self.request_nm,
                self.command_age_s,
                q_true,
                self.limit_nm,
                c.current_loop_s,
                self._lsb_rad,
                self._wn,
                c.observer_damping,
                c.watchdog_s,
                self._damping,
                self.torque_nm,
                self.q,
                self._q_observer,
                self.dq,
            )
        )
        self.command_age_s += dt_s
        return self.torque_nm
