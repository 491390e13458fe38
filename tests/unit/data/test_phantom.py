from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from amlp.data.images import to_model_input, to_model_mask
from amlp.data.likeness import near_duplicates
from amlp.data.phantom import PhantomCase, generate, render_patient
from amlp.params import PhantomParams, PreprocessParams

PARAMS = PhantomParams(patients=50, images_per_patient=2)


@pytest.fixture(scope="module")
def cases() -> list[PhantomCase]:
    return list(generate(params=PARAMS, seed=1))


def same(one: PhantomCase, other: PhantomCase) -> bool:
    return one.case_id == other.case_id and bool((one.image == other.image).all() and (one.mask == other.mask).all())


def dsc(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Per image (N, H, W) bool; two empty masks agree fully."""
    total = predicted.sum((1, 2)) + true.sum((1, 2))
    return np.where(total == 0, 1.0, 2.0 * (predicted & true).sum((1, 2)) / np.maximum(total, 1))


def test_a_seed_draws_the_same_pictures_again(cases: list[PhantomCase]) -> None:
    again = list(generate(params=PARAMS.model_copy(update={"patients": 4}), seed=1))
    # Fewer patients: those that remain are unchanged.
    assert len(again) == 8
    assert all(same(one, other) for one, other in zip(again, cases[:8], strict=True))
    more_views = render_patient(params=PARAMS.model_copy(update={"images_per_patient": 3}), seed=1, patient=3)
    assert all(same(one, other) for one, other in zip(more_views[:2], cases[6:8], strict=True))


def test_another_seed_draws_others(cases: list[PhantomCase]) -> None:
    other = render_patient(params=PARAMS, seed=2, patient=0)
    assert not same(other[0], cases[0])


def test_cases_are_named_and_labelled(cases: list[PhantomCase]) -> None:
    assert len({case.case_id for case in cases}) == len(cases) == 100
    assert len({case.patient for case in cases}) == 50
    assert {case.label for case in cases} == {"lesion", "normal"}
    assert sum(case.label == "normal" for case in cases) == 20
    assert all(case.mask.any() == (case.label == "lesion") for case in cases)
    assert all(case.image.dtype == np.uint8 and case.mask.dtype == np.bool_ for case in cases)


def test_without_normals_every_picture_has_a_lesion() -> None:
    params = PhantomParams(patients=6, images_per_patient=1, height=48, width=48, normal_fraction=0.0)
    assert all(case.mask.any() for case in generate(params=params, seed=0))


@pytest.mark.parametrize("size", [(32, 32), (64, 160), (160, 64)])
def test_any_size(size: tuple[int, int]) -> None:
    params = PhantomParams(patients=5, images_per_patient=2, height=size[0], width=size[1])
    for case in generate(params=params, seed=0):
        assert case.image.shape == case.mask.shape == size
        assert case.mask.any() == (case.label == "lesion")
        assert case.image.std() > 5


def test_lesions_are_one_piece_of_a_sensible_size(cases: list[PhantomCase]) -> None:
    masks = [case.mask for case in cases if case.label == "lesion"]
    assert all(0.01 < mask.mean() < 0.16 for mask in masks)
    # A jagged outline may throw off a pixel or two.
    assert all(ndimage.label(ndimage.binary_opening(mask))[1] == 1 for mask in masks)


def test_a_lesion_is_darker_than_what_surrounds_it(cases: list[PhantomCase]) -> None:
    for case in cases:
        if case.label == "lesion":
            ring = ndimage.binary_dilation(case.mask, iterations=8) & ~ndimage.binary_dilation(case.mask, iterations=2)
            inside, outside = case.image[ndimage.binary_erosion(case.mask)], case.image[ring]
            assert inside.mean() + 12 < outside.mean(), case.case_id


def test_what_lies_below_a_lesion_is_brighter_than_beside(cases: list[PhantomCase]) -> None:
    gains = []
    for case in cases:
        rows, columns = np.nonzero(case.mask)
        if len(rows) and rows.max() + 14 < PARAMS.height:
            below = case.image[rows.max() + 4 : rows.max() + 14].astype(float)
            middle, half = int(columns.mean()), np.ptp(columns) // 4
            beside = np.concatenate([below[:, : max(columns.min() - 4, 0)], below[:, columns.max() + 4 :]], axis=1)
            gains.append(below[:, middle - half : middle + half + 1].mean() - beside.mean())
    assert np.mean(gains) > 5


def test_no_single_grey_threshold_finds_the_lesions(cases: list[PhantomCase]) -> None:
    images = np.stack([to_model_input(case.image, channels=1, height=96, width=96)[0] for case in cases])
    masks = np.stack([to_model_mask(case.mask, height=96, width=96) for case in cases]).astype(bool)
    train, test = slice(0, 60), slice(60, 100)
    best = max(range(0, 256, 3), key=lambda grey: float(dsc(images[train] < grey, masks[train]).mean()))
    assert dsc(images[test] < best, masks[test]).mean() < 0.32


def test_views_of_a_patient_differ(cases: list[PhantomCase]) -> None:
    for first, second in zip(cases[::2], cases[1::2], strict=True):
        assert first.patient == second.patient
        assert np.abs(first.image.astype(int) - second.image).mean() > 5


def test_no_two_patients_are_near_duplicates(cases: list[PhantomCase]) -> None:
    thumbnails = np.stack([to_model_input(case.image, channels=1, height=64, width=64)[0] for case in cases])
    found = near_duplicates(thumbnails, likeness=PreprocessParams().near_duplicate_likeness, neighbours=20)
    assert all(cases[one].patient == cases[other].patient for one, other in found.pairs)


def test_the_picture_is_speckled(cases: list[PhantomCase]) -> None:
    # Fully developed speckle after log compression has the same spread whatever the level is.
    spread = []
    for case in cases:
        detail = case.image - ndimage.gaussian_filter(case.image.astype(float), 3)
        middle = (case.image > 60) & (case.image < 200)
        spread.append(detail[middle].std())
    assert 5 < np.median(spread) < 25
