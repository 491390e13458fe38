"""Groups of cases that belong together, and splits that no group straddles.

Two cases belong together when they are of one patient, or when their pictures are near-duplicates: equal bytes, or the
same scene in another crop, brightness or compression, with or without the marks that an operator set, or mirrored. What
follows from that is transitive: a group is a connected component. A model that trains on one picture of a group and
is tested on another scores what it remembers.

Two things show near-duplicates, between a picture and the other one or its mirror image: the bits of 64 by which their
perceptual hashes differ, and how their thumbnails correlate once the data set's mean thumbnail is taken off, which is
what all pictures of a device share. Either alone suffices when it is sure, and both together when both are nearly so.
The correlation finds what the hash misses, such as a scene with and without burned-in marks, the hash other crops.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from amlp.data.shards import SPLITS
from amlp.errors import UserError
from amlp.progress import progress

# Looked at pair by pair on BUSI: all 215 pairs of at most 8 bits show one scene or one lesion; so do all 20 pairs above
# that with a correlation of 0.9 or more, and about half of the next 20, down to 0.85. From 0.8 on, eight of the nine
# pairs of 10 and 12 bits do, and three of the eight pairs of 14 bits.
SAME = 0.9
LIKELY = 0.8
LIKELY_BITS = 6
# Cases compared at a time, all with all: 1024 x 1024 pairs take some 30 MB.
BLOCK = 1024
# Pairs kept before they are condensed: a data set with one picture 10,000 times over has 50 million pairs.
MOST_PAIRS = 1_000_000

Pairs = NDArray[np.int64]  # (P, 2) positions of cases


@dataclass(frozen=True)
class Groups:
    """The groups of a data set.

    `group` (N,) numbers them from 0 in the order of their smallest case id. `near_duplicate_groups` counts groups of
    several pictures that are near-duplicates, patients left aside; `near_duplicate_cases` counts their cases.
    """

    group: NDArray[np.int64]
    near_duplicate_groups: int
    near_duplicate_cases: int


def group_cases(manifest: pd.DataFrame, *, distance: int) -> Groups:
    """Join near-duplicates and patients.

    Time grows with the square of the number of cases (100,000: minutes), memory only with their number.

    Args:
        manifest: N rows with `case_id`, `patient` (null when unknown), `sha256`, `phash` and `phash_mirror` (16 hex
            digits) and `thumbnail` (bytes of a square grey thumbnail); the order of rows makes no difference.
        distance: bits by which the perceptual hashes of near-duplicates differ at most.
    """
    # In the order of case ids, components come out numbered by their smallest one.
    order = np.argsort(manifest["case_id"].to_numpy(dtype=str), kind="stable")
    manifest = manifest.iloc[order]
    alike = np.concatenate([_pairs_of_equal(manifest["sha256"]), _near_duplicates(manifest, distance)])
    pictures = _components(len(manifest), alike)
    sizes = np.bincount(pictures)
    joined = _components(len(manifest), np.concatenate([alike, _pairs_of_equal(manifest["patient"])]))
    group = np.empty_like(joined)
    group[order] = joined
    return Groups(group, int((sizes > 1).sum()), int(sizes[sizes > 1].sum()))


def _components(cases: int, pairs: Pairs) -> NDArray[np.int64]:
    """Number (cases,) the connected components in the order of their first case."""
    links = coo_matrix((np.ones(len(pairs), dtype=bool), (pairs[:, 0], pairs[:, 1])), shape=(cases, cases))
    labels = connected_components(links, directed=False)[1]
    _, first = np.unique(labels, return_index=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[labels]


def _condensed(cases: int, pairs: Pairs) -> Pairs:
    """Replace pairs by fewer, each case with the first of its component, that make the same components."""
    labels = _components(cases, pairs)
    _, first = np.unique(labels, return_index=True)
    links = np.stack([np.arange(cases), first[labels]], axis=1)
    return links[links[:, 0] != links[:, 1]]


def _pairs_of_equal(values: pd.Series) -> Pairs:
    """Pair each case with the first of the same value; unknown values are not the same."""
    known = np.flatnonzero(values.notna().to_numpy())
    codes, _ = pd.factorize(values.iloc[known])
    _, first = np.unique(codes, return_index=True)
    return np.stack([known, known[first[codes]]], axis=1)


def _unit_rows(thumbnails: NDArray[np.float32]) -> NDArray[np.float32]:
    """Flatten (N, s, s) to (N, s * s) with mean 0 and length 1, so that a dot product is a correlation."""
    rows = thumbnails.reshape(len(thumbnails), -1)
    rows = rows - rows.mean(axis=1, keepdims=True)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


def _near_duplicates(manifest: pd.DataFrame, distance: int) -> Pairs:
    cases = len(manifest)
    plain, mirror = (
        np.array([int(text, 16) for text in manifest[name]], np.uint64) for name in ("phash", "phash_mirror")
    )
    pixels = np.stack([np.frombuffer(data, np.uint8) for data in manifest["thumbnail"]])
    side = math.isqrt(pixels.shape[1])
    unlike = (pixels - pixels.mean(axis=0).astype(np.float32)).reshape(cases, side, side)
    scene, mirrored = _unit_rows(unlike), _unit_rows(unlike[:, :, ::-1])

    starts = range(0, cases, BLOCK)
    found: list[Pairs] = [np.empty((0, 2), np.int64)]
    with progress(len(starts) * (len(starts) + 1) // 2, "compare", "blocks", disable=len(starts) == 1) as bar:
        for start in starts:
            here = slice(start, start + BLOCK)
            for other in range(start, cases, BLOCK):
                there = slice(other, other + BLOCK)
                bits = np.bitwise_count(plain[here, None] ^ plain[None, there])
                # Both ways: a hash of the mirror image is only nearly the mirror image of a hash.
                for one, two in ((plain, mirror), (mirror, plain)):
                    np.minimum(bits, np.bitwise_count(one[here, None] ^ two[None, there]), out=bits)
                alike = np.maximum(scene[here] @ scene[there].T, scene[here] @ mirrored[there].T)
                same = (bits <= distance) | (alike >= SAME) | ((bits <= distance + LIKELY_BITS) & (alike >= LIKELY))
                if start == other:
                    same = np.triu(same, k=1)
                found.append(np.argwhere(same) + np.array([start, other]))
                if sum(map(len, found)) > max(MOST_PAIRS, 2 * cases):
                    found = [_condensed(cases, np.concatenate(found))]
                bar.update()
    return np.concatenate(found)


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
        counts = f"{len(candidates) - sum(sizes)} for training, {sizes[1]} for validation, {sizes[0]} for the test"
        raise UserError(
            f"the {len(cases)} cases make {cases['group'].nunique()} groups, {len(candidates)} of them with masks: "
            f"{counts}; each split needs one. Add cases, change preprocess.test_fraction or preprocess.val_fraction, "
            "or lower preprocess.near_duplicate_distance if it joins what differs."
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
