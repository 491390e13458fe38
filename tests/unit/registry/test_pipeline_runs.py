"""One parent run in MLflow for each pipeline run, whatever its tasks did, and the ways between the two."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from amlp.files import write_json
from amlp.params import RegisterParams
from amlp.registry.outcome import forget_error, read_error, record_error, record_outcome, record_success
from amlp.registry.tracking import connect, parent_run, pipeline_run
from amlp.reporting.links import write_links
from tests.support.records import registration_of


@pytest.fixture
def client(tracking_uri: str) -> MlflowClient:
    return MlflowClient(tracking_uri=tracking_uri)


def record(tracking_uri: str, state: str = "COMPLETE", message: str = "") -> str:
    params = RegisterParams(tracking_uri=tracking_uri)
    return record_outcome(params=params, state=state, message=message, tags={"git_commit": "c"})[0]


def succeed(tracking_uri: str) -> str:
    return record_success(params=RegisterParams(tracking_uri=tracking_uri), tags={"source_md5": "m"})


@pytest.fixture
def in_pipeline(tracking_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMLP_PIPELINE_RUN", "p1")
    monkeypatch.setenv("AMLP_RECORD", json.dumps({"tracking_uri": tracking_uri, "experiment": "amlp"}))


def ended(client: MlflowClient, run_id: str) -> tuple[str, str, str, str]:
    """MLflow's status, and the tags of outcome, task and error."""
    run = client.get_run(run_id)
    return (run.info.status, *(run.data.tags.get(f"pipeline_{name}", "") for name in ("outcome", "task", "error")))


def opened(tracking_uri: str, *, fail: bool = False) -> str:
    found = ""
    with connect(tracking_uri) as client:
        try:
            with parent_run(client, experiment="amlp", name="amlp", tags={"git_commit": "c"}) as found:
                if fail:
                    raise RuntimeError
        except RuntimeError:
            pass
    return found


def all_runs(client: MlflowClient) -> list[str]:
    return [run.info.run_id for run in client.search_runs([e.experiment_id for e in client.search_experiments()])]


