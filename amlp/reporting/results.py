"""The page's results: the headline, the table, and what differences mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from amlp.metrics.figures import FIGURES, MODELS, in_order
from amlp.reporting.wording import number, signed, with_interval


def ordered(summary: dict[str, Any]) -> dict[str, Any]:
    """Bring the models into the order in which they are shown."""
    return {**summary, "models": {name: summary["models"][name] for name in in_order(summary["models"])}}


def headline(summary: Mapping[str, Any], confidence: str) -> str:
    test, models = summary["test"], summary["models"]
    text = (
        f"On {test['cases']} test images from {test['groups']} groups that no training image belongs to, the "
        f"segmenter's mean DSC is {with_interval(models['segmenter']['dsc'], confidence)}."
    )
    others = [
        f"{words} reaches {number(models[name]['dsc']['mean'])}"
        for name, words in (
            ("scratch", "the same network without pre-training"),
            ("threshold", "the best single grey-value threshold"),
        )
        if name in models
    ]
    return f"{text} For comparison, {', and '.join(others)}." if others else text


def tiles(summary: Mapping[str, Any], registration: Mapping[str, Any] | None) -> list[dict[str, str]]:
    tiles = [
        {
            "label": f"DSC, {MODELS.get(name, name)}",
            "value": number(entry["dsc"]["mean"]),
            "detail": f"{number(entry['dsc_lesion']['mean'])} on images with a lesion",
        }
        for name, entry in summary["models"].items()
    ]
    if registration:
        segmenter = registration["segmenter"]
        tiles.append(
            {
                "label": segmenter["name"],
                "value": f"version {segmenter['version']}",
                "detail": ", ".join(segmenter["aliases"]),
            }
        )
    return tiles


def results(summary: Mapping[str, Any], confidence: str) -> dict[str, Any]:
    models = summary["models"]
    rows = []
    for figure, label in FIGURES.items():
        means = [entry[figure]["mean"] for entry in models.values()]
        known = [mean for mean in means if mean is not None]
        best = (max if label.larger_is_better else min)(known) if known else None
        cells = [{"entry": entry[figure], "best": entry[figure]["mean"] == best} for entry in models.values()]
        if known:
            rows.append({"label": label.text, "digits": label.digits, "cells": cells})
    undefined = [
        f"{entry['hd95']['undefined']} ({MODELS.get(name, name)})"
        for name, entry in models.items()
        if entry["hd95"]["undefined"]
    ]
    return {
        "models": [{"title": MODELS.get(name, name)} for name in models],
        "figures": rows,
        "rule": summary["rule"],
        "undefined": ", ".join(undefined),
        "comparisons": [
            _comparison(name, entry["dsc"], confidence)
            for name, entry in summary["paired"].items()
            if entry["dsc"]["mean"] is not None
        ],
    }


def _comparison(name: str, difference: Mapping[str, Any], confidence: str) -> dict[str, Any]:
    """Say what a paired difference of DSC means; its interval decides."""
    subject, other = {
        "segmenter-scratch": ("Pre-training", "the same network trained from scratch"),
        "segmenter-threshold": ("The segmenter", "the best single threshold"),
    }.get(name, (name, "the other"))
    low, high = difference["low"], difference["high"]
    detail = f"DSC {signed(difference['mean'])} on the same images"
    if low is None:
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
