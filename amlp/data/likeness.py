"""Near-duplicates: pictures of one scene, resized, cropped a little, of another brightness or compression, with marks,
or mirrored.

Two steps, both on small grey pictures whose local mean and contrast are taken off, so that brightness and vignettes say
nothing. First each picture's nearest neighbours are found by 64 numbers, whitened over the data set: what all its
pictures share, such as a lesion in the middle of skin, is no likeness. Then each such pair is laid one on the other
(scale and shift), and its likeness is the mean correlation over the blocks that have structure. Pictures of one scene
agree in nearly all blocks, and pictures that merely resemble each other agree in few. The definition is ours;
docs/explanation/near-duplicates.md has what was measured.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from amlp.progress import progress

# Side of the pictures that are compared: fine enough for a scene's structure, too coarse for speckle.
SIDE = 64
# Blocks that are correlated, and pixels of the grid on which pairs are laid one on the other.
_BLOCK, _GRID = 8, 32
# Sigma of what counts as local, for neighbours and for blocks; below this contrast in grey values there is only noise.
_WIDE, _NARROW = 8.0, 4.0
_NOISE_WIDE, _NOISE_NARROW = 5.0, 3.0
# A block with less contrast, relative to its surroundings, shows nothing; with fewer blocks a picture shows nothing.
_STRUCTURE, _FEWEST_BLOCKS = 0.05, 8
# Cosine of two pictures' numbers below which nobody looks closer. All of 1,790 planted pairs are above 0.6.
_RESEMBLES = 0.55
# Directions in which the pictures hardly vary are whitened less, because they hold noise.
_SHRINK = 0.1
_SAMPLE, _PRIOR = 4096, 64
# What pictures alike by nature have: the likeness of each one's far neighbour, but for one in a hundred. Pairs need
# more, up to what no two scenes were ever seen to have.
_FAR, _RARE, _MARGIN, _MOST = 20, 0.99, 0.18, 0.7
_BATCH = 512

Thumbnails = NDArray[np.uint8]  # (N, SIDE, SIDE)
Pairs = NDArray[np.int64]  # (P, 2) positions of cases, the smaller first


@dataclass(frozen=True)
class Alike:
    """Pairs of near-duplicates, their likeness (P,), which is at most 1, and the likeness that was asked of them."""

    pairs: Pairs
    likeness: NDArray[np.float32]
    limit: float


def near_duplicates(thumbnails: Thumbnails, *, likeness: float, neighbours: int) -> Alike:
    """Find pairs of pictures of one scene.

    Equal thumbnails are paired with the first of them. Time grows a little faster than the number of pictures, memory
    with it: 256 bytes a picture and the library's index.

    Where a data set's pictures are alike by nature, more is asked of a pair: more than far neighbours have.

    Args:
        thumbnails: (N, 64, 64) uint8 grey pictures; may be memory-mapped.
        likeness: 0..1 that a pair must have at least.
        neighbours: that are looked at of each picture, and as many of its mirror image.
    """
    first, equal = _equal(thumbnails)
    numbers, mirrored = _numbers(thumbnails, first)
    index = _indexed(numbers)
    candidates = _candidates(index, numbers, mirrored, neighbours)
    limit = _limit(index, numbers, thumbnails, first, likeness)
    pairs, found = [equal], [np.ones(len(equal), np.float32)]
    with (
        progress(len(candidates), "compare", "pairs", disable=len(candidates) < 2 * _BATCH) as bar,
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
    ):
        batches = [candidates[start : start + _BATCH] for start in range(0, len(candidates), _BATCH)]

        def compared(some: Pairs) -> NDArray[np.float32]:
            here, there = first[some[:, 0]], first[some[:, 1]]
            return _likeness(thumbnails[here], _mirrored(thumbnails[there], some[:, 2] == 1))

        for some, values in zip(batches, pool.map(compared, batches), strict=True):
            alike = values >= limit
            here, there = first[some[:, 0]], first[some[:, 1]]
            pairs.append(np.sort(np.stack([here, there], axis=1)[alike], axis=1))
            found.append(values[alike])
            bar.update(len(some))
    unique, strongest = _strongest(np.concatenate(pairs), np.concatenate(found))
    return Alike(unique, strongest, limit)


def _strongest(pairs: Pairs, likeness: NDArray[np.float32]) -> tuple[Pairs, NDArray[np.float32]]:
    """Keep each pair once, at its highest likeness (plain or mirrored)."""
    order = np.lexsort((-likeness, pairs[:, 1], pairs[:, 0]))
    pairs, likeness = pairs[order], likeness[order]
    new = np.ones(len(pairs), bool)
    new[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
    return pairs[new], likeness[new]


def _equal(thumbnails: Thumbnails) -> tuple[NDArray[np.int64], Pairs]:
    """Return the positions of pictures that differ, and the others each with the one that it equals."""
    seen: dict[bytes, int] = {}
    equal = []
    for number in range(len(thumbnails)):
        digest = hashlib.blake2b(thumbnails[number].tobytes(), digest_size=16).digest()
        one = seen.setdefault(digest, number)
        if one != number:
            equal.append((one, number))
    return np.array(list(seen.values()), np.int64), np.array(equal, np.int64).reshape(-1, 2)


def _mirrored(pictures: NDArray[np.generic], which: NDArray[np.bool_]) -> NDArray[np.generic]:
    result = np.array(pictures)
    result[which] = result[which][:, :, ::-1]
    return result


def _local(pictures: NDArray[np.generic], sigma: float, noise: float) -> NDArray[np.float32]:
    """Take off each pixel's local mean, and divide by the local contrast."""
    values = np.asarray(pictures, np.float32)
    blur = (0.0, sigma, sigma)
    values = values - ndimage.gaussian_filter(values, blur)
    return values / np.sqrt(ndimage.gaussian_filter(values**2, blur) + noise**2)


