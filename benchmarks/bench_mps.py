"""Lesion patch selection on BUSI, scored against the masks, which the selection itself never sees.

    python -m benchmarks.bench_mps --data FOLDER    # FOLDER holds benign/ and malignant/; half a minute on a core

Convention: images stretched to 128 x 128, patches of 8 x 8 pixels; lesion patches and figures as in
amlp/metrics/patches.py, a tenth of all patches is lesion. All images with a lesion count. Selected are scores above
1/2, or the top 20 % of the prior.

Intervals are 95 % by bootstrap over images. BUSI names no patients and has near-duplicates, so they are a little too
narrow. The halves A and B (parity of the file's SHA-256) show how much the figures depend on the images; neither is a
blind test, for both were in view when the definition was chosen, and near-duplicates may lie on both sides.

What pre-training makes of the scores is measured on a workspace in which the pipeline ran (`--workspace FOLDER`;
workspaces/busi where it exists), on its training split's images with a lesion, with intervals over the groups of its
splits: ours at 128 px, the training's own maps before and after refinement (`models/encoder/scores.npy`), resampled
bilinearly to the same 16 x 16 patches, the prior and raw 2-means. The training looked at those images, never at masks.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from amlp.data.images import to_model_input, to_model_mask
from amlp.data.pictures import read_image, read_mask
from amlp.data.shards import ShardedSplit
from amlp.errors import UserError
from amlp.files import sha256
from amlp.layout import RunFolder
from amlp.method.scores import centre_prior, lesion_scores
from amlp.metrics.lesion_patches import lesion_patches
from amlp.metrics.patches import Bounded, PatchTally
from amlp.params import ScoreParams
from benchmarks.machine import report

SIDE = 128  # pixels
PATCH = 8  # pixels
GRID = (SIDE // PATCH, SIDE // PATCH)
SELECTED_BY_PRIOR = 0.2  # of an image's patches
WORKSPACE = Path("workspaces/busi")

Array = NDArray[Any]


Categorise = Callable[[torch.Tensor], tuple[Array, Array]]


@dataclass(frozen=True)
class Cases:
    """Images (N, 1, SIDE, SIDE) float32 0..1, their lesion patches (N, L) bool, groups (N,) and half A (N,) bool."""

    images: torch.Tensor
    lesion: Array
    groups: Array
    half_a: Array

    def __len__(self) -> int:
        return len(self.images)


def read_cases(folder: Path) -> Cases:
    """Read every image with a lesion of a folder in the BUSI layout.

    Raises:
        UserError: there is no such folder, or nothing in it.
    """
    files = sorted(path for path in folder.glob("*/*.png") if "_mask" not in path.stem)
    if not files:
        raise UserError(f"{folder}: no */*.png. Pass --data FOLDER, the BUSI folder that holds benign/ and malignant/.")
    images, masks, half_a = [], [], []
    for file in files:
        # Names hold parentheses, which no glob takes for anything else.
        parts = [read_mask(path) for path in sorted(file.parent.glob(f"{file.stem}_mask*.png"))]
        if not parts or not any(mask.any() for mask in parts):
            continue
        images.append(to_model_input(read_image(file), channels=1, height=SIDE, width=SIDE))
        masks.append(to_model_mask(np.logical_or.reduce(parts), height=SIDE, width=SIDE))
        half_a.append(int(sha256(file), 16) % 2 == 0)
    if not images:
        raise UserError(f"{folder}: no image has a lesion mask (*_mask.png that is not black).")
    pixels = torch.from_numpy(np.stack(images)).float() / 255
    return Cases(pixels, lesion_patches(np.stack(masks), GRID), np.arange(len(images)), np.array(half_a))


@dataclass(frozen=True)
class Trained:
    """A workspace's training images with a lesion, and the training's score maps (N, L) before and after refinement."""

    cases: Cases
    before: Array
    after: Array


def read_workspace(folder: Path) -> Trained:
    """Read a workspace, or another folder in which the pipeline ran up to pre-training.

    Raises:
        UserError: something is missing, or the maps are of other data than the shards.
    """
    run = RunFolder(folder)
    scores = run.encoder.scores
    for path in (run.shards.index, run.ingest.path, scores):
        if not path.exists():
            raise UserError(f"{path}: not found. Run `dvc repro pretrain` in {folder}, or `make busi DATA=folder`.")
    train = ShardedSplit.open(run.shards.path, "train")
    after = np.load(scores, mmap_mode="r")
    if len(after) != len(train):
        raise UserError(
            f"{scores}: {len(after)} maps, but the training split holds {len(train)} images; run `dvc repro pretrain`."
        )
    rows = np.flatnonzero(train.index["labelled"] & (train.index["lesion_fraction"] > 0))
    if not len(rows):
        raise UserError(f"{folder / 'data/shards'}: no training image has a lesion mask, so nothing can be measured.")
    images, masks, half_a = [], [], []
    for case in train.index.iloc[rows].itertuples():
        file = run.ingest.path / case.image
        images.append(to_model_input(read_image(file), channels=1, height=SIDE, width=SIDE))
        masks.append(to_model_mask(read_mask(run.ingest.path / case.mask), height=SIDE, width=SIDE))
        half_a.append(int(sha256(file), 16) % 2 == 0)
    pixels = torch.from_numpy(np.stack(images)).float() / 255
    groups = train.index["group"].to_numpy()[rows]
    cases = Cases(pixels, lesion_patches(np.stack(masks), GRID), groups, np.array(half_a))
    return Trained(cases, _resample(train.scores(rows)), _resample(after[rows]))


def _resample(maps: Array) -> Array:
    """Score maps (N, h, w) on the patches of this benchmark, (N, L)."""
    values = torch.from_numpy(np.ascontiguousarray(maps)).unsqueeze(1)
    return F.interpolate(values, size=GRID, mode="bilinear", align_corners=False).flatten(1).numpy()


def measure(scores: Array, selected: Array, lesion: Array, groups: Array) -> dict[str, Any]:
    """Figures of one categoriser, with 95 % intervals.

    Args:
        scores: (N, L) in 0..1, higher where a lesion is more likely.
        selected: (N, L) bool, the category.
        lesion: (N, L) bool, the truth.
        groups: (N,), what the intervals resample.
    """
    tally = PatchTally()
    tally.add(scores, selected, lesion, groups)
    found = tally.figures()
    assert found is not None
    return {
        "auc": found.auc,
        "selected": found.selected,
        **{name: _entry(getattr(found, name)) for name in ("recall", "enrichment", "auc_within")},
    }


def _entry(figure: Bounded) -> dict[str, float | None]:
    """JSON has no NaN."""
    return {name: None if math.isnan(value) else value for name, value in asdict(figure).items()}


def by_scores(params: ScoreParams) -> Categorise:
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
        if value is None:
            return "undefined"
        return f"{value:.{digits}f}" + ("" if low is None else f" ({low:.{digits}f}-{high:.{digits}f})")

    return (
        f"{name:32s} {figures['auc']:.3f}   {cell('auc_within', 3):20s} {cell('recall', 2):17s} "
        f"{cell('enrichment', 2):17s} {figures['selected']:.3f}"
    )


HEAD = f"{'':32s} {'AUC':7s} {'within':20s} {'recall':17s} {'enrichment':17s} selected"
OURS = ScoreParams(patch=PATCH)
# No guard: a guarded image selects nothing, and the control is to be the plain 2-means.
RAW = ScoreParams(patch=PATCH, descriptor="raw", polarity="unknown", min_separation=0.0, min_repeat=0.0)


def selection(cases: Cases) -> dict[str, Any]:
    """Measure the selection before any training, and what it is compared with; print a row each."""
    share = float(cases.lesion.mean())
    print(f"{len(cases)} images with a lesion, {share:.3f} of the patches are lesion patches\n{HEAD}")
    everywhere = np.ones(len(cases), dtype=bool)
    no_prior = OURS.model_copy(update={"centre_prior": 0.0})
    unknown = OURS.model_copy(update={"polarity": "unknown"})
    rows: list[tuple[str, str, Categorise, Array]] = [
        ("raw", "2-means on raw patches, smaller", by_scores(RAW), everywhere),
        ("prior", "centre prior alone, top 20 %", by_prior, everywhere),
        ("ours_no_prior", "ours without prior", by_scores(no_prior), everywhere),
        (
            "ours_unknown",
            "ours, polarity unknown",
            by_scores(unknown),
            everywhere,
        ),
        ("ours_half_a", "ours, half A of the images", by_scores(OURS), cases.half_a),
        ("ours_half_b", "ours, half B of the images", by_scores(OURS), ~cases.half_a),
        ("ours", "ours", by_scores(OURS), everywhere),
    ]
    figures: dict[str, Any] = {}
    for key, name, categorise, half in rows:
        figures[key] = measure(*categorise(cases.images[half]), cases.lesion[half], cases.groups[half])
        print(row(name, figures[key]), flush=True)
    figures["cases"] = {"images": len(cases), "half_a": int(cases.half_a.sum()), "lesion_share": share}
    return figures


def refinement(trained: Trained) -> dict[str, Any]:
    """Measure what pre-training made of the scores, on its own images; print a row each."""
    cases = trained.cases
    groups, share = len(np.unique(cases.groups)), float(cases.lesion.mean())
    print(f"training split: {len(cases)} images with a lesion in {groups} groups, {share:.3f} lesion patches\n{HEAD}")
    rows: list[tuple[str, str, tuple[Array, Array]]] = [
        ("raw", "2-means on raw patches, smaller", by_scores(RAW)(cases.images)),
        ("prior", "centre prior alone, top 20 %", by_prior(cases.images)),
        ("ours", "ours at 128 px", by_scores(OURS)(cases.images)),
        ("before", "the training's, before", (trained.before, trained.before > 0.5)),
        ("after", "the training's, after refinement", (trained.after, trained.after > 0.5)),
    ]
    figures: dict[str, Any] = {"cases": {"images": len(cases), "groups": groups, "lesion_share": share}}
    for key, name, found in rows:
        figures[key] = measure(*found, cases.lesion, cases.groups)
        print(row(name, figures[key]), flush=True)
    return figures


def milliseconds(images: torch.Tensor) -> float:
    """Time that scoring takes an image: the quickest of three, for whatever else the machine does slows it down."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        by_scores(OURS)(images)
        seconds.append(time.perf_counter() - start)
    return min(seconds) / len(images) * 1e3


