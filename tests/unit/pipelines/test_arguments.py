from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from amlp.cluster.training import ClusterParams
from amlp.errors import UserError
from amlp.params import Params, parse_params
from pipelines.arguments import DataSource, pipeline_arguments

# Every value differs from its default where a check between sections would notice a part that fell back to it.
VALUES: dict[str, Any] = {
    "seed": 3,
    "preprocess": {"height": 60, "width": 90},
    "scores": {"patch": 10},
    "encoder": {"patch": 10, "dim": 48},
    "pretrain": {"epochs": 7},
    "register": {"tracking_uri": "http://mlflow:5000"},
}
COMMIT = "f" * 40
# Beyond what DVC names: the other side of parse_params' check of sizes against the patch.
OTHER_SIDE = {
    "preprocess": {"encoder.patch"},
    "pretrain": {"preprocess.height", "preprocess.width"},
    "finetune": {"preprocess.height", "preprocess.width"},
}


def arguments(values: dict[str, Any] = VALUES, **options: Any) -> dict[str, Any]:
    return pipeline_arguments(parse_params(values, "test"), git_commit=COMMIT, **options)


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
    text = (project / "pipelines" / "training.yaml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = next(yaml.safe_load_all(text))
    return loaded


def test_arguments_are_inputs_and_all_that_has_no_default_is_given(pipeline: dict[str, Any]) -> None:
    inputs = pipeline["root"]["inputDefinitions"]["parameters"]
    for options in ({}, {"cluster": ON_RAY}):
        values = {**VALUES, "finetune": {"num_workers": 2}, "pretrain": {"num_workers": 2}}
        given = set(arguments(values, **options))
        assert given <= set(inputs)
        assert {name for name, entry in inputs.items() if not entry.get("isOptional")} <= given


def test_a_stage_gets_the_parameters_that_dvc_names(project: Path, pipeline: dict[str, Any]) -> None:
    stages = yaml.safe_load((project / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    everything = set(leaves(Params().model_dump(by_alias=True)))
    for name, task in pipeline["components"]["comp-exit-handler-1"]["dag"]["tasks"].items():
        if name not in stages:
            continue
        source = task["inputs"]["parameters"]["params"]["componentInputParameter"]
        given = arguments()[source.removeprefix("pipelinechannel--")]
        if name in ("register", "report"):
            allowed = everything
        else:
            allowed = {*stages[name]["params"], *OTHER_SIDE.get("finetune" if name == "scratch" else name, set())}
        # Of those, what is no default.
        assert set(leaves(json.loads(given))) == allowed & set(leaves(VALUES)), name


def test_defaults_are_left_out() -> None:
    values = {**VALUES, "finetune": {"epochs": Params().finetune.epochs}}
    assert arguments(values) == arguments()


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


IMAGES = DataSource("https://example.org/images.git", "main", "busi")
ON_RAY = ClusterParams(
    launcher="rayjob", work="s3://bucket/work", image="amlp-train:1", gpus=1, node_selector={"pool": "gpu"},
    tolerations=[{"key": "gpu", "operator": "Exists"}],
)  # fmt: skip


def test_images_come_from_a_repository_and_not_from_a_folder_of_whoever_submits() -> None:
    values = {**VALUES, "ingest": {"source": "busi", "path": "/data/somebody/images"}}
    with pytest.raises(UserError, match=r"ingest\.source: busi .* --data-repo"):
        arguments(values)
    given = arguments(values, data=IMAGES)
    assert (given["data_repo"], given["data_rev"], given["data_path"]) == (IMAGES.repo, "main", "busi")
    assert not [name for name, text in given.items() if "somebody" in str(text)]


def test_images_that_would_not_be_read_are_refused() -> None:
    with pytest.raises(UserError, match=r"source: phantom .*/images\.git; set `ingest\.source: busi`") as refused:
        arguments(data=DataSource("https://user:word@example.org/images.git", "main", "busi"))
    assert "word@" not in str(refused.value)


def test_nodes_are_those_of_the_pods_that_train() -> None:
    values = {**VALUES, "finetune": {"num_workers": 2}, "pretrain": {"num_workers": 2}}
    on_ray = arguments(values, cluster=ON_RAY)
    in_pod = arguments(values, cluster=ON_RAY.model_copy(update={"launcher": "pod"}))
    assert (on_ray["node_selector"], on_ray["tolerations"]) == ({}, [])
    assert in_pod["node_selector"] == {"pool": "gpu"}
    assert in_pod["tolerations"] == [{"key": "gpu", "operator": "Exists"}]
    # What is trained on a GPU is not what is trained without, wherever.
    assert on_ray["gpus"] == in_pod["gpus"] == "1"


@pytest.mark.parametrize(
    "other",
    [{"deadline_hours": 48.0}, {"queue": "night"}, {"owner": "me"}, {"work": "s3://other/work"}, {"start_minutes": 5.0},
     {"node_selector": {"pool": "other"}}, {"tolerations": []}, {"image": "amlp-train:2"}],
)  # fmt: skip
def test_what_changes_no_result_is_no_argument(other: dict[str, Any]) -> None:
    """Else a longer deadline would train anew what was finished."""
    values = {**VALUES, "finetune": {"num_workers": 2}, "pretrain": {"num_workers": 2}}
    given = arguments(values, cluster=ON_RAY.model_copy(update=other))
    assert given == arguments(values, cluster=ON_RAY)


def test_what_argo_would_replace_is_refused() -> None:
    with pytest.raises(UserError, match=r"params: .*workflow\.name.* two braces"):
        arguments({**VALUES, "register": {**VALUES["register"], "experiment": "a{{workflow.name}}"}})
    with pytest.raises(UserError, match=r"workflow.name.* two braces"):
        arguments(
            {**VALUES, "ingest": {"source": "busi"}},
            data=DataSource("https://example.org/x.git", "main", "{{workflow.name}}"),
        )


def test_a_ray_cluster_without_workers_is_refused() -> None:
    with pytest.raises(UserError, match=r"pretrain\.num_workers: 0 .*--workers"):
        arguments(cluster=ON_RAY)
