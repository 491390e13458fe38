"""The page's figures against the files that it is made from, with results as the stages write them."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amlp.errors import UserError
from amlp.files import read_json, write_json
from amlp.metrics.bootstrap import Interval, crossed_bootstrap
from amlp.study.markdown import escape, number, table
from amlp.study.page import write_page
from amlp.study.plan import Aim, Cell, Study, Unit, make_plan
from amlp.study.results import Results, aim_met, collect
from amlp.study.store import Made, Store
from tests.support.records import summary_of
from tests.support.small_study import load
from tests.support.tiny import write_shards

CASES = 16
VARIANTS = {
    "scratch": {"title": "a|b <i>*", "pretrain": False},
    "full": {"title": "AMLP"},
    "mae": {"title": "MAE", "params": {"pretrain.mps.enabled": False}, "seeds": [0]},
}
AIMS = [
    {"fraction": 0.1, "better": "full", "than": "scratch", "by": 0.05, "excludes_zero": True},
    {"fraction": 0.1, "better": "full", "than": "scratch", "by": 0.9},
    {"fraction": 1.0, "better": "full", "than": "mae"},
]
GAIN = {"scratch": 0.0, "full": 0.2, "mae": 0.1}


def write_unit(store: Store, unit: Unit, made: Made) -> None:
    """Write a result as its stage would; better variants have better scores."""
    store.prepare(unit, made, threads=1)
    result = store.result(unit)
    result.mkdir()
    random = np.random.default_rng(unit.seed)
    if unit.kind == "pretrain":
        metrics = {"steps": 2040, "visible_tokens": 3_500_000, "seconds": 120.0, "probe_auc_untrained": 0.55}
        write_json(result / "metrics.json", metrics)
        drawn = {
            "masked_lesion_share": [0.55, 0.45 - 0.01 * unit.seed, 1.0],
            "masked_background_share": [0.5, 0.5, 0.4],
        }
        pd.DataFrame(drawn).to_csv(result / "history.csv", index=False)
        diagnostics = {"score_recall": [0.5, math.nan, 0.7]}
        pd.DataFrame(diagnostics | {"probe_auc": [0.61, 0.7, 0.83]}).to_csv(result / "diagnostics.csv", index=False)
    if unit.kind == "finetune":
        write_json(result / "metrics.json", {"labelled_images": 12, "seconds": 60.0})
    if unit.kind in ("pretrain", "finetune"):
        pd.DataFrame({"seconds": [30.0, 60.0], "cpu_percent": [100.0, 200.0]}).to_csv(
            result / "system.csv", index=False
        )
    if unit.kind == "score":
        write_json(
            result / "summary.json",
            summary_of({"cases": CASES, "lesion_cases": CASES - 4, "groups": CASES // 2, "hash": "f" * 64}),
        )
        lesion = np.arange(CASES) % 4 > 0
        dsc = np.clip(0.5 + GAIN[unit.variant] + 0.05 * unit.seed + random.normal(0, 0.05, CASES), 0, 1)
        rows = pd.DataFrame(
            {
                "model": "segmenter",
                "case_id": [f"case_{i}" for i in range(CASES)],
                "group": np.arange(CASES) // 2,
                "label": "a",
                "lesion_fraction": np.where(lesion, 0.1, 0.0),
                "dsc": np.where(lesion, dsc, 1.0),
                "ppv": np.where(lesion, dsc, math.nan),
                "sensitivity": np.where(lesion, dsc, math.nan),
                "hd95": np.where(lesion, 10.0, math.nan),
                "predicted_fraction": np.where(lesion, 0.1, 0.0),
            }
        )
        pd.concat([rows, rows.assign(model="threshold", dsc=0.0)]).to_csv(result / "cases.csv", index=False)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return load(tmp_path, title="A & <b>", variants=VARIANTS, aims=AIMS)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "shards", cases=64)


@pytest.fixture
def store(tmp_path: Path, study: Study, shards: Path) -> Store:
    """A study of which everything is finished."""
    store, made = Store(tmp_path / "study"), Made.now(shards)
    for unit in make_plan(study).units:
        write_unit(store, unit, made)
    return store


@pytest.fixture
def results(study: Study, store: Store, shards: Path) -> Results:
    return collect(study, make_plan(study), store, shards)


def scores(results: Results, variant: str, fraction: float) -> np.ndarray:
    """DSC (seeds, cases), read straight from the files."""
    rows = []
    for seed in results.seeds(variant, fraction):
        cases = pd.read_csv(results.store.result(results.plan.cells[Cell(variant, fraction, seed)]) / "cases.csv")
        rows.append(cases[cases["model"] == "segmenter"].sort_values("case_id")["dsc"].to_numpy())
    return np.array(rows)


def test_an_estimate_is_that_of_the_files(results: Results) -> None:
    values = scores(results, "full", 0.1)
    found = results.estimate("full", 0.1, "dsc")
    assert found.headline.mean == pytest.approx(values.mean())
    assert found.by_seed == pytest.approx(dict(enumerate(values.mean(axis=1))))
    assert found.seeds_resampled and found.headline.low < found.groups_only.low


def test_a_difference_is_paired_by_case_and_seed(results: Results) -> None:
    ours, theirs = scores(results, "full", 0.1), scores(results, "scratch", 0.1)
    found = results.difference("full", "scratch", 0.1, "dsc")
    assert found and found.headline.mean == pytest.approx((ours - theirs).mean())
    names = sorted(f"case_{i}" for i in range(CASES))
    groups = np.array([int(name.removeprefix("case_")) // 2 for name in names])
    expected = crossed_bootstrap(ours - theirs, groups, samples=2000, confidence=0.95, seed=0)
    assert (found.headline.low, found.headline.high) == pytest.approx((expected.low, expected.high), abs=0.01)
    # MAE has one seed: only that one is compared, and its randomness is not in the interval.
    single = results.difference("full", "mae", 1.0, "dsc")
    assert single and list(single.by_seed) == [0] and not single.seeds_resampled
    assert single.headline == single.groups_only


def test_verdicts_follow_the_rule_and_wait_for_all_seeds(results: Results, study: Study, shards: Path) -> None:
    assert [verdict.state for verdict in results.verdicts()] == ["met", "missed", "too few seeds"]
    scored = results.plan.cells[Cell("scratch", 0.1, 2)]
    (results.store.folder(scored) / "record.json").unlink()
    again = collect(study, results.plan, results.store, shards)
    assert [verdict.state for verdict in again.verdicts()] == ["not finished", "not finished", "too few seeds"]


@given(mean=st.floats(-1, 1), low=st.floats(-1, 1) | st.just(math.nan), by=st.floats(-1, 1), excludes=st.booleans())
def test_an_aim_is_met_only_with_size_and_certainty(mean: float, low: float, by: float, excludes: bool) -> None:
    aim = Aim(fraction=0.1, better="a", than="b", by=by, excludes_zero=excludes)
    met = aim_met(aim, Interval(mean=mean, low=low, high=1.0, cases=9))
    assert not (met and mean < by) and not (met and excludes and (math.isnan(low) or low <= 0))
    assert met or mean < by or (excludes and not low > 0)
    assert not aim_met(aim, Interval(mean=math.nan, low=low, high=1.0, cases=0))


def test_the_page_tells_the_figures_and_escapes_the_titles(results: Results, tmp_path: Path, shards: Path) -> None:
    page = tmp_path / "docs" / "results.md"
    # Pictures of test images need models, which these results lack.
    for unit in results.units("finetune", "full") + results.units("finetune", "scratch"):
        assert not (results.store.result(unit) / "segmenter.pt").exists()
    write_page(results, page, shards=shards, ingest=tmp_path)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# A &amp; &lt;b&gt;\n")
    assert "<i>" not in text and "a\\|b &lt;i&gt;\\*" in text
    assert str(tmp_path) not in text
    for fraction in (0.1, 1.0):
        which = "12" if fraction == 1 else "12, others for each seed:"
        part = text.split(f"### {fraction:.0%} of the labels: {which} labelled training images")[1].split("###")[0]
        for variant, title in (("full", "AMLP"), ("mae", "MAE")):
            values = scores(results, variant, fraction)
            assert re.search(rf"^\| {title} \| {len(values)} \| {values.mean():.3f} \(", part, flags=re.MULTILINE)
    assert "| **met** |" in text and "| **missed** |" in text
    assert "2,040" in text and "3.50" in text  # steps, million tokens
    assert re.search(r"^\| AMLP \| 1\.100 \| 0\.860 \| 2\.500 \|", text, flags=re.MULTILINE)
    assert re.search(r"^\| MAE \|.* \| 0\.610 \| 0\.830 \| 0\.550 \|$", text, flags=re.MULTILINE)
    assert "Fewer than 3 seeds (MAE)" in text
    assert f"- scored on the test split: {CASES} images, {CASES - 4} with a lesion, {CASES // 2} groups" in text
    assert (
        "All variants are compared on the same test split" in text and "Pre-training saw the scored images" not in text
    )
    for line in text.splitlines():
        if line.startswith("|"):
            assert not re.search(r"\|\s*\|", line), "an empty cell"
    before = page.read_bytes()
    write_page(results, page, shards=shards, ingest=tmp_path)
    assert page.read_bytes() == before


def test_cpu_time_is_that_of_all_epochs(results: Results) -> None:
    # 30 s at one core, 30 s at two.
    assert results.cpu_seconds(results.units("pretrain", "full")) == pytest.approx(90.0)
    assert math.isnan(results.cpu_seconds(results.units("pretrain", "scratch")))


def test_two_test_splits_or_nothing_at_all_are_reported(
    study: Study, store: Store, shards: Path, tmp_path: Path
) -> None:
    plan = make_plan(study)
    with pytest.raises(UserError, match=r"no unit .* is finished"):
        collect(study, plan, Store(tmp_path / "none"), shards)
    file = store.result(plan.cells[Cell("full", 0.1, 0)]) / "summary.json"
    summary = read_json(file)
    summary["test"]["hash"] = "e" * 64
    write_json(file, summary)
    with pytest.raises(UserError, match="2 test splits"):
        collect(study, plan, store, shards)


@pytest.fixture
def unused(tmp_path: Path, shards: Path) -> Results:
    """A study of which each seed was scored on images of its own, three quarters of all."""
    study = load(tmp_path, variants=VARIANTS, aims=[], fractions={0.1: {}, 0.5: {}}, scored="unused")
    store, made, plan = Store(tmp_path / "unused"), Made.now(shards), make_plan(study)
    for unit in plan.units:
        write_unit(store, unit, made)
        if unit.kind == "score":
            result = store.result(unit)
            cases = pd.read_csv(result / "cases.csv")
            number = cases["case_id"].str.removeprefix("case_").astype(int)
            kept = cases[(number // 2) % 4 != unit.seed]
            kept.to_csv(result / "cases.csv", index=False)
            count = kept["case_id"].nunique()
            digest = f"{unit.fraction}{unit.seed}".ljust(64, "0")
            test = {"split": "unused", "cases": count, "lesion_cases": count, "groups": count // 2, "hash": digest}
            write_json(result / "summary.json", summary_of(test))
    return collect(study, plan, store, shards)


def test_unused_images_are_each_seeds_own(unused: Results, tmp_path: Path, shards: Path) -> None:
    found = unused.scored
    assert (found.split, found.cases, found.groups, found.fewest, found.most) == ("unused", CASES, CASES // 2, 12, 12)
    values = scores(unused, "full", 0.1)
    assert unused.estimate("full", 0.1, "dsc").headline.mean == pytest.approx(values.mean())
    # Pairs of the same seed are pairs of the same images; MAE has but one seed.
    for variant, seeds in (("scratch", 3), ("mae", 1)):
        for pair, sign in ((("full", variant), 1), ((variant, "full"), -1)):
            difference = unused.difference(*pair, 0.1, "dsc")
            assert difference and len(difference.by_seed) == seeds
            expected = (values[:seeds] - scores(unused, variant, 0.1)).mean()
            assert difference.headline.mean == pytest.approx(sign * expected)
    page = tmp_path / "page.md"
    write_page(unused, page, shards=shards, ingest=tmp_path)
    text = page.read_text(encoding="utf-8")
    assert "**scored on training images whose masks a model's fine-tuning did not see**" in text
    assert "12 images a model, of 16 in 8 groups" in text
    limits = text.split("## What these numbers do not show")[1]
    assert "is to be scored on the test split, which this study did not touch" in limits
    assert "Pre-training saw the scored images" in limits and "same test split" not in limits
    assert "test images" not in text.lower()


def test_cells_that_saw_the_same_labels_were_scored_on_the_same_images(unused: Results, shards: Path) -> None:
    file = unused.store.result(unused.plan.cells[Cell("full", 0.1, 0)]) / "summary.json"
    summary = read_json(file)
    write_json(file, summary_of(summary["test"] | {"hash": "e" * 64}))
    with pytest.raises(UserError, match="2 sets of unused images"):
        collect(unused.study, unused.plan, unused.store, shards)


@given(text=st.text(max_size=30))
def test_escaped_text_stays_in_its_cell(text: str) -> None:
    cell = escape(text)
    assert "\n" not in cell and "<" not in cell and not re.search(r"(?<!\\)(\\\\)*\|", cell)
    assert len(table(["a", "b"], [[cell, "x"]]).splitlines()) == 3


def test_numbers() -> None:
    assert number(-0.0123, sign=True) == "−0.012"
    assert number(0.5, sign=True) == "+0.500"
    assert number(1234567.0, digits=0) == "1,234,567"
    assert number(math.nan) == "–"
