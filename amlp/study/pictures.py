"""Pictures of a study's page, as PNG: scores with intervals, scores against labels, and scored images with outlines."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from amlp.data.pictures import read_image, read_mask
from amlp.data.shards import ShardedSplit
from amlp.evaluation.overlays import Example, draw_overlays
from amlp.files import atomic_file
from amlp.layout import SegmenterFolder
from amlp.metrics.figures import FIGURES
from amlp.models.predictor import Predictor
from amlp.study.plan import Cell
from amlp.study.results import Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# They differ in all common kinds of colour blindness (Okabe and Ito); each has its own mark.
_STYLES = [
    ("#0072b2", "o"), ("#d55e00", "s"), ("#009e73", "^"), ("#cc79a7", "D"), ("#e69f00", "v"), ("#56b4e9", "P"),
    ("#000000", "X"),
]  # fmt: skip
_EXAMPLES = 2


def draw_scores(path: Path, results: Results) -> None:
    """Each variant's DSC over all scored images: mean, interval, and a small dot a seed; a panel a label fraction."""
    from matplotlib.figure import Figure

    fractions = sorted({cell.fraction for cell in results.cells})
    rows = max(len(results.variants(fraction)) for fraction in fractions)
    figure = Figure(figsize=(9, 1.1 + 0.32 * rows), layout="constrained", dpi=120)
    for axes, fraction in zip(figure.subplots(1, len(fractions), squeeze=False)[0], fractions, strict=True):
        variants = results.variants(fraction)
        for row, variant in enumerate(variants):
            estimate = results.estimate(variant, fraction, "dsc")
            band = estimate.headline
            colour = "#d55e00" if variant == results.study.file.reference else "#0072b2"
            if not math.isnan(band.low):
                # One training's interval lacks the randomness of training, and is drawn thin.
                width = 2.5 if estimate.seeds_resampled else 1.0
                axes.plot([band.low, band.high], [row, row], color=colour, linewidth=width)
            axes.plot(band.mean, row, marker="D", markersize=6, color=colour)
            seeds = list(estimate.by_seed.values())
            axes.plot(seeds, [row + 0.25] * len(seeds), "o", markersize=3.5, color="#777777")
        axes.set_yticks(
            range(len(variants)), [_plain(results.study.title(variant)) for variant in variants], fontsize=8
        )
        axes.set_ylim(len(variants) - 0.4, -0.6)
        axes.set_title(f"{fraction:.0%} of the labels", fontsize=10)
        axes.set_xlabel(FIGURES["dsc"].text)
        axes.grid(axis="x", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
    _write(path, figure)


def draw_fractions(path: Path, results: Results) -> bool:
    """DSC against the share of labels, of the variants that were trained with several; False where there is none."""
    from matplotlib.figure import Figure

    lines = {
        variant: fractions
        for variant in results.study.file.variants
        if len(fractions := sorted({cell.fraction for cell in results.cells if cell.variant == variant})) > 1
    }
    # Variants of one seed would hide the others, unless there are no others.
    several = {
        variant: fractions for variant, fractions in lines.items() if len(results.seeds(variant, fractions[0])) > 1
    }
    lines = several or lines
    if not lines:
        return False
    figure = Figure(figsize=(7, 4), layout="constrained", dpi=120)
    axes = figure.subplots()
    for number, (variant, fractions) in enumerate(lines.items()):
        colour, marker = _STYLES[number % len(_STYLES)]
        bands = [results.estimate(variant, fraction, "dsc").headline for fraction in fractions]
        # Moved a little apart, or intervals hide each other.
        x = [fraction * (1 + 0.02 * (number - len(lines) / 2)) for fraction in fractions]
        axes.plot(
            x, [band.mean for band in bands], color=colour, marker=marker, label=_plain(results.study.title(variant))
        )
        for at, band in zip(x, bands, strict=True):
            axes.plot([at, at], [band.low, band.high], color=colour, linewidth=1, alpha=0.7)
    axes.set_xscale("log")
    ticks = sorted({fraction for fractions in lines.values() for fraction in fractions})
    axes.set_xticks(ticks, [f"{tick:.0%}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("share of the labels")
    axes.set_ylabel(FIGURES["dsc"].text)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.legend(frameon=False, fontsize=8)
    _write(path, figure)
    return True


def draw_examples(path: Path, results: Results, *, other: str, ingest: Path, shards: Path) -> Cell | None:
    """Outlines of the reference variant and another on the scored images where they differ most, and least, in DSC.

    Returns:
        The reference's cell that is shown: fewest labels, first seed; None where no such pair of models is there.
    """
    pairs = [
        (Cell(other, fraction, seed), Cell(results.study.file.reference, fraction, seed))
        for fraction in sorted(results.study.file.fractions)
        for seed in results.seeds(other, fraction)
    ]
    cells = next((pair for pair in pairs if all(_model(results, cell) for cell in pair)), None)
    if cells is None:
        return None
    tables = [_dsc(results, cell) for cell in cells]
    gain = (tables[1] - tables[0]).sort_values(ascending=False, kind="stable")
    middle = max(0, (len(gain) - _EXAMPLES) // 2)
    worst = gain.index[::-1][:_EXAMPLES]
    chosen = [*gain.index[:_EXAMPLES], *gain.index[middle : middle + _EXAMPLES], *worst]
    models = {}
    for cell, table in zip(cells, tables, strict=True):
        file = _model(results, cell)
        assert file is not None
        models[results.study.title(cell.variant)] = (Predictor.load(file), table)
    split = "test" if results.scored.split == "test" else "train"
    paths = ShardedSplit.open(shards, split).index.set_index("case_id")[["image", "mask"]]
    examples = []
    for case in dict.fromkeys(chosen):
        image, truth = read_image(ingest / paths.loc[case, "image"]), read_mask(ingest / paths.loc[case, "mask"])
        predicted = {name: (predictor.mask(image), float(table[case])) for name, (predictor, table) in models.items()}
        examples.append(Example(f"{case}  {gain[case]:+.3f}", image, truth, predicted))
    title = f"Largest gain, median and largest loss of DSC, {cells[0].fraction:.0%} of the labels, seed {cells[0].seed}"
    draw_overlays(path, examples, models=list(models), title=title)
    return cells[1]


def _model(results: Results, cell: Cell) -> Path | None:
    """The segmenter of a finished cell, where it is still there."""
    if cell not in results.cells:
        return None
    unit = results.plan.cells[cell].needs
    assert unit is not None
    file = SegmenterFolder(results.store.result(unit)).weights
    return file if file.is_file() else None


def _dsc(results: Results, cell: Cell) -> pd.Series:
    """DSC of the scored images with a lesion, by case id."""
    table = results.cases
    chosen = (table["variant"] == cell.variant) & (table["fraction"] == cell.fraction) & (table["seed"] == cell.seed)
    return table[chosen].set_index("case_id")["dsc_lesion"].dropna()


def _plain(text: str) -> str:
    """Matplotlib reads text between dollar signs as a formula."""
    return text.replace("$", r"\$")


def _write(path: Path, figure: Figure) -> None:
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
