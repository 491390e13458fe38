"""Pre-training: learn an encoder from images alone by reconstructing the patches that probably hold lesions.

    amlp pretrain                                         # data/shards -> models/encoder

One reading direction: settings -> data -> model -> loop -> outputs. With every part of the method off
(pretrain.{mps,amr,rrl,ccl}.enabled) this is MAE.
"""

from __future__ import annotations

import logging
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from amlp.data.augment import apply_views, random_views, step_generator
from amlp.data.shards import ShardedSplit, Stats, cases_digest, read_stats
from amlp.errors import UserError
from amlp.files import write_json
from amlp.layout import EncoderFolder
from amlp.method.losses import ramp, target_width
from amlp.method.objective import amlp_loss
from amlp.method.ratio import masking_ratio
from amlp.method.sampling import choose_patches
from amlp.models.checkpoint import InputStats, save_encoder
from amlp.models.encoder import EncoderPlan
from amlp.models.mae import MaskedAutoencoder
from amlp.params import MpsParams, Params, PretrainParams
from amlp.storage import absolute, local_copy, output_dir, pin
from amlp.training.diagnostics import Monitor
from amlp.training.launch import Worker, check_shares, launch, this_worker
from amlp.training.score_maps import ScoreMaps, lesion_categories
from amlp.training.session import Session
from amlp.training.state import TrainingState, code_digest, data_digest, run_digest
from amlp.training.stream import RowStream

logger = logging.getLogger(__name__)

_VIEWS, _NOISE = 4, 5


def pretrain(*, params: Params, shards: Path | str, out: Path | str, state: Path | str) -> dict[str, Any]:
    """Pre-train an encoder on the training split; each folder is a local path or `s3://bucket/prefix`.

    Args:
        params: the `pretrain` and `encoder` sections and the seed count here.
        shards: the preprocess stage's folder.
        out: written whole: encoder.pt (EMA weights), scores.npy, history.csv, steps.csv, system.csv, diagnostics.csv,
            metrics.json, pictures.
        state: folder for the checkpoint from which a killed training resumes.

    Returns:
        The figures of metrics.json.

    Raises:
        UserError: an encoder that does not fit the data, or a training that diverged.
    """
    settings = params.pretrain
    check_shares(settings.batch, settings.num_workers, "pretrain.batch")
    source = pin(shards)
    shards = local_copy(source)
    stats = read_stats(shards)
    _check_patches(shards, stats, params.encoder.patch)
    plan = EncoderPlan(channels=stats.channels, height=stats.height, width=stats.width, **params.encoder.model_dump())
    inputs = InputStats(mean=stats.mean, std=stats.std)
    digest = run_digest(settings.model_dump(), params.seed, asdict(plan), data_digest(shards), code_digest())
    training = TrainingState(f"{absolute(state)}/pretrain-{digest}")
    config = {
        "params": params.model_dump(by_alias=True),
        "shards": source,
        "plan": asdict(plan),
        "input": asdict(inputs),
        "state": training.uri,
    }
    with training.locked():
        launch(_loop, config, workers=settings.num_workers, folder=f"{absolute(state)}/ray/pretrain-{digest}")
        end = training.finished(settings.epochs)
        metrics = _metrics(end)
        with output_dir(out) as path:
            folder = EncoderFolder(path)
            model = build_model(plan, settings)
            model.load_state_dict(end["average"])
            save_encoder(folder.weights, model.encoder, inputs)
            write_json(folder.metrics, metrics)
            _write_scores(folder, end, settings, ShardedSplit.open(shards, "train"))
            _write_tables(folder, end)
            _draw(folder.pictures, end["monitor"]["snapshots"], plan, settings)
        training.discard()
    logger.info(
        f"Wrote {out}: encoder after {metrics['steps']} steps, reconstruction error {metrics['reconstruction']:.4f}."
    )
    return metrics


