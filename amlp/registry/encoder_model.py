"""`amlp-encoder` as MLflow loads it: raw images in, feature vectors out; fine-tuning takes its file `encoder.pt`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from amlp.data.images import to_model_input
from amlp.models.checkpoint import InputStats, load_encoder
from amlp.models.encoder import Encoder
from amlp.registry.model_input import read_images, refusals


class EncoderModel:
    """Describes an image by the mean of its patch tokens."""

    def __init__(self, encoder: Encoder, stats: InputStats) -> None:
        self.encoder = encoder
        self.stats = stats

    @torch.inference_mode()
    def predict(
        self, data: Any, params: dict[str, Any] | None = None
    ) -> NDArray[np.float32] | list[NDArray[np.float32]]:
        """Encode images.

        Args:
            data: one image or many, see `amlp.registry.model_input.read_images`.
            params: none are known.

        Returns:
            A feature vector (D,) float32; for many images a list of them.

        Raises:
            MlflowException: `data` is no image.
        """
        with refusals():
            images, many = read_images(data)
            features = [self._features(image) for image in images]
        return features if many else features[0]

    def _features(self, image: NDArray[Any]) -> NDArray[np.float32]:
        plan = self.encoder.plan
        pixels = to_model_input(image, channels=plan.channels, height=plan.height, width=plan.width)
        tokens = self.encoder(self.stats.normalise(torch.tensor(pixels).unsqueeze(0)))
        return tokens[0, self.encoder.prefix :].mean(dim=0).numpy()


def _load_pyfunc(path: str) -> EncoderModel:
    return EncoderModel(*load_encoder(Path(path)))
