from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from amlp.data.shards import ShardedSplit, Stats, read_stats, shard_name
from amlp.errors import UserError
from amlp.files import write_json

SIZES = {"train": [4, 4, 2], "val": [3], "test": [4, 1]}


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Every value of a case is its position in its split, plus 100 for masks; scores are a hundredth of it."""
    rows = []
    for split, sizes in SIZES.items():
        first = 0
        for number, size in enumerate(sizes):
            value = np.arange(first, first + size)
            arrays = {
                "images": np.full((size, 3, 6, 8), value[:, None, None, None], np.uint8),
                "masks": np.full((size, 6, 8), 100 + value[:, None, None], np.uint8),
                "scores": np.full((size, 3, 4), value[:, None, None] / 100, np.float32),
            }
            for kind, array in arrays.items():
                np.save(tmp_path / shard_name(split, kind, number), array)
            for row in range(size):
                rows.append({"case_id": f"{split}_{first + row}", "split": split, "shard": number, "row": row})
            first += size
    # The order of the file's rows is not the order of the shards.
    pd.DataFrame(rows).sample(frac=1, random_state=0).to_parquet(tmp_path / "index.parquet")
    stats = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5], "channels": 3, "height": 6, "width": 8}
    write_json(tmp_path / "stats.json", stats)
    return tmp_path


@pytest.mark.parametrize("split", SIZES)
def test_rows_are_positions_in_the_index_across_shards(shards: Path, split: str) -> None:
    opened = ShardedSplit.open(shards, split)
    assert len(opened) == sum(SIZES[split])
    assert list(opened.index["case_id"]) == [f"{split}_{row}" for row in range(len(opened))]
    rows = np.random.default_rng(0).permutation(len(opened))
    rows = np.concatenate([rows, rows[:2]])
    images, masks = opened.images(rows), opened.masks(rows)
    assert (images.shape, images.dtype) == ((len(rows), 3, 6, 8), np.uint8)
    assert (masks.shape, masks.dtype) == ((len(rows), 6, 8), np.uint8)
    assert (images == rows[:, None, None, None]).all()
    assert (masks == 100 + rows[:, None, None]).all()


def test_scores_belong_to_the_training_split(shards: Path) -> None:
    rows = np.array([9, 0, 5])
    scores = ShardedSplit.open(shards, "train").scores(rows)
    assert (scores.shape, scores.dtype) == ((3, 3, 4), np.float32)
    np.testing.assert_allclose(scores, np.broadcast_to(rows[:, None, None] / 100, (3, 3, 4)), rtol=1e-6)


def test_no_rows_and_pickling(shards: Path) -> None:
    opened = ShardedSplit.open(shards, "val")
    assert opened.images(np.array([], dtype=np.int64)).shape == (0, 3, 6, 8)
    copy = pickle.loads(pickle.dumps(opened))
    np.testing.assert_array_equal(copy.images(np.array([1])), opened.images(np.array([1])))


def test_what_is_read_can_be_changed_without_changing_the_file(shards: Path) -> None:
    opened = ShardedSplit.open(shards, "train")
    opened.images(np.array([1]))[:] = 7
    assert (opened.images(np.array([1])) == 1).all()


def test_stats(shards: Path) -> None:
    assert read_stats(shards) == Stats(mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5), channels=3, height=6, width=8)


def test_missing_files_are_named(shards: Path) -> None:
    (shards / "val-masks-00000.npy").unlink()
    with pytest.raises(UserError, match="val-masks-00000"):
        ShardedSplit.open(shards, "val").masks(np.array([0]))
    for call in (lambda: read_stats(shards / "none"), lambda: ShardedSplit.open(shards / "none", "val")):
        with pytest.raises(UserError, match="amlp preprocess"):
            call()
