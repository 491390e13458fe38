"""Charts as SVG text that stands inside an HTML page and takes its colours from the page's style sheet."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np

# Placeholder colours of the drawing -> the page's own, so that a dark page gets charts that fit it.
_COLOURS = {
    "#010101": "var(--text)",
    "#020202": "var(--line)",
    "#030301": "var(--series-1)",
    "#030302": "var(--series-2)",
    "#030303": "var(--series-3)",
}
_TEXT, _LINE, *SERIES = _COLOURS
# Colour must not be the only difference.
_DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))
_SIZE = (4.6, 2.7)


@dataclass(frozen=True)
class Band:
    """A value with its interval, drawn as a bar beside points."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class LineChart:
    """Lines over the epochs.

    Args:
        lines: name -> values, one an epoch; NaN is passed over, and the points beside it are joined.
        description: what a reader sees who doesn't see the picture.
        limits: of the vertical axis.
        marks: name of a line -> epoch to mark on it.
    """

    x: Sequence[float]
    lines: Mapping[str, Sequence[float]]
    y_label: str
    description: str
    x_label: str = "epoch"
    limits: tuple[float | None, float | None] = (None, None)
    marks: Mapping[str, float] = field(default_factory=dict)

    def svg(self) -> str:
        figure, axes = _canvas()
        for (name, values), colour, dash in zip(self.lines.items(), SERIES, _DASHES, strict=False):
            points = [(x, y) for x, y in zip(self.x, values, strict=True) if not math.isnan(y)]
            axes.plot(*np.array(points).reshape(-1, 2).T, color=colour, linestyle=dash, linewidth=2, label=name)
            if name in self.marks:
                at = list(self.x).index(self.marks[name])
                axes.plot(self.marks[name], values[at], marker="o", markersize=7, color=colour)
        axes.set_xlabel(self.x_label)
        axes.set_ylabel(self.y_label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylim(*self.limits)
        axes.margins(x=0.02)
        if len(self.lines) > 1:
            axes.legend(frameon=False, labelcolor=_TEXT, fontsize=9)
        return _finish(figure, self.description)


@dataclass(frozen=True)
class DotChart:
    """A dot an image in one row a model, and the mean with its interval below."""

    rows: Mapping[str, tuple[Sequence[float], Band]]
    x_label: str
    description: str

    def svg(self) -> str:
        figure, axes = _canvas(height=0.7 + 0.75 * len(self.rows), width=9.4)
        random = np.random.default_rng(0)
        for row, (name, colour) in enumerate(zip(self.rows, SERIES, strict=False)):
            values, band = self.rows[name]
            jitter = random.uniform(-0.16, 0.16, len(values))
            axes.scatter(values, row - 0.12 + jitter, s=14, color=colour, alpha=0.45, linewidths=0)
            if band.low is not None and band.high is not None:
                axes.plot([band.low, band.high], [row + 0.26] * 2, color=_TEXT, linewidth=2.5, solid_capstyle="butt")
            axes.plot(band.mean, row + 0.26, marker="D", markersize=6, color=_TEXT)
        axes.set_yticks(range(len(self.rows)), list(self.rows))
        axes.set_ylim(len(self.rows) - 0.5, -0.5)
        axes.set_xlim(-0.02, 1.02)
        axes.set_xlabel(self.x_label)
        axes.grid(visible=False, axis="y")
        return _finish(figure, self.description)


def _canvas(*, height: float = _SIZE[1], width: float = _SIZE[0]):  # type: ignore[no-untyped-def]
    # Not through pyplot, which keeps every figure and looks for a screen.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("bottom", "left"):
        axes.spines[side].set_color(_LINE)
    axes.grid(color=_LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_TEXT, color=_LINE, labelsize=9)
    axes.xaxis.label.set_color(_TEXT)
    axes.yaxis.label.set_color(_TEXT)
    return figure, axes


def _finish(figure, description: str) -> str:  # type: ignore[no-untyped-def]
    import matplotlib

    buffer = io.StringIO()
    # Text stays text: smaller, and read aloud. The salt makes ids the same each time, and unlike those of other charts.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": description, "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    for unwanted in (
        r"^.*?(?=<svg)",
        r"<metadata>.*?</metadata>",
        # It would hold for the whole page.
        r"<style.*?</style>",
        # Inside HTML an SVG needs no namespaces, and no size but its view box: the page decides how large it is.
        r' (?:xmlns(?::\w+)?|version)="[^"]*"',
        # Groups of all charts have the same ids; nothing refers to them.
        r'(?<=<g) id="[^"]*"',
        r" font-family: [^;]*;",
    ):
        text = re.sub(unwanted, "", text, flags=re.DOTALL)
    head, rest = text.split(">", 1)
    head = re.sub(r' (?:width|height)="[^"]*"', "", head)
    for placeholder, colour in _COLOURS.items():
        rest = rest.replace(placeholder, colour)
    return f'{head} role="img" aria-label="{escape(description)}">{rest}'
