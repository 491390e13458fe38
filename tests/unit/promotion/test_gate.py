"""What the gate promises; tests.support.mutate_gate breaks it in many ways and expects a failure here each time."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amlp.params import GateParams
from amlp.promotion.decision import Decision, Figure, FrozenSplit, Refusal, Side
from amlp.promotion.gate import decide, refuse
from benchmarks.bench_gate import BUSI, GAIN, HARM, NO_GAIN, Drawn, Scenario, decisions, draw, even, shares

PARAMS = GateParams(bootstrap_samples=1000)
HASH = "f" * 64
SEEDS = st.integers(0, 2**16)
Change = Callable[[pd.DataFrame], pd.DataFrame]


def scores(seed: int = 0, *, groups: int = 80) -> pd.DataFrame:
    """One model's scores: groups of 1 to 3 images; of eight groups four are benign, two malignant and two normal."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(groups), 1 + np.arange(groups) % 3)
    label = np.array(["benign", "malignant", "benign", "normal"])[group % 4]
    dsc = rng.uniform(0.3, 0.8, len(group))
    # A quarter of the normal groups has a false positive.
    alarm = (label == "normal") & (group % 16 == 3)
    return pd.DataFrame(
        {
            "case_id": [f"{name}_{number:03d}" for number, name in enumerate(label)],
            "group": group,
            "label": label,
            "lesion_fraction": np.where(label == "normal", 0.0, 0.1),
            "dsc": np.where(label == "normal", 1.0 - alarm, dsc),
            "predicted_fraction": np.where(label == "normal", 0.05 * alarm, 0.1),
        }
    )


def gained(cases: pd.DataFrame, gain: float, *, label: str | None = None, rows: Any = None) -> pd.DataFrame:
    """Raise the DSC of images with a lesion: of a label, of some rows, or of all."""
    chosen = (cases["lesion_fraction"] > 0) & (True if label is None else cases["label"] == label)
    if rows is not None:
        chosen &= rows
    return cases.assign(dsc=cases["dsc"] + gain * chosen)


def alarmed(cases: pd.DataFrame, groups: list[int]) -> pd.DataFrame:
    """Let exactly these groups' normal images have a false positive."""
    normal, alarm = cases["label"] == "normal", cases["group"].isin(groups)
    return cases.assign(
        dsc=cases["dsc"].mask(normal, 1.0 - alarm),
        predicted_fraction=cases["predicted_fraction"].mask(normal, 0.05 * alarm),
    )


def lesions(groups: int = 60, dsc: float = 0.5) -> pd.DataFrame:
    """One class, one image a group, one score: for differences that must be exact."""
    number = np.arange(groups)
    return pd.DataFrame(
        {"case_id": [f"c{n:03d}" for n in number], "group": number, "label": "lesion", "lesion_fraction": 0.1}
    ).assign(dsc=dsc, predicted_fraction=0.1)


def side(name: str, cases: pd.DataFrame, **changes: Any) -> Side:
    return dataclasses.replace(Side(name, f"digest of {name}", HASH, "job 1", cases), **changes)


def frozen(cases: pd.DataFrame, test_hash: str = HASH) -> FrozenSplit:
    return FrozenSplit(test_hash, frozenset(cases["case_id"]))


def gate(before: pd.DataFrame, after: pd.DataFrame, params: GateParams = PARAMS, **changes: Any) -> Decision:
    """Decide between a champion's and a challenger's scores."""
    arguments = {
        "champion": side("segmenter 1", before),
        "challenger": side("segmenter 2", after),
        "baseline": side("threshold", before.assign(dsc=0.0)),
        "split": frozen(before),
        "params": params,
    }
    return decide(**(arguments | changes))


def effect(decision: Decision) -> Figure:
    assert decision.effect is not None
    return decision.effect


def of(decision: Decision, label: str, kind: str = "dsc") -> Figure:
    [found] = [figure for figure in decision.classes if (figure.label, figure.kind) == (label, kind)]
    return found


# What is promoted


