"""What the registered models take: any picture, as array or file, one or many."""

from __future__ import annotations

import base64
import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from amlp.data.pictures import read_image
from amlp.errors import UserError

_EXPECTED = (
    "expected an array (H, W), (H, W, 3) or (H, W, 4), the bytes of a PNG, BMP, TIFF or JPEG file, those bytes in "
    "base64, or a list of such images"
)


def split_input(data: Any) -> tuple[list[Any], bool]:
    """Take a model's input apart into single pictures, unread; `read_images` says what is allowed.

    Returns:
        The pictures as they came, and whether there are many, that is whether the caller gets a list back.

    Raises:
        UserError: a table without a column `image`.
    """
    if hasattr(data, "columns"):
        if "image" not in data.columns:
            raise UserError(f"model input: table with columns {list(data.columns)}, expected a column 'image'.")
        data = list(data["image"])
    if isinstance(data, np.ndarray) and data.dtype == object and data.ndim == 1:
        data = list(data)
    if isinstance(data, (list, tuple)):
        return list(data), True
    return [data], False


def read_images(data: Any) -> tuple[list[NDArray[Any]], bool]:
    """Turn a model's input into pictures.

    Args:
        data: one picture: an array (H, W) or (H, W, 3 or 4) of any size and type, or an image file's bytes, plain or
            as base64 text. Or many of them, sizes may differ: a list, an array of objects, or a DataFrame with a
            column `image`. In a list a picture may be nested lists of grey values, which is what JSON makes of an
            array.

    Returns:
        The pictures, and whether there are many, that is whether the caller gets a list back.

    Raises:
        UserError: `data` holds anything else, or a file that isn't readable.
    """
    items, many = split_input(data)
    return [
        read_item(item, f"model input {number}" if many else "model input") for number, item in enumerate(items)
    ], many


def read_item(item: Any, where: str) -> NDArray[Any]:
    """Read one picture of `split_input`; errors name it `where`."""
    if isinstance(item, np.ndarray) and item.dtype != object:
        if item.dtype.kind not in "buif":
            raise UserError(f"{where}: array of {item.dtype}; {_EXPECTED}.")
        return item
    if isinstance(item, str):
        try:
            item = base64.b64decode("".join(item.split()), validate=True)
        except ValueError as error:
            raise UserError(f"{where}: text that is no base64 ({error}); {_EXPECTED}.") from error
    if isinstance(item, (bytes, bytearray)):
        return _decode(bytes(item), where)
    if isinstance(item, (list, np.ndarray)):
        return _nested(item, where)
    raise UserError(f"{where}: {type(item).__name__}; {_EXPECTED}.")


@contextmanager
def refusals() -> Iterator[None]:
    """Turn our errors about the input into MLflow's, which a scoring server answers with status 400 and the message.

    Raises:
        MlflowException: instead of UserError, with the code INVALID_PARAMETER_VALUE.
    """
    try:
        yield
    except UserError as error:
        from mlflow.exceptions import MlflowException
        from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

        class InputError(MlflowException):
            def __setattr__(self, name: str, value: Any) -> None:
                # The scoring server puts the whole request in front of the message: pictures, which nobody can read
                # there, and which don't belong into logs.
                if name != "message" or "message" not in vars(self):
                    super().__setattr__(name, value)

        raise InputError(str(error), error_code=INVALID_PARAMETER_VALUE) from error


def _decode(content: bytes, where: str) -> NDArray[Any]:
    # Through a file, for the reader of the pipeline takes files, and serving must not read pictures in another way.
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / ("image.png" if content.startswith(b"\x89PNG") else "image")
        file.write_bytes(content)
        try:
            return read_image(file)
        except UserError as error:
            raise UserError(f"{where}: {str(error).removeprefix(f'{file}: ')}") from error


def _nested(item: Any, where: str) -> NDArray[Any]:
    try:
        values = np.array(item, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{where}: nested lists that are no picture ({error}); {_EXPECTED}.") from error
    # JSON keeps no types. Whole numbers are what a file of 8 or 16 bits holds.
    if values.size and (values == np.rint(values)).all() and values.min() >= 0 and values.max() <= 65535:
        return values.astype(np.uint8 if values.max() <= 255 else np.uint16)
    return values


def example_input() -> list[str]:
    """Return one drawn picture, no patient's, as base64 of a PNG: the example that models are registered with."""
    rows, columns = np.mgrid[0:96, 0:128].astype(np.float64)
    grain = np.random.default_rng(0).rayleigh(size=rows.shape)
    lesion = ((rows - 48) / 18) ** 2 + ((columns - 70) / 26) ** 2 < 1
    grey = np.clip(grain * np.where(lesion, 25, 90) * (1 - rows / 240), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, format="PNG")
    return [base64.b64encode(buffer.getvalue()).decode()]
