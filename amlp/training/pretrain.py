"""Pre-training: learn an encoder from images alone by reconstructing the patches that probably hold lesions.

    amlp pretrain                                         # data/shards -> models/encoder

One reading direction: settings -> data -> model -> optimizer -> loop -> outputs. With every part of the method off
(pretrain.{mps,amr,rrl,ccl}.enabled) this is MAE.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from amlp.data.augment import apply_views, random_views, step_generator
from amlp.data.shards import ShardedSplit, cases_digest, read_stats
from amlp.errors import UserError
from amlp.files import write_json
from amlp.method.losses import ramp, target_width
from amlp.method.objective import amlp_loss
from amlp.method.ratio import masking_ratio
from amlp.method.sampling import choose_patches
from amlp.models.checkpoint import SCORES, SCORES_OF, InputStats, save_encoder
from amlp.models.encoder import EncoderPlan
from amlp.models.mae import MaskedAutoencoder
from amlp.params import Params, PretrainParams
from amlp.progress import progress
from amlp.storage import absolute, local_copy, output_dir, pin
from amlp.training.diagnostics import Monitor
from amlp.training.launch import Worker, check_shares, launch, this_worker
from amlp.training.optim import WeightAverage, adamw, check_finite, finite_mean, guarded_step, learning_rate
from amlp.training.precision import autocast, resolve_precision
from amlp.training.state import TrainingState, code_digest, data_digest, run_digest
from amlp.training.stream import RowStream
from amlp.training.usage import Usage

_VIEWS, _NOISE = 4, 5


class ScoreMaps:
    """MPS scores of the whole training split: the clusters' at first, then refined by the model itself.

    Args:
        clusters: (N, h, w) float32 in 0 .. 1, from preprocessing; all 0 for an image without a clear second cluster.
    """

    def __init__(self, clusters: np.ndarray) -> None:
        self.clusters = clusters
        self.current = clusters.copy()

    def refine(self, categories: np.ndarray, weight: float) -> None:
        """Set s = (1 - weight) * clusters + weight * p.

        p is the model's category, shifted for each image so that it calls as many patches lesion as the clusters do:
        refinement decides which patches, not how many, or a head that errs to one side would end the selection.
        Images that took the guard stay at 0.

        Args:
            categories: (N, h, w) probabilities of the lesion category.
            weight: 0 .. 1.
        """
        n, *grid = self.clusters.shape
        flat = np.clip(categories.reshape(n, -1).astype(np.float64), 1e-9, 1 - 1e-9)
        logits = np.log(flat / (1 - flat))
        count = (self.clusters.reshape(n, -1) > 0.5).sum(axis=1)
        ranked = -np.sort(-logits, axis=1)
        last = logits.shape[1] - 1
        row = np.arange(n)
        # Halfway between the last patch that counts as lesion and the first that doesn't.
        limit = (ranked[row, np.clip(count - 1, 0, last)] + ranked[row, np.clip(count, 0, last)]) / 2
        shifted = 1 / (1 + np.exp(limit[:, None] - logits))
        clear = self.clusters.any(axis=(1, 2), keepdims=True)
        mixed = (1 - weight) * self.clusters + weight * shifted.reshape(n, *grid)
        self.current = np.where(clear, mixed, 0).astype(np.float32)


def _refined_categories(model: MaskedAutoencoder, split: ShardedSplit, stats: InputStats, grid: tuple[int, int],
                        worker: Worker) -> np.ndarray:  # fmt: skip
    """Categories (N, h, w) of the unmasked, unaugmented training images, computed in shares by the workers."""
    rows, columns = model.plan.grid
    result = torch.zeros(len(split), *grid)
    mine = np.arange(len(split))[worker.rank :: worker.count]
    with torch.inference_mode():
        for chunk in np.array_split(mine, max(1, -(-len(mine) // 64))):
            images = stats.normalise(torch.from_numpy(split.images(chunk)).to(worker.device))
            maps = model.categories(images).view(-1, 1, rows, columns)
            # The scores' patches may be smaller or larger than the encoder's.
            result[chunk] = F.interpolate(maps, size=grid, mode="bilinear", antialias=True)[:, 0].cpu()
    return worker.sum(result).cpu().numpy()


def build_model(plan: EncoderPlan, settings: PretrainParams) -> MaskedAutoencoder:
    """Return the model that the `pretrain` section describes, with random weights."""
    outputs = target_width(settings.target, plan.patch, plan.channels)
    return MaskedAutoencoder(plan, settings.decoder, categories=settings.ccl.enabled, outputs=outputs)


def _loop(config: dict[str, Any]) -> None:
    """Train; runs on every worker. What it finds stays in the training state, which `pretrain` reads."""
    params = Params.model_validate(config["params"])
    settings: PretrainParams = params.pretrain
    worker = this_worker()
    device = worker.device
    torch.manual_seed(params.seed)

    plan = EncoderPlan(**config["plan"])
    stats = InputStats(**config["input"])
    train = ShardedSplit.open(local_copy(config["shards"]), "train")
    stream = RowStream(np.arange(len(train)), batch=settings.batch, seed=params.seed)
    total = stream.steps_per_epoch * settings.epochs
    scores = ScoreMaps(train.scores(np.arange(len(train))))

    model = build_model(plan, settings).to(device)
    average = WeightAverage(model, settings.ema)
    optimizer = adamw([{"parameters": model.named_parameters(), "scale": 1.0}], weight_decay=settings.weight_decay,
                      betas=(0.9, 0.95))  # fmt: skip
    parameters = [p for p in model.parameters() if p.requires_grad]
    precision = resolve_precision(settings.precision, device)
    monitor = Monitor(train, plan=plan, stats=stats, settings=settings, seed=params.seed, device=device)

    state = TrainingState(config["state"])
    history: list[dict[str, float]] = []
    steps: list[list[float]] = []
    system: list[dict[str, float]] = []
    usage = Usage()
    first, elapsed, tokens, refined = 0, 0.0, 0, 0.0
    # Resume precedence: this training's own last checkpoint > random weights.
    if saved := state.load():
        model.load_state_dict(saved["model"])
        average.model.load_state_dict(saved["average"])
        optimizer.load_state_dict(saved["optimizer"])
        scores.current = saved["scores"].numpy()
        monitor.load_state_dict(saved["monitor"])
        history, steps, system = saved["history"], saved["steps"], saved["system"]
        first, elapsed, tokens, refined = saved["epoch"], saved["seconds"], saved["tokens"], saved["refined"]
        if worker.rank == 0:
            print(f"Resuming after epoch {first} of {settings.epochs}.", flush=True)
    elif worker.rank == 0:
        monitor.observe_untrained(average.model)
    trained = worker.wrap(model)
    started = time.monotonic() - elapsed

    hidden = worker.rank > 0 or first >= settings.epochs
    bar = progress(total, "pretrain", "steps", done=first * stream.steps_per_epoch, disable=hidden)
    with bar:
        for epoch in range(first, settings.epochs):
            done = epoch / settings.epochs
            weight = settings.mps.refine * ramp(done, settings.mps.warmup, 2 * settings.mps.warmup)
            if (
                settings.mps.enabled
                and settings.ccl.enabled
                and weight > 0
                and epoch % settings.mps.refresh_epochs == 0
            ):
                scores.refine(
                    _refined_categories(average.model, train, stats, scores.clusters.shape[1:], worker), weight
                )
                refined = weight
            model.train()
            parts: list[Tensor] = []
            norms: list[Tensor] = []
            for step in range(epoch * stream.steps_per_epoch, (epoch + 1) * stream.steps_per_epoch):
                rows = worker.share(stream(step))
                images, lesion, cut = views(
                    train, rows, scores, step, params=params, worker=worker, plan=plan, stats=stats
                )
                ratio = masking_ratio(step, total, settings.amr)
                noise = torch.rand(settings.batch, plan.patches, generator=step_generator(params.seed, step, _NOISE))
                masked, visible = choose_patches(
                    lesion, worker.share(noise).to(device), ratio=ratio, params=settings.mps
                )
                if worker.rank == 0:
                    monitor.count(rows, cut, masked)
                rate = learning_rate(step, total, peak=settings.lr, warmup=settings.warmup)
                for group in optimizer.param_groups:
                    group["lr"] = rate * group["scale"]
                with autocast(device, precision):
                    losses = amlp_loss(trained, images, lesion, masked, visible, patch=plan.patch, settings=settings,
                                       progress=step / total)  # fmt: skip
                losses.total.backward()
                norms.append(guarded_step(optimizer, parameters, settings.clip_norm))
                average.update(model, step)
                parts.append(torch.stack([losses.total.detach(), losses.reconstruction, losses.rrl, losses.ccl]))
                tokens += settings.batch * visible.shape[1]
                bar.update()

            skipped = check_finite(torch.stack(norms), epoch=epoch + 1)
            averaged = worker.mean(torch.stack(parts))
            table = averaged.tolist()
            ratios = [masking_ratio(epoch * stream.steps_per_epoch + i, total, settings.amr) for i in range(len(table))]
            steps.extend([r, *row, float(norm)] for r, row, norm in zip(ratios, table, norms, strict=True))
            means = finite_mean(averaged).tolist()
            seconds = time.monotonic() - started
            history.append(
                {
                    "epoch": epoch + 1,
                    "step": (epoch + 1) * stream.steps_per_epoch,
                    "ratio": ratio,
                    "loss": float(means[0]),
                    "reconstruction": float(means[1]),
                    "rrl": float(means[2]),
                    "ccl": float(means[3]),
                    "lr": rate,
                    "grad_norm": float(finite_mean(torch.stack(norms).unsqueeze(1))),
                    "skipped": skipped,
                    "visible_tokens": tokens,
                    **monitor.counted(),
                    "seconds": round(seconds, 1),
                }
            )
            system.append(usage.row(seconds))
            if worker.rank == 0:
                monitor.observe(average.model, scores.current, epoch=epoch, ratio=ratio, refined=refined)
                if (epoch + 1) % settings.checkpoint_epochs == 0 or epoch + 1 == settings.epochs:
                    state.save(
                        {
                            "epoch": epoch + 1,
                            "seconds": seconds,
                            "tokens": tokens,
                            "refined": refined,
                            "model": model.state_dict(),
                            "average": average.model.state_dict(),
                            "optimizer": optimizer.state_dict(),
                            "scores": torch.from_numpy(scores.current),
                            "monitor": monitor.state_dict(),
                            "history": history,
                            "steps": steps,
                            "system": system,
                        }
                    )
            bar.set_postfix(ratio=f"{ratio:.2f}", loss=f"{means[0]:.3f}", refresh=False)
            worker.report(history[-1])


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


def pretrain(*, params: Params, shards: Path | str, out: Path | str, state: Path | str) -> dict[str, Any]:
    """Pre-train an encoder on the training split; each folder is a local path or `s3://bucket/prefix`.

    Args:
        params: the `pretrain` and `encoder` sections and the seed count here.
        shards: the preprocess stage's folder.
        out: written whole: encoder.pt (EMA weights), scores.npy, history.csv, steps.csv, system.csv, diagnostics.csv,
            metrics.json, pictures.
        state: folder for what a killed training goes on from.

    Returns:
        The figures of metrics.json.

    Raises:
        UserError: an encoder that does not fit the data, or a training that diverged.
    """
    from amlp.training.pictures import draw_masks, draw_reconstructions, draw_scores

    settings = params.pretrain
    check_shares(settings.batch, settings.num_workers, "pretrain.batch")
    source = pin(shards)
    shards = local_copy(source)
    stats = read_stats(shards)
    if stats.height % params.encoder.patch or stats.width % params.encoder.patch:
        raise UserError(
            f"{shards}: images of {stats.height} x {stats.width} px can't be cut into patches of "
            f"{params.encoder.patch} px; set encoder.patch or preprocess.height and width to match."
        )
    if stats.height * stats.width < 2 * params.encoder.patch**2:
        raise UserError(
            f"{shards}: images of {stats.height} x {stats.width} px are one patch of {params.encoder.patch} px; "
            "masking needs two at least: set a smaller encoder.patch or a larger preprocess.height and width."
        )
    plan = EncoderPlan(channels=stats.channels, height=stats.height, width=stats.width, **params.encoder.model_dump())
    inputs = InputStats(mean=stats.mean, std=stats.std)
    digest = run_digest(settings.model_dump(), params.seed, asdict(plan), data_digest(shards), code_digest())
    training = TrainingState(f"{absolute(state)}/pretrain-{digest}")
    config = {
        "params": params.model_dump(by_alias=True),
        "shards": source,
        "plan": asdict(plan),
        "input": asdict(inputs),
        "state": training.place,
    }
    with training.locked():
        records = f"{absolute(state)}/ray/pretrain-{digest}"
        launch(_loop, config, workers=settings.num_workers, folder=records)

        end = training.load()
        assert end is not None and end["epoch"] == settings.epochs, "the training loop ended before its last epoch"
        model = build_model(plan, settings)
        model.load_state_dict(end["average"])
        last = end["history"][-1]
        metrics = {
            "loss": round(last["loss"], 6),
            "reconstruction": round(last["reconstruction"], 6),
            "steps": last["step"],
            "visible_tokens": last["visible_tokens"],
            "seconds": last["seconds"],
        }
        # Undefined without masks, and then left out: JSON has no NaN.
        probe = {
            "probe_auc": end["monitor"]["rows"][-1]["probe_auc"],
            "probe_auc_untrained": end["monitor"]["untrained"],
        }
        metrics |= {name: value for name, value in probe.items() if not math.isnan(value)}
        with output_dir(out) as folder:
            save_encoder(folder / "encoder.pt", model.encoder, inputs)
            pd.DataFrame(end["history"]).to_csv(folder / "history.csv", index=False)
            table = pd.DataFrame(end["steps"], columns=["ratio", "loss", "reconstruction", "rrl", "ccl", "grad_norm"])
            table.rename_axis("step").to_csv(folder / "steps.csv")
            pd.DataFrame(end["system"]).to_csv(folder / "system.csv", index=False)
            # DVC's plots leave out "nan", and take an empty cell for 0.
            pd.DataFrame(end["monitor"]["rows"]).to_csv(folder / "diagnostics.csv", index=False, na_rep="nan")
            # An encoder that was trained without categories brings none.
            used = settings.mps.enabled or settings.ccl.enabled
            np.save(folder / SCORES, end["scores"].numpy() * np.float32(used))
            write_json(folder / SCORES_OF, {"cases": cases_digest(ShardedSplit.open(shards, "train").index)})
            write_json(folder / "metrics.json", metrics)
            (folder / "pictures").mkdir()
            draw_masks(folder / "pictures" / "masks.png", end["monitor"]["snapshots"], plan=plan)
            draw_reconstructions(folder / "pictures" / "reconstructions.png", end["monitor"]["snapshots"], plan=plan,
                                 target=settings.target)  # fmt: skip
            draw_scores(folder / "pictures" / "scores.png", end["monitor"]["snapshots"], plan=plan)
        training.discard()
    print(f"Wrote {out}: encoder after {last['step']} steps, reconstruction error {metrics['reconstruction']:.4f}.")
    return metrics
