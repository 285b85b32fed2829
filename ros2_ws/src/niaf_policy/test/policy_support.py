"""Tiny models, checkpoints and recordings for the tests."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from niaf_data import LeRobotWriter, recording_features
from niaf_policy.checkpoint import save_checkpoint
from niaf_policy.config import Config, from_dict
from niaf_policy.model import NiafPolicy, fresh_backbone
from niaf_policy.normalization import Normalization
from niaf_policy.tokenizer import train_tokenizer
from niaf_policy.tool_labels import TOOL_NAMES

JOINTS = tuple(f"panda_joint{i}" for i in range(1, 8))
OBJECTS = ("red", "green")
INSTRUCTIONS = ("pick up the red cube", "pick up the green cube")
IMAGE = 32
FPS = 20
TINY_MODEL: dict[str, Any] = {
    "backbone": {
        "embed_dim": [8, 16],
        "depths": [1, 1],
        "patch_size": [7, 3],
        "patch_stride": [4, 2],
        "patch_padding": [3, 1],
        "num_heads": [1, 2],
        "window_size": 4,
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "attention_heads": 2,
        "ffn_dim": 32,
    },
    "siren": {"layers": 2, "width": 16, "groups": 4},
    "proprioception_hidden": 16,
    "max_text_tokens": 24,
    "vocab_size": 280,
}


def normalization(samples: int = 11, tool: bool = False) -> Normalization:
    """Plausible statistics, different for every channel. ``tool``: the channels move the tool."""
    ramp = tuple(float(np.float32(0.1 + 0.02 * i)) for i in range(8))
    joints, zeros = ramp[:7], (0.0,) * 8
    made = Normalization(
        joint_names=JOINTS,
        action_names=JOINTS,
        horizon_s=0.5,
        samples=samples,
        action_mean=tuple(float(np.float32(0.01 * i)) for i in range(8)),
        action_scale=ramp,
        velocity_scale=joints,
        state_mean=zeros,
        state_std=ramp,
        velocity_mean=zeros[:7],
        velocity_std=joints,
        position_min=(-2.0,) * 8,
        position_max=(2.0,) * 8,
        velocity_min=(-1.0,) * 8,
        velocity_max=(1.0,) * 8,
        object_names=OBJECTS,
        object_mean=(0.1,) * 6,
        object_std=(0.2,) * 6,
    )
    if not tool:
        return made
    return dataclasses.replace(
        made,
        action_names=TOOL_NAMES,
        action_mean=zeros[:7],
        action_scale=(0.05, 0.05, 0.05, 0.2, 0.2, 0.2, 0.04),
        velocity_scale=(0.1, 0.1, 0.1, 0.5, 0.5, 0.5),
        **{
            name: getattr(made, name)[:7]
            for name in ("position_min", "position_max", "velocity_min", "velocity_max")
        },
    )


def tiny_config(**sections: dict[str, Any]) -> Config:
    """A config with the tiny model; sections override whole keys of a section."""
    values: dict[str, Any] = {"model": dict(TINY_MODEL)}
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    config: Config = from_dict(Config, values)
    return config


def tiny_model(
    config: Config, seed: int = 0, auxiliary: bool = False, tool: bool = False
) -> tuple[NiafPolicy, Any]:
    """(model, tokenizer), untrained: its heads are zero."""
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(INSTRUCTIONS, config.model.vocab_size)
    backbone = fresh_backbone(config.model, tokenizer)
    return NiafPolicy(config.model, normalization(tool=tool), backbone, auxiliary), tokenizer


def stir_heads(model: NiafPolicy, spread: float = 0.05, seed: int = 1) -> None:
    """Give the zero heads values, so that the field depends on the observation."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.heads.parameters():
            parameter.copy_(spread * torch.randn(parameter.shape, generator=generator))


def make_checkpoint(folder: pathlib.Path, **sections: dict[str, Any]) -> pathlib.Path:
    """Write a checkpoint of a tiny model whose heads answer to the observation."""
    config = tiny_config(**sections)
    model, tokenizer = tiny_model(config)
    stir_heads(model)
    save_checkpoint(
        folder,
        model=model.eval(),
        config=config,
        normalization=normalization(),
        tokenizer=tokenizer,
        image_size=(IMAGE, IMAGE),
        instructions=INSTRUCTIONS,
        results={},
    )
    return folder


def tool_columns(t: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of a tool that swings with the times t [N]; its reference is 5 mm higher."""
    place = np.stack([0.5 + 0.1 * np.sin(2 * t), 0.0 * t, 0.3 + 0.05 * np.cos(2 * t)], axis=1)
    speed = np.stack([0.2 * np.cos(2 * t), 0.0 * t, -0.1 * np.sin(2 * t)], axis=1)
    axis = np.array([0.0, 1.0, 0.0])
    turn = Rotation.from_rotvec(0.3 * np.sin(2 * t)[:, None] * axis)
    pose = np.hstack([place, (turn * Rotation.from_rotvec([np.pi, 0.0, 0.0])).as_quat()])
    twist = np.hstack([speed, 0.6 * np.cos(2 * t)[:, None] * axis])
    columns = {
        "observation.tool_pose": pose,
        "observation.tool_velocity": twist,
        "action.tool_pose": pose + np.array([0.0, 0.0, 0.005, 0.0, 0.0, 0.0, 0.0]),
    }
    return {key: values.astype(np.float32) for key, values in columns.items()}


def make_recording(
    root: pathlib.Path, episodes: int = 3, length: int = 14, seed: int = 0, tool: bool = False
) -> pathlib.Path:
    """Smooth joint motions with images that show their phase; some frames are not the expert's.

    ``tool``: with poses of a tool that moves along x and z and turns about the base's y, the hand
    pointing down (about half a turn from the base); it does not belong to the joints.
    """
    features = recording_features(JOINTS, {"scene": (IMAGE, IMAGE), "wrist": (IMAGE, IMAGE)},
                                  OBJECTS, tool=tool)
    rng = np.random.default_rng(seed)
    with LeRobotWriter(root, FPS, features, "panda") as writer:
        for e in range(episodes):
            t = np.arange(length) / FPS
            phase = rng.uniform(0, 2 * np.pi, 7)
            q = 0.3 * np.sin(2.0 * t[:, None] + phase)
            dq = 0.6 * np.cos(2.0 * t[:, None] + phase)
            grip = np.where(t > 0.3, 0.08, 0.0)[:, None]
            image = np.zeros((length, IMAGE, IMAGE, 3), np.uint8)
            image[..., 0] = (np.arange(length) * 8 % 256)[:, None, None]
            image[:, :, e * 4 : e * 4 + 4, 1] = 200
            expert = np.ones(length, bool)
            if e == 1:
                expert[5:8] = False
            swing = t + rng.uniform(0, 2 * np.pi)
            writer.add_episode(
                {
                    **(tool_columns(swing) if tool else {}),
                    "observation.state": np.hstack([q, grip]).astype(np.float32),
                    "observation.velocity": dq.astype(np.float32),
                    "action": np.hstack([q + 0.01, grip]).astype(np.float32),
                    "is_expert": expert,
                    "privileged.cubes": rng.normal(0.3, 0.1, (length, 6)).astype(np.float32),
                    "observation.images.scene": image,
                    "observation.images.wrist": image[:, ::-1].copy(),
                },
                INSTRUCTIONS[e % 2],
            )
    return root
