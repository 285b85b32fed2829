"""The compiled kernel against float64 autograd, finite differences and the plain reference."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from niaf_field import (
    ActionField,
    FieldError,
    fold,
    fold_prior,
    reference_jets,
    siren_batch,
    siren_jets,
    siren_work_size,
    time_scale_jets,
)
from niaf_field.jets import _sin_cos_into

SHAPES = [
    # L, H, omega0, gamma kind; widths with and without a remainder modulo the kernel's blocks
    (1, 16, 30.0, "full"),
    (2, 7, 5.0, "row"),
    (3, 64, 10.0, "full"),
    (3, 33, 30.0, "row"),
    (4, 32, 15.0, "full"),
]


def autograd_jets(prior, gamma, beta, anchor, start_s, horizon_s, t_s):
    """[4, D] time derivatives straight from the definition: no folding, no chain rule of ours."""
    t = torch.tensor(t_s, dtype=torch.float64, requires_grad=True)
    h = (2.0 * (t - start_s) / horizon_s - 1.0).reshape(1)
    gammas = torch.split(torch.tensor(gamma, dtype=torch.float64), prior.layout.gamma_lengths)
    betas = torch.tensor(beta, dtype=torch.float64).reshape(prior.L, prior.H)
    for weight, bias, g, b in zip(prior.weights, prior.biases, gammas, betas, strict=True):
        w = torch.tensor(weight, dtype=torch.float64)
        g = g.reshape(w.shape) if prior.gamma_kind == "full" else g[:, None]
        h = torch.sin(
            prior.omega0 * ((w * (1 + g)) @ h + torch.tensor(bias, dtype=torch.float64) + b)
        )
    output = torch.tensor(prior.w_out, dtype=torch.float64) @ h
    output = output + torch.tensor(prior.b_out, dtype=torch.float64)
    result = np.zeros((4, prior.D))
    for d, channel in enumerate(prior.channels):
        value = channel.mean + channel.scale * output[d]
        if channel.semantics == "relative":
            value = value + anchor[d]
        for n in range(4):
            result[n, d] = value.item()
            if n < 3:
                (value,) = torch.autograd.grad(value, t, create_graph=True)
    return result


def kernel_jets(folded, tau, two_over_T, order):
    out = np.full((order + 1, folded.D), np.nan)
    work = np.full(siren_work_size(folded.H), np.nan)
    siren_jets(folded.weights, folded.L, folded.H, folded.D, tau, two_over_T, order, out, work)
    return out


def assert_jets_close(actual, expected, relative):
    """Each derivative within ``relative`` of the largest value of its order."""
    scale = np.abs(expected).max(axis=-1, keepdims=True)
    assert np.all(np.abs(actual - expected) <= relative * scale), (actual, expected)


@pytest.mark.parametrize(("L", "H", "omega0", "kind"), SHAPES)
@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_kernel_equals_autograd_through_third_order(
    make_prior, modulate, L, H, omega0, kind, order
):
    prior = make_prior(L, H, omega0, kind)
    gamma, beta, anchor = modulate(prior, 3)
    field = ActionField(fold(prior, gamma, beta, anchor), 5.0, 1.3, 1, 5.0, prior.prior_id)
    for t_s in (5.0, 5.41, 6.3):
        expected = autograd_jets(prior, gamma, beta, anchor, 5.0, 1.3, t_s)
        assert_jets_close(field.jet(t_s, order), expected[: order + 1], 1e-11)


@pytest.mark.parametrize(("L", "H", "omega0", "kind"), SHAPES)
@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_kernel_equals_reference_and_batch(make_folded, L, H, omega0, kind, order):
    folded = make_folded(1, L=L, H=H, omega0=omega0, kind=kind)
    taus = np.linspace(-1.0, 1.0, 9)
    batch = siren_batch(folded, taus, 2.0 / 1.3, order)
    assert batch.shape == (9, order + 1, folded.D)
    for k, tau in enumerate(taus):
        expected = reference_jets(folded, tau, 2.0 / 1.3, order)
        assert_jets_close(kernel_jets(folded, tau, 2.0 / 1.3, order), expected, 1e-12)
        assert_jets_close(batch[k], expected, 1e-12)


def test_each_derivative_is_the_finite_difference_of_the_one_below(make_field):
    field = make_field(2, L=3, H=32, omega0=6.0)
    step = 1e-5
    for t_s in (10.2, 10.65, 11.1):
        here = field.jet(t_s, 3)
        slope = (field.jet(t_s + step, 3) - field.jet(t_s - step, 3)) / (2.0 * step)
        assert_jets_close(slope[:3], here[1:], 1e-6)


def test_lower_orders_do_not_depend_on_the_order_asked(make_field):
    field = make_field(4, H=24)
    full = field.jet(10.7, 3)
    for order in range(3):
        assert_jets_close(field.jet(10.7, order), full[: order + 1], 1e-14)


def test_batch_equals_single_jets_inside_and_outside_the_horizon(make_field):
    field = make_field(5)
    times = np.linspace(field.start_s - 0.2, field.end_s + 0.2, 23)
    batch = field.batch(times, 2)
    assert np.array_equal(batch, np.stack([field.jet(t, 2) for t in times]))


def test_field_holds_its_ends_outside_the_horizon(make_field):
    field = make_field(6)
    before, after = field.jet(field.start_s - 1.0, 3), field.jet(field.end_s + 1.0, 3)
    np.testing.assert_allclose(before[0], field.jet(field.start_s, 0)[0], rtol=1e-14)
    np.testing.assert_allclose(after[0], field.jet(field.end_s, 0)[0], rtol=1e-14)
    assert not before[1:].any()
    assert not after[1:].any()
    assert field.jet(field.end_s, 1)[1].any(), "the end instant itself still moves"


def test_order_outside_the_kernel_is_refused(make_field):
    with pytest.raises(FieldError, match="between 0 and 3, got 4"):
        make_field().jet(10.0, 4)


def test_nan_time_gives_nan_not_a_number_that_looks_valid(make_field):
    assert np.isnan(make_field().jet(float("nan"), 3)).all()


def test_sine_and_cosine_are_within_two_ulp_of_the_library():
    random = np.random.default_rng(0)
    quarter_turns = np.arange(-40, 41) * (np.pi / 4.0)
    angles = np.concatenate(
        [np.linspace(-60.0, 60.0, 20001), random.uniform(-1e6, 1e6, 20001), quarter_turns]
    )
    sine, cosine = np.empty_like(angles), np.empty_like(angles)
    _sin_cos_into(angles, sine, cosine)
    assert np.abs(sine - np.sin(angles)).max() < 3e-16
    assert np.abs(cosine - np.cos(angles)).max() < 3e-16


def test_huge_and_non_finite_angles_keep_library_behaviour():
    angles = np.array([3.0e7, -1.0e15, np.inf, -np.inf, np.nan, 0.5])
    sine, cosine = np.empty_like(angles), np.empty_like(angles)
    _sin_cos_into(angles, sine, cosine)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(np.isnan(sine), np.isnan(np.sin(angles)))
        np.testing.assert_allclose(sine, np.sin(angles), atol=3e-16)
        np.testing.assert_allclose(cosine, np.cos(angles), atol=3e-16)


def test_nan_weight_reaches_the_output(make_folded):
    folded = make_folded()
    folded.weights[3] = np.nan
    assert np.isnan(kernel_jets(folded, 0.1, 1.0, 2)).all()


def test_horizon_scales_derivatives_by_powers_of_two_over_T(make_prior):
    prior = make_prior()
    folded = fold_prior(prior, np.zeros(prior.D))
    unit = kernel_jets(folded, 0.3, 1.0, 3)
    scaled = kernel_jets(folded, 0.3, 2.5, 3)
    assert_jets_close(scaled, unit * 2.5 ** np.arange(4)[:, None], 1e-14)


@settings(max_examples=40, deadline=None)
@given(
    sigma0=st.floats(10.3, 10.9),
    rate=st.floats(0.05, 1.0),
    acceleration=st.floats(-0.5, 0.5),
    jerk=st.floats(-1.0, 1.0),
)
def test_time_scaling_equals_finite_differences_of_the_composition(
    make_field, sigma0, rate, acceleration, jerk
):
    field = make_field(7, H=16, omega0=4.0)

    def composed(t, order):
        sigma = sigma0 + rate * t + acceleration * t**2 / 2.0 + jerk * t**3 / 6.0
        first = rate + acceleration * t + jerk * t**2 / 2.0
        out = np.empty((order + 1, field.D))
        time_scale_jets(field.jet(sigma, order), first, acceleration + jerk * t, jerk, out)
        return out

    step = 1e-4
    slope = (composed(step, 3) - composed(-step, 3)) / (2.0 * step)
    expected = composed(0.0, 3)
    scale = np.abs(field.jet(sigma0, 3)).max(axis=1, keepdims=True)[1:]
    assert np.all(np.abs(slope[:3] - expected[1:]) <= 1e-5 * scale)


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_time_scaling_at_unit_rate_is_the_identity_and_works_in_place(make_field, order):
    jets = make_field(8).jet(10.5, order)
    out = jets.copy()
    time_scale_jets(out, 1.0, 0.0, 0.0, out)
    np.testing.assert_array_equal(out, jets)
    stopped = jets.copy()
    time_scale_jets(stopped, 0.0, 0.0, 0.0, stopped)
    np.testing.assert_array_equal(stopped[0], jets[0])
    assert not stopped[1:].any()


def test_kernel_beats_plain_numpy_by_far(make_folded):
    """A ratio, not a time: losing vectorisation or specialisation shows up on any machine."""
    folded = make_folded(L=3, H=64)
    out, work = np.empty((3, folded.D)), np.empty(siren_work_size(folded.H))

    def fastest_s(call):
        times = []
        for _ in range(200):
            begin = time.perf_counter()
            call()
            times.append(time.perf_counter() - begin)
        return min(times)

    kernel_s = fastest_s(
        lambda: siren_jets(folded.weights, 3, 64, folded.D, 0.1, 2.0, 2, out, work)
    )
    numpy_s = fastest_s(lambda: siren_batch(folded, [0.1], 2.0, 2))
    assert numpy_s > 3.0 * kernel_s
