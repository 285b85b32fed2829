"""Images and joint states to one observation of a single instant. No ROS, no clock.

Messages arrive when they like. Short histories keep the newest ones; an observation is made of
views of about the same instant (the oldest of the cameras' newest images sets it) and of the joint
state that was measured nearest to it. Whatever does not fit is a Problem that says what and why.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from niaf_field import Channel

ENCODINGS = ("rgb8", "bgr8")
IMAGES_KEPT = 8


class MessageError(ValueError):
    """A message cannot be used; the text names what was sent, what is needed and a remedy."""


class ProblemKind(Enum):
    """Why there is no observation; the values name counters in diagnostics."""

    NO_IMAGE = "no image"
    BAD_IMAGE = "bad image"
    STALE_IMAGE = "stale image"
    FUTURE_STAMP = "stamp in the future"
    VIEW_SKEW = "views too far apart"
    NO_STATE = "no joint state"
    BAD_STATE = "bad joint state"
    STATE_SKEW = "joint state too far from the images"


@dataclass(frozen=True)
class Problem:
    """Why there is no observation."""

    kind: ProblemKind
    text: str


@dataclass(frozen=True)
class JointLayout:
    """Which joints the policy needs, in its order.

    gripper_width_scale: opening width in metres = scale * position of gripper_joint.
    """

    joints: tuple[str, ...]
    gripper_joint: str
    gripper_width_scale: float


@dataclass(frozen=True, eq=False)
class MeasuredState:
    """position [J] rad, velocity [J] rad/s, gripper opening width in m."""

    position: NDArray[np.float64]
    velocity: NDArray[np.float64]
    gripper_width_m: float

    @property
    def vector(self) -> NDArray[np.float64]:
        """[2J + 1]: positions, velocities, gripper width."""
        return np.concatenate([self.position, self.velocity, [self.gripper_width_m]])


@dataclass(frozen=True, eq=False)
class Observation:
    """Of the instant stamp_ns (Unix time of the oldest of its images)."""

    stamp_ns: int
    images: dict[str, NDArray[np.uint8]]
    state: MeasuredState


@dataclass(frozen=True)
class PairingLimits:
    """max_age_s: oldest image that may be used; max_future_s: how far a stamp may lie ahead of this
    clock; max_skew_s: largest distance between views, and of the joint state from them."""

    max_age_s: float = 0.25
    max_future_s: float = 0.05
    max_skew_s: float = 0.06


def decode_image(
    *,
    height: int,
    width: int,
    encoding: str,
    step: int,
    data: Any,
    size: tuple[int, int],
    camera: str,
) -> NDArray[np.uint8]:
    """Pixels as RGB [h, w, 3], own memory. size: height and width that the policy was trained on.

    Raises MessageError naming the camera.
    """
    if encoding not in ENCODINGS:
        raise MessageError(
            f"image of camera '{camera}' is encoded as '{encoding}', this node reads "
            f"{' and '.join(ENCODINGS)}; convert it (image_proc, cv_bridge) or set the driver"
        )
    if (height, width) != size:
        raise MessageError(
            f"image of camera '{camera}' is {width}x{height} pixels, the policy was trained on "
            f"{size[1]}x{size[0]}; set the camera to that size (or crop and resize it as in the "
            "recordings)"
        )
    raw = np.frombuffer(data, dtype=np.uint8)
    if step < 3 * width or raw.size < step * (height - 1) + 3 * width:
        raise MessageError(
            f"image of camera '{camera}' has {raw.size} bytes in rows of {step}, "
            f"{height} rows of at least {3 * width} are needed; the driver fills it wrongly"
        )
    rows = np.lib.stride_tricks.as_strided(
        raw, shape=(height, width, 3), strides=(step, 3, 1), writeable=False
    )
    return np.ascontiguousarray(rows[..., ::-1] if encoding == "bgr8" else rows).copy()


def measured_state(
    names: Sequence[str], position: Any, velocity: Any, layout: JointLayout
) -> MeasuredState:
    """Pick the policy's joints from a joint state by name; raises MessageError."""
    index = {name: i for i, name in enumerate(names)}
    missing = [n for n in (*layout.joints, layout.gripper_joint) if n not in index]
    if missing:
        raise MessageError(
            f"joint_states lacks {', '.join(missing)}; it has {list(names) or 'no joints'}. "
            "Publish these joints (gripper: parameter gripper_joint) or use a checkpoint of this "
            "robot"
        )
    values = {"position": np.asarray(position, float), "velocity": np.asarray(velocity, float)}
    for field, numbers in values.items():
        if numbers.shape != (len(names),):
            raise MessageError(
                f"joint_states has {len(names)} names but {numbers.size} values in {field}; the "
                "policy needs measured position and velocity of every joint"
            )
    picks = [index[name] for name in layout.joints]
    chosen = {field: numbers[picks] for field, numbers in values.items()}
    grip = float(values["position"][index[layout.gripper_joint]])
    for field, numbers in chosen.items():
        for name, value in zip(layout.joints, numbers, strict=True):
            if not np.isfinite(value):
                raise MessageError(f"joint_states: {field} of {name} is {value}; sensor fault")
    if not np.isfinite(grip):
        raise MessageError(f"joint_states: position of {layout.gripper_joint} is {grip}")
    return MeasuredState(
        chosen["position"], chosen["velocity"], grip * layout.gripper_width_scale
    )


