from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from amlp.cli import main
from amlp.data.pictures import read_image, read_mask, write_png
from amlp.errors import UserError
from amlp.evaluation.overlays import PREDICTED_COLOUR
from amlp.files import read_json, sha256
from amlp.models.predictor import Predictor
from amlp.registry.weights import Weights
from amlp.serving.batches import BATCH, OVERLAY_SIDE
from amlp.serving.outputs import COLUMNS, JOURNAL
from amlp.serving.predict import predict_folder
from tests.support.stage_outputs import write_stage_outputs

RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    root = tmp_path_factory.mktemp("root")
    write_stage_outputs(root)
    file = root / "models/segmenter/segmenter.pt"
    return Weights(file, "a model", sha256(file))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """More than a batch, in two folders, of several sizes and kinds."""
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    for number in range(BATCH + 5):
        size = (20 + number, 45 - number)
        write_png(folder / f"deep/{number:02d}.png", RANDOM.integers(0, 256, size, dtype=np.uint8))
    write_png(folder / "colour.png", RANDOM.integers(0, 256, (30, 41, 3), dtype=np.uint8))
    write_png(folder / "sixteen.png", RANDOM.integers(0, 65536, (30, 41), dtype=np.uint16))
    Image.fromarray(RANDOM.integers(0, 256, (50, 31), dtype=np.uint8)).save(folder / "photo.jpg")
    return folder


def table_of(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "predictions.csv").set_index("file")


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_masks_and_figures_are_the_predictor_s(weights: Weights, pictures: Path, tmp_path: Path) -> None:
    summary = predict_folder(weights=weights, source=pictures, out=tmp_path / "out")
    predictor, table = Predictor.load(weights.file), table_of(tmp_path / "out")
    names = sorted(path.relative_to(pictures).as_posix() for path in pictures.rglob("*.*"))
    assert list(table.index) == names and len(names) == BATCH + 8
    assert list(table.reset_index().columns) == list(COLUMNS)
    for name, row in table.iterrows():
        image = read_image(pictures / str(name))
        expected = predictor.segment(image)
        mask = read_mask(tmp_path / "out" / row["mask"])
        assert row["mask"] == f"masks/{name}".replace(".jpg", ".png")
        np.testing.assert_array_equal(mask, expected.mask)
        assert (row["height"], row["width"], row["area_px"]) == (*image.shape[:2], expected.area)
        assert row["lesion"] == ("yes" if expected.area else "no")
        assert row["area_fraction"] == pytest.approx(expected.mask.mean())
        assert row["presence"] == pytest.approx(expected.presence, abs=1e-4)
        assert row["uncertainty"] == pytest.approx(expected.uncertainty, abs=1e-4)
        assert row["seconds"] > 0
    assert summary == read_json(tmp_path / "out/summary.json")
    assert (summary["files"], summary["images"], summary["bad_files"]) == (len(names), len(names), 0)
    assert summary["images_with_lesion"] == (table["lesion"] == "yes").sum() > 0
    assert summary["model_sha256"] == weights.sha256
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "masks",
        "overlays",
        "predictions.csv",
        "summary.json",
    }


@pytest.mark.parametrize("channels", [(), (3,)])
def test_an_overlay_is_the_picture_with_the_mask_s_edge(
    weights: Weights, tmp_path: Path, channels: tuple[int, ...]
) -> None:
    image = RANDOM.integers(0, 200, (3 * OVERLAY_SIDE, 600, *channels), dtype=np.uint8)
    write_png(tmp_path / "in.png", image)
    predict_folder(weights=weights, source=tmp_path / "in.png", out=tmp_path / "out")
    overlay = np.array(Image.open(tmp_path / "out/overlays/in.png").convert("RGB"))
    assert overlay.shape == (OVERLAY_SIDE, 200, 3)
    drawn = (overlay == PREDICTED_COLOUR).all(axis=2)
    mask = np.array(Image.open(tmp_path / "out/masks/in.png").resize((200, OVERLAY_SIDE), Image.Resampling.NEAREST)) > 0
    assert 0 < drawn.mean() < 1 and not (drawn & ~mask).any(), "the edge lies inside the mask"
    assert (mask & ~drawn).any(), "and is not all of it"
    small = np.array(Image.fromarray(image).resize((200, OVERLAY_SIDE), Image.Resampling.BILINEAR).convert("RGB"))
    np.testing.assert_array_equal(overlay[~drawn], small[~drawn])
    predict_folder(weights=weights, source=tmp_path / "in.png", out=tmp_path / "plain", overlays=False)
    assert not (tmp_path / "plain/overlays").exists()


