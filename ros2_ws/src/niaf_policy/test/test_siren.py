"""The sine network in torch: against float64 autograd and against niaf_field."""

from __future__ import annotations

import numpy as np
import policy_support
import pytest
import torch

from niaf_field import ActionField, fold
from niaf_policy.checkpoint import export_prior
from niaf_policy.siren import ModulationHeads, SirenPrior, sample_grid


def modulated_prior(gamma_kind: str) -> tuple[SirenPrior, torch.Tensor, torch.Tensor]:
    """(prior, gamma [2, *], beta [2, *]), float64."""
    torch.manual_seed(3)
    prior = SirenPrior(layers=3, width=6, channels=2, omega0=5.0, gamma=gamma_kind).double()
    gamma = 0.3 * torch.randn(2, sum(prior.gamma_sizes()), dtype=torch.float64)
    return prior, gamma, 0.3 * torch.randn(2, 18, dtype=torch.float64)


def plain_field(
    prior: SirenPrior, gamma: torch.Tensor, beta: torch.Tensor, tau: torch.Tensor
) -> torch.Tensor:
    """Phi of one observation as written on paper: tau [] -> [D]."""
    h, start, width = tau.reshape(1), 0, prior.width
    for i, (weight, bias) in enumerate(zip(prior.weights, prior.biases, strict=True)):
        size = prior.gamma_sizes()[i]
        part = gamma[start : start + size]
        start += size
        factor = part.reshape(width, 1) if prior.gamma_kind == "row" else part.reshape(weight.shape)
        shifted = bias + beta[i * width : (i + 1) * width]
        h = torch.sin(prior.omega0 * ((weight * (1 + factor)) @ h + shifted))
    return prior.w_out @ h + prior.b_out


@pytest.mark.parametrize("gamma_kind", ["full", "row"])
def test_jets_equal_float64_autograd_through_order_three(gamma_kind: str) -> None:
    prior, gamma, beta = modulated_prior(gamma_kind)
    grid = torch.tensor([-1.0, -0.3, 0.4, 1.0], dtype=torch.float64)
    jets = prior.jets(gamma, beta, grid, 3)
    assert jets.shape == (2, 4, 4, 2)
    for b in range(2):
        for k, value in enumerate(grid):
            for d in range(2):
                tau = value.clone().requires_grad_(True)
                wanted = plain_field(prior, gamma[b], beta[b], tau)[d]
                for order in range(4):
                    torch.testing.assert_close(jets[b, order, k, d], wanted, rtol=1e-10, atol=1e-10)
                    if order < 3:
                        (wanted,) = torch.autograd.grad(wanted, tau, create_graph=True)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_lower_orders_agree_with_order_three(order: int) -> None:
    prior, gamma, beta = modulated_prior("full")
    grid = sample_grid(5).double()
    full = prior.jets(gamma, beta, grid, 3)
    torch.testing.assert_close(prior.jets(gamma, beta, grid, order), full[:, : order + 1])


@pytest.mark.parametrize("gamma_kind", ["full", "row"])
def test_torch_and_niaf_field_evaluate_the_same_field(gamma_kind: str) -> None:
    torch.manual_seed(4)
    normalization = policy_support.normalization()
    siren = SirenPrior(layers=2, width=16, channels=8, omega0=8.0, gamma=gamma_kind)
    gamma = 0.2 * torch.randn(1, sum(siren.gamma_sizes()))
    beta = 0.2 * torch.randn(1, 32)
    prior = export_prior(siren, normalization)
    anchor = np.array([0.1, 0.2, 0.3, -0.4, 0.5, -0.6, 0.7, 0.0])
    folded = fold(prior, gamma[0].numpy(), beta[0].numpy(), anchor)
    horizon = normalization.horizon_s
    field = ActionField(folded, 2.0, horizon, 1, 2.0, prior.prior_id)
    times = np.linspace(2.0, 2.0 + horizon, 7)
    with torch.no_grad():
        jets = siren.jets(gamma, beta, sample_grid(7), 3)[0].numpy().astype(float)
    wanted = jets * np.array(normalization.action_scale)
    wanted *= (2.0 / horizon) ** np.arange(4)[:, None, None]
    wanted[0] += np.array(normalization.action_mean) + anchor
    got = field.batch(times, 3).transpose(1, 0, 2)
    for order in range(4):
        scale = np.abs(wanted[order]).max()
        np.testing.assert_allclose(got[order], wanted[order], atol=2e-5 * scale)


@pytest.mark.parametrize("gamma_kind", ["full", "row"])
def test_zero_heads_give_the_prior(gamma_kind: str) -> None:
    prior = SirenPrior(layers=2, width=8, channels=3, omega0=6.0, gamma=gamma_kind)
    heads = ModulationHeads(prior, groups=4, width=10)
    gamma, beta = heads(torch.randn(5, heads.queries, 10))
    assert gamma.shape == (5, sum(prior.gamma_sizes()))
    assert beta.shape == (5, 16)
    assert not gamma.any()
    assert not beta.any()
    tau = torch.tensor([0.2])
    h = tau.reshape(1)
    for weight, bias in zip(prior.weights, prior.biases, strict=True):
        h = torch.sin(6.0 * (weight @ h + bias))
    torch.testing.assert_close(
        prior.jets(gamma[:1], beta[:1], tau, 0)[0, 0, 0], prior.w_out @ h + prior.b_out
    )


def test_each_group_of_gamma_comes_from_its_own_token() -> None:
    prior = SirenPrior(layers=2, width=8, channels=3, omega0=6.0)
    heads = ModulationHeads(prior, groups=4, width=10)
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.normal_()
    z = torch.randn(1, heads.queries, 10)
    gamma, beta = heads(z)
    moved = z.clone()
    moved[0, 5 + 1] += 1.0  # second layer (5 tokens each), second group
    changed_gamma, changed_beta = heads(moved)
    changed = (gamma != changed_gamma)[0].nonzero().flatten()
    first_layer, share = 8, 64 // 4
    assert changed.min() == first_layer + share
    assert changed.max() == first_layer + 2 * share - 1
    assert torch.equal(beta, changed_beta)


def test_bad_sizes_are_refused() -> None:
    prior = SirenPrior(layers=1, width=6, channels=1, omega0=6.0, gamma="row")
    with pytest.raises(ValueError, match="4 groups do not divide"):
        ModulationHeads(prior, groups=4, width=3)
    with pytest.raises(ValueError, match="order 4"):
        prior.jets(torch.zeros(1, 6), torch.zeros(1, 6), sample_grid(2), 4)
    with pytest.raises(ValueError, match="gamma 'half'"):
        SirenPrior(layers=1, width=6, channels=1, omega0=6.0, gamma="half")
