"""MPS, first half: how much each patch looks like a lesion, from the picture alone, without labels.

Our definition; the paper's formula was not available. Turn the picture so that lesions are its peaks (`dark`:
1 - grey), average it over cells of a quarter of a patch and smooth it. For a cell x and a direction d (left, right, up,
down)

    depth_d(x) = level(x) - lowest level between x and the border in direction d        >= 0

is how far one must climb down on the way out. `contrast` is the mean of the two smallest of the four depths, averaged
over each patch and smoothed over its neighbours. A lesion is enclosed on all sides. A layer of tissue is open left and
right, a dark far field on three sides: 0. A shadow is open below: half its depth, and so for a lesion that casts a
shadow or touches the border. There is no scale to choose, unlike in a difference of Gaussians.

The values, times a mild centre prior, go into 2-means for each picture by itself; s in 0..1 says how far a patch lies
from the background's mean to the lesion category's, and s > 1/2 is the lesion category.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from amlp.errors import UserError
from amlp.params import ScoreParams

CELLS = 4  # Cells along a patch's side: fine enough to keep a bright rim between two dark places.
CENTRE_WIDTH = 0.35  # Standard deviation of the centre prior, in sides of the picture.
ITERATIONS = 30  # Of 2-means; on real pictures nothing moves after 20.
SHARPNESS = 3.0  # Log-odds at the two cluster means: s = 0.05 and 0.95.
MIN_GAP = 1 / 255  # Cluster means that differ by less than one grey level are no two categories.


@dataclass(frozen=True)
class ScoreResult:
    """Lesion scores (N, h, w) float32 in 0..1, and which pictures took the guard: (N,) bool, their scores are 0."""

    scores: Tensor
    guarded: Tensor


@dataclass(frozen=True)
class _Categories:
    """Membership (N, L) in 0..1, distance (N,) of the lesion category from the picture's mean, guarded (N,) bool."""

    membership: Tensor
    distance: Tensor
    guarded: Tensor


