"""Stage `preprocess`: group and split the cases, pack them into shards, and score the patches of the training split."""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from amlp.data.groups import Groups, assign_splits, group_cases
from amlp.data.images import to_model_input, to_model_mask
from amlp.data.pictures import read_image, read_mask
from amlp.data.shards import SPLITS, shard_name
from amlp.errors import UserError
from amlp.files import atomic_dir, write_json
from amlp.layout import ShardsFolder, ValidateFolder
from amlp.method.scores import centre_prior, lesion_scores
from amlp.metrics.lesion_patches import lesion_patches
from amlp.metrics.patches import PatchTally, as_metrics, central, describe
from amlp.params import PreprocessParams, ScoreParams
from amlp.progress import progress

logger = logging.getLogger(__name__)

# Cases that are in memory at a time.
CHUNK = 128
INDEX = [
    "case_id", "split", "group", "label", "labelled", "shard", "row",
    "image", "mask", "height", "width", "lesion_fraction",
]  # fmt: skip


def preprocess(
    *, params: PreprocessParams, scores: ScoreParams, seed: int, ingest: Path, validated: Path, out: Path
) -> dict[str, Any]:
    """Write shards, `index.parquet`, `stats.json` and `metrics.json` to `out`; return the metrics.

    Images become what the model sees (`to_model_input`); with `colour: auto` in colour if any case has some.
    Statistics come from the training split alone, and so do the lesion scores. How well those find lesions is reported
    where training images have masks; nothing depends on it.

    Args:
        ingest: folder with the images and masks.
        validated: folder with the manifest of usable cases and their facts.

    Raises:
        UserError: there is no manifest, the sizes don't fit, a split would be empty, or a file can't be read.
    """
    path = ValidateFolder(validated).manifest
    if not path.is_file():
        raise UserError(f"{path}: not found; run `amlp validate` first.")
    if params.height % scores.patch or params.width % scores.patch:
        raise UserError(
            f"scores.patch {scores.patch} must divide preprocess.height {params.height} and "
            f"preprocess.width {params.width}."
        )
    manifest = pd.read_parquet(path)
    groups = group_cases(manifest, np.load(ValidateFolder(validated).thumbnails, mmap_mode="r"), params=params)
    index = _index(manifest, groups, params, seed)
    channels = 1 if params.colour == "grey" else int(manifest["channels"].max())
    shape = (channels, params.height, params.width)

    with atomic_dir(out) as folder:
        written = ShardsFolder(folder)
        # Sums of whole numbers: exact, so that neither order nor chunk size changes a bit of the statistics.
        total = np.zeros((2, channels), dtype=np.int64)
        guarded = 0
        found, around = PatchTally(), PatchTally()
        with progress(len(index), "preprocess", "images") as bar:
            for split, number in index[["split", "shard"]].drop_duplicates().itertuples(index=False):
                cases = index[(index["split"] == split) & (index["shard"] == number)]
                files = _ShardFiles(folder, split, number, len(cases), shape, scores.patch)
                for start, images, masks in _chunks(cases, ingest, shape):
                    files.write("images", start, images)
                    files.write("masks", start, masks)
                    if split == "train":
                        values = images.astype(np.int64)
                        total += (values.sum(axis=(0, 2, 3)), (values**2).sum(axis=(0, 2, 3)))
                        result = lesion_scores(torch.from_numpy(images).float() / 255, params=scores)
                        files.write("scores", start, result.scores.numpy())
                        guarded += int(result.guarded.sum())
                        _compare(found, around, cases[start : start + len(images)], result.scores, masks)
                    bar.update(len(images))
                files.close()
        train_cases = int((index["split"] == "train").sum())
        mean, std = _mean_and_std(total, train_cases * params.height * params.width)
        stats = {"mean": mean, "std": std, "channels": channels, "height": params.height, "width": params.width}
        metrics = {**_metrics(index, manifest, groups), "guarded_share": guarded / train_cases}
        if figures := found.figures(seed):
            metrics["scores"] = as_metrics(figures)
            centre = around.figures(seed)
            if centre and not math.isnan(centre.enrichment.value):
                metrics["scores"]["centre_enrichment"] = round(centre.enrichment.value, 6)
        index.to_parquet(written.index, index=False)
        write_json(written.stats, stats)
        # For those who reuse the shards later, and have parameters of their own.
        made_by = {"seed": seed, "preprocess": params.model_dump(), "scores": scores.model_dump()}
        write_json(written.made_by, made_by)
        write_json(written.metrics, metrics)
    _tell(metrics, stats, out)
    return metrics


