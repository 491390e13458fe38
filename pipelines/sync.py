"""Close, in MLflow, the runs of pipelines that ended on Kubeflow and that nobody closed.

Kubeflow runs no exit handler for a run that was terminated, nor after its controller lost one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from amlp.params import RegisterParams
from pipelines.runs import unfinished

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


def sync(runs: Iterable[Mapping[str, Any]], params: RegisterParams) -> list[Closed]:
    """Bring MLflow's parent runs in line with the ends of Kubeflow's runs; those that agree stay as they are.

    Args:
        runs: as Kubeflow's API returns them.
        params: where MLflow is.

    Raises:
        UserError: MLflow can't be reached.
    """
    from amlp.registry.outcome import read_outcome, record_outcome

    closed = []
    for run in runs:
        pipeline, state = run.get("run_id"), end_of(run)
        if not state or not isinstance(pipeline, str) or not pipeline:
            continue
        before = read_outcome(params=params, pipeline=pipeline)
        run_id, outcome = before
        if outcome != state:
            run_id, outcome = record_outcome(
                params=params, state=state, tasks=unfinished(run), tags={}, pipeline=pipeline
            )
        closed.append(Closed(pipeline, run_id, outcome, changed=(run_id, outcome) != before))
    return closed
