from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from amlp.data.images import to_model_input
from amlp.data.validate import Validated, validate, with_facts
from amlp.errors import ListedError, UserError
from amlp.files import read_json
from amlp.params import ValidateParams
from tests.support.ingest_folder import lesion, scene, write_ingest


def good(count: int) -> dict[str, dict[str, Any]]:
    return {f"good_{number:02d}": {"image": scene(number), "mask": lesion()} for number in range(count)}


def spoil(ingest: Path) -> None:
    """Make files and manifest disagree, as they do after somebody touched them."""
    (ingest / "images/truncated.png").write_bytes((ingest / "images/truncated.png").read_bytes()[:300])
    (ingest / "masks/no_mask_file.png").unlink()
    Image.fromarray(lesion(20, 20)).save(ingest / "masks/other_size.png")


BAD = {
    "blank": ({"image": np.full((40, 48), 90, np.uint8), "mask": lesion()}, "contrast", 0.0, "nearly blank"),
    "low_contrast": ({"image": scene(50) // 64 + 90, "mask": lesion()}, "contrast", None, "nearly blank"),
    "binary": ({"image": lesion().astype(np.uint8) * 255, "mask": lesion()}, "grey_levels", 2, "2 distinct"),
    "small": ({"image": scene(51, 31, 40), "mask": lesion(31, 40)}, "height", 31, "only 31 pixels high"),
    "narrow": ({"image": scene(52, 130, 32), "mask": lesion(130, 32)}, "aspect", 130 / 32, "4.06 times the other"),
    "all_lesion": ({"image": scene(53), "mask": np.ones((40, 48), bool)}, "lesion_fraction", 1.0, "covers 100.0%"),
    "truncated": ({"image": scene(54), "mask": lesion()}, "problem", None, "images/truncated.png: "),
    "no_mask_file": ({"image": scene(55), "mask": lesion()}, "problem", None, "masks/no_mask_file.png: "),
    "other_size": ({"image": scene(56), "mask": lesion()}, "problem", None, "mask (20, 20), expected both (40, 48)"),
}


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ingest folder with 20 good cases, one of each bad kind, and the same picture under two labels."""
    odd = {"odd_one": {"image": scene(3), "mask": lesion(), "label": "normal"}}
    cases = {**good(20), **{name: case for name, (case, *_) in BAD.items()}, **odd}
    ingest = write_ingest(tmp_path_factory.mktemp("spoilt") / "ingest", cases)
    spoil(ingest)
    return ingest


@pytest.fixture(scope="module")
def tolerated(spoilt: Path) -> Path:
    out = spoilt.parent / "tolerated"
    result = validate(params=ValidateParams(tolerance=0.5), ingest=spoilt, out=out)
    assert result == Validated(cases=21, bad_cases=len(BAD), warned_cases=2)
    return out


@pytest.mark.parametrize("name", BAD)
def test_each_bad_case_is_listed_with_value_expectation_and_reason(tolerated: Path, name: str) -> None:
    _, column, value, reason = BAD[name]
    listed = pd.read_csv(tolerated / "bad_cases.csv")
    (row,) = listed[(listed["case_id"] == name) & (listed["column"] == column)].itertuples()
    assert row.expectation.startswith("expect_column_values_to_be_")
    assert reason in row.reason
    if value is not None:
        assert float(row.value) == pytest.approx(value)


def test_only_usable_cases_go_on_with_their_facts(tolerated: Path) -> None:
    listed = pd.read_csv(tolerated / "bad_cases.csv")
    assert set(listed["case_id"]) == set(BAD)
    usable = pd.read_parquet(tolerated / "manifest.parquet").set_index("case_id")
    assert sorted(usable.index) == [*sorted(good(20)), "odd_one"]
    case, image = usable.loc["good_05"], scene(5)
    assert case["mean"] == pytest.approx(image.mean() / 255)
    assert case["contrast"] == pytest.approx(image.std() / 255)
    assert case["grey_levels"] == len(np.unique(image))
    assert case["aspect"] == pytest.approx(48 / 40)
    assert case["n_lesions"] == 1
    thumbnails = np.load(tolerated / "thumbnails.npy")
    assert thumbnails.shape == (len(usable), 64, 64)
    expected = to_model_input(image, channels=1, height=64, width=64)[0]
    np.testing.assert_array_equal(thumbnails[list(usable.index).index("good_05")], expected)
    assert usable["problem"].isna().all()


def test_one_picture_under_two_labels_is_worth_a_look_but_stays(tolerated: Path) -> None:
    warnings = pd.read_csv(tolerated / "warnings.csv").set_index("case_id")
    assert warnings["value"].to_dict() == {"good_03": "odd_one", "odd_one": "good_03"}


def test_the_result_counts_failures_by_expectation(tolerated: Path) -> None:
    result = read_json(tolerated / "expectations.json")
    assert result["success"] is False
    failed = {entry["column"]: entry["unexpected"] for entry in result["expectations"] if not entry["success"]}
    assert failed == {
        "problem": 3, "contrast": 2, "grey_levels": 3, "height": 1, "aspect": 1, "lesion_fraction": 1, "contradicts": 2,
    }  # fmt: skip
    metrics = read_json(tolerated / "metrics.json")
    assert metrics["cases"] == 21 and metrics["bad_cases"] == 9 and metrics["bad_share"] == pytest.approx(9 / 30)


def test_data_docs_name_the_cases_and_load_nothing(tolerated: Path) -> None:
    pages = sorted((tolerated / "data_docs").iterdir())
    assert [page.name for page in pages] == ["expectations.html", "index.html"]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert "://" not in text and "<script" not in text and "src=" not in text
        assert 'href="index.html"' in text
    index = pages[1].read_text(encoding="utf-8")
    assert 'href="expectations.html"' in index
    for name in BAD:
        assert name in index


def test_over_tolerance_the_run_stops_and_only_the_report_is_left(
    spoilt: Path, tmp_path: Path, tolerated: Path
) -> None:
    out = tmp_path / "data" / "validate"
    with pytest.raises(ListedError) as raised:
        validate(params=ValidateParams(tolerance=0.29), ingest=spoilt, out=out)
    message = str(raised.value)
    assert "9 of 30 cases (30.0%) are bad" in message and "validate-failed" in message
    for name in BAD:
        assert f"  - {name}: " in message
    assert [path.name for path in out.parent.iterdir()] == ["validate-failed"]
    report = sorted(
        path.relative_to(tolerated)
        for path in tolerated.rglob("*")
        if path.name not in ("manifest.parquet", "thumbnails.npy")
    )
    failed = out.parent / "validate-failed"
    assert sorted(path.relative_to(failed) for path in failed.rglob("*")) == report
    # Equal facts give equal bytes, times and random ids left aside.
    for path in report:
        if (tolerated / path).is_file():
            assert (failed / path).read_bytes() == (tolerated / path).read_bytes(), path

    validate(params=ValidateParams(tolerance=0.3), ingest=spoilt, out=out)
    assert [path.name for path in out.parent.iterdir()] == ["validate"]


def test_many_bad_cases_are_all_listed_but_not_all_printed(tmp_path: Path) -> None:
    # More than the 200 records that Great Expectations keeps in parts of its result.
    blank = {"image": np.full((33, 33), 9, np.uint8)}
    ingest = write_ingest(tmp_path / "ingest", {**good(3), **{f"blank_{n:03d}": blank for n in range(230)}})
    with pytest.raises(ListedError) as raised:
        validate(params=ValidateParams(), ingest=ingest, out=tmp_path / "out")
    assert len(raised.value.problems) == 21 and raised.value.problems[-1] == "... and 210 more"
    assert pd.read_csv(tmp_path / "out-failed/bad_cases.csv")["case_id"].nunique() == 230


def test_a_clean_set_passes_with_no_tolerance_and_unlabelled_colour_and_deep_pictures(tmp_path: Path) -> None:
    more = {
        "unlabelled": {"image": scene(60)},
        "colour": {"image": np.stack([scene(61), scene(62), scene(63)], axis=2), "mask": lesion()},
        "deep": {"image": scene(64).astype(np.uint16) * 5 + 1000, "mask": np.zeros((40, 48), bool)},
    }
    ingest = write_ingest(tmp_path / "ingest", {**good(2), **more})
    result = validate(params=ValidateParams(tolerance=0.0), ingest=ingest, out=tmp_path / "out")
    assert result == Validated(cases=5, bad_cases=0, warned_cases=0)
    usable = pd.read_parquet(tmp_path / "out/manifest.parquet").set_index("case_id")
    assert pd.isna(usable["n_lesions"]["unlabelled"]) and usable["n_lesions"]["deep"] == 0
    # 16 bits are judged as the model sees them, stretched.
    assert usable["contrast"]["deep"] == pytest.approx(scene(64).std() / 220, rel=0.1)
    assert read_json(tmp_path / "out/expectations.json")["success"] is True


def test_lesions_that_touch_at_a_corner_are_one(tmp_path: Path) -> None:
    mask = np.zeros((40, 48), bool)
    mask[2:5, 2:5] = mask[5:8, 5:8] = mask[20:25, 30:33] = True
    ingest = write_ingest(tmp_path / "ingest", {"case": {"image": scene(1), "mask": mask}})
    facts = with_facts(pd.read_parquet(ingest / "manifest.parquet"), ingest, tmp_path / "thumbnails.npy")
    assert facts["n_lesions"].tolist() == [2]


def test_nothing_to_validate_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="amlp ingest"):
        validate(params=ValidateParams(), ingest=tmp_path, out=tmp_path / "out")
    blank = {"image": np.full((40, 48), 9, np.uint8)}
    ingest = write_ingest(tmp_path / "ingest", {"blank": blank})
    with pytest.raises(ListedError, match="none is left"):
        validate(params=ValidateParams(tolerance=1.0), ingest=ingest, out=tmp_path / "out")
    write_ingest(tmp_path / "empty", {})
    with pytest.raises(UserError, match="holds no case"):
        validate(params=ValidateParams(), ingest=tmp_path / "empty", out=tmp_path / "out")
