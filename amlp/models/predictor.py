"""From a raw image of any size to a lesion mask of that size: the one path for evaluation and serving."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from amlp.data.images import to_model_input
from amlp.models.checkpoint import InputStats, load
from amlp.models.encoder import EncoderPlan
from amlp.models.segmenter import Segmenter, build_network, lesion_probability
from amlp.models.unet import UNet


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
    """A segmenter with its pre- and post-processing."""

    def __init__(self, model: Segmenter | UNet, stats: InputStats, *, flip_average: bool) -> None:
        self.model = model.eval()
        self.stats = stats
        self.flip_average = flip_average

    @classmethod
    def load(cls, path: Path, device: str = "cpu") -> Predictor:
        """Read a segmenter checkpoint.

        Raises:
            UserError: the file is missing or no segmenter.
        """
        checkpoint = load(Path(path), "amlp-segmenter")
        # Files from before there was a choice name no network.
        network = checkpoint.get("network", "vit")
        model = build_network(network, EncoderPlan(**checkpoint["plan"]), checkpoint["channels"])
        model.load_state_dict(checkpoint["state"])
        return cls(model.to(device), InputStats(**checkpoint["input"]), flip_average=checkpoint["flip_average"])

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Make the model's input (C, h, w) uint8 of an image as `probability` takes it."""
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

    def predict(self, image: np.ndarray) -> Prediction:
        """Segment an image.

        Args:
            image: (H, W) or (H, W, 1 | 3 | 4), any size, integer or float grey values or colours.

        Raises:
            UserError: the image has another shape, no pixels, or values that are not finite.
        """
        pixels = torch.from_numpy(self.prepare(image).copy()).unsqueeze(0)
        return self.finish(*self.logits(pixels), (image.shape[0], image.shape[1]))

    def probability(self, image: np.ndarray) -> np.ndarray:
        """Lesion probability of each pixel, (H, W) float32; `image` as in `predict`."""
        return self.predict(image).probability

    def mask(self, image: np.ndarray) -> np.ndarray:
        """Lesion mask (H, W) uint8, 1 where the probability exceeds 1/2; `image` as in `predict`."""
        return self.predict(image).mask
