"""How a pipeline run ended, on its parent run in MLflow: also where it failed before anything was registered.

Kubeflow's word for the end is not enough: it comes from ML Metadata (COMPLETE, FAILED, RUNNING, CANCELED, CACHED), is
RUNNING after some successes, and holds no reason. So each task writes its own error, at a tag of its own, and takes it
back when a later try succeeds; the last task writes the success, and the exit handler closes what neither did.

No task can say that its outputs were lost after its end, when Kubeflow stores them; `amlp-pipelines sync` does.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from amlp.environment import RECORD
from amlp.errors import without_credentials
from amlp.params import RegisterParams
from amlp.registry.runlog import RunLog
from amlp.registry.tracking import (
    RUN_TAG,
    connect,
    find_pipeline_run,
    mlflow_uri,
    pipeline_run,
    pipeline_tags,
    resolve_uri,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

OUTCOME, TASK, ERROR = "pipeline_outcome", "pipeline_task", "pipeline_error"
SUCCEEDED, FAILED, CANCELED = "SUCCEEDED", "FAILED", "CANCELED"
# Outcome -> what MLflow says of a run.
_STATUS = {SUCCEEDED: "FINISHED", FAILED: "FAILED", CANCELED: "KILLED"}
# What a task said, with its name behind this: tasks that fail at once would lose words at a tag in common.
_OF_TASK, _KIND = f"{ERROR}.", "pipeline_error_kind."
# The exit handler: its own error says nothing about the run.
_CLOSER = "record-outcome"
# MLflow keeps 5,000 characters of a tag; of one task's message, and of all that failed.
_MESSAGE, _MESSAGES = 2000, 4000
# The end of a run of which no task says anything.
_TERMINATED = "The run was terminated{where}."
_UNKNOWN = (
    "Kubeflow says {state}{where}, and no task recorded why: a task's pod ended before it could, as when it is out of "
    "memory, deleted, or its node is lost, or its outputs could not be stored. Kubeflow's page of the run shows which."
)


def record_error(*, task: str, message: str, kind: str = "") -> str:
    """Write a task's error to the pipeline run's parent run in MLflow, and end that as FAILED.

    Args:
        task: as the pipeline names it.
        message: of the error; it replaces that of an earlier try.
        kind: what it was, as `components.runtime.Attempt` calls it.

    Returns:
        The run's id; empty outside of pipelines.

    Raises:
        UserError: MLflow can't be reached.
    """
    params = _place(task)
    if params is None:
        return ""
    with _parent(params) as (client, run_id, injected):
        _write(client, run_id, {f"{_OF_TASK}{task}": without_credentials(message)[:_MESSAGE], f"{_KIND}{task}": kind})
        _sum_up(client, run_id, injected=injected)
        return run_id


def forget_error(*, task: str) -> None:
    """Take back the error of an earlier try of a task that has succeeded since; the run counts as running again.

    Raises:
        UserError: MLflow can't be reached.
    """
    params = _place(task)
    if params is None:
        return
    with _parent(params, make=False) as (client, run_id, injected):
        name = f"{_OF_TASK}{task}"
        if run_id and name in client.get_run(run_id).data.tags:
            _delete(client, run_id, [name, f"{_KIND}{task}"])
            _sum_up(client, run_id, injected=injected)


def record_success(*, params: RegisterParams, tags: Mapping[str, str]) -> str:
    """Write to the pipeline run's parent run in MLflow that every task succeeded, and end it; returns the run's id.

    Errors of earlier tries are removed.

    Raises:
        UserError: MLflow can't be reached.
    """
    with _parent(params) as (client, run_id, injected):
        before = client.get_run(run_id).data.tags
        _delete(client, run_id, [name for name in before if _is_reason(name)])
        _write(client, run_id, {**tags, OUTCOME: SUCCEEDED})
        if not injected:
            client.set_terminated(run_id, status=_STATUS[SUCCEEDED])
        return run_id


class Recorded(NamedTuple):
    """What MLflow says of a pipeline run's end.

    Args:
        run_id: of its parent run.
        outcome: SUCCEEDED, FAILED or CANCELED.
        changed: whether MLflow said something else before.
    """

    run_id: str
    outcome: str
    changed: bool


def record_outcome(
    *,
    params: RegisterParams,
    state: str,
    message: str = "",
    failed: Collection[str] = (),
    succeeded: Collection[str] = (),
    tags: Mapping[str, str],
    pipeline: str = "",
) -> Recorded:
    """Close the pipeline run's parent run in MLflow, whatever happened; what agrees already stays as it is.

    A pipeline run of which nothing was recorded gets a parent run here, so that there is one for each.

    Args:
        params: where MLflow is.
        state: Kubeflow's word for the end. The API says SUCCEEDED of a run, where it is true; the exit handler is given
            ML Metadata's words, which never are that one. A success that the last task recorded counts for more.
        message: Kubeflow's own, where it has one; what tasks wrote counts for more.
        failed: the tasks that failed or did not end, where Kubeflow knows them. With one of them no run succeeded,
            whatever was recorded: its outputs were lost.
        succeeded: the tasks that succeeded, likewise. What earlier tries of them wrote is no reason.
        tags: what else the run should carry.
        pipeline: Kubeflow's id of a run that ended before; empty for the one that this task belongs to.

    Raises:
        UserError: MLflow can't be reached.
    """
    with _parent(params, pipeline) as (client, run_id, injected):
        run = client.get_run(run_id)
        before = run.data.tags
        errors = {task: said for task, said in _errors(before).items() if task not in succeeded}
        reason: dict[str, str] = {}
        if state == SUCCEEDED or (before.get(OUTCOME) == SUCCEEDED and not failed):
            outcome, errors = SUCCEEDED, {}
        elif state in ("CANCELED", "CANCELLED"):
            # What tasks say of that is its consequence, or of a try before. It stays at their own tags.
            outcome, reason = CANCELED, _summary({}, failed, message or _TERMINATED.format(where=_at(failed)))
        else:
            # Without the last task's word a run did not succeed, whatever Kubeflow calls its end.
            outcome = FAILED
            known = set(failed) in (set(), set(before.get(TASK, "").split(",")))
            if not errors and known and ERROR in before and before.get(OUTCOME) != CANCELED:
                # The exit handler's, or an earlier version's, which had no tags of tasks.
                reason = {name: before[name] for name in (TASK, ERROR) if name in before}
            else:
                silent = [task for task in failed if task not in errors]
                said = message or _UNKNOWN.format(state=state or "nothing", where=_at(silent))
                reason = _summary(errors, silent, said if silent or not errors else "")
        found = {**tags, **pipeline_tags(), OUTCOME: outcome, **reason}
        kept = {*found, *(f"{prefix}{task}" for task in errors for prefix in (_OF_TASK, _KIND))}
        stale = [name for name in before if _is_reason(name) and name not in kept]
        ended = injected or run.info.status == _STATUS[outcome]
        if not stale and ended and found.items() <= before.items():
            return Recorded(run_id, outcome, changed=False)
        _delete(client, run_id, stale)
        _write(client, run_id, found)
        if not injected:
            client.set_terminated(run_id, status=_STATUS[outcome])
        return Recorded(run_id, outcome, changed=True)


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
        kinds = {tags.get(f"{_KIND}{task}", "") for task in _errors(tags)}
        return tags.get(ERROR, ""), kinds - {""}


def _place(task: str) -> RegisterParams | None:
    """Where the errors of this task are recorded; None for nowhere."""
    # A caller that injects a run sets MLflow's address too.
    where = json.loads(os.environ.get(RECORD, "{}"))
    if not (pipeline_tags() or "MLFLOW_RUN_ID" in os.environ) or not where or task == _CLOSER:
        return None
    return RegisterParams(**where)


@contextmanager
def _parent(
    params: RegisterParams, pipeline: str = "", *, make: bool = True
) -> Iterator[tuple[MlflowClient, str, bool]]:
    """Find or make the pipeline run's parent run; yields a client, the run's id, and whether somebody else ends it."""
    with connect(resolve_uri(mlflow_uri(params.tracking_uri), Path())) as client:
        if not pipeline and (injected := os.environ.get("MLFLOW_RUN_ID")):
            # Kubeflow's plugin gives each task a run below the pipeline's, and ends both itself.
            yield client, client.get_run(injected).data.tags.get("mlflow.parentRunId", injected), True
            return
        pipeline = pipeline or pipeline_tags()[RUN_TAG]
        if make:
            run_id = pipeline_run(client, experiment=params.experiment, name="amlp pipeline", pipeline=pipeline)
        else:
            run_id = find_pipeline_run(client, experiment=params.experiment, pipeline=pipeline)
        yield client, run_id, False


def _is_reason(tag: str) -> bool:
    return tag in (TASK, ERROR) or tag.startswith((_OF_TASK, _KIND))


def _errors(tags: Mapping[str, str]) -> dict[str, str]:
    """What tasks said, by task."""
    return {name.removeprefix(_OF_TASK): tags[name] for name in sorted(tags) if name.startswith(_OF_TASK)}


def _at(tasks: Collection[str]) -> str:
    return f" at {', '.join(tasks)}" if tasks else ""


def _summary(errors: Mapping[str, str], silent: Collection[str] = (), said: str = "") -> dict[str, str]:
    """The reason at one place: what tasks said, and what is said of those that did not."""
    share = min(_MESSAGE, _MESSAGES // max(1, len(errors)))
    lines = [f"{task}: {message}"[:share] for task, message in errors.items()] + ([said[:_MESSAGE]] if said else [])
    tasks = ",".join([*errors, *silent])
    return {ERROR: "\n".join(lines)} | ({TASK: tasks} if tasks else {})


def _sum_up(client: MlflowClient, run_id: str, *, injected: bool) -> None:
    """Say at one place what tasks said. The outcome of an earlier try of the whole run counts no more."""
    before = client.get_run(run_id).data.tags
    errors = _errors(before)
    _delete(client, run_id, before.keys() & ({OUTCOME} if errors else {OUTCOME, TASK, ERROR}))
    if errors:
        _write(client, run_id, _summary(errors))
    if injected:
        return
    if errors:
        client.set_terminated(run_id, status=_STATUS[FAILED])
    else:
        client.update_run(run_id, status="RUNNING")


def _delete(client: MlflowClient, run_id: str, names: Iterable[str]) -> None:
    """Delete tags; another task may have been faster."""
    from mlflow import MlflowException

    for name in names:
        try:
            client.delete_tag(run_id, name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise


def _write(client: MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    RunLog(client, run_id).tags({**tags, **pipeline_tags()})
