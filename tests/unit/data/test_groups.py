from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import amlp.data.groups
from amlp.data.groups import assign_splits, group_cases
from amlp.data.images import to_model_input
from amlp.data.ingest import perceptual_hashes
from amlp.data.validate import THUMBNAIL
from amlp.errors import UserError
from amlp.params import PreprocessParams
from tests.support.ingest_folder import scene

DISTANCE = PreprocessParams().near_duplicate_distance


def manifest_of(pictures: dict[str, np.ndarray], **columns: list[Any]) -> pd.DataFrame:
    """The columns that grouping reads; every picture is a file of its own unless `sha256` says otherwise."""
    frame = pd.DataFrame({"case_id": list(pictures), "patient": None, "sha256": list(pictures)})
    hashes = [perceptual_hashes(picture) for picture in pictures.values()]
    frame["phash"], frame["phash_mirror"] = zip(*hashes, strict=True)
    frame["thumbnail"] = [
        to_model_input(picture, channels=1, height=THUMBNAIL, width=THUMBNAIL).tobytes()
        for picture in pictures.values()
    ]
    return frame.assign(**columns)


@st.composite
def manifests(draw: st.DrawFn) -> pd.DataFrame:
    """Cases with few different patients, files and hashes, so that all kinds of joins happen."""
    size = draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    hashes = [f"{value:016x}" for value in rng.integers(0, 2**63, size=4)]
    near = [f"{int(value, 16) ^ 0b1011:016x}" for value in hashes]
    thumbnails = rng.integers(0, 256, size=(20, THUMBNAIL**2), dtype=np.uint8)

    def some(values: list[Any]) -> list[Any]:
        return draw(st.lists(st.sampled_from(values), min_size=size, max_size=size))

    return pd.DataFrame(
        {
            "case_id": [f"case_{number:02d}" for number in rng.permutation(size)],
            "patient": some(["p", "q", "r", None, None, None]),
            "sha256": some([str(number) for number in range(20)]),
            "phash": some([*hashes, *near]),
            "phash_mirror": [f"{value:016x}" for value in rng.integers(0, 2**63, size=size)],
            "thumbnail": [thumbnails[number].tobytes() for number in some(list(range(20)))],
        }
    )


def partition(frame: pd.DataFrame) -> set[frozenset[str]]:
    groups = group_cases(frame, distance=DISTANCE).group
    return {frozenset(part) for _, part in frame["case_id"].groupby(groups)}


@given(manifests(), st.randoms(use_true_random=False))
def test_groups_do_not_depend_on_the_order_of_rows(frame: pd.DataFrame, random: Any) -> None:
    order = list(range(len(frame)))
    random.shuffle(order)
    straight = group_cases(frame, distance=DISTANCE)
    shuffled = group_cases(frame.iloc[order].reset_index(drop=True), distance=DISTANCE)
    np.testing.assert_array_equal(straight.group[order], shuffled.group)
    assert straight.near_duplicate_cases == shuffled.near_duplicate_cases
    # Numbered without gaps, in the order of the smallest case id.
    firsts = frame["case_id"].groupby(straight.group).min()
    assert list(firsts.index) == list(range(len(firsts))) and firsts.is_monotonic_increasing


@given(manifests())
def test_cases_share_a_group_exactly_when_a_chain_of_joins_links_them(frame: pd.DataFrame) -> None:
    # Two at a time, thumbnails tell nothing (less their mean, they are opposite), so all get the same one here.
    frame = frame.assign(thumbnail=[bytes(THUMBNAIL**2)] * len(frame))
    linked = {frozenset([case]) for case in frame["case_id"]}
    for i in range(len(frame)):
        for j in range(i):
            pair = frame.iloc[[i, j]]
            if len(partition(pair)) == 1:
                one, two = (next(part for part in linked if case in part) for case in pair["case_id"])
                linked = (linked - {one, two}) | {one | two}
    assert partition(frame) == linked


@given(manifests(), st.integers(0, 8), st.integers(0, 8))
def test_a_common_patient_or_file_joins_two_groups_and_no_others(frame: pd.DataFrame, one: int, two: int) -> None:
    one, two = one % len(frame), two % len(frame)
    before = partition(frame)
    for column in ("patient", "sha256"):
        joined = frame.copy()
        joined.loc[[one, two], column] = "new"
        after = partition(joined)
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
    groups = group_cases(manifest_of(pictures), distance=DISTANCE)
    assert groups.group[-1] == groups.group[7]
    assert len(set(groups.group)) == 20
    assert (groups.near_duplicate_groups, groups.near_duplicate_cases) == (1, 2)


