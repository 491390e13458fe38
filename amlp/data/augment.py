"""Random crop and flip of whole batches, on whatever device the batch lives on.

The randomness comes in as numbers drawn for the *global* batch, so a run gives the same views for any number of
workers, and a resumed run the same as an uninterrupted one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def step_generator(seed: int, step: int, purpose: int = 0) -> torch.Generator:
    """A generator that depends on seed, step and purpose alone: nothing of it needs to be in a checkpoint."""
    # Odd multipliers of 64 bits spread neighbouring steps and seeds over the seed space.
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + purpose * 0x94D049BB133111EB) & (2**63 - 1)
    return torch.Generator().manual_seed(mixed)


def random_views(
    batch: int, generator: torch.Generator, *, size: tuple[int, int], min_area: float, rotate: float = 0.0
) -> Tensor:
    """Draw a crop, a horizontal flip and optionally a rotation for each image.

    Args:
        batch: B.
        size: height and width of the images, px.
        min_area: smallest share of the image's area that a crop keeps, 0 .. 1; the aspect ratio varies by 3/4 .. 4/3.
        rotate: largest rotation in radians.

    Returns:
        (B, 2, 3) affine matrices for `apply_views`. Ultrasound is not flipped upside down: depth has a direction.
    """
    u = torch.rand(batch, 6, generator=generator)
    area = min_area + (1 - min_area) * u[:, 0]
    # sqrt(area) * aspect stays below 1, so that a crop never leaves the image.
    side = area.sqrt()
    limit = torch.minimum(torch.full_like(side, (4 / 3) ** 0.5), 1 / side)
    aspect = limit.pow(2 * u[:, 1] - 1)
    scale_x, scale_y = side * aspect, side / aspect
    shift_x = (1 - scale_x) * (2 * u[:, 2] - 1)
    shift_y = (1 - scale_y) * (2 * u[:, 3] - 1)
    flip = torch.where(u[:, 4] < 0.5, -1.0, 1.0)
    angle = rotate * (2 * u[:, 5] - 1)
    cos, sin = angle.cos(), angle.sin()
    # Coordinates run from -1 to 1 on either axis: in pixels the turn must be one, not a shear.
    height, width = size
    row_x = torch.stack([scale_x * flip * cos, -scale_x * sin * (height / width), shift_x], dim=1)
    row_y = torch.stack([scale_y * flip * sin * (width / height), scale_y * cos, shift_y], dim=1)
    return torch.stack([row_x, row_y], dim=1)


def apply_views(channels: Tensor, views: Tensor) -> Tensor:
    """Resample (B, K, H, W) by (B, 2, 3) affine matrices, bilinear; what lies outside repeats the edge's mirror."""
    grid = F.affine_grid(views.to(channels.device), list(channels.shape), align_corners=False)
    return F.grid_sample(channels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def jitter_intensity(images: Tensor, u: Tensor, *, strength: float = 0.3) -> Tensor:
    """Vary gamma, contrast and brightness, as gain settings do.

    Args:
        images: (B, C, H, W) in 0 .. 1.
        u: (B, 3) in 0 .. 1, the randomness.
        strength: largest change: gamma by exp(+-strength), contrast by 1 +- strength, brightness by +-strength / 3.

    Returns:
        Images in 0 .. 1.
    """
    v = (2 * u.to(images.device) - 1).view(-1, 3, 1, 1, 1)
    gamma = torch.exp(strength * v[:, 0])
    return ((images.clamp_min(1e-6) ** gamma - 0.5) * (1 + strength * v[:, 1]) + 0.5 + strength / 3 * v[:, 2]).clamp(
        0, 1
    )
