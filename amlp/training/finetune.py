"""Fine-tuning: train the segmenter on labelled images, from a pre-trained encoder or from scratch.

    amlp finetune                                         # models/encoder -> models/segmenter
    amlp finetune --from-scratch --out models/scratch     # the comparison

One reading direction: settings -> data -> start -> loops -> outputs. Before it sees a mask, the segmenter may learn
pseudo-labels, see pseudo_labels.py.
"""

from __future__ import annotations

import hashlib
import logging
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from amlp.data.labels import labelled_subset
from amlp.data.shards import ShardedSplit, cases_digest, read_stats
from amlp.errors import UserError
from amlp.files import sha256, write_json
from amlp.layout import EncoderFolder, SegmenterFolder
from amlp.models.checkpoint import InputStats, LoadReport, save, transfer_encoder
from amlp.models.encoder import Encoder, EncoderPlan
from amlp.models.segmenter import Segmenter, lesion_probability
from amlp.models.unet import UNet
from amlp.params import FinetuneParams, Params
from amlp.storage import absolute, local_copy, output_dir, pin
from amlp.training import pseudo_labels
from amlp.training.launch import check_shares, launch
from amlp.training.segmentation import Setup, dice_scores, segmentation_loss
from amlp.training.state import TrainingState, code_digest, data_digest, run_digest

logger = logging.getLogger(__name__)


def finetune(
    *, params: Params, shards: Path | str, encoder: Path | str | None, out: Path | str, state: Path | str
) -> dict[str, Any]:
    """Train a segmenter and keep the epoch that is best on the validation split.

    Each folder is a local path or `s3://bucket/prefix`.

    Args:
        params: the `finetune` and `encoder` sections and the seed count here.
        shards: the preprocess stage's folder.
        encoder: the pretrain stage's folder; None trains from scratch.
        out: written whole: segmenter.pt, history.csv, system.csv, loading.json, labels.json, metrics.json.
        state: folder for the checkpoint from which a killed training resumes.

    Returns:
        The figures of metrics.json.

    Raises:
        UserError: no labelled images, an encoder that does not fit, or a training that diverged.
    """
    settings = params.finetune
    if encoder and settings.network != "vit":
        raise UserError(
            f"finetune.network: {settings.network} has no encoder to take from {encoder}; train it with "
            "--from-scratch, or set `vit`."
        )
    check_shares(settings.batch, settings.num_workers, "finetune.batch")
    source, start = pin(shards), pin(encoder) if encoder else None
    shards, encoder = local_copy(source), local_copy(start) if start else None
    stats = read_stats(shards)
    if not ShardedSplit.open(shards, "val").index["labelled"].any():
        raise UserError(f"{shards}: the validation split holds no image with a mask, so no epoch can be chosen by it.")
    plan = EncoderPlan(channels=stats.channels, height=stats.height, width=stats.width, **params.encoder.model_dump())
    inputs, report = InputStats(mean=stats.mean, std=stats.std), None
    if encoder:
        report, inputs = _try_encoder(encoder, plan, settings)
    maps = pseudo_labels.pseudo_labels(settings, shards, encoder)
    digest = run_digest(
        settings.model_dump(),
        params.seed,
        asdict(plan),
        data_digest(shards),
        code_digest(),
        sha256(EncoderFolder(encoder).weights) if encoder else None,
        hashlib.sha256(maps.tobytes()).hexdigest() if maps is not None else None,
    )
    training = TrainingState(f"{absolute(state)}/finetune-{digest}")
    config = {
        "params": params.model_dump(by_alias=True),
        "shards": source,
        "encoder": start,
        "plan": asdict(plan),
        "input": asdict(inputs),
        "state": training.uri,
        "start": None,
    }
    with training.locked():
        records = f"{absolute(state)}/ray/finetune-{digest}"
        before: dict[str, Any] = {"seconds": 0.0, "system": []}
        if maps is not None:
            config["start"] = f"{training.uri}/pseudo-labels"
            before = pseudo_labels.run(config, maps, settings, records)
        launch(_loop, config, workers=settings.num_workers, folder=records)
        end = training.finished(settings.epochs)
        metrics = _metrics(before, end)
        with output_dir(out) as path:
            folder = SegmenterFolder(path)
            save(folder.weights, _segmenter(settings, plan, inputs, end["best"]["state"]))
            _write_tables(folder, before, end)
            write_json(folder.loading, asdict(report) if report else None)
            write_json(folder.metrics, metrics)
            write_json(folder.labels, _labels(shards, settings, params.seed))
        training.discard()
    logger.info(f"Wrote {out}: best validation DSC {metrics['val_dsc']:.3f} in epoch {metrics['best_epoch']}.")
    return metrics


