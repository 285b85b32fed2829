"""Configuration of a training run: dataclasses, one YAML file, dotted overrides."""

from __future__ import annotations

import dataclasses
import difflib
import json
import pathlib
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml


class ConfigError(ValueError):
    """A configuration value is unknown or out of range; the message names key, value, remedy."""


@dataclass(frozen=True)
class BackboneConfig:
    """Florence-2: either a checkpoint folder, or the sizes of a fresh one."""

    # Folder of a Florence-2 checkpoint (transformers layout); empty: a fresh model of sizes below.
    pretrained: str = ""
    # Vision stages (DaViT): channels, blocks per stage, kernel, stride, padding, heads (= groups).
    embed_dim: tuple[int, ...] = (32, 64, 128)
    depths: tuple[int, ...] = (0, 1, 2)
    patch_size: tuple[int, ...] = (7, 3, 3)
    patch_stride: tuple[int, ...] = (4, 2, 2)
    patch_padding: tuple[int, ...] = (3, 1, 1)
    num_heads: tuple[int, ...] = (1, 2, 4)
    window_size: int = 6
    mlp_ratio: float = 2.0
    # Language part (BART): width, layers, heads, feed-forward width.
    d_model: int = 128
    encoder_layers: int = 2
    decoder_layers: int = 2
    attention_heads: int = 4
    ffn_dim: int = 256
    dropout: float = 0.0


@dataclass(frozen=True)
class SirenConfig:
    """The shared sine network and how it is modulated."""

    # Sine layers L, width H, weight groups per layer G; queries Q = L (G + 1).
    layers: int = 3
    width: int = 64
    groups: int = 8
    # Factor inside every sine; 8 suits a horizon of about one second (papers use 30).
    omega0: float = 8.0
    # 'full': one factor per weight (project default); 'row': one factor per row.
    gamma: str = "full"


@dataclass(frozen=True)
class ModelConfig:
    """Backbone, prior and inputs."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    siren: SirenConfig = field(default_factory=SirenConfig)
    # One input token made of joint positions, gripper width and (optionally) joint velocities.
    proprioception: bool = True
    proprioception_velocity: bool = True
    proprioception_hidden: int = 128
    # Longest instruction in tokens, begin and end marks included; longer ones are refused.
    max_text_tokens: int = 16
    # Fresh tokenizer only: entries in the byte-pair vocabulary (at least 261).
    vocab_size: int = 320


@dataclass(frozen=True)
class DataConfig:
    """Which recordings, and what a label is."""

    # LeRobot directories, and how often each is drawn (empty: in proportion to its frames).
    roots: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    # Camera names in the order of the model's views.
    cameras: tuple[str, ...] = ("scene", "wrist")
    # Length of a chunk in seconds; its samples lie on the frame grid, both ends included.
    horizon_s: float = 1.0
    # What the channels move: 'joints', or 'tool' (an end-effector policy: position and rotation
    # vector relative to the tool pose at the observation; needs tool poses in the recordings).
    channels: str = "joints"
    # Position labels: 'action' (reference sent to the arm) or 'state' (measured).
    position_source: str = "action"
    # Frames in the first onset_s of a run of expert frames are drawn onset_factor times as often.
    onset_s: float = 0.4
    onset_factor: int = 1
    # Share of episodes kept out of training, and the frames drawn from them per evaluation.
    holdout_fraction: float = 0.05
    holdout_frames: int = 512
    # Folder of the decoded-frame cache; empty: '.frames' inside each dataset.
    cache_dir: str = ""
    decode_threads: int = 2


@dataclass(frozen=True)
class AugmentConfig:
    """Disturbances of the observation during training; labels stay with the true state."""

    # Standard deviations in units of the data's own standard deviation.
    state_noise: float = 0.02
    velocity_noise: float = 0.05
    # Probability of hiding the joint velocities (set to their mean).
    velocity_drop: float = 0.0
    # Half width of a uniform factor on brightness, per image.
    brightness: float = 0.05
    # Half width of a uniform per-channel factor.
    colour: float = 0.02
    # Largest shift in pixels, with edge replication; 0: off (it breaks localisation).
    shift_px: int = 0


@dataclass(frozen=True)
class LossConfig:
    """Weights. Every term is a mean over valid samples and channels, then weighted.

    position: squared error of the normalised action (unit: channel scale squared).
    velocity: squared error of analytic velocity against the measured one (rad/s; of the tool also
        m/s), each channel divided by its velocity scale (normalization.json).
    jerk: squared analytic jerk in (rad/s^3)^2, so the weight has unit (rad/s^3)^-2; of tool
        positions in (m/s^3)^2 with the same weight.
    auxiliary: squared error of privileged object positions in units of their standard deviation.
    """

    position: float = 1.0
    velocity: float = 0.2
    jerk: float = 1.0e-8
    auxiliary: float = 0.3
    # Relative weight of the gripper channel within the position term.
    gripper: float = 1.0
    # Samples at t seconds into the chunk weigh exp(-t / this); 0: all the same.
    time_constant_s: float = 0.0


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay."""

    lr: float = 5.0e-4
    # Factor on lr for a pretrained backbone's own parameters.
    backbone_lr_factor: float = 1.0
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    grad_clip: float = 1.0
    warmup_steps: int = 300
    # Learning rate at the end as a share of lr.
    final_lr_factor: float = 0.02
    ema_decay: float = 0.999