class AnchorMap:
    """Anchor of a field from the measured state, by the prior's channel table."""

    def __init__(self, channels: Sequence[Channel], layout: JointLayout) -> None:
        self._picks: list[int | None] = []  # J means the gripper, None an absolute channel
        for channel in channels:
            if not channel.is_relative:
                self._picks.append(None)
            elif channel.name in layout.joints:
                self._picks.append(layout.joints.index(channel.name))
            elif channel.kind == "gripper":
                self._picks.append(len(layout.joints))
            else:
                raise MessageError(
                    f"channel '{channel.name}' is relative, but no measured joint has that name "
                    f"(joints: {', '.join(layout.joints)}); the checkpoint is inconsistent"
                )

    def anchor(self, state: MeasuredState) -> NDArray[np.float64]:
        """[D]: measured value of relative channels, zero of absolute ones."""
        measured = np.append(state.position, state.gripper_width_m)
        return np.array([0.0 if pick is None else measured[pick] for pick in self._picks])


class ObservationBuffer:
    """Histories of the cameras and of the joint state. The caller provides locking.

    topics: camera name -> topic, for messages. decode: what add_state was given -> MeasuredState;
    only the state that is paired with images is decoded. states_kept: length of that history.
    """

    def __init__(
        self,
        topics: Mapping[str, str],
        state_topic: str,
        decode: Callable[[Any], MeasuredState],
        states_kept: int = 1000,
    ) -> None:
        self._topics, self._state_topic, self._decode = dict(topics), state_topic, decode
        self._images: dict[str, deque[tuple[int, NDArray[np.uint8]]]] = {
            camera: deque(maxlen=IMAGES_KEPT) for camera in topics
        }
        self._rejected: dict[str, str] = {}
        self._states: deque[tuple[int, Any]] = deque(maxlen=states_kept)

    def add_image(self, camera: str, stamp_ns: int, pixels: NDArray[np.uint8]) -> None:
        self._images[camera].append((stamp_ns, pixels))
        self._rejected.pop(camera, None)

    def reject_image(self, camera: str, reason: str) -> None:
        """The camera's newest message cannot be used; older ones are forgotten."""
        self._rejected[camera] = reason
        self._images[camera].clear()

    def add_state(self, stamp_ns: int, message: Any) -> None:
        self._states.append((stamp_ns, message))

    def clear(self) -> None:
        """Forget everything received."""
        for history in self._images.values():
            history.clear()
        self._rejected.clear()
        self._states.clear()

    def view_stamp_ns(self) -> int | None:
        """Instant of the newest set of views: the oldest of the cameras' newest images."""
        if any(not history for history in self._images.values()):
            return None
        return min(history[-1][0] for history in self._images.values())

    def ages_s(self, now_ns: int) -> dict[str, float]:
        """Age of the newest message by camera, and of 'joint_states'; infinite: none."""
        newest = {camera: h[-1][0] if h else None for camera, h in self._images.items()}
        newest["joint_states"] = self._states[-1][0] if self._states else None
        return {
            name: float("inf") if stamp is None else (now_ns - stamp) * 1e-9
            for name, stamp in newest.items()
        }

    def assemble(self, now_ns: int, limits: PairingLimits) -> Observation | Problem:
        """The newest observation, or why there is none. now_ns: Unix time."""
        problem = self._image_problem(now_ns, limits)
        if problem is not None:
            return problem
        at = self.view_stamp_ns()
        assert at is not None
        chosen = {c: min(h, key=lambda e: abs(e[0] - at)) for c, h in self._images.items()}
        oldest, newest = min(s for s, _ in chosen.values()), max(s for s, _ in chosen.values())
        if (newest - oldest) * 1e-9 > limits.max_skew_s:
            return Problem(
                ProblemKind.VIEW_SKEW,
                f"the views are {(newest - oldest) * 1e-9:.3f} s apart (max_skew_s is "
                f"{limits.max_skew_s:g}); trigger the cameras together or raise their rate",
            )
        state = self._state_at(oldest, limits)
        if isinstance(state, Problem):
            return state
        return Observation(oldest, {c: pixels for c, (_, pixels) in chosen.items()}, state)

    def _image_problem(self, now_ns: int, limits: PairingLimits) -> Problem | None:
        for camera, history in self._images.items():
            topic = self._topics[camera]
            if camera in self._rejected:
                return Problem(ProblemKind.BAD_IMAGE, f"{topic}: {self._rejected[camera]}")
            if not history:
                return Problem(
                    ProblemKind.NO_IMAGE,
                    f"no image on {topic} yet; is the camera's driver running?",
                )
            stamp_ns = history[-1][0]
            age_s = (now_ns - stamp_ns) * 1e-9
            if stamp_ns == 0:
                return Problem(
                    ProblemKind.STALE_IMAGE,
                    f"images on {topic} carry no stamp; the driver must stamp them with the time "
                    "of exposure",
                )
            if age_s > limits.max_age_s:
                return Problem(
                    ProblemKind.STALE_IMAGE,
                    f"the newest image on {topic} is {age_s:.3f} s old (max_observation_age_s is "
                    f"{limits.max_age_s:g}): the camera is silent or slow, or the clocks differ",
                )
            if age_s < -limits.max_future_s:
                return Problem(
                    ProblemKind.FUTURE_STAMP,
                    f"the newest image on {topic} is stamped {-age_s:.3f} s ahead of this clock "
                    f"(max_future_s is {limits.max_future_s:g}); synchronise the clocks",
                )
        return None

    def _state_at(self, stamp_ns: int, limits: PairingLimits) -> MeasuredState | Problem:
        topic = self._state_topic
        if not self._states:
            return Problem(
                ProblemKind.NO_STATE, f"no message on {topic} yet; is the arm's driver running?"
            )
        nearest_ns, message = self._states[-1]
        for candidate_ns, candidate in reversed(self._states):  # in order of time, newest last
            if abs(candidate_ns - stamp_ns) > abs(nearest_ns - stamp_ns):
                break
            nearest_ns, message = candidate_ns, candidate
        apart_s = abs(nearest_ns - stamp_ns) * 1e-9
        if apart_s > limits.max_skew_s:
            return Problem(
                ProblemKind.STATE_SKEW,
                f"the joint state nearest to the images is {apart_s:.3f} s away (max_skew_s is "
                f"{limits.max_skew_s:g}): {topic} is silent or slow, or the clocks differ",
            )
        try:
            return self._decode(message)
        except MessageError as error:
            return Problem(ProblemKind.BAD_STATE, f"{topic}: {error}")
