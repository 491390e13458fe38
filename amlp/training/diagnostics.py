"""What pre-training does to lesions: in the masks that it really draws, and on a few images that are looked at closely.

The true masks are looked at here alone; no gradient, weight, score or choice of the training depends on them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from amlp.data.augment import apply_views, step_generator
from amlp.data.shards import ShardedSplit
from amlp.method.losses import gradient_strength, reconstruction_target, unpatchify
from amlp.method.sampling import choose_patches
from amlp.metrics.lesion_patches import LESION_SHARE
from amlp.models.checkpoint import InputStats
from amlp.models.encoder import EncoderPlan
from amlp.models.mae import MaskedAutoencoder
from amlp.params import PretrainParams
from amlp.training.probe import Probe

_NOISE = 6
_IMAGES, _SHOWN, _OBSERVATIONS, _SNAPSHOTS = 32, 4, 20, 6


class Monitor:
    """Rows for diagnostics.csv, snapshots for the pictures, and counts of what the training's own masks hide.

    Args:
        split: the training split.
        settings: the `pretrain` section.
        seed: of the choice of images and of their masks.
    """

    def __init__(
        self, split: ShardedSplit, *, plan: EncoderPlan, stats: InputStats, settings: PretrainParams, seed: int,
        device: torch.device,
    ) -> None:  # fmt: skip
        self.plan, self.stats, self.settings, self.seed, self.device = plan, stats, settings, seed, device
        index = split.index.reset_index(drop=True)
        lesion = index.index[index["labelled"] & (index["lesion_fraction"] > 0)].to_numpy()
        self.labelled = len(lesion) > 0
        candidates = lesion if self.labelled else index.index.to_numpy()
        chosen = np.random.default_rng(seed).permutation(candidates)[:_IMAGES]
        self.rows_chosen = np.sort(chosen)
        self.images = torch.from_numpy(split.images(self.rows_chosen)).to(device)
        truth = torch.from_numpy(split.masks(self.rows_chosen)).float().unsqueeze(1)
        self.truth = F.avg_pool2d(truth, plan.patch).flatten(1).to(device) >= LESION_SHARE
        self.split, self.known = split, np.zeros(len(index), dtype=bool)
        self.known[lesion] = True
        # Lesion patches that were masked and all that were drawn, then the same of the others.
        self.counts = torch.zeros(4, dtype=torch.float64, device=device)
        last = settings.epochs - 1
        self.observed = set(np.linspace(0, last, min(_OBSERVATIONS, settings.epochs)).round().astype(int).tolist())
        self.shown = set(np.linspace(0, last, min(_SNAPSHOTS, settings.epochs)).round().astype(int).tolist())
        self.probe = Probe(split, plan=plan, stats=stats, seed=seed, device=device)
        # The probe's figure of the random initial weights; what training adds is the difference to it.
        self.untrained = float("nan")
        self.rows: list[dict[str, float]] = []
        self.snapshots: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"untrained": self.untrained, "rows": self.rows, "snapshots": self.snapshots}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.untrained, self.rows, self.snapshots = state["untrained"], state["rows"], state["snapshots"]

    def observe_untrained(self, model: MaskedAutoencoder) -> None:
        """Look at the model before its first step."""
        self.untrained = round(self.probe.auc(model.encoder), 6)

    @torch.inference_mode()
    def count(self, rows: np.ndarray, views: Tensor, masked: Tensor) -> None:
        """Add a training step's own masks, on the images of this worker that have a lesion mask.

        Args:
            rows: (n,) of the training split.
            views: (n, 2, 3) that cut the step's pictures.
            masked: (n, m) patches that the step hides.
        """
        known = self.known[rows]
        if not known.any():
            return
        chosen = torch.from_numpy(known).to(self.device)
        truth = torch.from_numpy(self.split.masks(rows[known])).to(self.device).float().unsqueeze(1)
        lesion = (
            F.avg_pool2d(apply_views(truth, views.to(self.device)[chosen]), self.plan.patch).flatten(1) >= LESION_SHARE
        )
        hidden = torch.zeros_like(lesion).scatter(1, masked[chosen], True)
        sums = [(hidden & lesion).sum(), lesion.sum(), (hidden & ~lesion).sum(), (~lesion).sum()]
        self.counts += torch.stack(sums)

    def counted(self) -> dict[str, float]:
        """Return the shares of lesion and other patches that were masked since the last call, and forget them."""
        lesion, others = (float(part[0] / part[1]) for part in (self.counts[:2], self.counts[2:]))
        self.counts.zero_()
        return {"masked_lesion_share": round(lesion, 6), "masked_background_share": round(others, 6)}

    @torch.inference_mode()
    def observe(
        self, model: MaskedAutoencoder, scores: np.ndarray, *, epoch: int, ratio: float, refined: float
    ) -> None:
        """Look at the model and the score maps after an epoch, if it is one of those to be looked at.

        Args:
            model: the EMA model.
            scores: (N, h, w) of the whole training split.
            epoch: 0, 1, ...
            ratio: the masking ratio at the epoch's end.
            refined: weight of the model's own categories in the scores.
        """
        if epoch not in self.observed | self.shown:
            return
        images = self.stats.normalise(self.images)
        maps = torch.from_numpy(scores[self.rows_chosen]).to(self.device).unsqueeze(1)
        score = F.interpolate(maps, size=self.plan.grid, mode="area").flatten(1)
        category = score > 0.5
        noise = torch.rand(len(images), self.plan.patches, generator=step_generator(self.seed, epoch, _NOISE))
        masked, visible = choose_patches(category, noise.to(self.device), ratio=ratio, params=self.settings.mps)
        predicted, _ = model(images, masked, visible)
        target = reconstruction_target(
            images, self.plan.patch, kind=self.settings.target, sigma=self.settings.lowpass_sigma
        ).gather(1, masked.unsqueeze(-1).expand(-1, -1, predicted.shape[-1]))
        error = (predicted.float() - target).pow(2).mean(dim=-1)
        hidden = torch.zeros_like(category).scatter(1, masked, True)
        if epoch in self.observed:
            row = self._row(category, masked, error, ratio=ratio, refined=refined)
            self.rows.append({"epoch": epoch + 1} | row | {"probe_auc": round(self.probe.auc(model.encoder), 6)})
        if epoch in self.shown:
            snapshot = self._snapshot(images, score, hidden, masked, predicted.float(), ratio=ratio)
            self.snapshots.append({"epoch": epoch + 1} | snapshot)

    def _row(
        self,
        category: Tensor,
        masked: Tensor,
        error: Tensor,
        *,
        ratio: float,
        refined: float,
    ) -> dict[str, float]:
        nan = torch.full((), torch.nan, device=error.device)
        clear = category.any(dim=1)

        def share(chosen: Tensor, among: Tensor) -> Tensor:
            return (chosen & among).sum() / among.sum() if among.any() else nan

        hits = category.gather(1, masked)
        rank = error.argsort(dim=1, descending=True).argsort(dim=1)
        hardest = rank < hits.sum(dim=1, keepdim=True)
        row: dict[str, Tensor | float] = {
            "ratio": ratio,
            "category_share": category.float().mean(),
            "agreement": share(hardest, hits),
            "error_category": error[hits].mean() if hits.any() else nan,
            "error_rest": error[~hits].mean(),
            "random_images": (~clear).float().mean(),
            "refine_weight": refined,
        }
        if self.labelled:
            true = self.truth
            precision = share(true, category)
            hard = true.gather(1, masked)
            row |= {
                "score_recall": share(category, true),
                "score_precision": precision,
                "score_enrichment": precision / true.float().mean(),
                "error_lesion": error[hard].mean() if hard.any() else nan,
                "error_background": error[~hard].mean(),
            }
        return {name: round(float(value), 6) for name, value in row.items()}

    def _snapshot(
        self, images: Tensor, score: Tensor, hidden: Tensor, masked: Tensor, predicted: Tensor, *, ratio: float
    ) -> dict[str, Any]:
        shown = slice(0, _SHOWN)
        target = reconstruction_target(
            images[shown], self.plan.patch, kind=self.settings.target, sigma=self.settings.lowpass_sigma
        )
        patches = target.scatter(1, masked[shown].unsqueeze(-1).expand(-1, -1, target.shape[-1]), predicted[shown])
        return {
            "ratio": ratio,
            "images": self.images[shown].cpu(),
            "hidden": hidden[shown].cpu(),
            "score": score[shown].cpu(),
            "target": self._paint(target),
            "reconstruction": self._paint(patches),
        }

    def _paint(self, patches: Tensor) -> Tensor:
        """Show target values (B, L, D) as uint8 (B, C, H, W), or (B, 1, H, W) where they are no pixels."""
        size = (self.plan.patch, self.plan.height, self.plan.width)
        if self.settings.target == "hog":
            values = gradient_strength(patches, *size)
        elif self.settings.target == "normalised":
            # Normalised patches have no grey level of their own.
            values = unpatchify(patches, *size) * 0.15 + 0.5
        else:
            shape = (1, -1, 1, 1)
            mean, std = (torch.tensor(v, device=patches.device).view(shape) for v in (self.stats.mean, self.stats.std))
            values = unpatchify(patches, *size) * std + mean
        return (values.clamp(0, 1) * 255).round().to(torch.uint8).cpu()
