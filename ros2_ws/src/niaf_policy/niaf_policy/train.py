"""Train a policy.

    python -m niaf_policy.train --config train_demo.yaml data.roots=[out/data] optimizer.lr=3e-4
    python -m niaf_policy.train --resume out/train

Everything random is derived from (seed, step), so a resumed run repeats the uninterrupted one.
"""

from __future__ import annotations

import argparse
import copy
import math
import pathlib
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from niaf_data import DatasetError
from niaf_policy.batches import Batch, BatchSource, ChunkData
from niaf_policy.checkpoint import (
    TRAIN_CONFIG,
    TRAINING_ONLY,
    CheckpointError,
    load_checkpoint,
    load_weights,
    read_json,
    read_tensors,
    save_checkpoint,
    shipped_state,
    write_json,
)
from niaf_policy.config import (
    Config,
    ConfigError,
    OptimizerConfig,
    apply_overrides,
    from_dict,
    load_config,
)
from niaf_policy.losses import LossScales, action_losses, auxiliary_loss, jet_order, total_loss
from niaf_policy.model import NiafPolicy, fresh_backbone
from niaf_policy.siren import sample_grid
from niaf_policy.tokenizer import load_tokenizer, train_tokenizer

STATE_FOLDER = "training_state"
STATE_FILE = "state.safetensors"


@dataclass
class Progress:
    """What a resumed run must know besides weights."""

    step: int = 0
    elapsed_s: float = 0.0


class Ema:
    """Exponential moving average of all parameters, with a warm-up of its own."""

    def __init__(self, model: NiafPolicy, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False)

    def update(self, model: nn.Module, step: int) -> None:
        decay = min(self.decay, (1.0 + step) / (10.0 + step))
        with torch.no_grad():
            mine, theirs = list(self.model.parameters()), list(model.parameters())
            torch._foreach_lerp_(mine, theirs, 1.0 - decay)


def learning_rate_factor(step: int, progress: float, o: OptimizerConfig) -> float:
    """Linear warm-up over steps, then cosine over `progress` in [0, 1]."""
    warm = min(1.0, (step + 1) / max(1, o.warmup_steps))
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, max(0.0, progress))))
    return warm * (o.final_lr_factor + (1.0 - o.final_lr_factor) * cosine)


