"""From a picture's pixels to what the model sees; training and serving share it, so they can't differ."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from amlp.errors import UserError

# Percentiles that become black and white where a type's range says nothing: what is beyond them, a hot pixel or metal,
# changes nothing. The same as nnU-Net's for CT.
ROBUST = (0.5, 99.5)
MOST_VALUES = 4_000_000


def value_range(values: NDArray[Any]) -> tuple[float, float]:
    """Return which values become black and white.

    bool, and floats within 0..1, have a known range; all others are stretched between robust percentiles, or between
    minimum and maximum where those are equal.

    Raises:
        UserError: values are not finite.
    """
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise UserError("image: holds values that are not finite (NaN or infinity); replace them first.")
    if values.dtype == np.bool_ or (values.dtype.kind == "f" and low >= 0.0 and high <= 1.0):
        return 0.0, 1.0
    # Of a large volume every n-th value tells the same.
    robust = np.percentile(values.reshape(-1)[:: 1 + values.size // MOST_VALUES], ROBUST)
    return (float(robust[0]), float(robust[1])) if robust[0] < robust[1] else (low, high)


def to_uint8(image: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Bring any picture to 0..255, same shape.

    uint8 stays as it is; three channels are colours and stretched together, others each by itself, see `value_range`. A
    constant picture becomes 0.

    Raises:
        UserError: values are not finite.
    """
    if image.dtype == np.uint8:
        return image  # type: ignore[return-value]
    if image.ndim == 3 and image.shape[2] not in (1, 3):
        return np.stack([to_uint8(image[..., channel]) for channel in range(image.shape[2])], axis=-1)
    low, high = value_range(image)
    scale = 255.0 / (high - low) if high > low else 0.0
    return np.rint((np.clip(image.astype(np.float64), low, high) - low) * scale).astype(np.uint8)


def to_grey(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Turn (H, W, 3) into (H, W) by luma (ITU-R 601); equal channels come out unchanged, because the weights sum to 1.

    (H, W) stays as it is; other numbers of channels, which are no colours, become their mean.
    """
    if image.ndim == 2:
        return image
    if image.shape[2] != 3:
        return np.rint(image.mean(axis=2)).astype(np.uint8)
    red, green, blue = np.moveaxis(image.astype(np.uint32), 2, 0)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).astype(np.uint8)


def to_model_input(image: NDArray[np.generic], *, channels: int, height: int, width: int) -> NDArray[np.uint8]:
    """Make what the model sees of a raw picture.

    Args:
        image: (H, W) or (H, W, C) of any numeric type, see `to_uint8`; of four channels, for a model of another number,
            the last is alpha and dropped.
        channels: of the model; for 1 colour becomes grey by luma, for 3 grey is repeated.
        height: of the result; the picture is stretched, antialiased, bilinear.
        width: of the result.

    Returns:
        (channels, height, width) uint8.

    Raises:
        UserError: the picture has another shape or number of channels, no pixels, or values that are not finite.
    """
    if image.ndim not in (2, 3) or image.size == 0:
        raise UserError(f"image: shape {image.shape}, expected (H, W) or (H, W, C).")
    if image.ndim == 3:
        image = image[..., :3] if image.shape[2] == 4 != channels else image
        image = image[..., 0] if image.shape[2] == 1 else image
    found = 1 if image.ndim == 2 else image.shape[2]
    if (found, channels) not in ((1, 3), (3, 1)) and found != channels:
        raise UserError(
            f"image: shape {image.shape} has {found} channel(s), the last axis, and the model takes {channels}."
        )
    pixels = to_uint8(image)
    if pixels.ndim == 3 and channels == 1:
        pixels = to_grey(pixels)
    planes = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, 2, 0)
    resized = [_resized(plane, height, width) for plane in planes]
    return np.ascontiguousarray(np.broadcast_to(np.stack(resized), (channels, height, width)))


def _resized(plane: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    picture = Image.fromarray(np.ascontiguousarray(plane))
    return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))


def to_model_mask(mask: NDArray[np.bool_], *, height: int, width: int) -> NDArray[np.uint8]:
    """Stretch an (H, W) mask to (height, width) uint8 0/1: lesion where lesion covers at least half of the pixel."""
    assert mask.ndim == 2
    covered = Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).resize((width, height), Image.Resampling.BOX)
    return (np.asarray(covered) >= 128).astype(np.uint8)