@settings(max_examples=20)
@given(seed=SEEDS)
def test_equal_scores_never_promote(seed: int) -> None:
    decision = gate(scores(seed), scores(seed))
    assert (decision.outcome, decision.reason) == ("keep", "tie")
    assert effect(decision).difference == 0.0


@settings(max_examples=20)
@given(seed=SEEDS, gain=st.floats(0.03, 0.2))
def test_a_gain_in_every_image_promotes_and_the_same_loss_keeps(seed: int, gain: float) -> None:
    before, after = scores(seed), gained(scores(seed), gain)
    there, back = gate(before, after), gate(after, before)
    assert (there.outcome, there.reason) == ("promote", "better")
    assert (back.outcome, back.reason) == ("keep", "not_better")


@settings(max_examples=20)
@given(one=SEEDS, other=SEEDS, gain=st.floats(-0.1, 0.1))
def test_swapping_the_models_mirrors_the_numbers(one: int, other: int, gain: float) -> None:
    before, after = scores(one), gained(scores(other), gain)
    there, back = gate(before, after), gate(after, before)
    for ours, theirs in zip([effect(there), *there.classes], [effect(back), *back.classes], strict=True):
        assert (ours.label, ours.kind, ours.cases, ours.groups) == (
            theirs.label,
            theirs.kind,
            theirs.cases,
            theirs.groups,
        )
        assert (ours.reference, ours.challenger) == (theirs.challenger, theirs.reference)
        mirrored = pytest.approx([-theirs.difference, -theirs.high, -theirs.low], abs=1e-12)
        assert [ours.difference, ours.low, ours.high] == mirrored
    assert "refuse" not in (there.outcome, back.outcome)
    assert (there.outcome, back.outcome) != ("promote", "promote")


@settings(max_examples=20)
@given(seed=SEEDS, order=st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(seed: int, order: Any) -> None:
    before, after = scores(seed), gained(scores(seed + 1), 0.04)
    rows = list(range(len(before)))
    order.shuffle(rows)
    shuffled = gate(before.iloc[rows], after.iloc[rows[::-1]])
    assert shuffled.as_dict() == gate(before, after).as_dict()


def test_how_groups_and_models_are_numbered_does_not_matter() -> None:
    before, after = scores(), gained(scores(1), 0.04)
    renamed = gate(
        before.assign(group=before["group"].map(lambda n: f"P{999 - n}")),
        after.assign(group=after["group"].map(lambda n: f"P{999 - n}")),
    )
    assert renamed.as_dict() == gate(before, after).as_dict()


def test_the_interval_is_that_of_paired_differences_over_whole_groups() -> None:
    before = scores()
    rng = np.random.default_rng(5)
    after = gained(before, 0.04).assign(dsc=lambda t: t["dsc"] + rng.normal(0, 0.1, 80)[t["group"]])
    after["dsc"] = after["dsc"].clip(0.0, 1.0)
    found = effect(gate(before, after, GateParams(bootstrap_samples=20_000)))
    by_group = (after["dsc"] - before["dsc"]).groupby(before["group"]).agg(["sum", "count"]).to_numpy()
    means = [np.divide(*by_group[rng.integers(80, size=80)].sum(axis=0)) for _ in range(20_000)]
    assert found.difference == pytest.approx(np.mean(after["dsc"] - before["dsc"]))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.01, 0.99])), abs=0.002)
    assert found.challenger == pytest.approx(after["dsc"].mean()) and found.reference == pytest.approx(
        before["dsc"].mean()
    )
    assert (found.cases, found.groups) == (len(before), 80)


def test_scores_are_compared_case_by_case() -> None:
    before = lesions().assign(dsc=np.linspace(0.0, 0.9, 60))
    # Everywhere a little better, though patients differ by far more than that.
    assert gate(before, gained(before, 0.03)).outcome == "promote"
    # The same scores plus the same gain, but of other patients: who gained and who lost is chance.
    after = before.assign(dsc=before["dsc"].to_numpy()[np.random.default_rng(0).permutation(60)] + 0.03)
    assert gate(before, after).reason == "not_better"


