"""Priors: folding, file round trip, content hash, refusal of damaged files."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from niaf_field import (
    Channel,
    ChannelError,
    ModulationError,
    ModulationLayout,
    PriorError,
    anchor_from_state,
    channel_index,
    fold,
    fold_prior,
    folded_size,
    initial_prior,
    load_prior,
    reference_jets,
    save_prior,
)


@pytest.mark.parametrize("kind", ["full", "row"])
def test_zero_modulation_is_the_prior(make_prior, kind):
    prior = make_prior(kind=kind)
    gamma, beta = prior.layout.zeros()
    anchor = np.array([0.5, 0.0, 0.0])
    h = np.array([0.25])
    for weight, bias in zip(prior.weights, prior.biases, strict=True):
        h = np.sin(prior.omega0 * (weight.astype(float) @ h + bias))
    raw = prior.w_out.astype(float) @ h + prior.b_out
    expected = [0.02 + 0.6 * raw[0] + 0.5, -0.4 + 1.7 * raw[1], 0.04 + 0.03 * raw[2]]
    for folded in (fold(prior, gamma, beta, anchor), fold_prior(prior, anchor)):
        assert folded.weights.shape == (folded_size(prior.L, prior.H, prior.D),)
        np.testing.assert_allclose(reference_jets(folded, 0.25, 1.0, 0)[0], expected, rtol=1e-12)


def test_row_gamma_equals_full_gamma_with_constant_rows(make_prior, modulate):
    row = make_prior(kind="row")
    full = replace(row, gamma_kind="full")
    gamma, beta, anchor = modulate(row)
    spread = [
        np.broadcast_to(part, shape).ravel()
        for part, shape in zip(row.layout.split_gamma(gamma), row.layout.weight_shapes, strict=True)
    ]
    a = fold(row, gamma, beta, anchor).weights
    b = fold(full, np.concatenate(spread), beta, anchor).weights
    np.testing.assert_array_equal(a, b)


def test_anchor_moves_relative_channels_only(make_prior):
    prior = make_prior()
    still = reference_jets(fold_prior(prior, np.zeros(3)), 0.1, 1.0, 3)
    moved = reference_jets(fold_prior(prior, np.ones(3)), 0.1, 1.0, 3)
    np.testing.assert_allclose(moved[0] - still[0], [1.0, 0.0, 0.0], atol=1e-15)
    np.testing.assert_array_equal(moved[1:], still[1:])


def test_layout_lengths_match_the_paper_shapes():
    full = ModulationLayout(3, 8, "full")
    row = ModulationLayout(3, 8, "row")
    assert (full.gamma_length, full.beta_length) == (8 + 64 + 64, 24)
    assert (row.gamma_length, row.beta_length) == (24, 24)


@pytest.mark.parametrize("name", ["gamma", "beta", "anchor"])
def test_fold_refuses_wrong_length_and_non_finite_values(make_prior, modulate, name):
    prior = make_prior()
    parts = dict(zip(("gamma", "beta", "anchor"), modulate(prior), strict=True))
    short = {**parts, name: parts[name][:-1]}
    with pytest.raises(ModulationError, match=f"{name} has shape"):
        fold(prior, **short)
    broken = {**parts, name: parts[name].copy()}
    broken[name][1] = np.nan
    with pytest.raises(ModulationError, match=r"(\[1\]|'elbow') is nan"):
        fold(prior, **broken)


@pytest.mark.parametrize("kind", ["full", "row"])
def test_save_and_load_keep_everything(make_prior, tmp_path, kind):
    prior = make_prior(kind=kind)
    path = tmp_path / "prior.safetensors"
    save_prior(prior, path)
    loaded = load_prior(path)
    assert loaded.prior_id == prior.prior_id
    assert loaded.channels == prior.channels
    assert loaded.limits == prior.limits
    assert (loaded.omega0, loaded.horizon_s, loaded.gamma_kind) == (8.0, 1.3, kind)
    for a, b in zip(loaded.weights + loaded.biases, prior.weights + prior.biases, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(loaded.w_out, prior.w_out)
    assert [p.name for p in tmp_path.iterdir()] == ["prior.safetensors"], "no temporary file left"


def test_prior_id_is_stable_and_hexadecimal(make_prior):
    assert make_prior().prior_id == make_prior().prior_id
    assert len(bytes.fromhex(make_prior().prior_id)) == 32


def _with_weight(prior, layer):
    weights = [w.copy() for w in prior.weights]
    weights[layer][0, 0] = np.nextafter(weights[layer][0, 0], np.float32(1.0))
    return replace(prior, weights=tuple(weights))


def _with_bias(prior):
    biases = [b.copy() for b in prior.biases]
    biases[-1][-1] += 1e-3
    return replace(prior, biases=tuple(biases))


def _with_channel(prior, **change):
    return replace(prior, channels=(replace(prior.channels[0], **change), *prior.channels[1:]))


@pytest.mark.parametrize(
    "change",
    [
        lambda p: _with_weight(p, 0),
        lambda p: _with_weight(p, 2),
        _with_bias,
        lambda p: replace(p, w_out=p.w_out * np.float32(1.5)),
        lambda p: replace(p, b_out=p.b_out + np.float32(0.1)),
        lambda p: replace(p, omega0=np.nextafter(p.omega0, 9.0)),
        lambda p: replace(p, horizon_s=1.31),
        lambda p: replace(p, limits={}),
        lambda p: _with_channel(p, name="wrist"),
        lambda p: _with_channel(p, unit="deg"),
        lambda p: _with_channel(p, kind="cartesian_position"),
        lambda p: _with_channel(p, semantics="absolute"),
        lambda p: _with_channel(p, mean=0.0200001),
        lambda p: _with_channel(p, scale=0.6000001),
        lambda p: replace(p, channels=p.channels[::-1]),
    ],
)
def test_any_change_changes_the_prior_id(make_prior, change):
    prior = make_prior()
    assert change(prior).prior_id != prior.prior_id


def test_gamma_kind_changes_the_prior_id(make_prior):
    row = make_prior(kind="row")
    assert replace(row, gamma_kind="full").prior_id != row.prior_id


def test_prior_arrays_cannot_be_changed(make_prior):
    with pytest.raises(ValueError, match="read-only"):
        make_prior().weights[0][0, 0] = 1.0


@pytest.mark.parametrize("damage", ["truncate", "flip", "text", "empty"])
def test_damaged_file_is_refused_by_name(make_prior, tmp_path, damage):
    path = tmp_path / "prior.safetensors"
    save_prior(make_prior(), path)
    data = bytearray(path.read_bytes())
    if damage == "truncate":
        data = data[: len(data) // 2]
    elif damage == "flip":
        data[-5] ^= 0x10
    elif damage == "text":
        data = bytearray(b"not a safetensors file at all")
    else:
        data = bytearray()
    path.write_bytes(bytes(data))
    with pytest.raises(PriorError, match=str(path)):
        load_prior(path)


def test_flipping_any_single_byte_is_noticed(make_prior, tmp_path):
    path = tmp_path / "prior.safetensors"
    save_prior(make_prior(H=4), path)
    original = path.read_bytes()
    for index in range(0, len(original), 7):
        data = bytearray(original)
        data[index] ^= 0x41
        path.write_bytes(bytes(data))
        with pytest.raises(PriorError, match="prior.safetensors"):
            load_prior(path)


def test_missing_file_and_foreign_safetensors_are_refused(tmp_path):
    with pytest.raises(PriorError, match="nowhere"):
        load_prior(tmp_path / "nowhere.safetensors")
    with pytest.raises(PriorError, match="not a file"):
        load_prior(tmp_path)
    foreign = tmp_path / "model.safetensors"
    save_file({"x": np.zeros(3, np.float32)}, str(foreign))
    with pytest.raises(PriorError, match="model.safetensors has format None"):
        load_prior(foreign)


def test_file_with_a_tensor_missing_names_it(make_prior, tmp_path):
    path = tmp_path / "prior.safetensors"
    save_prior(make_prior(), path)
    from safetensors import safe_open

    with safe_open(str(path), framework="numpy") as reader:
        metadata = reader.metadata()
    tensors = load_file(str(path))
    del tensors["sine.2.bias"]
    save_file(tensors, str(path), metadata=metadata)
    with pytest.raises(PriorError, match=r"sine\.2\.bias"):
        load_prior(path)


def test_save_into_a_missing_folder_is_a_prior_error(make_prior, tmp_path):
    with pytest.raises(PriorError, match="exists and is writable"):
        save_prior(make_prior(), tmp_path / "no" / "prior.safetensors")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"omega0": 0.0}, "omega0 must be finite and positive"),
        ({"horizon_s": float("nan")}, "horizon_s must be finite and positive"),
        ({"gamma_kind": "matrix"}, "gamma_kind 'matrix' is unknown"),
        ({"weights": ()}, "as many weight matrices as bias vectors"),
        ({"b_out": np.zeros(2)}, r"output.bias has shape \(2,\), expected \(3,\)"),
        ({"b_out": np.array([0.0, np.inf, 0.0])}, "output.bias holds values that are not finite"),
        ({"limits": {"position": [1, 2, 3]}}, "must end in _min or _max"),
        ({"limits": {"position_min": [1.0]}}, "needs 3 finite numbers"),
        ({"limits": {"x_min": [1, 0, 0], "x_max": [0, 1, 1]}}, "'x_min' is above 'x_max'"),
    ],
)
def test_malformed_prior_is_refused_with_the_reason(make_prior, change, text):
    with pytest.raises(PriorError, match=text):
        replace(make_prior(), **change)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"name": ""}, "non-empty string"),
        ({"kind": "wheel"}, "unknown kind 'wheel'"),
        ({"semantics": "delta"}, "unknown semantics 'delta'"),
        ({"scale": 0.0}, "scale must be finite and positive"),
        ({"mean": float("inf")}, "mean must be finite"),
    ],
)
def test_malformed_channel_is_refused_with_the_reason(channels, change, text):
    with pytest.raises(ChannelError, match=text):
        replace(channels[0], **change)


def test_channel_table_needs_unique_names(channels):
    with pytest.raises(ChannelError, match="repeat: elbow"):
        initial_prior([channels[1], channels[1]], sine_layers=1, width=4, omega0=1.0, horizon_s=1.0)
    with pytest.raises(ChannelError, match="the channels are: shoulder, elbow, gripper"):
        channel_index(channels, "knee")
    assert channel_index(channels, "gripper") == 2


def test_anchor_takes_measured_values_of_relative_channels_only(channels):
    np.testing.assert_array_equal(anchor_from_state(channels, [0.3, 0.4, 0.05]), [0.3, 0.0, 0.0])
    with pytest.raises(ChannelError, match=r"expected \(3,\)"):
        anchor_from_state(channels, [0.3])


def test_cartesian_channels_are_allowed():
    assert Channel("x", "m", "cartesian_position", "relative").kind == "cartesian_position"
