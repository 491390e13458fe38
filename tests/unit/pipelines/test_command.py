"""`amlp-pipelines` against a server that plays Kubeflow's API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.__main__ import main
from tests.kubeflow_api import KubeflowApi, kubeflow_api

DONE = {"run_id": "r1", "display_name": "amlp", "state": "SUCCEEDED"}


@pytest.fixture
def api() -> Iterator[KubeflowApi]:
    with kubeflow_api() as served:
        yield served


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with parameters; kfp's client keeps a file in HOME."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AMLP_GIT_COMMIT", "f" * 40)
    for image in ("STAGES", "PIPELINE", "TRAIN"):
        monkeypatch.setenv(f"AMLP_{image}_IMAGE", f"registry.example.com/amlp/{image.lower()}:1")
    monkeypatch.chdir(tmp_path)
    params = {"register": {"tracking_uri": "http://mlflow:5000"}, "pretrain": {"epochs": 7}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    return tmp_path


def posted(api: KubeflowApi, path: str) -> dict[str, Any]:
    [body] = [body for where, body in api.posted if where == path]
    return body


def given(body: dict[str, Any]) -> dict[str, Any]:
    parameters: dict[str, Any] = body["runtime_config"]["parameters"]
    return parameters


def pipeline(body: dict[str, Any]) -> dict[str, Any]:
    spec = body["pipeline_spec"]
    # With what is Kubernetes' beside it.
    assert spec["platform_spec"]["platforms"]["kubernetes"]
    found: dict[str, Any] = spec["pipeline_spec"]
    return found


def test_a_run_is_submitted_with_its_arguments(
    api: KubeflowApi, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMLP_KUBEFLOW_TOKEN", "t0ken")
    assert main(["submit", "--host", api.host, "--name", "first", "--share", "s3://bucket/reports"]) == 0
    output = capsys.readouterr().out
    assert f"{api.host}/#/runs/details/r1" in output and "t0ken" not in output
    assert "Bearer t0ken" in api.tokens
    run = posted(api, "/runs")
    assert run["display_name"] == "first" and run["experiment_id"] == "e1"
    assert json.loads(given(run)["pretrain_params"])["pretrain"]["epochs"] == 7
    assert given(run)["git_commit"] == "f" * 40 and given(run)["share"] == "s3://bucket/reports"
    assert pipeline(run)["pipelineInfo"]["name"] == "amlp-training"


def test_trainings_go_to_a_ray_cluster(api: KubeflowApi, folder: Path) -> None:
    where = ["--launcher", "rayjob", "--workers", "2", "--gpus", "1", "--work", "s3://bucket/work", "--queue", "amlp",
             "--node-selector", "pool=gpu", "--toleration", '{"key": "spot", "operator": "Exists"}']  # fmt: skip
    assert main(["submit", "--host", api.host, *where]) == 0
    run = posted(api, "/runs")
    arguments = given(run)
    assert json.loads(arguments["finetune_params"])["finetune"]["num_workers"] == 2
    assert arguments["gpus"] == "1"
    container = pipeline(run)["deploymentSpec"]["executors"]["exec-pretrain"]["container"]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert environment["AMLP_IMAGE"] == container["image"]
    cluster = json.loads(environment["AMLP_CLUSTER"])
    assert (
        cluster["launcher"] == "rayjob" and cluster["queue"] == "amlp" and cluster["node_selector"] == {"pool": "gpu"}
    )
    # It launches, and trains nothing itself.
    assert "accelerator" not in container["resources"] and container["resources"]["resourceMemoryLimit"] == "4Gi"


def cached(run: dict[str, Any]) -> set[str]:
    """Names of the tasks that the cache may answer."""
    groups = [pipeline(run)["root"], *pipeline(run)["components"].values()]
    tasks = [task for group in groups for task in group.get("dag", {}).get("tasks", {}).items()]
    return {name for name, task in tasks if task.get("cachingOptions", {}).get("enableCache") and "-2" not in name}


@pytest.mark.parametrize(("commit", "options"), [("f" * 40 + "-dirty", []), ("f" * 40, ["--no-cache"])])
def test_the_cache_is_not_asked(
    api: KubeflowApi, folder: Path, monkeypatch: pytest.MonkeyPatch, commit: str, options: list[str]
) -> None:
    """Nor about code that the next change would have the same name."""
    monkeypatch.setenv("AMLP_GIT_COMMIT", commit)
    assert main(["submit", "--host", api.host, *options]) == 0
    run = posted(api, "/runs")
    assert given(run)["git_commit"] == commit and cached(run) <= {"exit-handler-1"}


def test_code_that_nobody_could_name_is_not_submitted(
    api: KubeflowApi, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AMLP_GIT_COMMIT")
    monkeypatch.setenv("PATH", str(folder))  # no git
    assert main(["submit", "--host", api.host]) == 2
    assert "set AMLP_GIT_COMMIT" in capsys.readouterr().err and not api.posted


def test_a_training_asks_for_what_it_is_given(api: KubeflowApi, folder: Path) -> None:
    assert main(["submit", "--host", api.host, "--cpu", "2", "--memory", "8Gi", "--deadline-hours", "3"]) == 0
    run = posted(api, "/runs")
    resources = pipeline(run)["deploymentSpec"]["executors"]["exec-finetune"]["container"]["resources"]
    assert (resources["resourceCpuRequest"], resources["resourceMemoryLimit"]) == ("2", "8Gi")
    pods = run["pipeline_spec"]["platform_spec"]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert int(pods["exec-finetune"]["activeDeadlineSeconds"]) == 3 * 3600


def test_a_schedule_runs_once_at_a_time_and_does_not_make_up_for_the_past(api: KubeflowApi, folder: Path) -> None:
    assert main(["schedule", "0 0 3 * * 1", "--host", api.host, "--name", "weekly"]) == 0
    made = posted(api, "/recurringruns")
    assert made["trigger"]["cron_schedule"]["cron"] == "0 0 3 * * 1"
    assert made["max_concurrency"] == 1 and made["no_catchup"] is True
    tasks = pipeline(made)["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    assert not tasks["pull-data"]["cachingOptions"].get("enableCache")


def test_the_state_of_a_run_is_shown_task_by_task(
    api: KubeflowApi, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = [
        {"display_name": "validate", "state": "FAILED", "start_time": "2026-01-01T00:00:02Z",
         "error": {"code": 2, "message": "too many bad cases"}},
        {"display_name": "ingest", "state": "SUCCEEDED", "start_time": "2026-01-01T00:00:01Z"},
        {"display_name": "ingest-driver", "state": "SUCCEEDED"},
    ]  # fmt: skip
    running = DONE | {"state": "RUNNING", "run_details": {"task_details": tasks[1:]}}
    api.runs = [running]
    assert main(["status", "r1", "--host", api.host]) == 3
    assert "ingest" in capsys.readouterr().out
    api.runs = [DONE | {"state": "FAILED", "run_details": {"task_details": tasks}}]
    assert main(["status", "r1", "--host", api.host, "--wait"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3:] == [
        "amlp (r1): FAILED",
        f"  {'ingest':24} SUCCEEDED",
        f"  {'validate':24} FAILED: too many bad cases",
    ]
    api.runs = [DONE]
    assert main(["status", "r1", "--host", api.host]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--node-selector", "gpu"], "--node-selector gpu: expected KEY=VALUE"),
        (["--toleration", "gpu"], "--toleration gpu: not JSON"),
        (["--launcher", "rayjob"], "`work`"),
        (["--launcher", "rayjob", "--work", "s3://bucket"], "pretrain.num_workers: 0"),
        (["--work", "/nfs"], "work: "),
        (["--data-repo", "no-such-folder", "--data-path", "images"], "no-such-folder at main"),
        (["--memory", "8 GB"], "memory: "),
        (["--params", "none.yaml"], "none.yaml"),
        (["--data-repo", "https://me:t0ken@example.org/images.git", "--data-path", "images"], "no user or password"),
    ],
)
def test_a_mistake_is_told_before_anything_is_submitted(
    api: KubeflowApi, folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["submit", "--host", api.host, *options]) == 2
    told = capsys.readouterr().err
    assert message in told and "t0ken" not in told
    assert not api.posted


def test_images_that_nobody_named_are_not_submitted(
    api: KubeflowApi, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AMLP_TRAIN_IMAGE")
    assert main(["submit", "--host", api.host]) == 0  # it launches no RayJob
    on_ray = ["--launcher", "rayjob", "--work", "s3://bucket/work", "--workers", "1"]
    assert main(["submit", "--host", api.host, *on_ray]) == 2
    assert "AMLP_TRAIN_IMAGE: not set" in capsys.readouterr().err
    monkeypatch.delenv("AMLP_STAGES_IMAGE")
    assert main(["submit", "--host", api.host]) == 2
    assert "AMLP_STAGES_IMAGE: not set" in capsys.readouterr().err
    assert main(["compile", "--out", str(folder / "training.yaml")]) == 0
    assert "AMLP_STAGES_IMAGE is not set" in capsys.readouterr().err


def test_runs_belong_to_a_profile_where_there_are_any(
    api: KubeflowApi, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", "--host", api.host, "--namespace", "ada"]) == 0
    assert posted(api, "/experiments")["namespace"] == "ada"
    api.posted.clear()
    assert main(["submit", "--host", api.host]) == 0
    assert posted(api, "/experiments")["namespace"] == "amlp"

    api.posted.clear()
    api.multi_user = False
    assert main(["submit", "--host", api.host]) == 0
    assert not posted(api, "/experiments").get("namespace")
    assert main(["submit", "--host", api.host, "--namespace", "ada"]) == 2
    assert "--namespace ada: this Kubeflow has no users" in capsys.readouterr().err


def test_an_api_that_is_away_for_a_while_does_not_end_the_watch(
    api: KubeflowApi, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.__main__.PAUSE", 0.01)
    api.runs, api.storm = [DONE | {"state": "RUNNING"}, DONE], [503, 502]
    assert main(["status", "r1", "--host", api.host, "--wait"]) == 0
    assert capsys.readouterr().err.count("does not answer, trying again") == 1
    monkeypatch.setattr("pipelines.__main__.OUTAGE", 0.0)
    api.storm = [503]
    assert main(["status", "r1", "--host", api.host, "--wait"]) == 2
    assert "Kubeflow answers 503" in capsys.readouterr().err


def test_an_api_that_refuses_is_told(api: KubeflowApi, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    api.runs, api.refuse = [DONE], 0
    assert main(["status", "other", "--host", api.host]) == 2
    assert "404" in capsys.readouterr().err
