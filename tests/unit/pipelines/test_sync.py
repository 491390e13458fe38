"""What Kubeflow's API says of runs that ended, against MLflow."""

from __future__ import annotations

from typing import Any

import pytest
from mlflow import MlflowClient

from amlp.params import RegisterParams
from amlp.registry.outcome import record_error, record_success
from pipelines.sync import Closed, end_of, sync


def run(name: str, *states: str | None, **more: Any) -> dict[str, Any]:
    """As the API answers: the states in the order of their times."""
    return {"run_id": name, "state": states[-1], "state_history": [{"state": one} for one in states], **more}


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
            {"run_id": None, "state": "FAILED"}, {}]  # fmt: skip
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
