"""The baseline without learning: one grey value that parts lesion from background in every image."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amlp.data.images import to_grey, to_model_input
from amlp.evaluation.summary import Baseline


class Threshold(Baseline):
    """The baseline as a model."""

    def mask(self, image: NDArray[Any]) -> NDArray[np.uint8]:
        """Segment a raw image, (H, W) or (H, W, 3), on the model's grey scale but at native size: (H, W) 0/1."""
        height, width = image.shape[:2]
        grey = to_model_input(image, channels=1, height=height, width=width)[0].astype(np.int16)
        lesion = grey <= self.value if self.polarity == "dark" else grey >= self.value
        return lesion.astype(np.uint8)


def best_threshold(batches: Iterable[tuple[NDArray[np.uint8], NDArray[np.uint8]]]) -> Threshold:
    """Find the threshold with the highest mean DSC over images, under the empty-mask rule of `metrics.RULE`.

    Two histograms of an image give its DSC at all thresholds at once. Among equals the lowest dark one wins.

    Args:
        batches: images (n, C, H, W) and masks (n, H, W) 0/1 of the training split.
    """
    # Row: dark below k, or bright from k on; column: k = 0..256.
    total = np.zeros((2, 257))
    images = 0
    for pixels, masks in batches:
        grey = _grey(pixels)
        below = _pixels_below(grey, np.ones(grey.shape, dtype=bool))
        lesion_below = _pixels_below(grey, masks != 0)
        lesion = lesion_below[:, -1:]
        for row, (hits, predicted) in enumerate(
            ((lesion_below, below), (lesion - lesion_below, below[:, -1:] - below))
        ):
            size = predicted + lesion
            total[row] += np.where(size == 0, 1.0, 2.0 * hits / np.maximum(size, 1)).sum(axis=0)
        images += len(grey)
    assert images, "no training image"
    row, k = divmod(int(total.argmax()), total.shape[1])
    return Threshold(
        value=k - 1 if row == 0 else k,
        polarity="dark" if row == 0 else "bright",
        train_dsc=float(total[row, k] / images),
    )


def _grey(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(n, C, H, W) -> (n, H, W), on the same scale as `Threshold.mask`."""
    if images.shape[1] == 1:
        return images[:, 0]
    return np.stack([to_grey(np.moveaxis(image, 0, 2)) for image in images])


def _pixels_below(grey: NDArray[np.uint8], counted: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(n, H, W) grey values and which of them count -> (n, 257) pixels darker than 0..256."""
    cell = grey.astype(np.int64) + 256 * np.arange(len(grey))[:, None, None]
    histogram = np.bincount(cell[counted], minlength=256 * len(grey)).reshape(-1, 256)
    return np.pad(histogram.cumsum(axis=1), ((0, 0), (1, 0)))
