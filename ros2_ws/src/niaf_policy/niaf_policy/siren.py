"""The shared sine network, its modulation and its jets, in torch.

h_0 = tau;  a_l = omega0 (W_l * (1 + gamma_l) h_{l-1} + b_l + beta_l);  h_l = sin a_l
Phi = W_out h_L + b_out        (the output layer is not modulated)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class SirenPrior(nn.Module):
    """Weights shared by all observations; standard SIREN initialisation."""

    def __init__(
        self, *, layers: int, width: int, channels: int, omega0: float, gamma: str = "full"
    ) -> None:
        super().__init__()
        if gamma not in ("full", "row"):
            raise ValueError(f"gamma '{gamma}' is unknown; use 'full' or 'row'")
        self.layers, self.width, self.channels = layers, width, channels
        self.omega0, self.gamma_kind = float(omega0), gamma
        weights, biases = [], []
        for i in range(layers):
            fan_in = 1 if i == 0 else width
            bound = 1.0 / fan_in if i == 0 else math.sqrt(6.0 / fan_in) / omega0
            weights.append(nn.Parameter(torch.empty(width, fan_in).uniform_(-bound, bound)))
            limit = 1.0 / math.sqrt(fan_in)
            biases.append(nn.Parameter(torch.empty(width).uniform_(-limit, limit)))
        self.weights = nn.ParameterList(weights)
        self.biases = nn.ParameterList(biases)
        bound = math.sqrt(6.0 / width) / omega0
        self.w_out = nn.Parameter(torch.empty(channels, width).uniform_(-bound, bound))
        self.b_out = nn.Parameter(torch.zeros(channels))

    def gamma_sizes(self) -> list[int]:
        """Number of gamma values of each layer."""
        if self.gamma_kind == "row":
            return [self.width] * self.layers
        return [w.numel() for w in self.weights]

    def modulated(self, gamma: Tensor, beta: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """gamma [B, gamma_length], beta [B, L*H] -> per layer W^ [B, H, in] and b^ [B, H]."""
        weights, biases, start = [], [], 0
        for i, size in enumerate(self.gamma_sizes()):
            part = gamma[:, start : start + size]
            start += size
            rows = self.gamma_kind == "row"
            shape = (-1, self.width, 1) if rows else (-1, *self.weights[i].shape)
            weights.append(self.weights[i] * (1.0 + part.reshape(shape)))
            biases.append(self.biases[i] + beta[:, i * self.width : (i + 1) * self.width])
        return weights, biases

    def jets(self, gamma: Tensor, beta: Tensor, tau: Tensor, order: int) -> Tensor:
        """Phi and its derivatives with respect to tau: [B, order + 1, K, D].

        tau [K] or [B, K]; order 0 to 3. All orders share one matrix product per layer.
        """
        if not 0 <= order <= 3:
            raise ValueError(f"order {order} is not offered; use 0 to 3")
        weights, biases = self.modulated(gamma, beta)
        batch = gamma.shape[0]
        grid = tau.expand(batch, -1) if tau.dim() == 1 else tau
        samples = grid.shape[1]
        h = [grid.unsqueeze(-1)]  # each [B, K, in]
        if order >= 1:
            h.append(torch.ones_like(h[0]))
        h += [torch.zeros_like(h[0]) for _ in range(order - 1)]
        for weight, bias in zip(weights, biases, strict=True):
            stacked = torch.cat(h, dim=1)  # [B, (order+1) K, in]
            a = self.omega0 * torch.matmul(stacked, weight.transpose(1, 2))
            a = a.view(batch, order + 1, samples, self.width)
            a0 = a[:, 0] + self.omega0 * bias.unsqueeze(1)
            sin = torch.sin(a0)
            h = [sin]
            if order >= 1:
                cos = torch.cos(a0)
                a1 = a[:, 1]
                h.append(cos * a1)
            if order >= 2:
                a2 = a[:, 2]
                h.append(-sin * a1 * a1 + cos * a2)
            if order >= 3:
                h.append(-cos * a1 * a1 * a1 - 3.0 * sin * a1 * a2 + cos * a[:, 3])
        out = torch.stack(h, dim=1) @ self.w_out.T  # [B, order+1, K, D]
        return torch.cat([out[:, :1] + self.b_out, out[:, 1:]], dim=1)


class ModulationHeads(nn.Module):
    """psi: decoder outputs Z [B, Q, d] -> gamma [B, gamma_length] and beta [B, L*H].

    Z is cut into L segments of G + 1 tokens. In a segment, token g of the first G gives, through
    its own linear map, one G-th of the layer's gamma; the last token gives beta. All maps start at
    zero, so that an untrained policy is the prior. The maps of a layer are one batched product.
    """

    def __init__(self, prior: SirenPrior, groups: int, width: int) -> None:
        super().__init__()
        self.groups, self.layers = groups, prior.layers
        for size in prior.gamma_sizes():
            if size % groups:
                raise ValueError(f"{groups} groups do not divide a layer of {size} gamma values")
        sizes = [size // groups for size in prior.gamma_sizes()]
        self.gamma_weight = nn.ParameterList(
            nn.Parameter(torch.zeros(groups, width, size)) for size in sizes
        )
        self.gamma_bias = nn.ParameterList(
            nn.Parameter(torch.zeros(groups, size)) for size in sizes
        )
        self.beta_weight = nn.Parameter(torch.zeros(prior.layers, width, prior.width))
        self.beta_bias = nn.Parameter(torch.zeros(prior.layers, prior.width))

    @property
    def queries(self) -> int:
        return self.layers * (self.groups + 1)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        batch = z.shape[0]
        segments = z.view(batch, self.layers, self.groups + 1, -1)
        gammas = []
        for i in range(self.layers):
            tokens = segments[:, i, : self.groups]  # [B, G, d]
            part = torch.einsum("bgd,gdn->bgn", tokens, self.gamma_weight[i]) + self.gamma_bias[i]
            gammas.append(part.reshape(batch, -1))  # concatenated over groups, row-major
        beta = torch.einsum("bld,ldh->blh", segments[:, :, self.groups], self.beta_weight)
        beta = beta + self.beta_bias
        return torch.cat(gammas, dim=1), beta.reshape(batch, -1)


def sample_grid(samples: int, device: torch.device | None = None) -> Tensor:
    """tau_k = -1 + 2k/(K-1), k = 0..K-1: [K]."""
    return torch.linspace(-1.0, 1.0, samples, device=device)
