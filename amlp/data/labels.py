"""Which masks of the training split fine-tuning sees, and which it does not."""

from __future__ import annotations

import numpy as np
import pandas as pd

from amlp.errors import UserError


def labelled_subset(index: pd.DataFrame, fraction: float, seed: int) -> np.ndarray:
    """Choose the labelled rows to train on: whole groups, stratified by label.

    Args:
        index: one split's index, in row order.
        fraction: share of the labelled groups of each label, above 0 up to 1.
        seed: of the choice; a larger fraction contains a smaller one's groups.

    Returns:
        Ascending row numbers.
    """
    labelled = index.reset_index(drop=True)
    labelled = labelled[labelled["labelled"]]
    if labelled.empty:
        raise UserError("The training split holds no image with a mask: fine-tuning needs some.")
    if fraction == 1.0:
        return labelled.index.to_numpy().copy()
    generator = np.random.default_rng(seed)
    group_label = labelled.groupby("group")["label"].agg(lambda values: values.mode().iloc[0])
    chosen: list[int] = []
    for label in sorted(group_label.unique()):
        groups = np.sort(group_label.index[group_label == label].to_numpy())
        count = max(1, round(fraction * len(groups)))
        chosen.extend(generator.permutation(groups)[:count])
    return labelled.index[labelled["group"].isin(chosen)].to_numpy().copy()


def unused_labels(index: pd.DataFrame, fraction: float, seed: int) -> np.ndarray:
    """The labelled rows that `labelled_subset` leaves out: whole groups, none of which it takes.

    Args:
        index: the training split's index, in row order.
        fraction: share of the labels that fine-tuning sees, below 1.
        seed: of its choice.

    Returns:
        Ascending row numbers.

    Raises:
        UserError: nothing is left out.
    """
    labelled = np.flatnonzero(index["labelled"].to_numpy(dtype=bool))
    left = np.setdiff1d(labelled, labelled_subset(index, fraction, seed))
    if not len(left):
        raise UserError(
            f"finetune.label_fraction {fraction:g} leaves no labelled training image out, so there is none to score "
            "on: lower it, or score on the test split."
        )
    return left
