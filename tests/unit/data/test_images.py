from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from amlp.data.images import to_grey, to_model_input, to_model_mask, to_uint8
from amlp.errors import UserError

GREY = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
LESION = np.zeros((6, 8), bool)
LESION[2:4, 3:7] = True


def test_equal_channels_keep_their_grey_value() -> None:
    values = np.arange(256, dtype=np.uint8)[None]
    np.testing.assert_array_equal(to_grey(np.stack([values] * 3, axis=-1)), values)


@given(
    image=hnp.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40))),
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 48),
    width=st.integers(1, 48),
)
def test_model_input_does_not_depend_on_how_grey_is_stored(
    image: np.ndarray, channels: int, height: int, width: int
) -> None:
    size = {"channels": channels, "height": height, "width": width}
    expected = to_model_input(image, **size)
    assert expected.dtype == np.uint8
    assert expected.shape == (channels, height, width)
    assert expected.min() >= image.min()
    assert expected.max() <= image.max()
    for other in (image[..., None], np.stack([image] * 3, -1), np.stack([image] * 4, -1), image / 255.0):
        np.testing.assert_array_equal(to_model_input(other, **size), expected)


@given(
    image=hnp.arrays(np.uint16, (5, 7), elements=st.integers(0, 1000)),
    gain=st.integers(1, 60),
    offset=st.integers(0, 5000),
)
def test_few_sixteen_bit_values_are_stretched_over_the_range(image: np.ndarray, gain: int, offset: int) -> None:
    pixels = to_uint8(image)
    if image.max() > image.min():
        assert (pixels.min(), pixels.max()) == (0, 255)
    else:
        assert not pixels.any()
    # Half a grey value may round either way.
    shifted = to_uint8((image.astype(np.int64) * gain + offset).astype(np.uint16))
    assert np.abs(shifted.astype(int) - pixels).max() <= 1


@pytest.mark.parametrize("kind", [np.uint16, np.float32])
def test_a_hot_pixel_changes_nothing(kind: type) -> None:
    image = np.tile(np.arange(1000, 1250), (250, 1)).astype(kind)
    hot = image.copy()
    hot[7, 9] = 65535
    others = np.ones(image.shape, bool)
    others[7, 9] = False
    np.testing.assert_array_equal(to_uint8(hot)[others], to_uint8(image)[others])
    assert to_uint8(hot)[7, 9] == 255


def test_channels_that_are_no_colours_have_ranges_of_their_own() -> None:
    ramp = np.tile(np.arange(200, dtype=np.uint16), (200, 1))
    image = np.stack([ramp, 100 * ramp, ramp + 5000, 7 * ramp], axis=-1)
    pixels = to_uint8(image)
    for channel in range(1, 4):
        np.testing.assert_array_equal(pixels[..., channel], pixels[..., 0])
    # Colours have one range: a channel that is darker stays darker.
    assert to_uint8(image[..., :3])[..., 0].max() < 10
    assert to_model_input(image, channels=4, height=20, width=20).shape == (4, 20, 20)
    with pytest.raises(UserError, match=r"2 channel\(s\), the last axis, and the model takes 3"):
        to_model_input(image[..., :2], channels=3, height=20, width=20)


def test_bool_becomes_black_and_white() -> None:
    np.testing.assert_array_equal(to_uint8(LESION), LESION * np.uint8(255))


def test_model_input_of_the_same_size_is_the_picture() -> None:
    np.testing.assert_array_equal(to_model_input(GREY, channels=1, height=6, width=8)[0], GREY)


def test_shrinking_averages_instead_of_dropping_pixels() -> None:
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
    small = to_model_input(stripes, channels=1, height=16, width=16)
    assert abs(float(small.mean()) - 127.5) < 2
    assert small.std() < 20


def test_colour_goes_in_by_channel_or_by_luma() -> None:
    green = np.zeros((4, 4, 3), np.uint8)
    green[..., 1] = 200
    assert to_model_input(green, channels=3, height=2, width=2)[:, 0, 0].tolist() == [0, 200, 0]
    assert to_model_input(green, channels=1, height=2, width=2)[0, 0, 0] == round(0.587 * 200)


@pytest.mark.parametrize("shape", [(4,), (0, 4), (1, 4, 4, 3)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="shape"):
        to_model_input(np.zeros(shape, np.uint8), channels=1, height=4, width=4)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(UserError, match="not finite"):
        to_model_input(np.array([[0.0, value]]), channels=1, height=4, width=4)


def test_a_mask_pixel_is_lesion_when_half_covered() -> None:
    quarters = np.zeros((2, 10), bool)
    for covered in range(5):
        block = np.zeros(4, bool)
        block[:covered] = True
        quarters[:, 2 * covered : 2 * covered + 2] = block.reshape(2, 2)
    assert to_model_mask(quarters, height=1, width=5)[0].tolist() == [0, 0, 1, 1, 1]


@given(mask=hnp.arrays(bool, st.tuples(st.integers(1, 20), st.integers(1, 20))), factor=st.integers(1, 4))
def test_enlarging_a_mask_repeats_its_pixels(mask: np.ndarray, factor: int) -> None:
    enlarged = to_model_mask(mask, height=factor * mask.shape[0], width=factor * mask.shape[1])
    assert enlarged.dtype == np.uint8
    np.testing.assert_array_equal(enlarged, np.kron(mask, np.ones((factor, factor))))