def test_more_images_of_the_same_patients_teach_nothing() -> None:
    once = lesions().assign(dsc=np.random.default_rng(1).uniform(0.3, 0.6, 60))
    noise = np.random.default_rng(2).normal(size=60)
    change = 0.018 + 0.08 * (noise - noise.mean()) / noise.std()

    def copies(cases: pd.DataFrame, count: int) -> pd.DataFrame:
        tables = [cases.assign(case_id=cases["case_id"] + f"_{number}") for number in range(count)]
        return pd.concat(tables, ignore_index=True)

    one, many = (gate(copies(once, count), copies(once.assign(dsc=once["dsc"] + change), count)) for count in (1, 10))
    assert one.reason == many.reason == "not_better"
    assert (effect(one).low, effect(one).high) == pytest.approx((effect(many).low, effect(many).high))
    assert (effect(many).cases, effect(many).groups) == (600, 60)


def test_a_gain_that_hangs_on_three_patients_is_not_shown() -> None:
    before = lesions()
    after = gained(before, 0.45, rows=before["group"] < 3)
    decision = gate(before, after)
    assert effect(decision).difference == pytest.approx(0.0225) and effect(decision).low == 0.0
    assert (decision.outcome, decision.reason) == ("keep", "not_better")


@settings(max_examples=20)
@given(base=st.floats(0.05, 0.5), minimum=st.sampled_from([0.001, 0.005, 0.01, 0.02, 0.03, 0.1, 0.3]))
def test_a_gain_of_exactly_the_minimum_keeps(base: float, minimum: float) -> None:
    before, params = lesions(dsc=base), PARAMS.model_copy(update={"min_effect": minimum})
    exact = gate(before, gained(before, minimum), params)
    assert (exact.outcome, exact.reason) == ("keep", "below_minimum")
    assert gate(before, gained(before, minimum + 1e-5), params).outcome == "promote"
    assert gate(before, gained(before, minimum - 1e-5), params).reason == "below_minimum"


def test_scores_that_differ_by_rounding_are_a_tie_even_without_a_minimum() -> None:
    before, params = lesions(), PARAMS.model_copy(update={"min_effect": 0.0})
    after = before.assign(dsc=np.float64(np.float32(0.5) + np.float32(1e-7)))
    assert gate(before, after, params).reason == "tie"
    assert gate(before, gained(before, 1e-4), params).outcome == "promote"


def test_gains_and_losses_that_cancel_out_are_a_tie() -> None:
    before = lesions()
    after = before.assign(dsc=0.5 + 0.25 * np.where(before["group"] % 2, 1, -1))
    decision = gate(before, after)
    assert (decision.outcome, decision.reason) == ("keep", "tie")


# Classes


def test_a_class_that_gets_worse_keeps_the_champion_however_good_the_rest_is() -> None:
    before = scores()
    after = gained(gained(before, 0.15, label="benign"), -0.08, label="malignant")
    decision = gate(before, after)
    assert effect(decision).low > PARAMS.min_effect
    assert (decision.outcome, decision.reason) == ("keep", "class_worse")
    assert "malignant" in decision.explanation and "benign" not in decision.explanation
    assert [figure.label for figure in decision.classes if not figure.passed] == ["malignant"]
    assert of(decision, "malignant").difference == pytest.approx(-0.08)


@pytest.mark.parametrize(("loss", "outcome"), [(0.049, "promote"), (0.05, "keep"), (0.051, "keep")])
def test_a_loss_below_the_margin_is_accepted_where_it_is_shown(loss: float, outcome: str) -> None:
    before = scores()
    # The same loss in every image: the interval has no width.
    after = gained(gained(before, 0.15, label="benign"), -loss, label="malignant")
    assert gate(before, after).outcome == outcome


