import math
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amlp.method.losses import (
    FAINT,
    ORIENTATIONS,
    Target,
    category_consistency,
    gaussian_blur,
    gradient_strength,
    oriented_gradients,
    patchify,
    ramp,
    reconstruction_target,
    relative_weights,
    target_width,
    unpatchify,
)


def generator(seed):
    return torch.Generator().manual_seed(seed)


@given(c=st.integers(1, 4), rows=st.integers(1, 4), columns=st.integers(1, 5), patch=st.integers(1, 6))
def test_unpatchify_inverts_patchify(c, rows, columns, patch):
    images = torch.rand(2, c, rows * patch, columns * patch, generator=generator(0))
    patches = patchify(images, patch)
    assert patches.shape == (2, rows * columns, patch * patch * c)
    assert torch.equal(unpatchify(patches, patch, rows * patch, columns * patch), images)


def test_patchify_goes_row_by_row():
    image = torch.arange(16.0).view(1, 1, 4, 4)
    assert patchify(image, 2)[0, 1].tolist() == [2, 3, 6, 7]


@given(seed=st.integers(0, 10**6), gamma=st.floats(0, 4), clip=st.floats(1.1, 20), m=st.integers(1, 40))
def test_relative_weights_have_mean_one(seed, gamma, clip, m):
    error = torch.rand(3, m, generator=generator(seed)) ** 4
    weights = relative_weights(error, gamma=gamma, clip=clip)
    assert torch.allclose(weights.mean(dim=1), torch.ones(3), atol=1e-5)


@given(seed=st.integers(0, 10**6))
def test_gamma_zero_leaves_the_loss_as_it_is_bit_for_bit(seed):
    error = torch.rand(3, 7, generator=generator(seed))
    assert torch.equal(relative_weights(error, gamma=0.0, clip=5.0), torch.ones(3, 7))


def test_harder_patches_weigh_more():
    weights = relative_weights(torch.tensor([[1.0, 2.0, 3.0]]), gamma=1.0, clip=5.0)
    assert weights.tolist()[0] == pytest.approx([0.5, 1.0, 1.5])


def test_errors_of_zero_weigh_one():
    assert torch.equal(relative_weights(torch.zeros(1, 4), gamma=2.0, clip=5.0), torch.ones(1, 4))


def test_no_gradient_flows_through_the_difficulty():
    error = torch.rand(2, 6, generator=generator(1), requires_grad=True)
    weights = relative_weights(error, gamma=1.0, clip=5.0)
    assert not weights.requires_grad
    (weights * error).mean().backward()
    assert torch.allclose(error.grad, weights / error.numel())

    error = torch.rand(2, 6, generator=generator(2), requires_grad=True)
    logits = torch.zeros(2, 10, requires_grad=True)
    category = torch.zeros(2, 10, dtype=torch.bool)
    category[:, :3] = True
    masked = torch.arange(6).expand(2, 6)
    category_consistency(logits, category, masked, error, difficulty_weight=0.5).backward()
    assert error.grad is None
    assert logits.grad.abs().sum() > 0


def test_consistency_prefers_logits_that_agree():
    category = torch.tensor([[True, True, False, False, False]])
    masked = torch.tensor([[0, 2, 3]])
    error = torch.tensor([[3.0, 1.0, 1.0]])
    agree = torch.where(category, 4.0, -4.0)
    losses = [
        category_consistency(z, category, masked, error, difficulty_weight=0.5).item()
        for z in (agree, torch.zeros(1, 5), -agree)
    ]
    assert losses[0] < losses[1] < losses[2]
    assert losses[1] == pytest.approx(torch.log(torch.tensor(2.0)).item())


