"""Pictures of a pre-training, drawn from the monitor's snapshots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from amlp.files import atomic_file
from amlp.method.losses import Target
from amlp.models.encoder import EncoderPlan

_GAP, _HEADER, _SIDE = 6, 26, 168


def _grey(image: np.ndarray) -> np.ndarray:
    """(C, H, W) uint8 to (H, W, 3) for display: one channel as grey, three as colour, else the first."""
    return np.repeat(image[:1], 3, axis=0).transpose(1, 2, 0) if image.shape[0] != 3 else image.transpose(1, 2, 0)


def _enlarge(patches: np.ndarray, plan: EncoderPlan) -> np.ndarray:
    """(L,) values of patches to (H, W)."""
    return patches.reshape(plan.grid).repeat(plan.patch, axis=0).repeat(plan.patch, axis=1)


def _hide(image: np.ndarray, hidden: np.ndarray, plan: EncoderPlan) -> np.ndarray:
    """Paint masked patches in a blue that no grey picture holds."""
    shown = _grey(image).copy()
    shown[_enlarge(hidden, plan)] = (52, 84, 140)
    return shown


def _heat(image: np.ndarray, score: np.ndarray, plan: EncoderPlan) -> np.ndarray:
    """Lay the score over the image, from nothing (0) to orange (1)."""
    alpha = 0.65 * _enlarge(score, plan)[..., None]
    return (_grey(image) * (1 - alpha) + np.array([255, 140, 0]) * alpha).astype(np.uint8)


def _sheet(path: Path, headers: list[str], rows: list[list[np.ndarray]]) -> None:
    """Write a table of equally large pictures with a header over each column."""
    height, width = rows[0][0].shape[:2]
    scale = _SIDE / max(height, width)
    size = (round(width * scale), round(height * scale))
    sheet = Image.new(
        "RGB",
        (len(headers) * (size[0] + _GAP) + _GAP, _HEADER + len(rows) * (size[1] + _GAP) + _GAP),
        "white",
    )
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=14)
    for column, header in enumerate(headers):
        pen.text((_GAP + column * (size[0] + _GAP), 5), header, fill="black", font=font)
        for row, pictures in enumerate(rows):
            picture = Image.fromarray(pictures[column]).resize(size, Image.Resampling.BILINEAR)
            sheet.paste(picture, (_GAP + column * (size[0] + _GAP), _HEADER + row * (size[1] + _GAP)))
    with atomic_file(path) as temporary:
        sheet.save(temporary, optimize=True)


def draw_masks(path: Path, snapshots: list[dict[str, Any]], *, plan: EncoderPlan) -> None:
    """The same images with their masked patches at several epochs: how the ratio rises, and what is hidden first."""
    images = snapshots[0]["images"].numpy()
    headers = ["image", *(f"epoch {s['epoch']}, ratio {s['ratio']:.2f}" for s in snapshots)]
    rows = [
        [_grey(image), *(_hide(image, s["hidden"][i].numpy(), plan) for s in snapshots)]
        for i, image in enumerate(images)
    ]
    _sheet(path, headers, rows)


def draw_reconstructions(path: Path, snapshots: list[dict[str, Any]], *, plan: EncoderPlan, target: Target) -> None:
    """Image, what the encoder saw of it, what the decoder was to paint and what it painted, at the last snapshot.

    Histograms of gradients are no picture: the snapshot holds their strength, and the headers say so.
    """
    painted = ["gradient strength", "predicted strength"] if target == "hog" else ["target", "reconstruction"]
    last = snapshots[-1]
    rows = [
        [
            _grey(last["images"][i].numpy()),
            _hide(last["images"][i].numpy(), last["hidden"][i].numpy(), plan),
            _grey(last["target"][i].numpy()),
            _grey(last["reconstruction"][i].numpy()),
        ]
        for i in range(len(last["images"]))
    ]
    _sheet(path, ["image", f"seen (ratio {last['ratio']:.2f})", *painted], rows)


def draw_scores(path: Path, snapshots: list[dict[str, Any]], *, plan: EncoderPlan) -> None:
    """Lesion scores over the images: the clusters' at first and after the model refined them."""
    chosen = [snapshots[0], snapshots[-1]]
    rows = [
        [
            _grey(snapshots[0]["images"][i].numpy()),
            *(_heat(s["images"][i].numpy(), s["score"][i].numpy(), plan) for s in chosen),
        ]
        for i in range(len(snapshots[0]["images"]))
    ]
    _sheet(path, ["image", *(f"score, epoch {s['epoch']}" for s in chosen)], rows)
