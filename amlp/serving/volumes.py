"""NIfTI volumes: slices for a model of pictures, and masks that lie where their volume does."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amlp.data.images import value_range
from amlp.data.pictures import MAX_PIXELS
from amlp.errors import UserError

# 2 GB while a volume of scaled values is read. The largest CT and MR series are below this.
MAX_VOXELS = 250_000_000


@dataclass(frozen=True)
class Volume:
    """slices: (D, H, W) uint8, along the volume's last axis; columns run along its first axis, rows along its second.

    header: a nibabel image without the data: shape, affine and all that a mask has to share.
    """

    slices: NDArray[np.uint8]
    header: Any


def read_volume(path: Path) -> Volume:
    """Read a volume (X, Y, D), or one slice (X, Y).

    8-bit values stay as they are; others are stretched from the range of the *volume*, so that slices keep their
    relation, as `to_uint8` does with a picture.

    Raises:
        UserError: nibabel is not installed, or the file is damaged, too large, no volume or has values that are not
            finite.
    """
    nibabel = _nibabel()
    try:
        image = nibabel.load(path)
        if not isinstance(image, nibabel.Nifti1Image):
            raise UserError(f"{path}: {type(image).__name__}, expected NIfTI in one file.")
        shape = image.shape
        if len(shape) < 2 or any(size != 1 for size in shape[3:]) or 0 in shape:
            raise UserError(f"{path}: shape {shape}, expected a volume of 2 or 3 dimensions.")
        if shape[0] * shape[1] > MAX_PIXELS or np.prod(shape, dtype=np.float64) > MAX_VOXELS:
            raise UserError(f"{path}: shape {shape} is over {MAX_PIXELS} pixels a slice or {MAX_VOXELS} voxels.")
        values = np.asanyarray(image.dataobj)
    except UserError:
        raise
    except Exception as error:  # nibabel, gzip and NumPy raise whatever a garbled file makes them stumble over.
        raise UserError(f"{path}: can't be read ({getattr(error, 'strerror', None) or error}).") from error
    if values.dtype.kind not in "buif":
        raise UserError(f"{path}: voxels of type {values.dtype}, expected grey values.")
    values = values.reshape(*shape[:2], -1).T
    slices = np.empty(values.shape, np.uint8)
    try:
        low, high = value_range(values)
    except UserError as error:
        raise UserError(f"{path}: {str(error).removeprefix('image: ')}") from error
    scale = 255.0 / (high - low) if high > low else 0.0
    for number, plane in enumerate(values):
        if values.dtype == np.uint8:
            slices[number] = plane
        else:
            slices[number] = np.rint((np.clip(plane.astype(np.float64), low, high) - low) * scale)
    image.uncache()
    return Volume(slices, image)


def volume_bytes(masks: NDArray[np.uint8], like: Any, *, compress: bool) -> bytes:
    """Make a NIfTI file of masks (D, H, W) uint8 0/1, with shape, affine, qform and sform of `like`.

    Free text and extensions, where people's names are found, are not taken over.

    Args:
        masks: of the slices of a `Volume`.
        like: its `header`.
        compress: gzip; equal masks give equal bytes.
    """
    header = like.header.copy()
    header.set_data_dtype(np.uint8)
    header.set_slope_inter(1, 0)
    header.extensions.clear()
    for field in ("descrip", "aux_file", "intent_name", "db_name"):
        # NIfTI-2 has no db_name.
        if field in header:
            header[field] = b""
    header["cal_min"], header["cal_max"] = 0, 1
    content = type(like)(masks.T.reshape(like.shape), like.affine, header).to_bytes()
    return gzip.compress(content, compresslevel=6, mtime=0) if compress else content


def _nibabel() -> Any:
    try:
        import nibabel
    except ImportError as error:
        raise UserError("NIfTI volumes need the package nibabel: pip install nibabel") from error
    return nibabel