def _loop(config: dict[str, Any]) -> None:
    """Train; runs on every worker. What it finds stays in the training state, which `pretrain` reads."""
    params = Params.model_validate(config["params"])
    settings: PretrainParams = params.pretrain
    worker = this_worker()
    torch.manual_seed(params.seed)

    plan, stats = EncoderPlan(**config["plan"]), InputStats(**config["input"])
    train = ShardedSplit.open(local_copy(config["shards"]), "train")
    stream = RowStream(np.arange(len(train)), batch=settings.batch, seed=params.seed)
    scores = ScoreMaps(train.scores(np.arange(len(train))))

    model = build_model(plan, settings).to(worker.device)
    session = Session(
        "pretrain", model, [{"parameters": model.named_parameters(), "scale": 1.0}], settings=settings,
        epochs=settings.epochs, steps_per_epoch=stream.steps_per_epoch, betas=(0.9, 0.95), worker=worker,
        state=TrainingState(config["state"]),
    )  # fmt: skip
    monitor = Monitor(train, plan=plan, stats=stats, settings=settings, seed=params.seed, device=worker.device)
    steps: list[list[float]] = []
    tokens, refined = 0, 0.0
    # Resume precedence: this training's own last checkpoint > random weights.
    if saved := session.resumed:
        scores.current = saved["scores"].numpy()
        monitor.load_state_dict(saved["monitor"])
        steps, tokens, refined = saved["steps"], saved["tokens"], saved["refined"]
    elif worker.rank == 0:
        monitor.observe_untrained(session.average.model)

    with session:
        for epoch in session.epochs:
            if weight := _refinement(epoch, settings.epochs, settings.mps if settings.ccl.enabled else None):
                scores.refine(
                    lesion_categories(session.average.model, train, stats, scores.clusters.shape[1:], worker), weight
                )
                refined = weight
            for step in session.steps(epoch):
                rows = worker.share(stream(step))
                images, lesion, cut = views(
                    train, rows, scores, step, params=params, worker=worker, plan=plan, stats=stats
                )
                ratio = masking_ratio(step, session.total, settings.amr)
                noise = torch.rand(settings.batch, plan.patches, generator=step_generator(params.seed, step, _NOISE))
                noise = worker.share(noise).to(worker.device)
                masked, visible = choose_patches(lesion, noise, ratio=ratio, params=settings.mps)
                if worker.rank == 0:
                    monitor.count(rows, cut, masked)
                with session.autocast():
                    # Encodes what is visible, decodes what is masked.
                    losses = amlp_loss(session.trained, images, lesion, masked, visible, patch=plan.patch,
                                       settings=settings, progress=step / session.total)  # fmt: skip
                session.step(step, losses.total, reconstruction=losses.reconstruction, rrl=losses.rrl, ccl=losses.ccl)
                tokens += settings.batch * visible.shape[1]

            end = session.end(epoch)
            ratios = (masking_ratio(number, session.total, settings.amr) for number in end.steps)
            steps.extend([share, *row] for share, row in zip(ratios, end.table, strict=True))
            if worker.rank == 0:
                monitor.observe(session.average.model, scores.current, epoch=epoch, ratio=ratio, refined=refined)
            kept = {"steps": steps, "tokens": tokens, "refined": refined}
            session.record(
                end,
                {"ratio": ratio, "visible_tokens": tokens, **monitor.counted()},
                keep=kept | {"scores": torch.from_numpy(scores.current), "monitor": monitor.state_dict()},
                shown="ratio",
            )


def build_model(plan: EncoderPlan, settings: PretrainParams) -> MaskedAutoencoder:
    """Return the model that the `pretrain` section describes, with random weights."""
    outputs = target_width(settings.target, plan.patch, plan.channels)
    return MaskedAutoencoder(plan, settings.decoder, categories=settings.ccl.enabled, outputs=outputs)


def _refinement(epoch: int, epochs: int, mps: MpsParams | None) -> float:
    """Weight of the model's own categories in the scores from this epoch on; 0 leaves the scores as they are."""
    if mps is None or not mps.enabled or epoch % mps.refresh_epochs:
        return 0.0
    return mps.refine * ramp(epoch / epochs, mps.warmup, 2 * mps.warmup)


