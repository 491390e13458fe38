"""The ViT encoder: timm's VisionTransformer behind one adapter that can see visible patches only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.layers import Attention, build_sincos2d_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn


@dataclass(frozen=True)
class EncoderPlan:
    """All that is needed to build the encoder again; it travels inside every checkpoint."""

    channels: int
    height: int
    width: int
    patch: int
    dim: int
    depth: int
    heads: int

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.height // self.patch, self.width // self.patch

    @property
    def patches(self) -> int:
        rows, columns = self.grid
        return rows * columns


def position_embedding(grid: tuple[int, int], dim: int, prefix: int) -> Tensor:
    """Fixed 2-D sine-cosine embedding (1, prefix + L, dim), zeros for the prefix tokens, as in MAE."""
    table = build_sincos2d_pos_embed(list(grid), dim=dim, interleave_sin_cos=False)
    return torch.cat([torch.zeros(prefix, dim), table]).unsqueeze(0)


class SelfAttention(Attention):
    """timm's attention, bit for bit, with the heads split after q, k and v: its gradient takes one copy less."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        b, tokens, _ = x.shape
        q, k, v = (
            part.view(b, tokens, self.num_heads, self.head_dim).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1)
        )
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, is_causal=is_causal)
        return self.proj(x.transpose(1, 2).reshape(b, tokens, self.attn_dim))


class Encoder(nn.Module):
    """A ViT for any channel count and any size that the patch divides.

    Tokens are (B, 1 + L, D): a class token, then the patches row by row.
    """

    def __init__(self, plan: EncoderPlan) -> None:
        super().__init__()
        self.plan = plan
        self.vit = VisionTransformer(
            img_size=(plan.height, plan.width),
            patch_size=plan.patch,
            in_chans=plan.channels,
            num_classes=0,
            global_pool="",
            embed_dim=plan.dim,
            depth=plan.depth,
            num_heads=plan.heads,
            attn_layer=SelfAttention,
        )
        self.prefix = self.vit.num_prefix_tokens
        # Fixed, not learnt: a small data set can't teach positions, and other sizes only need another table.
        self.vit.pos_embed = nn.Parameter(position_embedding(plan.grid, plan.dim, self.prefix), requires_grad=False)

    def forward(self, images: Tensor, visible: Tensor | None = None) -> Tensor:
        """Encode images.

        Args:
            images: (B, C, H, W), normalised.
            visible: (B, K) indices of the patches to look at; all of them when absent.

        Returns:
            (B, 1 + K, D) normalised tokens, in the order of `visible`.
        """
        prefix, positions = self.vit.pos_embed.split([self.prefix, self.plan.patches], dim=1)
        patches = self.vit.patch_embed(images) + positions
        if visible is not None:
            patches = patches.gather(1, visible.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))
        tokens = torch.cat([(self.vit.cls_token + prefix).expand(len(patches), -1, -1), patches], dim=1)
        for block in self.vit.blocks:
            tokens = block(tokens)
        return self.vit.norm(tokens)

    def features(self, images: Tensor, layers: list[int]) -> list[Tensor]:
        """Normalised feature maps (B, D, H / patch, W / patch) after each of the given blocks."""
        return self.vit.forward_intermediates(
            images, indices=layers, norm=True, output_fmt="NCHW", intermediates_only=True
        )
