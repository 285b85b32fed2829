"""Anchors of channels that displace the tool: from measured poses, at the observation's time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation, Slerp

from niaf_field import ActionField, Channel, fold, initial_prior
from niaf_policy.observation import (
    AnchorMap,
    JointLayout,
    MeasuredState,
    MessageError,
    Observation,
    ObservationBuffer,
    PairingLimits,
    Problem,
    ProblemKind,
    ToolPose,
    pose_between,
    rotation_vector,
    tool_pose,
)

MS = 1_000_000
LAYOUT = JointLayout(("a", "b"), "finger", 2.0)
LIMITS = PairingLimits(max_age_s=0.25, max_future_s=0.05, max_skew_s=0.06)
STATE = MeasuredState(np.array([1.0, 2.0]), np.zeros(2), 0.06)
TOOL = [Channel(n, "m", "cartesian_position", "relative") for n in ("x", "y", "z")] + [
    Channel(n, "rad", "cartesian_rotation", "relative") for n in ("rx", "ry", "rz")]
GRIPPER = Channel("gripper", "m", "gripper", "absolute")


def pose(seed: int) -> ToolPose:
    rng = np.random.default_rng(seed)
    turn = Rotation.random(random_state=seed).as_quat()
    return tool_pose("base", rng.normal(size=3), turn, "base")


def absolute(channel: Channel) -> Channel:
    return Channel(channel.name, channel.unit, channel.kind, "absolute")


def test_only_relative_tool_channels_need_the_tool() -> None:
    assert AnchorMap([*TOOL, GRIPPER], LAYOUT).needs_tool
    assert not AnchorMap([absolute(c) for c in TOOL], LAYOUT).needs_tool
    assert not AnchorMap([Channel("a", "rad", "joint_position", "relative")], LAYOUT).needs_tool


def test_the_anchor_holds_position_and_rotation_vector_where_relative() -> None:
    measured = pose(3)
    anchor = AnchorMap([*TOOL, GRIPPER], LAYOUT).anchor(STATE, measured)
    np.testing.assert_allclose(anchor[:3], measured.position)
    np.testing.assert_allclose(
        anchor[3:6], Rotation.from_quat(measured.quaternion).as_rotvec(), atol=1e-12)
    assert anchor[6] == 0.0
    mixed = [*TOOL[:3], *(absolute(c) for c in TOOL[3:])]
    np.testing.assert_allclose(
        AnchorMap(mixed, LAYOUT).anchor(STATE, measured), [*measured.position, 0.0, 0.0, 0.0])
    with pytest.raises(MessageError, match="its pose is not measured"):
        AnchorMap(TOOL, LAYOUT).anchor(STATE)


def test_a_field_turns_the_anchored_orientation_instead_of_adding_to_its_vector() -> None:
    prior = initial_prior(TOOL, sine_layers=2, width=8, omega0=4.0, horizon_s=1.0, seed=1)
    gamma, beta = (np.full(n, 0.1) for n in (prior.gamma_length, prior.beta_length))
    measured = pose(4)
    anchor = AnchorMap(prior.channels, LAYOUT).anchor(STATE, measured)
    fields = [
        ActionField(fold(prior, gamma, beta, at), 0.0, 1.0, 1, 0.0, prior.prior_id)
        for at in (np.zeros(6), anchor)
    ]
    bare, anchored = (field.jet(0.4, 0)[0] for field in fields)
    np.testing.assert_allclose(fields[1].folded.anchor_rotation_rad, anchor[3:6])
    np.testing.assert_allclose(anchored[:3], bare[:3] + measured.position)
    np.testing.assert_array_equal(anchored[3:], bare[3:])


@pytest.mark.parametrize("name", ["q", "x"])
def test_a_relative_channel_that_nothing_measures_is_named(name: str) -> None:
    kind = "cartesian_position" if name == "q" else "cartesian_twist"
    with pytest.raises(MessageError, match=f"channel '{name}' is relative, but nothing"):
        AnchorMap([Channel(name, "m", kind, "relative")], LAYOUT)


@settings(deadline=None)
@given(
    st.lists(st.floats(-1.0, 1.0), min_size=4, max_size=4).filter(
        lambda q: np.linalg.norm(q) > 1e-3),
    st.sampled_from([1.0, 1e-4, 1e-9, 0.0]),
)
def test_rotation_vectors_are_those_of_scipy(q: list[float], shrink: float) -> None:
    """Also next to no turn and to half a turn; q and -q are the same orientation."""
    turn = np.array(q)
    turn[:3] *= shrink
    if np.linalg.norm(turn) == 0.0:
        turn[3] = 1.0
    turn /= np.linalg.norm(turn)
    vector = rotation_vector(turn)
    assert np.linalg.norm(vector) <= np.pi + 1e-12
    np.testing.assert_allclose(
        Rotation.from_rotvec(vector).as_matrix(), Rotation.from_quat(turn).as_matrix(), atol=1e-12)
    np.testing.assert_allclose(
        Rotation.from_rotvec(rotation_vector(-turn)).as_matrix(),
        Rotation.from_quat(turn).as_matrix(), atol=1e-12)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_poses_are_interpolated_along_the_shorter_turn(sign: float) -> None:
    before, after = pose(1), pose(2)
    flipped = ToolPose(after.position, sign * after.quaternion)
    expected = Slerp([0.0, 1.0], Rotation.from_quat([before.quaternion, after.quaternion]))
    for share in (0.0, 0.3, 1.0):
        made = pose_between(before, flipped, share)
        np.testing.assert_allclose(
            made.position, (1 - share) * before.position + share * after.position)
        np.testing.assert_allclose(
            Rotation.from_quat(made.quaternion).as_matrix(), expected(share).as_matrix(),
            atol=1e-12)
    same = pose_between(before, before, 0.5)
    np.testing.assert_allclose(same.quaternion, before.quaternion)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"frame_id": "world"}, "is in frame 'world', needed is the robot's base 'base'"),
        ({"frame_id": ""}, "is in frame ''"),
        ({"position": (0.0, np.nan, 0.0)}, "position is"),
        ({"quaternion": (0.0, 0.0, np.inf, 1.0)}, "orientation is"),
        ({"quaternion": (0.0, 0.0, 0.0, 0.0)}, "has length 0,"),
        ({"quaternion": (0.0, 0.0, 0.0, 1.2)}, "has length 1.2,"),
    ],
)
def test_poses_that_are_none_are_refused(change: dict, words: str) -> None:
    good = {"frame_id": "base", "position": (0.1, 0.2, 0.3), "quaternion": (0.0, 0.0, 0.0, 1.004)}
    assert np.linalg.norm(tool_pose(**good, base_frame="base").quaternion) == pytest.approx(1.0)
    with pytest.raises(MessageError, match=words):
        tool_pose(**{**good, **change}, base_frame="base")


def buffer(poses_ms: list[int]) -> ObservationBuffer:
    """Image and joint state at 1000 ms; a pose at t ms stands at x = t, turned by t / 1000."""
    made = ObservationBuffer(
        {"scene": "/scene/image_raw"}, "/joint_states", lambda _: STATE, tool_topic="/tool_pose",
        decode_pose=lambda ms: tool_pose(
            "base", (ms, 0.0, 0.0), Rotation.from_rotvec([0.0, 0.0, ms / 1000]).as_quat(), "base"),
    )
    made.add_image("scene", 1000 * MS, np.zeros((2, 2, 3), np.uint8))
    made.add_state(1000 * MS, None)
    for ms in poses_ms:
        made.add_pose(ms * MS, float(ms))
    return made


@pytest.mark.parametrize(
    ("poses_ms", "x"),
    [
        ([980, 990, 1010, 1020], 1000.0),  # between its neighbours
        ([970, 1040], 1000.0),
        ([900, 1000, 1100], 1000.0),
        ([900, 950], 950.0),  # the one after has not come yet
        ([930, 1010], 1010.0),  # the one before is too far away
    ],
)
def test_the_tool_is_paired_with_the_instant_of_the_images(poses_ms: list[int], x: float) -> None:
    seen = buffer(poses_ms).assemble(1050 * MS, LIMITS)
    assert isinstance(seen, Observation)
    assert seen.tool is not None
    np.testing.assert_allclose(seen.tool.vector, [x, 0.0, 0.0, 0.0, 0.0, x / 1000], atol=1e-12)


@pytest.mark.parametrize(
    ("poses_ms", "kind", "words"),
    [
        ([], ProblemKind.NO_TOOL_POSE, "no message on /tool_pose yet"),
        ([930], ProblemKind.TOOL_POSE_SKEW, "0.070 s away"),
        ([930, 1080], ProblemKind.TOOL_POSE_SKEW, "/tool_pose is silent or slow"),
    ],
)
def test_without_a_pose_of_the_instant_the_observation_is_dropped(
    poses_ms: list[int], kind: ProblemKind, words: str
) -> None:
    problem = buffer(poses_ms).assemble(1100 * MS, LIMITS)
    assert isinstance(problem, Problem)
    assert problem.kind is kind
    assert words in problem.text


def test_a_bad_pose_is_named_with_its_topic() -> None:
    made = buffer([])
    made.add_pose(1000 * MS, float("nan"))
    problem = made.assemble(1050 * MS, LIMITS)
    assert isinstance(problem, Problem)
    assert problem.kind is ProblemKind.BAD_TOOL_POSE
    assert problem.text.startswith("/tool_pose: tool pose: ")
    made.clear()
    assert made.ages_s(0)["tool_pose"] == np.inf


def test_policies_of_joints_are_given_no_tool_and_need_none() -> None:
    made = ObservationBuffer({"scene": "/s"}, "/joint_states", lambda _: STATE)
    made.add_image("scene", 1000 * MS, np.zeros((2, 2, 3), np.uint8))
    made.add_state(1000 * MS, None)
    seen = made.assemble(1050 * MS, LIMITS)
    assert isinstance(seen, Observation)
    assert seen.tool is None
    assert "tool_pose" not in made.ages_s(0)
