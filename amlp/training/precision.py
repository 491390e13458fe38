"""Mixed precision where it pays."""

from __future__ import annotations

from typing import Literal

import torch


def resolve_precision(wanted: Literal["auto", "fp32", "bf16"], device: torch.device) -> torch.dtype:
    """Turn `auto` into bf16 on a GPU that has it and into fp32 on a CPU, where we measured bf16 to be slower."""
    if wanted == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if wanted == "bf16" else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Context in which matrix products run in `dtype`."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype is torch.bfloat16)
