"""Pictures of the best, median and worst cases: the outlines of the true and the predicted lesions on the image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_dilation, binary_erosion

from amlp.data.images import to_uint8
from amlp.files import atomic_file

# They differ from each other and from grey in all common kinds of colour blindness.
TRUE_COLOUR = (0, 208, 255)
PREDICTED_COLOUR = (255, 160, 0)
# Pixels: room for each image, which keeps its aspect; gap between panels; lines of text.
PANEL_WIDTH, PANEL_HEIGHT, GAP, LINE = 240, 200, 8, 22
_STROKE = 2


@dataclass(frozen=True)
class Example:
    """One row of a picture: an image (H, W) or (H, W, 3), its true mask, each model's mask and DSC."""

    name: str
    image: NDArray[Any]
    truth: NDArray[Any]
    predicted: Mapping[str, tuple[NDArray[Any], float]]


def select_examples(cases: pd.DataFrame, *, model: str, count: int) -> dict[str, list[str]]:
    """Choose at most `count` case ids a kind among images with a lesion, by the DSC of `model`.

    Args:
        cases: with columns model, case_id, lesion_fraction and dsc.

    Returns:
        `best` (best first), `median` (those round the median, best first) and `worst` (worst first).
    """
    lesion = cases[(cases["model"] == model) & (cases["lesion_fraction"] > 0)]
    ranked = lesion.sort_values(["dsc", "case_id"], ascending=[False, True])["case_id"].tolist()
    middle = max(0, (len(ranked) - count) // 2)
    return {"best": ranked[:count], "median": ranked[middle : middle + count], "worst": ranked[::-1][:count]}


def draw_overlays(path: Path, examples: Sequence[Example], *, models: Sequence[str], title: str) -> None:
    """Write a PNG: a row an example; the plain image, then a panel a model with both outlines and the DSC.

    The true outline runs just outside the lesion, the predicted one just inside, so that both show where they agree.
    """
    rows = max(1, len(examples))
    width = GAP + (1 + len(models)) * (PANEL_WIDTH + GAP)
    height = GAP + 3 * LINE + rows * (LINE + PANEL_HEIGHT + GAP)
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    bold, font = ImageFont.load_default(15), ImageFont.load_default(13)
    lefts = [GAP + column * (PANEL_WIDTH + GAP) for column in range(1 + len(models))]
    draw.text((GAP, GAP), title, fill="black", font=bold)
    _legend(draw, GAP + LINE, font)
    for left, heading in zip(lefts, ("image", *models), strict=True):
        draw.text((left, GAP + 2 * LINE), _fit(heading, draw, bold), fill="black", font=bold)
    top = GAP + 3 * LINE
    if not examples:
        draw.text((GAP, top), "no image with a lesion", fill="black", font=font)
    for example in examples:
        draw.text((GAP, top), _fit(example.name, draw, font), fill="black", font=font)
        picture.paste(_panel(example.image), (lefts[0], top + LINE))
        for left, model in zip(lefts[1:], models, strict=True):
            mask, dsc = example.predicted[model]
            draw.text((left, top), f"DSC {dsc:.3f}", fill="black", font=font)
            outlines = ((example.truth, TRUE_COLOUR, True), (mask, PREDICTED_COLOUR, False))
            picture.paste(_panel(example.image, outlines), (left, top + LINE))
        top += LINE + PANEL_HEIGHT + GAP
    with atomic_file(path) as temporary:
        picture.save(temporary, format="PNG")


def _panel(
    image: NDArray[Any], outlines: Sequence[tuple[NDArray[Any], tuple[int, int, int], bool]] = ()
) -> Image.Image:
    """Fit an image with outlines (mask, colour, outside or inside the mask's edge) into the room of a panel."""
    height, width = image.shape[:2]
    scale = min(PANEL_WIDTH / width, PANEL_HEIGHT / height)
    size = (max(1, math.floor(width * scale)), max(1, math.floor(height * scale)))
    pixels = np.array(Image.fromarray(to_uint8(image)).convert("RGB").resize(size, Image.Resampling.BILINEAR))
    for mask, colour, outside in outlines:
        # Outlined after scaling, so that lines are equally thin on small and on large images.
        area = np.asarray(Image.fromarray((mask != 0).astype(np.uint8)).resize(size, Image.Resampling.NEAREST)) != 0
        edge = (
            binary_dilation(area, iterations=_STROKE) & ~area
            if outside
            else area & ~binary_erosion(area, iterations=_STROKE)
        )
        pixels[edge] = colour
    return Image.fromarray(pixels)


def _legend(draw: ImageDraw.ImageDraw, top: int, font: Any) -> None:
    left = float(GAP)
    for colour, text in ((TRUE_COLOUR, "true outline"), (PREDICTED_COLOUR, "predicted outline")):
        draw.rectangle((left, top + 6, left + 18, top + 10), fill=colour)
        draw.text((left + 24, top), text, fill="black", font=font)
        left += 24 + draw.textlength(text, font=font) + 2 * GAP


def _fit(text: str, draw: ImageDraw.ImageDraw, font: Any) -> str:
    """Shorten text to a panel's width."""
    if draw.textlength(text, font=font) <= PANEL_WIDTH:
        return text
    while draw.textlength(f"{text}...", font=font) > PANEL_WIDTH:
        text = text[:-1]
    return f"{text}..."
