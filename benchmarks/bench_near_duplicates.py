"""How well near-duplicates are found among real pictures, and how the time grows with their number.

    make bench-near-duplicates DATA=folder      # writes results/near_duplicates-<folder>.json

Changed copies are planted among the pictures of a folder, one change each. A pair counts as right when one is a copy of
the other, both are copies of one picture, or a table says that they show the same lesion; also when their files are
equal. What is left are pairs of pictures that nothing says to be of one scene: some of them are, so the precision is a
lower bound.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from amlp.data.images import to_grey, to_model_input, to_uint8
from amlp.data.likeness import SIDE, near_duplicates
from amlp.data.pictures import SUFFIXES, read_image
from amlp.params import PreprocessParams
from benchmarks.machine import report

SIZES = (25_000, 50_000, 100_000)
Grey = NDArray[np.uint8]


def _resized(grey: Grey, rng: np.random.Generator) -> Grey:
    height, width = grey.shape
    return np.asarray(Image.fromarray(grey).resize((int(0.6 * width), int(0.6 * height)), Image.Resampling.BILINEAR))


def _cropped(grey: Grey, rng: np.random.Generator) -> Grey:
    height, width = grey.shape
    down, across = round(0.05 * height), round(0.05 * width)
    y, x = rng.integers(0, down + 1), rng.integers(0, across + 1)
    return np.ascontiguousarray(grey[y : height - down + y, x : width - across + x])


def _brighter(grey: Grey, rng: np.random.Generator) -> Grey:
    return np.clip(grey * rng.uniform(0.7, 1.3) + rng.uniform(-25, 25), 0, 255).astype(np.uint8)


def _jpeg(grey: Grey, rng: np.random.Generator) -> Grey:
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "JPEG", quality=60)
    return np.asarray(Image.open(file))


def _marked(grey: Grey, rng: np.random.Generator) -> Grey:
    image = Image.fromarray(grey)
    draw = ImageDraw.Draw(image)
    width, height = image.size
    for _ in range(3):
        x, y = int(rng.integers(0, 3 * width // 4)), int(rng.integers(0, 3 * height // 4))
        draw.text((x, y), "R 12.4mm", fill=255)
        draw.line((x, y, x + width // 4, y + height // 5), fill=255, width=max(1, width // 150))
    return np.asarray(image)


def _mirrored(grey: Grey, rng: np.random.Generator) -> Grey:
    return np.ascontiguousarray(grey[:, ::-1])


def _all(grey: Grey, rng: np.random.Generator) -> Grey:
    for change in (_cropped, _marked, _mirrored, _brighter, _jpeg):
        grey = change(grey, rng)
    return grey


CHANGES: dict[str, Callable[[Grey, np.random.Generator], Grey]] = {
    "resized": _resized, "cropped": _cropped, "brighter": _brighter, "JPEG": _jpeg, "marked": _marked,
    "mirrored": _mirrored, "all": _all,
}  # fmt: skip


def measure(pictures: Sequence[Grey], same: Sequence[str], *, copies: int, seed: int) -> dict[str, Any]:
    """Plant copies and find them.

    Args:
        pictures: of the data set.
        same: what stands for the scene of each: equal where something says that two show the same.
        copies: to plant.
        seed: of the choice and of the changes.
    """
    params, rng = PreprocessParams(), np.random.default_rng(seed)
    sources = rng.choice(len(pictures), min(copies, len(pictures)), replace=False)
    changes = [list(CHANGES)[number % len(CHANGES)] for number in range(len(sources))]
    planted = [CHANGES[change](pictures[source], rng) for source, change in zip(sources, changes, strict=True)]
    scene = [*same, *(same[source] for source in sources)]
    thumbnails = np.stack(
        [to_model_input(one, channels=1, height=SIDE, width=SIDE)[0] for one in (*pictures, *planted)]
    )
    start = time.perf_counter()
    found = near_duplicates(
        thumbnails, likeness=params.near_duplicate_likeness, neighbours=params.near_duplicate_neighbours
    )
    seconds = time.perf_counter() - start
    pairs = {(int(one), int(other)) for one, other in found.pairs}
    hits = [(int(source), len(pictures) + number) in pairs for number, source in enumerate(sources)]
    right = sum(scene[one] == scene[other] for one, other in pairs)
    by_change = pd.Series(hits).groupby(changes).mean().reindex(list(CHANGES))
    return {
        "pictures": len(pictures),
        "copies": len(sources),
        "recall": float(np.mean(hits)),
        "recall_by_change": {name: round(float(value), 4) for name, value in by_change.items()},
        "pairs": len(pairs),
        "precision_at_least": right / max(len(pairs), 1),
        "pairs_that_nothing_explains": len(pairs) - right,
        "limit": round(found.limit, 3),
        "seconds": round(seconds, 1),
    }


def growth(sizes: Sequence[int] = SIZES, seed: int = 0) -> dict[str, Any]:
    """Time synthetic pictures, of which every twentieth is a copy; the exponent is that of the largest step."""
    params, seconds = PreprocessParams(), []
    for size in sizes:
        rng = np.random.default_rng(seed)
        thumbnails = _synthetic(size, rng)
        start = time.perf_counter()
        near_duplicates(
            thumbnails, likeness=params.near_duplicate_likeness, neighbours=params.near_duplicate_neighbours
        )
        seconds.append(round(time.perf_counter() - start, 1))
        print(f"{size} synthetic pictures: {seconds[-1]:.1f} s", flush=True)
    exponents = np.diff(np.log(seconds)) / np.diff(np.log(sizes))
    return {"sizes": list(sizes), "seconds": seconds, "exponent": round(float(exponents.max()), 2)}


def _synthetic(size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw smooth pictures (size, SIDE, SIDE); every twentieth is the one before it, a little brighter."""
    thumbnails = np.empty((size, SIDE, SIDE), np.uint8)
    for number in range(size):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12), dtype=np.uint8))
        thumbnails[number] = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    thumbnails[19::20] = np.clip(thumbnails[18::20] * 0.9 + 20, 0, 255).astype(np.uint8)
    return thumbnails


