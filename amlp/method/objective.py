"""The training loss of AMLP, put together from its parts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from amlp.method.losses import category_consistency, ramp, reconstruction_target, relative_weights
from amlp.params import PretrainParams


@dataclass(frozen=True)
class Losses:
    """What one step's loss is made of; scalars."""

    total: Tensor
    # Plain mean squared error of the masked patches, comparable between settings.
    reconstruction: Tensor
    rrl: Tensor
    ccl: Tensor


def amlp_loss(
    model: nn.Module,
    images: Tensor,
    lesion: Tensor,
    masked: Tensor,
    visible: Tensor,
    *,
    patch: int,
    settings: PretrainParams,
    progress: float,
) -> Losses:
    """The training loss, L_RRL + weight * L_CCL.

    Args:
        model: a MaskedAutoencoder (or its distributed wrapper).
        images: (B, C, H, W), normalised.
        lesion: (B, L) bool, the patches' category by MPS.
        masked: (B, M) patch indices.
        visible: (B, L - M) patch indices.
        patch: side of a patch, px.
        settings: the `pretrain` section.
        progress: share of the training that is done, 0 .. 1; it drives the ramps.
    """
    pixels, logits = model(images, masked, visible)
    target = reconstruction_target(images, patch, kind=settings.target, sigma=settings.lowpass_sigma)
    target = target.gather(1, masked.unsqueeze(-1).expand(-1, -1, target.shape[-1]))
    error = (pixels.float() - target).pow(2).mean(dim=-1)
    reconstruction = error.mean()
    rrl = reconstruction
    if settings.rrl.enabled:
        gamma = settings.rrl.gamma * ramp(progress, 0.0, settings.rrl.warmup)
        rrl = (relative_weights(error, gamma=gamma, clip=settings.rrl.clip) * error).mean()
    total, ccl = rrl, torch.zeros_like(rrl)
    if settings.ccl.enabled:
        share = settings.ccl.difficulty * ramp(progress, 0.0, settings.ccl.warmup)
        ccl = category_consistency(logits, lesion, masked, error, difficulty_weight=share)
        total = rrl + settings.ccl.weight * ccl
    return Losses(total, reconstruction.detach(), rrl.detach(), ccl.detach())
