"""Fold prior, modulation and anchor into one flat buffer that the jet kernel reads.

Layout (float64): W_1 [H], b_1 [H], then for l = 2..L W_l [H*H] row-major and b_l [H], then
W_out [D*H] row-major, b_out [D]. omega0 is multiplied into the sine layers; scale, mean and (for
relative channels) the anchor are folded into the output layer, so kernels give physical units. The
anchor of rotation channels cannot be added: it goes beside the weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from niaf_field.channels import additive_mask, anchor_rotation
from niaf_field.errors import ModulationError
from niaf_field.prior import Prior

_CACHE_LINE_BYTES = 64


@dataclass(frozen=True, eq=False)
class FoldedField:
    """Weights of one action field, ready for ``siren_jets``.

    ``anchor_rotation_rad``: rotation vector of the orientation that the rotation channels turn, in
    base axes; zero without relative rotation channels.
    """

    weights: NDArray[np.float64]
    L: int
    H: int
    D: int
    anchor_rotation_rad: tuple[float, float, float] = (0.0, 0.0, 0.0)


def folded_size(sine_layers: int, width: int, channels: int) -> int:
    """Length of the flat buffer."""
    return 2 * width + (sine_layers - 1) * (width * width + width) + channels * width + channels


def aligned_empty(size: int) -> NDArray[np.float64]:
    """An uninitialised float64 vector that starts on a cache line (full-speed vector loads)."""
    raw = np.empty(size + _CACHE_LINE_BYTES // 8, dtype=np.float64)
    skip = (-raw.ctypes.data % _CACHE_LINE_BYTES) // 8
    return raw[skip : skip + size]


def fold(prior: Prior, gamma: ArrayLike, beta: ArrayLike, anchor: ArrayLike) -> FoldedField:
    """One action field: W (1 + gamma), b + beta, omega0, normalisation and anchor in one buffer.

    gamma [prior.gamma_length] and beta [prior.beta_length] dimensionless; anchor [D] in channel
    units. The anchor of an absolute channel has no meaning and is not used; that of relative
    rotation channels is kept as ``anchor_rotation_rad``.
    """
    gammas = prior.layout.split_gamma(gamma)
    betas = prior.layout.split_beta(beta)
    anchor_values = _checked_anchor(prior, anchor)
    width = prior.H
    flat = aligned_empty(folded_size(prior.L, width, prior.D))
    offset = 0
    for weight, bias, gamma_l, beta_l in zip(
        prior.weights, prior.biases, gammas, betas, strict=True
    ):
        end = offset + weight.size
        target = flat[offset:end].reshape(weight.shape)
        np.add(gamma_l, 1.0, out=target)
        target *= weight
        target *= prior.omega0
        flat[end : end + width] = prior.omega0 * (bias.astype(np.float64) + beta_l)
        offset = end + width
    scale = np.array([channel.scale for channel in prior.channels])
    mean = np.array([channel.mean for channel in prior.channels])
    end = offset + prior.w_out.size
    flat[offset:end] = (scale[:, None] * prior.w_out).ravel()
    shift = mean + np.where(additive_mask(prior.channels), anchor_values, 0.0)
    flat[end:] = scale * prior.b_out + shift
    return FoldedField(
        flat, prior.L, prior.H, prior.D, anchor_rotation(prior.channels, anchor_values)
    )


def fold_prior(prior: Prior, anchor: ArrayLike) -> FoldedField:
    """The prior itself as a field: modulation zero."""
    gamma, beta = prior.layout.zeros()
    return fold(prior, gamma, beta, anchor)


def _checked_anchor(prior: Prior, anchor: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(anchor, dtype=np.float64)
    if values.shape != (prior.D,):
        raise ModulationError(
            f"anchor has shape {values.shape}, the prior has {prior.D} channels "
            f"({', '.join(channel.name for channel in prior.channels)})"
        )
    if not np.isfinite(values).all():
        index = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ModulationError(
            f"anchor of channel {prior.channels[index].name!r} is {values[index]}; it must be "
            "finite"
        )
    return values
