"""Answers of Kubeflow's API as rows: recorded ones, and ones that nobody expects."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest

from pipelines.runs import NOT_RUN, TASKS, UNREPORTED, as_json, in_state, message_of, rows_of, unfinished
from pipelines.sync import end_of, experiment_of
from tests.support.kubeflow_answers import drawn, mutated

# Recorded by a real Kubeflow Pipelines 2.17; not part of the project.
RECORDED = Path(__file__).parents[4] / "shared" / "fixtures" / "kubeflow"


def recorded(name: str) -> Any:
    file = RECORDED / f"{name}.json"
    if not file.is_file():
        pytest.skip("the recorded answers are not here")
    return json.loads(file.read_text(encoding="utf-8"))


def states(name: str) -> dict[str, str]:
    return {row.task: row.state for row in rows_of(recorded(name))}


def test_tasks_of_a_run_that_failed() -> None:
    found = states("run-failed-task")
    assert found["validate"] == "FAILED" and found["preprocess"] == NOT_RUN and found["record-outcome"] == "SUCCEEDED"
    # In the pipeline's order, and nothing of Kubeflow's own.
    assert [task for task in found if task in TASKS] == [task for task in TASKS if task in found]
    assert not [task for task in found if "driver" in task or "executor" in task or "root" in task]


def test_tasks_from_the_cache_differ_from_those_that_ran() -> None:
    rows = {row.task: row for row in rows_of(recorded("run-succeeded-cached"))}
    assert rows["preprocess"].cached and rows["evaluate"].cached and rows["preprocess"].tries == 0
    assert not rows["find-reference"].cached and not rows["record-outcome"].cached


def test_pods_that_kubeflow_made_again_are_tries() -> None:
    def node(name: str, end: int, pods: int) -> dict[str, Any]:
        return {"display_name": name, "state": "SUCCEEDED", "start_time": "2026-11-26T01:00:00Z",
                "end_time": f"2026-11-26T01:00:{end}Z", "child_tasks": [{"pod_name": "p"}] * pods}  # fmt: skip

    def tries(*nodes: dict[str, Any]) -> dict[str, int]:
        return {row.task: row.tries for row in rows_of({"run_details": {"task_details": list(nodes)}})}

    one = [node("pretrain", 30, 1), node("executor", 30, 2), node("scratch", 40, 1), node("executor", 40, 1)]
    assert tries(*one) == {"pretrain": 2, "scratch": 1}
    # Both at once: nobody can say whose pods they are.
    assert tries(*one, node("executor", 30, 3)) == {"pretrain": 1, "scratch": 1}


def test_what_kubeflow_did_not_report_is_called_so() -> None:
    found = states("run-succeeded-frozen")
    assert found["gate"] == found["record-outcome"] == UNREPORTED and found["evaluate"] == "SUCCEEDED"


def test_a_terminated_run_is_known_by_its_history() -> None:
    assert end_of(recorded("run-terminated")) == "CANCELED" and end_of(recorded("run-canceling")) == ""
    assert end_of(recorded("run-failed-task")) == "FAILED" and end_of(recorded("run-retried-succeeded")) == "SUCCEEDED"


def test_a_run_names_the_pipeline_and_the_experiment_that_it_records_in() -> None:
    answers = [*recorded("runs-list")["runs"], *(recorded(f"run-{end}") for end in ("canceling", "failed-task"))]
    assert len(answers) == 5 and {experiment_of(answer) for answer in answers} == {"amlp"}
    answers[0]["pipeline_spec"]["pipeline_spec"]["pipelineInfo"]["name"] = "hello-world"
    assert experiment_of(answers[0]) == ""


@pytest.mark.parametrize("name", ["run-not-found", "bad-cron", "bad-pipeline", "missing-parameter", "not-json"])
def test_errors_say_what_kubeflow_says(name: str) -> None:
    body = recorded(f"error-{name}")["body"]
    said = message_of(json.dumps(body) if isinstance(body, dict) else body)
    assert said and (not isinstance(body, dict) or said == body["message"][:1000])


@pytest.mark.parametrize("name", ["drawn", "run-failed-oom", "run-retried-succeeded"])
def test_no_answer_ends_in_a_traceback(name: str) -> None:
    whole = drawn() if name == "drawn" else recorded(name)
    for seed in range(200):
        answer = mutated(copy.deepcopy(whole), random.Random(seed))
        assert all(str(row) for row in rows_of(answer))
        json.dumps(as_json(answer, "link"))
        end_of(answer)
        experiment_of(answer)
    for odd in (None, [], "text", {"run_details": []}, {"run_details": {"task_details": {}}}):
        assert rows_of(odd) == []


def test_what_failed_or_did_not_end_is_known_as_far_as_kubeflow_knows_it() -> None:
    assert unfinished(recorded("run-terminated")) == ["pretrain"]
    assert unfinished(recorded("run-failed-oom")) == ["pretrain", "scratch"]
    assert in_state(recorded("run-failed-oom"), "FAILED") == ["pretrain", "scratch"]
    assert in_state(recorded("run-failed-task"), "SUCCEEDED") == ["pull-data", "ingest"]
    assert in_state(recorded("run-terminated"), "FAILED") == ["pretrain"]
    assert unfinished(recorded("run-succeeded-frozen")) == unfinished(recorded("run-succeeded-cached")) == []
    assert unfinished(None) == unfinished({"run_details": {"task_details": [{"display_name": "gate"}]}}) == []