def test_a_loss_that_could_be_the_margin_keeps_although_its_mean_is_small() -> None:
    before = scores()
    uneven = np.where(before["group"] % 8 == 1, -0.14, 0.1)
    after = gained(before, 0.15, label="benign").assign(
        dsc=lambda t: t["dsc"] + np.where(t["label"] == "malignant", uneven, 0.0)
    )
    decision = gate(before, after)
    malignant = of(decision, "malignant")
    assert -PARAMS.class_margin < malignant.difference < 0 and malignant.low < -PARAMS.class_margin
    assert (decision.outcome, decision.reason) == ("keep", "class_worse")
    # A class that does not look worse passes, though its interval reaches as far.
    better = gained(after, 0.03, label="malignant")
    assert of(gate(before, better), "malignant").low < -PARAMS.class_margin
    assert gate(before, better).outcome == "promote"


def test_more_false_positives_keep_and_fewer_promote() -> None:
    few, many = alarmed(scores(), [3]), alarmed(scores(), [3, 7, 11, 15])
    worse = gate(few, gained(many, 0.2))
    assert effect(worse).low > PARAMS.min_effect
    assert (worse.outcome, worse.reason) == ("keep", "class_worse")
    rate = of(worse, "normal", "false_positive_rate")
    assert rate.difference > 0.1 and rate.gain == -rate.difference and rate.worst == -rate.high and not rate.passed
    assert "normal" in worse.explanation and "false-positive rate" in worse.explanation

    better = gate(many, gained(few, 0.2))
    assert better.outcome == "promote"
    assert of(better, "normal", "false_positive_rate").difference == -rate.difference


def test_lesions_and_false_positives_have_margins_of_their_own() -> None:
    before = alarmed(scores(groups=400), [])
    lost = gained(gained(before, 0.2, label="benign"), -0.06, label="malignant")
    alarms = gained(alarmed(before, [3]), 0.2)

    def outcome(after: pd.DataFrame, **margins: float) -> str:
        return gate(before, after, PARAMS.model_copy(update=margins)).outcome

    assert outcome(lost, class_margin=0.07, false_positive_margin=0.0) == "promote"
    assert outcome(lost, class_margin=0.05, false_positive_margin=0.5) == "keep"
    assert outcome(alarms, class_margin=0.0, false_positive_margin=0.1) == "promote"
    assert outcome(alarms, class_margin=0.5, false_positive_margin=0.01) == "keep"


def test_each_class_is_judged_by_its_own_images() -> None:
    before = scores()
    # A lesion image in the class of the normal ones, as a data set may have it.
    before.loc[before["group"] == 7, ["lesion_fraction", "dsc", "predicted_fraction"]] = [0.2, 0.5, 0.2]
    after = gained(before, 0.1, label="benign")
    decision = gate(before, after)
    found = {(figure.label, figure.kind): figure for figure in decision.classes}
    assert list(found) == [
        ("benign", "dsc"), ("malignant", "dsc"), ("normal", "dsc"), ("normal", "false_positive_rate")
    ]  # fmt: skip
    chosen = before["label"] == "benign"
    assert found["benign", "dsc"].reference == pytest.approx(before.loc[chosen, "dsc"].mean())
    assert found["benign", "dsc"].difference == pytest.approx(0.1) and found["malignant", "dsc"].difference == 0.0
    assert (found["benign", "dsc"].cases, found["benign", "dsc"].groups) == (chosen.sum(), 40)
    without = (before["label"] == "normal") & (before["lesion_fraction"] == 0)
    assert found["normal", "false_positive_rate"].cases == without.sum()
    assert found["normal", "false_positive_rate"].reference == pytest.approx(
        (before.loc[without, "predicted_fraction"] > 0).mean()
    )
    # One patient has no interval, and does not stand in the way unless it got worse.
    assert math.isnan(found["normal", "dsc"].low) and found["normal", "dsc"].passed
    worse = gate(before, gained(after, -0.01, label="normal"))
    assert worse.reason == "class_worse" and worse.as_dict()["classes"][2]["low"] is None


# Champion and baseline


