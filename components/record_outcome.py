"""Component that runs last, whatever happened before it."""

from kfp.dsl import PipelineTaskFinalStatus

from components.common import light


@light
def record_outcome(params: str, data_rev: str, git_commit: str, status: PipelineTaskFinalStatus) -> None:
    """Write in MLflow how the pipeline run ended.

    Args:
        params: JSON of all parameters.
    """
    import json

    from amlp.environment import quiet
    from amlp.params import parse_params
    from amlp.registry.outcome import record_outcome

    quiet()
    settings = parse_params(json.loads(params), "params")
    run_id = record_outcome(
        params=settings.register_,
        state=status.state,
        message=status.error_message or "",
        tags={"source_rev": data_rev, "git_commit": git_commit},
    )
    print(f"{status.state}: recorded in MLflow run {run_id}")
