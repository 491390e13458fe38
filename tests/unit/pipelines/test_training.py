"""The compiled pipeline against its golden file and against dvc.yaml."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from amlp import __version__
from pipelines.__main__ import main

VARIABLES = ("AMLP_STAGES_IMAGE", "AMLP_PIPELINE_IMAGE")


def compiled(project: Path, out: Path, **variables: str) -> dict[str, Any]:
    """What the command writes; in a process of its own, for the image's name is read on import."""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES} | variables
    done = subprocess.run(
        [sys.executable, "-m", "pipelines", "compile", "--out", str(out)],
        cwd=project, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert str(out) in done.stdout
    return read(out)


def read(path: Path) -> dict[str, Any]:
    pipeline: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return pipeline


@pytest.fixture(scope="module")
def golden(project: Path) -> dict[str, Any]:
    return read(project / "pipelines" / "training.yaml")


@pytest.fixture(scope="module")
def tasks(golden: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = golden["root"]["dag"]["tasks"]
    return found


@pytest.fixture(scope="module")
def stages(project: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = read(project / "dvc.yaml")["stages"]
    return found


def test_the_golden_file_is_what_compiles_now(project: Path, golden: dict[str, Any], tmp_path: Path) -> None:
    now = compiled(project, tmp_path / "training.yaml")
    assert now.pop("sdkVersion").startswith("kfp-2.")
    expected = {key: value for key, value in golden.items() if key != "sdkVersion"}
    assert now == expected, "run `python -m pipelines compile`"


def test_the_image_is_the_release_unless_a_build_names_another(
    project: Path, golden: dict[str, Any], tmp_path: Path
) -> None:
    def images(pipeline: dict[str, Any]) -> set[str]:
        return {entry["container"]["image"] for entry in pipeline["deploymentSpec"]["executors"].values()}

    assert images(golden) == {f"amlp-stages:{__version__}"}
    other = compiled(project, tmp_path / "other.yaml", AMLP_STAGES_IMAGE="amlp-stages:0a1b2c3")
    assert images(other) == {"amlp-stages:0a1b2c3"}


def test_another_kind_of_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["compile", "--out", str(tmp_path / "training.txt")])
    assert end.value.code == 2
    assert "training.txt does not end in .yaml" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_tasks_install_nothing(golden: dict[str, Any]) -> None:
    for entry in golden["deploymentSpec"]["executors"].values():
        assert "pip install" not in " ".join(entry["container"]["command"])


def test_tasks_and_edges_are_those_of_dvc(tasks: dict[str, Any], stages: dict[str, Any]) -> None:
    wrote = {out: name for name, stage in stages.items() for out in stage["outs"]}

    def producers(stage: dict[str, Any]) -> set[str]:
        return {name for dep in stage["deps"] for out, name in wrote.items() if dep == out or dep.startswith(f"{out}/")}

    def artifacts(task: dict[str, Any]) -> set[str]:
        given = task["inputs"].get("artifacts", {}).values()
        return {source["taskOutputArtifact"]["producerTask"] for source in given}

    edges = {name: producers(stage) for name, stage in stages.items()}
    assert {name: artifacts(task) for name, task in tasks.items()} == edges
    # And no order beyond what data flow asks for.
    assert {name: set(task.get("dependentTasks", [])) for name, task in tasks.items()} == edges


def test_the_tasks_that_all_others_descend_from_name_data_and_code(tasks: dict[str, Any]) -> None:
    first = {name for name, task in tasks.items() if not task.get("dependentTasks")}
    assert first == {"ingest"}
    given = tasks["ingest"]["inputs"]["parameters"]
    for name in ("data_md5", "git_commit"):
        assert given[name] == {"componentInputParameter": name}


def test_every_task_is_cached(tasks: dict[str, Any]) -> None:
    assert all(task["cachingOptions"] == {"enableCache": True} for task in tasks.values())


def test_results_are_typed_so_that_the_pages_of_kubeflow_show_them(golden: dict[str, Any]) -> None:
    types = {
        f"{name.removeprefix('comp-')}.{output}": entry["artifactType"]["schemaTitle"].removeprefix("system.")
        for name, component in golden["components"].items()
        for output, entry in component["outputDefinitions"]["artifacts"].items()
    }
    assert {name: kind for name, kind in types.items() if not name.endswith(".metrics")} == {
        "ingest.cases": "Dataset",
        "validate.validated": "Dataset",
        "preprocess.shards": "Dataset",
        "pretrain.encoder": "Model",
        "finetune.segmenter": "Model",
        "scratch.segmenter": "Model",
        "evaluate.evaluation": "Artifact",
        "register.registration": "Artifact",
        "report.page": "HTML",
    }
    with_metrics = {"validate", "preprocess", "pretrain", "finetune", "scratch", "evaluate"}
    assert {name for name, kind in types.items() if kind == "Metrics"} == {f"{name}.metrics" for name in with_metrics}
