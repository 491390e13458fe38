"""MPS, masked patch selection: hide the patches that probably hold a lesion first, then random background."""

from __future__ import annotations

import torch
from torch import Tensor

from amlp.method.ratio import masked_count
from amlp.params import MpsParams


def select_patches(lesion: Tensor, noise: Tensor, *, count: int, share: float) -> tuple[Tensor, Tensor]:
    """Choose which patches to mask.

    Of an image's n lesion patches, min(count, ceil(share * n)) are masked at random; random background fills up to
    `count`. An image without lesion patches is masked at random. When the background runs out, further lesion
    patches are taken, so that every row has exactly `count` masked patches.

    Args:
        lesion: (B, L) bool, True where the lesion score exceeds 1/2.
        noise: (B, L) in [0, 1), the randomness of the choice.
        count: M, masked patches of each image, 1 .. L - 1.
        share: share of the lesion patches to mask, 0 .. 1: max(cap, ratio).

    Returns:
        masked (B, M) and visible (B, L - M): patch indices, each row in ascending order.
    """
    patches = lesion.shape[1]
    quota = torch.ceil(share * lesion.sum(dim=1, keepdim=True))
    lesion_noise = torch.where(lesion, noise, torch.inf)
    lesion_rank = lesion_noise.argsort(dim=1).argsort(dim=1)
    # Three classes of priority: lesion patches within the quota, background, lesion patches that stay visible.
    priority = torch.where(lesion, torch.where(lesion_rank < quota, 0.0, 2.0), 1.0)
    order = (priority + noise).argsort(dim=1)
    masked, visible = order.split([count, patches - count], dim=1)
    return masked.sort(dim=1).values, visible.sort(dim=1).values


def random_patches(noise: Tensor, *, count: int) -> tuple[Tensor, Tensor]:
    """Mask uniformly at random, as MAE does; shapes as in `select_patches`."""
    masked, visible = noise.argsort(dim=1).split([count, noise.shape[1] - count], dim=1)
    return masked.sort(dim=1).values, visible.sort(dim=1).values


def choose_patches(lesion: Tensor, noise: Tensor, *, ratio: float, params: MpsParams) -> tuple[Tensor, Tensor]:
    """Choose the masked and visible patches of a batch: by MPS, or at random when it is off.

    Args:
        lesion: (B, L) bool, the lesion category.
        noise: (B, L) in [0, 1).
        ratio: the masking ratio, 0 .. 1.
        params: the `pretrain.mps` section.

    Returns:
        masked (B, M) and visible (B, L - M), as in `select_patches`.
    """
    count = masked_count(ratio, noise.shape[1])
    if params.enabled:
        return select_patches(lesion, noise, count=count, share=max(params.cap, ratio))
    return random_patches(noise, count=count)
