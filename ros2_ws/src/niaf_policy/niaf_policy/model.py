"""The policy network: observation and instruction in, modulations of the shared network out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from niaf_policy.backbone import Florence2Backbone, florence2_config
from niaf_policy.config import ModelConfig
from niaf_policy.normalization import Normalization
from niaf_policy.siren import ModulationHeads, SirenPrior


class StateToken(nn.Module):
    """Measured state -> one input token [B, 1, d]. Takes physical units; normalises itself."""

    def __init__(
        self, normalization: Normalization, velocity: bool, hidden: int, width: int
    ) -> None:
        super().__init__()
        mean, std = list(normalization.state_mean), list(normalization.state_std)
        if velocity:
            mean += normalization.velocity_mean
            std += normalization.velocity_std
        self.velocity = velocity
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)
        self.mlp = nn.Sequential(
            nn.Linear(len(mean), hidden), nn.GELU(), nn.Linear(hidden, width), nn.LayerNorm(width)
        )

    def forward(self, state: Tensor, velocity: Tensor) -> Tensor:
        x = torch.cat([state, velocity], dim=-1) if self.velocity else state
        x = ((x - self.mean) / self.std).clamp(-8.0, 8.0)
        return self.mlp(x).unsqueeze(1)


class AuxiliaryHead(nn.Module):
    """Training only: privileged object positions read from the encoder's tokens.

    One learned query per object plus one for the object that the instruction names. The named
    object is read from every output of the decoder too: the modulations are linear in these, so
    the goal has to be in them before a motion towards it can be learned.
    """

    def __init__(self, objects: int, width: int, heads: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(objects + 1, width) * 0.5)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.read = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 3))
        self.read_decoded = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 3))

    def forward(self, encoded: Tensor, mask: Tensor, decoded: Tensor) -> Tensor:
        """encoded [B, S, d], mask [B, S], decoded [B, Q, d] -> normalised positions.

        [B, M + 1 + Q, 3]: M objects, the named one, the named one from each decoder output.
        """
        queries = self.queries.expand(encoded.shape[0], -1, -1)
        hidden_tokens = mask == 0
        seen, _ = self.attention(
            queries, encoded, encoded, key_padding_mask=hidden_tokens, need_weights=False
        )
        return torch.cat([self.read(seen + queries), self.read_decoded(decoded)], dim=1)


class NiafPolicy(nn.Module):
    """Backbone, heads psi and shared prior."""

    def __init__(
        self,
        config: ModelConfig,
        normalization: Normalization,
        backbone: Florence2Backbone,
        auxiliary: bool = False,
    ) -> None:
        super().__init__()
        siren = config.siren
        self.prior = SirenPrior(
            layers=siren.layers,
            width=siren.width,
            channels=normalization.channels,
            omega0=siren.omega0,
            gamma=siren.gamma,
        )
        self.backbone = backbone
        self.heads = ModulationHeads(self.prior, siren.groups, backbone.width)
        self.state_token: StateToken | None = None
        if config.proprioception:
            self.state_token = StateToken(
                normalization,
                config.proprioception_velocity,
                config.proprioception_hidden,
                backbone.width,
            )
        self.auxiliary: AuxiliaryHead | None = None
        if auxiliary and normalization.object_names:
            heads = int(backbone.config.text_config.decoder_attention_heads)
            self.auxiliary = AuxiliaryHead(len(normalization.object_names), backbone.width, heads)

    def forward(
        self,
        images: Tensor,
        state: Tensor,
        velocity: Tensor,
        text_mask: Tensor,
        text_ids: Tensor | None = None,
        text: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """One parallel pass.

        images [B, V, h, w, 3] in 0..255; state [B, D] (rad, gripper m); velocity [B, J] rad/s;
        text_ids [B, S] or its embeddings text [B, S, d]; text_mask [B, S].
        Returns gamma [B, gamma_length], beta [B, L*H] (float32), auxiliary [B, M+1+Q, 3] or None.
        """
        if text is None:
            if text_ids is None:
                raise ValueError("give text_ids or text")
            text = self.backbone.embed_text(text_ids)
        token = None if self.state_token is None else self.state_token(state, velocity)
        z, encoded, mask = self.backbone(images, text, text_mask, token)
        with torch.autocast(images.device.type, enabled=False):
            gamma, beta = self.heads(z.float())
        extra = None
        if self.auxiliary is not None and self.training:
            extra = self.auxiliary(encoded, mask, z).float()
        return gamma, beta, extra


def query_count(config: ModelConfig) -> int:
    """Q = L (G + 1)."""
    return config.siren.layers * (config.siren.groups + 1)


def fresh_backbone(config: ModelConfig, tokenizer: Any) -> Florence2Backbone:
    """A new Florence-2 of the configured sizes, or the weights of a checkpoint folder."""
    queries = query_count(config)
    if config.backbone.pretrained:
        return Florence2Backbone.from_pretrained(config.backbone.pretrained, queries)
    ids = {
        "bos": tokenizer.bos_token_id,
        "pad": tokenizer.pad_token_id,
        "eos": tokenizer.eos_token_id,
        "image": tokenizer.convert_tokens_to_ids("<image>"),
    }
    return Florence2Backbone(florence2_config(config.backbone, len(tokenizer), ids), queries)
