from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from amlp.data.groups import Groups, assign_splits, group_cases
from amlp.data.images import to_model_input
from amlp.data.likeness import SIDE
from amlp.errors import UserError
from amlp.params import PreprocessParams
from tests.support.ingest_folder import scene

PARAMS = PreprocessParams(max_group_share=0.99)


def manifest_of(pictures: dict[str, np.ndarray], **columns: list[Any]) -> pd.DataFrame:
    """The columns that grouping reads; every picture is a file of its own unless `sha256` says otherwise."""
    frame = pd.DataFrame({"case_id": list(pictures), "patient": None, "sha256": list(pictures)})
    return frame.assign(**columns)


def thumbnails_of(pictures: dict[str, np.ndarray]) -> np.ndarray:
    return np.stack([to_model_input(picture, channels=1, height=SIDE, width=SIDE)[0] for picture in pictures.values()])


def grouped(pictures: dict[str, np.ndarray], params: PreprocessParams = PARAMS, **columns: list[Any]) -> Groups:
    return group_cases(manifest_of(pictures, **columns), thumbnails_of(pictures), params=params)


SCENES = np.stack([scene(seed, SIDE, SIDE) for seed in range(6)])


@st.composite
def manifests(draw: st.DrawFn) -> tuple[pd.DataFrame, np.ndarray]:
    """Cases with few different patients, files and pictures, so that all kinds of joins happen."""
    size = draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def some(values: list[Any]) -> list[Any]:
        return draw(st.lists(st.sampled_from(values), min_size=size, max_size=size))

    frame = pd.DataFrame(
        {
            "case_id": [f"case_{number:02d}" for number in rng.permutation(size)],
            "patient": some(["p", "q", "r", None, None, None]),
            "sha256": some([str(number) for number in range(20)]),
        }
    )
    noise = rng.normal(0, 2, (size, SIDE, SIDE))
    return frame, (SCENES[some(list(range(6)))] + noise).clip(0, 255).astype(np.uint8)


def partition(frame: pd.DataFrame, thumbnails: np.ndarray) -> set[frozenset[str]]:
    groups = group_cases(frame, thumbnails, params=PARAMS).group
    return {frozenset(part) for _, part in frame["case_id"].groupby(groups)}


@given(manifests(), st.randoms(use_true_random=False))
def test_groups_do_not_depend_on_the_order_of_rows(manifest: tuple[pd.DataFrame, np.ndarray], random: Any) -> None:
    frame, thumbnails = manifest
    order = list(range(len(frame)))
    random.shuffle(order)
    straight = group_cases(frame, thumbnails, params=PARAMS)
    shuffled = group_cases(frame.iloc[order].reset_index(drop=True), thumbnails[order], params=PARAMS)
    np.testing.assert_array_equal(straight.group[order], shuffled.group)
    assert straight.near_duplicate_cases == shuffled.near_duplicate_cases
    # Numbered without gaps, in the order of the smallest case id.
    firsts = frame["case_id"].groupby(straight.group).min()
    assert list(firsts.index) == list(range(len(firsts))) and firsts.is_monotonic_increasing


@given(manifests())
def test_cases_share_a_group_exactly_when_a_chain_of_joins_links_them(
    manifest: tuple[pd.DataFrame, np.ndarray],
) -> None:
    frame, thumbnails = manifest
    found = group_cases(frame, thumbnails, params=PARAMS)
    alike = {tuple(sorted(pair)) for pair in found.alike.pairs.tolist()}
    linked = {frozenset([case]) for case in frame["case_id"]}
    for i in range(len(frame)):
        for j in range(i):
            one, two = frame.iloc[i], frame.iloc[j]
            same_patient = one["patient"] is not None and one["patient"] == two["patient"]
            if same_patient or one["sha256"] == two["sha256"] or (j, i) in alike:
                parts = [next(part for part in linked if case in part) for case in (one["case_id"], two["case_id"])]
                linked = (linked - set(parts)) | {parts[0] | parts[1]}
    assert partition(frame, thumbnails) == linked


