from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from amlp.evaluation import overlays
from amlp.evaluation.overlays import PREDICTED_COLOUR, TRUE_COLOUR, Example, draw_overlays, select_examples


def _cases(scores: dict[str, float], *, lesion: float = 0.1) -> pd.DataFrame:
    return pd.DataFrame(
        {"model": "segmenter", "case_id": list(scores), "lesion_fraction": lesion, "dsc": list(scores.values())}
    )


def _example(name: str, shift: int = 0) -> Example:
    truth = np.zeros((60, 80), dtype=bool)
    truth[20:40, 30:50] = True
    image = np.where(truth, 40, 130).astype(np.uint8)
    return Example(name=name, image=image, truth=truth, predicted={"segmenter": (np.roll(truth, shift, 1), 0.5)})


def test_selects_best_median_and_worst_among_images_with_a_lesion() -> None:
    cases = _cases({"a": 0.1, "b": 0.9, "c": 0.5, "d": 0.6, "e": 0.4, "f": 0.5})
    normal = _cases({"normal": 1.0}, lesion=0.0)
    other = _cases({"a": 1.0}).assign(model="scratch")
    chosen = select_examples(pd.concat([normal, other, cases]), model="segmenter", count=2)
    # c and f score alike: the name decides.
    assert chosen == {"best": ["b", "d"], "median": ["c", "f"], "worst": ["a", "e"]}


def test_selects_all_when_there_are_few() -> None:
    chosen = select_examples(_cases({"a": 0.1, "b": 0.9}), model="segmenter", count=4)
    assert chosen == {"best": ["b", "a"], "median": ["b", "a"], "worst": ["a", "b"]}


@pytest.mark.parametrize("shift", [0, 5])
def test_both_outlines_show_even_where_they_agree(tmp_path: Path, shift: int) -> None:
    path = tmp_path / "best.png"
    draw_overlays(path, [_example("case-1", shift)], models=["segmenter"], title="best")
    pixels = np.asarray(Image.open(path))
    # Below the legend; the first panel stays free of outlines.
    top = overlays.GAP + 4 * overlays.LINE
    middle = overlays.GAP + overlays.PANEL_WIDTH
    for colour in (TRUE_COLOUR, PREDICTED_COLOUR):
        drawn = (pixels[top:] == colour).all(axis=2)
        assert drawn[:, middle:].sum() > 200
        assert not drawn[:, :middle].any()


def test_same_examples_same_bytes(tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        draw_overlays(tmp_path / name, [_example("a"), _example("b", 3)], models=["segmenter"], title="best")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


@pytest.mark.parametrize("shape", [(1, 1), (5, 400), (400, 5), (300, 300, 3)])
def test_draws_any_shape(tmp_path: Path, shape: tuple[int, ...]) -> None:
    mask = np.ones(shape[:2], dtype=np.uint8)
    example = Example(
        name="x" * 300,
        image=np.zeros(shape, dtype=np.uint8),
        truth=mask,
        predicted={"a": (mask, 1.0), "b": (mask, 0.0)},
    )
    path = tmp_path / "x.png"
    draw_overlays(path, [example], models=["a", "b"], title="worst")
    with Image.open(path) as picture:
        assert picture.width == overlays.GAP + 3 * (overlays.PANEL_WIDTH + overlays.GAP)


def test_says_when_there_is_nothing_to_show(tmp_path: Path) -> None:
    draw_overlays(tmp_path / "best.png", [], models=["segmenter"], title="best")
    with Image.open(tmp_path / "best.png") as picture:
        # A line of text, dark on the ground.
        assert len(set(np.asarray(picture.convert("L")).ravel())) > 1
