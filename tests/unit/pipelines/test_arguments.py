from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from amlp.errors import UserError
from amlp.params import Params, parse_params
from pipelines.arguments import pipeline_arguments

# Every value differs from its default where a check between sections would notice a part that fell back to it.
VALUES: dict[str, Any] = {
    "seed": 3,
    "preprocess": {"height": 60, "width": 90},
    "scores": {"patch": 10},
    "encoder": {"patch": 10, "dim": 48},
    "pretrain": {"epochs": 7},
    "register": {"tracking_uri": "http://mlflow:5000"},
}
LINEAGE = {"data_md5": "0" * 32, "git_commit": "f" * 40}
# Beyond what DVC names: the other side of parse_params' check of sizes against the patch.
OTHER_SIDE = {
    "preprocess": {"encoder.patch"},
    "pretrain": {"preprocess.height", "preprocess.width"},
    "finetune": {"preprocess.height", "preprocess.width"},
}


def arguments(values: dict[str, Any] = VALUES) -> dict[str, str]:
    return pipeline_arguments(parse_params(values, "test"), **LINEAGE)


def changed(section: str, key: str, value: Any) -> set[str]:
    other = arguments({**VALUES, section: {**VALUES.get(section, {}), key: value}})
    return {name for name, text in arguments().items() if other[name] != text}


def leaves(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


@pytest.fixture(scope="module")
def pipeline(project: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((project / "pipelines" / "training.yaml").read_text(encoding="utf-8"))
    return loaded["root"]


def test_there_is_an_argument_for_each_input(pipeline: dict[str, Any]) -> None:
    assert set(arguments()) == set(pipeline["inputDefinitions"]["parameters"])


def test_a_stage_gets_the_parameters_that_dvc_names(project: Path, pipeline: dict[str, Any]) -> None:
    stages = yaml.safe_load((project / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    everything = set(leaves(Params().model_dump(by_alias=True)))
    for name, task in pipeline["dag"]["tasks"].items():
        given = arguments()[task["inputs"]["parameters"]["params"]["componentInputParameter"]]
        if name in ("register", "report"):
            assert set(leaves(json.loads(given))) == everything
        else:
            other_side = OTHER_SIDE.get("finetune" if name == "scratch" else name, set())
            assert set(leaves(json.loads(given))) == {*stages[name]["params"], *other_side}, name


def test_a_part_passes_the_check_that_the_whole_passed() -> None:
    for name, text in arguments().items():
        if name.endswith("params"):
            part = parse_params(json.loads(text), name)
            assert name != "params" or part == parse_params(VALUES, "test")
    assert parse_params(json.loads(arguments()["pretrain_params"]), "test").pretrain.epochs == 7


@pytest.mark.parametrize(
    ("section", "key", "value", "names"),
    [
        ("finetune", "epochs", 3, {"finetune_params", "params"}),
        ("evaluate", "confidence", 0.9, {"evaluate_params", "params"}),
        ("encoder", "dim", 60, {"pretrain_params", "finetune_params", "params"}),
        ("register", "experiment", "other", {"params"}),
    ],
)
def test_a_changed_parameter_changes_only_what_its_stages_get(
    section: str, key: str, value: Any, names: set[str]
) -> None:
    assert changed(section, key, value) == names


def test_equal_parameters_give_equal_text() -> None:
    assert arguments(dict(reversed(VALUES.items()))) == arguments()


def test_a_database_in_a_folder_that_vanishes_is_refused() -> None:
    with pytest.raises(UserError, match=r"register\.tracking_uri: sqlite:///mlflow\.db is relative"):
        arguments({**VALUES, "register": {"tracking_uri": "sqlite:///mlflow.db"}})
    given = arguments({**VALUES, "register": {"tracking_uri": "sqlite:////data/mlflow.db"}})
    assert "sqlite:////data/mlflow.db" in given["params"]