def test_difficulty_moves_the_target():
    category = torch.tensor([[True, False, False]])
    masked = torch.tensor([[0, 1]])
    logits = torch.tensor([[0.0, 3.0, -3.0]])
    hard_background = torch.tensor([[1.0, 9.0]])
    easy_background = torch.tensor([[9.0, 1.0]])
    losses = [
        category_consistency(logits, category, masked, error, difficulty_weight=0.5)
        for error in (hard_background, easy_background)
    ]
    assert losses[0] < losses[1]


def test_being_visible_tells_nothing_of_the_category():
    """Nearly all lesion patches are masked: a head that says "visible is background" must not be rewarded for it."""
    category = torch.zeros(1, 20, dtype=torch.bool)
    category[0, :6] = True
    masked = torch.tensor([[0, 1, 2, 3, 4, 10]])  # five of six lesion patches
    error = torch.ones(1, 6)
    hidden = torch.zeros(1, 20).scatter(1, masked, 1.0)
    shortcut = category_consistency(4 * (2 * hidden - 1), category, masked, error, difficulty_weight=0.0)
    nothing = category_consistency(torch.zeros(1, 20), category, masked, error, difficulty_weight=0.0)
    assert shortcut > nothing


def test_images_without_category_contribute_nothing_but_count():
    category = torch.zeros(2, 6, dtype=torch.bool)
    category[0, 0] = True
    logits = torch.randn(2, 6, generator=generator(3), requires_grad=True)
    masked, error = torch.arange(3).expand(2, 3), torch.rand(2, 3, generator=generator(4))
    loss = category_consistency(logits, category, masked, error, difficulty_weight=0.3)
    alone = category_consistency(logits[:1], category[:1], masked[:1], error[:1], difficulty_weight=0.3)
    assert torch.allclose(loss, alone / 2)
    loss.backward()
    assert torch.equal(logits.grad[1], torch.zeros(6))


def test_blur_keeps_a_constant_and_the_mean_level():
    flat = torch.full((1, 2, 20, 30), 0.7)
    assert torch.allclose(gaussian_blur(flat, 2.0), flat, atol=1e-6)
    noise = torch.rand(1, 1, 64, 64, generator=generator(5))
    assert gaussian_blur(noise, 2.0).std() < 0.3 * noise.std()


def test_normalised_target_has_mean_zero_and_unit_variance():
    images = torch.rand(2, 1, 16, 16, generator=generator(6)) * 3 + 1
    target = reconstruction_target(images, 8, kind="normalised", sigma=2.0)
    assert torch.allclose(target.mean(-1), torch.zeros(2, 4), atol=1e-5)
    assert torch.allclose(target.var(-1), torch.ones(2, 4), atol=1e-3)


def test_ramp_rises_from_zero_to_one():
    assert [ramp(u, 0.25, 0.5) for u in (0.0, 0.25, 0.375, 0.5, 1.0)] == [0.0, 0.0, 0.5, 1.0, 1.0]
    assert ramp(0.0, 0.0, 0.0) == 1.0


def grating(angle, *, size=48, period=12.0, contrast=1.0):
    """A wave whose gradient points along `angle`, in radians: (1, 1, size, size)."""
    y, x = torch.meshgrid(torch.arange(float(size)), torch.arange(float(size)), indexing="ij")
    phase = (x * math.cos(angle) + y * math.sin(angle)) / period
    return contrast * torch.sin(2 * math.pi * phase)[None, None]


def main_bin(images):
    """The middle of the histogram of an image's gradients, in bins; half a turn is all of them."""
    histogram = oriented_gradients(images, 8, sigma=1.0).view(-1, ORIENTATIONS).sum(dim=0)
    turn = 2 * math.pi * torch.arange(ORIENTATIONS) / ORIENTATIONS
    angle = math.atan2((histogram * turn.sin()).sum(), (histogram * turn.cos()).sum())
    return angle / (2 * math.pi) * ORIENTATIONS % ORIENTATIONS


