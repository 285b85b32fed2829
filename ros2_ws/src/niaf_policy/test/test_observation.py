"""Pairing of images and joint states; no ROS."""

from __future__ import annotations

import numpy as np
import pytest

from niaf_field import Channel
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
    decode_image,
    measured_state,
)
from niaf_policy.pacing import Figures, Pacer

MS = 1_000_000
LAYOUT = JointLayout(("a", "b"), "finger", 2.0)
LIMITS = PairingLimits(max_age_s=0.25, max_future_s=0.05, max_skew_s=0.06)


def pixels(value: int) -> np.ndarray:
    return np.full((2, 2, 3), value, np.uint8)


def buffer() -> ObservationBuffer:
    """States are plain numbers here: the position of joint a."""
    return ObservationBuffer(
        {"scene": "/scene/image_raw", "wrist": "/wrist/image_raw"}, "/joint_states",
        lambda value: MeasuredState(np.array([value, 0.0]), np.zeros(2), 0.0),
    )


def filled(scene_ms: list[int], wrist_ms: list[int], states_ms: list[int]) -> ObservationBuffer:
    made = buffer()
    for camera, stamps in (("scene", scene_ms), ("wrist", wrist_ms)):
        for stamp in stamps:
            made.add_image(camera, stamp * MS, pixels(stamp % 250))
    for stamp in states_ms:
        made.add_state(stamp * MS, float(stamp))
    return made


def test_views_and_state_nearest_to_the_older_camera_are_paired() -> None:
    made = filled([1000, 1100, 1200], [1010, 1110], list(range(900, 1250, 4)))
    assert made.view_stamp_ns() == 1110 * MS
    seen = made.assemble(1250 * MS, LIMITS)
    assert isinstance(seen, Observation)
    assert seen.stamp_ns == 1100 * MS  # the older view: its nearest image to 1110
    assert seen.images["scene"][0, 0, 0] == 1100 % 250
    assert seen.images["wrist"][0, 0, 0] == 1110 % 250
    assert seen.state.position[0] == 1100.0


@pytest.mark.parametrize(
    ("made", "now_ms", "kind", "words"),
    [
        (filled([], [1000], [1000]), 1000, ProblemKind.NO_IMAGE, "no image on /scene/image_raw"),
        (filled([1000], [1000], [1000]), 1300, ProblemKind.STALE_IMAGE, "/scene/image_raw is 0.3"),
        (filled([1300], [1000], [1000]), 1300, ProblemKind.STALE_IMAGE, "/wrist/image_raw is 0.3"),
        (filled([1000], [1000], [1000]), 900, ProblemKind.FUTURE_STAMP, "0.100 s ahead"),
        (filled([0], [0], [0]), 0, ProblemKind.STALE_IMAGE, "carry no stamp"),
        (filled([1000], [1100], [1000]), 1150, ProblemKind.VIEW_SKEW, "0.100 s apart"),
        (filled([1000], [1000], []), 1050, ProblemKind.NO_STATE, "no message on /joint_states"),
        (filled([1000], [1000], [900]), 1050, ProblemKind.STATE_SKEW, "0.100 s away"),
    ],
)
def test_what_is_missing_or_stale_is_named(
    made: ObservationBuffer, now_ms: int, kind: ProblemKind, words: str
) -> None:
    problem = made.assemble(now_ms * MS, LIMITS)
    assert isinstance(problem, Problem)
    assert problem.kind is kind
    assert words in problem.text


def test_a_refused_image_counts_until_a_good_one_comes() -> None:
    made = filled([1000], [1000], [1000])
    made.reject_image("wrist", "too small")
    problem = made.assemble(1000 * MS, LIMITS)
    assert isinstance(problem, Problem)
    assert problem.text == "/wrist/image_raw: too small"
    assert made.view_stamp_ns() is None
    made.add_image("wrist", 1010 * MS, pixels(1))
    assert isinstance(made.assemble(1010 * MS, LIMITS), Observation)


def test_ages_are_told_per_source() -> None:
    ages = filled([1000], [], [1090]).ages_s(1100 * MS)
    assert ages == pytest.approx({"scene": 0.1, "wrist": float("inf"), "joint_states": 0.01})


