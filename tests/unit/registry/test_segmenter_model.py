from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowException
from PIL import Image

from amlp.data.pictures import MAX_PIXELS, write_png
from amlp.models.predictor import Predictor
from amlp.registry.segmenter_model import SegmenterModel, _load_pyfunc
from tests.support.stage_outputs import write_stage_outputs


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    write_stage_outputs(root)
    return root / "models" / "segmenter" / "segmenter.pt"


@pytest.fixture(scope="module")
def model(weights: Path) -> SegmenterModel:
    return _load_pyfunc(str(weights))


def pixels_of(text: str) -> Any:
    return np.array(Image.open(io.BytesIO(base64.b64decode(text))))


def test_masks_are_the_predictor_s_whatever_form_the_image_has(
    weights: Path, model: SegmenterModel, tmp_path: Path
) -> None:
    random = np.random.default_rng(1)
    predictor = Predictor.load(weights)
    for image in (
        random.integers(0, 256, (50, 71), dtype=np.uint8),
        random.integers(0, 65536, (33, 20), dtype=np.uint16),
        random.integers(0, 256, (24, 90, 3), dtype=np.uint8),
    ):
        expected = predictor.mask(image)
        write_png(tmp_path / "image.png", image)
        content = (tmp_path / "image.png").read_bytes()
        assert 0 < expected.mean() < 1, "the test can't tell masks apart"
        for data in (image, content):
            mask = model.predict(data)["mask"]
            assert mask.dtype == np.uint8 and mask.shape == image.shape[:2]
            np.testing.assert_array_equal(mask, expected)
        text = base64.b64encode(content).decode()
        np.testing.assert_array_equal(pixels_of(model.predict(text)["mask"]), expected * 255)
        (record,) = model.predict([image.tolist()])
        np.testing.assert_array_equal(pixels_of(record["mask"]), expected * 255)
        table = pd.DataFrame({"image": [content, text]})
        for record in model.predict(table, params={"encoding": "array"}):
            np.testing.assert_array_equal(record["mask"], expected)


def test_alpha_is_dropped_and_a_single_pixel_is_an_image(weights: Path, model: SegmenterModel) -> None:
    colour = np.random.default_rng(2).integers(0, 256, (20, 31, 3), dtype=np.uint8)
    alpha = np.dstack([colour, np.full((20, 31), 7, np.uint8)])
    buffer = io.BytesIO()
    Image.fromarray(alpha).save(buffer, format="PNG")
    expected = Predictor.load(weights).mask(colour)
    for data in (alpha, buffer.getvalue()):
        np.testing.assert_array_equal(model.predict(data)["mask"], expected)
    assert model.predict(np.zeros((1, 1), np.uint8))["mask"].shape == (1, 1)


def test_a_record_tells_area_presence_and_uncertainty(weights: Path, model: SegmenterModel) -> None:
    image = np.random.default_rng(3).integers(0, 256, (40, 30), dtype=np.uint8)
    expected = Predictor.load(weights).segment(image)
    record = model.predict(image, params={"probability": True})
    np.testing.assert_array_equal(record.pop("probability"), expected.probability)
    np.testing.assert_array_equal(record.pop("mask"), expected.mask)
    assert record == {
        "height": 40, "width": 30, "area": int(expected.mask.sum()), "area_fraction": float(expected.mask.mean()),
        "presence": expected.presence, "uncertainty": expected.uncertainty,
    }  # fmt: skip
    assert json.loads(json.dumps(record)) == record, "plain numbers"


def test_probability_as_png_is_within_half_a_step(weights: Path, model: SegmenterModel) -> None:
    image = np.random.default_rng(3).integers(0, 256, (40, 30), dtype=np.uint8)
    record = model.predict(image, params={"probability": True, "encoding": "png"})
    found = pixels_of(record["probability"]) / 65535
    np.testing.assert_allclose(found, Predictor.load(weights).probability(image), atol=0.501 / 65535)


def test_list_gives_a_list_of_records_of_the_images_sizes(model: SegmenterModel) -> None:
    records = model.predict([np.zeros((31, 44), np.uint8), np.zeros((80, 12, 3), np.uint8)])
    assert isinstance(records, list)
    assert [record["mask"].shape for record in records] == [(31, 44), (80, 12)]


def bomb() -> bytes:
    """A PNG of 18 kB or so that unpacks to more than is allowed."""
    buffer = io.BytesIO()
    Image.new("1", (MAX_PIXELS // 5000 + 1, 5000)).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "params", "message"),
    [
        (np.zeros((5, 32, 32), np.uint8), {}, r"^model input: image: shape \(5, 32, 32\)"),
        ([np.zeros((4, 4), np.uint8), b"garbage"], {}, "^model input 1: no picture"),
        ([[[1.5, float("nan")]]], {}, "^model input 0: image: holds values that are not finite"),
        (np.array([["a"]]), {}, "^model input: array of <U1"),
        ("\u00e9", {}, "^model input: text that is no base64"),
        (bomb(), {}, f"{MAX_PIXELS} pixels"),
        (np.zeros((4, 4), np.uint8), {"encoding": "jpeg"}, "'jpeg', expected one of auto, array, png"),
    ],
)
def test_what_is_wrong_with_the_input_is_a_client_s_error(
    model: SegmenterModel, data: Any, params: dict[str, Any], message: str
) -> None:
    with pytest.raises(MlflowException, match=message) as caught:
        model.predict(data, params=params)
    assert caught.value.get_http_status_code() == 400
