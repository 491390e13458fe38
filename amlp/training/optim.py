"""Optimizer, learning-rate schedule, gradient guard and weight averaging, shared by both trainings."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from amlp.errors import UserError

M = TypeVar("M", bound=nn.Module)


def learning_rate(step: int, total: int, *, peak: float, warmup: float) -> float:
    """Linear warm-up over the share `warmup` of the training, then a half cosine to zero."""
    warm = warmup * total
    if step < warm:
        return peak * (step + 1) / (warm + 1)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(total - warm, 1)))


def decays(name: str, parameter: Tensor) -> bool:
    """Whether a weight decays: timm's rule (`param_groups_weight_decay`), with all tokens in its list of exceptions."""
    return parameter.ndim > 1 and not name.endswith((".bias", "_token"))


def adamw(groups: Iterable[Mapping[str, Any]], *, weight_decay: float, betas: tuple[float, float]) -> torch.optim.AdamW:
    """AdamW in which norms, biases and tokens do not decay; see `decays`.

    Args:
        groups: dictionaries with `parameters` (named) and `scale`, the factor on the learning rate.
    """
    split = []
    for group in groups:
        named = [(name, p) for name, p in group["parameters"] if p.requires_grad]
        for decaying in (True, False):
            chosen = [p for name, p in named if decays(name, p) == decaying]
            if chosen:
                decay = weight_decay if decaying else 0.0
                split.append({"params": chosen, "weight_decay": decay, "scale": group["scale"]})
    # fused: one pass over the weights, and it can skip a step on the device (see guarded_step).
    return torch.optim.AdamW(split, lr=0.0, betas=betas, fused=True)


def guarded_step(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], clip_norm: float) -> Tensor:
    """Clip the gradient and step, unless the gradient is not finite: then the step changes nothing.

    The decision stays on the device, without a synchronisation, by the switch that torch's GradScaler uses.

    Returns:
        The gradient's norm before clipping, a scalar; not finite when the step was skipped.
    """
    norm = nn.utils.clip_grad_norm_(parameters, clip_norm)
    optimizer.grad_scale = None  # type: ignore[attr-defined]
    optimizer.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def check_finite(norms: Tensor, *, epoch: int, limit: float = 0.1) -> int:
    """Count the skipped steps of an epoch.

    Args:
        norms: (steps,) gradient norms.
        limit: share of skipped steps above which the training is taken as diverged.

    Raises:
        UserError: too many steps were skipped.
    """
    skipped = int((~torch.isfinite(norms)).sum())
    if skipped > limit * len(norms):
        raise UserError(
            f"Training diverged in epoch {epoch}: {skipped} of {len(norms)} steps had a gradient that is not "
            "finite and were skipped. Lower the learning rate, raise the warm-up, or set precision to fp32; look "
            "for extreme values in the images."
        )
    return skipped


def finite_mean(values: Tensor) -> Tensor:
    """Mean (K,) over the steps (steps, K) of which every value is finite; the others were skipped."""
    finite = values.isfinite().all(dim=1)
    return values[finite].mean(dim=0)


class WeightAverage(Generic[M]):
    """Exponential moving average (EMA) of a model's weights, with a warm-up so that early weights are forgotten."""

    def __init__(self, model: M, decay: float) -> None:
        self.model: M = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.model.parameters()), [p.detach() for p in model.parameters()], weight)