class Trainer:
    """One training run in one folder."""

    def __init__(self, config: Config, resume: pathlib.Path | None = None) -> None:
        self.config = config
        t = config.train
        torch.set_num_threads(max(1, t.threads))
        torch.manual_seed(t.seed)
        self.device = torch.device(
            ("cuda" if torch.cuda.is_available() else "cpu") if t.device == "auto" else t.device
        )
        self.folder = pathlib.Path(t.output_dir)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.data = ChunkData(config.data)
        train_frames, held_frames = self.data.split(t.seed)
        auxiliary = config.loss.auxiliary > 0 and bool(self.data.object_names)
        start = resume or (pathlib.Path(t.init_from) if t.init_from else None)
        if start is not None:
            loaded = load_checkpoint(start)
            self.normalization, self.tokenizer = loaded.normalization, loaded.tokenizer
            self._check_normalization(start)
            base = loaded.model
            self.model = NiafPolicy(config.model, self.normalization, base.backbone, auxiliary)
            load_weights(self.model, shipped_state(base), str(start))
            self._load_auxiliary(start / STATE_FOLDER / STATE_FILE)
        else:
            self.normalization = self.data.normalization(train_frames)
            pretrained = config.model.backbone.pretrained
            self.tokenizer = (
                load_tokenizer(pretrained)
                if pretrained
                else train_tokenizer(self.data.instructions, config.model.vocab_size)
            )
            backbone = fresh_backbone(config.model, self.tokenizer)
            self.model = NiafPolicy(config.model, self.normalization, backbone, auxiliary)
        self.model.to(self.device)
        self.ema = Ema(self.model, config.optimizer.ema_decay)
        self.optimizer = self._make_optimizer()
        self.progress = Progress()
        if resume is not None:
            self._load_state(resume / STATE_FOLDER)
        self.batches = BatchSource(
            self.data,
            train_frames,
            self.normalization,
            self.tokenizer,
            config.model.max_text_tokens,
            config.augment,
            t.seed,
        )
        pick = np.random.default_rng([t.seed, 11])
        self.held_frames = np.sort(pick.permutation(held_frames)[: config.data.holdout_frames])
        self.train_frames = train_frames
        self.scales = LossScales.of(self.normalization, self.device)
        self.grid = sample_grid(self.data.samples, self.device)
        self.results: dict[str, Any] = {}

    def _check_normalization(self, origin: pathlib.Path) -> None:
        n, d = self.normalization, self.data
        for what, theirs, ours in (
            ("joints", n.joint_names, d.joint_names),
            ("channels", n.action_names, d.action_names),
            ("samples per chunk", n.samples, d.samples),
        ):
            if theirs != ours:
                raise CheckpointError(
                    f"'{origin}' was trained with {what} {theirs}, the data have {ours}; use "
                    "matching data"
                )

    def _load_auxiliary(self, path: pathlib.Path) -> None:
        """Continue with the training-only head where the other run's state is still there."""
        if self.model.auxiliary is None or not path.is_file():
            return
        tensors = read_tensors(path)
        mark = "ema." + TRAINING_ONLY
        found = {k.removeprefix(mark): v for k, v in tensors.items() if k.startswith(mark)}
        if found:
            self.model.auxiliary.load_state_dict(found, strict=False)

    def _make_optimizer(self) -> torch.optim.AdamW:
        o = self.config.optimizer
        backbone = {id(p) for p in self.model.backbone.florence.parameters()}
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for parameter in self.model.parameters():
            key = (id(parameter) in backbone, parameter.ndim >= 2)
            groups.setdefault(key, []).append(parameter)
        described: list[dict[str, Any]] = []
        for (is_backbone, decays), members in sorted(groups.items()):
            factor = o.backbone_lr_factor if is_backbone else 1.0
            described.append(
                {
                    "params": members,
                    "lr": o.lr * factor,
                    "factor": factor,
                    "weight_decay": o.weight_decay if decays else 0.0,
                }
            )
        # The sine network keeps its scale: decay would flatten it.
        prior = {id(p) for p in self.model.prior.parameters()}
        for group in list(described):
            ours = [p for p in group["params"] if id(p) in prior]
            if ours and group["weight_decay"]:
                group["params"] = [p for p in group["params"] if id(p) not in prior]
                described.append({**group, "params": ours, "weight_decay": 0.0})
        return torch.optim.AdamW(described, betas=o.betas, fused=self.device.type == "cuda")

    def forward(self, model: NiafPolicy, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Jets of a batch (order by the loss weights, at least 1) and the auxiliary answer."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.train.bf16):
            gamma, beta, auxiliary = model(
                batch.images, batch.state, batch.velocity, batch.text_mask, text_ids=batch.text_ids
            )
        order = max(1, jet_order(self.config.loss))
        return model.prior.jets(gamma, beta, self.grid, order), auxiliary

    def terms(self, jets: Tensor, auxiliary: Tensor | None, batch: Batch) -> dict[str, Tensor]:
        """Loss terms of a batch."""
        terms = action_losses(
            jets,
            batch.anchor,
            batch.action,
            batch.action_velocity,
            batch.action_is_pad,
            self.scales,
            self.config.loss,
        )
        if auxiliary is not None and batch.objects is not None:
            terms["auxiliary"] = auxiliary_loss(auxiliary, batch.objects, batch.target, self.scales)
        return terms

    def train_step(self) -> dict[str, float]:
        """One optimiser step; returns plain numbers."""
        t, o = self.config.train, self.config.optimizer
        step = self.progress.step
        torch.manual_seed(hash((t.seed, step)) & 0x7FFFFFFF)  # for dropout, if any
        fraction = step / t.steps
        if t.max_minutes > 0:
            fraction = max(fraction, self.progress.elapsed_s / (60.0 * t.max_minutes))
        factor = learning_rate_factor(step, fraction, o)
        for group in self.optimizer.param_groups:
            group["lr"] = o.lr * group["factor"] * factor
        self.model.train()
        batch = self.batches.training_batch(step, t.batch_size).to(self.device)
        jets, auxiliary = self.forward(self.model, batch)
        terms = self.terms(jets, auxiliary, batch)
        loss = total_loss(terms, self.config.loss)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), o.grad_clip)
        if not bool(torch.isfinite(norm)):
            raise FloatingPointError(
                f"gradient is not finite at step {step} (loss {loss.item()}); lower optimizer.lr, "
                "loss.jerk or model.siren.omega0 and resume from the last checkpoint"
            )
        self.optimizer.step()
        self.ema.update(self.model, step)
        self.progress.step += 1
        numbers = {name: value.item() for name, value in terms.items()}
        return {"loss": loss.item(), **numbers, "grad_norm": float(norm), "lr": o.lr * factor}

    def evaluate(self) -> dict[str, float]:
        """Loss terms and physical errors of the averaged weights on held-out episodes."""
        if not len(self.held_frames):
            return {}
        model = self.ema.model
        model.train()  # the auxiliary head answers in training mode only
        sums: dict[str, float] = {}
        with torch.inference_mode():
            for start in range(0, len(self.held_frames), 64):
                frames = self.held_frames[start : start + 64]
                batch = self.batches.plain_batch(frames).to(self.device)
                jets, auxiliary = self.forward(model, batch)
                numbers = {k: v.item() for k, v in self.terms(jets, auxiliary, batch).items()}
                numbers.update(self._physical_errors(jets, auxiliary, batch))
                for name, value in numbers.items():
                    sums[name] = sums.get(name, 0.0) + value * len(frames)
        return {name: value / len(self.held_frames) for name, value in sums.items()}

    def _physical_errors(
        self, jets: Tensor, auxiliary: Tensor | None, batch: Batch
    ) -> dict[str, float]:
        """Mean absolute errors in rad, m, rad/s, m/s, and the named object's mean distance in m."""
        moving, scale = len(self.normalization.action_names), self.scales
        valid = (~batch.action_is_pad).float().unsqueeze(-1)
        share = valid.mean().clamp_min(1e-6)
        action = jets[:, 0] * scale.action_scale + scale.action_mean + batch.anchor.unsqueeze(1)
        error = (action - batch.action).abs() * valid / share
        rate = jets[:, 1, :, :moving] * (2.0 / scale.horizon_s * scale.action_scale[:moving])
        rate_error = (rate - batch.action_velocity).abs() * valid / share
        half = self.data.samples // 2
        out = {"gripper_error_m": error[..., moving].mean().item()}
        if self.normalization.moves_tool:
            parts = [("tool", "m", slice(0, 3)), ("tool", "rad", slice(3, 6))]
        else:
            parts = [("joint", "rad", slice(0, moving))]
        for name, unit, part in parts:
            out[f"{name}_error_{unit}"] = error[..., part].mean().item()
            out[f"{name}_error_first_half_{unit}"] = error[:, :half, part].mean().item()
            out[f"velocity_error_{unit}_s"] = rate_error[..., part].mean().item()
        named = batch.target >= 0
        if auxiliary is not None and batch.objects is not None and bool(named.any()):
            index = batch.target[named]
            truth = batch.objects[named].view(len(index), -1, 3)
            rows = torch.arange(len(index), device=index.device)
            answer = auxiliary[named, len(self.normalization.object_names)]
            answer = answer * scale.object_std.view(-1, 3)[index]
            answer = answer + scale.object_mean.view(-1, 3)[index]
            out["object_error_m"] = float((answer - truth[rows, index]).norm(dim=-1).mean())
        return out

    def run(self) -> pathlib.Path:
        """Train to the configured end; returns the final checkpoint folder."""
        t = self.config.train
        stop = _StopRequest()
        writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.progress.step)
        started = time.monotonic() - self.progress.elapsed_s
        saved = time.monotonic()
        parameters = sum(v.numel() for v in shipped_state(self.model).values())
        print(
            f"{len(self.train_frames)} training frames, {len(self.held_frames)} held out, "
            f"{len(self.data.instructions)} instructions, {parameters / 1e6:.2f} M parameters, "
            f"device {self.device}, folder {self.folder}",
            flush=True,
        )
        bar = tqdm(total=t.steps, initial=self.progress.step, desc="train", disable=None)
        window, window_start = self.progress.step, time.monotonic()
        while self.progress.step < t.steps and not stop.requested:
            self.progress.elapsed_s = time.monotonic() - started
            if t.max_minutes > 0 and self.progress.elapsed_s >= 60.0 * t.max_minutes:
                break
            numbers = self.train_step()
            step = self.progress.step
            bar.update(1)
            if step % t.log_steps == 0:
                now = time.monotonic()
                rate = (step - window) * t.batch_size / (now - window_start)
                window, window_start = step, now
                for name, value in numbers.items():
                    writer.add_scalar(f"train/{name}", value, step)
                writer.add_scalar("train/samples_per_s", rate, step)
                bar.set_postfix(loss=f"{numbers['loss']:.4f}", rate=f"{rate:.0f}/s")
            if step % t.eval_steps == 0:
                self._report(writer, step, numbers)
                window, window_start = step, time.monotonic()
            due = t.save_minutes > 0 and time.monotonic() - saved > 60.0 * t.save_minutes
            due = due or (t.save_steps > 0 and step % t.save_steps == 0)
            if due:
                self.save()
                saved = time.monotonic()
        self.progress.elapsed_s = time.monotonic() - started
        bar.close()
        self._report(writer, self.progress.step, {})
        path = self.save()
        writer.close()
        print(f"checkpoint: {path}", flush=True)
        return path

    def _report(self, writer: SummaryWriter, step: int, numbers: dict[str, float]) -> None:
        held = self.evaluate()
        for name, value in held.items():
            writer.add_scalar(f"held_out/{name}", value, step)
        writer.flush()
        self.results = {
            "step": step,
            "minutes": self.progress.elapsed_s / 60.0,
            "train": numbers or self.results.get("train", {}),
            "held_out": held,
        }
        text = " ".join(f"{k}={v:.5f}" for k, v in held.items())
        loss = f" train {numbers['loss']:.4f}" if numbers else ""
        tqdm.write(f"step {step} {self.progress.elapsed_s / 60:.1f} min{loss} | held-out {text}")
        sys.stdout.flush()

    def save(self) -> pathlib.Path:
        """Write checkpoints/NNNNNN with averaged weights and the state for resuming."""
        path = self.folder / "checkpoints" / f"{self.progress.step:06d}"
        height, width = self.data.images[0][0].shape[1:3]
        save_checkpoint(
            path,
            model=self.ema.model,
            config=self.config,
            normalization=self.normalization,
            tokenizer=self.tokenizer,
            image_size=(int(height), int(width)),
            instructions=self.data.instructions,
            results=self.results,
        )
        self._save_state(path / STATE_FOLDER)
        (self.folder / "last").write_text(path.name + "\n")
        for old in sorted((self.folder / "checkpoints").glob("[0-9]*"))[
            : -self.config.train.keep_checkpoints or None
        ]:
            if old != path and old.is_dir():
                shutil.rmtree(old)
        return path

    def _save_state(self, folder: pathlib.Path) -> None:
        scratch = folder.with_name(folder.name + ".part")
        scratch.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, Tensor] = {}
        names = {id(p): n for n, p in self.model.named_parameters()}
        for name, parameter in self.model.named_parameters():
            tensors[f"model.{name}"] = parameter.detach().cpu().clone()
        for name, parameter in self.ema.model.named_parameters():
            tensors[f"ema.{name}"] = parameter.detach().cpu().clone()
        for parameter, state in self.optimizer.state.items():
            for key, value in state.items():
                tensors[f"optimizer.{names[id(parameter)]}.{key}"] = (
                    torch.as_tensor(value).detach().cpu().clone()
                )
        save_file(tensors, str(scratch / STATE_FILE))
        write_json(
            scratch / "progress.json",
            {"step": self.progress.step, "elapsed_s": self.progress.elapsed_s},
        )
        scratch.replace(folder)

    def _load_state(self, folder: pathlib.Path) -> None:
        path = folder / STATE_FILE
        if not path.is_file():
            raise CheckpointError(f"'{path}' is missing; resume needs a folder saved by training")
        tensors = read_tensors(path)
        try:
            with torch.no_grad():
                for name, parameter in self.model.named_parameters():
                    parameter.copy_(tensors[f"model.{name}"])
                for name, parameter in self.ema.model.named_parameters():
                    parameter.copy_(tensors[f"ema.{name}"])
                for name, parameter in self.model.named_parameters():
                    state = {
                        key: tensors[f"optimizer.{name}.{key}"].clone()
                        for key in ("step", "exp_avg", "exp_avg_sq")
                        if f"optimizer.{name}.{key}" in tensors
                    }
                    if state:
                        for key in ("exp_avg", "exp_avg_sq"):
                            state[key] = state[key].to(self.device)
                        self.optimizer.state[parameter] = state
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(
                f"'{path}' does not fit this configuration ({error}); resume with the saved one"
            ) from error
        numbers = read_json(folder / "progress.json")
        self.progress = Progress(int(numbers["step"]), float(numbers["elapsed_s"]))


