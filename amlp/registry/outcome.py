"""How a pipeline run ended, on its parent run in MLflow: also where it failed before anything was registered.

Kubeflow's word for the end is not enough: it comes from ML Metadata (COMPLETE, FAILED, RUNNING, CANCELED, CACHED), is
RUNNING after some successes, and holds no reason. So each task writes its own error, the last task writes the success,
and the exit handler closes what neither did.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from amlp.environment import RECORD
from amlp.errors import without_credentials
from amlp.params import RegisterParams
from amlp.registry.tracking import (
    RunLog,
    connect,
    find_pipeline_run,
    mlflow_uri,
    pipeline_run,
    pipeline_tags,
    resolve_uri,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

OUTCOME, TASK, ERROR, KIND = "pipeline_outcome", "pipeline_task", "pipeline_error", "pipeline_error_kind"
SUCCEEDED, FAILED, CANCELED = "SUCCEEDED", "FAILED", "CANCELED"
# Outcome -> what MLflow says of a run.
_STATUS = {SUCCEEDED: "FINISHED", FAILED: "FAILED", CANCELED: "KILLED"}
# MLflow keeps 5,000 characters of a tag.
_MESSAGE = 2000
# The end of a run of which no task says anything.
_TERMINATED = "The run was terminated{where}."
_UNKNOWN = (
    "Kubeflow says {state}{where}, and no task recorded an error or the success: a task's pod ended before it could, "
    "as when it is out of memory, deleted, or its node is lost. Kubeflow's page of the run shows which one."
)


def record_error(*, task: str, message: str, kind: str = "") -> str:
    """Write a task's error to the pipeline run's parent run in MLflow, and end that as FAILED.

    The errors of several tasks are kept; those of an earlier try, whose outcome is recorded already, are replaced.

    Args:
        task: as the pipeline names it.
        message: of the error.
        kind: what it was, as `components.runtime.Attempt` calls it.

    Returns:
        The run's id; empty outside of pipelines.

    Raises:
        UserError: MLflow can't be reached.
    """
    # A caller that injects a run sets MLflow's address too.
    where = json.loads(os.environ.get(RECORD, "{}"))
    if not (pipeline_tags() or "MLFLOW_RUN_ID" in os.environ) or not where:
        return ""
    with _parent(RegisterParams(**where)) as (client, run_id, injected):
        before = client.get_run(run_id).data.tags
        tasks, errors, kinds = [task], [f"{task}: {without_credentials(message)[:_MESSAGE]}"], [kind]
        if OUTCOME not in before and ERROR in before:
            tasks = [*before[TASK].split(","), *tasks]
            errors = [before[ERROR], *errors]
            kinds = [before.get(KIND, ""), *kinds]
        found = {TASK: ",".join(dict.fromkeys(tasks)), ERROR: "\n".join(errors)[: 2 * _MESSAGE], KIND: ",".join(kinds)}
        _write(client, run_id, found)
        if OUTCOME in before:
            client.delete_tag(run_id, OUTCOME)
        if not injected:
            client.set_terminated(run_id, status="FAILED")
        return run_id


def record_success(*, params: RegisterParams, tags: Mapping[str, str]) -> str:
    """Write to the pipeline run's parent run in MLflow that every task succeeded, and end it; returns the run's id.

    Errors of earlier tries are removed.

    Raises:
        UserError: MLflow can't be reached.
    """
    with _parent(params) as (client, run_id, injected):
        _forget_errors(client, run_id)
        _write(client, run_id, {**tags, OUTCOME: SUCCEEDED})
        if not injected:
            client.set_terminated(run_id, status=_STATUS[SUCCEEDED])
        return run_id


def record_outcome(
    *,
    params: RegisterParams,
    state: str,
    message: str = "",
    tasks: Collection[str] = (),
    tags: Mapping[str, str],
    pipeline: str = "",
) -> tuple[str, str]:
    """Close the pipeline run's parent run in MLflow, whatever happened; a recorded success stays one.

    A pipeline run of which nothing was recorded gets a parent run here, so that there is one for each.

    Args:
        params: where MLflow is.
        state: Kubeflow's word for the end. The API says SUCCEEDED of a run, where it is true; the exit handler is given
            ML Metadata's words, which never are that one.
        message: Kubeflow's own, where it has one; what tasks wrote counts for more.
        tasks: that failed or did not end, where Kubeflow knows them; likewise.
        tags: what else the run should carry.
        pipeline: Kubeflow's id of a run that ended before; empty for the one that this task belongs to.

    Returns:
        The run's id, and the outcome: SUCCEEDED, FAILED or CANCELED.

    Raises:
        UserError: MLflow can't be reached.
    """
    with _parent(params, pipeline) as (client, run_id, injected):
        before = client.get_run(run_id).data.tags
        if SUCCEEDED in (before.get(OUTCOME), state):
            outcome = SUCCEEDED
        else:
            # Without the last task's word a run did not succeed, whatever Kubeflow calls its end.
            outcome = CANCELED if state in ("CANCELED", "CANCELLED") else FAILED
        found = {**tags, OUTCOME: outcome}
        if outcome == SUCCEEDED:
            _forget_errors(client, run_id)
        elif ERROR not in before:
            where = f" at {', '.join(tasks)}" if tasks else ""
            said = _TERMINATED if outcome == CANCELED else _UNKNOWN
            found[ERROR] = message[:_MESSAGE] or said.format(state=state or "nothing", where=where)
            found |= {TASK: ",".join(tasks)} if tasks else {}
        _write(client, run_id, found)
        if not injected:
            client.set_terminated(run_id, status=_STATUS[outcome])
        return run_id, outcome


def read_outcome(*, params: RegisterParams, pipeline: str) -> tuple[str, str]:
    """Read how a pipeline run ended.

    Returns:
        The id of its parent run in MLflow, and the outcome; empty where there is none, or where MLflow's status says
        something else.

    Raises:
        UserError: MLflow can't be reached.
    """
    with connect(resolve_uri(mlflow_uri(params.tracking_uri), Path())) as client:
        run_id = find_pipeline_run(client, experiment=params.experiment, pipeline=pipeline)
        if not run_id:
            return "", ""
        run = client.get_run(run_id)
        outcome = run.data.tags.get(OUTCOME, "")
        return run_id, outcome if _STATUS.get(outcome) == run.info.status else ""


def read_error(*, params: RegisterParams, pipeline: str) -> tuple[str, set[str]]:
    """Read why a pipeline run failed.

    Returns:
        The words of its tasks, and the kinds of their errors as `record_error` was given them; empty where nobody wrote
        it.

    Raises:
        UserError: MLflow can't be reached.
    """
    with connect(resolve_uri(mlflow_uri(params.tracking_uri), Path())) as client:
        run_id = find_pipeline_run(client, experiment=params.experiment, pipeline=pipeline)
        tags = client.get_run(run_id).data.tags if run_id else {}
        return tags.get(ERROR, ""), set(tags.get(KIND, "").split(",")) - {""}


@contextmanager
def _parent(params: RegisterParams, pipeline: str = "") -> Iterator[tuple[MlflowClient, str, bool]]:
    """Find or make the pipeline run's parent run; yields a client, the run's id, and whether somebody else ends it."""
    with connect(resolve_uri(mlflow_uri(params.tracking_uri), Path())) as client:
        if not pipeline and (injected := os.environ.get("MLFLOW_RUN_ID")):
            # Kubeflow's plugin gives each task a run below the pipeline's, and ends both itself.
            yield client, client.get_run(injected).data.tags.get("mlflow.parentRunId", injected), True
        else:
            yield (
                client,
                pipeline_run(client, experiment=params.experiment, name="amlp pipeline", pipeline=pipeline),
                False,
            )


def _forget_errors(client: MlflowClient, run_id: str) -> None:
    for name in client.get_run(run_id).data.tags.keys() & {TASK, ERROR, KIND}:
        client.delete_tag(run_id, name)


def _write(client: MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    RunLog(client, run_id).tags({**tags, **pipeline_tags()})
