"""What came out of a study: every figure, computed from the files of its finished units."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from amlp.errors import UserError
from amlp.evaluation.evaluate import with_figures
from amlp.evaluation.summary import ScoredImages, Summary
from amlp.files import read_json
from amlp.layout import EncoderFolder, EvaluationFolder
from amlp.metrics.bootstrap import Interval, crossed_bootstrap
from amlp.params import EvaluateParams
from amlp.study.plan import Aim, Cell, Plan, Scored, Study, Unit
from amlp.study.store import Made, Store
from amlp.training.state import run_digest

# From how many trainings on an interval contains what another seed would change.
ENOUGH_SEEDS = 3


@dataclass(frozen=True)
class Estimate:
    """A figure over trainings and test images.

    `headline` resamples groups and, from `ENOUGH_SEEDS` trainings on, trainings; `groups_only` never resamples
    trainings. `by_seed` holds each training's own mean.
    """

    headline: Interval
    groups_only: Interval
    by_seed: Mapping[int, float]

    @property
    def seeds_resampled(self) -> bool:
        return len(self.by_seed) >= ENOUGH_SEEDS


@dataclass(frozen=True)
class Verdict:
    """Whether an aim is met; no estimate while one of its variants is not finished at its fraction."""

    aim: Aim
    estimate: Estimate | None
    state: Literal["met", "missed", "too few seeds", "not finished"]


@dataclass(frozen=True)
class ScoredOn:
    """The images that cells were scored on: of all cells together, and the fewest and most of a single one."""

    split: Scored
    cases: int
    lesion_cases: int
    groups: int
    fewest: int
    most: int
    # One hash for the test split; one over those of all cells for unused images.
    hash: str


@dataclass(frozen=True)
class Results:
    """The finished part of a study.

    Args:
        cases: rows of all cells' cases.csv with variant, fraction and seed, and all figures as columns.
        scored: on what; `unused` images differ from cell to cell, unless fraction and seed are the same.
        stale: units whose code, data or input has changed since.
    """

    study: Study
    plan: Plan
    store: Store
    cells: tuple[Cell, ...]
    cases: pd.DataFrame
    scored: ScoredOn
    records: Mapping[str, Mapping[str, Any]]
    stale: tuple[Unit, ...]
    settings: EvaluateParams

    def seeds(self, variant: str, fraction: float) -> list[int]:
        return sorted(cell.seed for cell in self.cells if (cell.variant, cell.fraction) == (variant, fraction))

    def variants(self, fraction: float) -> list[str]:
        """Variants with a finished training, in file order."""
        return [variant for variant in self.study.file.variants if self.seeds(variant, fraction)]

    def estimate(self, variant: str, fraction: float, figure: str) -> Estimate:
        return self._estimate(self._table(variant, fraction, figure))

    def difference(self, better: str, than: str, fraction: float, figure: str) -> Estimate | None:
        """Paired by case and seed, over the seeds that both variants have; None without such."""
        seeds = sorted(set(self.seeds(better, fraction)) & set(self.seeds(than, fraction)))
        if not seeds:
            return None
        ours, theirs = (self._table(variant, fraction, figure).loc[seeds] for variant in (better, than))
        # Cases that only seeds without a partner were scored on are NaN throughout.
        return self._estimate(ours - theirs)

    def _table(self, variant: str, fraction: float, figure: str) -> pd.DataFrame:
        """One figure as (seeds, cases); NaN where a seed wasn't scored on a case, or the figure is undefined."""
        chosen = self.cases[(self.cases["variant"] == variant) & (self.cases["fraction"] == fraction)]
        return chosen.pivot(index="seed", columns="case_id", values=figure).sort_index(axis=1)

    def _estimate(self, table: pd.DataFrame) -> Estimate:
        groups = self.cases.drop_duplicates("case_id").set_index("case_id")["group"].loc[table.columns].to_numpy()
        values = table.to_numpy(dtype=np.float64)

        def interval(*, resample_seeds: bool) -> Interval:
            return crossed_bootstrap(
                values,
                groups,
                samples=self.settings.bootstrap_samples,
                confidence=self.settings.confidence,
                seed=0,
                resample_seeds=resample_seeds,
            )

        by_seed = {int(seed): float(mean) for seed, mean in table.mean(axis=1).items()}
        return Estimate(
            headline=interval(resample_seeds=len(table) >= ENOUGH_SEEDS),
            groups_only=interval(resample_seeds=False),
            by_seed=by_seed,
        )

    def verdicts(self) -> list[Verdict]:
        return [self._verdict(aim) for aim in self.study.file.aims]

    def _verdict(self, aim: Aim) -> Verdict:
        # All seeds of both variants: an aim must not look met because the seeds that went well were finished first.
        for variant in (aim.better, aim.than):
            if self.seeds(variant, aim.fraction) != sorted(self.study.file.variants[variant].seeds):
                return Verdict(aim, None, "not finished")
        estimate = self.difference(aim.better, aim.than, aim.fraction, aim.figure)
        if estimate is None:
            return Verdict(aim, None, "not finished")
        if not estimate.seeds_resampled:
            return Verdict(aim, estimate, "too few seeds")
        return Verdict(aim, estimate, "met" if aim_met(aim, estimate.headline) else "missed")

    def units(self, kind: str, variant: str, fraction: float | None = None) -> list[Unit]:
        """Finished units of a variant, one a seed."""
        found: dict[str, Unit] = {}
        for cell in self.cells:
            if cell.variant != variant or (fraction is not None and cell.fraction != fraction):
                continue
            unit: Unit | None = self.plan.cells[cell]
            while unit:
                if unit.kind == kind and unit.name in self.records:
                    found[unit.name] = unit
                unit = unit.needs
        return list(found.values())

    def metrics(self, units: Iterable[Unit], key: str) -> float:
        """Mean of a figure of the units' metrics.json; NaN where none has it."""
        values = [read_json(EncoderFolder(self.store.result(unit)).metrics).get(key, math.nan) for unit in units]
        return float(np.mean(values)) if values else math.nan

    def cpu_seconds(self, units: Iterable[Unit]) -> float:
        """Mean CPU time of trainings, from what they recorded each epoch: wall time depends on what ran beside them."""
        totals = []
        for unit in units:
            table = pd.read_csv(EncoderFolder(self.store.result(unit)).system)
            spans = table["seconds"].diff().fillna(table["seconds"])
            # A resumed process measures its first epoch alone; its clock continues from the checkpoint.
            totals.append(float((spans * table["cpu_percent"] / 100).sum()))
        return float(np.mean(totals)) if totals else math.nan

    def curves(self, variant: str, file: str) -> list[pd.DataFrame]:
        """Read a CSV file of a variant's pre-trainings, one table a seed, where there is such a file."""
        paths = [self.store.result(unit) / file for unit in self.units("pretrain", variant)]
        return [pd.read_csv(path) for path in paths if path.is_file()]


