"""`amlp-pipelines` against a server that plays Kubeflow's API."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.__main__ import main
from pipelines.runs import TASKS
from tests.kubeflow_api import KubeflowApi, kubeflow_api

# kfp's first import takes long on a machine that is busy.
pytestmark = pytest.mark.timeout(240)

ARGUMENTS = {"runtime_config": {"parameters": {"params": "{}", "git_commit": "f" * 40}}}
DONE = {"run_id": "r1", "display_name": "amlp", "state": "SUCCEEDED", **ARGUMENTS}


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
    # Or as a file says it.
    (folder / "resources.yaml").write_text("training: {hours: 48}\n")
    api.posted.clear()
    assert main(["submit", "--host", api.host, "--resources", "resources.yaml"]) == 0
    pods = posted(api, "/runs")["pipeline_spec"]["platform_spec"]["platforms"]["kubernetes"]
    assert int(pods["deploymentSpec"]["executors"]["exec-finetune"]["activeDeadlineSeconds"]) == 48 * 3600


def test_a_schedule_runs_once_at_a_time_and_does_not_make_up_for_the_past(api: KubeflowApi, folder: Path) -> None:
    assert main(["schedule", "0 0 3 * * 1", "--host", api.host, "--name", "weekly"]) == 0
    made = posted(api, "/recurringruns")
    assert made["trigger"]["cron_schedule"]["cron"] == "0 0 3 * * 1"
    assert made["max_concurrency"] == 1 and made["no_catchup"] is True
    tasks = pipeline(made)["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    assert not tasks["pull-data"]["cachingOptions"].get("enableCache")


def node(name: str | None, state: str | None, *seconds: int, history: int = 2) -> dict[str, Any]:
    """One of Argo's nodes, as the API lists them; what is None is left out."""
    start, end = seconds or (0, 0)
    made = {"display_name": name, "state": state, "start_time": f"2026-01-01T00:00:{start:02}Z",
            "end_time": f"2026-01-01T00:00:{end:02}Z", "state_history": [{"state": state}] * history}  # fmt: skip
    return {key: value for key, value in made.items() if value is not None}


def nodes(*more: dict[str, Any]) -> dict[str, Any]:
    common = [node("root", "RUNNING"), node("root(0)", "RUNNING"), node("executor", "SKIPPED"), node(None, None),
              node("ingest-driver", "SUCCEEDED"), node("ingest-driver(0)", "SUCCEEDED"),
              node("exit-handler-1.onExit", "SUCCEEDED"), node("amlp-training-x5z", "RUNNING")]  # fmt: skip
    return {"task_details": [*common, *more]}


