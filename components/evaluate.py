"""Component of stage `evaluate`."""

from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output

from components.common import log_figures, stage


@stage(additional_funcs=[log_figures])
def evaluate(
    params: str,
    cases: Input[Dataset],
    shards: Input[Dataset],
    segmenter: Input[Model],
    scratch: Input[Model],
    evaluation: Output[Artifact],
    metrics: Output[Metrics],
) -> None:
    """Score the segmenter and its baselines on the test split."""
    import json
    from pathlib import Path

    from amlp.environment import quiet
    from amlp.evaluation.evaluate import evaluate
    from amlp.params import parse_params

    quiet()
    settings = parse_params(json.loads(params), "evaluate_params")
    evaluate(
        params=settings.evaluate,
        seed=settings.seed,
        ingest=Path(cases.path),
        shards=Path(shards.path),
        segmenter=Path(segmenter.path),
        scratch=Path(scratch.path),
        out=Path(evaluation.path),
    )
    log_figures(metrics, evaluation.path)
