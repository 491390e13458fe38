"""Which patches hold a lesion, by the masks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Of a patch's pixels: what lesion must cover to make it a lesion patch, wherever patches are compared with masks.
LESION_SHARE = 0.3


def lesion_patches(masks: NDArray[Any], grid: tuple[int, int]) -> NDArray[np.bool_]:
    """Find the lesion patches.

    Args:
        masks: (N, H, W) of 0 and 1.
        grid: patches (h, w); h divides H, w divides W.

    Returns:
        (N, h * w).
    """
    n, height, width = masks.shape
    cells = masks.reshape(n, grid[0], height // grid[0], grid[1], width // grid[1])
    return (cells.mean(axis=(2, 4)) >= LESION_SHARE).reshape(n, -1)
