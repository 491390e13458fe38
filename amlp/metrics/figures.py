"""The figures of an evaluation, and how page, card, study and terminal name them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Label:
    """How a figure is shown.

    Attributes:
        text: with unit, and with the images that it counts for where those are not all.
        digits: after the decimal point.
        larger_is_better: or else smaller is.
    """

    text: str
    digits: int = 3
    larger_is_better: bool = True


FIGURES = {
    "dsc": Label("DSC, all images"),
    "dsc_lesion": Label("DSC, images with a lesion"),
    "ppv": Label("PPV"),
    "sensitivity": Label("sensitivity"),
    "hd95": Label("HD95, pixels", digits=1, larger_is_better=False),
    "false_positive_rate": Label("false-positive rate, images without a lesion", larger_is_better=False),
}
# What is compared, in the order in which it is shown; a model of another name stands after them.
MODELS = {"segmenter": "segmenter", "scratch": "from scratch", "threshold": "threshold"}


def in_order(names: Iterable[str]) -> list[str]:
    """Bring names of models into the order in which they are shown; a JSON file keeps none."""
    found = set(names)
    return [*(name for name in MODELS if name in found), *sorted(found - MODELS.keys())]
