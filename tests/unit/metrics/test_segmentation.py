from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from amlp.metrics.segmentation import score_case

MASKS = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12).flatmap(
    lambda shape: st.tuples(hnp.arrays(np.bool_, shape), hnp.arrays(np.bool_, shape))
)


def _outline(mask: np.ndarray) -> list[tuple[int, int]]:
    """Pixels of a mask with a 4-neighbour that is outside of it."""
    height, width = mask.shape

    def inside(y: int, x: int) -> bool:
        return 0 <= y < height and 0 <= x < width and bool(mask[y, x])

    return [
        (y, x)
        for y in range(height)
        for x in range(width)
        if mask[y, x] and not all(inside(y + dy, x + dx) for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)))
    ]


def _hd95(first: np.ndarray, second: np.ndarray) -> float:
    """The larger of the two directed 95th percentiles of outline distances, by definition."""
    outlines = _outline(first), _outline(second)

    def directed(source: list[tuple[int, int]], target: list[tuple[int, int]]) -> float:
        distances = sorted(min(math.dist(point, other) for other in target) for point in source)
        position = 0.95 * (len(distances) - 1)
        low = math.floor(position)
        high = min(low + 1, len(distances) - 1)
        return distances[low] + (position - low) * (distances[high] - distances[low])

    return max(directed(*outlines), directed(*outlines[::-1]))


def test_hand_made_example() -> None:
    truth = np.zeros((8, 10), dtype=bool)
    truth[2:6, 1:5] = True  # 16 pixels
    predicted = np.zeros_like(truth)
    predicted[2:6, 3:8] = True  # 20 pixels, 8 of them lesion
    score = score_case(truth=truth, predicted=predicted)
    assert score.dsc == pytest.approx(2 * 8 / (16 + 20))
    assert score.ppv == pytest.approx(8 / 20)
    assert score.sensitivity == pytest.approx(8 / 16)
    # The columns furthest from the other rectangle lie 3 pixels (predicted) and 2 pixels (true) away from it.
    assert score.hd95 == pytest.approx(3.0)


@settings(max_examples=150, deadline=None)
@given(masks=MASKS)
def test_equals_definition(masks: tuple[np.ndarray, np.ndarray]) -> None:
    truth, predicted = masks
    pixels = list(zip(truth.ravel().tolist(), predicted.ravel().tolist(), strict=True))
    hits = sum(t and p for t, p in pixels)
    misses = sum(t and not p for t, p in pixels)
    false_alarms = sum(p and not t for t, p in pixels)
    score = score_case(truth=truth, predicted=predicted)
    if truth.any():
        assert score.dsc == pytest.approx(2 * hits / (2 * hits + misses + false_alarms))
        assert score.sensitivity == pytest.approx(hits / (hits + misses))
    else:
        assert score.dsc == float(not predicted.any())
        assert math.isnan(score.sensitivity)
    if predicted.any():
        assert score.ppv == pytest.approx(hits / (hits + false_alarms))
    else:
        assert math.isnan(score.ppv)
    if truth.any() and predicted.any():
        assert score.hd95 == pytest.approx(_hd95(truth, predicted), abs=1e-5)
    else:
        assert math.isnan(score.hd95)


def test_hd95_is_the_larger_direction() -> None:
    truth = np.zeros((20, 40), dtype=bool)
    truth[5:15, 2:12] = True
    predicted = truth.copy()
    predicted[8:12, 30:34] = True  # A false second lesion: only the way from prediction to truth sees it.
    there = score_case(truth=truth, predicted=predicted).hd95
    assert there > 15
    assert there == score_case(truth=predicted, predicted=truth).hd95


@pytest.mark.parametrize(
    ("truth_pixel", "predicted_pixel", "dsc", "ppv", "sensitivity"),
    [
        (0, 0, 1.0, math.nan, math.nan),
        (0, 1, 0.0, 0.0, math.nan),
        (1, 0, 0.0, math.nan, 0.0),
    ],
)
def test_empty_mask_rule(truth_pixel: int, predicted_pixel: int, dsc: float, ppv: float, sensitivity: float) -> None:
    truth, predicted = np.zeros((2, 6, 6), dtype=np.uint8)
    truth[3, 3], predicted[2, 2] = truth_pixel, predicted_pixel
    score = score_case(truth=truth, predicted=predicted)
    np.testing.assert_equal([score.dsc, score.ppv, score.sensitivity, score.hd95], [dsc, ppv, sensitivity, math.nan])


def test_no_warning_reaches_the_user(recwarn: pytest.WarningsRecorder) -> None:
    score_case(truth=np.ones((4, 4)), predicted=np.eye(4))
    assert not recwarn.list


def test_other_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one"):
        score_case(truth=np.zeros((4, 5)), predicted=np.zeros((5, 4)))
