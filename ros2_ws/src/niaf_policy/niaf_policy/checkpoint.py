"""Checkpoint folders: safetensors, JSON and tokenizer files, never pickle.

config.json         kind, sizes, cameras, Florence-2 configuration
model.safetensors   network weights without the training-only head
prior.safetensors   what a controller needs to evaluate fields (niaf_field)
normalization.json  statistics
train_config.json   the resolved training configuration
tokenizer.json ...  read by transformers' AutoTokenizer
results.json        training record; evaluation adds to it
"""

from __future__ import annotations

import json
import pathlib
import shutil
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Florence2Config

from niaf_field import Channel, FieldError, Prior, load_prior, save_prior
from niaf_field.channels import (
    CARTESIAN_POSITION,
    CARTESIAN_ROTATION,
    JOINT_POSITION,
    POSITION_NAMES,
)
from niaf_policy.backbone import Florence2Backbone
from niaf_policy.config import Config, ConfigError, ModelConfig, from_dict, to_dict
from niaf_policy.model import NiafPolicy, query_count
from niaf_policy.normalization import Normalization
from niaf_policy.siren import SirenPrior
from niaf_policy.tokenizer import load_tokenizer

KIND = "niaf_policy"
FORMAT_VERSION = 1
CONFIG = "config.json"
MODEL = "model.safetensors"
PRIOR = "prior.safetensors"
NORMALIZATION = "normalization.json"
TRAIN_CONFIG = "train_config.json"
RESULTS = "results.json"
TRAINING_ONLY = "auxiliary."


class CheckpointError(RuntimeError):
    """A checkpoint folder cannot be used; the message names file, problem and remedy."""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded folder. The model is in evaluation mode on the CPU."""

    folder: pathlib.Path
    model: NiafPolicy
    prior: Prior
    normalization: Normalization
    tokenizer: Any
    cameras: tuple[str, ...]
    image_size: tuple[int, int]  # height, width
    max_text_tokens: int
    instructions: tuple[str, ...]


def export_prior(siren: SirenPrior, normalization: Normalization) -> Prior:
    """The shared network with its channel table, as the controller's package holds it."""
    channels = [
        Channel(name, *_meaning(name, normalization), "relative", mean, scale)
        for name, mean, scale in zip(
            normalization.action_names,
            normalization.action_mean,
            normalization.action_scale,
            strict=False,
        )
    ]
    mean, scale = normalization.action_mean[-1], normalization.action_scale[-1]
    channels.append(Channel("gripper", "m", "gripper", "absolute", mean, scale))

    def array(x: Tensor) -> np.ndarray:
        return x.detach().cpu().numpy().astype(np.float32)

    return Prior(
        omega0=siren.omega0,
        gamma_kind=siren.gamma_kind,
        weights=tuple(array(w) for w in siren.weights),
        biases=tuple(array(b) for b in siren.biases),
        w_out=array(siren.w_out),
        b_out=array(siren.b_out),
        channels=tuple(channels),
        horizon_s=normalization.horizon_s,
        limits={
            "position_min": normalization.position_min,
            "position_max": normalization.position_max,
            "velocity_min": normalization.velocity_min,
            "velocity_max": normalization.velocity_max,
        },
    )


def _meaning(name: str, normalization: Normalization) -> tuple[str, str]:
    """Unit and kind of a channel that moves the arm."""
    if not normalization.moves_tool:
        return "rad", JOINT_POSITION
    return ("m", CARTESIAN_POSITION) if name in POSITION_NAMES else ("rad", CARTESIAN_ROTATION)


def shipped_state(model: nn.Module) -> dict[str, Tensor]:
    """Weights without the training-only head; of tensors that share memory the first name stays."""
    out: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict().items():
        if name.startswith(TRAINING_ONLY) or tensor.data_ptr() in seen:
            continue
        if tensor.numel():
            seen.add(tensor.data_ptr())
        out[name] = tensor.detach().cpu().contiguous()
    return out


def load_weights(model: nn.Module, weights: dict[str, Tensor], origin: str) -> None:
    """Load what `shipped_state` saved; anything missing or surplus is a CheckpointError."""
    expected = set(shipped_state(model))
    missing, surplus = sorted(expected - set(weights)), sorted(set(weights) - expected)
    if missing or surplus:
        raise CheckpointError(
            f"'{origin}' does not fit the model in {CONFIG}: {len(missing)} tensors missing "
            f"(first {missing[:2]}), {len(surplus)} unknown (first {surplus[:2]}); use the folder "
            "as it was saved"
        )
    try:
        model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise CheckpointError(
            f"'{origin}' does not fit the model in {CONFIG}: {error}; use the folder as saved"
        ) from error


