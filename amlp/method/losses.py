"""RRL and CCL, the losses, and the reconstruction target.

The roles are those of the abstract of arXiv 2309.04312; the formulas are our definitions (docs/explanation/method.md).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def patchify(images: Tensor, patch: int) -> Tensor:
    """Cut (B, C, H, W) into (B, L, patch * patch * C), patches row by row, values pixel by pixel."""
    b, c, height, width = images.shape
    grid = images.reshape(b, c, height // patch, patch, width // patch, patch)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, patch * patch * c)


def unpatchify(patches: Tensor, patch: int, height: int, width: int) -> Tensor:
    """Put (B, L, patch * patch * C) back together to (B, C, H, W): the inverse of `patchify`."""
    b = patches.shape[0]
    grid = patches.reshape(b, height // patch, width // patch, patch, patch, -1)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(b, -1, height, width)


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Low-pass (B, C, H, W) with a Gaussian of `sigma` pixels, edges repeated."""
    radius = int(3 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    b, c, height, width = images.shape
    flat = F.pad(images.reshape(b * c, 1, height, width), (radius, radius, radius, radius), mode="replicate")
    flat = F.conv2d(F.conv2d(flat, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))
    return flat.reshape(b, c, height, width)


Target = Literal["image", "lowpass", "normalised", "hog"]
ORIENTATIONS = 9  # Of a histogram of oriented gradients, over half a turn, as in MaskFeat.
FAINT = 1e-4  # In standard deviations of the training split's grey values; gradients below it are rounding, not edges.


def target_width(kind: Target, patch: int, channels: int) -> int:
    """Values D that the decoder predicts for each patch: its pixels, or the histograms of its four quarters."""
    return 4 * ORIENTATIONS * channels if kind == "hog" else patch**2 * channels


def oriented_gradients(images: Tensor, patch: int, *, sigma: float) -> Tensor:
    """Histograms of oriented gradients (HOG) of each patch's four quarters, (B, L, 4 * ORIENTATIONS * C).

    As in MaskFeat (Wei et al., arXiv 2112.09133), but after a low-pass, for the gradients of speckle are noise. Each
    patch's histograms are divided by their norm; the image's mean norm is added to it, so that patches of nothing
    but noise stay small.

    Args:
        images: (B, C, H, W), normalised.
        patch: side of a patch, px, even.
        sigma: of the low-pass, px.
    """
    smooth = F.pad(gaussian_blur(images, sigma), (1, 1, 1, 1), mode="replicate")
    dx = (smooth[..., 1:-1, 2:] - smooth[..., 1:-1, :-2]) / 2
    dy = (smooth[..., 2:, 1:-1] - smooth[..., :-2, 1:-1]) / 2
    magnitude = (dx.square() + dy.square()).sqrt()
    # Position among the bins, 0 .. ORIENTATIONS; a gradient and its opposite are the same edge.
    position = (torch.atan2(dy, dx) / math.pi % 1.0 * ORIENTATIONS).unsqueeze(2)
    bins = torch.arange(ORIENTATIONS, device=images.device).view(1, 1, -1, 1, 1)
    away = (position - bins).abs()
    share = (1 - torch.minimum(away, ORIENTATIONS - away)).clamp_min(0)
    maps = (magnitude.unsqueeze(2) * share).flatten(1, 2)
    target = patchify(F.avg_pool2d(maps, patch // 2), 2)
    norm = target.norm(dim=-1, keepdim=True)
    floor = norm.mean(dim=1, keepdim=True).clamp_min(FAINT)
    # Root of the width: values of about 1, whose error weighs like the other targets'.
    return target / (norm + floor) * target.shape[-1] ** 0.5


def gradient_strength(histograms: Tensor, patch: int, height: int, width: int) -> Tensor:
    """Norm of each quarter's histogram as a picture, (B, 1, H, W), about 0 .. 1; the same scale for every image.

    Args:
        histograms: (B, L, 4 * ORIENTATIONS * C), of `oriented_gradients` or predicted.
        patch: side of a patch, px, even.
        height: H, px.
        width: W, px.
    """
    quarters = unpatchify(histograms, 2, 2 * height // patch, 2 * width // patch).norm(dim=1, keepdim=True)
    # A patch far above the image's mean, with equal quarters, has quarters of half the root of the width: 1.
    strength = quarters / (0.5 * histograms.shape[-1] ** 0.5)
    return strength.repeat_interleave(patch // 2, dim=2).repeat_interleave(patch // 2, dim=3)


def reconstruction_target(images: Tensor, patch: int, *, kind: Target, sigma: float) -> Tensor:
    """What the decoder has to predict, (B, L, D), D from `target_width`.

    `lowpass` removes speckle, which can't be predicted from its surroundings; `normalised` is MAE's per-patch
    normalisation (He et al., arXiv 2111.06377); `hog` see `oriented_gradients`.
    """
    if kind == "hog":
        return oriented_gradients(images, patch, sigma=sigma)
    if kind == "lowpass":
        images = gaussian_blur(images, sigma)
    target = patchify(images, patch)
    if kind == "normalised":
        mean, variance = target.mean(dim=-1, keepdim=True), target.var(dim=-1, keepdim=True)
        target = (target - mean) / (variance + 1e-6).sqrt()
    return target


def relative_weights(error: Tensor, *, gamma: float, clip: float) -> Tensor:
    """RRL: weights of masked patches by how hard they are, w = a / mean(a), a = min((d / mean(d))^gamma, clip).

    Args:
        error: (B, M) mean squared error of each masked patch; detached here, so no gradient flows through a weight.
        gamma: 0 gives weights of exactly 1, MAE's loss.
        clip: largest raw weight.

    Returns:
        (B, M) weights with mean 1 in each row; all 1 where a row's errors are all 0.
    """
    difficulty = error.detach().float()
    mean = difficulty.mean(dim=1, keepdim=True)
    relative = torch.where(mean > 0, difficulty / mean.clamp_min(torch.finfo(torch.float32).tiny), 1.0)
    raw = relative.pow(gamma).clamp_max(clip)
    return raw / raw.mean(dim=1, keepdim=True)


def category_consistency(
    logits: Tensor, category: Tensor, masked: Tensor, error: Tensor, *, difficulty_weight: float
) -> Tensor:
    """CCL: binary cross-entropy that keeps patch categories consistent with reconstruction difficulty.

    Masked patches aim at (1 - lam) * c + lam * g, where g marks as many of the hardest masked patches as there are
    masked lesion patches in that image; visible patches aim at c with half the weight. Lesion and background weigh
    the same among the masked and among the visible patches of an image, each set for itself: MPS masks lesions first,
    so in one balance over both sets "visible" alone would mean background, and the head would find no lesion in the
    unmasked image that refinement shows it. A set without both categories contributes 0, and the sum is divided by
    the whole batch, so that the loss does not depend on how a batch is split over workers.

    Args:
        logits: (B, L) of the category head.
        category: (B, L) bool, c.
        masked: (B, M) patch indices.
        error: (B, M) reconstruction error; detached here: a gradient through it would push lesion errors up.
        difficulty_weight: lam, 0 .. 1.
    """
    c = category.float()
    masked_category = c.gather(1, masked)
    lesion_count = masked_category.sum(dim=1, keepdim=True)
    rank = error.detach().argsort(dim=1, descending=True).argsort(dim=1)
    hardest = (rank < lesion_count).float()
    target = c.scatter(1, masked, (1 - difficulty_weight) * masked_category + difficulty_weight * hardest)
    hidden = torch.zeros_like(category).scatter(1, masked, True)
    logits = logits.float()
    loss = _balanced_entropy(logits, target, hidden) + 0.5 * _balanced_entropy(logits, target, ~hidden)
    return loss.sum() / (1.5 * len(loss))


def _balanced_entropy(logits: Tensor, target: Tensor, chosen: Tensor) -> Tensor:
    """Cross-entropy (B,) over the chosen patches, both categories weighing the same; 0 where one of them is absent."""
    positive, negative = target * chosen, (1 - target) * chosen
    present, absent = positive.sum(dim=1), negative.sum(dim=1)
    tiny = torch.finfo(torch.float32).tiny
    loss = 0.5 * (
        (positive * F.softplus(-logits)).sum(dim=1) / present.clamp_min(tiny)
        + (negative * F.softplus(logits)).sum(dim=1) / absent.clamp_min(tiny)
    )
    return loss * ((present > 0) & (absent > 0))


def ramp(progress: float, start: float, end: float) -> float:
    """Rise linearly from 0 at `start` to 1 at `end`; all three are shares of the training, 0 .. 1."""
    if progress >= end:
        return 1.0
    return max(0.0, (progress - start) / (end - start)) if end > start else 0.0
