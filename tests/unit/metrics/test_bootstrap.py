from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amlp.metrics.bootstrap import Interval, crossed_bootstrap, group_bootstrap

CASES = st.lists(st.tuples(st.integers(0, 5), st.floats(0, 1, width=32) | st.just(math.nan)), min_size=1, max_size=30)


def _intervals(
    values: list[float] | np.ndarray, groups: list[int] | np.ndarray, *, samples: int = 200, seed: int = 0
) -> Interval:
    table = pd.DataFrame({"dsc": np.asarray(values, dtype=float)})
    return group_bootstrap(table, np.asarray(groups), samples=samples, confidence=0.95, seed=seed)["dsc"]


def _figures(interval: Interval) -> list[float]:
    return [interval.mean, interval.low, interval.high]


@settings(max_examples=100, deadline=None)
@given(cases=CASES)
def test_mean_and_order(cases: list[tuple[int, float]]) -> None:
    groups, values = zip(*cases, strict=True)
    interval = _intervals(list(values), list(groups))
    defined = [value for value in values if not math.isnan(value)]
    assert interval.cases == len(defined)
    if not defined:
        assert math.isnan(interval.mean)
    else:
        assert interval.mean == pytest.approx(np.mean(defined))
    if len({group for group, value in cases if not math.isnan(value)}) < 2:
        assert math.isnan(interval.low) and math.isnan(interval.high)
    else:
        assert min(defined) - 1e-9 <= interval.low <= interval.high <= max(defined) + 1e-9


@settings(max_examples=50, deadline=None)
@given(cases=CASES, scale=st.floats(-3, 3).filter(lambda x: abs(x) > 0.01), shift=st.floats(-2, 2))
def test_follows_scale_and_shift(cases: list[tuple[int, float]], scale: float, shift: float) -> None:
    groups, values = map(np.array, zip(*cases, strict=True))
    before = _intervals(values, groups)
    after = _intervals(values * scale + shift, groups)
    low, high = sorted([before.low * scale + shift, before.high * scale + shift])
    np.testing.assert_allclose(_figures(after), [before.mean * scale + shift, low, high], atol=1e-9)


@settings(max_examples=50, deadline=None)
@given(cases=CASES, copies=st.integers(2, 4))
def test_more_images_of_the_same_groups_teach_nothing(cases: list[tuple[int, float]], copies: int) -> None:
    groups, values = zip(*cases, strict=True)
    once = _intervals(list(values), list(groups))
    often = _intervals(list(values) * copies, list(groups) * copies)
    np.testing.assert_allclose(_figures(once), _figures(often), atol=1e-9)


def test_equals_all_resamples() -> None:
    """Three groups have 27 equally likely resamples; their means, spelled out, are what sampling approaches."""
    groups = np.array([7, 7, 3, 5, 5, 5])
    values = np.array([0.9, 0.7, 0.1, math.nan, 0.5, 0.6])
    exact = []
    for drawn in itertools.product([3, 5, 7], repeat=3):
        cases = np.concatenate([values[groups == group] for group in drawn])
        exact.append(np.nanmean(cases))
    found = group_bootstrap(pd.DataFrame({"dsc": values}), groups, samples=20_000, confidence=0.8, seed=1)["dsc"]
    low, high = np.quantile(exact, [0.1, 0.9])
    assert found.mean == pytest.approx(np.nanmean(values))
    assert (found.low, found.high) == pytest.approx((low, high))


def test_paired_difference_uses_the_same_resamples() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 3)
    difficulty = rng.normal(0.0, 0.2, 30)[groups]
    scratch = 0.5 + difficulty
    segmenter = scratch + 0.05
    table = pd.DataFrame({"scratch": scratch, "segmenter": segmenter, "difference": segmenter - scratch})
    found = group_bootstrap(table, groups, samples=500, confidence=0.95, seed=0)
    # Each score alone is uncertain, the gain is the same in every case.
    assert found["scratch"].high - found["scratch"].low > 0.1
    assert _figures(found["difference"]) == pytest.approx([0.05] * 3)
    assert found["segmenter"].low - found["scratch"].low == pytest.approx(0.05)


