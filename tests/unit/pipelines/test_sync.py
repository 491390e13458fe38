"""What Kubeflow's API says of runs that ended, against MLflow."""

from __future__ import annotations

import json
from typing import Any

import pytest
from mlflow import MlflowClient

from amlp.params import RegisterParams
from amlp.registry.outcome import forget_error, record_error, record_outcome, record_success
from pipelines.sync import Closed, end_of, experiment_of, sync


def started(params: str = "{}", pipeline: str = "amlp-training") -> dict[str, Any]:
    """What a run's answer says of its start."""
    return {"pipeline_spec": {"pipeline_spec": {"pipelineInfo": {"name": pipeline}}, "platform_spec": {}},
            "runtime_config": {"parameters": {"params": params, "git_commit": "c"}}}  # fmt: skip


def run(name: str, *states: str | None, **tasks: str) -> dict[str, Any]:
    """As the API answers: the states in the order of their times, and those of tasks, `record_outcome` and so on."""
    details = [{"display_name": task.replace("_", "-"), "state": state} for task, state in tasks.items()]
    return {"run_id": name, "state": states[-1], "state_history": [{"state": one} for one in states], **started(),
            "run_details": {"task_details": details}}  # fmt: skip


TERMINATED = run("terminated", "PENDING", "RUNNING", "CANCELING", "FAILED")


@pytest.mark.parametrize(
    ("answer", "end"),
    [
        (run("r", "PENDING", None, "RUNNING", "SUCCEEDED"), "SUCCEEDED"),
        (run("r", "PENDING", "RUNNING", "FAILED", "RUNNING", "FAILED"), "FAILED"),
        (TERMINATED, "CANCELED"),
        (run("r", "PENDING", "RUNNING", "CANCELING"), ""),
        # Terminated, then repeated through the API.
        (run("r", "PENDING", "RUNNING", "CANCELING", "FAILED", "RUNNING", "FAILED"), "FAILED"),
        (run("r", "RUNNING", "CANCELING", "FAILED", "RUNNING", "SUCCEEDED"), "SUCCEEDED"),
        (run("r", "NEW_STATE"), ""),
        ({"run_id": "r"}, ""),
        ({"run_id": "r", "state": "FAILED", "state_history": None}, "FAILED"),
        ({"run_id": "r", "state": "FAILED", "state_history": [None, "x", {}]}, "FAILED"),
    ],
)
def test_the_end_of_a_run(answer: dict[str, Any], end: str) -> None:
    assert end_of(answer) == end


