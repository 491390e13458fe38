"""Fine-tuning: train the segmenter on labelled images, from a pre-trained encoder or from scratch.

    amlp finetune                                         # models/encoder -> models/segmenter
    amlp finetune --from-scratch --out models/scratch     # the comparison

Before it sees a label, the segmenter may learn the lesion categories of all training images (`finetune.categories`):
the encoder knows them from pre-training, the rest of the segmenter starts from nothing.

One reading direction: settings -> data -> model -> optimizer -> loop -> outputs.
"""

from __future__ import annotations

import hashlib
import io
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amlp.data.augment import apply_views, jitter_intensity, random_views, step_generator
from amlp.data.labels import labelled_subset
from amlp.data.shards import ShardedSplit, cases_digest, read_stats
from amlp.errors import UserError
from amlp.files import read_json, sha256, write_json
from amlp.models.checkpoint import SCORES, SCORES_OF, InputStats, save, transfer_encoder
from amlp.models.encoder import Encoder, EncoderPlan
from amlp.models.segmenter import Segmenter, build_network, lesion_probability
from amlp.models.unet import UNet
from amlp.params import FinetuneParams, Params
from amlp.progress import progress
from amlp.storage import absolute, local_copy, output_dir, pin, read, write
from amlp.training.launch import check_shares, launch, this_worker
from amlp.training.optim import WeightAverage, adamw, check_finite, finite_mean, guarded_step, learning_rate
from amlp.training.precision import autocast, resolve_precision
from amlp.training.state import TrainingState, code_digest, data_digest, run_digest
from amlp.training.stream import RowStream
from amlp.training.usage import Usage

_VIEWS, _INTENSITY = 2, 3
# Weight of the image-level loss; the pixels are the task.
_PRESENCE = 0.5


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