def flipped(hexadecimal: str, bits: int) -> str:
    return f"{int(hexadecimal, 16) ^ (2**bits - 1):016x}"


@pytest.mark.parametrize(
    ("bits", "correlation", "joined"),
    [
        (DISTANCE, 0.0, True),
        (DISTANCE + 1, 0.75, False),
        (20, 0.95, True),
        (20, 0.85, False),
        (DISTANCE + 6, 0.85, True),
        (DISTANCE + 7, 0.85, False),
    ],
)
@pytest.mark.parametrize("mirror", [False, True])
def test_either_sign_suffices_when_sure_and_both_when_nearly_so(
    bits: int, correlation: float, joined: bool, mirror: bool
) -> None:
    rng = np.random.default_rng(bits)
    hashes = [f"{value:016x}" for value in rng.integers(0, 2**63, size=(60, 2)).ravel()]
    thumbnails = rng.normal(size=(60, THUMBNAIL, THUMBNAIL))
    # The last two pictures form the pair; the others are there to be different.
    thumbnails[59] = correlation * thumbnails[58] + np.sqrt(1 - correlation**2) * thumbnails[59]
    if mirror:
        thumbnails[59] = thumbnails[59, :, ::-1]
    plain, mirrored = hashes[:60], hashes[60:]
    (mirrored if mirror else plain)[59] = flipped(plain[58], bits)
    frame = pd.DataFrame(
        {
            "case_id": [f"case_{number:02d}" for number in range(60)],
            "patient": None,
            "sha256": [str(number) for number in range(60)],
            "phash": plain,
            "phash_mirror": mirrored,
            "thumbnail": [pixels.tobytes() for pixels in (128 + 25 * thumbnails).clip(0, 255).astype(np.uint8)],
        }
    )
    groups = group_cases(frame, distance=DISTANCE).group
    assert (groups[58] == groups[59]) == joined
    assert len(set(groups)) == 60 - joined


def test_what_all_pictures_share_makes_no_near_duplicates() -> None:
    """Pictures of one device: the same frame and depth gain, which is most of what one sees."""
    gain = np.linspace(1, 0.1, 100)[:, None] * np.where(abs(np.linspace(-1, 1, 120)) < 0.9, 1.0, 0.0)
    pictures = {
        f"case_{seed:02d}": (gain * (170 + 0.25 * scene(seed, 100, 120))).astype(np.uint8) for seed in range(20)
    }
    flat = np.stack([picture.ravel() for picture in pictures.values()])
    assert np.corrcoef(flat).min() > 0.9
    assert len(set(group_cases(manifest_of(pictures), distance=0).group)) == 20


def test_patients_are_joined_through_near_duplicates_but_counted_apart() -> None:
    pictures = {f"case_{seed}": scene(seed) for seed in range(6)}
    pictures["case_9"] = CHANGES["noisy"](pictures["case_3"])
    frame = manifest_of(pictures, patient=["a", "a", "b", "b", None, None, "a"])
    groups = group_cases(frame, distance=DISTANCE)
    assert groups.group.tolist() == [0, 0, 0, 0, 1, 2, 0]
    assert (groups.near_duplicate_groups, groups.near_duplicate_cases) == (1, 2)


def test_a_picture_many_times_over_needs_no_memory_for_all_its_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amlp.data.groups, "BLOCK", 7)
    monkeypatch.setattr(amlp.data.groups, "MOST_PAIRS", 10)
    pictures = {f"case_{number:02d}": scene(number if number % 2 else 0) for number in range(30)}
    groups = group_cases(manifest_of(pictures), distance=DISTANCE)
    assert len(set(groups.group)) == 16
    assert (groups.near_duplicate_groups, groups.near_duplicate_cases) == (1, 15)


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
    with pytest.raises(UserError, match=r"6 cases make 4 groups, 2 of them with masks.*near_duplicate_distance"):
        assign_splits(cases, test_fraction=0.2, val_fraction=0.2, seed=0)
