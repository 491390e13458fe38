"""`amlp-segmenter` as MLflow loads it: `mlflow.pyfunc.load_model("models:/amlp-segmenter@champion").predict(image)`.

MLflow calls `_load_pyfunc` of this module, out of the copy of `amlp` that is stored with the model: neither pickled
code nor an installed `amlp` is needed, and the masks are those of the `Predictor` that `evaluate` scored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amlp.models.predictor import Predictor
from amlp.registry.model_input import read_images


class SegmenterModel:
    """Raw images in, lesion masks out."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> NDArray[np.uint8] | list[NDArray[np.uint8]]:
        """Segment images.

        Args:
            data: one image or many, see `amlp.registry.model_input.read_images`.
            params: none are known.

        Returns:
            A mask (H, W) uint8 0/1 of the image's own size; for many images a list of them.

        Raises:
            UserError: `data` is no image.
        """
        images, many = read_images(data)
        masks = [self.predictor.mask(image) for image in images]
        return masks if many else masks[0]


def _load_pyfunc(path: str) -> SegmenterModel:
    return SegmenterModel(Predictor.load(Path(path)))
