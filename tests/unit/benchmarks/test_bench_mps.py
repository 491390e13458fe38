from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from amlp.data.preprocess import preprocess
from amlp.data.shards import ShardedSplit
from amlp.data.validate import with_facts
from amlp.errors import UserError
from amlp.metrics.lesion_patches import lesion_patches
from amlp.params import PreprocessParams, ScoreParams
from benchmarks.bench_mps import read_cases, read_workspace, refinement, selection
from tests.support.ingest_folder import scene, write_ingest


def picture(number: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture of its own with a dark square, and the square."""
    mask = np.zeros((96, 96), dtype=bool)
    top, left = np.random.default_rng(number).integers(24, 48, 2)
    mask[top : top + 24, left : left + 24] = True
    return np.clip(scene(number, 96, 96) * 0.2 + 120 - 90 * mask, 0, 255).astype(np.uint8), mask


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """What the pipeline leaves up to pre-training; its refined scores are the truth. Every fifth image is normal."""
    cases = {}
    for number in range(20):
        image, mask = picture(number)
        cases[f"case_{number:02d}"] = {"image": image, "mask": mask & (number % 5 > 0)}
    ingest = write_ingest(tmp_path / "data/ingest", cases)
    (tmp_path / "data/validate").mkdir()
    facts = with_facts(pd.read_parquet(ingest / "manifest.parquet"), ingest, tmp_path / "data/validate/thumbnails.npy")
    facts.to_parquet(tmp_path / "data/validate/manifest.parquet")
    preprocess(
        params=PreprocessParams(height=96, width=96), scores=ScoreParams(), seed=0,
        ingest=ingest, validated=tmp_path / "data/validate", out=tmp_path / "data/shards",
    )  # fmt: skip
    train = ShardedSplit.open(tmp_path / "data/shards", "train")
    truth = lesion_patches(train.masks(np.arange(len(train))), (12, 12)).reshape(-1, 12, 12)
    (tmp_path / "models/encoder").mkdir(parents=True)
    np.save(tmp_path / "models/encoder/scores.npy", truth.astype(np.float32))
    return tmp_path


def test_refined_scores_are_measured_on_the_training_images_with_a_lesion(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = ShardedSplit.open(workspace / "data/shards", "train")
    figures = refinement(read_workspace(workspace))
    assert figures["cases"]["images"] == (train.index["lesion_fraction"] > 0).sum() < len(train)
    # The truth, but for the edges that resampling blurs.
    assert figures["after"]["auc"] > 0.97 and figures["after"]["recall"]["value"] > 0.6
    assert figures["before"]["enrichment"]["value"] == pytest.approx(figures["ours"]["enrichment"]["value"], rel=0.3)
    for key in ("raw", "prior", "ours", "before", "after"):
        assert figures[key]["enrichment"]["low"] <= figures[key]["enrichment"]["value"]
    assert "after refinement" in capsys.readouterr().out
    file = workspace / "models/encoder/scores.npy"
    truth = np.load(file)
    np.save(file, np.roll(truth, 1, axis=0))
    shifted = refinement(read_workspace(workspace))
    assert shifted["after"]["auc"] < figures["after"]["auc"] - 0.05, "each image has its own map"
    assert shifted["before"] == figures["before"]
    np.save(file, 1 - truth)
    assert refinement(read_workspace(workspace))["after"]["auc"] < 0.03


@pytest.mark.parametrize("missing", ["models/encoder/scores.npy", "data/shards/index.parquet"])
def test_a_workspace_without_what_is_needed_is_reported(workspace: Path, missing: str) -> None:
    (workspace / missing).unlink()
    with pytest.raises(UserError, match=rf"{missing}: not found.*make busi"):
        read_workspace(workspace)


def test_scores_of_other_data_are_reported(workspace: Path) -> None:
    file = workspace / "models/encoder/scores.npy"
    np.save(file, np.load(file)[1:])
    with pytest.raises(UserError, match=r"scores\.npy: \d+ maps, but the training split holds"):
        read_workspace(workspace)


def test_the_selection_is_measured_on_all_images_with_a_lesion(tmp_path: Path) -> None:
    folder = tmp_path / "benign"
    folder.mkdir()
    for number in range(6):
        image, mask = picture(number)
        Image.fromarray(image).save(folder / f"case ({number}).png")
        if number:
            Image.fromarray(mask).save(folder / f"case ({number})_mask.png")
    figures = selection(read_cases(tmp_path))
    assert figures["cases"]["images"] == 5
    assert figures["ours"]["auc"] > 0.8 and figures["ours"]["enrichment"]["value"] > 2
    with pytest.raises(UserError, match="no image has a lesion mask"):
        for file in folder.glob("*_mask.png"):
            file.unlink()
        read_cases(tmp_path)
