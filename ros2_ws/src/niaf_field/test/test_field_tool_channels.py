"""Channels that move a tool: what the anchor does to positions and to rotations."""

import numpy as np
import pytest

from niaf_field import (
    Channel,
    ChannelError,
    additive_mask,
    anchor_rotation,
    check_channels,
    field_from_message,
    fold,
    fold_prior,
    initial_prior,
    make_field_message,
    relative_mask,
)

ANCHOR = np.array([0.4, 0.1, 0.3, 2.9, -0.2, 0.5, 0.07])


def tool_channels(semantics="relative"):
    return [
        *(Channel(n, "m", "cartesian_position", semantics, 0.01, 0.1) for n in "xyz"),
        *(Channel(f"r{n}", "rad", "cartesian_rotation", semantics, 0.02, 0.3) for n in "xyz"),
        Channel("gripper", "m", "gripper", "absolute", 0.04, 0.02),
    ]


def tool_prior(semantics="relative"):
    return initial_prior(
        tool_channels(semantics), sine_layers=2, width=8, omega0=3.0, horizon_s=1.0, seed=4)


def test_positions_take_the_anchor_and_rotations_do_not():
    prior = tool_prior()
    here, origin = fold_prior(prior, ANCHOR), fold_prior(prior, np.zeros(7))
    shift = here.weights[-7:] - origin.weights[-7:]
    np.testing.assert_allclose(shift, [*ANCHOR[:3], 0.0, 0.0, 0.0, 0.0], atol=1e-15)
    np.testing.assert_array_equal(here.weights[:-7], origin.weights[:-7])
    assert here.anchor_rotation_rad == tuple(ANCHOR[3:6])


def test_absolute_rotations_turn_the_identity():
    assert fold_prior(tool_prior("absolute"), ANCHOR).anchor_rotation_rad == (0.0, 0.0, 0.0)


def test_a_message_carries_the_orientation_in_its_anchor():
    prior = tool_prior()
    gamma, beta = prior.layout.zeros()
    message = make_field_message(prior, gamma, beta, ANCHOR, stamp_s=1.0, sequence=1)
    field = field_from_message(message, prior)
    assert field.folded.anchor_rotation_rad == tuple(ANCHOR[3:6])
    np.testing.assert_array_equal(
        field.folded.weights, fold(prior, gamma, beta, ANCHOR).weights)


def test_masks_tell_relative_from_added():
    channels = tool_channels()
    np.testing.assert_array_equal(relative_mask(channels), [True] * 6 + [False])
    np.testing.assert_array_equal(additive_mask(channels), [True] * 3 + [False] * 4)
    assert anchor_rotation(channels[:3], ANCHOR[:3]) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("order", [("rx", "ry"), ("rx", "rz", "ry"), ("a", "b", "c")])
def test_a_rotation_vector_has_three_components_in_order(order):
    channels = [Channel(n, "rad", "cartesian_rotation", "relative") for n in order]
    with pytest.raises(ChannelError, match="rx, ry, rz in this order"):
        check_channels(channels)


def test_a_rotation_vector_is_relative_or_absolute_as_a_whole():
    kinds = zip(("rx", "ry", "rz"), ("relative", "absolute", "relative"), strict=True)
    with pytest.raises(ChannelError, match="all relative or all absolute"):
        check_channels([Channel(n, "rad", "cartesian_rotation", s) for n, s in kinds])
