"""The promotion gate: may a challenger take the champion's place? A pure function of scores, without files or MLflow.

The caller scores both models in one job on the frozen test split (`score_cases` takes several models at once), hands
over both tables and gets a `Decision`: promote, keep or refuse, with the numbers behind it.
docs/explanation/gate.md says what each outcome means and what to do about it.

All comparisons are in pairs, image by image. A challenger is promoted when all of these hold; a difference exactly at
a threshold keeps the champion:

1. *Shown*: the interval of the difference in mean DSC over all images lies above 0.
2. *Worth it*: that difference itself exceeds `min_effect`. The interval answers for chance, the minimum for whether the
   gain is worth a new model; so the interval is held against 0, not against the minimum.
3. *No class pays*: a label class is no worse in the mean, or its interval shows that it lost less than its margin.
   Images with a lesion are compared by DSC; on the others DSC is 0 or 1, and what counts is the false-positive rate,
   lower being better. Once a class looks worse, its *interval* must respect the margin: by the estimate alone, half of
   the challengers that truly lose the margin would pass. A class that doesn't look worse passes however wide its
   interval is, or a class of few patients would veto every promotion. As every class must pass, several classes need no
   correction for multiple tests.

Intervals are percentile intervals of the paired group bootstrap: whole groups (patients, near-duplicates) are drawn, a
class's among themselves. They are shown with both ends and asked at one, so the chance of error is
(1 - `confidence`) / 2: 1 % at the default of 0.98. Percentile intervals end too early where groups are few and
differences skewed (many small gains, a few failures): with 0.98 and at least 50 groups a challenger without any gain is
promoted in about 3 % of cases even then (`make bench-gate`). What another training seed would have given is not in the
interval: two model files are compared, not two ways to train.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from amlp.metrics.bootstrap import Interval, group_bootstrap
from amlp.params import GateParams
from amlp.promotion.decision import (
    TOLERANCE,
    Decision,
    Figure,
    FrozenSplit,
    Keep,
    Kind,
    Model,
    Outcome,
    Reason,
    Refusal,
    Role,
    Side,
    exceeds,
)

# What is read of cases.csv: what an image is, and numbers in 0..1.
_FACTS = ("case_id", "group", "label")
_NUMBERS = ("lesion_fraction", "dsc", "predicted_fraction")
_LISTED = 3


def decide(
    *, challenger: Side, champion: Side | None, baseline: Side, split: FrozenSplit, params: GateParams
) -> Decision:
    """Compare the challenger with the champion, or with the baseline where there is no champion yet.

    Args:
        challenger: the model that may become champion.
        champion: the present one, scored in the same job.
        baseline: what a first champion has to beat by the same rule, scored in the same job; unused otherwise.
        split: what both must have been scored on.
        params: thresholds and settings of the bootstrap.
    """
    reference = baseline if champion is None else champion
    role: Role = "baseline" if champion is None else "champion"
    problem = _problem(reference, challenger, split, params)
    if problem:
        return refuse(
            *problem, challenger=challenger, reference=reference, role=role, split=split, params=params,
            job=challenger.job,
        )  # fmt: skip

    before, after = _aligned(reference), _aligned(challenger)
    figures = []
    for part in parts(before["label"].to_numpy(), before["lesion_fraction"].to_numpy() > 0):
        old, new = _scores(before, part), _scores(after, part)
        groups = before["group"].to_numpy()[part.rows]
        [interval] = intervals(pd.DataFrame({"difference": new - old}), groups, params=params, seed=split.seed).values()
        figures.append(figure(part, interval, old=old, new=new, groups=groups, params=params))
    outcome, reason, explanation = verdict(figures, params)
    return Decision(
        outcome=outcome,
        reason=reason,
        explanation=explanation,
        challenger=Model(challenger.name, challenger.digest),
        reference=Model(reference.name, reference.digest),
        role=role,
        split=split,
        job=challenger.job,
        effect=figures[0],
        classes=tuple(figures[1:]),
        thresholds=params,
    )


def refuse(
    reason: Refusal,
    explanation: str,
    *,
    challenger: Model,
    reference: Model,
    role: Role,
    split: FrozenSplit,
    params: GateParams,
    job: str | None = None,
) -> Decision:
    """Make a refusal. A caller that can't load or run one of the models says so with `unreadable_model`.

    Args:
        reason: code of the refusal.
        explanation: what is wrong where, in a sentence.
        challenger: the model that was to become champion.
        reference: what it was to be compared with.
        role: what the reference is.
        split: what both were to be scored on.
        params: for the record.
        job: the evaluation, if there was one.
    """
    return Decision(
        outcome="refuse",
        reason=reason,
        explanation=explanation,
        challenger=Model(challenger.name, challenger.digest),
        reference=Model(reference.name, reference.digest),
        role=role,
        split=split,
        job=job,
        effect=None,
        classes=(),
        thresholds=params,
    )


class Part(NamedTuple):
    """Some images and the figure that they are compared by; `rows` is (cases,) bool."""

    label: str | None
    kind: Kind
    rows: NDArray[np.bool_]


def parts(labels: NDArray[Any], lesion: NDArray[np.bool_]) -> list[Part]:
    """List what is compared: all images, then each class's images with a lesion and those without.

    Args:
        labels: (cases,) the class of each image.
        lesion: (cases,) whether the truth has a lesion.
    """
    found = [Part(None, "dsc", np.ones(len(labels), dtype=bool))]
    for label in sorted(set(labels), key=str):
        found.append(Part(str(label), "dsc", (labels == label) & lesion))
        found.append(Part(str(label), "false_positive_rate", (labels == label) & ~lesion))
    return [part for part in found if part.rows.any()]


def intervals(
    differences: pd.DataFrame, groups: NDArray[Any], *, params: GateParams, seed: int
) -> dict[Hashable, Interval]:
    """Bootstrap the mean of each column of differences, (cases, columns), over whole groups, (cases,)."""
    return group_bootstrap(
        differences, groups, samples=params.bootstrap_samples, confidence=params.confidence, seed=seed
    )


def figure(
    part: Part, interval: Interval, *, old: NDArray[Any], new: NDArray[Any], groups: NDArray[Any], params: GateParams
) -> Figure:
    """Put the numbers of a part together: the interval of new less old, the scores and groups (cases,), its margin."""
    margins: dict[Kind, float] = {"dsc": params.class_margin, "false_positive_rate": params.false_positive_margin}
    return Figure(
        label=part.label,
        kind=part.kind,
        reference=float(old.mean()),
        challenger=float(new.mean()),
        difference=interval.mean,
        low=interval.low,
        high=interval.high,
        cases=interval.cases,
        groups=len(set(groups)),
        margin=None if part.label is None else margins[part.kind],
    )


def verdict(figures: Sequence[Figure], params: GateParams) -> tuple[Outcome, Reason, str]:
    """Apply the rule to the figures of `parts`; the explanation names all that speaks against a promotion."""
    effect, *classes = figures
    against: list[tuple[Keep, str]] = []
    if abs(effect.gain) <= TOLERANCE:
        against.append(("tie", "the means are the same"))
    if not effect.passed:
        against.append(("not_better", f"the {100 * params.confidence:g}% interval does not lie above 0"))
    if not exceeds(effect.gain, params.min_effect):
        against.append(("below_minimum", f"the gain does not exceed {params.min_effect:g}"))
    for each in classes:
        if not each.passed:
            against.append(("class_worse", f"{each.label} may have lost {each.margin:g} or more, {each}"))
    if not against:
        return "promote", "better", f"{effect}. Every class is no worse, or lost less than its margin."
    return "keep", against[0][0], f"{effect}. Against a promotion: {'; '.join(text for _, text in against)}."


def _aligned(side: Side) -> pd.DataFrame:
    """Rows in the order of their case ids: those of two sides make pairs, and the caller's order has no effect."""
    numbers = {name: side.cases[name].astype(np.float64) for name in _NUMBERS}
    return side.cases.assign(**numbers).sort_values("case_id", ignore_index=True)


