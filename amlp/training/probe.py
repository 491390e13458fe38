"""A linear probe of the encoder: do its frozen features separate lesion patches from others?

The reconstruction error doesn't rank encoders. The probe does so without a fine-tuning, on a few labelled images of the
*training* split. It looks on: nothing of the training depends on it.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from amlp.data.shards import ShardedSplit
from amlp.metrics.lesion_patches import LESION_SHARE
from amlp.models.checkpoint import InputStats
from amlp.models.encoder import Encoder, EncoderPlan

_FITTED, _SCORED, _BATCH = 32, 96, 64
# Of the mean variance of the features: enough to keep a fit on few images sober.
_RIDGE = 0.03


class Probe:
    """Fits on some labelled images, scores on others; no group is in both.

    `fitted` and `scored` are their row numbers in the split.

    Args:
        split: the training split.
        seed: of the choice of images.
    """

    def __init__(
        self, split: ShardedSplit, *, plan: EncoderPlan, stats: InputStats, seed: int, device: torch.device
    ) -> None:
        index = split.index.reset_index(drop=True)
        index = index[index["labelled"] & (index["lesion_fraction"] > 0)]
        groups = np.random.default_rng(seed).permutation(np.sort(index["group"].unique()))
        # In the random order of their groups: rows are sorted by name, and the first ones may all have one label.
        place = index["group"].map({group: number for number, group in enumerate(groups)}).sort_values(kind="stable")
        # A quarter of few groups fits, the others score.
        first = place < max(1, len(groups) // 4)
        self.fitted = place.index[first].to_numpy()[:_FITTED]
        self.scored = place.index[~first].to_numpy()[:_SCORED]
        rows = np.concatenate([self.fitted, self.scored])
        self.images = stats.normalise(torch.from_numpy(split.images(rows)).to(device))
        masks = torch.from_numpy(split.masks(rows)).to(device).float().unsqueeze(1)
        self.lesion = F.avg_pool2d(masks, plan.patch).flatten(1) >= LESION_SHARE
        halves = (self.lesion[: len(self.fitted)], self.lesion[len(self.fitted) :])
        self.usable = all(bool(half.any()) and not bool(half.all()) for half in halves)

    @torch.inference_mode()
    def auc(self, encoder: Encoder) -> float:
        """Area under the ROC curve of lesion patches, 0 .. 1, over the images that were not fitted.

        The probe is a ridge regression on the last block's features in which both kinds of patches weigh the same.
        NaN without labelled images, or where a kind is missing among those that fit or those that score.
        """
        if not self.usable:
            return float("nan")
        layer = [encoder.plan.depth - 1]
        maps = [encoder.features(batch, layer)[0].flatten(2).mT for batch in self.images.split(_BATCH)]
        features = torch.cat(maps).double()
        count = len(self.fitted)
        fitted, scored = features[:count].flatten(0, 1), features[count:].flatten(0, 1)
        target, truth = self.lesion[:count].flatten(), self.lesion[count:].flatten()
        share = target.double().mean()
        weight = torch.where(target, 0.5 / share, 0.5 / (1 - share))
        mean = (weight[:, None] * fitted).mean(dim=0)
        centred = fitted - mean
        gram = centred.T @ (weight[:, None] * centred) / len(fitted)
        gram += _RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        moment = centred.T @ (weight * (target.double() - 0.5)) / len(fitted)
        return area_under_curve((scored - mean) @ torch.linalg.solve(gram, moment), truth)


def area_under_curve(scores: Tensor, positive: Tensor) -> float:
    """Probability that a positive outscores a negative, ties counting half; NaN when one kind is missing.

    Args:
        scores: (n,).
        positive: (n,) bool.
    """
    above, below = scores[positive].sort().values, scores[~positive].sort().values
    if not len(above) or not len(below):
        return float("nan")
    lower, upper = torch.searchsorted(below, above), torch.searchsorted(below, above, right=True)
    return float((lower + upper).double().mean() / (2 * len(below)))