def test_a_first_champion_has_to_beat_the_baseline_by_the_same_rule() -> None:
    before, after = scores(), gained(scores(), 0.05)
    first = gate(before, after, champion=None, baseline=side("threshold", before))
    assert (first.outcome, first.role, first.reference.name) == ("promote", "baseline", "threshold")
    equal = gate(before, after, champion=None, baseline=side("threshold", after))
    assert (equal.outcome, equal.reason, equal.role) == ("keep", "tie", "baseline")
    worse = gate(before, before, champion=None, baseline=side("threshold", after))
    assert (worse.outcome, worse.reason) == ("keep", "not_better")


def test_where_there_is_a_champion_the_baseline_has_no_say() -> None:
    before, after = scores(), gained(scores(), 0.05)
    easy = gate(before, after, baseline=side("threshold", before.assign(dsc=0.0)))
    hard = gate(before, after, baseline=side("threshold", before.assign(dsc=1.0), job="another", test_hash="another"))
    assert easy.as_dict() == hard.as_dict()
    assert (hard.outcome, hard.role, hard.reference.name) == ("promote", "champion", "segmenter 1")
    kept = gate(before, before, baseline=side("threshold", before.assign(dsc=0.0)))
    assert kept.outcome == "keep"


# Refusals


def drop(cases: pd.DataFrame) -> pd.DataFrame:
    return cases.iloc[1:]


