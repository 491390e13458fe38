"""Shards: packed arrays of one split each, and the index that says what lies where.

A folder holds `{split}-{images,masks}-00000.npy` and so on, uint8, (N, C, H, W) and (N, H, W); for the training split
`train-scores-00000.npy` too, float32, (N, h, w); `index.parquet` with one row for each case, `stats.json`
and `made_by.json`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from amlp.errors import UserError
from amlp.files import read_json
from amlp.layout import ShardsFolder

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Stats:
    """Mean and standard deviation per channel of the training split, for grey values in 0..1; and the images' size."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: int
    height: int
    width: int


def cases_digest(index: pd.DataFrame) -> str:
    """SHA-256 of an index's case ids in their order: equal for the same images, row by row."""
    return hashlib.sha256("\n".join(index["case_id"].astype(str)).encode()).hexdigest()


def read_stats(shards: Path) -> Stats:
    """Read `stats.json`.

    Raises:
        UserError: there is none.
    """
    path = ShardsFolder(shards).stats
    if not path.is_file():
        raise UserError(f"{path}: not found; run `amlp preprocess` first.")
    values = read_json(path)
    return Stats(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})


def shard_name(split: str, kind: str, number: int) -> str:
    return f"{split}-{kind}-{number:05d}.npy"


@dataclass(frozen=True)
class ShardedSplit:
    """One split, read from its shards as rows are asked for; rows are positions in `index`.

    It holds no open file, so it is cheap to hand to another process. Mapping a file again costs 0.1 ms.
    """

    shards: Path
    split: str
    index: pd.DataFrame

    @classmethod
    def open(cls, shards: Path, split: str) -> ShardedSplit:
        """Read the index.

        Raises:
            UserError: there is no index.
        """
        assert split in SPLITS
        path = ShardsFolder(shards).index
        if not path.is_file():
            raise UserError(f"{path}: not found; run `amlp preprocess` first.")
        index = pd.read_parquet(path)
        index = index[index["split"] == split].sort_values(["shard", "row"]).reset_index(drop=True)
        return cls(shards, split, index)

    def __len__(self) -> int:
        return len(self.index)

    def images(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
        """Return (n, C, H, W) uint8, a copy."""
        return self._take("images", rows)

    def masks(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
        """Return (n, H, W) uint8 0/1, a copy; all 0 where the case is not labelled."""
        return self._take("masks", rows)

    def scores(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Return lesion scores (n, h, w) float32 in 0..1, a copy; only the training split has any."""
        assert self.split == "train"
        return self._take("scores", rows)

    def _take(self, kind: str, rows: NDArray[np.integer[Any]]) -> NDArray[Any]:
        shard = self.index["shard"].to_numpy()[rows]
        row = self.index["row"].to_numpy()[rows]
        # Shard 0 gives shape and type even if no row is asked for.
        parts = {number: self._map(kind, number) for number in sorted({0, *shard.tolist()})}
        result = np.empty((len(rows), *parts[0].shape[1:]), parts[0].dtype)
        for number, part in parts.items():
            chosen = shard == number
            result[chosen] = part[row[chosen]]
        return result

    def _map(self, kind: str, number: int) -> NDArray[Any]:
        path = self.shards / shard_name(self.split, kind, number)
        try:
            return np.load(path, mmap_mode="r")
        except FileNotFoundError as error:
            raise UserError(f"{path}: not found though index.parquet names it; run `amlp preprocess` again.") from error