def _read(folder: Path, table: Path | None, key: str, group: str) -> tuple[list[Grey], list[str]]:
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and "_mask" not in file.stem)
    files = [file for file in files if "_segmentation" not in file.stem]
    groups = {} if table is None else pd.read_csv(table).astype(str).set_index(key)[group].to_dict()
    same, pictures = [], []
    for file in files:
        pictures.append(to_grey(to_uint8(read_image(file))))
        same.append(groups.get(file.stem) or hashlib.sha256(file.read_bytes()).hexdigest())
    return pictures, same


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of pictures, subfolders included")
    parser.add_argument("--table", type=Path, help="CSV that says which pictures show the same")
    parser.add_argument("--key", default="image_id", help="its column with the file's name without suffix")
    parser.add_argument("--group", default="lesion_id", help="its column that is equal for pictures of the same")
    parser.add_argument("--copies", type=int, default=1400, help="copies to plant")
    parser.add_argument("--growth", action="store_true", help="also time synthetic pictures")
    args = parser.parse_args()
    pictures, same = _read(args.data, args.table, args.key, args.group)
    figures = measure(pictures, same, copies=args.copies, seed=0) | ({"growth": growth()} if args.growth else {})
    for name, value in figures.items():
        print(f"{name}: {value}")
    headline = (
        f"near-duplicates: recall {figures['recall']:.3f} of {figures['copies']} planted copies among "
        f"{figures['pictures']} pictures, precision at least {figures['precision_at_least']:.3f}"
    )
    report(f"near_duplicates-{args.data.name}", figures, headline, packages=("torch", "numpy", "usearch"))


if __name__ == "__main__":
    main()