def test_tries_and_outcome_of_a_pipeline_run_share_one_run(
    tracking_uri: str, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMLP_PIPELINE_RUN", "p1")
    monkeypatch.setenv("AMLP_PIPELINE_PAGES", "https://kubeflow.example.org/pipeline/")
    first = opened(tracking_uri, fail=True)
    # The pipeline run goes on: what ends it comes later.
    assert client.get_run(first).info.status == "RUNNING"
    assert opened(tracking_uri) == first == succeed(tracking_uri)
    run = client.get_run(first)
    assert run.info.status == "FINISHED" and run.data.tags["pipeline_outcome"] == "SUCCEEDED"
    assert run.data.tags["pipeline_run_url"] == "https://kubeflow.example.org/pipeline/#/runs/details/p1"
    assert run.data.tags["source_md5"] == "m"

    monkeypatch.setenv("AMLP_PIPELINE_RUN", "p2")
    assert opened(tracking_uri) != first
    assert len(all_runs(client)) == 2


@pytest.mark.parametrize("state", ["COMPLETE", "RUNNING", "CACHED", "SUCCEEDED", "FAILED", "", "NEW_WORD"])
@pytest.mark.usefixtures("in_pipeline")
def test_a_success_is_one_whatever_kubeflow_calls_its_end(tracking_uri: str, client: MlflowClient, state: str) -> None:
    """It says RUNNING where a driver decided the last node."""
    run_id = succeed(tracking_uri)
    assert record(tracking_uri, state) == run_id
    assert ended(client, run_id) == ("FINISHED", "SUCCEEDED", "", "")


@pytest.mark.parametrize(
    ("state", "status", "outcome"),
    [("FAILED", "FAILED", "FAILED"), ("CANCELED", "KILLED", "CANCELED"), ("CANCELLED", "KILLED", "CANCELED"),
     # Without the last task's word it did not succeed.
     ("COMPLETE", "FAILED", "FAILED"), ("RUNNING", "FAILED", "FAILED"), ("CACHED", "FAILED", "FAILED")],
)  # fmt: skip
@pytest.mark.usefixtures("in_pipeline")
def test_a_run_of_which_no_task_said_anything_did_not_succeed(
    tracking_uri: str, client: MlflowClient, state: str, status: str, outcome: str
) -> None:
    run_id = record(tracking_uri, state)
    assert ended(client, run_id)[:3] == (status, outcome, "")
    error = ended(client, run_id)[3]
    said = "The run was terminated." if outcome == "CANCELED" else f"Kubeflow says {state}, and no task recorded"
    assert said in error
    assert record(tracking_uri, state) == run_id and len(all_runs(client)) == 1


@pytest.mark.usefixtures("in_pipeline")
def test_a_task_that_fails_says_why(tracking_uri: str, client: MlflowClient) -> None:
    run_id = record_error(task="validate", message="9 of 10 cases are bad, s3://me:word@host/x " + "x" * 10_000)
    # Also where the exit handler never runs.
    assert ended(client, run_id)[:3] == ("FAILED", "", "validate")
    assert record(tracking_uri, "FAILED") == run_id
    status, outcome, task, error = ended(client, run_id)
    assert (status, outcome, task) == ("FAILED", "FAILED", "validate")
    assert error.startswith("validate: 9 of 10 cases are bad, s3://***@host/x") and len(error) < 5000


@pytest.mark.usefixtures("in_pipeline")
def test_a_task_takes_its_error_back_when_it_succeeds_after_all(tracking_uri: str, client: MlflowClient) -> None:
    run_id = record_error(task="pretrain", message="was asked to end (SIGTERM)")
    forget_error(task="scratch")
    assert ended(client, run_id)[:3] == ("FAILED", "", "pretrain")
    # Its pod was deleted, and Kubeflow made another one.
    forget_error(task="pretrain")
    assert ended(client, run_id) == ("RUNNING", "", "", "")
    record_error(task="evaluate", message="no space")
    record(tracking_uri, "FAILED")
    assert ended(client, run_id) == ("FAILED", "FAILED", "evaluate", "evaluate: no space")


@pytest.mark.usefixtures("in_pipeline")
def test_every_task_that_failed_is_named_with_its_last_error(tracking_uri: str, client: MlflowClient) -> None:
    params = RegisterParams(tracking_uri=tracking_uri)
    for task, message, kind in (
        ("scratch", "no route", "passing"), ("pretrain", "no space", "error"), ("scratch", "no space", "killed"),
    ):  # fmt: skip
        run_id = record_error(task=task, message=message, kind=kind)
    both = ("FAILED", "FAILED", "pretrain,scratch", "pretrain: no space\nscratch: no space")
    assert ended(client, run_id)[2:] == both[2:]
    # As where both failed at once, and one wrote last what it had read first.
    client.set_tag(run_id, "pipeline_task", "scratch")
    client.set_tag(run_id, "pipeline_error", "scratch: no space")
    record(tracking_uri, "FAILED")
    assert ended(client, run_id) == both
    assert read_error(params=params, pipeline="p1")[1] == {"error", "killed"}
    # Kubeflow's `:retry`: its exit handler does not run again.
    forget_error(task="scratch")
    forget_error(task="pretrain")
    record_error(task="gate", message="no champion", kind="mistake")
    assert ended(client, run_id) == ("FAILED", "", "gate", "gate: no champion")
    assert read_error(params=params, pipeline="p1") == ("gate: no champion", {"mistake"})
    assert succeed(tracking_uri) == run_id
    assert read_error(params=params, pipeline="p1") == ("", set())
    assert ended(client, run_id) == ("FINISHED", "SUCCEEDED", "", "")
    assert not [name for name in client.get_run(run_id).data.tags if name.startswith("pipeline_error")]


@pytest.mark.usefixtures("in_pipeline")
def test_long_errors_leave_room_for_each_other(client: MlflowClient) -> None:
    tasks = ("evaluate", "pretrain", "scratch")
    for task in tasks:
        run_id = record_error(task=task, message=f"{task} ran out of {'x' * 10_000}")
    error = ended(client, run_id)[3]
    assert [line.partition(" ran")[0] for line in error.splitlines()] == [f"{task}: {task}" for task in tasks]
    assert len(error) < 5000


@pytest.mark.usefixtures("in_pipeline")
def test_an_error_of_the_exit_handler_is_none_of_the_run(tracking_uri: str, client: MlflowClient) -> None:
    run_id = succeed(tracking_uri)
    assert not record_error(task="record-outcome", message="was asked to end (SIGTERM)")
    assert ended(client, run_id) == ("FINISHED", "SUCCEEDED", "", "")


@pytest.mark.usefixtures("in_pipeline")
def test_a_task_that_never_failed_leaves_no_trace(client: MlflowClient) -> None:
    forget_error(task="pretrain")
    assert not all_runs(client) and client.get_experiment_by_name("amlp") is None


def test_to_look_for_a_run_makes_none(tracking_uri: str, client: MlflowClient) -> None:
    assert read_error(params=RegisterParams(tracking_uri=tracking_uri), pipeline="p1") == ("", set())
    assert client.get_experiment_by_name("amlp") is None


def test_outside_of_pipelines_nothing_is_recorded(tracking_uri: str, client: MlflowClient) -> None:
    assert record_error(task="validate", message="bad") == "" and not all_runs(client)


@pytest.mark.usefixtures("in_pipeline")
def test_of_runs_made_in_the_same_moment_all_tasks_take_the_first(tracking_uri: str, client: MlflowClient) -> None:
    home = client.create_experiment("amlp")
    made = [client.create_run(home, start_time=at, tags={"pipeline_run": "p1"}).info.run_id for at in (3, 1, 2)]
    assert pipeline_run(client, experiment="amlp", name="amlp") == made[1] == record_error(task="gate", message="x")


def test_the_run_that_kubeflow_injects_is_used_and_not_ended(
    tracking_uri: str, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its plugin makes a run for the pipeline run, and one below it for each task, whose id the task gets."""
    home = client.create_experiment("kubeflow")
    parent = client.create_run(home).info.run_id
    task = client.create_run(home, tags={"mlflow.parentRunId": parent}).info.run_id
    monkeypatch.setenv("AMLP_PIPELINE_RUN", "p1")
    monkeypatch.setenv("MLFLOW_RUN_ID", task)
    assert opened(tracking_uri) == task and record(tracking_uri, "FAILED") == parent
    tags = client.get_run(parent).data.tags
    assert tags["pipeline_outcome"] == "FAILED" and tags["pipeline_run"] == "p1"
    assert {client.get_run(run).info.status for run in (parent, task)} == {"RUNNING"}
    assert set(all_runs(client)) == {parent, task}


def test_links_lead_to_pages_where_there_are_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = {
        kind: {"name": f"amlp-{kind}<", "version": "3", "model_sha256": "c" * 64} for kind in ("encoder", "segmenter")
    }
    registration = tmp_path / "registration.json"
    write_json(registration, registration_of(tracking_uri="sqlite:////data/mlflow.db", parent_run_id="r1", **models))
    page = tmp_path / "links.html"
    write_links(page, registration)
    assert "<a " not in page.read_text() and "amlp-segmenter&lt; version 3" in page.read_text()
    monkeypatch.setenv("AMLP_MLFLOW_PAGES", "https://mlflow.example.org/")
    write_links(page, registration)
    assert '<a href="https://mlflow.example.org/#/runs/r1"' in page.read_text()
    monkeypatch.setenv("AMLP_MLFLOW_PAGES", "javascript:alert(1)")
    write_links(page, registration)
    assert "<a " not in page.read_text()
