"""Intervals by group bootstrap: images of one patient resemble each other, so groups are resampled, not images.

Trainings of several seeds are resampled too, where there are some: another seed would have given another model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

# Resamples are drawn in chunks of at most this many group numbers, 32 MB, however many groups there are.
_CHUNK = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A mean over `cases` cases and its bootstrap interval.

    `mean` is NaN when no case counts; `low` and `high` are NaN when fewer than two groups do, for one group says
    nothing about the next.
    """

    mean: float
    low: float
    high: float
    cases: int


def group_bootstrap(
    values: pd.DataFrame, groups: NDArray[Any], *, samples: int, confidence: float, seed: int
) -> dict[Any, Interval]:
    """Mean of each column over cases, with a percentile interval over resamples of whole groups.

    All columns are evaluated on the same resamples. So a column of differences between two models, case by case,
    gives the paired interval of their difference.

    Args:
        values: one row for each case; NaN where a case doesn't count for a column.
        groups: (cases,) the group of each row.
        samples: number of resamples; each draws as many groups as there are, with replacement.
        confidence: mass of the interval, in 0..1.
        seed: of the resamples.

    Returns:
        An interval for each column.
    """
    assert len(values) == len(groups) > 0
    group, names = pd.factorize(groups)
    table = values.to_numpy(dtype=np.float64)
    defined = ~np.isnan(table)
    # The mean over the cases of a resample needs only each group's sum and count: (groups, columns).
    sums = np.zeros((len(names), table.shape[1]))
    counts = np.zeros_like(sums)
    np.add.at(sums, group, np.where(defined, table, 0.0))
    np.add.at(counts, group, defined)

    means = np.concatenate(
        [_mean(weights @ sums, weights @ counts) for weights in resamples(len(names), samples=samples, seed=seed)]
    )
    tail = (1.0 - confidence) / 2
    intervals = {}
    for column, name in enumerate(values.columns):
        low = high = math.nan
        if np.count_nonzero(counts[:, column]) >= 2:
            # A resample without any case that counts has no mean.
            drawn = means[:, column]
            low, high = np.quantile(drawn[~np.isnan(drawn)], [tail, 1.0 - tail])
        total = counts[:, column].sum()
        mean = float(_mean(sums[:, column].sum(), total))
        intervals[name] = Interval(mean=mean, low=float(low), high=float(high), cases=int(total))
    return intervals


def crossed_bootstrap(
    values: NDArray[np.float64],
    groups: NDArray[Any],
    *,
    samples: int,
    confidence: float,
    seed: int,
    resample_seeds: bool = True,
) -> Interval:
    """Mean over trainings and cases, with a percentile interval over resamples of whole groups and of trainings.

    Every training is scored on every case, so both are drawn with replacement independently of each other: a resample
    takes the drawn trainings' scores on the drawn groups (Owen, "The pigeonhole bootstrap", Annals of Applied
    Statistics 2007). With one training, or without `resample_seeds`, this is `group_bootstrap` of the same `seed`.

    Args:
        values: (trainings, cases), one row for each seed; NaN where a case doesn't count.
        groups: (cases,) the group of each column.
        samples: number of resamples.
        confidence: mass of the interval, in 0..1.
        seed: of the resamples.
        resample_seeds: False leaves the randomness of training out.

    Returns:
        The interval; `cases` counts the cases that count in any training.
    """
    assert values.ndim == 2 and values.shape[1] == len(groups) > 0
    group, names = pd.factorize(groups)
    defined = ~np.isnan(values)
    trainings = len(values)
    # (groups, trainings)
    sums, counts = np.zeros((len(names), trainings)), np.zeros((len(names), trainings))
    np.add.at(sums, group, np.where(defined, values, 0.0).T)
    np.add.at(counts, group, defined.T)

    drawn = np.ones((samples, trainings))
    if resample_seeds:
        # Another stream than the groups', and the same for every comparison of as many trainings.
        drawn = np.concatenate(list(resamples(trainings, samples=samples, seed=[seed, 1])))
    parts, start = [], 0
    for weights in resamples(len(names), samples=samples, seed=seed):
        chosen = drawn[start : start + len(weights)]
        start += len(weights)
        parts.append(_mean(((weights @ sums) * chosen).sum(axis=1), ((weights @ counts) * chosen).sum(axis=1)))
    means = np.concatenate(parts)
    low = high = math.nan
    if np.count_nonzero(counts.any(axis=1)) >= 2:
        tail = (1.0 - confidence) / 2
        low, high = np.quantile(means[~np.isnan(means)], [tail, 1.0 - tail])
    mean = float(_mean(sums.sum(), counts.sum()))
    return Interval(mean=mean, low=float(low), high=float(high), cases=int(defined.any(axis=0).sum()))


def resamples(groups: int, *, samples: int, seed: int | list[int]) -> Iterator[NDArray[np.float64]]:
    """Yield (some samples, groups) float64: how often each group was drawn in each resample."""
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // groups)
    for start in range(0, samples, step):
        rows = min(step, samples - start)
        drawn = rng.integers(groups, size=(rows, groups)) + groups * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * groups).reshape(rows, groups).astype(np.float64)


def _mean(total: NDArray[np.float64], count: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
