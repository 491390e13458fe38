"""From a raw image of any size to a lesion mask of that size: the one path for evaluation and serving."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from amlp.data.images import to_model_input
from amlp.models.checkpoint import InputStats, load
from amlp.models.encoder import EncoderPlan
from amlp.models.segmenter import Segmenter, build_network, lesion_probability
from amlp.models.unet import UNet


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

    @torch.inference_mode()
    def probability(self, image: np.ndarray) -> np.ndarray:
        """Lesion probability of each pixel.

        Args:
            image: (H, W) or (H, W, 1 | 3 | 4), any size, integer or float grey values or colours.

        Returns:
            (H, W) float32 in 0 .. 1, at the image's own size.
        """
        plan = self.model.plan
        pixels = to_model_input(image, channels=plan.channels, height=plan.height, width=plan.width)
        device = next(self.model.parameters()).device
        batch = self.stats.normalise(torch.from_numpy(pixels.copy()).to(device).unsqueeze(0))
        logits, presence = self.model(batch)
        if self.flip_average:
            mirrored, again = self.model(batch.flip(-1))
            logits, presence = (logits + mirrored.flip(-1)) / 2, (presence + again) / 2
        logits = F.interpolate(logits.float(), size=image.shape[:2], mode="bilinear", align_corners=False)
        return lesion_probability(logits, presence)[0].cpu().numpy()

    def mask(self, image: np.ndarray) -> np.ndarray:
        """Lesion mask (H, W) uint8, 1 where the probability exceeds 1/2."""
        return (self.probability(image) > 0.5).astype(np.uint8)
