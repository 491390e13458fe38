"""How a pipeline run ended, on its run in MLflow: also where it failed before anything was registered."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from amlp.params import RegisterParams
from amlp.registry.tracking import RunLog, connect, parent_run, pipeline_tags, resolve_uri, tracking_address

# What Kubeflow says -> what MLflow says of a run.
_STATUS = {"SUCCEEDED": "FINISHED", "CANCELLED": "KILLED"}
# MLflow keeps 5,000 characters of a tag.
_MESSAGE = 2000


def record_outcome(*, params: RegisterParams, state: str, message: str, tags: Mapping[str, str]) -> str:
    """Tag the pipeline run's parent run in MLflow with the outcome, and end it; returns the run's id.

    A pipeline run that registered nothing, because it failed early or found everything in the cache, gets a parent run
    here, so that there is one for each.

    Args:
        params: where MLflow is.
        state: as Kubeflow writes it: SUCCEEDED, FAILED or CANCELLED.
        message: of the error; empty without.
        tags: what else the run should carry.

    Raises:
        UserError: MLflow can't be reached.
    """
    tags = {**tags, **pipeline_tags(), "pipeline_outcome": state}
    if message:
        tags["pipeline_error"] = message[:_MESSAGE]
    status = _STATUS.get(state, "FAILED")
    with connect(resolve_uri(tracking_address(params.tracking_uri), Path())) as client:
        if injected := os.environ.get("MLFLOW_RUN_ID"):
            # Kubeflow's plugin gives each task a run below the pipeline's, and ends both itself.
            run_id = client.get_run(injected).data.tags.get("mlflow.parentRunId", injected)
            RunLog(client, run_id).tags(tags)
            return str(run_id)
        with parent_run(
            client, experiment=params.experiment, name=f"amlp pipeline, {state.lower()}", tags=tags
        ) as run_id:
            pass
        client.set_terminated(run_id, status=status)
    return run_id
