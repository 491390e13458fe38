import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amlp.data.augment import apply_views, jitter_intensity, random_views, step_generator


@given(seed=st.integers(0, 10**6), area=st.floats(0.05, 1.0), size=st.sampled_from([(32, 32), (32, 64), (96, 40)]))
def test_a_crop_never_leaves_the_image_and_keeps_its_share_of_the_area(seed, area, size):
    views = random_views(64, step_generator(seed, 0), size=size, min_area=area)
    corners = torch.tensor([[-1.0, -1.0, 1.0], [1.0, -1.0, 1.0], [-1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    assert (views @ corners.T).abs().max() <= 1 + 1e-5
    share = (views[:, 0, 0] * views[:, 1, 1]).abs()
    assert share.min() >= area - 1e-5
    assert share.max() <= 1 + 1e-5


def test_half_of_the_views_are_mirrored_and_none_is_upside_down():
    views = random_views(2000, step_generator(0, 0), size=(32, 32), min_area=0.5)
    assert (views[:, 0, 0] < 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert (views[:, 1, 1] > 0).all()


def test_a_whole_view_is_the_image_or_its_mirror_image():
    images = torch.rand(8, 2, 16, 24, generator=torch.Generator().manual_seed(0))
    views = random_views(8, step_generator(1, 0), size=(16, 24), min_area=1.0)
    seen = apply_views(images, views)
    for image, view, result in zip(images, views, seen, strict=True):
        expected = image.flip(-1) if view[0, 0] < 0 else image
        assert torch.allclose(result, expected, atol=1e-5)


def test_a_rotation_keeps_distances_in_pixels_whatever_the_shape():
    height, width = 32, 96
    views = random_views(50, step_generator(2, 0), size=(height, width), min_area=1.0, rotate=0.5)
    pixels = torch.tensor([width / 2, height / 2])
    matrix = views[:, :, :2] * pixels.view(1, 2, 1) / pixels.view(1, 1, 2)
    identity = matrix @ matrix.mT
    assert torch.allclose(identity, torch.eye(2).expand_as(identity), atol=1e-5)
    assert views[:, 0, 1].abs().max() > 0


def test_channels_travel_together():
    image = torch.rand(4, 1, 20, 20, generator=torch.Generator().manual_seed(3))
    views = random_views(4, step_generator(4, 0), size=(20, 20), min_area=0.3, rotate=0.3)
    seen = apply_views(torch.cat([image, image], dim=1), views)
    assert torch.equal(seen[:, 0], seen[:, 1])


def test_steps_seeds_and_purposes_draw_differently_and_repeat():
    def draw(*key):
        return torch.rand(4, generator=step_generator(*key)).tolist()

    keys = [(0, 0), (0, 1), (1, 0), (0, 0, 1), (10**9, 10**7, 6)]
    assert len({tuple(draw(*key)) for key in keys}) == len(keys)
    assert all(draw(*key) == draw(*key) for key in keys)


@given(seed=st.integers(0, 1000))
def test_intensity_stays_in_range_and_keeps_the_order_of_greys(seed):
    generator = torch.Generator().manual_seed(seed)
    ramp = torch.linspace(0, 1, 50).view(1, 1, 5, 10).expand(3, 1, 5, 10)
    seen = jitter_intensity(ramp, torch.rand(3, 3, generator=generator)).flatten(1)
    assert (seen >= 0).all()
    assert (seen <= 1).all()
    assert (seen.diff(dim=1) >= -1e-6).all()
    assert math.isclose(jitter_intensity(ramp, torch.full((3, 3), 0.5)).sub(ramp).abs().max().item(), 0, abs_tol=2e-6)
