"""One parent run in MLflow for each pipeline run, whatever its tasks did, and the ways between the two."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from amlp.files import write_json
from amlp.params import RegisterParams
from amlp.registry.links import write_links
from amlp.registry.outcome import record_outcome
from amlp.registry.tracking import connect, parent_run


@pytest.fixture
def client(tracking_uri: str) -> MlflowClient:
    return MlflowClient(tracking_uri=tracking_uri)


def record(tracking_uri: str, state: str = "SUCCEEDED", message: str = "") -> str:
    params = RegisterParams(tracking_uri=tracking_uri)
    return record_outcome(params=params, state=state, message=message, tags={"git_commit": "c"})


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
    assert client.get_run(first).info.status == "FAILED"
    assert opened(tracking_uri) == first == record(tracking_uri)
    run = client.get_run(first)
    assert run.info.status == "FINISHED" and run.data.tags["pipeline_outcome"] == "SUCCEEDED"
    assert run.data.tags["pipeline_run_url"] == "https://kubeflow.example.org/pipeline/#/runs/details/p1"

    monkeypatch.setenv("AMLP_PIPELINE_RUN", "p2")
    assert opened(tracking_uri) != first
    assert len(all_runs(client)) == 2


@pytest.mark.parametrize(
    ("state", "status"), [("FAILED", "FAILED"), ("CANCELLED", "KILLED"), ("SUCCEEDED", "FINISHED")]
)
def test_a_pipeline_run_that_registered_nothing_is_recorded_too(
    tracking_uri: str, client: MlflowClient, monkeypatch: pytest.MonkeyPatch, state: str, status: str
) -> None:
    monkeypatch.setenv("AMLP_PIPELINE_RUN", "p1")
    run = client.get_run(record(tracking_uri, state, "validate: 9 of 10 cases are bad " + "x" * 10_000))
    assert run.info.status == status and run.data.tags["pipeline_run"] == "p1"
    assert run.data.tags["pipeline_error"].startswith("validate: 9 of 10")
    assert record(tracking_uri) == run.info.run_id


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
    models = {kind: {"name": f"amlp-{kind}<", "version": "3"} for kind in ("encoder", "segmenter")}
    registration = tmp_path / "registration.json"
    write_json(registration, {"tracking_uri": "sqlite:////data/mlflow.db", "parent_run_id": "r1", **models})
    page = tmp_path / "links.html"
    write_links(page, registration)
    assert "<a " not in page.read_text() and "amlp-segmenter&lt; version 3" in page.read_text()
    monkeypatch.setenv("AMLP_MLFLOW_PAGES", "https://mlflow.example.org/")
    write_links(page, registration)
    assert '<a href="https://mlflow.example.org/#/runs/r1"' in page.read_text()
    monkeypatch.setenv("AMLP_MLFLOW_PAGES", "javascript:alert(1)")
    write_links(page, registration)
    assert "<a " not in page.read_text()