def _index(manifest: pd.DataFrame, groups: Groups, params: PreprocessParams, seed: int) -> pd.DataFrame:
    """Rows in the order in which the shards are written: train, val, test, each by case id."""
    cases = manifest.assign(group=groups.group, labelled=manifest["mask"].notna())
    cases = cases.sort_values("case_id", ignore_index=True)
    cases["split"] = assign_splits(
        cases, test_fraction=params.test_fraction, val_fraction=params.val_fraction, seed=seed
    )
    cases = cases.sort_values("split", key=lambda split: split.map(SPLITS.index), kind="stable", ignore_index=True)
    position = cases.groupby("split").cumcount()
    return cases.assign(shard=position // params.shard_cases, row=position % params.shard_cases)[INDEX]


class _ShardFiles:
    """The arrays of one shard, filled on disk."""

    def __init__(self, folder: Path, split: str, number: int, cases: int, shape: tuple[int, int, int], patch: int):
        _, height, width = shape
        shapes: dict[str, tuple[tuple[int, ...], type]] = {
            "images": (shape, np.uint8),
            "masks": ((height, width), np.uint8),
        }
        if split == "train":
            shapes["scores"] = ((height // patch, width // patch), np.float32)
        self._arrays = {
            kind: open_memmap(folder / shard_name(split, kind, number), mode="w+", dtype=dtype, shape=(cases, *one))
            for kind, (one, dtype) in shapes.items()
        }

    def write(self, kind: str, start: int, values: NDArray[Any]) -> None:
        self._arrays[kind][start : start + len(values)] = values

    def close(self) -> None:
        for array in self._arrays.values():
            array.flush()
        self._arrays.clear()


def _chunks(
    cases: pd.DataFrame, ingest: Path, shape: tuple[int, int, int]
) -> Iterator[tuple[int, NDArray[np.uint8], NDArray[np.uint8]]]:
    """Yield position, images (n, C, H, W) and masks (n, H, W) of the next cases of a shard."""
    rows = list(cases.itertuples())
    # Threads, for decoding and resizing leave the interpreter's lock alone.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(rows), CHUNK):
            loaded = pool.map(partial(_load, ingest=ingest, shape=shape), rows[start : start + CHUNK])
            images, masks = zip(*loaded, strict=True)
            yield start, np.stack(images), np.stack(masks)


def _load(case: Any, ingest: Path, shape: tuple[int, int, int]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    channels, height, width = shape
    image = to_model_input(read_image(ingest / case.image), channels=channels, height=height, width=width)
    if not case.labelled:
        return image, np.zeros((height, width), np.uint8)
    return image, to_model_mask(read_mask(ingest / case.mask), height=height, width=width)


def _compare(
    found: PatchTally, around: PatchTally, cases: pd.DataFrame, scores: torch.Tensor, masks: NDArray[np.uint8]
) -> None:
    """Count what the scores (n, h, w) find of the lesions of those cases that have one, and what the centre holds."""
    lesion = (cases["labelled"] & (cases["lesion_fraction"] > 0)).to_numpy(dtype=bool)
    if lesion.any():
        values = scores.flatten(1).numpy()[lesion]
        truth = lesion_patches(masks[lesion], (scores.shape[1], scores.shape[2]))
        selected, groups = values > 0.5, cases["group"].to_numpy()[lesion]
        found.add(values, selected, truth, groups)
        prior = centre_prior((scores.shape[1], scores.shape[2])).flatten().numpy()
        around.add(np.broadcast_to(prior, values.shape), central(selected, prior), truth, groups)


def _mean_and_std(total: NDArray[np.int64], pixels: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel, grey values in 0..1, from sums of values and of squares (2, C)."""
    mean = total[0] / pixels
    # Exact until the last step: pixels * sum of squares may pass 64 bits.
    variance = [(pixels * int(b) - int(a) ** 2) / pixels**2 for a, b in total.T]
    assert min(variance) > 0, "validation leaves no image of a single grey value"
    return (mean / 255).tolist(), (np.sqrt(variance) / 255).tolist()


def _metrics(index: pd.DataFrame, manifest: pd.DataFrame, groups: Groups) -> dict[str, Any]:
    metrics: dict[str, Any] = {
        "cases": len(index),
        "groups": int(index["group"].nunique()),
        "largest_group": int(index["group"].value_counts().max()),
        "near_duplicate_groups": groups.near_duplicate_groups,
        "near_duplicate_cases": groups.near_duplicate_cases,
        "near_duplicate_likeness": round(groups.alike.limit, 4),
        "split_hash": split_hash(index, manifest),
    }
    for split, part in index.groupby("split"):
        metrics[str(split)] = {
            "cases": len(part),
            "groups": int(part["group"].nunique()),
            "labelled": int(part["labelled"].sum()),
            "labels": {str(label): int(count) for label, count in part["label"].value_counts().sort_index().items()},
        }
    return metrics


def split_hash(index: pd.DataFrame, manifest: pd.DataFrame) -> str:
    """Identify the test split: SHA-256 over its sorted case ids, each with the SHA-256 of its source image."""
    test = index.loc[index["split"] == "test", ["case_id"]].merge(manifest[["case_id", "sha256"]], validate="1:1")
    lines = sorted(f"{case_id} {sha256}\n" for case_id, sha256 in test.itertuples(index=False))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _tell(metrics: dict[str, Any], stats: dict[str, Any], out: Path) -> None:
    splits = ", ".join(f"{split} {metrics[split]['cases']} ({metrics[split]['groups']} groups)" for split in SPLITS)
    logger.info(f"preprocess: {metrics['cases']} cases in {metrics['groups']} groups: {splits}")
    if metrics["near_duplicate_groups"]:
        logger.info(
            f"  {metrics['near_duplicate_cases']} cases are near-duplicates of one another, in "
            f"{metrics['near_duplicate_groups']} groups; index.parquet names the group of each"
        )
    if metrics["guarded_share"] > 0:
        logger.info(
            f"  {metrics['guarded_share']:.1%} of the training images have no lesion category: masked at random"
        )
    if "scores" in metrics:
        text, warning = describe(metrics["scores"])
        logger.info(f"  {text}")
        if warning:
            logger.info(f"  warning: {warning}")
    logger.info(
        f"wrote {out}: index.parquet, stats.json and shards of {stats['channels']} x {stats['height']} x "
        f"{stats['width']} images, masks and training scores"
    )