@given(manifests(), st.integers(0, 8), st.integers(0, 8))
def test_a_common_patient_or_file_joins_two_groups_and_no_others(
    manifest: tuple[pd.DataFrame, np.ndarray], one: int, two: int
) -> None:
    frame, thumbnails = manifest
    one, two = one % len(frame), two % len(frame)
    before = partition(frame, thumbnails)
    for column in ("patient", "sha256"):
        joined = frame.copy()
        joined.loc[[one, two], column] = "new"
        after = partition(joined, thumbnails)
        assert len({part for part in after if part & set(frame["case_id"][[one, two]])}) == 1
        if frame.loc[[one, two], column].isna().all():
            touched = {part for part in before if part & set(frame["case_id"][[one, two]])}
            assert after == (before - touched) | {frozenset().union(*touched)}


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "resized": lambda picture: np.asarray(Image.fromarray(picture).resize((60, 40))),
    "mirrored": lambda picture: picture[:, ::-1].copy(),
    "mirrored and darker": lambda picture: (picture[:, ::-1] * 0.7).astype(np.uint8),
    "gamma": lambda picture: np.rint(255 * (picture / 255.0) ** 1.5).astype(np.uint8),
    "noisy": lambda picture: (
        (picture + np.random.default_rng(0).normal(0, 10, picture.shape)).clip(0, 255).astype("u1")
    ),
    "cropped": lambda picture: picture[2:-1, 1:-3],
    "marked": lambda picture: np.where(np.eye(*picture.shape, k=8, dtype=bool), 255, picture).astype(np.uint8),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_a_near_duplicate(change: str) -> None:
    pictures = {f"case_{seed:02d}": scene(seed, 100, 120) for seed in range(20)}
    pictures["copy"] = CHANGES[change](pictures["case_07"])
    groups = grouped(pictures)
    assert groups.group[-1] == groups.group[7]
    assert len(set(groups.group)) == 20
    assert (groups.near_duplicate_groups, groups.near_duplicate_cases) == (1, 2)
    assert groups.alike.pairs.tolist() == [[7, 20]] and groups.alike.likeness[0] > 0.8
    apart = grouped(pictures, PreprocessParams(near_duplicates=False))
    assert len(set(apart.group)) == 21 and len(apart.alike.pairs) == 0


def test_what_all_pictures_share_makes_no_near_duplicates() -> None:
    """Pictures of one device: the same frame and depth gain, which is most of what one sees."""
    gain = np.linspace(1, 0.1, 100)[:, None] * np.where(abs(np.linspace(-1, 1, 120)) < 0.9, 1.0, 0.0)
    pictures = {
        f"case_{seed:02d}": (gain * (170 + 0.25 * scene(seed, 100, 120))).astype(np.uint8) for seed in range(20)
    }
    flat = np.stack([picture.ravel() for picture in pictures.values()])
    assert np.corrcoef(flat).min() > 0.9
    assert len(set(grouped(pictures).group)) == 20


def test_pictures_that_show_nothing_are_not_near_duplicates() -> None:
    rng = np.random.default_rng(0)
    pictures = {f"case_{n:02d}": rng.integers(120, 123, (80, 90)).astype(np.uint8) for n in range(20)}
    assert len(set(grouped(pictures).group)) == 20


def test_patients_are_joined_through_near_duplicates_but_counted_apart() -> None:
    pictures = {f"case_{seed}": scene(seed) for seed in range(6)}
    pictures["case_9"] = CHANGES["mirrored and darker"](pictures["case_3"])
    groups = grouped(pictures, patient=["a", "a", "b", "b", None, None, "a"])
    assert groups.group.tolist() == [0, 0, 0, 0, 1, 2, 0]
    assert (groups.near_duplicate_groups, groups.near_duplicate_cases) == (1, 2)


def test_a_picture_many_times_over_is_one_group() -> None:
    pictures = {f"case_{number:02d}": scene(number if number % 2 else 0) for number in range(30)}
    groups = grouped(pictures)
    assert len(set(groups.group)) == 16
    assert (groups.near_duplicate_groups, groups.near_duplicate_cases) == (1, 15)


