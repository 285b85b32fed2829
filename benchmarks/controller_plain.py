"""The same tick as anybody would write it first: numpy and pinocchio, and torch's autograd."""

from __future__ import annotations

import numpy as np
import pinocchio
import torch

from niaf_field import ActionField, FoldedField
from niaf_field.jets_reference import unfold
from niaf_impedance import tick as k
from niaf_impedance.controller import ImpedanceController

FloatArray = np.ndarray


class NumpyField:
    """Value and time derivatives by the chain rule, one matrix product per layer and tick."""

    def __init__(self, folded: FoldedField) -> None:
        self._layers, self._w_out, self._b_out = unfold(folded)
        self._layers = [(weight.T, bias) for weight, bias in self._layers]
        self._w_out = self._w_out.T

    def jet(self, tau: float, two_over_T: float, order: int) -> FloatArray:
        """[order + 1, D]."""
        h = np.zeros((order + 1, 1))
        h[0, 0] = tau
        if order >= 1:
            h[1, 0] = 1.0
        for weight, bias in self._layers:
            a = h @ weight
            a[0] += bias
            h = np.empty_like(a)
            sin, cos = np.sin(a[0]), np.cos(a[0])
            h[0] = sin
            if order >= 1:
                h[1] = cos * a[1]
            if order >= 2:
                h[2] = cos * a[2] - sin * a[1] ** 2
            if order >= 3:
                h[3] = cos * (a[3] - a[1] ** 3) - 3.0 * sin * a[1] * a[2]
        phi = h @ self._w_out
        phi[0] += self._b_out
        for n in range(1, order + 1):
            phi[n] *= two_over_T**n
        return phi


class TorchField:
    """Velocity and acceleration by forward-mode automatic differentiation."""

    def __init__(self, folded: FoldedField) -> None:
        layers, w_out, b_out = unfold(folded)
        self._layers = [
            (torch.from_numpy(w.copy()), torch.from_numpy(b.copy())) for w, b in layers
        ]
        self._w_out = torch.from_numpy(w_out.copy())
        self._b_out = torch.from_numpy(b_out.copy())

    def _phi(self, tau: torch.Tensor) -> torch.Tensor:
        h = tau.reshape(1)
        for weight, bias in self._layers:
            h = torch.sin(weight @ h + bias)
        return self._w_out @ h + self._b_out

    def jet(self, tau: float, two_over_T: float, order: int) -> FloatArray:
        """[order + 1, D]."""
        functions = [self._phi]
        one = torch.ones((), dtype=torch.float64)
        for _ in range(order):
            below = functions[-1]
            functions.append(
                lambda x, below=below: torch.func.jvp(below, (x,), (one,))[1]  # type: ignore[misc]
            )
        at = torch.tensor(tau, dtype=torch.float64)
        rows = [f(at).numpy() * two_over_T**n for n, f in enumerate(functions)]
        return np.stack(rows)


class PlainTick:
    """Reference, law, inverse dynamics, limits and finite checks in numpy; pinocchio's RNEA.

    One field, no blend, no ladder: less than the controller does, so the comparison favours it.
    """

    def __init__(
        self, controller: ImpedanceController, reference: ActionField,
        field: NumpyField | TorchField,
    ) -> None:
        arm = controller.arm
        self._model = arm.pinocchio_model
        self._data = self._model.createData()
        self._field, self._start, self._horizon = field, reference.start_s, reference.horizon_s
        jp = controller._jp
        self._kp, self._kd = jp[k.JP_KP].copy(), jp[k.JP_KD].copy()
        self._torque, self._torque_rate = jp[k.JP_TORQUE].copy(), jp[k.JP_TORQUE_RATE].copy()
        self._coulomb, self._viscous = jp[k.JP_COULOMB].copy(), jp[k.JP_VISCOUS].copy()
        self._velocity, self._tracking = jp[k.JP_VELOCITY].copy(), jp[k.JP_TRACKING].copy()
        self._armature = jp[k.JP_ARMATURE].copy()
        self._cf = controller._cf.copy()
        self._n = arm.n
        self.tau = arm.gravity_torque(arm.config.home_rad)
        self._last, self._q = reference.start_s, arm.config.home_rad.copy()

    def tick(self, t: float, q: FloatArray, dq: FloatArray) -> FloatArray:
        cf, n = self._cf, self._n
        dt = t - self._last
        self._last = t
        if not (np.isfinite(q).all() and np.isfinite(dq).all()):
            raise ValueError("state is not finite")
        if np.any(np.abs(q - self._q) > 2.0 * self._velocity * dt + cf[k.CF_JUMP_MARGIN]):
            raise ValueError("state jumped")
        if np.any(np.abs(dq) > cf[k.CF_OVERSPEED_RATIO] * self._velocity):
            raise ValueError("overspeed")
        self._q = q.copy()
        rate = 2.0 / self._horizon
        jet = self._field.jet((t - self._start) * rate - 1.0, rate, 2)
        if not np.isfinite(jet).all():
            raise ValueError("reference is not finite")
        q_ref, dq_ref, ddq_ref = jet[0, :n], jet[1, :n], jet[2, :n]
        error = q_ref - q
        if np.any(np.abs(error) > self._tracking):
            raise ValueError("tracking error")
        torque = pinocchio.rnea(self._model, self._data, q, dq, ddq_ref)
        tau = (
            self._kp * error + self._kd * (dq_ref - dq) + torque + self._armature * ddq_ref
            + cf[k.CF_FRICTION_SCALE] * (
                self._coulomb * np.tanh(dq_ref / cf[k.CF_COULOMB_SPEED]) + self._viscous * dq_ref
            )
        )
        if not np.isfinite(tau).all():
            raise ValueError("torque is not finite")
        step = self._torque_rate * min(dt, cf[k.CF_DT_MAX])
        tau = np.clip(tau, self.tau - step, self.tau + step)
        self.tau = np.clip(tau, -self._torque, self._torque)
        return self.tau