class _StopRequest:
    """First SIGINT or SIGTERM ends after the current step with a checkpoint; a second at once."""

    def __init__(self) -> None:
        self.requested = False
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._note)
        except ValueError:  # not in the main thread: the caller stops the run some other way
            pass

    def _note(self, number: int, frame: Any) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        print("stopping after this step; once more to stop at once", flush=True)


def latest_checkpoint(run: str | pathlib.Path) -> pathlib.Path:
    """Newest checkpoint of a run folder, or the folder itself if it is a checkpoint."""
    folder = pathlib.Path(run)
    if (folder / TRAIN_CONFIG).is_file():
        return folder
    note = folder / "last"
    if not note.is_file():
        raise CheckpointError(f"'{folder}' holds no finished checkpoint ('last' is missing)")
    return folder / "checkpoints" / note.read_text().strip()


def train(config: Config, resume: str | pathlib.Path | None = None) -> pathlib.Path:
    """Run a training; returns the final checkpoint folder."""
    start = None if resume is None else latest_checkpoint(resume)
    return Trainer(config, start).run()


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", help="YAML file; every key has a default")
    parser.add_argument("--resume", help="run folder (or checkpoint) to continue exactly")
    parser.add_argument("overrides", nargs="*", help="section.name=value")
    options = parser.parse_args(arguments)
    try:
        if options.resume:
            saved = read_json(latest_checkpoint(options.resume) / TRAIN_CONFIG)
            config: Config = from_dict(Config, apply_overrides(saved, options.overrides))
        else:
            config = load_config(options.config, options.overrides)
        train(config, options.resume)
    except (ConfigError, CheckpointError, DatasetError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
