"""Pseudo-label pre-training: before it sees a mask, the segmenter learns where lesions probably are.

The encoder knows the lesion categories of all training images from its own pre-training; the rest of the segmenter
starts from nothing, and learns them here.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from amlp.data.shards import ShardedSplit, cases_digest
from amlp.errors import UserError
from amlp.files import read_json
from amlp.layout import EncoderFolder
from amlp.params import FinetuneParams
from amlp.storage import read, write
from amlp.training.launch import launch
from amlp.training.segmentation import Setup, segmentation_loss
from amlp.training.state import TrainingState


def pseudo_labels(settings: FinetuneParams, shards: Path, encoder: Path | None) -> np.ndarray | None:
    """Return the lesion categories (N, h, w) to learn, in the training split's row order; None without any.

    Args:
        settings: the `finetune` section.
        shards: the preprocess stage's folder.
        encoder: the pretrain stage's folder; None from scratch.

    Raises:
        UserError: the encoder's categories are of other images.
    """
    if settings.pseudo_label_epochs == 0:
        return None
    train = ShardedSplit.open(shards, "train")
    if settings.pseudo_labels == "clusters":
        maps = train.scores(np.arange(len(train)))
    elif settings.pseudo_labels == "pretrained" and encoder and EncoderFolder(encoder).scores.is_file():
        maps, file = np.load(EncoderFolder(encoder).scores), EncoderFolder(encoder).scores_of
        if not file.is_file() or read_json(file)["cases"] != cases_digest(train.index):
            raise UserError(
                f"{file}: the categories beside it are not those of the {len(train)} training images in {shards}, row "
                "by row: the encoder was pre-trained on other data. Set finetune.pseudo_labels to clusters or none."
            )
    else:
        return None
    # All 0 where nothing was found, and after a pre-training without MPS and CCL.
    return maps if maps.max() > 0.5 else None


def run(config: dict[str, Any], maps: np.ndarray, settings: FinetuneParams, records: str) -> dict[str, Any]:
    """Train to the end, or from where a killed training stopped.

    Args:
        config: of `finetune`'s loop, whose `start` is where this training's state goes.
        maps: what `pseudo_labels` returns.
        settings: the `finetune` section.
        records: folder for Ray's own records.

    Returns:
        The last checkpoint.
    """
    file, buffer = f"{config['state']}/labels.npy", io.BytesIO()
    np.save(buffer, maps)
    write(file, buffer.getbuffer())
    own = config | {"state": config["start"], "pseudo_labels": file}
    launch(_loop, own, workers=settings.num_workers, folder=records)
    return TrainingState(config["start"]).finished(settings.pseudo_label_epochs)


def _loop(config: dict[str, Any]) -> None:
    """Train on the pseudo-labels; runs on every worker. The weights stay in the training state."""
    setup = Setup.of(config)
    train = ShardedSplit.open(setup.shards, "train")
    labels = _read_array(config["pseudo_labels"])
    # An image without categories says nothing, not that there is no lesion.
    rows = np.flatnonzero(labels.max(axis=(1, 2)) > 0.5)
    session, stream = setup.session(
        "pseudo-labels", setup.model(), rows, epochs=setup.settings.pseudo_label_epochs, state=config["state"]
    )
    with session:
        for epoch in session.epochs:
            for step in session.steps(epoch):
                chosen = setup.worker.share(stream(step))
                target = _lesions(torch.from_numpy(labels[chosen]).to(setup.worker.device), setup)
                images, target = setup.augmented(setup.images(train, chosen), target, step)
                with session.autocast():
                    logits, presence = session.trained(images)
                # Categories say where a lesion would be, not whether there is one. Times 0: distributed training wants
                # a gradient for every weight.
                session.step(step, segmentation_loss(logits, None, target) + 0 * presence.sum())
            session.record(session.end(epoch), {}, keep={})


def _lesions(categories: Tensor, setup: Setup) -> Tensor:
    """Turn categories (n, h, w) into masks (n, 1, H, W) of 0 and 1, smooth: a patch's corners are not the lesion's."""
    size = (setup.plan.height, setup.plan.width)
    maps = F.interpolate(categories.unsqueeze(1), size=size, mode="bilinear", align_corners=False)
    return (maps > 0.5).float()


def _read_array(uri: str) -> np.ndarray:
    data = read(uri)
    assert data is not None, f"{uri}: finetune() writes it before the workers start"
    return np.load(io.BytesIO(data))
