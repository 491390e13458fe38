"""The published set itself: what is known of it, and what its near-duplicates must not do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from amlp.data.groups import assign_splits, group_cases
from amlp.data.images import to_model_input
from amlp.data.ingest import ingest
from amlp.data.pictures import read_image, read_mask
from amlp.data.privacy import Pseudonyms
from amlp.data.validate import with_facts
from amlp.params import IngestParams, PreprocessParams

PSEUDONYMS = Pseudonyms(b"a key that only these tests know...")


def published(folder: Path) -> IngestParams:
    return IngestParams(source="busi", path=str(folder), case_ids="name")


@pytest.mark.busi
def test_busi_itself(busi: Path, tmp_path: Path) -> None:
    ingest(
        params=IngestParams(source="busi", path=str(busi), case_ids="name"),
        seed=0,
        out=tmp_path / "out",
        pseudonyms=PSEUDONYMS,
    )
    manifest = pd.read_parquet(tmp_path / "out" / "manifest.parquet").set_index("case_id")
    assert manifest.label.value_counts().to_dict() == {"benign": 437, "malignant": 210, "normal": 133}
    assert (manifest.lesion_fraction[manifest.label == "normal"] == 0).all()
    assert (manifest.lesion_fraction[manifest.label != "normal"] > 0).all()
    # The same picture, filed under two classes.
    one, other = manifest.loc["benign_433"], manifest.loc["malignant_145"]
    assert one.sha256 == other.sha256
    first, second = (read_mask(busi / f"benign/benign (4)_mask{ending}.png") for ending in ("", "_1"))
    np.testing.assert_array_equal(read_mask(tmp_path / "out" / manifest["mask"]["benign_4"]), first | second)


@pytest.mark.busi
def test_on_busi_no_group_is_huge_and_no_test_image_resembles_a_training_image(busi: Path, tmp_path: Path) -> None:
    ingest(
        params=IngestParams(source="busi", path=str(busi), case_ids="name"), seed=0, out=tmp_path, pseudonyms=PSEUDONYMS
    )
    frame = with_facts(pd.read_parquet(tmp_path / "manifest.parquet"), tmp_path, tmp_path / "thumbnails.npy")
    groups = group_cases(frame, np.load(tmp_path / "thumbnails.npy"), params=PreprocessParams())
    frame["group"], frame["labelled"] = groups.group, True
    by_case = frame.set_index("case_id")["group"]
    assert by_case["benign_433"] == by_case["malignant_145"]
    assert frame["group"].value_counts().max() < 10

    splits = assign_splits(frame, test_fraction=0.2, val_fraction=0.125, seed=0)
    pictures = np.stack(
        [to_model_input(read_image(tmp_path / name), channels=1, height=64, width=64)[0] for name in frame["image"]]
    )

    def unit(stack: np.ndarray) -> np.ndarray:
        rows = stack.reshape(len(stack), -1).astype(float)
        rows -= rows.mean(axis=1, keepdims=True)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    test, rest = pictures[splits == "test"], pictures[splits != "test"]
    assert (unit(test) @ unit(rest).T).max() < 0.95
    assert (unit(test[:, :, ::-1]) @ unit(rest).T).max() < 0.95
