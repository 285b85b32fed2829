"""Readable numpy evaluation of an action field: the oracle of the compiled kernel, and batches.

Nothing here is fast; ``siren_batch`` is vectorised over instants, the rest is meant to be read.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from niaf_field.errors import FieldError
from niaf_field.fold import FoldedField

F64 = NDArray[np.float64]


def unfold(folded: FoldedField) -> tuple[list[tuple[F64, F64]], F64, F64]:
    """The flat buffer as ([(W_l, b_l)] for l = 1..L, W_out [D, H], b_out [D]); views, no copies."""
    H, D = folded.H, folded.D
    layers = []
    offset = 0
    for columns in [1] + [H] * (folded.L - 1):
        end = offset + H * columns
        weight = folded.weights[offset:end].reshape(H, columns)
        layers.append((weight, folded.weights[end : end + H]))
        offset = end + H
    end = offset + D * H
    return layers, folded.weights[offset:end].reshape(D, H), folded.weights[end:]


def reference_jets(folded: FoldedField, tau: float, two_over_T: float, order: int) -> F64:
    """[order + 1, D] physical derivatives at one tau, by the chain rule as written on paper."""
    _check_order(order)
    layers, w_out, b_out = unfold(folded)
    h = np.zeros((4, 1))
    h[0, 0] = tau
    h[1, 0] = 1.0
    for weight, bias in layers:
        a, a1, a2, a3 = (weight @ jet for jet in h)
        a = a + bias
        sin, cos = np.sin(a), np.cos(a)
        h = np.stack(
            [
                sin,
                cos * a1,
                -sin * a1**2 + cos * a2,
                -cos * a1**3 - 3.0 * sin * a1 * a2 + cos * a3,
            ]
        )
    phi = h @ w_out.T
    phi[0] += b_out
    return phi[: order + 1] * two_over_T ** np.arange(order + 1)[:, None]


def siren_batch(folded: FoldedField, taus: ArrayLike, two_over_T: float, order: int) -> F64:
    """[K, order + 1, D] physical derivatives at many taus [K], one matrix product per layer."""
    _check_order(order)
    layers, w_out, b_out = unfold(folded)
    tau = np.asarray(taus, dtype=np.float64)
    if tau.ndim != 1:
        raise FieldError(f"taus must be one-dimensional, got shape {tau.shape}")
    h = np.zeros((order + 1, tau.shape[0], 1))
    h[0, :, 0] = tau
    if order >= 1:
        h[1] = 1.0
    for weight, bias in layers:
        a = h @ weight.T
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
    phi = h @ w_out.T
    phi[0] += b_out
    phi *= (two_over_T ** np.arange(order + 1))[:, None, None]
    return np.ascontiguousarray(phi.transpose(1, 0, 2))


def _check_order(order: int) -> None:
    if not 0 <= order <= 3:
        raise FieldError(f"derivative order must be 0, 1, 2 or 3, got {order}")
