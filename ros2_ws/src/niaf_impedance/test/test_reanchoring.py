"""Anchors from the controller's own record of measured poses."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from test_cartesian_control import make_tool_prior

from niaf_field import Channel
from niaf_impedance.reanchoring import (
    LARGEST_GAP_S,
    NoPoseError,
    PoseHistory,
    measured_anchor,
)
from niaf_impedance.tool_setup import tool_pose

AHEAD_S = 0.01


def line(history, stamps, slope=2.0):
    for t in stamps:
        history.add(t, np.array([slope * t, -slope * t]), 0.01 * t)


@given(st.lists(st.floats(1e-4, 0.05), min_size=20, max_size=60), st.floats(0.0, 1.0))
def test_a_pose_between_two_states_lies_on_the_line_between_them(steps, share):
    history = PoseHistory(3, 0.5, 20.0, 0.0)  # room for 12: the ring goes round
    stamps = np.cumsum(steps)
    line(history, stamps)
    t = stamps[-12] + share * (stamps[-1] - stamps[-12])
    np.testing.assert_allclose(history.at(t), [2.0 * t, -2.0 * t, 0.01 * t], atol=1e-12)


def test_what_was_not_measured_is_not_guessed():
    history = PoseHistory(3, 0.5, 100.0, AHEAD_S)
    with pytest.raises(NoPoseError, match="no joint state"):
        history.at(1.0)
    line(history, [1.0, 1.01, 1.01 + 2.0 * LARGEST_GAP_S])
    with pytest.raises(NoPoseError, match="too old"):
        history.at(0.999)
    with pytest.raises(NoPoseError, match=r"came for 0\.200 s"):
        history.at(1.02)
    newest = 1.01 + 2.0 * LARGEST_GAP_S
    with pytest.raises(NoPoseError, match="synchronised"):
        history.at(newest + 2.0 * AHEAD_S)
    assert history.at(newest + 0.5 * AHEAD_S)[0] == 2.0 * newest
    line(history, [0.5, 0.51])  # the clock was set back: nothing from before it is right
    assert history.at(0.505)[0] == pytest.approx(1.01)
    with pytest.raises(NoPoseError):
        history.at(newest)
    history.clear()
    with pytest.raises(NoPoseError):
        history.at(newest)


def test_relative_channels_get_the_measured_position_and_absolute_ones_nothing(arm, prior):
    q = arm.config.home_rad + 0.1
    semantics = [channel.semantics for channel in prior.channels]
    anchor = measured_anchor(prior, arm, q, 0.03)
    names = list(arm.joint_names)
    for value, channel, kind in zip(anchor, prior.channels, semantics, strict=True):
        if kind == "absolute":
            assert value == 0.0
        elif channel.name in names:
            assert value == q[names.index(channel.name)]
    assert "relative" in semantics

    gripper = arm.config.gripper.channel
    relative = tuple(
        Channel(c.name, c.unit, c.kind, "relative") if c.name == gripper else c
        for c in prior.channels
    )
    changed = dataclasses.replace(prior, channels=relative)
    column = [c.name for c in relative].index(gripper)
    assert measured_anchor(changed, arm, q, 0.03)[column] == 0.03
    with pytest.raises(NoPoseError, match=gripper):
        measured_anchor(changed, arm, q, math.nan)


def test_relative_tool_channels_get_the_measured_pose_of_the_tool(arm):
    tool_prior = make_tool_prior()
    q = arm.config.home_rad + 0.1
    anchor = measured_anchor(tool_prior, arm, q, 0.03)
    motion, _ = tool_pose(arm, q)
    names = [channel.name for channel in tool_prior.channels]
    np.testing.assert_allclose(anchor[[names.index(a) for a in "xyz"]], motion[9:12])
    turn = Rotation.from_rotvec(anchor[[names.index(f"r{a}") for a in "xyz"]])
    np.testing.assert_allclose(turn.as_matrix().ravel(), motion[:9], atol=1e-12)
