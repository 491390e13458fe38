"""How often the promotion gate promotes, in simulated test splits where the truth is known.

    python -m benchmarks.bench_gate     # writes results/gate.json and prints the table of docs/explanation/gate.md

Each of 2,000 draws is a test split on which a champion and a challenger were scored. A group's true difference comes
from its class's gain and a spread over groups; its images share it, as near-duplicates do. Images without a lesion
differ where a false positive comes or goes. The gate's own functions do the rest, with the parameters' defaults.

The classes have the sizes of BUSI's test split at the default fraction: 64 groups benign, 37 malignant, 19 normal.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from amlp.params import GateParams
from amlp.promotion.decision import Kind, exceeds
from amlp.promotion.gate import figure, intervals, parts, verdict
from benchmarks.machine import report

DRAWS = 2000
BUSI = {"benign": 64, "malignant": 37, "normal": 19}
LESIONS = {"benign": 76, "malignant": 44}
NORMAL = "normal"
# Columns of a wide table that are bootstrapped at a time: 40 MB of means.
_COLUMNS = 500

Array = NDArray[Any]


@dataclass(frozen=True)
class Scenario:
    """What is true of the two models.

    Args:
        title: as the table has it.
        groups: of each class.
        gain: mean difference in DSC of each class with lesions; 0 unless given.
        spread: standard deviation of the groups' differences.
        shape: of their distribution: normal; a tenth of the groups makes 95 % of the variance; or exponential, many
            small gains and a few failures.
        worse: share of the normal groups that gain a false positive.
        better: share that loses one.
        images: largest number of images a group; its groups take 1, 2, ... in turn.
        confidence: of the intervals, where it is not the default.
    """

    title: str
    groups: Mapping[str, int] = field(default_factory=lambda: LESIONS)
    gain: Mapping[str, float] = field(default_factory=dict)
    spread: float = 0.08
    shape: Literal["normal", "heavy", "failures"] = "normal"
    worse: float = 0.0
    better: float = 0.0
    images: int = 1
    confidence: float | None = None


@dataclass(frozen=True)
class Drawn:
    """Images (cases,) with group, label and lesion, and each kind's differences (cases, draws)."""

    group: Array
    label: Array
    lesion: Array
    differences: Mapping[Kind, Array]


@dataclass(frozen=True)
class Shares:
    """Shares of the draws that are promoted.

    `overall` leaves the classes out; `estimate` asks of each class's mean alone that it respect the margin, `interval`
    asks it of every class's interval, also of one that looks no worse.
    """

    promoted: float
    overall: float
    estimate: float
    interval: float


def draw(scenario: Scenario, draws: int, seed: int) -> Drawn:
    """Simulate scores of both models."""
    rng = np.random.default_rng(seed)
    columns, labels = [], []
    for name, count in scenario.groups.items():
        if name == NORMAL:
            chance = rng.random((count, draws))
            came, went = chance < scenario.worse, chance >= 1.0 - scenario.better
            # The DSC of an image without a lesion is 1 less its false positive.
            columns.append(went.astype(float) - came)
        else:
            columns.append(scenario.gain.get(name, 0.0) + scenario.spread * _deviations(rng, scenario, count, draws))
        labels += [name] * count
    images = 1 + np.arange(len(labels)) % scenario.images
    group = np.repeat(np.arange(len(labels)), images)
    label: Array = np.array(labels)[group]
    dsc = np.concatenate(columns)[group]
    return Drawn(group, label, np.not_equal(label, NORMAL), {"dsc": dsc, "false_positive_rate": -dsc})


def _deviations(rng: np.random.Generator, scenario: Scenario, count: int, draws: int) -> Array:
    """Draw (count, draws) of mean 0 and variance 1."""
    if scenario.shape == "failures":
        return 1.0 - rng.exponential(size=(count, draws))
    values = rng.standard_normal((count, draws))
    if scenario.shape == "heavy":
        rare = rng.random((count, draws)) < 0.1
        values *= np.where(rare, np.sqrt(0.95 / 0.1), np.sqrt(0.05 / 0.9))
    return values


def decisions(drawn: Drawn, params: GateParams, seed: int = 0) -> list[dict[str, bool]]:
    """Judge each draw by the gate's rule, and by the other rules that `Shares` names."""
    found: list[list[Any]] = []
    draws = drawn.differences["dsc"].shape[1]
    for part in parts(drawn.label, drawn.lesion):
        values, groups = drawn.differences[part.kind][part.rows], drawn.group[part.rows]
        zeros, figures = np.zeros(len(values)), []
        for start in range(0, draws, _COLUMNS):
            wide = pd.DataFrame(values[:, start : start + _COLUMNS])
            for number, interval in enumerate(intervals(wide, groups, params=params, seed=seed).values()):
                new = values[:, start + number]
                figures.append(figure(part, interval, old=zeros, new=new, groups=groups, params=params))
        found.append(figures)
    rows = []
    for effect, *classes in zip(*found, strict=True):
        overall = verdict([effect], params)[0] == "promote"
        rows.append(
            {
                "promoted": verdict([effect, *classes], params)[0] == "promote",
                "overall": overall,
                "estimate": overall and all(exceeds(each.gain, -each.margin) for each in classes),
                "interval": overall and all(exceeds(each.worst, -each.margin) for each in classes),
            }
        )
    return rows


