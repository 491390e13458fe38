"""What goes into the promotion gate and what comes out of it."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from amlp.params import GateParams

Outcome = Literal["promote", "keep", "refuse"]
Keep = Literal["tie", "not_better", "below_minimum", "class_worse"]
Refusal = Literal[
    # The caller's, for then there are no scores to hand over: see `gate.refuse`.
    "unreadable_model",
    "same_model",
    "other_data",
    "other_job",
    "missing_column",
    "invalid_value",
    "duplicate_case",
    "missing_case",
    "unexpected_case",
    "different_case",
    "too_few_groups",
]
Reason = Literal["better", Keep, Refusal]
Role = Literal["champion", "baseline"]
Kind = Literal["dsc", "false_positive_rate"]

# Which way is better: a gain is a difference times its sign.
SIGN: Mapping[Kind, int] = {"dsc": 1, "false_positive_rate": -1}
# Scores come as float32: what differs by less is equal.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Model:
    """A model by name and version, as people know it, and by the SHA-256 of its file.

    A baseline without a file has the SHA-256 of what defines it.
    """

    name: str
    digest: str


@dataclass(frozen=True, eq=False)
class Side(Model):
    """A model and its scores.

    Args:
        test_hash: of the images that were scored, as `score_cases` returns it.
        job: names the evaluation that made the table; scores of another job are old ones.
        cases: one row an image, as cases.csv has them for one model; the columns `case_id`, `group`, `label`,
            `lesion_fraction`, `dsc` and `predicted_fraction` are read.
    """

    test_hash: str
    job: str
    cases: pd.DataFrame


@dataclass(frozen=True)
class FrozenSplit:
    """The test split that a decision is about, from where it is recorded and not from what was scored.

    Args:
        hash: as in a version's tag `test_hash`.
        case_ids: of all its images with a mask.
    """

    hash: str
    case_ids: frozenset[str]

    @property
    def seed(self) -> int:
        """Of the bootstrap: the same split gives the same resamples, and nobody can choose them."""
        return int.from_bytes(hashlib.sha256(self.hash.encode()).digest()[:8], "big")


@dataclass(frozen=True)
class Figure:
    """The challenger's mean less the reference's, with its interval, over some images.

    `label` is None for all images. `low` and `high` are NaN with a single group. `margin` is what a class may lose;
    None for all images, which are held against 0 and `gate.min_effect`.
    """

    label: str | None
    kind: Kind
    reference: float
    challenger: float
    difference: float
    low: float
    high: float
    cases: int
    groups: int
    margin: float | None

    @property
    def gain(self) -> float:
        """How much better the challenger is, whichever way is better."""
        return SIGN[self.kind] * self.difference

    @property
    def worst(self) -> float:
        """The smallest gain in the interval."""
        return self.low if SIGN[self.kind] > 0 else -self.high

    @property
    def passed(self) -> bool:
        """All images: the interval lies above 0. A class: no worse, or shown to have lost less than the margin."""
        if self.margin is None:
            return exceeds(self.worst, 0.0)
        return self.gain >= -TOLERANCE or exceeds(self.worst, -self.margin)

    def as_dict(self) -> dict[str, Any]:
        entry = {**dataclasses.asdict(self), "passed": self.passed}
        return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in entry.items()}

    def __str__(self) -> str:
        what = "DSC" if self.kind == "dsc" else "false-positive rate"
        interval = "" if math.isnan(self.low) else f", interval {self.low:+.3f} to {self.high:+.3f}"
        return (
            f"{what} {self.challenger:.3f} against {self.reference:.3f}: {self.difference:+.3f}{interval} "
            f"({self.cases} images, {self.groups} groups)"
        )


@dataclass(frozen=True)
class Decision:
    """What the gate decided, and all that it decided by; there are no figures where it refused.

    `role` says what the reference is: the champion, or the baseline where there is no champion yet. With `keep` and
    `refuse` the champion stays; where there is none, none is made.
    """

    outcome: Outcome
    reason: Reason
    explanation: str
    challenger: Model
    reference: Model
    role: Role
    split: FrozenSplit
    job: str | None
    effect: Figure | None
    classes: tuple[Figure, ...]
    thresholds: GateParams

    def as_dict(self) -> dict[str, Any]:
        """Give the decision as strict JSON takes it, for the record; undefined ends of intervals are None."""
        return {
            "outcome": self.outcome,
            "reason": self.reason,
            "explanation": self.explanation,
            "challenger": dataclasses.asdict(self.challenger),
            "reference": {"role": self.role, **dataclasses.asdict(self.reference)},
            "test_hash": self.split.hash,
            "test_cases": len(self.split.case_ids),
            "job": self.job,
            "seed": self.split.seed,
            "effect": self.effect.as_dict() if self.effect else None,
            "classes": [figure.as_dict() for figure in self.classes],
            "thresholds": self.thresholds.model_dump(),
        }


def exceeds(value: float, bound: float) -> bool:
    """Strictly, by more than rounding; NaN exceeds nothing."""
    return value > bound + TOLERANCE
