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
    import logging

    from amlp.params import parse_params
    from amlp.registry.outcome import record_outcome

    logger = logging.getLogger("components.record_outcome")

    settings = parse_params(json.loads(params), "params")
    tags = {"source_rev": data_rev, "git_commit": git_commit}
    ended = record_outcome(
        params=settings.register_,
        state=status.state,
        message=status.error_message or "",
        tags={name: value for name, value in tags.items() if value},
    )
    logger.info(f"Kubeflow says {status.state}; recorded as {ended.outcome} in MLflow run {ended.run_id}")
