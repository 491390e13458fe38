"""Picture files as arrays, and back: the one reader that training and prediction share.

PNG, JPEG, TIFF, BMP and WebP of 1 to 16 bits or float; grey, colour, palette and CMYK; TIFF of any number of channels.
What the EXIF orientation says is done in all formats alike: the array is the picture as viewers show it.
"""

from __future__ import annotations

import io
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy import ndimage

from amlp.data.packs import read_packed
from amlp.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
# Formats that Pillow decodes by itself; others (EPS) would start a program on a file that we don't trust. A JPEG with
# a second picture behind it, as phones write it, opens as MPO.
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
_NAMED = "PNG, JPEG, TIFF, BMP or WebP"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# A compressed file of a few kB can unpack to gigabytes. No single picture of a scanner or camera comes near this.
MAX_PIXELS = 50_000_000
MAX_CHANNELS = 64
# PNG's colour types with more than one sample a pixel.
_PNG_SAMPLES = {2: 3, 4: 2, 6: 4}
# Where viewers show a picture's first row and column, by EXIF's number: transposed, then mirrored along these axes.
_TURNS: dict[int, tuple[bool, tuple[int, ...]]] = {
    2: (False, (1,)), 3: (False, (0, 1)), 4: (False, (0,)),
    5: (True, ()), 6: (True, (1,)), 7: (True, (0, 1)), 8: (True, (0,)),
}  # fmt: skip
_ORIENTATION = 274
# A mask of more values than this has blurred edges; one of fewer has classes.
_CLASSES = 8
# More labels than this in one picture: no label image.
_LABELS = 64

Pixels = NDArray[Any]


@dataclass(frozen=True)
class Picture:
    """A decoded file.

    pixels: (H, W) or (H, W, C) uint8, uint16 or float32, finite; (H, W) where three channels are equal; no alpha.
    alpha: (H, W) uint8 or uint16, or None where the file has none.
    indices: (H, W) uint8, a palette's numbers, or None where there is no palette.
    format: PNG, JPEG, TIFF, BMP or WEBP: what the file is, whatever its name says.
    """

    pixels: Pixels
    alpha: Pixels | None
    indices: NDArray[np.uint8] | None
    format: str


@dataclass(frozen=True)
class Mask:
    """lesion: (H, W) bool. blurred: edges were grey (JPEG, a resized mask), and half and more counts as lesion."""

    lesion: NDArray[np.bool_]
    blurred: bool


def read_bytes(path: Path) -> bytes:
    """Read a file, or an archive's entry, see `amlp.data.packs`.

    Raises:
        UserError: there is none, or it is empty.
    """
    try:
        data = path.read_bytes() if path.is_file() else read_packed(path)
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror or error}).") from error
    if data is None:
        raise UserError(f"{path}: no such file.")
    if not data:
        raise UserError(f"{path}: the file is empty.")
    return data


def decode(data: bytes, name: str | Path) -> Picture:
    """Decode a picture file.

    Args:
        data: its bytes.
        name: of the file, for errors.

    Raises:
        UserError: it is truncated, too large, has several frames, or is no picture of a kind we read.
    """
    try:
        try:
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                if image.format == "PNG":
                    # Checks what loading does not: the checksums, and that the file is complete.
                    image.verify()
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                _check_size(image.width, image.height, 1, name)
                if not (image.format == "PNG" and data[24] == 16 and data[25] in _PNG_SAMPLES) and not _deep(image):
                    return _by_pillow(image, name)
                orientation = image.getexif().get(_ORIENTATION, 1)
        except UnidentifiedImageError:
            if data[:4] not in _TIFF:
                raise
        if data[:4] in _TIFF:
            return _by_tifffile(data, name)
        return _by_imagecodecs(data, orientation, name)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"{name}: more than {MAX_PIXELS} pixels.") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{name}: no picture that can be read; expected {_NAMED}.") from error
    except UserError:
        raise
    except Exception as error:  # Decoders raise whatever a garbled file makes them stumble over.
        raise UserError(f"{name}: can't be read ({getattr(error, 'strerror', None) or error}).") from error


def _check_size(width: int, height: int, channels: int, name: str | Path) -> None:
    if width * height > MAX_PIXELS:
        raise UserError(f"{name}: {width} x {height} is over {MAX_PIXELS} pixels.")
    if channels > MAX_CHANNELS:
        raise UserError(f"{name}: {channels} channels, expected at most {MAX_CHANNELS}.")


def _deep(image: Image.Image) -> bool:
    """Whether a TIFF has more than 8 bits a sample: Pillow cuts colours to 8, and does not invert white-is-zero."""
    return image.format == "TIFF" and max(getattr(image, "tag_v2", {}).get(258, (1,))) > 8


