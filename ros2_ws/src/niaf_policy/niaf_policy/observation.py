"""Images and joint states to one observation of a single instant. No ROS, no clock.

Messages arrive when they like. Short histories keep the newest ones; an observation is made of
views of about the same instant (the oldest of the cameras' newest images sets it) and of the joint
state that was measured nearest to it. A policy whose channels displace the tool needs the measured
tool pose as well; that is interpolated to the instant, because an error of it displaces the motion.
Whatever does not fit is a Problem that says what and why.
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
from niaf_field.channels import (
    CARTESIAN_POSITION,
    CARTESIAN_ROTATION,
    GRIPPER,
    JOINT_POSITION,
    POSITION_NAMES,
    ROTATION_NAMES,
)

ENCODINGS = ("rgb8", "bgr8")
IMAGES_KEPT = 8
#: how far the length of a quaternion may be from one
UNIT_TOLERANCE = 1e-2


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
    NO_TOOL_POSE = "no tool pose"
    BAD_TOOL_POSE = "bad tool pose"
    TOOL_POSE_SKEW = "tool pose too far from the images"


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
class ToolPose:
    """Of the tool in the axes of the robot's base: position [3] m, quaternion [4] x y z w."""

    position: NDArray[np.float64]
    quaternion: NDArray[np.float64]

    @property
    def vector(self) -> NDArray[np.float64]:
        """[6]: position, then the rotation vector of the orientation, at most pi long."""
        return np.concatenate([self.position, rotation_vector(self.quaternion)])


@dataclass(frozen=True, eq=False)
class Observation:
    """Of the instant stamp_ns (Unix time of the oldest of its images).

    tool: measured pose of the tool; None where the policy does not need it.
    """

    stamp_ns: int
    images: dict[str, NDArray[np.uint8]]
    state: MeasuredState
    tool: ToolPose | None = None


@dataclass(frozen=True)
class PairingLimits:
    """max_age_s: oldest image that may be used; max_future_s: how far a stamp may lie ahead of this
    clock; max_skew_s: largest distance between views, and of joint state and tool pose from them.
    """

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


def tool_pose(frame_id: str, position: Any, quaternion: Any, base_frame: str) -> ToolPose:
    """Tool pose of a message; position x y z, quaternion x y z w. Raises MessageError."""
    if frame_id != base_frame:
        raise MessageError(
            f"tool pose is in frame '{frame_id}', needed is the robot's base '{base_frame}' "
            "(parameter base_frame): publish it there or correct the parameter"
        )
    place, turn = np.array(position, dtype=float), np.array(quaternion, dtype=float)
    for what, values in (("position", place), ("orientation", turn)):
        if not np.isfinite(values).all():
            raise MessageError(f"tool pose: {what} is {values.tolist()}; sensor fault")
    length = float(np.linalg.norm(turn))
    if abs(length - 1.0) > UNIT_TOLERANCE:
        raise MessageError(
            f"tool pose: the quaternion {turn.tolist()} has length {length:.3g}, an orientation "
            "has length 1; whoever publishes it does not fill it in"
        )
    return ToolPose(place, turn / length)