def _loop(config: dict[str, Any]) -> None:
    """Train; runs on every worker. What it finds stays in the training state, which `finetune` reads."""
    params = Params.model_validate(config["params"])
    settings: FinetuneParams = params.finetune
    worker = this_worker()
    device = worker.device
    torch.manual_seed(params.seed)

    shards = local_copy(config["shards"])
    train, val = ShardedSplit.open(shards, "train"), ShardedSplit.open(shards, "val")
    # Lesion categories (N, h, w) of all training images; None learns the masks of the labelled ones.
    categories = _read_array(config["categories"]) if config["categories"] else None
    if categories is None:
        rows, epochs = labelled_subset(train.index, settings.label_fraction, params.seed), settings.epochs
    else:
        # An image without categories says nothing, not that there is no lesion.
        rows, epochs = np.flatnonzero(categories.max(axis=(1, 2)) > 0.5), settings.category_epochs
    val_rows = val.index.reset_index(drop=True).query("labelled").index.to_numpy()
    val_rows = val_rows[worker.rank :: worker.count]
    stream = RowStream(rows, batch=settings.batch, seed=params.seed)
    total = stream.steps_per_epoch * epochs

    plan = EncoderPlan(**config["plan"])
    model = build_network(settings.network, plan, settings.channels)
    stats, decay = InputStats(**config["input"]), 1.0
    if config["encoder"]:
        assert isinstance(model, Segmenter), "finetune() refuses an encoder for another network"
        transfer_encoder(local_copy(config["encoder"]) / "encoder.pt", model.encoder, min_matched=settings.min_matched)
        decay = settings.layer_decay
    if config["start"]:
        model.load_state_dict(TrainingState(config["start"]).finished(settings.category_epochs)["average"])
    model = model.to(device)
    average = WeightAverage(model, settings.ema)
    optimizer = adamw(layer_groups(model, decay), weight_decay=settings.weight_decay, betas=(0.9, 0.999))
    parameters = [p for p in model.parameters() if p.requires_grad]
    precision = resolve_precision(settings.precision, device)

    state = TrainingState(config["state"])
    history: list[dict[str, float]] = []
    system: list[dict[str, float]] = []
    best: dict[str, Any] = {"dsc": -1.0, "epoch": -1, "state": {}}
    usage = Usage()
    first, elapsed = 0, 0.0
    # Resume precedence: this training's own checkpoint > what the categories taught > the encoder > random weights.
    if saved := state.load():
        model.load_state_dict(saved["model"])
        average.model.load_state_dict(saved["average"])
        optimizer.load_state_dict(saved["optimizer"])
        history, system, best = saved["history"], saved["system"], saved["best"]
        first, elapsed = saved["epoch"], saved["seconds"]
        if worker.rank == 0:
            print(f"Resuming after epoch {first} of {epochs}.")
    trained = worker.wrap(model)
    started = time.monotonic() - elapsed

    def load(split: ShardedSplit, chosen: np.ndarray) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(split.images(chosen)).to(device), torch.from_numpy(split.masks(chosen)).to(device)

    def load_training(chosen: np.ndarray) -> tuple[Tensor, Tensor]:
        """Images (n, C, H, W) and what to learn (n, 1, H, W), 0 .. 1."""
        if categories is None:
            images, masks = load(train, chosen)
            return images, masks.unsqueeze(1).float()
        maps = torch.from_numpy(categories[chosen]).to(device).unsqueeze(1)
        # Smooth: a patch's corners are not the lesion's.
        maps = F.interpolate(maps, size=(plan.height, plan.width), mode="bilinear", align_corners=False)
        return torch.from_numpy(train.images(chosen)).to(device), (maps > 0.5).float()

    def validate() -> float:
        """Mean DSC of the averaged model over the validation split."""
        scores = torch.zeros(2, dtype=torch.float64)
        for chunk in np.array_split(val_rows, max(1, -(-len(val_rows) // 32))):
            if len(chunk) == 0:
                continue
            images, masks = load(val, chunk)
            dsc = dice_scores(lesion_probability(*average.model(stats.normalise(images))), masks)
            scores += torch.tensor([dsc.double().sum().item(), len(dsc)])
        total, count = worker.sum(scores).tolist()
        return float(total / count)

    hidden = worker.rank > 0 or first >= epochs
    bar = progress(
        total,
        "finetune" if categories is None else "categories",
        "steps",
        done=first * stream.steps_per_epoch,
        disable=hidden,
    )
    with bar:
        for epoch in range(first, epochs):
            model.train()
            losses, norms = [], []
            for step in range(epoch * stream.steps_per_epoch, (epoch + 1) * stream.steps_per_epoch):
                images, target = load_training(worker.share(stream(step)))
                pixels = images.float() / 255.0
                if settings.augment:
                    views = random_views(
                        settings.batch,
                        step_generator(params.seed, step, _VIEWS),
                        size=(plan.height, plan.width),
                        min_area=settings.min_crop,
                        rotate=settings.rotate,
                    )
                    both = apply_views(torch.cat([pixels, target], dim=1), worker.share(views))
                    pixels, target = both[:, :-1], (both[:, -1:] > 0.5).float()
                    strength = torch.rand(settings.batch, 3, generator=step_generator(params.seed, step, _INTENSITY))
                    pixels = jitter_intensity(pixels, worker.share(strength))
                rate = learning_rate(step, total, peak=settings.lr, warmup=settings.warmup)
                for group in optimizer.param_groups:
                    group["lr"] = rate * group["scale"]
                with autocast(device, precision):
                    logits, presence = trained(stats.normalise(pixels * 255.0))
                if categories is None:
                    loss = segmentation_loss(logits, presence, target)
                else:
                    # Categories say where a lesion would be, not whether there is one. Times 0, for distributed
                    # training wants a gradient for every weight.
                    loss = segmentation_loss(logits, None, target) + 0 * presence.sum()
                loss.backward()
                norms.append(guarded_step(optimizer, parameters, settings.clip_norm))
                average.update(model, step)
                losses.append(loss.detach())
                bar.update()

            skipped = check_finite(torch.stack(norms), epoch=epoch + 1)
            loss_mean = finite_mean(worker.mean(torch.stack(losses)).unsqueeze(1)).item()
            val_dsc = math.nan
            due = (epoch + 1) % settings.validate_epochs == 0 or epoch + 1 == epochs
            if categories is None and due:
                with torch.inference_mode(), autocast(device, precision):
                    val_dsc = validate()
            if val_dsc > best["dsc"]:
                weights = {name: tensor.detach().cpu().clone() for name, tensor in average.model.state_dict().items()}
                best = {"dsc": val_dsc, "epoch": epoch + 1, "state": weights}
            seconds = time.monotonic() - started
            history.append(
                {
                    "epoch": epoch + 1,
                    "loss": loss_mean,
                    "lr": rate,
                    "val_dsc": val_dsc,
                    "skipped": skipped,
                    "seconds": round(seconds, 1),
                }
            )
            system.append(usage.row(seconds))
            bar.set_postfix(loss=f"{loss_mean:.3f}", val_dsc=f"{val_dsc:.3f}", refresh=False)
            if worker.rank == 0 and ((epoch + 1) % settings.checkpoint_epochs == 0 or epoch + 1 == epochs):
                state.save(
                    {
                        "epoch": epoch + 1,
                        "seconds": seconds,
                        "model": model.state_dict(),
                        "average": average.model.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "history": history,
                        "system": system,
                        "best": best,
                        "labelled_images": len(rows),
                    }
                )
            worker.report(history[-1])


def _read_array(place: str) -> np.ndarray:
    data = read(place)
    assert data is not None, f"{place}: finetune() writes it before the workers start"
    return np.load(io.BytesIO(data))


def _categories(settings: FinetuneParams, shards: Path, encoder: Path | None) -> np.ndarray | None:
    """Lesion categories (N, h, w) to learn before the labels, in the training split's row order; None without any.

    Raises:
        UserError: the encoder's categories are of other images.
    """
    if settings.category_epochs == 0:
        return None
    train = ShardedSplit.open(shards, "train")
    if settings.categories == "clusters":
        maps = train.scores(np.arange(len(train)))
    elif settings.categories == "pretrained" and encoder and (encoder / SCORES).is_file():
        maps, file = np.load(encoder / SCORES), encoder / SCORES_OF
        if not file.is_file() or read_json(file)["cases"] != cases_digest(train.index):
            raise UserError(
                f"{file}: the categories beside it are not those of the {len(train)} training images in {shards}, row "
                "by row: the encoder was pre-trained on other data. Set finetune.categories to clusters or none."
            )
    else:
        return None
    # All 0 where nothing was found, and after a pre-training without MPS and CCL.
    return maps if maps.max() > 0.5 else None


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
        state: folder for what a killed training goes on from.

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
    source = pin(shards)
    shards = local_copy(source)
    stats = read_stats(shards)
    if not ShardedSplit.open(shards, "val").index["labelled"].any():
        raise UserError(f"{shards}: the validation split holds no image with a mask, so no epoch can be chosen by it.")
    plan = EncoderPlan(channels=stats.channels, height=stats.height, width=stats.width, **params.encoder.model_dump())
    start = pin(encoder) if encoder else None
    encoder = local_copy(start) if start else None
    checkpoint = encoder / "encoder.pt" if encoder else None
    if checkpoint and not checkpoint.is_file():
        raise UserError(f"{checkpoint}: not found; run `amlp pretrain` first, or train with --from-scratch.")
    inputs, report = InputStats(mean=stats.mean, std=stats.std), None
    if checkpoint:
        # Here too, so that an encoder that does not fit is told before any worker starts.
        report, inputs = transfer_encoder(checkpoint, Encoder(plan), min_matched=settings.min_matched)
        print(f"Encoder {checkpoint}: {report}")
    config = {
        "params": params.model_dump(by_alias=True),
        "shards": source,
        "encoder": start,
        "plan": asdict(plan),
        "input": asdict(inputs),
    }
    maps = _categories(settings, shards, encoder)
    digest = run_digest(
        settings.model_dump(),
        params.seed,
        asdict(plan),
        data_digest(shards),
        code_digest(),
        sha256(checkpoint) if checkpoint else None,
        hashlib.sha256(maps.tobytes()).hexdigest() if maps is not None else None,
    )
    training = TrainingState(f"{absolute(state)}/finetune-{digest}")
    before = TrainingState(f"{training.place}/categories")
    records = f"{absolute(state)}/ray/finetune-{digest}"
    config |= {"state": training.place, "categories": None, "start": None}

    def train(**changed: str) -> None:
        launch(_loop, config | changed, workers=settings.num_workers, folder=records)

    with training.locked():
        warm: dict[str, Any] = {"seconds": 0.0, "system": []}
        if maps is not None:
            file, buffer = f"{training.place}/{SCORES}", io.BytesIO()
            np.save(buffer, maps)
            write(file, buffer.getbuffer())
            train(state=before.place, categories=file)
            warm = before.finished(settings.category_epochs)
            config["start"] = before.place
        train()
        end = training.finished(settings.epochs)
        metrics = {
            "val_dsc": round(end["best"]["dsc"], 6),
            "best_epoch": end["best"]["epoch"],
            "labelled_images": end["labelled_images"],
            "seconds": round(warm["seconds"] + end["seconds"], 1),
            "category_seconds": round(warm["seconds"], 1),
        }
        # One clock for both trainings.
        system = warm["system"] + [row | {"seconds": row["seconds"] + warm["seconds"]} for row in end["system"]]
        with output_dir(out) as folder:
            save(
                folder / "segmenter.pt",
                {
                    "kind": "amlp-segmenter",
                    "plan": asdict(plan),
                    "network": settings.network,
                    "channels": settings.channels,
                    "input": asdict(inputs),
                    "flip_average": settings.flip_average,
                    "state": end["best"]["state"],
                },
            )
            # DVC's plots leave out "nan", and take an empty cell for 0.
            pd.DataFrame(end["history"]).to_csv(folder / "history.csv", index=False, na_rep="nan")
            pd.DataFrame(system).to_csv(folder / "system.csv", index=False)
            write_json(folder / "loading.json", asdict(report) if report else None)
            write_json(folder / "metrics.json", metrics)
            # By which `evaluate --split unused` knows the images that this did not see.
            index = ShardedSplit.open(shards, "train").index
            labelled = index.iloc[labelled_subset(index, settings.label_fraction, params.seed)]
            write_json(folder / "labels.json", {"images": len(labelled), "cases": cases_digest(labelled)})
        training.discard()
    print(f"Wrote {out}: best validation DSC {metrics['val_dsc']:.3f} in epoch {metrics['best_epoch']}.")
    return metrics
