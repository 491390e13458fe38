"""Component of stage `validate`."""

from kfp.dsl import Dataset, Input, Metrics, Output

from components.common import log_figures, stage


@stage
def validate(params: str, cases: Input[Dataset], validated: Output[Dataset], metrics: Output[Metrics]) -> None:
    """Check every case, list the bad ones, stop past the tolerance."""
    import json
    from pathlib import Path

    from amlp.data.validate import validate
    from amlp.params import parse_params

    settings = parse_params(json.loads(params), "validate_params")
    validate(params=settings.validate_, ingest=Path(cases.path), out=Path(validated.path))
    log_figures(metrics, validated.path)