def aim_met(aim: Aim, difference: Interval) -> bool:
    """The rule: the mean reaches `by`, and where asked the interval lies above 0. NaN meets nothing."""
    return difference.mean >= aim.by and (not aim.excludes_zero or difference.low > 0)


def collect(study: Study, plan: Plan, store: Store, shards: Path) -> Results:
    """Read all that is finished.

    Raises:
        UserError: nothing is finished, or cells were scored on different test splits, or on different unused images
            although they saw the same labels.
    """
    made = Made.now(shards)
    records = {unit.name: record for unit in plan.units if (record := store.record(unit))}
    cells = tuple(cell for cell, unit in plan.cells.items() if unit.name in records)
    if not cells:
        raise UserError(f"{store.root}: no unit of {study.path} that scores a model is finished; run the study first.")
    tables = []
    tests: dict[tuple[float, int] | None, dict[str, ScoredImages]] = {}
    for cell in cells:
        folder = EvaluationFolder(store.result(plan.cells[cell]))
        scored_on = Summary.read(folder.summary).test
        # What is unused depends on the share of labels and the seed, and on nothing else.
        same = None if plan.scored == "test" else (cell.fraction, cell.seed)
        tests.setdefault(same, {})[scored_on.hash] = scored_on
        table = pd.read_csv(folder.cases, dtype={"case_id": str})
        table = table[table["model"] == "segmenter"]
        tables.append(table.assign(variant=cell.variant, fraction=cell.fraction, seed=cell.seed))
    if several := [hashes for hashes in tests.values() if len(hashes) > 1]:
        kind = "test splits" if plan.scored == "test" else "sets of unused images where there should be one"
        raise UserError(f"{store.root}: cells were scored on {len(several[0])} {kind}; run with --stale rerun.")
    cases = with_figures(pd.concat(tables, ignore_index=True))
    return Results(
        study=study,
        plan=plan,
        store=store,
        cells=cells,
        cases=cases,
        scored=_scored_on(plan.scored, cases, [test for hashes in tests.values() for test in hashes.values()]),
        records=records,
        stale=tuple(unit for unit in plan.units if store.state(unit, made) == "stale"),
        settings=study.params(cells[0].variant, cells[0].fraction, cells[0].seed).evaluate,
    )


def _scored_on(split: Scored, cases: pd.DataFrame, tests: list[ScoredImages]) -> ScoredOn:
    images = cases.drop_duplicates("case_id")
    hashes = sorted(test.hash for test in tests)
    return ScoredOn(
        split=split,
        cases=len(images),
        lesion_cases=int((images["lesion_fraction"] > 0).sum()),
        groups=int(images["group"].nunique()),
        fewest=min(test.cases for test in tests),
        most=max(test.cases for test in tests),
        hash=hashes[0] if len(hashes) == 1 else run_digest(*hashes),
    )
