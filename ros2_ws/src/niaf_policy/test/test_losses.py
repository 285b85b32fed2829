"""Losses in physical units against hand computation."""

from __future__ import annotations

import math

import policy_support
import pytest
import torch

from niaf_policy.config import LossConfig
from niaf_policy.losses import (
    LossScales,
    action_losses,
    auxiliary_loss,
    jet_order,
    time_weights,
    total_loss,
)

SCALES = LossScales(
    horizon_s=0.5,
    action_mean=torch.tensor([0.1, -0.2, 0.04]),
    action_scale=torch.tensor([0.2, 0.4, 0.01]),
    velocity_scale=torch.tensor([0.5, 2.0]),
    object_mean=torch.tensor([0.1, 0.2, 0.3]),
    object_std=torch.tensor([0.2, 0.2, 0.5]),
)
BATCH, SAMPLES, JOINTS = 2, 3, 2


def example() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g)

    return {
        "jets": draw(BATCH, 4, SAMPLES, 3),
        "anchor": draw(BATCH, 3),
        "action": draw(BATCH, SAMPLES, 3),
        "velocity": draw(BATCH, SAMPLES, JOINTS),
        "action_is_pad": torch.tensor([[False, False, True], [False, True, True]]),
    }


def by_hand(config: LossConfig) -> dict[str, float]:
    """The same with plain loops."""
    e = example()
    scale, mean = SCALES.action_scale.tolist(), SCALES.action_mean.tolist()
    rate = 2.0 / SCALES.horizon_s
    sums = {"position": 0.0, "velocity": 0.0, "jerk": 0.0}
    weights = dict.fromkeys(sums, 0.0)
    w = [1.0] * SAMPLES
    if config.time_constant_s > 0:
        w = [math.exp(-k * 0.25 / config.time_constant_s) for k in range(SAMPLES)]
        w = [x / (sum(w) / SAMPLES) for x in w]
    for b in range(BATCH):
        for k in range(SAMPLES):
            if e["action_is_pad"][b, k]:
                continue
            for d in range(3):
                # rad: what the field says minus what it should say, in units of the channel scale
                said = e["jets"][b, 0, k, d].item() * scale[d] + mean[d] + e["anchor"][b, d].item()
                error = (said - e["action"][b, k, d].item()) / scale[d]
                share = w[k] * (config.gripper if d == JOINTS else 1.0)
                sums["position"] += share * error**2
                weights["position"] += share
            for d in range(JOINTS):
                speed = e["jets"][b, 1, k, d].item() * scale[d] * rate  # rad/s
                error = (speed - e["velocity"][b, k, d].item()) / SCALES.velocity_scale[d].item()
                sums["velocity"] += w[k] * error**2
                weights["velocity"] += w[k]
                jerk = e["jets"][b, 3, k, d].item() * scale[d] * rate**3  # rad/s^3
                sums["jerk"] += jerk**2
                weights["jerk"] += 1.0
    return {name: sums[name] / weights[name] for name in sums}


@pytest.mark.parametrize(
    "config",
    [LossConfig(), LossConfig(gripper=3.0, time_constant_s=0.3)],
    ids=["plain", "weighted"],
)
def test_terms_equal_hand_computation_with_padding(config: LossConfig) -> None:
    terms = action_losses(**example(), scales=SCALES, config=config)
    wanted = by_hand(config)
    assert set(terms) == set(wanted)
    for name, value in wanted.items():
        assert terms[name].item() == pytest.approx(value, rel=1e-5), name


def test_padded_labels_do_not_matter() -> None:
    plain, spoilt = example(), example()
    spoilt["action"][0, 2] = 1e6
    spoilt["velocity"][1, 1:] = -1e6
    config = LossConfig()
    first = action_losses(**plain, scales=SCALES, config=config)
    second = action_losses(**spoilt, scales=SCALES, config=config)
    assert {k: v.item() for k, v in first.items()} == {k: v.item() for k, v in second.items()}


def test_a_batch_of_padding_alone_is_zero_not_nan() -> None:
    e = example()
    e["action_is_pad"][:] = True
    terms = action_losses(**e, scales=SCALES, config=LossConfig())
    assert [v.item() for v in terms.values()] == [0.0] * 3


def test_terms_without_weight_are_left_out() -> None:
    config = LossConfig(velocity=0.0, jerk=0.0)
    assert jet_order(config) == 0
    assert set(action_losses(**example(), scales=SCALES, config=config)) == {"position"}
    assert jet_order(LossConfig(jerk=0.0)) == 1
    assert jet_order(LossConfig()) == 3


def test_time_weights_have_mean_one() -> None:
    w = time_weights(11, 1.0, 0.4, torch.zeros(1))
    assert w.mean().item() == pytest.approx(1.0, abs=1e-6)
    assert (w[0] / w[-1]).item() == pytest.approx(math.exp(1.0 / 0.4), rel=1e-5)


def test_auxiliary_loss_reads_objects_and_the_named_one() -> None:
    objects = torch.tensor([[0.3, 0.2, 0.3], [0.1, 0.4, 0.8]])  # normalised (1,0,0) and (0,1,1)
    truth = torch.tensor([[[1.0, 0.0, 0.0]], [[0.0, 1.0, 1.0]]])
    # one object, one answer for the named one from the encoder, two from the decoder
    predicted = torch.cat([truth, truth + 1.0, truth + 2.0, truth + 4.0], dim=1)
    named = torch.tensor([0, -1])  # the second instruction names nothing
    loss = auxiliary_loss(predicted, objects, named, SCALES)
    assert loss.item() == pytest.approx(0.0 + 1.0 + (4.0 + 16.0) / 2)


def test_total_is_the_weighted_sum() -> None:
    config = LossConfig(position=2.0, velocity=0.5, jerk=0.1, auxiliary=3.0)
    terms = {"position": torch.tensor(1.0), "jerk": torch.tensor(10.0),
             "auxiliary": torch.tensor(2.0)}
    assert total_loss(terms, config).item() == pytest.approx(2.0 + 1.0 + 6.0)


def test_scales_come_from_the_normalization() -> None:
    n = policy_support.normalization()
    scales = LossScales.of(n)
    assert scales.horizon_s == n.horizon_s
    assert scales.action_scale.tolist() == pytest.approx(n.action_scale)
    assert scales.velocity_scale.shape == (7,)