def _loop(config: dict[str, Any]) -> None:
    """Train on the masks; runs on every worker. What it finds stays in the training state, which `finetune` reads."""
    setup = Setup.of(config)
    settings, worker = setup.settings, setup.worker
    train, val = ShardedSplit.open(setup.shards, "train"), ShardedSplit.open(setup.shards, "val")
    rows = labelled_subset(train.index, settings.label_fraction, setup.params.seed)

    # Resume precedence: this training's own checkpoint > what the pseudo-labels taught > the encoder > random weights.
    model = setup.model()
    if config["start"]:
        model.load_state_dict(TrainingState(config["start"]).finished(settings.pseudo_label_epochs)["average"])
    session, stream = setup.session("finetune", model, rows, epochs=settings.epochs, state=config["state"])
    best: dict[str, Any] = session.resumed.get("best", {"dsc": -1.0, "epoch": -1, "state": {}})

    with session:
        for epoch in session.epochs:
            for step in session.steps(epoch):
                chosen = worker.share(stream(step))
                target = setup.masks(train, chosen).unsqueeze(1).float()
                images, target = setup.augmented(setup.images(train, chosen), target, step)
                with session.autocast():
                    logits, presence = session.trained(images)
                session.step(step, segmentation_loss(logits, presence, target))

            end = session.end(epoch)
            val_dsc = math.nan
            if end.number % settings.validate_epochs == 0 or end.number == settings.epochs:
                with torch.inference_mode(), session.autocast():
                    val_dsc = _validate(session.average.model, val, setup)
            if val_dsc > best["dsc"]:
                weights = {k: tensor.detach().cpu().clone() for k, tensor in session.average.model.state_dict().items()}
                best = {"dsc": val_dsc, "epoch": end.number, "state": weights}
            keep = {"best": best, "labelled_images": len(rows)}
            session.record(end, {"val_dsc": val_dsc}, keep=keep, shown="val_dsc")


def _validate(model: Segmenter | UNet, val: ShardedSplit, setup: Setup) -> float:
    """Mean DSC over the labelled images of the validation split, which the workers share."""
    rows = np.flatnonzero(val.index["labelled"].to_numpy())[setup.worker.rank :: setup.worker.count]
    scores = torch.zeros(2, dtype=torch.float64)
    for chunk in np.array_split(rows, max(1, -(-len(rows) // 32))):
        if len(chunk) == 0:
            continue
        images = setup.stats.normalise(setup.images(val, chunk))
        dsc = dice_scores(lesion_probability(*model(images)), setup.masks(val, chunk))
        scores += torch.tensor([dsc.double().sum().item(), len(dsc)])
    total, count = setup.worker.sum(scores).tolist()
    return float(total / count)


def _try_encoder(encoder: Path, plan: EncoderPlan, settings: FinetuneParams) -> tuple[LoadReport, InputStats]:
    """Load the encoder here too, so that one that does not fit is reported before any worker starts."""
    checkpoint = EncoderFolder(encoder).weights
    if not checkpoint.is_file():
        raise UserError(f"{checkpoint}: not found; run `amlp pretrain` first, or train with --from-scratch.")
    report, inputs = transfer_encoder(checkpoint, Encoder(plan), min_matched=settings.min_matched)
    logger.info(f"Encoder {checkpoint}: {report}")
    return report, inputs


def _metrics(before: dict[str, Any], end: dict[str, Any]) -> dict[str, Any]:
    return {
        "val_dsc": round(end["best"]["dsc"], 6),
        "best_epoch": end["best"]["epoch"],
        "labelled_images": end["labelled_images"],
        "seconds": round(before["seconds"] + end["seconds"], 1),
        "pseudo_label_seconds": round(before["seconds"], 1),
    }


def _labels(shards: Path, settings: FinetuneParams, seed: int) -> dict[str, Any]:
    """Name the images that this saw, by which `evaluate --split unused` knows those that it did not see."""
    index = ShardedSplit.open(shards, "train").index
    labelled = index.iloc[labelled_subset(index, settings.label_fraction, seed)]
    return {"images": len(labelled), "cases": cases_digest(labelled)}


def _segmenter(
    settings: FinetuneParams, plan: EncoderPlan, inputs: InputStats, state: dict[str, Any]
) -> dict[str, Any]:
    """What segmenter.pt holds."""
    return {
        "kind": "amlp-segmenter",
        "plan": asdict(plan),
        "network": settings.network,
        "channels": settings.channels,
        "input": asdict(inputs),
        "flip_average": settings.flip_average,
        "state": state,
    }


def _write_tables(folder: SegmenterFolder, before: dict[str, Any], end: dict[str, Any]) -> None:
    # DVC's plots leave out "nan", and take an empty cell for 0.
    pd.DataFrame(end["history"]).to_csv(folder.history, index=False, na_rep="nan")
    # One clock for both trainings.
    system = before["system"] + [row | {"seconds": row["seconds"] + before["seconds"]} for row in end["system"]]
    pd.DataFrame(system).to_csv(folder.system, index=False)
