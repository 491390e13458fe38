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
from pipelines.compile import write_pipeline

IMAGES = ("AMLP_STAGES_IMAGE", "AMLP_PIPELINE_IMAGE")


def compiled(project: Path, out: Path, **variables: str) -> dict[str, Any]:
    """What the command writes; in a process of its own, for the image's name is read on import."""
    environment = {name: value for name, value in os.environ.items() if name not in IMAGES} | variables
    done = subprocess.run(
        [sys.executable, "-m", "pipelines", "compile", "--out", str(out)],
        cwd=project, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert str(out) in done.stdout
    return read(out)


# What `dsl.If` makes of the promotion: a task that is a pipeline of its own.
PROMOTION = "condition-2"


def read(path: Path) -> dict[str, Any]:
    """The pipeline, and what is Kubernetes' under `platforms`."""
    merged: dict[str, Any] = {}
    for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
        merged |= document
    return merged


@pytest.fixture(scope="module")
def golden(project: Path) -> dict[str, Any]:
    return read(project / "pipelines" / "training.yaml")


@pytest.fixture(scope="module")
def tasks(golden: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = golden["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    return found


@pytest.fixture(scope="module")
def pods(golden: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What Kubernetes gets for each task."""
    executors = golden["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return {name.removeprefix("exec-"): pod for name, pod in executors.items()}


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

    assert images(golden) == {f"amlp-stages:{__version__}", f"amlp-pipeline:{__version__}"}
    named = dict.fromkeys(IMAGES, "amlp:0a1b2c3")
    assert images(compiled(project, tmp_path / "other.yaml", **named)) == {"amlp:0a1b2c3"}


def test_another_kind_of_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", "--out", str(tmp_path / "training.txt")]) == 2
    assert "training.txt does not end in .yaml" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_tasks_install_nothing(golden: dict[str, Any]) -> None:
    for entry in golden["deploymentSpec"]["executors"].values():
        assert "pip install" not in " ".join(entry["container"]["command"])


def test_tasks_and_edges_are_those_of_dvc(tasks: dict[str, Any], stages: dict[str, Any]) -> None:
    """Beside DVC's stages there is the look for the data's version, which DVC has in its own folder, and what follows
    them: the gate, and the promotion if it says so.
    """
    wrote = {out: name for name, stage in stages.items() for out in stage["outs"]}

    def producers(stage: dict[str, Any]) -> set[str]:
        return {name for dep in stage["deps"] for out, name in wrote.items() if dep == out or dep.startswith(f"{out}/")}

    def artifacts(task: dict[str, Any]) -> set[str]:
        given = task["inputs"].get("artifacts", {}).values()
        return {source["taskOutputArtifact"]["producerTask"] for source in given}

    edges = {name: producers(stage) for name, stage in stages.items()}
    assert set(tasks) - set(edges) == {"pull-data", "find-reference", "gate", PROMOTION}
    assert {name: artifacts(tasks[name]) for name in edges} == edges
    assert artifacts(tasks["find-reference"]) == {"register"}
    assert artifacts(tasks["gate"]) == {"ingest", "preprocess", "scratch", "register"}
    assert artifacts(tasks[PROMOTION]) == {"gate", "register"}
    # And no order beyond what data flow asks for.
    order = {name: set(task.get("dependentTasks", [])) for name, task in tasks.items() if name in {*edges, "pull-data"}}
    version = {"ingest": {"pull-data"}, "register": {"pull-data"}}
    assert order == {"pull-data": set(), **{name: edges[name] | version.get(name, set()) for name in edges}}


def test_the_champion_is_promoted_on_the_gates_word_alone(golden: dict[str, Any], tasks: dict[str, Any]) -> None:
    group = tasks[PROMOTION]
    assert group["triggerPolicy"] == {
        "condition": "inputs.parameter_values['pipelinechannel--gate-outcome'] == 'promote'"
    }
    word = group["inputs"]["parameters"]["pipelinechannel--gate-outcome"]
    assert word["taskOutputParameter"] == {"outputParameterKey": "outcome", "producerTask": "gate"}
    assert set(golden["components"][group["componentRef"]["name"]]["dag"]["tasks"]) == {"promote"}


def test_all_tasks_descend_from_one_that_names_data_and_code(tasks: dict[str, Any]) -> None:
    given = tasks["ingest"]["inputs"]["parameters"]
    assert given["git_commit"] == {"componentInputParameter": "pipelinechannel--git_commit"}
    for name, output in (("data_uri", "uri"), ("data_md5", "md5")):
        assert given[name]["taskOutputParameter"] == {"outputParameterKey": output, "producerTask": "pull-data"}
    # Not the data's commit: the same images from a later one are the same images.
    assert set(given) == {"params", "git_commit", "data_uri", "data_md5"}


def test_every_task_is_cached_but_those_that_look_at_what_can_change(
    golden: dict[str, Any], tasks: dict[str, Any]
) -> None:
    promotion = golden["components"][tasks[PROMOTION]["componentRef"]["name"]]["dag"]["tasks"]
    for name, task in (tasks | promotion).items():
        cached = {} if name == "find-reference" else {"enableCache": True}
        assert name == PROMOTION or task["cachingOptions"] == cached
    # The gate's answer is known by whom it was about.
    assert tasks["gate"]["inputs"]["parameters"]["reference"]["taskOutputParameter"]["producerTask"] == "find-reference"
    last = golden["root"]["dag"]["tasks"]["record-outcome"]
    assert not last["cachingOptions"].get("enableCache")
    assert last["triggerPolicy"] == {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}


def test_a_schedule_looks_the_data_up_each_time(golden: dict[str, Any], tmp_path: Path) -> None:
    write_pipeline(tmp_path / "schedule.yaml", follow_data=True)
    group = "comp-exit-handler-1"
    follows = read(tmp_path / "schedule.yaml")["components"][group]["dag"]["tasks"]
    options = {name: task["cachingOptions"] for name, task in follows.items() if name != PROMOTION}
    now = {name: option.get("enableCache", False) for name, option in options.items()}
    assert now == {name: name not in ("pull-data", "find-reference") for name in now}


def test_no_task_is_without_limits(golden: dict[str, Any], tasks: dict[str, Any], pods: dict[str, Any]) -> None:
    executors = golden["deploymentSpec"]["executors"]
    tasks = tasks | golden["components"][tasks[PROMOTION]["componentRef"]["name"]]["dag"]["tasks"]
    del tasks[PROMOTION]
    for name in (*tasks, "record-outcome"):
        resources = executors[f"exec-{name}"]["container"]["resources"]
        assert resources["resourceMemoryLimit"] and resources["resourceCpuRequest"], name
        assert int(pods[name]["activeDeadlineSeconds"]) > 0, name
        assert pods[name]["securityContext"]["runAsNonRoot"], name
    for name, task in {**tasks, **golden["root"]["dag"]["tasks"]}.items():
        assert name == "exit-handler-1" or task["retryPolicy"]["maxRetryCount"] == 2, name


def test_trainings_alone_may_have_gpus_and_shared_memory(golden: dict[str, Any], pods: dict[str, Any]) -> None:
    trainings = {"pretrain", "finetune", "scratch"}
    executors = golden["deploymentSpec"]["executors"]
    with_gpu = {name for name in pods if "accelerator" in executors[f"exec-{name}"]["container"]["resources"]}
    assert with_gpu == trainings
    assert {name for name, pod in pods.items() if "nodeSelector" in pod and "tolerations" in pod} == trainings
    for name in trainings:
        [memory] = pods[name]["emptyDirMounts"]
        assert (memory["mountPath"], memory["medium"]) == ("/dev/shm", "Memory")


def test_what_pods_take_from_the_namespace_is_there(project: Path, pods: dict[str, Any]) -> None:
    """Names of objects and keys, against k8s/."""
    text = (project / "k8s/base/kustomization.yaml").read_text(encoding="utf-8")
    settings = next(one for one in yaml.safe_load(text)["configMapGenerator"] if one["name"] == "amlp-settings")
    known = {literal.partition("=")[0] for literal in settings["literals"]}
    # Where the cluster has S3 and people their pages is an overlay's.
    known |= {"AWS_ENDPOINT_URL_S3", "AMLP_MLFLOW_PAGES", "AMLP_PIPELINE_PAGES"}
    manual = (project / "k8s/README.md").read_text(encoding="utf-8")
    for pod in pods.values():
        [config] = pod["configMapAsEnv"]
        assert config["configMapName"] == "amlp-settings"
        assert {entry["configMapKey"] for entry in config["keyToEnv"]} <= known
        for secret in pod["secretAsEnv"]:
            for entry in secret["keyToEnv"]:
                assert f"`{secret['secretName']}`" in manual and entry["secretKey"] in manual


def test_results_are_typed_so_that_the_pages_of_kubeflow_show_them(golden: dict[str, Any]) -> None:
    types = {
        f"{name.removeprefix('comp-')}.{output}": entry["artifactType"]["schemaTitle"].removeprefix("system.")
        for name, component in golden["components"].items()
        for output, entry in component.get("outputDefinitions", {}).get("artifacts", {}).items()
    }
    assert {name: kind for name, kind in types.items() if not name.endswith(".metrics")} == {
        "ingest.cases": "Dataset",
        "validate.validated": "Dataset",
        "preprocess.shards": "Dataset",
        "pretrain.encoder": "Model",
        "pretrain.page": "HTML",
        "finetune.segmenter": "Model",
        "scratch.segmenter": "Model",
        "evaluate.evaluation": "Artifact",
        "evaluate.page": "HTML",
        "register.registration": "Artifact",
        "register.page": "HTML",
        "report.page": "HTML",
        "gate.decision": "Artifact",
    }
    with_metrics = {"validate", "preprocess", "pretrain", "finetune", "scratch", "evaluate"}
    assert {name for name, kind in types.items() if kind == "Metrics"} == {f"{name}.metrics" for name in with_metrics}