def lesion_scores(images: Tensor, *, params: ScoreParams) -> ScoreResult:
    """Score the patches of whole, unaugmented pictures.

    A picture's scores don't depend on the others of the batch. The
    polarity `unknown` takes, picture by picture, the one whose lesion category lies farther from the picture's mean;
    for `intensity` without prior and for `raw` that is the smaller cluster.

    Args:
        images: (N, C, H, W) float32 in 0..1, on any device; channels are averaged, but for `raw`.

    Returns:
        scores of patches of `params.patch` pixels a side, h = H / patch, w = W / patch. Guarded are pictures without a
        clear second cluster: it explains less than `params.min_separation` of the variance, holds fewer than two
        patches, or differs by less than a grey level. (2-means of `contrast` or `intensity` explains half of the
        variance of anything but a constant picture; the share matters for `raw`, or when set to 0.7.)
        Guarded are, too, pictures whose scores are chance: those of every other pixel and those of the rest correlate
        by less than `params.min_repeat`.

    Raises:
        UserError: `params.patch` doesn't divide H and W.
    """
    assert images.ndim == 4 and images.dtype == torch.float32
    height, width = images.shape[-2:]
    if height % params.patch or width % params.patch:
        raise UserError(f"scores.patch: {params.patch} doesn't divide the images' size, {height} x {width} pixels.")
    grid = (height // params.patch, width // params.patch)
    membership, guarded = _membership(images, grid, params)
    if params.min_repeat > 0:
        guarded |= _repeat(images, grid, params) < params.min_repeat
        membership = membership.masked_fill(guarded[:, None], 0.0)
    return ScoreResult(scores=membership.unflatten(1, grid), guarded=guarded)


def _membership(images: Tensor, grid: tuple[int, int], params: ScoreParams) -> tuple[Tensor, Tensor]:
    """Scores (N, L) in 0..1, and which pictures have no clear second cluster, (N,) bool."""
    if params.polarity == "unknown":
        dark, bright = (_categories(images, grid, polarity, params) for polarity in ("dark", "bright"))
        choose = dark.distance >= bright.distance
        membership = torch.where(choose[:, None], dark.membership, bright.membership)
        guarded = torch.where(choose, dark.guarded, bright.guarded)
    else:
        found = _categories(images, grid, params.polarity, params)
        membership, guarded = found.membership, found.guarded
    return membership, guarded


def _repeat(images: Tensor, grid: tuple[int, int], params: ScoreParams) -> Tensor:
    """Correlation (N,) between the scores of two halves of a picture's pixels; 0 where one half has no categories.

    The halves are the fields of a chessboard, the others filled in from their four neighbours. What is there in both
    repeats; noise does not. Without the centre prior, which repeats whatever the picture shows.
    """
    height, width = images.shape[-2:]
    y, x = (torch.arange(side, device=images.device) for side in (height, width))
    even = (y[:, None] + x) % 2 == 0
    around = F.pad(images, (1, 1, 1, 1), mode="replicate")
    filled = (around[..., 1:-1, :-2] + around[..., 1:-1, 2:] + around[..., :-2, 1:-1] + around[..., 2:, 1:-1]) / 4
    plain = params.model_copy(update={"centre_prior": 0.0})
    one, other = (_membership(torch.where(field, images, filled), grid, plain)[0].double() for field in (even, ~even))
    one, other = (half - half.mean(dim=1, keepdim=True) for half in (one, other))
    return (one * other).sum(dim=1) / (one.norm(dim=1) * other.norm(dim=1)).clamp(min=1e-12)


def centre_prior(grid: tuple[int, int], *, device: torch.device | None = None) -> Tensor:
    """Nearness of each patch of an (h, w) grid to the centre: (h, w) in 0..1. Operators centre what they look for."""
    y, x = ((torch.arange(side, device=device, dtype=torch.float32) + 0.5) / side - 0.5 for side in grid)
    return torch.exp(-(y[:, None] ** 2 + x**2) / (2 * CENTRE_WIDTH**2))


def _categories(
    images: Tensor, grid: tuple[int, int], polarity: Literal["dark", "bright"], params: ScoreParams
) -> _Categories:
    """Cluster the patches of pictures whose lesions have a known polarity."""
    grey = images.mean(dim=1, keepdim=True)
    level = 1 - grey if polarity == "dark" else grey
    if params.descriptor == "raw":
        patches = F.unfold(images, params.patch, stride=params.patch).transpose(1, 2)  # (N, L, C * patch^2)
        return _two_means(patches, F.adaptive_avg_pool2d(level, grid).flatten(1), params.min_separation)
    if params.descriptor == "contrast":
        level = _enclosure(level, grid)
    # Lesions span several patches: what a patch's neighbours say counts too.
    values = _smooth(F.adaptive_avg_pool2d(level, grid))
    # Counted from the picture's lowest value, for the prior must not make categories where all patches are equal.
    values = values - values.amin(dim=(1, 2, 3), keepdim=True)
    weight = 1 - params.centre_prior * (1 - centre_prior(grid, device=images.device))
    values = (values * weight).flatten(1)
    return _two_means(values[:, :, None], values, params.min_separation)


def _enclosure(level: Tensor, grid: tuple[int, int]) -> Tensor:
    """Mean of the two smallest depths, (N, 1, CELLS * h, CELLS * w), of peaks in `level`; see the module."""
    level = _smooth(_smooth(F.adaptive_avg_pool2d(level, (CELLS * grid[0], CELLS * grid[1]))))
    left, up = (level.cummin(axis).values for axis in (-1, -2))
    right, down = (level.flip(axis).cummin(axis).values.flip(axis) for axis in (-1, -2))
    # The two smallest depths are those to the two highest of the four lowest levels.
    highest = torch.maximum(torch.maximum(left, right), torch.maximum(up, down))
    second = torch.maximum(
        torch.minimum(torch.maximum(left, right), torch.maximum(up, down)),
        torch.maximum(torch.minimum(left, right), torch.minimum(up, down)),
    )
    return level - (highest + second) / 2


def _smooth(maps: Tensor) -> Tensor:
    """Weigh each point of (N, 1, h, w) and its neighbours 1:2:1 along both axes; the border repeats.

    Sums of slices, for a convolution's last bits may depend on the size of the batch.
    """
    maps = F.pad(maps, (1, 1, 1, 1), mode="replicate")
    maps = (maps[..., :-2] + 2 * maps[..., 1:-1] + maps[..., 2:]) / 4
    return (maps[..., :-2, :] + 2 * maps[..., 1:-1, :] + maps[..., 2:, :]) / 4


def _two_means(features: Tensor, key: Tensor, min_separation: float) -> _Categories:
    """2-means of each picture's patches, started by splitting `key` at the middle of its range.

    Args:
        features: (N, L, D).
        key: (N, L), higher where a lesion is more likely: it decides which of the clusters holds the lesion.
    """
    # The order of a sum depends on the size of the batch; rounded from doubles, the scores don't.
    features = features.double()
    lesion = key > (key.amin(dim=1, keepdim=True) + key.amax(dim=1, keepdim=True)) / 2
    for _ in range(ITERATIONS):
        inside, outside = _mean(features, lesion), _mean(features, ~lesion)
        axis = (inside - outside).mT  # (N, D, 1)
        # Position along the line between the two means: -1 at the background's, 1 at the lesion category's.
        middle = (inside + outside) / 2
        length = axis.square().sum(dim=1).clamp(min=1e-12)
        position = 2 * (features @ axis - middle @ axis).squeeze(2) / length
        before, lesion = lesion, position > 0
        if torch.equal(before, lesion):
            break

    count = lesion.sum(dim=1)
    share = count / lesion.shape[1]
    mean = features.mean(dim=1, keepdim=True)
    total = (features - mean).square().sum(dim=2).mean(dim=1)
    inside, outside = _mean(features, lesion), _mean(features, ~lesion)
    apart = (inside - outside).square().sum(dim=2).squeeze(1)
    guarded = (
        (share * (1 - share) * apart < min_separation * total)
        | (count < 2)
        | (count > lesion.shape[1] - 2)
        | (apart < features.shape[2] * MIN_GAP**2)
    )
    membership = torch.sigmoid(SHARPNESS * position).float().masked_fill(guarded[:, None], 0.0)
    distance = (inside - mean).square().sum(dim=2).squeeze(1).masked_fill(guarded, 0.0)
    return _Categories(membership=membership, distance=distance, guarded=guarded)


def _mean(features: Tensor, chosen: Tensor) -> Tensor:
    """Mean of the chosen patches (N, 1, D); 0 where none is."""
    weight = chosen.to(features.dtype)[:, None]
    return weight @ features / weight.sum(dim=2, keepdim=True).clamp(min=1)