def _shrunk(pictures: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Average (n, SIDE, SIDE) over squares, to (n, side, side)."""
    size = pictures.shape[1] // side
    return pictures.reshape(len(pictures), side, size, side, size).mean(axis=(2, 4))


def _numbers(thumbnails: Thumbnails, which: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return what describes each picture, and its mirror image: (n, 64), of length 1."""
    parts: list[NDArray[np.float32]] = []
    for start in range(0, len(which), _BATCH):
        local = _local(thumbnails[which[start : start + _BATCH]], _WIDE, _NOISE_WIDE)
        parts.append(_shrunk(local, _BLOCK))
    plain = np.concatenate(parts)
    both = [plain.reshape(len(plain), -1), plain[:, :, ::-1].reshape(len(plain), -1)]
    # A data set and its mirror image have one mean and one covariance, so that mirroring twice is no change.
    sample = np.concatenate([one[:: max(1, len(one) // _SAMPLE)] for one in both]).astype(np.float64)
    mean = sample.mean(axis=0)
    covariance = (sample - mean).T @ (sample - mean)
    # A few pictures say little of how pictures vary: as if there were some more, that vary alike in all directions.
    covariance += np.eye(len(covariance)) * (covariance.trace() / len(covariance) * _PRIOR / len(sample) + 1e-9)
    variance, directions = np.linalg.eigh(covariance / (len(sample) + _PRIOR))
    scale = np.sqrt(np.maximum(variance, 0.0))
    turn = (directions / (scale + _SHRINK * scale.max())).astype(np.float32)
    turned = [(one - mean.astype(np.float32)) @ turn for one in both]
    plain, mirror = (one / np.maximum(np.linalg.norm(one, axis=1, keepdims=True), 1e-6) for one in turned)
    return plain, mirror


def _indexed(numbers: NDArray[np.float32]) -> Any:
    from usearch.index import Index

    # One byte a number, and one thread: the same neighbours on every run.
    index = Index(ndim=numbers.shape[1], metric="cos", dtype="i8", expansion_add=64, expansion_search=64)
    index.add(np.arange(len(numbers)), numbers, threads=1)
    return index


def _limit(
    index: Any, numbers: NDArray[np.float32], thumbnails: Thumbnails, first: NDArray[np.int64], likeness: float
) -> float:
    """Return the likeness to ask for: above that of far neighbours, which are no near-duplicates."""
    if len(numbers) < 5 * _FAR:
        return likeness
    sample = np.arange(0, len(numbers), 1 + len(numbers) // _SAMPLE)
    far = np.concatenate([keys[:, -1] for _, keys in _searched(index, numbers[sample], _FAR)])
    values = [
        _likeness(thumbnails[first[sample[start : start + _BATCH]]], thumbnails[first[far[start : start + _BATCH]]])
        for start in range(0, len(sample), _BATCH)
    ]
    background = float(np.quantile(np.concatenate(values), _RARE))
    # Of a film of many frames even far neighbours are of one scene.
    return max(likeness, min(background + _MARGIN, _MOST))


def _candidates(index: Any, numbers: NDArray[np.float32], mirrored: NDArray[np.float32], neighbours: int) -> Pairs:
    """Return (P, 3): two positions, and 1 where the second picture is mirrored; in a fixed order."""
    found = [np.empty((0, 3), np.int64)]
    for mirror, queries in enumerate((numbers, mirrored)):
        for start, keys in _searched(index, queries, min(neighbours + 1, len(numbers))):
            here = np.repeat(np.arange(start, start + len(keys)), keys.shape[1])
            there = keys.ravel()
            likely = np.einsum("nd,nd->n", queries[here], numbers[there]) >= _RESEMBLES
            # A picture is its own neighbour, and one that is symmetric is so mirrored.
            chosen = likely & (here != there)
            # The mirror image of one against the other is the one against the other's mirror image.
            pair = np.sort(np.stack([here[chosen], there[chosen]], axis=1), axis=1)
            found.append(np.column_stack([pair, np.full(len(pair), mirror)]))
    return np.unique(np.concatenate(found), axis=0)


def _searched(index: Any, queries: NDArray[np.float32], count: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
    for start in range(0, len(queries), 1024):
        matches = index.search(queries[start : start + 1024], count, threads=1)
        keys = np.asarray(matches.keys).astype(np.int64).reshape(-1, count)
        yield start, keys


def _likeness(one: NDArray[np.generic], other: NDArray[np.generic]) -> NDArray[np.float32]:
    """Lay each of (n, SIDE, SIDE) pictures on its partner, and correlate them block by block."""
    placed = _registered(
        _tensor(_shrunk(_local(one, _WIDE, _NOISE_WIDE), _GRID)),
        _tensor(_shrunk(_local(other, _WIDE, _NOISE_WIDE), _GRID)),
    )
    smooth = (0.0, 0.7, 0.7)
    fine = [_tensor(ndimage.gaussian_filter(_local(part, _NARROW, _NOISE_NARROW), smooth)) for part in (one, other)]
    grid = _grid(SIDE, placed)
    moved = functional.grid_sample(fine[1][:, None], grid, align_corners=True)[:, 0]
    inside = (grid.abs() <= 1).all(-1).float()

    def mean(values: Tensor) -> Tensor:
        return functional.avg_pool2d((values * inside)[:, None], _BLOCK)[:, 0] / share

    share = functional.avg_pool2d(inside[:, None], _BLOCK)[:, 0].clamp_min(1e-3)
    means = mean(fine[0]), mean(moved)
    variances = [
        (mean(part**2) - average**2).clamp_min(0) for part, average in zip((fine[0], moved), means, strict=True)
    ]
    shared = mean(fine[0] * moved) - means[0] * means[1]
    correlation = shared / (variances[0] * variances[1]).sqrt().clamp_min(1e-4)
    shows = (torch.minimum(*variances).sqrt() > _STRUCTURE) & (share > 0.5)
    blocks = shows.sum((1, 2))
    values = (correlation * shows).sum((1, 2)) / blocks.clamp_min(1)
    return torch.where(blocks >= _FEWEST_BLOCKS, values, torch.zeros(())).numpy()


def _tensor(values: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))


def _grid(side: int, placed: Tensor) -> Tensor:
    """Return where each pixel of (n, side, side) lies in the partner; `placed` is scale - 1 and shift along x and y."""
    line = torch.linspace(-1, 1, side)
    y, x = torch.meshgrid(line, line, indexing="ij")
    scale_x, scale_y, shift_x, shift_y = placed[:, :, None, None].unbind(1)
    return torch.stack([x * (1 + scale_x) + shift_x, y * (1 + scale_y) + shift_y], -1)


def _registered(one: Tensor, other: Tensor) -> Tensor:
    """Find scale and shift that lay the partner on each picture: Gauss-Newton, from coarse to fine, robust to marks."""
    side = one.shape[1]
    line = torch.linspace(-1, 1, side)
    y, x = torch.meshgrid(line, line, indexing="ij")
    placed = torch.zeros(len(one), 4)
    damping = torch.eye(4) * 0.1 * side / 2
    for sigma in (2.0, 1.0):
        blur = (0.0, sigma, sigma)
        fixed, moving = (_tensor(ndimage.gaussian_filter(part.numpy(), blur)) for part in (one, other))
        for _ in range(5):
            grid = _grid(side, placed)
            moved = functional.grid_sample(moving[:, None], grid, align_corners=True)[:, 0]
            inside = (grid.abs() <= 1).all(-1).float()
            inside[:, :, [0, -1]] = 0
            inside[:, [0, -1]] = 0
            # Central differences, in units of the grid's coordinates.
            slope_x = (moved.roll(-1, 2) - moved.roll(1, 2)) * (side - 1) / 4
            slope_y = (moved.roll(-1, 1) - moved.roll(1, 1)) * (side - 1) / 4
            slopes = torch.stack([slope_x * x, slope_y * y, slope_x, slope_y], -1) * inside[..., None]
            rest = (fixed - moved) * inside
            weighted = slopes / (1 + rest**2)[..., None]
            step = torch.linalg.solve(
                torch.einsum("nhwi,nhwj->nij", weighted, slopes) + damping,
                torch.einsum("nhwi,nhw->ni", weighted, rest),
            )
            placed = (placed + step.clamp(-0.05, 0.05)).clamp(-0.25, 0.25)
    return placed
