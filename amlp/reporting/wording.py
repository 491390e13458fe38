"""Numbers as the page writes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def with_interval(entry: Mapping[str, Any], confidence: str) -> str:
    if entry["low"] is None:
        return number(entry["mean"])
    return f"{number(entry['mean'])} ({confidence} interval {number(entry['low'])} to {number(entry['high'])})"


def duration(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"