def _by_pillow(image: Image.Image, name: str | Path) -> Picture:
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames != 1:
        raise UserError(f"{name}: holds {frames} frames, expected one.")
    kind = "JPEG" if image.format == "MPO" else str(image.format)
    # Pillow turns TIFF while it loads it, and other formats here.
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        return Picture(_narrow(np.array(image), name), None, None, kind)
    if image.mode not in _MODES:
        raise UserError(f"{name}: pixel type {image.mode!r}, expected grey or colour.")
    transparent = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
    alpha = np.array(image.convert("RGBA").getchannel("A")) if transparent else None
    indices = np.array(image) if image.mode == "P" else None
    grey = image.mode in ("1", "L", "LA", "La")
    pixels = np.array(image.convert("L" if grey else "RGB"))
    return Picture(_collapsed(pixels), alpha, indices, kind)


def _by_imagecodecs(data: bytes, orientation: int, name: str | Path) -> Picture:
    """Decode a PNG of 16 bits in several samples."""
    import imagecodecs

    pixels = _turned(imagecodecs.png_decode(data), orientation)
    colours = pixels.shape[2] - (1 - pixels.shape[2] % 2)
    alpha = pixels[..., -1] if pixels.shape[2] > colours else None
    return Picture(_collapsed(pixels[..., :colours]), alpha, None, "PNG")


def _by_tifffile(data: bytes, name: str | Path) -> Picture:
    """Decode a TIFF that Pillow can't, or would cut to 8 bits."""
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        if len(file.pages) != 1:
            raise UserError(f"{name}: holds {len(file.pages)} frames, expected one.")
        page = file.pages.first
        _check_size(page.imagewidth, page.imagelength, page.samplesperpixel, name)
        if page.axes not in ("YX", "YXS", "SYX"):
            raise UserError(f"{name}: a TIFF with axes {page.axes}, expected one picture of rows, columns and samples.")
        pixels = np.atleast_3d(np.moveaxis(page.asarray(), 0, 2) if page.axes == "SYX" else page.asarray())
        if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
            pixels = (np.iinfo(pixels.dtype).max if pixels.dtype.kind == "u" else pixels.max()) - pixels
        elif page.photometric not in (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.RGB):
            raise UserError(f"{name}: a TIFF of kind {page.photometric!s} with {page.bitspersample} bits a sample.")
        # 1 and 2 are transparency; 0 is a channel of no stated meaning.
        extra = tuple(page.extrasamples)
        alpha = pixels[..., -1] if extra and int(extra[-1]) in (1, 2) else None
        colours = pixels if alpha is None else pixels[..., :-1]
        orientation = page.tags.valueof(_ORIENTATION, 1)
    colours = _collapsed(_narrow(_turned(colours, orientation), name))
    return Picture(colours, None if alpha is None else _turned(alpha, orientation), None, "TIFF")


def _turned(pixels: Pixels, orientation: int) -> Pixels:
    """Turn (H, W, ...) as EXIF's orientation asks."""
    transposed, mirrored = _TURNS.get(orientation, (False, ()))
    return np.flip(np.swapaxes(pixels, 0, 1) if transposed else pixels, mirrored)


def _narrow(pixels: Pixels, name: str | Path) -> Pixels:
    """Return uint8 and uint16 as they are, other whole numbers that fit as uint16, the rest as float32.

    Raises:
        UserError: values are complex or not finite.
    """
    if pixels.dtype in (np.uint8, np.uint16):
        return pixels
    if pixels.dtype.kind not in "buif":
        raise UserError(f"{name}: pixels of type {pixels.dtype}, expected grey values.")
    if not np.isfinite(pixels).all():
        raise UserError(f"{name}: holds values that are not finite (NaN or infinity); replace them first.")
    if pixels.dtype.kind != "f" and pixels.min() >= 0 and pixels.max() <= np.iinfo(np.uint16).max:
        return pixels.astype(np.uint16)
    if np.abs(pixels).max() > np.finfo(np.float32).max:
        raise UserError(f"{name}: values up to {np.abs(pixels).max():.3g} are beyond float32.")
    return pixels.astype(np.float32)


def _collapsed(pixels: Pixels) -> Pixels:
    """Return (H, W) where there is one channel, or three equal ones."""
    if pixels.ndim == 3 and (pixels.shape[2] == 1 or (pixels.shape[2] == 3 and (pixels == pixels[..., :1]).all())):
        return np.ascontiguousarray(pixels[..., 0])
    return np.ascontiguousarray(pixels)


def read_image(path: Path) -> Pixels:
    """Read a picture, or what `encode` made.

    Returns:
        `Picture.pixels`; alpha is dropped.

    Raises:
        UserError: the file is missing, empty, truncated, too large or no picture of a kind we read.
    """
    data = read_bytes(path)
    if data.startswith(_NPY):
        return np.load(io.BytesIO(data), allow_pickle=False)
    return decode(data, path).pixels


