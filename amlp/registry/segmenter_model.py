"""`amlp-segmenter` as MLflow loads it: `mlflow.pyfunc.load_model("models:/amlp-segmenter@champion").predict(image)`.

MLflow calls `_load_pyfunc` of this module, out of the copy of `amlp` that is stored with the model: neither pickled
code nor an installed `amlp` is needed, and the masks are those of the `Predictor` that `evaluate` scored.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from amlp.errors import UserError
from amlp.models.predictor import Prediction, Predictor
from amlp.registry.model_input import read_item, refusals, split_input

ENCODINGS = ("auto", "array", "png")
# What `predict` takes besides images, with the defaults; they stand in the registered model's signature.
PARAMS = {"encoding": "auto", "probability": False}


class SegmenterModel:
    """Raw images in, lesion masks and what goes with them out."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    def predict(self, data: Any, params: Mapping[str, Any] | None = None) -> dict[str, Any] | list[dict[str, Any]]:
        """Segment images.

        Args:
            data: one image or many, see `amlp.registry.model_input.read_images`.
            params: `encoding` of what is returned: `array` for NumPy arrays, `png` for base64 of a PNG, which keeps
                answers over HTTP small, `auto` for PNG where the image came as text or as nested lists, that is in
                JSON. `probability`: return that too (false).

        Returns:
            A record for the image, for many images a list of them:

            - `mask`: (H, W) uint8, 1 where the image shows a lesion; as PNG 255.
            - `height`, `width`: of the image.
            - `area`: pixels of the mask. `area_fraction`: the same as a share of the image.
            - `presence`: probability that the image shows any lesion.
            - `uncertainty`: 0 .. 1, see `Prediction.uncertainty`; not calibrated.
            - `probability`, if asked for: (H, W) float32; as PNG 16 bits, where 65535 stands for 1.

        Raises:
            MlflowException: `data` is no image, or a parameter has another value; a server answers with status 400.
        """
        with refusals():
            chosen = {**PARAMS, **(params or {})}
            if chosen["encoding"] not in ENCODINGS:
                raise UserError(f"params.encoding: {chosen['encoding']!r}, expected one of {', '.join(ENCODINGS)}.")
            items, many = split_input(data)
            records = []
            # One after the other: a request of many large pictures must not hold all of them decoded.
            for number, item in enumerate(items):
                where = f"model input {number}" if many else "model input"
                prediction = self._predict(read_item(item, where), where)
                png = chosen["encoding"] == "png" or (chosen["encoding"] == "auto" and isinstance(item, (str, list)))
                records.append(_record(prediction, png=png, probability=bool(chosen["probability"])))
        return records if many else records[0]

    def _predict(self, image: NDArray[Any], where: str) -> Prediction:
        try:
            return self.predictor.segment(image)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error


def _record(prediction: Prediction, *, png: bool, probability: bool) -> dict[str, Any]:
    height, width = prediction.mask.shape
    record: dict[str, Any] = {
        "mask": _png(prediction.mask * np.uint8(255)) if png else prediction.mask,
        "height": height,
        "width": width,
        "area": prediction.area,
        "area_fraction": prediction.area / (height * width),
        "presence": prediction.presence,
        "uncertainty": prediction.uncertainty,
    }
    if probability:
        values = prediction.probability
        record["probability"] = _png(np.rint(values * np.float32(65535)).astype(np.uint16)) if png else values
    return record


def _png(pixels: NDArray[Any]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode()


def _load_pyfunc(path: str) -> SegmenterModel:
    return SegmenterModel(Predictor.load(Path(path)))
