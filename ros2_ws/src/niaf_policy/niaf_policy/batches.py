"""Recordings to training batches: decoded frames in memory, labels from future frames."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from niaf_data import DatasetError, LeRobotDataset, open_datasets
from niaf_policy.config import AugmentConfig, DataConfig
from niaf_policy.normalization import Normalization, measure_normalization
from niaf_policy.tokenizer import encode_instruction
from niaf_policy.tool_labels import POSE, TOOL_NAMES, tool_labels

STATE = "observation.state"
VELOCITY = "observation.velocity"
ACTION = "action"
EXPERT = "is_expert"
OBJECTS = "privileged.cubes"
IMAGES = "observation.images."
TOOL, TOOL_VELOCITY, TOOL_ACTION = (
    "observation.tool_pose", "observation.tool_velocity", "action.tool_pose"
)


@dataclass(frozen=True)
class Batch:
    """One batch; shapes as in NiafPolicy.forward and losses.action_losses."""

    images: Tensor  # uint8 or float [B, V, h, w, 3]
    state: Tensor  # [B, J + 1], as the policy sees it (with noise in training)
    velocity: Tensor  # [B, J]
    text_ids: Tensor  # [B, S]
    text_mask: Tensor  # [B, S]
    anchor: Tensor  # [B, D], as in Normalization, without noise
    action: Tensor  # [B, K, D]
    action_velocity: Tensor  # [B, K, A]
    action_is_pad: Tensor  # bool [B, K]
    objects: Tensor | None  # [B, 3M]
    target: Tensor  # [B] index of the named object or -1

    def to(self, device: torch.device) -> Batch:
        moved = {
            k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v
            for k, v in vars(self).items()
        }
        return Batch(**moved)


class ChunkData:
    """All recordings of a run in memory.

    Frames with is_expert False are never observations. A label that would lie past the end of a run
    of expert frames is padding, except at the end of the episode, where the arm rests: there the
    last action is held with zero velocity and counts as a label.
    """

    def __init__(self, config: DataConfig) -> None:
        if not config.roots:
            raise DatasetError("data.roots is empty; name at least one LeRobot directory")
        self.config = config
        source = open_datasets(config.roots)
        self.fps = source.fps
        steps = config.horizon_s * self.fps
        if abs(steps - round(steps)) > 1e-6 or round(steps) < 1:
            raise DatasetError(
                f"data.horizon_s = {config.horizon_s} is not a whole number of frames at "
                f"{self.fps} fps; choose a multiple of {1 / self.fps:g} s"
            )
        self.samples = round(steps) + 1
        keys = [IMAGES + camera for camera in config.cameras]
        moves_tool = config.channels == "tool"
        tool_keys = [TOOL, TOOL_VELOCITY, TOOL_ACTION] if moves_tool else []
        for key in [STATE, VELOCITY, ACTION, *tool_keys, *keys]:
            if key not in source.features:
                remedy = "; record it anew with tool poses" if key in tool_keys else ""
                raise DatasetError(
                    f"'{source.datasets[0].root}' lacks '{key}'; it has {sorted(source.features)}"
                    f"{remedy}"
                )
        columns = source.columns()
        names = source.features[STATE].names or ()
        self.joint_names = tuple(names[:-1])
        self.state = columns[STATE].astype(np.float32)
        self.velocity = columns[VELOCITY].astype(np.float32)
        self.action = columns[ACTION].astype(np.float32)
        self.action_names = TOOL_NAMES if moves_tool else self.joint_names
        self.tool = {key: columns[key].astype(np.float64) for key in tool_keys}
        for key in tool_keys:
            width = len(TOOL_NAMES) if key == TOOL_VELOCITY else POSE
            if self.tool[key].shape[1:] != (width,):
                raise DatasetError(
                    f"'{key}' has shape {self.tool[key].shape[1:]}, expected ({width},): position "
                    "and quaternion x y z w, of the velocity linear and angular"
                )
        if len(self.joint_names) != self.velocity.shape[1]:
            raise DatasetError(
                f"'{STATE}' names {names} must be the joints of '{VELOCITY}' "
                f"({self.velocity.shape[1]}) and the gripper last"
            )
        frames = source.frame_count
        expert = columns.get(EXPERT)
        self.expert = np.ones(frames, bool) if expert is None else expert.astype(bool)
        self.objects = columns.get(OBJECTS)
        self.object_names: tuple[str, ...] = ()
        if self.objects is not None:
            parts = source.features[OBJECTS].names or ()
            self.object_names = tuple(dict.fromkeys(n.split(".")[0] for n in parts))
        self.instructions = source.instructions
        index = {text: i for i, text in enumerate(self.instructions)}
        self.episode_of = np.empty(frames, np.int64)
        self.instruction_of = np.empty(frames, np.int64)
        self.root_of = np.empty(frames, np.int64)
        self.last = np.empty(frames, np.int64)  # last frame of the episode
        self.run_end = np.empty(frames, np.int64)  # last frame of the run of expert frames
        self.run_start = np.empty(frames, np.int64)  # first frame of that run
        for e in source.episodes:
            rows = slice(e.start, e.stop)
            self.episode_of[rows] = e.index
            self.instruction_of[rows] = index[e.instruction]
            self.root_of[rows] = source.dataset_of(e.index)
            self.last[rows] = e.stop - 1
            self.run_end[rows] = _run_ends(self.expert[rows]) + e.start
            mirrored = _run_ends(self.expert[rows][::-1])[::-1]
            self.run_start[rows] = e.stop - 1 - mirrored
        self.episodes = len(source.episodes)
        self.root_count = len(source.datasets)
        self.root_sizes = [d.frame_count for d in source.datasets]
        # images[root][view] uint8 [frames of root, h, w, 3]
        self.images = [
            [decoded_frames(d, key, config.cache_dir, config.decode_threads) for key in keys]
            for d in source.datasets
        ]
        self.root_start = np.cumsum([0, *self.root_sizes[:-1]])

    def target_objects(self) -> np.ndarray:
        """Index of the object that each instruction names, or -1: int64 [instructions]."""
        out = np.full(len(self.instructions), -1, np.int64)
        for i, text in enumerate(self.instructions):
            words = re.findall(r"[a-z]+", text.lower())
            named = [k for k, name in enumerate(self.object_names) if name.lower() in words]
            if len(named) == 1:
                out[i] = named[0]
        return out

    def split(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Expert frames for training and those of held-out episodes: two int64 arrays."""
        held = np.zeros(self.episodes, bool)
        for root in range(self.root_count):
            members = np.unique(self.episode_of[self.root_of == root])
            count = int(round(self.config.holdout_fraction * len(members)))
            if self.config.holdout_fraction > 0 and len(members) >= 5:
                count = max(count, 1)
            rng = np.random.default_rng([seed, 7])
            held[rng.permutation(members)[:count]] = True
        out = held[self.episode_of]
        train = np.flatnonzero(self.expert & ~out)
        if not len(train):
            raise DatasetError("no expert frame is left for training; record more episodes")
        return train, np.flatnonzero(self.expert & out)

    def chunk(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """anchor [B, D], action [B, K, D], velocity [B, K, A], action_is_pad [B, K]."""
        ahead = frames[:, None] + np.arange(self.samples)  # [B, K]
        end = self.run_end[frames][:, None]
        rests = self.run_end[frames] == self.last[frames]
        beyond = ahead > end
        pad = beyond & ~rests[:, None]
        picked = np.minimum(ahead, end)
        if self.tool:
            return *self._tool_chunk(frames, picked, beyond), pad
        source = self.action if self.config.position_source == "action" else self.state
        action = source[picked]
        if self.config.position_source == "state":  # the gripper's command, not its lagging width
            action = np.concatenate([action[..., :-1], self.action[picked][..., -1:]], axis=-1)
        velocity = self.velocity[picked]
        velocity = np.where(beyond[..., None], np.float32(0.0), velocity)
        anchor = self.state[frames].copy()
        anchor[:, -1] = 0.0
        return anchor, action, velocity, pad

    def _tool_chunk(
        self, frames: np.ndarray, picked: np.ndarray, beyond: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """anchor, action, velocity of the tool channels; picked, beyond [B, K]: label's frame, and
        whether it stands for a time past the end."""
        source = TOOL_ACTION if self.config.position_source == "action" else TOOL
        start, twists = self.tool[TOOL][frames], self.tool[TOOL_VELOCITY][picked]
        twists = np.where(beyond[..., None], 0.0, twists)
        values, rates = tool_labels(start, self.tool[source][picked], twists)
        action = np.concatenate([values, self.action[picked][..., -1:]], axis=-1)
        anchor = np.zeros((len(frames), action.shape[-1]), np.float32)
        anchor[:, :3] = start[:, :3]
        return anchor, action.astype(np.float32), rates.astype(np.float32)

    def normalization(self, frames: np.ndarray, limit: int = 40000) -> Normalization:
        """Measured over (at most `limit` evenly spaced of) the given frames."""
        picks = frames[:: max(1, len(frames) // limit)]
        anchor, action, _, pad = self.chunk(picks)
        if self.tool:
            reached, rate = action[~pad], self.tool[TOOL_VELOCITY][frames]
        else:
            reached = np.concatenate([self.action[frames], self.state[frames]])
            rate = self.velocity[frames]
        return measure_normalization(
            joint_names=self.joint_names,
            action_names=self.action_names,
            object_names=self.object_names,
            horizon_s=self.config.horizon_s,
            relative=(action - anchor[:, None]).astype(np.float64),
            valid=~pad,
            reached=reached.astype(np.float64),
            rate=rate.astype(np.float64),
            state=self.state[frames].astype(np.float64),
            velocity=self.velocity[frames].astype(np.float64),
            objects=None if self.objects is None else self.objects[frames].astype(np.float64),
        )

    def gather_images(self, frames: np.ndarray) -> np.ndarray:
        """uint8 [B, V, h, w, 3]."""
        shape = self.images[0][0].shape[1:]
        out = np.empty((len(frames), len(self.config.cameras), *shape), np.uint8)
        roots = self.root_of[frames]
        for root in np.unique(roots):
            rows = np.flatnonzero(roots == root)
            local = frames[rows] - self.root_start[root]
            for view, store in enumerate(self.images[root]):
                out[rows, view] = store[local]
        return out


class BatchSource:
    """Batches as a function of (seed, step): order is exact over a resume, no worker state."""

    def __init__(
        self,
        data: ChunkData,
        frames: np.ndarray,
        normalization: Normalization,
        tokenizer: Any,
        max_text_tokens: int,
        augment: AugmentConfig,
        seed: int,
    ) -> None:
        self.data, self.frames, self.seed = data, frames, seed
        self.augment = augment
        self.normalization = normalization
        encoded = [encode_instruction(tokenizer, t, max_text_tokens) for t in data.instructions]
        self._ids = np.stack([ids for ids, _ in encoded])
        self._mask = np.stack([mask for _, mask in encoded])
        self._targets = data.target_objects()
        # Once the arm moves, its own velocity gives the goal away; where the expert takes over,
        # only images and instruction do. Drawing those frames more often makes the policy look.
        onset = frames - data.run_start[frames] < data.config.onset_s * data.fps
        frames = np.sort(np.repeat(frames, np.where(onset, data.config.onset_factor, 1)))
        roots = data.root_of[frames]
        self._by_root = [frames[roots == r] for r in range(data.root_count)]
        wanted = data.config.weights or tuple(float(len(f)) for f in self._by_root)
        share = np.array([w if len(f) else 0.0 for w, f in zip(wanted, self._by_root, strict=True)])
        if share.sum() <= 0:
            raise DatasetError("data.weights leaves no recording to draw from; raise one of them")
        self._share = share / share.sum()

    def training_batch(self, step: int, size: int) -> Batch:
        """The batch of a step, drawn with replacement and augmented."""
        rng = np.random.default_rng([self.seed, step])
        roots = rng.choice(len(self._share), size=size, p=self._share)
        draws = rng.random(size)
        picks = np.array(
            [
                self._by_root[r][int(u * len(self._by_root[r]))]
                for r, u in zip(roots, draws, strict=True)
            ]
        )
        return self._batch(picks, rng)

    def plain_batch(self, frames: np.ndarray) -> Batch:
        """The given frames without augmentation."""
        return self._batch(frames, None)

    def _batch(self, frames: np.ndarray, rng: np.random.Generator | None) -> Batch:
        data = self.data
        anchor, action, action_velocity, pad = data.chunk(frames)
        state, velocity = data.state[frames], data.velocity[frames]
        images: np.ndarray = data.gather_images(frames)
        factor: np.ndarray | None = None
        if rng is not None:
            a, n = self.augment, self.normalization
            noise = rng.standard_normal(state.shape, dtype=np.float32)
            state = state + a.state_noise * np.asarray(n.state_std, np.float32) * noise
            noise = rng.standard_normal(velocity.shape, dtype=np.float32)
            velocity = velocity + a.velocity_noise * np.asarray(n.velocity_std, np.float32) * noise
            if a.velocity_drop > 0:
                hide = rng.random(len(frames)) < a.velocity_drop
                velocity = np.where(
                    hide[:, None], np.asarray(n.velocity_mean, np.float32), velocity
                )
            if a.shift_px > 0:
                images = _shift(images, a.shift_px, rng)
            if a.brightness > 0 or a.colour > 0:
                shape = (len(frames), images.shape[1], 1, 1, 1)
                factor = 1.0 + rng.uniform(-a.brightness, a.brightness, shape)
                tint = rng.uniform(-a.colour, a.colour, (*shape[:-1], 3))
                factor = (factor * (1.0 + tint)).astype(np.float32)
        pixels = torch.from_numpy(images)
        if factor is not None:
            pixels = pixels.float().mul_(torch.from_numpy(factor))
        which = data.instruction_of[frames]
        objects = None if data.objects is None else torch.from_numpy(data.objects[frames])
        return Batch(
            images=pixels,
            state=torch.from_numpy(np.ascontiguousarray(state)),
            velocity=torch.from_numpy(np.ascontiguousarray(velocity)),
            text_ids=torch.from_numpy(self._ids[which]),
            text_mask=torch.from_numpy(self._mask[which]),
            anchor=torch.from_numpy(anchor),
            action=torch.from_numpy(action),
            action_velocity=torch.from_numpy(action_velocity),
            action_is_pad=torch.from_numpy(pad),
            objects=objects,
            target=torch.from_numpy(self._targets[which]),
        )


def _run_ends(expert: np.ndarray) -> np.ndarray:
    """For each frame the last frame of its run of equal `expert` values."""
    length = len(expert)
    out = np.empty(length, np.int64)
    end = length - 1
    for i in range(length - 1, -1, -1):
        if i < length - 1 and expert[i] != expert[i + 1]:
            end = i
        out[i] = end
    return out


def _shift(images: np.ndarray, reach: int, rng: np.random.Generator) -> np.ndarray:
    """Shift each image by up to `reach` pixels, repeating edges."""
    batch, views = images.shape[:2]
    pad = ((0, 0), (0, 0), (reach, reach), (reach, reach), (0, 0))
    wide = np.pad(images, pad, mode="edge")
    height, width = images.shape[2:4]
    out = np.empty_like(images)
    offsets = rng.integers(0, 2 * reach + 1, (batch, views, 2))
    for b in range(batch):
        for v in range(views):
            y, x = offsets[b, v]
            out[b, v] = wide[b, v, y : y + height, x : x + width]
    return out


def decoded_frames(dataset: LeRobotDataset, key: str, cache_dir: str, threads: int) -> np.ndarray:
    """All frames of one camera as a memory-mapped uint8 array [frames, h, w, 3].

    Decoded once into a cache file; the cache is rebuilt when the dataset's metadata change.
    """
    folder = pathlib.Path(cache_dir) / dataset.root.name if cache_dir else dataset.root / ".frames"
    folder.mkdir(parents=True, exist_ok=True)
    array_path = folder / f"{key}.npy"
    note_path = folder / f"{key}.json"
    info = dataset.root / "meta" / "info.json"
    note = {
        "root": str(dataset.root.resolve()),
        "frames": dataset.frame_count,
        "metadata_ns": info.stat().st_mtime_ns,
    }
    if array_path.is_file() and note_path.is_file() and json.loads(note_path.read_text()) == note:
        return np.load(array_path, mmap_mode="r")
    shape = (dataset.frame_count, *dataset.features[key].shape)
    scratch = folder / f"{key}.part.npy"
    store = np.lib.format.open_memmap(scratch, mode="w+", dtype=np.uint8, shape=shape)

    def decode(number: int) -> None:
        e = dataset.episodes[number]
        store[e.start : e.stop] = dataset.video_frames(key, e)

    numbers: Sequence[int] = range(len(dataset.episodes))
    with ThreadPoolExecutor(max(1, threads)) as pool:
        label = f"decode {dataset.root.name} {key.removeprefix(IMAGES)}"
        for _ in tqdm(pool.map(decode, numbers), total=len(numbers), desc=label, disable=None):
            pass
    store.flush()
    scratch.replace(array_path)
    note_path.write_text(json.dumps(note))
    return np.load(array_path, mmap_mode="r")
