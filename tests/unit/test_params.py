from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from amlp.errors import ListedError, UserError
from amlp.params import Params, load_params, parse_params

DEFAULTS = Params().model_dump(by_alias=True)


def leaves(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def with_value(key: str, value: Any) -> dict[str, Any]:
    values = copy.deepcopy(DEFAULTS)
    *sections, name = key.split(".")
    section = values
    for part in sections:
        section = section[part]
    section[name] = value
    return values


def problems(values: dict[str, Any]) -> list[str]:
    with pytest.raises(ListedError) as caught:
        parse_params(values, "params.yaml")
    return caught.value.problems


def test_the_repositorys_params_are_complete_and_equal_to_the_defaults(project: Path) -> None:
    text = yaml.safe_load((project / "params.yaml").read_text(encoding="utf-8"))
    assert leaves(text) == leaves(DEFAULTS)
    assert list(leaves(text)) == list(leaves(DEFAULTS)), "same order as in amlp/params.py"
    assert load_params(project / "params.yaml") == Params()


@pytest.mark.parametrize("recipe", sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_is_valid_and_holds_only_what_differs(recipe: Path) -> None:
    load_params(recipe)
    given = leaves(yaml.safe_load(recipe.read_text(encoding="utf-8")))
    assert {key for key, value in given.items() if leaves(DEFAULTS)[key] == value} == set()


def test_one_error_names_three_different_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("finetune: {epohcs: 3}\npretrain: {batch: many}\nevaluate: {confidence: 1.5}\n")
    with pytest.raises(ListedError) as caught:
        load_params(path)
    message = str(caught.value)
    assert "3 problem(s)" in message and str(path) in message
    assert "finetune.epohcs: unknown key; did you mean 'epochs'?" in message
    assert "pretrain.batch:" in message and "integer" in message and "'many'" in message
    assert "evaluate.confidence:" in message and "less than 1" in message and "1.5" in message


@pytest.mark.parametrize(
    ("key", "suggestion"),
    [
        ("sed", "'seed'"),
        ("finetun", "'finetune'"),
        ("pretrain.amr.strt", "'start'"),
        ("validate.tolerence", "'tolerance'"),
        ("register.track_uri", "'tracking_uri'"),
        ("rrl.zzz", None),
    ],
)
def test_an_unknown_key_gets_the_nearest_valid_one(key: str, suggestion: str | None) -> None:
    section, _, name = key.rpartition(".")
    section = {"rrl": "pretrain.rrl"}.get(section, section)
    [problem] = problems(with_value(f"{section}.{name}".lstrip("."), 1))
    assert f"{name}: unknown key" in problem
    # With nothing near, the message lists what there is.
    assert (f"did you mean {suggestion}" if suggestion else "valid keys: enabled, gamma") in problem


@pytest.mark.parametrize(("old", "new"), [("categories", "pseudo_labels"), ("category_epochs", "pseudo_label_epochs")])
def test_an_earlier_name_is_refused_with_the_new_one(old: str, new: str) -> None:
    [problem] = problems(with_value(f"finetune.{old}", 1))
    assert problem == f"finetune.{old}: renamed to '{new}', write that"


def test_a_password_in_mlflow_s_address_is_refused_and_not_repeated() -> None:
    for uri in ("http://ana:hunter2@mlflow:5000", "postgresql://ana:hunter/2@database/mlflow"):
        [problem] = problems(with_value("register.tracking_uri", uri))
        assert "must hold no password" in problem and "://***@" in problem and "hunter" not in problem
    parse_params(with_value("register.tracking_uri", "sqlite:////data/ana@work/mlflow.db"), "params.yaml")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", -1),
        ("seed", "0"),
        ("seed", True),
        ("ingest.source", "folder"),
        ("ingest.path", None),
        ("preprocess.height", 96.5),
        ("pretrain.lr", "1e-3"),
        ("pretrain.lr", 0.0),
        ("pretrain.amr", 3),
        ("pretrain.mps.enabled", "yes"),
        ("finetune.label_fraction", 1.01),
        ("evaluate.bootstrap_samples", float("inf")),
    ],
)
def test_a_wrong_value_is_named_with_what_it_is(key: str, value: Any) -> None:
    [problem] = problems(with_value(key, value))
    assert problem.startswith(f"{key}: ")
    assert problem.endswith(f"got {value!r}")


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("preprocess.width", 100, "encoder.patch 8"),
        ("encoder.heads", 5, "heads 5"),
        ("pretrain.decoder.heads", 5, "heads 5"),
        ("pretrain.mps.cap", 0.7, "mps.cap 0.7"),
    ],
)
def test_values_that_do_not_fit_each_other_are_refused(key: str, value: Any, named: str) -> None:
    [problem] = problems(with_value(key, value))
    assert named in problem


def test_a_cap_below_the_ratio_is_fine_when_nothing_uses_it() -> None:
    values = with_value("pretrain.mps.cap", 0.5)
    values["pretrain"]["mps"]["enabled"] = False
    assert parse_params(values, "params.yaml").pretrain.mps.cap == 0.5


def test_missing_keys_take_their_defaults_and_whole_numbers_count_as_floats() -> None:
    params = parse_params({"finetune": {"epochs": 2, "lr": 1}}, "params.yaml")
    assert (params.finetune.epochs, params.finetune.lr) == (2, 1.0)
    assert params.pretrain == Params().pretrain


@pytest.mark.parametrize(("text", "named"), [("seed: [", "not valid YAML"), ("- 1\n", "list"), ("", "NoneType")])
def test_a_file_that_is_no_mapping_is_refused_by_name(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"params\.yaml") as caught:
        load_params(path)
    assert named in str(caught.value)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.yaml: not found"):
        load_params(tmp_path / "nothing.yaml")


def test_params_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Params().seed = 1


@given(st.integers(min_value=0, max_value=2**32), st.integers(min_value=0, max_value=2**32))
def test_digests_are_equal_exactly_for_equal_settings(one: int, other: int) -> None:
    assert (Params(seed=one).digest() == Params(seed=other).digest()) == (one == other)


def test_a_default_written_out_does_not_change_the_digest() -> None:
    assert parse_params({}, "a").digest() == parse_params(DEFAULTS, "b").digest()