def test_the_state_of_a_run_is_shown_task_by_task(
    api: KubeflowApi, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = [node("validate", "FAILED", 2, 13), node("validate(0)", "FAILED"), node("validate(1)", "FAILED"),
              node("preprocess", None), node("gate", "RUNNING")]  # fmt: skip
    ingested = [node("pull-data", "SUCCEEDED", 1, 1, history=1), node("ingest", "SUCCEEDED", 1, 2)]
    api.runs = [DONE | {"state": "RUNNING", "run_details": nodes(*ingested)}]
    assert main(["status", "r1", "--host", api.host]) == 3
    assert "pull-data        SUCCEEDED, from the cache\n" in capsys.readouterr().out
    ended = DONE | {"state": "FAILED", "run_details": nodes(*failed, *ingested)}
    api.runs = [ended]
    assert main(["status", "r1", "--host", api.host, "--wait"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[lines.index("amlp (r1): FAILED") :] == [
        "amlp (r1): FAILED",
        "  pull-data        SUCCEEDED, from the cache",
        "  ingest           SUCCEEDED, 1 s",
        "  validate         FAILED, 2 tries, 11 s",
        "  preprocess       not run",
        *(f"  {task:16} not reported by Kubeflow" for task in TASKS[4:]),
        "Why stands in MLflow, at the run's tag pipeline_error: set MLFLOW_TRACKING_URI to see it here. "
        "The failed task's log has it too.",
        f"{api.host}/#/runs/details/r1",
    ]
    api.runs = [ended]
    assert main(["status", "r1", "--host", api.host, "--wait", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["state"] == "FAILED" and told["tasks"][2]["tries"] == 2 and told["link"].endswith("/r1")
    api.runs = [DONE]
    assert main(["status", "r1", "--host", api.host]) == 0


def test_runs_that_nobody_closed_are_closed_in_mlflow(
    api: KubeflowApi, folder: Path, capsys: pytest.CaptureFixture[str], tracking_uri: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    history = [{"state": one} for one in ("RUNNING", "CANCELING", "FAILED")]
    api.experiments, api.multi_user = True, False
    began = {"display_name": "pretrain", "state": "RUNNING", "start_time": "2026-11-26T01:00:00Z"}
    terminated = ARGUMENTS | {"run_id": "r7", "state": "FAILED", "state_history": history, "run_details": nodes(began)}
    api.runs = [terminated, DONE, DONE | {"state": "RUNNING"}, {"run_id": "r8", "state": "FAILED"}]
    assert main(["sync", "--host", api.host]) == 0
    told = capsys.readouterr().out
    assert "r7: CANCELED, written" in told and "r1: SUCCEEDED, written" in told and "2 runs ended, 2 written" in told
    assert "r8" not in told and "\n1 runs are not of this pipeline, or not of experiment amlp" in told
    assert main(["sync", "--host", api.host]) == 0
    assert "2 runs ended, 0 written" in capsys.readouterr().out
    # As people see it then.
    api.runs = [terminated | {"state_history": []}]
    assert main(["status", "r7", "--host", api.host]) == 1
    assert "The run was terminated at pretrain." in capsys.readouterr().out
    assert main(["status", "r7", "--host", api.host, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["error"] == "The run was terminated at pretrain."
    # Somebody else's run, or parameters of another experiment.
    api.runs = [DONE | {"state": "FAILED"}]
    (folder / "params.yaml").write_text(yaml.safe_dump({"register": {"experiment": "others"}}))
    assert main(["status", "r7", "--host", api.host]) == 1
    assert "Experiment others of MLflow does not say why." in capsys.readouterr().out


def test_an_experiment_that_nobody_made_has_no_runs_to_close(
    api: KubeflowApi, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api.multi_user = False
    assert main(["sync", "--host", api.host, "--experiment", "nosuch"]) == 2
    assert "--experiment nosuch: Kubeflow at " in capsys.readouterr().err


def test_a_run_that_fails_is_submitted_again(
    api: KubeflowApi, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = {**DONE, "state": "FAILED"}
    # Each is looked at twice: how it goes, and how it ended.
    api.runs = [failed, failed, failed, failed, DONE]
    assert main(["submit", "--host", api.host, "--resubmit", "3"]) == 0
    assert sum(path == "/runs" for path, _ in api.posted) == 3
    assert capsys.readouterr().err.count("Submitting again") == 2
    api.posted.clear()
    api.runs = [failed]
    assert main(["submit", "--host", api.host, "--resubmit", "1"]) == 1
    assert sum(path == "/runs" for path, _ in api.posted) == 2
    # Somebody did not want it to go on.
    api.posted.clear()
    api.runs = [failed | {"state_history": [{"state": one} for one in ("RUNNING", "CANCELING", "FAILED")]}]
    assert main(["submit", "--host", api.host, "--resubmit", "5"]) == 1
    assert sum(path == "/runs" for path, _ in api.posted) == 1


def test_tasks_run_anew_and_ask_for_less(api: KubeflowApi, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "--host", api.host, "--fresh", "preprocess", "--resources", "small"]) == 0
    run = posted(api, "/runs")
    assert "preprocess" not in cached(run) and "ingest" in cached(run)
    containers = pipeline(run)["deploymentSpec"]["executors"]
    assert containers["exec-gate"]["container"]["resources"]["resourceCpuRequest"] == "300m"
    assert containers["exec-pretrain"]["container"]["resources"]["resourceMemoryLimit"] == "4Gi"
    environment = {one["name"]: one["value"] for one in containers["exec-ingest"]["container"]["env"]}
    assert json.loads(environment["AMLP_RECORD"]) == {"experiment": "amlp", "tracking_uri": "http://mlflow:5000"}
    # No revision of images that are drawn.
    assert given(run)["data_rev"] == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--node-selector", "gpu"], "--node-selector gpu: expected KEY=VALUE"),
        (["--toleration", "gpu"], "--toleration gpu: not JSON"),
        (["--launcher", "rayjob"], "`work`"),
        (["--launcher", "rayjob", "--work", "s3://bucket"], "pretrain.num_workers: 0"),
        (["--work", "/nfs"], "work: "),
        (["--work", "s3://bucket/{{workflow.name}}"], "Kubeflow replaces what follows two braces"),
        (["--owner", "{{x}}"], "Kubeflow replaces what follows two braces"),
        (["--data-repo", "no-such-folder", "--data-path", "images"], "no-such-folder at main"),
        (["--memory", "8 GB"], "memory: "),
        (["--params", "none.yaml"], "none.yaml"),
        (["--fresh", "preproces"], "--fresh preproces: expected a task of pull-data, "),
        (["--resources", "tiny"], "--resources tiny: expected standard or small"),
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


def test_a_pipeline_that_can_not_be_written_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", "--out", "/proc/training.yaml"]) == 2
    assert "--out: /proc/training.yaml: can't be written" in capsys.readouterr().err


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


def test_a_reader_that_has_enough_is_no_server_that_is_away(api: KubeflowApi, folder: Path) -> None:
    # More than a pipe holds.
    api.runs = [DONE | {"display_name": "x" * 200_000}]
    command = f"{sys.executable} -m pipelines status r1 --host {api.host} | head -c 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=200
    )
    assert (done.returncode, done.stdout, done.stderr) == (141, "x", "")


def test_an_api_that_refuses_is_told(api: KubeflowApi, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    api.runs, api.refuse = [DONE], 0
    assert main(["status", "other", "--host", api.host]) == 2
    told = capsys.readouterr().err
    assert "404" in told and "ResourceNotFoundError: Run other not found" in told
