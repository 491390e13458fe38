from __future__ import annotations

import io
import struct
import tempfile
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from amlp.data.pictures import decode, encode, mask_of, read_image, read_mask, write_png
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


def pillow(pixels: np.ndarray, kind: str = "PNG", mode: str | None = None, **options: Any) -> bytes:
    image = Image.fromarray(pixels)
    file = io.BytesIO()
    (image.convert(mode) if mode else image).save(file, kind, **options)
    return file.getvalue()


def tiff(pixels: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


RAMP = (np.arange(20 * 30).reshape(20, 30) * 7 % 4096).astype(np.uint16)
DEEP = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], axis=-1)
MANY = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1], RAMP[::-1, ::-1], RAMP], axis=-1)
COLOUR = (DEEP >> 4).astype(np.uint8)
# The bytes of a file, and its pixels exactly.
EXACT: dict[str, tuple[bytes, np.ndarray]] = {
    "PNG, colour of 16 bits": (imagecodecs.png_encode(DEEP), DEEP),
    "PNG, colour of 16 bits with alpha": (imagecodecs.png_encode(np.dstack([DEEP, RAMP])), DEEP),
    "PNG, grey of 16 bits": (pillow(RAMP), RAMP),
    "PNG, palette": (pillow(COLOUR[..., 0], mode="P"), COLOUR[..., 0]),
    "TIFF, colour of 16 bits": (tiff(DEEP, photometric="rgb"), DEEP),
    "TIFF, colour of 16 bits, LZW": (tiff(DEEP, photometric="rgb", compression="lzw"), DEEP),
    "TIFF, colour of 16 bits, deflate, tiles": (
        tiff(DEEP, photometric="rgb", compression="deflate", tile=(16, 16)), DEEP
    ),
    "TIFF, grey of 16 bits, white is zero": (tiff(RAMP, photometric="miniswhite"), 65535 - RAMP),
    "TIFF, grey of 8 bits, white is zero": (tiff(COLOUR[..., 0], photometric="miniswhite"), 255 - COLOUR[..., 0]),
    "TIFF, five channels": (tiff(MANY, photometric="minisblack", planarconfig="contig"), MANY),
    "TIFF, five channels in planes": (
        tiff(np.moveaxis(MANY, 2, 0), photometric="minisblack", planarconfig="separate"), MANY
    ),
    "TIFF, float": (tiff(RAMP.astype(np.float32) / 7), RAMP.astype(np.float32) / 7),
    "TIFF, double": (tiff(RAMP / 7), (RAMP / 7).astype(np.float32)),
    "TIFF, signed": (tiff(RAMP.astype(np.int16) - 1000), (RAMP.astype(np.float32) - 1000)),
    "TIFF, 32 bits": (tiff(RAMP.astype(np.uint32)), RAMP),
    "BMP": (pillow(COLOUR, "BMP"), COLOUR),
    "WebP": (pillow(COLOUR, "WEBP", lossless=True), COLOUR),
    "JPEG by the name of a PNG": (pillow(np.full((8, 8), 90, np.uint8), "JPEG"), np.full((8, 8), 90, np.uint8)),
}  # fmt: skip


@pytest.mark.parametrize("kind", EXACT)
def test_pixels_are_read_as_they_are(kind: str) -> None:
    data, expected = EXACT[kind]
    pixels = decode(data, "a").pixels
    assert pixels.dtype == expected.dtype
    np.testing.assert_array_equal(pixels, expected)


def test_cmyk_and_ycbcr_are_colours() -> None:
    smooth = np.asarray(Image.fromarray(COLOUR[:4, :4]).resize((64, 64), Image.Resampling.BICUBIC))
    for mode in ("CMYK", "YCbCr"):
        pixels = decode(pillow(smooth, "JPEG", mode, quality=95), "a.jpg").pixels
        assert np.abs(pixels.astype(int) - smooth).mean() < 4


TURNED = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("WEBP", {"lossless": True}),
        ("JPEG", {"quality": 100}),
    ],
    ids=["PNG", "TIFF", "TIFF, LZW", "WebP", "JPEG"],
)  # fmt: skip
def test_orientation_is_applied_one_way_in_all_formats(orientation: int, kind: str, options: dict[str, Any]) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    image = Image.fromarray(COLOUR)
    turn = TURNED[orientation]
    expected = np.asarray(image if turn is None else image.transpose(Image.Transpose(turn)))
    pixels = decode(pillow(COLOUR, kind, exif=exif, **options), "a").pixels
    assert pixels.shape == expected.shape
    if kind != "JPEG":
        np.testing.assert_array_equal(pixels, expected)
    deep = decode(tiff(DEEP, photometric="rgb", extratags=[(274, "H", 1, orientation, True)]), "a").pixels
    np.testing.assert_array_equal(deep >> 4, expected)


def animated(kind: str) -> bytes:
    frames = [Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR)]
    file = io.BytesIO()
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
    return file.getvalue()


