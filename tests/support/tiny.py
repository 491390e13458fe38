"""A data set and settings so small that a training takes seconds, made without the stages before it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from amlp.files import write_json
from amlp.params import Params, parse_params

SIZE, PATCH = 32, 8


def write_shards(folder: Path, *, cases: int = 24, seed: int = 0) -> Path:
    """Write shards of noisy pictures with a dark disc each; three in four are for training."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    centre = random.uniform(8, 24, (cases, 2))
    radius = random.uniform(4, 8, cases)
    masks = (rows - centre[:, :1, None]) ** 2 + (columns - centre[:, 1:, None]) ** 2 < radius[:, None, None] ** 2
    images = np.clip(random.normal(150, 30, masks.shape) - 90 * masks, 0, 255).astype(np.uint8)[:, None]
    split = np.where(np.arange(cases) % 8 == 6, "val", np.where(np.arange(cases) % 8 == 7, "test", "train"))
    index = pd.DataFrame(
        {
            "case_id": [f"case_{i}" for i in range(cases)],
            "split": split,
            "group": np.arange(cases) // 2,
            "label": np.where(np.arange(cases) % 4 < 2, "a", "b"),
            "labelled": True,
            "shard": 0,
            "lesion_fraction": masks.mean(axis=(1, 2)),
        }
    )
    index["row"] = index.groupby("split").cumcount()
    index.to_parquet(folder / "index.parquet")
    for name in ("train", "val", "test"):
        chosen = split == name
        np.save(folder / f"{name}-images-00000.npy", images[chosen])
        np.save(folder / f"{name}-masks-00000.npy", masks[chosen].astype(np.uint8))
    cells = masks[split == "train"].reshape(-1, SIZE // PATCH, PATCH, SIZE // PATCH, PATCH).mean(axis=(2, 4))
    np.save(folder / "train-scores-00000.npy", (cells > 0.3).astype(np.float32))
    train = images[split == "train"] / 255
    stats = {"mean": [float(train.mean())], "std": [float(train.std())], "channels": 1, "height": SIZE, "width": SIZE}
    write_json(folder / "stats.json", stats)
    return folder


def settings(**changes: dict) -> Params:
    """Parameters for such shards; `changes` are sections to lay over them."""
    values: dict = {
        "preprocess": {"height": SIZE, "width": SIZE},
        "encoder": {"patch": PATCH, "dim": 24, "depth": 2, "heads": 3},
        "pretrain": {"epochs": 4, "batch": 6, "checkpoint_epochs": 1}
        | {"mps": {"refresh_epochs": 1}, "decoder": {"dim": 24, "depth": 1, "heads": 3}},
        "finetune": {"epochs": 3, "pseudo_label_epochs": 2, "batch": 6, "channels": 8, "checkpoint_epochs": 1},
    }
    for section, change in changes.items():
        values[section] = values.get(section, {}) | change
    return parse_params(values, "test settings")
