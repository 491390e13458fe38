"""Component of stage `validate`."""

from kfp.dsl import Dataset, Input, Metrics, Output

from components.common import log_figures, stage


@stage
def validate(params: str, cases: Input[Dataset], validated: Output[Dataset], metrics: Output[Metrics]) -> None:
    """Check every case, list the bad ones, stop past the tolerance."""
    import json
    import logging
    from pathlib import Path

    from amlp.data.validate import REMEDY, validate
    from amlp.errors import ListedError
    from amlp.layout import ValidateFolder
    from amlp.params import parse_params

    logger = logging.getLogger("components.validate")

    settings = parse_params(json.loads(params), "validate_params")
    try:
        validate(params=settings.validate_, ingest=Path(cases.path), out=Path(validated.path))
    except ListedError as error:
        # Kubeflow keeps no file of a task that failed.
        logger.error(ValidateFolder(Path(f"{validated.path}-failed")).bad_cases.read_text(encoding="utf-8"))
        raise ListedError(
            error.headline, error.problems, f"All of them are in the task's log, as CSV. {REMEDY}"
        ) from error
    log_figures(metrics, validated.path)