def rotation_vector(quaternion: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotation vector [3], at most pi long, of a unit quaternion x y z w; q and -q are the same."""
    w, imaginary = float(quaternion[3]), quaternion[:3]
    if w < 0.0:
        w, imaginary = -w, -imaginary
    sine = float(np.linalg.norm(imaginary))
    factor = 2.0 if sine < 1e-9 else 2.0 * np.arctan2(sine, w) / sine
    return np.asarray(factor * imaginary)


def pose_between(before: ToolPose, after: ToolPose, share: float) -> ToolPose:
    """``share`` in [0, 1] of the way: along the line, and along the shorter turn."""
    place = before.position + share * (after.position - before.position)
    p, q = before.quaternion, after.quaternion
    cosine = float(p @ q)
    if cosine < 0.0:
        q, cosine = -q, -cosine
    angle = float(np.arctan2(np.linalg.norm(q - cosine * p), cosine))
    if angle < 1e-6:
        turn = p + share * (q - p)
    else:
        turn = (np.sin((1.0 - share) * angle) * p + np.sin(share * angle) * q) / np.sin(angle)
    return ToolPose(place, turn / np.linalg.norm(turn))


class AnchorMap:
    """Anchor of a field from the measured state, by the prior's channel table.

    Attributes:
        needs_tool: relative channels move the tool, so that its measured pose is needed.
    """

    def __init__(self, channels: Sequence[Channel], layout: JointLayout) -> None:
        joints, tool = len(layout.joints), (*POSITION_NAMES, *ROTATION_NAMES)
        self.needs_tool = False
        # of joints, then the gripper, then the tool; None: an absolute channel
        self._picks: list[int | None] = []
        for channel in channels:
            if not channel.is_relative:
                self._picks.append(None)
            elif channel.kind == JOINT_POSITION and channel.name in layout.joints:
                self._picks.append(layout.joints.index(channel.name))
            elif channel.kind == GRIPPER:
                self._picks.append(joints)
            elif channel.name in tool and channel.kind == (
                CARTESIAN_POSITION if channel.name in POSITION_NAMES else CARTESIAN_ROTATION
            ):
                self.needs_tool = True
                self._picks.append(joints + 1 + tool.index(channel.name))
            else:
                raise MessageError(
                    f"channel '{channel.name}' is relative, but nothing that is measured as a "
                    f"{channel.kind} has that name (joints: {', '.join(layout.joints)}; tool: "
                    f"{', '.join(tool)}); the checkpoint is inconsistent"
                )

    def anchor(
        self, state: MeasuredState, tool: ToolPose | None = None
    ) -> NDArray[np.float64]:
        """[D]: measured value of relative channels, zero of absolute ones.

        Of rotation channels it is the rotation vector of the measured orientation, which the
        field's own rotation is composed with (see niaf_field.channels).
        """
        measured = np.append(state.position, state.gripper_width_m)
        if self.needs_tool:
            if tool is None:
                raise MessageError("relative channels move the tool, but its pose is not measured")
            measured = np.append(measured, tool.vector)
        return np.array([0.0 if pick is None else measured[pick] for pick in self._picks])


class ObservationBuffer:
    """Histories of the cameras, the joint state and the tool pose. The caller provides locking.

    topics: camera name -> topic, for messages. decode: what add_state was given -> MeasuredState;
    only the state that is paired with images is decoded. states_kept: length of that history, and
    of the poses'. tool_topic: empty where observations need no tool pose; else decode_pose: what
    add_pose was given -> ToolPose.
    """

    def __init__(
        self,
        topics: Mapping[str, str],
        state_topic: str,
        decode: Callable[[Any], MeasuredState],
        states_kept: int = 1000,
        tool_topic: str = "",
        decode_pose: Callable[[Any], ToolPose] | None = None,
    ) -> None:
        self._topics, self._state_topic, self._decode = dict(topics), state_topic, decode
        self._tool_topic, self._decode_pose = tool_topic, decode_pose
        self._poses: deque[tuple[int, Any]] = deque(maxlen=states_kept)
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

    def add_pose(self, stamp_ns: int, message: Any) -> None:
        self._poses.append((stamp_ns, message))

    def clear(self) -> None:
        """Forget everything received."""
        for history in self._images.values():
            history.clear()
        self._rejected.clear()
        self._states.clear()
        self._poses.clear()

    def view_stamp_ns(self) -> int | None:
        """Instant of the newest set of views: the oldest of the cameras' newest images."""
        if any(not history for history in self._images.values()):
            return None
        return min(history[-1][0] for history in self._images.values())

    def ages_s(self, now_ns: int) -> dict[str, float]:
        """Age of the newest message by camera, of 'joint_states', and of 'tool_pose' where it is
        needed; infinite: none."""
        newest = {camera: h[-1][0] if h else None for camera, h in self._images.items()}
        newest["joint_states"] = self._states[-1][0] if self._states else None
        if self._tool_topic:
            newest["tool_pose"] = self._poses[-1][0] if self._poses else None
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
        tool = self._tool_at(oldest, limits) if self._tool_topic else None
        if isinstance(tool, Problem):
            return tool
        return Observation(oldest, {c: pixels for c, (_, pixels) in chosen.items()}, state, tool)

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

    def _tool_at(self, stamp_ns: int, limits: PairingLimits) -> ToolPose | Problem:
        """Between the poses before and after the instant; one of them alone if it is near."""
        topic, decode = self._tool_topic, self._decode_pose
        assert decode is not None
        if not self._poses:
            return Problem(
                ProblemKind.NO_TOOL_POSE,
                f"no message on {topic} yet; is the impedance node active, with a tool_frame in "
                "its robot description, and the topic remapped to its ~/tool_pose?",
            )
        before: tuple[int, Any] | None = None
        after: tuple[int, Any] | None = None
        for entry in reversed(self._poses):  # in order of time, newest last
            if entry[0] <= stamp_ns:
                before = entry
                break
            after = entry
        near = [
            entry for entry in (before, after)
            if entry is not None and abs(entry[0] - stamp_ns) * 1e-9 <= limits.max_skew_s
        ]
        if not near:
            apart_s = min(
                abs(entry[0] - stamp_ns) for entry in (before, after) if entry is not None) * 1e-9
            return Problem(
                ProblemKind.TOOL_POSE_SKEW,
                f"the tool pose nearest to the images is {apart_s:.3f} s away (max_skew_s is "
                f"{limits.max_skew_s:g}): {topic} is silent or slow, or the clocks differ",
            )
        try:
            poses = [decode(message) for _, message in near]
        except MessageError as error:
            return Problem(ProblemKind.BAD_TOOL_POSE, f"{topic}: {error}")
        if len(near) == 1:
            return poses[0]
        (first_ns, _), (last_ns, _) = near
        return pose_between(poses[0], poses[1], (stamp_ns - first_ns) / (last_ns - first_ns))
