"""The lesion scores that MPS masks by: preprocessing's clusters at first, then refined by the model itself."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from amlp.data.shards import ShardedSplit
from amlp.models.checkpoint import InputStats
from amlp.models.mae import MaskedAutoencoder
from amlp.training.launch import Worker


class ScoreMaps:
    """MPS scores of the whole training split: the clusters' at first, then refined by the model itself.

    Args:
        clusters: (N, h, w) float32 in 0 .. 1, from preprocessing; all 0 for an image without a clear second cluster.
    """

    def __init__(self, clusters: np.ndarray) -> None:
        self.clusters = clusters
        self.current = clusters.copy()

    def refine(self, categories: np.ndarray, weight: float) -> None:
        """Set s = (1 - weight) * clusters + weight * p.

        p is the model's category, shifted for each image so that it calls as many patches lesion as the clusters do:
        refinement decides which patches, not how many, or a head that errs to one side would end the selection.
        Images that took the guard stay at 0.

        Args:
            categories: (N, h, w) probabilities of the lesion category.
            weight: 0 .. 1.
        """
        n, *grid = self.clusters.shape
        flat = np.clip(categories.reshape(n, -1).astype(np.float64), 1e-9, 1 - 1e-9)
        logits = np.log(flat / (1 - flat))
        count = (self.clusters.reshape(n, -1) > 0.5).sum(axis=1)
        ranked = -np.sort(-logits, axis=1)
        last = logits.shape[1] - 1
        row = np.arange(n)
        # Halfway between the last patch that counts as lesion and the first that doesn't.
        limit = (ranked[row, np.clip(count - 1, 0, last)] + ranked[row, np.clip(count, 0, last)]) / 2
        shifted = 1 / (1 + np.exp(limit[:, None] - logits))
        clear = self.clusters.any(axis=(1, 2), keepdims=True)
        mixed = (1 - weight) * self.clusters + weight * shifted.reshape(n, *grid)
        self.current = np.where(clear, mixed, 0).astype(np.float32)


def lesion_categories(model: MaskedAutoencoder, split: ShardedSplit, stats: InputStats, grid: tuple[int, int],
                        worker: Worker) -> np.ndarray:  # fmt: skip
    """Categories (N, h, w) of the unmasked, unaugmented training images, computed in shares by the workers."""
    rows, columns = model.plan.grid
    result = torch.zeros(len(split), *grid)
    mine = np.arange(len(split))[worker.rank :: worker.count]
    with torch.inference_mode():
        for chunk in np.array_split(mine, max(1, -(-len(mine) // 64))):
            images = stats.normalise(torch.from_numpy(split.images(chunk)).to(worker.device))
            maps = model.categories(images).view(-1, 1, rows, columns)
            # The scores' patches may be smaller or larger than the encoder's.
            result[chunk] = F.interpolate(maps, size=grid, mode="bilinear", antialias=True)[:, 0].cpu()
    return worker.sum(result).cpu().numpy()
