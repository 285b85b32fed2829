"""A trained policy as an object: observation in, modulations out."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from niaf_field import Prior
from niaf_policy.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from niaf_policy.tokenizer import InstructionError, encode_instruction

__all__ = ["CheckpointError", "InstructionError", "ObservationError", "Policy", "load_policy"]


class ObservationError(ValueError):
    """An observation does not fit the policy; the message names thing, value and remedy."""


class Policy:
    """Stateless between observations apart from a cache of embedded instructions."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._model = checkpoint.model.eval().requires_grad_(False)
        self._text: dict[str, tuple[Tensor, Tensor]] = {}

    @property
    def prior(self) -> Prior:
        return self._checkpoint.prior

    @property
    def cameras(self) -> tuple[str, ...]:
        return self._checkpoint.cameras

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self._checkpoint.image_size

    @property
    def joint_names(self) -> tuple[str, ...]:
        return self._checkpoint.normalization.joint_names

    @property
    def instructions(self) -> tuple[str, ...]:
        """Instructions seen in training."""
        return self._checkpoint.instructions

    def reset(self) -> None:
        """Nothing is carried from one observation to the next, so there is nothing to forget."""

    def prepare_instruction(self, instruction: str) -> None:
        """Embed and cache an instruction; raises InstructionError if it cannot be read."""
        self._embedded(instruction)

    def _embedded(self, instruction: str) -> tuple[Tensor, Tensor]:
        """Embedding [1, S, d] and mask [1, S]. Safe beside `infer` in another thread."""
        known = self._text.get(instruction)
        if known is not None:
            return known
        c = self._checkpoint
        ids, mask = encode_instruction(c.tokenizer, instruction, c.max_text_tokens)
        if len(self._text) >= 64:
            self._text.clear()
        with torch.inference_mode():
            used = int(mask.sum())  # padding is masked out anyway: drop it
            embedded = self._model.backbone.embed_text(torch.from_numpy(ids[None, :used]))
            made = (embedded, torch.from_numpy(mask[None, :used]))
        self._text[instruction] = made
        return made

    def infer(self, observation: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """gamma [gamma_length] and beta [L*H], float32.

        observation: images {camera: uint8 [h, w, 3]}, state float [2J + 1] = joint positions (rad),
        joint velocities (rad/s), gripper width (m); instruction str.
        """
        instruction = str(observation["instruction"])
        text, text_mask = self._embedded(instruction)
        images = torch.from_numpy(self._stack_images(observation["images"]))
        joints = len(self.joint_names)
        state = np.asarray(observation["state"], dtype=np.float32)
        if state.shape != (2 * joints + 1,):
            raise ObservationError(
                f"state has shape {state.shape}, expected ({2 * joints + 1},): positions, "
                f"velocities of {joints} joints and the gripper width"
            )
        if not np.isfinite(state).all():
            raise ObservationError(f"state is not finite: {state.tolist()}; the sensor is faulty")
        position = np.concatenate([state[:joints], state[-1:]])
        with torch.inference_mode():
            gamma, beta, _ = self._model(
                images,
                torch.from_numpy(position)[None],
                torch.from_numpy(state[joints : 2 * joints].copy())[None],
                text_mask,
                text=text,
            )
        return gamma[0].numpy(), beta[0].numpy()

    def _stack_images(self, images: Mapping[str, np.ndarray]) -> np.ndarray:
        expected = (*self.image_size, 3)
        stack = np.empty((1, len(self.cameras), *expected), np.uint8)
        for view, camera in enumerate(self.cameras):
            if camera not in images:
                raise ObservationError(
                    f"no image of camera '{camera}'; the policy needs {list(self.cameras)}, "
                    f"got {sorted(images)}"
                )
            image = np.asarray(images[camera])
            if image.shape != expected or image.dtype != np.uint8:
                raise ObservationError(
                    f"image of camera '{camera}' is {image.dtype}{list(image.shape)}, the policy "
                    f"was trained on uint8{list(expected)}; set the camera to that size"
                )
            stack[0, view] = image
        return stack


def load_policy(checkpoint_dir: str | pathlib.Path, threads: int = 1) -> Policy:
    """Load a checkpoint folder for inference; raises CheckpointError.

    threads: torch compute threads of this process (0: leave as they are).
    """
    if threads > 0:
        torch.set_num_threads(threads)
    return Policy(load_checkpoint(checkpoint_dir))