@given(
    c=st.integers(1, 3), rows=st.integers(1, 4), columns=st.integers(1, 4), half=st.integers(1, 6),
    seed=st.integers(0, 10**6),
)  # fmt: skip
def test_gradients_have_the_promised_width_and_are_finite(c, rows, columns, half, seed):
    patch = 2 * half
    images = torch.randn(2, c, rows * patch, columns * patch, generator=generator(seed))
    target = reconstruction_target(images, patch, kind="hog", sigma=2.0)
    assert target.shape == (2, rows * columns, target_width("hog", patch, c))
    assert torch.isfinite(target).all() and target.min() >= 0
    assert target.norm(dim=-1).max() < target.shape[-1] ** 0.5, "no patch is stronger than its width allows"


@pytest.mark.parametrize("kind", get_args(Target))
def test_each_target_has_the_promised_width(kind):
    images = torch.rand(2, 3, 16, 24, generator=generator(0))
    assert reconstruction_target(images, 8, kind=kind, sigma=2.0).shape == (2, 6, target_width(kind, 8, 3))


@given(grey=st.floats(-5, 5))
def test_an_image_of_one_grey_has_no_gradients(grey):
    target = oriented_gradients(torch.full((1, 2, 32, 32), grey), 8, sigma=2.0)
    assert target.abs().max() < 0.05


@given(angle=st.floats(0, math.pi))
def test_gradients_turn_with_the_image(angle):
    found = main_bin(grating(angle))
    expected = angle / math.pi * ORIENTATIONS
    away = abs(found - expected) % ORIENTATIONS
    assert min(away, ORIENTATIONS - away) < 0.35
    turned = (main_bin(torch.rot90(grating(angle), 1, (2, 3))) - found) % ORIENTATIONS
    assert turned == pytest.approx(ORIENTATIONS / 2, abs=0.15), "a quarter turn is half of the bins"


@given(factor=st.floats(0.05, 20), shift=st.floats(-3, 3), seed=st.integers(0, 10**6))
def test_gradients_do_not_depend_on_contrast_or_brightness(factor, shift, seed):
    images = torch.randn(1, 1, 32, 32, generator=generator(seed))
    target, other = (oriented_gradients(x, 8, sigma=1.0) for x in (images, factor * images + shift))
    assert torch.allclose(target, other, atol=0.02)


def test_below_the_floor_contrast_counts():
    faint = FAINT * 1e-2 * grating(0.3)
    assert oriented_gradients(faint, 8, sigma=1.0).norm(dim=-1).max() < 0.1


def test_faint_noise_beside_a_strong_edge_stays_small():
    images = 0.01 * torch.randn(1, 1, 64, 64, generator=generator(1))
    images[..., 36:] += 2.0  # an edge through the fifth column of patches
    norm = oriented_gradients(images, 8, sigma=2.0).norm(dim=-1).view(8, 8)
    assert norm[:, :3].max() < 0.05 * norm[:, 4].min()


def test_an_images_gradients_are_its_own():
    images = torch.randn(5, 2, 32, 48, generator=generator(2)) * torch.logspace(-2, 2, 5).view(-1, 1, 1, 1)
    together = oriented_gradients(images, 8, sigma=2.0)
    for i in range(5):
        assert torch.allclose(oriented_gradients(images[i : i + 1], 8, sigma=2.0)[0], together[i], atol=1e-4)


def test_the_strength_of_gradients_is_shown_where_they_are():
    images = torch.zeros(1, 1, 32, 48)
    images[..., :12, 26:] = 1.0
    strength = gradient_strength(oriented_gradients(images, 8, sigma=0.5), 8, 32, 48)
    assert strength.shape == (1, 1, 32, 48)
    # Quarters of 4 px: the edge between columns 25 and 26 lies in the seventh, that between rows 11 and 12 in two.
    assert strength[0, 0, 2, 24:28].min() > 0.3 and strength[0, 0, 10, 40] > 0.3
    assert strength[0, 0, 20:, :].max() < 0.05 and strength[0, 0, :, :20].max() < 0.05
