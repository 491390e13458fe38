"""Component of stage `preprocess`."""

from kfp.dsl import Dataset, Input, Metrics, Output

from components.common import log_figures, stage


@stage
def preprocess(
    params: str,
    cases: Input[Dataset],
    validated: Input[Dataset],
    shards: Output[Dataset],
    metrics: Output[Metrics],
) -> None:
    """Group, split and pack the images; score their patches."""
    import json
    from pathlib import Path

    from amlp.data.preprocess import preprocess
    from amlp.params import parse_params

    settings = parse_params(json.loads(params), "preprocess_params")
    preprocess(
        params=settings.preprocess,
        scores=settings.scores,
        seed=settings.seed,
        ingest=Path(cases.path),
        validated=Path(validated.path),
        out=Path(shards.path),
    )
    log_figures(metrics, shards.path)