def views(
    split: ShardedSplit, rows: np.ndarray, scores: ScoreMaps, step: int, *, params: Params, worker: Worker,
    plan: EncoderPlan, stats: InputStats,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Cut this step's random views; the score map travels through the same crop and flip as one more channel.

    Returns:
        Normalised images (B, C, H, W), the patches' category (B, L) bool: mean score above 1/2, and the views
        (B, 2, 3).
    """
    settings, device = params.pretrain, worker.device
    images = torch.from_numpy(split.images(rows)).to(device).float()
    matrices = random_views(
        settings.batch,
        step_generator(params.seed, step, _VIEWS),
        size=(plan.height, plan.width),
        min_area=settings.min_crop,
    )
    matrices = worker.share(matrices)
    if not (settings.mps.enabled or settings.ccl.enabled):
        empty = torch.zeros(len(rows), plan.patches, dtype=torch.bool, device=device)
        return stats.normalise(apply_views(images, matrices)), empty, matrices
    maps = torch.from_numpy(scores.current[rows]).to(device).unsqueeze(1)
    maps = F.interpolate(maps, size=images.shape[-2:], mode="nearest")
    both = apply_views(torch.cat([images, maps], dim=1), matrices)
    pooled = F.avg_pool2d(both[:, -1:], plan.patch).flatten(1)
    return stats.normalise(both[:, :-1]), pooled > 0.5, matrices


def _check_patches(shards: Path, stats: Stats, patch: int) -> None:
    if stats.height % patch or stats.width % patch:
        raise UserError(
            f"{shards}: images of {stats.height} x {stats.width} px can't be cut into patches of "
            f"{patch} px; set encoder.patch or preprocess.height and width to match."
        )
    if stats.height * stats.width < 2 * patch**2:
        raise UserError(
            f"{shards}: images of {stats.height} x {stats.width} px are one patch of {patch} px; "
            "masking needs two at least: set a smaller encoder.patch or a larger preprocess.height and width."
        )


def _metrics(end: dict[str, Any]) -> dict[str, Any]:
    last, monitor = end["history"][-1], end["monitor"]
    metrics = {
        "loss": round(last["loss"], 6),
        "reconstruction": round(last["reconstruction"], 6),
        "steps": last["step"],
        "visible_tokens": last["visible_tokens"],
        "seconds": last["seconds"],
    }
    probe = {"probe_auc": monitor["rows"][-1]["probe_auc"], "probe_auc_untrained": monitor["untrained"]}
    # Undefined without masks, and then left out: JSON has no NaN.
    return metrics | {name: value for name, value in probe.items() if not math.isnan(value)}


def _write_tables(folder: EncoderFolder, end: dict[str, Any]) -> None:
    pd.DataFrame(end["history"]).to_csv(folder.history, index=False)
    table = pd.DataFrame(end["steps"], columns=["ratio", "loss", "reconstruction", "rrl", "ccl", "grad_norm"])
    table.rename_axis("step").to_csv(folder.steps)
    pd.DataFrame(end["system"]).to_csv(folder.system, index=False)
    # DVC's plots leave out "nan", and take an empty cell for 0.
    pd.DataFrame(end["monitor"]["rows"]).to_csv(folder.diagnostics, index=False, na_rep="nan")


def _write_scores(folder: EncoderFolder, end: dict[str, Any], settings: PretrainParams, train: ShardedSplit) -> None:
    # An encoder that was trained without categories brings none.
    used = settings.mps.enabled or settings.ccl.enabled
    np.save(folder.scores, end["scores"].numpy() * np.float32(used))
    write_json(folder.scores_of, {"cases": cases_digest(train.index)})


def _draw(folder: Path, snapshots: list[dict[str, Any]], plan: EncoderPlan, settings: PretrainParams) -> None:
    from amlp.training.pictures import draw_masks, draw_reconstructions, draw_scores

    folder.mkdir()
    draw_masks(folder / "masks.png", snapshots, plan=plan)
    draw_reconstructions(folder / "reconstructions.png", snapshots, plan=plan, target=settings.target)
    draw_scores(folder / "scores.png", snapshots, plan=plan)
