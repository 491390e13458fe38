from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amlp.evaluation.threshold import Threshold, best_threshold


def _dsc(predicted: np.ndarray, truth: np.ndarray) -> float:
    size = predicted.sum() + truth.sum()
    return 1.0 if size == 0 else 2.0 * (predicted & truth).sum() / size


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), bright=st.booleans())
def test_equals_trying_every_threshold(seed: int, bright: bool) -> None:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, size=(5, 1, 6, 7), dtype=np.uint8)
    lesion = images[:, 0] > 180 if bright else images[:, 0] < 70
    masks = (lesion ^ (rng.random(lesion.shape) < 0.1)).astype(np.uint8)
    masks[0] = 0  # an image without lesion
    tried = {
        (polarity, value): np.mean(
            [
                _dsc(grey <= value if polarity == "dark" else grey >= value, mask != 0)
                for grey, mask in zip(images[:, 0], masks, strict=True)
            ]
        )
        for polarity in ("dark", "bright")
        for value in range(-1, 256)
    }
    found = best_threshold([(images[:2], masks[:2]), (images[2:], masks[2:])])
    assert found.train_dsc == pytest.approx(max(tried.values()))
    assert tried[found.polarity, found.value] == pytest.approx(found.train_dsc)


def test_finds_the_rule_and_applies_it_at_native_size() -> None:
    images = np.full((3, 1, 8, 8), 120, dtype=np.uint8)
    images[:, 0, 2:5, 2:5] = 40
    masks = (images[:, 0] == 40).astype(np.uint8)
    threshold = best_threshold([(images, masks)])
    assert (threshold.polarity, threshold.train_dsc) == ("dark", 1.0)
    assert 40 <= threshold.value < 120

    native = np.full((31, 17), 200, dtype=np.uint8)
    native[3:9, 4:7] = 30
    mask = threshold.mask(native)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, native == 30)


def test_nothing_is_lesion_where_that_scores_best() -> None:
    images = np.random.default_rng(0).integers(0, 256, size=(4, 1, 9, 9), dtype=np.uint8)
    masks = np.zeros((4, 9, 9), dtype=np.uint8)
    masks[0, 2:4, 2:4] = 1
    threshold = best_threshold([(images, masks)])
    assert threshold.train_dsc == 0.75
    assert not threshold.mask(np.zeros((5, 5), dtype=np.uint8)).any()
    assert not threshold.mask(np.full((5, 5), 255, dtype=np.uint8)).any()
    assert "no pixel is lesion" in str(threshold)


def test_colour_is_judged_on_the_same_grey_scale() -> None:
    blue, yellow = (0, 0, 255), (255, 255, 0)  # luma 29 and 226
    native = np.full((8, 8, 3), yellow, dtype=np.uint8)
    native[2:4, 2:6] = blue
    truth = (native == blue).all(axis=2)
    images = np.moveaxis(native, 2, 0)[None]
    threshold = best_threshold([(images, truth[None].astype(np.uint8))])
    assert threshold.polarity == "dark"
    assert 29 <= threshold.value < 226
    np.testing.assert_array_equal(threshold.mask(native), truth)


def test_16_bit_image_is_stretched_to_the_model_scale() -> None:
    native = np.full((6, 6), 40_000, dtype=np.uint16)
    native[1:3, 1:3] = 1_000
    mask = Threshold(value=10, polarity="dark", train_dsc=0.5).mask(native)
    np.testing.assert_array_equal(mask, native == 1_000)
