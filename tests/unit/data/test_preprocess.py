from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from amlp.data.images import to_model_input
from amlp.data.preprocess import preprocess
from amlp.data.shards import ShardedSplit, read_stats
from amlp.data.validate import with_facts
from amlp.errors import UserError
from amlp.files import read_json
from amlp.method.scores import lesion_scores
from amlp.params import PreprocessParams, ScoreParams
from tests.support.ingest_folder import lesion, scene, write_ingest

PARAMS = PreprocessParams(height=16, width=32, test_fraction=0.25, val_fraction=0.25, shard_cases=5)
SCORES = ScoreParams(patch=4)


def cases(count: int = 24, **more: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Pictures of several sizes and two labels; the last two are not labelled."""
    made = {}
    for number in range(count):
        height, width = [(40, 48), (36, 36), (50, 70)][number % 3]
        normal = number % 4 == 3
        mask = np.zeros((height, width), dtype=bool) if normal else lesion(height, width)
        made[f"case_{number:02d}"] = {
            "image": scene(number, height, width),
            "mask": None if number >= count - 2 else mask,
            "label": "normal" if normal else "lesion",
        }
    return {**made, **more}


def run(root: Path, made: dict[str, dict[str, Any]], params: PreprocessParams = PARAMS, seed: int = 0) -> Path:
    """Write a data set into `root` and preprocess it."""
    ingest = write_ingest(root / "ingest", made)
    (root / "validate").mkdir()
    manifest = pd.read_parquet(ingest / "manifest.parquet")
    manifest = with_facts(manifest, ingest, root / "validate/thumbnails.npy")
    manifest.to_parquet(root / "validate/manifest.parquet")
    return again(root, params=params, seed=seed)


def again(root: Path, params: PreprocessParams = PARAMS, seed: int = 0, out: str = "shards") -> Path:
    arguments = {"ingest": root / "ingest", "validated": root / "validate", "out": root / out}
    preprocess(params=params, scores=SCORES, seed=seed, **arguments)
    return root / out


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = {"image": scene(3, 36, 36)[:, ::-1].copy(), "mask": lesion(36, 36), "label": "lesion"}
    return run(tmp_path_factory.mktemp("preprocess"), cases(copy_03=copy))


def test_every_case_is_packed_once_as_the_model_sees_it(shards: Path) -> None:
    made = cases(copy_03={"image": scene(3, 36, 36)[:, ::-1].copy(), "mask": lesion(36, 36)})
    index = pd.read_parquet(shards / "index.parquet")
    assert sorted(index["case_id"]) == sorted(made)
    assert index.columns.tolist() == [
        "case_id", "split", "group", "label", "labelled", "shard", "row",
        "image", "mask", "height", "width", "lesion_fraction",
    ]  # fmt: skip
    for split in ("train", "val", "test"):
        opened = ShardedSplit.open(shards, split)
        rows = np.arange(len(opened))
        images, masks = opened.images(rows), opened.masks(rows)
        assert (images.shape[1:], masks.shape[1:]) == ((1, 16, 32), (16, 32))
        for row, case_id in enumerate(opened.index["case_id"]):
            expected = to_model_input(made[case_id]["image"], channels=1, height=16, width=32)
            np.testing.assert_array_equal(images[row], expected)
            mask = made[case_id]["mask"]
            assert opened.index["labelled"][row] == (mask is not None)
            assert set(np.unique(masks[row])) <= {0, 1}
            assert masks[row].mean() == pytest.approx(0 if mask is None else mask.mean(), abs=0.03)


def test_shards_hold_the_asked_number_of_cases(shards: Path) -> None:
    train = ShardedSplit.open(shards, "train")
    sizes = train.index.groupby("shard").size().tolist()
    assert len(sizes) > 1 and sizes[:-1] == [5] * (len(sizes) - 1) and sizes[-1] <= 5
    for number, size in enumerate(sizes):
        for kind in ("images", "masks", "scores"):
            assert len(np.load(shards / f"train-{kind}-{number:05d}.npy", mmap_mode="r")) == size
    assert not list(shards.glob("val-scores*")) and not list(shards.glob("test-scores*"))


def test_near_duplicates_share_a_split_and_are_counted(shards: Path) -> None:
    index = pd.read_parquet(shards / "index.parquet").set_index("case_id")
    assert index["group"]["case_03"] == index["group"]["copy_03"]
    assert (index.groupby("group")["split"].nunique() == 1).all()
    metrics = read_json(shards / "metrics.json")
    assert (metrics["cases"], metrics["groups"], metrics["largest_group"]) == (25, 24, 2)
    assert (metrics["near_duplicate_groups"], metrics["near_duplicate_cases"]) == (1, 2)
    for split in ("train", "val", "test"):
        part = index[index["split"] == split]
        assert metrics[split] == {
            "cases": len(part),
            "groups": part["group"].nunique(),
            "labelled": part["labelled"].sum(),
            "labels": part["label"].value_counts().to_dict(),
        }


def test_statistics_come_from_the_training_split_alone(shards: Path) -> None:
    train = ShardedSplit.open(shards, "train")
    pixels = train.images(np.arange(len(train))) / 255
    stats = read_stats(shards)
    assert stats.mean == pytest.approx([pixels.mean()], rel=1e-12)
    assert stats.std == pytest.approx([pixels.std()], rel=1e-9)
    assert (stats.channels, stats.height, stats.width) == (1, 16, 32)


def test_scores_are_those_of_the_packed_images(shards: Path) -> None:
    train = ShardedSplit.open(shards, "train")
    rows = np.arange(len(train))
    result = lesion_scores(torch.from_numpy(train.images(rows)).float() / 255, params=SCORES)
    np.testing.assert_allclose(train.scores(rows), result.scores.numpy(), atol=1e-6)
    assert read_json(shards / "metrics.json")["guarded_share"] == pytest.approx(result.guarded.float().mean().item())


def test_the_hash_names_the_test_split(shards: Path) -> None:
    root = shards.parent
    manifest = pd.read_parquet(root / "validate/manifest.parquet").set_index("case_id")["sha256"]
    test = sorted(ShardedSplit.open(shards, "test").index["case_id"])
    text = "".join(f"{case_id} {manifest[case_id]}\n" for case_id in test)
    assert read_json(shards / "metrics.json")["split_hash"] == hashlib.sha256(text.encode()).hexdigest()
    other = again(root, seed=1, out="other_seed")
    assert read_json(other / "metrics.json")["split_hash"] != read_json(shards / "metrics.json")["split_hash"]


def test_equal_input_gives_equal_bytes_whatever_the_order_of_the_manifest(shards: Path, tmp_path: Path) -> None:
    shutil.copytree(shards.parent / "ingest", tmp_path / "ingest")
    (tmp_path / "validate").mkdir()
    manifest = pd.read_parquet(shards.parent / "validate/manifest.parquet")
    manifest = manifest.reset_index(drop=True).sample(frac=1, random_state=1)
    manifest.to_parquet(tmp_path / "validate/manifest.parquet")
    thumbnails = np.load(shards.parent / "validate/thumbnails.npy")
    np.save(tmp_path / "validate/thumbnails.npy", thumbnails[manifest.index])
    second = again(tmp_path)
    assert sorted(path.name for path in second.iterdir()) == sorted(path.name for path in shards.iterdir())
    for path in shards.iterdir():
        assert (second / path.name).read_bytes() == path.read_bytes(), path.name


def test_one_colour_picture_makes_all_of_three_channels(tmp_path: Path) -> None:
    colour = np.stack([scene(90), scene(91), scene(92)], axis=2)
    made = cases(12, colour={"image": colour, "mask": lesion()})
    shards = run(tmp_path, made, PARAMS.model_copy(update={"colour": "auto"}))
    assert read_stats(again(tmp_path, PARAMS, out="grey")).channels == 1, "the default turns a coloured mark grey"
    stats = read_stats(shards)
    assert stats.channels == len(stats.mean) == len(stats.std) == 3
    for split in ("train", "val", "test"):
        opened = ShardedSplit.open(shards, split)
        for case_id, image in zip(opened.index["case_id"], opened.images(np.arange(len(opened))), strict=True):
            assert (image == image[:1]).all() == (case_id != "colour")


def test_sixteen_bits_are_stretched_to_eight(tmp_path: Path) -> None:
    deep = {"image": scene(80).astype(np.uint16) * 9 + 300, "mask": lesion()}
    shards = run(tmp_path, cases(9, deep=deep))
    index = pd.read_parquet(shards / "index.parquet").set_index("case_id")
    opened = ShardedSplit.open(shards, index["split"]["deep"])
    (row,) = np.flatnonzero(opened.index["case_id"] == "deep")
    packed = opened.images(np.array([row]))
    assert packed.min() < 10 and packed.max() > 245


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    shards = run(tmp_path, cases(9))
    before = {path.name: path.read_bytes() for path in shards.iterdir()}
    (tmp_path / "ingest/images/case_04.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"case_04\.png"):
        again(tmp_path)
    assert {path.name: path.read_bytes() for path in shards.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ingest", "shards", "validate"]


def test_wrong_input_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="amlp validate"):
        again(tmp_path)
    with pytest.raises(UserError, match=r"scores.patch 4 .*preprocess.height 18"):
        run(tmp_path / "size", cases(9), params=PreprocessParams(height=18, width=32))
    with pytest.raises(UserError, match="each split needs one"):
        run(tmp_path / "few", cases(4))


def discs(count: int, *, dark: bool) -> dict[str, dict[str, Any]]:
    """Noisy pictures of their own, each with a disc; a case a group, the last two without a mask."""
    made = {}
    for number in range(count):
        rng = np.random.default_rng(number)
        y, x = np.mgrid[:64, :64]
        mask = (y - rng.integers(20, 44)) ** 2 + (x - rng.integers(20, 44)) ** 2 < 64
        image = np.clip(scene(number, 64, 64) * 0.2 + 110 + (-80 if dark else 80) * mask, 0, 255).astype(np.uint8)
        made[f"case_{number:02d}"] = {"image": image, "mask": None if number >= count - 2 else mask}
    return made


@pytest.mark.parametrize("dark", [True, False])
def test_it_tells_how_well_the_scores_find_lesions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], dark: bool
) -> None:
    shards = run(tmp_path, discs(24, dark=dark), PreprocessParams(height=32, width=32))
    found, printed = read_json(shards / "metrics.json")["scores"], capsys.readouterr().out
    train = ShardedSplit.open(shards, "train")
    rows = np.flatnonzero(train.index["labelled"])
    selected = train.scores(rows) > 0.5
    lesion = train.masks(rows).reshape(-1, 8, 4, 8, 4).mean(axis=(2, 4)) >= 0.3
    assert found["images"] == len(rows)
    assert found["recall"] == pytest.approx(selected[lesion].mean(), abs=1e-6)
    assert found["enrichment"] == pytest.approx(lesion[selected].mean() / lesion.mean(), abs=1e-6)
    # The polarity is `dark`: bright lesions are not found, and that is said.
    assert (found["enrichment_low"] > 1) == dark and found["enrichment_low"] <= found["enrichment"]
    assert f"find {found['recall']:.0%} of the lesion patches" in printed
    warnings = [line for line in printed.splitlines() if line.startswith("  warning:")]
    assert len(warnings) == (0 if dark else 1)
    assert dark or "scores.polarity" in warnings[0]


def test_without_lesions_it_tells_nothing_of_the_scores(tmp_path: Path) -> None:
    made = {name: case | {"mask": np.zeros((64, 64), bool)} for name, case in discs(12, dark=True).items()}
    assert "scores" not in read_json(run(tmp_path, made) / "metrics.json")
