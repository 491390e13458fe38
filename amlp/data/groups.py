"""Groups of cases that belong together, and splits that no group straddles.

Two cases belong together when they are of one patient, when their files are equal, or when their pictures are
near-duplicates, see `amlp.data.likeness`. What follows from that is transitive: a group is a connected component. A
model that trains on one picture of a group and is tested on another scores what it remembers.

Near-duplicates are verified pair by pair, so that pictures that merely resemble each other form no chain. A group that
is large all the same, and not one patient, is an error: it would take the data set into one split.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from amlp.data.likeness import Alike, Pairs, Thumbnails, near_duplicates
from amlp.data.shards import SPLITS
from amlp.errors import UserError
from amlp.params import PreprocessParams

# A group of fewer cases is never too large.
SMALL_GROUP = 10


@dataclass(frozen=True)
class Groups:
    """The groups of a data set.

    `group` (N,) numbers them from 0 in the order of their smallest case id. `near_duplicate_groups` counts groups of
    several pictures that are near-duplicates or equal, patients left aside; `near_duplicate_cases` counts their cases.
    `alike` are the pairs of near-duplicates that were found, as positions in the manifest.
    """

    group: NDArray[np.int64]
    near_duplicate_groups: int
    near_duplicate_cases: int
    alike: Alike


def group_cases(manifest: pd.DataFrame, thumbnails: Thumbnails, *, params: PreprocessParams) -> Groups:
    """Join near-duplicates, equal files and patients.

    Args:
        manifest: N rows with `case_id`, `patient` (null when unknown) and `sha256`; their order makes no difference.
        thumbnails: (N, 64, 64) uint8 grey pictures, row by row.
        params: whether and how near-duplicates are found, and how large a group may be.

    Raises:
        UserError: a group that is not one patient holds more than `params.max_group_share` of the cases.
    """
    # In the order of case ids, components come out numbered by their smallest one.
    order = np.argsort(manifest["case_id"].to_numpy(dtype=str), kind="stable")
    manifest = manifest.iloc[order]
    if not (order[1:] > order[:-1]).all():
        thumbnails = thumbnails[order]
    found = Alike(np.empty((0, 2), np.int64), np.empty(0, np.float32), params.near_duplicate_likeness)
    if params.near_duplicates:
        found = near_duplicates(
            thumbnails, likeness=params.near_duplicate_likeness, neighbours=params.near_duplicate_neighbours
        )
    equal = np.concatenate([_pairs_of_equal(manifest["sha256"]), found.pairs])
    pictures = _components(len(manifest), equal)
    sizes = np.bincount(pictures)
    joined = _components(len(manifest), np.concatenate([equal, _pairs_of_equal(manifest["patient"])]))
    _check_sizes(joined, manifest, found, params)
    group = np.empty_like(joined)
    group[order] = joined
    alike = Alike(order[found.pairs], found.likeness, found.limit)
    return Groups(group, int((sizes > 1).sum()), int(sizes[sizes > 1].sum()), alike)


def _check_sizes(group: NDArray[np.int64], manifest: pd.DataFrame, found: Alike, params: PreprocessParams) -> None:
    most = max(params.max_group_share * len(manifest), SMALL_GROUP)
    for number in np.flatnonzero(np.bincount(group) > most):
        members = group == number
        patients = manifest["patient"][members]
        if patients.notna().all() and patients.nunique() == 1:
            continue
        inside = members[found.pairs[:, 0]]
        median = f", of median likeness {np.median(found.likeness[inside]):.2f}" if inside.any() else ""
        whose = f"of {patients.nunique()} patients" if patients.notna().any() else "of unknown patients"
        first = manifest["case_id"][members].iloc[0]
        raise UserError(
            f"preprocess: one group holds {members.sum()} of {len(manifest)} cases, {whose}, joined by {inside.sum()} "
            f"pairs of near-duplicates{median}; the first case is {first}. If they are the same pictures, keep one of "
            "each. If they only resemble each other, raise preprocess.near_duplicate_likeness "
            f"({params.near_duplicate_likeness:g}), or set preprocess.near_duplicates: false. If they do belong "
            f"together, raise preprocess.max_group_share ({params.max_group_share:g})."
        )


def _components(cases: int, pairs: Pairs) -> NDArray[np.int64]:
    """Number (cases,) the connected components in the order of their first case."""
    links = coo_matrix((np.ones(len(pairs), dtype=bool), (pairs[:, 0], pairs[:, 1])), shape=(cases, cases))
    labels = connected_components(links, directed=False)[1]
    _, first = np.unique(labels, return_index=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[labels]


def _pairs_of_equal(values: pd.Series) -> Pairs:
    """Pair each case with the first of the same value; unknown values are not the same."""
    known = np.flatnonzero(values.notna().to_numpy())
    codes, _ = pd.factorize(values.iloc[known])
    _, first = np.unique(codes, return_index=True)
    return np.stack([known, known[first[codes]]], axis=1)


def assign_splits(cases: pd.DataFrame, *, test_fraction: float, val_fraction: float, seed: int) -> NDArray[np.str_]:
    """Put each group into one split, stratified by the label that most of its cases have.

    Test and validation splits are drawn from the groups that hold a mask, for only those can be scored; a group
    without any trains. Rare labels are stratified together where there are too few groups to have some in each split.

    Args:
        cases: N rows with `group`, `label` (null when unknown) and `labelled`; the order of rows makes no difference.
        test_fraction: share of the groups with masks, rounded up.
        val_fraction: share of the groups with masks that remain, rounded up.

    Returns:
        (N,) of "train", "val", "test".

    Raises:
        UserError: there are too few groups with masks to have one in each split.
    """
    strata = _strata(cases)
    candidates = np.unique(cases["group"][cases["labelled"].to_numpy(dtype=bool)].to_numpy())
    sizes = (math.ceil(test_fraction * len(candidates) - 1e-9), 0)
    sizes = (sizes[0], math.ceil(val_fraction * (len(candidates) - sizes[0]) - 1e-9))
    if min(*sizes, len(candidates) - sum(sizes)) < 1:
        patients = cases["patient"] if "patient" in cases else pd.Series([None])
        one = (
            "All are of one patient: a test needs others. "
            if patients.notna().all() and patients.nunique() == 1
            else ""
        )
        counts = f"{len(candidates) - sum(sizes)} for training, {sizes[1]} for validation, {sizes[0]} for the test"
        raise UserError(
            f"the {len(cases)} cases make {cases['group'].nunique()} groups, {len(candidates)} of them with masks: "
            f"{counts}; each split needs one. {one}Add cases, change preprocess.test_fraction or "
            "preprocess.val_fraction, or raise preprocess.near_duplicate_likeness if it joins what differs."
        )
    splits = pd.Series("train", index=np.unique(cases["group"].to_numpy()))
    for split, size, draw in (("test", sizes[0], 0), ("val", sizes[1], 1)):
        chosen = _drawn(candidates, strata.loc[candidates].to_numpy(), size, np.random.default_rng([seed, draw]))
        splits[chosen] = split
        candidates = np.setdiff1d(candidates, chosen)
    assert set(splits) == set(SPLITS)
    return splits.loc[cases["group"]].to_numpy(dtype=str)


def _strata(cases: pd.DataFrame) -> pd.Series:
    """Most frequent label of each group, the alphabetically first of equally frequent ones."""
    counted = cases.fillna({"label": ""}).groupby(["group", "label"], as_index=False).size()
    counted = counted.sort_values(["group", "size", "label"], ascending=[True, False, True])
    return counted.drop_duplicates("group").set_index("group")["label"]


def _drawn(
    groups: NDArray[np.int64], strata: NDArray[np.object_], size: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw `size` of the groups, of each stratum its share."""
    from sklearn.model_selection import train_test_split

    counts = pd.Series(strata).value_counts().sort_index().sort_values(kind="stable").to_dict()
    merged = {name: name for name in counts}
    # scikit-learn asks for two groups of each stratum and for one on either side.
    while len(counts) > 1 and (min(counts.values()) < 2 or len(counts) > min(size, len(groups) - size)):
        smallest, next_smallest = sorted(counts, key=lambda name: (counts[name], name))[:2]
        counts[next_smallest] += counts.pop(smallest)
        merged = {name: next_smallest if into == smallest else into for name, into in merged.items()}
    return train_test_split(
        groups,
        test_size=size,
        stratify=[merged[name] for name in strata] if len(counts) > 1 else None,
        random_state=int(rng.integers(2**32)),
    )[1]
