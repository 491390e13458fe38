from __future__ import annotations

import struct
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from amlp.data.images import read_image, read_mask, to_grey, to_model_input, to_model_mask, to_uint8, write_png
from amlp.errors import UserError

GREY = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
LESION = np.zeros((6, 8), bool)
LESION[2:4, 3:7] = True


def save(path: Path, mode: str, pixels: np.ndarray) -> Path:
    """Write grey pixels (H, W) uint8 in one of Pillow's modes."""
    if mode == "I;16":
        Image.fromarray(pixels.astype(np.uint16) * 257).save(path)
    else:
        Image.fromarray(pixels).convert(mode).save(path)
    return path


def png(width: int, height: int, rows: bytes = b"") -> bytes:
    """A grey PNG by hand, with checksums; its size may be a lie."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P"])
def test_grey_pictures_of_all_modes_read_the_same(tmp_path: Path, mode: str) -> None:
    pixels = read_image(save(tmp_path / "a.png", mode, GREY))
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, GREY)


def test_sixteen_bits_stay_sixteen_bits(tmp_path: Path) -> None:
    pixels = read_image(save(tmp_path / "a.png", "I;16", GREY))
    assert pixels.dtype == np.uint16
    np.testing.assert_array_equal(pixels, GREY.astype(np.uint16) * 257)


def test_colour_is_kept_and_alpha_dropped(tmp_path: Path) -> None:
    colour = np.stack([GREY, GREY, GREY, np.full_like(GREY, 7)], axis=-1)
    colour[0, 0, 2] = 255
    Image.fromarray(colour).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), colour[..., :3])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "P", "I;16"])
@pytest.mark.parametrize("lesion", [LESION, np.zeros_like(LESION)], ids=["lesion", "empty"])
def test_masks_of_all_modes_read_the_same(tmp_path: Path, mode: str, lesion: np.ndarray) -> None:
    mask = read_mask(save(tmp_path / "a.png", mode, lesion.astype(np.uint8) * 255))
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(mask, lesion)


def test_label_values_other_than_255_are_lesion(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_mask(save(tmp_path / "a.png", "L", LESION.astype(np.uint8))), LESION)


def test_jpeg_is_an_image_but_no_mask(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.jpg")
    assert read_image(tmp_path / "a.jpg").shape == GREY.shape
    with pytest.raises(UserError, match=r"a\.jpg: no PNG"):
        read_mask(tmp_path / "a.jpg")


@pytest.mark.parametrize("pixels", [GREY, GREY.astype(np.uint16) * 257, np.stack([GREY, GREY, 255 - GREY], -1)])
def test_written_pictures_read_back(tmp_path: Path, pixels: np.ndarray) -> None:
    write_png(tmp_path / "a.png", pixels)
    back = read_image(tmp_path / "a.png")
    assert back.dtype == pixels.dtype
    np.testing.assert_array_equal(back, pixels)


def test_written_masks_are_0_and_255(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", LESION)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), LESION * np.uint8(255))


# Of the last four bytes, the end mark's checksum, nothing depends.
@given(lost=st.integers(5, 65))
def test_a_truncated_file_is_named(lost: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cut.png"
        save(path, "L", GREY)
        whole = path.read_bytes()
        path.write_bytes(whole[:-lost])
        with pytest.raises(UserError, match=r"cut\.png"):
            read_image(path)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@given(garbage=st.binary(max_size=200), signature=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"II*\x00", b"BM"]))
def test_garbage_is_named(garbage: bytes, signature: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "junk.png"
        path.write_bytes(signature + garbage)
        with pytest.raises(UserError, match=r"junk\.png"):
            read_image(path)


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    data = bytearray(png(4, 4, b"\x00\x01\x02\x03\x04" * 4))
    (tmp_path / "whole.png").write_bytes(data)
    assert read_image(tmp_path / "whole.png").shape == (4, 4)
    data[-20] ^= 1
    (tmp_path / "flipped.png").write_bytes(data)
    with pytest.raises(UserError, match=r"flipped\.png"):
        read_image(tmp_path / "flipped.png")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [7500, 12_000, 60_000])
def test_a_decompression_bomb_is_refused_unopened(tmp_path: Path, side: int) -> None:
    (tmp_path / "bomb.png").write_bytes(png(side, side))
    with pytest.raises(UserError, match=r"bomb\.png.*50000000 pixels"):
        read_image(tmp_path / "bomb.png")


def test_several_frames_are_refused(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "cine.tiff", save_all=True, append_images=[Image.fromarray(255 - GREY)])
    with pytest.raises(UserError, match="2 frames"):
        read_image(tmp_path / "cine.tiff")


@pytest.mark.parametrize("name", ["absent.png", "."])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_image(tmp_path / name)


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
def test_sixteen_bits_are_stretched_from_minimum_to_maximum(image: np.ndarray, gain: int, offset: int) -> None:
    pixels = to_uint8(image)
    if image.max() > image.min():
        assert (pixels.min(), pixels.max()) == (0, 255)
    else:
        assert not pixels.any()
    # Half a grey value may round either way.
    shifted = to_uint8((image.astype(np.int64) * gain + offset).astype(np.uint16))
    assert np.abs(shifted.astype(int) - pixels).max() <= 1


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


@pytest.mark.parametrize("shape", [(4,), (0, 4), (4, 4, 2), (4, 4, 5), (1, 4, 4, 3)])
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
