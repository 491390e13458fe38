"""The page's results: the headline, the table, and what differences mean."""

from __future__ import annotations

from typing import Any

from amlp.evaluation.summary import Score, Scores, Summary
from amlp.metrics.figures import FIGURES, MODELS, in_order
from amlp.registry.registration import Registration
from amlp.reporting.wording import number, signed, with_interval


def headline(summary: Summary, confidence: str) -> str:
    test, models = summary.test, summary.models
    text = (
        f"On {test.cases} test images from {test.groups} groups that no training image belongs to, the "
        f"segmenter's mean DSC is {with_interval(models['segmenter']['dsc'], confidence)}."
    )
    others = [
        f"{words} reaches {number(models[name]['dsc'].mean)}"
        for name, words in (
            ("scratch", "the same network without pre-training"),
            ("threshold", "the best single grey-value threshold"),
        )
        if name in models
    ]
    return f"{text} For comparison, {', and '.join(others)}." if others else text


def tiles(summary: Summary, registration: Registration | None) -> list[dict[str, str]]:
    shown = [
        {
            "label": f"DSC, {MODELS.get(name, name)}",
            "value": number(scores["dsc"].mean),
            "detail": f"{number(scores['dsc_lesion'].mean)} on images with a lesion",
        }
        for name, scores in _ordered(summary)
    ]
    if registration:
        segmenter = registration.segmenter
        shown.append(
            {
                "label": segmenter.name,
                "value": f"version {segmenter.version}",
                "detail": ", ".join(segmenter.aliases),
            }
        )
    return shown


def _ordered(summary: Summary) -> list[tuple[str, Scores]]:
    return [(name, summary.models[name]) for name in in_order(summary.models)]


def results(summary: Summary, confidence: str) -> dict[str, Any]:
    """Collect the table, and what the differences mean."""
    models = _ordered(summary)
    rows = []
    for figure, label in FIGURES.items():
        known = [mean for _, scores in models if (mean := scores[figure].mean) is not None]
        best = (max if label.larger_is_better else min)(known) if known else None
        cells = [{"entry": scores[figure], "best": scores[figure].mean == best} for _, scores in models]
        if known:
            rows.append({"label": label.text, "digits": label.digits, "cells": cells})
    undefined = [
        f"{scores['hd95'].undefined} ({MODELS.get(name, name)})" for name, scores in models if scores["hd95"].undefined
    ]
    return {
        "models": [{"title": MODELS.get(name, name)} for name, _ in models],
        "figures": rows,
        "rule": summary.rule,
        "undefined": ", ".join(undefined),
        "comparisons": [
            _comparison(name, scores["dsc"], confidence)
            for name, scores in summary.paired.items()
            if scores["dsc"].mean is not None
        ],
    }


def _comparison(name: str, difference: Score, confidence: str) -> dict[str, Any]:
    """Say what a paired difference of DSC means; its interval decides."""
    subject, other = {
        "segmenter-scratch": ("Pre-training", "the same network trained from scratch"),
        "segmenter-threshold": ("The segmenter", "the best single threshold"),
    }.get(name, (name, "the other"))
    low, high = difference.low, difference.high
    assert difference.mean is not None
    detail = f"DSC {signed(difference.mean)} on the same images"
    if low is None or high is None:
        return {"text": f"{subject} against {other}: {detail}; too few groups for an interval.", "warn": True}
    interval = f"the {confidence} interval is {signed(low)} to {signed(high)}"
    if low > 0:
        return {"text": f"{subject} did better than {other}: {detail}; {interval}.", "warn": False}
    if high < 0:
        return {"text": f"{subject} did worse than {other}: {detail}; {interval}.", "warn": True}
    return {
        "text": f"{subject} made no clear difference against {other}: {detail}; {interval}, which includes 0.",
        "warn": True,
    }
