"""Images and masks by patterns of their paths, tables beside them, and what must not get through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from amlp.data.ingest import SHOWN_PROBLEMS, ingest
from amlp.data.privacy import Ids, Pseudonyms, name_id
from amlp.data.sources.patterns import Pattern
from amlp.errors import ListedError, UserError
from amlp.files import read_json
from amlp.params import IngestParams
from tests.support.ingest_folder import lesion, scene

PSEUDONYMS = Pseudonyms(b"a key that only these tests know...")


@pytest.mark.parametrize(
    ("pattern", "path", "fields"),
    [
        ("images/{name}.jpg", "images/a b.JPG", {"name": "a b"}),
        ("images/{name}.jpg", "images/deeper/a.jpg", None),
        ("images/{name}.jpg", "images/a.jpeg", None),
        ("**/{name}.*", "x/y/a.tiff", {"name": "a"}),
        ("**/{name}.*", "a.webp", {"name": "a"}),
        ("**/{name}.*", "a.txt", None),
        ("{site}/{patient}/{name}.png", "lyon/p 7/12.png", {"site": "lyon", "patient": "p 7", "name": "12"}),
        ("{patient}/{patient}_{name}.tif", "TCGA_1/TCGA_1_12.tif", {"patient": "TCGA_1", "name": "12"}),
        ("{patient}/{patient}_{name}.tif", "TCGA_1/TCGA_2_12.tif", None),
        ("{name}_mask{:(_[0-9]{1,2})?}.png", "a_mask_10.png", {"name": "a"}),
        ("{name}_mask{:(_[0-9]{1,2})?}.png", "a_mask_100.png", None),
        ("{name}_mask*.png", "a_mask_left.png", {"name": "a"}),
        ("{label:benign|malignant}/{name}.png", "normal/a.png", None),
        ("a+b (c)/{name}.png", "a+b (c)/d.png", {"name": "d"}),
    ],
)
def test_a_pattern_takes_a_path_apart(pattern: str, path: str, fields: dict[str, str] | None) -> None:
    assert Pattern(pattern, "here").match(path) == fields


@pytest.mark.parametrize("pattern", ["{name.png", "{Name}.png", "{}.png", "{name:(}.png", "{na me}.png"])
def test_what_is_no_pattern_is_named_with_its_parameter(pattern: str) -> None:
    with pytest.raises(UserError, match=r"ingest\.pairs\.image: "):
        Pattern(pattern, "ingest.pairs.image")


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=8)


@given(patient=WORDS, name=WORDS)
def test_a_field_is_the_text_of_its_folder(patient: str, name: str) -> None:
    assert Pattern("{patient}/{name}.png", "here").match(f"{patient}/{name}.png") == {"patient": patient, "name": name}


def write(root: Path, images: dict[str, int], masks: dict[str, int] | None = None) -> Path:
    """Write pictures by name and seed; a mask of seed 0 is empty."""
    for name, seed in images.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene(seed)).save(root / name)
    for name, seed in (masks or {}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(lesion() & bool(seed)).save(root / name)
    return root


def run(root: Path, out: Path, **values: Any) -> pd.DataFrame:
    params = IngestParams.model_validate({"source": "pairs", "path": str(root), "case_ids": "name", **values})
    ingest(params=params, seed=0, out=out, pseudonyms=PSEUDONYMS)
    return pd.read_parquet(out / "manifest.parquet").set_index("case_id")


def test_two_trees_and_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["a", "b", "c", "d"]
    root = write(
        tmp_path / "source",
        {f"images/{name}.jpg": number for number, name in enumerate(names)},
        {f"masks/{name}_segmentation.png": 1 for name in names},
    )
    rows = ["image_id,who,dx,sex", "a,Jane Doe,nv,f", "b.jpg,Jane Doe,mel,f", "images/c.jpg,P2,nv,m", "zz,P9,nv,m"]
    (root / "metadata.csv").write_text("\n".join(rows))
    manifest = run(
        root, tmp_path / "out",
        pairs={"image": "images/{name}.jpg", "mask": "masks/{name}_segmentation.png"},
        table={"file": "metadata.csv", "key": "image_id", "patient": "who", "label": "dx", "keep": ["sex"]},
    )  # fmt: skip
    assert list(manifest.index) == names
    assert manifest["format"].tolist() == ["JPEG"] * 4
    assert manifest["patient"].tolist()[:3] == [PSEUDONYMS("Jane Doe")] * 2 + [PSEUDONYMS("P2")]
    assert manifest["label"].tolist()[:3] == ["nv", "mel", "nv"] and manifest["sex"].tolist()[:3] == ["f", "f", "m"]
    assert pd.isna(manifest["patient"]["d"]) and pd.isna(manifest["label"]["d"])
    said = capsys.readouterr().err
    assert "1 of 4 rows of the table name no image" in said
    assert "1 of 4 images have no patient" in said
    assert not any(b"Jane" in file.read_bytes() for file in (tmp_path / "out").iterdir())


def test_a_folder_a_patient(tmp_path: Path) -> None:
    images = {
        f"TCGA_{patient}/TCGA_{patient}_{slice_}.tif": 10 * patient + slice_
        for patient in range(3)
        for slice_ in (1, 2)
    }
    root = write(tmp_path / "source", images, {name.replace(".tif", "_mask.tif"): 1 for name in images})
    manifest = run(root, tmp_path / "out", source="patient-folders")
    assert len(manifest) == 6 and manifest["patient"].nunique() == 3 and manifest["label"].isna().all()
    assert manifest.index[0] == "TCGA_0_1"


def test_a_pool_without_masks_beside_images_with_masks(tmp_path: Path) -> None:
    root = write(tmp_path / "source", {"images/a.png": 1, "images/b.png": 2, "pool/c.png": 3}, {"masks/a.png": 1})
    pairs = {"image": "images/{name}.*", "mask": "masks/{name}.*", "unlabelled": "pool/{name}.*"}
    with pytest.raises(ListedError, match=r"images/b\.png: no mask.*ingest\.pairs\.missing_mask: unlabelled"):
        run(root, tmp_path / "out", pairs=pairs)
    manifest = run(root, tmp_path / "out", pairs=pairs | {"missing_mask": "unlabelled"})
    assert manifest["mask"].notna().to_dict() == {"a": True, "b": False, "pool_c": False}
    assert manifest["label"]["pool_c"] == "unlabelled"


@pytest.mark.parametrize(
    ("table", "rows", "reason"),
    [
        ({}, ["image,patient", "a,1", "a,2"], "line 3: another patient"),
        ({"label": "dx"}, ["image,patient,dx", "a,1,nv", "a,1,mel"], "line 3: other values"),
        ({}, ["image,patient", "x,1"], r"line 2: fits several images"),
        ({}, ["image;patient", "a;1"], "separator ';'"),
        ({}, ["file,patient", "a,1"], "image not found"),
        ({"keep": ["born"]}, ["image,patient,born", *(f"i{n},{n},19{n:02d}" for n in range(9))], "may identify people"),
    ],
)
def test_what_is_wrong_with_a_table_is_named(
    tmp_path: Path, table: dict[str, Any], rows: list[str], reason: str
) -> None:
    root = write(tmp_path / "source", {"images/a.png": 1, "images/u/x.png": 2, "images/v/x.png": 3})
    (root / "t.csv").write_text("\n".join(rows))
    with pytest.raises(ListedError, match=rf"t\.csv: .*{reason}"):
        run(
            root, tmp_path / "out", pairs={"image": "images/**/{name}.*", "mask": ""},
            table={"file": "t.csv", "patient": "patient", **table},
        )  # fmt: skip


def test_a_table_that_is_not_there_is_named(tmp_path: Path) -> None:
    root = write(tmp_path / "source", {"images/a.png": 1})
    with pytest.raises(UserError, match=r"ingest\.table\.file: .*nosuch\.csv: not found"):
        run(root, tmp_path / "out", table={"file": "nosuch.csv"})


def test_a_table_in_parquet(tmp_path: Path) -> None:
    root = write(tmp_path / "source", {"images/a.png": 1, "images/b.png": 2})
    pd.DataFrame({"image": ["a", "b"], "patient": [7, 8]}).to_parquet(root / "t.parquet")
    manifest = run(root, tmp_path / "out", pairs={"mask": ""}, table={"file": "t.parquet", "patient": "patient"})
    assert manifest["patient"].tolist() == [PSEUDONYMS("7"), PSEUDONYMS("8")]


def test_patterns_that_share_no_field_are_refused(tmp_path: Path) -> None:
    root = write(tmp_path / "source", {"images/a.png": 1})
    with pytest.raises(UserError, match=r"ingest\.pairs\.mask: .*shares no field"):
        run(root, tmp_path / "out", pairs={"image": "images/{name}.*", "mask": "masks/{other}.*"})


def test_folders_of_patients_are_not_taken_for_classes(tmp_path: Path) -> None:
    images = {f"PAT{patient:03d}/i{n}.png": 10 * patient + n for patient in range(6) for n in range(4)}
    root = write(tmp_path / "source", images, {name.replace(".png", "_mask.png"): 1 for name in images})
    with pytest.raises(UserError, match=r"6 labels for 24 cases.*look like patients.*patient-folders"):
        run(root, tmp_path / "out", source="busi")
    assert not (tmp_path / "out").exists()
    assert len(run(root, tmp_path / "out", source="busi", check_labels=False)) == 24


def test_many_problems_are_summarised_and_listed_in_a_file(tmp_path: Path) -> None:
    root = write(tmp_path / "source", {"images/a.png": 1})
    for number in range(SHOWN_PROBLEMS + 30):
        (root / f"images/{number}.dcm").write_bytes(b"")
    with pytest.raises(ListedError) as caught:
        run(root, tmp_path / "out", pairs={"mask": ""})
    assert len(caught.value.problems) == 1
    assert f"and {SHOWN_PROBLEMS + 29} more like it" in caught.value.problems[0]
    listed = tmp_path / "out-failed/problems.csv"
    assert str(listed) in str(caught.value)
    assert len(pd.read_csv(listed)) == SHOWN_PROBLEMS + 30


def test_dicom_without_a_suffix_is_not_passed_over(tmp_path: Path) -> None:
    root = write(tmp_path / "source", {"images/a.png": 1})
    (root / "images/IM0001").write_bytes(bytes(128) + b"DICM" + bytes(40))
    with pytest.raises(ListedError, match="images/IM0001: this source reads"):
        run(root, tmp_path / "out", pairs={"mask": ""})


def test_masks_without_any_lesion_are_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write(tmp_path / "source", {"images/a.png": 1, "images/b.png": 2}, {"masks/a.png": 0, "masks/b.png": 0})
    run(root, tmp_path / "out")
    assert "no mask shows a lesion" in capsys.readouterr().err


def test_equal_images_get_ids_of_their_own(tmp_path: Path) -> None:
    root = write(tmp_path / "source", {"images/a.png": 1, "images/b.png": 1, "images/c.png": 2})
    manifest = run(root, tmp_path / "out", pairs={"mask": ""}, case_ids="content")
    assert manifest.index.is_unique and sum(case.endswith("-2") for case in manifest.index) == 1
    assert read_json(tmp_path / "out/summary.json")["cases"] == 3


def test_a_long_name_becomes_a_short_id() -> None:
    assert len(name_id("a" * 240)) < 120 and name_id("a" * 240) != name_id("a" * 239 + "b")
    assert name_id("benign (433)") == "benign_433"
    ids = Ids("name")
    assert ids.new("A", "0" * 64) == "A" and ids.new("a", "1" * 64) is None


def test_the_key_is_made_once_is_private_and_can_come_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AMLP_PSEUDONYM_KEY", raising=False)
    first = Pseudonyms.of_project(tmp_path)("Jane")
    file = tmp_path / ".amlp/pseudonym-key"
    assert file.stat().st_mode & 0o077 == 0
    assert Pseudonyms.of_project(tmp_path)("Jane") == first != Pseudonyms.of_project(tmp_path / "other")("Jane")
    monkeypatch.setenv("AMLP_PSEUDONYM_KEY", "k" * 32)
    assert Pseudonyms.of_project(tmp_path)("Jane") == Pseudonyms.of_environment()("Jane") != first
    monkeypatch.setenv("AMLP_PSEUDONYM_KEY", "short")
    with pytest.raises(UserError, match="AMLP_PSEUDONYM_KEY: holds 5 characters"):
        Pseudonyms.of_environment()


def test_patterns_of_another_source_are_not_ignored() -> None:
    with pytest.raises(ValueError, match="pairs is for source pairs"):
        IngestParams.model_validate({"source": "busi", "pairs": {"image": "{name}.png"}})


def test_colour_and_many_channels_are_kept(tmp_path: Path) -> None:
    import tifffile

    root = write(tmp_path / "source", {})
    (root / "images").mkdir(parents=True)
    many = np.stack([scene(seed).astype(np.uint16) * 100 for seed in range(5)], axis=-1)
    tifffile.imwrite(root / "images/a.tif", many, photometric="minisblack", planarconfig="contig")
    manifest = run(root, tmp_path / "out", pairs={"mask": ""})
    assert (manifest["channels"]["a"], manifest["bits"]["a"]) == (5, 16)
    assert manifest["image"]["a"].endswith(".npy")