def double(cases: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([cases, cases.iloc[:1]], ignore_index=True)


def swap(cases: pd.DataFrame) -> pd.DataFrame:
    """One case twice in the place of another: as many rows as there should be."""
    return cases.assign(case_id=[cases["case_id"].iloc[1], *cases["case_id"].iloc[1:]])


def rename(cases: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([cases, cases.iloc[:1].assign(case_id="foreign")], ignore_index=True)


def setting(column: str, value: Any) -> Change:
    def change(cases: pd.DataFrame) -> pd.DataFrame:
        values = cases[column].astype(object)
        values.iloc[0] = value
        return cases.assign(**{column: values})

    return change


TABLES: list[tuple[Change, Refusal, str]] = [
    (drop, "missing_case", "benign_000"),
    (double, "duplicate_case", "benign_000"),
    (swap, "duplicate_case", "malignant_001"),
    (rename, "unexpected_case", "foreign"),
    (lambda cases: cases.drop(columns="predicted_fraction"), "missing_column", "predicted_fraction"),
    (lambda cases: cases.iloc[:0], "missing_case", "and "),
    *((setting(name, math.nan), "invalid_value", name) for name in ("dsc", "lesion_fraction", "predicted_fraction")),
    *((setting(name, None), "invalid_value", name) for name in ("case_id", "group", "label")),
    *((setting("dsc", value), "invalid_value", "benign_000") for value in (math.inf, -0.1, 1.1, 55.0, "high")),
]


@pytest.mark.parametrize("which", ["champion", "challenger"])
@pytest.mark.parametrize(("change", "reason", "named"), TABLES)
def test_a_table_that_is_not_whole_is_refused(which: str, change: Change, reason: str, named: str) -> None:
    tables = {"champion": scores(), "challenger": gained(scores(), 0.05)}
    name = {"champion": "segmenter 1", "challenger": "segmenter 2"}[which]
    decision = gate(*tables.values(), **{which: side(name, change(tables[which]))})
    assert (decision.outcome, decision.reason) == ("refuse", reason)
    assert named in decision.explanation and name in decision.explanation
    assert decision.effect is None and decision.classes == ()


@pytest.mark.parametrize(("change", "reason"), [(drop, "missing_case"), (rename, "unexpected_case")])
def test_a_split_that_is_not_whole_on_both_sides_is_refused_too(change: Change, reason: str) -> None:
    cases = scores()
    decision = gate(change(cases), change(gained(cases, 0.05)), split=frozen(cases))
    assert (decision.outcome, decision.reason) == ("refuse", reason)


@pytest.mark.parametrize("column", ["group", "label", "lesion_fraction"])
def test_cases_that_are_something_else_in_the_other_table_are_refused(column: str) -> None:
    before = scores()
    after = setting(column, {"group": 79, "label": "malignant", "lesion_fraction": 0.3}[column])(before)
    decision = gate(before, gained(after, 0.05))
    assert (decision.outcome, decision.reason) == ("refuse", "different_case")
    assert column in decision.explanation and "benign_000" in decision.explanation


def test_other_data_is_refused() -> None:
    before, after = scores(), gained(scores(), 0.05)
    other = "0" * 64
    old, new = side("segmenter 1", before), side("segmenter 2", after)
    stale, foreign = (dataclasses.replace(each, test_hash=other) for each in (old, new))
    for champion, challenger in ((stale, new), (old, foreign), (stale, foreign)):
        decision = gate(before, after, champion=champion, challenger=challenger)
        assert (decision.outcome, decision.reason) == ("refuse", "other_data")
        assert other in decision.explanation and HASH in decision.explanation
    assert gate(before, after, champion=stale, challenger=foreign, split=frozen(before, other)).outcome == "promote"


def test_scores_of_another_job_are_refused() -> None:
    before, after = scores(), gained(scores(), 0.05)
    decision = gate(before, after, champion=side("segmenter 1", before, job="job 0"))
    assert (decision.outcome, decision.reason) == ("refuse", "other_job")
    assert "job 0" in decision.explanation and "job 1" in decision.explanation


@pytest.mark.parametrize("same", ["digest", "name"])
def test_the_challenger_must_be_another_model(same: str) -> None:
    before, after = scores(), gained(scores(), 0.05)
    value = {"digest": "digest of segmenter 1", "name": "segmenter 1"}[same]
    decision = gate(before, after, challenger=dataclasses.replace(side("segmenter 2", after), **{same: value}))
    assert (decision.outcome, decision.reason) == ("refuse", "same_model")


@pytest.mark.parametrize(("groups", "refused"), [(1, True), (49, True), (50, False)])
def test_too_few_groups_are_refused(groups: int, refused: bool) -> None:
    # With 500 images there are enough of those, which is no help.
    before = pd.concat([lesions(groups).assign(case_id=lambda t, n=n: t["case_id"] + f"_{n}") for n in range(10)])
    decision = gate(before, gained(before, 0.1))
    if refused:
        assert (decision.outcome, decision.reason) == ("refuse", "too_few_groups")
        assert f"{groups} groups" in decision.explanation and "50" in decision.explanation
    else:
        assert decision.outcome == "promote"


def unreadable() -> Decision:
    return refuse(
        "unreadable_model", "segmenter 2: segmenter.pt holds no plan.", challenger=side("segmenter 2", scores()),
        reference=side("segmenter 1", scores()), role="champion", split=frozen(scores()), params=PARAMS,
    )  # fmt: skip


def test_a_caller_refuses_a_model_that_it_cannot_read() -> None:
    decision = unreadable()
    assert (decision.outcome, decision.reason) == ("refuse", "unreadable_model")
    assert decision.as_dict()["effect"] is None and "no plan" in decision.as_dict()["explanation"]


def test_every_refusal_can_be_reached() -> None:
    cases = scores()
    reached = {unreadable().reason, gate(cases, cases, challenger=side("segmenter 1", cases)).reason}
    reached |= {gate(cases, cases, split=frozen(cases, "0")).reason, gate(lesions(9), lesions(9)).reason}
    reached |= {gate(cases, cases, challenger=side("segmenter 2", cases, job="job 2")).reason}
    reached |= {gate(cases, change(cases)).reason for change, _, _ in TABLES}
    reached |= {gate(cases, setting("label", "normal")(cases)).reason}
    assert reached == set(get_args(Refusal))


# The record


def test_the_record_holds_what_was_decided_by() -> None:
    decision = gate(scores(), gained(scores(), 0.05))
    record = json.loads(json.dumps(decision.as_dict(), allow_nan=False))
    assert (record["outcome"], record["reason"]) == ("promote", "better")
    assert record["challenger"] == {"name": "segmenter 2", "digest": "digest of segmenter 2"}
    assert record["reference"] == {"role": "champion", "name": "segmenter 1", "digest": "digest of segmenter 1"}
    assert (record["test_hash"], record["test_cases"], record["job"]) == (HASH, len(scores()), "job 1")
    assert record["thresholds"] == PARAMS.model_dump()
    for entry, figure in zip(
        [record["effect"], *record["classes"]], [effect(decision), *decision.classes], strict=True
    ):
        assert entry["passed"] is figure.passed and entry["difference"] == figure.difference
        assert entry["challenger"] - entry["reference"] == pytest.approx(entry["difference"])
        assert entry["low"] <= entry["difference"] <= entry["high"]
    # Patients' scores stay out of it.
    assert "benign_0" not in json.dumps(record) and not hasattr(decision.challenger, "cases")


def test_the_same_input_gives_the_same_decision_and_stays_as_it_is() -> None:
    before, after = scores(), gained(scores(1), 0.03)
    copies = before.copy(), after.copy()
    first = gate(before, after)
    assert gate(before, after).as_dict() == first.as_dict()
    pd.testing.assert_frame_equal(before, copies[0])
    pd.testing.assert_frame_equal(after, copies[1])
    other = "0" * 64
    moved = gate(
        before, after, split=frozen(before, other),
        champion=side("segmenter 1", before, test_hash=other), challenger=side("segmenter 2", after, test_hash=other),
    )  # fmt: skip
    assert effect(moved).difference == effect(first).difference and effect(moved).low != effect(first).low


# Operating characteristics: the gate's rule over 2,000 simulated test splits a scenario; with fewer resamples than by
# default, to be quick. benchmarks/bench_gate.py measures more of them with all.


@pytest.mark.parametrize("scenario", NO_GAIN[:3], ids=lambda scenario: scenario.title)
def test_without_a_true_difference_at_most_3_of_100_are_promoted(scenario: Scenario) -> None:
    assert shares(scenario, PARAMS).promoted <= 0.03


@pytest.mark.parametrize(
    "scenario", [GAIN[0], Scenario("three classes", BUSI, even(0.03, BUSI))], ids=lambda scenario: scenario.title
)
def test_a_true_gain_of_3_points_is_promoted_in_90_of_100(scenario: Scenario) -> None:
    assert sum(scenario.groups.values()) == 120 and scenario.spread == 0.08
    assert shares(scenario, PARAMS).promoted >= 0.9


@pytest.mark.parametrize("scenario", [HARM[0], HARM[3]], ids=lambda scenario: scenario.title)
def test_a_class_that_truly_loses_its_margin_stops_nearly_all(scenario: Scenario) -> None:
    assert shares(scenario, PARAMS).promoted <= 0.03


def test_the_simulation_decides_as_the_gate_does() -> None:
    scenario = Scenario("mixed", BUSI, {"benign": 0.04}, images=3, worse=0.05, better=0.05)
    drawn = draw(scenario, 40, 0)
    simulated = decisions(drawn, PARAMS, frozen(as_scores(drawn, 0, 0.5)).seed)
    outcomes = [gate(as_scores(drawn, number, 0.0), as_scores(drawn, number, 1.0)).outcome for number in range(40)]
    assert [row["promoted"] for row in simulated] == [outcome == "promote" for outcome in outcomes]
    assert 5 < outcomes.count("promote") < 35


def as_scores(drawn: Drawn, number: int, after: float) -> pd.DataFrame:
    """Write a draw as the champion's (`after` 0) or the challenger's (1) table."""
    change = drawn.differences["dsc"][:, number]
    dsc = np.where(drawn.lesion, 0.5 + change * after, np.where(after, change >= 0, change <= 0))
    return pd.DataFrame(
        {
            # In the order of the rows: the resamples are those of the simulation.
            "case_id": [f"c{n:04d}" for n in range(len(dsc))],
            "group": drawn.group,
            "label": drawn.label,
            "lesion_fraction": 0.1 * drawn.lesion,
            "dsc": dsc,
            "predicted_fraction": np.where(drawn.lesion, 0.1, 1.0 - dsc),
        }
    )
