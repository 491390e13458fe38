"""Write to MLflow how runs of the training pipeline ended on Kubeflow, where it says nothing or something else.

Kubeflow runs no exit handler for a run that was terminated or repeated, nor after its controller lost one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from amlp.params import RegisterParams
from pipelines.runs import PIPELINE, in_state, unfinished

# Kubeflow's states in which a run has ended.
ENDED = ("SUCCEEDED", "FAILED", "CANCELED")


@dataclass(frozen=True)
class Closed:
    """A pipeline run, and what MLflow says of it now.

    Args:
        pipeline: Kubeflow's id.
        run_id: MLflow's.
        outcome: SUCCEEDED, FAILED or CANCELED.
        changed: whether MLflow said something else before.
    """

    pipeline: str
    run_id: str
    outcome: str
    changed: bool


def end_of(run: Mapping[str, Any]) -> str:
    """Return the state in which a run of Kubeflow's API ended; empty where it has not, or where the state is unknown.

    A terminated run is FAILED for Kubeflow; that it was terminated stands in its history.
    """
    state = run.get("state")
    if state not in ENDED:
        return ""
    history = run.get("state_history")
    states = (
        [entry.get("state") for entry in history if isinstance(entry, Mapping)] if isinstance(history, list) else []
    )
    # A run that was terminated may have been repeated since by the API's `:retry`.
    latest = states[max((i for i, one in enumerate(states) if one == "RUNNING"), default=0) :]
    return "CANCELED" if state != "SUCCEEDED" and "CANCELING" in latest else str(state)


def experiment_of(run: Mapping[str, Any]) -> str:
    """Return the experiment of MLflow that a run of Kubeflow's API records in; empty for runs of other pipelines.

    A run of a pipeline that somebody uploaded has an id in the place of the pipeline, so its arguments have to do.
    """
    spec = _at(run, "pipeline_spec")
    # With settings of Kubernetes beside it, the pipeline is one level down.
    name = _at(_at(spec, "pipeline_spec") or spec, "pipelineInfo").get("name")
    arguments = _at(_at(run, "runtime_config"), "parameters")
    try:
        values = json.loads(arguments.get("params") or "")
    except (TypeError, ValueError):
        return ""
    if name not in (None, PIPELINE) or "git_commit" not in arguments or not isinstance(values, dict):
        return ""
    return str(_at(values, "register").get("experiment") or RegisterParams().experiment)


def _at(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = values.get(key)
    return found if isinstance(found, Mapping) else {}


def sync(runs: Iterable[Mapping[str, Any]], params: RegisterParams) -> list[Closed]:
    """Bring MLflow's parent runs in line with the ends of Kubeflow's runs; those that agree stay as they are.

    Args:
        runs: as Kubeflow's API returns them. Those of other pipelines and other experiments of MLflow are passed over.
        params: where MLflow is.

    Raises:
        UserError: MLflow can't be reached.
    """
    from amlp.registry.outcome import record_outcome

    closed = []
    for run in runs:
        pipeline, state = run.get("run_id"), end_of(run)
        if not state or not isinstance(pipeline, str) or not pipeline or experiment_of(run) != params.experiment:
            continue
        # Where Kubeflow's list of tasks stops at an earlier state, what ran then may have ended well.
        failed = unfinished(run) if state == "CANCELED" else in_state(run, "FAILED")
        succeeded = in_state(run, "SUCCEEDED")
        found = record_outcome(
            params=params, state=state, failed=failed, succeeded=succeeded, tags={}, pipeline=pipeline
        )
        closed.append(Closed(pipeline, *found))
    return closed
