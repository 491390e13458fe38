"""Lesion patch selection on BUSI, scored against the masks, which the selection itself never sees.

    python -m benchmarks.bench_mps --data FOLDER    # FOLDER holds benign/ and malignant/; half a minute on a core

Convention: images stretched to 128 x 128, patches of 8 x 8 pixels; a lesion patch is one of which lesion covers at
least 30 %, a tenth of all patches. All images with a lesion count; figures are over all their patches together.

- recall: share of the lesion patches that are selected (score > 1/2, or the top 20 % of the prior)
- enrichment: share of lesion patches among the selected over their share among all; 1 is chance
- AUC: that a lesion patch scores higher than another, over all images; `within`: image by image, then averaged

Intervals are 95 % by bootstrap over images. BUSI names no patients and has near-duplicates, so they are a little too
narrow. The halves A and B (parity of the file's SHA-256) show how much the figures depend on the images; neither is a
blind test, for both were in view when the definition was chosen, and near-duplicates may lie on both sides.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata

from amlp.data.images import read_image, read_mask, to_model_input, to_model_mask
from amlp.errors import UserError
from amlp.files import sha256
from amlp.method.scores import centre_prior, lesion_scores
from amlp.params import ScoreParams
from benchmarks.machine import report

SIDE = 128  # pixels
PATCH = 8  # pixels
GRID = (SIDE // PATCH, SIDE // PATCH)
LESION_SHARE = 0.3  # of a patch's pixels
SELECTED_BY_PRIOR = 0.2  # of an image's patches
RESAMPLES = 1000

Array = NDArray[Any]


@dataclass(frozen=True)
class Cases:
    """Images (N, 1, SIDE, SIDE) float32 0..1, their lesion patches (N, L) bool, and half A (N,) bool."""

    images: torch.Tensor
    lesion: Array
    half_a: Array


def read_cases(folder: Path) -> Cases:
    """Read every image with a lesion of a folder in the BUSI layout.

    Raises:
        UserError: there is no such folder, or nothing in it.
    """
    files = sorted(path for path in folder.glob("*/*.png") if "_mask" not in path.stem)
    if not files:
        raise UserError(f"{folder}: no */*.png. Pass --data FOLDER, the BUSI folder that holds benign/ and malignant/.")
    images, lesion, half_a = [], [], []
    for file in files:
        # Names hold parentheses, which no glob takes for anything else.
        masks = [read_mask(path) for path in sorted(file.parent.glob(f"{file.stem}_mask*.png"))]
        if not masks or not any(mask.any() for mask in masks):
            continue
        mask = to_model_mask(np.logical_or.reduce(masks), height=SIDE, width=SIDE)
        images.append(to_model_input(read_image(file), channels=1, height=SIDE, width=SIDE))
        covered = mask.reshape(GRID[0], PATCH, GRID[1], PATCH).mean(axis=(1, 3))
        lesion.append(covered.ravel() >= LESION_SHARE)
        half_a.append(int(sha256(file), 16) % 2 == 0)
    if not images:
        raise UserError(f"{folder}: no image has a lesion mask (*_mask.png that is not black).")
    pixels = torch.from_numpy(np.stack(images)).float() / 255
    return Cases(images=pixels, lesion=np.stack(lesion), half_a=np.array(half_a))


def measure(scores: Array, selected: Array, lesion: Array) -> dict[str, Any]:
    """Figures of one categoriser, with 95 % intervals.

    Args:
        scores: (N, L), higher where a lesion is more likely.
        selected: (N, L) bool, the category.
        lesion: (N, L) bool, the truth.
    """
    images, patches = scores.shape
    # (N, 5): what an image adds to each sum, so that resampling images is a product of matrices.
    mixed = (lesion.sum(1) > 0) & (lesion.sum(1) < patches)
    within = [_auc(*pair) if both else 0.0 for *pair, both in zip(scores, lesion, mixed, strict=True)]
    sums = np.stack([(selected & lesion).sum(1), selected.sum(1), lesion.sum(1), within, mixed], axis=1)

    def figures(weights: Array) -> Array:
        """Recall, enrichment and AUC within images, (3, resamples), of (resamples, N) weights that sum to N."""
        hits, chosen, true, auc, count = (weights @ sums).T
        return np.stack([hits / true, hits / chosen * images * patches / true, auc / count])

    rng = np.random.default_rng(0)
    resamples = figures(rng.multinomial(images, np.full(images, 1 / images), size=RESAMPLES))
    low, high = np.quantile(resamples, [0.025, 0.975], axis=1)
    value = figures(np.ones((1, images)))[:, 0]
    return {
        "auc": _auc(scores.ravel(), lesion.ravel()),
        "selected": float(selected.mean()),
        **{
            name: {"value": float(value[i]), "low": float(low[i]), "high": float(high[i])}
            for i, name in enumerate(("recall", "enrichment", "auc_within"))
        },
    }


def _auc(scores: Array, lesion: Array) -> float:
    positive, negative = int(lesion.sum()), int((~lesion).sum())
    return float((rankdata(scores)[lesion].sum() - positive * (positive + 1) / 2) / (positive * negative))


def by_scores(params: ScoreParams) -> Callable[[torch.Tensor], tuple[Array, Array]]:
    """A categoriser that selects scores above 1/2."""

    def categorise(images: torch.Tensor) -> tuple[Array, Array]:
        # In batches: raw patches and their products are many times the images.
        scores = torch.cat([lesion_scores(batch, params=params).scores for batch in images.split(128)])
        table = scores.flatten(1).numpy()
        return table, table > 0.5

    return categorise


def by_prior(images: torch.Tensor) -> tuple[Array, Array]:
    """The centre prior alone: the patches nearest to the centre, whatever the image shows."""
    scores = np.tile(centre_prior(GRID).flatten().numpy(), (len(images), 1))
    selected = np.zeros(scores.shape, dtype=bool)
    # All images select the same patches; ties at the edge go by position.
    nearest = np.argsort(-scores[0], kind="stable")[: round(SELECTED_BY_PRIOR * scores.shape[1])]
    selected[:, nearest] = True
    return scores, selected


def row(name: str, figures: dict[str, Any]) -> str:
    def cell(key: str, digits: int) -> str:
        value, low, high = (figures[key][part] for part in ("value", "low", "high"))
        return f"{value:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"

    return (
        f"{name:32s} {figures['auc']:.3f}   {cell('auc_within', 3):20s} {cell('recall', 2):17s} "
        f"{cell('enrichment', 2):17s} {figures['selected']:.3f}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Lesion patch selection on BUSI against the masks")
    parser.add_argument("--data", type=Path, required=True, help="BUSI folder: benign/, malignant/, *_mask.png")
    data = parser.parse_args().data
    try:
        cases = read_cases(data)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    everywhere = np.ones(len(cases.images), dtype=bool)
    share = float(cases.lesion.mean())
    print(f"{len(cases.images)} images with a lesion, {share:.3f} of the patches are lesion patches")

    ours = ScoreParams(patch=PATCH)
    no_prior = ours.model_copy(update={"centre_prior": 0.0})
    unknown = ours.model_copy(update={"polarity": "unknown"})
    # No guard: a guarded image selects nothing, and the control is to be the plain 2-means.
    raw = ScoreParams(patch=PATCH, descriptor="raw", polarity="unknown", min_separation=0.0, min_repeat=0.0)
    rows: list[tuple[str, str, Callable[[torch.Tensor], tuple[Array, Array]], Array]] = [
        ("raw", "2-means on raw patches, smaller", by_scores(raw), everywhere),
        ("prior", "centre prior alone, top 20 %", by_prior, everywhere),
        ("ours_no_prior", "ours without prior", by_scores(no_prior), everywhere),
        ("ours_unknown", "ours, polarity unknown", by_scores(unknown), everywhere),
        ("ours_half_a", "ours, half A of the images", by_scores(ours), cases.half_a),
        ("ours_half_b", "ours, half B of the images", by_scores(ours), ~cases.half_a),
        ("ours", "ours", by_scores(ours), everywhere),
    ]
    print(f"{'':32s} {'AUC':7s} {'within':20s} {'recall':17s} {'enrichment':17s} selected")
    figures: dict[str, Any] = {}
    for key, name, categorise, half in rows:
        figures[key] = measure(*categorise(cases.images[half]), cases.lesion[half])
        print(row(name, figures[key]), flush=True)

    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        by_scores(ours)(cases.images)
        seconds.append(time.perf_counter() - start)
    # The quickest, for whatever else the machine does only slows it down.
    milliseconds = min(seconds) / len(cases.images) * 1e3
    print(f"{milliseconds:.1f} ms an image")
    figures["cases"] = {"images": len(cases.images), "half_a": int(cases.half_a.sum()), "lesion_share": share}
    figures["milliseconds_per_image"] = milliseconds
    best, prior, control = (figures[key] for key in ("ours", "prior", "raw"))
    report(
        "mps",
        figures,
        f"MPS on BUSI: enrichment {best['enrichment']['value']:.2f} at recall {best['recall']['value']:.2f}, "
        f"AUC {best['auc']:.2f} (centre prior {prior['enrichment']['value']:.2f} at "
        f"{prior['recall']['value']:.2f}, AUC {prior['auc']:.2f}; "
        f"raw 2-means {control['enrichment']['value']:.2f} at {control['recall']['value']:.2f})",
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