def mask_of(picture: Picture, name: str | Path, lesion_values: Collection[int] = ()) -> Mask:
    """Return which pixels of a mask's picture are lesion.

    Without `lesion_values` a mask has two values, of which black is background and the other one lesion; or a grey
    edge between two such values, and then half and more is lesion.

    Args:
        picture: of the mask.
        name: of the file, for errors.
        lesion_values: grey values, or a palette's numbers, that are lesion; all others are background.

    Raises:
        UserError: the values leave open what is lesion.
    """
    if lesion_values:
        return _labelled(picture.pixels if picture.indices is None else picture.indices, name, lesion_values)
    values: Any = picture.pixels
    if values.ndim == 3:
        colours = np.unique(values.reshape(-1, values.shape[2]), axis=0)
        if len(colours) > 2 or (len(colours) == 2 and colours[0].any()):
            raise UserError(
                f"{name}: {len(colours)} colours, expected black and one other; save it in black and white."
            )
        values = values.any(axis=2).astype(np.uint8)
    mask = _two_valued(values, name)
    if picture.alpha is not None and picture.alpha.min() != picture.alpha.max():
        opaque = picture.alpha > picture.alpha.max() // 2
        if not np.array_equal(opaque, mask.lesion):
            raise UserError(
                f"{name}: its colours and its transparency disagree on what is lesion; save it in black and white, "
                "without transparency."
            )
    return mask


def _labelled(values: Pixels, name: str | Path, lesion_values: Collection[int]) -> Mask:
    if values.ndim == 3:
        raise UserError(f"{name}: a coloured mask; ingest.lesion_values needs grey values or a palette.")
    if len(found := np.unique(values)) > _LABELS:
        raise UserError(
            f"{name}: {len(found)} values: blurred edges, or no mask; ingest.lesion_values needs exact values."
        )
    return Mask(np.isin(values, list(lesion_values)), False)


def _two_valued(values: Pixels, name: str | Path) -> Mask:
    found = np.unique(values)
    top = float(found[-1])
    if found[0] < 0 or (len(found) == 2 and found[0] != 0):
        listed = " and ".join(f"{value:g}" for value in found[:2])
        raise UserError(f"{name}: values {listed}, expected 0 for background and one other for lesion.")
    if len(found) <= 2:
        return Mask(values > 0, False)
    between = (values > 0.1 * top) & (values < 0.9 * top)
    # An edge is a slope; a class between background and lesion is flat, and a picture is nearly all between.
    flat = ndimage.maximum_filter(values, 3).astype(float) - ndimage.minimum_filter(values, 3) < 0.04 * top
    lesion = values >= top / 2
    classes = (len(found) <= _CLASSES and top < 128) or (between & flat).sum() > 0.01 * max(int(lesion.sum()), 1)
    if classes or between.sum() > max(int(lesion.sum()), 0.05 * values.size):
        listed = ", ".join(f"{value:g}" for value in found[:_CLASSES]) + (", ..." if len(found) > _CLASSES else "")
        raise UserError(
            f"{name}: values {listed}, expected 0 for background and one other for lesion. Several classes? "
            "ingest.lesion_values says which of them are lesion."
        )
    return Mask(lesion, True)


def read_mask(path: Path, lesion_values: Collection[int] = ()) -> NDArray[np.bool_]:
    """Read a mask, see `mask_of`.

    Returns:
        (H, W) bool.

    Raises:
        UserError: as `read_image` and `mask_of`.
    """
    return mask_of(decode(read_bytes(path), path), path, lesion_values).lesion


_NPY = b"\x93NUMPY"


def encode(pixels: Pixels) -> tuple[str, bytes]:
    """Encode an array so that `read_image` gives it back; return the file's suffix and its bytes.

    PNG where it can hold the pixels: (H, W) uint8, uint16 or bool, or (H, W, 3) uint8; else NumPy's own format.
    """
    grey = pixels.ndim == 2 and pixels.dtype in (np.uint8, np.uint16, np.bool_)
    if grey or (pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype == np.uint8):
        return ".png", png_bytes(pixels)
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(pixels), allow_pickle=False)
    return ".npy", buffer.getvalue()


def png_bytes(pixels: NDArray[np.generic]) -> bytes:
    """Encode (H, W) uint8, uint16 or bool, or (H, W, 3) uint8 as PNG; equal pixels give equal bytes."""
    values = pixels.astype(np.uint8) * np.uint8(255) if pixels.dtype == np.bool_ else pixels
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def write_png(path: Path, pixels: NDArray[np.generic]) -> None:
    """Write what `png_bytes` makes."""
    path.write_bytes(png_bytes(pixels))
