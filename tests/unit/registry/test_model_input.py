from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from amlp.data.pictures import read_image, write_png
from amlp.errors import UserError
from amlp.registry.model_input import example_input, read_images

GREY = np.arange(12 * 17, dtype=np.uint8).reshape(12, 17)
DEEP = (np.arange(9 * 5, dtype=np.uint16) * 1111).reshape(9, 5)
COLOUR = np.random.default_rng(0).integers(0, 256, (8, 21, 3), dtype=np.uint8)


@pytest.mark.parametrize("image", [GREY, DEEP, COLOUR, GREY.astype(np.float32) / 255])
def test_array_is_one_image(image: np.ndarray) -> None:
    images, many = read_images(image)
    assert not many
    np.testing.assert_array_equal(images, [image])


@pytest.mark.parametrize("image", [GREY, DEEP, COLOUR])
def test_file_content_reads_as_the_pipeline_reads_the_file(tmp_path: Path, image: np.ndarray) -> None:
    file = tmp_path / "image.png"
    write_png(file, image)
    for content in (file.read_bytes(), base64.b64encode(file.read_bytes()).decode(),
                    base64.encodebytes(file.read_bytes()).decode()):  # fmt: skip
        (read,), many = read_images(content)
        assert not many
        assert read.dtype == read_image(file).dtype
        np.testing.assert_array_equal(read, read_image(file))


def test_jpeg_content_is_read(tmp_path: Path) -> None:
    Image.fromarray(COLOUR).save(tmp_path / "image.jpg")
    (read,), _ = read_images((tmp_path / "image.jpg").read_bytes())
    np.testing.assert_array_equal(read, read_image(tmp_path / "image.jpg"))


def test_many_images_of_several_sizes_and_kinds(tmp_path: Path) -> None:
    write_png(tmp_path / "deep.png", DEEP)
    batch: list[Any] = [GREY, (tmp_path / "deep.png").read_bytes(), COLOUR]
    objects = np.empty(3, dtype=object)
    objects[:] = batch
    for data in (batch, tuple(batch), objects, pd.DataFrame({"image": objects, "note": ""})):
        images, many = read_images(data)
        assert many
        for image, expected in zip(images, (GREY, DEEP, COLOUR), strict=True):
            np.testing.assert_array_equal(image, expected)


def test_one_image_in_a_list_is_still_a_list() -> None:
    images, many = read_images([GREY])
    assert many and len(images) == 1


@pytest.mark.parametrize("image", [GREY, DEEP, COLOUR])
def test_json_lists_regain_their_type(image: np.ndarray) -> None:
    (read,), _ = read_images([image.tolist()])
    assert read.dtype == image.dtype
    np.testing.assert_array_equal(read, image)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"image": 1}, "dict"),
        (None, "NoneType"),
        ("no base64!", "base64"),
        (b"GIF89a", "no picture"),
        ([[[1, 2], [3]]], "nested lists"),
        ([[[10**400]]], "nested lists"),
        (pd.DataFrame({"picture": [b""]}), "column 'image'"),
    ],
)
def test_anything_else_is_refused_by_name(data: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_images(data)


def test_message_names_the_image_and_no_temporary_file() -> None:
    with pytest.raises(UserError) as caught:
        read_images([GREY, b"\x89PNG\r\n\x1a\n"])
    assert str(caught.value).startswith("model input 1: ")
    assert "/" not in str(caught.value)


def test_example_is_a_picture_and_always_the_same() -> None:
    (image,), _ = read_images(example_input())
    assert image.shape == (96, 128) and image.dtype == np.uint8
    assert image[48, 70 - 10 : 70 + 10].mean() < image[48, :20].mean(), "the lesion is dark"
    assert example_input() == example_input()
