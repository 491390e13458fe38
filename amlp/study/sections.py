"""The later parts of a study's page: costs, what pre-training did, and what the numbers do not show."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from amlp.study.markdown import escape, number, table
from amlp.study.results import ENOUGH_SEEDS, Results


def cost(results: Results) -> str:
    fractions = sorted({cell.fraction for cell in results.cells})
    rows = []
    for variant in dict.fromkeys(cell.variant for cell in results.cells):
        pretrained = results.units("pretrain", variant)
        row = [escape(results.study.title(variant))]
        row += [number(results.metrics(pretrained, "steps"), digits=0)]
        row += [number(results.metrics(pretrained, "visible_tokens") / 1e6, digits=2)]
        row += [number(results.metrics(pretrained, "seconds") / 60, digits=1)]
        row += [number(results.cpu_seconds(pretrained) / 60, digits=1)]
        for fraction in fractions:
            units = results.units("finetune", variant, fraction)
            row.append(number(results.metrics(units, "seconds") / 60, digits=1))
            row.append(number(results.cpu_seconds(units) / 60, digits=1))
        rows.append(row)
    head = ["variant", "pre-training steps", "visible tokens, millions", "minutes", "CPU minutes"]
    for fraction in fractions:
        head += [f"fine-tuning at {fraction:.0%}, minutes", "CPU minutes"]
    return (
        "## Cost\n\nMeans over seeds. Minutes depend on what ran beside a training, CPU minutes hardly do.\n\n"
        + table(head, rows)
    )


def diagnostics(results: Results) -> str:
    """What pre-training masked and reconstructed, and how well features separated, where that was recorded."""
    wanted = [
        ("masked_ratio", "times likelier that lesion is masked", ("first", "lowest", "last")),
        ("score_enrichment", "enrichment of the scores", ("first", "last")),
        ("score_recall", "recall of the scores", ("first", "last")),
        ("error_lesion", "error on lesion", ("last",)),
        ("error_background", "error on background", ("last",)),
        ("probe_auc", "AUC of a linear probe of the encoder", ("first", "last")),
    ]
    rows = []
    for variant in dict.fromkeys(cell.variant for cell in results.cells):
        title = escape(results.study.title(variant))
        curves, drawn = results.curves(variant, "diagnostics.csv"), results.curves(variant, "history.csv")
        if curves:
            sources = {name: drawn if name == "masked_ratio" else curves for name, _, _ in wanted}
            cells = [number(_at(sources[name], name, when)) for name, _, times in wanted for when in times]
            untrained = results.metrics(results.units("pretrain", variant), "probe_auc_untrained")
            rows.append([title, *cells, number(untrained)])
    if not rows:
        return ""
    head = ["variant"] + [f"{title}, {when}" for _, title, times in wanted for when in times]
    head.append("the probe before training")
    text = (
        "Means over seeds, and the lowest of any epoch of any seed. What is masked is counted in every epoch, in the "
        "masks that the training draws; scores and errors are of up to 32 training images, the probe's of up to 96. "
        "True masks are looked at here alone, no training depends on them."
    )
    return "\n\n".join(["## What pre-training did", text, table(head, rows)])


def _at(curves: Sequence[pd.DataFrame], column: str, when: str) -> float:
    """A figure at a moment of each seed's training: the mean over seeds, or the lowest of all."""
    found = []
    for curve in curves:
        if column == "masked_ratio" and "masked_lesion_share" in curve:
            curve = curve.assign(masked_ratio=curve["masked_lesion_share"] / curve["masked_background_share"])
        values = curve[column].dropna() if column in curve else pd.Series(dtype=float)
        if len(values):
            found.append({"first": values.iloc[0], "last": values.iloc[-1], "lowest": values.min()}[when])
    if not found:
        return math.nan
    return float(min(found) if when == "lowest" else np.mean(found))


def limits(results: Results) -> str:
    few = [
        escape(results.study.title(variant))
        for variant in results.study.file.variants
        if 0 < max(len(results.seeds(variant, fraction)) for fraction in results.study.file.fractions) < ENOUGH_SEEDS
    ]
    limits = [
        "One data set and one split into training, validation and test: another hospital, device or split gives other "
        "figures.",
        "The scale is that of the machine above: longer training and larger models may order the variants differently.",
        "Groups are near-duplicates, and patients only where the data name them; images of one patient in several "
        "groups would make every interval too narrow.",
        f"Even with {ENOUGH_SEEDS} seeds the randomness of training is known roughly: resampling so few trainings "
        "gives intervals that are somewhat too narrow.",
        *_limits_of_the_split(results),
        "The epoch is chosen on the whole validation split, whatever share of the training labels is used: a project "
        "with so few labels would have fewer to choose by.",
    ]
    if few:
        limits.append(
            f"Fewer than {ENOUGH_SEEDS} seeds ({', '.join(few)}): such a variant may be better or worse than it looks "
            "by the luck of its training alone."
        )
    return "## What these numbers do not show\n\n" + "\n".join(f"- {limit}" for limit in limits)


def _limits_of_the_split(results: Results) -> list[str]:
    chance = "and many comparisons are on this page: some intervals exclude 0 by chance."
    if results.scored.split == "test":
        return [
            f"All variants are compared on the same test split, {chance} Settings that were chosen after a look at "
            "such a page favour what they were chosen for."
        ]
    return [
        "These are figures to choose settings by, not to say how good a model is: what was chosen here is to be "
        "scored on the test split, which this study did not touch.",
        "Pre-training saw the scored images, without their masks, and training from scratch did not: variants with "
        "pre-training may look better here than on new images. Grey values were normalised by these images too.",
        "Each seed and share of labels leaves other images unused, so figures of different shares are not of the same "
        "images; differences between variants are, within each seed.",
        f"Variants are compared on the same images, {chance}",
    ]
