"""`amlp-pipelines` against a server that plays Kubeflow's API."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from amlp.registry.outcome import record_error
from pipelines.__main__ import main
from pipelines.runs import TASKS
from tests.support.kubeflow_answers import drawn, mutated
from tests.support.kubeflow_api import KubeflowApi, kubeflow_api

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
    said = json.loads(capsys.readouterr().out)
    assert said["state"] == "FAILED" and said["tasks"][2]["tries"] == 2 and said["link"].endswith("/r1")
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
    said = capsys.readouterr().out
    assert "r7: CANCELED, written" in said and "r1: SUCCEEDED, written" in said and "2 runs ended, 2 written" in said
    assert "r8" not in said and "\n1 runs are not of this pipeline, or not of experiment amlp" in said
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


def test_a_run_is_shown_where_its_reason_can_not_be_read(
    api: KubeflowApi, folder: Path, capsys: pytest.CaptureFixture[str], tracking_uri: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    api.runs = [DONE | {"state": "FAILED"}]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    (folder / "params.yaml").unlink()
    assert main(["status", "r1", "--host", api.host]) == 1
    said = capsys.readouterr()
    assert "params.yaml" in said.err
    assert "FAILED\n" in said.out and "failed task's log" in said.out and f"{api.host}/#/runs/details/r1" in said.out
    assert main(["status", "r1", "--host", api.host, "--json"]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["error"] is None and "params.yaml" in said.err
    (folder / "params.yaml").write_text("{}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////proc/none/mlflow.db")
    assert main(["status", "r1", "--host", api.host]) == 1
    assert f"{api.host}/#/runs/details/r1" in capsys.readouterr().out


def test_an_interrupt_while_a_run_is_watched_ends_with_one_line(
    api: KubeflowApi, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(seconds: float) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("pipelines.__main__.time.sleep", interrupted)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    api.runs = [DONE | {"state": "RUNNING"}]
    for command in (["status", "r1", "--wait"], ["submit", "--wait"]):
        assert main([*command, "--host", api.host]) == 130
        assert capsys.readouterr().err.splitlines()[-1] == "amlp-pipelines: interrupted"
    assert list((tmp_path / "temporary").iterdir()) == []


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
    api.runs = [failed, failed, DONE]
    assert main(["submit", "--host", api.host, "--resubmit", "3"]) == 0
    assert sum(path == "/runs" for path, _ in api.posted) == 3
    assert capsys.readouterr().err.count("Submitting again") == 2
    api.posted.clear()
    api.runs = [failed]
    assert main(["submit", "--host", api.host, "--resubmit", "1"]) == 1
    assert sum(path == "/runs" for path, _ in api.posted) == 2
    # What the cache is not asked for runs again.
    for option, said in ((["--no-cache"], "without the cache."), ([], "come from the cache."),
                         (["--fresh", "gate"], "come from the cache, but for gate and what follows.")):  # fmt: skip
        capsys.readouterr()
        assert main(["submit", "--host", api.host, "--resubmit", "1", *option]) == 1
        assert f"1 times at most; {'finished tasks ' * ('come' in said)}{said}" in capsys.readouterr().err
    # Somebody did not want it to go on.
    api.posted.clear()
    api.runs = [failed | {"state_history": [{"state": one} for one in ("RUNNING", "CANCELING", "FAILED")]}]
    assert main(["submit", "--host", api.host, "--resubmit", "5"]) == 1
    assert sum(path == "/runs" for path, _ in api.posted) == 1


@pytest.mark.parametrize(
    ("kinds", "submitted", "said"),
    [
        (["mistake"], 1, "Not submitted again: the parameters or the data have to change first."),
        (["killed", "mistake"], 1, "Not submitted again: the parameters or the data"),
        (["error"], 2, "Not submitted again: it failed for the same reason as before."),
        (["memory"], 2, "Not submitted again: it failed for the same reason as before."),
        # From outside, or of a version that did not write it down, or of a pod that could not.
        (["killed"], 4, "Submitting again"),
        (["error", "pass"], 4, "Submitting again"),
        ([""], 4, "Submitting again"),
        ([], 4, "Submitting again"),
    ],
)
def test_what_would_fail_again_is_not_submitted_again(
    api: KubeflowApi, folder: Path, capsys: pytest.CaptureFixture[str], tracking_uri: str,
    monkeypatch: pytest.MonkeyPatch, kinds: list[str], submitted: int, said: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("AMLP_RECORD", json.dumps({"tracking_uri": tracking_uri, "experiment": "amlp"}))
    monkeypatch.setenv("AMLP_PIPELINE_RUN", "r1")
    for task, kind in zip(("validate", "scratch"), kinds, strict=False):
        record_error(task=task, message="9 bad cases", kind=kind)
    monkeypatch.delenv("AMLP_PIPELINE_RUN")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    api.runs = [DONE | {"state": "FAILED"}]
    assert main(["submit", "--host", api.host, "--resubmit", "3"]) == 1
    shown = capsys.readouterr()
    assert sum(path == "/runs" for path, _ in api.posted) == submitted
    assert said in shown.err and ("validate: 9 bad cases" in shown.out) == bool(kinds)


def test_an_error_that_changes_is_submitted_again(
    api: KubeflowApi, folder: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    found = iter([("validate: 1", {"error"}), ("gate: 2", {"error"}), ("gate: 2", {"error"})])
    monkeypatch.setattr("amlp.registry.outcome.read_error", lambda **_: next(found))
    api.runs = [DONE | {"state": "FAILED"}]
    assert main(["submit", "--host", api.host, "--resubmit", "5"]) == 1
    assert sum(path == "/runs" for path, _ in api.posted) == 3


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
        (["--node-selector", "=gpu"], "--node-selector =gpu: expected KEY=VALUE"),
        (["--node-selector", "a pool=gpu"], "node_selector.a pool"),
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
def test_a_mistake_is_reported_before_anything_is_submitted(
    api: KubeflowApi, folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["submit", "--host", api.host, *options]) == 2
    said = capsys.readouterr().err
    assert message in said and "t0ken" not in said
    assert not api.posted


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("--resubmit", ("-1", "1.5", "nan", "", "x")),
        ("--workers", ("-1", "nan")),
        ("--gpus", ("-1", "nan")),
        ("--deadline-hours", ("-1", "0", "nan", "inf", "1e300")),
        ("--cpu", ("-1", "0", "nan")),
        ("--memory", ("-1Gi", "0", "nan")),
    ],
)
def test_numbers_that_mean_nothing_are_refused(
    api: KubeflowApi, folder: Path, capsys: pytest.CaptureFixture[str], option: str, values: Sequence[str]
) -> None:
    for value in values:
        try:
            code = main(["submit", "--host", api.host, f"{option}={value}"])
        except SystemExit as ended:
            code = int(ended.code or 0)
        said = capsys.readouterr().err
        assert code == 2 and not api.posted, value
        assert option.strip("-").replace("-", "_") in said.replace("-", "_") and "Traceback" not in said, value


def test_a_pipeline_that_can_not_be_written_is_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    # A proxy's own pages, whatever their status.
    page = "<html>Störung</html>"
    api.runs = [DONE | {"state": "RUNNING"}, DONE]
    api.storm = [page.encode(), b"null", 502, page.encode("latin-1"), b"{"]
    assert main(["status", "r1", "--host", api.host, "--wait"]) == 0
    assert capsys.readouterr().err.count("does not answer, trying again") == 1
    api.runs, api.odd = [DONE], {"GET /runs/r1": (502, page.encode("latin-1"))}
    monkeypatch.setattr("pipelines.__main__.OUTAGE", 0.05)
    assert main(["status", "r1", "--host", api.host, "--wait"]) == 2
    said = capsys.readouterr().err
    assert "trying again: 502" in said and "Kubeflow answers 502" in said
    api.odd = {"GET /runs/r1": (200, page.encode())}
    assert main(["status", "r1", "--host", api.host, "--wait"]) == 2
    assert "answers what it never does: '<html>Störung" in capsys.readouterr().err
    api.odd = {}
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


NO_ANSWERS = [
    b"",
    b"null",
    b"5",
    b"[]",
    b'"text"',
    b"<html>",
    b"\xff\xfe\x00\xd8",
    b'{"a": "\xe9"}',
    b"[" * 100_000,
    b'"\\ud800"',
]


@pytest.mark.parametrize(
    ("command", "asked", "odd"),
    [
        ("status r1", "GET /healthz", [*NO_ANSWERS, b'{"multi_user": "no"}', b'{"multi_user": null}']),
        ("status r1", "GET /runs/r1", [*NO_ANSWERS, b'{"display_name": "\\ud800"}']),
        ("submit", "GET /experiments", [b"\xff", b"[" * 100_000, b'{"experiments": 5}', b'{"experiments": [5]}',
                                        b'{"experiments": "ab"}']),
        ("submit", "POST /experiments", [*NO_ANSWERS, b"{}", b'{"experiment_id": null}', b'{"created_at": "never"}']),
        ("submit", "POST /runs", [*NO_ANSWERS, b"{}", b'{"run_id": ""}', b'{"run_id": "r1", "created_at": 5}']),
        ("schedule 0,0,3,*,*,1", "POST /recurringruns", [*NO_ANSWERS, b"{}", b'{"recurring_run_id": null}']),
        ("sync", "GET /experiments", [*NO_ANSWERS, b'{"experiments": 5}', b'{"experiments": [null]}']),
        ("sync", "GET /runs", [*NO_ANSWERS, b'{"runs": 5}', b'{"runs": "text"}', b'{"runs": {"a": 1}}',
                               b'{"runs": [null]}', b'{"next_page_token": 5}', b'{"next_page_token": ["1"]}',
                               b'{"next_page_token": "again"}']),
    ],
)  # fmt: skip
def test_an_answer_that_the_api_never_gives_is_reported(
    api: KubeflowApi, folder: Path, capsys: pytest.CaptureFixture[str], command: str, asked: str, odd: list[bytes]
) -> None:
    api.experiments = asked == "GET /runs"
    words = [word.replace(",", " ") for word in command.split()]
    for text in odd:
        api.odd = {asked: (200, text)}
        assert main([*words, "--host", api.host]) == 2, text
        said = capsys.readouterr().err
        assert f"--host {api.host}" in said or "--experiment amlp: Kubeflow at " in said, (text, said)
    if asked != "GET /healthz":
        # Where it refuses, kfp asks for its health for half a minute.
        for text in (b"\xff", b"[" * 100_000):
            api.odd = {asked: (403, text)}
            assert main([*words, "--host", api.host]) == 2, text
            assert "Kubeflow answers 403 " in capsys.readouterr().err


def test_no_answer_about_runs_ends_in_a_traceback(
    api: KubeflowApi, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.sync.sync", lambda runs, register: [])
    api.experiments = True
    listed = {"runs": [drawn()], "next_page_token": "", "total_size": 1}
    for seed in range(100):
        chance = random.Random(seed)
        api.odd = {"GET /runs/r1": (200, json.dumps(mutated(drawn(), chance)).encode()),
                   "GET /runs": (200, json.dumps(mutated(listed, chance)).encode())}  # fmt: skip
        assert main(["status", "r1", "--host", api.host]) in (0, 1, 3), seed
        assert main(["sync", "--host", api.host]) in (0, 2), seed


def test_an_api_that_refuses_is_reported(api: KubeflowApi, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    api.runs, api.refuse = [DONE], 0
    assert main(["status", "other", "--host", api.host]) == 2
    said = capsys.readouterr().err
    assert "404" in said and "ResourceNotFoundError: Run other not found" in said