def test_a_volume_s_masks_are_those_of_its_slices(weights: Weights, tmp_path: Path) -> None:
    values = RANDOM.integers(0, 256, (30, 22, BATCH + 3), dtype=np.uint8)
    affine = np.diag([-0.25, -0.25, 1.5, 1.0])
    (tmp_path / "in").mkdir()
    nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / "in/v.nii.gz")
    write_png(tmp_path / "in/a.png", values[:, :, 0].T.copy())
    predict_folder(weights=weights, source=tmp_path / "in", out=tmp_path / "out")
    found = nibabel.load(tmp_path / "out/masks/v.nii.gz")
    np.testing.assert_array_equal(found.affine, affine)
    masks, predictor = np.asanyarray(found.dataobj), Predictor.load(weights.file)
    for number in range(values.shape[2]):
        np.testing.assert_array_equal(masks[:, :, number].T, predictor.mask(values[:, :, number].T))
    table = table_of(tmp_path / "out").loc["v.nii.gz"]
    assert table["slice"].tolist() == list(range(BATCH + 3))
    assert table["area_px"].tolist() == masks.sum(axis=(0, 1)).tolist()
    assert (table["width"] == 30).all() and (table["height"] == 22).all()


def test_unreadable_files_are_listed_and_stop_nothing(
    weights: Weights, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "deep/03.png").write_bytes(b"garbage")
    (pictures / "empty.jpg").write_bytes(b"")
    (pictures / "bad.nii.gz").write_bytes(b"garbage")
    arguments = ["predict", str(pictures), str(tmp_path / "out"), "--model", str(weights.file)]
    assert main(arguments) == 1
    said = capsys.readouterr()
    table = table_of(tmp_path / "out")
    bad = table[table["error"].notna()]
    assert sorted(bad.index) == ["bad.nii.gz", "deep/03.png", "empty.jpg"] and len(table) == BATCH + 10
    assert bad.loc["empty.jpg", "error"] == "the file is empty." and bad["mask"].isna().all()
    assert all(name in said.err for name in bad.index) and "3 files unreadable" in said.out
    assert not (tmp_path / "out/masks/deep/03.png").exists() and (tmp_path / "out/masks/deep/04.png").exists()


def test_the_command_returns_0_when_all_is_well(weights: Weights, pictures: Path, tmp_path: Path) -> None:
    arguments = ["--model", str(weights.file.parent), "--exclude", "deep/*", "--no-overlays"]
    assert main(["predict", str(pictures), str(tmp_path / "out"), *arguments]) == 0
    assert sorted(table_of(tmp_path / "out").index) == ["colour.png", "photo.jpg", "sixteen.png"]


