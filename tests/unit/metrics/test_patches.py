from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from amlp.metrics.lesion_patches import LESION_SHARE, lesion_patches
from amlp.metrics.patches import PatchTally, as_metrics, central, describe


def tally(scores: np.ndarray, lesion: np.ndarray, groups: np.ndarray | None = None, chunk: int = 1000) -> PatchTally:
    groups = np.arange(len(scores)) if groups is None else groups
    found = PatchTally()
    for start in range(0, len(scores), chunk):
        part = slice(start, start + chunk)
        found.add(scores[part], scores[part] > 0.5, lesion[part], groups[part])
    return found


def random_case(seed: int, n: int = 12, patches: int = 20, skill: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    lesion = rng.random((n, patches)) < 0.2
    # Of a few values, so that many tie.
    scores = np.clip(np.round(rng.random((n, patches)) * (1 - skill) + skill * lesion, 1), 0, 1).astype(np.float32)
    return scores, lesion


def test_a_lesion_patch_is_covered_by_three_tenths() -> None:
    masks = np.zeros((1, 20, 40), dtype=np.uint8)
    masks[0, :3, :10], masks[0, 10:13, 20:30] = 1, 1
    masks[0, 12, 29] = 0  # one pixel short
    found = lesion_patches(masks, (2, 4)).reshape(2, 4)
    assert LESION_SHARE == 0.3
    assert found.tolist() == [[True, False, False, False], [False, False, False, False]]


@given(seed=st.integers(0, 10**6), chunk=st.integers(1, 12))
def test_figures_are_those_of_the_formulas_however_the_images_come(seed: int, chunk: int) -> None:
    scores, lesion = random_case(seed)
    found = tally(scores, lesion, chunk=chunk).figures()
    assert found and found == tally(scores, lesion).figures()
    selected = scores > 0.5
    assert found.images == 12 and found.selected == pytest.approx(selected.mean())
    assert found.auc == pytest.approx(roc_auc_score(lesion.ravel(), scores.ravel()))
    assert found.recall.value == pytest.approx(selected[lesion].mean())
    assert found.enrichment.value == pytest.approx(lesion[selected].mean() / lesion.mean())
    mixed = lesion.any(axis=1) & ~lesion.all(axis=1)
    within = [roc_auc_score(*pair) for pair in zip(lesion[mixed], scores[mixed], strict=True)]
    assert found.auc_within.value == pytest.approx(np.mean(within))
    for figure in (found.recall, found.enrichment, found.auc_within):
        assert figure.low <= figure.value <= figure.high


def test_intervals_are_over_groups() -> None:
    scores, lesion = random_case(0, n=8)
    repeated = np.repeat(scores, 10, axis=0), np.repeat(lesion, 10, axis=0)
    one, alone, grouped = (
        tally(*case).figures() for case in ((scores, lesion), repeated, (*repeated, np.repeat(np.arange(8), 10)))
    )
    assert one and alone and grouped
    assert (grouped.enrichment.low, grouped.recall.high) == pytest.approx((one.enrichment.low, one.recall.high))
    assert alone.enrichment.high - alone.enrichment.low < 0.6 * (grouped.enrichment.high - grouped.enrichment.low)


def test_what_is_undefined_is_left_out() -> None:
    assert PatchTally().figures() is None
    scores, lesion = np.zeros((3, 4), np.float32), np.eye(3, 4, dtype=bool)
    nothing = tally(scores, lesion).figures()
    assert nothing and as_metrics(nothing) == {"images": 3, "auc": 0.5, "recall": 0.0}
    text, warning = describe(as_metrics(nothing))
    assert "select no patch" in text and warning and "scores.polarity" in warning
    tiny = tally(np.full((3, 4), 0.9, np.float32), np.zeros((3, 4), bool)).figures()
    assert tiny and as_metrics(tiny) == {"images": 3}
    assert (
        describe(as_metrics(tiny)) == (describe({"images": 3})[0], None)
        and "can't be measured" in describe({"images": 3})[0]
    )
    full = tally(np.full((3, 4), 0.9, np.float32), np.ones((3, 4), bool)).figures()
    assert full and "AUC" not in describe(as_metrics(full))[0]
    one = tally(*random_case(0), groups=np.zeros(12, int)).figures()
    assert one and "enrichment_low" not in as_metrics(one)
    assert describe(as_metrics(one))[1] is None, "one group can't tell"


@pytest.mark.parametrize(("low", "warned"), [(0.8, True), (1.0, True), (1.01, False)])
def test_a_warning_names_what_to_change(low: float, warned: bool) -> None:
    metrics = {"images": 9, "auc": 0.6, "recall": 0.4, "enrichment": 1.2, "enrichment_low": low, "enrichment_high": 1.5}
    text, warning = describe(metrics)
    assert "40% of the lesion patches" in text and f"{low:.2f} to 1.50" in text
    assert (warning is not None) == warned
    for name in ("scores.descriptor", "scores.polarity", "pretrain.mps.enabled"):
        assert warning is None or name in warning


@pytest.mark.parametrize(("centre", "warned"), [(1.1, False), (1.2, True), (2.5, True)])
def test_scores_that_do_no_better_than_the_centre_are_reported(centre: float, warned: bool) -> None:
    """Operators centre what they look for, so above chance alone says little."""
    metrics = {"images": 9, "recall": 0.4, "enrichment": 1.2, "enrichment_low": 1.05, "enrichment_high": 1.5}
    warning = describe(metrics | {"centre_enrichment": centre})[1]
    assert (warning is not None) == warned
    assert warning is None or (f"{centre:.2f}" in warning and "scores.polarity" in warning)


def test_the_centre_gets_as_many_patches_as_the_scores_took() -> None:
    selected = np.array([[True, False, False, True], [False, False, False, False], [True, True, True, False]])
    picked = central(selected, np.array([0.1, 0.9, 0.5, 0.3]))
    assert picked.tolist() == [[False, True, True, False], [False] * 4, [False, True, True, True]]
