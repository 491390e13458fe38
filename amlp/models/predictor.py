"""From a raw image of any size to a lesion mask of that size: the one path for evaluation and serving."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from amlp.data.images import to_model_input
from amlp.errors import UserError
from amlp.models.checkpoint import InputStats, load
from amlp.models.encoder import EncoderPlan
from amlp.models.segmenter import Segmenter, build_network, lesion_probability
from amlp.models.unet import UNet

# Images that the model sees at a time.
BATCH = 16


@dataclass(frozen=True)
class Prediction:
    """What a segmenter says of one image.

    probability: (H, W) float32, that a pixel belongs to a lesion, 0 .. 1, at the image's own size.
    presence: that the image shows any lesion, 0 .. 1; no pixel's probability is larger.
    """

    probability: np.ndarray
    presence: float

    @cached_property
    def mask(self) -> np.ndarray:
        """(H, W) uint8, 1 where the probability exceeds 1/2."""
        return (self.probability > 0.5).astype(np.uint8)

    @cached_property
    def area(self) -> int:
        """Pixels of the mask."""
        return int(np.count_nonzero(self.mask))

    @cached_property
    def uncertainty(self) -> float:
        """How much of the mask the model's own probabilities call into question, 0 .. 1.

        This measure is ours: 1 less the expected intersection over the expected union of the mask with a truth that is
        drawn pixel by pixel from the probabilities. For an empty mask, which any true lesion pixel would make wrong,
        it is the largest probability. It is 0 where all probabilities are 0 or 1, and grows as any pixel's nears 1/2.
        It is not calibrated: read it as a rank, not as the chance of a mistake.
        """
        if not self.area:
            return float(self.probability.max())
        inside = float(np.sum(self.probability, where=self.mask != 0, dtype=np.float64))
        outside = float(np.sum(self.probability, dtype=np.float64)) - inside
        return min(1.0, max(0.0, 1.0 - inside / (self.area + outside)))


class Predictor:
    """A segmenter with its pre- and post-processing; `amlp.load` makes one.

    Images are arrays (H, W), or (H, W, C) with 1, 3 or 4 channels (alpha is dropped), each of any size: uint8 values
    as they are, bool and float within 0 .. 1 taken for that range, and other values, such as 16 bits, stretched from
    the image's own minimum and maximum.
    """

    def __init__(self, model: Segmenter | UNet, stats: InputStats, *, flip_average: bool) -> None:
        self.model = model.eval()
        self.stats = stats
        self.flip_average = flip_average

    @classmethod
    def load(cls, path: Path, device: str = "cpu") -> Predictor:
        """Read a segmenter checkpoint.

        Args:
            path: the file.
            device: where the model runs, as PyTorch names it.

        Raises:
            UserError: the file is missing or no segmenter, or there is no such device.
        """
        checkpoint = load(Path(path), "amlp-segmenter")
        # Files from before there was a choice name no network.
        network = checkpoint.get("network", "vit")
        model = build_network(network, EncoderPlan(**checkpoint["plan"]), checkpoint["channels"])
        model.load_state_dict(checkpoint["state"])
        try:
            model = model.to(device)
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"device {device!r}: can't be used ({str(error).splitlines()[0]}); try 'cpu'.") from error
        return cls(model, InputStats(**checkpoint["input"]), flip_average=checkpoint["flip_average"])

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Make the model's input (C, h, w) uint8 of an image."""
        plan = self.model.plan
        return to_model_input(image, channels=plan.channels, height=plan.height, width=plan.width)

    @torch.inference_mode()
    def logits(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Run the model, on the mirrored images too where it averages both.

        Args:
            pixels: (B, C, h, w) uint8 of `prepare`.

        Returns:
            (B, 1, h, w) and (B,), see `Segmenter.forward`, on the model's device.
        """
        batch = self.stats.normalise(pixels.to(next(self.model.parameters()).device))
        logits, presence = self.model(batch)
        if self.flip_average:
            mirrored, again = self.model(batch.flip(-1))
            logits, presence = (logits + mirrored.flip(-1)) / 2, (presence + again) / 2
        return logits, presence

    @staticmethod
    @torch.inference_mode()
    def finish(logits: Tensor, presence: Tensor, size: tuple[int, int]) -> Prediction:
        """Bring one image's `logits`, (1, 1, h, w) and (1,), to its own size (H, W)."""
        logits = F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)
        probability = lesion_probability(logits, presence)[0].cpu().numpy()
        return Prediction(probability, float(presence.float().sigmoid()))

    def predict(self, images: Sequence[NDArray[Any]]) -> list[NDArray[np.bool_]]:
        """Segment images.

        Args:
            images: as the class describes them; sizes and types may differ.

        Returns:
            For each image its mask (H, W) bool at the image's own size, True where the probability exceeds 1/2.

        Raises:
            UserError: `images` is no list, or an image has another shape, no pixels, or values that are not finite.
        """
        return [prediction.mask != 0 for prediction in self._each(images)]

    def probabilities(self, images: Sequence[NDArray[Any]]) -> list[NDArray[np.float32]]:
        """Return for each image the probability that a pixel is lesion, (H, W) float32, 0 .. 1; see `predict`."""
        return [prediction.probability for prediction in self._each(images)]

    def segment(self, image: NDArray[Any]) -> Prediction:
        """Segment one image: mask, probabilities, presence of a lesion and uncertainty.

        Raises:
            UserError: the image has another shape, no pixels, or values that are not finite.
        """
        pixels = torch.from_numpy(self.prepare(image).copy()).unsqueeze(0)
        return self.finish(*self.logits(pixels), (image.shape[0], image.shape[1]))

    def probability(self, image: np.ndarray) -> np.ndarray:
        """Lesion probability of each pixel of one image, (H, W) float32; `image` as in `segment`."""
        return self.segment(image).probability

    def mask(self, image: np.ndarray) -> np.ndarray:
        """Lesion mask of one image, (H, W) uint8, 1 where the probability exceeds 1/2; `image` as in `segment`."""
        return self.segment(image).mask

    def _each(self, images: Sequence[NDArray[Any]]) -> Iterator[Prediction]:
        if not isinstance(images, (list, tuple)):
            shape = getattr(images, "shape", "")
            raise UserError(f"images: {type(images).__name__} {shape}, expected a list of arrays; [image] for one.")
        for start in range(0, len(images), BATCH):
            batch = images[start : start + BATCH]
            logits, presence = self.logits(
                torch.from_numpy(np.stack([self._prepared(image, start + i) for i, image in enumerate(batch)]))
            )
            for i, image in enumerate(batch):
                yield self.finish(logits[i : i + 1], presence[i : i + 1], image.shape[:2])

    def _prepared(self, image: NDArray[Any], number: int) -> NDArray[np.uint8]:
        if not isinstance(image, np.ndarray) or image.dtype.kind not in "buif":
            kind = f"array of {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
            raise UserError(f"images[{number}]: {kind}, expected an array of numbers.")
        try:
            return self.prepare(image)
        except UserError as error:
            raise UserError(f"images[{number}]: {str(error).removeprefix('image: ')}") from error
