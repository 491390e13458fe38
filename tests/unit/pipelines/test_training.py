"""The compiled pipeline against its golden file and against dvc.yaml."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from amlp import __version__
from amlp.environment import SETTINGS_FOLDER
from amlp.params import load_params, parse_params
from pipelines.__main__ import main
from pipelines.arguments import DataSource, pipeline_arguments
from pipelines.compile import write_pipeline

# kfp's first import takes long on a machine that is busy.
pytestmark = pytest.mark.timeout(240)

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
    # The report is written by the task that registers.
    assert edges.pop("report") - {"register"} <= edges["register"]
    assert set(tasks) - set(edges) == {"pull-data", "gate"}
    # Which images there are it is said by a parameter.
    files = {**edges, "register": edges["register"] - {"ingest"}}
    assert {name: artifacts(tasks[name]) for name in edges} == files
    assert artifacts(tasks["gate"]) == {"ingest", "preprocess", "scratch", "register"}
    # And no order beyond what data flow asks for.
    order = {name: set(task.get("dependentTasks", [])) for name, task in tasks.items() if name in {*edges, "pull-data"}}
    version = {"ingest": {"pull-data"}, "register": {"pull-data"}}
    assert order == {"pull-data": set(), **{name: edges[name] | version.get(name, set()) for name in edges}}


def test_the_success_is_recorded_after_every_other_task(tasks: dict[str, Any]) -> None:
    waits_for, waiting = set(), ["gate"]
    while waiting:
        before = set(tasks[waiting.pop()].get("dependentTasks", []))
        waiting += before - waits_for
        waits_for |= before
    assert waits_for == tasks.keys() - {"gate"}


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
    for name, task in tasks.items():
        cached = {} if name == "gate" else {"enableCache": True}
        assert task["cachingOptions"] == cached, name
    last = golden["root"]["dag"]["tasks"]["record-outcome"]
    assert not last["cachingOptions"].get("enableCache")
    assert last["triggerPolicy"] == {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}


def test_a_schedule_looks_the_data_up_each_time(golden: dict[str, Any], tmp_path: Path) -> None:
    write_pipeline(tmp_path / "schedule.yaml", follow_data=True)
    group = "comp-exit-handler-1"
    follows = read(tmp_path / "schedule.yaml")["components"][group]["dag"]["tasks"]
    now = {name: task["cachingOptions"].get("enableCache", False) for name, task in follows.items()}
    assert now == {name: name not in ("pull-data", "gate") for name in now}


def test_fresh_tasks_are_not_taken_from_the_cache(tmp_path: Path) -> None:
    write_pipeline(tmp_path / "fresh.yaml", fresh=["preprocess"])
    tasks = read(tmp_path / "fresh.yaml")["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    anew = {name for name, task in tasks.items() if not task["cachingOptions"].get("enableCache")}
    assert anew == {"preprocess", "gate"}


def test_no_task_is_without_limits(golden: dict[str, Any], tasks: dict[str, Any], pods: dict[str, Any]) -> None:
    executors = golden["deploymentSpec"]["executors"]
    for name in (*tasks, "record-outcome"):
        resources = executors[f"exec-{name}"]["container"]["resources"]
        assert resources["resourceMemoryLimit"] and resources["resourceCpuRequest"], name
        assert int(pods[name]["activeDeadlineSeconds"]) > 0, name
        assert pods[name]["securityContext"]["runAsNonRoot"], name
    for name, task in {**tasks, **golden["root"]["dag"]["tasks"]}.items():
        if name == "exit-handler-1":
            continue
        retry, hours = task["retryPolicy"], int(pods[name]["activeDeadlineSeconds"]) / 3600
        assert retry["maxRetryCount"] == 2, name
        # It counts from the first try's start, and ends the last one: three tries of full length fit in.
        assert int(retry["backoffMaxDuration"].removesuffix("s")) >= 3 * hours * 3600 + 60 + 120, name


def test_trainings_alone_may_have_gpus_and_shared_memory(golden: dict[str, Any], pods: dict[str, Any]) -> None:
    trainings = {"pretrain", "finetune", "scratch"}
    executors = golden["deploymentSpec"]["executors"]
    with_gpu = {name for name in pods if "accelerator" in executors[f"exec-{name}"]["container"]["resources"]}
    assert with_gpu == trainings
    assert {name for name, pod in pods.items() if "nodeSelector" in pod and "tolerations" in pod} == trainings
    for name in trainings:
        [memory] = pods[name]["emptyDirMounts"]
        assert (memory["mountPath"], memory["medium"]) == ("/dev/shm", "Memory")


def test_what_pods_take_from_the_namespace_is_there(
    project: Path, golden: dict[str, Any], pods: dict[str, Any]
) -> None:
    """Names of objects and keys, against k8s/."""
    text = (project / "k8s/base/runs/kustomization.yaml").read_text(encoding="utf-8")
    settings = next(one for one in yaml.safe_load(text)["configMapGenerator"] if one["name"] == "amlp-settings")
    known = {literal.partition("=")[0] for literal in settings["literals"]}
    manual = (project / "docs/how-to/cluster.md").read_text(encoding="utf-8")
    for pod in pods.values():
        [config] = [one for one in pod["configMapAsVolume"] if one["configMapName"] == "amlp-settings"]
        assert "MLFLOW_TRACKING_URI" in known and config["optional"]
        secrets = {one["secretName"]: one["mountPath"] for one in pod["secretAsVolume"]}
        assert secrets.keys() == {"amlp-s3", "amlp-mlflow-client"}
        assert all(f"`{secret}`" in manual for secret in secrets)
        # Kubernetes refuses a pod with a variable both by value, as Kubeflow's MLflow plugin sets it, and by key.
        assert not pod.keys() & {"configMapAsEnv", "secretAsEnv"}
        places = [config["mountPath"], *secrets.values()]
        assert {str(Path(place).parent) for place in places} == {str(SETTINGS_FOLDER)} and len(set(places)) == 3


def json_size(value: Any) -> int:
    """Of JSON as a string within JSON."""
    return len(json.dumps(json.dumps(value)))


def pod_patch(name: str, golden: dict[str, Any], values: dict[str, str]) -> dict[str, Any]:
    """What Kubeflow's driver patches a task's pod with: a container with its inputs as JSON, and its volumes."""
    component = golden["components"][f"comp-{name}"]
    container = golden["deploymentSpec"]["executors"][f"exec-{name}"]["container"]
    settings = golden["platforms"]["kubernetes"]["deploymentSpec"]["executors"][f"exec-{name}"]

    def artifacts(kind: str) -> dict[str, Any]:
        found = component.get(kind, {}).get("artifacts", {})
        place = f"minio://mlpipeline/private-artifacts/amlp/v2/artifacts/amlp-training/{'u' * 36}/{name}/{'u' * 36}"
        held = {"contents": f"{name}: 300 files, 1,000,000,000 bytes, {'0' * 32}"} if kind == "inputDefinitions" else {}
        return {
            key: {
                "artifacts": [
                    {"name": "n" * 36, "type": one["artifactType"], "uri": f"{place}/{key}", "metadata": held}
                ]
            }
            for key, one in found.items()
        }

    executor = {
        "inputs": {"parameterValues": values, "artifacts": artifacts("inputDefinitions")},
        "outputs": {"artifacts": artifacts("outputDefinitions"), "outputFile": "/gcs/output_metadata.json"},
    }
    arguments = ["--pipeline_name", "amlp-training", "--run_id", "u" * 36, "--execution_id", "1" * 6, "--pod_name"]
    arguments += ["--executor_input", json.dumps(executor), "--component_spec", json.dumps(component), "--mlmd_server"]
    arguments += ["address" * 6, "--", *container["command"], *container["args"]]
    mounts = [*settings["configMapAsVolume"], *settings["secretAsVolume"], *settings.get("emptyDirMounts", [])]
    named = [one.get("configMapName") or one.get("secretName") or one["volumeName"] for one in mounts]
    fields = [
        {"name": one["name"], "valueFrom": {"fieldRef": {"fieldPath": one["fieldPath"]}}}
        for one in settings["fieldPathAsEnv"]
    ]
    return {
        "containers": [{
            "name": "main", "image": container["image"], "command": arguments, "env": [*container["env"], *fields],
            "resources": {"limits": {"memory": "16Gi"}, "requests": {"cpu": "2", "memory": "16Gi"}},
            "securityContext": {"runAsUser": 10001, "runAsGroup": 10001, "runAsNonRoot": True},
            "volumeMounts": [{"name": n, "mountPath": one["mountPath"]} for n, one in zip(named, mounts, strict=True)],
        }],
        "volumes": [{"name": one, "configMap": {"name": one, "optional": True}} for one in named],
    }  # fmt: skip


def status_size(golden: dict[str, Any], arguments: dict[str, Any]) -> int:
    """Bytes of a Workflow's status at worst, as Argo keeps it for Kubeflow.

    Six copies of what each pod is patched with, for each of three tries of a training; twice the containers,
    components, Kubernetes' settings and tasks; and the specification itself.
    """
    kubernetes = golden["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    group = golden["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    total = len(json.dumps(golden))
    for name, task in {**group, "record-outcome": golden["root"]["dag"]["tasks"]["record-outcome"]}.items():
        sources = {
            key: one.get("componentInputParameter", "") for key, one in task["inputs"].get("parameters", {}).items()
        }
        values = {
            key: arguments.get(source.removeprefix("pipelinechannel--"), "x" * 60) for key, source in sources.items()
        }
        tries = 3 if name in ("pretrain", "finetune", "scratch") else 1
        total += 6 * tries * json_size(pod_patch(name, golden, values))
        parts = (golden["deploymentSpec"]["executors"][f"exec-{name}"], golden["components"][f"comp-{name}"])
        total += 2 * sum(map(json_size, (*parts, kubernetes[f"exec-{name}"], task)))
    return total


def test_the_status_of_a_run_is_small_enough_for_kubeflow_to_read(golden: dict[str, Any], project: Path) -> None:
    """Above 1 MiB Argo compresses it, and Kubeflow then shows the tasks as they were before."""
    params = load_params(project / "recipes/busi-gpu.yaml")
    image = DataSource("https://example.org/images.git", "f" * 40, "images")
    values = params.model_dump(by_alias=True)
    values["register"]["tracking_uri"] = "http://mlflow:5000"
    given = pipeline_arguments(parse_params(values, "test"), git_commit="f" * 40, data=image)
    assert status_size(golden, given) < 600_000


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
        "register.links": "HTML",
        "gate.decision": "Artifact",
    }
    with_metrics = {"validate", "preprocess", "pretrain", "finetune", "scratch", "evaluate"}
    assert {name for name, kind in types.items() if kind == "Metrics"} == {f"{name}.metrics" for name in with_metrics}