@dataclass(frozen=True)
class TrainConfig:
    """Length, rhythm and place of the run."""

    output_dir: str = "out/train"
    seed: int = 0
    batch_size: int = 64
    steps: int = 10000
    # Wall-clock limit in minutes (0: none). The learning rate decays along whichever ends first.
    max_minutes: float = 0.0
    save_minutes: float = 10.0
    save_steps: int = 0
    keep_checkpoints: int = 2
    eval_steps: int = 500
    log_steps: int = 20
    threads: int = 2
    # bfloat16 autocast; worth it on GPUs, not on the CPUs measured here.
    bf16: bool = False
    # 'auto' takes a GPU when there is one.
    device: str = "auto"
    # Checkpoint folder to take weights, normalisation and tokenizer from (a new run, step 0).
    init_from: str = ""


@dataclass(frozen=True)
class Config:
    """Everything a run depends on; saved as train_config.json beside the weights."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        _check(self)


def _check(c: Config) -> None:
    def need(ok: bool, key: str, value: Any, rule: str) -> None:
        if not ok:
            raise ConfigError(f"{key} = {value!r}: {rule}")

    b, s, d, t = c.model.backbone, c.model.siren, c.data, c.train
    stages = {len(b.embed_dim), len(b.depths), len(b.patch_size), len(b.patch_stride)}
    stages |= {len(b.patch_padding), len(b.num_heads)}
    need(len(stages) == 1, "model.backbone", stages, "all stage lists need the same length")
    need(s.gamma in ("full", "row"), "model.siren.gamma", s.gamma, "use 'full' or 'row'")
    need(s.layers >= 1, "model.siren.layers", s.layers, "must be at least 1")
    need(s.groups >= 1, "model.siren.groups", s.groups, "must be at least 1")
    need(
        s.width % s.groups == 0,
        "model.siren.groups",
        s.groups,
        f"must divide model.siren.width = {s.width}",
    )
    need(s.omega0 > 0, "model.siren.omega0", s.omega0, "must be positive")
    need(c.model.vocab_size >= 261, "model.vocab_size", c.model.vocab_size, "at least 261")
    need(d.horizon_s > 0, "data.horizon_s", d.horizon_s, "must be positive")
    need(
        d.position_source in ("action", "state"),
        "data.position_source",
        d.position_source,
        "use 'action' or 'state'",
    )
    need(d.channels in ("joints", "tool"), "data.channels", d.channels, "use 'joints' or 'tool'")
    need(
        not d.weights or len(d.weights) == len(d.roots),
        "data.weights",
        d.weights,
        f"one per data.roots entry ({len(d.roots)}), or empty",
    )
    need(all(w >= 0 for w in d.weights), "data.weights", d.weights, "must not be negative")
    need(d.onset_factor >= 1, "data.onset_factor", d.onset_factor, "must be at least 1")
    need(0 <= d.holdout_fraction < 1, "data.holdout_fraction", d.holdout_fraction, "in [0, 1)")
    need(t.batch_size >= 1, "train.batch_size", t.batch_size, "must be at least 1")
    need(t.steps >= 1, "train.steps", t.steps, "must be at least 1")
    need(0 < c.optimizer.lr < 1, "optimizer.lr", c.optimizer.lr, "must lie in (0, 1)")


def from_dict(cls: type, values: Any, prefix: str = "") -> Any:
    """Build a config dataclass from nested mappings; unknown keys and wrong types are refused."""
    if not isinstance(values, dict):
        raise ConfigError(f"'{prefix or 'config'}' must be a mapping, got {values!r}")
    hints = typing.get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}
    kwargs: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean '{prefix}{near[0]}'?" if near else f"; known: {sorted(known)}"
            raise ConfigError(f"unknown setting '{prefix}{key}'{hint}")
        kwargs[key] = _coerce(hints[key], value, f"{prefix}{key}")
    return cls(**kwargs)


def _coerce(hint: Any, value: Any, key: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_dict(hint, value, key + ".")
    origin = typing.get_origin(hint)
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, (list, tuple)):
            raise ConfigError(f"{key} = {value!r}: give a list")
        args = typing.get_args(hint)
        item = args[0]
        if len(args) > 1 and args[1] is not Ellipsis and len(value) != len(args):
            raise ConfigError(f"{key} = {value!r}: give {len(args)} values")
        return tuple(_coerce(item, v, f"{key}[{i}]") for i, v in enumerate(value))
    if origin is types.UnionType:
        raise ConfigError(f"{key}: union types are not supported")
    if hint is bool:
        if not isinstance(value, bool):
            raise ConfigError(f"{key} = {value!r}: give true or false")
        return value
    if hint is float:
        if isinstance(value, str):  # YAML reads 1e-4 as text
            try:
                value = float(value)
            except ValueError:
                raise ConfigError(f"{key} = {value!r}: give a number") from None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(f"{key} = {value!r}: give a number")
        return float(value)
    if hint is int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"{key} = {value!r}: give a whole number")
        return value
    if hint is str:
        if not isinstance(value, str):
            raise ConfigError(f"{key} = {value!r}: give text")
        return value
    raise ConfigError(f"{key}: type {hint} is not supported")


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply 'a.b.c=value' assignments (value in YAML) to nested mappings; returns a copy."""
    out: dict[str, Any] = json.loads(json.dumps(values))
    for text in overrides:
        key, separator, raw = text.partition("=")
        if not separator or not key:
            raise ConfigError(f"override '{text}' must look like section.name=value")
        node = out
        *parents, last = key.split(".")
        for name in parents:
            node = node.setdefault(name, {})
            if not isinstance(node, dict):
                raise ConfigError(f"override '{text}': '{name}' is not a section")
        node[last] = yaml.safe_load(raw)
    return out


def load_config(path: str | pathlib.Path | None, overrides: Sequence[str] = ()) -> Config:
    """Defaults, then the YAML file, then dotted overrides."""
    values: Any = {}
    if path is not None:
        try:
            values = yaml.safe_load(pathlib.Path(path).read_text()) or {}
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(f"config file '{path}' cannot be read: {error}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"config file '{path}' must hold a mapping")
    config: Config = from_dict(Config, apply_overrides(values, overrides))
    return config


def to_dict(config: Any) -> dict[str, Any]:
    """Nested mappings of plain lists and numbers, fit for JSON."""
    return dict(json.loads(json.dumps(dataclasses.asdict(config))))
