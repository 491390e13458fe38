"""How well lesion scores of patches find lesions, against masks that the scores never saw.

A lesion patch is one of which lesion covers at least `LESION_SHARE`. Figures are over all patches of the images with a
lesion together:

- recall: share of the lesion patches that are selected
- enrichment: share of lesion patches among the selected over their share among all; 1 is chance
- AUC: that a lesion patch scores higher than another, over all images; `auc_within`: image by image, then averaged
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from amlp.metrics.bootstrap import resamples
from amlp.metrics.lesion_patches import LESION_SHARE

# Of the histogram that the AUC over all images is taken from: scores that differ by less count as equal.
_BINS = 1 << 16
_SAMPLES, _CONFIDENCE = 1000, 0.95

Array = NDArray[Any]


@dataclass(frozen=True)
class Bounded:
    """A value with its 95 % interval; NaN where undefined, as an interval is of fewer than two groups."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PatchFigures:
    """What `PatchTally` found; `images` counts the images with a lesion, `selected` is the share of patches."""

    auc: float
    recall: Bounded
    enrichment: Bounded
    auc_within: Bounded
    selected: float
    images: int


class PatchTally:
    """Sums over images with a lesion, added a chunk at a time: what is kept is a few numbers an image."""

    def __init__(self) -> None:
        # Of lesion patches and of others.
        self._histograms = np.zeros((2, _BINS), dtype=np.int64)
        self._rows: list[Array] = []
        self._groups: list[Array] = []

    def add(self, scores: Array, selected: Array, lesion: Array, groups: Array) -> None:
        """Add images.

        Args:
            scores: (N, L) in 0..1, higher where a lesion is more likely.
            selected: (N, L) bool, the patches that are taken for lesion.
            lesion: (N, L) bool, the truth.
            groups: (N,) the images' groups; any whole numbers.
        """
        bins = np.minimum((scores * _BINS).astype(np.int64), _BINS - 1)
        for kind, chosen in enumerate((lesion, ~lesion)):
            self._histograms[kind] += np.bincount(bins[chosen], minlength=_BINS)
        count = lesion.sum(axis=1)
        others = lesion.shape[1] - count
        mixed = (count > 0) & (others > 0)
        # Mann-Whitney: from the ranks of the lesion patches.
        above = (rankdata(scores, axis=1) * lesion).sum(axis=1) - count * (count + 1) / 2
        within = np.divide(above, count * others, out=np.zeros(len(lesion)), where=mixed)
        patches = np.full(len(lesion), lesion.shape[1])
        sums = [(selected & lesion).sum(axis=1), selected.sum(axis=1), count, patches, within, mixed]
        self._rows.append(np.stack(sums, axis=1).astype(np.float64))
        self._groups.append(np.asarray(groups))

    def figures(self, seed: int = 0) -> PatchFigures | None:
        """Put the figures together; None before any image was added.

        Args:
            seed: of the resamples of whole groups that the intervals come from.
        """
        if not self._rows or not sum(map(len, self._rows)):
            return None
        rows = np.concatenate(self._rows)
        names, group = np.unique(np.concatenate(self._groups), return_inverse=True)
        sums = np.zeros((len(names), rows.shape[1]))
        np.add.at(sums, group, rows)
        values = _ratios(sums.sum(axis=0, keepdims=True))[:, 0]
        ends = np.full((2, len(values)), np.nan)
        if len(names) >= 2:
            drawn = np.concatenate(
                [_ratios(weights @ sums) for weights in resamples(len(names), samples=_SAMPLES, seed=seed)], axis=1
            )
            tail = (1 - _CONFIDENCE) / 2
            for number, row in enumerate(drawn):
                known = row[~np.isnan(row)]
                if len(known):
                    ends[:, number] = np.quantile(known, [tail, 1 - tail])
        recall, enrichment, within = (Bounded(*map(float, part)) for part in zip(values, *ends, strict=True))
        return PatchFigures(
            auc=self._auc(),
            recall=recall,
            enrichment=enrichment,
            auc_within=within,
            selected=float(rows[:, 1].sum() / rows[:, 3].sum()),
            images=len(rows),
        )

    def _auc(self) -> float:
        lesion, others = self._histograms
        pairs = float(lesion.sum()) * float(others.sum())
        if not pairs:
            return math.nan
        below = np.cumsum(others) - others
        return float((lesion * (below + others / 2)).sum() / pairs)


def _ratios(sums: Array) -> Array:
    """Recall, enrichment and AUC within images, (3, n), of sums (n, 6) as `PatchTally.add` makes them."""
    hits, chosen, true, patches, within, mixed = sums.T
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.stack([hits / true, hits * patches / (chosen * true), within / mixed])
    return np.where(np.isfinite(ratios), ratios, np.nan)


def as_metrics(figures: PatchFigures) -> dict[str, float | int]:
    """What a stage's metrics.json holds; undefined values are left out, because JSON has no NaN."""
    values = {
        "auc": figures.auc,
        "recall": figures.recall.value,
        "enrichment": figures.enrichment.value,
        "enrichment_low": figures.enrichment.low,
        "enrichment_high": figures.enrichment.high,
    }
    return {"images": figures.images} | {
        name: round(value, 6) for name, value in values.items() if not math.isnan(value)
    }


def central(selected: Array, prior: Array) -> NDArray[np.bool_]:
    """Pick as many patches of each image as `selected` does, those nearest to the centre.

    Args:
        selected: (N, L) bool.
        prior: (L,), higher near the centre.
    """
    rank = np.argsort(np.argsort(-prior, kind="stable"), kind="stable")
    picked: NDArray[np.bool_] = rank < selected.sum(axis=1, keepdims=True)
    return picked


def describe(metrics: Mapping[str, float]) -> tuple[str, str | None]:
    """Say in words how well the scores find lesions, and what to change where they don't.

    Args:
        metrics: as `as_metrics` returns them, with `centre_enrichment`, that of `central`.

    Returns:
        A sentence, and a warning: None when the enrichment is better than chance and than what is picked around the
        centre, or there are too few groups to know.
    """
    enrichment, low = metrics.get("enrichment"), metrics.get("enrichment_low")
    advice = (
        "Masking by these scores (MPS) is not worth it: try another scores.polarity or scores.descriptor, or set "
        "pretrain.mps.enabled to false."
    )
    images = f"the {metrics['images']} training images with a lesion mask"
    if "recall" not in metrics:
        return (
            f"On {images} lesion covers no patch by {LESION_SHARE:.0%}: what the scores find can't be measured.",
            None,
        )
    if enrichment is None:
        return f"On {images} the lesion scores select no patch.", advice
    interval = "" if low is None else f" (95% interval {low:.2f} to {metrics['enrichment_high']:.2f})"
    text = (
        f"On {images} the lesion scores find {metrics['recall']:.0%} of the lesion patches; lesion is "
        f"{enrichment:.2f} times as frequent among the patches that they pick as in the whole image{interval}"
        + (f", AUC {metrics['auc']:.2f}." if "auc" in metrics else ".")
    )
    if low is not None and low <= 1:
        return text, f"That is no better than chance. {advice}"
    centre = metrics.get("centre_enrichment")
    if centre is not None and enrichment <= centre:
        return text, f"As many patches around the centre of each image would do as well, {centre:.2f}. {advice}"
    return text, None
