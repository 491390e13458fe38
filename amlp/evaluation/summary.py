"""What an evaluation found: the content of evaluation/summary.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from amlp.errors import UserError
from amlp.files import read_json
from amlp.records import parse_record

Split = Literal["test", "unused"]


@dataclass(frozen=True)
class Score:
    """A figure's mean over the images that it counts for, with its interval; None where undefined.

    Attributes:
        low: of the interval, as `high`; None where fewer than two groups count.
        cases: images that count.
        undefined: images that do not.
    """

    mean: float | None
    low: float | None
    high: float | None
    cases: int = 0
    undefined: int = 0


@dataclass(frozen=True)
class ScoredImages:
    """Which images were scored on: of the test split, or those whose masks fine-tuning did not see."""

    cases: int
    lesion_cases: int
    groups: int
    hash: str
    split: Split = "test"


@dataclass(frozen=True)
class Baseline:
    """Pixels at `value` and darker (`dark`) or brighter (`bright`) are lesion; `train_dsc` is what that scored.

    Dark at -1 calls nothing a lesion: where many images have none, that can be the best.
    """

    value: int
    polarity: Literal["dark", "bright"]
    train_dsc: float

    def __str__(self) -> str:
        if self.value < 0:
            return "no pixel is lesion, for no grey value scored better"
        return f"grey value {'<=' if self.polarity == 'dark' else '>='} {self.value} of 255 is lesion"


# Figure -> score; see `amlp.metrics.figures.FIGURES`.
Scores = dict[str, Score]


@dataclass(frozen=True)
class Summary:
    """Scores of all models.

    Attributes:
        test: the images; the name is that of the usual split.
        rule: how empty masks count.
        confidence: of the intervals, 0 .. 1.
        models: by name, `segmenter` among them.
        paired: differences on the same images, by `one-other`.
        threshold: the baseline that the model `threshold` is.
    """

    test: ScoredImages
    rule: str
    confidence: float
    models: dict[str, Scores]
    paired: dict[str, Scores]
    threshold: Baseline | None = None

    @classmethod
    def read(cls, file: Path) -> Summary:
        """Read summary.json.

        Raises:
            UserError: there is none, or it is not what `evaluate` writes.
        """
        if not file.is_file():
            raise UserError(f"{file}: not found; run `amlp evaluate` first.")
        try:
            values = read_json(file)
            baseline = values["models"].get("threshold", {})
            models = {
                name: {figure: score for figure, score in scores.items() if isinstance(score, Mapping)}
                for name, scores in values["models"].items()
            }
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{file}: not what `amlp evaluate` writes ({error!r}). Run it again.") from error
        named = {"threshold": "value", "polarity": "polarity", "train_dsc": "train_dsc"}
        threshold = {named[key]: value for key, value in baseline.items() if key in named} or None
        return parse_record({**values, "models": models, "threshold": threshold}, cls, str(file))

    def as_dict(self) -> dict[str, Any]:
        """Return what summary.json holds: the baseline's own values stand beside its scores."""
        values = asdict(self)
        if (baseline := values.pop("threshold")) is not None:
            values["models"]["threshold"] |= {"threshold": baseline.pop("value"), **baseline}
        return values