def test_the_same_input_gives_the_same_files(weights: Weights, pictures: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        predict_folder(weights=weights, source=pictures, out=tmp_path / name)
    one, two = tree(tmp_path / "one"), tree(tmp_path / "two")
    assert one.keys() == two.keys()
    assert {name for name in one if one[name] != two[name]} <= {"predictions.csv", "summary.json"}, "they hold times"
    drop = ["seconds"]
    pd.testing.assert_frame_equal(
        table_of(tmp_path / "one").drop(columns=drop), table_of(tmp_path / "two").drop(columns=drop)
    )


def test_folders_that_hold_other_things_are_refused(weights: Weights, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match=r"holds thesis\.txt; choose a new folder, or .*--force"):
        predict_folder(weights=weights, source=pictures, out=out)
    assert tree(out) == {"thesis.txt": b"precious"}
    predict_folder(weights=weights, source=pictures, out=out, force=True)
    assert (out / "thesis.txt").read_text() == "precious" and (out / "predictions.csv").is_file()
    with pytest.raises(UserError, match="--force"):
        predict_folder(weights=weights, source=pictures, out=out)


def test_an_unfinished_run_of_another_model_is_not_gone_on_with(
    weights: Weights, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / JOURNAL).write_text('{"model_sha256": "another"}\n')
    with pytest.raises(UserError, match="an unfinished run of other things"):
        predict_folder(weights=weights, source=pictures, out=out)
    assert predict_folder(weights=weights, source=pictures, out=out, force=True)["images"] == BATCH + 8


def test_input_and_output_are_kept_apart(weights: Weights, pictures: Path, tmp_path: Path) -> None:
    before = tree(pictures)
    for out in (pictures, pictures / "results", pictures / ".." / "in" / "x"):
        with pytest.raises(UserError, match="write to a folder outside of it"):
            predict_folder(weights=weights, source=pictures, out=out, force=True)
    nested = tmp_path / "out/masks"
    nested.mkdir(parents=True)
    write_png(nested / "a.png", np.zeros((4, 4), np.uint8))
    for source in (nested, nested / "a.png"):
        with pytest.raises(UserError, match="would be written over"):
            predict_folder(weights=weights, source=source, out=tmp_path / "out", force=True)
    with pytest.raises(UserError, match="is a file"):
        predict_folder(weights=weights, source=pictures, out=weights.file)
    assert tree(pictures) == before


def test_a_link_in_the_output_does_not_lead_out_of_it(weights: Weights, pictures: Path, tmp_path: Path) -> None:
    out, outside = tmp_path / "out", tmp_path / "outside"
    (out / "masks").mkdir(parents=True)
    outside.mkdir()
    (out / "masks/deep").symlink_to(outside)
    with pytest.raises(UserError, match="leads out of"):
        predict_folder(weights=weights, source=pictures, out=out, force=True)
    assert not list(outside.iterdir())


def test_a_mask_that_can_not_be_written_is_reported_and_the_run_resumes_after_the_repair(
    weights: Weights, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (out / "masks").mkdir(parents=True)
    (out / "masks/deep").write_text("a file where a folder has to be")
    with pytest.raises(UserError, match=r"out: the mask of deep/00\.png can't be written"):
        predict_folder(weights=weights, source=pictures, out=out, force=True)
    (out / "masks/deep").unlink()
    assert predict_folder(weights=weights, source=pictures, out=out)["images"] == BATCH + 8


def test_a_folder_that_can_not_be_made_is_reported(weights: Weights, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/out: can't be made"):
        predict_folder(weights=weights, source=pictures, out=tmp_path / "file/out")


def test_a_name_too_long_for_a_mask_stops_nothing(weights: Weights, pictures: Path, tmp_path: Path) -> None:
    name = "a" * 251 + ".png"
    write_png(pictures / name, np.zeros((9, 9), np.uint8))
    assert predict_folder(weights=weights, source=pictures, out=tmp_path / "out")["bad_files"] == 1
    assert "too long" in table_of(tmp_path / "out").loc[name, "error"]


def test_names_of_files_may_hold_anything(weights: Weights, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    names = ['a, "b".png', "é 1.png", "new\nline.png"]
    for name in names:
        write_png(folder / name, np.zeros((9, 9), np.uint8))
    write_png(tmp_path / "x.png", np.zeros((9, 9), np.uint8))
    os.rename(tmp_path / "x.png", os.fsencode(folder) + b"/\xff.png")
    predict_folder(weights=weights, source=folder, out=tmp_path / "out")
    with (tmp_path / "out/predictions.csv").open(newline="", encoding="utf-8") as table:
        found: list[dict[str, Any]] = list(csv.DictReader(table))
    assert {row["file"] for row in found} == {*names, "\\udcff.png"}
    assert len(list((tmp_path / "out/masks").iterdir())) == 4
