"""One image's scores, computed by MONAI, and the rule for masks without lesion."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

RULE = (
    "An image without a lesion scores DSC 1 when the predicted mask is empty too, else 0. "
    "PPV is undefined when the predicted mask is empty, sensitivity when the true mask is, HD95 when either is: "
    "undefined values are left out of the mean and counted. "
    "HD95 is in native pixels: the larger of the two directed 95th percentiles of the distances between the outlines."
)


@dataclass(frozen=True)
class CaseScore:
    """Scores of one image; NaN where undefined, see `RULE`.

    `dsc`, `ppv` and `sensitivity` lie in 0..1, `hd95` is in pixels.
    """

    dsc: float
    ppv: float
    sensitivity: float
    hd95: float


def score_case(*, truth: NDArray[Any], predicted: NDArray[Any]) -> CaseScore:
    """Compare a predicted mask with the true one.

    MONAI's HD95 takes a mask's outline to be its pixels with a 4-neighbour outside the mask (or outside the image),
    interpolates the 95th percentile of the distances in each direction linearly, and returns the larger of the two.

    Args:
        truth: (H, W) bool or 0/1.
        predicted: (H, W) bool or 0/1.

    Raises:
        ValueError: the shapes differ.
    """
    if truth.shape != predicted.shape or truth.ndim != 2:
        raise ValueError(f"true mask {truth.shape} and predicted mask {predicted.shape}: expected one (H, W).")
    # Inside the function: MONAI loads every submodule it has, which takes seconds.
    from monai.metrics import (
        compute_confusion_matrix_metric,
        compute_dice,
        compute_hausdorff_distance,
        get_confusion_matrix,
    )

    # What both call background counts in no score: left out, a typical image takes a tenth of the time.
    box = _bounding_box((truth != 0) | (predicted != 0))
    # MONAI wants (batch, class, H, W).
    truth_tensor, predicted_tensor = (
        torch.from_numpy((mask[box] != 0).astype(np.uint8))[None, None] for mask in (truth, predicted)
    )
    dsc = compute_dice(predicted_tensor, truth_tensor, ignore_empty=False)
    confusion = get_confusion_matrix(predicted_tensor, truth_tensor)
    hd95 = math.nan
    if truth_tensor.any() and predicted_tensor.any():
        with warnings.catch_warnings():
            # MONAI 1.6 calls its own function with an argument that it deprecates.
            warnings.filterwarnings("ignore", message=".*always_return_as_numpy", category=FutureWarning)
            distance = compute_hausdorff_distance(
                predicted_tensor, truth_tensor, include_background=True, percentile=95
            )
        hd95 = float(distance)
    return CaseScore(
        dsc=float(dsc),
        ppv=float(compute_confusion_matrix_metric("ppv", confusion)),
        sensitivity=float(compute_confusion_matrix_metric("sensitivity", confusion)),
        hd95=hd95,
    )


def _bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, slice]:
    """Smallest box round all pixels of a mask; of an empty mask, one pixel."""
    if not mask.any():
        return slice(0, 1), slice(0, 1)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
