"""A small ingest folder made by hand, for the stages that read one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from scipy import ndimage

COLUMNS = [
    "case_id", "image", "mask", "label", "patient", "sha256",
    "format", "height", "width", "channels", "bits", "lesion_fraction", "blurred_mask",
]  # fmt: skip


def scene(seed: int, height: int = 40, width: int = 48) -> np.ndarray:
    """A picture (H, W) uint8 of its own kind: smooth structure, the same for the same seed in every size."""
    coarse = np.random.default_rng(seed).normal(size=(6, 6))
    fine = ndimage.zoom(coarse, (height / 6, width / 6), order=3, grid_mode=True, mode="nearest")
    low, high = fine.min(), fine.max()
    return np.rint((fine - low) / (high - low) * 220 + 20).astype(np.uint8)


def lesion(height: int = 40, width: int = 48) -> np.ndarray:
    """A mask (H, W) bool that covers the middle ninth."""
    mask = np.zeros((height, width), dtype=bool)
    mask[height // 3 : 2 * height // 3, width // 3 : 2 * width // 3] = True
    return mask


def write_ingest(folder: Path, cases: Mapping[str, dict[str, Any]]) -> Path:
    """Write images, masks and manifest; each case gives `image`, and may give `mask`, `label`, `patient`."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    rows = []
    for case_id, case in cases.items():
        image, mask = case["image"], case.get("mask")
        Image.fromarray(image).save(folder / f"images/{case_id}.png")
        if mask is not None:
            Image.fromarray(mask).convert("L").save(folder / f"masks/{case_id}.png")
        rows.append(
            {
                "case_id": case_id,
                "image": f"images/{case_id}.png",
                "mask": None if mask is None else f"masks/{case_id}.png",
                "label": case.get("label", "lesion"),
                "patient": case.get("patient"),
                "sha256": hashlib.sha256(image.tobytes()).hexdigest(),
                "height": image.shape[0],
                "width": image.shape[1],
                "channels": 1 if image.ndim == 2 else 3,
                "bits": 8 * image.dtype.itemsize,
                "lesion_fraction": np.nan if mask is None else mask.mean(),
                "format": "PNG",
                "blurred_mask": False,
            }
        )
    pd.DataFrame(rows, columns=COLUMNS).to_parquet(folder / "manifest.parquet")
    return folder