def save_checkpoint(
    folder: pathlib.Path,
    *,
    model: NiafPolicy,
    config: Config,
    normalization: Normalization,
    tokenizer: Any,
    image_size: tuple[int, int],
    instructions: tuple[str, ...],
    results: dict[str, Any],
) -> None:
    """Write a whole folder; it appears under its name only when complete."""
    scratch = folder.with_name(folder.name + ".part")
    if scratch.exists():
        shutil.rmtree(scratch)
    scratch.mkdir(parents=True)
    described = {
        "kind": KIND,
        "format_version": FORMAT_VERSION,
        "cameras": list(config.data.cameras),
        "image_size": list(image_size),
        "instructions": list(instructions),
        "model": to_dict(config.model),
        "florence2": model.backbone.config.to_diff_dict(),
        "parameters": sum(t.numel() for t in shipped_state(model).values()),
    }
    write_json(scratch / CONFIG, described)
    save_file(shipped_state(model), str(scratch / MODEL))
    save_prior(export_prior(model.prior, normalization), scratch / PRIOR)
    normalization.save(scratch / NORMALIZATION)
    write_json(scratch / TRAIN_CONFIG, to_dict(config))
    write_json(scratch / RESULTS, results)
    tokenizer.save_pretrained(str(scratch))
    for path in scratch.iterdir():
        path.chmod(0o644)  # safetensors makes files that only their owner can read
    if folder.exists():
        shutil.rmtree(folder)
    scratch.replace(folder)


def load_checkpoint(folder: str | pathlib.Path) -> Checkpoint:
    """Load a folder for inference or as the start of another run.

    Raises CheckpointError naming the file, what is wrong with it and what to do.
    """
    root = pathlib.Path(folder)
    if not root.is_dir():
        raise CheckpointError(
            f"checkpoint folder '{root}' does not exist; give the folder that holds {CONFIG}"
        )
    for name in (CONFIG, MODEL, PRIOR, NORMALIZATION, "tokenizer.json", "tokenizer_config.json"):
        if not (root / name).is_file():
            raise CheckpointError(
                f"'{root / name}' is missing; copy the whole checkpoint folder again"
            )
    described = read_json(root / CONFIG)
    if described.get("kind") != KIND or described.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"'{root / CONFIG}' says kind {described.get('kind')!r} version "
            f"{described.get('format_version')!r}, this program reads {KIND!r} version "
            f"{FORMAT_VERSION}; use a checkpoint made by it"
        )
    try:
        normalization = Normalization.from_json(read_json(root / NORMALIZATION))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"'{root / NORMALIZATION}' is damaged ({error!r}); copy the folder again"
        ) from error
    try:
        model_config: ModelConfig = from_dict(ModelConfig, described["model"], "model.")
        florence = Florence2Config.from_dict(dict(described["florence2"]))
        backbone = Florence2Backbone(florence, query_count(model_config))
        cameras = tuple(str(c) for c in described["cameras"])
        height, width = (int(n) for n in described["image_size"])
        instructions = tuple(str(t) for t in described["instructions"])
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"'{root / CONFIG}' is damaged ({error}); copy the folder again"
        ) from error
    model = NiafPolicy(model_config, normalization, backbone)
    load_weights(model, read_tensors(root / MODEL), str(root / MODEL))
    model.eval()
    try:
        prior = load_prior(root / PRIOR)
    except FieldError as error:
        raise CheckpointError(f"'{root / PRIOR}' cannot be used: {error}") from error
    if prior.prior_id != export_prior(model.prior, normalization).prior_id:
        raise CheckpointError(
            f"'{root / PRIOR}' does not belong to '{root / MODEL}': their sine networks or "
            "channel tables differ; copy both from the same checkpoint"
        )
    try:
        tokenizer = load_tokenizer(root)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"tokenizer files in '{root}' cannot be read: {error}; copy the folder again"
        ) from error
    return Checkpoint(
        root,
        model,
        prior,
        normalization,
        tokenizer,
        cameras,
        (height, width),
        model_config.max_text_tokens,
        instructions,
    )


def read_tensors(path: pathlib.Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file; all must be finite."""
    try:
        tensors = load_file(str(path))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"'{path}' is not a readable safetensors file ({error}); copy it again"
        ) from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"'{path}': tensor '{name}' is not finite; use another checkpoint"
            )
    return dict(tensors)


def read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"'{path}' is not readable JSON ({error}); copy it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"'{path}' must hold a JSON object; copy it again")
    return value


def write_json(path: pathlib.Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
