"""Numbers as the page writes them."""

from __future__ import annotations

from amlp.evaluation.summary import Score


def number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def with_interval(score: Score, confidence: str) -> str:
    if score.low is None:
        return number(score.mean)
    return f"{number(score.mean)} ({confidence} interval {number(score.low)} to {number(score.high)})"


def duration(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"
