"""Florence-2 as one parallel pass: image, state and text tokens in, one vector per query out.

transformers' own classes are used unchanged; only their configuration differs from the published
sizes, and a real Florence-2 folder loads through the same code. Encoder and decoder are called
directly because `Florence2Model.forward` cannot take decoder embeddings.
"""

from __future__ import annotations

import pathlib
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BartConfig,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2VisionConfig,
)

from niaf_policy.config import BackboneConfig

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


def florence2_config(
    sizes: BackboneConfig, vocab_size: int, ids: dict[str, int]
) -> Florence2Config:
    """Florence-2 configuration of the given sizes; ids holds bos, pad, eos and image."""
    vision = Florence2VisionConfig(
        embed_dim=list(sizes.embed_dim),
        depths=list(sizes.depths),
        patch_size=list(sizes.patch_size),
        patch_stride=list(sizes.patch_stride),
        patch_padding=list(sizes.patch_padding),
        patch_prenorm=[i > 0 for i in range(len(sizes.depths))],
        num_heads=list(sizes.num_heads),
        num_groups=list(sizes.num_heads),
        window_size=sizes.window_size,
        mlp_ratio=sizes.mlp_ratio,
        drop_path_rate=0.0,
        projection_dim=sizes.d_model,
    )
    text = BartConfig(
        vocab_size=vocab_size,
        d_model=sizes.d_model,
        encoder_layers=sizes.encoder_layers,
        decoder_layers=sizes.decoder_layers,
        encoder_attention_heads=sizes.attention_heads,
        decoder_attention_heads=sizes.attention_heads,
        encoder_ffn_dim=sizes.ffn_dim,
        decoder_ffn_dim=sizes.ffn_dim,
        max_position_embeddings=256,
        dropout=sizes.dropout,
        attention_dropout=0.0,
        activation_dropout=0.0,
        bos_token_id=ids["bos"],
        pad_token_id=ids["pad"],
        eos_token_id=ids["eos"],
        decoder_start_token_id=ids["eos"],
        forced_eos_token_id=None,
    )
    return Florence2Config(vision_config=vision, text_config=text, image_token_id=ids["image"])


def _scale_to_width(model: nn.Module) -> None:
    """Re-draw fresh weights with a spread that suits narrow layers.

    transformers draws everything with standard deviation 0.02, which suits a width of about 2500.
    At a width of 128 signals would fade, and positions would be lost beside the image features.
    """
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            fan_in = module.weight[0].numel()
            nn.init.normal_(module.weight, std=fan_in**-0.5)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.5)


class Florence2Backbone(nn.Module):
    """Z = MLLM(E; o, t): queries E [Q, d] against an observation and an instruction."""

    def __init__(self, config: Florence2Config, queries: int) -> None:
        super().__init__()
        full = Florence2ForConditionalGeneration(config)
        _scale_to_width(full)
        self._adopt(full, queries)

    @classmethod
    def from_pretrained(cls, folder: str | pathlib.Path, queries: int) -> Florence2Backbone:
        """Load weights of a Florence-2 checkpoint folder; queries start fresh."""
        full = Florence2ForConditionalGeneration.from_pretrained(
            str(folder), local_files_only=True, dtype=torch.float32
        )
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made._adopt(full, queries)
        return made

    def _adopt(self, full: Any, queries: int) -> None:
        self.florence = full.model  # vision tower, projector, language encoder and decoder
        self.config: Florence2Config = full.config
        width = int(full.config.text_config.d_model)
        self.queries = nn.Parameter(torch.randn(queries, width) * 0.5)
        limit = int(full.config.text_config.max_position_embeddings)
        if queries > limit:
            raise ValueError(
                f"{queries} queries exceed the decoder's {limit} positions; lower groups or layers"
            )
        mean = torch.tensor(IMAGE_MEAN).view(1, 3, 1, 1) * 255.0
        std = torch.tensor(IMAGE_STD).view(1, 3, 1, 1) * 255.0
        self.register_buffer("pixel_mean", mean, persistent=False)
        self.register_buffer("pixel_std", std, persistent=False)

    @property
    def width(self) -> int:
        return int(self.config.text_config.d_model)

    def normalise_images(self, images: Tensor) -> Tensor:
        """uint8 or float pixels in 0..255 [B, V, h, w, 3] -> float [B*V, 3, h, w]."""
        pixels = images.flatten(0, 1).permute(0, 3, 1, 2).float()
        return (pixels - self.pixel_mean) / self.pixel_std

    def embed_images(self, images: Tensor) -> Tensor:
        """[B, V, h, w, 3] -> [B, V*S, d]."""
        batch = images.shape[0]
        features = self.florence.get_image_features(self.normalise_images(images)).pooler_output
        return features.reshape(batch, -1, self.width)

    def embed_text(self, ids: Tensor) -> Tensor:
        """[B, S] -> [B, S, d]."""
        return self.florence.get_input_embeddings()(ids)

    def forward(
        self, images: Tensor, text: Tensor, text_mask: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One pass.

        images [B, V, h, w, 3]; text embeddings [B, S, d] with mask [B, S]; state [B, 1, d] or None.
        Returns queries' outputs [B, Q, d], encoder output [B, S_all, d] and its mask [B, S_all].
        """
        batch = images.shape[0]
        parts = [self.embed_images(images)]
        if state is not None:
            parts.append(state)
        seen = sum(p.shape[1] for p in parts)
        tokens = torch.cat([*parts, text], dim=1)  # [B, S_all, d]
        mask = torch.cat([text_mask.new_ones(batch, seen), text_mask], dim=1)
        language = self.florence.language_model
        encoded = language.encoder(inputs_embeds=tokens, attention_mask=mask).last_hidden_state
        count = self.queries.shape[0]
        # The decoder is causal unless told otherwise: a 4-D mask lets every query see every other.
        visible = torch.ones(batch, 1, count, count, dtype=torch.bool, device=images.device)
        decoded = language.decoder(
            inputs_embeds=self.queries.to(tokens.dtype).expand(batch, -1, -1),
            attention_mask=visible,
            encoder_hidden_states=encoded,
            encoder_attention_mask=mask,
            use_cache=False,
        ).last_hidden_state
        return decoded, encoded, mask
