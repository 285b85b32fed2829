"""Layout of gamma and beta: how flat modulation vectors map onto the sine layers.

gamma is laid out layer by layer, row-major. ``full``: the shape of each weight matrix, so H numbers
for the first layer (H x 1) and H*H for each later one. ``row``: one factor per row, H per layer.
beta is H per layer. The output layer is not modulated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from niaf_field.errors import ModulationError

FULL = "full"
ROW = "row"
GAMMA_KINDS = (FULL, ROW)


@dataclass(frozen=True)
class ModulationLayout:
    """Shapes of gamma and beta for L sine layers of width H."""

    sine_layers: int
    width: int
    gamma_kind: str

    def __post_init__(self) -> None:
        if self.sine_layers < 1 or self.width < 1:
            raise ModulationError(
                f"need at least one sine layer of width one, got L={self.sine_layers}, "
                f"H={self.width}"
            )
        if self.gamma_kind not in GAMMA_KINDS:
            raise ModulationError(
                f"gamma_kind {self.gamma_kind!r} is unknown; use one of {', '.join(GAMMA_KINDS)}"
            )

    @property
    def weight_shapes(self) -> tuple[tuple[int, int], ...]:
        """(rows, columns) of W_1..W_L."""
        first = (self.width, 1)
        return (first,) + ((self.width, self.width),) * (self.sine_layers - 1)

    @property
    def gamma_lengths(self) -> tuple[int, ...]:
        """Numbers of gamma per sine layer."""
        if self.gamma_kind == ROW:
            return (self.width,) * self.sine_layers
        return tuple(rows * columns for rows, columns in self.weight_shapes)

    @property
    def gamma_length(self) -> int:
        return sum(self.gamma_lengths)

    @property
    def beta_length(self) -> int:
        return self.width * self.sine_layers

    def split_gamma(self, gamma: ArrayLike) -> tuple[NDArray[np.float64], ...]:
        """Per layer a float64 array that broadcasts against W_l: [H, 1 or H] (full) or [H, 1]."""
        flat = self.check_gamma(gamma)
        parts = []
        offset = 0
        for shape, length in zip(self.weight_shapes, self.gamma_lengths, strict=True):
            part = flat[offset : offset + length]
            parts.append(part.reshape(shape) if self.gamma_kind == FULL else part[:, None])
            offset += length
        return tuple(parts)

    def split_beta(self, beta: ArrayLike) -> NDArray[np.float64]:
        """beta as [L, H]."""
        return self.check_beta(beta).reshape(self.sine_layers, self.width)

    def check_gamma(self, gamma: ArrayLike) -> NDArray[np.float64]:
        """gamma as a flat finite float64 vector of the right length."""
        return _checked_vector("gamma", gamma, self.gamma_length, self._where())

    def check_beta(self, beta: ArrayLike) -> NDArray[np.float64]:
        """beta as a flat finite float64 vector of the right length."""
        return _checked_vector("beta", beta, self.beta_length, self._where())

    def zeros(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(gamma, beta) that leave the prior unchanged."""
        return (
            np.zeros(self.gamma_length, dtype=np.float32),
            np.zeros(self.beta_length, dtype=np.float32),
        )

    def _where(self) -> str:
        return f"L={self.sine_layers}, H={self.width}, gamma_kind={self.gamma_kind!r}"


def _checked_vector(name: str, values: ArrayLike, length: int, where: str) -> NDArray[np.float64]:
    vector = np.asarray(values, dtype=np.float64)
    if vector.shape != (length,):
        raise ModulationError(
            f"{name} has shape {vector.shape}, the prior ({where}) needs ({length},); was it made "
            "for another prior?"
        )
    if not np.isfinite(vector).all():
        index = int(np.flatnonzero(~np.isfinite(vector))[0])
        raise ModulationError(
            f"{name}[{index}] is {vector[index]}; every modulation value must be finite"
        )
    return vector
