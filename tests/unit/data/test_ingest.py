from __future__ import annotations

import csv
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from amlp.data.ingest import ingest
from amlp.data.pictures import read_image, read_mask
from amlp.data.privacy import Pseudonyms
from amlp.errors import ListedError, UserError
from amlp.files import read_json, sha256
from amlp.params import IngestParams, PhantomParams

PHANTOM = IngestParams(phantom=PhantomParams(patients=5, images_per_patient=2, height=40, width=48))


PSEUDONYMS = Pseudonyms(b"a key that only these tests know...")


def picture(seed: int, mode: str = "L", size: tuple[int, int] = (30, 40)) -> Image.Image:
    grey = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    if mode == "I;16":
        return Image.fromarray(grey.astype(np.uint16) * 257)
    if mode == "colour":
        return Image.fromarray(np.stack([grey, grey // 2, 255 - grey], axis=-1))
    return Image.fromarray(grey).convert(mode)


def lesion(rows: slice, mode: str = "1", size: tuple[int, int] = (30, 40)) -> Image.Image:
    mask = np.zeros(size, np.uint8)
    mask[rows, 5:15] = 255
    return Image.fromarray(mask).convert(mode)


NOTHING = slice(0, 0)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A sound BUSI folder: mixed modes, two masks for an image, an empty mask, an image without."""
    root = tmp_path / "source"
    for label in ("benign", "malignant", "normal", "unlabelled"):
        (root / label).mkdir(parents=True)
    picture(1).save(root / "benign/benign (1).png")
    lesion(slice(3, 6)).save(root / "benign/benign (1)_mask.png")
    lesion(slice(10, 14), "RGBA").save(root / "benign/benign (1)_mask_1.png")
    picture(2, "RGB").save(root / "benign/benign (2).png")
    lesion(slice(0, 9), "L").save(root / "benign/benign (2)_mask.png")
    picture(3, "colour").save(root / "malignant/malignant (1).png")
    lesion(slice(2, 20), "P").save(root / "malignant/malignant (1)_mask.png")
    picture(4, "I;16").save(root / "normal/normal (1).png")
    lesion(NOTHING, "RGB").save(root / "normal/normal (1)_mask.png")
    picture(5).save(root / "unlabelled/scan.PNG")
    return root


def busi_params(root: Path, **values: object) -> IngestParams:
    return IngestParams.model_validate({"source": "busi", "path": str(root), "case_ids": "name", **values})


def run(root: Path, out: Path, **values: object) -> pd.DataFrame:
    ingest(params=busi_params(root, **values), seed=0, out=out, pseudonyms=PSEUDONYMS)
    return pd.read_parquet(out / "manifest.parquet").set_index("case_id")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_phantom_manifest_describes_the_files_it_names(tmp_path: Path) -> None:
    result = ingest(params=PHANTOM, seed=0, out=tmp_path / "out", pseudonyms=PSEUDONYMS)
    manifest = pd.read_parquet(tmp_path / "out/manifest.parquet")
    assert list(manifest.columns) == [
        *("case_id", "image", "mask", "label", "patient", "sha256"),
        *("format", "height", "width", "channels", "bits", "lesion_fraction", "blurred_mask"),
    ]
    assert (result.cases, result.labels, result.problems) == (10, {"lesion": 8, "normal": 2}, 0)
    assert manifest.case_id.is_unique
    assert manifest.case_id.is_monotonic_increasing
    assert manifest.patient.nunique() == 5
    for row in manifest.itertuples():
        image, mask = read_image(tmp_path / "out" / row.image), read_mask(tmp_path / "out" / row.mask)
        assert image.shape == mask.shape == (row.height, row.width) == (40, 48)
        assert (row.channels, row.bits) == (1, 8)
        assert row.lesion_fraction == mask.mean()
        assert (row.label == "normal") == (row.lesion_fraction == 0)
    assert read_json(tmp_path / "out/summary.json")["cases"] == 10


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        ingest(params=PHANTOM, seed=seed, out=tmp_path / name, pseudonyms=PSEUDONYMS)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a") != contents(tmp_path / "c")


def test_busi_layout(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    manifest = run(source, out)
    assert list(manifest.index) == ["benign_1", "benign_2", "malignant_1", "normal_1", "unlabelled_scan"]
    assert manifest.label.tolist() == ["benign", "benign", "malignant", "normal", "unlabelled"]
    assert manifest.channels.tolist() == [1, 1, 3, 1, 1]
    assert manifest.bits.tolist() == [8, 8, 8, 16, 8]
    assert manifest.patient.isna().all()
    # Two masks, 3 and 4 rows of 10 pixels: their union.
    assert manifest.lesion_fraction.fillna(-1).round(6).tolist() == [
        *(round(rows * 10 / 1200, 6) for rows in (7, 9, 18, 0)),
        -1,
    ]
    assert pd.isna(manifest["mask"]["unlabelled_scan"])
    assert manifest.sha256["benign_1"] == sha256(source / "benign/benign (1).png")
    # No file for each image: one archive here, whose entries are where the manifest says.
    assert sorted(path.name for path in out.iterdir()) == [
        "manifest.parquet", "pixels-00000.zip", "problems.csv", "summary.json",
    ]  # fmt: skip
    stored = read_mask(out / manifest["mask"]["benign_1"])
    assert stored.sum() == 70
    kinds = [(read_image(out / image).dtype.name, read_image(out / image).ndim) for image in manifest.image]
    assert kinds == [("uint8", 2), ("uint8", 2), ("uint8", 3), ("uint16", 2), ("uint8", 2)]
    np.testing.assert_array_equal(
        read_image(out / manifest.image["benign_2"]), read_image(source / "benign/benign (2).png")
    )
    assert str(out) in capsys.readouterr().out


def test_patients_are_written_as_pseudonyms_only(source: Path, tmp_path: Path) -> None:
    rows = ["file,patient", "benign/benign (1).png,Jane Doe", "malignant/malignant (1).png,Jane Doe"]
    (source / "patients.csv").write_text("\n".join([*rows, "normal/normal (1).png,"]), encoding="utf-8-sig")
    manifest = run(source, tmp_path / "out")
    assert manifest.patient["benign_1"] == manifest.patient["malignant_1"] == PSEUDONYMS("Jane Doe")
    assert manifest.patient[["benign_2", "normal_1", "unlabelled_scan"]].isna().all()
    assert not any(b"Jane" in data for data in contents(tmp_path / "out").values())


def test_ids_by_content_leave_no_source_name_behind(source: Path, tmp_path: Path) -> None:
    for path in (source / "benign").iterdir():
        path.rename(path.with_name(path.name.replace("benign (", "Jane Doe (")))
    (source / "benign/Jane Doe (3).png").write_bytes(b"no picture")
    (source / "benign/Jane Doe (3)_mask.png").write_bytes(b"")
    (source / "benign/Jane Doe (4).png").write_bytes(b"")
    manifest = run(source, tmp_path / "out", case_ids="content", tolerance=0.5)
    assert sha256(source / "benign/Jane Doe (1).png")[:16] in manifest.index
    assert len(manifest) == 5
    written = contents(tmp_path / "out")
    assert not any(b"Jane" in data or "Jane" in name for name, data in written.items())
    assert written["problems.csv"].count(b"file-") == 3


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def link_out(path: Path) -> None:
    outside = path.parents[2] / "outside.png"
    path.rename(outside)
    path.symlink_to(outside)


# What is done to the folder, the file that the error names, and part of the reason it gives.
SPOILERS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "truncated": (
        lambda root: cut(root / "benign/benign (1).png"),
        "benign/benign (1).png",
        "can't be read",
    ),
    "truncated mask": (
        lambda root: cut(root / "malignant/malignant (1)_mask.png"),
        "malignant/malignant (1)_mask.png",
        "can't be read",
    ),
    "garbage": (
        lambda root: (root / "benign/benign (2).png").write_bytes(bytes(99)),
        "benign/benign (2).png",
        "no picture that can be read",
    ),
    "empty file": (
        lambda root: (root / "normal/normal (1).png").write_bytes(b""),
        "normal/normal (1).png",
        "empty",
    ),
    "mask of another size": (
        lambda root: lesion(slice(1, 4), size=(30, 41)).save(root / "benign/benign (1)_mask_1.png"),
        "benign/benign (1)_mask_1.png",
        "41 x 30, its image 40 x 30",
    ),
    "image without mask": (
        lambda root: (root / "benign/benign (3).png").symlink_to(root / "benign/benign (2).png"),
        "benign/benign (3).png",
        "no mask",
    ),
    "mask without image": (
        lambda root: (root / "benign/benign (4)_mask.png").symlink_to(root / "benign/benign (2)_mask.png"),
        "benign/benign (4)_mask.png",
        "no image",
    ),
    "duplicate case id": (
        lambda root: picture(9).save(root / "unlabelled/scan_.png"),
        "unlabelled/scan_.png",
        "its case id is that of another case",
    ),
    "link": (
        lambda root: link_out(root / "benign/benign (2)_mask.png"),
        "benign/benign (2)_mask.png",
        "link",
    ),
    "link in a circle": (
        lambda root: (root / "benign/me.png").symlink_to(root / "benign/me.png"),
        "benign/me.png",
        "",
    ),
    "unknown image in patients.csv": (
        lambda root: (root / "patients.csv").write_text("file,patient\n../../etc/passwd,a\n"),
        "patients.csv",
        "line 2: no such image",
    ),
    "two patients for an image": (
        lambda root: (root / "patients.csv").write_text("file,patient\n" + "\n".join(f"{IMAGE},{p}" for p in "ab")),
        "patients.csv",
        "another patient",
    ),
    "patients.csv without columns": (
        lambda root: (root / "patients.csv").write_text("name;id\n"),
        "patients.csv",
        "expected the columns file and patient",
    ),
    "patients.csv in Latin-1": (
        lambda root: (root / "patients.csv").write_bytes(b"file,patient\n\xe9,a\n"),
        "patients.csv",
        "UTF-8",
    ),
}
IMAGE = "normal/normal (1).png"


@pytest.mark.parametrize("kind", SPOILERS)
def test_a_spoilt_file_is_named_and_nothing_is_written(source: Path, tmp_path: Path, kind: str) -> None:
    spoil, file, reason = SPOILERS[kind]
    spoil(source)
    out = tmp_path / "new" / "out"
    with pytest.raises(ListedError) as caught:
        run(source, out)
    assert any(problem.startswith(f"{file}: ") and reason in problem for problem in caught.value.problems)
    assert list(out.parent.iterdir()) == []


def test_what_stood_there_survives_a_failure(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "out")
    before = contents(tmp_path / "out")
    cut(source / "benign/benign (1).png")
    with pytest.raises(ListedError, match=r"benign \(1\)\.png: "):
        run(source, tmp_path / "out")
    assert contents(tmp_path / "out") == before


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kinds=st.sets(
        st.sampled_from(
            [
                "truncated",
                "truncated mask",
                "empty file",
                "mask of another size",
                "image without mask",
                "mask without image",
            ]
        ),
        min_size=1,
    )
)
def test_one_error_names_all_spoilt_files_and_only_those(source: Path, kinds: set[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "source"
        shutil.copytree(source, root)
        if "truncated" in kinds:
            # The mask's size has nothing to be compared with then.
            kinds = kinds - {"mask of another size"}
        for kind in sorted(kinds):
            SPOILERS[kind][0](root)
        with pytest.raises(ListedError) as caught:
            run(root, Path(folder) / "out")
        assert sorted(problem.split(": ")[0] for problem in caught.value.problems) == sorted(
            SPOILERS[kind][1] for kind in kinds
        )


def test_tolerated_problems_are_left_out_and_listed(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut(source / "benign/benign (1).png")
    # 1 of 10 files.
    with pytest.raises(ListedError, match=r"(?s)1 of 10 files.*ingest\.tolerance"):
        run(source, tmp_path / "out", tolerance=0.09)
    manifest = run(source, tmp_path / "out", tolerance=0.1)
    assert "benign_1" not in manifest.index
    assert len(manifest) == 4
    with (tmp_path / "out/problems.csv").open(newline="") as file:
        assert [row["file"] for row in csv.DictReader(file)] == ["benign/benign (1).png"]
    assert "benign/benign (1).png" in capsys.readouterr().err
    assert read_json(tmp_path / "out/summary.json")["problems"] == 1


def test_a_data_set_without_a_usable_case_is_an_error_whatever_the_tolerance(tmp_path: Path) -> None:
    (tmp_path / "source/benign").mkdir(parents=True)
    (tmp_path / "source/benign/a.png").write_bytes(b"")
    with pytest.raises(ListedError, match=r"(?s)1 of 1 files can't be used.*benign/a\.png: "):
        run(tmp_path / "source", tmp_path / "out", tolerance=1.0)


def test_other_files_are_ignored_with_a_notice(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (source / "README.txt").write_text("read me")
    (source / "benign/notes.doc").write_text("note")
    (source / "benign/.DS_Store").write_text("")
    assert len(run(source, tmp_path / "out")) == 5
    output = capsys.readouterr().out
    assert "ignored 3" in output
    assert "benign/notes.doc" in output


@pytest.mark.parametrize("name", ["benign/scan.jpg", "benign/scan.dcm", "unlabelled/study/scan.png", "loose.png"])
def test_a_picture_that_would_be_overlooked_is_an_error(source: Path, tmp_path: Path, name: str) -> None:
    (source / name).parent.mkdir(exist_ok=True)
    (source / name).write_bytes(b"anything")
    with pytest.raises(ListedError, match=rf"(?m)^  - {name}: "):
        run(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_leads_out_is_refused(source: Path, tmp_path: Path) -> None:
    (source / "normal").rename(tmp_path / "elsewhere")
    (source / "normal").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ListedError, match="normal: a link to a folder"):
        run(source, tmp_path / "out")


def test_links_inside_the_folder_are_files(source: Path, tmp_path: Path) -> None:
    (source / "unlabelled/again.png").symlink_to(source / "unlabelled/scan.PNG")
    manifest = run(source, tmp_path / "out")
    assert manifest.sha256["unlabelled_again"] == manifest.sha256["unlabelled_scan"]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "not found"),
        (lambda path: path.write_text("a file"), "is no folder"),
        (lambda path: path.mkdir(), "holds no image"),
        (lambda path: (path / "benign").mkdir(parents=True), "holds no image"),
    ],
    ids=["missing", "file", "empty", "empty class"],
)
def test_a_source_without_images_says_what_is_expected(
    tmp_path: Path, make: Callable[[Path], object], reason: str
) -> None:
    make(tmp_path / "source")
    with pytest.raises(UserError, match=rf"source: {reason}.*_mask.*\.png"):
        run(tmp_path / "source", tmp_path / "out")
    assert not (tmp_path / "out").exists()
