"""The masked autoencoder: encode what is visible, reconstruct what is masked, name each patch's category."""

from __future__ import annotations

from functools import partial

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from amlp.models.encoder import Encoder, EncoderPlan, SelfAttention, position_embedding
from amlp.params import DecoderParams

# As in timm's ViT and in MAE, not torch's 1e-5.
_norm = partial(nn.LayerNorm, eps=1e-6)


class MaskedAutoencoder(nn.Module):
    """MAE (He et al., arXiv 2111.06377) with a category head for CCL.

    Args:
        plan: the encoder's.
        decoder: the decoder's width, depth and heads.
        categories: whether there is a category head.
        outputs: D, values to predict for each patch; its pixels when absent.
    """

    decoder_positions: Tensor

    def __init__(
        self, plan: EncoderPlan, decoder: DecoderParams, *, categories: bool, outputs: int | None = None
    ) -> None:
        super().__init__()
        self.plan = plan
        self.encoder = Encoder(plan)
        self.decoder_embed = nn.Linear(plan.dim, decoder.dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder.dim))
        positions = position_embedding(plan.grid, decoder.dim, self.encoder.prefix)
        self.register_buffer("decoder_positions", positions, persistent=False)
        self.decoder_blocks = nn.ModuleList(
            Block(decoder.dim, decoder.heads, qkv_bias=True, norm_layer=_norm, attn_layer=SelfAttention)
            for _ in range(decoder.depth)
        )
        self.decoder_norm = _norm(decoder.dim)
        self.pixel_head = nn.Linear(decoder.dim, outputs or plan.patch**2 * plan.channels)
        self.category_head = nn.Linear(decoder.dim, 1) if categories else None
        nn.init.normal_(self.mask_token, std=0.02)
        for module in (self.decoder_embed, self.decoder_blocks, self.pixel_head, self.category_head):
            if module is not None:
                module.apply(_init_linear)

    def forward(self, images: Tensor, masked: Tensor, visible: Tensor) -> tuple[Tensor, Tensor | None]:
        """Reconstruct the masked patches.

        Args:
            images: (B, C, H, W), normalised.
            masked: (B, M) patch indices.
            visible: (B, L - M) patch indices.

        Returns:
            predictions (B, M, D) of the masked patches, in the order of `masked`, and the category
            logits (B, L) of all patches, None without a category head.
        """
        decoded = self.decode(self.fill(self.encode(images, visible), visible))
        pixels = self.pixel_head(decoded.gather(1, masked.unsqueeze(-1).expand(-1, -1, decoded.shape[-1])))
        logits = self.category_head(decoded).squeeze(-1) if self.category_head is not None else None
        return pixels, logits

    def encode(self, images: Tensor, visible: Tensor | None = None) -> Tensor:
        """Encode the visible patches, or all: tokens (B, prefix + L - M, decoder's width)."""
        return self.decoder_embed(self.encoder(images, visible))

    def fill(self, seen: Tensor, visible: Tensor) -> Tensor:
        """Put the mask token where nothing was seen: (B, prefix + L, width), the patches row by row."""
        b, _, dim = seen.shape
        prefix = self.encoder.prefix
        position = torch.cat([torch.arange(prefix, device=seen.device).expand(b, -1), visible + prefix], dim=1)
        tokens = self.mask_token.to(seen.dtype).expand(b, prefix + self.plan.patches, dim)
        return tokens.scatter(1, position.unsqueeze(-1).expand(-1, -1, dim), seen)

    def decode(self, tokens: Tensor) -> Tensor:
        """Decode the tokens of all patches: (B, L, width)."""
        tokens = tokens + self.decoder_positions
        for block in self.decoder_blocks:
            tokens = block(tokens)
        return self.decoder_norm(tokens)[:, self.encoder.prefix :]

    def categories(self, images: Tensor) -> Tensor:
        """Probability (B, L) that a patch belongs to the lesion category, from the unmasked image."""
        assert self.category_head is not None, "this model was built without a category head"
        return self.category_head(self.decode(self.encode(images))).squeeze(-1).float().sigmoid()


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
