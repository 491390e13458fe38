from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from amlp.errors import ListedError, UserError
from amlp.study.plan import Cell, load_study, make_plan
from amlp.training.state import run_digest
from tests.support.small_study import VARIANTS, load


def test_later_values_win_and_the_seed_drives_everything(tmp_path: Path) -> None:
    params = load(tmp_path).params("mae", 0.1, 3)
    assert (params.encoder.dim, params.finetune.batch, params.finetune.epochs) == (48, 4, 100)
    assert (params.seed, params.finetune.label_fraction) == (3, 0.1)
    assert not params.pretrain.mps.enabled and params.pretrain.amr.enabled
    assert load(tmp_path).params("full", 1.0, 0).finetune.epochs == 7


def test_the_most_telling_units_come_first_and_what_they_need_before_them(tmp_path: Path) -> None:
    plan = make_plan(load(tmp_path))
    assert [unit.title for unit in plan.units[:8]] == [
        "finetune scratch 0.1 seed 0",
        "score scratch 0.1 seed 0",
        "pretrain full seed 0",
        "finetune full 0.1 seed 0",
        "score full 0.1 seed 0",
        "pretrain mae seed 0",
        "finetune mae 0.1 seed 0",
        "score mae 0.1 seed 0",
    ]
    names = [unit.name for unit in plan.units]
    assert len(set(names)) == len(names)
    for unit in plan.units:
        assert unit.needs is None or names.index(unit.needs.name) < names.index(unit.name)
    seeds = [unit.seed for unit in plan.units]
    assert seeds == sorted(seeds)
    assert set(plan.cells) == {
        Cell(variant, fraction, seed)
        for variant, chosen in VARIANTS.items()
        for fraction in (0.1, 1.0)
        for seed in chosen["seeds"]
    }


def test_variants_that_pre_train_alike_share_one_pre_training(tmp_path: Path) -> None:
    slow = {"title": "AMLP, slow head", "params": {"finetune.lr": 1e-4}, "seeds": [0]}
    plan = make_plan(load(tmp_path, variants={"full": VARIANTS["full"], "slow": slow}))
    assert [unit.title for unit in plan.units if unit.kind == "pretrain"] == [
        "pretrain full seed 0",
        "pretrain full seed 1",
    ]
    ours, theirs = (plan.cells[Cell(variant, 1.0, 0)].needs for variant in ("full", "slow"))
    assert ours and theirs and ours.name != theirs.name and ours.needs == theirs.needs


def test_a_parameter_renames_the_units_that_depend_on_it_and_no_others(tmp_path: Path) -> None:
    def names(**changes: Any) -> dict[str, set[str]]:
        units = make_plan(load(tmp_path, **changes)).units
        return {kind: {unit.name for unit in units if unit.kind == kind} for kind in ("pretrain", "finetune", "score")}

    before = names()
    after = names(overrides={"finetune.batch": 8})
    assert before["pretrain"] == after["pretrain"] and not before["finetune"] & after["finetune"]
    after = names(overrides={"finetune.batch": 4, "evaluate.bootstrap_samples": 300})
    assert before["finetune"] == after["finetune"] and not before["score"] & after["score"]
    after = names(overrides={"finetune.batch": 4, "pretrain.lr": 2e-3})
    # Training from scratch has nothing to do with pre-training.
    assert len(before["finetune"] & after["finetune"]) == 4 and not before["pretrain"] & after["pretrain"]
    assert names(overrides={"finetune.batch": 4, "register.experiment": "other"}) == before


def test_what_is_scored_renames_the_scores_alone(tmp_path: Path) -> None:
    fractions: dict[float, Any] = {0.5: {}, 0.1: {"epochs": 100}}
    plans = [
        make_plan(load(tmp_path, fractions=fractions, **more))
        for more in ({}, {"scored": "test"}, {"scored": "unused"})
    ]
    names = [[unit.name for unit in plan.units] for plan in plans]
    assert names[0] == names[1]
    changed = {unit.kind for unit, name in zip(plans[2].units, names[0], strict=True) if unit.name != name}
    assert changed == {"score"} and plans[2].scored == "unused"


def test_all_labels_leave_no_image_unused(tmp_path: Path) -> None:
    with pytest.raises(ListedError, match=r"fractions\.1: scored: unused needs fractions below 1"):
        load(tmp_path, scored="unused")
    with pytest.raises(ListedError, match="scored"):
        load(tmp_path, scored="train")


def test_only_a_part(tmp_path: Path) -> None:
    study = load(tmp_path)
    plan = make_plan(study, ["variant=full,mae", "fraction=0.1", "seed=0"])
    assert set(plan.cells) == {Cell("full", 0.1, 0), Cell("mae", 0.1, 0)}
    assert {cell.fraction for cell in make_plan(study, ["fraction=1.0"]).cells} == {1.0}
    for wrong in ("variant=ful", "fraction=0.2", "seed=7", "epoch=1", "variant"):
        with pytest.raises(UserError, match="--only"):
            make_plan(study, [wrong])


def test_all_mistakes_of_the_file_are_reported_at_once(tmp_path: Path) -> None:
    variants = {"full": {"titel": "AMLP"}, "scratch": {"title": "s", "seeds": ["0"]}}
    with pytest.raises(ListedError) as caught:
        load(tmp_path, variants=variants, fractions={0.0: {}}, extra=1)
    text = str(caught.value)
    assert "variants.full.titel: unknown key; did you mean 'title'?" in text
    assert "variants.scratch.seeds.0" in text and "fractions.0.0" in text and "extra: unknown key" in text


