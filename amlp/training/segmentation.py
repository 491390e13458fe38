"""What the two steps of fine-tuning share: the segmenter's start, its loss, its augmented batches, its session."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amlp.data.augment import apply_views, jitter_intensity, random_views, step_generator
from amlp.data.shards import ShardedSplit
from amlp.layout import EncoderFolder
from amlp.models.checkpoint import InputStats, transfer_encoder
from amlp.models.encoder import EncoderPlan
from amlp.models.segmenter import Segmenter, build_network
from amlp.models.unet import UNet
from amlp.params import FinetuneParams, Params
from amlp.storage import local_copy
from amlp.training.launch import Worker, this_worker
from amlp.training.session import Session
from amlp.training.state import TrainingState
from amlp.training.stream import RowStream

_VIEWS, _INTENSITY = 2, 3
# Weight of the image-level loss; the pixels are the task.
_PRESENCE = 0.5


@dataclass(frozen=True)
class Setup:
    """What a worker needs before its first step.

    Attributes:
        params: of the whole run.
        shards: local folder that preprocess wrote.
        encoder: local folder that pretrain wrote; None from scratch.
    """

    params: Params
    worker: Worker
    plan: EncoderPlan
    stats: InputStats
    shards: Path
    encoder: Path | None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Setup:
        """Build it from the plain values that a loop is started with."""
        params, worker = Params.model_validate(config["params"]), this_worker()
        torch.manual_seed(params.seed)
        encoder = local_copy(config["encoder"]) if config["encoder"] else None
        plan, stats = EncoderPlan(**config["plan"]), InputStats(**config["input"])
        return cls(params, worker, plan, stats, local_copy(config["shards"]), encoder)

    @property
    def settings(self) -> FinetuneParams:
        return self.params.finetune

    def model(self) -> Segmenter | UNet:
        """Return the network with the encoder's weights, or with random ones from scratch."""
        model = build_network(self.settings.network, self.plan, self.settings.channels)
        if self.encoder:
            assert isinstance(model, Segmenter), "finetune() refuses an encoder for another network"
            transfer_encoder(EncoderFolder(self.encoder).weights, model.encoder, min_matched=self.settings.min_matched)
        return model.to(self.worker.device)

    def session(
        self, title: str, model: Segmenter | UNet, rows: np.ndarray, *, epochs: int, state: str
    ) -> tuple[Session[Segmenter | UNet], RowStream]:
        """Return the session, and which of the rows each step trains on."""
        stream = RowStream(rows, batch=self.settings.batch, seed=self.params.seed)
        session = Session(
            title,
            model,
            layer_groups(model, self.settings.layer_decay if self.encoder else 1.0),
            settings=self.settings,
            epochs=epochs,
            steps_per_epoch=stream.steps_per_epoch,
            betas=(0.9, 0.999),
            worker=self.worker,
            state=TrainingState(state),
        )
        return session, stream

    def images(self, split: ShardedSplit, rows: np.ndarray) -> Tensor:
        """Return (n, C, H, W) uint8 on the worker's device."""
        return torch.from_numpy(split.images(rows)).to(self.worker.device)

    def masks(self, split: ShardedSplit, rows: np.ndarray) -> Tensor:
        """Return (n, H, W) uint8 0/1 on the worker's device."""
        return torch.from_numpy(split.masks(rows)).to(self.worker.device)

    def augmented(self, images: Tensor, target: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Cut this step's random views of images and target alike, and vary the images' intensity.

        Args:
            images: this worker's share (n, C, H, W), uint8.
            target: (n, 1, H, W) in 0 .. 1.
            step: of the training; with the seed it gives the randomness.

        Returns:
            Normalised images, and the target.
        """
        settings, seed = self.settings, self.params.seed
        pixels = images.float() / 255.0
        if settings.augment:
            views = random_views(
                settings.batch,
                step_generator(seed, step, _VIEWS),
                size=(self.plan.height, self.plan.width),
                min_area=settings.min_crop,
                rotate=settings.rotate,
            )
            both = apply_views(torch.cat([pixels, target], dim=1), self.worker.share(views))
            pixels, target = both[:, :-1], (both[:, -1:] > 0.5).float()
            strength = torch.rand(settings.batch, 3, generator=step_generator(seed, step, _INTENSITY))
            pixels = jitter_intensity(pixels, self.worker.share(strength))
        return self.stats.standardise(pixels), target


def segmentation_loss(logits: Tensor, presence: Tensor | None, masks: Tensor) -> Tensor:
    """Dice + binary cross-entropy of the pixels, and binary cross-entropy of the lesion's presence.

    All are means over images, so workers' averages agree with the whole batch.

    Args:
        logits: (B, 1, H, W).
        presence: (B,) logits that the image shows a lesion; None leaves their part out.
        masks: (B, 1, H, W) in 0 .. 1.
    """
    logits, masks = logits.float(), masks.float()
    probability = logits.sigmoid()
    overlap = (probability * masks).sum(dim=(1, 2, 3))
    size = probability.sum(dim=(1, 2, 3)) + masks.sum(dim=(1, 2, 3))
    # One pixel's worth of smoothing: an empty prediction of an empty mask has loss 0, not 0 / 0.
    dice = 1 - (2 * overlap + 1) / (size + 1)
    loss = dice.mean() + F.binary_cross_entropy_with_logits(logits, masks)
    if presence is None:
        return loss
    present = masks.amax(dim=(1, 2, 3))
    return loss + _PRESENCE * F.binary_cross_entropy_with_logits(presence.float(), present)


def dice_scores(probability: Tensor, masks: Tensor) -> Tensor:
    """DSC of each image (B,) at the model's size; 1 when both masks are empty, for choosing the best epoch.

    Args:
        probability: (B, H, W).
        masks: (B, H, W), above 0 where there is lesion.
    """
    predicted, true = probability > 0.5, masks > 0
    overlap = (predicted & true).sum(dim=(1, 2)).float()
    size = predicted.sum(dim=(1, 2)) + true.sum(dim=(1, 2))
    return torch.where(size > 0, 2 * overlap / size.clamp_min(1), 1.0)


def layer_groups(model: Segmenter | UNet, decay: float) -> list[dict[str, Any]]:
    """Parameter groups whose learning rate shrinks by `decay` with each layer towards the encoder's input."""
    depth = model.plan.depth
    levels: dict[int, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        if name.startswith("encoder.vit.blocks."):
            level = int(name.split(".")[3]) + 1
        elif name.startswith("encoder.vit.") and not name.startswith("encoder.vit.norm"):
            level = 0
        else:
            level = depth + 1
        levels.setdefault(level, []).append((name, parameter))
    return [{"parameters": named, "scale": decay ** (depth + 1 - level)} for level, named in sorted(levels.items())]