def test_a_large_group_is_refused_unless_it_is_one_patient() -> None:
    pictures = {f"case_{number:02d}": scene(0 if number < 12 else number) for number in range(30)}
    params = PreprocessParams(max_group_share=0.2)
    with pytest.raises(UserError, match=r"one group holds 12 of 30 cases.*near_duplicate_likeness.*max_group_share"):
        grouped(pictures, params)
    groups = grouped(pictures, params, patient=["p"] * 12 + [str(number) for number in range(18)])
    assert len(set(groups.group)) == 19


@st.composite
def grouped_cases(draw: st.DrawFn) -> pd.DataFrame:
    size = draw(st.integers(8, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = draw(st.sampled_from([["a"], ["a", "b"], ["a", "a", "a", "a", "b", "c", None]]))
    return pd.DataFrame(
        {
            "group": rng.integers(0, draw(st.integers(6, 40)), size=size),
            "label": rng.choice(np.array(labels, dtype=object), size=size),
            "labelled": rng.random(size) < draw(st.sampled_from([0.7, 1.0])),
        }
    )


@given(grouped_cases(), st.integers(0, 3), st.sampled_from([0.1, 0.2, 0.4]), st.sampled_from([0.125, 0.3]))
def test_splits_are_disjoint_by_group_and_of_the_asked_size(
    cases: pd.DataFrame, seed: int, test_fraction: float, val_fraction: float
) -> None:
    with_masks = cases["group"][cases["labelled"]].nunique()
    settings = {"test_fraction": test_fraction, "val_fraction": val_fraction, "seed": seed}
    if with_masks < 3:
        with pytest.raises(UserError, match="each split needs one"):
            assign_splits(cases, **settings)  # type: ignore[arg-type]
        return
    splits = assign_splits(cases, **settings)  # type: ignore[arg-type]
    assert len(splits) == len(cases) and set(splits) == {"train", "val", "test"}
    by_group = cases.assign(split=splits).groupby("group").agg({"split": ["nunique", "first"], "labelled": "any"})
    assert (by_group["split"]["nunique"] == 1).all()
    assert (by_group["split"]["first"][~by_group["labelled"]["any"]] == "train").all()
    counts = by_group["split"]["first"].value_counts()
    assert 0 <= counts["test"] - test_fraction * with_masks < 1
    assert 0 <= counts["val"] - val_fraction * (with_masks - counts["test"]) < 1

    order = np.random.default_rng(seed).permutation(len(cases))
    np.testing.assert_array_equal(splits[order], assign_splits(cases.iloc[order], **settings))  # type: ignore[arg-type]


def test_splits_keep_the_shares_of_the_labels_and_change_with_the_seed() -> None:
    labels = np.repeat(["benign", "malignant", "normal"], [300, 150, 50])
    cases = pd.DataFrame({"group": np.arange(500), "label": labels, "labelled": True})
    splits = [assign_splits(cases, test_fraction=0.2, val_fraction=0.125, seed=seed) for seed in (0, 1)]
    for split in splits:
        assert np.unique(labels[split == "test"], return_counts=True)[1].tolist() == [60, 30, 10]
        assert np.unique(labels[split == "val"], return_counts=True)[1].tolist() == [30, 15, 5]
    assert (splits[0] != splits[1]).any()


@pytest.mark.parametrize("seed", range(5))
def test_a_group_counts_under_the_label_of_most_of_its_cases(seed: int) -> None:
    # Twenty groups of two "a" and a "c", twenty of two "b" and a "c".
    cases = pd.DataFrame({"group": np.repeat(np.arange(40), 3), "label": ["a", "a", "c"] * 20 + ["b", "b", "c"] * 20})
    splits = assign_splits(cases.assign(labelled=True), test_fraction=0.5, val_fraction=0.25, seed=seed)
    test = np.unique(cases["group"][splits == "test"])
    assert (test // 20).tolist() == [0] * 10 + [1] * 10


def test_too_few_groups_are_refused_with_what_to_do() -> None:
    cases = pd.DataFrame(
        {"group": [0, 0, 0, 1, 2, 3], "label": "a", "labelled": [True, True, True, True, False, False]}
    )
    with pytest.raises(UserError, match=r"6 cases make 4 groups, 2 of them with masks.*near_duplicate_likeness"):
        assign_splits(cases, test_fraction=0.2, val_fraction=0.2, seed=0)
