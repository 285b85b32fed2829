"""The prior: shared sine-network weights, channel table, normalisation and trained limits.

A prior is immutable. Its ``prior_id`` is the SHA-256 of its whole content, so that two nodes can
prove that they mean the same network. Weights are stored in float32, as they are trained.

File format: safetensors with tensors ``sine.<l>.weight`` [H, 1 or H], ``sine.<l>.bias`` [H] for
l = 1..L, ``output.weight`` [D, H], ``output.bias`` [D], and metadata keys ``format``, ``content``
(JSON) and ``prior_id``.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError, safe_open

from niaf_field.channels import Channel, check_channels
from niaf_field.errors import FieldError, PriorError
from niaf_field.modulation import GAMMA_KINDS, ModulationLayout

FILE_FORMAT = "niaf-prior-1"
_CONTENT_KEYS = {"omega0", "gamma_kind", "horizon_s", "sine_layers", "width", "channels", "limits"}

Limits = Mapping[str, Sequence[float]]


@dataclass(frozen=True, eq=False)
class Prior:
    """Shared SIREN and everything needed to turn its output into physical units.

    Shapes: ``weights`` is (W_1 [H, 1], W_2 .. W_L [H, H]); ``biases`` is L vectors [H];
    ``w_out`` [D, H]; ``b_out`` [D]. Layer: h_l = sin(omega0 (W_l h_(l-1) + b_l)), h_0 = tau.

    ``horizon_s`` is the time that tau in [-1, 1] spans. ``limits`` holds what was seen in training,
    D numbers per key in absolute physical channel units, keys in pairs ``<quantity>_min`` and
    ``<quantity>_max``, for example ``position_min``, ``position_max``, ``velocity_min``,
    ``velocity_max``. It may be empty.
    """

    omega0: float
    gamma_kind: str
    weights: tuple[NDArray[np.float32], ...]
    biases: tuple[NDArray[np.float32], ...]
    w_out: NDArray[np.float32]
    b_out: NDArray[np.float32]
    channels: tuple[Channel, ...]
    horizon_s: float
    limits: Limits = field(default_factory=dict)

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        set_(self, "omega0", _positive("omega0", self.omega0))
        set_(self, "horizon_s", _positive("horizon_s", self.horizon_s))
        if self.gamma_kind not in GAMMA_KINDS:
            raise PriorError(
                f"gamma_kind {self.gamma_kind!r} is unknown; use one of {', '.join(GAMMA_KINDS)}"
            )
        channels = check_channels(self.channels)
        set_(self, "channels", channels)
        if not self.weights or len(self.weights) != len(self.biases):
            raise PriorError(
                f"a prior needs as many weight matrices as bias vectors and at least one of each, "
                f"got {len(self.weights)} and {len(self.biases)}"
            )
        first = np.asarray(self.weights[0])
        if first.ndim != 2 or first.shape[1] != 1 or first.shape[0] < 1:
            raise PriorError(f"sine.1.weight has shape {first.shape}, expected [H, 1]")
        width = int(first.shape[0])
        weights = []
        biases = []
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True), 1):
            columns = 1 if layer == 1 else width
            weights.append(_tensor(f"sine.{layer}.weight", weight, (width, columns)))
            biases.append(_tensor(f"sine.{layer}.bias", bias, (width,)))
        set_(self, "weights", tuple(weights))
        set_(self, "biases", tuple(biases))
        set_(self, "w_out", _tensor("output.weight", self.w_out, (len(channels), width)))
        set_(self, "b_out", _tensor("output.bias", self.b_out, (len(channels),)))
        set_(self, "limits", _checked_limits(self.limits, len(channels)))

    @property
    def L(self) -> int:
        """Number of sine layers."""
        return len(self.weights)

    @property
    def H(self) -> int:
        """Width of every sine layer."""
        return int(self.weights[0].shape[0])

    @property
    def D(self) -> int:
        """Number of channels."""
        return len(self.channels)

    @cached_property
    def layout(self) -> ModulationLayout:
        return ModulationLayout(self.L, self.H, self.gamma_kind)

    @property
    def gamma_length(self) -> int:
        return self.layout.gamma_length

    @property
    def beta_length(self) -> int:
        return self.layout.beta_length

    @cached_property
    def prior_id(self) -> str:
        """SHA-256 (64 hex digits) of weights, omega0, channels, normalisation and limits."""
        digest = hashlib.sha256()
        digest.update(FILE_FORMAT.encode())
        digest.update(_content_json(self).encode())
        for name, tensor in sorted(_tensors(self).items()):
            digest.update(f"{name}{tensor.shape}".encode())
            digest.update(tensor.astype("<f4", copy=False).tobytes())
        return digest.hexdigest()


def initial_prior(
    channels: Sequence[Channel],
    *,
    sine_layers: int,
    width: int,
    omega0: float,
    horizon_s: float,
    gamma_kind: str = "full",
    seed: int = 0,
    limits: Limits | None = None,
) -> Prior:
    """A prior with the standard SIREN initialisation.

    First layer U(-1, 1), later layers U(-b, b) with b = sqrt(6/H) / omega0.

    Biases and the output weights follow the same fan-in rule as later layers; the output bias is
    zero.
    """
    if sine_layers < 1 or width < 1:
        raise PriorError(f"need L >= 1 and H >= 1, got L={sine_layers}, H={width}")
    random = np.random.default_rng(seed)
    bound = math.sqrt(6.0 / width) / _positive("omega0", omega0)
    weights = [random.uniform(-1.0, 1.0, (width, 1))]
    biases = [random.uniform(-1.0, 1.0, width)]
    for _ in range(sine_layers - 1):
        weights.append(random.uniform(-bound, bound, (width, width)))
        biases.append(random.uniform(-bound, bound, width))
    return Prior(
        omega0=omega0,
        gamma_kind=gamma_kind,
        weights=tuple(w.astype(np.float32) for w in weights),
        biases=tuple(b.astype(np.float32) for b in biases),
        w_out=random.uniform(-bound, bound, (len(channels), width)).astype(np.float32),
        b_out=np.zeros(len(channels), dtype=np.float32),
        channels=tuple(channels),
        horizon_s=horizon_s,
        limits={} if limits is None else limits,
    )


def save_prior(prior: Prior, path: str | os.PathLike[str]) -> None:
    """Write the prior; the file appears whole or not at all."""
    target = Path(path)
    metadata = {
        "format": FILE_FORMAT,
        "content": _content_json(prior),
        "prior_id": prior.prior_id,
    }
    data = safetensors.numpy.save(_tensors(prior), metadata=metadata)
    try:
        descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=target.name + ".")
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, target)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise PriorError(
            f"cannot write prior {target}: {error}; check that the folder exists and is writable"
        ) from error


def load_prior(path: str | os.PathLike[str]) -> Prior:
    """Read a prior and verify its content hash; any defect is a PriorError that names the file."""
    source = Path(path)
    if not source.is_file():
        raise PriorError(
            f"prior {source} does not exist or is not a file; point to the prior.safetensors of a "
            "checkpoint folder"
        )
    try:
        with safe_open(str(source), framework="numpy") as reader:
            metadata: dict[str, str] = reader.metadata() or {}
            tensors = {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise PriorError(
            f"prior {source} is not a readable safetensors file ({error}); copy it again from the "
            "checkpoint"
        ) from error
    if metadata.get("format") != FILE_FORMAT:
        raise PriorError(
            f"prior {source} has format {metadata.get('format')!r}, expected {FILE_FORMAT!r}; is "
            "it another safetensors file (model.safetensors is not a prior)?"
        )
    try:
        prior = _prior_from_file(metadata, tensors)
    except (FieldError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"missing {error}" if isinstance(error, KeyError) else str(error)
        raise PriorError(f"prior {source} is damaged or incomplete: {reason}") from error
    stored = metadata.get("prior_id")
    if stored != prior.prior_id:
        raise PriorError(
            f"prior {source}: content hash is {prior.prior_id[:12]}..., the file says "
            f"{str(stored)[:12]}...; the file was changed or damaged, copy it again from the "
            "checkpoint"
        )
    return prior


def _prior_from_file(metadata: Mapping[str, str], tensors: Mapping[str, NDArray[Any]]) -> Prior:
    content = json.loads(metadata["content"])
    if not isinstance(content, dict) or set(content) != _CONTENT_KEYS:
        raise PriorError(f"content must have exactly the keys {sorted(_CONTENT_KEYS)}")
    layers = range(1, int(content["sine_layers"]) + 1)
    expected = {f"sine.{layer}.{part}" for layer in layers for part in ("weight", "bias")}
    expected |= {"output.weight", "output.bias"}
    if set(tensors) != expected:
        odd = sorted(set(tensors) ^ expected)
        raise PriorError(f"tensors missing or unexpected: {', '.join(odd)}")
    for name, tensor in tensors.items():
        if tensor.dtype != np.float32:
            raise PriorError(f"tensor {name} has type {tensor.dtype}, expected float32")
    return Prior(
        omega0=content["omega0"],
        gamma_kind=content["gamma_kind"],
        weights=tuple(tensors[f"sine.{layer}.weight"] for layer in layers),
        biases=tuple(tensors[f"sine.{layer}.bias"] for layer in layers),
        w_out=tensors["output.weight"],
        b_out=tensors["output.bias"],
        channels=tuple(Channel.from_json(entry) for entry in content["channels"]),
        horizon_s=content["horizon_s"],
        limits=content["limits"],
    )


def _tensors(prior: Prior) -> dict[str, NDArray[np.float32]]:
    tensors = {"output.weight": prior.w_out, "output.bias": prior.b_out}
    for layer, (weight, bias) in enumerate(zip(prior.weights, prior.biases, strict=True), 1):
        tensors[f"sine.{layer}.weight"] = weight
        tensors[f"sine.{layer}.bias"] = bias
    return tensors


def _content_json(prior: Prior) -> str:
    content = {
        "omega0": prior.omega0,
        "gamma_kind": prior.gamma_kind,
        "horizon_s": prior.horizon_s,
        "sine_layers": prior.L,
        "width": prior.H,
        "channels": [channel.to_json() for channel in prior.channels],
        "limits": {key: list(values) for key, values in prior.limits.items()},
    }
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _positive(name: str, value: float) -> float:
    number = float(value)
    if not math.isfinite(number) or number <= 0.0:
        raise PriorError(f"{name} must be finite and positive, got {value}")
    return number


def _tensor(name: str, values: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.float32]:
    tensor = np.array(values, dtype=np.float32, order="C")
    if tensor.shape != shape:
        raise PriorError(f"{name} has shape {tensor.shape}, expected {shape}")
    if not np.isfinite(tensor).all():
        raise PriorError(f"{name} holds values that are not finite; was the training stable?")
    tensor.setflags(write=False)
    return tensor


def _checked_limits(limits: Limits, channel_count: int) -> dict[str, tuple[float, ...]]:
    checked: dict[str, tuple[float, ...]] = {}
    for key, values in limits.items():
        numbers = tuple(float(value) for value in values)
        if not (key.endswith("_min") or key.endswith("_max")):
            raise PriorError(f"limit {key!r}: keys must end in _min or _max")
        if len(numbers) != channel_count or not all(map(math.isfinite, numbers)):
            raise PriorError(
                f"limit {key!r} needs {channel_count} finite numbers (one per channel), got "
                f"{list(numbers)}"
            )
        checked[key] = numbers
    for key, lower in checked.items():
        if key.endswith("_max"):
            continue
        upper = checked.get(key[:-4] + "_max")
        if upper is not None and any(lo > hi for lo, hi in zip(lower, upper, strict=True)):
            raise PriorError(f"limit {key!r} is above {key[:-4] + '_max'!r} for some channel")
    return checked
