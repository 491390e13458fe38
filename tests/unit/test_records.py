"""What one stage writes another reads with the same fields, or says which are wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from amlp.errors import UserError
from amlp.evaluation.summary import Baseline, Summary
from amlp.files import write_json
from amlp.registry.registration import Registration
from tests.support.records import registration_of, summary_of


def scores(mean: float | None) -> dict[str, Any]:
    return {"dsc": {"mean": mean, "low": None, "high": None, "cases": 9, "undefined": 0}}


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    baseline = {"threshold": 40, "polarity": "dark", "train_dsc": 0.3}
    test = {"cases": 9, "lesion_cases": 7, "groups": 5, "hash": "f" * 64, "split": "test"}
    written = summary_of(
        test,
        models={"segmenter": scores(0.8), "threshold": scores(None) | baseline},
        paired={"segmenter-threshold": scores(0.1)},
    )
    write_json(tmp_path / "summary.json", written)
    summary = Summary.read(tmp_path / "summary.json")
    assert summary.threshold == Baseline(40, "dark", 0.3) and set(summary.models["threshold"]) == {"dsc"}
    assert summary.models["segmenter"]["dsc"].mean == 0.8
    assert summary.as_dict() == written

    write_json(tmp_path / "registration.json", registration_of(source={"git_commit": "f" * 40}))
    registration = Registration.read(tmp_path / "registration.json")
    write_json(tmp_path / "again.json", registration.as_dict())
    assert Registration.read(tmp_path / "again.json") == registration
    assert "source" not in Registration(**{**vars(registration), "source": {}}).as_dict()


@pytest.mark.parametrize("field", ["tracking_uri", "segmenter", "lineage"])
def test_a_missing_field_is_named_with_its_file(tmp_path: Path, field: str) -> None:
    file = tmp_path / "registration.json"
    write_json(file, {key: value for key, value in registration_of().items() if key != field})
    with pytest.raises(UserError, match=rf"registration\.json: .*{field}: Field required.* Run the stage"):
        Registration.read(file)


@pytest.mark.parametrize("content", ["", "[]", "5", '{"models": 5}', '{"models": {"segmenter": 5}}', "\udcff"])
def test_a_file_of_something_else_is_a_clear_error(tmp_path: Path, content: str) -> None:
    for kind, name in ((Summary, "summary.json"), (Registration, "registration.json")):
        (tmp_path / name).write_text(content, encoding="utf-8", errors="surrogateescape")
        with pytest.raises(UserError, match=name):
            kind.read(tmp_path / name)
        with pytest.raises(UserError, match=r"absent\.json: not found"):
            kind.read(tmp_path / "absent.json")


def test_a_baseline_that_lacks_a_field_is_no_baseline_that_is_absent(tmp_path: Path) -> None:
    test = {"cases": 9, "lesion_cases": 7, "groups": 5, "hash": "f" * 64}
    baseline = {"threshold": 40, "polarity": "dark"}
    write_json(tmp_path / "summary.json", summary_of(test, models={"threshold": scores(0.1) | baseline}))
    with pytest.raises(UserError, match=r"summary\.json: .*threshold\.train_dsc: Field required"):
        Summary.read(tmp_path / "summary.json")