def test_joints_are_picked_by_name() -> None:
    state = measured_state(
        ["x", "b", "finger", "a"], [9.0, 2.0, 0.03, 1.0], [9.0, 4.0, 0.0, 3.0], LAYOUT
    )
    np.testing.assert_allclose(state.vector, [1.0, 2.0, 3.0, 4.0, 0.06])


@pytest.mark.parametrize(
    ("names", "position", "velocity", "words"),
    [
        (["a", "b"], [0, 0], [0, 0], "lacks finger"),
        (["a", "b", "finger"], [0, 0, 0], [], "3 names but 0 values in velocity"),
        (["a", "b", "finger"], [0, float("nan"), 0], [0, 0, 0], "position of b is nan"),
        (["a", "b", "finger"], [0, 0, float("inf")], [0, 0, 0], "position of finger is inf"),
    ],
)
def test_joint_states_that_do_not_fit_are_refused(
    names: list[str], position: list[float], velocity: list[float], words: str
) -> None:
    with pytest.raises(MessageError, match=words):
        measured_state(names, position, velocity, LAYOUT)


def test_the_anchor_follows_the_channel_table() -> None:
    channels = (
        Channel("b", "rad", "joint_position", "relative"),
        Channel("g", "m", "gripper", "relative"),
        Channel("a", "rad", "joint_position", "absolute"),
    )
    state = MeasuredState(np.array([1.0, 2.0]), np.zeros(2), 0.06)
    np.testing.assert_allclose(AnchorMap(channels, LAYOUT).anchor(state), [2.0, 0.06, 0.0])
    with pytest.raises(MessageError, match="channel 'c' is relative"):
        AnchorMap((Channel("c", "rad", "joint_position", "relative"),), LAYOUT)


def test_rows_may_be_padded_and_bgr_is_turned() -> None:
    rows = np.arange(2 * 16, dtype=np.uint8).reshape(2, 16)
    arguments = {"height": 2, "width": 4, "step": 16, "data": rows.tobytes(), "size": (2, 4)}
    rgb = decode_image(encoding="rgb8", camera="scene", **arguments)
    np.testing.assert_array_equal(rgb, rows[:, :12].reshape(2, 4, 3))
    bgr = decode_image(encoding="bgr8", camera="scene", **arguments)
    np.testing.assert_array_equal(bgr, rgb[..., ::-1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"encoding": "mono8"}, "camera 'wrist' is encoded as 'mono8'"),
        ({"height": 3}, "is 4x3 pixels, the policy was trained on 4x2"),
        ({"data": bytes(20)}, "has 20 bytes"),
        ({"step": 8}, "rows of 8"),
    ],
)
def test_images_that_do_not_fit_are_refused(change: dict, words: str) -> None:
    good = {"height": 2, "width": 4, "step": 12, "encoding": "rgb8", "data": bytes(24)}
    with pytest.raises(MessageError, match=words):
        decode_image(**{**good, **change}, size=(2, 4), camera="wrist")


@pytest.mark.parametrize(("rate_hz", "cameras_hz"), [(8.0, 10.0), (5.0, 10.0), (10.0, 10.0)])
def test_the_pacer_keeps_the_average_rate_on_arriving_images(
    rate_hz: float, cameras_hz: float
) -> None:
    pacer, random = Pacer(rate_hz), np.random.default_rng(0)
    images = np.arange(0, 20, 1 / cameras_hz) + random.uniform(0, 0.01, int(20 * cameras_hz))
    taken = [t for t in images if pacer.take(t)]
    assert len(taken) == pytest.approx(20 * rate_hz, abs=2)
    assert max(np.diff(taken)) < 2.0 / cameras_hz + 0.02


def test_the_pacer_does_not_catch_up_after_a_pause() -> None:
    pacer = Pacer(10.0)
    assert pacer.take(0.0)
    assert not pacer.take(0.05)
    assert pacer.take(5.0)
    taken = [t for t in np.arange(5.01, 6.0, 0.01) if pacer.take(t)]
    assert len(taken) <= 11


def test_figures_count_the_last_second() -> None:
    figures = Figures()
    for k in range(20):
        figures.note_field(0.1 * k, 0.05, 0.02)
    assert figures.rate_hz(1.95) == 10.0
    assert figures.rate_hz(9.0) == 0.0
    assert figures.latency.quantiles().p95_s == pytest.approx(0.05)