def main() -> int:
    parser = argparse.ArgumentParser(description="Lesion patch selection on BUSI against the masks")
    parser.add_argument("--data", type=Path, required=True, help="BUSI folder: benign/, malignant/, *_mask.png")
    parser.add_argument(
        "--workspace", type=Path, help=f"folder in which pre-training ran (default: {WORKSPACE} where it exists)"
    )
    args = parser.parse_args()
    trained, missing = None, f"`make busi DATA={args.data}` makes {WORKSPACE}; --workspace FOLDER names another one."
    try:
        cases = read_cases(args.data)
        if args.workspace:
            trained = read_workspace(args.workspace)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    if not args.workspace and WORKSPACE.is_dir():
        # It may be older than the score maps; what was not asked for by name must not stop the rest.
        try:
            trained = read_workspace(WORKSPACE)
        except UserError as error:
            missing = str(error)
    figures = selection(cases)
    figures["milliseconds_per_image"] = milliseconds(cases.images)
    print(f"{figures['milliseconds_per_image']:.1f} ms an image")
    best, prior, control = (figures[key] for key in ("ours", "prior", "raw"))
    headline = (
        f"MPS on BUSI: enrichment {best['enrichment']['value']:.2f} at recall {best['recall']['value']:.2f}, "
        f"AUC {best['auc']:.2f} (centre prior {prior['enrichment']['value']:.2f} at "
        f"{prior['recall']['value']:.2f}, AUC {prior['auc']:.2f}; "
        f"raw 2-means {control['enrichment']['value']:.2f} at {control['recall']['value']:.2f})"
    )
    if trained:
        figures["training"] = refinement(trained)
        ends = [
            f"enrichment {_text(entry['enrichment'])} at recall {_text(entry['recall'])}"
            for entry in (figures["training"]["before"], figures["training"]["after"])
        ]
        headline += f"; the training's maps: {ends[0]} before, {ends[1]} after refinement"
    else:
        print(f"not measured: the scores after pre-training. {missing}")
    report("mps", figures, headline)
    return 0


def _text(entry: dict[str, float | None]) -> str:
    return "undefined" if entry["value"] is None else f"{entry['value']:.2f}"


if __name__ == "__main__":
    raise SystemExit(main())