def _scores(table: pd.DataFrame, part: Part) -> NDArray[np.float64]:
    """Take what a part's mean is of, (its cases,): DSC, or 1 where any pixel was called a lesion and 0 elsewhere."""
    values = table["dsc"] if part.kind == "dsc" else table["predicted_fraction"] > 0
    return values.to_numpy(dtype=np.float64)[part.rows]


def _problem(reference: Side, challenger: Side, split: FrozenSplit, params: GateParams) -> tuple[Refusal, str] | None:
    """Find out why the two can't be compared."""
    if reference.digest == challenger.digest or reference.name == challenger.name:
        return "same_model", f"{challenger.name} would be compared with itself, SHA-256 {challenger.digest}."
    for side in (reference, challenger):
        if side.test_hash != split.hash:
            return "other_data", f"{side.name} was scored on {side.test_hash}, the frozen test split is {split.hash}."
    if reference.job != challenger.job:
        return "other_job", f"{reference.name} was scored by {reference.job}, {challenger.name} by {challenger.job}."
    for side in (reference, challenger):
        if problem := _problem_of_table(side, split):
            return problem
    before, after = _aligned(reference), _aligned(challenger)
    for column in ("group", "label", "lesion_fraction"):
        other = before[column].to_numpy() != after[column].to_numpy()
        if other.any():
            return "different_case", f"the tables differ in {column} of {_listed(before['case_id'][other])}."
    groups = before["group"].nunique()
    if groups < params.min_groups:
        return "too_few_groups", f"the test split has {groups} groups, gate.min_groups asks for {params.min_groups}."
    return None


def _problem_of_table(side: Side, split: FrozenSplit) -> tuple[Refusal, str] | None:
    table = side.cases
    if lacking := [name for name in (*_FACTS, *_NUMBERS) if name not in table]:
        return "missing_column", f"the table of {side.name} lacks {', '.join(lacking)}."
    for name in _FACTS:
        if count := int(table[name].isna().sum()):
            return "invalid_value", f"{side.name}: {name} is missing in {count} rows."
    for name in _NUMBERS:
        # NaN, and with it what is no number at all, lies between nothing.
        wrong = ~pd.to_numeric(table[name], errors="coerce").between(-TOLERANCE, 1.0 + TOLERANCE)
        if wrong.any():
            return "invalid_value", f"{side.name}: {name} is no number in 0..1 for {_listed(table['case_id'][wrong])}."
    if (again := table["case_id"].duplicated()).any():
        return "duplicate_case", f"{side.name} was scored more than once on {_listed(table['case_id'][again])}."
    scored = set(table["case_id"])
    if missing := split.case_ids - scored:
        return "missing_case", f"{side.name} was not scored on {_listed(missing)}."
    if unexpected := scored - split.case_ids:
        return "unexpected_case", f"{side.name} was scored on {_listed(unexpected)}, not of the frozen test split."
    return None


def _listed(case_ids: Any) -> str:
    names = sorted({str(name) for name in case_ids})
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