def test_what_nobody_closed_is_closed(tracking_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client, params = MlflowClient(tracking_uri=tracking_uri), RegisterParams(tracking_uri=tracking_uri)
    monkeypatch.setenv("AMLP_RECORD", params.model_dump_json(include={"tracking_uri", "experiment"}))
    monkeypatch.setenv("AMLP_PIPELINE_RUN", "good")
    good = record_success(params=params, tags={})
    # Its exit handler never ran.
    monkeypatch.setenv("AMLP_PIPELINE_RUN", "bad")
    bad = record_error(task="validate", message="9 bad cases")
    monkeypatch.delenv("AMLP_PIPELINE_RUN")

    runs = [run("good", "RUNNING", "SUCCEEDED"), run("bad", "RUNNING", "FAILED"), TERMINATED, run("now", "RUNNING"),
            started() | {"run_id": None, "state": "FAILED"}, {}]  # fmt: skip
    first = {one.pipeline: one for one in sync(runs, params)}
    assert first["good"] == Closed("good", good, "SUCCEEDED", changed=False)
    assert first["bad"] == Closed("bad", bad, "FAILED", changed=True)
    assert first.keys() == {"good", "bad", "terminated"} and first["terminated"].outcome == "CANCELED"
    states = {name: client.get_run(one.run_id).info.status for name, one in first.items()}
    assert states == {"good": "FINISHED", "bad": "FAILED", "terminated": "KILLED"}
    assert client.get_run(bad).data.tags["pipeline_error"] == "validate: 9 bad cases"
    assert not [one for one in sync(runs, params) if one.changed]


def test_a_success_that_was_recorded_as_a_failure_is_corrected(tracking_uri: str) -> None:
    """As earlier versions did with each one."""
    client, params = MlflowClient(tracking_uri=tracking_uri), RegisterParams(tracking_uri=tracking_uri)
    home = client.create_experiment(params.experiment)
    made = client.create_run(home, tags={"pipeline_run": "r", "pipeline_outcome": "RUNNING"}).info.run_id
    client.set_terminated(made, status="FAILED")
    assert sync([run("r", "RUNNING", "SUCCEEDED")], params) == [Closed("r", made, "SUCCEEDED", changed=True)]
    assert client.get_run(made).info.status == "FINISHED"


@pytest.fixture
def client(tracking_uri: str, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """MLflow, as the tasks of a pipeline run `r` have it."""
    monkeypatch.setenv("AMLP_RECORD", json.dumps({"tracking_uri": tracking_uri, "experiment": "amlp"}))
    monkeypatch.setenv("AMLP_PIPELINE_RUN", "r")
    return MlflowClient(tracking_uri=tracking_uri)


def synced(client: MlflowClient, answer: dict[str, Any]) -> tuple[str, str, str, str]:
    """MLflow's status after it, and the tags of outcome, task and error; another time it changes nothing."""
    params = RegisterParams(tracking_uri=client.tracking_uri)
    [first], [second] = sync([answer], params), sync([answer], params)
    assert first.changed and not second.changed and first.run_id == second.run_id
    found = client.get_run(first.run_id)
    assert not {"pipeline_error.validate"} & found.data.tags.keys()
    return (found.info.status, *(found.data.tags.get(f"pipeline_{name}", "") for name in ("outcome", "task", "error")))


def fails(client: MlflowClient, task: str) -> None:
    """The first try, at whose end the exit handler ran; it does not after Kubeflow's `:retry`."""
    record_error(task=task, message="9 bad cases")
    record_outcome(params=RegisterParams(tracking_uri=client.tracking_uri), state="FAILED", tags={})


RETRIED = ("RUNNING", "FAILED", "RUNNING")


@pytest.mark.parametrize("said", [True, False], ids=["taken back", "MLflow was away"])
def test_a_run_that_failed_and_was_repeated_and_terminated_was_terminated(client: MlflowClient, said: bool) -> None:
    fails(client, "validate")
    if said:
        forget_error(task="validate")
    record_error(task="pretrain", message="was asked to end (SIGTERM)")
    answer = run("r", *RETRIED, "CANCELING", "FAILED", validate="SUCCEEDED", pretrain="FAILED", record_outcome="FAILED")
    assert synced(client, answer) == ("KILLED", "CANCELED", "pretrain", "The run was terminated at pretrain.")


@pytest.mark.parametrize("said", [True, False], ids=["taken back", "MLflow was away"])
def test_what_made_a_repeated_run_fail_is_not_what_did_so_first(client: MlflowClient, said: bool) -> None:
    fails(client, "validate")
    if said:
        forget_error(task="validate")
    # Whose pod vanished, so it says nothing.
    status, outcome, task, error = synced(client, run("r", *RETRIED, "FAILED", validate="SUCCEEDED", pretrain="FAILED"))
    assert (status, outcome, task) == ("FAILED", "FAILED", "pretrain")
    assert error.startswith("Kubeflow says FAILED at pretrain, and no task recorded why: ")


def test_a_task_that_says_nothing_stands_beside_one_that_does(client: MlflowClient) -> None:
    fails(client, "scratch")
    status, outcome, task, error = synced(client, run("r", "RUNNING", "FAILED", scratch="FAILED", pretrain="FAILED"))
    assert (status, outcome, task) == ("FAILED", "FAILED", "scratch,pretrain")
    assert error.startswith("scratch: 9 bad cases\nKubeflow says FAILED at pretrain, and no task recorded why: ")


def test_what_tasks_said_is_kept_where_kubeflows_list_stops_before(client: MlflowClient) -> None:
    """As it does where the list is large."""
    fails(client, "evaluate")
    [found] = sync([run("r", "RUNNING", "FAILED", ingest="SUCCEEDED", pretrain="RUNNING")],
                   RegisterParams(tracking_uri=client.tracking_uri))  # fmt: skip
    assert not found.changed and client.get_run(found.run_id).data.tags["pipeline_error"] == "evaluate: 9 bad cases"


def test_what_an_earlier_version_wrote_is_kept(client: MlflowClient) -> None:
    """It had one tag for all tasks."""
    home = client.create_experiment("amlp")
    tags = {"pipeline_run": "r", "pipeline_task": "validate", "pipeline_error": "validate: 9 bad cases"}
    client.set_terminated(client.create_run(home, tags=tags).info.run_id, status="FAILED")
    ended = ("FAILED", "FAILED", "validate", "validate: 9 bad cases")
    assert synced(client, run("r", "RUNNING", "FAILED", validate="FAILED")) == ended


def test_a_success_whose_outputs_were_lost_afterwards_is_none(client: MlflowClient) -> None:
    """Kubeflow stores a task's outputs when the task has ended."""
    params = RegisterParams(tracking_uri=client.tracking_uri)
    record_success(params=params, tags={})
    # The exit handler can't know, for ML Metadata's word is not to be trusted.
    assert record_outcome(params=params, state="FAILED", tags={}).outcome == "SUCCEEDED"
    # Nor does its own failure count.
    ended = run("r", "RUNNING", "FAILED", gate="SUCCEEDED", record_outcome="FAILED")
    assert [one.outcome for one in sync([ended], params)] == ["SUCCEEDED"]
    status, outcome, task, error = synced(client, run("r", "RUNNING", "FAILED", register="SUCCEEDED", gate="FAILED"))
    assert (status, outcome, task) == ("FAILED", "FAILED", "gate")
    assert "or its outputs could not be stored" in error


ELSEWHERE = '{"register": {"experiment": "elsewhere"}}'


@pytest.mark.parametrize(
    ("answer", "experiment"),
    [
        (started(), "amlp"),
        (started(ELSEWHERE), "elsewhere"),
        (started(pipeline="hello-world"), ""),
        # Without settings of Kubernetes, and of an uploaded pipeline.
        (started(ELSEWHERE) | {"pipeline_spec": {"pipelineInfo": {"name": "amlp-training"}}}, "elsewhere"),
        (started() | {"pipeline_spec": {"pipelineInfo": {"name": "hello-world"}}}, ""),
        (started(ELSEWHERE) | {"pipeline_spec": None, "pipeline_version_reference": {"pipeline_id": "p"}}, "elsewhere"),
        (started() | {"pipeline_spec": None, "runtime_config": {"parameters": {"params": "{}"}}}, ""),
        (started("no JSON"), ""),
        ({}, ""),
    ],
)
def test_where_a_run_records(answer: dict[str, Any], experiment: str) -> None:
    assert experiment_of(answer) == experiment


def test_runs_of_others_leave_no_trace(tracking_uri: str) -> None:
    client = MlflowClient(tracking_uri=tracking_uri)
    others = [run("r1", "RUNNING", "FAILED") | started(pipeline="hello-world"),
              run("r2", "RUNNING", "FAILED") | started(ELSEWHERE)]  # fmt: skip
    assert sync(others, RegisterParams(tracking_uri=tracking_uri)) == []
    assert [one.name for one in client.search_experiments()] == ["Default"]
