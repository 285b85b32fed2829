"""What one frame of a dataset holds: names, dtypes and shapes of its columns and videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


class DatasetError(ValueError):
    """A dataset directory or a frame does not fit; the message names thing, value and remedy."""


NUMERIC_DTYPES = ("float32", "float64", "int64", "int32", "uint8", "bool")
VIDEO_DTYPE = "video"


@dataclass(frozen=True)
class Feature:
    """One column or video of a dataset, as LeRobot's `info.json` describes it.

    dtype: a numpy dtype name, or 'video' for uint8 frames of shape (height, width, 3).
    names: a name per element of the last axis, or None.
    """

    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.dtype != VIDEO_DTYPE and self.dtype not in NUMERIC_DTYPES:
            raise DatasetError(
                f"feature dtype '{self.dtype}' is unknown; use one of "
                f"{NUMERIC_DTYPES + (VIDEO_DTYPE,)}"
            )
        if self.dtype == VIDEO_DTYPE and (len(self.shape) != 3 or self.shape[2] != 3):
            raise DatasetError(f"a video feature needs shape (height, width, 3), got {self.shape}")

    @property
    def is_video(self) -> bool:
        return self.dtype == VIDEO_DTYPE

    def to_json(self) -> dict[str, Any]:
        return {
            "dtype": self.dtype,
            "shape": list(self.shape),
            "names": None if self.names is None else list(self.names),
        }


STANDARD_FEATURES: dict[str, Feature] = {
    "timestamp": Feature("float32", (1,)),
    "frame_index": Feature("int64", (1,)),
    "episode_index": Feature("int64", (1,)),
    "index": Feature("int64", (1,)),
    "task_index": Feature("int64", (1,)),
}


def recording_features(
    joint_names: Sequence[str],
    cameras: Mapping[str, tuple[int, int]],
    objects: Sequence[str] = (),
    tool: bool = False,
) -> dict[str, Feature]:
    """Features of the house's recordings.

    joint_names: arm joints in order (the gripper width is added as a last state element).
    cameras: camera name -> (height, width) in pixels.
    objects: names of objects whose privileged xyz (metres, robot base) is recorded.
    tool: measured pose and twist of the tool, and the pose of its reference, in the robot's base:
    position (m) and unit quaternion x y z w; linear (m/s) and angular velocity (rad/s).
    """
    joints = tuple(joint_names)
    features = {
        "observation.state": Feature("float32", (len(joints) + 1,), joints + ("gripper_width_m",)),
        "observation.velocity": Feature("float32", (len(joints),), joints),
        "action": Feature("float32", (len(joints) + 1,), joints + ("gripper_width_m",)),
        "is_expert": Feature("bool", (1,), ("is_expert",)),
    }
    if tool:
        pose, twist = ("x", "y", "z", "qx", "qy", "qz", "qw"), ("vx", "vy", "vz", "wx", "wy", "wz")
        features["observation.tool_pose"] = Feature("float32", (len(pose),), pose)
        features["observation.tool_velocity"] = Feature("float32", (len(twist),), twist)
        features["action.tool_pose"] = Feature("float32", (len(pose),), pose)
    if objects:
        names = tuple(f"{name}.{axis}" for name in objects for axis in "xyz")
        features["privileged.cubes"] = Feature("float32", (len(names),), names)
    for camera, (height, width) in cameras.items():
        features[f"observation.images.{camera}"] = Feature(
            VIDEO_DTYPE, (height, width, 3), ("height", "width", "channels")
        )
    return features


def features_from_json(described: Mapping[str, Any]) -> dict[str, Feature]:
    """Read the `features` table of an `info.json`; standard columns are left out."""
    features: dict[str, Feature] = {}
    for key, entry in described.items():
        if key in STANDARD_FEATURES:
            continue
        dtype = str(entry["dtype"])
        shape = tuple(int(n) for n in entry["shape"])
        if dtype == "image":
            raise DatasetError(
                f"feature '{key}' stores images in Parquet, which is not read here; convert the "
                "dataset to videos first"
            )
        if dtype == VIDEO_DTYPE and len(shape) == 3 and shape[0] == 3 and shape[2] != 3:
            shape = (shape[1], shape[2], 3)
        names = entry.get("names")
        if isinstance(names, Mapping):  # some v2 datasets write {"motors": [...]}
            names = next(iter(names.values()), None)
        flat = tuple(str(n) for n in names) if isinstance(names, (list, tuple)) else None
        if dtype not in NUMERIC_DTYPES and dtype != VIDEO_DTYPE:
            continue  # text columns carry nothing a policy reads
        features[key] = Feature(dtype, shape, flat)
    return features


def check_frames(
    frames: Mapping[str, np.ndarray], features: Mapping[str, Feature]
) -> tuple[int, dict[str, np.ndarray]]:
    """Check one episode's arrays against the features.

    Returns the number of frames N and the arrays in their stored dtype and shape [N, ...].
    Raises DatasetError for missing, unknown, mis-shaped or non-finite arrays.
    """
    missing = sorted(set(features) - set(frames))
    unknown = sorted(set(frames) - set(features))
    if missing or unknown:
        raise DatasetError(
            f"episode does not match the features: missing {missing}, unknown {unknown}; "
            f"expected exactly {sorted(features)}"
        )
    length = -1
    checked: dict[str, np.ndarray] = {}
    for key, feature in features.items():
        array = np.asarray(frames[key])
        if feature.shape == (1,) and array.ndim == 1:
            array = array[:, None]
        if array.shape[1:] != feature.shape:
            raise DatasetError(
                f"'{key}' has shape {array.shape}, expected (N,{','.join(map(str, feature.shape))})"
            )
        if length >= 0 and len(array) != length:
            raise DatasetError(f"'{key}' has {len(array)} frames, the others have {length}")
        length = len(array)
        if feature.is_video:
            if array.dtype != np.uint8:
                raise DatasetError(f"video '{key}' must be uint8, got {array.dtype}")
        else:
            array = array.astype(feature.dtype)
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                bad = int(np.argwhere(~np.isfinite(array))[0][0])
                raise DatasetError(f"'{key}' is not finite at frame {bad}; drop the episode")
        checked[key] = array
    if length < 1:
        raise DatasetError("an episode needs at least one frame")
    return length, checked