def shares(scenario: Scenario, params: GateParams, *, draws: int = DRAWS) -> Shares:
    """Simulate a scenario; its title decides the random numbers."""
    if scenario.confidence is not None:
        params = params.model_copy(update={"confidence": scenario.confidence})
    rows = decisions(draw(scenario, draws, zlib.crc32(scenario.title.encode())), params)
    return Shares(**{key: float(np.mean([row[key] for row in rows])) for key in rows[0]})


def even(gain: float, groups: Mapping[str, int] = LESIONS) -> dict[str, float]:
    """Give each class with lesions the same gain, so that the mean over all groups is `gain`."""
    lesions = sum(count for label, count in groups.items() if label != NORMAL)
    return {label: gain * sum(groups.values()) / lesions for label in groups if label != NORMAL}


# No true difference: these should be kept.
NO_GAIN = (
    Scenario("no gain"),
    Scenario("no gain, a tenth of the groups makes nearly all the variance", shape="heavy"),
    Scenario("no gain, many small improvements and a few failures", shape="failures"),
    Scenario("the same with a confidence of 0.95 instead of 0.98", shape="failures", confidence=0.95),
    Scenario("the same with 0.98 and 50 groups", groups={"benign": 32, "malignant": 18}, shape="failures"),
    Scenario("no gain, 1 to 3 images a group, 5 % of false positives come, 5 % go", BUSI, images=3, worse=0.05,
             better=0.05),
)  # fmt: skip
# A gain in the mean over all images: these should be promoted.
GAIN = (
    Scenario("gain of 3 points", gain=even(0.03)),
    Scenario("gain of 3 points, a tenth of the groups makes nearly all the variance", gain=even(0.03), shape="heavy"),
    Scenario("gain of 3 points, with normal images", BUSI, even(0.03, BUSI)),
    Scenario("gain of 3 points, 2 % of false positives come, 2 % go", BUSI, even(0.03, BUSI), worse=0.02, better=0.02),
    Scenario("gain of 3 points, 5 % of false positives come, 5 % go", BUSI, even(0.03, BUSI), worse=0.05, better=0.05),
    Scenario("gain of 3 points, spread of 12", BUSI, even(0.03, BUSI), spread=0.12),
    Scenario("gain of 2 points", gain=even(0.02)),
    Scenario("gain of 3 points from the benign alone", BUSI, {"benign": 0.03 * 120 / 64}),
)
# A gain over all images that one class pays for: these should be kept.
HARM = (
    Scenario("benign gain 9 points, malignant lose 5, the margin", BUSI, {"benign": 0.09, "malignant": -0.05}),
    Scenario("benign gain 9 points, malignant lose 3", BUSI, {"benign": 0.09, "malignant": -0.03}),
    Scenario("lesions gain 6 points, 10 % of the normal groups a false positive, the margin", BUSI,
             even(0.06, LESIONS), worse=0.1),
    Scenario("the same with 60 normal groups", {**BUSI, "normal": 60}, {"benign": 0.12, "malignant": 0.12}, worse=0.1),
)  # fmt: skip


def table(figures: Mapping[str, Mapping[str, float]]) -> str:
    """Write the shares as the table of docs/explanation/gate.md, percent."""
    rules = {
        "promoted": "promoted",
        "overall": "without the class rule",
        "estimate": "the means must respect the margin",
        "interval": "all intervals must",
    }
    lines = ["| truth | " + " | ".join(rules.values()) + " |", "| --- " * (1 + len(rules)) + "|"]
    for title, entry in figures.items():
        cells = [f"{100 * entry[key]:.1f}" for key in rules]
        lines.append(f"| {title} | **{cells[0]}** | {' | '.join(cells[1:])} |")
    return "\n".join(lines)


def main() -> None:
    """Measure every scenario."""
    figures = {}
    for scenario in (*NO_GAIN, *GAIN, *HARM):
        figures[scenario.title] = asdict(shares(scenario, GateParams()))
        print(f"{scenario.title}: {100 * figures[scenario.title]['promoted']:.1f} %", flush=True)
    print(table(figures))
    kept, gained = (100 * figures[group[0].title]["promoted"] for group in (NO_GAIN, GAIN))
    report(
        "gate",
        figures,
        f"promotion gate: {kept:.1f} % promoted without a gain, {gained:.1f} % with a gain of 3 points",
        packages=("numpy", "pandas"),
    )


if __name__ == "__main__":
    main()
