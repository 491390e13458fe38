from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from amlp.data.images import to_model_input, to_model_mask
from amlp.data.phantom import generate
from amlp.errors import UserError
from amlp.method.scores import lesion_scores
from amlp.params import PhantomParams, ScoreParams

DESCRIPTORS = ["contrast", "intensity", "raw"]


def tissue(n: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Speckle around a middle grey: (n, channels, height, width)."""
    generator = torch.Generator().manual_seed(seed)
    return 0.55 + 0.1 * (torch.rand(n, channels, height, width, generator=generator) - 0.5)


def with_blob(images: Tensor, *, grey: float, top: int, left: int, side: int = 24) -> Tensor:
    images = images.clone()
    images[..., top : top + side, left : left + side] += grey - 0.55
    return images


def block(result: Tensor, *, top: int, left: int, side: int = 24, patch: int = 8) -> Tensor:
    """(N, h, w) bool: the patches that a blob fills."""
    truth = torch.zeros_like(result, dtype=torch.bool)
    truth[:, top // patch : (top + side) // patch, left // patch : (left + side) // patch] = True
    return truth


@pytest.mark.parametrize("polarity", ["dark", "bright", "unknown"])
@pytest.mark.parametrize("descriptor", DESCRIPTORS)
@pytest.mark.parametrize("grey", [0.0, 0.37, 1.0])
def test_a_constant_image_takes_the_guard(descriptor: str, polarity: str, grey: float) -> None:
    # The prior must not make a category of its own out of an image that shows nothing.
    images = torch.full((2, 1, 64, 64), grey)
    params = ScoreParams(descriptor=descriptor, polarity=polarity)  # type: ignore[arg-type]
    result = lesion_scores(images, params=params)
    assert result.guarded.tolist() == [True, True]
    assert not result.scores.any()


def test_less_than_a_grey_level_takes_the_guard() -> None:
    faint = with_blob(torch.full((1, 1, 64, 64), 0.55), grey=0.55 - 0.5 / 255, top=16, left=24)
    seen = with_blob(torch.full((1, 1, 64, 64), 0.55), grey=0.55 - 8 / 255, top=16, left=24)
    result = lesion_scores(torch.cat([faint, seen]), params=ScoreParams())
    assert result.guarded.tolist() == [True, False]


def test_clusters_that_explain_little_take_the_guard() -> None:
    noise = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    halves = torch.cat([torch.zeros(1, 1, 64, 32), torch.ones(1, 1, 64, 32)], dim=3)
    params = ScoreParams(descriptor="raw", min_separation=0.1, min_repeat=0.0)
    assert lesion_scores(torch.cat([noise, halves]), params=params).guarded.tolist() == [True, True, False]
    without = params.model_copy(update={"min_separation": 0.0})
    assert not lesion_scores(noise, params=without).guarded.any()


@pytest.mark.parametrize("polarity", ["dark", "bright", "unknown"])
@pytest.mark.parametrize("descriptor", DESCRIPTORS)
def test_scores_that_are_chance_take_the_guard(descriptor: str, polarity: str) -> None:
    noise = torch.rand(8, 1, 96, 96, generator=torch.Generator().manual_seed(0))
    blobs = with_blob(tissue(8, 1, 96, 96), grey=0.9 if polarity == "bright" else 0.2, top=16, left=24)
    params = ScoreParams(descriptor=descriptor, polarity=polarity)  # type: ignore[arg-type]
    result = lesion_scores(torch.cat([noise, blobs]), params=params)
    assert result.guarded.tolist() == [True] * 8 + [False] * 8
    assert not result.scores[:8].any()
    trusting = params.model_copy(update={"min_repeat": 0.0, "min_separation": 0.0})
    assert not lesion_scores(noise, params=trusting).guarded.any()


def test_a_single_patch_is_no_category() -> None:
    images = torch.full((1, 1, 64, 64), 0.6)
    images[..., 24:32, 24:32] = 0.1
    assert lesion_scores(images, params=ScoreParams(descriptor="raw")).guarded.all()


@pytest.mark.parametrize("centre_prior", [0.0, 1.0])
@pytest.mark.parametrize(("top", "left"), [(16, 16), (32, 56), (48, 8)])
def test_finds_a_dark_blob_wherever_it_lies(top: int, left: int, centre_prior: float) -> None:
    images = with_blob(tissue(4, 1, 96, 96), grey=0.2, top=top, left=left)
    result = lesion_scores(images, params=ScoreParams(centre_prior=centre_prior))
    truth = block(result.scores, top=top, left=left)
    chosen = result.scores > 0.5
    assert not result.guarded.any()
    # The blob's edge is smoothed into its neighbours, so some of those may be chosen too; its corners may be lost.
    assert chosen[truth].float().mean() >= 0.5
    assert truth[chosen].float().mean() >= 0.6
    assert result.scores[:, top // 8 + 1, left // 8 + 1].min() > 0.9
    assert result.scores[~truth].median() < 0.1


def test_what_is_open_to_the_border_counts_less_than_what_is_enclosed() -> None:
    images = with_blob(tissue(1, 1, 96, 96), grey=0.2, top=24, left=16)
    images[..., 40:, 64:80] -= 0.35  # a shadow, as dark as the blob, down to the bottom
    images[..., :16, :] -= 0.35  # a layer from side to side
    scores = lesion_scores(images, params=ScoreParams(centre_prior=0.0)).scores[0]
    assert scores[4, 3] > 0.9  # the blob's middle
    assert scores[5:, 8:10].max() < scores[4, 3] - 0.1
    assert scores[:2].max() < 0.25
    # By grey value alone all three look the same.
    by_grey = lesion_scores(images, params=ScoreParams(descriptor="intensity", centre_prior=0.0)).scores[0]
    assert min(by_grey[4, 3], by_grey[10, 8], by_grey[0, 5]) > 0.8


@pytest.mark.parametrize("descriptor", DESCRIPTORS)
def test_polarity_flips_with_inversion(descriptor: str) -> None:
    images = with_blob(tissue(3, 1, 64, 64), grey=0.2, top=16, left=24)
    dark = ScoreParams(descriptor=descriptor, polarity="dark")  # type: ignore[arg-type]
    bright = dark.model_copy(update={"polarity": "bright"})
    result, inverted = lesion_scores(images, params=dark), lesion_scores(1 - images, params=bright)
    assert torch.equal(result.guarded, inverted.guarded) and not result.guarded.any()
    torch.testing.assert_close(result.scores, inverted.scores, atol=1e-4, rtol=0)
    # The wrong polarity doesn't find it.
    wrong = lesion_scores(images, params=bright).scores
    assert result.scores[:, 3, 4].min() > 0.9 and wrong[:, 3, 4].max() < 0.5


@pytest.mark.parametrize("descriptor", DESCRIPTORS)
@pytest.mark.parametrize("grey", [0.2, 0.9])
def test_unknown_polarity_finds_dark_and_bright_blobs(descriptor: str, grey: float) -> None:
    images = with_blob(tissue(3, 1, 64, 64), grey=grey, top=16, left=24)
    result = lesion_scores(images, params=ScoreParams(descriptor=descriptor, polarity="unknown"))  # type: ignore[arg-type]
    assert result.scores[:, 3, 4].min() > 0.9
    assert (result.scores > 0.5).float().mean() < 0.3


@settings(deadline=None, max_examples=10)
@given(
    descriptor=st.sampled_from(DESCRIPTORS),
    polarity=st.sampled_from(["dark", "bright", "unknown"]),
    channels=st.integers(1, 5),
    grid=st.tuples(st.integers(2, 9), st.integers(2, 9)),
    patch=st.sampled_from([2, 6, 8, 16]),
    seed=st.integers(0, 1000),
)
def test_scores_are_an_images_own(
    descriptor: str, polarity: str, channels: int, grid: tuple[int, int], patch: int, seed: int
) -> None:
    """Any channels and size; same scores, bit for bit, again and whatever else is in the batch."""
    params = ScoreParams(descriptor=descriptor, polarity=polarity, patch=patch)  # type: ignore[arg-type]
    images = torch.rand(5, channels, grid[0] * patch, grid[1] * patch, generator=torch.Generator().manual_seed(seed))
    images[3] = 0.5
    result = lesion_scores(images, params=params)
    assert result.scores.shape == (5, *grid) and result.scores.dtype == torch.float32
    assert result.guarded.shape == (5,) and result.guarded.dtype == torch.bool and result.guarded[3]
    assert result.scores.min() >= 0 and result.scores.max() <= 1
    assert not result.scores[result.guarded].any()
    assert torch.equal(lesion_scores(images, params=params).scores, result.scores)
    order = torch.tensor([4, 0, 2])
    assert torch.equal(lesion_scores(images[order], params=params).scores, result.scores[order])
    for i in range(5):
        alone = lesion_scores(images[i : i + 1], params=params)
        assert torch.equal(alone.scores[0], result.scores[i]) and alone.guarded[0] == result.guarded[i]


def test_the_prior_prefers_the_nearer_of_two_equal_blobs() -> None:
    images = with_blob(with_blob(tissue(1, 1, 96, 96), grey=0.2, top=40, left=40), grey=0.2, top=8, left=8)
    near, far = (6, 6), (2, 2)
    off = lesion_scores(images, params=ScoreParams(centre_prior=0.0)).scores[0]
    on = lesion_scores(images, params=ScoreParams(centre_prior=1.0)).scores[0]
    assert off[far] > 0.5
    assert on[near] - on[far] > off[near] - off[far] + 0.1


def test_a_size_that_the_patch_does_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match=r"scores.patch: 8 .* 60 x 64"):
        lesion_scores(torch.rand(1, 1, 60, 64), params=ScoreParams())


def test_finds_the_phantoms_lesions() -> None:
    cases = list(generate(params=PhantomParams(patients=8, images_per_patient=2, normal_fraction=0.0), seed=3))
    images = torch.from_numpy(np.stack([to_model_input(c.image, channels=1, height=96, width=96) for c in cases]))
    masks = np.stack([to_model_mask(c.mask, height=96, width=96) for c in cases])
    lesion = torch.from_numpy(masks.reshape(-1, 12, 8, 12, 8).mean(axis=(2, 4)) >= 0.3)
    for centre_prior in (0.0, 1.0):
        result = lesion_scores(images.float() / 255, params=ScoreParams(centre_prior=centre_prior))
        chosen = result.scores > 0.5
        recall = (chosen & lesion).sum() / lesion.sum()
        enrichment = (chosen & lesion).sum() / chosen.sum() / lesion.float().mean()
        assert recall > 0.6 and enrichment > 2.5
