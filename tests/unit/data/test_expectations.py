from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from amlp.data.expectations import check
from amlp.params import ValidateParams

GOOD = {
    "case_id": "good", "problem": None, "height": 64, "width": 64, "aspect": 1.0, "contrast": 0.2, "grey_levels": 200.0,
    "lesion_fraction": 0.1, "contradicts": None,
}  # fmt: skip


def table(*rows: dict[str, object]) -> pd.DataFrame:
    frame = pd.DataFrame([{**GOOD, "case_id": f"case_{number}", **row} for number, row in enumerate(rows)])
    return frame.astype({"problem": "str", "contradicts": "str"})


def test_limits_come_from_the_parameters_and_hold_inclusively(tmp_path: Path) -> None:
    params = ValidateParams(min_side=50, max_aspect=2.0, min_contrast=0.1, max_lesion_fraction=0.5)
    on_the_limit = {"height": 50, "width": 50, "aspect": 2.0, "contrast": 0.1, "lesion_fraction": 0.5, "grey_levels": 8}
    over = {"height": 49, "width": 49, "aspect": 2.01, "contrast": 0.099, "lesion_fraction": 0.51, "grey_levels": 7}
    found = check(table(on_the_limit, over), params=params, docs=tmp_path / "docs")
    assert set(found.bad["case_id"]) == {"case_1"}
    assert dict(zip(found.bad["column"], found.bad["value"], strict=True)) == over
    assert found.odd.empty


def test_unknown_facts_fail_nothing_but_the_problem_behind_them(tmp_path: Path) -> None:
    unknown = {"problem": "x: truncated", "contrast": np.nan, "grey_levels": np.nan, "lesion_fraction": np.nan}
    found = check(table({}, unknown), params=ValidateParams(), docs=tmp_path / "docs")
    assert found.bad[["case_id", "column", "value", "reason"]].to_numpy().tolist() == [
        ["case_1", "problem", "x: truncated", "x: truncated"]
    ]


def test_both_cases_of_one_id_are_bad(tmp_path: Path) -> None:
    found = check(table({"case_id": "same"}, {"case_id": "same"}, {}), params=ValidateParams(), docs=tmp_path / "docs")
    assert found.bad["case_id"].tolist() == ["same", "same"]


def test_the_pages_run_and_load_nothing_whatever_a_value_says(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    check(
        table({}, {"problem": "<script>alert(1)</script>{}<img src=x onerror=alert(2)>"}),
        params=ValidateParams(),
        docs=docs,
    )
    page = (docs / "index.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in page.split("</head>")[0]
    assert "<script" not in page and "<img" not in page
