"""AMR, the adjustable masking ratio: how much of an image is hidden at each step of the training.

The abstract of arXiv 2309.04312 says that the ratio rises; the schedule's form is our definition.
"""

from __future__ import annotations

from amlp.params import AmrParams


def masking_ratio(step: int, total: int, params: AmrParams) -> float:
    """Masking ratio at a step: r = r0 + (r1 - r0) * u^q with u = step / (total - 1).

    Args:
        step: 0 .. total - 1.
        total: steps of the whole training.

    Returns:
        A ratio between `params.start` and `params.end`, monotone in `step`; `params.end` throughout when AMR is off.
    """
    if not params.enabled:
        return params.end
    first, last = params.start, params.end
    if params.schedule == "falling":
        first, last = last, first
    u = step / (total - 1) if total > 1 else 1.0
    return first + (last - first) * u**params.power


def masked_count(ratio: float, patches: int) -> int:
    """Number of masked patches M = round(L * r), at least 1 and at most L - 1, the same for a whole batch."""
    return min(max(round(patches * ratio), 1), patches - 1)
