"""Pictures as arrays: reading them, writing them, and the one way from a raw picture to the model's input."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from amlp.data.packs import read_packed
from amlp.errors import UserError

# Formats that Pillow decodes by itself; others (EPS) would start a program on a file that we don't trust.
FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
# A compressed file of a few kB can unpack to gigabytes. No single ultrasound frame comes near this.
MAX_PIXELS = 50_000_000


def _decode(path: Path, formats: tuple[str, ...]) -> NDArray[np.generic]:
    """Return the pixels, (H, W) or (H, W, 3), uint8 or uint16; palettes resolved, alpha dropped.

    A path may name an entry of an archive, see `amlp.data.packs`.
    """
    packed = None if path.is_file() else read_packed(path)
    if packed is None and not path.is_file():
        raise UserError(f"{path}: no such file.")
    if (path.stat().st_size if packed is None else len(packed)) == 0:
        raise UserError(f"{path}: the file is empty.")

    def opened() -> Image.Image:
        return Image.open(path if packed is None else io.BytesIO(packed), formats=formats)

    try:
        if path.suffix.lower() == ".png":
            with opened() as image:
                # Checks what loading does not: the checksums, and that the file is complete.
                image.verify()
        with opened() as image:
            return _pixels(image, path)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"{path}: more than {MAX_PIXELS} pixels.") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{path}: no {' or '.join(formats)} picture.") from error
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever a garbled file makes them stumble over.
        raise UserError(f"{path}: can't be read ({getattr(error, 'strerror', None) or error}).") from error


def _pixels(image: Image.Image, path: Path) -> NDArray[np.generic]:
    frames = getattr(image, "n_frames", 1)
    if frames != 1:
        raise UserError(f"{path}: holds {frames} frames, expected one.")
    if image.width * image.height > MAX_PIXELS:
        raise UserError(f"{path}: {image.width} x {image.height} is over {MAX_PIXELS} pixels.")
    if image.mode in ("1", "L", "LA", "La"):
        return np.array(image.convert("L"))
    if image.mode.startswith("I"):
        values = np.array(image)
        if values.min() < 0 or values.max() > np.iinfo(np.uint16).max:
            raise UserError(f"{path}: values {values.min()}..{values.max()}, expected 16 bits, 0..65535.")
        return values.astype(np.uint16)
    if image.mode in ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"):
        return np.array(image.convert("RGB"))
    raise UserError(f"{path}: pixel type {image.mode!r}, expected grey or colour of 8 or 16 bits.")


def read_image(path: Path) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Read a picture.

    Returns:
        (H, W), or (H, W, 3) when the picture shows any colour, as uint8 or uint16; alpha is dropped.

    Raises:
        UserError: the file is missing, empty, truncated, too large or no picture of a kind we read.
    """
    pixels = _decode(path, FORMATS)
    assert pixels.dtype in (np.uint8, np.uint16)
    if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
        pixels = np.ascontiguousarray(pixels[..., 0])
    return pixels  # type: ignore[return-value]


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Read a mask: whatever is not black is lesion.

    Returns:
        (H, W) bool.

    Raises:
        UserError: as `read_image`; also for JPEG, whose compression leaves a grey fringe around each lesion.
    """
    pixels = _decode(path, tuple(name for name in FORMATS if name != "JPEG"))
    lesion = pixels.reshape(*pixels.shape[:2], -1) != np.uint8(0)
    return np.logical_or.reduce(lesion, axis=2)


def png_bytes(pixels: NDArray[np.generic]) -> bytes:
    """Encode (H, W) uint8, uint16 or bool, or (H, W, 3) uint8 as PNG; equal pixels give equal bytes."""
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8) * np.uint8(255)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def write_png(path: Path, pixels: NDArray[np.generic]) -> None:
    """Write what `png_bytes` makes."""
    path.write_bytes(png_bytes(pixels))


def to_uint8(image: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Bring any picture to 0..255, same shape.

    uint8 stays as it is; bool, and float within 0..1, have a known range, which becomes 0..255; anything else
    (16 bits, signed) is stretched from its own minimum and maximum, a constant picture to 0.

    Raises:
        UserError: values are not finite.
    """
    if image.dtype == np.uint8:
        return image  # type: ignore[return-value]
    values = image.astype(np.float64)
    if not np.isfinite(values).all():
        raise UserError("image: holds values that are not finite (NaN or infinity); replace them first.")
    low, high = values.min(), values.max()
    known = image.dtype == np.bool_ or (np.issubdtype(image.dtype, np.floating) and low >= 0.0 and high <= 1.0)
    if known:
        low, high = 0.0, 1.0
    scale = 255.0 / (high - low) if high > low else 0.0
    return np.rint((values - low) * scale).astype(np.uint8)


def to_grey(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Turn (H, W, 3) into (H, W) by luma (ITU-R 601); equal channels come out unchanged, for the weights sum to 1."""
    red, green, blue = np.moveaxis(image.astype(np.uint32), 2, 0)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).astype(np.uint8)


def to_model_input(image: NDArray[np.generic], *, channels: int, height: int, width: int) -> NDArray[np.uint8]:
    """Make what the model sees of a raw picture; shards and serving both use it, so they can't differ.

    Args:
        image: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of any numeric type, see `to_uint8`; alpha is dropped.
        channels: 1 or 3; colour becomes grey by luma, grey is repeated.
        height: of the result; the picture is stretched, antialiased, bilinear.
        width: of the result.

    Returns:
        (channels, height, width) uint8.

    Raises:
        UserError: the picture has another shape, no pixels, or values that are not finite.
    """
    assert channels in (1, 3)
    if image.ndim not in (2, 3) or image.size == 0 or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        raise UserError(f"image: shape {image.shape}, expected (H, W), (H, W, 3) or (H, W, 4).")
    if image.ndim == 3:
        image = image[..., 0] if image.shape[2] == 1 else image[..., :3]
    pixels = to_uint8(image)
    if pixels.ndim == 3 and channels == 1:
        pixels = to_grey(pixels)
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    resized = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))
    planes = resized[None] if resized.ndim == 2 else np.moveaxis(resized, 2, 0)
    return np.ascontiguousarray(np.broadcast_to(planes, (channels, height, width)))


def to_model_mask(mask: NDArray[np.bool_], *, height: int, width: int) -> NDArray[np.uint8]:
    """Stretch an (H, W) mask to (height, width) uint8 0/1: lesion where lesion covers at least half of the pixel."""
    assert mask.ndim == 2
    covered = Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).resize((width, height), Image.Resampling.BOX)
    return (np.asarray(covered) >= 128).astype(np.uint8)
