"""The comparison that `make pipeline-local` ends with; the rest of it runs in the integration tests."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from devtools.local import main, same_figures

FIGURES = {"dsc": 0.8, "iou": 0.7, "recall": 0.6}


def test_figures_are_the_same_within_rounding() -> None:
    same, apart = same_figures(FIGURES | {"iou": 0.7 + 5e-7}, FIGURES)
    assert same and apart == pytest.approx(5e-7)


@pytest.mark.parametrize("name", FIGURES)
def test_a_difference_and_a_nan_are_noticed_wherever_they_stand(name: str) -> None:
    assert same_figures(FIGURES | {name: 0.5}, FIGURES) == (False, pytest.approx(FIGURES[name] - 0.5))
    for found, expected in ((FIGURES | {name: math.nan}, FIGURES), (FIGURES, FIGURES | {name: math.nan})):
        same, apart = same_figures(found, expected)
        assert not same and math.isnan(apart)


def test_a_missing_figure_and_no_figures_are_noticed() -> None:
    for found, expected in ((FIGURES, FIGURES | {"more": 1.0}), (FIGURES | {"more": 1.0}, FIGURES)):
        assert same_figures(found, expected) == (False, 0.0)
    assert not same_figures({}, {})[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--replace", "--data", "{there}/wrong"], "wrong: not found"),
        (["--replace", "--recipe", "{there}/wrong.yaml"], "wrong.yaml"),
        (["--replace", "--data", "{there}/images"], "which is replaced"),
        ([], "--replace"),
    ],
)
def test_a_mistake_removes_nothing(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path / "earlier"
    (there / "images").mkdir(parents=True)
    assert main(["--out", str(there), *(option.format(there=there) for option in options)]) == 2
    assert message in capsys.readouterr().err
    assert (there / "images").is_dir()
