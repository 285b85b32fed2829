"""Training losses on the field's jets. Units: see LossConfig."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from niaf_policy.config import LossConfig
from niaf_policy.normalization import Normalization


@dataclass(frozen=True)
class LossScales:
    """Constants of the loss as tensors. D channels: A that move the arm, then the gripper."""

    horizon_s: float
    action_mean: Tensor  # [D]
    action_scale: Tensor  # [D]
    velocity_scale: Tensor  # [A]
    object_mean: Tensor  # [3M]
    object_std: Tensor  # [3M]

    @classmethod
    def of(cls, n: Normalization, device: torch.device | str = "cpu") -> LossScales:
        def tensor(values: tuple[float, ...]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device)

        return cls(
            n.horizon_s,
            tensor(n.action_mean),
            tensor(n.action_scale),
            tensor(n.velocity_scale),
            tensor(n.object_mean),
            tensor(n.object_std),
        )


def jet_order(config: LossConfig) -> int:
    """Highest derivative that the weights ask for."""
    if config.jerk > 0:
        return 3
    return 1 if config.velocity > 0 else 0


def time_weights(samples: int, horizon_s: float, time_constant_s: float, like: Tensor) -> Tensor:
    """Weight of each sample of a chunk, mean one: [K]."""
    if time_constant_s <= 0:
        return torch.ones(samples, device=like.device)
    t = torch.linspace(0.0, horizon_s, samples, device=like.device)
    w = torch.exp(-t / time_constant_s)
    return w / w.mean()


def _masked_mean(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights).sum() / weights.expand_as(values).sum().clamp_min(1e-6)


def action_losses(
    jets: Tensor,
    anchor: Tensor,
    action: Tensor,
    velocity: Tensor,
    action_is_pad: Tensor,
    scales: LossScales,
    config: LossConfig,
) -> dict[str, Tensor]:
    """Unweighted terms 'position', 'velocity', 'jerk' (each only if its weight is positive).

    jets [B, order+1, K, D] d^n Phi / d tau^n in network units; anchor [B, D]; action [B, K, D] in
    rad and m; velocity [B, K, A] measured, rad/s and m/s; action_is_pad [B, K].
    """
    joints = scales.velocity_scale.shape[0]
    samples = jets.shape[2]
    valid = (~action_is_pad).float().unsqueeze(-1)  # [B, K, 1]
    weight = time_weights(samples, scales.horizon_s, config.time_constant_s, jets)
    weight = valid * weight.view(1, -1, 1)
    channel = torch.ones_like(scales.action_mean)
    channel[joints:] = config.gripper
    target = (action - anchor.unsqueeze(1) - scales.action_mean) / scales.action_scale
    terms = {"position": _masked_mean((jets[:, 0] - target).square(), weight * channel)}
    rate = 2.0 / scales.horizon_s
    joint_scale = scales.action_scale[:joints]
    if config.velocity > 0:
        analytic = jets[:, 1, :, :joints] * (rate * joint_scale)  # rad/s
        error = (analytic - velocity) / scales.velocity_scale
        terms["velocity"] = _masked_mean(error.square(), weight)
    if config.jerk > 0:
        jerk = jets[:, 3, :, :joints] * (rate**3 * joint_scale)  # rad/s^3
        terms["jerk"] = _masked_mean(jerk.square(), valid)
    return terms


def auxiliary_loss(
    predicted: Tensor, objects: Tensor, target: Tensor, scales: LossScales
) -> Tensor:
    """Mean squared error of object positions in units of their standard deviation.

    predicted [B, M+1+Q, 3]: M objects, then answers for the named object (one from the encoder,
    one from each decoder output); objects [B, 3M] metres; target [B] index of the named object,
    -1: none.
    """
    truth = ((objects - scales.object_mean) / scales.object_std).view(len(objects), -1, 3)
    count = truth.shape[1]
    loss = (predicted[:, :count] - truth).square().mean()
    named = target >= 0
    if bool(named.any()):
        rows = torch.arange(len(objects), device=objects.device)[named]
        wanted = truth[rows, target[named]].unsqueeze(1)  # [named, 1, 3]
        loss = loss + (predicted[named, count : count + 1] - wanted).square().mean()
        if predicted.shape[1] > count + 1:
            loss = loss + (predicted[named, count + 1 :] - wanted).square().mean()
    return loss


def total_loss(terms: dict[str, Tensor], config: LossConfig) -> Tensor:
    """Weighted sum of the terms that are present."""
    weights = {
        "position": config.position,
        "velocity": config.velocity,
        "jerk": config.jerk,
        "auxiliary": config.auxiliary,
    }
    total = torch.zeros((), device=terms["position"].device)
    for name, value in terms.items():
        total = total + weights[name] * value
    return total