def test_covers_the_truth_where_images_of_a_group_resemble_each_other() -> None:
    rng = np.random.default_rng(3)
    by_group = by_image = 0
    groups = np.repeat(np.arange(40), 5)
    for seed in range(200):
        values = rng.normal(0.0, 1.0, 40)[groups] + rng.normal(0.0, 0.2, len(groups))
        interval = _intervals(values, groups, samples=300, seed=seed)
        by_group += interval.low <= 0.0 <= interval.high
        interval = _intervals(values, np.arange(len(groups)), samples=300, seed=seed)
        by_image += interval.low <= 0.0 <= interval.high
    assert by_group >= 0.89 * 200
    assert by_image <= 0.75 * 200


def test_same_seed_same_interval_and_names_of_groups_do_not_matter() -> None:
    values = np.random.default_rng(0).random(40)
    groups = np.arange(40) // 4
    once = _intervals(values, groups)
    assert once == _intervals(values, groups)
    assert once == _intervals(values, 100 - groups)
    assert once != _intervals(values, groups, seed=1)


def test_many_groups_stay_within_memory() -> None:
    values = np.random.default_rng(0).random(30_000)
    interval = _intervals(values, np.arange(30_000), samples=200)
    assert interval.low < values.mean() < interval.high
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(len(values)), rel=0.2)


def _crossed(values: np.ndarray, groups: np.ndarray, *, samples: int = 200, seeds: bool = True) -> Interval:
    return crossed_bootstrap(values, groups, samples=samples, confidence=0.8, seed=1, resample_seeds=seeds)


@given(cases=CASES, seeds=st.booleans())
def test_one_training_gives_the_group_bootstrap(cases: list[tuple[int, float]], seeds: bool) -> None:
    groups, values = map(np.array, zip(*cases, strict=True))
    table = pd.DataFrame({"dsc": values})
    expected = group_bootstrap(table, groups, samples=200, confidence=0.8, seed=1)["dsc"]
    found = _crossed(values[None], groups, seeds=seeds)
    np.testing.assert_allclose(_figures(found), _figures(expected), atol=1e-12)
    assert found.cases == expected.cases


@given(cases=CASES, trainings=st.integers(2, 4))
def test_trainings_that_agree_add_no_uncertainty(cases: list[tuple[int, float]], trainings: int) -> None:
    groups, values = map(np.array, zip(*cases, strict=True))
    once, often = _crossed(values[None], groups), _crossed(np.tile(values, (trainings, 1)), groups)
    np.testing.assert_allclose(_figures(once), _figures(often), atol=1e-9)


def test_without_seeds_it_is_the_bootstrap_of_each_cases_mean_over_seeds() -> None:
    values, groups = np.random.default_rng(0).random((3, 20)), np.arange(20) // 3
    table = pd.DataFrame({"dsc": values.mean(axis=0)})
    expected = group_bootstrap(table, groups, samples=200, confidence=0.8, seed=1)["dsc"]
    np.testing.assert_allclose(_figures(_crossed(values, groups, seeds=False)), _figures(expected), atol=1e-12)


def test_crossed_equals_all_resamples() -> None:
    """Two groups and two trainings have 4 x 4 equally likely resamples."""
    groups = np.array([3, 3, 5])
    values = np.array([[0.1, 0.2, 0.9], [0.3, math.nan, 0.5]])
    exact = []
    for drawn in itertools.product([3, 5], repeat=2):
        columns = np.concatenate([np.flatnonzero(groups == group) for group in drawn])
        exact += [np.nanmean(values[list(rows)][:, columns]) for rows in itertools.product([0, 1], repeat=2)]
    found = _crossed(values, groups, samples=40_000)
    assert found.mean == pytest.approx(np.nanmean(values))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(exact, [0.1, 0.9])))
    assert found.cases == 3


def test_trainings_that_disagree_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    cases, groups = rng.normal(0.5, 0.05, 60), np.arange(60) // 2
    values = cases + np.array([[-0.1], [0.0], [0.1]])
    one, both = _crossed(values, groups, seeds=False), _crossed(values, groups)
    assert both.mean == pytest.approx(one.mean)
    assert both.high - both.low > 3 * (one.high - one.low)


def test_no_defined_value_has_no_mean_and_no_interval() -> None:
    found = _crossed(np.full((3, 4), math.nan), np.arange(4))
    assert math.isnan(found.mean) and math.isnan(found.low) and found.cases == 0