REFUSED: dict[str, tuple[bytes, str]] = {
    "text": (b"no picture", "no picture that can be read"),
    "GIF": (pillow(COLOUR[..., 0], "GIF"), "no picture that can be read; expected PNG, JPEG"),
    "animated PNG": (animated("PNG"), "2 frames"),
    "animated WebP": (animated("WEBP"), "2 frames"),
    "TIFF of two pages": (animated("TIFF"), "2 frames"),
    "TIFF of two deep pages": (tiff(np.stack([RAMP, RAMP]), photometric="minisblack"), "2 frames"),
    "TIFF with NaN": (tiff(np.full((9, 9), np.nan, np.float32)), "not finite"),
    "TIFF of complex values": (tiff(np.ones((9, 9), np.complex64)), "type complex64"),
    "TIFF of 70 channels": (
        tiff(np.zeros((9, 9, 70), np.uint8), photometric="minisblack", planarconfig="contig"), "70 channels"
    ),
    "deep TIFF cut short": (tiff(DEEP, photometric="rgb")[:-900], ""),
    "deep PNG cut short": (imagecodecs.png_encode(DEEP)[:-90], ""),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_can_not_be_read_is_named(kind: str) -> None:
    data, reason = REFUSED[kind]
    with pytest.raises(UserError, match=f"folder/odd.*{reason}"):
        decode(data, "folder/odd")


def test_the_second_picture_of_a_phones_jpeg_is_left_aside() -> None:
    assert decode(animated("MPO"), "a.jpg").pixels.shape == COLOUR.shape


def mask(data: bytes, lesion_values: tuple[int, ...] = ()) -> np.ndarray:
    return mask_of(decode(data, "m.png"), "m.png", lesion_values).lesion


BLOB = np.zeros((40, 50), bool)
BLOB[10:25, 12:33] = True
ORGAN = np.zeros((40, 50), np.uint8)
ORGAN[5:35, 5:45] = 1
ORGAN[BLOB] = 2
WHITE = BLOB.astype(np.uint8) * np.uint8(255)
SOFT = np.asarray(Image.fromarray(WHITE).resize((400, 320), Image.Resampling.BICUBIC))


def palette(indices: np.ndarray, colours: list[int]) -> bytes:
    image = Image.fromarray(indices, "P")
    image.putpalette(colours)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


MASKS: dict[str, bytes] = {
    "0 and 1": pillow(BLOB.astype(np.uint8)),
    "1 bit": pillow(WHITE, mode="1"),
    "16 bits": pillow(WHITE.astype(np.uint16) * 257),
    "palette": palette(BLOB.astype(np.uint8), [0, 0, 0, 128, 0, 0]),
    "red on black": pillow(np.stack([WHITE, 0 * WHITE, 0 * WHITE], -1)),
    "white, opaque on transparent": pillow(np.stack([WHITE] * 4, -1)),
    "float": tiff(BLOB.astype(np.float32)),
}


@pytest.mark.parametrize("kind", MASKS)
def test_masks_of_two_values_read_the_same(kind: str) -> None:
    np.testing.assert_array_equal(mask(MASKS[kind]), BLOB)


def test_of_several_classes_the_parameter_says_which_are_lesion() -> None:
    np.testing.assert_array_equal(mask(pillow(ORGAN), (2,)), BLOB)
    np.testing.assert_array_equal(mask(pillow(ORGAN), (1, 2)), ORGAN > 0)
    np.testing.assert_array_equal(mask(palette(ORGAN, [0, 0, 0, 9, 9, 9, 0, 200, 0]), (2,)), BLOB)


@pytest.mark.parametrize("data", [pillow(SOFT), pillow(SOFT, "JPEG", quality=75)], ids=["antialiased", "JPEG"])
def test_of_a_blurred_edge_half_and_more_is_lesion(data: bytes) -> None:
    found = mask_of(decode(data, "m"), "m")
    assert found.blurred
    assert abs(int(found.lesion.sum()) - 64 * int(BLOB.sum())) < 0.02 * 64 * BLOB.sum()


UNCLEAR: dict[str, tuple[bytes, str]] = {
    "organ and tumour": (pillow(ORGAN), "values 0, 1, 2.*ingest.lesion_values"),
    "organ and tumour, far apart": (pillow(ORGAN * np.uint8(127)), "values 0, 127, 254.*ingest.lesion_values"),
    "1 and 2": (pillow(BLOB.astype(np.uint8) + 1), "values 1 and 2"),
    "three colours": (pillow(np.stack([WHITE, ORGAN * 100, 0 * WHITE], -1)), "3 colours"),
    "black lesion on transparent": (pillow(np.stack([0 * WHITE] * 3 + [WHITE], -1)), "transparency disagree"),
    "white throughout, lesion opaque": (pillow(np.stack([0 * WHITE + 255] * 3 + [WHITE], -1)), "transparency disagree"),
    "the image itself": (pillow(np.asarray(Image.fromarray(COLOUR[..., 0]).resize((90, 60)))), "values 0"),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNCLEAR)
def test_a_mask_that_leaves_open_what_is_lesion_is_refused(kind: str) -> None:
    data, reason = UNCLEAR[kind]
    with pytest.raises(UserError, match=rf"m\.png: .*{reason}"):
        mask(data)


@pytest.mark.parametrize("pixels", [GREY, RAMP, COLOUR, DEEP, MANY, RAMP / np.float32(7)])
def test_encoded_pixels_read_back(tmp_path: Path, pixels: np.ndarray) -> None:
    suffix, data = encode(pixels)
    (tmp_path / f"a{suffix}").write_bytes(data)
    back = read_image(tmp_path / f"a{suffix}")
    assert back.dtype == pixels.dtype
    np.testing.assert_array_equal(back, pixels)