def test_all_names_and_values_that_do_not_fit_are_reported_at_once(tmp_path: Path) -> None:
    variants = {
        "full": {"title": "AMLP", "params": {"pretrain.mps.enabeld": True, "finetune.batch": 0}},
        "unet": {"title": "U-Net", "network": "unet", "seeds": [1, 1]},
    }
    aims = [{"fraction": 0.5, "better": "full", "than": "scratch"}]
    with pytest.raises(ListedError) as caught:
        load(tmp_path, variants=variants, reference="best", aims=aims, fractions={0.1: {}})
    text = str(caught.value)
    for part in (
        "reference: no variant 'best'",
        "aims.0.than: no variant 'scratch'",
        "aims.0.fraction: no fraction 0.5; fractions: 0.1",
        "variant full at 0.1: pretrain.mps.enabeld: unknown key; did you mean 'enabled'?",
        "variant full at 0.1: finetune.batch",
        "variants.unet: network unet has nothing to pre-train",
        "variants.unet.seeds: a seed is given twice",
    ):
        assert part in text


def test_a_name_below_a_value_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ListedError, match=r"seed is no section"):
        load(tmp_path, overrides={"seed.more": 1})


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml: not found"):
        load_study(tmp_path / "none.yaml")
    with pytest.raises(UserError, match=r"recipe\.yaml.*not found|other\.yaml: not found"):
        load(tmp_path, recipe="other.yaml")


def test_an_arm_may_train_with_some_fractions_only(tmp_path: Path) -> None:
    variants = VARIANTS | {"mae": VARIANTS["mae"] | {"fractions": [0.1]}}
    cells = make_plan(load(tmp_path, variants=variants)).cells
    assert {cell.fraction for cell in cells if cell.variant == "mae"} == {0.1}
    assert {cell.fraction for cell in cells if cell.variant == "full"} == {0.1, 1.0}
    with pytest.raises(ListedError, match=r"variants\.mae\.fractions: the study has no fraction 0\.3"):
        load(tmp_path, variants=VARIANTS | {"mae": VARIANTS["mae"] | {"fractions": [0.3]}})


def test_an_arm_may_train_longer(tmp_path: Path) -> None:
    variants = VARIANTS | {"scratch": VARIANTS["scratch"] | {"longer": 2.5}}
    study = load(tmp_path, variants=variants)
    assert [study.params(variant, 0.1, 0).finetune.epochs for variant in ("scratch", "full")] == [250, 100]
    assert [study.params(variant, 1.0, 0).finetune.epochs for variant in ("scratch", "full")] == [18, 7]


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[3] / "studies").glob("*.yaml")), ids=lambda path: path.name
)
def test_the_committed_studies_are_valid(path: Path) -> None:
    study = load_study(path)
    assert study.file.name == path.stem
    plan = make_plan(study)
    names = [unit.name for unit in plan.cells.values()]
    assert len(set(names)) == len(names), "two variants are trained alike"


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"scores.polarity": "bright"}, r"variants\.other\.params\.scores\.polarity: the same for all variants"),
        ({"preprocess.height": 64}, r"preprocess\.height: the same for all variants"),
        ({"seed": 5}, r"variants\.other\.params\.seed: the same for all variants"),
        ({"finetune.label_fraction": 0.5}, r"label_fraction: the study sets it"),
        ({"finetune.epochs": 200}, r"finetune\.epochs: fractions\.0\.1 sets it for all variants"),
    ],
)
def test_what_would_be_overridden_or_ignored_is_refused(tmp_path: Path, params: dict[str, Any], message: str) -> None:
    other = {"title": "other", "params": params, "seeds": [0]}
    with pytest.raises(ListedError, match=message):
        load(tmp_path, variants={**VARIANTS, "other": other})


def test_an_aim_that_can_never_be_judged_is_refused(tmp_path: Path) -> None:
    few = {"title": "few", "pretrain": False, "fractions": [0.1], "seeds": [0]}
    aims = [{"fraction": 1.0, "better": "full", "than": "few"}, {"fraction": 0.1, "better": "full", "than": "full"}]
    with pytest.raises(ListedError) as caught:
        load(tmp_path, variants={**VARIANTS, "few": few}, aims=aims)
    assert "aims.0: variant few is not trained with fraction 1" in str(caught.value)
    assert "aims.1: full is compared with itself" in str(caught.value)


def test_earlier_names_are_refused_with_the_new_ones(tmp_path: Path) -> None:
    with pytest.raises(ListedError, match=r"arms: renamed to 'variants', write that"):
        load(tmp_path, arms=VARIANTS)
    other = {"title": "other", "params": {"finetune.categories": "none"}}
    with pytest.raises(ListedError, match=r"finetune\.categories: renamed to 'pseudo_labels'"):
        load(tmp_path, variants=VARIANTS | {"other": other})
    with pytest.raises(UserError, match=r"--only arm=full: expected variant="):
        make_plan(load(tmp_path), ["arm=full"])


def test_a_renamed_parameter_leaves_finished_units_found(tmp_path: Path) -> None:
    """A unit's folder is named by the parameters' earliest names, as those that were trained before the rename."""
    [unit] = [unit for unit in make_plan(load(tmp_path)).units if unit.title == "finetune scratch 0.1 seed 0"]
    values = unit.params.finetune.model_dump()
    values["categories"] = values.pop("pseudo_labels")
    values["category_epochs"] = values.pop("pseudo_label_epochs")
    assert unit.digest == run_digest("finetune", 0, unit.params.encoder.model_dump(), values, None)
